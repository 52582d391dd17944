//! The last day, minute by minute: what came, what was stored, delivered and given up, for charts.
//!
//! Once a minute the counters of `/metrics` are read, and what they have grown by is kept: in memory, a bounded row of minutes, and as
//! one small frame in a file, so that a restart leaves no hole but the time in which nothing ran. Nothing on the way of an event knows
//! of it. A minute is what the wall clock called it; where that jumps, minutes are called twice or left out, and no count is lost.
//!
//! A process that is killed takes along what was counted since the last full minute, of the charts alone: what it had received is in the
//! log, and what it had delivered in the sinks' marks. One that is stopped writes that down as well.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::paced::Paced;
use crate::framefile::{self, Format, FrameError, FrameFile};
use crate::sync::lock;
use crate::task;

/// Minutes that are kept: a day, and as many again for those that a restart or a clock has called twice.
const MINUTES_MAX: usize = 2 * 24 * 60;

/// Beyond so many frames the file is written anew, with the minutes that are kept.
const FRAMES_MAX: usize = 3 * MINUTES_MAX;

/// Its name below the data directory.
const FILE: &str = "history";

const FORMAT: Format = Format {
    magic: *b"CLHKHIST",
    version: 1,
};

/// The frame of a minute.
const TAG_MINUTE: u32 = 0;

const MINUTE: Duration = Duration::from_secs(60);

/// What the counters say at a moment, since the process started.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// See [`Counts`].
    pub counts: Counts,
    /// By sink.
    pub sinks: BTreeMap<String, SinkReading>,
}

/// What a sink's counters say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SinkReading {
    /// Delivered.
    pub delivered: u64,
    /// Given up.
    pub dead: u64,
    /// Events behind, now; `None`: that is not known.
    pub lag_events: Option<u64>,
    /// Age in seconds of the oldest event that is not finished, now; `None`: that is not known.
    pub lag_seconds: Option<f64>,
}

impl Default for SinkReading {
    /// One that is not behind: whoever knows of it says so.
    fn default() -> SinkReading {
        SinkReading {
            delivered: 0,
            dead: 0,
            lag_events: Some(0),
            lag_seconds: Some(0.0),
        }
    }
}

/// What came to the daemon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests to the public listener that were meant as deliveries.
    #[serde(rename = "r")]
    pub received: u64,
    /// Events stored.
    #[serde(rename = "s")]
    pub stored: u64,
    /// Deliveries of what was stored already.
    #[serde(rename = "d")]
    pub duplicates: u64,
    /// Requests that were refused, or could not be answered well.
    #[serde(rename = "x")]
    pub refused: u64,
}

/// What one minute brought.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Minute {
    /// Minutes since the Unix epoch.
    #[serde(rename = "m")]
    pub number: i64,
    /// What came.
    #[serde(flatten)]
    pub counts: Counts,
    /// Sinks of which there is something to say, in order of name.
    #[serde(rename = "k", default, skip_serializing_if = "Vec::is_empty")]
    pub sinks: Vec<SinkMinute>,
}

/// What one minute brought at a sink: name, delivered, given up, events behind and seconds behind at its end, where these are known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SinkMinute(pub Arc<str>, pub u64, pub u64, pub Option<u64>, pub Option<f32>);

/// A number of the metrics, without what is behind its point.
fn whole(value: &str) -> Option<u64> {
    let (whole, _) = value.split_once('.').unwrap_or((value, ""));
    whole.parse().ok()
}

impl Reading {
    /// What the text that `/metrics` gives says; how far sinks are behind is not in it until somebody asks for that.
    pub fn of_metrics(text: &str) -> Reading {
        let mut reading = Reading::default();
        for line in text.lines().filter(|line| line.starts_with("closehook_")) {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let Some(value) = whole(value) else { continue };
            let label = |label: &str| {
                let behind = labels.split_once(&format!("{label}=\""))?.1;
                behind.split_once('"').map(|(value, _)| value)
            };
            let counts = &mut reading.counts;
            match name {
                "closehook_requests_total" => match label("answer") {
                    // Nobody who asks for another path meant to deliver.
                    None | Some("not_found" | "method") => {}
                    Some("stored" | "duplicate" | "quarantined") => counts.received += value,
                    Some(_) => {
                        counts.received += value;
                        counts.refused += value;
                    }
                },
                "closehook_stored_events_total" => counts.stored = value,
                "closehook_duplicate_events_total" => counts.duplicates = value,
                "closehook_sink_delivered_total" | "closehook_sink_dead_total" => {
                    let Some(sink) = label("sink") else { continue };
                    let sink = reading.sinks.entry(sink.to_owned()).or_default();
                    if name == "closehook_sink_dead_total" {
                        sink.dead = value;
                    } else {
                        sink.delivered = value;
                    }
                }
                _ => {}
            }
        }
        reading
    }

