//! When to try again: back-off, breaker and rate, as functions of what happened and of the time.
//!
//! The time is [`now`], which goes on evenly whatever happens to the machine's clock: an hour's jump must not make a retry an
//! hour late, give an event up an hour early, or keep a breaker open.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio_retry::strategy::{ExponentialBackoff, FixedInterval, jitter};

use crate::age::Clock;
use crate::config::{Breaker as BreakerConfig, Rate, Retry};
use crate::sinks::Outcome;

/// A receiver's `retry-after` is honoured up to this.
const AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// When [`now`] was first asked, by both clocks.
static BEGAN: LazyLock<(Timestamp, Instant)> = LazyLock::new(|| (Timestamp::now(), Instant::now()));

/// The machine's time when this was first asked, and from then on at the pace of its monotonic clock.
pub(super) fn now() -> Timestamp {
    let passed = SignedDuration::try_from(BEGAN.1.elapsed()).unwrap_or(SignedDuration::MAX);
    BEGAN.0.checked_add(passed).unwrap_or(Timestamp::MAX)
}

/// What this process is told by from others whose clocks may have shown the same.
static PROCESS: LazyLock<String> = LazyLock::new(|| {
    let mut id = [0; 8];
    if getrandom::fill(&mut id).is_err() {
        let began = BEGAN.0.as_nanosecond().unsigned_abs() as u64;
        id = began.to_be_bytes();
    }
    hex::encode(id)
});

/// By which what this process has saved is told from what others have.
pub(super) fn process() -> &'static str {
    &PROCESS
}

/// When this process began, by the clock of [`now`].
pub(super) fn began() -> Timestamp {
    BEGAN.0
}

/// The upper bound of the delay before try number `attempts` + 1.
fn bound(retry: &Retry, attempts: u32) -> Duration {
    let nth = attempts.saturating_sub(1).min(64) as usize;
    let initial_ms = retry.initial.0.as_millis() as u64;
    let delay = if retry.factor < 2 {
        FixedInterval::new(retry.initial.0).next()
    } else {
        // The strategy's first delay is base times factor, its next ones base² times factor and so on: it counts one power
        // more than we mean. In microseconds, so that the division loses nothing that matters.
        let factor = (initial_ms * 1000 / retry.factor).max(1);
        ExponentialBackoff::from_millis(retry.factor)
            .factor(factor)
            .nth(nth)
            .map(|delay| delay / 1000)
    };
    delay.unwrap_or(retry.max_delay.0).min(retry.max_delay.0)
}

/// How long to wait after the try number `attempts` failed: full jitter below the bound, and not before the receiver wants it.
pub(super) fn delay(retry: &Retry, attempts: u32, after: Option<Duration>) -> Duration {
    jitter(bound(retry, attempts)).max(after.unwrap_or_default().min(AFTER_MAX))
}

/// What time it is for what grows old. What this process has noted is as old as [`now`] says. What one before it has noted was told by
/// the clock of another start: a machine that starts with a clock that is ahead would give up at once all that waits. So that is as old as
/// this process at the least, and beyond that as old as what time it surely is says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ages {
    began: Timestamp,
    now: Timestamp,
    surely: Option<Timestamp>,
}

impl Ages {
    /// At this moment of [`now`].
    pub fn at(now: Timestamp, clock: &Clock) -> Ages {
        Ages {
            began: BEGAN.0,
            now,
            surely: clock.at_least(),
        }
    }

    /// Where every clock is believed.
    #[cfg(test)]
    pub fn believed(now: Timestamp) -> Ages {
        Ages {
            began: Timestamp::MIN,
            now,
            surely: Some(now),
        }
    }

    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// From when on the age of what was noted then counts: that time, or a later one where the clock is not vouched for.
    pub fn counts_from(&self, noted: Timestamp) -> Timestamp {
        if noted >= self.began {
            return noted;
        }
        let doubt = self.surely.map(|surely| self.now.duration_since(surely));
        let from = doubt.and_then(|doubt| noted.checked_add(doubt.max(SignedDuration::ZERO)).ok());
        from.map_or(self.began, |from| from.min(self.began))
    }

