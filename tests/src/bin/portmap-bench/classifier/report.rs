//! The report for people, and the files with raw data.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    classifier::{
        statistics::Estimate,
        summary::{Level, PathCase, Summary, mesos_allows, share_kept},
        test_runs::{Probe, Run},
        trials::{Measured, Variant},
    },
    text::{grouped, number, table},
};

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
    write(&directory.join("receive-path.csv"), path)?;
    write(&directory.join("programs.csv"), programs)
}

/// Writes the summary, for programs and for people.
pub(crate) fn write_summary(directory: &Path, summary: &Summary) -> Result<()> {
    let json = serde_json::to_string_pretty(summary).context("cannot write the summary as JSON")?;
    write(&directory.join("summary.json"), json + "\n")?;
    write(&directory.join("report.md"), text(summary)?)
}

fn write(file: &Path, contents: String) -> Result<()> {
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
         Nanoseconds per packet, from where it is made to where the stack drops it right behind the classifier: \
         median (minimum) of rounds.\n"
    )?;
    let mut levels = table(&[
        "ports",
        "containers",
        "u32 filters",
        "no classifier",
        "empty program",
        "delivery only",
        "portmap",
        "Mesos u32",
    ]);
    let mut costs = table(&[
        "ports",
        "containers",
        "portmap costs",
        "u32 costs",
        "u32 / portmap",
        "portmap's verdict",
        "u32's verdict",
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
         *owned*: uniform over all ports of containers, and the packet changes into the container's namespace: by \
         `bpf_redirect_peer` for portmap and *delivery only*, by mirred and the veth pair for Mesos. *unowned*: \
         ports of the host, for which the whole list is walked. Every packet was seen to end where it must, in \
         every trial.\n\n\
         Costs: medians of differences in the same round, with 95 % confidence intervals. *costs* is over no \
         classifier, delivery included; *verdict* is over the least program that does the same with the packet, \
         which is the empty one for unowned and *delivery only* for owned ports.\n\n{costs}\n"
    )?;
    let (kept, dropped) = rounds(&summary.receive_path);
    let repeated: u32 = summary.receive_path.iter().map(|case| case.repeated_trials).sum();
    writeln!(
        text,
        "Rounds: {} of each case. A trial with steal time was repeated ({repeated} of them); {} cases of {} found no \
         trial without and were dropped (at least {:.0} % of each case kept). Steal time seen: {} ticks; other \
         tasks took the CPU {} times.\n",
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
        "A/A: {} of {} comparisons of a variant with itself have 0 in their interval (chance leaves out one in \
         twenty); the largest difference is {:.2} ns.{}\n",
        again.hold_zero,
        again.checks,
        again.largest,
        if again.is_too_noisy() {
            " **The machine is too noisy: do not trust differences of this size.**"
        } else {
            ""
        }
    )?;
    Ok(())
}

fn programs(text: &mut String, summary: &Summary) -> Result<()> {
    writeln!(text, "## Programs alone (BPF_PROG_TEST_RUN)\n")?;
    let mut table = table(&["program and packet", "ns per run", "ns over the empty program"]);
    for program in &summary.programs {
        table.add_row([program.name.clone(), level(&program.nanoseconds), interval(&program.cost)]);
    }
    writeln!(text, "{table}\n")?;
    Ok(())
}

fn publish(text: &mut String, summary: &Summary) -> Result<()> {
    writeln!(text, "## Giving ports to a container\n")?;
    let mut table =
        table(&["ports", "µs by the mapped table", "µs by one system call each", "system calls / mapped"]);
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
