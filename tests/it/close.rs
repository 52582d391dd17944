//! Contract, section 5: subscriptions and their health against the fake Close, and the rig that the chapters about it share.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use fake_close::fault::{Fault, Faults, Kind};
use fake_close::{Fake, Options, Settings};
use serde_json::Value;

use crate::harness::{Daemon, ids_in, until};

/// What Close is told; the fake delivers to wherever the daemon listens after its last start.
pub const PUBLIC_URL: &str = "https://hooks.example.com/webhooks/close";

const HOUR: Duration = Duration::from_secs(3600);

/// Beyond the overlap, so that what happened before is settled.
const SETTLED: Duration = Duration::from_secs(15 * 60);

/// A sink that sees everything from the start.
pub const FILE_SINK: &str =
    "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\nstart = \"beginning\"\n";

/// A Close and a daemon that has an account there.
pub struct Rig {
    pub fake: Fake,
    pub daemon: Daemon,
}

impl Rig {
    /// Nothing runs yet but the fake. `close` goes into `[close]`, `more` behind it.
    pub async fn new(settings: Settings, close: &str, more: &str) -> Rig {
        let fake = Fake::start(Options {
            settings,
            ..Options::default()
        })
        .await
        .unwrap();
        let key = format!("api_key = \"{}\"\n{close}", fake.api_key());
        let daemon = Daemon::new(&configuration(&fake.base_url(), &key, more));
        Rig { fake, daemon }
    }

    /// The daemon runs and its subscription is made.
    pub async fn subscribed(settings: Settings, close: &str, more: &str) -> Rig {
        let mut rig = Rig::new(settings, close, more).await;
        rig.run().await;
        rig.daemon.ok(&["subscription", "apply"]);
        rig
    }

    pub async fn run(&mut self) {
        self.daemon.run().await;
        let listens_at = self.daemon.url.strip_suffix("/webhooks/close").unwrap().to_owned();
        self.set(|settings| {
            settings.deliver_to = BTreeMap::from([("https://hooks.example.com".to_owned(), listens_at)]);
        });
    }

    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        let mut world = self.fake.world();
        let mut settings = world.settings().clone();
        change(&mut settings);
        world.set(settings);
    }

    pub fn configure(&self, close: &str, more: &str) {
        let key = format!("api_key = \"{}\"\n{close}", self.fake.api_key());
        self.daemon.configure(&configuration(&self.fake.base_url(), &key, more));
    }

    /// So many events happen from now on, evenly over `span`, while it passes.
    pub async fn happen(&self, count: u64, span: Duration) {
        let now = self.fake.world().now();
        self.fake.world().generate(count, now, span).unwrap();
        self.fake.advance(span).await;
    }

    /// What happened so far lies behind the overlap, and the daemon has compared it.
    pub async fn settled(&self) {
        let now = self.fake.world().now();
        self.fake.advance(SETTLED).await;
        until("the log is complete", async || {
            let complete = &self.daemon.status()["close"]["complete"];
            let upto = complete["upto"]
                .as_str()
                .and_then(|upto| upto.parse::<jiff::Timestamp>().ok());
            upto.is_some_and(|upto| upto.as_microsecond() >= now.0)
        })
        .await;
    }

    pub fn only_subscription(&self) -> String {
        let world = self.fake.world();
        let ids: Vec<&str> = world
            .subscriptions()
            .map(|subscription| subscription.id.as_str())
            .collect();
        assert_eq!(ids.len(), 1, "{ids:?}");
        ids[0].to_owned()
    }

    /// Latest revisions of every kind of event that `is_wanted`, as (id, `date_updated`).
    pub fn latest(&self, is_wanted: impl Fn(&str) -> bool) -> BTreeSet<(String, String)> {
        let world = self.fake.world();
        world
            .revisions(0)
            .filter(|revision| revision.latest && is_wanted(&revision.event))
            .map(|revision| (revision.id, revision.date_updated))
            .collect()
    }

    /// What the log holds: every revision, which must be there once.
    pub fn stored(&self) -> BTreeMap<(String, String), Value> {
        let mut stored = BTreeMap::new();
        for line in self.daemon.exported() {
            let again = stored.insert(key(line["body"].as_str().unwrap()), line.clone());
            assert_eq!(again, None, "stored twice: {line}");
        }
        stored
    }

    /// The log holds exactly these.
    pub fn holds_exactly(&self, wanted: &BTreeSet<(String, String)>) {
        let stored: BTreeSet<(String, String)> = self.stored().into_keys().collect();
        let (lacks, more) = (wanted.difference(&stored).count(), stored.difference(wanted).count());
        assert_eq!(
            (lacks, more),
            (0, 0),
            "of {} the log lacks some, or has more",
            wanted.len()
        );
    }

    pub fn state(&self, id: &str) -> Option<String> {
        let status = self.daemon.status();
        let found = status["close"]["subscriptions"]
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["id"] == id)?;
        found["state"].as_str().map(ToOwned::to_owned)
    }
}

