//! What the counters say, read from the text of `/metrics`, and what a minute has brought.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

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
    pub(super) fn since(&self, before: &Reading, number: i64, names: &mut BTreeMap<String, Arc<str>>) -> Minute {
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let source = include_str!("reading.rs");
        let known: Vec<&str> = crate::telemetry::known::all().map(|metric| metric.name).collect();
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
