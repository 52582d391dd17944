//! The log's promises, tested on a real directory: what is answered stays, once, in order, whatever happens to the files.

mod damage;
mod dropping;
mod erasing;
mod stopping;
mod storing;
mod supervision;
mod transfer;

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use bytes::Bytes;

use super::*;
use crate::event::{Kind, SignatureHeaders, Source, View};
use crate::log::Log;
use crate::sync::write_lock;

fn options(dir: &Path) -> Options {
    Options {
        dir: dir.to_owned(),
        segment_size: 1 << 30,
        segment_age: Duration::from_secs(86_400),
        reserve: Some(0),
        keys_kept: Duration::from_secs(73 * 3600),
        cache_bytes: 1 << 20,
        read_only: false,
        // The keeper goes round when it is told to.
        round: Duration::from_secs(3600),
        now: Clock::default(),
    }
}

fn open(dir: &Path) -> LocalLog {
    LocalLog::open(options(dir)).unwrap()
}

fn body(id: u64, revision: u64) -> String {
    // Some of it does not compress, as in life.
    let noise = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(id.to_be_bytes()));
    format!(
        r#"{{"event": {{"id": "ev_{id}", "date_updated": "2024-02-15T12:48:23.{revision:06}", "data": {{"noise": "{noise}"}}}}}}"#
    )
}

fn incoming(body: impl Into<Bytes>) -> Incoming {
    let signature = SignatureHeaders {
        timestamp: "1544271440".into(),
        hash: "0a".repeat(32),
    };
    Incoming::new(body.into(), Timestamp::now(), Source::Webhook, Some(signature))
}

fn partial(body: impl Into<Bytes>) -> Incoming {
    Incoming {
        partial: true,
        ..incoming(body)
    }
}

async fn store(log: &LocalLog, ids: std::ops::RangeInclusive<u64>) {
    for id in ids {
        assert_eq!(
            log.append(incoming(body(id, 0))).await.unwrap(),
            Appended::Stored(Seq(id)),
            "{id}"
        );
    }
}

/// Waits on a condition the keeper brings about.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let patience = Instant::now();
    while !condition() {
        assert!(
            patience.elapsed() < Duration::from_secs(60),
            "waited too long until {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Seals everything.
async fn seal(log: &LocalLog) {
    log.roll().await.unwrap();
    log.go_round().await.unwrap();
    assert_eq!(log.stats().unsealed, 1, "all complete segments are sealed");
}

/// Where the segment is that begins with a Seq.
fn segment(dir: &Path, first: u64) -> PathBuf {
    journal::segment_dir(&dir.join("log"), Seq(first))
}

/// Turns one bit of a file over, at so many hundredths of it.
fn flip(path: &Path, hundredths: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = (bytes.len() - 1) * hundredths / 100;
    bytes[at] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

fn ids(log: &LocalLog) -> (Vec<u64>, Vec<(u64, u64)>) {
    let (mut found, mut lost) = (Vec::new(), Vec::new());
    let mut from = Seq(1);
    loop {
        let batch = log.read(from, 7, 1 << 20).unwrap();
        if batch.next == from {
            return (found, lost);
        }
        for event in &batch.events {
            assert!(event.seq >= from, "I3");
            assert_eq!(std::str::from_utf8(&event.body).unwrap(), body(event.seq.0, 0), "I5");
            found.push(event.seq.0);
        }
        lost.extend(batch.lost.iter().map(|(from, to)| (from.0, to.0)));
        from = batch.next;
    }
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn newest_journal(dir: &Path) -> PathBuf {
    walk(dir)
        .into_iter()
        .filter(|path| path.ends_with("journal"))
        .max()
        .unwrap()
}

/// Erases events and says which.
async fn erase(log: &LocalLog, doomed: impl Fn(&Event) -> bool + Send + Sync + 'static) -> Vec<Seq> {
    let erased = LocalLog::erase(log, Narrow::default(), Arc::new(doomed)).await.unwrap();
    assert_eq!(erased.left, [""; 0]);
    erased.seqs
}
