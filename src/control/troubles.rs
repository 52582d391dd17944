//! What asks for somebody's attention, the most urgent first, each with what to do about it. A pure function of the status, so that
//! every line of it can be tried without bringing the trouble about.

use jiff::{SignedDuration, Timestamp};

use super::status::{Status, Trouble};
use crate::close::{Condition, FieldsStatus, FoundSubscription};
use crate::config::{Size, Span};
use crate::deliver::SinkStatus;

/// A certificate that others renew is looked for so long before it expires.
const CERTIFICATE_SOON: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A clock that is further off than this is worth setting.
const CLOCK_OFF_SECONDS: i64 = 60;

/// A sink that waits and has not failed, for an answer say, is looked at when the oldest of its events is so old.
const WAITS_LONG_SECONDS: f64 = 60.0;

/// Less free space than this share of a file system, and than this much, is little.
const LITTLE_SHARE: u64 = 20;
const LITTLE_BYTES: u64 = 1 << 30;

/// What asks for attention.
pub(super) fn of(status: &Status, now: Timestamp) -> Vec<Trouble> {
    let mut found = Found::default();
    daemon(status, &mut found);
    if status.daemon.running {
        certificate(status, now, &mut found);
        refused(status, &mut found);
    }
    close(status, &mut found);
    kept(status, &mut found);
    for one in &status.sinks {
        sink(&one.sink, &mut found);
    }
    found.0
}

#[derive(Debug, Default)]
struct Found(Vec<Trouble>);

impl Found {
    fn say(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Trouble {
            what: what.into(),
            remedy: remedy.into(),
        });
    }
}

fn daemon(status: &Status, found: &mut Found) {
    if let Some(pid) = status.daemon.unreachable {
        let dir = status.daemon.dir.display();
        found.say(
            format!(
                "the daemon runs (process {pid} has {dir}) and can't be asked: {dir}/closehook.sock is missing, and it does not make it \
                 again. What is shown is what lies on disk"
            ),
            format!(
                "look at the process (`systemctl status closehook`, its log): it may be starting still, or be stopped; else restart it. \
                 See that nothing cleans up in {dir}"
            ),
        );
        return;
    }
    if !status.daemon.running {
        found.say(
            "no daemon is running: Close's deliveries are not answered",
            "start `closehook serve`, or `systemctl start closehook`",
        );
        return;
    }
    if !status.ready {
        let why = status.not_ready_because.as_deref().unwrap_or("it does not say why");
        found.say(
            format!("events can't be stored, and Close is told to send them again: {why}"),
            format!(
                "make room on the file system of {0}, or see what is wrong with it; it goes on by itself",
                status.daemon.dir.display()
            ),
        );
    }
    if status.keys == 0 {
        found.say(
            "no signature key is known: every delivery is refused",
            "`closehook subscription apply` makes a subscription with a key, or name a key in [[close.subscriptions]]",
        );
    }
}

fn certificate(status: &Status, now: Timestamp, found: &mut Found) {
    let Some(certificate) = &status.certificate else { return };
    let failed = certificate.last_error.as_ref();
    let failed = failed.map_or_else(String::new, |error| format!(": the last order failed: {error}"));
    let is_ordered = certificate.next_renewal.is_some();
    let remedy = if is_ordered {
        "see that the names lead here and port 443 can be reached; it is ordered again by itself, at once after `closehook reload`"
    } else {
        "renew the files that [server.tls] names; they are taken over by themselves"
    };
    match certificate.not_after {
        None => found.say(format!("there is no certificate yet{failed}"), remedy),
        Some(not_after) if not_after <= now => {
            found.say(format!("the certificate expired at {not_after:.0}{failed}"), remedy);
        }
        Some(not_after) if not_after.duration_since(now) < CERTIFICATE_SOON || !failed.is_empty() => {
            found.say(format!("the certificate expires at {not_after:.0}{failed}"), remedy);
        }
        Some(_) => {}
    }
}

