//! Every figure the project claims, beside its peer or its limit, measured in one run on the release binary.
//! `tests/bench/run.sh` builds and runs it; `--check` makes a figure that falls short an error, names choose figures.
//! `--send ADDRESS EVENTS [RATE]` only sends to a daemon that knows [`load::KEY`], for profiling it.
//!
//! The sender runs on the same cores as what it measures, so ratios say more than rates.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::float_cmp
)]

#[cfg(all(feature = "sink-amqp", feature = "sink-postgres", feature = "sink-sqlite"))]
mod amqp;
#[cfg(feature = "engine-jetstream")]
mod jetstream;
#[cfg(feature = "engine-jetstream")]
#[path = "../it/jetstream_cluster.rs"]
mod jetstream_cluster;
#[cfg(feature = "sink-kafka")]
mod kafka;
#[cfg(feature = "sink-kafka")]
#[path = "../it/kafka_line.rs"]
mod kafka_line;
#[cfg(feature = "sink-kafka")]
#[path = "../it/kafka_server.rs"]
mod kafka_server;
#[cfg(feature = "sink-kafka")]
mod lagging;
mod load;
#[cfg(all(feature = "sink-nats", feature = "sink-postgres", feature = "sink-sqlite"))]
mod nats;
#[cfg(all(feature = "sink-nats", feature = "sink-postgres", feature = "sink-sqlite"))]
#[path = "../it/nats_server.rs"]
mod nats_server;
#[cfg(any(
    feature = "sink-amqp",
    feature = "sink-kafka",
    feature = "sink-nats",
    feature = "sink-redis"
))]
#[path = "../it/ports.rs"]
mod ports;
#[cfg(feature = "sink-postgres")]
#[path = "../it/postgres_server.rs"]
mod postgres_server;
mod process;
#[cfg(feature = "sink-amqp")]
#[path = "../it/rabbit_server.rs"]
mod rabbit_server;
#[cfg(feature = "sink-redis")]
#[path = "redis.rs"]
mod redis_figures;
#[cfg(feature = "sink-redis")]
#[path = "../it/redis_server.rs"]
mod redis_server;
#[cfg(all(feature = "sink-postgres", feature = "sink-sqlite"))]
mod sql;

use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use load::{Bodies, Door, Seen, flood, knock, paced};
use process::{Daemon, Peer};

/// Connections of a flood.
const CONNECTIONS: u64 = 64;

/// Requests a second of a quiet day.
const PACE: u64 = 500;

/// Events of one measured flood, and of one paced round.
const FLOOD: u64 = 100_000;
const PACED: u64 = PACE;

/// How often two that are compared take turns in a flood, so that a stall of the machine does not decide.
const ROUNDS: usize = 5;

/// How often they do on a quiet day. The kernel writes back what is dirty every five seconds, which holds up a sync for some 40
/// milliseconds: with rounds of a second few of either side's have it.
const QUIET_ROUNDS: usize = 15;

/// What "a log that has been running for a while" holds.
const KEPT: u64 = 1_000_000;

/// New connections of one measured round of handshakes.
const HANDSHAKES: u64 = 8_000;

/// Events waiting for a sink.
const BACKLOG: u64 = 100_000;

/// All of it, in the order measured: the later ones need the log that the earlier ones filled.
const FIGURES: [&str; 13] = [
    "core",
    "size",
    "log",
    "http",
    "tls",
    "page",
    "sinks",
    "amqp",
    "kafka",
    "nats",
    "redis",
    "lagging",
    "jetstream",
];

/// Which way a figure must lie from its limit.
#[derive(Clone, Copy)]
enum Must {
    BeAtLeast(f64),
    BeAtMost(f64),
}

struct Report {
    short: Vec<String>,
}

impl Report {
    /// One line. `what` was measured, compared with `peer` where there is one; `value` is what the limit is for.
    fn line(&mut self, name: &str, what: &str, peer: &str, value: f64, must: Must) {
        let (limit, holds) = match must {
            Must::BeAtLeast(limit) => (format!("≥ {limit}"), value >= limit),
            Must::BeAtMost(limit) => (format!("≤ {limit}"), value <= limit),
        };
        let mark = if holds { "" } else { "   FALLS SHORT" };
        println!("{name:<44} {what:>16}   {peer:<28} {value:>9.2} {limit:>9}{mark}");
        if !holds {
            self.short.push(name.to_owned());
        }
    }