    /// What has come since `before`, as a minute.
    fn since(&self, before: &Reading, number: i64, names: &mut BTreeMap<String, Arc<str>>) -> Minute {
        let (now, then) = (&self.counts, &before.counts);
        let counts = Counts {
            received: now.received.saturating_sub(then.received),
            stored: now.stored.saturating_sub(then.stored),
            duplicates: now.duplicates.saturating_sub(then.duplicates),
            refused: now.refused.saturating_sub(then.refused),
        };
        let mut sinks = Vec::new();
        for (name, now) in &self.sinks {
            let then = before.sinks.get(name).copied().unwrap_or_default();
            let (delivered, dead) = (
                now.delivered.saturating_sub(then.delivered),
                now.dead.saturating_sub(then.dead),
            );
            // Of what is not known there is something to say, too: it is not none.
            let is_behind = now.lag_events != Some(0) || now.lag_seconds != Some(0.0);
            if delivered > 0 || dead > 0 || is_behind {
                let name = names
                    .entry(name.clone())
                    .or_insert_with(|| name.as_str().into())
                    .clone();
                sinks.push(SinkMinute(
                    name,
                    delivered,
                    dead,
                    now.lag_events,
                    now.lag_seconds.map(|age| age as f32),
                ));
            }
        }
        Minute { number, counts, sinks }
    }
}

/// Reads the counters.
pub type Source = Box<dyn Fn() -> Reading + Send + Sync>;

/// The time: by the wall clock, and by one that nobody sets.
pub struct Clock {
    /// By the wall clock.
    pub wall: Box<dyn Fn() -> Timestamp + Send + Sync>,
    /// Since a fixed moment.
    pub steady: Box<dyn Fn() -> Duration + Send + Sync>,
}

impl Default for Clock {
    fn default() -> Clock {
        let began = Instant::now();
        Clock {
            wall: Box::new(Timestamp::now),
            steady: Box::new(move || began.elapsed()),
        }
    }
}

/// The last day. Whoever asks for it never waits for the disk.
pub struct History {
    /// Held over what is written; taken before `state`.
    written: Mutex<Written>,
    state: Mutex<State>,
    /// `None`: nothing runs that could be counted.
    source: Option<Source>,
    clock: Clock,
    path: PathBuf,
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("History")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

struct State {
    minutes: VecDeque<Minute>,
    /// What was counted when the last minute was closed, and when that was.
    last: Reading,
    turned: Duration,
    names: BTreeMap<String, Arc<str>>,
}

/// What is on disk.
#[derive(Default)]
struct Written {
    /// `None`: it can't be written now, which is tried again with the next minute.
    file: Option<FrameFile>,
    frames: usize,
    /// It is another version's: it is left alone.
    is_foreign: bool,
    said: Paced,
}

impl History {
    /// What is kept below a data directory, to be looked at.
    pub fn look(dir: &Path) -> History {
        History::new(dir, None, Clock::default())
    }

    /// The same, and what `source` counts from now on. Blocking.
    pub fn open(dir: &Path, source: Source, clock: Clock) -> History {
        History::new(dir, Some(source), clock)
    }

    fn new(dir: &Path, source: Option<Source>, clock: Clock) -> History {
        let path = dir.join(FILE);
        let mut state = State {
            minutes: VecDeque::new(),
            last: Reading::default(),
            turned: (clock.steady)(),
            names: BTreeMap::new(),
        };
        let mut written = Written::default();
        let scanned = framefile::scan(&path, FORMAT, |frame| {
            written.frames += 1;
            if frame.tag == TAG_MINUTE
                && let Ok(minute) = serde_json::from_slice(frame.payload)
            {
                state.keep(minute);
            }
        });
        match scanned {
            Ok(_) => {}
            Err(FrameError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                written.is_foreign = matches!(error, FrameError::Newer { .. });
                tracing::warn!(%error, "the history of the last day can't be read: charts begin anew");
            }
        }
        History {
            written: Mutex::new(written),
            state: Mutex::new(state),
            source,
            clock,
            path,
        }
    }