/// What was refused that may well have been Close's.
fn refused(status: &Status, found: &mut Found) {
    let Some(received) = &status.received else { return };
    let count = |reason: &str| received.refused.get(reason).copied().unwrap_or_default();
    let lately = "in the last hour";
    let (stale, future) = (count("stale"), count("future"));
    if stale + future > 0 {
        let newest = received.clocks.last;
        let newest = newest.map_or_else(String::new, |newest| format!("; of the newest: {newest}"));
        found.say(
            format!(
                "{} refused {lately} for the time of signing alone, {stale} as too old and {future} as from the future{newest}",
                several(stale + future, "authentic delivery was", "authentic deliveries were")
            ),
            "set this machine's clock (`timedatectl`); what was refused comes again, or is fetched with `closehook backfill`",
        );
    } else if let Some(seconds) = status.clock_offset_seconds
        && seconds.abs() > CLOCK_OFF_SECONDS
    {
        found.say(
            format!("Close's clock is {} this machine's time", off(seconds)),
            "set this machine's clock (`timedatectl`): deliveries are refused when it is too far off",
        );
    }
    if count("wrong_subscription") > 0 {
        found.say(
            format!(
                "{} refused {lately}: signed with the key of another subscription",
                several(count("wrong_subscription"), "delivery was", "deliveries were")
            ),
            "`closehook subscription list` shows which there are; see `id` in [[close.subscriptions]]",
        );
    }
    if count("bad_signature") > 0 {
        found.say(
            format!(
                "{} refused {lately}: no known key signed {}",
                several(count("bad_signature"), "request was", "requests were"),
                if count("bad_signature") == 1 { "it" } else { "them" }
            ),
            "if they are Close's, a key is missing: `closehook subscription list` shows which subscriptions deliver here",
        );
    }
    let unavailable: u64 = received.unavailable.values().sum();
    if unavailable > 0 {
        found.say(
            format!(
                "{} answered 503 {lately}: they could not be stored just then",
                several(unavailable, "delivery was", "deliveries were")
            ),
            "Close sends them again; the log says why (`journalctl -u closehook`)",
        );
    }
    if received.quarantined > 0 {
        found.say(
            format!(
                "{} put into quarantine {lately}: signed by Close, and no delivery that can be read",
                several(received.quarantined, "body was", "bodies were")
            ),
            "`closehook events list --quarantined` shows them",
        );
    }
}

