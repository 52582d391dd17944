//! Contract, section 1: `status` says on one screen whether it is well, and if not what to do.

use closehook::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};
use fake_close::{Role, Settings};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::close::Rig;
use crate::harness::{Daemon, KEY, Receiver, body, until};

/// The screen, and the exit code.
fn screen(daemon: &Daemon) -> (Option<i32>, String) {
    let output = daemon.run_command(&["status"]);
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// What is wrong and what to do, each trouble in a line.
fn troubles(daemon: &Daemon) -> Vec<String> {
    let status = daemon.status();
    let troubles = status["troubles"].as_array().unwrap();
    let line = |trouble: &Value| {
        format!(
            "{} -> {}",
            trouble["what"].as_str().unwrap(),
            trouble["do"].as_str().unwrap()
        )
    };
    troubles.iter().map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_fails_where_no_daemon_runs_and_where_events_cannot_be_stored_and_only_there() {
    let receiver = Receiver::start(400).await;
    let sink = format!(
        "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\n",
        receiver.url
    );
    let mut daemon = Daemon::start("").await;
    let (code, said) = screen(&daemon);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.lines().next().unwrap().ends_with("is well"), "{said}");
    assert!(said.contains("last delivery: none yet"), "{said}");
    assert_eq!(
        (daemon.status()["well"].clone(), troubles(&daemon).len()),
        (json!(true), 0)
    );

    // Dead letters and what lags are named, and do not count.
    daemon.configure(&sink);
    daemon.ok(&["reload"]);
    daemon.store(1..=2).await;
    until("both are dead letters", async || daemon.sink("crm")["dead"] == 2).await;
    daemon.ok(&["sinks", "pause", "crm"]);
    daemon.store(3..=3).await;
    let (code, said) = screen(&daemon);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("things ask for attention"), "{said}");
    assert!(
        said.contains("! sink crm has 2 dead letters\n  -> `closehook dead list --sink crm`"),
        "{said}"
    );
    assert!(
        said.contains("! sink crm is paused") && said.contains("`closehook sinks resume crm`"),
        "{said}"
    );
    assert!(
        said.find("! sink crm").unwrap() < said.find("daemon ").unwrap(),
        "trouble first: {said}"
    );

    daemon.stop().await;
    let (code, said) = screen(&daemon);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.lines().next().unwrap().ends_with("is NOT RUNNING"), "{said}");
    assert!(said.contains("-> start `closehook serve`"), "{said}");
    assert_eq!(daemon.run_command(&["status", "--json"]).status.code(), Some(1));

    daemon.configure("[log]\nreserve = \"1000000 GiB\"\n");
    daemon.run().await;
    assert_eq!(daemon.send(body(4)).await.unwrap().0, 503);
    until("it says so", async || daemon.status()["ready"] == false).await;
    let (code, said) = screen(&daemon);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is NOT READY: the disk is full"), "{said}");
    assert!(troubles(&daemon)[0].contains("make room"), "{said}");
}

