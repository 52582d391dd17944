//! `closehook status`

use std::collections::BTreeMap;

use clap::Args;
use jiff::Timestamp;

use super::connect::{Access, Connection, with};
use super::paint::{self, Tone};
use super::when::{told, when, when_known};
use super::{Failure, Global, Outcome, json_line, print_line, sinks, table, word};
use crate::close::{BackfillStatus, CloseStatus, FoundSubscription, Held};
use crate::config::{Size, Span};
use crate::control::Certificate;
use crate::control::sign_in::Link;
use crate::control::status::{Show, Status as State};
use crate::event::Seq;
use crate::log::{Server, Servers};
use crate::node::{NodeState, NodeStatus};
use crate::plain;
use crate::telemetry::door::Received;

/// One screen: is it well, and if not, what to do
#[derive(Debug, Args)]
#[command(
    after_help = "Exit 1 where no daemon runs, or where it can't store events. Dead letters and sinks that lag are named, and do
not count.

With --open it prints a link to the operator's page that signs in, once and within a minute, to look and to act: whoever may run this
has the data directory, and may do all that anyway.

Examples:
  closehook status
  closehook status --open
  closehook status --json | jq '.troubles[]'"
)]
pub(super) struct Status {
    /// Print a link that signs in to the operator's page, once and within a minute
    #[arg(long)]
    open: bool,
}

/// A link to the page, which only a daemon has.
async fn link(global: &Global) -> Outcome {
    let config = global.load()?;
    let Some(daemon) = Connection::to_daemon(&config).await? else {
        let why = "no daemon is running, so there is no page to open: start it with `closehook serve`";
        return Err(Failure::Work(why.to_owned()));
    };
    let link = daemon.ask_one(Link {}).await?;
    if global.json {
        print_line(&json_line(&link)?)
    } else {
        print_line(&link.url)
    }
}

impl Status {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        if self.open {
            return link(global).await;
        }
        with(global, Access::Read, async |connection| {
            let status = connection.ask_one(Show {}).await?;
            if global.json {
                print_line(&json_line(&status)?)?;
            } else {
                paint::print(&screen(&status))?;
            }
            if status.ready { Ok(()) } else { Err(Failure::Found) }
        })
        .await
    }
}

type Lines = Vec<(Tone, String)>;

fn screen(status: &State) -> Lines {
    let mut lines = verdict(status);
    let plain = |line: String| (Tone::Plain, line);
    if status.daemon.running {
        lines.extend(receiving(status).into_iter().map(plain));
    }
    lines.extend(kept(status).into_iter().map(plain));
    lines.extend(close(&status.close).into_iter().map(plain));
    if status.sinks.is_empty() {
        lines.push(plain(
            "sinks      none: events are kept and delivered nowhere".to_owned(),
        ));
        lines.extend(together(status));
        lines.extend(removed(status).map(plain));
        return lines;
    }
    lines.push(plain(String::new()));
    let rows = status.sinks.iter().map(sinks::row).collect();
    for (number, line) in table(&sinks::COLUMNS, rows).lines().enumerate() {
        let tone = if number == 0 { Tone::Aside } else { Tone::Plain };
        lines.push((tone, line.to_owned()));
    }
    lines.extend(
        status
            .sinks
            .iter()
            .flat_map(|shown| {
                sinks::waits_by(&shown.sink)
                    .into_iter()
                    .chain(sinks::losses(&shown.sink))
            })
            .map(plain),
    );
    lines.extend(together(status));
    lines.extend(removed(status).map(plain));
    lines
}

/// Sinks that are configured no more; `None`: there are none.
fn removed(status: &State) -> Option<String> {
    if let Some(why) = &status.removed_sinks_unread {
        return Some(format!("removed    can't be read now: {}", text(why)));
    }
    let names = status.removed_sinks.join(", ");
    (!names.is_empty()).then(|| format!("removed    {}", text(&names)))
}

/// What shares the log, and what keeps it.
fn together(status: &State) -> Lines {
    let own = status.daemon.node.as_deref();
    let stream = status.stream.as_ref().map(stream);
    let nodes = status.nodes.iter().map(|one| node(one, own));
    stream.into_iter().chain(nodes).collect()
}

