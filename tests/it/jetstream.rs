//! The log on servers of NATS, as people set it up: by the built binary.

use crate::harness::Daemon;
use crate::jetstream_cluster::{Cluster, Setup};

fn config(cluster: &Cluster) -> String {
    format!(
        "[log]\nengine = \"jetstream\"\n[log.jetstream]\nservers = {:?}\nmonitor = {:?}\nsecret = \"x\"\n",
        cluster.urls(),
        cluster.monitors()
    )
}

fn said(daemon: &Daemon, arguments: &[&str]) -> (Option<i32>, String) {
    let output = daemon.run_command(arguments);
    let both = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(both).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn check_makes_the_streams_and_says_what_weakens_a_promise() {
    let Some(cluster) = Cluster::start().await else { return };
    let daemon = Daemon::new(&config(&cluster));
    let (code, text) = said(&daemon, &["check", "--probe"]);
    assert!(
        code == Some(1) && text.contains("FAILED: there is no") && text.contains("`closehook check --create`"),
        "{text}"
    );
    let (code, text) = said(&daemon, &["check", "--create", "--probe"]);
    assert_eq!(code, Some(0), "{text}");
    for line in [
        "made the stream closehook",
        "made the stream closehook_parts",
        "log closehook: its servers keep",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let (code, text) = said(&daemon, &["check", "--create", "--json"]);
    assert!(code == Some(0) && text.contains("\"made\":[]"), "{text}");

    let setup = Setup {
        syncs_always: false,
        ..Setup::default()
    };
    let Some(lazy) = Cluster::start_with(setup).await else {
        return;
    };
    let daemon = Daemon::new(&config(&lazy));
    let (code, text) = said(&daemon, &["check", "--create", "--probe"]);
    assert!(code == Some(1) && text.contains("log closehook: FAILED: "), "{text}");
    assert_eq!(text.matches("sync_interval: always").count(), 3, "{text}");
}

#[test]
fn there_is_nothing_to_make_where_this_machine_keeps_the_log() {
    let daemon = Daemon::new("");
    let (code, text) = said(&daemon, &["check", "--create"]);
    assert!(code == Some(2) && text.contains("there is nothing to make"), "{text}");
}
