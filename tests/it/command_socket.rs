//! The socket by which commands reach the daemon: whoever says nothing there is in no operator's way.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use tokio::io::AsyncReadExt;

use crate::harness::{Daemon, until};

/// As many as are served at a time.
const PLACES: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_say_nothing_lock_nobody_out() {
    let daemon = Daemon::start("").await;
    let path = daemon.data().join("closehook.sock");
    // Twice as many as there are places; every other one begins to say something.
    let mut silent = Vec::new();
    for number in 0..2 * PLACES {
        let mut client = UnixStream::connect(&path).unwrap();
        if number % 2 == 0 {
            client.write_all(b"{\"sta").unwrap();
        }
        silent.push(client);
    }
    assert_eq!(daemon.status()["daemon"]["running"], true);
    daemon.ok(&["sinks", "list"]);
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_is_let_go() {
    let daemon = Daemon::start("").await;
    let path = daemon.data().join("closehook.sock");
    let mut silent = tokio::net::UnixStream::connect(&path).await.unwrap();
    let mut said = Vec::new();
    let read = tokio::time::timeout(std::time::Duration::from_secs(60), silent.read_to_end(&mut said));
    read.await.expect("it is let go").unwrap();
    assert!(said.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_every_place_is_taken_a_command_is_told_so() {
    let daemon = Daemon::start("").await;
    let path = daemon.data().join("closehook.sock");
    // Whoever follows is answered until it goes.
    let follow = closehook::control::Request::from(closehook::control::events::List {
        pick: closehook::control::Pick::default(),
        limit: None,
        last: false,
        follow: true,
        from: None,
    });
    let follow = serde_json::to_string(&follow).unwrap() + "\n";
    let mut following = Vec::new();
    for _ in 0..PLACES {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(follow.as_bytes()).unwrap();
        // It is at work for this one.
        let mut said = String::new();
        let mut lines = BufReader::new(client);
        lines.read_line(&mut said).unwrap();
        assert_eq!(said, "{\"alive\":true}\n");
        following.push(lines);
    }
    let said = daemon.fails(1, &["status"]);
    assert!(said.contains("64 other commands"), "{said}");
    following.pop();
    until("a place is free", async || {
        daemon.run_command(&["status"]).status.success()
    })
    .await;
}
