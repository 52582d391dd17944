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
        "close": { "configured": true, "looked_after_by": "n1", "subscriptions": [{ "id": "whsub_1", "state": "active", "verify_ssl": true }] },
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
            Box::new(|s| {
                s["close"]["configured"] = json!(false);
                s["close"]["damaged"] = json!([{ "file": "close/keys.json", "what": "the keys can't be read: it is damaged", "do": "put it back" }]);
            }),
            "the keys can't be read: it is damaged",
            "put it back",
        ),
        (
            Box::new(|s| {
                s["close"]["trouble"] = json!("Close has a problem (500)");
                s["close"]["tried_again_at"] = json!("2024-02-15T12:31:00Z");
            }),
            "Close's API can't be used: Close has a problem (500)",
            "it is tried again at 2024-02-15T12:31:00Z",
        ),
        (
            Box::new(|s| s["log"]["keys_doubted"] = json!("known keys were damaged")),
            "answered 503: known keys were damaged",
            "see that the disk of /data can be read",
        ),
        (
            Box::new(|s| s["removed_sinks_damaged"] = json!({ "old": "some were lost to damage" })),
            "sink old, which is not configured: dead letters: some were lost to damage",
            "`closehook sinks forget old`",
        ),
        (
            Box::new(|s| s["stranded"] = json!({ "old": 2 })),
            "2 events wait for sink old, which is not configured",
            "configure old again",
        ),
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
            Box::new(|s| {
                s["ready"] = json!(false);
                s["not_ready_because"] = json!("the stream has no leader");
                s["nodes"] = json!([{ "name": "n1", "roles": [], "state": "alive", "started_at": "2024-02-15T12:29:59Z",
                    "version": "1", "leases": [] }]);
            }),
            "the stream has no leader",
            "a majority of the servers",
        ),
        (
            Box::new(|s| {
                s["close"]["looked_after_by"] = Value::Null;
                s["nodes"] = json!([{ "name": "n1", "roles": [], "state": "alive", "started_at": "2024-02-15T12:29:59Z",
                    "version": "1", "leases": [] }]);
            }),
            "no node looks after Close's side now",
            "node.roles",
        ),
        (
            Box::new(|s| s["close"]["overdue_seconds"] = json!(7200)),
            "Close's side was last looked at 2h ago",
            "closehook check --probe",
        ),
        (
            Box::new(|s| s["close"]["token_unsaved"] = json!("the disk is full")),
            "the newest OAuth refresh token can't be written where it belongs: the disk is full",
            "before closehook stops",
        ),
        (
            Box::new(|s| {
                s["ready"] = json!(false);
                s["not_ready_because"] = json!("the data directory /data is at log.max_size: ...");
            }),
            "log.max_size",
            "raise log.max_size",
        ),
        (
            Box::new(|s| {
                s["ready"] = json!(false);
                s["not_ready_because"] = json!("the log takes up 9 bytes on its servers, and log.max_size leaves it 8");
                s["stream"] = json!({ "stream": "closehook", "replicas": 3, "leader": "n0", "servers": [] });
            }),
            "log.max_size leaves it 8",
            "raise log.max_size",
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
                s["certificate"] =
                    json!({ "file": "c", "not_after": "2034-02-20T00:00:00Z", "last_error": "k can't be read" });
            }),
            "the certificate expires at 2034-02-20T00:00:00Z: what its files hold now can't be used: k can't be read",
            "renew the files",
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
            "`closehook subscription apply` makes it anew, or takes its key out of use where another one delivers here",
        ),
        (
            Box::new(|s| s["close"]["subscriptions"][0]["state"] = json!("elsewhere")),
            "delivers elsewhere",
            "subscription plan",
        ),
        (
            Box::new(|s| s["close"]["subscriptions"][0]["state"] = json!("keyless")),
            "key is not known",
            "name its key in [[close.subscriptions]], or, if nobody needs it, `closehook subscription delete whsub_1`; where Close has no two that ask for the same, `closehook subscription apply` replaces it",
        ),
        (
            Box::new(|s| s["close"]["subscriptions"][0]["state"] = json!("gone")),
            "[[close.subscriptions]] names the subscription whsub_1, which Close does not have any more, and another one delivers here",
            "remove it from the configuration",
        ),
        (
            Box::new(|s| s["close"]["subscriptions"][0]["latest_error"] = json!("502")),
            "deliveries of whsub_1 fail: 502",
            "public_url",
        ),
        (
            Box::new(|s| s["close"]["subscriptions"][0]["verify_ssl"] = json!(false)),
            "verify_ssl off",
            "subscription delete whsub_1",
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
            Box::new(|s| {
                s["retention"] = json!({ "used_bytes": 1, "max_bytes": 2, "waits_for_clock": "it is a year ahead" });
            }),
            "it is a year ahead",
            "timedatectl",
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
                s["close"]["custom_fields"] =
                    json!({ "fetched_at": null, "fields": 0, "is_old": false, "lacking": null, "trouble": "no route" });
            }),
            "templates use `named` wait for them: no route",
            "check --probe",
        ),
        (
            Box::new(|s| {
                let at = "2024-02-12T12:00:00Z";
                s["close"]["custom_fields"] =
                    json!({ "fetched_at": at, "fields": 3, "is_old": true, "lacking": null, "trouble": "no route" });
            }),
            "called as they were at 2024-02-12T12:00:00Z: no route",
            "fetched again by itself",
        ),
        (
            Box::new(|s| {
                let at = "2024-02-15T12:00:00Z";
                s["close"]["custom_fields"] =
                    json!({ "fetched_at": at, "fields": 3, "is_old": false, "lacking": "403", "trouble": "no route" });
            }),
            "the names of some custom fields can't be fetched: 403",
            "fetched again by itself",
        ),
        (
            Box::new(|s| {
                let mut sink = sink();
                (sink["waits_for"], sink["late_seconds"]) = (json!("it waits for the receiver's answer"), json!(61.0));
                s["sinks"] = json!([sink]);
            }),
            "sink crm waits: it waits for the receiver's answer",
            "sinks list",
        ),
        (
            Box::new(|s| {
                let mut sink = sink();
                sink["dead_trouble"] = json!("9 bytes of /data/dead/crm are damaged, in 1 place(s)");
                s["sinks"] = json!([sink]);
            }),
            "sink crm: dead letters: 9 bytes of /data/dead/crm are damaged",
            "closehook replay --sink crm",
        ),
    ];
    for (change, what, remedy) in cases {
        let said = said(change);
        assert_eq!(said.len(), 1, "{what}: {said:?}");
        let (is_what, is_remedy) = said[0].split_once(" -> ").unwrap();
        assert!(is_what.contains(what) && is_remedy.contains(remedy), "{what}: {said:?}");
    }
}

