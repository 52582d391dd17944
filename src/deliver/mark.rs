//! How far a sink is: its mark, one durable record, and what follows from all of them together.
//!
//! A record is self-contained: with it and the log everything goes on. It holds the main feed and the replays' feeds (what is
//! finished, what is open), the position of the sink's own data, and the letters that are to be removed because they were delivered.
//! Nobody but the sink's worker changes it while that runs; everybody else reads it here.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::ReplaySpec;
use super::fates::Fates;
use super::feed::{Saved, counted_on};
use super::letters::{Extent, Letters};
use super::schedule;
use super::seqs::Seqs;
use super::trail::{Last, Trail};
use crate::event::Seq;
use crate::retention::Floor;
use crate::sinks::{Mark, Position};
use crate::state::Store;

/// Ranges of lost events that are remembered, the newest.
pub(super) const LOST_RANGES_MAX: usize = 64;

/// A receiver's mark is written with each of its transactions. One that is longer is packed.
const PLAIN_MAX: usize = 8 << 10;

/// What a packed one begins with: zstd in base64 follows.
const PACKED: &str = "zstd:";

/// Long before a mark is so long it is a damaged one.
const MARK_MAX: u64 = 64 << 20;

/// What is saved for a sink.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// `None` until the sink's start is settled.
    pub main: Option<Saved>,
    pub position: Option<Position>,
    #[serde(default)]
    pub paused: bool,
    #[serde(default)]
    pub lost: u64,
    #[serde(default)]
    pub replays: BTreeMap<String, ReplayRecord>,
    /// When the sink left the configuration.
    #[serde(default)]
    pub detached_at: Option<Timestamp>,
    /// When this was saved; `None` before the first time.
    #[serde(default)]
    pub saved_at: Option<Timestamp>,
    /// Where the sink began; `None` where an older closehook settled it.
    #[serde(default)]
    pub begin: Option<Seq>,
    /// The newest ranges counted in `lost`.
    #[serde(default)]
    pub lost_ranges: Vec<(Seq, Seq)>,
    /// Dead letters made because the log reached its size limit.
    #[serde(default)]
    pub buried: u64,
    /// Since when it takes nothing; `None` while it works.
    #[serde(default)]
    pub held_since: Option<Timestamp>,
    /// From when on that counts, by the clock of the process that saved this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_counted_from: Option<Timestamp>,
    /// Letters that were delivered: to be removed once this is durable.
    #[serde(default)]
    pub remove: Vec<Seq>,
    /// What other sinks gave up and was tried here in vain so far; the letters' file has the rest.
    #[serde(default, skip_serializing_if = "Saved::is_idle")]
    pub given: Saved,
    /// What became of what is finished.
    #[serde(default)]
    pub fates: Fates,
    /// Transactions that the receiver is known to have committed.
    #[serde(default)]
    pub commits: u64,
    /// The receiver had no mark although it had committed; until somebody has seen to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmarked: Option<Unmarked>,
    /// When its position was found to be lost to damage, and it began anew; until somebody has seen that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun_anew: Option<Timestamp>,
    /// Of the lease under which this was saved, where several nodes share the log: it rises with each change of hands.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fence: u64,
    /// The log whose Seqs these are, where several nodes share one; `None` where an older closehook saved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_id: Option<String>,
    /// The log had lost what the sink had seen up to here, and has to go on behind it before anything is delivered; `None` once it is known
    /// that it does. Durable with what the record was taken back to: that fits the log, so nothing else would say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unskipped: Option<Seq>,
    /// The newest event below where the main feed goes on, of a sink whose receiver keeps the mark; `None` where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Last>,
    /// How much of the file of its dead letters is durable; `None` where there is none, or that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letters: Option<Extent>,
    /// Of what the sink is finished with up to here letters were lost to damage, and nobody knows which.
    #[serde(default, skip_serializing_if = "is_zero_seq")]
    pub letters_lost_upto: Seq,
    /// By what the damage is told that this was noted of: the same is not noted again as long as it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letters_doubted: Option<u64>,
    /// Since when letters are known to have been lost to damage; until somebody has seen that. Whoever has found it may have been a command,
    /// of which nobody reads what it says of other sinks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letters_lost: Option<Timestamp>,
    /// By what the damage is told that somebody has seen: it is not said again, however long it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letters_seen: Option<u64>,
    /// In a receiver's mark: new events that it has got since the record that was durable here. Empty in a record.
    #[serde(default, skip_serializing_if = "Seqs::is_empty")]
    pub delivered: Seqs,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
