//! What can be set, from the start or while it runs (`PUT /fake/settings`). What Close documents is not set but kept: those
//! figures are constants where they are used.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::span::Span;
use super::subscription::SUBSCRIPTIONS_MAX;

/// How the fake behaves where Close's documentation leaves it open, and how unkind the world is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Events that happen by themselves, a second of simulated time. Default none.
    pub events_per_second: f64,
    /// How long after its date an event may become visible in the event log; every fifth takes up to this long, the others up
    /// to a second and a half. Default 4 min, inside the five minutes that Close tells clients to scan again.
    pub visibility_lag: Span,
    /// `updated` and `deleted` webhooks wait so long for further changes. Default 60 s.
    pub consolidation: Span,
    /// Share of deliveries held up by chance, so that they arrive out of order. Default 0.1.
    pub disorder: f64,
    /// How long they are held up at most. Default 10 min.
    pub disorder_max: Span,
    /// Share of deliveries sent once more although they were answered 2xx. Default 0.02.
    pub duplicates: f64,
    /// First delay of a retry; it doubles up to the documented 20 minutes. Default 60 s, as was seen.
    pub retry_initial: Span,
    /// How long a receiver may take for its answer, by the machine's clock. Default 10 s.
    pub delivery_timeout: Span,
    /// Deliveries of a subscription on their way at a time. Default 16.
    pub parallel: usize,
    /// Simulated time in which due deliveries are sent together while the clock is advanced: less is more exact and slower.
    /// Default 10 min.
    pub slice: Span,
    /// Whose time stands in `close-sig-timestamp`. Default the machine's, because the receiver's clock can't be driven.
    pub signed_at: SignedAt,
    /// Accept `http://` URLs to this machine. Default false, as Close does.
    pub allow_loopback: bool,
    /// Deliver to hosts other than this machine. Default false: then such deliveries fail without being tried.
    pub deliver_anywhere: bool,
    /// Where deliveries really go: the start of a subscription's URL, and what is put in its place.
    pub deliver_to: BTreeMap<String, String>,
    /// Requests a key has in each window; an organization has three times that. Default 100.
    pub rate_limit: u32,
    /// The window, by the machine's clock, since that is what clients wait by. Default 5 s.
    pub rate_window: Span,
    /// A stricter limit of its own for `/event/`. Default none.
    pub event_rate_limit: Option<u32>,
    /// How `data` and `previous_data` are withheld. Default: the keys are absent.
    pub withheld: Withheld,
    /// Types of events (`object_type.action`) that never have `data` or `previous_data`, whoever asks. Default none.
    pub bare_types: Vec<String>,
    /// Subscriptions an organization can make. Default the documented 40; organizations with 500 were seen.
    pub subscriptions_max: usize,
    /// Subscriptions on a page of their list at most, and where `_limit` is not given. Default 100.
    pub subscriptions_page_max: usize,
    /// Refuse subscriptions to events that are not documented. Default false.
    pub strict_types: bool,
    /// How long a cursor is good, by the machine's clock. Default 1 h.
    pub cursor_life: Span,
    /// How long an access token is good, by the machine's clock. Default 1 h.
    pub token_life: Span,
}

/// See [`Settings::signed_at`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignedAt {
    /// The machine's clock.
    Wall,
    /// The simulated clock.
    Simulated,
}

/// See [`Settings::withheld`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Withheld {
    /// The keys are not there.
    Absent,
    /// The keys are there with null.
    Null,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            events_per_second: 0.0,
            visibility_lag: Span::secs(240),
            consolidation: Span::secs(60),
            disorder: 0.1,
            disorder_max: Span::secs(600),
            duplicates: 0.02,
            retry_initial: Span::secs(60),
            delivery_timeout: Span::secs(10),
            parallel: 16,
            slice: Span::secs(600),
            signed_at: SignedAt::Wall,
            allow_loopback: false,
            deliver_anywhere: false,
            deliver_to: BTreeMap::new(),
            rate_limit: 100,
            rate_window: Span::secs(5),
            event_rate_limit: None,
            withheld: Withheld::Absent,
            bare_types: Vec::new(),
            subscriptions_max: SUBSCRIPTIONS_MAX,
            subscriptions_page_max: 100,
            strict_types: false,
            cursor_life: Span::secs(3600),
            token_life: Span::secs(3600),
        }
    }
}

impl Settings {
    /// What tests want: nothing by chance, and loopback receivers.
    pub fn calm() -> Settings {
        Settings {
            visibility_lag: Span::secs(0),
            disorder: 0.0,
            duplicates: 0.0,
            allow_loopback: true,
            ..Settings::default()
        }
    }

    /// These settings with some of them changed, given as a JSON object. The error says which is wrong.
    pub fn changed(&self, changes: &serde_json::Value) -> Result<Settings, String> {
        let changes = changes.as_object().ok_or("settings are a JSON object")?;
        let mut all = serde_json::to_value(self).map_err(|error| error.to_string())?;
        for (name, value) in changes {
            all[name] = value.clone();
        }
        let settings: Settings = serde_json::from_value(all).map_err(|error| error.to_string())?;
        let share = |name: &str, value: f64| {
            (0.0..=1.0)
                .contains(&value)
                .then_some(())
                .ok_or_else(|| format!("{name} is a share from 0 to 1"))
        };
        share("disorder", settings.disorder)?;
        share("duplicates", settings.duplicates)?;
        if !(0.0..=1_000_000.0).contains(&settings.events_per_second) {
            return Err("events_per_second is from 0 to 1000000".into());
        }
        if settings.parallel == 0 || settings.parallel > 1024 {
            return Err("parallel is from 1 to 1024".into());
        }
        if settings.subscriptions_page_max == 0 {
            return Err("subscriptions_page_max is at least 1".into());
        }
        if settings.rate_window.0.is_zero() || settings.slice.0.is_zero() {
            return Err("rate_window and slice are longer than nothing".into());
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_named_changes_and_nonsense_is_refused() {
        let settings = Settings::default();
        let changed = settings
            .changed(&json!({ "disorder": 0.5, "consolidation": "2m" }))
            .unwrap();
        assert_eq!(
            changed,
            Settings {
                disorder: 0.5,
                consolidation: Span::secs(120),
                ..settings.clone()
            }
        );
        for bad in [
            json!({ "disorder": 2 }),
            json!({ "slice": "0s" }),
            json!({ "parallel": 0 }),
            json!({ "nonsense": 1 }),
            json!({ "consolidation": 60 }),
            json!({ "events_per_second": -1 }),
            json!([]),
        ] {
            assert!(settings.changed(&bad).is_err(), "{bad}");
        }
    }
}