    fn note(text: &str) {
        println!("  {text}");
    }
}

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if has(process::BARE) {
        runtime.block_on(process::be_bare_handler());
        return std::process::ExitCode::SUCCESS;
    }
    if has(process::RECEIVER) {
        runtime.block_on(process::be_receiver());
        return std::process::ExitCode::SUCCESS;
    }
    if let [role, certificate, key] = arguments.as_slice()
        && role == process::BARE_TLS
    {
        closehook::install_crypto();
        runtime.block_on(process::be_bare_tls_server(certificate, key));
        return std::process::ExitCode::SUCCESS;
    }
    if let [flag, address, events, rate @ ..] = arguments.as_slice()
        && flag == "--send"
    {
        let (address, events) = (
            address.parse::<std::net::SocketAddr>().unwrap(),
            events.parse().unwrap(),
        );
        let bodies = Arc::new(Bodies::new(fastrand::u64(..)));
        let seen = runtime.block_on(async {
            match rate.first() {
                Some(rate) => paced(address, &bodies, rate.parse().unwrap(), events).await,
                None => flood(address, &bodies, CONNECTIONS, events).await,
            }
        });
        println!("{} {:.2} ms", per_second(seen.rate), millis(seen.p99));
        return std::process::ExitCode::SUCCESS;
    }
    closehook::install_crypto();
    let chosen: Vec<&str> = FIGURES.into_iter().filter(|figure| has(figure)).collect();
    let wanted = |figure: &str| chosen.is_empty() || chosen.contains(&figure);
    let mut report = Report { short: Vec::new() };
    println!(
        "{:<44} {:>16}   {:<28} {:>9} {:>9}",
        "figure", "measured", "beside", "value", "limit"
    );
    // Beside the build: a temporary directory may be memory, where syncing costs nothing.
    let dir = tempfile::tempdir_in(Path::new(process::binary()).parent().unwrap()).unwrap();
    if wanted("core") {
        filter(&mut report);
        runtime.block_on(rendering(&mut report));
    }
    // Of the build that this is part of.
    if wanted("core") || has("size") {
        size(&mut report);
    }
    if wanted("log") {
        runtime.block_on(log(dir.path(), &mut report));
    }
    if wanted("http") {
        runtime.block_on(http(&dir.path().join("http"), &mut report));
    }
    if wanted("tls") {
        runtime.block_on(tls(&dir.path().join("tls"), &mut report));
    }
    if wanted("page") {
        runtime.block_on(page(&dir.path().join("page"), &mut report));
    }
    #[cfg(all(feature = "sink-postgres", feature = "sink-sqlite"))]
    if wanted("sinks") {
        runtime.block_on(sql::sinks(&dir.path().join("sinks"), &mut report));
    }
    #[cfg(all(feature = "sink-amqp", feature = "sink-postgres", feature = "sink-sqlite"))]
    if wanted("amqp") {
        runtime.block_on(amqp::sink(&dir.path().join("amqp"), &mut report));
    }
    #[cfg(feature = "sink-kafka")]
    if wanted("kafka") {
        runtime.block_on(kafka::sinks(&dir.path().join("kafka"), &mut report));
    }
    #[cfg(all(feature = "sink-nats", feature = "sink-postgres", feature = "sink-sqlite"))]
    if wanted("nats") {
        runtime.block_on(nats::sink(&dir.path().join("nats"), &mut report));
    }
    #[cfg(feature = "sink-redis")]
    if wanted("redis") {
        runtime.block_on(redis_figures::sinks(&dir.path().join("redis"), &mut report));
    }
    #[cfg(feature = "sink-kafka")]
    if wanted("lagging") {
        runtime.block_on(lagging::memory(&dir.path().join("lagging"), &mut report));
    }
    #[cfg(feature = "engine-jetstream")]
    if wanted("jetstream") {
        runtime.block_on(jetstream::engine(&mut report));
    }
    if report.short.is_empty() {
        println!("every figure holds");
    } else {
        println!("falling short: {}", report.short.join(", "));
        if has("--check") {
            return std::process::ExitCode::FAILURE;
        }
    }
    std::process::ExitCode::SUCCESS
}