fn is_zero(fence: &u64) -> bool {
    *fence == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
fn is_zero_seq(seq: &Seq) -> bool {
    *seq == Seq::ZERO
}

/// A receiver that keeps the mark had none, and should have had one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unmarked {
    /// When that was seen.
    pub at: Timestamp,
    /// Transactions that it had committed.
    pub commits: u64,
    /// Where the sink goes on.
    pub cursor: Seq,
}

impl Unmarked {
    /// What it means and what to do, one sentence.
    pub fn words(&self, sink: &str) -> String {
        format!(
            "the receiver had no mark of this sink, although it had committed {} transactions up to event {}: its database was put back empty, is another one, or lost the mark; new events go there, and what it has lost does not come by itself: `closehook replay --sink {sink}` sends it again, `closehook sinks resume {sink}` says that nothing is missing",
            self.commits, self.cursor
        )
    }
}

/// A replay job as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct JobRecord {
    pub spec: ReplaySpec,
    pub planned: BTreeMap<String, u64>,
    pub created_at: Timestamp,
    pub running: bool,
    /// Sinks that were forgotten since, with what they had got by then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub forgotten: BTreeMap<String, ReplayRecord>,
}

impl JobRecord {
    /// Whether the sink is to get anything of it.
    pub fn is_for(&self, sink: &str) -> bool {
        self.planned.contains_key(sink) && !self.forgotten.contains_key(sink)
    }
}

/// A replay's progress at one sink.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ReplayRecord {
    pub saved: Saved,
    pub delivered: u64,
    pub dead: u64,
    pub done: bool,
    /// Of which the sink's transform wanted nothing delivered.
    #[serde(default)]
    pub skipped: u64,
    /// Passed undelivered because the log reached its size limit.
    #[serde(default)]
    pub lost: u64,
}

/// Where a sink's record is kept.
pub(super) fn record_key(sink: &str) -> String {
    format!("sink/{sink}")
}

/// What the keys of records begin with.
pub(super) const RECORDS: &str = "sink/";

/// What the keys of replay jobs begin with.
pub(super) const JOBS: &str = "replay/";

impl Record {
    /// If the machine's clock was set back since this was saved, nothing has to wait for it to catch up; and where another process saved
    /// it, what has waited there for long goes on growing old from here.
    pub fn follow_clock(&mut self, now: Timestamp) {
        let saved_at = self.saved_at;
        let is_own = saved_at.is_some_and(|at| (schedule::began()..=now).contains(&at));
        if !is_own {
            self.feeds_mut().for_each(|saved| saved.count_on(saved_at, now));
            let from = counted_on(self.held_counted_from, saved_at, now);
            self.held_counted_from = self.held_since.and(Some(from));
        }
        let ahead = self.saved_at.map_or(SignedDuration::ZERO, |at| at.duration_since(now));
        if ahead.is_positive() {
            self.feeds_mut().for_each(|saved| saved.set_back(ahead, now));
            // One that is past may have been noted by a clock that was right.
            let back = |at: Timestamp| if at > now { at.checked_sub(ahead).ok() } else { Some(at) };
            self.held_since = self.held_since.and_then(back);
        }
    }

    fn feeds_mut(&mut self) -> impl Iterator<Item = &mut Saved> {
        let replays = self.replays.values_mut().map(|replay| &mut replay.saved);
        replays.chain(&mut self.main).chain([&mut self.given])
    }

    /// From now on it takes nothing, unless it has not done so before.
    pub fn hold(&mut self, now: Timestamp) {
        if self.held_since.is_none() {
            (self.held_since, self.held_counted_from) = (Some(now), Some(now));
        }
    }

    /// It works.
    pub fn release(&mut self) {
        (self.held_since, self.held_counted_from) = (None, None);
    }

    /// The sink begins here.
    pub fn begin_at(&mut self, start: Seq) {
        self.begin = Some(start);
        self.main = Some(Saved {
            next: start,
            open: Vec::new(),
        });
    }

    /// What is known of the log where the main feed goes on.
    pub fn trail(&self) -> Trail {
        Trail::at(self.main.as_ref().map(|main| main.next), self.last.as_ref())
    }

    /// Everything up to here is finished; `None` while the start is not settled.
    pub fn cursor(&self) -> Option<Seq> {
        Some(unfinished(self.main.as_ref()?).prev())
    }

