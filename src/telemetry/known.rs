//! Every metric there is: its name, what it says, and when it begins. One table, from which the descriptions come and from which
//! a fresh `/metrics` has every counter at zero: whoever alerts on an increase must see the first one, and a query for what never
//! happened must not be empty.
//!
//! Labels whose values are known are all there from the start. A gauge that would claim something by being zero (that a
//! certificate has expired in 1970) comes when it is known.

use metrics::{Label, counter, gauge, histogram};

use super::door::{ANSWERS, REFUSALS, UNAVAILABLE};

/// What kind of number it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// When a metric is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// At the start, without labels.
    Bare,
    /// At the start, once for each value of this label.
    Each(&'static str, &'static [&'static str]),
    /// As soon as there is a sink, with its name.
    WithSink,
    /// When there is something to say: zero would be a claim, or the label's values are not known before.
    WhenKnown,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// As it is scraped.
    pub name: &'static str,
    /// What kind of number.
    pub kind: Kind,
    /// When it is there.
    pub begins: Begins,
    /// What it says.
    pub help: &'static str,
}

/// What can be asked of Close's API and come to nothing, as `closehook_close_failures_total` tells it apart.
pub const CLOSE_FAILURES: [&str; 11] = [
    "unauthorized",
    "forbidden",
    "plan_limit",
    "not_found",
    "rejected",
    "rate_limited",
    "server",
    "unreachable",
    "no_answer",
    "unreadable",
    "local",
];

/// Answers of Close's API that were seen or are documented. Others are counted when they come.
const CLOSE_STATUSES: [&str; 14] = [
    "200", "201", "204", "400", "401", "402", "403", "404", "409", "429", "500", "502", "503", "504",
];

/// Tasks and threads that must not end.
const TASKS: [&str; 14] = [
    "admin listener",
    "certificates",
    "close",
    "close-fields",
    "commit",
    "history",
    "keeper",
    "listener",
    "lookup",
    "metrics",
    "retention",
    "socket",
    "state",
    "watchdog",
];

/// What must not end of each sink's work.
const SINK_TASKS: [&str; 5] = ["worker", "opening", "rendering", "delivery", "checkpoint"];

/// Of which both the tasks of the process and those of each sink are counted.
const RESTARTS: &str = "closehook_restarts_total";

const fn counter(name: &'static str, begins: Begins, help: &'static str) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        begins,
        help,
    }
}

const fn gauge(name: &'static str, begins: Begins, help: &'static str) -> Metric {
    Metric {
        name,
        kind: Kind::Gauge,
        begins,
        help,
    }
}

const fn histogram(name: &'static str, help: &'static str) -> Metric {
    Metric {
        name,
        kind: Kind::Histogram,
        begins: Begins::Bare,
        help,
    }
}

/// Of which each subscription has one.
pub(super) const SUBSCRIPTION_ACTIVE: &str = "closehook_close_subscription_active";

/// All of them.
pub const METRICS: &[&[Metric]] = &[LISTENER, EVENT_LOG, SINKS, CLOSE, PROCESS];

