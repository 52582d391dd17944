//! What may leave the log, and when: the one place that decides it.
//!
//! Three things are put together, each from its owner: where the log can be cut ([`Log::cuts`]), how far every reader durably is
//! ([`Readers::floor`]), and how much the data directory holds. Age and size say what is *wanted*; the floor says what *may* go; what
//! lies between is [buried](Readers::bury) by the readers at their own pace, and only under the size limit (decision 3). Then, in this
//! order: letters that refer to what goes are [copied](Readers::secure_letters), and the log [drops](Log::drop_before) it.
//!
//! What is not known counts as not finished: while a single record can't be read, nothing goes, and the log refuses new events
//! when it is full. Commands without a daemon run no retention at all.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::age::Clock;
use crate::config::Size;
use crate::event::Seq;
use crate::log::{Cut, Log, SCRATCH, space};
use crate::sync::{OneAtATime, lock};
use crate::telemetry::paced::Paced;

/// Without `log.max_size`, the data directory may take this share of its file system, in percent.
const SHARE_OF_FILE_SYSTEM: u64 = 80;

/// Known keys, state and dead letters count, but alone never make an event go: the events keep at least this part of the limit.
const EVENTS_SHARE: u64 = 4;

/// This part of the limit stays free of events: what goes is copied into dead letters first, and sealed beside its journal.
const HEADROOM: u64 = 8;

/// Dead letters of all sinks may take up this part of the limit, half of it while their files are not written anew.
const LETTERS_SHARE: u64 = 4;

/// Where they are, below the data directory.
const LETTERS: &str = "dead";

/// A clock that is further ahead than this of what is known for sure is worth a word; a delivery may have been on its way that long.
const DOUBTED: SignedDuration = SignedDuration::from_hours(1);

/// A walk through the data directory takes no longer, unless its disk does not answer.
const MEASURED_WITHIN: Duration = Duration::from_secs(60);

/// What is over this part of the room is wanted away, so that there is some left while it goes, in percent.
const FULL_AT: u64 = 90;

/// What the log must keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Floor {
    /// Every reader is durably done with everything before this Seq; the largest Seq there is where there are no readers.
    Known(Seq),
    /// It is not known, and so everything; one sentence.
    Unknown(String),
}

/// Whoever reads the log and must not miss anything of it.
#[async_trait]
pub trait Readers: Send + Sync {
    /// From durable records alone.
    async fn floor(&self) -> Floor;

    /// The log has to drop what is up to here: what is unfinished becomes dead letters, at the readers' own pace. Said in each
    /// round anew; [`Seq::ZERO`] when nothing has to be buried (any more).
    fn bury(&self, upto: Seq);

    /// Who is not done with anything before the floor, as a person may know it; `None`: nobody, or that is not known.
    async fn holder(&self) -> Option<String> {
        None
    }

    /// All dead letters together may take up so many bytes, beside what each sink is allowed. Said in each round anew.
    fn allow_letters(&self, bytes: u64) {
        let _ = bytes;
    }

    /// Bytes of dead letters, without what went of them and is still in their files.
    fn letters(&self) -> u64 {
        0
    }

    /// Copies every dead letter's event before this Seq, of any sink there is or was; durable when it returns.
    async fn secure_letters(&self, before: Seq) -> Result<(), String>;
}

/// How long and how much is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory.
    pub dir: PathBuf,
    /// How long events are kept.
    pub keep: Duration,
    /// Hard cap on all of the data directory, in bytes; `None`: 80 % of the file system.
    pub max_size: Option<u64>,
    /// The events are not in the data directory, but on servers: the cap is on what they take up there, and without `max_size` the servers
    /// alone say when they are full.
    pub on_servers: bool,
    /// Rounds are this far apart, or closer when the log fills up.
    pub round: Duration,
}

/// How it stands, for `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Standing {
    /// Bytes in the data directory, all of it.
    pub used_bytes: u64,
    /// The limit on them; `None`: this machine sets none.
    pub max_bytes: Option<u64>,
    /// What retention waits for; `None` where nothing that should go is held up.
    pub waits_for: Option<String>,
    /// What retention by age waits for, where it is the machine's clock alone by which more is old; `None`: it does not.
    pub waits_for_clock: Option<String>,
}

/// The cap on a data directory.
pub fn cap(dir: &Path, max_size: Option<u64>) -> io::Result<u64> {
    match max_size {
        Some(max_size) => Ok(max_size),
        None => Ok(space::of(dir)?.total / 100 * SHARE_OF_FILE_SYSTEM),
    }
}

