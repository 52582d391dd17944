//! What all handles of a log share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::Options;
use super::api::Info;
use super::feed::Feeds;
use super::link::Link;
use super::losses::Losses;
use crate::event::Seq;
use crate::log::{AppendError, Cut};
use crate::sync::{lock, read_lock, write_lock};
use crate::telemetry::paced::Paced;

/// Events that are being stored at a time; more wait in front, within the ingress' own limits.
pub(super) const APPENDS_MAX: usize = 4096;

/// What is full is tried again after so long.
pub(super) const FULL_FOR: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Shared {
    pub options: Options,
    /// What is stored and asked goes here, and what is read over one of its own: many bytes must not hold up short answers.
    pub link: Link,
    pub reader: Link,
    pub feeds: Feeds,
    pub id: String,
    pub epoch: String,
    pub head: watch::Sender<Seq>,
    pub first: AtomicU64,
    /// As the leader knew it last.
    pub info: RwLock<Info>,
    pub cuts: RwLock<Vec<Cut>>,
    pub oldest: RwLock<Option<jiff::Timestamp>>,
    pub losses: Losses,
    /// See [`crate::log::Log::set_room`].
    pub room: AtomicU64,
    pub places: Semaphore,
    pub closing: CancellationToken,
    /// Bytes that pieces of long bodies take up.
    parts_bytes: AtomicU64,
    /// What this process has erased.
    pub erased: Mutex<BTreeSet<Seq>>,
    /// Notes of erasures, each of which has a tombstone beside it.
    notes: AtomicU64,
    /// Why this is not the log, or not kept as it has to be; and whether nothing may be read of it either.
    wrong: RwLock<Option<(String, bool)>>,
    /// Why this log is known to have been set back; only a new beginning ends that.
    set_back: OnceLock<String>,
    /// Nothing is stored before the stream has come from the first of these to the second: see [`crate::log::Log::hold_until_past`].
    held: RwLock<Option<(Seq, Seq)>>,
    /// Since when the leader has been saying less than it had come to, and how often it has.
    pub behind: Mutex<Option<(Instant, u32)>>,
    trouble: RwLock<Option<(AppendError, Instant)>>,
    has_trouble: AtomicBool,
    began: Instant,
    turned: AtomicU64,
    /// What was said last of damage.
    pub said: Mutex<Paced>,
    /// Seqs at which there is no event, as the leader knows: where each range begins, and what is the first behind it.
    holes: Mutex<BTreeMap<u64, u64>>,
    /// Seqs of events that no server could give.
    damaged: Mutex<BTreeSet<u64>>,
}

/// Beyond so many, what is damaged is found out anew.
const DAMAGED_MAX: usize = 4096;

/// Beyond so many holes they are asked for anew.
const HOLES_MAX: usize = 65_536;

impl Shared {
    /// Whether there is no event from a Seq on up to another, which is not meant.
    pub fn is_known_hole(&self, begin: u64, end: u64) -> bool {
        let holes = lock(&self.holes);
        let known = holes.range(..=begin).next_back();
        known.is_some_and(|(_, known)| end <= *known)
    }

    /// Nothing ever comes to a Seq that has been given out.
    pub fn note_hole(&self, begin: u64, end: u64) {
        let mut holes = lock(&self.holes);
        if holes.len() >= HOLES_MAX {
            holes.clear();
        }
        holes.insert(begin, end);
    }

    /// Somebody could not read this one, on any server.
    pub fn note_damage(&self, seq: u64) {
        let mut damaged = lock(&self.damaged);
        if damaged.len() >= DAMAGED_MAX {
            damaged.clear();
        }
        damaged.insert(seq);
    }

    pub fn is_damaged(&self, seq: u64) -> bool {
        lock(&self.damaged).contains(&seq)
    }

    pub fn has_damage(&self) -> bool {
        !lock(&self.damaged).is_empty()
    }

    pub fn new(options: Options, link: Link, reader: Link, info: Info, (id, epoch): (String, String)) -> Shared {
        Shared {
            head: watch::channel(Seq(info.state.last_seq)).0,
            first: AtomicU64::new(info.state.first_seq.max(1)),
            options,
            link,
            reader,
            feeds: Feeds::default(),
            id,
            epoch,
            info: RwLock::new(info),
            cuts: RwLock::default(),
            oldest: RwLock::default(),
            losses: Losses::default(),
            room: AtomicU64::new(u64::MAX),
            places: Semaphore::new(APPENDS_MAX),
            closing: CancellationToken::new(),
            parts_bytes: AtomicU64::new(0),
            erased: Mutex::default(),
            notes: AtomicU64::new(0),
            wrong: RwLock::default(),
            set_back: OnceLock::new(),
            held: RwLock::default(),
            behind: Mutex::default(),
            trouble: RwLock::default(),
            has_trouble: AtomicBool::new(false),
            began: Instant::now(),
            turned: AtomicU64::new(0),
            said: Mutex::default(),
            holes: Mutex::default(),
            damaged: Mutex::default(),
        }
    }

    /// What time it is, at the most: a clock that is ahead of the servers' must not make anything old.
    pub fn now(&self) -> jiff::Timestamp {
        let own = self.options.now.now();
        let servers = match &self.options.servers_now {
            Some(clock) => Some(clock.now()),
            None => read_lock(&self.info).said_at(),
        };
        servers.map_or(own, |servers| servers.min(own))
    }