/// Five nodes on an event of 1.8 KB, from the text of the delivery on.
fn filter(report: &mut Report) {
    let body = include_str!("../fixtures/close/examples/lead.created.json");
    let filter = closehook::rules::filter::Filter::parse(
        r#"{"type": "field_accessor", "field": "data", "filter": {"type": "and", "filters": [
            {"type": "field_accessor", "field": "status_label", "filter": {"type": "equals", "value": "Potential"}}]}}"#,
    )
    .unwrap();
    let once = || filter.matches(&closehook::json::Doc::new(black_box(body)).descend("event"));
    assert!(once(), "the filter must match: a mismatch may end early");
    let rounds: Vec<f64> = (0..9)
        .map(|_| {
            let began = Instant::now();
            for _ in 0..20_000 {
                black_box(once());
            }
            began.elapsed().as_secs_f64() * 1e6 / 20_000.0
        })
        .collect();
    let best = median(rounds);
    report.line(
        "filter of five nodes",
        &format!("{best:.2} µs"),
        "",
        best,
        Must::BeAtMost(2.0),
    );
}

/// Ten lines each, on an event of 1.8 KB, in batches, there and back through the child that renders.
async fn rendering(report: &mut Report) {
    use closehook::render::{Escape, Guard, Job, Made, Program, Template, Transform};
    const BATCH: usize = 256;
    let template = Template::unchecked(
        r#"{{ object_type }} {{ action }}: {{ data.display_name | default("(no name)") }}
{% if data.status_label is defined %}status {{ data.status_label }}{% endif %}
{% for contact in data.contacts | default([]) %}
- {{ contact.name }}
{% endfor %}
{% if lead_id %}
{{ lead_id | lead_url }}
{% endif %}
{{ {"id": event.id, "at": event.date_updated, "seq": meta.seq} | tojson }}
received {{ meta.received_at }} by {{ meta.rules | join(", ") }}"#,
        Escape::None,
    );
    let transform = Transform::unchecked(
        r#"const LABELS = { created: "new", updated: "changed" };
export default function (event, meta) {
  const data = event.data ?? {};
  const contacts = (data.contacts ?? []).map((contact) => contact.name);
  return {
    id: event.id,
    what: `${LABELS[event.action] ?? event.action} ${event.object_type}`,
    name: data.display_name, status: data.status_label, contacts, seq: meta.seq,
  };
}"#,
    );
    let body = include_str!("../fixtures/close/examples/lead.created.json");
    let doc = closehook::json::Node::new(body);
    let event = doc.get("event").unwrap().raw().to_owned();
    let meta = r#"{"seq":7,"received_at":"2024-02-15T12:48:23.395000Z","source":"webhook","attempt":1,"rules":["all"],"subscription_id":"whsub_1","key":"ev_1:x","sink":"crm"}"#;
    let guard = Guard::new(Arc::default()).starting(process::binary().into());
    for (name, program) in [
        ("template of ten lines", Program::Template(template)),
        ("transform of ten lines", Program::Transform(transform)),
    ] {
        let job = Job {
            payload: Some(program),
            texts: Arc::from([]),
            event: event.clone(),
            meta: meta.to_owned(),
        };
        let mut rounds = Vec::new();
        for _ in 0..40 {
            let began = Instant::now();
            let made = guard.render(vec![job.clone(); BATCH]).await.unwrap();
            rounds.push(began.elapsed().as_secs_f64() * 1e6 / BATCH as f64);
            assert!(
                made.iter().all(|made| matches!(made, Made::Rendered(_))),
                "{:?}",
                made[0]
            );
        }
        let took = median(rounds);
        report.line(name, &format!("{took:.2} µs"), "", took, Must::BeAtMost(30.0));
    }
}

fn size(report: &mut Report) {
    let size = std::fs::metadata(process::binary()).unwrap().len() as f64 / f64::from(1 << 20);
    report.line(
        "release binary",
        &format!("{size:.1} MiB"),
        "",
        size,
        Must::BeAtMost(if cfg!(feature = "sink-kafka") { 29e6 } else { 22e6 } / f64::from(1 << 20)),
    );
}

