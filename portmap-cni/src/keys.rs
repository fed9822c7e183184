//! Access to JSON objects whose keys runtimes spell differently: `hostPort` (podman), `HostPort` (go-cni) and
//! `host_port` (Mesos) are one key.

use std::fmt::Display;

use serde_json::{Map, Value};

use crate::error::{CniError, Result};

/// A JSON object.
pub(crate) type Object = Map<String, Value>;

/// The value of a key in any spelling; `None` if it is missing or null. `key` is in camel case.
///
/// # Errors
///
/// If two spellings have different values.
pub(crate) fn value<'a>(object: &'a Object, key: &str) -> Result<Option<&'a Value>> {
    let mut found = None;
    for (spelling, value) in object {
        if value.is_null() || !is_same(spelling, key) {
            continue;
        }
        if found.is_some_and(|other| other != value) {
            return Err(CniError::config(format!("the key {key} is there in two spellings: expected one")));
        }
        found = Some(value);
    }
    Ok(found)
}

/// Whether two keys differ in case and underscores only.
fn is_same(one: &str, other: &str) -> bool {
    fn letters(text: &str) -> impl Iterator<Item = u8> + '_ {
        text.bytes().filter(|byte| *byte != b'_').map(|byte| byte.to_ascii_lowercase())
    }
    letters(one).eq(letters(other))
}

/// A text; `None` if it is missing or empty.
pub(crate) fn text<'a>(object: &'a Object, key: &str) -> Result<Option<&'a str>> {
    let Some(value) = value(object, key)? else { return Ok(None) };
    let text = value.as_str().ok_or_else(|| wrong(key, value, "a text"))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// A number that is not negative.
pub(crate) fn number(object: &Object, key: &str) -> Result<Option<u64>> {
    let Some(value) = value(object, key)? else { return Ok(None) };
    value.as_u64().map(Some).ok_or_else(|| wrong(key, value, "a number that is not negative"))
}

/// A port; `None` if it is missing or 0.
pub(crate) fn port(object: &Object, key: &str) -> Result<Option<u16>> {
    let Some(number) = number(object, key)? else { return Ok(None) };
    let port = u16::try_from(number).map_err(|_large| wrong(key, number, "a port, at most 65535"))?;
    Ok(Some(port).filter(|port| *port != 0))
}

/// An object.
pub(crate) fn object<'a>(within: &'a Object, key: &str) -> Result<Option<&'a Object>> {
    let Some(value) = value(within, key)? else { return Ok(None) };
    value.as_object().map(Some).ok_or_else(|| wrong(key, value, "an object"))
}

/// A list; empty if it is missing.
pub(crate) fn list<'a>(within: &'a Object, key: &str) -> Result<&'a [Value]> {
    let Some(value) = value(within, key)? else { return Ok(&[]) };
    value.as_array().map(Vec::as_slice).ok_or_else(|| wrong(key, value, "a list"))
}

/// A list of objects; empty if it is missing.
pub(crate) fn objects<'a>(within: &'a Object, key: &str) -> Result<Vec<&'a Object>> {
    let list = list(within, key)?.iter();
    list.map(|item| item.as_object().ok_or_else(|| wrong(key, item, "objects"))).collect()
}

/// A list of texts; empty if it is missing.
pub(crate) fn texts<'a>(within: &'a Object, key: &str) -> Result<Vec<&'a str>> {
    let list = list(within, key)?.iter();
    list.map(|item| item.as_str().ok_or_else(|| wrong(key, item, "texts"))).collect()
}

fn wrong(key: &str, found: impl Display, expected: &str) -> CniError {
    let found: String = found.to_string().chars().take(80).collect();
    CniError::config(format!("the key {key} has {found}: expected {expected}"))
}
