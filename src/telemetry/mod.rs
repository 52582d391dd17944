//! What can be seen from outside: logs and metrics. One function per observable fact, so that both always agree.

pub mod door;
pub mod history;
pub mod known;
mod last_hour;
pub mod logging;
pub mod paced;

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use metrics::{counter, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::event::Seq;
use crate::task;

/// Bounds of commit latencies in seconds: a good disk's sync is a fraction of a millisecond, a bad one's a second.
const COMMIT_SECONDS: [f64; 12] = [
    0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.25, 1.0, 5.0,
];

/// Bounds of the number of events in a commit.
const COMMIT_EVENTS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0, 1024.0];

/// How often what was recorded is summed up.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Installs the recorder; to be called once, before anything counts.
pub fn install_metrics() -> Result<PrometheusHandle, String> {
    let builder = PrometheusBuilder::new();
    let bounded = builder
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &COMMIT_SECONDS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Full("closehook_commit_events".into()), &COMMIT_EVENTS)
        });
    let handle = bounded
        .map_err(|e| e.to_string())?
        .install_recorder()
        .map_err(|error| error.to_string())?;
    let upkeep = handle.clone();
    // What histograms were told is kept one by one until they are looked at, and perhaps nobody ever does.
    let upkept = task::begin_thread("metrics", move || {
        keep_up(|| {
            std::thread::sleep(UPKEEP_EVERY);
            upkeep.run_upkeep();
            true
        });
    });
    upkept.map_err(|error| error.to_string())?;
    known::begin();
    Ok(handle)
}

/// Goes round after round for as long as `round` says so, also after one that panicked.
fn keep_up(mut round: impl FnMut() -> bool) {
    loop {
        match catch_unwind(AssertUnwindSafe(&mut round)) {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => restarted(
                "metrics",
                "the thread that sums up metrics panicked, which is a defect; it goes on",
                UPKEEP_EVERY,
            ),
        }
    }
}

/// There is a task that must not end: its restarts are counted from zero.
pub fn supervised(task: &str) {
    counter!("closehook_restarts_total", "task" => task.to_owned()).increment(0);
}

/// A task has ended although it must not, and is begun anew.
pub fn restarted(task: &str, reason: &str, pause: Duration) {
    counter!("closehook_restarts_total", "task" => task.to_owned()).increment(1);
    tracing::error!(task, reason, again_in = ?pause, "a part of closehook has ended that must not; it is begun anew");
}

/// A sink is there: what can happen to it is counted from zero, so that a first failure is an increase.
pub fn sink_started(sink: &str) {
    known::begin_sink(sink);
}

/// What gauges are about that is there now.
#[derive(Debug, Clone, Default)]
pub struct There {
    /// Sinks, by name.
    pub sinks: Vec<String>,
    /// Subscriptions at Close that are to deliver here; `None`: there are no credentials, and nothing is known of Close.
    pub subscriptions: Option<Vec<String>>,
}

impl There {
    /// Whether a line of rendered metrics is true of something that is there, or counts what was.
    fn has(&self, line: &str) -> bool {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let label = |label: &str, values: &[String]| {
            let labels = line[name.len()..].strip_prefix('{').unwrap_or_default();
            values
                .iter()
                .any(|value| labels.starts_with(&format!("{label}=\"{value}\"")))
        };
        if known::is_gauge_of_sinks(name) {
            return label("sink", &self.sinks);
        }
        if !known::is_gauge_of_close(name) {
            return true;
        }
        match &self.subscriptions {
            None => false,
            Some(subscriptions) if name == known::SUBSCRIPTION_ACTIVE => label("subscription", subscriptions),
            Some(_) => true,
        }
    }
}

/// Rendered metrics without the gauges of what is not there any more; what was counted stays.
pub fn without_removed(text: &str, there: &There) -> String {
    text.split_inclusive('\n').filter(|line| there.has(line)).collect()
}

/// Lets one log line a second pass, whatever the flood.
#[derive(Debug)]
struct Sample(AtomicI64);

impl Sample {
    const fn new() -> Sample {
        Sample(AtomicI64::new(0))
    }