    /// The same of something whose age had been counted before this process began: from `counted_from` on, so much has passed for sure.
    pub fn counted(&self, noted: Timestamp, counted_from: Option<Timestamp>) -> Timestamp {
        let from = self.counts_from(noted);
        counted_from.map_or(from, |counted| from.min(counted))
    }
}

/// Whether an event whose first try was at `first_attempt` is too old to be tried again.
pub(super) fn is_too_old(retry: &Retry, first_attempt: Timestamp, now: Timestamp) -> bool {
    now.duration_since(first_attempt) >= SignedDuration::try_from(retry.max_age.0).unwrap_or(SignedDuration::MAX)
}

/// How long a sink that takes nothing is left alone after its `times`th refusal in a row: no longer than a probe's distance, unless
/// the receiver wants it.
pub(super) fn wait_for_sink(retry: &Retry, breaker: &BreakerConfig, times: u32, after: Option<Duration>) -> Duration {
    const LEAST: Duration = Duration::from_millis(5);
    let own = jitter(bound(retry, times)).min(breaker.probe.0).max(LEAST);
    own.max(after.unwrap_or_default().min(AFTER_MAX))
}

/// Stops trying after failures in a row, and lets one delivery through now and then to see whether they are over.
#[derive(Debug)]
pub(super) struct Breaker {
    config: BreakerConfig,
    failures: u32,
    refusals: u32,
    unavailable: u32,
    /// When the next probe may go; `None` while closed.
    probe_at: Option<Timestamp>,
    probing: bool,
    /// What opened it says nothing about events.
    by_sink: bool,
}

/// What a result did to the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Opened,
    Closed,
}

impl Breaker {
    pub fn new(config: BreakerConfig) -> Breaker {
        Breaker {
            config,
            failures: 0,
            refusals: 0,
            unavailable: 0,
            probe_at: None,
            probing: false,
            by_sink: false,
        }
    }

    /// How many deliveries may start now, of `wanted`.
    pub fn allows(&self, now: Timestamp, wanted: usize) -> usize {
        match self.probe_at {
            None => wanted,
            Some(at) if !self.probing && now >= at => wanted.min(1),
            Some(_) => 0,
        }
    }

    /// A delivery, or an opening, starts.
    pub fn started(&mut self) {
        self.probing = self.probe_at.is_some();
    }

    /// When to look again; `None` while closed or while a probe is out.
    pub fn wake_at(&self) -> Option<Timestamp> {
        self.probe_at.filter(|_| !self.probing)
    }

    /// Whether it lets everything through.
    pub fn is_closed(&self) -> bool {
        self.probe_at.is_none()
    }

    /// Whether a refusal now is the receiver's state rather than the event's fault: then it is tried again later. A receiver that
    /// took nothing and now refuses an event is there again.
    pub fn doubts_refusals(&self) -> bool {
        self.probe_at.is_some() && !self.by_sink
    }

    /// Whether it was more than once that it failed.
    pub fn keeps_failing(&self) -> bool {
        self.failures.max(self.refusals).max(self.unavailable) > 1
    }

    /// Of what a batch comes to, which refusals are to be believed: no more than open the breaker, counted since the last that was
    /// taken (decision 21). What follows them is put off, as it would be had they been asked for one by one.
    pub fn believed(&self, outcomes: &[Outcome]) -> Vec<bool> {
        let last_taken = outcomes.iter().rposition(|outcome| *outcome == Outcome::Delivered);
        let mut in_a_row = if last_taken.is_some() { 0 } else { self.refusals };
        let of = |(index, outcome): (usize, &Outcome)| {
            let is_refusal = matches!(outcome, Outcome::Reject { .. });
            in_a_row += u32::from(is_refusal && last_taken.is_none_or(|taken| index > taken));
            !self.doubts_refusals() && in_a_row <= self.config.refusals
        };
        outcomes.iter().enumerate().map(of).collect()
    }

    pub fn succeeded(&mut self) -> Change {
        let was_open = self.probe_at.is_some();
        *self = Breaker::new(self.config);
        if was_open { Change::Closed } else { Change::None }
    }

    pub fn failed(&mut self, now: Timestamp) -> Change {
        self.failures += 1;
        self.refusals = 0;
        self.count(now, self.failures >= self.config.failures)
    }

