//! A long run with violent ends in it, and the reckoning afterwards: what was answered, against the log, the files and the
//! receiver. Used by the kills and by the power cuts.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use closehook::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};
use jiff::Timestamp;
use serde_json::Value;

use crate::harness::{Daemon, KEY, Receiver, body, parsed, until};

/// Senders at a time.
const SENDERS: usize = 8;

/// How often a violent end is asked for; a number in `variable` asks for more than CI's `few`.
pub fn rounds(variable: &str, few: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(few)
}

/// Where the randomness begins: `CLOSEHOOK_TEST_SEED`, or a new place each time. Printed, so that a failure can be repeated.
pub fn seed() -> fastrand::Rng {
    let seed = rounds("CLOSEHOOK_TEST_SEED", fastrand::u64(..));
    eprintln!("CLOSEHOOK_TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Everything that can go wrong at once: segments that are rolled, sealed and expired all the time (by their age, or as small
/// ones by their size; large ones make more room ahead in their journal), a file that is rotated and compressed, one with a
/// filter, and a receiver. Files are in `DIR/disk`, the data directory may be too.
pub fn config(receiver: &Receiver, random: &mut fastrand::Rng) -> String {
    let segment_size = random.choice(["64 KiB", "1 MiB", "64 MiB"]).unwrap();
    format!(
        "[log]\nsegment_size = \"{segment_size}\"\nretention = \"2s\"\nreserve = \"1 MiB\"\n\
         [[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/disk/all.jsonl\"\nstart = \"beginning\"\n\
         rotate = {{ size = \"48 KiB\" }}\n\
         [[sinks]]\nname = \"some\"\ntype = \"file\"\npath = \"DIR/disk/some.jsonl\"\nstart = \"beginning\"\n\
         [[sinks]]\nname = \"http\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\nstart = \"beginning\"\n\
         retry = {{ initial = \"10ms\", max_delay = \"100ms\" }}\nbreaker = {{ probe = \"100ms\" }}\n\
         [[rules]]\nname = \"all\"\nsinks = [\"file\", \"http\"]\n\
         [[rules]]\nname = \"some\"\nevents = [\"lead.*\"]\nsinks = [\"some\"]\n\
         filter = {{ type = \"field_accessor\", field = \"lead_id\", filter = {{ type = \"equals\", value = \"lead_0\" }} }}\n",
        receiver.url
    )
}

/// What was sent and what was answered, over the whole run.
pub struct Ledger {
    next: AtomicU64,
    /// Sent without an answer: sent again, as Close does.
    unanswered: Mutex<BTreeSet<u64>>,
    /// What was answered 200: the id and its Seq.
    answered: Mutex<BTreeMap<u64, u64>>,
}

/// Senders at work; they go on until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    senders: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// The senders end with the request they are at.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for sender in self.senders {
            sender.await.unwrap();
        }
    }
}

impl Ledger {
    pub fn new() -> Arc<Ledger> {
        Arc::new(Ledger {
            next: AtomicU64::new(1),
            unanswered: Mutex::default(),
            answered: Mutex::default(),
        })
    }

    pub fn answered(&self) -> usize {
        self.answered.lock().unwrap().len()
    }

    fn note(&self, id: u64, seq: Option<u64>) {
        match seq {
            Some(seq) => drop(self.answered.lock().unwrap().insert(id, seq)),
            None => drop(self.unanswered.lock().unwrap().insert(id)),
        }
    }

