//! `closehook subscription`

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::{Access, Connection, asking_close, need_credentials, with};
use super::pick::text_or_file;
use super::term::confirm;
use super::{Failure, Global, Outcome, field, json_line, kinds, print_line, said, table, word};
use crate::close::NewByHand;
use crate::control::close;
use crate::rules::filter::Filter;
use crate::{json, plain};

/// Close's webhook subscriptions: see them, and make them what the rules want
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  closehook subscription plan\n  closehook subscription apply")]
pub(super) enum Subscription {
    /// All subscriptions of the organization, and how each stands to this closehook
    #[command(after_help = "Example:\n  closehook subscription list --json | jq 'select(.standing == \"ours\")'")]
    List,
    /// One subscription, as Close has it
    #[command(after_help = "Example:\n  closehook subscription show whsub_8AmjKCZYT3zI8eZoi4HhFC")]
    Show {
        /// Its id
        id: String,
    },
    Create(Create),
    /// Stop a subscription; Close then queues nothing for it
    #[command(
        after_help = "It stays paused until `subscription resume`: the daemon resumes only what Close has paused.\n\nExample:\n  closehook subscription pause whsub_8AmjKCZYT3zI8eZoi4HhFC"
    )]
    Pause {
        /// Its id
        id: String,
    },
    /// Make a paused subscription active; what was missed is fetched
    #[command(after_help = "Example:\n  closehook subscription resume whsub_8AmjKCZYT3zI8eZoi4HhFC")]
    Resume {
        /// Its id
        id: String,
    },
    /// Delete a subscription and what Close has queued for it; what was missed is fetched
    #[command(
        after_help = "Its key is kept to check stored deliveries (`closehook events verify`).\n\nExample:\n  closehook subscription delete whsub_8AmjKCZYT3zI8eZoi4HhFC"
    )]
    Delete {
        /// Its id
        id: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// What the rules want, compared with what Close has, like a patch
    #[command(
        after_help = "Nothing is changed. Exit code 1 if there is a difference. Many event types in a row are shown as one line, unless --full.\n\nExamples:\n  closehook subscription plan\n  closehook subscription plan --full"
    )]
    Plan {
        /// Show every event type in a line of its own
        #[arg(long)]
        full: bool,
    },
    /// Make Close's subscription what the rules want
    #[command(
        after_help = "A subscription that is there is changed in place and keeps its key. The key of a new one goes into the data directory,
readable by its owner only, and is shown nowhere. With --rotate the subscription is replaced by one with a new key: Close has no
two active ones that are the same, so the old one is paused first, and what happens in between is fetched. Both keys are
accepted until the new one has delivered, then the daemon deletes the old one. A subscription that delivers here though its
key is not known here, as after a loss of the data directory, is replaced where Close refuses a second one, and said.

Examples:
  closehook subscription apply
  closehook subscription apply --rotate"
    )]
    Apply {
        /// Replace the subscription, to get a new key
        #[arg(long)]
        rotate: bool,
    },
}

/// Make a subscription by hand; `apply` makes the one the rules want
#[derive(Debug, Args)]
#[command(
    after_help = "Its key goes into the data directory, readable by its owner only, and is shown nowhere.

Examples:
  closehook subscription create --event lead.created --event lead.updated
  closehook subscription create --event opportunity.updated --filter @won.json"
)]
pub(super) struct Create {
    /// Where Close delivers; default: the configuration's `public_url`
    #[arg(long)]
    url: Option<String>,
    /// What it sends, like lead.created; may be repeated; default: what the rules want
    #[arg(long = "event", value_name = "TYPE.ACTION", value_parser = kinds::one)]
    events: Vec<String>,
    /// Sends only what this filter matches: JSON or @FILE
    #[arg(long, requires = "events")]
    filter: Option<String>,
    /// Tell Close not to check the URL's certificate
    #[arg(long)]
    no_verify_ssl: bool,
}

