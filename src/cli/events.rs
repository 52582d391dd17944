//! `closehook events`

use clap::{Args, Subcommand};
use serde_json::Value;

use super::connect::{Access, Connection, with};
use super::pick::Pick;
use super::{Failure, Global, Outcome, field, print_line, said, table};
use crate::admin::query::Query;

/// Browse the event log
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  closehook events list --since 2h\n  closehook events show ev_2sYKRjcrA79yKxi3S4Crd7\n  closehook events tail"
)]
pub(super) enum Events {
    /// The newest events, newest last
    #[command(after_help = "Examples:
  closehook events list --since 2h --type 'lead.*'
  closehook events list --limit 5 \\
    --lead lead_zwqYhEFwzPyfCErS8uQ77is2wFLvr9BgVi6cTfbFM68
  closehook events list --quarantined")]
    List(List),
    /// One event: its body, when and how it arrived, and its state at each sink
    #[command(
        after_help = "Examples:\n  closehook events show ev_2sYKRjcrA79yKxi3S4Crd7\n  closehook events show 1042 --raw | jq .event.data"
    )]
    Show(Show),
    /// Follow the log: new events as they arrive
    #[command(after_help = "Example:\n  closehook events tail --type 'opportunity.*'")]
    Tail(Tail),
    /// One JSON object a line: seq, `received_at`, source, headers, and body, the exact bytes
    #[command(
        after_help = "Examples:\n  closehook events export --since 7d > week.jsonl\n  closehook log import week.jsonl     # into another log"
    )]
    Export(Export),
    /// Check stored signatures and checksums again
    #[command(after_help = "Exit 1 if anything is wrong.\n\nExample:\n  closehook events verify")]
    Verify,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    pick: Pick,
    /// At most so many
    #[arg(long, default_value_t = 50)]
    limit: u64,
    /// Only bodies that can't be read as a delivery
    #[arg(long)]
    quarantined: bool,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Event id (every revision), or Seq
    id: String,
    /// Only the body, byte for byte
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, Args)]
pub(super) struct Tail {
    #[command(flatten)]
    pick: Pick,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    pick: Pick,
    /// At most so many
    #[arg(long)]
    limit: Option<u64>,
}

impl Events {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        if let Events::Tail(tail) = &self {
            return tail.run(global).await;
        }
        // A bad filter is a usage error, with or without data to use it on.
        match &self {
            Events::List(List { pick, .. }) | Events::Export(Export { pick, .. }) => drop(pick.query()?),
            _ => {}
        }
        with(global, Access::Read, async |connection| match &self {
            Events::List(list) => list.run(global, connection).await,
            Events::Show(show) => show.run(global, connection).await,
            Events::Export(export) => export.run(connection).await,
            Events::Verify => verify(global, connection).await,
            Events::Tail(_) => Ok(()),
        })
        .await
    }
}

impl List {
    async fn run(&self, global: &Global, connection: &Connection) -> Outcome {
        let mut pick = self.pick.query()?;
        pick.quarantined = self.quarantined.then_some(true);
        let query = Query::Events {
            pick,
            limit: Some(self.limit),
            last: true,
            follow: false,
            full: false,
            from: None,
        };
        let mut answers = connection.ask(query).await?;
        let mut rows = Vec::new();
        while let Some(event) = answers.next().await? {
            if global.json {
                print_line(&event.to_string())?;
            } else {
                rows.push(row(&event));
            }
        }
        match (global.json, rows.is_empty()) {
            (true, _) => Ok(()),
            (false, true) => {
                eprintln!("closehook: no events");
                Ok(())
            }
            (false, false) => print_line(&table(&["seq", "received at", "type", "id", "lead"], rows)),
        }
    }
}

fn row(event: &Value) -> Vec<String> {
    let kind = field(event, "kind");
    let shown = if kind == "event" {
        field(event, "type")
    } else {
        format!("({kind})")
    };
    vec![
        field(event, "seq"),
        field(event, "received_at"),
        shown,
        field(event, "id"),
        field(event, "lead_id"),
    ]
}

