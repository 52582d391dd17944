//! The log on NATS JetStream: for more than one machine.
//!
//! Every node appends to one stream that several servers keep together, and reads it; the servers refuse what is there already, so that an
//! event is stored once whichever node gets it. A Seq is the stream's sequence: it only rises, and what is missing between two was erased, is
//! a note of an erasure, or has expired. Nothing is kept on this machine.
//!
//! | file | what it does |
//! |---|---|
//! | `settings` | how the log is kept, from the configuration |
//! | `check`, `durability` | what streams and servers must be, and making them |
//! | `link` | sessions, questions and answers |
//! | `api` | what JetStream is asked, and what it says |
//! | `key`, `message` | an event's subject, and an event as a message |
//! | `append` | storing |
//! | `fetch` | messages from whichever server is near, or the leader |
//! | `known` | what is known of an id, and under a key |
//! | `read`, `times`, `verify` | ranges and single events; from which time on; whether all is as it was stored |
//! | `feed` | the fast way for who reads on and on |
//! | `copy` | another log's events, each at its own Seq |
//! | `erase`, `sweep` | what goes: what is doomed; what is old, or belongs to nothing |
//! | `skip` | Seqs that are never given out again |
//! | `journal` | records of topics, which dead letters are |
//! | `pulse` | following the head, and the state of the servers |
//! | `losses` | what servers say that they have lost |
//! | `shared` | what all of these share |

mod api;
mod append;
pub mod check;
pub mod copy;
mod cuts;
mod durability;
mod erase;
mod feed;
mod fetch;
mod found;
mod journal;
mod key;
mod known;
mod link;
mod losses;
mod message;
mod pulse;
mod read;
mod settings;
mod shared;
mod skip;
mod sweep;
mod times;
mod verify;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

pub use self::journal::StreamJournal;
pub use self::settings::{BUCKETS, Options, way};

use self::append::PATIENCE;
use self::link::Link;
use self::message::Prepared;
use self::shared::Shared;
use crate::event::{Event, EventKey, Seq};
use crate::log::{
    AppendError, Appended, Batch, ChangeError, Cut, Doomed, Erased, Incoming, Log, Narrow, ReadError, Servers, Stats,
    Take,
};
use crate::net::nats;
use crate::supervise;
use crate::sync::read_lock;
use crate::task;

/// What other nodes say of the head and nobody has heard yet.
const HEADS_MAX: usize = 64;

/// Why the log can't be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No server answers, or too few are running: it may be over in a moment.
    #[error("the log's servers can't be used now: {0}")]
    Unreachable(String),
    /// They do not keep what is promised, a sentence each.
    #[error("the log is not opened: {}", .0.join("; "))]
    Refused(Vec<String>),
}

/// A login that is refused is wrong; anything else may be over in a moment.
fn cant_be_used(why: String) -> OpenError {
    if nats::is_refused_login(&why) {
        OpenError::Refused(vec![why])
    } else {
        OpenError::Unreachable(why)
    }
}

/// The log. Cheap to clone; all clones are the same log.
#[derive(Debug, Clone)]
pub struct JetStreamLog {
    shared: Arc<Shared>,
}

impl JetStreamLog {
    /// Connects, looks whether servers and streams keep what is promised, and follows the stream from then on.
    pub async fn open(options: Options) -> Result<JetStreamLog, OpenError> {
        let (heads, heard) = mpsc::channel(HEADS_MAX);
        let announcements = key::head(&options.stream);
        let link = Link::new(options.way.clone(), announcements.clone(), heads.clone());
        let reader = Link::new(options.way.clone(), announcements, heads);
        let (found, info) = match check::look_by(&link, &options).await {
            Ok(looked) => looked,
            Err(failure) => {
                link.close().await;
                return Err(cant_be_used(failure.to_string()));
            }
        };
        for warning in &found.warnings {
            tracing::warn!("{warning}");
        }
        if found.faults.is_empty() && !found.unseen.is_empty() {
            link.close().await;
            return Err(OpenError::Unreachable(found.unseen.join("; ")));
        }
        let identity = info.as_ref().and_then(check::identity);
        let (Some(info), Some(identity), true) = (info, identity, found.faults.is_empty()) else {
            link.close().await;
            return Err(OpenError::Refused(found.faults));
        };
        let shared = Arc::new(Shared::new(options, link, reader, info, identity));
        sweep::look_at_parts(&shared).await;
        cuts::find(&shared).await;
        JetStreamLog::start(&shared, heard);
        Ok(JetStreamLog { shared })
    }

