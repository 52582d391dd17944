//! Copying a log from one engine to the other, with all that is known of its deliveries and of Close's side.
//!
//! Seqs, id and epoch stay what they are, so that positions, retries, dead letters and the marks that receivers keep hold as they are:
//! whoever goes on does so as after a restart. Therefore only one of both may go on. The order is what sees to that, whatever ends the
//! command in between: all of it is there and compared; then it is noted in the old log where it goes on; only then the new one becomes one
//! that can be opened.

mod back;
mod rest;
mod survey;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;

pub use back::copy_to_local;
pub use rest::{Rest, only_here, parting};
use survey::{BATCH, Survey, scan, survey};

use super::nodes::{self, Stores, stream_of};
use crate::close;
use crate::config::{Config, Engine};
use crate::deliver::{self, Mode};
use crate::event::{Event, Kind, Seq};
use crate::log::jetstream::copy::{self, Begun, CopyTarget, Item, Origin};
use crate::log::jetstream::{self, JetStreamLog};
use crate::log::known_key::KnownKey;
use crate::log::{self, LocalLog, Log, OpenError};
use crate::node;
use crate::state::{Expected, Store};
use crate::task;

/// A node that is alive renews its record more often.
const NODES_WATCHED: Duration = Duration::from_secs(8);

/// In the state of the log that is made: which log is copied into it.
const COPYING: &str = "copying";

/// Below it in the bucket is what is known of Close's side.
const SEALED: &str = "sealed/";

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The log is read from end to end.
    Reading,
    /// Its events are stored.
    Copying,
    /// What was stored is read and compared.
    Comparing,
}

/// Hears of a step how far it is: a Seq, and the last one there will be.
pub type Progress<'p> = &'p (dyn Fn(Step, Seq, Seq) + Send + Sync);

/// What was copied.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Copied {
    /// Where the log is now.
    pub to: String,
    /// Its id and epoch, as before.
    pub id: String,
    /// See `id`.
    pub epoch: String,
    /// The first Seq that is kept.
    pub first: Seq,
    /// The last Seq that was given out.
    pub last: Seq,
    /// Events, those in quarantine included.
    pub events: u64,
    /// Of these in quarantine.
    pub quarantined: u64,
    /// Erased ones, which stay that.
    pub erased: u64,
    /// Keys of events that have expired and may come again.
    pub known: u64,
    /// Bytes of bodies.
    pub bytes: u64,
    /// SHA-256 over every event with all that is kept of it, read from both logs.
    pub sha256: String,
    /// Values of the state: positions, replays, rules.
    pub state: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Letters that sinks have given up to others, which have still to deliver them.
    pub given_letters: u64,
    /// What damage has taken from dead letters, and so from the copy; a sentence for each sink.
    pub damaged_letters: Vec<String>,
    /// Files of what is known of Close's side.
    pub close: u64,
    /// Ranges (inclusive) that damage has taken from the log, and so from the copy.
    pub damaged: Vec<(Seq, Seq)>,
    /// An earlier try had come up to here.
    pub resumed_at: Option<Seq>,
    /// All of it was done by an earlier try.
    pub was_done: bool,
    /// Events that were received here after they were all copied, and that are there now, behind what has come there since.
    pub later: u64,
}

impl Copied {
    fn of(to: &str, origin: &Origin) -> Copied {
        Copied {
            to: to.to_owned(),
            id: origin.id.clone(),
            epoch: origin.epoch.clone(),
            first: origin.first,
            last: origin.last,
            ..Copied::default()
        }
    }

    fn take(&mut self, carried: deliver::Carried) {
        self.dead_letters = carried.letters;
        self.given_letters = carried.given;
        self.damaged_letters = carried.damaged;
    }
}

/// The keys of what was erased, by Seq, and those of what has expired, in order.
type Keys = (BTreeMap<Seq, KnownKey>, BTreeMap<Seq, KnownKey>);

async fn keys_of(log: &Arc<LocalLog>, erased: BTreeSet<Seq>) -> anyhow::Result<Keys> {
    let log = log.clone();
    let read = move || -> std::io::Result<Keys> {
        let (mut of_erased, mut of_expired) = (BTreeMap::new(), BTreeMap::new());
        let first = log.first();
        log.known_keys(&mut |key, seq| {
            if erased.contains(&seq) {
                of_erased.insert(seq, key);
            } else if seq < first {
                of_expired.insert(seq, key);
            }
        })?;
        Ok((of_erased, of_expired))
    };
    let read = task::begin_blocking(read).await?;
    read.map_err(|error| {
        anyhow!("the keys of known events can't be read: {error}; `closehook serve` puts right what is damaged of them")
    })
}

