//! What can be seen from outside: logs and metrics. One function per observable fact, so that both always agree.

pub mod logging;
pub mod traffic;

use std::net::IpAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use metrics::{Counter, counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::event::Seq;
use traffic::Counts;

/// What came to the public listener lately.
static TRAFFIC: Counts = Counts::new();

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
    TRAFFIC.tick(jiff::Timestamp::now());
    // What histograms were told is kept one by one until they are looked at, and perhaps nobody ever does.
    std::thread::Builder::new()
        .name("metrics".into())
        .spawn(move || {
            loop {
                std::thread::sleep(UPKEEP_EVERY);
                upkeep.run_upkeep();
                TRAFFIC.tick(jiff::Timestamp::now());
            }
        })
        .map_err(|error| error.to_string())?;
    describe();
    Ok(handle)
}

/// What can be seen of the public listener.
fn describe_listener() {
    use metrics::{describe_counter, describe_gauge};
    describe_counter!(
        "closehook_requests_total",
        "Requests to the public listener, by answer."
    );
    describe_counter!(
        "closehook_turned_away_total",
        "Connections (behind a proxy: requests) of addresses that may not send, or have too many connections."
    );
    describe_counter!(
        "closehook_displaced_connections_total",
        "Connections that never delivered anything and made room for a new one of their address."
    );
    describe_counter!(
        "closehook_slowed_requests_total",
        "Failed requests of addresses that keep failing: their refusals wait."
    );
    describe_counter!("closehook_refused_total", "Requests refused with 401, by reason.");
    describe_gauge!(
        "closehook_certificate_not_after_seconds",
        "When the certificate expires, in seconds since the Unix epoch."
    );
    describe_gauge!(
        "closehook_certificate_next_renewal_seconds",
        "When the next certificate is ordered, in seconds since the Unix epoch."
    );
    describe_counter!("closehook_certificate_orders_total", "Certificates ordered, by result.");
    describe_gauge!("closehook_connections", "Open connections to the public listener.");
}

/// What can be seen of a sink.
fn describe_sinks() {
    use metrics::{describe_counter, describe_gauge};
    describe_counter!("closehook_sink_delivered_total", "Events delivered, by sink.");
    describe_counter!(
        "closehook_sink_retried_total",
        "Failed tries that are tried again, by sink."
    );
    describe_counter!("closehook_sink_dead_total", "Dead letters made, by sink.");
    describe_counter!(
        "closehook_sink_buried_total",
        "Dead letters made because the log reached its size limit, by sink."
    );
    describe_counter!(
        "closehook_sink_dead_dropped_total",
        "Dead letters dropped because they took up more than dead_max, by sink."
    );
    describe_counter!(
        "closehook_sink_lost_total",
        "Events damaged or expired before the sink had them."
    );
    describe_counter!(
        "closehook_sink_altered_total",
        "Events with characters or numbers that the sink's table can't hold and has replaced; the log has them whole."
    );
    describe_gauge!(
        "closehook_sink_lag_events",
        "Events of the log the sink is not done with."
    );
    describe_gauge!(
        "closehook_sink_lag_seconds",
        "Age of the oldest event the sink is not done with."
    );
    describe_gauge!("closehook_sink_in_flight", "Deliveries running.");
    describe_gauge!("closehook_sink_retrying", "Events waiting for another try.");
    describe_gauge!("closehook_sink_dead_letters", "Dead letters kept.");
    describe_gauge!("closehook_sink_breaker_open", "1 while the sink keeps failing.");
    describe_gauge!("closehook_sink_paused", "1 while the sink is paused.");
    describe_gauge!(
        "closehook_sink_waiting",
        "1 while nothing is delivered for a reason that `closehook sinks list` names."
    );
}

fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_listener();
    describe_sinks();
    describe_counter!("closehook_stored_events_total", "Events stored.");
    describe_counter!(
        "closehook_duplicate_events_total",
        "Deliveries of events that were stored already."
    );
    describe_counter!(
        "closehook_quarantined_events_total",
        "Authentic bodies that can't be read as a delivery."
    );
    describe_histogram!("closehook_commit_events", "Events in a group commit.");
    describe_histogram!(
        "closehook_commit_seconds",
        "Duration of a group commit, fdatasync included."
    );
    describe_counter!("closehook_received_bytes_total", "Bytes of bodies stored.");
    describe_gauge!("closehook_log_bytes", "Size of the event log on disk.");
    describe_gauge!("closehook_log_first_seq", "Oldest event kept.");
    describe_gauge!("closehook_log_last_seq", "Newest event.");
    describe_gauge!("closehook_log_lost_events", "Events that damage took from the log.");
    describe_gauge!("closehook_ready", "1 while events can be stored.");
    describe_counter!("closehook_close_requests_total", "Answers of Close's API, by status.");
    describe_counter!(
        "closehook_close_failures_total",
        "Requests to Close's API given up, by kind."
    );
    describe_counter!("closehook_close_rate_limited_total", "Answers 429 of Close's API.");
    describe_counter!(
        "closehook_close_rate_wait_milliseconds_total",
        "Time requests waited for Close's rate limit."
    );
    describe_counter!(
        "closehook_backfilled_events_total",
        "Events fetched from Close's event log, by what became of them."
    );
    describe_gauge!("closehook_close_reachable", "1 while Close's API answers.");
    describe_gauge!(
        "closehook_close_complete_timestamp_seconds",
        "Up to here (seconds since the Unix epoch) the log has everything that Close's event log has."
    );
    describe_gauge!(
        "closehook_close_silent",
        "1 while Close delivers nothing although its event log has new events."
    );
    describe_gauge!(
        "closehook_close_subscription_active",
        "1 while the subscription is active and points here."
    );
    describe_gauge!("closehook_backfill_running", "1 while a backfill runs.");
    describe_counter!(
        "closehook_restarts_total",
        "Tasks and threads that panicked or ended although they must not, and were begun anew; with the sink where it was one of its."
    );
    describe_gauge!("closehook_build_info", "1, with the version.");
    describe_gauge!(
        "process_start_time_seconds",
        "When the process started, in seconds since the Unix epoch."
    );
    describe_gauge!("process_resident_memory_bytes", "Resident memory.");
    gauge!("closehook_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    gauge!("process_start_time_seconds").set(jiff::Timestamp::now().as_second() as f64);
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
    for name in [
        "closehook_sink_delivered_total",
        "closehook_sink_retried_total",
        "closehook_sink_dead_total",
        "closehook_sink_lost_total",
        "closehook_sink_buried_total",
        "closehook_sink_dead_dropped_total",
    ] {
        counter!(name, "sink" => sink.to_owned()).absolute(0);
    }
}

/// What is true of a sink at the moment, as opposed to what was counted.
pub const SINK_GAUGES: [&str; 8] = [
    "closehook_sink_lag_events",
    "closehook_sink_lag_seconds",
    "closehook_sink_in_flight",
    "closehook_sink_retrying",
    "closehook_sink_dead_letters",
    "closehook_sink_breaker_open",
    "closehook_sink_paused",
    "closehook_sink_waiting",
];

/// Rendered metrics without the gauges of sinks that are not there any more; what was counted stays.
pub fn without_removed(text: &str, sinks: &[String]) -> String {
    let is_left = |line: &&str| {
        let Some((name, labels)) = line.split_once('{') else {
            return true;
        };
        !SINK_GAUGES.contains(&name) || sinks.iter().any(|sink| labels.starts_with(&format!("sink=\"{sink}\"")))
    };
    text.split_inclusive('\n').filter(is_left).collect()
}

/// What came to the public listener lately.
pub fn traffic() -> &'static Counts {
    &TRAFFIC
}

/// A request was answered.
pub fn answered(answer: &'static str) {
    const STORED: &str = "stored";
    // Looking a counter up takes a sizeable part of the time that an answer takes, and in a flood nearly all are this one.
    static OF_STORED: LazyLock<Counter> = LazyLock::new(|| counter!("closehook_requests_total", "answer" => STORED));
    TRAFFIC.count(answer, jiff::Timestamp::now);
    if answer == STORED {
        OF_STORED.increment(1);
    } else {
        counter!("closehook_requests_total", "answer" => answer).increment(1);
    }
}

/// Lets one log line a second pass, whatever the flood.
#[derive(Debug)]
struct Sample(AtomicI64);

impl Sample {
    const fn new() -> Sample {
        Sample(AtomicI64::new(0))
    }

    fn passes(&self) -> bool {
        let now = jiff::Timestamp::now().as_second();
        self.0.swap(now, Ordering::Relaxed) != now
    }
}

/// A request was refused with 401.
pub fn refused(reason: &'static str, peer: IpAddr) {
    static SAMPLE: Sample = Sample::new();
    counter!("closehook_refused_total", "reason" => reason).increment(1);
    TRAFFIC.count(reason, jiff::Timestamp::now);
    if SAMPLE.passes() {
        tracing::warn!(reason, %peer, "refused a request that is not signed as Close signs");
    }
}

/// An authentic delivery is refused for its time of signing, by its sender's clock in seconds since the Unix epoch.
pub fn untimely(now: jiff::Timestamp, signed_at: i64) {
    let signed_at = jiff::Timestamp::from_second(signed_at);
    let latest = jiff::Timestamp::MAX;
    TRAFFIC.untimely(traffic::Untimely {
        at: now,
        signed_at: signed_at.unwrap_or(latest),
    });
}

/// A connection or a request was turned away for where it comes from.
pub fn turned_away(reason: &'static str, peer: IpAddr) {
    static SAMPLE: Sample = Sample::new();
    counter!("closehook_turned_away_total", "reason" => reason).increment(1);
    TRAFFIC.count("turned_away", jiff::Timestamp::now);
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
pub fn delivered(sink: &str) {
    counter!("closehook_sink_delivered_total", "sink" => sink.to_owned()).increment(1);
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
        "dead letters take up more than dead_max ({limit}): the oldest were dropped"
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