/// The servers that keep the log.
fn stream(stream: &Servers) -> (Tone, String) {
    let server = |server: &Server| {
        let leads = if stream.leader.as_ref() == Some(&server.name) {
            " (leads)"
        } else {
            ""
        };
        let gone = if server.alive { "" } else { " GONE" };
        format!("{}{leads}{gone}", text(&server.name))
    };
    let servers: Vec<String> = stream.servers.iter().map(server).collect();
    let on = if servers.is_empty() {
        String::new()
    } else {
        format!(" on {}", servers.join(", "))
    };
    let tone = if stream.servers.iter().all(|server| server.alive) {
        Tone::Plain
    } else {
        Tone::Attention
    };
    (
        tone,
        format!(
            "stream     {}{on}; {} replica(s)",
            text(&stream.stream),
            stream.replicas
        ),
    )
}

/// A node that shares the log: how it is, what it may do, and what it does. `own`: the one that tells this.
fn node(node: &NodeStatus, own: Option<&str>) -> (Tone, String) {
    let (tone, state) = match node.state {
        NodeState::Alive => (Tone::Plain, "alive"),
        NodeState::Left => (Tone::Aside, "stopped"),
        NodeState::Dead => (Tone::Attention, "DEAD"),
    };
    let does = if node.leases.is_empty() {
        "nothing".to_owned()
    } else {
        node.leases.join(", ")
    };
    let (name, version) = (text(&node.name), text(&node.version));
    let this = if own == Some(node.name.as_str()) {
        " (this one)"
    } else {
        ""
    };
    let roles: Vec<String> = node.roles.iter().map(word).collect();
    let roles = roles.join(", ");
    (
        tone,
        format!(
            "node       {name}{this} {state} ({version}; {roles}), has {}",
            text(&does)
        ),
    )
}

/// Whether it is well, and each thing that is not with what to do about it.
fn verdict(status: &State) -> Lines {
    let name = format!("closehook {}", text(&status.daemon.version));
    let (tone, said) = match (status.daemon.running, status.ready, status.troubles.len()) {
        (false, ..) if let Some(pid) = status.daemon.unreachable => {
            (Tone::Bad, format!("{name} runs as process {pid} and CAN'T BE ASKED"))
        }
        (false, ..) => (Tone::Bad, format!("{name} is NOT RUNNING")),
        (true, false, _) => {
            let why = status.not_ready_because.as_deref().unwrap_or_default();
            (Tone::Bad, format!("{name} is NOT READY: {}", text(why)))
        }
        (true, true, 0) => (Tone::Good, format!("{name} is well")),
        (true, true, 1) => (Tone::Attention, format!("{name} runs; one thing asks for attention")),
        (true, true, count) => (
            Tone::Attention,
            format!("{name} runs; {count} things ask for attention"),
        ),
    };
    let mut lines = vec![(tone, said), (Tone::Plain, String::new())];
    for trouble in &status.troubles {
        lines.push((Tone::Attention, format!("! {}", told(&text(&trouble.what)))));
        lines.push((Tone::Plain, format!("  -> {}", told(&text(&trouble.remedy)))));
    }
    if !status.troubles.is_empty() {
        lines.push((Tone::Plain, String::new()));
    }
    lines
}

/// What others wrote, on one line.
fn text(text: &str) -> String {
    plain::line(text).into_owned()
}