impl Subscription {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        let access = match self {
            Subscription::List | Subscription::Show { .. } | Subscription::Plan { .. } => Access::Preview,
            _ => Access::Begin,
        };
        if access == Access::Begin {
            need_credentials(global)?;
        }
        if let Subscription::Delete { id, yes: false } = &self {
            confirm(&format!("Delete {id} at Close, with everything queued for it?"))?;
        }
        with(global, access, async |connection| {
            let set_back = async || connection.set_back().await;
            asking_close(global, &connection.config, set_back, self.work(global, connection)).await
        })
        .await
    }

    async fn work(&self, global: &Global, connection: &Connection) -> Outcome {
        match self {
            Subscription::List => list(global, connection).await,
            Subscription::Show { id } => {
                let asked = close::Subscription {
                    id: id.clone(),
                    masks: false,
                };
                let mut answers = connection.ask(asked).await?;
                let Some(subscription) = answers.next().await? else {
                    return Err(Failure::Work(format!(
                        "Close knows no subscription {}: `closehook subscription list` shows what there is",
                        plain::line(id)
                    )));
                };
                global.print(&subscription, |shown| {
                    plain::lines(&json::indented(shown.get())).into_owned()
                })
            }
            Subscription::Create(create) => create.run(global, connection).await,
            Subscription::Pause { id } => set(global, connection, id, false).await,
            Subscription::Resume { id } => set(global, connection, id, true).await,
            Subscription::Delete { id, .. } => {
                connection.ask_one(close::Delete { id: id.clone() }).await?;
                done(global, &format!("{id} is deleted"))
            }
            Subscription::Plan { full } => plan(*full, global, connection).await,
            Subscription::Apply { rotate } => apply(global, connection, *rotate).await,
        }
    }
}

fn done(global: &Global, what: &str) -> Outcome {
    print_line(if global.json { "{\"ok\":true}" } else { what })
}

async fn set(global: &Global, connection: &Connection, id: &str, active: bool) -> Outcome {
    let id_text = id.to_owned();
    if active {
        let only_ours = false;
        connection.ask_one(close::Resume { id: id_text, only_ours }).await?;
    } else {
        connection.ask_one(close::Pause { id: id_text }).await?;
    }
    done(global, &format!("{id} is {}", if active { "active" } else { "paused" }))
}

async fn list(global: &Global, connection: &Connection) -> Outcome {
    let mut answers = connection.ask(close::Subscriptions::default()).await?;
    let mut rows = Vec::new();
    while let Some(subscription) = answers.next().await? {
        if global.json {
            print_line(&json_line(&subscription)?)?;
            continue;
        }
        let text = |text: &str| plain::line(text).into_owned();
        rows.push(vec![
            text(&subscription.id),
            text(&subscription.status),
            word(subscription.standing),
            subscription.events.len().to_string(),
            text(&subscription.url),
        ]);
    }
    if global.json {
        return Ok(());
    }
    if rows.is_empty() {
        return print_line("Close has no subscriptions: `closehook subscription plan` shows what the rules want");
    }
    print_line(&table(&["subscription", "status", "standing", "events", "url"], rows))
}

impl Create {
    async fn run(&self, global: &Global, connection: &Connection) -> Outcome {
        let filter = self.filter.as_deref().map(text_or_file).transpose()?;
        if let Some(filter) = &filter {
            Filter::parse(filter).map_err(|faults| {
                let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
                Failure::Usage(format!("the filter is not valid: {}", faults.join("; ")))
            })?;
        }
        let new = NewByHand {
            url: self.url.clone(),
            events: self.events.clone(),
            filter,
            verify_ssl: !self.no_verify_ssl,
        };
        let created = connection.ask_one(close::Create { new: Box::new(new) }).await?;
        global.print(&created, |created| {
            format!(
                "{} is made; its key is in the data directory and counts at once",
                plain::line(&created.id)
            )
        })
    }
}

fn texts(value: &Value, name: &str) -> impl Iterator<Item = String> {
    value[name].as_array().into_iter().flatten().filter_map(said)
}

async fn plan(full: bool, global: &Global, connection: &Connection) -> Outcome {
    let plan = connection.ask_one(close::Plan {}).await?;
    global.print(&plan, |plan| render(&json!(plan), full))?;
    if plan.steps.is_empty() {
        Ok(())
    } else {
        Err(Failure::Found)
    }
}

