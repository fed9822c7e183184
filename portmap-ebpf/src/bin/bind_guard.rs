//! The bind guard's BPF object, which the daemon loads with `--bind-guard` only: a container's `bind()` to a
//! port of another owner fails, instead of returning a socket that receives nothing.
//!
//! It catches mistakes early; it is not a security boundary. The programs at a container's interfaces decide
//! what it sends and receives.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]
mod programs {
    use aya_ebpf::{
        EbpfContext as _,
        btf_maps::{Array, HashMap},
        helpers::generated::{bpf_get_netns_cookie, bpf_set_retval},
        macros::{btf_map, cgroup_sock_addr},
        programs::SockAddrContext,
    };
    use portmap_common::{
        slot::SLOTS,
        tables::{NetnsOwner, PORTS, PortEntry},
    };
    use portmap_ebpf::bind;

    /// The daemon writes ports through a mapping of this map (`BPF_F_MMAPABLE`).
    const MMAPABLE: usize = 1 << 10;

    #[btf_map(name = "pm_ports")]
    static PM_PORTS: Array<PortEntry, PORTS, MMAPABLE> = Array::new();
    #[btf_map(name = "pm_guarded")]
    static PM_GUARDED: HashMap<u64, NetnsOwner, { SLOTS as usize }> = HashMap::new();

    /// Return codes of a cgroup program.
    const ALLOW: i32 = 1;
    const DENY: i32 = 0;

    /// `EADDRINUSE`: another owner has the port. Programs that try one port after the other (bindresvport of NFS
    /// and RPC clients) go on at this error, and give up at `EACCES`.
    const EADDRINUSE: i32 = 98;

    #[cgroup_sock_addr(bind4)]
    fn pm_bind4(context: SockAddrContext) -> i32 {
        decide(&context)
    }

    #[cgroup_sock_addr(bind6)]
    fn pm_bind6(context: SockAddrContext) -> i32 {
        decide(&context)
    }

    #[inline(always)]
    fn decide(context: &SockAddrContext) -> i32 {
        // SAFETY: the helper takes the context of this program.
        let cookie = unsafe { bpf_get_netns_cookie(context.as_ptr()) };
        // SAFETY: an entry is one aligned word, read whole.
        let Some(guarded) = (unsafe { PM_GUARDED.get(cookie) }).copied() else { return ALLOW };
        // SAFETY: the kernel passes a valid context that lives as long as the program runs.
        let port = unsafe { (*context.sock_addr).user_port };
        // The port is the lower half, in network order.
        let port = u16::from_be((port & 0xffff) as u16);
        let owner = |port: u16| PM_PORTS.get(u32::from(port)).map_or(0, |entry| u32::from(entry.slot));
        if bind::is_allowed(port, guarded.slot, owner) {
            return ALLOW;
        }
        // SAFETY: the helper takes a number.
        unsafe { bpf_set_retval(-EADDRINUSE) };
        DENY
    }
}

portmap_ebpf::object!("portmap-guard is a BPF object; build it with `cargo xtask build`");