    fn passes(&self) -> bool {
        self.passes_in(1)
    }

    /// The same with one in so many seconds.
    fn passes_in(&self, seconds: i64) -> bool {
        let now = jiff::Timestamp::now().as_second() / seconds;
        self.0.swap(now, Ordering::Relaxed) != now
    }
}

/// A connection or a request was turned away for where it comes from.
pub fn turned_away(reason: &'static str, peer: IpAddr) {
    static SAMPLE: Sample = Sample::new();
    counter!("closehook_turned_away_total", "reason" => reason).increment(1);
    if SAMPLE.passes() {
        tracing::warn!(reason, %peer, "turned a client away");
    }
}

/// A connection made room for a new one of its address.
pub fn displaced(peer: IpAddr) {
    static SAMPLE: Sample = Sample::new();
    counter!("closehook_displaced_connections_total").increment(1);
    if SAMPLE.passes() {
        tracing::warn!(%peer, "an address has too many connections: one that never delivered anything was closed");
    }
}

/// An address keeps failing.
pub fn slowed(peer: IpAddr) {
    static SAMPLE: Sample = Sample::new();
    counter!("closehook_slowed_requests_total").increment(1);
    if SAMPLE.passes() {
        tracing::warn!(%peer, "an address keeps failing: its refusals wait");
    }
}

/// A certificate was ordered.
pub fn certificate_ordered(is_there: bool) {
    let result = if is_there { "ok" } else { "failed" };
    counter!("closehook_certificate_orders_total", "result" => result).increment(1);
}

/// A group of events became durable.
pub fn committed(events: usize, bytes: usize, elapsed: Duration) {
    counter!("closehook_stored_events_total").increment(events as u64);
    counter!("closehook_received_bytes_total").increment(bytes as u64);
    histogram!("closehook_commit_events").record(events as f64);
    histogram!("closehook_commit_seconds").record(elapsed.as_secs_f64());
}

/// A delivery repeated what is stored.
pub fn duplicate() {
    counter!("closehook_duplicate_events_total").increment(1);
}

/// An authentic body can't be read as a delivery.
pub fn quarantined(seq: Seq) {
    counter!("closehook_quarantined_events_total").increment(1);
    tracing::warn!(
        seq = seq.0,
        "an authentic body can't be read as a delivery; it is kept in quarantine"
    );
}

/// A sink has an event.
pub fn delivered(sink: &str, count: u64) {
    counter!("closehook_sink_delivered_total", "sink" => sink.to_owned()).increment(count);
}

/// A transform wanted nothing of an event delivered.
pub fn skipped(sink: &str) {
    counter!("closehook_sink_skipped_total", "sink" => sink.to_owned()).increment(1);
}

/// A newer event of the object goes out instead of one.
pub fn superseded(sink: &str) {
    counter!("closehook_sink_superseded_total", "sink" => sink.to_owned()).increment(1);
}

/// A try failed and there will be another.
pub fn retried(sink: &str) {
    counter!("closehook_sink_retried_total", "sink" => sink.to_owned()).increment(1);
}

/// Deliveries were given up together; the first of them and why.
pub fn dead(sink: &str, count: u64, first: Seq, reason: &str) {
    counter!("closehook_sink_dead_total", "sink" => sink.to_owned()).increment(count);
    tracing::warn!(
        sink,
        count,
        seq = first.0,
        reason,
        "dead letters: `closehook dead list` shows them"
    );
}

/// Deliveries were given up together, and go to another sink.
pub fn diverted(sink: &str, to: &str, count: u64, first: Seq, reason: &str) {
    counter!("closehook_sink_diverted_total", "sink" => sink.to_owned()).increment(count);
    tracing::warn!(
        sink,
        to,
        count,
        seq = first.0,
        reason,
        "given up here, and sent to its dead_to"
    );
}

/// Deliveries were given up because the log reached its size limit.
pub fn buried(sink: &str, count: u64) {
    counter!("closehook_sink_buried_total", "sink" => sink.to_owned()).increment(count);
    tracing::error!(
        sink,
        count,
        "the log is over its size limit and the sink had not finished these events: they are dead letters"
    );
}

