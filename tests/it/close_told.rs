//! What is told of Close while it refuses, and of what is known of it where that is damaged: as it is now, and no less.

use std::io::BufRead;
use std::process::Stdio;

use fake_close::Settings;
use fake_close::fault::{Fault, Faults, Kind};
use serde_json::Value;

use crate::close::Rig;
use crate::harness::until;

/// Longer than any of these tests waits.
const LONG_MS: u64 = 600_000;

fn limited() -> Fault {
    let mut fault = Fault::new(Kind::RateLimited).times(1000);
    fault.reset_ms = LONG_MS;
    fault
}

fn signal(which: &str, process: u32) {
    let process = process.to_string();
    let sent = std::process::Command::new("kill").args([which, &process]).status();
    assert!(sent.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_refuses_is_told_as_an_answer_with_when_it_is_asked_again() {
    let mut rig = Rig::new(Settings::calm(), "", "").await;
    rig.fake.world().faults.order(limited()).unwrap();
    let hears = |rig: &Rig, command: &[&str]| {
        let mut child = rig
            .daemon
            .command()
            .args(command)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        for line in lines {
            said.push(line.unwrap());
            if said.last().unwrap().contains("has answered 429") {
                break;
            }
        }
        // Its own end would come minutes later, without that line.
        assert!(child.try_wait().unwrap().is_none(), "{command:?}: {said:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            said.last().unwrap().contains("is made again at"),
            "{command:?}: {said:?}"
        );
        assert!(!said.concat().contains("not answered yet"), "{command:?}: {said:?}");
    };
    for command in [
        &["subscription", "list"][..],
        &["backfill", "--since", "1d", "--dry-run"],
        &["check", "--probe"],
    ] {
        hears(&rig, command);
    }
    // The same through a daemon, whose status says it too.
    rig.run().await;
    until("the status says it", async || {
        let set_back = &rig.daemon.status()["close"]["set_back"];
        let said = set_back["said"].as_str().unwrap_or_default();
        said.contains("has answered 429") && set_back["again_at"].is_string()
    })
    .await;
    let shown = rig.daemon.ok(&["status"]);
    assert!(shown.contains("Close has answered 429"), "{shown}");
    hears(&rig, &["subscription", "list"]);
    rig.daemon.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_that_its_command_leaves_behind_is_said_and_why_it_waits_is_of_now() {
    let mut rig = Rig::new(Settings::calm(), "", "").await;
    let order = |rig: &Rig, fault: Fault| {
        let mut world = rig.fake.world();
        world.faults = Faults::default();
        world.faults.order(fault).unwrap();
    };
    let refused = |status: u16, on: &str| Fault::new(Kind::Status).status(status).on(on).times(1000);
    // The world of the fake begins thirty days ago.
    let begin = ["backfill", "--since", "31d"];
    order(&rig, refused(401, "GET /api/v1/me/"));
    let said = rig.daemon.fails(1, &begin);
    assert!(
        said.contains("(401)") && !said.contains("backfill is under way"),
        "nothing was begun: {said}"
    );
    order(&rig, refused(403, "GET /api/v1/event/"));
    let said = rig.daemon.fails(1, &begin);
    assert!(
        said.contains("(403") && said.contains("stays, and a daemon that is started goes on with it"),
        "{said}"
    );

    // So it does, and is refused as well.
    let job = |rig: &Rig| rig.daemon.status()["close"]["backfill"].clone();
    rig.run().await;
    until("the daemon is refused", async || job(&rig)["trouble"].is_string()).await;
    let mut watching = rig
        .daemon
        .command()
        .args(["backfill", "--resume"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(watching.stderr.take().unwrap()).lines();
    let waits = lines.find(|line| line.as_ref().unwrap().contains("the backfill waits"));
    assert!(waits.is_some(), "it watches");
    signal("-TERM", watching.id());
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(watching.wait().unwrap().code(), Some(1), "{said:?}");
    let said = said.concat();
    assert!(said.contains("stays, and the daemon goes on with it"), "{said}");

    // What is refused is told without the one that is left.
    let said = rig.daemon.fails(1, &["backfill", "--since", "3d"]);
    assert!(
        said.contains("nothing lies between") && !said.contains("the backfill begun at"),
        "{said}"
    );

    // In its next life Close says something else, and it takes long.
    rig.daemon.kill();
    order(&rig, limited());
    rig.run().await;
    let mut shown = Value::Null;
    until("the old reason is told as one", async || {
        shown = job(&rig);
        let earlier = shown["earlier_trouble"].as_str().unwrap_or_default();
        earlier.contains("(403")
    })
    .await;
    assert_eq!(shown["trouble"], Value::Null, "{shown}");
    let status = rig.daemon.status();
    let troubles = status["troubles"].to_string();
    assert!(!troubles.contains("the backfill does not get on"), "{troubles}");
    rig.daemon.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_whose_command_ends_before_it_is_begun_is_not_said_to_be_none() {
    let mut rig = Rig::new(Settings::calm(), "", "").await;
    rig.fake.world().faults.order(limited()).unwrap();
    for has_daemon in [false, true] {
        if has_daemon {
            rig.run().await;
        }
        let mut command = rig.daemon.command();
        command.args(["backfill", "--since", "1d"]);
        let mut asking = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = std::io::BufReader::new(asking.stderr.take().unwrap()).lines();
        let waits = lines.find(|line| line.as_ref().unwrap().contains("has answered 429"));
        assert!(waits.is_some(), "it waits for Close");
        signal("-TERM", asking.id());
        let said: Vec<String> = lines.map(Result::unwrap).collect();
        assert_eq!(asking.wait().unwrap().code(), Some(1), "{said:?}");
        let said = said.concat();
        assert!(said.contains("interrupted: it may still be begun"), "{said}");
        assert!(!said.contains("before it was begun"), "{said}");
    }
    rig.daemon.kill();
}

/// So `nohup` begins one.
#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_whose_command_is_to_outlive_its_terminal_does() {
    let mut rig = Rig::new(Settings::calm(), "", "").await;
    rig.run().await;
    let refused = Fault::new(Kind::Status).status(403).on("GET /api/v1/event/");
    rig.fake.world().faults.order(refused.times(1000)).unwrap();
    let command = rig.daemon.command();
    let variables = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let mut backfill = std::process::Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args())
        .args(["backfill", "--since", "31d"])
        .env_remove("CLOSEHOOK_CONFIG")
        .envs(variables)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(backfill.stderr.take().unwrap()).lines();
    let waits = lines.find(|line| line.as_ref().unwrap().contains("the backfill waits"));
    assert!(waits.is_some(), "it watches");
    signal("-HUP", backfill.id());
    rig.fake.world().faults = Faults::default();
    // Whether or not the daemon has tried it again by itself.
    rig.daemon.run_command(&["backfill", "--resume"]);
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(backfill.wait().unwrap().code(), Some(0), "{said:?}");
    rig.daemon.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_can_not_be_read_are_a_trouble_whatever_other_keys_there_are() {
    let mut rig = Rig::new(Settings::calm(), "local_key = true", "").await;
    let keys = rig.daemon.data().join("close/keys.json");
    std::fs::create_dir_all(keys.parent().unwrap()).unwrap();
    std::fs::write(&keys, "nonsense").unwrap();
    rig.run().await;
    let status = rig.daemon.status();
    assert_eq!(status["keys"], 1, "that for trying out");
    let said = |status: &Value, file: &str| {
        let troubles = status["troubles"].as_array().unwrap();
        troubles.iter().any(|one| one["what"].as_str().unwrap().contains(file))
    };
    assert!(said(&status, "close/keys.json is damaged"), "{status}");
    assert!(
        said(&status, "only what keys of the configuration sign is taken"),
        "{status}"
    );
    assert_eq!(status["well"], false);
    // It is not known before a restart.
    std::fs::remove_file(&keys).unwrap();
    assert!(said(&rig.daemon.status(), "close/keys.json is damaged"));
    rig.daemon.stop().await;
    rig.run().await;
    assert!(!said(&rig.daemon.status(), "keys.json"));
    // What lies there now is lost with the next start.
    let token = rig.daemon.data().join("close/oauth.json");
    std::fs::write(token, "{").unwrap();
    assert!(said(&rig.daemon.status(), "close/oauth.json is damaged"));
}
