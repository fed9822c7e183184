//! The report, the summary and the files with raw data.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    classifier::{
        statistics::Estimate,
        summary::{Level, PathCase, Summary, mesos_allows, share_kept},
        test_runs::{Probe, Run},
        trials::{Measured, Variant},
    },
    text::{grouped, number, table, wrapped},
};

/// The file with the summary.
const SUMMARY: &str = "summary.json";

/// Writes every single measurement, kept or dropped.
pub(crate) fn write_raw(
    directory: &Path,
    measured: &[Measured],
    (probes, runs): (&[Probe], &[Vec<Run>]),
) -> Result<()> {
    let mut path =
        String::from("round,containers,mix,variant,packets,nanoseconds_per_packet,case_disturbed\n");
    for case in measured {
        for variant in Variant::ALL {
            let place = variant as usize;
            writeln!(
                path,
                "{},{},{},{},{},{:.3},{}",
                case.round,
                case.containers,
                case.mix.name(),
                variant.name(),
                case.packets[place],
                case.nanoseconds[place],
                u8::from(case.disturbed)
            )?;
        }
    }
    let mut programs = String::from("round,program,nanoseconds_per_run,steal_ticks,switches\n");
    for (round, results) in runs.iter().enumerate() {
        for (probe, run) in probes.iter().zip(results) {
            writeln!(
                programs,
                "{round},\"{}\",{:.3},{},{}",
                probe.name, run.nanoseconds, run.disturbance.steal, run.disturbance.switches
            )?;
        }
    }
    write_file(&directory.join("receive-path.csv"), path)?;
    write_file(&directory.join("programs.csv"), programs)
}

/// Reads the summary that an earlier run has written.
pub(crate) fn read_summary(directory: &Path) -> Result<Summary> {
    let file = directory.join(SUMMARY);
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a summary", file.display()))
}

/// Writes the report as Markdown.
pub(crate) fn write(directory: &Path, summary: &Summary) -> Result<()> {
    write_file(&directory.join("report.md"), wrapped(&text(summary)?))
}

/// Writes the summary as JSON.
pub(crate) fn write_summary(directory: &Path, summary: &Summary) -> Result<()> {
    let json = serde_json::to_string_pretty(summary).context("cannot write the summary as JSON")?;
    write_file(&directory.join(SUMMARY), json + "\n")
}

fn write_file(file: &Path, contents: String) -> Result<()> {
    fs::write(file, contents).with_context(|| format!("cannot write {}", file.display()))
}

/// The report as Markdown.
pub(crate) fn text(summary: &Summary) -> Result<String> {
    let machine = &summary.machine;
    let mut text = String::from("# Cost of the classifier\n\n");
    writeln!(
        text,
        "{}, {} CPUs, measured on CPU {}; Linux {}; Spectre v2: {}; programs attached by {}; seed {}.\n",
        machine.cpu,
        machine.cpus,
        machine.measured_on.unwrap_or_default(),
        machine.kernel,
        machine.spectre_v2,
        summary.mechanism,
        summary.seed
    )?;
    receive_path(&mut text, summary)?;
    again(&mut text, summary)?;
    programs(&mut text, summary)?;
    publish(&mut text, summary)?;
    goals(&mut text, summary)?;
    Ok(text)
}

