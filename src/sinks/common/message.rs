//! What each message says of its event beside the event itself: the `closehook-*` headers or attributes.

use jiff::fmt::temporal::DateTimePrinter;

use crate::event::{Delivery, Event, View};

static RECEIVED_AT: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

/// The idempotency key of an event, as all its deliveries carry it.
pub(in crate::sinks) fn key(event: &Event) -> String {
    event
        .view()
        .map_or_else(|| format!("seq_{}", event.seq), View::idempotency_key)
}

/// `closehook-seq`, `-type`, `-event-id`, `-key`, `-lead-id`, `-received-at` and `-source`; what an event does not have is left out.
pub(in crate::sinks) fn attributes(delivery: &Delivery) -> Vec<(&'static str, String)> {
    let event = &delivery.event;
    let view = event.view();
    let known = [
        ("closehook-seq", Some(event.seq.to_string())),
        ("closehook-type", view.and_then(View::type_action)),
        ("closehook-event-id", view.map(|view| view.id.clone())),
        ("closehook-key", Some(key(event))),
        ("closehook-lead-id", view.and_then(|view| view.lead_id.clone())),
        (
            "closehook-received-at",
            Some(RECEIVED_AT.timestamp_to_string(&event.received_at)),
        ),
        ("closehook-source", Some(event.source.to_string())),
    ];
    known
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

/// The same as a header takes it: visible ASCII, and no more than a header's worth.
pub(in crate::sinks) fn header(value: &str) -> String {
    const LEN_MAX: usize = 512;
    let visible = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    value.chars().map(visible).take(LEN_MAX).collect()
}