/// What somebody waits for who opens the operator's page, on a log that has something in it.
async fn page(dir: &Path, report: &mut Report) {
    const EVENTS: u64 = 200_000;
    const VIEWS: [&str; 9] = [
        "/",
        "/events",
        "/events?lead=nobody",
        "/events?types=nothing.*",
        "/events?filter=%7B%22type%22%3A%22is_null%22%7D",
        "/events/100000",
        "/sinks",
        "/close",
        "/configuration",
    ];
    std::fs::create_dir_all(dir).unwrap();
    let daemon = Daemon::start(dir, "");
    flood(daemon.address, &Arc::new(Bodies::new(4)), CONNECTIONS, EVENTS).await;
    let signed_in = reqwest::get(daemon.link()).await.unwrap();
    let cookie = signed_in.headers()["set-cookie"].to_str().unwrap();
    let cookie = cookie.split(';').next().unwrap();
    for view in VIEWS {
        let mut rounds = Vec::new();
        for _ in 0..9 {
            // A connection of its own, as a browser's first one.
            let client = reqwest::Client::new();
            let began = Instant::now();
            let request = client.get(format!("{}{view}", daemon.admin())).header("cookie", cookie);
            let answer = request.send().await.unwrap();
            assert!(answer.status().is_success(), "{view}");
            assert!(
                answer.text().await.unwrap().trim_end().ends_with("</html>"),
                "{view} is whole"
            );
            rounds.push(began.elapsed().as_secs_f64() * 1e3);
        }
        let took = median(rounds);
        report.line(
            &format!("the page: {view}"),
            &format!("{took:.1} ms"),
            "",
            took,
            Must::BeAtMost(300.0),
        );
    }
    looked_at(&daemon, cookie, report).await;
}

/// Ingest at full flood while somebody's page follows what comes, beside the same while nobody looks: five pairs, in turns.
async fn looked_at(daemon: &Daemon, cookie: &str, report: &mut Report) {
    const PAIRS: usize = 5;
    let bodies = Arc::new(Bodies::new(5));
    let alone = async || {
        daemon.settle();
        flood(daemon.address, &bodies, CONNECTIONS, FLOOD).await
    };
    let followed = async || {
        daemon.settle();
        let request = reqwest::Client::new().get(format!("{}/tail", daemon.admin()));
        let mut stream = request.header("cookie", cookie).send().await.unwrap();
        assert!(stream.status().is_success());
        let reader = tokio::spawn(async move {
            while let Ok(Some(chunk)) = stream.chunk().await {
                READ.fetch_add(chunk.len(), Ordering::Relaxed);
            }
        });
        let seen = flood(daemon.address, &bodies, CONNECTIONS, FLOOD).await;
        reader.abort();
        assert!(READ.swap(0, Ordering::Relaxed) > 0, "it was shown what came");
        seen
    };
    let mut rounds = Vec::new();
    for pair in 0..PAIRS {
        // Who begins changes, so that a log that grows is on neither side.
        let (without, with) = if pair % 2 == 0 {
            let without = alone().await;
            (without, followed().await)
        } else {
            let with = followed().await;
            (alone().await, with)
        };
        rounds.push((with, with.rate / without.rate, without));
    }
    let (with, ratio, without) = median_round(rounds);
    report.line(
        "stored while a page follows, 64 connections",
        &per_second(with.rate),
        &format!("nobody looks {}", per_second(without.rate)),
        ratio,
        Must::BeAtLeast(0.95),
    );
}

/// Bytes that a page was sent.
static READ: AtomicUsize = AtomicUsize::new(0);

