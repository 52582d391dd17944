//! What time it is at the least: by that, things grow old and go.
//!
//! A clock that is ahead makes old what is young, and what went for it does not come back when the clock is set right. So nothing goes by what
//! this machine's clock says alone:
//!
//! - What Close has signed (and not closehook itself, for a try), and what its API has dated, is a time that is past: it is that late at the least, whatever the clock here says. From
//!   then on this process's monotonic clock counts, which nobody sets.
//! - Where nobody has told the time since the process began, the machine's clock is believed once it has gone evenly for a day: one that is
//!   wrong when the machine starts is set right long before.
//! - It is never later than the machine's clock says: by that, what is kept was dated.
//!
//! Before either, nothing is old.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use crate::sync::lock;

/// So long the machine's clock has to go evenly before it is believed alone.
const EVENLY_FOR: Duration = Duration::from_secs(24 * 3600);

/// A clock that came to differ by more than this from the monotonic one was set. What corrects a clock little by little stays below.
const SET_MIN: SignedDuration = SignedDuration::from_secs(60);

/// Nobody has told the time.
const NEVER: i64 = i64::MIN;

/// When the machine's clock was set last, as far as was seen.
#[derive(Debug, Clone, Copy)]
struct Even {
    since: Duration,
    /// The machine's clock less the monotonic one then, in microseconds.
    apart_us: i64,
}

/// Knows what time it is at the least; one for a process, told by whoever hears of a time from outside.
pub struct Age {
    wall: Box<dyn Fn() -> Timestamp + Send + Sync>,
    /// Since the process began; nobody sets it.
    steady: Box<dyn Fn() -> Duration + Send + Sync>,
    /// The largest time told less the monotonic clock then, in microseconds, or [`NEVER`].
    told_us: AtomicI64,
    even: Mutex<Option<Even>>,
}

impl std::fmt::Debug for Age {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Age")
            .field("told_us", &self.told_us)
            .finish_non_exhaustive()
    }
}

impl Default for Age {
    /// By this machine's clocks; nobody has told the time.
    fn default() -> Age {
        let began = Instant::now();
        Age::with_clocks(Timestamp::now, move || began.elapsed())
    }
}

impl Age {
    /// The same with clocks of one's own.
    pub fn with_clocks(
        wall: impl Fn() -> Timestamp + Send + Sync + 'static,
        steady: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Age {
        let age = Age {
            wall: Box::new(wall),
            steady: Box::new(steady),
            told_us: AtomicI64::new(NEVER),
            even: Mutex::new(None),
        };
        age.is_even();
        age
    }

    /// Somebody outside who knows says that this time is past.
    pub fn told(&self, at: Timestamp) {
        let apart = apart_us(at, (self.steady)());
        // Looked at first: a store would move the line between processors at every delivery.
        if apart > self.told_us.load(Ordering::Relaxed) {
            self.told_us.fetch_max(apart, Ordering::Relaxed);
        }
    }

    /// What time it is at the least; `None`: that is not known yet, and nothing is old.
    pub fn now(&self) -> Option<Timestamp> {
        // Looked at in any case: a clock that was set is noticed when it is.
        let is_even = self.is_even();
        let wall = (self.wall)();
        let told = self.told_us.load(Ordering::Relaxed);
        if told == NEVER {
            return is_even.then_some(wall);
        }
        let at_us = told.saturating_add(micros((self.steady)()));
        let at = Timestamp::from_microsecond(at_us).unwrap_or(Timestamp::MAX);
        Some(at.min(wall))
    }

    /// Whether the machine's clock has gone evenly for so long that it is believed.
    fn is_even(&self) -> bool {
        let (wall, steady) = ((self.wall)(), (self.steady)());
        let apart_us = apart_us(wall, steady);
        let mut even = lock(&self.even);
        let was_set = |even: &Even| SignedDuration::from_micros(apart_us.saturating_sub(even.apart_us)).abs() > SET_MIN;
        let since = match &*even {
            Some(even) if !was_set(even) => even.since,
            _ => {
                *even = Some(Even {
                    since: steady,
                    apart_us,
                });
                steady
            }
        };
        steady.saturating_sub(since) >= EVENLY_FOR
    }
}

fn micros(steady: Duration) -> i64 {
    i64::try_from(steady.as_micros()).unwrap_or(i64::MAX)
}

fn apart_us(at: Timestamp, steady: Duration) -> i64 {
    at.as_microsecond().saturating_sub(micros(steady)).max(NEVER + 1)
}

/// What tells the time, and what time it is at the least.
#[derive(Clone)]
pub struct Clock {
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    at_least: Arc<dyn Fn() -> Option<Timestamp> + Send + Sync>,
}

impl Clock {
    /// A clock that says what this says, and is believed.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Clock {
        let now = Arc::new(now);
        Clock {
            at_least: Arc::new({
                let now = now.clone();
                move || Some(now())
            }),
            now,
        }
    }