    /// Senders that send new events, what had no answer, and now and then what had one.
    pub fn load(self: &Arc<Ledger>, daemon: &Daemon) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let senders = (0..SENDERS).map(|_| {
            let (ledger, stop) = (self.clone(), stop.clone());
            let sender = Sender::to(daemon);
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    ledger.send_one(&sender).await;
                }
            })
        });
        Load {
            senders: senders.collect(),
            stop,
        }
    }

    async fn send_one(&self, sender: &Sender) {
        let repeated = (fastrand::u8(..) < 8).then(|| {
            let answered = self.answered.lock().unwrap();
            let first = *answered.keys().next()?;
            let id = fastrand::u64(first..=*answered.keys().next_back()?);
            answered.get(&id).map(|seq| (id, *seq))
        });
        if let Some((id, seq)) = repeated.flatten() {
            if let Some((status, again)) = sender.send(id).await {
                assert_eq!(
                    (status.as_str(), again),
                    ("duplicate", seq),
                    "I2: event {id} was answered before"
                );
            }
            return;
        }
        let waiting = self.unanswered.lock().unwrap().pop_first();
        let id = waiting.unwrap_or_else(|| self.next.fetch_add(1, Ordering::Relaxed));
        self.note(id, sender.send(id).await.map(|(_, seq)| seq));
    }

    /// Sends what had no answer until it has one. What is stored then: each Seq and the id under it.
    pub async fn settle(&self, daemon: &Daemon) -> BTreeMap<u64, u64> {
        let sender = Sender::to(daemon);
        until("everything is answered", async || {
            let waiting = self.unanswered.lock().unwrap().pop_first();
            let Some(id) = waiting else { return true };
            self.note(id, sender.send(id).await.map(|(_, seq)| seq));
            self.unanswered.lock().unwrap().is_empty()
        })
        .await;
        let answered = self.answered.lock().unwrap();
        answered.iter().map(|(id, seq)| (*seq, *id)).collect()
    }

    /// Lets the daemon finish, stops it, and compares everything. `files`: where the file sinks' files are.
    pub async fn reckon(self: &Arc<Ledger>, daemon: &mut Daemon, receiver: &Receiver, files: &Path) {
        self.settle(daemon).await;
        let last = daemon.status()["log"]["last"].as_u64().unwrap();
        until("the sinks are done", async || {
            ["file", "some", "http"]
                .iter()
                .all(|sink| daemon.sink(sink)["cursor"] == last)
        })
        .await;
        for sink in daemon.lines(&["sinks", "list"]) {
            assert_eq!(
                (sink["dead"].as_u64(), sink["lost"].as_u64()),
                (Some(0), Some(0)),
                "I4: {sink}"
            );
        }
        // Rolls, seals and retention all went on meanwhile.
        until("old segments have expired", async || {
            daemon.stderr().contains("old events are gone")
        })
        .await;
        daemon.stop().await;
        let log = &daemon.status()["log"];
        assert_eq!(log["gaps"].as_array().map(Vec::len), Some(0), "{log}");

        let answered = self.answered.lock().unwrap();
        let by_seq: BTreeMap<u64, u64> = answered.iter().map(|(id, seq)| (*seq, *id)).collect();
        assert_eq!(by_seq.len(), answered.len(), "I1, I3: no Seq was answered twice");
        let all: Vec<u64> = (1..=last).collect();
        assert_eq!(
            by_seq.keys().copied().collect::<Vec<_>>(),
            all,
            "I1, I2, I3: each answer its own Seq, none left out"
        );
        check_log(daemon, &by_seq, last);

        let lines = sink_lines(files, "all");
        assert_eq!(
            lines.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(),
            all,
            "I4: the file has each event exactly once"
        );
        assert_lines_are(&lines, &by_seq);
        let expected: Vec<u64> = by_seq
            .iter()
            .filter(|(_, id)| *id % 7 == 0)
            .map(|(seq, _)| *seq)
            .collect();
        let lines = sink_lines(files, "some");
        assert_eq!(
            lines.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(),
            expected,
            "I4: the file with a filter has each matching event exactly once"
        );
        assert_lines_are(&lines, &by_seq);

        let received: BTreeSet<String> = receiver.bodies().into_iter().collect();
        let sent: BTreeSet<String> = answered.keys().map(|id| body(*id)).collect();
        assert_eq!(received, sent, "I4, I5: the receiver has every body, byte for byte");
        assert!(daemon.ok(&["events", "verify"]).contains("events checked"));
    }
}

/// What retention has left of the log: gapless up to the end, each event under the Seq that was answered, byte for byte.
fn check_log(daemon: &Daemon, by_seq: &BTreeMap<u64, u64>, last: u64) {
    let exported = daemon.lines(&["events", "export"]);
    let seqs: Vec<u64> = exported.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    let first = seqs.first().copied().unwrap_or(last + 1);
    assert_eq!(seqs, (first..=last).collect::<Vec<_>>(), "I3: gapless and in order");
    for event in &exported {
        let id = by_seq[&event["seq"].as_u64().unwrap()];
        assert_eq!(event["body"].as_str().unwrap(), body(id), "I5: byte for byte");
    }
}

/// Somebody who sends as Close does.
pub struct Sender {
    client: reqwest::Client,
    url: String,
    key: Key,
}

impl Sender {
    pub fn to(daemon: &Daemon) -> Sender {
        Sender::with(daemon.client.clone(), daemon)
    }

    /// Over other connections than the daemon's own client has.
    pub fn with(client: reqwest::Client, daemon: &Daemon) -> Sender {
        Sender {
            client,
            url: daemon.url.clone(),
            key: Key::from_hex(None, KEY).unwrap(),
        }
    }

    /// What was answered 200 and under which Seq; `None` for every other answer, and for none.
    pub async fn send(&self, id: u64) -> Option<(String, u64)> {
        let body = body(id);
        let headers = self.key.sign(Timestamp::now(), body.as_bytes());
        let request = self
            .client
            .post(&self.url)
            .header(TIMESTAMP_HEADER, headers.timestamp)
            .header(HASH_HEADER, headers.hash);
        let response = request.body(body).send().await.ok()?;
        let stored = response.status() == 200;
        let answer: Value = serde_json::from_slice(&response.bytes().await.ok()?).ok()?;
        let status = answer["status"].as_str()?.to_owned();
        if stored {
            Some((status, answer["seq"].as_u64()?))
        } else {
            None
        }
    }
}