fn receive_path(text: &mut String, summary: &Summary) -> Result<()> {
    writeln!(
        text,
        "## On the receive path\n\n\
         Time per packet in nanoseconds, from its creation to its drop by the stack right behind the classifier: \
         median (minimum) of rounds.\n"
    )?;
    let mut levels = table(&[
        "ports",
        "containers",
        "u32 filters",
        "no classifier, ns",
        "empty program, ns",
        "delivery only, ns",
        "portmap, ns",
        "Mesos u32, ns",
    ]);
    let mut costs = table(&[
        "ports",
        "containers",
        "portmap costs, ns",
        "u32 costs, ns",
        "u32 / portmap",
        "portmap's verdict, ns",
        "u32's verdict, ns",
        "u32 / portmap",
    ]);
    for case in &summary.receive_path {
        let level = |variant: Variant| level(&case.nanoseconds[variant.name()]);
        let note = if mesos_allows(case.filters) { "" } else { " ¹" };
        let name = [case.mix.name().to_owned(), grouped(f64::from(case.containers))];
        levels.add_row(name.clone().into_iter().chain([
            format!("{}{note}", grouped(f64::from(u32::try_from(case.filters)?))),
            level(Variant::None),
            level(Variant::Empty),
            level(Variant::Deliver),
            level(Variant::Portmap),
            level(Variant::U32),
        ]));
        costs.add_row(name.into_iter().chain([
            interval(&case.portmap),
            interval(&case.u32),
            interval(&case.ratio),
            interval(&case.portmap_verdict),
            interval(&case.u32_verdict),
            interval(&case.ratio_of_verdicts),
        ]));
    }
    writeln!(text, "{levels}\n")?;
    writeln!(
        text,
        "¹ Mesos itself stops at 2,048 filters at one priority, the kernel at 4,095.\n\n\
         *owned*: uniform over all ports of containers. The packet enters the container's namespace, by \
         `bpf_redirect_peer` for portmap and *delivery only*, by mirred and the veth pair for Mesos. *unowned*: \
         ports of the host, for which the kernel walks the whole list. Every packet of every trial was verified \
         to arrive at its destination.\n\n\
         Costs are medians of differences within a round, with 95 % confidence intervals. *costs* are relative to no \
         classifier and include delivery; a *verdict* is relative to the smallest program that does the same with the \
         packet: the empty one for unowned ports, *delivery only* for owned ones.\n\n{costs}\n"
    )?;
    let (kept, dropped) = rounds(&summary.receive_path);
    let repeated: u32 = summary.receive_path.iter().map(|case| case.repeated_trials).sum();
    writeln!(
        text,
        "Rounds: {} of each case. Trials with steal time were repeated ({repeated} trials). {} of {} rounds of a case \
         had steal time in every attempt and were dropped (at least {:.0} % of each case were kept). Steal \
         time: {} ticks; switches to other tasks: {}.\n",
        (kept + dropped) / summary.receive_path.len(),
        dropped,
        kept + dropped,
        share_kept(summary),
        summary.steal_ticks,
        summary.switches
    )?;
    Ok(())
}

fn again(text: &mut String, summary: &Summary) -> Result<()> {
    let again = summary.again;
    writeln!(
        text,
        "A/A test: {} of {} comparisons of a variant with itself have 0 in their interval (one in twenty misses it by \
         chance); the largest difference is {:.2} ns.{}\n",
        again.hold_zero,
        again.checks,
        again.largest,
        if again.is_too_noisy() {
            " **The machine is too noisy: differences of this size are not significant.**"
        } else {
            ""
        }
    )?;
    Ok(())
}

fn programs(text: &mut String, summary: &Summary) -> Result<()> {
    writeln!(text, "## Programs alone (BPF_PROG_TEST_RUN)\n")?;
    let mut table = table(&["program and packet", "run, ns", "over the empty program, ns"]);
    for program in &summary.programs {
        table.add_row([program.name.clone(), level(&program.nanoseconds), interval(&program.cost)]);
    }
    writeln!(text, "{table}\n")?;
    Ok(())
}

fn publish(text: &mut String, summary: &Summary) -> Result<()> {
    writeln!(text, "## Publishing the ports of a container\n")?;
    let mut table =
        table(&["ports", "mapped table, µs", "one system call each, µs", "system calls / mapped"]);
    for published in &summary.publish {
        table.add_row([
            grouped(f64::from(published.ports)),
            format!("{:.2} ({:.2})", published.mapped_median, published.mapped_minimum),
            format!("{:.0} ({:.0})", published.syscalls_median, published.syscalls_minimum),
            format!("{:.0}", published.syscalls_median / published.mapped_median),
        ]);
    }
    writeln!(text, "{table}\n")?;
    Ok(())
}

fn goals(text: &mut String, summary: &Summary) -> Result<()> {
    writeln!(text, "## Goals\n")?;
    let mut table = table(&["goal", "measured", "met"]);
    for goal in &summary.goals {
        let met = if goal.met { "yes" } else { "**no**" };
        table.add_row([&*goal.text, &goal.measured, met]);
    }
    writeln!(text, "{table}")?;
    Ok(())
}

fn rounds(cases: &[PathCase]) -> (usize, usize) {
    (cases.iter().map(|case| case.rounds).sum(), cases.iter().map(|case| case.dropped_rounds).sum())
}

fn level(level: &Level) -> String {
    format!("{} ({})", number(level.median), number(level.minimum))
}

fn interval(estimate: &Estimate) -> String {
    format!("{} [{}, {}]", number(estimate.value), number(estimate.low), number(estimate.high))
}
