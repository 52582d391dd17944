//! `closehook status`

use clap::Args;
use serde_json::Value;

use super::connect::{Access, with};
use super::{Global, Outcome, field, said, sinks, table};
use crate::admin::query::Query;
use crate::config::Size;

/// One screen: ingress, certificate, log, Close's side, sinks
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  closehook status --json | jq .ready")]
pub(super) struct Status {}

impl Status {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        with(global, Access::Read, async |connection| {
            let status = connection.ask_one(Query::Status).await?;
            global.print(&status, render)
        })
        .await
    }
}

fn certificate_lines(certificate: &Value) -> Vec<String> {
    let line = match said(&certificate["not_after"]) {
        Some(not_after) => format!("{}, valid until {not_after}", field(certificate, "file")),
        None => "NO CERTIFICATE YET".to_owned(),
    };
    let next = said(&certificate["next_renewal"]);
    let next = next.map_or_else(String::new, |next| format!(", next order {next}"));
    let error = said(&certificate["last_error"]);
    let error = error.map(|error| format!("         the last order failed: {error}"));
    [Some(format!("tls      {line}{next}")), error]
        .into_iter()
        .flatten()
        .collect()
}

fn render(status: &Value) -> String {
    let daemon = &status["daemon"];
    let log = &status["log"];
    let mut lines = Vec::new();
    if daemon["running"] == true {
        lines.push(format!(
            "daemon   {} (process {}) since {}",
            field(daemon, "version"),
            field(daemon, "pid"),
            field(daemon, "started_at")
        ));
        let ready = if status["ready"] == true {
            "ready".to_owned()
        } else {
            format!("NOT READY: {}", field(status, "not_ready_because"))
        };
        lines.push(format!(
            "ingress  {} {ready}, {} key(s)",
            field(daemon, "url"),
            field(status, "keys")
        ));
        let certificate = &status["certificate"];
        if certificate.is_object() {
            lines.extend(certificate_lines(certificate));
        }
        lines.push(format!("admin    {}/metrics", field(daemon, "admin")));
    } else {
        lines.push("daemon   not running".to_owned());
    }
    let bytes = |name: &str| Size(log[name].as_u64().unwrap_or_default());
    lines.push(format!(
        "log      {} events ({} to {}), {} received, {} on disk in {} segment(s), {}",
        field(log, "events"),
        field(log, "first"),
        field(log, "last"),
        bytes("received_bytes"),
        bytes("disk_bytes"),
        field(log, "segments"),
        field(daemon, "dir"),
    ));
    lines.extend(retention(&status["retention"]));
    for gap in log["gaps"].as_array().into_iter().flatten() {
        lines.push(format!(
            "LOST     events {} to {}: {}",
            field(gap, "from"),
            field(gap, "to"),
            field(gap, "reason")
        ));
    }
    lines.extend(close(&status["close"]));
    let rows: Vec<Vec<String>> = status["sinks"]
        .as_array()
        .into_iter()
        .flatten()
        .map(sinks::row)
        .collect();
    if rows.is_empty() {
        lines.push("sinks    none: events are kept and delivered nowhere".to_owned());
    } else {
        lines.push(String::new());
        lines.push(table(&sinks::COLUMNS, rows));
    }
    let sinks = status["sinks"].as_array().into_iter().flatten();
    lines.extend(sinks.flat_map(sinks::remarks));
    lines.join("\n")
}

/// How full the data directory may get, and what keeps old events from going; nothing without a daemon.
fn retention(retention: &Value) -> Vec<String> {
    let (Some(used), Some(max)) = (retention["used_bytes"].as_u64(), retention["max_bytes"].as_u64()) else {
        return Vec::new();
    };
    let mut lines = vec![format!(
        "         the data directory takes {} of at most {}",
        Size(used),
        Size(max)
    )];
    if let Some(waits_for) = said(&retention["waits_for"]) {
        lines.push(format!("         {waits_for}"));
    }
    lines
}

/// What Close itself says of a subscription that does not do well.
fn said_by_close(subscription: &Value) -> Vec<String> {
    let line = |what: &str, name: &str| {
        let text = said(&subscription[name])?;
        Some(format!("           {what}: {text}"))
    };
    let lax = (subscription["verify_ssl"] == false)
        .then(|| "           verify_ssl is false: Close does not check whose certificate it sees".to_owned());
    let lines = [
        line("paused by Close", "pause_reason"),
        line("it can't be made active again", "trouble"),
        line("deliveries fail", "latest_error"),
        lax,
    ];
    lines.into_iter().flatten().collect()
}

/// Events without their data: what the claim above does not have.
fn held(held: &Value) -> Option<String> {
    let events = held["events"].as_u64()?;
    let (count, fate) = match (held["is_counted"] == true, held["are_dispatched"] == true) {
        (false, _) => (format!("at least {events}"), "they are being counted"),
        (true, true) => (events.to_string(), "they go out as they are"),
        (true, false) => (events.to_string(), "they wait for it"),
    };
    Some(format!(
        "HELD     except the data of {count} event(s) from {} to {}, which Close withholds from this key: {fate}; set an administrator's key",
        field(held, "oldest"),
        field(held, "newest")
    ))
}

/// Close's side; nothing where its API is not used.
fn close(close: &Value) -> Vec<String> {
    if close["configured"] != true {
        return Vec::new();
    }
    let mut lines = Vec::new();
    lines.push(match close["complete"].as_object() {
        Some(_) => format!(
            "close    complete up to {} (since {}: {})",
            field(&close["complete"], "upto"),
            field(&close["complete"], "from"),
            field(&close["complete"], "scope")
        ),
        None => "close    not compared with Close's event log yet".to_owned(),
    });
    lines.extend(held(&close["held"]));
    for subscription in close["subscriptions"].as_array().into_iter().flatten() {
        lines.push(format!(
            "         {} {} (looked at {}) {}",
            field(subscription, "id"),
            field(subscription, "state"),
            field(close, "checked_at"),
            field(subscription, "url")
        ));
        lines.extend(said_by_close(subscription));
    }
    if close["rotation"].is_object() {
        lines.push(format!(
            "         {} replaces {} when it has delivered",
            field(&close["rotation"], "new"),
            field(&close["rotation"], "old")
        ));
    }
    if close["silence"].is_object() {
        lines.push(format!(
            "SILENT   Close has delivered nothing since {}, although there was an event at {}",
            field(&close["silence"], "last_delivery"),
            field(&close["silence"], "newest_event")
        ));
    }
    if close["backfill"].is_object() {
        let backfill = &close["backfill"];
        lines.push(format!(
            "backfill {} {:.0} %, {} stored{}",
            field(backfill, "state"),
            backfill["fraction"].as_f64().unwrap_or_default() * 100.0,
            field(&backfill["counts"], "stored"),
            said(&backfill["trouble"]).map_or_else(String::new, |trouble| format!(": {trouble}"))
        ));
    }
    if let Some(trouble) = said(&close["trouble"]) {
        lines.push(format!("TROUBLE  {trouble}"));
    }
    lines
}
