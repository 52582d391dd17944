//! Rate limits: a number of requests in each window, per key and, three times as many, for the organization. Windows run by the
//! machine's clock, because clients wait by it.

use std::collections::HashMap;

use super::moment::Moment;
use super::settings::Settings;

/// An organization has so many times the limit of a key (documented).
const ORGANIZATION_FACTOR: u32 = 3;

/// What the `RateLimit` header says, and whether the request may go on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Requests in a window.
    pub limit: u32,
    /// Left in this one, after this request.
    pub remaining: u32,
    /// Seconds until the next one.
    pub reset: f64,
    /// Answer 429.
    pub exceeded: bool,
}

impl Budget {
    /// The header's value.
    pub fn header(&self) -> String {
        format!(
            "limit={}, remaining={}, reset={:.3}",
            self.limit, self.remaining, self.reset
        )
    }

    /// Whole seconds for `retry-after`.
    pub fn retry_after(&self) -> String {
        format!("{:.0}", self.reset.ceil().max(1.0))
    }
}

#[derive(Debug, Clone, Copy)]
struct Window {
    began: Moment,
    used: u32,
}

/// Who has used how much. As many entries as there are keys.
#[derive(Debug, Default)]
pub struct Limits {
    windows: HashMap<String, Window>,
}

impl Limits {
    /// Counts a request. `caller` is a known key, or empty for everybody who has none.
    pub fn count(&mut self, settings: &Settings, caller: &str, path: &str, wall: Moment) -> Budget {
        let strict = settings.event_rate_limit.filter(|_| path.starts_with("/api/v1/event/"));
        let organization = settings.rate_limit.saturating_mul(ORGANIZATION_FACTOR);
        let mut budgets = vec![(format!("key {caller}"), settings.rate_limit)];
        // Strangers do not use up what belongs to the organization.
        budgets.extend((!caller.is_empty()).then(|| ("organization".to_owned(), organization)));
        budgets.extend(strict.map(|limit| (format!("event {caller}"), limit)));
        let window_of = |window: &Window| window.began.plus(settings.rate_window.0);
        // What is refused counts nowhere.
        let is_open = |windows: &HashMap<String, Window>, name: &str, limit: u32| {
            windows
                .get(name)
                .is_none_or(|window| wall >= window_of(window) || window.used < limit)
        };
        let admitted = budgets
            .iter()
            .all(|(name, limit)| is_open(&self.windows, name, *limit) && *limit > 0);
        let mut tightest: Option<Budget> = None;
        for (name, limit) in budgets {
            let window = self.windows.entry(name).or_insert(Window { began: wall, used: 0 });
            if wall >= window_of(window) {
                *window = Window { began: wall, used: 0 };
            }
            window.used += u32::from(admitted);
            let budget = Budget {
                limit,
                remaining: limit.saturating_sub(window.used),
                reset: window_of(window).since(wall).as_secs_f64(),
                exceeded: !admitted,
            };
            let is_tighter = |other: &Budget| (budget.remaining, -budget.reset) < (other.remaining, -other.reset);
            if tightest.as_ref().is_none_or(is_tighter) {
                tightest = Some(budget);
            }
        }
        tightest.unwrap_or(Budget {
            limit: 0,
            remaining: 0,
            reset: 0.0,
            exceeded: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_key_has_its_limit_and_the_organization_three_times_that() {
        let settings = Settings {
            rate_limit: 3,
            ..Settings::default()
        };
        let mut limits = Limits::default();
        let mut ask = |key: &str, at: u64| {
            let wall = Moment(0).plus(Duration::from_millis(at));
            limits.count(&settings, key, "/api/v1/webhook/", wall)
        };
        assert_eq!(ask("a", 0).header(), "limit=3, remaining=2, reset=5.000");
        assert_eq!(ask("a", 500).header(), "limit=3, remaining=1, reset=4.500");
        assert_eq!(ask("a", 500).header(), "limit=3, remaining=0, reset=4.500");
        let refused = ask("a", 1500);
        assert!(refused.exceeded);
        assert_eq!(
            (refused.header().as_str(), refused.retry_after().as_str()),
            ("limit=3, remaining=0, reset=3.500", "4")
        );
        for key in ["b", "b", "b", "c", "c", "c"] {
            assert!(!ask(key, 2000).exceeded);
        }
        let refused = ask("d", 2000);
        assert!(refused.exceeded, "nine of the organization's nine are used");
        assert_eq!(refused.limit, 9);
        assert_eq!(ask("", 2000).limit, 3, "strangers have a limit of their own");
        assert!(!ask("a", 5000).exceeded, "a new window");
    }

    #[test]
    fn the_event_log_can_be_stricter() {
        let settings = Settings {
            event_rate_limit: Some(1),
            ..Settings::default()
        };
        let mut limits = Limits::default();
        assert_eq!(limits.count(&settings, "a", "/api/v1/event/", Moment(0)).limit, 1);
        assert!(limits.count(&settings, "a", "/api/v1/event/", Moment(0)).exceeded);
        assert!(!limits.count(&settings, "a", "/api/v1/webhook/", Moment(0)).exceeded);
    }
}
