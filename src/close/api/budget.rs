//! The rate limit: how many requests Close allows now, read from every answer and obeyed before it has to say no.
//!
//! Every answer has `RateLimit: limit=100, remaining=50, reset=5` (Close's documentation, "Rate limits"; seconds, maybe with
//! decimals). One budget is shared by everything in the process, since Close counts by API key.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// No wait is longer, whatever an answer says.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// How soon to ask again while nothing is known yet.
const UNKNOWN_WAIT: Duration = Duration::from_millis(10);

/// Close's `RateLimit` header.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::close) struct RateLimit {
    /// Requests left until the reset.
    pub remaining: u64,
    /// Until there are all of them again.
    pub reset: Duration,
}

impl RateLimit {
    /// Reads the header; `None` where it does not say both. Of several limits (by key and by organization) the tightest
    /// counts: each begins with its `limit`.
    pub fn parse(text: &str) -> Option<RateLimit> {
        let mut tightest: Option<RateLimit> = None;
        let (mut remaining, mut reset) = (None, None);
        for part in text.split([',', ';']) {
            let Some((name, value)) = part.split_once('=') else {
                continue;
            };
            match name.trim() {
                "limit" => (remaining, reset) = (None, None),
                "remaining" => remaining = value.trim().parse::<f64>().ok().filter(|n| *n >= 0.0),
                "reset" => reset = seconds(value),
                _ => {}
            }
            if let (Some(left), Some(span)) = (remaining, reset) {
                #[expect(clippy::cast_sign_loss, reason = "it is not negative")]
                let limit = RateLimit {
                    remaining: left as u64,
                    reset: span,
                };
                tightest = Some(tightest.map_or(limit, |before| before.tighter(limit)));
                (remaining, reset) = (None, None);
            }
        }
        tightest
    }

    fn tighter(self, other: RateLimit) -> RateLimit {
        let rank = |limit: RateLimit| (limit.remaining, std::cmp::Reverse(limit.reset));
        if rank(other) < rank(self) { other } else { self }
    }
}

/// `retry-after`: a span in seconds or a date (RFC 9110, 10.2.3), as a span from `now`.
pub(in crate::close) fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let until = || {
        let date = crate::net::date::http_date(text.trim(), now)?;
        let span = Duration::try_from(date.duration_since(now)).unwrap_or_default();
        Some(span.min(WAIT_MAX))
    };
    seconds(text).or_else(until)
}

/// A span in seconds, maybe with decimals.
pub(in crate::close) fn seconds(text: &str) -> Option<Duration> {
    let seconds = text.trim().parse::<f64>().ok()?;
    Duration::try_from_secs_f64(seconds).ok().map(|span| span.min(WAIT_MAX))
}

/// What may be sent now.
#[derive(Debug, Default)]
pub(in crate::close) struct RateBudget {
    /// What the newest answer said; `None` before the first one and after a reset.
    window: Option<(u64, Instant)>,
    blocked_until: Option<Instant>,
    in_flight: u64,
}

