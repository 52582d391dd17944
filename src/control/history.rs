//! The last 24 hours minute by minute, for charts: kept by the daemon itself, from the same counters as `/metrics`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Out, Refusal, text};
use crate::task;
use crate::telemetry::history::Minute;

/// The charts of the last hours.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Show {
    /// Back from now, 24 h at the most; `None`: 24 h.
    #[serde(default)]
    pub hours: Option<u32>,
    /// Minutes in one point; `None`: 1.
    #[serde(default)]
    pub step_minutes: Option<u32>,
}

/// Series of equal length; a `None` is a time of which nothing is known: the daemon did not run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Charts {
    /// Seconds between two points.
    pub step_seconds: u64,
    /// When each point begins, oldest first. The last one is still running.
    pub at: Vec<Timestamp>,
    /// Requests that came to the public listener with a delivery, whatever was answered.
    pub received: Vec<Option<u64>>,
    /// Events that were stored.
    pub stored: Vec<Option<u64>>,
    /// Deliveries that repeated what is stored.
    pub duplicates: Vec<Option<u64>>,
    /// Requests that were refused or could not be answered well.
    pub refused: Vec<Option<u64>>,
    /// By sink.
    pub sinks: BTreeMap<String, SinkCharts>,
}

/// Series of one sink, each as long as the others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SinkCharts {
    /// Delivered in that time.
    pub delivered: Vec<Option<u64>>,
    /// Given up in that time.
    pub dead: Vec<Option<u64>>,
    /// Events behind at the end of it; the most of a point's minutes.
    pub lag_events: Vec<Option<u64>>,
    /// Age in seconds of the oldest event that was not finished; the most of a point's minutes.
    pub lag_seconds: Vec<Option<f64>>,
}

/// Hours back at the most.
pub const HOURS_MAX: u32 = 24;

/// Minutes in one point at the most.
pub const STEP_MAX: u32 = 24 * 60;

impl Show {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Charts>) -> Result<(), Refusal> {
        let history = on.history.clone().ok_or("there is no history of the last day here")?;
        let reading = history.clone();
        let minutes = task::begin_blocking(move || reading.minutes());
        let minutes = minutes.await.map_err(text)?;
        out.say(&self.charts(&minutes, history.now())).await
    }

    /// The minutes put into points that end with the one that runs. What the clock has called otherwise is not among them.
    fn charts(&self, minutes: &[Minute], now: Timestamp) -> Charts {
        let step = i64::from(self.step_minutes.unwrap_or(1).clamp(1, STEP_MAX));
        let hours = i64::from(self.hours.unwrap_or(HOURS_MAX).clamp(1, HOURS_MAX));
        // Points begin at round times, whenever it is asked.
        let last = now.as_second().div_euclid(60).div_euclid(step);
        let points = (hours * 60 + step - 1) / step;
        let first = last - points + 1;
        let count = usize::try_from(points).unwrap_or_default();
        let time = |point: i64| Timestamp::from_second(point * step * 60).unwrap_or(now);
        let mut charts = Charts {
            step_seconds: step.unsigned_abs() * 60,
            at: (first..=last).map(time).collect(),
            received: vec![None; count],
            stored: vec![None; count],
            duplicates: vec![None; count],
            refused: vec![None; count],
            sinks: BTreeMap::new(),
        };
        let place = |minute: &Minute| {
            let point = minute.number.div_euclid(step);
            (first..=last)
                .contains(&point)
                .then(|| usize::try_from(point - first).ok())
                .flatten()
        };
        let placed: Vec<(usize, &Minute)> = minutes
            .iter()
            .filter_map(|minute| Some((place(minute)?, minute)))
            .collect();
        for (at, minute) in &placed {
            add(&mut charts.received[*at], minute.counts.received);
            add(&mut charts.stored[*at], minute.counts.stored);
            add(&mut charts.duplicates[*at], minute.counts.duplicates);
            add(&mut charts.refused[*at], minute.counts.refused);
            for sink in &minute.sinks {
                let known = charts.sinks.entry(sink.0.to_string());
                let known = known.or_insert_with(|| SinkCharts::of_nothing(count));
                add(&mut known.delivered[*at], sink.1);
                add(&mut known.dead[*at], sink.2);
                // What is not known of one minute is no more than what is known of another.
                known.lag_events[*at] = known.lag_events[*at].max(sink.3);
                let before = known.lag_seconds[*at];
                known.lag_seconds[*at] = sink.4.map(f64::from).into_iter().chain(before).reduce(f64::max);
            }
        }
        // Of a sink of which a minute says nothing there was nothing to say.
        for (name, sink) in &mut charts.sinks {
            for (at, minute) in &placed {
                sink.delivered[*at].get_or_insert(0);
                sink.dead[*at].get_or_insert(0);
                if minute.sinks.iter().all(|said| *said.0 != **name) {
                    sink.lag_events[*at].get_or_insert(0);
                    sink.lag_seconds[*at].get_or_insert(0.0);
                }
            }
        }
        charts
    }
}