/// Bytes on disk of everything below a directory, but for copies that somebody looks at events by: no event goes for that. What vanishes
/// meanwhile counts nothing.
pub fn used(dir: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    /// What `st_blocks` counts in (`stat(2)`).
    const BLOCK: u64 = 512;
    let mut bytes = 0;
    let scratch = dir.join(SCRATCH);
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        let listing = match std::fs::read_dir(&dir) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in listing {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => pending.extend(Some(entry.path()).filter(|path| *path != scratch)),
                Ok(metadata) => bytes += metadata.blocks() * BLOCK,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(bytes)
}

/// A sentence where what is no event leaves the events less than their share of the cap; for `check` and the start.
pub fn crowded(cap: u64, others: u64) -> Option<String> {
    (cap.saturating_sub(others) < cap / EVENTS_SHARE).then(|| {
        format!(
            "log.max_size is {}, and {} of it are taken by known keys, positions, dead letters and what was set aside: the events \
             themselves keep {} all the same, so that the data directory grows beyond its limit. Raise log.max_size",
            Size(cap),
            Size(others),
            Size(cap / EVENTS_SHARE)
        )
    })
}

/// What one round sees.
#[derive(Debug, Clone)]
struct Sight {
    /// By this machine's clock.
    now: Timestamp,
    /// At the least; `None`: nothing is old yet.
    at_least: Option<Timestamp>,
    keep: SignedDuration,
    cuts: Vec<Cut>,
    floor: Floor,
    /// Bytes of segments, without those of another form that is being made of one: that is there twice for a while, and no event goes for it.
    events: u64,
    /// Bytes of everything else in the data directory, but for that form.
    others: u64,
    /// Of these, known keys.
    keys: u64,
    /// Of these, files of dead letters.
    letters: u64,
    /// What is in those files: they grow to twice that before they are written anew, and then are there once more.
    live: u64,
    cap: u64,
}

impl Sight {
    /// Everything before this is older than it is kept, were it so late.
    fn older_at(&self, now: Timestamp) -> Option<&Cut> {
        let cutoff = now.checked_sub(self.keep).unwrap_or(Timestamp::MIN);
        self.cuts.iter().take_while(|cut| cut.newest < cutoff).last()
    }
}

/// What one round does.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    /// Bytes that segments may take.
    room: u64,
    /// Everything before this goes.
    drop_before: Option<Seq>,
    /// Everything up to here must be finished first: the log is too large.
    bury: Option<Seq>,
    /// What is held up, and by what.
    waits_for: Option<String>,
    /// What is old by this machine's clock alone, and why that is not believed.
    waits_for_clock: Option<String>,
}

/// Pure: what follows from what is seen.
fn plan(sight: &Sight) -> Plan {
    let part = sight.cap / HEADROOM;
    // Copies of what goes come on top.
    let grown = sight.letters.max(3 * sight.live + part / 2);
    let with_grown = sight.others.saturating_sub(sight.letters) + grown + part / 2;
    let others = with_grown.max(sight.others + part);
    let room = sight.cap.saturating_sub(others).max(sight.cap / EVENTS_SHARE);
    let too_old = sight.at_least.and_then(|now| sight.older_at(now));
    let surplus = sight.events.saturating_sub(room / 100 * FULL_AT);
    let too_many = if surplus == 0 {
        None
    } else {
        sight.cuts.iter().find(|cut| cut.frees >= surplus).or(sight.cuts.last())
    };
    let wanted = too_old.map(|cut| cut.before).max(too_many.map(|cut| cut.before));
    let nothing = Plan {
        room,
        drop_before: None,
        bury: None,
        waits_for: None,
        waits_for_clock: waits_for_clock(sight, wanted),
    };
    let Some(wanted) = wanted else { return nothing };
    let floor = match &sight.floor {
        Floor::Known(floor) => *floor,
        Floor::Unknown(why) => {
            return Plan {
                waits_for: Some(format!(
                    "events up to {} should go, and nothing does: {why}",
                    wanted.prev()
                )),
                ..nothing
            };
        }
    };
    let may_go = sight
        .cuts
        .iter()
        .map(|cut| cut.before)
        .take_while(|before| *before <= wanted && *before <= floor)
        .last();
    let bury = too_many.map(|cut| cut.before.prev()).filter(|upto| *upto >= floor);
    let waits_for = (floor < wanted).then(|| {
        let what = if bury.is_some() {
            "the log is at its size limit, and events become dead letters"
        } else {
            "events are older than log.retention, and kept"
        };
        format!(
            "{what}: not every sink is done with those from {} to {}",
            floor,
            wanted.prev()
        )
    });
    Plan {
        room,
        drop_before: may_go,
        bury,
        waits_for,
        ..nothing
    }
}

