//! Fetching what is missing: what was asked for, once, within the rate limit, and on from where it stood.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use fake_close::fault::{Fault, Kind};
use fake_close::{Settings, Span};
use serde_json::{Value, json};

use crate::close::{FILE_SINK, Rig, history, key, rule};
use crate::harness::{ids_in, until};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

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
    // A sink that begins "now" has what is fetched before a daemon ever ran.
    let sink = FILE_SINK.replace("start = \"beginning\"\n", "");
    let mut rig = Rig::new(Settings::calm(), "", &sink).await;
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