pub fn configuration(base_url: &str, close: &str, more: &str) -> String {
    format!(
        "[server]\npublic_url = \"{PUBLIC_URL}\"\n[close]\nbase_url = \"{base_url}\"\n{close}\n\
         [close.health]\ninterval = \"1s\"\n[close.reconcile]\ninterval = \"1s\"\n{more}"
    )
}

/// A delivery's event: id and `date_updated`.
pub fn key(body: &str) -> (String, String) {
    let body: Value = serde_json::from_str(body).unwrap();
    let text = |name: &str| body["event"][name].as_str().unwrap().to_owned();
    (text("id"), text("date_updated"))
}

pub fn rule(events: &[&str], filter: &str) -> String {
    let filter = if filter.is_empty() {
        String::new()
    } else {
        format!("filter = '{filter}'\n")
    };
    format!("{FILE_SINK}[[rules]]\nname = \"r\"\nevents = {events:?}\nsinks = [\"file\"]\n{filter}")
}

const WON: &str = r#"{"type":"field_accessor","field":"data","filter":{"type":"field_accessor","field":"status_type","filter":{"type":"equals","value":"won"}}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_shown_like_a_patch_carried_out_and_changed_in_place() {
    let mut rig = Rig::new(Settings::calm(), "", &rule(&["lead.*", "opportunity.updated"], "")).await;
    rig.run().await;
    let output = rig.daemon.run_command(&["subscription", "plan"]);
    let plan = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "a difference is found: {plan}");
    assert!(
        plan.contains("--- nothing at Close delivers to") && plan.contains("\n+lead.merged\n+lead.updated\n"),
        "{plan}"
    );
    assert_eq!(rig.fake.world().subscriptions().count(), 0, "a plan changes nothing");

    let said = rig.daemon.ok(&["subscription", "apply"]);
    let id = rig.only_subscription();
    assert!(said.contains(&format!("done: {id} delivers to {PUBLIC_URL}")), "{said}");
    let (signature_key, events) = {
        let world = rig.fake.world();
        let subscription = world.subscription(&id).unwrap();
        (subscription.signature_key.clone(), subscription.events.len())
    };
    assert_eq!(events, 5);
    let keys = rig.daemon.data().join("close/keys.json");
    assert_eq!(std::fs::metadata(&keys).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(&keys).unwrap().contains(&signature_key));

    // The key counts at once.
    rig.happen(300, HOUR).await;
    rig.settled().await;
    let is_wanted = |event: &str| event.starts_with("lead.") || event == "opportunity.updated";
    let stored = rig.stored();
    assert!(!stored.is_empty() && rig.fake.world().delivery_count() > 0);
    let signed = stored.values().filter(|line| line["source"] == "webhook").count();
    assert_eq!(signed, stored.len(), "while all is well everything comes as a delivery");
    let latest = rig.latest(is_wanted);
    assert!(latest.iter().all(|key| stored.contains_key(key)));
    assert!(rig.daemon.ok(&["events", "verify"]).contains("events checked"));

    rig.configure("", &rule(&["lead.created", "opportunity.updated"], WON));
    assert!(rig.daemon.reload().await);
    let plan = rig.daemon.run_command(&["subscription", "plan"]);
    let plan = String::from_utf8(plan.stdout).unwrap();
    for part in [
        format!("--- {id} as Close has it (active)"),
        "-lead.deleted".into(),
        format!("-lead.created\n+lead.created where {WON}"),
        "note: Close filters".into(),
    ] {
        assert!(plan.contains(&part), "{part}: {plan}");
    }
    rig.daemon.ok(&["subscription", "apply"]);
    assert_eq!(rig.only_subscription(), id, "changed in place");
    assert!(rig.daemon.ok(&["subscription", "plan"]).contains("nothing to do"));
    let everything = rig.daemon.stderr()
        + &said
        + &rig.daemon.ok(&["subscription", "show", &id])
        + &rig.daemon.ok(&["status", "--json"]);
    assert!(!everything.contains(&signature_key), "the key is shown nowhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_whose_key_was_lost_on_the_way_is_deleted_and_made_anew() {
    let mut rig = Rig::new(Settings::calm(), "", FILE_SINK).await;
    rig.run().await;
    for kind in [Kind::DropAnswer, Kind::Truncated] {
        rig.fake
            .world()
            .faults
            .order(Fault::new(kind).on("POST /api/v1/webhook/"))
            .unwrap();
        rig.daemon.ok(&["subscription", "apply"]);
        let id = rig.only_subscription();
        rig.daemon.ok(&["subscription", "delete", "--yes", &id]);
        assert_eq!(rig.fake.world().subscriptions().count(), 0);
    }

    // The answer is lost, Close can't be asked what became of it, and then the daemon dies.
    let post = "POST /api/v1/webhook/";
    let mut slow = Fault::new(Kind::Latency).on(post);
    slow.delay_ms = 2000;
    rig.fake.world().faults.order(slow).unwrap();
    rig.fake
        .world()
        .faults
        .order(Fault::new(Kind::DropAnswer).on(post))
        .unwrap();
    let running = tokio::task::spawn_blocking({
        let mut command = rig.daemon.command();
        move || command.args(["subscription", "apply"]).output().unwrap()
    });
    let keys = rig.daemon.data().join("close/keys.json");
    until("it is about to be made", async || {
        let keys: Value = serde_json::from_slice(&std::fs::read(&keys).unwrap()).unwrap();
        keys["intent"]["url"] == PUBLIC_URL
    })
    .await;
    let down = Fault::new(Kind::Status)
        .status(500)
        .on("GET /api/v1/webhook/")
        .times(1_000_000);
    rig.fake.world().faults.order(down).unwrap();
    until("the subscription is made", async || {
        rig.fake.world().subscriptions().count() == 1
    })
    .await;
    let orphan = rig.only_subscription();
    rig.daemon.kill();
    assert!(!running.await.unwrap().status.success());
    rig.fake.world().faults = Faults::default();
    rig.run().await;
    until("the orphan is gone and another one is there", async || {
        let world = rig.fake.world();
        world.subscriptions().count() == 1 && world.subscription(&orphan).is_none()
    })
    .await;
    rig.happen(30, HOUR).await;
    until("it delivers", async || {
        rig.daemon.status()["log"]["last"].as_u64() > Some(0)
    })
    .await;
    assert!(rig.daemon.ok(&["subscription", "plan"]).contains("nothing to do"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_close_has_paused_is_resumed_and_the_gap_filled_but_not_what_a_person_has_paused() {
    let rig = Rig::subscribed(Settings::calm(), "", FILE_SINK).await;
    let id = rig.only_subscription();
    rig.happen(60, HOUR).await;
    rig.settled().await;
    assert!(rig.fake.world().pause(&id));
    // Nothing of this is delivered: it happens while the subscription is paused, before anybody looks.
    let missed = {
        let mut world = rig.fake.world();
        let missed = world.inject(
            r#"{"object_type":"lead","action":"created","data":{"n":1.50}}"#,
            Duration::ZERO,
            false,
        );
        missed.unwrap()
    };
    until("it is active again", async || {
        rig.fake.world().subscription(&id).unwrap().active
    })
    .await;
    rig.settled().await;
    let shown = rig.daemon.lines(&["events", "show", &missed]).pop().unwrap();
    assert_eq!(
        (shown["source"].as_str(), shown["signature"].as_str()),
        (Some("backfill"), Some("unsigned (backfill)"))
    );
    assert!(
        shown["body"].as_str().unwrap().starts_with("{\"event\":{") && shown["body"].as_str().unwrap().contains("1.50")
    );
    until("the sink has it", async || {
        ids_in(&rig.daemon.path("events.jsonl")).contains(&missed)
    })
    .await;
    assert!(rig.daemon.stderr().contains("Close had paused the subscription"));

    rig.daemon.ok(&["subscription", "pause", &id]);
    until("the pause is seen", async || {
        rig.state(&id).as_deref() == Some("paused-by-hand")
    })
    .await;
    rig.settled().await;
    assert!(!rig.fake.world().subscription(&id).unwrap().active);
    rig.daemon.ok(&["subscription", "resume", &id]);
    until("it is active", async || rig.state(&id).as_deref() == Some("active")).await;
    let metrics = rig.daemon.metrics().await;
    for line in [
        format!("closehook_close_subscription_active{{subscription=\"{id}\"}} 1"),
        "closehook_close_reachable 1".into(),
        "closehook_close_complete_timestamp_seconds ".into(),
        "closehook_backfilled_events_total{result=\"stored\"} ".into(),
    ] {
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    rig.daemon.ok(&["subscription", "delete", "--yes", &id]);
    assert!(rig.daemon.fails(2, &["subscription", "delete", &id]).contains("--yes"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_disappears_or_points_elsewhere_is_said_once() {
    let rig = Rig::subscribed(Settings::calm(), "", FILE_SINK).await;
    let id = rig.only_subscription();
    until("it is seen", async || rig.state(&id).as_deref() == Some("active")).await;
    let api = |method: reqwest::Method, body: &'static str| {
        let url = format!("{}/webhook/{id}/", rig.fake.base_url());
        let request = rig
            .daemon
            .client
            .request(method, url)
            .basic_auth(rig.fake.api_key(), Some(""));
        request.header("content-type", "application/json").body(body).send()
    };
    assert!(
        api(reqwest::Method::PUT, "{\"url\":\"https://other.example.com/\"}")
            .await
            .unwrap()
            .status()
            .is_success()
    );
    until("it is seen", async || rig.state(&id).as_deref() == Some("elsewhere")).await;
    rig.daemon.ok(&["subscription", "apply"]);
    until("it is back", async || rig.state(&id).as_deref() == Some("active")).await;
    assert!(api(reqwest::Method::DELETE, "").await.unwrap().status().is_success());
    until("it is missed", async || rig.state(&id).as_deref() == Some("missing")).await;
    rig.settled().await;
    let log = rig.daemon.stderr();
    assert_eq!(log.matches("delivers elsewhere").count(), 1);
    assert_eq!(
        log.matches("does not have the subscription any more").count(),
        1,
        "{log}"
    );
    rig.daemon.ok(&["subscription", "apply"]);
    assert_ne!(rig.only_subscription(), id);
}

/// Lets history be made that nobody was told of.
pub fn history(rig: &Rig, count: u64, span: Duration) {
    let mut world = rig.fake.world();
    let from = world.now().minus(span);
    world.generate(count, from, span).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_limit_of_forty_is_a_hint_and_close_is_asked() {
    let mut rig = Rig::new(Settings::calm(), "", FILE_SINK).await;
    rig.run().await;
    rig.fake.world().add_integrations(38);
    let output = rig.daemon.run_command(&["subscription", "plan"]);
    let plan = String::from_utf8(output.stdout).unwrap();
    assert!(
        plan.contains("has 39 subscriptions; Close's documentation allows 40"),
        "{plan}"
    );
    rig.daemon.ok(&["subscription", "apply"]);
    rig.daemon.ok(&["subscription", "create", "--event", "lead.created"]);
    let error = rig
        .daemon
        .fails(1, &["subscription", "create", "--event", "lead.updated"]);
    assert!(
        error.contains("Close refuses the request (400)") && error.contains("at most 40"),
        "{error}"
    );
}
