//! What a node knows of the state that it shares with others, for where that is lost.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::mark::Record;
use crate::sync::lock;

/// What this node knows of the state, whose record of a sink may be gone.
#[derive(Debug, Default)]
pub(super) struct Outset {
    /// It was lost before this node began, and not every sink has a record again.
    pub was_lost: AtomicBool,
    /// It was seen to be noted there that it is the one that the log began with.
    pub noted: AtomicBool,
    /// A record that has to be there is not.
    pub is_missing: AtomicBool,
    /// Where each sink was when this node last knew.
    seen: Mutex<BTreeMap<String, Record>>,
}

impl Outset {
    /// A sink's record is this now.
    pub fn see(&self, sink: &str, record: &Record) {
        lock(&self.seen).insert(sink.to_owned(), record.clone());
    }

    pub fn seen(&self, sink: &str) -> Option<Record> {
        lock(&self.seen).get(sink).cloned()
    }

    /// It may begin anew.
    pub fn forget(&self, sink: &str) {
        lock(&self.seen).remove(sink);
    }

    /// A configured sink has no record, which has to be put right.
    pub fn miss(&self) {
        self.is_missing.store(true, Ordering::Relaxed);
    }

    pub fn was_lost(&self) -> bool {
        self.was_lost.load(Ordering::Relaxed)
    }
}