    /// The newest event before where the main feed goes on.
    pub fn passed(&self) -> Seq {
        self.main.as_ref().map_or(Seq::ZERO, |main| main.next.prev())
    }

    /// Compares the letters, which were read, with what was noted of them. Where damage has taken some it may be that of any event before
    /// where the main feed goes on; what comes behind is delivered if it has no letter. `true`: that is news, and has to be saved. Blocking.
    pub fn compare_letters(&mut self, letters: &Letters) -> bool {
        let noted = self.letters.filter(|_| !letters.is_shared());
        let is_cut = noted.is_some_and(|noted| letters.lacks(noted));
        let upto = self.passed();
        let is_damaged = self.doubt_letters(letters, upto);
        if is_cut {
            // What is saved next says how much there is now.
            self.lose_letters(upto);
        }
        is_cut || is_damaged
    }

    /// Notes damage that was found where the letters are, once: of what comes before here some letter may be lost. `true`: that is news.
    pub fn doubt_letters(&mut self, letters: &Letters, upto: Seq) -> bool {
        let mark = letters.damage_mark();
        let is_news = if letters.is_shared() {
            // Places rise: a node that has not read as far finds an earlier one, which was noted as well.
            mark > self.letters_doubted
        } else {
            mark.is_some() && mark != self.letters_doubted
        };
        if !is_news {
            return false;
        }
        self.letters_doubted = mark;
        self.lose_letters(upto);
        true
    }

    fn lose_letters(&mut self, upto: Seq) {
        // A sink that has read nothing yet may have had letters all the same, from others.
        self.letters_lost_upto = self.letters_lost_upto.max(upto).max(Seq(1));
        self.letters_lost.get_or_insert_with(Timestamp::now);
    }

    /// The newest durable record, with what people have ordered since: a part of what is to be saved, which waits for nothing.
    pub fn with_orders_of(&self, now: &Record) -> Record {
        Record {
            paused: now.paused,
            unmarked: now.unmarked.clone(),
            begun_anew: now.begun_anew,
            letters_lost: now.letters_lost,
            letters_seen: now.letters_seen,
            ..self.clone()
        }
    }

    /// Whether what people have ordered is in both the same.
    pub fn has_orders_of(&self, now: &Record) -> bool {
        let orders = |record: &Record| {
            (
                record.paused,
                record.begun_anew,
                record.letters_lost,
                record.letters_seen,
            )
        };
        orders(self) == orders(now) && self.unmarked == now.unmarked
    }

    /// Whether the sink is finished with an event.
    pub fn has_finished(&self, seq: Seq) -> bool {
        let main = self.main.as_ref().filter(|main| seq < main.next);
        main.is_some_and(|main| main.open.iter().all(|item| item.seq != seq))
    }

    /// Events were gone before the sink had them; what is known to be lost is counted once.
    pub fn count_lost(&mut self, from: Seq, to: Seq) {
        if self
            .lost_ranges
            .iter()
            .any(|(first, last)| *first <= from && to <= *last)
        {
            return;
        }
        self.lost += to.0 - from.0 + 1;
        match self.lost_ranges.last_mut() {
            Some((_, last)) if last.next() == from => *last = to,
            _ => self.lost_ranges.push((from, to)),
        }
        if self.lost_ranges.len() > LOST_RANGES_MAX {
            let (_, upto) = self.lost_ranges.remove(0);
            self.fates.forget(Some(upto));
        }
    }

    /// Whether the event is known to have been lost for the sink.
    pub fn has_lost(&self, seq: Seq) -> bool {
        self.lost_ranges.iter().any(|(from, to)| (*from..=*to).contains(&seq))
    }

    /// Whether the mark that a receiver keeps is of a node that had the sink later.
    pub fn is_behind(&self, mark: &Mark, epoch: &str) -> bool {
        mark.epoch == epoch && Record::of_mark(mark).is_some_and(|theirs| theirs.fence > self.fence)
    }

    /// What a mark that a receiver keeps says; `None` where it is not what it should be.
    pub fn of_mark(mark: &Mark) -> Option<Record> {
        serde_json::from_slice(&unpacked(&mark.text)?).ok()
    }