    /// This machine's, believed as far as this has been told.
    pub fn of(age: Arc<Age>) -> Clock {
        let wall = age.clone();
        Clock {
            now: Arc::new(move || (wall.wall)()),
            at_least: Arc::new(move || age.now()),
        }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// What time it is at the least, by which things grow old; `None`: nothing is old yet.
    pub fn at_least(&self) -> Option<Timestamp> {
        (self.at_least)()
    }
}

impl Default for Clock {
    /// This machine's, with nobody to tell the time.
    fn default() -> Clock {
        Clock::of(Arc::default())
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    const DAY: i64 = 86_400;

    /// The two clocks of a machine: the one that can be set, in seconds since the epoch, and the other one.
    #[derive(Default)]
    struct Machine {
        wall: AtomicI64,
        steady: AtomicU64,
    }

    impl Machine {
        fn started(wall: i64) -> (Arc<Machine>, Age) {
            let machine = Arc::new(Machine::default());
            machine.wall.store(wall, Ordering::SeqCst);
            let (one, other) = (machine.clone(), machine.clone());
            let age = Age::with_clocks(
                move || at(one.wall.load(Ordering::SeqCst)),
                move || Duration::from_secs(other.steady.load(Ordering::SeqCst)),
            );
            (machine, age)
        }

        fn pass(&self, seconds: i64) {
            self.wall.fetch_add(seconds, Ordering::SeqCst);
            self.steady.fetch_add(seconds.unsigned_abs(), Ordering::SeqCst);
        }

        fn set(&self, by: i64) {
            self.wall.fetch_add(by, Ordering::SeqCst);
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_clock_that_nobody_vouches_for_is_believed_when_it_has_gone_evenly_for_a_day() {
        let (machine, age) = Machine::started(400 * DAY);
        assert_eq!(age.now(), None);
        machine.pass(3);
        // It was a year ahead.
        machine.set(-365 * DAY);
        assert_eq!(age.now(), None);
        machine.pass(DAY - 1);
        assert_eq!(age.now(), None);
        machine.pass(1);
        assert_eq!(age.now(), Some(at(36 * DAY + 3)));
        machine.set(30);
        assert_eq!(age.now(), Some(at(36 * DAY + 33)), "that is what corrections come to");
        machine.set(7 * DAY);
        assert_eq!(age.now(), None);
        machine.pass(DAY);
        assert_eq!(age.now(), Some(at(44 * DAY + 33)));
    }

    #[test]
    fn what_was_told_counts_on_by_the_clock_that_nobody_sets() {
        let (machine, age) = Machine::started(100 * DAY);
        machine.pass(10);
        age.told(at(100 * DAY + 5));
        assert_eq!(age.now(), Some(at(100 * DAY + 5)));
        machine.set(60 * DAY);
        machine.pass(20);
        assert_eq!(age.now(), Some(at(100 * DAY + 25)), "whatever the other one says");
        machine.pass(2 * DAY);
        assert_eq!(age.now(), Some(at(102 * DAY + 25)), "for however long");
        // What was long on its way tells nothing new; what was not, does.
        age.told(at(90 * DAY));
        assert_eq!(age.now(), Some(at(102 * DAY + 25)));
        age.told(at(103 * DAY));
        assert_eq!(age.now(), Some(at(103 * DAY)));
    }

    #[test]
    fn it_is_never_later_than_the_machines_clock_says() {
        let (machine, age) = Machine::started(100 * DAY);
        age.told(at(5000 * DAY));
        assert_eq!(age.now(), Some(at(100 * DAY)));
        machine.set(-3 * DAY);
        assert_eq!(age.now(), Some(at(97 * DAY)));
        age.told(Timestamp::MIN);
        age.told(Timestamp::MAX);
        assert_eq!(age.now(), Some(at(97 * DAY)));
    }
}
