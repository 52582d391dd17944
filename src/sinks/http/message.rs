//! What a request says of its event beside the event: names by which a receiver knows it again ([`super::super::common::message`]).

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::super::common::message::attributes;
pub(super) use super::super::common::message::{batch_id, key, legal, value};
use crate::event::Delivery;

/// Sets a header of the sink's own.
pub(super) fn set(headers: &mut HeaderMap, name: &'static str, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// What a receiver may want to know of an event without reading it; what an event does not have is left out.
pub(super) fn describe(headers: &mut HeaderMap, delivery: &Delivery) {
    for (name, text) in attributes(delivery) {
        set(headers, name, &legal(text));
    }
    set(headers, "closehook-attempt", &delivery.attempt.to_string());
}
