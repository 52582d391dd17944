//! What a daemon holds whose sinks, one of each type, are all a million events behind: receivers that take a connection and say
//! nothing, and those that take a little at a time.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::load::{Bodies, flood};
use crate::process::Daemon;
use crate::{CONNECTIONS, KEPT, Must, Report};

/// So long they are driven: reading ahead, filling, trying, giving up and trying again.
const WHILE: Duration = Duration::from_secs(45);

/// Somebody who takes every connection and says nothing on it.
fn mute() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            open.push(stream);
        }
    });
    address
}

/// One of each type that this build has, beside `stdout`, whose reader is the bench. `dir` is for what is written.
fn sinks(dir: &Path, mute: SocketAddr) -> String {
    let dir = dir.display();
    let aws = format!(
        "region = \"eu-central-1\"\nendpoint = \"http://{mute}\"\naccess_key_id = \"AKIAIOSFODNN7EXAMPLE\"\nsecret_access_key = \"x\"\n"
    );
    let tables = [
        ("file", format!("path = \"{dir}/lagging.jsonl\"\nrate = \"10/s\"\n")),
        ("http", format!("url = \"http://{mute}/\"\nallow_private = true\n")),
        ("exec", "command = [\"sleep\", \"600\"]\n".to_owned()),
        (
            "slack",
            format!("token = \"xoxb-1\"\nchannel = \"C1\"\napi_url = \"http://{mute}/\"\nallow_private = true\n"),
        ),
        (
            "email",
            format!(
                "server = \"smtp://{mute}\"\ninsecure = true\nfrom = \"a@example.com\"\nto = [\"b@example.com\"]\n"
            ),
        ),
        (
            "postgres",
            format!("url = \"postgres://closehook@{mute}/crm?sslmode=disable\"\n"),
        ),
        ("sqlite", format!("path = \"{dir}/lagging.db\"\nrate = \"10/s\"\n")),
        ("s3", format!("bucket = \"events\"\n{aws}")),
        ("sqs", format!("queue = \"http://{mute}/1/events\"\n{aws}")),
        ("sns", format!("topic = \"arn:aws:sns:eu-central-1:1:events\"\n{aws}")),
        ("eventbridge", aws.clone()),
        ("kinesis", format!("stream = \"events\"\n{aws}")),
        (
            "pubsub",
            format!("topic = \"projects/acme/topics/close\"\nendpoint = \"http://{mute}\"\n"),
        ),
        ("nats", format!("servers = [\"nats://{mute}\"]\nsubject = \"events\"\n")),
        ("redis", format!("url = \"redis://{mute}\"\nstream = \"events\"\n")),
        (
            "amqp",
            format!("url = \"amqp://{mute}\"\nexchange = \"\"\nrouting_key = \"events\"\n"),
        ),
        ("kafka", format!("brokers = [\"{mute}\"]\ntopic = \"events\"\n")),
    ];
    let is_here = |name: &str| {
        closehook::sinks::REGISTRY
            .iter()
            .any(|kind| kind.name == name && kind.parse.is_some())
    };
    let tables = tables.into_iter().filter(|(name, _)| is_here(name));
    let tables: Vec<String> = tables
        .map(|(name, own)| format!("[[sinks]]\nname = \"{name}\"\ntype = \"{name}\"\nstart = \"beginning\"\n{own}"))
        .collect();
    tables.concat()
}

/// On a log of its own.
pub async fn memory(dir: &Path, report: &mut Report) {
    std::fs::create_dir(dir).unwrap();
    let daemon = Daemon::start(dir, "[log]\nretention = \"30d\"\n");
    flood(daemon.address, &Arc::new(Bodies::new(9)), CONNECTIONS, KEPT).await;
    daemon.settle();
    daemon.kill();
    let config = format!("[log]\nretention = \"30d\"\n{}", sinks(dir, mute()));
    let daemon = Daemon::start(dir, &config);
    std::thread::sleep(WHILE);
    let status = daemon.status();
    let sinks = status["sinks"].as_array().unwrap();
    for sink in sinks {
        let lag = sink["lag_events"].as_u64().unwrap();
        assert!(lag >= 900_000, "{} is only {lag} behind", sink["name"]);
    }
    let (_, peak) = daemon.memory();
    report.line(
        "memory, every sink a million behind",
        &format!("{peak:.0} MiB"),
        &format!("{} sinks", sinks.len()),
        peak,
        Must::BeAtMost(150.0),
    );
}