/// A sentence where more than goes is old by this machine's clock, and that is not what it waits a moment for.
fn waits_for_clock(sight: &Sight, wanted: Option<Seq>) -> Option<String> {
    let apart = sight.at_least.map(|at_least| sight.now.duration_since(at_least));
    if apart.is_some_and(|apart| apart < DOUBTED) {
        return None;
    }
    let old = sight.older_at(sight.now)?.before;
    if wanted.is_some_and(|wanted| wanted >= old) {
        return None;
    }
    let believed = match sight.at_least {
        Some(at_least) => format!("by what Close has told it is {at_least:.0} at the least"),
        None => "Close has told no time since the start, and the clock has not gone evenly for a day".into(),
    };
    Some(format!(
        "events up to {} are older than log.retention by this machine's clock alone ({:.0}), and kept: {believed}",
        old.prev(),
        sight.now
    ))
}

/// The retention of one data directory.
pub struct Retention {
    options: Options,
    log: Arc<dyn Log>,
    readers: Arc<dyn Readers>,
    /// By which events grow old.
    clock: Clock,
    /// As of the last round, its `used_bytes` without what the log counts itself: that is known at any time.
    standing: Mutex<Standing>,
    /// Bytes that segments may take, as the last round had it.
    room: AtomicU64,
    /// Held by whoever needs everything to stay for a while, and by the round that drops.
    dropping: tokio::sync::Mutex<()>,
    measuring: OneAtATime,
}

