//! `--metrics-label`: which labels of containers `/metrics` contains.

use crate::{
    error::{Error, Result},
    model::labels,
};

/// A label of containers that `/metrics` contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsLabel {
    /// Its key.
    pub key: String,
    /// The name of the metric's label.
    pub name: String,
}

/// Validates keys, and derives the names: `label_` and the key, in which `_` replaces all characters that a name
/// cannot contain.
pub(super) fn validated(keys: Vec<String>) -> Result<Vec<MetricsLabel>> {
    let mut chosen: Vec<MetricsLabel> = Vec::new();
    for key in keys {
        labels::check_key(&key)
            .map_err(|error| Error::new(error.kind, format!("--metrics-label: {}", error.message)))?;
        let name = format!("label_{}", key.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_"));
        match chosen.iter().find(|other| other.name == name) {
            Some(other) if other.key == key => {}
            Some(other) => {
                return Err(Error::usage(format!(
                    "--metrics-label {key}: {} has the same name in metrics, {name}: expected one of them",
                    other.key
                )));
            }
            None => chosen.push(MetricsLabel { key, name }),
        }
    }
    if chosen.len() > labels::MAX_LABELS {
        return Err(Error::usage(format!(
            "--metrics-label is given {} times: expected at most {}",
            chosen.len(),
            labels::MAX_LABELS
        )));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::validated;

    fn names(keys: &[&str]) -> crate::error::Result<Vec<String>> {
        let chosen = validated(keys.iter().map(|key| (*key).to_owned()).collect())?;
        Ok(chosen.into_iter().map(|label| label.name).collect())
    }

    #[test]
    fn metrics_labels_have_valid_and_distinct_names() {
        let chosen = names(&["team", "example.com/job-id", "team"]).expect("valid");
        assert_eq!(chosen, ["label_team", "label_example_com_job_id"]);
        for (keys, part) in [
            (vec!["a.b", "a-b"], "label_a_b"),
            (vec!["1"], "\"1\""),
            (vec![""], "\"\""),
            (vec!["ä"], "\"ä\""),
        ] {
            let error = names(&keys).expect_err("invalid");
            assert!(error.message.contains("--metrics-label") && error.message.contains(part), "{error}");
        }
        let many: Vec<String> = (0..17).map(|number| format!("key{number}")).collect();
        assert!(validated(many).expect_err("too many").message.contains("17 times"));
    }
}