/// Every line that a file sink has ever written, rotated and compressed files first: its Seq, and the line.
fn sink_lines(dir: &Path, stem: &str) -> Vec<(u64, String)> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(stem))
        .collect();
    // The daemon may have been stopped between making a compressed file and removing its original.
    let compressed: BTreeSet<PathBuf> = files.iter().cloned().collect();
    files.retain(|path| {
        let extension = path.extension().unwrap();
        extension != "tmp" && !compressed.contains(&path.with_extension("jsonl.gz"))
    });
    let mut lines = Vec::new();
    for path in files {
        let mut text = String::new();
        let mut file = std::fs::File::open(&path).unwrap();
        if path.extension().unwrap() == "gz" {
            flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        } else {
            file.read_to_string(&mut text).unwrap();
        }
        assert!(
            text.is_empty() || text.ends_with('\n'),
            "{} ends in a line",
            path.display()
        );
        lines.extend(
            text.lines()
                .map(|line| (parsed(line)["seq"].as_u64().unwrap(), line.to_owned())),
        );
    }
    // The names have seconds in them, and a second may see several files.
    lines.sort();
    lines
}

/// Each line holds the event that was stored under its Seq, every token as it came.
fn assert_lines_are(lines: &[(u64, String)], by_seq: &BTreeMap<u64, u64>) {
    for (seq, line) in lines {
        let delivery = body(by_seq[seq]);
        let event = closehook::json::compact(closehook::json::Node::new(&delivery).get("event").unwrap().raw());
        let written = closehook::json::Node::new(line).get("event").unwrap().raw();
        assert_eq!(written, event, "I5: the event of Seq {seq}");
    }
}

/// A moment of one's own: so many more answers, and then up to 30 ms.
pub async fn random_moment(ledger: &Ledger, random: &mut fastrand::Rng) {
    let goal = ledger.answered() + random.usize(20..250);
    until("enough is answered", async || ledger.answered() >= goal).await;
    tokio::time::sleep(Duration::from_micros(random.u64(0..30_000))).await;
}

/// What the daemon delivers to, where that is killed too.
#[async_trait]
pub trait Peer: Send {
    fn kill(&mut self);
    async fn run(&mut self);
}

/// Kills the daemon under load, and the peer where there is one: first the daemon, then the peer too, then whatever comes. Then the sink
/// is done, and nothing of it is dead or lost. `CLOSEHOOK_TEST_KILLS` asks for more rounds than CI's 2. Gives the id of each Seq.
pub async fn kills(daemon: &mut Daemon, mut peer: Option<&mut dyn Peer>, sink: &str) -> BTreeMap<u64, u64> {
    let mut random = seed();
    let ledger = Ledger::new();
    for round in 0..rounds("CLOSEHOOK_TEST_KILLS", 2) {
        daemon.run().await;
        let load = ledger.load(daemon);
        if let Some(peer) = peer.as_deref_mut()
            && (round == 1 || (round > 1 && random.bool()))
        {
            random_moment(&ledger, &mut random).await;
            peer.kill();
            random_moment(&ledger, &mut random).await;
            peer.run().await;
        }
        random_moment(&ledger, &mut random).await;
        daemon.kill();
        load.stop().await;
    }
    daemon.run().await;
    let by_seq = ledger.settle(daemon).await;
    daemon.done(sink).await;
    let shown = daemon.sink(sink);
    assert_eq!(
        (shown["dead"].as_u64(), shown["lost"].as_u64()),
        (Some(0), Some(0)),
        "{shown}"
    );
    by_seq
}

/// Exchanges a sink for another one of the same name again and again, while events come: `config` is that of a round. Then the sink is done,
/// and nothing of it is dead or lost. Gives the id of each Seq.
pub async fn reloads(daemon: &mut Daemon, sink: &str, config: impl Fn(usize) -> String) -> BTreeMap<u64, u64> {
    daemon.configure(&config(0));
    daemon.run().await;
    let ledger = Ledger::new();
    let load = ledger.load(daemon);
    for round in 1..=5 {
        let goal = ledger.answered() + 60;
        until("more is answered", async || ledger.answered() >= goal).await;
        daemon.configure(&config(round));
        assert!(daemon.reload().await);
    }
    load.stop().await;
    let by_seq = ledger.settle(daemon).await;
    daemon.done(sink).await;
    let shown = daemon.sink(sink);
    let count = |key: &str| shown[key].as_u64();
    assert_eq!((count("dead"), count("lost")), (Some(0), Some(0)), "{shown}");
    by_seq
}

/// The keys that each Seq has to come under, whenever it comes.
pub fn keys(by_seq: &BTreeMap<u64, u64>) -> BTreeMap<u64, BTreeSet<String>> {
    let key = |id: &u64| BTreeSet::from([format!("ev_{id}:2024-02-15T12:48:23.395000")]);
    by_seq.iter().map(|(seq, id)| (*seq, key(id))).collect()
}
