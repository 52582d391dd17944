//! What is known: the Seqs of an event's revisions, and what stands under a key.

use serde_json::json;
use tokio::time::Instant;

use super::api::{self, Failure};
use super::fetch::{PATIENCE, failed};
use super::key::Key;
use super::message::{Prepared, Stored};
use super::shared::Shared;
use crate::event::{Event, EventKey, Kind, Seq, Updated};
use crate::log::ReadError;

/// The Seqs of every known revision of an event, in order.
pub(super) async fn find(shared: &Shared, id: &str) -> Result<Vec<Seq>, ReadError> {
    let found = revisions(shared, id, Instant::now() + PATIENCE).await?;
    Ok(found.iter().map(Stored::known_as).collect())
}

/// The Seq under which this revision is stored, complete.
pub(super) async fn find_revision(shared: &Shared, key: &EventKey) -> Result<Option<Seq>, ReadError> {
    look_up(shared, &Key::of_event(key), Instant::now() + PATIENCE)
        .await
        .map_err(failed)
}

/// The Seq under which an event of another log is known.
pub(super) async fn find_same(shared: &Shared, event: &Event) -> Result<Option<Seq>, ReadError> {
    let until = Instant::now() + PATIENCE;
    let key = Prepared::of_stored(event).key;
    let found = look_up(shared, &key, until).await.map_err(failed)?;
    match (found, event.kind, event.view()) {
        // Whoever has all of it has this part of it.
        (None, Kind::Partial, Some(view)) => look_up(shared, &Key::of_event(&view.key()), until)
            .await
            .map_err(failed),
        _ => Ok(found),
    }
}

/// The messages of every known revision of an event.
pub(super) async fn revisions(shared: &Shared, id: &str, until: Instant) -> Result<Vec<Stored>, ReadError> {
    let key = Key::of_event(&EventKey {
        id: id.to_owned(),
        updated: Updated::Missing,
    });
    let filter = key.subjects(shared.stream());
    let info = api::info(&shared.link, shared.stream(), Some(&filter), until)
        .await
        .map_err(failed)?;
    let mut found = Vec::new();
    for subject in info.state.subjects.unwrap_or_default().into_keys() {
        let question = json!({ "last_by_subj": subject });
        let message = api::message(&shared.link, shared.stream(), &question, until)
            .await
            .map_err(failed)?;
        found.extend(message.filter(|message| key.shares_id(message.key())));
    }
    found.sort_unstable_by_key(Stored::known_as);
    Ok(found)
}

/// The Seq under which a key is known; an error says why it is not known whether it is.
pub(super) async fn look_up(shared: &Shared, key: &Key, until: Instant) -> Result<Option<Seq>, Failure> {
    let met = meet(shared, key, until).await?;
    Ok(met.map(|met| met.known_as()))
}

/// What stands under a key.
pub(super) async fn meet(shared: &Shared, key: &Key, until: Instant) -> Result<Option<Stored>, Failure> {
    let mut salt = 0;
    loop {
        let question = json!({ "last_by_subj": key.subject(shared.stream(), salt) });
        match api::message(&shared.link, shared.stream(), &question, until).await? {
            None => return Ok(None),
            Some(met) if met.key() == key.text() => return Ok(Some(met)),
            Some(_) => salt += 1,
        }
    }
}
