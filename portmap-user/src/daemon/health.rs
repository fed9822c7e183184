//! Whether the daemon is well: it looks at whatever commands wait for.

use super::Daemon;
use crate::{
    error::{Context as _, Result},
    failpoint,
    kernel::{link, netlink::Netlink},
};

impl Daemon {
    /// Waits for each part that commands wait for, one after the other. `step` is told what comes next, so that somebody
    /// else can say what does not answer.
    pub(super) fn probe(&self, step: impl Fn(&'static str)) -> Result<()> {
        step("the registry of containers");
        drop(self.registry());
        step("what is known of the host");
        let _facts = self.facts();
        step("the BPF maps");
        let _config = self.maps.config()?;
        step("the kernel's netlink");
        failpoint::hit("ask whether the kernel answers")
            .context(|| "the kernel does not answer".to_owned())?;
        link::find(&Netlink::open()?, "lo")?;
        Ok(())
    }
}