    /// The minutes that are known, in the order in which they came, the one that runs at the end. May read all counters: blocking.
    pub fn minutes(&self) -> Vec<Minute> {
        let reading = self.source.as_ref().map(|source| source());
        let mut state = lock(&self.state);
        let mut minutes: Vec<Minute> = state.minutes.iter().cloned().collect();
        if let Some(reading) = reading {
            let number = minute_of((self.clock.wall)());
            let State { last, names, .. } = &mut *state;
            minutes.push(reading.since(last, number, names));
        }
        minutes
    }

    /// What each sink was delivered in so many minutes, the one that runs among them; one that is not there was delivered nothing. May
    /// read all counters: blocking.
    pub fn delivered_in(&self, minutes: i64) -> BTreeMap<String, u64> {
        let reading = self.source.as_ref().map(|source| source());
        let number = minute_of((self.clock.wall)());
        let mut state = lock(&self.state);
        let State { last, names, .. } = &mut *state;
        let running = reading.map(|reading| reading.since(last, number, names));
        let meant = (number - minutes + 1)..=number;
        let mut delivered = BTreeMap::new();
        for minute in state.minutes.iter().chain(&running) {
            for sink in minute.sinks.iter().filter(|_| meant.contains(&minute.number)) {
                *delivered.entry(sink.0.to_string()).or_default() += sink.1;
            }
        }
        delivered
    }

    /// By the clock that the minutes are called after.
    pub fn now(&self) -> Timestamp {
        (self.clock.wall)()
    }

    /// Closes the minute that runs, and writes it down. Blocking.
    pub fn turn(&self) {
        let Some(source) = &self.source else { return };
        // In the order in which they are closed.
        let mut written = lock(&self.written);
        let minute = self.close_minute(source());
        match written.write(&self.path, &minute, || lock(&self.state).minutes.clone()) {
            Ok(()) => written.said.over(),
            Err(error) => {
                written.file = None;
                if written.said.is_news(&error) {
                    tracing::warn!(
                        error,
                        "the history of the last day can't be written: a restart would leave a hole in the charts"
                    );
                }
            }
        }
    }

    /// Ends the minute that runs with what is counted by now.
    fn close_minute(&self, reading: Reading) -> Minute {
        let (now, steady) = ((self.clock.wall)(), (self.clock.steady)());
        let mut state = lock(&self.state);
        // What came belongs to the minute in whose middle it came.
        let half = steady.saturating_sub(state.turned).min(MINUTE) / 2;
        let number = minute_of(
            now.saturating_sub(jiff::SignedDuration::try_from(half).unwrap_or_default())
                .unwrap_or(now),
        );
        let State { last, names, .. } = &mut *state;
        let minute = reading.since(last, number, names);
        (state.last, state.turned) = (reading, steady);
        state.keep(minute.clone());
        minute
    }

    /// Closes a minute whenever the clock does, until `stop`.
    pub async fn run(self: Arc<History>, stop: CancellationToken) {
        loop {
            let second = (self.clock.wall)().as_second().rem_euclid(60) as u64;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(60 - second)) => {}
            }
            let history = self.clone();
            if let Err(error) = task::begin_blocking(move || history.turn()).await {
                tracing::error!(%error, "a minute of the history is lost");
            }
        }
    }
}

fn minute_of(time: Timestamp) -> i64 {
    time.as_second().div_euclid(60)
}

impl State {
    fn keep(&mut self, minute: Minute) {
        if self.minutes.len() == MINUTES_MAX {
            self.minutes.pop_front();
        }
        self.minutes.push_back(minute);
    }
}

impl Written {
    /// Adds a minute, which is among `all` already.
    fn write(&mut self, path: &Path, minute: &Minute, all: impl FnOnce() -> VecDeque<Minute>) -> Result<(), String> {
        if self.is_foreign {
            return Err("it is a newer closehook's".into());
        }
        match &mut self.file {
            Some(file) if self.frames < FRAMES_MAX => {
                append(file, minute)
                    .and_then(|()| file.sync())
                    .map_err(|error| error.to_string())?;
                self.frames += 1;
            }
            _ => {
                let all = all();
                self.file = Some(file_with(path, &all).map_err(|error| error.to_string())?);
                self.frames = all.len();
            }
        }
        Ok(())
    }
}