fn receiving(status: &State) -> Vec<String> {
    let daemon = &status.daemon;
    let or_nowhere = |url: &Option<String>| text(url.as_deref().unwrap_or("nowhere"));
    let delivery = when_known(status.last_delivery_at).unwrap_or_else(|| {
        // Not all of the log is looked through for it.
        let none = if status.log.last == Seq::ZERO {
            "none yet"
        } else {
            "none that is known"
        };
        none.to_owned()
    });
    let mut lines = vec![format!(
        "daemon     process {} since {}; metrics at {}/metrics",
        daemon.pid,
        when(daemon.started_at),
        or_nowhere(&daemon.admin)
    )];
    lines.push(match &daemon.url {
        None if daemon.running && daemon.node.is_some() => {
            "receiving  nothing: this node's roles are without ingress".to_owned()
        }
        url => format!(
            "receiving  at {}, {} key(s); last delivery: {delivery}",
            or_nowhere(url),
            status.keys
        ),
    });
    lines.extend(
        status
            .received
            .as_ref()
            .map(|received| lately(received, daemon.started_at)),
    );
    if let Some(seconds) = status.clock_offset_seconds {
        let span = Span::secs(seconds.unsigned_abs());
        lines.push(match seconds {
            0 => "clock      as Close's".to_owned(),
            1.. => format!("clock      Close's is {span} ahead"),
            _ => format!("clock      Close's is {span} behind"),
        });
    }
    lines.extend(status.certificate.as_ref().map(certificate).into_iter().flatten());
    lines
}

fn lately(received: &Received, started_at: Timestamp) -> String {
    const HOUR: u64 = 3600;
    let counts = |counts: &BTreeMap<String, u64>| -> Vec<String> {
        let each = counts.iter();
        each.map(|(reason, count)| format!("{count} {}", text(&reason.replace('_', " "))))
            .collect()
    };
    let list = |what: &str, by_reason: &BTreeMap<String, u64>| match by_reason.values().sum::<u64>() {
        0 => String::new(),
        sum => format!(", {sum} {what} ({})", counts(by_reason).join(", ")),
    };
    let since = if received.seconds < HOUR {
        format!("since the start at {}:", when(started_at))
    } else {
        "in the last hour:".to_owned()
    };
    format!(
        "           {since} {} stored, {} known already, {} in quarantine{}{}{}",
        received.stored,
        received.duplicate,
        received.quarantined,
        list("refused", &received.refused),
        list("answered 503", &received.unavailable),
        list("no deliveries", &received.unfit),
    )
}

fn certificate(certificate: &Certificate) -> Vec<String> {
    let state = match when_known(certificate.not_after) {
        Some(not_after) => format!(
            "{}, valid until {not_after}",
            text(&certificate.file.display().to_string())
        ),
        None => "NO CERTIFICATE YET".to_owned(),
    };
    let next = when_known(certificate.next_renewal).map_or_else(String::new, |next| format!("; next order {next}"));
    let error = certificate.last_error.as_ref();
    let what_failed = if certificate.next_renewal.is_some() {
        "the last order failed"
    } else {
        "its files can't be used now"
    };
    let error = error.map(|error| format!("           {what_failed}: {}", text(error)));
    [Some(format!("tls        {state}{next}")), error]
        .into_iter()
        .flatten()
        .collect()
}

/// The log, and the room it has.
fn kept(status: &State) -> Vec<String> {
    let log = &status.log;
    let mut lines = vec![format!(
        "log        {} events ({} to {}), {} received, {} on disk in {} segment(s)",
        log.events,
        log.first,
        log.last,
        Size(log.received_bytes),
        Size(log.disk_bytes),
        log.segments,
    )];
    let dir = text(&status.daemon.dir.display().to_string());
    let free = status
        .disk
        .map(|disk| format!("{} of {} are free", Size(disk.free_bytes), Size(disk.total_bytes)));
    let used = status.retention.as_ref().map(|standing| {
        let takes = format!("takes {}", Size(standing.used_bytes));
        match standing.max_bytes {
            Some(max) => format!("{takes} of at most {}", Size(max)),
            None => takes,
        }
    });
    // What this machine has free says nothing of servers.
    let (what, free) = if status.stream.is_some() {
        ("the stream", None)
    } else {
        (&*dir, free)
    };
    let room: Vec<String> = used.into_iter().chain(free).collect();
    lines.push(format!("           {what} {}", room.join("; ")).trim_end().to_owned());
    lines
}