    /// The record as a receiver keeps it, with the data.
    pub fn to_mark(&self, epoch: &str) -> Mark {
        Mark {
            epoch: epoch.to_owned(),
            seq: self.cursor().unwrap_or_default(),
            text: packed(serde_json::to_string(self).unwrap_or_default()),
        }
    }

    /// This record, settled with the mark that the receiver keeps. `is_dead` says whether there is a letter for an event.
    ///
    /// A receiver that has committed more than is known here has committed what was never answered, and its mark says what; meanwhile
    /// events may have become dead here, or been dropped from the log. So what either side has finished is finished, and a letter for
    /// what turns out to be delivered goes. A receiver that has committed less was set back, and gets again what it has lost; what is
    /// dead stays dead. A mark of another epoch of the log says nothing.
    pub fn settled_with(
        &self,
        mark: Option<&Mark>,
        epoch: &str,
        is_dead: impl Fn(Seq) -> bool,
    ) -> Result<Record, String> {
        let Some(mark) = mark.filter(|mark| mark.epoch == epoch) else {
            return Ok(self.clone());
        };
        let mut theirs = Record::of_mark(mark).ok_or("the mark that the receiver keeps for this sink can't be read")?;
        theirs.follow_clock(schedule::now());
        Ok(match theirs.commits.cmp(&self.commits) {
            Ordering::Equal => self.clone(),
            Ordering::Greater => self.united_with(theirs, is_dead),
            Ordering::Less => Record {
                main: theirs.main,
                last: theirs.last,
                replays: theirs.replays,
                commits: theirs.commits,
                fates: self.fates.set_back_to(&theirs.fates),
                // Of the letters that were delivered, those whose delivery it still has.
                remove: both(&self.remove, &theirs.remove),
                ..self.clone()
            },
        })
    }

    /// Both began with one durable record; the receiver went on with transactions that are not known here, and this side without it.
    fn united_with(&self, theirs: Record, is_dead: impl Fn(Seq) -> bool) -> Record {
        let mut remove: BTreeSet<Seq> = self.remove.iter().chain(&theirs.remove).copied().collect();
        remove.extend(theirs.delivered.iter().filter(|seq| is_dead(*seq)));
        let next = |record: &Record| record.main.as_ref().map(|main| main.next);
        let ours_is_ahead = next(self) > next(&theirs);
        let fates = self.fates.united_with(&theirs.fates, ours_is_ahead);
        let last = if ours_is_ahead { self.last.clone() } else { theirs.last };
        let main = match (&self.main, theirs.main) {
            (Some(ours), Some(theirs)) => Some(ours.united_with(&theirs)),
            (ours, theirs) => theirs.or_else(|| ours.clone()),
        };
        let mut replays = self.replays.clone();
        for (id, theirs) in theirs.replays {
            let united = match replays.get(&id) {
                Some(ours) => ours.united_with(&theirs),
                None => theirs,
            };
            replays.insert(id, united);
        }
        let mut united = Record {
            main,
            last,
            replays,
            fates,
            commits: theirs.commits,
            remove: remove.into_iter().collect(),
            buried: self.buried.max(theirs.buried),
            // What the receiver had got before that goes on where it was.
            begun_anew: self.begun_anew.filter(|_| self.begun_anew == theirs.begun_anew),
            delivered: Seqs::default(),
            ..self.clone()
        };
        for (from, to) in theirs.lost_ranges {
            united.count_lost(from, to);
        }
        united
    }
}

impl ReplayRecord {
    fn united_with(&self, theirs: &ReplayRecord) -> ReplayRecord {
        ReplayRecord {
            saved: self.saved.united_with(&theirs.saved),
            delivered: self.delivered.max(theirs.delivered),
            dead: self.dead.max(theirs.dead),
            skipped: self.skipped.max(theirs.skipped),
            done: self.done || theirs.done,
            lost: self.lost.max(theirs.lost),
        }
    }
}

/// A mark's text as the receiver gets it.
fn packed(text: String) -> String {
    if text.len() <= PLAIN_MAX {
        return text;
    }
    match zstd::bulk::compress(text.as_bytes(), 1) {
        Ok(packed) => format!("{PACKED}{}", STANDARD_NO_PAD.encode(packed)),
        Err(_) => text,
    }
}