/// A new file with every minute that is kept, in the place of the one there is.
fn file_with(path: &Path, minutes: &VecDeque<Minute>) -> Result<FrameFile, FrameError> {
    let io = |source| FrameError::Io {
        path: path.to_owned(),
        source,
    };
    let beside = path.with_extension("new");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let mut file = FrameFile::create(&beside, FORMAT)?;
    for minute in minutes {
        append(&mut file, minute)?;
    }
    file.sync()?;
    std::fs::rename(&beside, path).map_err(io)?;
    framefile::sync_parent(path).map_err(io)?;
    Ok(file.named(path))
}

fn append(file: &mut FrameFile, minute: &Minute) -> Result<(), FrameError> {
    let text = serde_json::to_vec(minute).unwrap_or_default();
    file.append(TAG_MINUTE, &[&text]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

    /// What a test sets: the counters, the wall clock and the steady one.
    #[derive(Default)]
    struct World {
        reading: Mutex<Reading>,
        wall: AtomicI64,
        steady: AtomicU64,
    }

    impl World {
        fn new() -> Arc<World> {
            let world = World::default();
            world.wall.store(1_700_000_040, Ordering::SeqCst);
            Arc::new(world)
        }

        fn open(self: &Arc<World>, dir: &Path) -> History {
            let (counted, wall, steady) = (self.clone(), self.clone(), self.clone());
            let clock = Clock {
                wall: Box::new(move || Timestamp::from_second(wall.wall.load(Ordering::SeqCst)).unwrap()),
                steady: Box::new(move || Duration::from_secs(steady.steady.load(Ordering::SeqCst))),
            };
            History::open(dir, Box::new(move || lock(&counted.reading).clone()), clock)
        }

        fn pass(&self, seconds: u64) {
            self.wall.fetch_add(seconds as i64, Ordering::SeqCst);
            self.steady.fetch_add(seconds, Ordering::SeqCst);
        }

        fn store(&self, events: u64) {
            lock(&self.reading).counts.stored += events;
        }
    }

    fn stored(history: &History) -> Vec<(i64, u64)> {
        let first = 1_700_000_040 / 60;
        let minutes = history.minutes().into_iter();
        minutes
            .map(|minute| (minute.number - first, minute.counts.stored))
            .collect()
    }

    #[test]
    fn a_minute_has_what_came_in_it_and_a_restart_forgets_none() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::new();
        let history = world.open(dir.path());
        world.store(5);
        assert_eq!(stored(&history), [(0, 5)], "the one that runs is there as well");
        world.pass(60);
        history.turn();
        world.store(7);
        world.pass(60);
        history.turn();
        // It ends in the middle of a minute.
        world.store(1);
        world.pass(20);
        history.turn();
        assert_eq!(stored(&history), [(0, 5), (1, 7), (2, 1), (2, 0)]);
        drop(history);
        *lock(&world.reading) = Reading::default();
        world.pass(120);
        let history = world.open(dir.path());
        world.store(3);
        assert_eq!(stored(&history), [(0, 5), (1, 7), (2, 1), (4, 3)]);
        assert_eq!(stored(&History::look(dir.path())), [(0, 5), (1, 7), (2, 1)]);
    }

    /// A disk that does not answer keeps nobody from seeing that.
    #[test]
    fn whoever_asks_does_not_wait_for_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::new();
        let history = world.open(dir.path());
        let (writes, asked) = (lock(&history.written), std::sync::mpsc::channel());
        std::thread::scope(|scope| {
            scope.spawn(|| asked.0.send((history.minutes().len(), history.delivered_in(15))));
            let answer = asked.1.recv_timeout(Duration::from_secs(60));
            drop(writes);
            assert_eq!(answer.unwrap().0, 1);
        });
    }

    #[test]
    fn what_a_sink_was_delivered_lately_is_of_those_minutes_alone() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::new();
        let deliver = |count| {
            lock(&world.reading).sinks.entry("crm".into()).or_default().delivered += count;
        };
        let history = world.open(dir.path());
        for _ in 0..20 {
            deliver(1);
            world.pass(60);
            history.turn();
        }
        let lately = |history: &History| history.delivered_in(15).get("crm").copied();
        assert_eq!(lately(&history), Some(14), "the one that runs has brought nothing yet");
        deliver(7);
        assert_eq!(lately(&history), Some(21));
        assert_eq!(
            lately(&History::look(dir.path())),
            None,
            "by the machine's clock it was long ago"
        );
        world.pass(15 * 60);
        assert_eq!(lately(&history), Some(7), "they are in the minute that runs");
        history.turn();
        world.pass(15 * 60);
        assert_eq!(lately(&history), None);
    }

    #[test]
    fn a_clock_that_jumps_loses_no_count_and_no_minute() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::new();
        let history = world.open(dir.path());
        for jump in [0, -3600, 86_400 * 400, -86_400 * 400, 3600] {
            world.store(2);
            world.wall.fetch_add(jump, Ordering::SeqCst);
            world.pass(60);
            history.turn();
        }
        let found = stored(&history);
        assert_eq!(found.iter().map(|(_, stored)| stored).sum::<u64>(), 10);
        assert_eq!(found.len(), 6);
    }

    #[test]
    fn neither_memory_nor_the_file_grows_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::new();
        let history = world.open(dir.path());
        for number in 0..MINUTES_MAX as i64 + 5 {
            let counts = Counts::default();
            let sinks = Vec::new();
            lock(&history.state).keep(Minute { number, counts, sinks });
        }
        for _ in 0..5 {
            world.store(1);
            world.pass(60);
            history.turn();
        }
        assert_eq!(lock(&history.state).minutes.len(), MINUTES_MAX);
        lock(&history.written).frames = FRAMES_MAX;
        let before = std::fs::metadata(dir.path().join(FILE)).unwrap().len();
        world.pass(60);
        history.turn();
        let after = std::fs::metadata(dir.path().join(FILE)).unwrap().len();
        assert!(after < before, "{before} {after}");
        assert_eq!(History::look(dir.path()).minutes().len(), MINUTES_MAX);
    }

    #[test]
    fn what_can_not_be_read_is_begun_anew_and_what_is_newer_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::new();
        std::fs::write(dir.path().join(FILE), "rubbish").unwrap();
        let history = world.open(dir.path());
        world.store(4);
        world.pass(60);
        history.turn();
        assert_eq!(stored(&History::look(dir.path())), [(0, 4)]);
        let newer = Format { version: 2, ..FORMAT };
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        drop(FrameFile::create(&dir.path().join(FILE), newer).unwrap());
        let before = std::fs::read(dir.path().join(FILE)).unwrap();
        let history = world.open(dir.path());
        world.store(4);
        world.pass(60);
        history.turn();
        assert_eq!(std::fs::read(dir.path().join(FILE)).unwrap(), before);
        assert_eq!(stored(&history).len(), 2, "in memory there is one");
    }

    #[test]
    fn the_counters_are_those_of_metrics() {
        let text = "# HELP closehook_requests_total Requests.\n\
            closehook_requests_total{answer=\"stored\"} 10\n\
            closehook_requests_total{answer=\"duplicate\"} 3\n\
            closehook_requests_total{answer=\"unauthorized\"} 2\n\
            closehook_requests_total{answer=\"unavailable\"} 1\n\
            closehook_requests_total{answer=\"not_found\"} 99\n\
            closehook_stored_events_total 12\n\
            closehook_duplicate_events_total 3\n\
            closehook_sink_delivered_total{sink=\"crm\"} 8\n\
            closehook_sink_dead_total{sink=\"crm\"} 1\n\
            closehook_sink_dead_total{sink=\"other\"} 0\n\
            process_start_time_seconds 1\n";
        let reading = Reading::of_metrics(text);
        let counts = Counts {
            received: 16,
            stored: 12,
            duplicates: 3,
            refused: 3,
        };
        assert_eq!(reading.counts, counts);
        let crm = SinkReading {
            delivered: 8,
            dead: 1,
            ..SinkReading::default()
        };
        assert_eq!(reading.sinks["crm"], crm);
        // Each name that is looked for is one that there is.
        let source = include_str!("history.rs");
        let known: Vec<&str> = super::super::known::all().map(|metric| metric.name).collect();
        for name in source
            .split('"')
            .filter(|text| text.starts_with("closehook_") && !text.contains(['{', '\\']))
        {
            assert!(name == "closehook_" || known.contains(&name), "{name}");
        }
        let minute = reading.since(&Reading::default(), 7, &mut BTreeMap::new());
        assert_eq!(minute.sinks.len(), 1, "of the other one there is nothing to say");
        let text = serde_json::to_string(&minute).unwrap();
        assert_eq!(serde_json::from_str::<Minute>(&text).unwrap(), minute);
        assert!(text.len() < 100, "{text}");
    }
}