/// Close's side; nothing where its API is not used.
fn close(close: &CloseStatus) -> Vec<String> {
    if !close.configured {
        return Vec::new();
    }
    let mut lines = vec![match &close.complete {
        Some(claim) => format!(
            "close      complete up to {} (since {}{}: {})",
            when(claim.complete.upto),
            when(claim.since()),
            if claim.kept_from.is_some() {
                ", as far back as the log goes"
            } else {
                ""
            },
            text(&claim.complete.scope)
        ),
        None => "close      not compared with Close's event log yet".to_owned(),
    }];
    if let Some(node) = &close.looked_after_by {
        lines.push(format!("           node {} looks after it", text(node)));
    }
    if let Some(at) = when_known(close.next_request_at) {
        lines.push(format!("           Close's rate limit: the next request goes at {at}"));
    }
    if let Some(set_back) = &close.set_back {
        let again = set_back.again_at.map_or_else(
            || "the request is being made again".to_owned(),
            |at| format!("the request is made again at {}", when(at)),
        );
        lines.push(format!("           {}; {again}", text(&set_back.said)));
    }
    lines.extend(close.held.as_ref().map(held));
    lines.extend(close.subscriptions.iter().flat_map(subscription));
    if let Some(checked) = when_known(close.checked_at) {
        lines.push(format!("           looked at {checked}"));
    }
    if let Some(fields) = close
        .custom_fields
        .as_ref()
        .filter(|fields| fields.fetched_at.is_some())
    {
        let at = when_known(fields.fetched_at).unwrap_or_default();
        lines.push(format!(
            "           {} custom field(s), called as at {at}",
            fields.fields
        ));
    }
    if let Some(rotation) = &close.rotation {
        let (new, old) = (text(&rotation.new), text(&rotation.old));
        lines.push(format!("           {new} replaces {old} when it has delivered"));
    }
    lines.extend(close.backfill.iter().flat_map(backfill));
    lines
}

/// A backfill that runs, or ran last.
fn backfill(backfill: &BackfillStatus) -> Vec<String> {
    let mut lines = vec![format!(
        "backfill   {} {:.0} %, {} stored",
        word(backfill.job.state),
        backfill.fraction * 100.0,
        backfill.job.counts.stored,
    )];
    if let Some(trouble) = &backfill.earlier_trouble {
        lines.push(format!(
            "           before this start it did not get on: {}",
            text(trouble)
        ));
    }
    lines
}

/// Events without their data: what the claim above does not have.
fn held(held: &Held) -> String {
    let (count, fate) = match (held.is_counted, held.are_dispatched) {
        (false, _) => (format!("at least {}", held.events), "they are being counted"),
        (true, true) => (held.events.to_string(), "they go out as they are"),
        (true, false) => (held.events.to_string(), "they wait for it"),
    };
    let span = match (held.oldest, held.newest) {
        (Some(oldest), Some(newest)) => format!(" from {oldest:.0} to {newest:.0}"),
        _ => String::new(),
    };
    format!("held       except the data of {count} event(s){span}, which Close withholds from this key: {fate}")
}

/// One subscription, as Close has it.
fn subscription(one: &FoundSubscription) -> Vec<String> {
    let url = text(one.url.as_deref().unwrap_or_default());
    let said = |what: &str, said: &Option<String>| {
        let said = said.as_ref()?;
        Some(format!("             {what}: {}", text(said)))
    };
    let counters = one
        .counters
        .as_ref()
        .and_then(serde_json::Value::as_object)
        .map(|counters| {
            let counters: Vec<String> = counters
                .iter()
                .map(|(name, count)| format!("{} {}", text(name), text(&count.to_string())))
                .collect();
            format!("             Close counts: {}", counters.join(", "))
        });
    let lax = (one.verify_ssl == Some(false))
        .then(|| "             verify_ssl is false: Close does not check whose certificate it sees".to_owned());
    let first = format!("           {} {} {url}", text(&one.id), word(one.state));
    let lines = [
        Some(first.trim_end().to_owned()),
        said("paused by Close", &one.pause_reason),
        said("it can't be made active again", &one.trouble),
        said("deliveries fail", &one.latest_error),
        counters,
        lax,
    ];
    lines.into_iter().flatten().collect()
}