impl Show {
    async fn run(&self, global: &Global, connection: &Connection) -> Outcome {
        let mut answers = connection.ask(Query::Event { id: self.id.clone() }).await?;
        while let Some(event) = answers.next().await? {
            if global.json {
                print_line(&event.to_string())?;
                continue;
            }
            if self.raw {
                use std::io::Write;
                std::io::stdout()
                    .lock()
                    .write_all(&crate::admin::query::exported_body(&event)?)?;
                continue;
            }
            let body = match event["body"].as_str() {
                Some(body) => body.to_owned(),
                None => format!("(not text, base64) {}", field(&event, "body_base64")),
            };
            for name in ["seq", "received_at", "source", "kind", "signature"] {
                print_line(&format!("{name:<12} {}", field(&event, name)))?;
            }
            for (sink, state) in event["sinks"].as_object().into_iter().flatten() {
                let details: Vec<String> = ["attempts", "due", "reason"]
                    .iter()
                    .map(|n| field(state, n))
                    .filter(|d| !d.is_empty())
                    .collect();
                print_line(
                    format!("sink         {sink}: {} {}", field(state, "state"), details.join(", ")).trim_end(),
                )?;
                if let Some(answered) = super::dead::answered(state) {
                    print_line(&answered)?;
                }
            }
            if event["revisions"]
                .as_array()
                .is_some_and(|revisions| revisions.len() > 1)
            {
                print_line(&format!("{:<12} {}", "revisions", field(&event, "revisions")))?;
            }
            let pretty = serde_json::from_str::<Value>(&body)
                .ok()
                .and_then(|value| serde_json::to_string_pretty(&value).ok());
            print_line(&pretty.unwrap_or_else(|| crate::plain::line(&body).into_owned()))?;
        }
        Ok(())
    }
}

impl Tail {
    async fn run(&self, global: &Global) -> Outcome {
        let pick = self.pick.query()?;
        let mut connection = Connection::open(global, Access::Read).await?;
        let nothing_new =
            || Failure::Work("no daemon is running, so nothing new can arrive: start `closehook serve`".into());
        if !connection.is_daemon() {
            if pick.since.is_none() {
                return Err(nothing_new());
            }
            Tail::show(global, &connection, &pick, &mut None).await?;
            return Err(nothing_new());
        }
        let mut next = None;
        loop {
            let broken = match Tail::show(global, &connection, &pick, &mut next).await {
                Ok(()) => String::new(),
                Err(Failure::Work(error)) => error,
                Err(other) => return Err(other),
            };
            eprintln!("closehook: the daemon stopped ({broken}); waiting for it to come back");
            // A socket that answers may be that of the one that is stopping: then this is not the last time round.
            connection = loop {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                if let Some(back) = Connection::to_daemon(&connection.config).await? {
                    break back;
                }
            };
        }
    }

    /// Prints events from `next` on, until there is nobody to ask.
    async fn show(
        global: &Global,
        connection: &Connection,
        pick: &crate::admin::query::Pick,
        next: &mut Option<crate::event::Seq>,
    ) -> Outcome {
        let query = Query::Events {
            pick: pick.clone(),
            limit: None,
            last: false,
            follow: connection.is_daemon(),
            full: false,
            from: *next,
        };
        let mut answers = connection.ask(query).await?;
        while let Some(event) = answers.next().await? {
            *next = event["seq"].as_u64().map(|seq| crate::event::Seq(seq + 1));
            print_line(&if global.json {
                event.to_string()
            } else {
                row(&event).join("  ").trim_end().to_owned()
            })?;
        }
        Ok(())
    }
}

impl Export {
    async fn run(&self, connection: &Connection) -> Outcome {
        let query = Query::Events {
            pick: self.pick.query()?,
            limit: self.limit,
            last: false,
            follow: false,
            full: true,
            from: None,
        };
        let mut answers = connection.ask(query).await?;
        while let Some(event) = answers.next().await? {
            print_line(&event.to_string())?;
        }
        Ok(())
    }
}

async fn verify(global: &Global, connection: &Connection) -> Outcome {
    let mut answers = connection.ask(Query::Verify).await?;
    let bar = super::term::spinner("checking");
    let mut result = Value::Null;
    while let Some(answer) = answers.next().await? {
        if answer.get("progress").is_some() {
            bar.set_message(answer["progress"].to_string());
        } else {
            result = answer;
        }
    }
    bar.finish_and_clear();
    let faults = result["faults"].as_array().map_or(0, Vec::len);
    let gaps = result["gaps"].as_array().map_or(0, Vec::len);
    global.print(&result, |result| {
        let mut lines = vec![format!(
            "{} events checked, {} unsigned (backfill), {} erased",
            field(result, "checked"),
            field(result, "unsigned"),
            field(result, "erased")
        )];
        lines.extend(
            result["faults"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(said)
                .map(|fault| format!("fault: {fault}")),
        );
        let gap = |g: &Value| {
            format!(
                "lost: events {} to {}: {}",
                field(g, "from"),
                field(g, "to"),
                field(g, "reason")
            )
        };
        lines.extend(result["gaps"].as_array().into_iter().flatten().map(gap));
        lines.join("\n")
    })?;
    if faults + gaps > 0 { Err(Failure::Found) } else { Ok(()) }
}
