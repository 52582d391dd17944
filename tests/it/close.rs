//! Contract, section 5: subscriptions, their health, and events that never came, against the fake Close.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use closehook::ingress::verify::Key;
use fake_close::Span;
use fake_close::fault::{Fault, Faults, Kind};
use fake_close::{Fake, Options, Settings, State};
use serde_json::{Value, json};

use crate::harness::{Daemon, ids_in, until};

/// What Close is told; the fake delivers to wherever the daemon listens after its last start.
pub const PUBLIC_URL: &str = "https://hooks.example.com/webhooks/close";

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

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
        for line in self.daemon.lines(&["events", "export"]) {
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
async fn a_new_key_replaces_the_old_one_when_it_has_delivered() {
    let mut rig = Rig::subscribed(Settings::calm(), "", FILE_SINK).await;
    let old = rig.only_subscription();
    rig.happen(60, HOUR).await;
    let said = rig.daemon.ok(&["subscription", "apply", "--rotate"]);
    let new = {
        let world = rig.fake.world();
        let new = world
            .subscriptions()
            .find(|subscription| subscription.id != old)
            .unwrap();
        new.id.clone()
    };
    assert!(said.contains(&format!("{new} replaces {old}")), "{said}");
    assert!(
        rig.daemon
            .fails(1, &["subscription", "apply", "--rotate"])
            .contains("being replaced")
    );
    assert_eq!(rig.daemon.status()["keys"], 2, "both are accepted");
    // A restart in the middle changes nothing.
    rig.daemon.stop().await;
    rig.run().await;
    assert_eq!(rig.daemon.status()["close"]["rotation"]["new"], new.as_str());

    rig.happen(60, HOUR).await;
    until("the old subscription is deleted", async || {
        rig.fake.world().subscriptions().count() == 1
    })
    .await;
    assert_eq!(rig.only_subscription(), new);
    until("its key is retired", async || rig.daemon.status()["keys"] == 1).await;
    assert!(rig.daemon.status()["close"]["rotation"].is_null());
    rig.happen(60, HOUR).await;
    rig.settled().await;
    assert!(rig.latest(|_| true).iter().all(|key| rig.stored().contains_key(key)));
    // What the old key signed is still proved by it.
    let verified = rig.daemon.lines(&["events", "verify"]).pop().unwrap();
    assert_eq!(verified["faults"], json!([]), "{verified}");
    rig.daemon.stop().await;
    assert_eq!(
        rig.daemon.lines(&["events", "verify"]).pop().unwrap()["faults"],
        json!([])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_has_delivered_even_if_the_old_one_is_always_first() {
    let rig = Rig::subscribed(Settings::calm(), "", FILE_SINK).await;
    let old = rig.only_subscription();
    rig.daemon.ok(&["subscription", "apply", "--rotate"]);
    let new = rig.daemon.status()["close"]["rotation"]["new"]
        .as_str()
        .unwrap()
        .to_owned();
    for (id, answer) in [(&old, "stored"), (&new, "duplicate")] {
        let signature_key = rig.fake.world().subscription(id).unwrap().signature_key.clone();
        let key = Key::from_hex(Some(id.clone()), &signature_key).unwrap();
        let event =
            json!({ "id": "ev_1", "date_updated": "2024-02-15T12:00:00", "object_type": "lead", "action": "created" });
        let body = json!({ "event": event, "subscription_id": id }).to_string();
        let (status, answered) = rig.daemon.send_signed(&key, body).await.unwrap();
        assert_eq!((status, answered["status"].as_str()), (200, Some(answer)), "{answered}");
    }
    until("the old subscription is deleted", async || {
        rig.fake.world().subscriptions().count() == 1
    })
    .await;
    assert_eq!(rig.only_subscription(), new);
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
async fn a_backfill_stores_what_is_missing_once_and_only_what_was_asked_for() {
    let mut rig = Rig::new(Settings::calm(), "", FILE_SINK).await;
    rig.fake.advance(30 * DAY).await;
    history(&rig, 1500, 20 * DAY);
    // Behind what the daemon compares by itself.
    rig.fake.advance(HOUR).await;
    rig.run().await;
    let types = "lead.updated";
    let of_type = rig.latest(|event| event == types);
    assert!(of_type.len() > 10);
    let since = "30d";
    let backfill = |more: &[&str]| {
        let mut arguments = vec!["backfill", "--since", since];
        arguments.extend(more);
        rig.daemon.lines(&arguments).pop().unwrap()
    };
    let plan = backfill(&["--dry-run", "--type", types]);
    assert_eq!(plan["counts"]["stored"], of_type.len(), "{plan}");
    assert_eq!(plan["counts"]["seen"], of_type.len(), "Close filters: {plan}");
    assert_eq!(plan["scope"], "*");
    assert!(rig.stored().is_empty(), "a dry run stores nothing");
    let done = backfill(&["--type", types]);
    assert_eq!(
        (done["state"].as_str(), &done["counts"]["stored"]),
        (Some("done"), &json!(of_type.len())),
        "{done}"
    );
    rig.holds_exactly(&of_type);

    let everything = rig.latest(|_| true);
    let done = backfill(&[]);
    assert_eq!(done["counts"]["stored"], everything.len() - of_type.len());
    assert_eq!(done["counts"]["known"], of_type.len());
    rig.holds_exactly(&everything);
    let again = backfill(&[]);
    assert_eq!(again["counts"]["stored"], 0, "{again}");
    assert_eq!(rig.stored().len(), everything.len());

    // In Close's order, byte for byte.
    let lines = rig.daemon.lines(&["events", "export"]);
    let updated = |line: &Value| {
        let (_, updated) = key(line["body"].as_str().unwrap());
        updated.parse::<jiff::civil::DateTime>().unwrap()
    };
    assert!(lines[of_type.len()..].is_sorted_by_key(updated));
    let body = lines[0]["body"].as_str().unwrap();
    let event = rig.fake.world().event_text(&key(body).0, 0).unwrap();
    assert_eq!(body, format!("{{\"event\":{event}}}"));
    let lead = lines.iter().find_map(|line| {
        let body: Value = serde_json::from_str(line["body"].as_str().unwrap()).unwrap();
        body["event"]["lead_id"].as_str().map(ToOwned::to_owned)
    });
    let of_lead = backfill(&["--lead", &lead.unwrap(), "--dry-run"]);
    assert!(
        of_lead["counts"]["known"].as_u64() > Some(0) && of_lead["counts"]["outside"] == 0,
        "{of_lead}"
    );
    rig.configure("", &rule(&["lead.*"], ""));
    assert!(rig.daemon.reload().await);
    let error = rig.daemon.fails(1, &["backfill", "--type", "comment.created"]);
    assert!(
        error.contains("no rule wants events of type comment.created"),
        "{error}"
    );
    assert!(
        rig.daemon
            .fails(2, &["backfill", "--since", "1h", "--until", "2h"])
            .contains("--since must be the earlier")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribing_and_backfilling_need_no_daemon_that_ran_before() {
    let mut rig = Rig::new(Settings::calm(), "", FILE_SINK).await;
    history(&rig, 30, DAY);
    let data = rig.daemon.data().to_owned();
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        std::os::unix::fs::chown(rig.daemon.dir.path(), Some(65534), Some(65534)).unwrap();
    }
    // Looking leaves nothing behind.
    rig.daemon.ok(&["subscription", "list"]);
    assert_eq!(
        rig.daemon.run_command(&["subscription", "plan"]).status.code(),
        Some(1),
        "there is something to do"
    );
    rig.daemon.ok(&["backfill", "--dry-run"]);
    assert!(!data.exists());

    rig.daemon.ok(&["subscription", "apply"]);
    rig.daemon.ok(&["subscription", "plan"]);
    rig.daemon.ok(&["backfill"]);
    assert_eq!(rig.daemon.lines(&["events", "list", "--limit", "100"]).len(), 30);
    let mut pending = vec![data.clone()];
    while let Some(path) = pending.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o077, 0, "{}", path.display());
        assert!(
            !is_root || (metadata.uid(), metadata.gid()) == (65534, 65534),
            "{}",
            path.display()
        );
        if metadata.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    rig.run().await;
    rig.happen(5, HOUR).await;
    let file = rig.daemon.path("events.jsonl");
    until("all are delivered, the webhook's too", async || {
        ids_in(&file).len() == 35
    })
    .await;

    // A directory that is something else is a mistake, and stays as it is.
    let other = Rig::new(Settings::calm(), "", "").await;
    std::fs::create_dir(other.daemon.data()).unwrap();
    std::fs::write(other.daemon.data().join("mine"), "").unwrap();
    for arguments in [&["subscription", "plan"][..], &["backfill", "--dry-run"]] {
        let said = other.daemon.fails(1, arguments);
        assert!(said.contains("is not a closehook data directory"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_limit_is_kept_and_a_killed_backfill_goes_on_by_itself() {
    let settings = Settings {
        rate_limit: 12,
        rate_window: Span(Duration::from_millis(500)),
        ..Settings::calm()
    };
    let mut rig = Rig::new(settings, "", FILE_SINK).await;
    rig.fake.advance(30 * DAY).await;
    history(&rig, 4000, 20 * DAY);
    rig.run().await;
    let begin = |rig: &Rig| {
        let mut command = rig.daemon.command();
        command.args(["backfill", "--since", "30d"]);
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut asked = begin(&rig);
    until("some is stored", async || {
        rig.daemon.status()["close"]["backfill"]["counts"]["stored"].as_u64() > Some(500)
    })
    .await;
    rig.daemon.kill();
    assert!(!asked.wait().unwrap().success());
    let refused = |rig: &Rig| {
        rig.fake
            .world()
            .requests()
            .filter(|request| request.status == 429)
            .count()
    };
    assert_eq!(refused(&rig), 0, "the limit is obeyed before it is hit");
    rig.run().await;
    until("it goes on", async || {
        !rig.daemon.status()["close"]["backfill"].is_null()
    })
    .await;
    until("it is done", async || {
        rig.daemon.status()["close"]["backfill"].is_null()
    })
    .await;
    rig.holds_exactly(&rig.latest(|_| true));
    let world = rig.fake.world();
    assert!(world.requests().count() > 80);
    drop(world);
    // What the killed one had used of its last window is not known to the next, which is told so once at the most.
    assert!(refused(&rig) <= 1, "the limit is obeyed before it is hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_a_backfill_is_interrupted_and_resumed() {
    let settings = Settings {
        rate_limit: 8,
        rate_window: Span(Duration::from_millis(500)),
        ..Settings::calm()
    };
    let mut rig = Rig::new(settings, "", "").await;
    rig.fake.advance(30 * DAY).await;
    history(&rig, 2500, 20 * DAY);
    rig.run().await;
    rig.daemon.stop().await;
    let mut command = rig.daemon.command();
    let mut asked = command
        .args(["backfill", "--since", "30d"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let state = rig.daemon.data().join("close/state.json");
    until("some is stored", async || {
        let state: Value = serde_json::from_slice(&std::fs::read(&state).unwrap_or_default()).unwrap_or_default();
        state["job"]["counts"]["stored"].as_u64() > Some(100)
    })
    .await;
    let interrupted = std::process::Command::new("kill")
        .args(["-INT", &asked.id().to_string()])
        .status()
        .unwrap();
    assert!(interrupted.success());
    assert_eq!(asked.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut asked.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("go on with: closehook backfill --resume"), "{said}");
    let before = rig.stored().len();
    assert!(before < rig.latest(|_| true).len());
    rig.set(|settings| settings.rate_limit = 1000);
    let done = rig.daemon.lines(&["backfill", "--resume"]).pop().unwrap();
    assert_eq!(done["state"], "done");
    assert!(
        done["counts"]["known"].as_u64().unwrap() <= 1500,
        "it did not begin anew: {done}"
    );
    rig.holds_exactly(&rig.latest(|_| true));
    assert!(
        rig.daemon
            .fails(1, &["backfill", "--resume"])
            .contains("no unfinished backfill")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_trouble_has_its_sentence_and_the_daemon_goes_on() {
    let rig = Rig::subscribed(Settings::calm(), "", FILE_SINK).await;
    let trouble = |rig: &Rig| rig.daemon.status()["close"]["trouble"].as_str().map(ToOwned::to_owned);
    until("all is well", async || {
        rig.daemon.status()["close"]["checked_at"].is_string() && trouble(&rig).is_none()
    })
    .await;
    for (state, sentence) in [
        (State::Revoked, "no longer accepts the credentials (401)"),
        (
            State::PaymentRequired,
            "plan of this organization does not include this (402",
        ),
        (State::Forbidden, "use the API key of an administrator"),
    ] {
        rig.fake.world().access.keys[0].state = state;
        until(sentence, async || {
            trouble(&rig).is_some_and(|text| text.contains(sentence))
        })
        .await;
        let error = rig.daemon.fails(1, &["subscription", "list"]);
        assert!(error.contains(sentence), "{error}");
        rig.fake.world().access.keys[0].state = State::Ok;
        until("all is well again", async || trouble(&rig).is_none()).await;
    }
    let list = "GET /api/v1/webhook/";
    for (fault, sentence) in [
        (
            Fault::new(Kind::Html),
            "not Close but something in front of it answered (502",
        ),
        (
            Fault::new(Kind::Html).status(403),
            "check [close] base_url and any proxy on the way",
        ),
        (Fault::new(Kind::Status).status(500), "Close has a problem (500)"),
        (Fault::new(Kind::Reset), "Close did not answer"),
        (Fault::new(Kind::Truncated), "Close's answer can't be read"),
    ] {
        rig.fake.world().faults.order(fault.on(list).times(1000)).unwrap();
        until(sentence, async || {
            trouble(&rig).is_some_and(|text| text.contains(sentence))
        })
        .await;
        rig.fake.world().faults = Faults::default();
        until("all is well again", async || trouble(&rig).is_none()).await;
    }
    // Each was said once, however often it was tried.
    assert_eq!(
        rig.daemon
            .stderr()
            .matches("use the API key of an administrator")
            .count(),
        1
    );
    let key = "closehook-test-key-that-nobody-knows";
    let wrong = format!(
        "[server]\npublic_url = \"{PUBLIC_URL}\"\n[close]\nbase_url = \"{}\"\napi_key = \"{key}\"\n",
        rig.fake.base_url()
    );
    let other = Daemon::new(&wrong);
    let error = other.fails(1, &["check", "--probe"]);
    let output = other.run_command(&["check", "--probe"]);
    let said = String::from_utf8(output.stdout).unwrap() + &error;
    assert!(
        said.contains("Close does not know the API key (401)") && !said.contains(key),
        "{said}"
    );
    assert!(rig.daemon.ok(&["check", "--probe"]).contains("Close answers for orga_"));
    // Field errors are Close's own words.
    let error = rig.daemon.fails(
        1,
        &["subscription", "create", "--url", "nonsense", "--event", "lead.created"],
    );
    assert!(error.contains("Close refuses the request (400): url: "), "{error}");
    assert!(
        rig.daemon
            .fails(1, &["subscription", "show", "whsub_nobody"])
            .contains("Close knows no whsub_nobody")
    );
    assert!(
        rig.daemon
            .fails(2, &["subscription", "create", "--event", "lead.*"])
            .contains("without *")
    );
    // Receiving never stopped.
    rig.happen(30, HOUR).await;
    until("events are stored", async || {
        rig.daemon.status()["log"]["last"].as_u64() > Some(0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_over_who_we_are_at_close() {
    let mut rig = Rig::new(Settings::calm(), "", "").await;
    let base_url = rig.fake.base_url();
    let key_file = rig.daemon.path("api.key");
    let with = |close: &str| configuration(&base_url, close, "");
    rig.daemon.configure(&with("local_key = true\n"));
    rig.daemon.run().await;
    let list = ["subscription", "list"];
    assert!(rig.daemon.fails(1, &list).contains("needs a key"));

    std::fs::write(&key_file, "api_nobody.knows").unwrap();
    rig.daemon
        .configure(&with("local_key = true\napi_key_file = \"DIR/api.key\"\n"));
    assert!(rig.daemon.reload().await);
    assert!(rig.daemon.fails(1, &list).contains("does not know the API key"));
    // The same file, with another key in it.
    std::fs::write(&key_file, rig.fake.api_key()).unwrap();
    assert!(rig.daemon.reload().await);
    rig.daemon.ok(&list);
    until("Close's side is looked after", async || {
        let close = &rig.daemon.status()["close"];
        close["checked_at"].is_string() && close["trouble"].is_null()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_cursor_and_a_429_cost_nothing() {
    let mut rig = Rig::new(Settings::calm(), "", FILE_SINK).await;
    rig.fake.advance(30 * DAY).await;
    history(&rig, 1500, 10 * DAY);
    rig.run().await;
    let limited = Fault::new(Kind::RateLimited).on("GET /api/v1/event/").times(2);
    let mut slow = Fault::new(Kind::Latency).on("GET /api/v1/event/").times(1000);
    slow.delay_ms = 20;
    rig.fake.world().faults.order(limited).unwrap();
    rig.fake.world().faults.order(slow).unwrap();
    let running = tokio::task::spawn_blocking({
        let mut command = rig.daemon.command();
        move || command.args(["backfill"]).output().unwrap()
    });
    let expired = |rig: &Rig| {
        rig.fake
            .world()
            .requests()
            .filter(|request| request.status == 400)
            .count()
    };
    until("cursors expire", async || {
        rig.fake.world().expire_cursors();
        expired(&rig) > 0
    })
    .await;
    let output = running.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    rig.holds_exactly(&rig.latest(|_| true));
    assert_eq!(
        rig.fake
            .world()
            .requests()
            .filter(|request| request.status == 429)
            .count(),
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_refresh_token_is_kept_and_a_revoked_one_is_said() {
    let fake = Fake::start(Options {
        settings: Settings::calm(),
        ..Options::default()
    })
    .await
    .unwrap();
    let grant = fake.world().access.grant.clone();
    let close = format!(
        "[close.oauth]\nclient_id = \"{}\"\nclient_secret = \"{}\"\nrefresh_token = \"{}\"\n",
        grant.client_id, grant.client_secret, grant.refresh_token
    );
    let mut daemon = Daemon::new(&configuration(&fake.base_url(), "", &close));
    daemon.run().await;
    let is_well = |daemon: &Daemon| {
        let close = &daemon.status()["close"];
        close["checked_at"].is_string() && close["trouble"].is_null()
    };
    until("Close is reached", async || is_well(&daemon)).await;
    for _ in 0..2 {
        let refreshes = fake.world().access.grant.refreshes;
        fake.world().access.expire_token();
        until("it is refreshed", async || {
            fake.world().access.grant.refreshes > refreshes
        })
        .await;
        let file = daemon.data().join("close/oauth.json");
        let current = fake.world().access.grant.refresh_token.clone();
        until("it is on disk", async || {
            std::fs::read_to_string(&file).unwrap().contains(&current)
        })
        .await;
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        // The configured token is long used up.
        daemon.kill();
        daemon.run().await;
        until("Close is reached", async || is_well(&daemon)).await;
    }
    assert!(!daemon.stderr().contains(&grant.client_secret));
    daemon.stop().await;
    // Commands without a daemon use and keep the same chain.
    daemon.ok(&["subscription", "list"]);
    daemon.ok(&["subscription", "list"]);
    fake.world().access.grant.refresh_token = "revoked elsewhere".into();
    fake.world().access.expire_token();
    let error = daemon.fails(1, &["subscription", "list"]);
    assert!(error.contains("authorize the app again"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_damage_takes_from_the_log_is_fetched_again() {
    let more = format!("[log]\nsegment_size = \"64 KiB\"\n{FILE_SINK}");
    let mut rig = Rig::subscribed(Settings::calm(), "", &more).await;
    rig.happen(600, 2 * DAY).await;
    rig.settled().await;
    let wanted = rig.latest(|_| true);
    let sealed = |rig: &Rig| {
        let segments = std::fs::read_dir(rig.daemon.data().join("log")).unwrap();
        let mut sealed: Vec<_> = segments
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.join("manifest").exists())
            .collect();
        sealed.sort();
        sealed
    };
    until("some segments are sealed", async || sealed(&rig).len() > 2).await;
    rig.daemon.stop().await;
    let before = rig.stored().len();
    std::fs::remove_dir_all(sealed(&rig)[1].join("sled")).unwrap();
    // The daemon finds the damage when it reads there, as a sink would that starts at the beginning.
    rig.run().await;
    until("the damage is known", async || {
        rig.daemon.lines(&["events", "list", "--limit", "100000"]);
        rig.daemon.status()["log"]["gaps"]
            .as_array()
            .is_some_and(|gaps| !gaps.is_empty())
    })
    .await;
    until("what was lost is back", async || {
        let stored = rig.stored();
        wanted.iter().all(|key| stored.contains_key(key))
    })
    .await;
    assert!(rig.stored().len() <= before, "nothing came twice");
    let held = rig.daemon.data().join("close/keys.json");
    // A keys file that can't be read keeps nobody from starting, and is left alone.
    rig.daemon.stop().await;
    std::fs::write(&held, "nonsense").unwrap();
    rig.run().await;
    assert!(rig.daemon.fails(1, &["subscription", "apply"]).contains("is damaged"));
    assert!(rig.daemon.ok(&["check"]).contains("is damaged"));
    assert_eq!(std::fs::read_to_string(&held).unwrap(), "nonsense");
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
