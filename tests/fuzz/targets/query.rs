//! Any line on the daemon's socket, and any restriction in it: refused or understood, never a panic.
#![no_main]

use closehook::control::{Ask, Order, Pick, Request, dead, events};
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
    let Ok(request) = std::str::from_utf8(data).map(Request::read) else {
        return;
    };
    let Ok(request) = request else { return };
    let text = serde_json::to_string(&request).expect("a request can travel");
    Request::read(&text).expect("and is understood where it arrives");
    match &request {
        Request::Ask(Ask::Events(events::List { pick, .. }) | Ask::DeadList(dead::List { pick, .. }))
        | Request::Order(Order::DeadRetry(dead::Retry { pick, .. }) | Order::DeadDrop(dead::Drop { pick, .. })) => {
            try_out(pick);
        }
        _ => {}
    }
});