const LISTENER: &[Metric] = &[
    counter(
        "closehook_requests_total",
        Begins::Each("answer", &ANSWERS),
        "Requests to the public listener, by answer; duplicate: also of what is in quarantine already.",
    ),
    counter(
        "closehook_refused_total",
        Begins::Each("reason", &REFUSALS),
        "Requests refused with 401, by reason.",
    ),
    counter(
        "closehook_unavailable_total",
        Begins::Each("reason", &UNAVAILABLE),
        "Requests answered 503, by reason.",
    ),
    gauge(
        "closehook_clock_offset_seconds",
        Begins::WhenKnown,
        "This machine's time less the one at which Close signed, of the latest authentic delivery, taken or refused.",
    ),
    counter(
        "closehook_turned_away_total",
        Begins::Each("reason", &["connections", "network"]),
        "Connections (behind a proxy: requests) of addresses that may not send, or have too many connections.",
    ),
    counter(
        "closehook_displaced_connections_total",
        Begins::Bare,
        "Connections that never delivered anything and made room for a new one of their address.",
    ),
    counter(
        "closehook_slowed_requests_total",
        Begins::Bare,
        "Failed requests of addresses that keep failing: their refusals wait.",
    ),
    gauge(
        "closehook_certificate_not_after_seconds",
        Begins::WhenKnown,
        "When the certificate expires, in seconds since the Unix epoch.",
    ),
    gauge(
        "closehook_certificate_next_renewal_seconds",
        Begins::WhenKnown,
        "When the next certificate is ordered, in seconds since the Unix epoch.",
    ),
    counter(
        "closehook_certificate_orders_total",
        Begins::Each("result", &["ok", "failed"]),
        "Certificates ordered, by result.",
    ),
    gauge(
        "closehook_connections",
        Begins::Bare,
        "Open connections to the public listener.",
    ),
    gauge(
        "closehook_admin_streams",
        Begins::Bare,
        "Streams of the operator's page and its API that are open.",
    ),
];

const EVENT_LOG: &[Metric] = &[
    counter("closehook_stored_events_total", Begins::Bare, "Events stored."),
    counter(
        "closehook_duplicate_events_total",
        Begins::Bare,
        "Deliveries of what was stored already, or is in quarantine.",
    ),
    counter(
        "closehook_quarantined_events_total",
        Begins::Bare,
        "Authentic bodies that can't be read as a delivery, each when it is new.",
    ),
    histogram("closehook_commit_events", "Events in a group commit."),
    histogram(
        "closehook_commit_seconds",
        "Duration of a group commit, fdatasync included.",
    ),
    counter(
        "closehook_received_bytes_total",
        Begins::Bare,
        "Bytes of bodies stored.",
    ),
    gauge("closehook_log_bytes", Begins::Bare, "Size of the event log on disk."),
    gauge("closehook_log_first_seq", Begins::Bare, "Oldest event kept."),
    gauge("closehook_log_last_seq", Begins::Bare, "Newest event."),
    gauge(
        "closehook_log_lost_events",
        Begins::Bare,
        "Events that damage took from the log, as far as it is certain how many.",
    ),
    gauge(
        "closehook_log_gaps",
        Begins::Bare,
        "Places of the log from which damage took events, those included of which nobody knows how many.",
    ),
    gauge("closehook_ready", Begins::Bare, "1 while events can be stored."),
];

const SINKS: &[Metric] = &[
    counter(
        "closehook_sink_delivered_total",
        Begins::WithSink,
        "Events delivered, by sink.",
    ),
    counter(
        "closehook_sink_retried_total",
        Begins::WithSink,
        "Failed tries that are tried again, by sink.",
    ),
    counter(
        "closehook_sink_dead_total",
        Begins::WithSink,
        "Dead letters made, by sink.",
    ),
    counter(
        "closehook_sink_diverted_total",
        Begins::WithSink,
        "Events that went to the sink's dead_to instead of becoming dead letters, by sink.",
    ),
    counter(
        "closehook_sink_superseded_total",
        Begins::WithSink,
        "Events of which a newer one of the same object went out instead (settle), by sink.",
    ),
    counter(
        "closehook_sink_skipped_total",
        Begins::WithSink,
        "Events of which a transform wanted nothing delivered, by sink.",
    ),
    counter(
        "closehook_sink_buried_total",
        Begins::WithSink,
        "Dead letters made because the log reached its size limit, by sink.",
    ),
    counter(
        "closehook_sink_dead_dropped_total",
        Begins::WithSink,
        "Dead letters dropped because they took up more than dead_max, by sink.",
    ),
    counter(
        "closehook_sink_lost_total",
        Begins::WithSink,
        "Events damaged or expired before the sink had them.",
    ),
    counter(
        "closehook_sink_altered_total",
        Begins::WithSink,
        "Events with characters or numbers that the sink's table can't hold and has replaced; the log has them whole.",
    ),
    gauge(
        "closehook_sink_lag_events",
        Begins::WithSink,
        "Events of the log the sink is not done with.",
    ),
    gauge(
        "closehook_sink_lag_seconds",
        Begins::WithSink,
        "Age of the oldest event the sink is not done with, also while it waits as the sink is configured (delay, settle, batch, digest).",
    ),
    gauge(
        "closehook_sink_late_seconds",
        Begins::WithSink,
        "By how much that age is beyond what the sink's delay, settle, batch and digest make an event wait: 0 while nothing is late.",
    ),
    gauge("closehook_sink_in_flight", Begins::WithSink, "Deliveries running."),
    gauge(
        "closehook_sink_retrying",
        Begins::WithSink,
        "Events waiting for another try.",
    ),
    gauge("closehook_sink_dead_letters", Begins::WithSink, "Dead letters kept."),
    gauge(
        "closehook_sink_breaker_open",
        Begins::WithSink,
        "1 while the sink keeps failing.",
    ),
    gauge("closehook_sink_paused", Begins::WithSink, "1 while the sink is paused."),
    gauge(
        "closehook_sink_waiting",
        Begins::WithSink,
        "1 while nothing is delivered for a reason that `closehook sinks list` names.",
    ),
];

