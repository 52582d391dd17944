//! The last day, minute by minute: what came, what was stored, delivered and given up, for charts.
//!
//! Once a minute the counters of `/metrics` are read, and what they have grown by is kept: in memory, a bounded row of minutes, and as
//! one small frame in a file, so that a restart leaves no hole but the time in which nothing ran. Nothing on the way of an event knows
//! of it. A minute is what the wall clock called it; where that jumps, minutes are called twice or left out, and no count is lost.
//!
//! A process that is killed takes along what was counted since the last full minute, of the charts alone: what it had received is in the
//! log, and what it had delivered in the sinks' marks. One that is stopped writes that down as well.

mod reading;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::paced::Paced;
use crate::framefile::{self, Format, FrameError, FrameFile};
use crate::sync::lock;
use crate::task;

pub use reading::{Counts, Minute, Reading, SinkMinute, SinkReading};

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
mod tests;
