//! What the command of a replay says where it ends before the replay.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::harness::{Daemon, Receiver, until};

/// Watches a replay that waits: from when it says so.
fn watches(daemon: &Daemon, arguments: &[&str]) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut command = daemon.command();
    command.arg("replay").args(arguments);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    assert!(lines.any(|line| line.contains("the replay waits")), "it watches");
    (child, lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ends_before_its_replay_says_what_goes_on() {
    let receiver = Receiver::start(200).await;
    let sink = format!(
        "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\nstart = \"beginning\"\n",
        receiver.url
    );
    let mut daemon = Daemon::start(&sink).await;
    daemon.store(1..=3).await;
    until("all have arrived", async || receiver.count() == 3).await;
    daemon.ok(&["sinks", "pause", "crm"]);
    let newest = |daemon: &Daemon| daemon.lines(&["replay", "list"]).pop().unwrap();
    let told = |child: &Child, signal: &str| {
        let told = Command::new("kill").args([signal, &child.id().to_string()]).status();
        assert!(told.unwrap().success());
    };
    let (mut begun, said) = watches(&daemon, &["--sink", "crm", "--yes"]);
    told(&begun, "-TERM");
    let said: String = said.collect();
    assert_eq!(begun.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("stays, and the daemon goes on with it"), "{said}");
    let replay = newest(&daemon);
    assert_eq!(replay["state"], "running");
    let id = replay["id"].as_str().unwrap();
    assert!(said.contains(&format!("closehook replay --resume {id}")), "{said}");

    for (signal, state, says) in [
        ("-HUP", "running", "the daemon goes on with it"),
        (
            "-INT",
            "interrupted",
            "is stopped, go on with: closehook replay --resume",
        ),
    ] {
        let (mut watching, said) = watches(&daemon, &["--resume", id]);
        told(&watching, signal);
        let said: String = said.collect();
        assert_eq!(watching.wait().unwrap().code(), Some(1), "{said}");
        assert!(said.contains(says), "{signal}: {said}");
        assert_eq!(newest(&daemon)["state"], state);
    }

    // The daemon goes away, and comes again.
    let (mut watching, said) = watches(&daemon, &["--resume", id]);
    daemon.kill();
    let said: String = said.collect();
    assert_eq!(watching.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("goes on with the daemon"), "{said}");
    daemon.run().await;
    assert_eq!(newest(&daemon)["state"], "running");
    daemon.ok(&["sinks", "resume", "crm"]);
    until("it was sent", async || receiver.count() == 6).await;
    daemon.stop().await;
}