/// The text of a mark as it was before it was packed; `None` where it is not what it should be.
fn unpacked(text: &str) -> Option<Cow<'_, [u8]>> {
    let Some(packed) = text.strip_prefix(PACKED) else {
        return Some(text.as_bytes().into());
    };
    let packed = STANDARD_NO_PAD.decode(packed).ok()?;
    let decoder = zstd::stream::read::Decoder::new(&*packed).ok()?;
    let mut text = Vec::new();
    let read = std::io::Read::read_to_end(&mut std::io::Read::take(decoder, MARK_MAX), &mut text);
    read.ok().map(|_| text.into())
}

/// What is in both.
fn both(one: &[Seq], other: &[Seq]) -> Vec<Seq> {
    one.iter().copied().filter(|seq| other.contains(seq)).collect()
}

/// The first event that is not finished.
fn unfinished(saved: &Saved) -> Seq {
    saved.open.first().map_or(saved.next, |item| item.seq)
}

/// What must stay for the configured sinks, for those that are not known to be detached, and for replays that run. Reads nothing but
/// durable records; writes nothing.
pub async fn floor(store: &dyn Store, configured: &[&str]) -> Floor {
    match least(store, configured).await {
        Ok((seq, _)) => Floor::Known(seq),
        Err(why) => Floor::Unknown(why),
    }
}

/// Who is not done with what is at the floor, in words; `None`: nobody, or that can't be known now.
pub(super) async fn holder(store: &dyn Store, configured: &[&str]) -> Option<String> {
    let (_, sink) = least(store, configured).await.ok()?;
    let sink = sink?;
    Some(if configured.contains(&&*sink) {
        format!("sink \"{sink}\"")
    } else {
        format!("sink \"{sink}\", which is not configured any more, and that could not be noted yet,")
    })
}

/// What must stay, and for which sink.
async fn least(store: &dyn Store, configured: &[&str]) -> Result<(Seq, Option<String>), String> {
    let mut jobs = BTreeMap::new();
    for key in store.keys(JOBS).await.map_err(|error| error.to_string())? {
        let job: JobRecord = read(store, &key).await?.ok_or_else(|| format!("{key} has just gone"))?;
        jobs.insert(key.trim_start_matches(JOBS).to_owned(), job);
    }
    let mut records = BTreeMap::new();
    for key in store.keys(RECORDS).await.map_err(|error| error.to_string())? {
        let record: Option<Record> = read(store, &key).await?;
        records.extend(record.map(|record| (key.trim_start_matches(RECORDS).to_owned(), record)));
    }
    if let Some(missing) = configured.iter().find(|name| !records.contains_key(**name)) {
        return Err(format!("the position of sink \"{missing}\" is not known"));
    }
    let (mut least, mut holder) = (Seq(u64::MAX), None);
    for (name, record) in &records {
        let is_configured = configured.contains(&name.as_str());
        if record.detached_at.is_some() && !is_configured {
            continue;
        }
        let main = record.main.as_ref();
        let main = main.ok_or_else(|| format!("the start of sink \"{name}\" is not settled"))?;
        let mut own = unfinished(main);
        for (id, job) in &jobs {
            if !job.running || !job.is_for(name) {
                continue;
            }
            match record.replays.get(id) {
                Some(replay) if replay.done => {}
                Some(replay) => own = own.min(unfinished(&replay.saved)),
                None => own = own.min(job.spec.from),
            }
        }
        if own < least {
            (least, holder) = (own, Some(name.clone()));
        }
    }
    Ok((least, holder))
}

