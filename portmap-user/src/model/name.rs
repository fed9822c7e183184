//! Names of containers.

use crate::error::{Error, Result};

/// The reserved name that stands for the host in place of a container's name.
pub const HOST: &str = "host";
/// The reserved name that stands for the outside in place of a container's name: the sender of packets from
/// outside.
pub const OUTSIDE: &str = "outside";
/// Longest name of a container in characters. The identifiers of other container systems fit.
pub const LONGEST: usize = 128;

/// Refuses a name that is unsuitable for file names and interface aliases, or that is a reserved name of
/// commands.
///
/// # Errors
///
/// Names the value and the expectation.
pub fn check(name: &str) -> Result<()> {
    if [HOST, OUTSIDE].contains(&name) {
        return Err(Error::usage(format!(
            "{name:?} cannot be a container's name, because it is a reserved name of commands: expected \
             another one"
        )));
    }
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if starts_well && name.len() <= LONGEST && name.bytes().all(is_allowed) {
        return Ok(());
    }
    let name: String = name.chars().take(LONGEST + 1).collect();
    Err(Error::usage(format!(
        "{name:?} cannot be a container's name: expected a letter or digit followed by letters, digits, '_', \
         '.' or '-', at most {LONGEST} characters"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_name_is_a_file_name() {
        for name in ["a", "web-1", "A.b_c", "0", &"x".repeat(128)] {
            assert!(check(name).is_ok(), "{name}");
        }
        for name in ["host", "outside", "", "-a", ".", "..", "a/b", "a b", "ä", "a\0", &"x".repeat(129)] {
            assert!(check(name).is_err(), "{name}");
        }
    }
}