    fn start(shared: &Arc<Shared>, heard: mpsc::Receiver<bytes::Bytes>) {
        let heard = Arc::new(tokio::sync::Mutex::new(heard));
        let follows = shared.clone();
        task::begin(async move {
            let stop = follows.closing.clone();
            supervise::run("log-head", &stop, || pulse::follow(follows.clone(), heard.clone())).await;
        });
        let watches = shared.clone();
        task::begin(async move {
            let stop = watches.closing.clone();
            supervise::run("log-watch", &stop, || pulse::watch(watches.clone())).await;
        });
        let finishes = shared.clone();
        task::begin(async move {
            let stop = finishes.closing.clone();
            supervise::run("log-erasures", &stop, || pulse::finish_erasures(finishes.clone())).await;
        });
    }

    /// What servers and streams are, and what weakens a promise.
    pub async fn look(&self) -> Result<check::Found, String> {
        let looked = check::look_by(&self.shared.link, &self.shared.options).await;
        looked
            .map(|(found, _)| found.into_said())
            .map_err(|failure| failure.to_string())
    }

    fn may_append(&self) -> Result<(), AppendError> {
        if self.shared.is_closing() {
            return Err(AppendError::Closed);
        }
        if let Some(why) = self.shared.wrong() {
            return Err(AppendError::Failing(why));
        }
        if let Some(why) = self.shared.held() {
            return Err(AppendError::Failing(why));
        }
        match self.shared.trouble() {
            // The servers are asked again after a while.
            Some((full @ AppendError::Full(_), since)) if since.elapsed() < shared::FULL_FOR => Err(full),
            _ => pulse::over_room(&self.shared).map_or(Ok(()), Err),
        }
    }

    fn may_read(&self) -> Result<(), ReadError> {
        self.shared.is_another().map_or(Ok(()), |why| Err(ReadError(why)))
    }

    fn may_change(&self) -> Result<(), ChangeError> {
        self.shared.is_another().map_or(Ok(()), |why| Err(ChangeError(why)))
    }
}

#[async_trait]
impl Log for JetStreamLog {
    async fn append(&self, incoming: Incoming) -> Result<Appended, AppendError> {
        self.may_append()?;
        let shared = self.shared.clone();
        // Whoever stops waiting does not stop it.
        let stored = task::begin(async move {
            let until = Instant::now() + PATIENCE;
            let place = tokio::time::timeout_at(until, shared.places.acquire()).await;
            let _place = match place {
                Ok(Ok(place)) => place,
                Ok(Err(_)) => return Err(AppendError::Closed),
                Err(_) => return Err(AppendError::Overloaded),
            };
            let known = *shared.head.borrow();
            append::store(&shared, &Prepared::new(incoming), known, until).await
        });
        stored
            .await
            .unwrap_or_else(|_| Err(AppendError::Failing("storing it was interrupted".into())))
    }

    async fn append_in_order(&self, together: Vec<Incoming>) -> Vec<Result<Appended, AppendError>> {
        if let Err(why) = self.may_append() {
            return together.iter().map(|_| Err(why.clone())).collect();
        }
        let (shared, count) = (self.shared.clone(), together.len());
        let stored = task::begin(async move { append::store_in_order(&shared, together).await });
        let interrupted = || Err(AppendError::Failing("storing it was interrupted".into()));
        stored
            .await
            .unwrap_or_else(|_| (0..count).map(|_| interrupted()).collect())
    }

    fn ready(&self) -> Result<(), AppendError> {
        self.may_append()?;
        self.shared.trouble().map_or(Ok(()), |(why, _)| Err(why))
    }

    fn forget_read_ahead(&self) {
        self.shared.feeds.clear();
    }

    fn since_turned(&self) -> Duration {
        self.shared.since_turned()
    }

    fn head(&self) -> watch::Receiver<Seq> {
        self.shared.head.subscribe()
    }

    fn first(&self) -> Seq {
        self.shared.first()
    }

    fn last_before(&self, seq: Seq) -> Option<Seq> {
        let last = seq.prev().min(*self.shared.head.borrow());
        (last >= self.shared.first()).then_some(last)
    }