/// Whenever retention looked last: a journal makes room ahead with its first event.
#[tokio::test(flavor = "multi_thread")]
async fn the_data_directory_takes_no_less_than_the_log_in_it() {
    let daemon = Daemon::start("").await;
    daemon.store(1..=1).await;
    let status = daemon.status();
    let (all, log) = (&status["retention"]["used_bytes"], &status["log"]["disk_bytes"]);
    assert!(all.as_u64().unwrap() >= log.as_u64().unwrap(), "{all} < {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_and_what_was_refused_is_told_by_reason() {
    let mut daemon = Daemon::start("").await;
    let before = Timestamp::now();
    daemon.store(1..=3).await;
    assert_eq!(daemon.send(body(1)).await.unwrap().1["status"], "duplicate");
    for _ in 0..3 {
        // The same body is answered the same, and is one.
        assert_eq!(daemon.send("no json").await.unwrap().1["status"], "quarantined");
    }
    let key = Key::from_hex(None, KEY).unwrap();
    let post = async |headers: Vec<(&str, String)>| {
        let mut request = daemon.client.post(&daemon.url).body(body(9));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.send().await.unwrap().status().as_u16()
    };
    let signed = |at: Timestamp| {
        let headers = key.sign(at, body(9).as_bytes());
        vec![(TIMESTAMP_HEADER, headers.timestamp), (HASH_HEADER, headers.hash)]
    };
    assert_eq!(post(Vec::new()).await, 401);
    let mut forged = signed(before);
    forged[1].1 = "0".repeat(64);
    assert_eq!(post(forged).await, 401);
    assert_eq!(post(signed(before + SignedDuration::from_mins(20))).await, 401);
    assert_eq!(post(signed(before - SignedDuration::from_hours(100))).await, 401);
    assert_eq!(post(signed(before - SignedDuration::from_hours(100))).await, 401);

    let status = daemon.status();
    let received = &status["received"];
    assert_eq!(
        (&received["stored"], &received["duplicate"], &received["quarantined"]),
        (&json!(3), &json!(3), &json!(1))
    );
    assert_eq!(
        received["refused"],
        json!({ "missing": 1, "bad_signature": 1, "stale": 2, "future": 1 })
    );
    let last: Timestamp = status["last_delivery_at"].as_str().unwrap().parse().unwrap();
    assert!(
        last <= Timestamp::now() && before.duration_since(last).as_secs() < 1,
        "{last}"
    );
    let off = |name: &str| {
        received["clocks"]["last"][name]
            .as_str()
            .unwrap()
            .parse::<Timestamp>()
            .unwrap()
    };
    let hours = off("signed_at").duration_since(off("received_at")).as_hours();
    assert!((-101..=-99).contains(&hours), "Close's time beside ours: {status}");

    let said = daemon.ok(&["status"]);
    assert!(
        said.contains(
            "3 stored, 3 known already, 1 in quarantine, 5 refused (1 bad signature, 1 future, 1 missing, 2 stale)"
        ),
        "{said}"
    );
    let line = said.lines().find_map(|line| line.split_once("last delivery: "));
    let (_, ago) = line.unwrap_or_else(|| panic!("{said}"));
    let ago = ago.trim_end();
    assert!(ago.ends_with(" s ago") || ago.ends_with("just now"), "{said}");
    let troubles = troubles(&daemon);
    let one = |what: &str| {
        troubles
            .iter()
            .find(|trouble| trouble.contains(what))
            .unwrap_or_else(|| panic!("{what}: {troubles:?}"))
    };
    let clock = one(
        "3 authentic deliveries were refused in the last hour for the time of signing alone, 2 as too old and 1 as from the future",
    );
    assert!(clock.contains(" -> set this machine's clock"), "{clock}");
    assert!(one("no known key signed it").contains("closehook subscription list"));
    assert!(one("1 body was put into quarantine").contains("closehook events list --quarantined"));

    // The last delivery is known after a restart; the counts begin anew, and say so.
    daemon.stop().await;
    assert_eq!(daemon.status()["received"], Value::Null);
    daemon.run().await;
    let status = daemon.status();
    assert_eq!(
        (&status["received"]["stored"], &status["received"]["refused"]),
        (&json!(0), &json!({}))
    );
    let again: Timestamp = status["last_delivery_at"].as_str().unwrap().parse().unwrap();
    assert!(again.duration_since(last).as_secs() == 0, "{again} {last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn close_s_own_view_of_a_subscription_is_shown() {
    let mut rig = Rig::subscribed(Settings::calm(), "", "").await;
    let id = rig.only_subscription();
    until("it is seen", async || rig.state(&id).as_deref() == Some("active")).await;
    let found = |rig: &Rig| {
        let status = rig.daemon.status();
        let mut found = status["close"]["subscriptions"].as_array().unwrap().clone();
        found.pop().unwrap()
    };
    assert!(found(&rig)["counters"]["delivered"].is_u64(), "{}", found(&rig));
    let said = rig.daemon.ok(&["status"]);
    assert!(
        said.contains(&format!("{id} active")) && said.contains("Close counts: delivered "),
        "{said}"
    );
    assert!(said.contains("clock      "), "{said}");

    rig.fake.world().pause(&id);
    rig.daemon.ok(&["subscription", "pause", &id]);
    until("it is seen", async || {
        rig.state(&id).as_deref() == Some("paused-by-hand")
    })
    .await;
    let resume = format!("`closehook subscription resume {id}`");
    assert!(troubles(&rig.daemon).iter().any(|trouble| trouble.contains(&resume)));
    rig.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_wait_for_their_data_are_counted() {
    let mut rig = Rig::new(Settings::calm(), "", "").await;
    let user = rig.fake.world().access.add(None, Role::User).unwrap().key.clone();
    let day = std::time::Duration::from_secs(86_400);
    rig.fake.advance(30 * day).await;
    let now = rig.fake.world().now();
    rig.fake.world().generate(20, now, day).unwrap();
    rig.fake.advance(2 * day).await;
    let admin = rig.fake.api_key();
    let config = std::fs::read_to_string(rig.daemon.config()).unwrap();
    let file = rig.daemon.config();
    let with = |key: &str| std::fs::write(&file, config.replace(&admin, key)).unwrap();
    with(&user);
    rig.run().await;
    let done = rig.daemon.lines(&["backfill", "--since", "30d"]).pop().unwrap();
    let held = done["counts"]["partial"].as_u64().unwrap();
    assert!(held > 0, "{done}");
    let status = rig.daemon.status();
    assert_eq!(
        (
            &status["close"]["held"]["events"],
            &status["close"]["held"]["is_counted"]
        ),
        (&json!(held), &json!(true)),
        "{}",
        status["close"]["held"]
    );
    let said = rig.daemon.ok(&["status"]);
    assert!(said.contains(&format!("the data of {held} event(s)")), "{said}");
    assert!(
        troubles(&rig.daemon)
            .iter()
            .any(|trouble| trouble.contains("administrator"))
    );
    // When the full ones have come nothing is held any more.
    with(&admin);
    rig.daemon.ok(&["reload"]);
    rig.daemon.ok(&["backfill", "--since", "30d"]);
    assert_eq!(rig.daemon.status()["close"]["held"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn colour_is_for_a_terminal_that_wants_it() {
    let daemon = Daemon::start("").await;
    assert!(!daemon.ok(&["status"]).contains('\u{1b}'), "into a pipe");
    // `script` (bsdutils) gives it a terminal of its own.
    let on_terminal = |name: &str, value: &str| {
        let config = daemon.config().display().to_string();
        let line = format!("{} -c {config} status", crate::harness::binary());
        let output = std::process::Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env("CLOSEHOOK__LOG__DIR", daemon.data())
            .env_remove("CLOSEHOOK_CONFIG")
            .env_remove("NO_COLOR")
            .env("TERM", "xterm")
            .env(name, value)
            .stdin(std::process::Stdio::null())
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let said = on_terminal("LANG", "C");
    assert!(said.contains("\u{1b}[1;32mclosehook"), "{said:?}");
    let said = on_terminal("NO_COLOR", "1");
    assert!(said.contains("is well") && !said.contains('\u{1b}'), "{said:?}");
}

/// A cleaner of old files takes the socket away: the daemon makes it again, and until then nobody says that it does not run.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_somebody_has_removed_is_made_again_and_the_daemon_is_never_called_not_running() {
    let mut daemon = Daemon::start("").await;
    daemon.store(1..=1).await;
    let socket = daemon.data().join("closehook.sock");
    for round in 0..3 {
        std::fs::remove_file(&socket).unwrap();
        if round == 1 {
            std::fs::write(&socket, "something else").unwrap();
        }
        // At once: it waits for the socket to come back.
        let (code, said) = screen(&daemon);
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains("NOT RUNNING"), "{said}");
        until("the socket is there again", async || {
            use std::os::unix::fs::FileTypeExt;
            std::fs::symlink_metadata(&socket).is_ok_and(|metadata| metadata.file_type().is_socket())
        })
        .await;
        assert_eq!(daemon.lines(&["events", "list"]).len(), 1);
    }
    assert!(
        daemon.stderr().contains("closehook.sock"),
        "it is said: {}",
        daemon.stderr()
    );
    daemon.stop().await;
    assert!(!socket.exists(), "and taken away at the end");
    let (_, said) = screen(&daemon);
    assert!(said.lines().next().unwrap().ends_with("is NOT RUNNING"), "{said}");
}

/// Where it can't make the socket again, the lock still tells that it runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_can_not_be_asked_is_told_from_none() {
    let mut daemon = Daemon::start("").await;
    daemon.store(1..=1).await;
    let (socket, pid) = (daemon.data().join("closehook.sock"), daemon.pid());
    // It is stopped, and so makes nothing.
    daemon.signal(libc::SIGSTOP);
    std::fs::remove_file(&socket).unwrap();
    let (code, said) = screen(&daemon);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        !said.contains("NOT RUNNING") && !said.contains("no daemon is running"),
        "{said}"
    );
    assert!(
        said.contains(&format!("process {pid}")) && said.contains("closehook.sock"),
        "{said}"
    );
    assert_eq!(daemon.lines(&["events", "list"]).len(), 1, "what can be read is");
    daemon.signal(libc::SIGCONT);
    until("it is found again", async || screen(&daemon).0 == Some(0)).await;
    daemon.stop().await;
}