/// Ingest fast and slow, on an empty log and on a full one; what the full one takes and how fast it is back.
async fn log(dir: &Path, report: &mut Report) {
    let bodies = Arc::new(Bodies::new(1));
    let bare = Peer::start([process::BARE]);
    let log_config = "[log]\nretention = \"30d\"\n";
    let daemon = Daemon::start(dir, log_config);
    flood(bare.address, &bodies, CONNECTIONS, FLOOD / 10).await;

    let (empty_flood, ratio, peer) = beside(bare.address, daemon.address, &[&daemon], &bodies).await;
    report.line(
        "stored, 64 connections",
        &per_second(empty_flood.rate),
        &format!("bare axum {}", per_second(peer.rate)),
        ratio,
        Must::BeAtLeast(0.45),
    );
    let p99 = millis(empty_flood.p99);
    report.line(
        "  99 of 100 within",
        &format!("{p99:.2} ms"),
        &format!("bare axum {:.2} ms", millis(peer.p99)),
        p99,
        Must::BeAtMost(8.0),
    );
    let empty_paced = beside_disk(dir, &daemon, &bodies, report, "500 a second, 99 of 100 within").await;

    let already = daemon.status()["log"]["events"].as_u64().unwrap();
    flood(daemon.address, &bodies, CONNECTIONS, KEPT.saturating_sub(already)).await;
    let (_, peak) = daemon.memory();
    report.line(
        "memory under full ingest",
        &format!("{peak:.0} MiB"),
        "",
        peak,
        Must::BeAtMost(200.0),
    );
    daemon.settle();

    let (full_flood, full_ratio, peer) = beside(bare.address, daemon.address, &[&daemon], &bodies).await;
    report.line(
        "stored, a million kept",
        &per_second(full_flood.rate),
        &format!("bare axum {}", per_second(peer.rate)),
        full_ratio,
        Must::BeAtLeast(0.45),
    );
    report.line(
        "  its ratio beside that of an empty log",
        &format!("{full_ratio:.2}"),
        &format!("empty {ratio:.2}"),
        full_ratio / ratio,
        Must::BeAtLeast(0.9),
    );
    let full_paced = beside_disk(dir, &daemon, &bodies, report, "500 a second, a million kept").await;
    Report::note(&format!(
        "500 a second with a million kept beside an empty log: {:.2} times",
        full_paced / empty_paced
    ));

    // Killed in the middle of a flood, so that the newest journal is as it is at its worst.
    let flooding: Vec<_> = (0..8)
        .map(|_| tokio::spawn(load::flood_to_the_end(daemon.address, bodies.clone())))
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    daemon.kill();
    for lane in flooding {
        lane.await.unwrap();
    }
    let began = Instant::now();
    let daemon = Daemon::start(dir, log_config);
    while !daemon.is_ready().await {}
    let ready = began.elapsed().as_secs_f64();
    report.line(
        "ready after kill -9",
        &format!("{ready:.2} s"),
        "",
        ready,
        Must::BeAtMost(1.0),
    );
    daemon.settle();
    // A verdict about rest needs rest.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let kept = daemon.status()["log"]["events"].as_u64().unwrap();
    let (idle, _) = daemon.memory();
    report.line(
        "memory, idle",
        &format!("{idle:.0} MiB"),
        &format!("{kept} events kept"),
        idle,
        Must::BeAtMost(64.0),
    );
    let received = daemon.status()["log"]["received_bytes"].as_u64().unwrap() as f64;
    let on_disk = process::disk_bytes(&dir.join("data")) as f64;
    report.line(
        "disk, bytes a byte received",
        &format!("{:.0} MiB", on_disk / f64::from(1 << 20)),
        &format!("received {:.0} MiB", received / f64::from(1 << 20)),
        on_disk / received,
        Must::BeAtMost(0.35),
    );
    drop(daemon);
    file(dir, report);
    expire(dir, on_disk, &bodies, report).await;
}

/// A daemon beside another server, in turns: the round with the median ratio. `daemons` are all that take part: what one has left
/// to be sealed would slow the other down.
async fn beside(
    peer: impl Into<Door>,
    daemon: impl Into<Door>,
    daemons: &[&Daemon],
    bodies: &Arc<Bodies>,
) -> (Seen, f64, Seen) {
    let (peer, daemon) = (peer.into(), daemon.into());
    let at_rest = || daemons.iter().for_each(|daemon| daemon.settle());
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        at_rest();
        let peer = flood(peer.clone(), bodies, CONNECTIONS, FLOOD).await;
        at_rest();
        let seen = flood(daemon.clone(), bodies, CONNECTIONS, FLOOD).await;
        rounds.push((seen, seen.rate / peer.rate, peer));
    }
    median_round(rounds)
}

/// The round with the median ratio.
fn median_round<A, B>(mut rounds: Vec<(A, f64, B)>) -> (A, f64, B) {
    rounds.sort_by(|a, b| a.1.total_cmp(&b.1));
    rounds.swap_remove(rounds.len() / 2)
}

/// A quiet day beside what the disk itself needs for a write of that size and a sync, each time, in turns: the round with the
/// median ratio. Gives its milliseconds.
async fn beside_disk(dir: &Path, daemon: &Daemon, bodies: &Arc<Bodies>, report: &mut Report, name: &str) -> f64 {
    // A quiet day has no flood right before it, the traces of which are still written out.
    daemon.settle();
    rustix::fs::sync();
    let mut rounds = Vec::new();
    for _ in 0..QUIET_ROUNDS {
        let disk = disk(dir, bodies);
        let seen = paced(daemon.address, bodies, PACE, PACED).await;
        rounds.push((seen.p99, seen.p99.as_secs_f64() / disk.as_secs_f64(), disk));
    }
    let (seen, ratio, disk) = median_round(rounds);
    report.line(
        name,
        &format!("{:.2} ms", millis(seen)),
        &format!("write + fdatasync {:.2} ms", millis(disk)),
        ratio,
        Must::BeAtMost(2.0),
    );
    millis(seen)
}