    /// Bytes that the log takes up, pieces of long bodies included.
    pub fn bytes(&self) -> u64 {
        read_lock(&self.info).state.bytes + self.parts_bytes.load(Ordering::Relaxed)
    }

    /// The same of the pieces, as was just seen.
    pub fn note_parts(&self, bytes: u64) {
        self.parts_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Messages that are events.
    pub fn events(&self) -> u64 {
        let messages = read_lock(&self.info).state.messages;
        messages.saturating_sub(2 * self.notes.load(Ordering::Relaxed))
    }

    /// So many notes of erasures there are, as was just seen.
    pub fn note_notes(&self, count: u64) {
        self.notes.store(count, Ordering::Relaxed);
    }

    /// Why nothing may be stored: the stream is not this log any more, or not kept as it has to be.
    pub fn wrong(&self) -> Option<String> {
        if let Some(why) = self.set_back.get() {
            return Some(why.clone());
        }
        read_lock(&self.wrong).as_ref().map(|(why, _)| why.clone())
    }

    /// Why nothing may be read or removed either.
    pub fn is_another(&self) -> Option<String> {
        if let Some(why) = self.set_back.get() {
            return Some(why.clone());
        }
        let wrong = read_lock(&self.wrong);
        wrong
            .as_ref()
            .filter(|(_, is_another)| *is_another)
            .map(|(why, _)| why.clone())
    }

    /// What was stored counts only behind all that was known before it was sent: a stream that gives a Seq out again was set back, and
    /// whoever has seen that Seq would pass what is there now.
    pub fn comes_after(&self, seq: u64, known: Seq) -> Result<(), AppendError> {
        if seq <= known.0 {
            let stream = self.stream();
            let why = format!(
                "the stream {stream} has given out event {seq}, and had come to {known} before: it was set back to a copy. Stop all nodes, and start them again when everything is put back"
            );
            if self.set_back.set(why.clone()).is_ok() {
                tracing::error!(%why, "nothing is taken any more");
            }
        }
        let set_back = self.set_back.get();
        set_back.map_or(Ok(()), |why| Err(AppendError::Failing(why.clone())))
    }

    /// Nothing is stored before the stream has gone on behind this.
    pub fn hold_until_past(&self, seen: Seq) {
        let head = *self.head.borrow();
        let mut place = write_lock(&self.held);
        let (begin, upto) = place.filter(|(_, upto)| *upto > head).unwrap_or((head, seen));
        *place = Some((begin, upto.max(seen)));
    }

    /// Why nothing is stored yet. Whoever has the stream go on, it ends by itself: whatever is stored behind a head comes behind it.
    pub fn held(&self) -> Option<String> {
        let (begin, upto) = (*read_lock(&self.held))?;
        let head = *self.head.borrow();
        (head < upto).then(|| {
            let left = left_until(begin, head, upto);
            let trouble = self.trouble().map_or_else(String::new, |(why, _)| format!(" ({why})"));
            format!("it was set back, and sinks have seen more than there is: {left}{trouble}")
        })
    }

    pub fn set_wrong(&self, wrong: Option<(String, bool)>) {
        *write_lock(&self.wrong) = wrong;
    }

    pub fn stream(&self) -> &str {
        &self.options.stream
    }

    pub fn is_closing(&self) -> bool {
        self.closing.is_cancelled()
    }

    pub fn first(&self) -> Seq {
        Seq(self.first.load(Ordering::Acquire))
    }

    /// Somebody has stored this one: it, and all before it, are durable.
    pub fn saw(&self, seq: Seq) {
        self.head.send_if_modified(|head| {
            let is_news = seq > *head;
            if is_news {
                *head = seq;
            }
            is_news
        });
    }

    /// What the leader says.
    pub fn note(&self, info: Info) {
        self.first.fetch_max(info.state.first_seq.max(1), Ordering::AcqRel);
        self.saw(Seq(info.state.last_seq));
        *write_lock(&self.info) = info;
    }

    pub fn trouble(&self) -> Option<(AppendError, Instant)> {
        if !self.has_trouble.load(Ordering::Acquire) {
            return None;
        }
        read_lock(&self.trouble).clone()
    }

    /// Why nothing can be stored now; `None`: it can.
    pub fn set_trouble(&self, trouble: Option<AppendError>) {
        if trouble.is_none() && !self.has_trouble.load(Ordering::Acquire) {
            return;
        }
        let had = self.has_trouble.swap(trouble.is_some(), Ordering::AcqRel);
        match &trouble {
            // While it lasts the reasons change with every try.
            Some(why) if !had => tracing::error!(%why, "events can't be stored; senders are told to come again"),
            None if had => tracing::info!("events can be stored again"),
            _ => {}
        }
        *write_lock(&self.trouble) = trouble.map(|why| (why, Instant::now()));
    }

    pub fn turned(&self) {
        self.turned
            .store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    pub fn since_turned(&self) -> Duration {
        let turned = Duration::from_millis(self.turned.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(turned)
    }
}

/// How far a stream has come that is to go on behind `seen`, from `begin` on, for people.
pub(super) fn left_until(begin: Seq, last: Seq, seen: Seq) -> String {
    let (left, all) = (seen.0.saturating_sub(last.0), seen.0.saturating_sub(begin.0));
    format!("the stream is to go on behind event {seen}, and {left} of {all} places are left until there")
}
