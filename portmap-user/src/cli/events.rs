//! `portmap events`: a line of JSON for each event.

use super::{drops::reader_closed, output};
use crate::{
    client::Client,
    error::{Context as _, Result},
};

/// Prints events as they occur, until the reader closes standard output or the daemon closes the stream.
pub(super) fn follow(client: &Client, name: Option<&str>) -> Result<()> {
    Ok(client.follow_events(name, reader_closed(), |item| {
        output::line(&serde_json::to_string(item).context(|| "cannot encode JSON")?)
    })?)
}