const CLOSE: &[Metric] = &[
    counter(
        "closehook_close_requests_total",
        Begins::Each("status", &CLOSE_STATUSES),
        "Answers of Close's API, by status.",
    ),
    counter(
        "closehook_close_failures_total",
        Begins::Each("kind", &CLOSE_FAILURES),
        "Requests to Close's API given up, by kind.",
    ),
    counter(
        "closehook_close_rate_limited_total",
        Begins::Bare,
        "Answers 429 of Close's API.",
    ),
    counter(
        "closehook_close_rate_wait_milliseconds_total",
        Begins::Bare,
        "Time requests waited for Close's rate limit.",
    ),
    counter(
        "closehook_backfilled_events_total",
        Begins::Each("result", &["stored", "known", "partial"]),
        "Events fetched from Close's event log, by what became of them.",
    ),
    gauge(
        "closehook_close_reachable",
        Begins::WhenKnown,
        "1 while Close's API answers.",
    ),
    gauge(
        "closehook_close_complete_timestamp_seconds",
        Begins::WhenKnown,
        "Up to here (seconds since the Unix epoch) the log has everything that Close's event log has.",
    ),
    gauge(
        "closehook_close_silent",
        Begins::Bare,
        "1 while Close delivers nothing although its event log has new events.",
    ),
    gauge(
        SUBSCRIPTION_ACTIVE,
        Begins::WhenKnown,
        "1 while the subscription is active and points here; one that is being replaced, or is gone, has none.",
    ),
    gauge("closehook_backfill_running", Begins::Bare, "1 while a backfill runs."),
    gauge(
        "closehook_close_held_events",
        Begins::WhenKnown,
        "Events whose data Close withholds from this key: they wait for it, unless partial is \"dispatch\".",
    ),
    gauge(
        "closehook_close_custom_fields_timestamp_seconds",
        Begins::WhenKnown,
        "When Close's schema of custom fields (for the filter `named`) was last fetched, in seconds since the Unix epoch.",
    ),
];

const PROCESS: &[Metric] = &[
    counter(
        RESTARTS,
        Begins::Each("task", &TASKS),
        "Tasks and threads that panicked or ended although they must not, and were begun anew; with the sink where it was one of its.",
    ),
    gauge(
        "closehook_build_info",
        Begins::Each("version", &[env!("CARGO_PKG_VERSION")]),
        "1, with the version.",
    ),
    gauge(
        "process_start_time_seconds",
        Begins::Bare,
        "When the process started, in seconds since the Unix epoch.",
    ),
    gauge("process_resident_memory_bytes", Begins::Bare, "Resident memory."),
];

/// Every metric, group after group.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    METRICS.iter().copied().flatten()
}

