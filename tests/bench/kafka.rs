//! A backlog to a Kafka broker, beside librdkafka's own producer (kcat) with the same acknowledgements: idempotent, all replicas.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kafka_server::Broker;
use crate::load::{Bodies, flood};
use crate::process::Daemon;
use crate::{CONNECTIONS, Must, Report, median_round, per_second};

/// Events waiting.
const WAITING: u64 = 60_000;

/// How often both take turns.
const ROUNDS: usize = 3;

/// Partitions of the topic.
const PARTITIONS: u32 = 3;

/// With and without transactions.
pub async fn sinks(dir: &Path, report: &mut Report) {
    if Command::new("kcat").arg("-V").output().is_err() {
        Report::note("kcat is not installed (Debian: kcat): the kafka sink is not measured");
        return;
    }
    std::fs::create_dir(dir).unwrap();
    let bodies = Arc::new(Bodies::new(7));
    let daemon = Daemon::start(dir, "");
    flood(daemon.address, &bodies, CONNECTIONS, WAITING).await;
    daemon.settle();
    daemon.kill();
    let lines = lines(dir);
    for (name, exact) in [("log to kafka", false), ("log to kafka, exactly once", true)] {
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            let Some(daemon) = to_sink(dir, &format!("kafka-{round}-{exact}"), exact).await else {
                return;
            };
            let peer = by_kcat(&lines).await;
            rounds.push((daemon, daemon / peer, peer));
        }
        let (rate, ratio, peer) = median_round(rounds);
        let peer = format!("kcat -P {}", per_second(peer));
        // What is committed with its mark has to be beside a producer that commits nothing.
        let must = if exact { 0.3 } else { 0.6 };
        report.line(name, &per_second(rate), &peer, ratio, Must::BeAtLeast(must));
    }
}

/// As many events as wait, each a line, with the headers that the sink sends told on the command line.
fn lines(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("events.txt");
    let bodies = Bodies::new(7);
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    for place in 0..WAITING {
        let body = String::from_utf8(bodies.fresh()).unwrap();
        writeln!(file, "lead_{}\t{}", place % 1000, body.replace(['\n', '\t'], " ")).unwrap();
    }
    path
}

async fn broker() -> Option<Broker> {
    let broker = Broker::start_direct().await?;
    broker.create("close", PARTITIONS);
    broker.create("closehook_mark", 1);
    Some(broker)
}

/// Events a second from the log into a topic, from the first that is there to the last.
async fn to_sink(dir: &Path, name: &str, exact: bool) -> Option<f64> {
    // Looking takes the broker's time.
    const LOOK: Duration = Duration::from_millis(50);
    let broker = broker().await?;
    let config = format!(
        "[[sinks]]\nname = \"{name}\"\nstart = \"beginning\"\ntype = \"kafka\"\nbrokers = [\"{}\"]\ntopic = \"close\"\nexactly_once = {exact}\n",
        broker.direct()
    );
    let daemon = Daemon::start_only(dir, &config);
    // The offsets of markers count, too; a mark tells when all is committed.
    let first = loop {
        match broker.written("close").await {
            0 => tokio::time::sleep(LOOK).await,
            first => break first,
        }
    };
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(300), "the sink does not get done");
        let is_done = if exact {
            let marks = broker.committed("closehook_mark").await;
            marks
                .last()
                .is_some_and(|mark| mark.value.contains(&format!("\"seq\":{WAITING},")))
        } else {
            broker.written("close").await >= WAITING
        };
        if is_done {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    let rate = (WAITING - first.min(WAITING)) as f64 / began.elapsed().as_secs_f64();
    drop(daemon);
    Some(rate)
}

/// The same by librdkafka, from a file.
async fn by_kcat(lines: &Path) -> f64 {
    let broker = broker().await.unwrap();
    let mut command = Command::new("kcat");
    command.args(["-P", "-q", "-b", &broker.direct(), "-t", "close", "-K", "\t", "-l"]);
    for header in [
        "seq=12345",
        "type=lead.updated",
        "event-id=ev_0123456789",
        "source=webhook",
    ] {
        command.args(["-H", &format!("closehook-{header}")]);
    }
    command.args(["-H", "closehook-key=ev_0123456789:2024-02-15T12:48:23.395000"]);
    command.args([
        "-H",
        "closehook-lead-id=lead_0123456789",
        "-H",
        "closehook-received-at=2024-02-15T12:48:23.395000Z",
    ]);
    command.args(["-X", "enable.idempotence=true", "-X", "acks=all", "-X", "linger.ms=5"]);
    let began = Instant::now();
    let done = command.arg(lines).stdin(Stdio::null()).status().unwrap();
    assert!(done.success());
    let rate = WAITING as f64 / began.elapsed().as_secs_f64();
    assert_eq!(broker.written("close").await, WAITING);
    rate
}