/// Whether there is no data directory; that it can't be looked at is an error.
fn is_missing(dir: &Path) -> anyhow::Result<bool> {
    let found = dir.try_exists();
    let found = found.map_err(|error| anyhow!("{} can't be looked at: {error}", dir.display()))?;
    Ok(!found)
}

/// Copies the log of the data directory into the stream of the configuration.
pub async fn copy_to_jetstream(config: &Config, progress: Progress<'_>) -> anyhow::Result<Copied> {
    let dir = &config.log.dir;
    if is_missing(dir)? {
        bail!(OpenError::Missing(dir.clone()));
    }
    let options = jetstream::Options::from_config(config).map_err(|error| anyhow!(error))?;
    // Nobody else has the directory as long as this is kept.
    let _held = log::take_dir(dir)?;
    let to = stream_of(config);
    if let Some(moved) = log::moved(dir)?
        && moved.to != to
    {
        bail!(OpenError::Moved {
            dir: dir.clone(),
            to: moved.to
        });
    }
    let source = open_source(config).await?;
    let origin = Origin {
        id: source.id().to_owned(),
        epoch: source.epoch().to_owned(),
        first: source.first(),
        last: *source.head().borrow(),
    };
    let stores = nodes::stores(config).await?;
    let settled = settle_target(config, &stores, &origin).await;
    let begun = match settled {
        Ok(()) => CopyTarget::begin(options.clone(), &origin)
            .await
            .map_err(|error| anyhow!(error)),
        Err(error) => Err(error),
    }?;
    let mut copied = Copied::of(&to, &origin);
    let Begun::Target(target) = begun else {
        copied.later = copy_rest(dir, options, &source, progress).await?;
        log::note_moved(dir, &to, origin.last)?;
        stores.state.remove(COPYING, Expected::Anything).await?;
        copied.was_done = copied.later == 0;
        return Ok(copied);
    };
    // One that had opened the stream before it lost its identity.
    refuse_running(&stores).await?;
    copied.resumed_at = (!target.is_new).then(|| target.next().prev());
    copy_events(&source, &target, &origin, &mut copied, progress).await?;
    copied.state = copy_state(&*source_state(dir).await?, &*stores.state).await?;
    deliver::note_begun(&*stores.state, &origin.id).await?;
    copied.close = close::shared::carry(dir, &*stores.sealed).await? as u64;
    copied.take(deliver::carry_dead_letters(dir, &*stores.state, stores.letters.clone()).await?);
    refuse_running(&stores).await?;
    log::note_moved(dir, &to, origin.last)?;
    target.finish().await.map_err(|error| anyhow!(error))?;
    stores.state.remove(COPYING, Expected::Anything).await?;
    Ok(copied)
}

/// The log was copied before, and may have gone on here since: what it has received goes there too, behind what has come there.
async fn copy_rest(
    dir: &Path,
    options: jetstream::Options,
    source: &LocalLog,
    progress: Progress<'_>,
) -> anyhow::Result<u64> {
    let upto = match log::shared_upto(dir)? {
        // One that noted less had noted that it went nowhere else.
        None if log::moved(dir)?.is_some() => return Ok(0),
        upto => upto,
    };
    if upto.is_some_and(|upto| *source.head().borrow() <= upto) {
        return Ok(0);
    }
    let there = JetStreamLog::open(options).await?;
    let copied = async {
        let upto = match upto {
            Some(upto) => upto,
            None => parting(source, &there).await?,
        };
        rest::append(source, &there, upto, progress).await
    };
    let copied = copied.await;
    there.close().await;
    copied
}

async fn open_source(config: &Config) -> anyhow::Result<Arc<LocalLog>> {
    let options = log::Options {
        read_only: true,
        ..log::Options::from_config(config)
    };
    let opened = task::begin_blocking(move || LocalLog::open(options)).await?;
    Ok(Arc::new(opened?))
}

async fn source_state(dir: &Path) -> anyhow::Result<Arc<dyn Store>> {
    let store = deliver::open_store(dir, Mode::Look).await?;
    if store.is_damaged() {
        bail!(
            "the state in {} is damaged, and some positions may be gone: start `closehook serve` there once, so that it is put in order",
            dir.display()
        );
    }
    Ok(store)
}