/// A failure that is over is a dead letter, or nothing.
#[test]
fn a_failure_is_a_trouble_while_something_waits_or_somebody_has_to_look() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut sink = sink();
        sink["last_error"] = json!("it answered 400");
        sink["lag_events"] = json!(0);
        change(&mut sink);
        said(|status| status["sinks"] = json!([sink]))
    };
    assert_eq!(with(&|_| ()), Vec::<String>::new());
    assert_eq!(with(&|sink| sink["breaker"] = json!("open")), Vec::<String>::new());
    for (key, value, again) in [
        ("lag_events", json!(1), "1 event is tried again"),
        ("waits_for", json!("it is being opened"), "it is tried again"),
        ("needs_person", json!(true), "`closehook sinks resume crm`"),
    ] {
        let said = with(&|sink| sink[key] = value.clone());
        assert!(said.len() == 1 && said[0].contains(again), "{key}: {said:?}");
    }
    // What keeps it is put right first.
    let waiting = with(&|sink| {
        sink["needs_person"] = json!(true);
        (sink["waits_for"], sink["lag_events"]) = (json!("it answered 400; it is tried again soon"), json!(2));
    });
    assert!(waiting[0].contains("put its receiver right"), "{waiting:?}");
    let paused = with(&|sink| {
        (sink["paused"], sink["needs_person"]) = (json!(true), json!(true));
    });
    assert!(
        paused[0].contains("is paused") && paused[0].contains("it answered 400"),
        "{paused:?}"
    );
    let of_program = with(&|sink| {
        sink["last_error"] = json!("its transform failed: x (line 3)");
        sink["lag_events"] = json!(2);
    });
    assert!(of_program[0].contains("closehook render crm"), "{of_program:?}");
}

/// Who has buttons and links shows these instead of a command.
#[test]
fn what_one_thing_does_is_said_as_that_thing() {
    let now = "2024-02-15T12:30:00Z".parse().unwrap();
    let status = status(|status| {
        let mut sink = sink();
        (sink["dead"], sink["paused"], sink["lag_events"]) = (json!(2), json!(true), json!(0));
        status["sinks"] = json!([sink]);
    });
    let found = of(&status, now);
    assert_eq!(found[0].what, "sink crm is paused", "nothing waits for it");
    let next: Vec<_> = found.into_iter().filter_map(|trouble| trouble.next).collect();
    let of = || "crm".to_owned();
    assert_eq!(next, [Next::ResumeSink { of: of() }, Next::DeadLetters { of: of() }]);
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
