//! Three servers of NATS and three nodes of closehook under load, and everything that can happen to them: servers and nodes are killed,
//! nodes are frozen for longer than a lease lasts, the ways between any two of them are cut, and the nodes' clocks are set. Whatever happens: what was answered 200 is there, each
//! event once under one Seq; every sink has everything, in order; the one that commits its position with the data has nothing twice; and no
//! two nodes ever both move a mark.
//!
//! `CLOSEHOOK_CHAOS_SECONDS` says how long (180 by itself), `CLOSEHOOK_CHAOS_SEED` how it goes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use closehook::ingress::verify::Key;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::faults::Clock;
use crate::harness::{Daemon, KEY, body, send};
use crate::jetstream_cluster::{Cluster, Setup, Ways};
use crate::redis_server::{Kind, Server as Redis};

const NODES: usize = 3;

/// After the last disturbance something has to get on within this, again and again until everything is there.
const CALM_WITHIN: Duration = Duration::from_secs(120);

/// Nobody sends more while the sink with one delivery at a time is so far behind: how fast it is depends on the machine.
const BEHIND_MAX: usize = 1_000;

/// What a node is kept frozen: leases last seven seconds.
const FROZEN_MS: std::ops::Range<u64> = 8_500..11_000;

fn number(name: &str, by_itself: u64) -> u64 {
    std::env::var(name).ok().map_or(by_itself, |text| text.parse().unwrap())
}

/// So many minutes a node's clock is set off: the configuration lets Close's clock and ours differ by more.
const CLOCK_SET: std::ops::Range<i64> = -120..120;

/// A way from a node to a server, or from one server to another. When it is cut nothing passes, and nobody is told; when it is whole again what was open is closed.
struct Way {
    port: u16,
    is_cut: watch::Sender<bool>,
}

impl Way {
    fn to(port: u16) -> Way {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let own = listener.local_addr().unwrap().port();
        let (is_cut, told) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let told = told.clone();
                tokio::spawn(async move {
                    let mut cut = told.clone();
                    // Who comes while it is cut waits, and is closed then.
                    if *told.borrow() {
                        let _ = cut.wait_for(|cut| !*cut).await;
                        return;
                    }
                    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
                        return;
                    };
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    tokio::select! {
                        () = pass(from_client, to_server, told.clone()) => {}
                        () = pass(from_server, to_client, told.clone()) => {}
                    }
                });
            }
        });
        Way { port: own, is_cut }
    }

    fn cut(&self, is_cut: bool) {
        self.is_cut.send_replace(is_cut);
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut cut: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        tokio::select! {
            is_cut = async { cut.wait_for(|cut| *cut).await.is_ok() } => {
                let _ = cut.wait_for(|cut| is_cut && !*cut).await;
                return;
            }
            read = from.read(&mut buffer) => match read {
                Ok(count) if count > 0 => if to.write_all(&buffer[..count]).await.is_err() { return },
                _ => return,
            },
        }
    }
}

/// What the receiver of the `http` sink was sent: Seq and id, in order.
type Sent = Arc<Mutex<Vec<(u64, String)>>>;

async fn receiver() -> (String, Sent) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let sent = Sent::default();
    let keep = sent.clone();
    let answer = move |headers: axum::http::HeaderMap, body: String| async move {
        let seq = headers["closehook-seq"].to_str().unwrap().parse().unwrap();
        let event: Value = serde_json::from_str(&body).unwrap();
        let id = event["event"]["id"].as_str().unwrap().to_owned();
        keep.lock().unwrap().push((seq, id));
        axum::http::StatusCode::OK
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    (url, sent)
}

type Routes = Arc<Mutex<BTreeMap<(usize, usize), Way>>>;

struct Case {
    cluster: Cluster,
    redis: Redis,
    ways: Vec<Vec<Way>>,
    /// Between the servers, by who goes and who is reached.
    routes: Routes,
    nodes: Vec<Daemon>,
    clocks: Vec<Clock>,
    sent: Sent,
    random: fastrand::Rng,
}