/// Makes the buckets that are missing, and refuses those that others use.
async fn settle_target(config: &Config, stores: &Stores, origin: &Origin) -> anyhow::Result<()> {
    nodes::create_stores(config).await?;
    let faults = nodes::faults(config).await?;
    if !faults.is_empty() {
        bail!(faults.join("; "));
    }
    refuse_running(stores).await?;
    let mark = Bytes::from(serde_json::to_vec(origin)?);
    if let Some(entry) = stores.state.get(COPYING).await? {
        // What is there of an earlier try is looked at with the stream.
        let earlier = serde_json::from_slice::<Origin>(&entry.value).ok();
        if earlier.is_some_and(|earlier| origin.continues(&earlier)) {
            if entry.value != mark {
                stores.state.put(COPYING, mark.to_vec(), Expected::Anything).await?;
            }
        } else {
            bail!(
                "another log is being copied to {}, or this one has changed since: name another stream (log.jetstream.stream)",
                stream_of(config)
            );
        }
        return Ok(());
    }
    let options = jetstream::Options::from_config(config).map_err(|error| anyhow!(error))?;
    if copy::holds(&options, origin).await.map_err(|error| anyhow!(error))? {
        // An earlier try has come to its end.
        return Ok(());
    }
    if !stores.state.keys(SEALED).await?.is_empty() {
        bail!(
            "{} has been used: it knows Close's side of another log, its keys included; name another stream (log.jetstream.stream)",
            stream_of(config)
        );
    }
    if copy::holds_letters(&options).await.map_err(|error| anyhow!(error))? {
        bail!(
            "{} has been used: dead letters of another log are in {}_dead; name another stream (log.jetstream.stream)",
            stream_of(config),
            options.stream
        );
    }
    stores.state.put(COPYING, mark.to_vec(), Expected::Nothing).await?;
    Ok(())
}

async fn refuse_running(stores: &Stores) -> anyhow::Result<()> {
    let running = node::running(&*stores.nodes, NODES_WATCHED).await?;
    match running.first() {
        None => Ok(()),
        Some(_) => bail!("{} runs on that stream: stop every node first", running.join(", ")),
    }
}

async fn copy_events(
    source: &Arc<LocalLog>,
    target: &CopyTarget,
    origin: &Origin,
    copied: &mut Copied,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    let (first, last) = (origin.first, origin.last);
    let found = survey(&**source, first, last, Step::Reading, progress).await?;
    let (of_erased, of_expired) = keys_of(source, found.erased.keys().copied().collect()).await?;
    let store = async |items: &[Item]| target.put(items).await.map_err(|error| anyhow!(error));
    let from = first.max(target.next());
    let (mut at, mut newest) = (from, Timestamp::UNIX_EPOCH);
    scan(&**source, from, last, async |events, _, next| {
        let before = |seq: Seq| events.iter().take_while(|event| event.seq < seq).last();
        let begins_here = found.lost.iter().filter(|(first, _)| *first >= at && *first < next);
        let damage: Vec<Item> = begins_here
            .map(|(first, to)| Item::Lost(*first, *to, before(*first).map_or(newest, |event| event.received_at)))
            .collect();
        (at, newest) = (next, events.last().map_or(newest, |event| event.received_at));
        let item = |event: Arc<Event>| match event.kind {
            Kind::Erased => Item::Erased(event.seq, event.received_at, of_erased.get(&event.seq).cloned()),
            _ => Item::Event(event),
        };
        let mut items: Vec<Item> = events.into_iter().map(item).chain(damage).collect();
        items.sort_by_key(Item::place);
        store(&items).await?;
        progress(Step::Copying, next.prev(), last);
        Ok(())
    })
    .await?;
    target.fill(last.next()).await.map_err(|error| anyhow!(error))?;
    let known: Vec<Item> = (last.next().0..)
        .zip(&of_expired)
        .map(|(place, (seq, key))| Item::Known(Seq(place), key.clone(), *seq))
        .collect();
    for some in known.chunks(BATCH.0) {
        store(some).await?;
    }
    let messages = target.clear().await.map_err(|error| anyhow!(error))?;
    let noted = found.lost.len() + found.erased.len() + of_expired.len();
    let expected = found.events + noted as u64;
    if messages != expected {
        bail!("the stream holds {messages} messages, and {expected} were copied: something else stores there");
    }
    compare(&target.log(), &found, (first, last), progress).await?;
    copied.erased = found.erased.len() as u64;
    copied.known = of_expired.len() as u64;
    found.tell(copied);
    Ok(())
}