    pub fn refused(&mut self, now: Timestamp) -> Change {
        if self.by_sink {
            self.succeeded();
            self.refusals = 1;
            return Change::Closed;
        }
        self.refusals += 1;
        self.failures = 0;
        self.count(now, self.refusals >= self.config.refusals)
    }

    /// The sink takes nothing, whichever event it is. What was under way before it was known counts as the same refusal.
    pub fn unavailable(&mut self, now: Timestamp, retry: &Retry, after: Option<Duration>) -> Change {
        let was_open = self.probe_at.is_some();
        if !was_open || self.probing || !self.by_sink {
            self.unavailable = self.unavailable.saturating_add(1);
        }
        let wait = wait_for_sink(retry, &self.config, self.unavailable, after);
        let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
        let at = now.checked_add(wait).unwrap_or(Timestamp::MAX);
        self.probe_at = Some(if self.probing {
            at
        } else {
            self.probe_at.map_or(at, |before| before.max(at))
        });
        self.probing = false;
        self.by_sink = true;
        if was_open { Change::None } else { Change::Opened }
    }

    /// What was tried came to no answer: one may go at once.
    pub fn probe_now(&mut self, now: Timestamp) {
        if self.probe_at.is_some() && !self.probing {
            self.probe_at = Some(now);
        }
    }

    /// What was tried never reached the sink.
    pub fn unasked(&mut self, now: Timestamp) {
        self.probing = false;
        self.probe_now(now);
    }

    /// The sink is open, which says nothing about what it will take.
    pub fn opened(&mut self, now: Timestamp) {
        self.probing = false;
        self.probe_now(now);
    }

    fn count(&mut self, now: Timestamp, too_many: bool) -> Change {
        let was_open = self.probe_at.is_some();
        self.probing = false;
        if was_open || too_many {
            let probe = SignedDuration::try_from(self.config.probe.0).unwrap_or(SignedDuration::MAX);
            self.probe_at = Some(now.checked_add(probe).unwrap_or(Timestamp::MAX));
            self.by_sink = false;
        }
        if !was_open && too_many {
            Change::Opened
        } else {
            Change::None
        }
    }

    /// `closed`, `open` or `half-open`.
    pub fn state(&self) -> &'static str {
        match (self.probe_at, self.probing) {
            (None, _) => "closed",
            (Some(_), true) => "half-open",
            (Some(_), false) => "open",
        }
    }
}

/// A token bucket that holds a second's worth (at least one).
#[derive(Debug)]
pub(super) struct Throttle {
    per_second: f64,
    tokens: f64,
    at: Timestamp,
}

impl Throttle {
    pub fn new(rate: Rate, now: Timestamp) -> Throttle {
        Throttle {
            per_second: rate.0,
            tokens: 1.0,
            at: now,
        }
    }

    /// How many may go now, of `wanted`; they are taken.
    pub fn take(&mut self, now: Timestamp, wanted: usize) -> usize {
        // A clock that was set back neither gives nor takes tokens.
        let passed = now.duration_since(self.at).as_secs_f64().max(0.0);
        self.at = now;
        self.tokens = (self.tokens + passed * self.per_second).min(self.per_second.max(1.0));
        let mut taken = 0;
        while taken < wanted && self.tokens >= 1.0 {
            self.tokens -= 1.0;
            taken += 1;
        }
        taken
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&mut self, count: usize) {
        self.tokens += count as f64;
    }

