//! Programs that `cargo xtask setup` keeps in the user's cache.

use std::{env, path::PathBuf};

/// The path of a file in the cache, whether it exists or not; `None` if the user has no cache.
pub fn file(path: &str) -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|directory| directory.is_absolute());
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    Some(cache?.join("portmap").join(path))
}