fn close(status: &Status, found: &mut Found) {
    let close = &status.close;
    if !close.configured {
        return;
    }
    if let Some(trouble) = &close.trouble {
        found.say(
            format!("Close's API can't be used: {trouble}"),
            "`closehook check --probe` tries it; until then nothing is compared and no subscription is looked after",
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
    if let Some(held) = close
        .held
        .as_ref()
        .filter(|held| held.events > 0 && !held.are_dispatched)
    {
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
        Condition::PausedByHand => found.say(format!("the subscription {id} is paused, as somebody wanted"), resume),
        Condition::PausedBySomebody => found.say(
            format!("somebody has paused the subscription {id} at Close"),
            format!("ask who, or {resume}; meanwhile events are only fetched"),
        ),
        Condition::Missing => found.say(
            format!("Close does not have the subscription {id} any more"),
            "`closehook subscription apply` makes it anew",
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
            "`closehook subscription apply` replaces it, or name its key in [[close.subscriptions]]",
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
            "`closehook subscription apply --rotate` makes one that checks",
        );
    }
}

/// The log and the disk.
fn kept(status: &Status, found: &mut Found) {
    for gap in status.log.gaps.iter().filter(|gap| !gap.skipped) {
        found.say(
            format!("events {} to {} are lost: {}", gap.from, gap.to, gap.reason),
            "`closehook backfill` fetches what Close still has; then `closehook events verify`",
        );
    }
    if let Some(waits_for) = status
        .retention
        .as_ref()
        .and_then(|standing| standing.waits_for.as_ref())
    {
        found.say(
            format!("old events are kept longer than configured: {waits_for}"),
            "`closehook sinks list` shows which sink is behind; `closehook sinks forget` lets go of one that is removed",
        );
    }
    if let Some(disk) = status.disk
        && disk.free_bytes < LITTLE_BYTES.min(disk.total_bytes / LITTLE_SHARE)
    {
        found.say(
            format!(
                "only {} of {} are free where the data directory is",
                Size(disk.free_bytes),
                Size(disk.total_bytes)
            ),
            format!(
                "make room beside {}, or set log.max_size or log.retention lower",
                status.daemon.dir.display()
            ),
        );
    }
}

fn sink(sink: &SinkStatus, found: &mut Found) {
    let name = sink.name.as_str();
    if sink.paused {
        let waiting = several(sink.lag_events, "event waits", "events wait");
        found.say(
            format!("sink {name} is paused, and {waiting} for it"),
            format!("`closehook sinks resume {name}`"),
        );
    } else if let Some(error) = &sink.last_error {
        let at = sink
            .last_error_at
            .map_or_else(String::new, |at| format!(" (at {at:.0})"));
        let waits = sink.waits_for.as_ref().filter(|waits| !waits.contains(error.as_str()));
        let waits = waits.map_or_else(String::new, |waits| format!("; {waits}"));
        let error = sink
            .waits_for
            .as_ref()
            .filter(|waits| waits.contains(error.as_str()))
            .unwrap_or(error);
        let again = several(sink.lag_events.max(1), "event is", "events are");
        let remedy = if is_about_room(error) {
            format!(
                "make room on that file system (of this machine's, `df -h` shows the full one); {again} tried again by itself"
            )
        } else {
            format!("put its receiver right (`closehook check --probe` tries it); {again} tried again by itself")
        };
        found.say(format!("sink {name}: {error}{at}{waits}"), remedy);
    } else if let Some(waits_for) = sink
        .waits_for
        .as_ref()
        .filter(|_| sink.lag_seconds >= WAITS_LONG_SECONDS)
    {
        found.say(
            format!("sink {name} waits: {waits_for}"),
            "it goes on by itself; `closehook sinks list` shows how far it is",
        );
    }
    if sink.dead > 0 {
        found.say(
            format!("sink {name} has {}", several(sink.dead, "dead letter", "dead letters")),
            format!(
                "`closehook dead list --sink {name}` says why; then `closehook dead retry --sink {name} --all`, or dead drop"
            ),
        );
    }
}

/// Whether an error is what this machine says of a full disk (ENOSPC, EDQUOT), or SQLite of it.
fn is_about_room(error: &str) -> bool {
    [
        "(os error 28)",
        "(os error 122)",
        "database or disk is full",
        "the disk is full",
    ]
    .iter()
    .any(|words| error.contains(words))
}

/// `1 event is`, `2 events are`.
fn several(count: u64, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// `20m ahead of`, `3h behind`.
fn off(seconds: i64) -> String {
    let span = Span::secs(seconds.unsigned_abs());
    if seconds > 0 {
        format!("{span} ahead of")
    } else {
        format!("{span} behind")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A status with nothing wrong in it, and with this in it.
    fn status(change: impl FnOnce(&mut Value)) -> Status {
        let mut value = json!({
            "daemon": { "running": true, "pid": 7, "version": "1", "started_at": "2024-02-15T12:00:00Z", "url": "http://x/",
                "request_ids": "", "admin": null, "dir": "/data" },
            "ready": true, "not_ready_because": null, "keys": 1, "certificate": null,
            "received": { "seconds": 1800, "stored": 1, "duplicate": 0, "quarantined": 0, "refused": { "missing": 9 },
                "unavailable": {}, "unfit": { "not_found": 9 }, "last_delivery_at": null,
                "clocks": { "stale": 0, "early": 0, "is_doubted": false } },
            "log": { "first": 1, "last": 1, "events": 1, "received_bytes": 1, "disk_bytes": 1, "segments": 1, "unsealed": 1,
                "oldest_at": null, "gaps": [] },
            "retention": null, "sinks": [], "removed_sinks": [], "rules": [],
            "close": { "configured": true, "subscriptions": [{ "id": "whsub_1", "state": "active", "verify_ssl": true }] },
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    fn said(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let now = "2024-02-15T12:30:00Z".parse().unwrap();
        let line = |trouble: Trouble| format!("{} -> {}", trouble.what, trouble.remedy);
        of(&status(change), now).into_iter().map(line).collect()
    }

    fn sink() -> Value {
        json!({ "name": "crm", "kind": "http", "cursor": 1, "lag_events": 3, "lag_seconds": 5.0, "in_flight": 0, "retrying": 0,
            "dead": 0, "lost": 0, "delivered": 0, "breaker": "closed", "paused": false, "last_error": null, "last_error_at": null })
    }

    #[test]
    fn where_all_is_well_nothing_is_said() {
        assert_eq!(said(|_| ()), Vec::<String>::new());
        // Strangers knock at every door, and a sink that has just begun to wait is none to be looked at.
        let mut waiting = sink();
        waiting["waits_for"] = json!("it is being opened");
        assert_eq!(said(|status| status["sinks"] = json!([waiting])), Vec::<String>::new());
    }

    #[expect(clippy::too_many_lines, clippy::type_complexity, reason = "it is a table")]
    #[test]
    fn each_trouble_is_said_with_what_to_do() {
        let cases: Vec<(Box<dyn FnOnce(&mut Value)>, &str, &str)> = vec![
            (
                Box::new(|s| s["daemon"]["running"] = json!(false)),
                "no daemon is running",
                "closehook serve",
            ),
            (
                Box::new(|s| {
                    s["ready"] = json!(false);
                    s["not_ready_because"] = json!("the disk is full");
                }),
                "the disk is full",
                "make room on the file system of /data",
            ),
            (
                Box::new(|s| s["keys"] = json!(0)),
                "no signature key",
                "closehook subscription apply",
            ),
            (
                Box::new(|s| s["certificate"] = json!({ "file": "c", "not_after": "2024-02-15T12:29:59Z" })),
                "the certificate expired at 2024-02-15T12:29:59Z",
                "renew the files",
            ),
            (
                Box::new(|s| s["certificate"] = json!({ "file": "c", "not_after": "2024-02-20T00:00:00Z" })),
                "expires at 2024-02-20",
                "renew the files",
            ),
            (
                Box::new(|s| {
                    s["certificate"] = json!({ "file": "c", "not_after": null, "next_renewal": "2024-02-20T00:00:00Z", "last_error": "refused" });
                }),
                "no certificate yet: the last order failed: refused",
                "port 443",
            ),
            (
                Box::new(|s| {
                    s["received"]["refused"] = json!({ "future": 2 });
                    s["received"]["clocks"]["last"] =
                        json!({ "received_at": "2024-02-15T12:10:00Z", "signed_at": "2024-02-15T12:30:00Z" });
                }),
                "2 authentic deliveries were refused in the last hour for the time of signing alone, 0 as too old and 2 as from the future; of the newest: Close signed it at 2024-02-15T12:30:00Z, and here it was 2024-02-15T12:10:00Z: this machine's clock is at least 20 min 0 s behind",
                "set this machine's clock",
            ),
            (
                Box::new(|s| s["clock_offset_seconds"] = json!(-120)),
                "Close's clock is 2m behind",
                "timedatectl",
            ),
            (
                Box::new(|s| s["received"]["refused"] = json!({ "bad_signature": 1 })),
                "1 request was refused",
                "a key is missing",
            ),
            (
                Box::new(|s| s["received"]["refused"] = json!({ "wrong_subscription": 2 })),
                "another subscription",
                "`id`",
            ),
            (
                Box::new(|s| s["received"]["unavailable"] = json!({ "full": 2 })),
                "answered 503",
                "the log says why",
            ),
            (
                Box::new(|s| s["received"]["quarantined"] = json!(1)),
                "quarantine",
                "events list --quarantined",
            ),
            (
                Box::new(|s| s["close"]["trouble"] = json!("no route")),
                "Close's API can't be used: no route",
                "check --probe",
            ),
            (
                Box::new(|s| {
                    s["close"]["silence"] = json!({ "last_delivery": null, "newest_event": "2024-02-15T12:00:00Z" });
                }),
                "has delivered nothing so far",
                "public_url",
            ),
            (
                Box::new(|s| {
                    s["close"]["subscriptions"][0] = json!({ "id": "whsub_1", "state": "paused", "pause_reason": "too_many_failures", "trouble": "403" });
                }),
                "paused the subscription whsub_1 (too_many_failures), and it can't be made active again: 403",
                "closehook subscription resume whsub_1",
            ),
            (
                Box::new(|s| s["close"]["subscriptions"][0]["state"] = json!("paused-by-somebody")),
                "somebody has paused",
                "resume whsub_1",
            ),
            (
                Box::new(|s| s["close"]["subscriptions"][0]["state"] = json!("missing")),
                "any more",
                "subscription apply",
            ),
            (
                Box::new(|s| s["close"]["subscriptions"][0]["state"] = json!("elsewhere")),
                "delivers elsewhere",
                "subscription plan",
            ),
            (
                Box::new(|s| s["close"]["subscriptions"][0]["state"] = json!("keyless")),
                "key is not known",
                "subscription apply",
            ),
            (
                Box::new(|s| s["close"]["subscriptions"][0]["latest_error"] = json!("502")),
                "deliveries of whsub_1 fail: 502",
                "public_url",
            ),
            (
                Box::new(|s| s["close"]["subscriptions"][0]["verify_ssl"] = json!(false)),
                "verify_ssl off",
                "--rotate",
            ),
            (
                Box::new(
                    |s| s["close"]["held"] = json!({ "events": 3, "types": {}, "oldest": "2024-02-15T12:00:00Z", "newest": null, "is_counted": false, "are_dispatched": false }),
                ),
                "at least 3 events are held, from 2024-02-15T12:00:00Z on",
                "administrator",
            ),
            (
                Box::new(|s| {
                    s["log"]["gaps"] =
                        json!([{ "from": 2, "to": 5, "reason": "a bad disk", "found_at": "2024-02-15T12:00:00Z" }]);
                }),
                "events 2 to 5 are lost: a bad disk",
                "closehook backfill",
            ),
            (
                Box::new(|s| s["retention"] = json!({ "used_bytes": 1, "max_bytes": 2, "waits_for": "crm is behind" })),
                "crm is behind",
                "sinks list",
            ),
            (
                Box::new(|s| s["disk"] = json!({ "free_bytes": 1 << 20, "total_bytes": 100_u64 << 30 })),
                "only 1 MiB of 100 GiB",
                "log.max_size",
            ),
            (
                Box::new(|s| {
                    let mut sink = sink();
                    sink["last_error"] = json!("it answered 503");
                    sink["waits_for"] = json!("it answered 503; it is tried again at 12");
                    s["sinks"] = json!([sink]);
                }),
                "sink crm: it answered 503; it is tried again at 12",
                "check --probe",
            ),
            (
                Box::new(|s| {
                    let mut sink = sink();
                    sink["last_error"] = json!("progress can't be saved: No space left on device (os error 28)");
                    s["sinks"] = json!([sink]);
                }),
                "sink crm: progress can't be saved: No space left",
                "make room",
            ),
            (
                Box::new(|s| {
                    s["close"]["custom_fields"] = json!({ "fetched_at": null, "fields": 0, "is_old": false, "lacking": null, "trouble": "no route" });
                }),
                "templates use `named` wait for them: no route",
                "check --probe",
            ),
            (
                Box::new(|s| {
                    let at = "2024-02-12T12:00:00Z";
                    s["close"]["custom_fields"] = json!({ "fetched_at": at, "fields": 3, "is_old": true, "lacking": null, "trouble": "no route" });
                }),
                "called as they were at 2024-02-12T12:00:00Z: no route",
                "fetched again by itself",
            ),
            (
                Box::new(|s| {
                    let at = "2024-02-15T12:00:00Z";
                    s["close"]["custom_fields"] = json!({ "fetched_at": at, "fields": 3, "is_old": false, "lacking": "403", "trouble": "no route" });
                }),
                "the names of some custom fields can't be fetched: 403",
                "fetched again by itself",
            ),
            (
                Box::new(|s| {
                    let mut sink = sink();
                    (sink["waits_for"], sink["lag_seconds"]) =
                        (json!("it waits for the receiver's answer"), json!(61.0));
                    s["sinks"] = json!([sink]);
                }),
                "sink crm waits: it waits for the receiver's answer",
                "sinks list",
            ),
        ];
        for (change, what, remedy) in cases {
            let said = said(change);
            assert_eq!(said.len(), 1, "{what}: {said:?}");
            let (is_what, is_remedy) = said[0].split_once(" -> ").unwrap();
            assert!(is_what.contains(what) && is_remedy.contains(remedy), "{what}: {said:?}");
        }
    }

    #[test]
    fn the_most_urgent_comes_first_and_nothing_of_close_s_side_where_it_is_not_used() {
        let all = said(|status| {
            status["keys"] = json!(0);
            status["ready"] = json!(false);
            status["close"]["trouble"] = json!("no route");
            let mut sink = sink();
            (sink["dead"], sink["paused"]) = (json!(2), json!(true));
            status["sinks"] = json!([sink]);
        });
        let order = [
            "can't be stored",
            "no signature key",
            "no route",
            "is paused",
            "2 dead letters",
        ];
        assert_eq!(all.len(), order.len(), "{all:?}");
        assert!(
            order.iter().zip(&all).all(|(part, said)| said.contains(part)),
            "{all:?}"
        );
        let unused = said(|status| {
            status["close"] = json!({ "configured": false, "subscriptions": [], "trouble": "no route" });
        });
        assert_eq!(unused, Vec::<String>::new());
    }
}
