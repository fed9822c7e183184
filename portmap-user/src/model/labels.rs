//! Labels: names that a client gives a container, such as those of its scheduler.

use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::error::{Error, Result};

/// Most labels of one container.
pub const MAX_LABELS: usize = 16;
/// Longest key in bytes.
pub const MAX_KEY: usize = 63;
/// Longest value in bytes.
pub const MAX_VALUE: usize = 255;

/// Labels whose keys `/monitor/statistics` shows as fields of their own, as Mesos names them.
pub const FRAMEWORK_ID: &str = "framework_id";
/// See [`FRAMEWORK_ID`].
pub const EXECUTOR_ID: &str = "executor_id";
/// See [`FRAMEWORK_ID`].
pub const EXECUTOR_NAME: &str = "executor_name";
/// See [`FRAMEWORK_ID`].
pub const SOURCE: &str = "source";

/// The labels of a container: at most [`MAX_LABELS`], with valid keys and values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<String, String>);

/// Changes of a container's labels: a new value, or `None` to remove a label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelChanges(BTreeMap<String, Option<String>>);

/// One label as a command line has it: `KEY=VALUE`, or `KEY=` to remove it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    key: String,
    value: Option<String>,
}

impl Labels {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Keys and values, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These labels after some changes. Removing a label that does not exist changes nothing.
    ///
    /// # Errors
    ///
    /// If these are too many labels.
    pub fn changed(mut self, LabelChanges(changes): &LabelChanges) -> Result<Self> {
        for (key, value) in changes {
            match value {
                Some(value) => self.0.insert(key.clone(), value.clone()),
                None => self.0.remove(key),
            };
        }
        self.0.try_into()
    }
}

impl LabelChanges {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Label> for LabelChanges {
    /// Of two labels with the same key, the last counts, as for flags.
    fn from_iter<I: IntoIterator<Item = Label>>(labels: I) -> Self {
        Self(labels.into_iter().map(|Label { key, value }| (key, value)).collect())
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = Error;

    fn try_from(labels: BTreeMap<String, String>) -> Result<Self> {
        if labels.len() > MAX_LABELS {
            return Err(Error::usage(format!(
                "{} labels: expected at most {MAX_LABELS} for a container",
                labels.len()
            )));
        }
        for (key, value) in &labels {
            check_key(key)?;
            check_value(key, value)?;
        }
        Ok(Self(labels))
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

impl TryFrom<LabelChanges> for Labels {
    type Error = Error;

    /// The labels of a new container.
    fn try_from(LabelChanges(changes): LabelChanges) -> Result<Self> {
        let set = |(key, value): (String, Option<String>)| match value {
            Some(value) => Ok((key, value)),
            None => Err(Error::usage(format!("the label {key} has no value: expected {key}=VALUE"))),
        };
        changes.into_iter().map(set).collect::<Result<BTreeMap<_, _>>>()?.try_into()
    }
}

impl TryFrom<BTreeMap<String, Option<String>>> for LabelChanges {
    type Error = Error;

    fn try_from(changes: BTreeMap<String, Option<String>>) -> Result<Self> {
        for (key, value) in &changes {
            check_key(key)?;
            value.as_deref().map_or(Ok(()), |value| check_value(key, value))?;
        }
        Ok(Self(changes))
    }
}

impl From<LabelChanges> for BTreeMap<String, Option<String>> {
    fn from(changes: LabelChanges) -> Self {
        changes.0
    }
}

impl FromStr for Label {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((key, value)) = text.split_once('=') else {
            return Err(Error::usage(format!(
                "the label {:?} has no value: expected KEY=VALUE",
                truncated(text)
            )));
        };
        check_key(key)?;
        let value = (!value.is_empty()).then_some(value);
        value.map_or(Ok(()), |value| check_value(key, value))?;
        Ok(Self { key: key.to_owned(), value: value.map(str::to_owned) })
    }
}

impl fmt::Display for Labels {
    /// One label a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.iter().map(|(key, value)| format!("{key}={value}"));
        f.write_str(&lines.collect::<Vec<_>>().join("\n"))
    }
}

/// Fails unless `key` can be the key of a label.
pub fn check_key(key: &str) -> Result<()> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'/');
    let starts_well = key.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    if starts_well && key.len() <= MAX_KEY && key.bytes().all(is_allowed) {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{:?} cannot be the key of a label: expected a letter followed by letters, digits, '_', '.', '-' or '/', at \
         most {MAX_KEY} characters",
        truncated(key)
    )))
}