/// The 99th percentile of appending one body to a file and syncing it, at the same pace and seen in the same way.
fn disk(dir: &Path, bodies: &Bodies) -> Duration {
    let mut file = std::fs::File::create(dir.join("disk")).unwrap();
    let body = bodies.fresh();
    let began = Instant::now();
    let mut latencies: Vec<Duration> = (0..PACED)
        .map(|number| {
            let due = load::due(began, PACE, number);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let woken = Instant::now();
            file.write_all(&body).unwrap();
            file.sync_data().unwrap();
            load::since(due, woken)
        })
        .collect();
    load::p99(&mut latencies)
}

/// Everything that is kept, to a file sink that starts at the beginning.
fn file(dir: &Path, report: &mut Report) {
    let path = dir.join("events.jsonl");
    let config = format!(
        "[log]\nretention = \"30d\"\n[[sinks]]\nname = \"file\"\ntype = \"file\"\nstart = \"beginning\"\npath = \"{}\"\n",
        path.display()
    );
    let began = Instant::now();
    let daemon = Daemon::start(dir, &config);
    let events = daemon.status()["log"]["events"].as_u64().unwrap();
    daemon.wait_for_sink(daemon.status()["log"]["last"].as_u64().unwrap());
    let rate = events as f64 / began.elapsed().as_secs_f64();
    let (_, peak) = daemon.memory();
    drop(daemon);
    report.line(
        "log to a file sink",
        &per_second(rate),
        "",
        rate,
        Must::BeAtLeast(65_000.0),
    );
    report.line(
        "  memory meanwhile",
        &format!("{peak:.0} MiB"),
        "",
        peak,
        Must::BeAtMost(200.0),
    );
    let by_hand = lines_by_hand(&path, &dir.join("by_hand.jsonl"));
    report.line(
        "  its rate beside a loop by hand",
        &per_second(rate),
        &format!("by hand {}", per_second(by_hand)),
        rate / by_hand,
        Must::BeAtLeast(0.4),
    );
    std::fs::remove_file(path).unwrap();
}

/// What the same lines take without a daemon, a second: unpacked from blocks like the log's, each parsed as far as a rule needs it, and
/// written, with a sync a second. One thread, as what a sink is given is made by one.
fn lines_by_hand(source: &Path, to: &Path) -> f64 {
    use std::io::{BufRead, BufReader, Read};

    const BLOCK: usize = 256 << 10;
    const MOST: u64 = 512 << 20;
    let mut lines = BufReader::new(std::fs::File::open(source).unwrap().take(MOST));
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut block = Vec::new();
    while lines.read_until(b'\n', &mut block).unwrap() > 0 {
        if block.len() > BLOCK {
            blocks.push(zstd::bulk::compress(&block, 1).unwrap());
            block.clear();
        }
    }
    let mut out = std::io::BufWriter::with_capacity(BLOCK, std::fs::File::create(to).unwrap());
    let (began, mut synced, mut written) = (Instant::now(), Instant::now(), 0_u32);
    for block in &blocks {
        let plain = zstd::bulk::decompress(block, 2 * BLOCK).unwrap();
        for line in plain.split_inclusive(|&byte| byte == b'\n') {
            let _: std::collections::BTreeMap<&str, &serde_json::value::RawValue> =
                black_box(serde_json::from_slice(line).unwrap());
            out.write_all(line).unwrap();
            written += 1;
        }
        if synced.elapsed() > Duration::from_secs(1) {
            out.flush().unwrap();
            out.get_ref().sync_data().unwrap();
            synced = Instant::now();
        }
    }
    out.flush().unwrap();
    out.get_ref().sync_data().unwrap();
    let rate = f64::from(written) / began.elapsed().as_secs_f64();
    std::fs::remove_file(to).unwrap();
    rate
}

