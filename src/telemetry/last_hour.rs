//! Counts of the last hour, minute by minute, in memory that does not grow: a row of minutes, of which the oldest is used anew.
//!
//! Time is handed in, so that nothing here depends on a clock, and it is the time that nobody sets: a jump of the wall clock
//! neither loses nor repeats a count.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Whole minutes that are looked back on, beside the one that runs.
const MINUTES: u64 = 60;

/// What one minute brought. A minute that has not begun has no number that could come.
#[derive(Debug)]
struct Minute<const N: usize> {
    number: AtomicU64,
    counts: [AtomicU64; N],
    least: AtomicI64,
}

/// Counts of `N` things, and the least value that was measured.
#[derive(Debug)]
pub(super) struct LastHour<const N: usize> {
    minutes: Box<[Minute<N>]>,
    turning: Mutex<()>,
}

impl<const N: usize> LastHour<N> {
    /// Nothing has come yet.
    pub fn new() -> LastHour<N> {
        let minute = |_| Minute {
            number: AtomicU64::new(u64::MAX),
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            least: AtomicI64::new(i64::MAX),
        };
        LastHour {
            minutes: (0..=MINUTES).map(minute).collect(),
            turning: Mutex::new(()),
        }
    }

    /// One more of a thing; `now` counts from a fixed moment.
    pub fn count(&self, thing: usize, now: Duration) {
        self.at(now).counts[thing].fetch_add(1, Ordering::Relaxed);
    }

    /// A value was measured.
    pub fn measure(&self, value: i64, now: Duration) {
        self.at(now).least.fetch_min(value, Ordering::Relaxed);
    }

    /// How often each came in the minute that runs and in the sixty before it.
    pub fn sums(&self, now: Duration) -> [u64; N] {
        let mut sums = [0; N];
        for minute in self.recent(now) {
            for (sum, count) in sums.iter_mut().zip(&minute.counts) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        sums
    }

    /// The least value of the same time; `None`: nothing was measured.
    pub fn least(&self, now: Duration) -> Option<i64> {
        let least = self.recent(now).map(|minute| minute.least.load(Ordering::Relaxed));
        least.min().filter(|least| *least < i64::MAX)
    }

    fn recent(&self, now: Duration) -> impl Iterator<Item = &Minute<N>> {
        let this = now.as_secs() / 60;
        let is_recent = move |number: u64| number <= this && this - number <= MINUTES;
        self.minutes
            .iter()
            .filter(move |minute| is_recent(minute.number.load(Ordering::Acquire)))
    }

    fn at(&self, now: Duration) -> &Minute<N> {
        let number = now.as_secs() / 60;
        let minute = &self.minutes[(number % (MINUTES + 1)) as usize];
        if minute.number.load(Ordering::Acquire) != number {
            self.turn(minute, number);
        }
        minute
    }

    /// Begins a minute in the place of one that is more than an hour old. What comes at this very moment from a thread that still
    /// holds the old one is lost, and would not have counted any more.
    fn turn(&self, minute: &Minute<N>, number: u64) {
        let _turning = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        if minute.number.load(Ordering::Acquire) == number {
            return;
        }
        for count in &minute.counts {
            count.store(0, Ordering::Relaxed);
        }
        minute.least.store(i64::MAX, Ordering::Relaxed);
        minute.number.store(number, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(minutes * 60)
    }

    #[test]
    fn what_is_older_than_an_hour_counts_no_more() {
        let hour: LastHour<2> = LastHour::new();
        assert_eq!((hour.sums(minutes(0)), hour.least(minutes(0))), ([0, 0], None));
        hour.count(0, minutes(0));
        hour.count(1, minutes(0));
        hour.measure(7, minutes(0));
        hour.measure(-3, minutes(5));
        hour.count(0, minutes(59));
        assert_eq!((hour.sums(minutes(60)), hour.least(minutes(60))), ([2, 1], Some(-3)));
        assert_eq!((hour.sums(minutes(61)), hour.least(minutes(61))), ([1, 0], Some(-3)));
        // Its place is taken by another minute.
        hour.count(1, minutes(61));
        assert_eq!((hour.sums(minutes(66)), hour.least(minutes(66))), ([1, 1], None));
        assert_eq!(hour.sums(minutes(1000)), [0, 0]);
    }

    #[test]
    fn nothing_is_lost_when_many_begin_a_minute_at_once() {
        let hour: LastHour<1> = LastHour::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for second in 0..3600 {
                        hour.count(0, Duration::from_secs(second));
                    }
                });
            }
        });
        assert_eq!(hour.sums(minutes(59)), [8 * 3600]);
    }

    proptest! {
        #[test]
        fn it_counts_as_a_list_of_everything_would(steps in prop::collection::vec((0_u64..400, 0_usize..3, -50_i64..50), 0..200)) {
            let hour: LastHour<3> = LastHour::new();
            let (mut now, mut all) = (0, Vec::new());
            for (wait, thing, value) in steps {
                now += wait;
                hour.count(thing, Duration::from_secs(now));
                hour.measure(value, Duration::from_secs(now));
                all.push((now / 60, thing, value));
                let recent: Vec<_> = all.iter().filter(|(minute, ..)| now / 60 - minute <= 60).collect();
                let count = |thing| recent.iter().filter(|(_, of, _)| *of == thing).count() as u64;
                prop_assert_eq!(hour.sums(Duration::from_secs(now)), [count(0), count(1), count(2)]);
                prop_assert_eq!(hour.least(Duration::from_secs(now)), recent.iter().map(|(.., value)| *value).min());
            }
        }
    }
}
