//! Where the stream can be cut.

use std::time::Duration;

use tokio::time::Instant;

use super::api;
use super::fetch::next_event;
use super::key;
use super::shared::Shared;
use crate::event::Seq;
use crate::log::Cut;
use crate::sync::{read_lock, write_lock};

/// At how many places it is looked.
const CUTS: u64 = 32;

/// Looks at some places, evenly spread, how old what is before them is.
pub(super) async fn find(shared: &Shared) {
    let state = read_lock(&shared.info).state.clone();
    let (first, last) = (state.first_seq.max(1), state.last_seq);
    let mut cuts: Vec<Cut> = Vec::new();
    let mut oldest = None;
    let until = Instant::now() + Duration::from_secs(30);
    let notes = key::erasures(shared.stream());
    if let Ok(count) = api::count_subjects(&shared.link, shared.stream(), &notes, until).await {
        shared.note_notes(count);
    }
    for place in 0..=CUTS {
        let at = first + (last.saturating_sub(first)) * place / CUTS;
        let Ok(found) = next_event(shared, Seq(at), Seq(last).next(), until).await else {
            return;
        };
        let Some((seq, newest, received)) =
            found.and_then(|found| Some((found.seq, found.came()?, found.received_at())))
        else {
            continue;
        };
        oldest = oldest.or(received);
        let newest = cuts.last().map_or(newest, |before| before.newest.max(newest));
        let before = Seq(seq).next();
        if cuts.last().is_some_and(|last| last.before >= before) {
            continue;
        }
        let share = (u128::from(before.0 - first) * u128::from(shared.bytes())) / u128::from((last + 1 - first).max(1));
        cuts.push(Cut {
            before,
            newest,
            frees: share as u64,
        });
    }
    let window = shared.options.keys_kept;
    let now = shared.now();
    // What an event is known by is the event itself.
    cuts.retain(|cut| now.duration_since(cut.newest).unsigned_abs() >= window && cut.newest < now);
    *write_lock(&shared.cuts) = cuts;
    *write_lock(&shared.oldest) = oldest;
}
