//! The checks that ensure that a packet that leaves the machine is the packet that was checked, and how to
//! remove each of them.
//!
//! The test `wire` must detect each missing check.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// A replacement in a file.
struct Edit {
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

/// A check, and the edits that remove it.
pub(super) struct Repair {
    /// The effect of its removal.
    pub name: &'static str,
    /// Text that the oracle must report then.
    pub seen: &'static str,
    edits: &'static [Edit],
}

const APPLY: &str = "portmap-ebpf/src/bin/datapath/apply.rs";
const OFFLOAD: &str = "portmap-ebpf/src/bin/datapath/offload.rs";
const SEGMENTS: &str = "portmap-ebpf/src/segments.rs";
const SKB: &str = "portmap-ebpf/src/bin/datapath/skb.rs";

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
    from: "transport != 0\n                && offset >= transport + PROTECTED\n                \
           && offset < MAX_OFFSET\n                && (!is_gso || start == transport)",
    to: "true",
};

/// All checks.
pub(super) const ALL: [Repair; 9] = [
    Repair {
        name: "a container's packet causes a dry run",
        seen: "packets are counted",
        edits: &[Edit {
            file: SKB,
            from: "skb.mark == DRY_RUN_MARK && \
                   unsafe { (&raw const skb.hwtstamp).read_volatile() } == DRY_RUN_HWTSTAMP",
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
        name: "a fragment is segmented, from offset 0",
        // The first bytes of the payload as a port.
        seen: "source port 30569",
        edits: &[
            UFO,
            Edit {
                file: OFFLOAD,
                from: "transport != 0\n                && offset >= transport + PROTECTED\n                \
                       && offset < MAX_OFFSET",
                to: "(is_gso && transport == 0 && offset >= 40) || transport != 0 && \
                     offset >= transport + PROTECTED && offset < MAX_OFFSET",
            },
            Edit {
                file: SEGMENTS,
                from: "if l4.is_fragment {\n            return Err(Reason::Malformed);",
                to: "if l4.is_fragment {\n            return Ok(Self { max_frame_len: 0, ..Self::one_packet(frame) });",
            },
        ],
    },
    Repair {
        name: "a sender chooses the offset of the checksum",
        seen: "source port",
        edits: &[CHECKSUM_ANYWHERE],
    },
    Repair {
        name: "headers move after the kernel has parsed them",
        seen: "are taken for",
        edits: &[MOVED, CHECKSUM_ANYWHERE],
    },
    Repair {
        name: "a sender chooses the size of segments",
        seen: "of which the uplink carries",
        edits: &[Edit {
            file: SKB,
            from: "result < 0 || (result == 0 && max_frame_len <= mtu + ETHERNET)",
            to: "true",
        }],
    },
    Repair {
        name: "the headers of segments are not charged",
        seen: "are allowed",
        edits: &[Edit {
            file: SEGMENTS,
            from: "let bytes = length + further * headers;",
            to: "let bytes = length;",
        }],
    },
    Repair {
        name: "a frame becomes tens of thousands of segments",
        seen: "segments are made",
        edits: &[
            Edit {
                file: SEGMENTS,
                from: "if further >= MAX_SEGMENTS {",
                to: "if further >= MAX_SEGMENTS * 100 {",
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
    /// Removes the check from the tree in `directory` while `check` runs.
    pub(super) fn without<T>(&self, directory: &Path, check: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut files: Vec<(PathBuf, String)> = Vec::new();
        let result = self.remove(directory, &mut files).and_then(|()| check());
        // In reverse order, so that a file with two edits gets its original content.
        for (file, whole) in files.into_iter().rev() {
            fs::write(&file, whole)?;
        }
        result
    }

    /// Applies the edits, and records the original content of each file.
    fn remove(&self, directory: &Path, files: &mut Vec<(PathBuf, String)>) -> Result<()> {
        for edit in self.edits {
            let file = directory.join(edit.file);
            let whole =
                fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            if whole.matches(edit.from).count() != 1 {
                bail!("{} does not have `{}` once: correct the list of checks", edit.file, edit.from);
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
    fn mutants_every_check_exists_once() {
        for edit in ALL.iter().flat_map(|check| check.edits) {
            let text = fs::read_to_string(workspace::root().join(edit.file)).expect(edit.file);
            assert_eq!(text.matches(edit.from).count(), 1, "{}: {}", edit.file, edit.from);
        }
    }
}