/// A value; an error names its key.
async fn read<T: serde::de::DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<T>, String> {
    let entry = store.get(key).await.map_err(|error| error.to_string())?;
    let value = entry.map(|entry| entry.json()).transpose();
    value.map_err(|error| format!("{key}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::super::feed::{SavedItem, Tries};
    use super::*;
    use crate::state::{Expected, LocalStore, put_json};

    fn saved(next: u64, open: &[u64]) -> Saved {
        let item = |seq: &u64| SavedItem {
            seq: Seq(*seq),
            tries: Tries::default(),
            due: None,
            lead: None,
            received_at: None,
            held: None,
            parked: None,
        };
        Saved {
            next: Seq(next),
            open: open.iter().map(item).collect(),
        }
    }

    fn record(next: u64, open: &[u64]) -> Record {
        Record {
            main: Some(saved(next, open)),
            ..Record::default()
        }
    }

    async fn put(store: &LocalStore, key: &str, value: &(impl Serialize + Sync)) {
        put_json(store, key, value, Expected::Anything).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_must_stay_is_what_the_slowest_durable_record_has_not_finished() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path(), false).unwrap();
        assert_eq!(floor(&store, &[]).await, Floor::Known(Seq(u64::MAX)));
        assert!(matches!(floor(&store, &["a"]).await, Floor::Unknown(_)));
        put(&store, "sink/a", &record(50, &[])).await;
        put(&store, "sink/b", &record(80, &[40, 41])).await;
        assert_eq!(
            floor(&store, &["a"]).await,
            Floor::Known(Seq(40)),
            "b is not known to be detached"
        );
        let detached = Record {
            detached_at: Some(Timestamp::UNIX_EPOCH),
            ..record(1, &[])
        };
        put(&store, "sink/c", &detached).await;
        let holder = holder(&store, &["a"]).await.unwrap();
        assert!(holder.contains("\"b\", which is not configured any more"), "{holder}");
        assert_eq!(floor(&store, &["a", "b"]).await, Floor::Known(Seq(40)));
        assert_eq!(floor(&store, &["a", "b", "c"]).await, Floor::Known(Seq(1)));
        assert!(matches!(floor(&store, &["a", "d"]).await, Floor::Unknown(why) if why.contains("\"d\"")));
        put(&store, "sink/d", &Record::default()).await;
        assert!(
            matches!(floor(&store, &["a"]).await, Floor::Unknown(_)),
            "a start that is not settled"
        );
        put(&store, "sink/d", &"nonsense").await;
        assert!(matches!(floor(&store, &["a"]).await, Floor::Unknown(why) if why.contains("sink/d")));
        store.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_replay_that_runs_keeps_what_it_has_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path(), false).unwrap();
        put(&store, "sink/a", &record(50, &[])).await;
        let mut job = JobRecord {
            spec: ReplaySpec::of_partials(Seq(7), Seq(20)),
            planned: [("a".to_owned(), 3)].into(),
            created_at: Timestamp::UNIX_EPOCH,
            running: true,
            forgotten: BTreeMap::new(),
        };
        put(&store, "replay/rp_1", &job).await;
        assert_eq!(
            floor(&store, &["a"]).await,
            Floor::Known(Seq(7)),
            "no sink has begun it"
        );
        let mut begun = record(50, &[]);
        let replay = ReplayRecord {
            saved: saved(18, &[12]),
            ..ReplayRecord::default()
        };
        begun.replays.insert("rp_1".into(), replay);
        put(&store, "sink/a", &begun).await;
        assert_eq!(floor(&store, &["a"]).await, Floor::Known(Seq(12)));
        job.running = false;
        put(&store, "replay/rp_1", &job).await;
        assert_eq!(
            floor(&store, &["a"]).await,
            Floor::Known(Seq(50)),
            "an interrupted one keeps nothing"
        );
        store.close().await;
    }

    #[test]
    fn whoever_knows_more_of_the_receivers_transactions_is_believed() {
        let with = |commits, next, remove: &[u64]| Record {
            commits,
            remove: remove.iter().map(|seq| Seq(*seq)).collect(),
            ..record(next, &[])
        };
        let ours = with(5, 50, &[]);
        let settled = |theirs: &Record, epoch: &str| {
            let mark = theirs.to_mark(epoch);
            ours.settled_with(Some(&mark), "now", |_| false).unwrap()
        };
        assert_eq!(
            settled(&with(6, 60, &[3]), "now"),
            with(6, 60, &[3]),
            "a commit whose answer was lost"
        );
        assert_eq!(
            settled(&with(5, 40, &[3]), "now"),
            ours,
            "what came after it is known here only"
        );
        assert_eq!(
            settled(&with(4, 30, &[3]), "now"),
            with(4, 30, &[]),
            "the receiver was set back"
        );
        assert_eq!(settled(&with(9, 90, &[]), "before"), ours, "another life of the log");
        assert_eq!(ours.settled_with(None, "now", |_| false).unwrap(), ours);
        let damaged = Mark {
            text: "nonsense".into(),
            ..ours.to_mark("now")
        };
        assert!(ours.settled_with(Some(&damaged), "now", |_| false).is_err());
    }

    /// It was paused from the start, and another sink gives it what it gives up.
    #[test]
    fn damage_to_what_was_given_to_a_sink_that_has_read_nothing_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "letters once").unwrap();
        let letters = Letters::open(dir.path(), "a", false).unwrap();
        let mut record = record(1, &[]);
        assert!(record.compare_letters(&letters));
        assert!(record.letters_lost_upto > Seq::ZERO);
        // When it is not damaged any more that is all that is known.
        let clean = Letters::open(dir.path(), "a", false).unwrap();
        assert!(!record.compare_letters(&clean) && !clean.is_damaged());
        clean.note_lost_upto(record.letters_lost_upto);
        let giver = Letters::open(dir.path(), "giver", false).unwrap();
        giver.divert(&[Seq(7)], None).unwrap();
        assert!(clean.may_have_lost_given(Seq(7), &[giver]));
    }

    /// Each of a receiver's transactions has to write it.
    #[test]
    fn a_mark_with_all_that_waits_for_its_object_to_settle_stays_short_and_is_read_again() {
        let mut feed = super::super::feed::Feed::restore(&saved(1, &[]), crate::config::Order::None);
        let now = Timestamp::UNIX_EPOCH;
        for seq in 1..=2048_u64 {
            // As long as Close's are, and as random.
            let object: String = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(seq.to_le_bytes()));
            let body = format!(
                r#"{{"event":{{"id":"ev_{seq}","object_id":"lead_{}"}}}}"#,
                &object[..43]
            );
            let (source, kind) = (crate::event::Source::Webhook, crate::event::Kind::Event);
            let event = crate::event::Event::new(Seq(seq), now, source, kind, None, body.into());
            feed.settle(&event, SignedDuration::from_secs(3600), |wait| {
                now.checked_add(wait).unwrap()
            });
        }
        let record = Record {
            main: Some(feed.save()),
            commits: 1,
            ..Record::default()
        };
        let plain = serde_json::to_string(&record).unwrap().len();
        let mark = record.to_mark("now");
        assert!(
            plain > 400_000 && mark.text.len() < plain / 4,
            "{plain} and {}",
            mark.text.len()
        );
        let settled = self::record(1, &[])
            .settled_with(Some(&mark), "now", |_| false)
            .unwrap();
        assert_eq!(settled.main, record.main);
        let short = self::record(5, &[]).to_mark("now");
        assert!(short.text.starts_with('{'), "as before");
    }

    #[test]
    fn a_receivers_mark_says_that_another_node_has_had_the_sink_since() {
        let of = |fence| Record {
            fence,
            ..record(10, &[])
        };
        let mark = of(2).to_mark("now");
        assert!(of(1).is_behind(&mark, "now"));
        assert!(!of(2).is_behind(&mark, "now") && !of(3).is_behind(&mark, "now"));
        assert!(!of(1).is_behind(&mark, "then"), "another life of the log");
        let mut long = of(2);
        long.lost_ranges = (0..2000).map(|n| (Seq(n * 10), Seq(n * 10 + 1))).collect();
        let packed = long.to_mark("now");
        assert!(!packed.text.starts_with('{'), "it is long enough to be packed");
        assert!(of(1).is_behind(&packed, "now") && !of(2).is_behind(&packed, "now"));
        assert_eq!(of(3).settled_with(Some(&mark), "now", |_| false).unwrap().fence, 3);
        assert!(
            !serde_json::to_string(&of(0)).unwrap().contains("fence"),
            "a node that is alone has none"
        );
    }

    fn settle(ours: &Record, theirs: &Record, dead: &[u64]) -> Record {
        let mark = theirs.to_mark("now");
        ours.settled_with(Some(&mark), "now", |seq| dead.contains(&seq.0))
            .unwrap()
    }

    fn seqs(seqs: &[u64]) -> Vec<Seq> {
        seqs.iter().copied().map(Seq).collect()
    }

    /// The receiver has committed 12 and 14, and nobody heard of it; then 11 to 19 were buried.
    #[test]
    fn a_letter_made_in_doubt_goes_when_the_receiver_turns_out_to_have_the_event() {
        let mut theirs = record(18, &[11, 13, 15, 16, 17]);
        theirs.commits = 1;
        theirs.delivered.extend(seqs(&[9, 12, 14]));
        let ours = Record {
            remove: seqs(&[3]),
            buried: 9,
            ..record(20, &[])
        };
        let settled = settle(&ours, &theirs, &[11, 12, 13, 14, 15, 16, 17, 18, 19]);
        assert_eq!(
            settled.main,
            Some(saved(20, &[])),
            "what is dead here is not delivered as well"
        );
        assert_eq!(settled.remove, seqs(&[3, 12, 14]), "and 9 is no letter");
        assert_eq!((settled.commits, settled.buried), (1, 9));
        assert!(settled.delivered.is_empty());
    }

    #[test]
    fn what_either_side_has_finished_is_finished() {
        let mut theirs = Record {
            commits: 4,
            remove: seqs(&[2]),
            ..record(30, &[11, 12, 25])
        };
        theirs.count_lost(Seq(21), Seq(22));
        let mut ours = Record {
            commits: 3,
            ..record(20, &[12, 13, 14])
        };
        ours.main.as_mut().unwrap().open[0].tries.reason = "here".into();
        let settled = settle(&ours, &theirs, &[]);
        let main = settled.main.as_ref().unwrap();
        assert_eq!(
            (main.next, main.open.iter().map(|item| item.seq).collect::<Vec<_>>()),
            (Seq(30), seqs(&[12, 25])),
            "11 was finished here, 13 and 14 there"
        );
        assert_eq!(main.open[0].tries.reason, "here");
        assert_eq!(
            (settled.lost, settled.has_lost(Seq(21)), settled.remove),
            (2, true, seqs(&[2]))
        );
        // The other way around nobody has read further than the receiver's transaction was made with.
        theirs.main = Some(saved(15, &[11, 12]));
        assert_eq!(settle(&ours, &theirs, &[]).main.unwrap().open.len(), 1);
    }

    #[test]
    fn a_sink_whose_receiver_kept_its_position_has_not_begun_anew() {
        let at = Some(Timestamp::UNIX_EPOCH);
        let lost = Record {
            begun_anew: at,
            ..record(1, &[])
        };
        let mut theirs = Record {
            commits: 7,
            ..record(50, &[])
        };
        let settled = settle(&lost, &theirs, &[]);
        assert_eq!((settled.cursor(), settled.begun_anew), (Some(Seq(49)), None));
        // What it has got since then it has got again.
        theirs.begun_anew = at;
        assert_eq!(settle(&lost, &theirs, &[]).begun_anew, at);
        let seen = Record {
            begun_anew: None,
            ..lost
        };
        assert_eq!(settle(&seen, &theirs, &[]).begun_anew, None, "somebody has seen it");
    }

    #[test]
    fn a_replay_goes_on_from_what_both_sides_have_finished() {
        let replay = |next, open: &[u64], delivered, lost| ReplayRecord {
            saved: saved(next, open),
            delivered,
            lost,
            ..ReplayRecord::default()
        };
        let mut ours = record(50, &[]);
        ours.replays.insert("rp_1".into(), replay(20, &[12], 3, 7));
        ours.replays.insert("rp_2".into(), replay(5, &[], 0, 4));
        let mut theirs = record(50, &[]);
        theirs.commits = 1;
        theirs.replays.insert("rp_1".into(), replay(15, &[11], 5, 0));
        let settled = settle(&ours, &theirs, &[]);
        assert_eq!(settled.replays["rp_1"], replay(20, &[], 5, 7));
        assert_eq!(settled.replays["rp_2"], ours.replays["rp_2"], "begun since");
    }

    #[test]
    fn a_receiver_that_was_set_back_has_the_letters_again_that_were_delivered_since() {
        let ours = Record {
            commits: 9,
            remove: seqs(&[3, 4]),
            buried: 2,
            ..record(50, &[])
        };
        let theirs = Record {
            commits: 7,
            remove: seqs(&[2, 3]),
            ..record(40, &[33])
        };
        let settled = settle(&ours, &theirs, &[33]);
        assert_eq!((settled.main, settled.commits), (Some(saved(40, &[33])), 7));
        assert_eq!(settled.remove, seqs(&[3]));
        assert_eq!(settled.buried, 2);
    }

    /// As written by the version before this one.
    #[test]
    fn an_older_record_is_read() {
        let text = r#"{"main":{"next":5,"open":[{"seq":3,"attempts":2,"first_attempt":"2024-02-15T12:00:00Z","reason":"no","due":null,"lead":null}]},
            "position":{"len":7},"paused":true,"lost":1,"replays":{"rp_1":{"saved":{"next":2,"open":[]},"delivered":1,"dead":0,"done":false}},
            "detached_at":null,"saved_at":"2024-02-15T12:00:00Z"}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!((record.cursor(), record.paused, record.lost), (Some(Seq(2)), true, 1));
        assert_eq!(record.replays["rp_1"].saved.next, Seq(2));
    }
}
