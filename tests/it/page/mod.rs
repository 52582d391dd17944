//! The operator's page in Debian's Chromium: what each view shows, what each act does, with the mouse's help and without, and what a
//! hostile event can't do.

mod acts;
mod browser;
mod close;
mod days;
mod elsewhere;
mod hostile;
mod live;
mod middle;
mod tried;
mod views;

use crate::harness::{Daemon, Receiver, until};

/// Rules and sinks of which one delivers and one is refused.
pub fn config(refusing: &str) -> String {
    format!(
        r#"
[[sinks]]
name = "archive"
type = "file"
path = "DIR/out.jsonl"
start = "beginning"

[[sinks]]
name = "crm"
type = "http"
url = "{refusing}"
allow_private = true
start = "beginning"
breaker = {{ refusals = 1000 }}

[[rules]]
name = "all-leads"
events = ["lead.*"]
sinks = ["archive"]

[[rules]]
name = "first-lead"
events = ["lead.updated"]
sinks = ["crm"]
filter = '{{"type":"field_accessor","field":"lead_id","filter":{{"type":"equals","value":"lead_1"}}}}'
"#
    )
}

/// A daemon with some events, of which some are dead letters.
pub async fn with_events() -> (Daemon, Receiver) {
    let refusing = Receiver::start(422).await;
    let daemon = Daemon::start(&config(&refusing.url)).await;
    daemon.store(1..=30).await;
    daemon.done("archive").await;
    // ev_1, ev_8, ev_15, ev_22, ev_29
    until("they are refused", async || daemon.sink("crm")["dead"] == 5).await;
    (daemon, refusing)
}