fn check_value(key: &str, value: &str) -> Result<()> {
    let why = if value.is_empty() {
        "is empty".to_owned()
    } else if value.len() > MAX_VALUE {
        format!("has {} bytes", value.len())
    } else if let Some(character) = value.chars().find(|character| !is_printable(*character)) {
        format!("contains {character:?}")
    } else {
        return Ok(());
    };
    Err(Error::usage(format!(
        "the value of label {key} {why}: expected 1 to {MAX_VALUE} bytes of printable text"
    )))
}

/// Whether a terminal shows a character where it stands: neither a control character nor one that changes the
/// order or hides.
pub(crate) fn is_printable(character: char) -> bool {
    let is_formatting = matches!(character, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}');
    !character.is_control() && !is_formatting
}

/// Truncates a value to a length that fits into one line.
fn truncated(text: &str) -> String {
    text.chars().take(MAX_KEY + 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(labels: &[&str]) -> Result<LabelChanges> {
        labels.iter().map(|text| text.parse::<Label>()).collect()
    }

    fn labels(labels: &[&str]) -> Result<Labels> {
        Labels::default().changed(&changes(labels)?)
    }

    #[test]
    fn label_is_a_key_and_a_value() {
        let of = labels(&["executor_name=Command (Task: 1=1)", "a.b/c-d=ä", "b=1", "b=2"]).expect("labels");
        assert_eq!(of.get("executor_name"), Some("Command (Task: 1=1)"));
        assert_eq!((of.get("a.b/c-d"), of.get("b"), of.get("c")), (Some("ä"), Some("2"), None));
        assert_eq!(of.to_string(), "a.b/c-d=ä\nb=2\nexecutor_name=Command (Task: 1=1)");
        let of = of.changed(&changes(&["b=", "gone=", "c=3"]).expect("changes")).expect("labels");
        assert_eq!((of.get("b"), of.get("c"), of.iter().count()), (None, Some("3"), 3));
    }

    #[test]
    fn label_error_names_the_value() {
        for (text, part) in [
            ("a", "\"a\" has no value: expected KEY=VALUE"),
            ("=1", "\"\" cannot be the key"),
            ("1a=1", "\"1a\""),
            ("a b=1", "\"a b\""),
            (&format!("{}=1", "k".repeat(MAX_KEY + 1)), "at most 63 characters"),
            ("a=x\ny", "contains '\\n'"),
            ("a=\u{1b}[2J", "contains '\\u{1b}'"),
            ("a=x\u{202e}y", "contains '\\u{202e}'"),
            (&format!("a={}", "v".repeat(MAX_VALUE + 1)), "the value of label a has 256 bytes"),
        ] {
            let error = text.parse::<Label>().expect_err(text);
            assert!(error.message.contains(part), "{text}: {error}");
        }
        assert!(format!("{}={}", "k".repeat(MAX_KEY), "v".repeat(MAX_VALUE)).parse::<Label>().is_ok());
    }

    #[test]
    fn label_count_is_bounded() {
        let error = Labels::try_from(changes(&["a=1", "b="]).expect("changes")).expect_err("no value");
        assert!(error.message.contains("the label b has no value"), "{error}");
        let many: Vec<String> = (0..=MAX_LABELS).map(|number| format!("k{number}=v")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        labels(&many[1..]).expect("as many as allowed");
        let error = labels(&many).expect_err("one too many");
        assert!(error.message.contains("17 labels: expected at most 16"), "{error}");
    }
}
