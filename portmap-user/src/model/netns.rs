//! Identities of network namespaces.

use std::fmt;

/// The identity of a network namespace: with the cookie, unique until the next boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetnsId {
    /// Device number of nsfs.
    pub device: u64,
    /// Inode number in nsfs. The kernel reuses it as soon as the namespace has ended (`proc_alloc_inum`).
    pub inode: u64,
    /// Cookie (`SO_NETNS_COOKIE`), which the kernel never reuses; `None` in records of earlier versions.
    pub cookie: Option<u64>,
}

impl NetnsId {
    /// Whether both may be the same namespace: certain if both cookies are known, else by inode only.
    pub fn is_same(self, other: Self) -> bool {
        let cookies = self.cookie.zip(other.cookie);
        (self.device, self.inode) == (other.device, other.inode)
            && cookies.is_none_or(|(one, another)| one == another)
    }
}

/// The form that `ip netns` and `/proc` use, with the cookie.
impl fmt::Display for NetnsId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "net:[{}]", self.inode)?;
        self.cookie.map_or(Ok(()), |cookie| write!(formatter, " (cookie {cookie})"))
    }
}