    /// How long until one may go.
    pub fn wait(&self) -> Duration {
        Duration::from_secs_f64(((1.0 - self.tokens) / self.per_second).clamp(0.001, 3600.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Span;

    fn retry(initial_ms: u64, factor: u64, max_ms: u64) -> Retry {
        Retry {
            initial: Span(Duration::from_millis(initial_ms)),
            factor,
            max_delay: Span(Duration::from_millis(max_ms)),
            max_age: Span::secs(100),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn bounds_grow_by_the_factor_up_to_the_limit() {
        let bounds = |retry: Retry| (1..=6).map(|n| bound(&retry, n).as_millis()).collect::<Vec<_>>();
        assert_eq!(bounds(retry(1000, 2, 10_000)), [1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert_eq!(bounds(retry(100, 3, 100_000)), [99, 299, 899, 2699, 8099, 24_299]);
        assert_eq!(bounds(retry(500, 1, 10_000)), [500; 6]);
        assert_eq!(bound(&retry(1000, 100, 5000), u32::MAX).as_millis(), 5000);
        assert!((0..100).all(|_| delay(&retry(1000, 2, 9000), 2, None) <= Duration::from_secs(2)));
        assert_eq!(
            delay(&retry(1000, 2, 9000), 1, Some(Duration::from_secs(60))).as_secs(),
            60
        );
        assert!(is_too_old(&retry(1, 1, 1), at(0), at(100)) && !is_too_old(&retry(1, 1, 1), at(0), at(99)));
    }

    /// The machine starts with a clock that is ahead, by 300 s as it turns out.
    #[test]
    fn what_was_noted_before_this_process_is_as_old_as_is_sure_and_what_it_noted_as_its_own_clock_says() {
        let ages = |now: i64, surely: Option<i64>| Ages {
            began: at(1000),
            now: at(now),
            surely: surely.map(at),
        };
        let age = |ages: Ages, noted: i64| ages.now().duration_since(ages.counts_from(at(noted))).as_secs();
        // Nobody vouches for the time: only this process's own is sure.
        assert_eq!(age(ages(1000, None), 690), 0);
        assert_eq!(age(ages(1050, None), 690), 50);
        assert_eq!(age(ages(1050, None), 1010), 40);
        // It is 750.
        assert_eq!(age(ages(1050, Some(750)), 690), 60);
        assert_eq!(age(ages(1050, Some(750)), 1010), 40);
        // What is known of the time may be long past.
        assert_eq!(age(ages(1050, Some(0)), 690), 50);
        // And a clock that began behind makes nothing older than it says.
        assert_eq!(age(ages(1050, Some(9000)), 690), 360);
    }

    #[test]
    fn the_breaker_opens_probes_and_closes() {
        let mut breaker = Breaker::new(BreakerConfig {
            failures: 3,
            refusals: 2,
            probe: Span::secs(30),
        });
        assert_eq!(
            (breaker.failed(at(0)), breaker.failed(at(0)), breaker.allows(at(0), 5)),
            (Change::None, Change::None, 5)
        );
        assert_eq!(breaker.failed(at(0)), Change::Opened);
        assert_eq!(
            (breaker.allows(at(29), 5), breaker.allows(at(30), 5), breaker.state()),
            (0, 1, "open")
        );
        breaker.started();
        assert_eq!((breaker.allows(at(31), 5), breaker.state()), (0, "half-open"));
        assert_eq!(
            (
                breaker.failed(at(31)),
                breaker.allows(at(60), 5),
                breaker.allows(at(61), 5)
            ),
            (Change::None, 0, 1)
        );
        assert_eq!(
            (breaker.succeeded(), breaker.allows(at(61), 5), breaker.state()),
            (Change::Closed, 5, "closed")
        );
        assert!(!breaker.doubts_refusals());
        assert_eq!(
            (breaker.refused(at(62)), breaker.refused(at(62))),
            (Change::None, Change::Opened)
        );
        assert!(breaker.doubts_refusals());
    }

    #[test]
    fn a_sink_that_takes_nothing_is_left_alone_as_long_as_it_wants_and_asked_again_soon_otherwise() {
        let config = BreakerConfig {
            failures: 3,
            refusals: 2,
            probe: Span::secs(30),
        };
        let retry = retry(1000, 2, 900_000);
        let wait = |times, after| wait_for_sink(&retry, &config, times, after);
        assert!((1..40).all(|times| wait(times, None) <= Duration::from_secs(30)));
        assert_eq!(wait(1, Some(Duration::from_secs(600))).as_secs(), 600);
        let mut breaker = Breaker::new(config);
        let after = Some(Duration::from_secs(100));
        assert_eq!(breaker.unavailable(at(0), &retry, after), Change::Opened);
        assert_eq!(
            breaker.unavailable(at(1), &retry, None),
            Change::None,
            "it was under way"
        );
        assert_eq!((breaker.allows(at(99), 5), breaker.allows(at(100), 5)), (0, 1));
        assert_eq!(breaker.unavailable, 1);
        breaker.started();
        assert_eq!(breaker.unavailable(at(101), &retry, None), Change::None);
        assert_eq!((breaker.unavailable, breaker.allows(at(132), 5)), (2, 1));
        assert!(!breaker.doubts_refusals(), "a refusal shows that it is there");
        breaker.started();
        assert_eq!((breaker.refused(at(140)), breaker.state()), (Change::Closed, "closed"));
    }

    #[test]
    fn the_throttle_gives_its_rate_and_no_more() {
        let mut throttle = Throttle::new(Rate(10.0), at(0));
        assert_eq!((throttle.take(at(0), 5), throttle.take(at(0), 5)), (1, 0));
        assert_eq!((throttle.take(at(1), 50), throttle.take(at(0), 50)), (10, 0));
        assert_eq!(throttle.take(at(100), 50), 10, "it saves up a second's worth");
        assert!(throttle.wait() <= Duration::from_millis(100));
    }

    #[test]
    fn time_goes_on_from_the_machines_own() {
        let before = Timestamp::now();
        let first = now();
        assert!(
            first.duration_since(before).abs() < SignedDuration::from_hours(1),
            "{first}"
        );
        assert!(now() >= first);
    }

    #[test]
    fn a_receivers_wish_counts_for_a_day() {
        let days = |count: u64| Some(Duration::from_secs(count * 24 * 3600));
        assert_eq!(delay(&retry(1, 1, 1), 1, days(3)), days(1).unwrap());
        let config = BreakerConfig {
            failures: 1,
            refusals: 1,
            probe: Span::secs(30),
        };
        assert_eq!(wait_for_sink(&retry(1, 1, 1), &config, 1, days(3)), days(1).unwrap());
    }

    #[test]
    fn an_open_breaker_is_looked_at_again_when_its_probe_may_go_and_not_while_it_is_out() {
        let mut breaker = Breaker::new(BreakerConfig {
            failures: 1,
            refusals: 1,
            probe: Span::secs(30),
        });
        assert_eq!((breaker.wake_at(), breaker.is_closed()), (None, true));
        breaker.failed(at(0));
        assert_eq!((breaker.wake_at(), breaker.is_closed()), (Some(at(30)), false));
        breaker.started();
        assert_eq!((breaker.wake_at(), breaker.is_closed()), (None, false));
        // While the probe is out no other goes.
        breaker.probe_now(at(5));
        assert_eq!((breaker.wake_at(), breaker.allows(at(60), 5)), (None, 0));
        // The opening was the probe; what comes now is the first delivery.
        breaker.opened(at(6));
        assert_eq!((breaker.wake_at(), breaker.allows(at(6), 5)), (Some(at(6)), 1));
        breaker.probe_now(at(7));
        assert_eq!((breaker.wake_at(), breaker.allows(at(6), 5)), (Some(at(7)), 0));
        breaker.succeeded();
        breaker.opened(at(8));
        assert_eq!(
            (breaker.wake_at(), breaker.is_closed()),
            (None, true),
            "it is not opened by that"
        );
    }

    #[test]
    fn what_was_taken_and_not_used_may_go_later_and_the_wait_is_for_what_is_missing() {
        let mut throttle = Throttle::new(Rate(10.0), at(0));
        assert_eq!(throttle.take(at(1), 3), 3, "no more than is wanted");
        assert_eq!(throttle.take(at(1), 50), 7);
        let wait = throttle.wait().as_secs_f64();
        assert!((wait - 0.1).abs() < 1e-9, "{wait}");
        throttle.give_back(4);
        assert_eq!(throttle.take(at(1), 50), 4);
        throttle.give_back(1);
        throttle.give_back(1);
        assert_eq!(throttle.take(at(1), 50), 2);
        let wait = Throttle::new(Rate(0.5), at(0)).wait().as_secs_f64();
        assert!((wait - 0.001).abs() < 1e-9, "one may go: {wait}");
        let mut slow = Throttle::new(Rate(0.5), at(0));
        assert_eq!(slow.take(at(0), 1), 1);
        assert!((slow.wait().as_secs_f64() - 2.0).abs() < 1e-9);
    }
}
