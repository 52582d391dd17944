//! The promise as a whole: a month of a simulated organization, in which the daemon is killed, loses its network, runs out of
//! disk and is down for four days, so that Close pauses the subscription and clears its queue.

use std::collections::BTreeSet;
use std::time::Duration;

use fake_close::Settings;
use fake_close::fault::{Fault, Faults, Kind};
use serde_json::Value;

use crate::close::{Rig, key};
use crate::harness::until;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// Two sinks, of which one wants only some of it.
const MORE: &str = "[log]\nsegment_size = \"256 KiB\"\n\
    [[sinks]]\nname = \"all\"\ntype = \"file\"\npath = \"DIR/all.jsonl\"\nstart = \"beginning\"\n\
    [[sinks]]\nname = \"leads\"\ntype = \"file\"\npath = \"DIR/leads.jsonl\"\nstart = \"beginning\"\n\
    [[rules]]\nname = \"everything\"\nsinks = [\"all\"]\n\
    [[rules]]\nname = \"leads\"\nevents = [\"lead.*\"]\nsinks = [\"leads\"]\n";

/// A revision: the event's id and its `date_updated`.
type Key = (String, String);

fn in_sink(rig: &Rig, name: &str) -> Vec<Key> {
    let text = std::fs::read_to_string(rig.daemon.path(name)).unwrap_or_default();
    let line_key = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        key(&line.to_string())
    };
    text.lines().map(line_key).collect()
}

/// The first half: kills, no API, no network, no room on the disk, and then nobody there for so long that Close gives up.
async fn half_a_month_of_mishaps(rig: &mut Rig, subscription: &str) {
    // Days 0 to 5: killed now and then, in the middle of deliveries and of comparing.
    for _ in 0..5 {
        rig.fake.advance(14 * HOUR).await;
        rig.daemon.kill();
        rig.fake.advance(10 * HOUR).await;
        rig.run().await;
    }
    // Days 5 to 8: Close's API can't be reached; deliveries come all the same.
    for kind in [Kind::Reset, Kind::Status, Kind::Html] {
        rig.fake
            .world()
            .faults
            .order(Fault::new(kind).on("/api/v1/").times(1_000_000))
            .unwrap();
        let before = rig.fake.world().delivery_count();
        rig.fake.advance(DAY).await;
        assert!(
            rig.fake.world().delivery_count() > before,
            "receiving does not need the API"
        );
        rig.fake.world().faults = Faults::default();
    }
    // Days 8 to 10: the network between Close and the daemon is gone.
    rig.set(|settings| settings.deliver_to.clear());
    rig.fake.advance(2 * DAY).await;
    rig.daemon.stop().await;
    rig.run().await;
    // Days 10 to 12: no room on the disk; every event is answered 503.
    rig.daemon.stop().await;
    let roomless = MORE.replace("[log]\n", "[log]\nreserve = \"1000000 GiB\"\n");
    rig.configure("", &roomless);
    rig.run().await;
    rig.fake.advance(2 * DAY).await;
    rig.daemon.stop().await;
    rig.configure("", MORE);
    rig.run().await;
    rig.fake.advance(2 * DAY).await;
    // Days 14 to 18: down for so long that Close gives up.
    rig.daemon.kill();
    rig.fake.advance(4 * DAY).await;
    {
        let world = rig.fake.world();
        let seen = world.subscription(subscription).unwrap();
        assert!(
            !seen.active && seen.counts.cleared > 0,
            "Close has paused it and cleared its queue"
        );
    }
    rig.run().await;
    until("it is resumed", async || {
        rig.fake.world().subscription(subscription).unwrap().active
    })
    .await;
}

/// The rest of the month, with a new key in it.
async fn half_a_month_in_order(rig: &Rig, subscription: &str) {
    rig.fake.advance(5 * DAY).await;
    rig.daemon.ok(&["subscription", "apply", "--rotate"]);
    rig.fake.advance(2 * DAY).await;
    until("the new key has taken over", async || {
        rig.fake.world().subscriptions().count() == 1 && rig.only_subscription() != subscription
    })
    .await;
    rig.fake.advance(5 * DAY).await;
    rig.settled().await;
    rig.settled().await;
}

/// What Close has is in the log, as far as is claimed. Gives what is stored, and the leads' part of it.
fn compare(rig: &Rig) -> (BTreeSet<Key>, BTreeSet<Key>) {
    let stored: BTreeSet<Key> = rig.stored().into_keys().collect();
    let (mut latest, mut delivered, mut leads) = (0, 0, BTreeSet::new());
    {
        let world = rig.fake.world();
        for revision in world.revisions(0) {
            let key = (revision.id, revision.date_updated);
            if revision.latest {
                latest += 1;
                assert!(
                    stored.contains(&key),
                    "the latest revision of {} {key:?} is missing",
                    revision.event
                );
            }
            if revision.delivered {
                delivered += 1;
                assert!(
                    stored.contains(&key),
                    "a delivered revision of {} is missing",
                    revision.event
                );
            }
            if revision.event.starts_with("lead.") && stored.contains(&key) {
                leads.insert(key);
            }
        }
        assert!(
            latest > 3000 && delivered > 1000 && delivered < latest,
            "{latest} {delivered}"
        );
        let refused: Vec<_> = world.requests().filter(|request| request.status == 429).collect();
        assert!(refused.is_empty(), "{refused:?}");
    }
    let verified = rig.daemon.lines(&["events", "verify"]).pop().unwrap();
    assert_eq!(verified["faults"].as_array().map(Vec::len), Some(0), "{verified}");
    assert_eq!(verified["checked"], stored.len());
    (stored, leads)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_month_of_mishaps_nothing_is_missing_and_nothing_is_there_twice() {
    let settings = Settings {
        disorder: 0.1,
        duplicates: 0.03,
        rate_limit: 1000,
        ..Settings::default()
    };
    let mut rig = Rig::subscribed(settings, "", MORE).await;
    let subscription = rig.only_subscription();
    let start = rig.fake.world().now();
    rig.fake.world().generate(4000, start, 30 * DAY).unwrap();

    half_a_month_of_mishaps(&mut rig, &subscription).await;
    half_a_month_in_order(&rig, &subscription).await;

    let status = rig.daemon.status();
    let complete = &status["close"]["complete"];
    let since: jiff::Timestamp = complete["from"].as_str().unwrap().parse().unwrap();
    assert!(
        since.as_microsecond() <= start.0,
        "the claim reaches back to the beginning: {complete}"
    );

    let (stored, leads) = compare(&rig);
    let last = rig.daemon.status()["log"]["last"].clone();
    until("the sinks are done", async || {
        ["all", "leads"]
            .iter()
            .all(|name| rig.daemon.sink(name)["cursor"] == last)
    })
    .await;
    for (name, wanted) in [("all.jsonl", &stored), ("leads.jsonl", &leads)] {
        let found = in_sink(&rig, name);
        let unique: BTreeSet<Key> = found.iter().cloned().collect();
        assert_eq!(unique.len(), found.len(), "{name}: each once");
        assert_eq!(
            (unique.difference(wanted).count(), wanted.difference(&unique).count()),
            (0, 0),
            "{name}"
        );
    }
}