impl Case {
    async fn start(seed: u64) -> Option<Case> {
        let routes = Routes::default();
        let made = routes.clone();
        let ways = move |from, to, port| {
            let way = Way::to(port);
            let own = way.port;
            made.lock().unwrap().insert((from, to), way);
            own
        };
        let setup = Setup {
            ways: Some(Ways(Arc::new(ways))),
            ..Setup::default()
        };
        let cluster = Cluster::start_with(setup).await?;
        let redis = Redis::start(Kind::Valkey, &[]).await?;
        let (url, sent) = receiver().await;
        let mut ways = Vec::new();
        let mut nodes = Vec::new();
        for index in 0..NODES {
            let mut own = Vec::new();
            for server in &cluster.nodes {
                own.push(Way::to(server.port));
            }
            let servers: Vec<String> = own
                .iter()
                .map(|way| format!("\"nats://127.0.0.1:{}\"", way.port))
                .collect();
            let monitors: Vec<String> = cluster.monitors().iter().map(|url| format!("\"{url}\"")).collect();
            nodes.push(Daemon::new(&format!(
                "[server]\nclock_skew = \"3h\"\n[log]\nengine = \"jetstream\"\n[log.jetstream]\nservers = [{}]\nmonitor = [{}]\nsecret = \"0123456789abcdef0123456789abcdef\"\n\
                 [node]\nname = \"n{index}\"\n\
                 [[sinks]]\nname = \"hook\"\ntype = \"http\"\nurl = \"{url}\"\nallow_private = true\norder = \"strict\"\nstart = \"beginning\"\n\
                 timeout = \"5s\"\nretry = {{ initial = \"50ms\", max_delay = \"500ms\" }}\nbreaker = {{ probe = \"200ms\" }}\n\
                 [[sinks]]\nname = \"stream\"\ntype = \"redis\"\nurl = \"{}\"\nstream = \"close\"\nstart = \"beginning\"\n\
                 timeout = \"5s\"\nretry = {{ initial = \"50ms\", max_delay = \"500ms\" }}\nbreaker = {{ probe = \"200ms\" }}\n",
                servers.join(", "),
                monitors.join(", "),
                redis.url(),
            )));
            ways.push(own);
        }
        nodes[0].ok(&["check", "--create"]);
        let mut clocks = Vec::new();
        for node in &mut nodes {
            clocks.push(Clock::give(node)?);
            node.run().await;
        }
        Some(Case {
            cluster,
            redis,
            ways,
            routes,
            nodes,
            clocks,
            sent,
            random: fastrand::Rng::with_seed(seed),
        })
    }