impl std::fmt::Debug for Retention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Retention")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Retention {
    /// Retention that has done nothing yet.
    pub fn new(options: Options, log: Arc<dyn Log>, readers: Arc<dyn Readers>, clock: Clock) -> Retention {
        Retention {
            options,
            log,
            readers,
            clock,
            standing: Mutex::default(),
            room: AtomicU64::new(u64::MAX),
            dropping: tokio::sync::Mutex::default(),
            measuring: OneAtATime::default(),
        }
    }

    /// How it stands: what the log takes now, everything else as of the last round.
    pub fn standing(&self) -> Standing {
        let mut standing = lock(&self.standing).clone();
        let (events, keys) = self.log.disk_bytes();
        standing.used_bytes += events + keys + self.log.reserved_bytes();
        standing
    }

    /// Nothing goes while this is held: for a backup, which is one picture of letters, marks and events.
    pub async fn hold(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.dropping.lock().await
    }

    /// Goes its rounds until it is told to stop.
    pub async fn run(&self, stop: CancellationToken) {
        let mut head = self.log.head();
        let mut failed = Paced::default();
        loop {
            match self.round().await {
                Ok(()) => failed.over(),
                Err(error) => {
                    if failed.is_news(&error) {
                        tracing::warn!(error, "old events could not be removed; this is tried again");
                    }
                    lock(&self.standing).waits_for = Some(error);
                }
            }
            let round = tokio::time::sleep(self.options.round);
            tokio::pin!(round);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = &mut round => break,
                    changed = head.changed() => {
                        // A log that is gone grows no more; the round goes on until it is told to stop.
                        if changed.is_err() { (&mut round).await; break }
                        if self.is_filling() { break }
                    }
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(self.options.round / 20) => {}
                }
            }
        }
    }

    /// Whether the log has grown so much since the last round that the next one should not wait.
    fn is_filling(&self) -> bool {
        let (segments, _) = self.log.disk_bytes();
        segments > self.room.load(Ordering::Relaxed) / 100 * FULL_AT
    }

    /// One round: looks, and does what follows.
    pub async fn round(&self) -> Result<(), String> {
        let sight = self.look().await?;
        let mut plan = plan(&sight);
        if let (Some(waits_for), Floor::Known(_)) = (&mut plan.waits_for, &sight.floor)
            && let Some(holder) = self.readers.holder().await
        {
            *waits_for = format!("{waits_for} ({holder} is furthest back)");
        }
        self.make_room(&plan);
        self.tell(&sight, &plan);
        self.readers.allow_letters(sight.cap / LETTERS_SHARE);
        let wants_room = plan.drop_before.is_some() || plan.bury.is_some();
        let Ok(_dropping) = self.dropping.try_lock() else {
            // What becomes a dead letter now makes no room.
            self.readers.bury(Seq::ZERO);
            if wants_room {
                lock(&self.standing).waits_for =
                    Some("old events stay until the backup that is being made has ended".into());
            }
            return Ok(());
        };
        self.readers.bury(plan.bury.unwrap_or(Seq::ZERO));
        if let Some(before) = plan.drop_before {
            self.secure_letters(before)
                .await
                .map_err(|error| format!("dead letters before event {before} can't be copied: {error}"))?;
            // That may have taken minutes: a sink or a replay that begins further back may have come since.
            let before = match self.readers.floor().await {
                Floor::Known(floor) => before.min(floor),
                // The next round says why.
                Floor::Unknown(_) => return Ok(()),
            };
            if before <= self.log.first() {
                return Ok(());
            }
            let first = self.log.drop_before(before).await.map_err(|error| error.to_string())?;
            tracing::info!(
                before = before.0,
                first = first.0,
                "old events are gone; the oldest kept is event {first}"
            );
        }
        Ok(())
    }

    /// So much may the log take up from now on.
    fn make_room(&self, plan: &Plan) {
        let (_, keys) = self.log.disk_bytes();
        self.log.set_room(plan.room.saturating_add(keys));
        self.room.store(plan.room, Ordering::Relaxed);
    }

    /// Has letters copied. What the copies take up is taken from the log's room while they are made: there may be many.
    async fn secure_letters(&self, before: Seq) -> Result<(), String> {
        let mut securing = self.readers.secure_letters(before);
        loop {
            tokio::select! {
                secured = &mut securing => return secured,
                () = tokio::time::sleep(self.options.round / 20) => {
                    if let Ok(sight) = self.look().await {
                        self.make_room(&plan(&sight));
                    }
                }
            }
        }
    }

    async fn look(&self) -> Result<Sight, String> {
        // The floor before the cuts: readers only go forward, so what is cut lies at or behind what was looked at.
        let floor = self.readers.floor().await;
        let reserved = self.log.reserved_bytes();
        let here = if self.options.on_servers {
            None
        } else {
            Some(self.measure().await?)
        };
        // What was measured may have gone or come since.
        let reserved = reserved.max(self.log.reserved_bytes());
        let (events, keys) = self.log.disk_bytes();
        let on_servers = || (events, 0, self.options.max_size.unwrap_or(u64::MAX));
        let (used, letters, cap) = here.unwrap_or_else(on_servers);
        Ok(Sight {
            now: self.clock.now(),
            at_least: self.clock.at_least(),
            keep: SignedDuration::try_from(self.options.keep).unwrap_or(SignedDuration::MAX),
            cuts: self.log.cuts(),
            floor,
            events,
            others: used.saturating_sub(events + reserved),
            keys,
            letters,
            live: self.readers.letters(),
            cap,
        })
    }

    /// What the data directory takes up, what dead letters do of it, and the cap.
    async fn measure(&self) -> Result<(u64, u64, u64), String> {
        let (dir, max_size) = (self.options.dir.clone(), self.options.max_size);
        let measured = self
            .measuring
            .run(move || Ok::<_, io::Error>((used(&dir)?, used(&dir.join(LETTERS))?, cap(&dir, max_size)?)));
        let cannot = |why: String| format!("the data directory can't be measured: {why}");
        match tokio::time::timeout(MEASURED_WITHIN, measured).await {
            Ok(Ok(measured)) => measured.map_err(|error| cannot(error.to_string())),
            Ok(Err(panicked)) => Err(panicked.to_string()),
            Err(_) => Err(cannot("the disk does not answer".into())),
        }
    }

    /// Says what is new, once.
    fn tell(&self, sight: &Sight, plan: &Plan) {
        let standing = Standing {
            used_bytes: sight.others.saturating_sub(sight.keys),
            max_bytes: Some(sight.cap).filter(|cap| *cap < u64::MAX),
            waits_for: plan.waits_for.clone(),
            waits_for_clock: plan.waits_for_clock.clone(),
        };
        let before = std::mem::replace(&mut *lock(&self.standing), standing);
        if before.max_bytes != Some(sight.cap)
            && let Some(crowded) = crowded(sight.cap, sight.others)
        {
            tracing::warn!("{crowded}");
        }
        if before.waits_for.is_none()
            && let Some(waits_for) = &plan.waits_for
        {
            tracing::error!("{waits_for}");
        }
        if before.waits_for_clock.is_none()
            && let Some(waits_for) = &plan.waits_for_clock
        {
            tracing::warn!("{waits_for}");
        }
    }
}

#[cfg(test)]
mod tests;
