//! The checks that keep what leaves the machine what it was when it was checked, and how to take each out.
//!
//! The test `wire` has to notice without being told what is missing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// What the text of a file becomes.
struct Edit {
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

/// A check, and what takes it out.
pub(super) struct Repair {
    /// What is possible without it.
    pub name: &'static str,
    /// What the oracle has to say of it then, among other things perhaps.
    pub seen: &'static str,
    edits: &'static [Edit],
}

const APPLY: &str = "portmap-ebpf/src/bpf/apply.rs";
const OFFLOAD: &str = "portmap-ebpf/src/bpf/offload.rs";
const SEGMENTS: &str = "portmap-ebpf/src/segments.rs";
const FRAME: &str = "portmap-ebpf/src/bpf/frame.rs";

/// Allows GSO types that no stack uses any more.
const UFO: Edit = Edit {
    file: OFFLOAD,
    from: "if is_gso && !has_allowed_gso_type(context, gso_size, is_sctp) {",
    to: "if is_gso && gso_size == GSO_BY_FRAGS && !has_allowed_gso_type(context, gso_size, is_sctp) {",
};

/// Allows GSO frames whose headers a program has moved.
const MOVED: Edit =
    Edit { file: OFFLOAD, from: "Checksum::Complete => !is_gso,", to: "Checksum::Complete => true," };

/// Allows a checksum at any offset.
const CHECKSUM_ANYWHERE: Edit = Edit {
    file: OFFLOAD,
    from: "transport != 0\n                && offset >= transport + PROTECTED\n                && offset < MAX_OFFSET\n                && (!is_gso || start == transport)",
    to: "true",
};

/// All of them.
pub(super) const ALL: [Repair; 9] = [
    Repair {
        name: "a container's packet asks a program to report instead of to count",
        seen: "packets are counted",
        edits: &[Edit {
            file: FRAME,
            from: "skb.mark == DRY_RUN_MARK && unsafe { (&raw const skb.hwtstamp).read_volatile() } == DRY_RUN_HWTSTAMP",
            to: "skb.mark == DRY_RUN_MARK",
        }],
    },
    Repair {
        name: "marks leave with a packet",
        seen: "leave with a mark",
        edits: &[Edit {
            file: APPLY,
            from: "set_mark(context, 0);\n            set_priority(0);",
            to: "set_priority(0);",
        }],
    },
    Repair {
        name: "priorities leave with a packet",
        seen: "classes that are the operator's",
        edits: &[Edit {
            file: APPLY,
            from: "set_mark(context, 0);\n            set_priority(0);",
            to: "set_mark(context, 0);",
        }],
    },
    Repair {
        name: "a fragment is cut, from offset 0",
        // What the payload begins with, read as a port.
        seen: "source port 30569",
        edits: &[
            UFO,
            Edit {
                file: OFFLOAD,
                from: "transport != 0\n                && offset >= transport + PROTECTED\n                && offset < MAX_OFFSET",
                to: "(is_gso && transport == 0 && offset >= 40) || transport != 0 && offset >= transport + PROTECTED && offset < MAX_OFFSET",
            },
            Edit {
                file: SEGMENTS,
                from: "if l4.is_fragment {\n            return Err(Reason::Malformed);",
                to: "if l4.is_fragment {\n            return Ok(Self { max_frame_len: 0, bytes: length });",
            },
        ],
    },
    Repair {
        name: "a checksum is written where its sender likes",
        seen: "source port",
        edits: &[CHECKSUM_ANYWHERE],
    },
    Repair {
        name: "headers are moved after the kernel has looked at them",
        seen: "are taken for",
        edits: &[MOVED, CHECKSUM_ANYWHERE],
    },
    Repair {
        name: "segments are as large as their sender likes",
        seen: "of which the uplink carries",
        edits: &[Edit {
            file: FRAME,
            from: "result < 0 || (result == 0 && max_frame_len <= mtu + ETHERNET)",
            to: "true",
        }],
    },
    Repair {
        name: "the headers of segments are not charged",
        seen: "are allowed",
        edits: &[Edit {
            file: SEGMENTS,
            from: "let bytes = length + segments.saturating_sub(1) * headers;",
            to: "let bytes = length;",
        }],
    },
    Repair {
        name: "a frame becomes tens of thousands of segments",
        seen: "segments are made",
        edits: &[
            Edit {
                file: SEGMENTS,
                from: "if segments > MAX_SEGMENTS {",
                to: "if segments > MAX_SEGMENTS * 100 {",
            },
            Edit {
                file: SEGMENTS,
                from: "if bytes > MAX_WIRE_BYTES {",
                to: "if bytes > MAX_WIRE_BYTES * 100 {",
            },
        ],
    },
];

impl Repair {
    /// Takes the check out of the tree in `directory` while something is done.
    pub(super) fn without<T>(&self, directory: &Path, check: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut files: Vec<(PathBuf, String)> = Vec::new();
        let result = self.take_out(directory, &mut files).and_then(|()| check());
        // The last first: a file that is changed twice becomes what it was before the first change.
        for (file, whole) in files.into_iter().rev() {
            fs::write(&file, whole)?;
        }
        result
    }

    /// Notes what each file was before it is changed.
    fn take_out(&self, directory: &Path, files: &mut Vec<(PathBuf, String)>) -> Result<()> {
        for edit in self.edits {
            let file = directory.join(edit.file);
            let whole =
                fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            if whole.matches(edit.from).count() != 1 {
                bail!("{} does not have `{}` once: correct the list of repairs", edit.file, edit.from);
            }
            fs::write(&file, whole.replace(edit.from, edit.to))?;
            files.push((file, whole));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::ALL;
    use crate::workspace;

    #[test]
    fn every_check_is_where_it_is_taken_out() {
        for edit in ALL.iter().flat_map(|repair| repair.edits) {
            let text = fs::read_to_string(workspace::root().join(edit.file)).expect(edit.file);
            assert_eq!(text.matches(edit.from).count(), 1, "{}: {}", edit.file, edit.from);
        }
    }
}
