//! Versions of the CNI specification.

use crate::error::{CniError, Code, Result};

/// All versions that the plugin speaks, ascending.
pub(crate) const ALL: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A version that the plugin speaks: an index into [`ALL`], so that versions are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(usize);

impl Version {
    /// The version of configurations that name none. Mesos' isolator sends such.
    pub(crate) const UNNAMED: Self = Self(0);
    /// The first version whose results list interfaces.
    pub(crate) const V0_3_0: Self = Self(2);
    /// The first version with CHECK.
    pub(crate) const V0_4_0: Self = Self(4);
    /// The first version whose addresses do not name their IP version.
    pub(crate) const V1_0_0: Self = Self(5);
    /// The first version with GC, STATUS, and the MTU in results.
    pub(crate) const V1_1_0: Self = Self(6);
    /// The latest version.
    pub(crate) const LATEST: Self = Self(ALL.len() - 1);

    /// The version with this text.
    ///
    /// # Errors
    ///
    /// If the plugin does not speak it.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::UNNAMED);
        }
        ALL.iter().position(|version| *version == text).map(Self).ok_or_else(|| {
            let text: String = text.chars().take(40).collect();
            CniError::new(
                Code::IncompatibleVersion,
                format!("cniVersion {text:?} is not supported: expected one of {}", ALL.join(", ")),
            )
        })
    }

    /// Its text.
    pub(crate) const fn text(self) -> &'static str {
        ALL[self.0]
    }
}
