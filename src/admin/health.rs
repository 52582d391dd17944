//! `/metrics`, `/healthz` and `/readyz` on the admin listener.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;

use crate::control::Facade;
use crate::node;
use crate::task;
use crate::telemetry::There;

/// What the admin listener answers from.
#[derive(Clone)]
pub struct Health {
    /// The daemon.
    pub facade: Arc<Facade>,
    /// Renders what was counted.
    pub metrics: PrometheusHandle,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").finish_non_exhaustive()
    }
}

impl Health {
    /// The routes that are open to everybody.
    pub fn router(self) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get("ok\n"))
            .route("/readyz", get(ready))
            .with_state(self)
    }

    /// Gauges that are only worth computing when somebody looks. Gives what they are about.
    fn refresh(&self) -> There {
        let stats = self.facade.log.stats();
        gauge!("closehook_log_bytes").set(stats.disk_bytes as f64);
        gauge!("closehook_log_first_seq").set(stats.first.0 as f64);
        gauge!("closehook_log_last_seq").set(stats.last.0 as f64);
        let lost: u64 = stats.gaps.iter().map(crate::log::Gap::certain).sum();
        gauge!("closehook_log_lost_events").set(lost as f64);
        // Of a journal that is gone as a whole nobody knows how many events it held: none of them is counted, and it is a loss all the same.
        gauge!("closehook_log_gaps").set(stats.gaps.len() as f64);
        gauge!("closehook_ready").set(f64::from(u8::from(self.facade.log.ready().is_ok())));
        if let Some(certificate) = self.facade.receiving.certificate() {
            if let Some(not_after) = certificate.not_after {
                gauge!("closehook_certificate_not_after_seconds").set(not_after.as_second() as f64);
            }
            if let Some(next) = certificate.next_renewal {
                gauge!("closehook_certificate_next_renewal_seconds").set(next.as_second() as f64);
            }
        }
        let sinks = self.facade.engine.sinks();
        for sink in &sinks {
            let set = |name: &'static str, value: f64| gauge!(name, "sink" => sink.name.clone()).set(value);
            set("closehook_sink_lag_events", sink.lag_events as f64);
            set("closehook_sink_lag_seconds", sink.lag_seconds);
            set("closehook_sink_late_seconds", sink.late_seconds);
            set("closehook_sink_in_flight", sink.in_flight as f64);
            set("closehook_sink_retrying", sink.retrying as f64);
            set("closehook_sink_dead_letters", sink.dead as f64);
            set(
                "closehook_sink_breaker_open",
                f64::from(u8::from(sink.breaker != "closed")),
            );
            set("closehook_sink_paused", f64::from(u8::from(sink.paused)));
            set("closehook_sink_waiting", f64::from(u8::from(sink.waits_for.is_some())));
        }
        let subscriptions = self.refresh_close();
        if let Some(bytes) = resident_bytes() {
            gauge!("process_resident_memory_bytes").set(bytes as f64);
        }
        There {
            sinks: sinks.into_iter().map(|sink| sink.name).collect(),
            subscriptions,
        }
    }
}

impl Health {
    /// Gives the subscriptions that are to deliver here; `None`: there are no credentials, or another node looks after Close's side.
    fn refresh_close(&self) -> Option<Vec<String>> {
        let account = &self.facade.account;
        let truth = |truth: bool| f64::from(u8::from(truth));
        let others = self.facade.others.as_ref();
        let is_elsewhere = others.is_some_and(|others| others.lease(node::CLOSE).is_none());
        if !account.is_configured() || is_elsewhere {
            // A reload may have taken the credentials away, or another node the lease: what was true then is not to be said on and on.
            gauge!("closehook_close_silent").set(0.0);
            gauge!("closehook_backfill_running").set(0.0);
            return None;
        }
        let status = account.health();
        gauge!("closehook_close_reachable").set(truth(status.reachable));
        gauge!("closehook_close_silent").set(truth(status.silent));
        gauge!("closehook_backfill_running").set(truth(status.backfilling));
        gauge!("closehook_close_held_events").set(status.held_events as f64);
        if let Some(upto) = status.complete_upto {
            gauge!("closehook_close_complete_timestamp_seconds").set(upto.as_second() as f64);
        }
        if let Some(at) = status.names_of {
            gauge!("closehook_close_custom_fields_timestamp_seconds").set(at.as_second() as f64);
        }
        for (subscription, active) in &status.active {
            gauge!("closehook_close_subscription_active", "subscription" => subscription.clone()).set(truth(*active));
        }
        Some(status.active.into_keys().collect())
    }
}

async fn ready(State(health): State<Health>) -> (StatusCode, String) {
    // Whoever asks sends deliveries to where it is told so.
    if health.facade.facts.running && health.facade.facts.url.is_none() {
        let why = "this node receives no deliveries: its node.roles are without ingress\n";
        return (StatusCode::SERVICE_UNAVAILABLE, why.into());
    }
    match health.facade.log.ready() {
        Ok(()) => (StatusCode::OK, "ready\n".into()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    let there = health.refresh();
    let render = move || crate::telemetry::without_removed(&health.metrics.render(), &there);
    // Nothing at all would be taken for metrics that are gone.
    let (status, text) = match task::begin_blocking(render).await {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("metrics can't be given: {error}\n"),
        ),
    };
    (
        status,
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
