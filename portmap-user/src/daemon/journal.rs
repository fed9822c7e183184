//! The log of commands: one line for each change of a container, completed or refused.

use tracing::{info, warn};

use super::events::Events;
use crate::{
    api::{Container, EventContainer, EventKind},
    error::Result,
    model::name,
};

/// Longest error in the log, in characters. An error can list every port of a request.
const LONGEST_REASON: usize = 500;

/// Logs the result of a command on a container and returns it. `done` describes a success.
pub(super) fn note<T>(
    events: &Events,
    name: &str,
    what: &str,
    result: Result<T>,
    done: impl FnOnce(&T) -> String,
) -> Result<T> {
    let short = cut(name, name::LONGEST);
    match &result {
        Ok(value) => info!("container {short:?}: {}", done(value)),
        Err(error) => {
            let text = format!("not {what}: {}", cut(&error.message, LONGEST_REASON));
            warn!("container {short:?}: {text}");
            events.emit(EventKind::Failed, Some(EventContainer { name: short, details: None }), Some(text));
        }
    }
    result
}

/// Describes a container after a change: the verb `done`, then slot, ports and limits.
pub(super) fn form(done: &str, container: &Container) -> String {
    let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
    let limit = |limit: &Option<crate::model::Limit>| {
        limit.as_ref().map_or_else(|| "no limit".to_owned(), |limit| format!("{} B/s", limit.rate))
    };
    let draining = match &container.draining_ports {
        none if none.is_empty() => String::new(),
        ports => format!(", draining {ports}"),
    };
    format!(
        "{done}, slot {}, ports {}, ephemeral ports {}{}, sends {}, receives {}",
        container.slot,
        cut(&or_none(container.ports.to_string()), LONGEST_REASON),
        container.ephemeral_ports,
        draining,
        limit(&container.egress),
        limit(&container.ingress)
    )
}

/// Returns at most the first `longest` characters of a text.
fn cut(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn journal_cuts_long_texts_between_characters() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöüß", 3), "äöü…");
    }
}