/// Reads all of what was copied.
async fn compare(
    log: &JetStreamLog,
    found: &Survey,
    (first, last): (Seq, Seq),
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    found.compare(&survey(log, first, last, Step::Comparing, progress).await?)?;
    for seq in found.erased.keys() {
        let is_erased = log.get(*seq).await?.is_some_and(|event| event.kind == Kind::Erased);
        if !is_erased {
            bail!("event {seq} is erased here, and not in the copy: remove the stream and begin anew");
        }
    }
    Ok(())
}

/// Puts every value of a state into another, and takes away what else is there; gives how many there are.
async fn copy_state(from: &dyn Store, to: &dyn Store) -> anyhow::Result<u64> {
    let mut kept = BTreeSet::from([COPYING.to_owned()]);
    let mut count = 0;
    for (key, value) in from.all().await? {
        if key == COPYING || key.starts_with(SEALED) {
            continue;
        }
        let value = deliver::carried_value(&key, value.to_vec());
        to.put(&key, value, Expected::Anything).await?;
        kept.insert(key);
        count += 1;
    }
    for key in to.keys("").await? {
        if !kept.contains(&key) && !key.starts_with(SEALED) {
            to.remove(&key, Expected::Anything).await?;
        }
    }
    Ok(count)
}

/// Has a log served again that was copied to somewhere else: as another life of it.
pub async fn reopen(config: &Config) -> anyhow::Result<()> {
    if config.log.engine == Engine::JetStream {
        let options = jetstream::Options::from_config(config).map_err(|error| anyhow!(error))?;
        return copy::reopen(&options).await.map_err(|error| anyhow!(error));
    }
    let dir = &config.log.dir;
    if is_missing(dir)? {
        bail!(OpenError::Missing(dir.clone()));
    }
    let _held = log::take_dir(dir)?;
    if log::moved(dir)?.is_none() {
        bail!(
            "the log in {} was not copied to anywhere: it is served as it is",
            dir.display()
        );
    }
    Ok(log::reopen(dir)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;
    use crate::event::Source;
    use crate::log::{Incoming, Options};
    use crate::state::LocalStore;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_keys_of_what_was_erased_and_of_what_has_expired_go_along_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::load(&Layers::new(&[], crate::rules::faults)).unwrap();
        config.log.dir = dir.path().to_owned();
        let options = Options {
            reserve: Some(0),
            ..Options::from_config(&config)
        };
        let log = Arc::new(LocalLog::open(options).unwrap());
        for id in 1..=4 {
            let body = format!(r#"{{"event":{{"id":"ev_{id}","date_updated":"2024-02-15T12:48:23.395"}}}}"#);
            let incoming = Incoming::new(body.into(), Timestamp::now(), Source::Webhook, None);
            Log::append(&*log, incoming).await.unwrap();
            if id == 2 {
                log.roll().await.unwrap();
                log.go_round().await.unwrap();
            }
        }
        assert_eq!(Log::drop_before(&*log, Seq(3)).await, Ok(Seq(3)));
        let (of_erased, of_expired) = keys_of(&log, BTreeSet::from([Seq(4)])).await.unwrap();
        assert!(of_erased.keys().eq(&[Seq(4)]), "{:?}", of_erased.keys());
        assert!(of_expired.keys().eq(&[Seq(1), Seq(2)]), "{:?}", of_expired.keys());
    }

    #[tokio::test]
    async fn a_sink_s_record_goes_along_without_what_it_notes_of_a_file_here() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = |dir: &tempfile::TempDir| LocalStore::open(dir.path(), false).unwrap();
        let (from, to) = (store(&here), store(&there));
        let record = r#"{"lost":3,"letters":{"ino":1,"made":2,"len":90}}"#;
        from.put("sink/a", record.into(), Expected::Anything).await.unwrap();
        from.put("replay/b", "{}".into(), Expected::Anything).await.unwrap();
        assert_eq!(copy_state(&from, &to).await.unwrap(), 2);
        let copied = to.get("sink/a").await.unwrap().unwrap();
        assert_eq!(copied.value, br#"{"lost":3}"#[..]);
        assert!(to.get("replay/b").await.unwrap().is_some());
    }
}