impl SinkCharts {
    /// So many points of which nothing is known.
    fn of_nothing(count: usize) -> SinkCharts {
        SinkCharts {
            delivered: vec![None; count],
            dead: vec![None; count],
            lag_events: vec![None; count],
            lag_seconds: vec![None; count],
        }
    }
}

fn add(point: &mut Option<u64>, count: u64) {
    *point = Some(point.unwrap_or_default() + count);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::history::{Counts, SinkMinute};

    fn minute(number: i64, stored: u64, sinks: &[(&str, u64, u64, f32)]) -> Minute {
        Minute {
            number,
            counts: Counts {
                stored,
                ..Counts::default()
            },
            sinks: sinks
                .iter()
                .map(|(name, delivered, lag, seconds)| {
                    SinkMinute((*name).into(), *delivered, 0, Some(*lag), Some(*seconds))
                })
                .collect(),
        }
    }

    /// Another node had the sink, say: how far behind it was is not known here, and 0 would be a claim.
    #[test]
    fn how_far_a_sink_was_behind_is_left_out_where_it_is_not_known() {
        let now = Timestamp::from_second(60 * 10_000 + 30).unwrap();
        let unknown = |number, events| {
            let mut minute = minute(number, 0, &[]);
            minute.sinks.push(SinkMinute("crm".into(), 1, 0, events, None));
            minute
        };
        let minutes = [
            minute(9_994, 0, &[("crm", 1, 5, 2.5)]),
            unknown(9_995, None),
            unknown(9_996, Some(3)),
            minute(9_997, 0, &[]),
        ];
        let charts = |step| {
            let show = Show {
                hours: Some(1),
                step_minutes: Some(step),
            };
            show.charts(&minutes, now).sinks["crm"].clone()
        };
        let by_minute = charts(1);
        assert_eq!(by_minute.lag_seconds[53..57], [Some(2.5), None, None, Some(0.0)]);
        assert_eq!(by_minute.lag_events[53..57], [Some(5), None, Some(3), Some(0)]);
        assert_eq!(by_minute.delivered[53..57], [Some(1), Some(1), Some(1), Some(0)]);
        // With what is known of other minutes of the same point.
        assert_eq!(
            charts(60).lag_seconds.iter().flatten().copied().collect::<Vec<_>>(),
            [2.5]
        );
    }

    #[test]
    fn points_add_up_what_their_minutes_brought_and_say_where_nothing_is_known() {
        let now = Timestamp::from_second(60 * 10_000 + 30).unwrap();
        let minutes = [
            minute(9_000, 99, &[]),
            minute(9_995, 1, &[("crm", 1, 5, 2.5)]),
            // The daemon was started anew in it.
            minute(9_996, 2, &[]),
            minute(9_996, 3, &[("crm", 4, 7, 1.5)]),
            minute(10_000, 4, &[]),
            // The clock was ahead once.
            minute(20_000, 99, &[]),
        ];
        let show = |hours, step| Show {
            hours: Some(hours),
            step_minutes: Some(step),
        };
        let charts = show(1, 1).charts(&minutes, now);
        assert_eq!(
            (charts.at.len(), charts.stored.len(), charts.step_seconds),
            (60, 60, 60)
        );
        assert_eq!(charts.at[59].as_second(), 600_000);
        assert_eq!(
            &charts.stored[53..],
            [None, Some(1), Some(5), None, None, None, Some(4)]
        );
        let crm = &charts.sinks["crm"];
        assert_eq!(
            &crm.delivered[53..],
            [None, Some(1), Some(4), None, None, None, Some(0)]
        );
        assert_eq!(&crm.lag_events[54..56], [Some(5), Some(7)]);
        let charts = show(1, 5).charts(&minutes, now);
        assert_eq!(charts.at.len(), 12);
        assert_eq!(&charts.stored[10..], [Some(6), Some(4)]);
        assert_eq!(charts.sinks["crm"].lag_seconds[10], Some(2.5));
        let day = Show::default().charts(&minutes, now);
        assert_eq!((day.at.len(), day.stored.iter().flatten().sum::<u64>()), (1440, 109));
    }
}
