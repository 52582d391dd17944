//! The socket by which commands reach the daemon: whoever says nothing there is in no operator's way.

use std::io::{BufRead, BufReader, Read, Write};
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

/// As Ctrl-Z, or a pager, leaves them.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_have_stopped_reading_lock_nobody_out() {
    let daemon = Daemon::start("").await;
    // Far more than a socket holds that nobody reads.
    let long = "x".repeat(256 << 10);
    for id in 1..=4 {
        let body = format!(
            "{{\"event\": {{\"id\": \"ev_{id}\", \"date_updated\": \"2024-02-15T12:48:23\", \"long\": \"{long}\"}}}}"
        );
        assert_eq!(daemon.send(body).await.unwrap().0, 200);
    }
    let export = closehook::control::Request::from(closehook::control::transfer::Export {
        pick: closehook::control::Pick::default(),
        limit: None,
    });
    let export = serde_json::to_string(&export).unwrap() + "\n";
    let mut stopped = Vec::new();
    for _ in 0..PLACES {
        let mut client = UnixStream::connect(daemon.data().join("closehook.sock")).unwrap();
        client.write_all(export.as_bytes()).unwrap();
        let mut said = [0; 15];
        client.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"{\"alive\":true}\n");
        stopped.push(client);
    }
    assert_eq!(daemon.status()["daemon"]["running"], true);
    daemon.ok(&["sinks", "list"]);
    // Whoever goes on reading has what was asked, where nobody wanted the place.
    let mut whole = 0;
    for client in &mut stopped {
        let mut said = String::new();
        let _ = client.read_to_string(&mut said);
        whole += usize::from(said.ends_with("{\"done\":true}\n"));
    }
    assert!(whole >= PLACES - 4, "{whole} were let read on");
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