/// Whether it says what is true of a sink at the moment, as opposed to what was counted.
pub(super) fn is_gauge_of_sinks(name: &str) -> bool {
    all().any(|metric| metric.name == name && metric.kind == Kind::Gauge && metric.begins == Begins::WithSink)
}

/// Whether it says what is known of Close at the moment.
pub(super) fn is_gauge_of_close(name: &str) -> bool {
    let of_close = CLOSE.iter().find(|metric| metric.name == name);
    of_close.is_some_and(|metric| metric.kind == Kind::Gauge && metric.begins == Begins::WhenKnown)
}

/// Describes all of them, and begins those that are there from the start.
pub(super) fn begin() {
    for metric in all() {
        describe(metric);
        match metric.begins {
            Begins::Bare => metric.begin(Vec::new()),
            Begins::Each(label, values) => {
                for value in values {
                    metric.begin(vec![Label::from_static_parts(label, value)]);
                }
            }
            Begins::WithSink | Begins::WhenKnown => {}
        }
    }
    gauge!("closehook_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    gauge!("process_start_time_seconds").set(jiff::Timestamp::now().as_second() as f64);
}

/// Begins what is there once for each sink.
pub(super) fn begin_sink(sink: &str) {
    let sink = || Label::new("sink", sink.to_owned());
    for metric in all().filter(|metric| metric.begins == Begins::WithSink) {
        metric.begin(vec![sink()]);
    }
    for task in SINK_TASKS {
        counter!(RESTARTS, vec![Label::from_static_parts("task", task), sink()]).increment(0);
    }
}

impl Metric {
    /// Begins one of its series; one that has begun stays as it is.
    fn begin(&self, labels: Vec<Label>) {
        match self.kind {
            Kind::Counter => counter!(self.name, labels).increment(0),
            Kind::Gauge => gauge!(self.name, labels).increment(0.0),
            // It is rendered, empty, as soon as somebody has asked for it.
            Kind::Histogram => drop(histogram!(self.name, labels)),
        }
    }
}

fn describe(metric: &Metric) {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    match metric.kind {
        Kind::Counter => describe_counter!(metric.name, metric.help),
        Kind::Gauge => describe_gauge!(metric.name, metric.help),
        Kind::Histogram => describe_histogram!(metric.name, metric.help),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn sources(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }

    /// Names in quotes that begin as metrics do.
    fn named(text: &str) -> BTreeSet<&str> {
        let names = text.split('"').filter(|text| text.starts_with("closehook_"));
        names
            .filter(|text| text.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
            .collect()
    }

    #[test]
    fn every_metric_of_the_code_is_in_the_table_and_the_other_way_round() {
        let mut texts = Vec::new();
        sources(Path::new("src"), &mut texts);
        let table: BTreeSet<&str> = all().map(|metric| metric.name).collect();
        assert_eq!(all().count(), table.len(), "each stands there once");
        // Tables of the databases that sinks write are no metrics, nor what tests call things.
        let others = [
            "closehook_events",
            "closehook_mark",
            "closehook_latest",
            // What a message in Slack says of itself.
            "closehook_event",
            "closehook_test",
            // Streams of the log.
            "closehook_dead",
            "closehook_parts",
        ];
        let is_metric = |name: &&str| !others.contains(name) && !name.ends_with('_');
        let code: BTreeSet<&str> = texts.iter().flat_map(|text| named(text)).filter(is_metric).collect();
        let unknown: Vec<_> = code.difference(&table).collect();
        assert!(unknown.is_empty(), "not described: {unknown:?}");
        for name in table.iter().filter(|name| name.starts_with("closehook_")) {
            // In the table, and where it is counted.
            let places = texts.iter().map(|text| text.matches(&format!("\"{name}\"")).count());
            assert!(places.sum::<usize>() > 1, "{name} is never counted");
        }
    }

    #[test]
    fn names_say_what_kind_of_number_they_are() {
        for metric in all() {
            assert_eq!(
                metric.name.ends_with("_total"),
                metric.kind == Kind::Counter,
                "{}",
                metric.name
            );
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }
}
