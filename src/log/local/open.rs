//! Opening a data directory: by the one process that writes it, or to look at it.

use std::io;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;

use super::commit::{self, Committer};
use super::description::{self, Description};
use super::files::raise_limit;
use super::gaps::Gaps;
use super::handle::{DOUBTS_MAX, LocalLog, QUEUE_MAX, Threads, Writer};
use super::journal::{Journal, Newest};
use super::keeper::Keeper;
use super::known::KnownKeys;
use super::lock::take_lock;
use super::lookup::Lookup;
use super::options::Options;
use super::pending::Replies;
use super::recovery::{self, Inventory};
use super::refused::OpenError;
use super::shared::{Segment, Shared};
use super::{placed, scratch, transfer};
use crate::event::Seq;
use crate::files;
use crate::framefile::make_dir;
use crate::log::AppendError;
use crate::sync::{lock, read_lock, write_lock};
use crate::task;
use crate::telemetry;

fn fail_at(path: &Path) -> impl Fn(io::Error) -> OpenError + use<'_> {
    move |source| OpenError::Io {
        path: path.to_owned(),
        source,
    }
}

impl LocalLog {
    /// Opens the data directory, putting in order whatever the last stop left. Blocking; reads the newest journal.
    pub fn open(options: Options) -> Result<LocalLog, OpenError> {
        // A log of many segments has many files, and a command opens it as the daemon does.
        raise_limit();
        if options.read_only {
            return LocalLog::open_read_only(options);
        }
        let dir = options.dir.clone();
        let fail = fail_at(&dir);
        make_dir(&dir).map_err(&fail)?;
        let lock = take_lock(&dir)?;
        refuse_unfinished(&dir)?;
        for left in scratch::prepare(&dir) {
            tracing::warn!("{left}");
        }
        let (shared, newest) = take_stock(options)?;
        let newest = match newest {
            Some(newest) => newest,
            None => begin_segment(&shared)?,
        };
        note_beginning(&shared).map_err(&fail)?;
        // Somebody may ask whether it is ready before anything arrives, and before anybody else has looked.
        let is_told = read_lock(&shared.trouble).is_some();
        if !is_told && let Err(trouble) = commit::check_space(&shared) {
            shared.set_trouble(Some(trouble));
        }
        // The queue has room for every place there is, and for the few requests that need none.
        let (requests, waiting) = sync_channel(QUEUE_MAX + 16);
        let (doubts, doubted) = sync_channel(DOUBTS_MAX);
        let replies = Replies::new();
        let lookup = Lookup {
            shared: shared.clone(),
            doubts: doubted,
            requests: requests.clone(),
            replies: replies.clone(),
        };
        let committer = Committer::new(shared.clone(), newest, replies, doubts).map_err(&fail)?;
        let keeper = Keeper::new(shared.clone());
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            telemetry::supervised(name);
            task::begin_thread(name, run).map_err(&fail)
        };
        let threads = Threads {
            commit: spawn("commit", Box::new(move || committer.run(&waiting)))?,
            keeper: spawn("keeper", Box::new(move || keeper.run()))?,
            lookup: spawn("lookup", Box::new(move || lookup.run()))?,
            lock,
        };
        let writer = Writer {
            requests,
            places: Arc::new(Semaphore::new(QUEUE_MAX)),
            threads: Mutex::new(Some(threads)),
            desk_of: shared.clone(),
        };
        Ok(LocalLog {
            shared,
            writer: Some(Arc::new(writer)),
        })
    }

    fn open_read_only(options: Options) -> Result<LocalLog, OpenError> {
        refuse_unfinished(&options.dir)?;
        LocalLog::open_unfinished(options)
    }

    /// Opens what a copy has made so far, to look at it ([`super::Placer::finish`]).
    pub fn open_unfinished(options: Options) -> Result<LocalLog, OpenError> {
        let options = Options {
            read_only: true,
            ..options
        };
        let (shared, _) = take_stock(options)?;
        Ok(LocalLog { shared, writer: None })
    }
}

fn refuse_unfinished(dir: &Path) -> Result<(), OpenError> {
    transfer::refuse_unfinished(dir)?;
    placed::refuse_unfinished(dir)
}

/// Reads what the data directory holds, and puts it in order unless it is only looked at.
fn take_stock(options: Options) -> Result<(Arc<Shared>, Option<Newest>), OpenError> {
    let (dir, repair) = (options.dir.clone(), !options.read_only);
    let description = Description::open(&dir, repair)?;
    let keys_dir = dir.join("keys");
    let mut known = KnownKeys::open(&keys_dir, repair, |path, error| {
        tracing::error!(
            path = %path.display(),
            %error,
            "known keys are damaged: repetitions of their events that have expired would be stored again"
        );
    })
    .map_err(fail_at(&keys_dir))?;
    let gaps = Gaps::open(&dir, repair, description.gaps_begun)?;
    if description.is_owed {
        gaps.wait_for_description();
    }
    let Inventory {
        segments,
        newest,
        next,
        mut owed,
        mut damage,
    } = recovery::take_inventory(&dir, &mut known, &gaps, repair)?;
    owed.sets = known.take_unsaved();
    owed.description = description.is_owed.then(|| description.clone());
    let trouble = owed.holds_back().filter(|_| repair).map(AppendError::Full);
    damage.extend(gaps.damage().map(str::to_owned));
    let mut shared = Shared::new(options, description.id, description.epoch, known, gaps);
    shared.damage = damage;
    let shared = Arc::new(shared);
    *write_lock(&shared.segments) = segments;
    *lock(&shared.owed) = owed;
    if trouble.is_some() {
        shared.set_trouble(trouble);
    }
    shared.head.send_replace(next.prev());
    Ok((shared, newest))
}

/// The oldest segment that is there is where the log begins from now on: what is missing before it is on record. Where there is no room for that
/// now, it is found again.
fn note_beginning(shared: &Shared) -> io::Result<()> {
    // Where there is none, not even the newest one could be begun.
    let oldest = read_lock(&shared.segments).keys().next().copied();
    if let Some(oldest) = oldest {
        shared.gaps.begin_at_or_owe(oldest)?;
    }
    // There may be no list on disk yet.
    if oldest.is_none() || shared.gaps.is_owed() {
        return Ok(());
    }
    match description::note_gaps_begun(&shared.options.dir) {
        Err(error) if files::is_full(&error) => Ok(()),
        noted => noted,
    }
}

fn begin_segment(shared: &Shared) -> Result<Newest, OpenError> {
    let next: Seq = shared.head.borrow().next();
    // Else nobody would know after a crash which Seqs before it were never given out.
    let settled = shared.gaps.settle().map_err(|source| shared.gaps.failed(source));
    let (journal, segment) = match settled.and_then(|()| Journal::create(&shared.log_dir, next)) {
        Ok((journal, segment)) => {
            let segment = Arc::new(segment);
            write_lock(&shared.segments).insert(next, Segment::Open(segment.clone()));
            (journal, segment)
        }
        // The daemon starts all the same (decision 2): what is kept can be read and delivered, and dropped so that there is room.
        Err(error) => {
            let trouble = commit::classify(&error);
            if !matches!(trouble, AppendError::Full(_)) {
                return Err(OpenError::Unreadable(error.to_string()));
            }
            let (journal, segment) = Journal::nowhere(&shared.log_dir, next).map_err(fail_at(&shared.log_dir))?;
            shared.set_trouble(Some(trouble));
            (journal, Arc::new(segment))
        }
    };
    Ok(Newest {
        journal,
        segment,
        events: 0,
        raw_bytes: 0,
        began: None,
    })
}