/// So many event types in a row are still read one by one.
const ROW_MAX: usize = 8;

/// A plan for people; `full`: with every event type in a line of its own.
pub(super) fn render(plan: &Value, full: bool) -> String {
    let diff: Vec<String> = texts(plan, "diff").collect();
    let mut lines = if full { diff } else { in_few(&diff) };
    for step in plan["steps"].as_array().into_iter().flatten() {
        match step["step"].as_str() {
            Some("delete-orphan") => lines.push(format!(
                "-{} (made here, but its key was lost on the way)",
                field(step, "id")
            )),
            Some("retire") => lines.push(format!(" {} is gone at Close: its key is retired", field(step, "id"))),
            _ => {}
        }
    }
    if lines.is_empty() {
        lines.push(format!(
            "{} is what the rules want: nothing to do",
            field(plan, "subscription")
        ));
    }
    lines.extend(texts(plan, "notes").map(|note| format!("note: {note}")));
    lines.join("\n")
}

/// The difference with many event types in a row, all of them added or all removed, as one line.
fn in_few(diff: &[String]) -> Vec<String> {
    // The name of a type is a word with a dot; what has a filter behind it is worth a line.
    let plain_type = |line: &str| {
        let name = line.strip_prefix(['+', '-'])?;
        (!name.contains(' ') && name.contains('.')).then(|| line.as_bytes()[0])
    };
    let rows = diff.chunk_by(|one, next| plain_type(one).is_some() && plain_type(one) == plain_type(next));
    let mut lines = Vec::new();
    for row in rows {
        let [first, .., last] = row else {
            lines.extend_from_slice(row);
            continue;
        };
        if row.len() <= ROW_MAX {
            lines.extend_from_slice(row);
        } else {
            let last = last.trim_start_matches(['+', '-']);
            lines.push(format!(
                "{first} to {last}: {} event types (`closehook subscription plan --full` shows each)",
                row.len()
            ));
        }
    }
    lines
}

async fn apply(global: &Global, connection: &Connection, rotate: bool) -> Outcome {
    let applied = connection.ask_one(close::Apply { rotate }).await?;
    global.print(&applied, |applied| {
        let applied = &json!(applied);
        let plan = &applied["plan"];
        let subscription = field(applied, "subscription");
        let has_steps = plan["steps"].as_array().is_some_and(|steps| !steps.is_empty());
        let mut lines = Vec::new();
        if has_steps {
            lines.push(render(plan, false));
        }
        lines.push(match said(&applied["replaces"]) {
            Some(old) => format!("{subscription} replaces {old}, which is deleted when the new one has delivered"),
            None if has_steps => format!("done: {subscription} delivers to {}", field(plan, "url")),
            None => format!("{subscription} is what the rules want: nothing was done"),
        });
        lines.extend(
            texts(applied, "replaced").map(|id| format!("{id}, whose key is not known here, is replaced and deleted")),
        );
        if !connection.is_daemon() {
            lines.push("no daemon is running: start `closehook serve` so that deliveries are answered".into());
        }
        lines.join("\n")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_types_in_a_row_are_a_line() {
        let lines = |text: &str| in_few(&text.lines().map(ToOwned::to_owned).collect::<Vec<_>>());
        let few = "--- nothing\n+url https://x.example/y\n+a.b\n+a.c\n-a.d";
        assert_eq!(lines(few).join("\n"), few);
        let many: Vec<String> = (0..20).map(|n| format!("+a.b{n:02}")).collect();
        let many = many.join("\n");
        let shown = lines(&format!("--- x\n{many}\n+a.c where {{\"type\":\"is_null\"}}\n-a.d\n"));
        assert_eq!(
            shown,
            [
                "--- x",
                "+a.b00 to a.b19: 20 event types (`closehook subscription plan --full` shows each)",
                "+a.c where {\"type\":\"is_null\"}",
                "-a.d"
            ]
        );
    }
}
