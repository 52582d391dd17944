//! What asks for attention of Close's side.

use super::{Found, several};
use crate::close::{Condition, FieldsStatus, FoundSubscription, Held};
use crate::config::Span;
use crate::control::status::{Next, Status};

pub(super) fn of(status: &Status, found: &mut Found) {
    let close = &status.close;
    for one in &close.damaged {
        found.say(one.what.as_str(), one.remedy.as_str());
    }
    if !close.configured {
        return;
    }
    if status.daemon.running && !status.nodes.is_empty() && close.looked_after_by.is_none() {
        found.say(
            "no node looks after Close's side now: its subscriptions are not seen to, and nothing is compared",
            "one that lives takes it over by itself, if node.roles lets it (\"close\")",
        );
    }
    if let Some(trouble) = &close.trouble {
        let again = close.tried_again_at;
        let again = again.map_or_else(
            || "it is tried again by itself".to_owned(),
            |at| format!("it is tried again at {at:.0}"),
        );
        found.say(
            format!("Close's API can't be used: {trouble}"),
            format!("`closehook check --probe` tries it; {again}; until then nothing is compared and no subscription is looked after"),
        );
    }
    if let Some(seconds) = close.overdue_seconds {
        found.say(
            format!(
                "Close's side was last looked at {} ago, several times close.health.interval: what was begun then does not end",
                Span::secs(seconds)
            ),
            "the log says what it waits for (`journalctl -u closehook`), `closehook check --probe` tries Close; if neither helps, restart \
             closehook. Until then no subscription is looked after and nothing is compared",
        );
    }
    if let Some(why) = &close.token_unsaved {
        found.say(
            format!("the newest OAuth refresh token can't be written where it belongs: {why}"),
            "put that right before closehook stops, or the app may have to be authorized again; it is tried again by itself",
        );
    }
    if let Some(silence) = close.silence {
        let since = silence
            .last_delivery
            .map_or_else(|| "so far".to_owned(), |at| format!("since {at:.0}"));
        found.say(
            format!(
                "Close has delivered nothing {since}, although there was an event at {:.0}",
                silence.newest_event
            ),
            "check that Close can reach `public_url`; meanwhile events are fetched",
        );
    }
    for one in &close.subscriptions {
        subscription(one, found);
    }
    if let Some(fields) = &close.custom_fields {
        names(fields, found);
    }
    if let Some(trouble) = close.backfill.as_ref().and_then(|job| job.job.trouble.as_ref()) {
        found.say(
            format!("the backfill does not get on: {trouble}"),
            "it is tried again by itself; `closehook backfill --resume` watches it",
        );
    }
    if let Some(held) = &close.held {
        withheld(held, found);
    }
}

/// Events that lack their data, and wait for it.
fn withheld(held: &Held, found: &mut Found) {
    if held.events == 0 || held.are_dispatched {
        return;
    }
    let least = if held.is_counted { "" } else { "at least " };
    let oldest = held
        .oldest
        .map_or_else(String::new, |oldest| format!(", from {oldest:.0} on"));
    found.say(
        format!(
            "{least}{} held{oldest}: Close withholds their data from this key",
            several(held.events, "event is", "events are"),
        ),
        "use the API key of an administrator and `closehook reload`, or send them as they are with close.partial = \"dispatch\"",
    );
}

/// What custom fields are called.
fn names(fields: &FieldsStatus, found: &mut Found) {
    let remedy = "`closehook check --probe` tries it; it is fetched again by itself";
    match (fields.fetched_at, &fields.trouble) {
        (None, Some(trouble)) => found.say(
            format!("the names of custom fields are not known, and sinks whose templates use `named` wait for them: {trouble}"),
            remedy,
        ),
        (Some(at), trouble) if fields.is_old => {
            let why = trouble.as_ref();
            let why = why.map_or_else(|| "no daemon has fetched them since".to_owned(), ToString::to_string);
            found.say(format!("custom fields are called as they were at {at:.0}: {why}"), remedy);
        }
        _ => {}
    }
    if let Some(lacking) = &fields.lacking {
        found.say(
            format!("the names of some custom fields can't be fetched: {lacking}"),
            "where a template wants one of these (`named`) its sink waits; it is fetched again by itself",
        );
    }
}

fn subscription(one: &FoundSubscription, found: &mut Found) {
    let id = one.id.as_str();
    let resume = format!("`closehook subscription resume {id}`");
    match one.state {
        Condition::Paused => {
            let reason = one.pause_reason.as_deref().unwrap_or("it does not say why");
            let again = one.trouble.as_ref();
            let again = again.map_or_else(String::new, |trouble| {
                format!(", and it can't be made active again: {trouble}")
            });
            found.say(
                format!("Close has paused the subscription {id} ({reason}){again}"),
                format!("put right what it names, then {resume}; what was missed is fetched"),
            );
        }
        Condition::PausedByHand => {
            let next = Next::ResumeSubscription { of: id.to_owned() };
            found.say_with(next, format!("the subscription {id} is paused, as somebody wanted"), resume);
        }
        Condition::PausedBySomebody => found.say(
            format!("somebody has paused the subscription {id} at Close"),
            format!("ask who, or {resume}; meanwhile events are only fetched"),
        ),
        Condition::Missing => found.say(
            format!("Close does not have the subscription {id} any more"),
            "`closehook subscription apply` makes it anew, or takes its key out of use where another one delivers here",
        ),
        Condition::Gone => found.say(
            format!(
                "[[close.subscriptions]] names the subscription {id}, which Close does not have any more, and another one delivers here"
            ),
            "remove it from the configuration, then `closehook reload`",
        ),
        Condition::Elsewhere => found.say(
            format!(
                "the subscription {id} delivers elsewhere: {}",
                one.url.as_deref().unwrap_or_default()
            ),
            "`closehook subscription plan` shows the difference",
        ),
        Condition::Keyless => found.say(
            format!("the subscription {id} delivers here, and its key is not known: its deliveries are refused"),
            format!(
                "name its key in [[close.subscriptions]], or, if nobody needs it, `closehook subscription delete {id}`; where Close has no \
                 two that ask for the same, `closehook subscription apply` replaces it"
            ),
        ),
        Condition::Active | Condition::BeingReplaced => {}
    }
    if one.state == Condition::Active
        && let Some(error) = &one.latest_error
    {
        found.say(
            format!("Close says that deliveries of {id} fail: {error}"),
            "check that it can reach `public_url` (`closehook check --probe`, the proxy's log); it tries again for three days",
        );
    }
    if one.verify_ssl == Some(false) {
        found.say(
            format!("the subscription {id} has verify_ssl off: Close does not check whose certificate it sees"),
            format!(
                "if Close can check the certificate: `closehook subscription delete {id}`, then `closehook subscription apply` makes one that does"
            ),
        );
    }
}