/// Retention gives the disk back.
async fn expire(dir: &Path, before: f64, bodies: &Arc<Bodies>, report: &mut Report) {
    let daemon = Daemon::start(dir, "[log]\nretention = \"1s\"\n");
    // Nothing is old before somebody has told the time.
    paced(daemon.address, bodies, PACE, 1).await;
    let began = Instant::now();
    while daemon.status()["log"]["events"] != 0 {
        assert!(began.elapsed() < Duration::from_secs(120), "retention drops nothing");
        std::thread::sleep(Duration::from_millis(100));
    }
    daemon.kill();
    let after = process::disk_bytes(&dir.join("data/log")) as f64;
    report.line(
        "disk after retention, of what it was",
        &format!("{:.1} MiB", after / f64::from(1 << 20)),
        &format!("before {:.0} MiB", before / f64::from(1 << 20)),
        after / before,
        Must::BeAtMost(0.05),
    );
}

/// A backlog to a receiver on loopback, with the sink's default settings.
async fn http(dir: &Path, report: &mut Report) {
    std::fs::create_dir(dir).unwrap();
    let bodies = Arc::new(Bodies::new(2));
    let daemon = Daemon::start(dir, "");
    flood(daemon.address, &bodies, CONNECTIONS, BACKLOG).await;
    daemon.kill();
    let receiver = Peer::start([process::RECEIVER]);
    let config = format!(
        "[[sinks]]\nname = \"http\"\ntype = \"http\"\nstart = \"beginning\"\nallow_private = true\nurl = \"http://{}/\"\n",
        receiver.address
    );
    let began = Instant::now();
    let daemon = Daemon::start(dir, &config);
    daemon.wait_for_sink(BACKLOG);
    let took = began.elapsed().as_secs_f64();
    let dead = daemon.status()["sinks"][0]["dead"].as_u64().unwrap();
    assert_eq!(dead, 0, "the receiver refused something");
    report.line(
        "100,000 waiting events to http",
        &format!("{took:.1} s"),
        "",
        took,
        Must::BeAtMost(20.0),
    );
    assert_eq!(bodies.given(), BACKLOG);
}

/// What TLS costs: over connections that last, beside plain HTTP; and for each new one, beside a server that does nothing else.
///
/// The sender encrypts too, and checks the certificate, on the same two cores. In the first ratio this counts against the
/// daemon: it has both ends' encryption to pay for, and with a sender elsewhere it is better. In the second both servers meet
/// the same sender, which hides a part of their difference: one that is all the sender's work would give 1.
async fn tls(dir: &Path, report: &mut Report) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (plain_dir, tls_dir) = (dir.join("plain"), dir.join("tls"));
    std::fs::create_dir_all(&plain_dir).unwrap();
    std::fs::create_dir_all(&tls_dir).unwrap();
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let plain = Daemon::start(&plain_dir, "");
    let within_tls = Daemon::start(
        &tls_dir,
        &format!(
            "[server.tls]\ncert = \"{}\"\nkey = \"{}\"\n",
            certificate.display(),
            key.display()
        ),
    );
    let door = Door::within_tls(within_tls.address, &certificate);
    let bodies = Arc::new(Bodies::new(3));
    flood(plain.address, &bodies, CONNECTIONS, FLOOD / 10).await;
    flood(door.clone(), &bodies, CONNECTIONS, FLOOD / 10).await;
    let (seen, ratio, peer) = beside(plain.address, door.clone(), &[&plain, &within_tls], &bodies).await;
    report.line(
        "stored over TLS 1.3, 64 connections",
        &per_second(seen.rate),
        &format!("plain HTTP {}", per_second(peer.rate)),
        ratio,
        Must::BeAtLeast(0.8),
    );
    drop(plain);
    within_tls.settle();

    let bare = Peer::start([process::BARE_TLS.as_ref(), certificate.as_os_str(), key.as_os_str()]);
    let bare_door = Door::within_tls(bare.address, &certificate);
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let peer = knock(&bare_door, CONNECTIONS, HANDSHAKES).await;
        let seen = knock(&door, CONNECTIONS, HANDSHAKES).await;
        rounds.push((seen, seen / peer, peer));
    }
    let (seen, ratio, peer) = median_round(rounds);
    report.line(
        "full TLS 1.3 handshakes, one request each",
        &per_second(seen),
        &format!("bare axum-server {}", per_second(peer)),
        ratio,
        Must::BeAtLeast(0.7),
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn per_second(rate: f64) -> String {
    format!("{rate:.0} /s")
}