impl RateBudget {
    /// Takes a place for one request, or says how long to wait before asking again.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        if let Some(until) = self.blocked_until.filter(|until| *until > now) {
            return Err(until - now);
        }
        self.blocked_until = None;
        match &mut self.window {
            Some((_, reset_at)) if *reset_at <= now => self.window = None,
            Some((0, reset_at)) => return Err(*reset_at - now),
            Some((remaining, _)) => *remaining -= 1,
            None => {}
        }
        if self.window.is_none() && self.in_flight > 0 {
            // The answer to the one on its way says how many more there may be.
            return Err(UNKNOWN_WAIT);
        }
        self.in_flight += 1;
        Ok(())
    }

    /// How long nothing goes at all, as far as Close has said; `None`: something may go now.
    pub fn closed_for(&self, now: Instant) -> Option<Duration> {
        let used_up = self.window.filter(|(remaining, _)| *remaining == 0);
        let until = self.blocked_until.max(used_up.map(|(_, reset_at)| reset_at))?;
        Some(until.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
    }

    /// A request is over; `limit` is what its answer said.
    pub fn done(&mut self, now: Instant, limit: Option<RateLimit>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let Some(limit) = limit else { return };
        // Close may not have counted the requests on their way yet.
        let remaining = limit.remaining.saturating_sub(self.in_flight);
        self.window = Some(match self.window {
            // Answers overtake each other: within a window there is never more left than was known before.
            Some((before, reset_at)) if reset_at > now => (remaining.min(before), reset_at),
            _ => (remaining, now + limit.reset),
        });
    }

    /// Close said 429: nothing goes before this has passed.
    pub fn block(&mut self, now: Instant, wait: Duration) {
        let until = now + wait.min(WAIT_MAX);
        self.blocked_until = Some(self.blocked_until.map_or(until, |before| before.max(until)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn with_the_reset_a_window_is_over_to_the_moment() {
        let (now, reset) = (Instant::now(), Duration::from_secs(5));
        let says = |remaining| Some(RateLimit { remaining, reset });
        let mut budget = RateBudget::default();
        budget.done(now, says(0));
        assert_eq!(budget.take(now), Err(reset));
        let over = now + reset;
        assert_eq!(
            budget.take(over),
            Ok(()),
            "nothing is known of the new window, and one may ask"
        );
        // What an answer says then is said of the new window, whatever was left of the old one.
        for later in [over, over + Duration::from_millis(1)] {
            let mut budget = RateBudget::default();
            budget.done(now, says(0));
            budget.done(later, says(2));
            assert_eq!([budget.take(later), budget.take(later)], [Ok(()); 2]);
            assert_eq!(budget.take(later), Err(reset));
        }
    }

    #[test]
    fn how_long_nothing_goes_is_known() {
        let (now, reset) = (Instant::now(), Duration::from_secs(5));
        let mut budget = RateBudget::default();
        assert_eq!(budget.closed_for(now), None);
        budget.done(now, Some(RateLimit { remaining: 1, reset }));
        assert_eq!(budget.closed_for(now), None);
        budget.take(now).unwrap();
        assert_eq!(budget.closed_for(now), Some(reset));
        budget.block(now, 2 * reset);
        assert_eq!(budget.closed_for(now + reset), Some(reset));
        assert_eq!(budget.closed_for(now + 2 * reset), None);
    }

    #[test]
    fn the_header_is_read_as_documented_and_anything_else_ignored() {
        let read = |text| RateLimit::parse(text).map(|l| (l.remaining, l.reset.as_millis()));
        assert_eq!(read("limit=100, remaining=50, reset=5"), Some((50, 5000)));
        assert_eq!(read("limit=100,remaining=0,reset=0.25"), Some((0, 250)));
        assert_eq!(read("reset=1e9; remaining=7"), Some((7, 600_000)), "no wait is endless");
        assert_eq!(
            read("limit=100, remaining=0, reset=1.5, limit=300, remaining=200, reset=3"),
            Some((0, 1500)),
            "the tightest of several"
        );
        assert_eq!(
            read("limit=300, remaining=0, reset=1,limit=100, remaining=0, reset=2"),
            Some((0, 2000))
        );
        for bad in [
            "",
            "remaining=5",
            "limit=1, remaining=5, limit=2, reset=5",
            "reset=5",
            "remaining=-1, reset=5",
            "remaining=x, reset=5",
            "remaining=1, reset=-1",
            "remaining=1, reset=nan",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    proptest! {
        /// Against a server that counts: never more than its limit in a window, however answers overtake each other, and all of
        /// the limit but what may have been on the way is used.
        #[test]
        fn no_more_is_sent_than_the_server_allows(
            limit in 1_u64..20, period_ms in 10_u64..2000, flights in 1_usize..5, order in prop::collection::vec(0_usize..5, 1..50),
        ) {
            let start = Instant::now();
            let mut budget = RateBudget::default();
            let (mut now, mut window_end, mut used, mut windows) = (start, start, 0, 0_u64);
            let mut on_the_way = Vec::new();
            let mut sent = 0_u64;
            for turn in 0..2000 {
                while on_the_way.len() < flights && budget.take(now).is_ok() {
                    if now >= window_end {
                        window_end = now + Duration::from_millis(period_ms);
                        used = 0;
                        windows += 1;
                    }
                    used += 1;
                    sent += 1;
                    prop_assert!(used <= limit, "{used} of {limit}");
                    on_the_way.push(RateLimit { remaining: limit - used, reset: window_end - now });
                }
                if on_the_way.is_empty() {
                    now += budget.take(now).expect_err("nothing could be sent");
                } else {
                    let which = order[turn % order.len()] % on_the_way.len();
                    let answer = on_the_way.remove(which);
                    budget.done(now, Some(answer));
                }
            }
            let spared = flights as u64 - 1;
            prop_assert!(sent >= (windows - 1) * limit.saturating_sub(spared).max(1), "{sent} in {windows} windows of {limit}");
        }
    }

    #[test]
    fn a_wait_is_given_in_seconds_or_as_a_date() {
        let now: Timestamp = "2024-02-15T12:00:00Z".parse().unwrap();
        let read = |text| retry_after(text, now).map(|wait| wait.as_millis());
        assert_eq!(read("2.5"), Some(2500));
        for date in [
            "Thu, 15 Feb 2024 12:00:07 GMT",
            "Thursday, 15-Feb-24 12:00:07 GMT",
            "Thu Feb 15 12:00:07 2024",
        ] {
            assert_eq!(read(date), Some(7000), "{date}");
        }
        assert_eq!(read("Thu, 15 Feb 2024 11:00:00 GMT"), Some(0), "it has passed");
        assert_eq!(
            read("Fri, 16 Feb 2024 12:00:00 GMT"),
            Some(600_000),
            "no wait is endless"
        );
        assert_eq!(read("soon"), None);
    }

    #[test]
    fn a_429_blocks_everything_for_as_long_as_it_says() {
        let now = Instant::now();
        let mut budget = RateBudget::default();
        assert_eq!(budget.take(now), Ok(()));
        budget.block(now, Duration::from_secs(3));
        budget.block(now, Duration::from_secs(1));
        budget.done(now, None);
        assert_eq!(budget.take(now + Duration::from_secs(1)), Err(Duration::from_secs(2)));
        assert_eq!(budget.take(now + Duration::from_secs(3)), Ok(()));
    }
}
