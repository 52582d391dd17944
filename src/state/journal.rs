//! Records in order, by topic, that several machines share.
//!
//! Whoever appends says which record of the topic it has seen last. If there is a later one nothing is appended, and it has to read that
//! first. So all who read a topic see the same records in the same order, and nobody writes on what they have not seen.

use async_trait::async_trait;
use bytes::Bytes;

/// A record that is to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it is about, as a person may look for it: letters, digits and `.` between words.
    pub name: String,
    /// Its writer's mark on it.
    pub tag: u32,
    /// Its bytes.
    pub payload: Bytes,
}

/// A record as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Where it is: later ones are at higher places.
    pub place: u64,
    /// Places that it takes up, from that one on.
    pub len: u32,
    /// Its writer's mark on it.
    pub tag: u32,
    /// What is there.
    pub content: Content,
}

/// What is at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The bytes that were appended.
    Whole(Bytes),
    /// Not what was appended.
    Damaged,
    /// What is left of a record whose removal came to no end: it has to be removed.
    Rest,
}

/// Some of a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// In order; none: there are no more.
    pub records: Vec<Kept>,
    /// The place at which the topic ends now; 0 where it has no record.
    pub end: u64,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Somebody else has appended: nothing was done.
    #[error("somebody else has written there meanwhile")]
    Behind,
    /// There is no room for it: nothing was done.
    #[error("{0}")]
    Full(String),
    /// It was not done, or read; worth another try.
    #[error("{0}")]
    Failing(String),
    /// Nobody knows whether it was done. It can't be any more once somebody else has appended to the topic.
    #[error("{0}")]
    Unsure(String),
}

/// See the module's head.
#[async_trait]
pub trait Journal: std::fmt::Debug + Send + Sync + 'static {
    /// Its name, as people know it.
    fn name(&self) -> String;

    /// Records of a topic behind a place, as far as there are any. What was removed is not among them.
    async fn read(&self, topic: &str, behind: u64) -> Result<Page, JournalError>;

    /// One record; `None` where it is not there (any more).
    async fn get(&self, topic: &str, place: u64) -> Result<Option<Kept>, JournalError>;

    /// Appends records, all or none, if the topic ends at `end`. Gives their places when they are durable.
    async fn append(&self, topic: &str, records: &[Record], end: u64) -> Result<Vec<(u64, u32)>, JournalError>;

    /// Removes what is at a place, as many places as are named, and overwrites it. Never the last record of a topic: by that its end is
    /// known.
    async fn remove(&self, place: u64, len: u32) -> Result<(), JournalError>;

    /// Removes a topic.
    async fn forget(&self, topic: &str) -> Result<(), JournalError>;

    /// The topics that have a record whose name is `note`.
    async fn topics(&self) -> Result<Vec<String>, JournalError>;
}
