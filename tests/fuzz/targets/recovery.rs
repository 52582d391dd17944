//! A journal with anything in it: arbitrary bytes, and whole frames of arbitrary blocks. Opening and reading it never panics,
//! Seqs come in order and no Seq twice.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use closehook::event::Seq;
use closehook::framefile::{Format, FrameFile};
use closehook::log::{Clock, LocalLog, Options};
use libfuzzer_sys::fuzz_target;

const JOURNAL: Format = Format {
    magic: *b"CLHKJRNL",
    version: 1,
};

struct Dir {
    root: PathBuf,
    journal: PathBuf,
    header: Vec<u8>,
}

static DIR: LazyLock<Dir> = LazyLock::new(|| {
    // In memory where there is such a place: a file is written in every round.
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let root = tempfile::tempdir_in(parent).unwrap().keep();
    LocalLog::open(options(&root, false)).unwrap().close();
    let journal = std::fs::read_dir(root.join("log"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path()
        .join("journal");
    let header = std::fs::read(&journal).unwrap();
    Dir { root, journal, header }
});

fn options(dir: &Path, read_only: bool) -> Options {
    Options {
        dir: dir.to_owned(),
        segment_size: 1 << 20,
        segment_age: Duration::from_secs(3600),
        reserve: Some(0),
        keys_kept: Duration::from_secs(3600),
        cache_bytes: 1 << 20,
        read_only,
        round: Duration::from_secs(2),
        now: Clock::default(),
    }
}

fuzz_target!(|data: &[u8]| {
    let dir = &*DIR;
    let Some((mode, rest)) = data.split_first() else { return };
    if mode % 2 == 0 {
        std::fs::write(&dir.journal, [&dir.header, rest].concat()).unwrap();
    } else {
        // A frame each: the block's head as it comes, and records that can be decompressed.
        let mut file = FrameFile::create(&dir.journal, JOURNAL).unwrap();
        for part in rest.split(|byte| *byte == b'\n') {
            let (head, records) = part.split_at(part.len().min(32));
            let mut block = head.to_vec();
            block.resize(32, 0);
            if let Some(len) = block.get_mut(12..16).filter(|_| mode % 4 == 1) {
                len.copy_from_slice(&(records.len() as u32).to_le_bytes());
            }
            block.extend(zstd::bulk::compress(records, 1).unwrap());
            file.append(1, &[&block]).unwrap();
        }
    }
    let Ok(log) = LocalLog::open(options(&dir.root, true)) else {
        return;
    };
    let (mut next, mut last) = (Seq(1), Seq::ZERO);
    for _ in 0..100 {
        let Ok(batch) = log.read(next, 1000, 1 << 20) else {
            break;
        };
        for event in &batch.events {
            assert!(event.seq > last, "I3");
            last = event.seq;
            event.view();
        }
        if batch.next == next {
            break;
        }
        next = batch.next;
    }
    let _ = log.get(last);
    let _ = log.find("ev_1");
    let _ = log.seq_at(jiff::Timestamp::UNIX_EPOCH);
    log.verify(&mut |_, _| {});
    log.stats();
});
