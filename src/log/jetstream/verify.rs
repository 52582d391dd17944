//! Comparing everything that is kept with its checksums, and with where it would be looked for.

use tokio::time::Instant;

use super::fetch::{EVENTS_MAX, PATIENCE, event_of, raw};
use super::key::Key;
use super::message::Stored;
use super::shared::Shared;
use crate::event::{Event, Kind};

/// Compares everything with its checksums.
pub(super) async fn verify(shared: &Shared, progress: &(dyn Fn(usize, usize) + Send + Sync)) -> Vec<String> {
    let head = *shared.head.borrow();
    let (mut from, mut faults) = (shared.first(), Vec::new());
    let parts_of = |seqs: u64| usize::try_from(seqs.div_ceil(EVENTS_MAX as u64)).unwrap_or(usize::MAX);
    let (first, all) = (from, parts_of(head.next().0.saturating_sub(from.0)));
    while from <= head && !shared.is_closing() {
        let until = Instant::now() + PATIENCE;
        // The server that answers may be behind the others, or have lost some.
        let (found, next) = match raw(shared, from).await {
            Ok(found) => found,
            Err(error) => {
                faults.push(format!("from {from} on: {error}"));
                break;
            }
        };
        from = next.max(from.next());
        for stored in found.iter().filter(|stored| stored.erases().is_none()) {
            if let Some(upto) = stored.lost_upto() {
                faults.push(format!(
                    "events {} to {upto}: damage had taken them before the log was copied",
                    stored.seq
                ));
                continue;
            }
            let judged = event_of(shared, stored, until).await;
            match judged.map_err(|error| error.to_string()).and_then(|judged| judged) {
                Ok(event) if !is_under_its_key(shared, stored, &event) => {
                    faults.push(format!("event {}: it is not under its key", stored.seq));
                }
                Ok(_) => {}
                Err(why) => faults.push(format!("event {}: {why}", stored.seq)),
            }
        }
        progress(parts_of(from.0 - first.0).min(all), all);
    }
    faults
}

/// Whether an event would be found again.
fn is_under_its_key(shared: &Shared, stored: &Stored, event: &Event) -> bool {
    let key = match (event.kind, event.view()) {
        (Kind::Quarantined, _) => Key::of_quarantined(&event.body),
        (Kind::Partial, Some(view)) => Key::of_partial(&view.key()),
        (_, Some(view)) => Key::of_event(&view.key()),
        (_, None) => return false,
    };
    let all = key.subjects(shared.stream());
    stored.key() == key.text() && stored.subject.starts_with(all.trim_end_matches('*'))
}