/// Dead letters had to go because there were too many.
pub fn letters_dropped(sink: &str, count: u64, limit: impl std::fmt::Display) {
    counter!("closehook_sink_dead_dropped_total", "sink" => sink.to_owned()).increment(count);
    tracing::error!(
        sink,
        count,
        "dead letters take up more than {limit} (dead_max, or their part of log.max_size): the oldest were dropped"
    );
}

/// A part of a sink's work panicked and was started again.
pub fn sink_restarted(sink: &str, part: &'static str) {
    counter!("closehook_restarts_total", "task" => part, "sink" => sink.to_owned()).increment(1);
    tracing::error!(
        sink,
        part,
        "a panic was caught and the part started again; this is a defect of closehook, please report it"
    );
}

/// Events were gone before a sink had them.
pub fn lost(sink: &str, count: u64) {
    counter!("closehook_sink_lost_total", "sink" => sink.to_owned()).increment(count);
}

/// Events were written with something replaced that the receiver can't hold.
pub fn altered(sink: &str, count: u64) {
    counter!("closehook_sink_altered_total", "sink" => sink.to_owned()).increment(count);
}

/// Close's API answered.
pub fn close_answered(status: u16) {
    counter!("closehook_close_requests_total", "status" => status.to_string()).increment(1);
}

/// A request to Close's API was given up.
pub fn close_failed(kind: &'static str) {
    counter!("closehook_close_failures_total", "kind" => kind).increment(1);
}

/// Close's API said 429.
pub fn close_limited(wait: Duration) {
    counter!("closehook_close_rate_limited_total").increment(1);
    tracing::debug!(seconds = wait.as_secs_f64(), "Close's rate limit is exhausted");
}

/// A request waited for Close's rate limit.
pub fn close_waited(wait: Duration) {
    // Counters are whole numbers, and most waits are parts of a second.
    counter!("closehook_close_rate_wait_milliseconds_total").increment(wait.as_millis() as u64);
}

/// Events came from Close's event log: stored, already known, or stored without their data.
pub fn backfilled(stored: u64, known: u64, partial: u64) {
    for (result, count) in [("stored", stored), ("known", known), ("partial", partial)] {
        counter!("closehook_backfilled_events_total", "result" => result).increment(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_of_what_is_gone_is_gone_and_what_was_counted_stays() {
        let text = "# HELP closehook_close_subscription_active It.\n\
                    closehook_close_subscription_active{subscription=\"old\"} 0\n\
                    closehook_close_subscription_active{subscription=\"new\"} 1\n\
                    closehook_close_reachable 1\n\
                    closehook_close_requests_total{status=\"200\"} 7\n\
                    closehook_sink_paused{sink=\"a\"} 0\n\
                    closehook_sink_paused{sink=\"b\"} 1\n\
                    closehook_sink_dead_total{sink=\"b\"} 3\n";
        let left = |there: &There| {
            let left = without_removed(text, there);
            let gone = text.lines().filter(|line| !left.contains(line));
            gone.map(str::to_owned).collect::<Vec<_>>()
        };
        let mut there = There {
            sinks: vec!["a".into()],
            subscriptions: Some(vec!["new".into()]),
        };
        let of_sink = "closehook_sink_paused{sink=\"b\"} 1";
        let of_old = "closehook_close_subscription_active{subscription=\"old\"} 0";
        assert_eq!(left(&there), [of_old, of_sink]);
        // Without credentials, and where another node looks after it, nothing is claimed of Close.
        there.subscriptions = None;
        let of_new = "closehook_close_subscription_active{subscription=\"new\"} 1";
        assert_eq!(left(&there), [of_old, of_new, "closehook_close_reachable 1", of_sink]);
    }

    #[test]
    fn the_upkeep_of_metrics_goes_on_after_a_panic() {
        let mut rounds = 0;
        keep_up(|| {
            rounds += 1;
            assert!(rounds != 2, "as told");
            rounds < 4
        });
        assert_eq!(rounds, 4);
    }
}
