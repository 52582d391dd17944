//! The log's promises, tested on a real directory: what is answered stays, once, in order, whatever happens to the files.

mod back;
mod damage;
mod doubt;
mod dropping;
mod erasing;
mod full;
mod keys;
mod missing;
mod stopping;
mod storing;
mod supervision;
mod told;
mod transfer;

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::fault::SegmentError;
use super::known::Identity;
use super::shared::Segment;
use super::*;
use crate::event::{Event, Kind, Seq, SignatureHeaders, Source, View};
use crate::log::{AppendError, Appended, Incoming, Log, Narrow};
use crate::sync::write_lock;

#[path = "../../../../tests/skip.rs"]
mod skip;
use skip::skipped;

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
    reopen(&options(dir))
}

/// Opens a log, perhaps one that was closed a moment ago: a program that another test starts just then holds its lock until it is
/// executed.
fn reopen(options: &Options) -> LocalLog {
    let patience = Instant::now();
    loop {
        match LocalLog::open(options.clone()) {
            Err(OpenError::Locked { .. }) if patience.elapsed() < Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened.unwrap(),
        }
    }
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

/// A clock that is so many days ahead.
fn days_ahead() -> (Clock, Arc<AtomicI64>) {
    let days = Arc::new(AtomicI64::new(0));
    let ahead = days.clone();
    let hours = move || jiff::SignedDuration::from_hours(24 * ahead.load(Ordering::SeqCst));
    (Clock::new(move || Timestamp::now() + hours()), days)
}

/// Stores events with bodies of this length of noise that does not compress, so that few of them fill a pack.
async fn store_noise(log: &LocalLog, ids: std::ops::RangeInclusive<u64>, len: usize) {
    for id in ids {
        let noise: String = (0..len).map(|_| fastrand::alphanumeric()).collect();
        let body = format!(r#"{{"event": {{"id": "ev_{id}", "data": "{noise}"}}}}"#);
        assert_eq!(log.append(incoming(body)).await, Ok(Appended::Stored(Seq(id))));
    }
}

/// The Seqs that can be read in this range.
fn seqs(log: &LocalLog, range: std::ops::RangeInclusive<u64>) -> Vec<Seq> {
    let (mut from, mut found) = (Seq(*range.start()), Vec::new());
    while from <= Seq(*range.end()) {
        let batch = log.read(from, 100, 1 << 20).unwrap();
        found.extend(batch.events.iter().map(|event| event.seq));
        from = batch.next;
    }
    found
}

/// The sealed segment that begins with a Seq.
fn sealed_segment(log: &LocalLog, first: u64) -> Arc<sealed::SealedSegment> {
    match log.shared.segment(Seq(first)) {
        Some(Segment::Sealed(sealed)) => sealed,
        other => panic!("it is sealed, and not {other:?}"),
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

/// A log with events 1 to 10 in one sealed segment, and 11 to 20 in the next.
async fn two_sealed(dir: &Path) -> LocalLog {
    let log = open(dir);
    store(&log, 1..=10).await;
    seal(&log).await;
    store(&log, 11..=20).await;
    seal(&log).await;
    log
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
