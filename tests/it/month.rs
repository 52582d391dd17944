//! Days of a simulated organization, end to end: the fake Close sends webhooks with disorder, duplicates and retries to a real
//! daemon that is killed and stays down, and at the end the two compare what they have.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fake_close::{Fake, Options, Settings};
use serde_json::{Value, json};

use crate::harness::{Daemon, lines_in, until};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// What Close is told; the fake delivers to wherever the daemon listens after its last start.
const PUBLIC_URL: &str = "https://hooks.example.com";

/// Events of this kind are not subscribed to.
const UNWANTED: (&str, &str) = ("comment", "created");

/// A revision: the event's id and its `date_updated`.
type Key = (String, String);

/// A Close and a daemon that is subscribed to it.
struct Month {
    fake: Fake,
    daemon: Daemon,
}

impl Month {
    /// A running daemon, subscribed by hand to everything but one kind of event.
    async fn begin(seed: u64) -> Month {
        let fake = Fake::start(Options {
            seed,
            settings: Settings {
                disorder: 0.2,
                duplicates: 0.05,
                ..Settings::default()
            },
            ..Options::default()
        })
        .await
        .unwrap();
        let mut daemon = Daemon::new(
            "[log]\nsegment_size = \"256 KiB\"\n\
             [[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\nstart = \"beginning\"\n",
        );
        let key = subscribe(&fake, &daemon.client).await;
        std::fs::write(daemon.path("key"), key).unwrap();
        daemon.run().await;
        let month = Month { fake, daemon };
        month.deliver_to_the_daemon();
        month
    }

    /// After a start the daemon listens on another port.
    fn deliver_to_the_daemon(&self) {
        let listens_at = self.daemon.url.strip_suffix("/webhooks/close").unwrap();
        let mut world = self.fake.world();
        let mut settings = world.settings().clone();
        settings.deliver_to = BTreeMap::from([(PUBLIC_URL.to_owned(), listens_at.to_owned())]);
        world.set(settings);
    }

    fn deliveries(&self) -> usize {
        self.fake.world().delivery_count()
    }

    /// Lets time pass, in the middle of which the daemon is killed; it stays down for a while of it and comes back.
    async fn with_a_kill(&mut self, after_deliveries: usize, down: Duration) {
        let goal = self.deliveries() + after_deliveries;
        let (fake, daemon) = (&self.fake, &mut self.daemon);
        let is_dead = AtomicBool::new(false);
        let death = async {
            until("enough is delivered", async || fake.world().delivery_count() >= goal).await;
            daemon.kill();
            is_dead.store(true, Ordering::Relaxed);
        };
        let life = async {
            // Hour by hour, so that little time passes before the death is noticed.
            for hour in 0.. {
                if is_dead.load(Ordering::Relaxed) {
                    break;
                }
                assert!(hour < 24 * 30, "a month without enough deliveries");
                fake.advance(HOUR).await;
            }
        };
        tokio::join!(death, life);
        self.fake.advance(down).await;
        self.daemon.run().await;
        self.deliver_to_the_daemon();
    }

    /// What the daemon has: every revision with its body.
    fn stored(&self) -> BTreeMap<Key, String> {
        let mut stored = BTreeMap::new();
        for line in self.daemon.lines(&["events", "export"]) {
            let body = line["body"].as_str().unwrap().to_owned();
            let event = serde_json::from_str::<Value>(&body).unwrap()["event"].take();
            let again = stored.insert(key(&event), body);
            assert_eq!(again, None, "stored twice: {}", line["body"]);
        }
        stored
    }

    /// What the fake knows to have been delivered.
    fn delivered(&self) -> BTreeMap<Key, String> {
        let world = self.fake.world();
        world
            .deliveries(0)
            .map(|one| ((one.id, one.date_updated), one.body))
            .collect()
    }
}

/// Subscribes to every documented kind of event but [`UNWANTED`]; the signature key.
async fn subscribe(fake: &Fake, client: &reqwest::Client) -> String {
    let types = std::fs::read_to_string("tests/fixtures/close/event-types.json").unwrap();
    let types: Value = serde_json::from_str(&types).unwrap();
    let mut events = Vec::new();
    for entry in types["event_types"].as_array().unwrap() {
        for action in entry["actions"].as_array().unwrap() {
            events.push(json!({ "object_type": entry["object_type"], "action": action }));
        }
    }
    events.retain(|event| event != &json!({ "object_type": UNWANTED.0, "action": UNWANTED.1 }));
    let body = json!({ "url": format!("{PUBLIC_URL}/webhooks/close"), "events": events });
    let answer = client
        .post(format!("{}/webhook/", fake.base_url()))
        .basic_auth(fake.api_key(), Some(""))
        .header("content-type", "application/json")
        .body(body.to_string());
    let answer: Value = serde_json::from_slice(&answer.send().await.unwrap().bytes().await.unwrap()).unwrap();
    answer["signature_key"].as_str().unwrap().to_owned()
}

fn key(event: &Value) -> Key {
    let text = |name: &str| event[name].as_str().unwrap().to_owned();
    (text("id"), text("date_updated"))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_delivered_over_days_of_kills_is_kept_exactly_once() {
    let mut month = Month::begin(7).await;
    let now = month.fake.world().now();
    month.fake.world().generate(2500, now, DAY * 5).unwrap();
    for round in 0..4 {
        month.with_a_kill(60 + round * 130, HOUR * 3).await;
    }
    // Nobody was down for three days: everything gets through in the end.
    month.fake.advance(DAY * 8).await;
    let delivered = month.delivered();
    let repeated = month.deliveries() - delivered.len();
    assert!(
        delivered.len() > 2000 && repeated > 50,
        "{} {repeated}",
        delivered.len()
    );
    {
        let world = month.fake.world();
        let subscription = world.subscriptions().next().unwrap();
        let counts = subscription.counts;
        assert!(counts.attempts > counts.delivered, "some had to be tried again");
        assert_eq!((counts.dropped, counts.cleared, subscription.queued), (0, 0, 0));
        let unwanted = format!("{}.{}", UNWANTED.0, UNWANTED.1);
        for revision in world.revisions(0) {
            let is_kept = delivered.contains_key(&(revision.id, revision.date_updated));
            assert_eq!(is_kept, revision.delivered);
            assert!(!(is_kept && revision.event == unwanted));
        }
        let revised = delivered
            .keys()
            .zip(delivered.keys().skip(1))
            .filter(|(a, b)| a.0 == b.0);
        assert!(revised.count() > 10, "some events came in several revisions");
    }
    let stored = month.stored();
    assert_eq!(stored.len(), delivered.len());
    for (key, body) in &delivered {
        assert_eq!(stored.get(key), Some(body), "byte for byte");
    }
    assert!(month.daemon.ok(&["events", "verify"]).contains("events checked"));

    let last = month.daemon.status()["log"]["last"].as_u64().unwrap();
    until("the sink is done", async || month.daemon.sink("file")["cursor"] == last).await;
    let lines = lines_in(&month.daemon.path("events.jsonl"));
    let mut in_sink: Vec<Key> = lines.iter().map(|line| key(&line["event"])).collect();
    in_sink.sort();
    assert_eq!(
        in_sink,
        delivered.into_keys().collect::<Vec<_>>(),
        "the sink has each exactly once"
    );
}