    fn id(&self) -> &str {
        &self.shared.id
    }

    fn epoch(&self) -> &str {
        &self.shared.epoch
    }

    async fn read(&self, from: Seq, take: Take<'_>) -> Result<Batch, ReadError> {
        self.may_read()?;
        read::read(&self.shared, from, take).await
    }

    async fn get(&self, seq: Seq) -> Result<Option<Arc<Event>>, ReadError> {
        self.may_read()?;
        read::get(&self.shared, seq).await
    }

    async fn find(&self, id: &str) -> Result<Vec<Seq>, ReadError> {
        self.may_read()?;
        known::find(&self.shared, id).await
    }

    async fn find_revision(&self, key: &EventKey) -> Result<Option<Seq>, ReadError> {
        self.may_read()?;
        known::find_revision(&self.shared, key).await
    }

    async fn find_same(&self, event: &Event) -> Result<Option<Seq>, ReadError> {
        self.may_read()?;
        known::find_same(&self.shared, event).await
    }

    async fn seq_at(&self, time: Timestamp) -> Result<Seq, ReadError> {
        self.may_read()?;
        times::seq_at(&self.shared, time).await
    }

    fn cuts(&self) -> Vec<Cut> {
        let first = self.shared.first();
        let cuts = read_lock(&self.shared.cuts);
        cuts.iter().filter(|cut| cut.before > first).copied().collect()
    }

    async fn drop_before(&self, seq: Seq) -> Result<Seq, ChangeError> {
        self.may_change()?;
        sweep::drop_before(&self.shared, seq).await
    }

    fn disk_bytes(&self) -> (u64, u64) {
        (self.shared.bytes(), 0)
    }

    fn set_room(&self, bytes: u64) {
        self.shared.room.store(bytes, Ordering::Relaxed);
    }

    fn hold_until_past(&self, seen: Seq) {
        self.shared.hold_until_past(seen);
    }

    /// Each costs a message: so many take hours.
    fn leap_max(&self) -> u64 {
        1 << 28
    }

    async fn skip_past(&self, seen: Seq) -> Result<(), AppendError> {
        match self.shared.is_another() {
            Some(why) => Err(AppendError::Failing(why)),
            None => skip::skip_past(&self.shared, seen).await,
        }
    }

    async fn erase(&self, narrow: Narrow, doomed: Arc<Doomed>) -> Result<Erased, ChangeError> {
        self.may_change()?;
        let erased = erase::erase(&self.shared, &narrow, &doomed).await;
        self.shared.feeds.clear();
        erased
    }

    fn stats(&self) -> Stats {
        let info = read_lock(&self.shared.info).clone();
        let gaps = self.shared.losses.gap(&info.state, self.shared.first());
        Stats {
            first: self.shared.first(),
            last: *self.shared.head.borrow(),
            events: self.shared.events(),
            received_bytes: self.shared.bytes(),
            disk_bytes: self.shared.bytes(),
            segments: 1,
            unsealed: 0,
            oldest_at: *read_lock(&self.shared.oldest),
            gaps: gaps.into_iter().collect(),
            keys_doubted: None,
        }
    }

    fn servers(&self) -> Option<Servers> {
        let info = read_lock(&self.shared.info);
        Some(Servers {
            stream: self.shared.stream().to_owned(),
            replicas: self.shared.options.replicas,
            ..info.cluster.as_ref().map(api::Peers::shown).unwrap_or_default()
        })
    }

    async fn verify(&self, progress: &(dyn Fn(usize, usize) + Send + Sync)) -> Vec<String> {
        verify::verify(&self.shared, progress).await
    }

    async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.places.close();
        self.shared.feeds.clear();
        self.shared.link.close().await;
        self.shared.reader.close().await;
    }
}

/// Where what is known is, for who compares the engines.
#[cfg(test)]
pub(in crate::log) fn subject_of_known(key: &crate::log::known_key::KnownKey) -> String {
    key::Key::of_known(key).subject("s", 0)
}

/// The same of an event.
#[cfg(test)]
pub(in crate::log) fn subject_of_event(key: &EventKey, partial: bool) -> String {
    let key = if partial {
        key::Key::of_partial(key)
    } else {
        key::Key::of_event(key)
    };
    key.subject("s", 0)
}

#[cfg(test)]
mod tests;
