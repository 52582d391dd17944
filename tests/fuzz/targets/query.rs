//! Any line on the daemon's socket, and any restriction in it: refused or understood, never a panic.
#![no_main]

use closehook::admin::query::{Pick, Query};
use closehook::event::{Event, Kind, Seq, Source};
use libfuzzer_sys::fuzz_target;

fn try_out(pick: &Pick) {
    let Ok(selection) = pick.compile() else { return };
    let body = r#"{"event":{"id":"ev_1","object_type":"lead","action":"updated","lead_id":"lead_1"}}"#;
    let event = Event::new(
        Seq(1),
        jiff::Timestamp::UNIX_EPOCH,
        Source::Webhook,
        Kind::Event,
        None,
        body.into(),
    );
    selection.selects(&event);
}

fuzz_target!(|data: &[u8]| {
    if let Ok(pick) = serde_json::from_slice::<Pick>(data) {
        try_out(&pick);
    }
    let Ok(query) = serde_json::from_slice::<Query>(data) else {
        return;
    };
    let text = serde_json::to_string(&query).expect("a query can travel");
    serde_json::from_str::<Query>(&text).expect("and is understood where it arrives");
    match &query {
        Query::Events { pick, .. }
        | Query::DeadList { pick, .. }
        | Query::DeadRetry { pick, .. }
        | Query::DeadDrop { pick, .. } => try_out(pick),
        _ => {}
    }
});