    /// Does something, and undoes it after a while.
    async fn disturb(&mut self) -> &'static str {
        let node = self.random.usize(0..NODES);
        match self.random.u8(0..14) {
            0..3 => {
                let server = self.random.usize(0..self.cluster.nodes.len());
                self.cluster.kill(server);
                self.wait(200..3_000).await;
                self.cluster.run(server).await;
                "a server was killed"
            }
            3..6 => {
                self.nodes[node].kill();
                self.wait(200..7_000).await;
                self.nodes[node].spawn();
                "a node was killed"
            }
            6..8 => {
                self.nodes[node].signal(libc::SIGSTOP);
                self.wait(FROZEN_MS).await;
                self.nodes[node].signal(libc::SIGCONT);
                "a node was frozen"
            }
            8..10 => {
                // It stays set until it is set again.
                let minutes = self.random.i64(CLOCK_SET);
                self.clocks[node].set(minutes);
                self.wait(200..2_000).await;
                "a node's clock was set"
            }
            10..12 => {
                let servers = self.cluster.nodes.len();
                let one = self.random.usize(0..servers);
                let other = (one + 1 + self.random.usize(0..servers - 1)) % servers;
                let set = |is_cut| {
                    let routes = self.routes.lock().unwrap();
                    for (_, way) in routes
                        .iter()
                        .filter(|((from, to), _)| [(one, other), (other, one)].contains(&(*from, *to)))
                    {
                        way.cut(is_cut);
                    }
                };
                set(true);
                let ms = self.random.u64(500..9_000);
                tokio::time::sleep(Duration::from_millis(ms)).await;
                set(false);
                "two servers were cut off from each other"
            }
            _ => {
                let all = self.random.bool();
                let count = if all { 3 } else { 1 };
                for way in self.ways[node].iter().take(count) {
                    way.cut(true);
                }
                self.wait(500..8_000).await;
                for way in &self.ways[node] {
                    way.cut(false);
                }
                "a node was cut off"
            }
        }
    }

    async fn wait(&mut self, ms: std::ops::Range<u64>) {
        let ms = self.random.u64(ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

/// Who sends events, as Close does: again and again until the answer is 200.
struct Load {
    urls: Arc<Mutex<Vec<String>>>,
    stop: AtomicBool,
    next: AtomicU64,
    /// Seqs by id, as they were answered.
    acknowledged: Mutex<BTreeMap<u64, u64>>,
    sent: Sent,
}

impl Load {
    async fn send_one(&self, client: &reqwest::Client, key: &Key, random: &mut fastrand::Rng, id: u64) {
        loop {
            let url = {
                let urls = self.urls.lock().unwrap();
                urls[random.usize(0..urls.len())].clone()
            };
            let sent =
                tokio::time::timeout(Duration::from_secs(15), send(client, &url, key, body(id).as_bytes())).await;
            if let Ok(Ok((200, answer))) = sent {
                let seq = answer["seq"].as_u64().unwrap();
                let known = self.acknowledged.lock().unwrap().insert(id, seq);
                assert!(known.is_none_or(|known| known == seq), "ev_{id} is {known:?} and {seq}");
                // Close sends some again that it was answered.
                if random.u8(0..10) > 0 {
                    return;
                }
            }
            if self.stop.load(Ordering::Relaxed) && self.acknowledged.lock().unwrap().contains_key(&id) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn run(self: Arc<Load>, seed: u64) {
        let (client, key) = (Daemon::client(), Key::from_hex(None, KEY).unwrap());
        let mut random = fastrand::Rng::with_seed(seed);
        while !self.stop.load(Ordering::Relaxed) {
            // What is sent again counts as well: that only lets a few more come.
            if self.acknowledged.lock().unwrap().len() > self.sent.lock().unwrap().len() + BEHIND_MAX {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            self.send_one(&client, &key, &mut random, id).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Reads the marks again and again: a mark's fence and its place never go back.
async fn watch_marks(servers: Vec<u16>, stop: Arc<AtomicBool>) -> BTreeMap<String, (u64, BTreeSet<u64>)> {
    let mut newest: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
    let mut fences: BTreeMap<String, (u64, BTreeSet<u64>)> = BTreeMap::new();
    let mut server = 0;
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(30)).await;
        server = (server + 1) % servers.len();
        let Ok(Ok(client)) = tokio::time::timeout(
            Duration::from_secs(2),
            async_nats::connect(format!("127.0.0.1:{}", servers[server])),
        )
        .await
        else {
            continue;
        };
        for _ in 0..50 {
            for sink in ["hook", "stream"] {
                let question = json!({ "last_by_subj": format!("$KV.closehook_state.sink/{sink}") }).to_string();
                let asked = client.request("$JS.API.STREAM.MSG.GET.KV_closehook_state", question.into());
                let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(2), asked).await else {
                    break;
                };
                let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
                let Some(record) = mark(&answer) else { continue };
                let revision = answer["message"]["seq"].as_u64().unwrap();
                let fence = record["fence"].as_u64().unwrap_or_default();
                let next = record["main"]["next"].as_u64().unwrap();
                let before = newest.get(sink).copied().unwrap_or_default();
                // A server of before may answer with what is old, and says so by its number.
                if revision > before.0 {
                    assert!(fence >= before.1, "{sink}: fence {fence} after {before:?}");
                    assert!(next >= before.2, "{sink}: {next} after {before:?}");
                    newest.insert(sink.into(), (revision, fence, next));
                    let seen = fences.entry(sink.into()).or_default();
                    seen.0 += 1;
                    seen.1.insert(fence);
                }
            }
            if stop.load(Ordering::Relaxed) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
    fences
}

fn mark(answer: &Value) -> Option<Value> {
    let message = &answer["message"];
    let decode = |name: &str| {
        base64::engine::general_purpose::STANDARD
            .decode(message[name].as_str()?)
            .ok()
    };
    let (head, data) = (decode("hdrs")?, decode("data")?);
    let head = String::from_utf8(head).unwrap();
    let data = if head.contains("Closehook-Packed: zstd") {
        zstd::stream::decode_all(&data[..]).unwrap()
    } else {
        data
    };
    serde_json::from_slice(&data).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_servers_and_nodes_everything_is_there_once_and_in_order() {
    let (seconds, seed) = (
        number("CLOSEHOOK_CHAOS_SECONDS", 180),
        number("CLOSEHOOK_CHAOS_SEED", 1),
    );
    let Some(mut case) = Case::start(seed).await else {
        return;
    };
    let urls = Arc::new(Mutex::new(
        case.nodes.iter().map(|node| node.url.clone()).collect::<Vec<_>>(),
    ));
    let load = Arc::new(Load {
        urls: urls.clone(),
        stop: AtomicBool::new(false),
        next: AtomicU64::new(1),
        acknowledged: Mutex::default(),
        sent: case.sent.clone(),
    });
    let senders: Vec<_> = (0..8)
        .map(|number| tokio::spawn(load.clone().run(seed + number)))
        .collect();
    let no_more = Arc::new(AtomicBool::new(false));
    let ports = case.cluster.nodes.iter().map(|node| node.port).collect();
    let marks = tokio::spawn(watch_marks(ports, no_more.clone()));
    let began = Instant::now();
    let mut happened: BTreeMap<&str, u32> = BTreeMap::new();
    while began.elapsed() < Duration::from_secs(seconds) {
        *happened.entry(case.disturb().await).or_default() += 1;
        refresh(&mut case, &urls);
        case.wait(300..2_500).await;
        assert!(!marks.is_finished(), "{:?}", marks.await);
    }
    load.stop.store(true, Ordering::Relaxed);
    for sender in senders {
        tokio::time::timeout(CALM_WITHIN, sender)
            .await
            .expect("everything is stored in the end")
            .unwrap();
    }
    let acknowledged = load.acknowledged.lock().unwrap().clone();
    eprintln!("{happened:?}; {} events", acknowledged.len());
    everything_is_there(&case, &acknowledged).await;
    no_more.store(true, Ordering::Relaxed);
    let fences = marks.await.unwrap();
    eprintln!(
        "saved marks and fences seen: {:?}",
        fences
            .iter()
            .map(|(sink, (saved, fences))| (sink, saved, fences.len()))
            .collect::<Vec<_>>()
    );
    assert!(
        fences.values().any(|(_, fences)| fences.len() > 1),
        "sinks were to change hands"
    );
}

/// A node that was started again listens elsewhere.
fn refresh(case: &mut Case, urls: &Arc<Mutex<Vec<String>>>) {
    for (index, node) in case.nodes.iter_mut().enumerate() {
        let output = node.command().args(["status", "--json"]).output().unwrap();
        let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if let Some(url) = status["daemon"]["url"].as_str() {
            url.clone_into(&mut node.url);
            urls.lock().unwrap()[index] = url.to_owned();
        }
    }
}

async fn everything_is_there(case: &Case, acknowledged: &BTreeMap<u64, u64>) {
    let has = || {
        case.sent
            .lock()
            .unwrap()
            .iter()
            .map(|(seq, _)| *seq)
            .collect::<BTreeSet<_>>()
    };
    let entries = || case.redis.ask::<u64>(&["XLEN", "close"]);
    let (mut since, mut had) = (Instant::now(), (0, 0));
    let wanted: BTreeSet<u64> = acknowledged.values().copied().collect();
    assert_eq!(wanted.len(), acknowledged.len(), "each event has a Seq of its own");
    while !has().is_superset(&wanted) || entries() < wanted.len() as u64 {
        let missing: Vec<u64> = wanted.difference(&has()).copied().take(10).collect();
        let has_now = (has().len(), entries());
        if has_now != had {
            (since, had) = (Instant::now(), has_now);
        }
        assert!(
            since.elapsed() < CALM_WITHIN,
            "of {} the hook lacks {missing:?}, and the stream has {}: {}",
            wanted.len(),
            entries(),
            case.nodes
                .iter()
                .map(|node| node.status().to_string())
                .collect::<Vec<_>>()
                .join("\n")
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let ids: BTreeMap<String, u64> = acknowledged
        .iter()
        .map(|(id, seq)| (format!("ev_{id}"), *seq))
        .collect();
    // Each event once, whatever was repeated: an id has one Seq, and what is new comes in order.
    let sent = case.sent.lock().unwrap().clone();
    let mut newest = 0;
    for (seq, id) in &sent {
        if let Some(known) = ids.get(id) {
            assert_eq!(known, seq, "{id}");
        }
        assert!(
            *seq <= newest || sent_before(&wanted, newest, *seq),
            "{seq} came right after {newest}"
        );
        newest = newest.max(*seq);
    }
    eprintln!("the hook was sent {} deliveries of {} events", sent.len(), wanted.len());
    // Exactly once, and in order.
    let rows: Vec<(String, std::collections::HashMap<String, String>)> = case.redis.ask(&["XRANGE", "close", "-", "+"]);
    let seqs: Vec<u64> = rows
        .iter()
        .map(|(_, fields)| fields["closehook-seq"].parse().unwrap())
        .collect();
    assert!(
        seqs.is_sorted_by(|one, next| one < next),
        "a Seq twice, or out of order"
    );
    let seqs: BTreeSet<u64> = seqs.into_iter().collect();
    assert!(seqs.is_superset(&wanted));
}

/// Whether nothing that is known to be stored lies between.
fn sent_before(wanted: &BTreeSet<u64>, newest: u64, seq: u64) -> bool {
    wanted.range(newest + 1..seq).next().is_none()
}
