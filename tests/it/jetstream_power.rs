//! What three servers acknowledged outlives a power cut of all of them: each has a disk of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use closehook::event::{Seq, Source};
use closehook::log::jetstream::{JetStreamLog, Options, check};
use closehook::log::{Appended, Incoming, Log, Take};
use closehook::net::nats::{Server, Way};
use tokio_util::sync::CancellationToken;

use crate::jetstream_cluster::{Cluster, Setup};
use crate::power_disk::Disk;
use crate::skip::skipped;

const ROUNDS: u64 = 2;

/// Events that are answered before the power goes, in each round.
const ANSWERED: u64 = 200;

fn options(cluster: &Cluster) -> Options {
    let servers = cluster.urls().iter().map(|url| Server::parse(url).unwrap()).collect();
    Options::usual(Way::plain(servers, "test"), cluster.monitors())
}

fn incoming(id: u64) -> Incoming {
    let body = format!(r#"{{"event": {{"id": "ev_{id}", "date_updated": "2024-02-15T12:48:23"}}}}"#);
    Incoming::new(body.into(), jiff::Timestamp::now(), Source::Webhook, None)
}

fn disks(dir: &Path) -> Result<Vec<Disk>, String> {
    let disk = |number: usize| {
        let dir = dir.join(number.to_string());
        std::fs::create_dir(&dir).unwrap();
        Disk::make(&dir)
    };
    (0..3).map(disk).collect()
}

/// Sends until it is stopped; gives what was answered.
async fn send(
    log: JetStreamLog,
    next: Arc<AtomicU64>,
    count: Arc<AtomicU64>,
    stop: CancellationToken,
) -> BTreeMap<u64, Seq> {
    let mut answered = BTreeMap::new();
    while !stop.is_cancelled() {
        let id = next.fetch_add(1, Ordering::Relaxed);
        let appended = tokio::select! {
            () = stop.cancelled() => break,
            appended = log.append(incoming(id)) => appended,
        };
        if let Ok(Appended::Stored(seq)) = appended {
            answered.insert(id, seq);
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
    answered
}

/// What can be read, and what reading says is lost.
async fn found(log: &JetStreamLog) -> (BTreeMap<u64, Seq>, Vec<(Seq, Seq)>) {
    let take = Take {
        events: 500,
        bytes: 4 << 20,
        narrow: None,
    };
    let (mut from, mut found, mut lost) = (Seq(1), BTreeMap::new(), Vec::new());
    while from <= *log.head().borrow() {
        let batch = log.read(from, take).await.unwrap();
        for event in batch.events {
            let id: u64 = event.view().unwrap().id.trim_start_matches("ev_").parse().unwrap();
            assert_eq!(found.insert(id, event.seq), None, "ev_{id} is there twice");
        }
        lost.extend(batch.lost);
        from = batch.next;
    }
    (found, lost)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_three_servers_acknowledged_outlives_a_power_cut_of_all_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let disks = match disks(dir.path()) {
        Ok(disks) => disks,
        Err(why) => {
            skipped(&format!("loop device: power cuts need one, and root: {why}"));
            return;
        }
    };
    let setup = Setup {
        stores: disks.iter().map(|disk| disk.at.join("nats")).collect(),
        max_file_store: Some(128 << 20),
        ..Setup::default()
    };
    let Some(mut cluster) = Cluster::start_with(setup).await else {
        return;
    };
    let options = options(&cluster);
    check::create(&options).await.unwrap();
    let (next, mut answered) = (Arc::new(AtomicU64::new(0)), BTreeMap::new());
    for _ in 0..ROUNDS {
        let log = JetStreamLog::open(options.clone()).await.unwrap();
        let (stop, count) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let mut senders = tokio::task::JoinSet::new();
        for _ in 0..16 {
            senders.spawn(send(log.clone(), next.clone(), count.clone(), stop.clone()));
        }
        let began = Instant::now();
        while count.load(Ordering::Relaxed) < ANSWERED {
            assert!(began.elapsed() < Duration::from_secs(120), "nothing is stored");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Without power nobody acknowledges anything. One whose disk is gone would go on for a moment: what it had written before it passes
        // for stored although its sync fails (seen: answered, and lost), which is a disk that fails, and no power cut.
        for number in 0..3 {
            cluster.freeze(number);
        }
        for disk in &disks {
            disk.cut();
        }
        stop.cancel();
        for number in 0..3 {
            cluster.kill(number);
        }
        while let Some(done) = senders.join_next().await {
            answered.extend(done.unwrap());
        }
        log.close().await;
        for disk in &disks {
            disk.revive();
        }
        for number in 0..3 {
            cluster.run(number).await;
        }
        cluster.settled().await;
        cluster.leader("closehook").await;
    }
    let log = JetStreamLog::open(options.clone()).await.unwrap();
    let missing = |found: &BTreeMap<u64, Seq>| -> Vec<(u64, Seq)> {
        let missing = answered.iter().filter(|(id, seq)| found.get(id) != Some(seq));
        missing.map(|(id, seq)| (*id, *seq)).collect()
    };
    let (there, said) = found(&log).await;
    let lost = missing(&there);
    // What fails here is rare: whether it is the servers' or the reader's shows in what else can be had of them.
    if !lost.is_empty() {
        let by_id = log.find(&format!("ev_{}", lost[0].0)).await;
        let again = missing(&found(&log).await.0);
        let other = JetStreamLog::open(options.clone()).await.unwrap();
        let anew = missing(&found(&other).await.0);
        panic!(
            "{} of {} that were answered are lost: {lost:?}\nsaid to be lost: {said:?}\nthe first of them by its id: {by_id:?}\nread again: {again:?}\nby another reader: {anew:?}\nlogs in {}",
            lost.len(),
            answered.len(),
            dir.keep().display()
        );
    }
    assert!(answered.len() as u64 >= ROUNDS * ANSWERED);
    log.close().await;
    drop(cluster);
    // Before the directory that they are in.
    drop(disks);
}
