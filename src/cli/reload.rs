//! `closehook reload`

use clap::Args;

use super::connect::Connection;
use super::when::when_known;
use super::{Failure, Global, Outcome, report};
use crate::admin::socket;
use crate::config::{self, Config};
use crate::control::reload::{self as asked, Changes, Reloaded};
use crate::plain;

/// Have the daemon take over the configuration, and say what changed
#[derive(Debug, Args)]
#[command(after_help = "It is as `systemctl reload closehook`, and waits for the outcome: what
changed, or every fault. With any fault nothing changes, and the exit code
is 1. What a sink is delivering comes to its end first; a reload that waits for
that says so. What takes effect at the next start only is named.

Examples:
  closehook reload
  closehook check && closehook reload")]
pub(super) struct Reload {}

impl Reload {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        let (daemon, dir) = daemon(global).await?;
        let mut answers = daemon.ask(asked::Reload {}).await?;
        while let Some(answer) = answers.next().await? {
            match answer {
                asked::Outcome::Waits(what) => {
                    report::notice(global.json, &format!("the reload waits: {}", plain::line(&what)));
                }
                asked::Outcome::Faults(faults) => return Err(Failure::Unchanged(faults)),
                asked::Outcome::Reloaded(reloaded) => {
                    return global.print(&reloaded, |reloaded| for_people(reloaded, &dir));
                }
            }
        }
        Err(Failure::Work(
            "the reload did not come to its end: see the daemon's log".into(),
        ))
    }
}

/// The running daemon. What is wrong with the configuration is for it to say, so only the data directory is read of it here.
async fn daemon(global: &Global) -> Result<(Connection, String), Failure> {
    let layers = global.layers();
    let (config, faults) = match Config::load(&layers) {
        Ok(config) => (config, Vec::new()),
        Err(faults) => match config::data_dir_only(&layers) {
            Ok(config) => (config, faults),
            Err(_) => return Err(Failure::Unchanged(faults)),
        },
    };
    let dir = config.log.dir.display().to_string();
    match Connection::to_daemon(&config).await? {
        Some(daemon) => Ok((daemon, dir)),
        // Then the daemon that is meant may have another data directory.
        None if !faults.is_empty() => Err(Failure::Unchanged(faults)),
        None => Err(Failure::Work(format!(
            "no daemon is running: nothing answers at {}; `closehook serve` starts one, with the configuration of now",
            socket::path(&config.log.dir).display()
        ))),
    }
}

fn for_people(reloaded: &Reloaded, dir: &str) -> String {
    let file = reloaded.file.as_ref().map(|file| file.display().to_string());
    let file = file.map_or_else(|| "the environment".to_owned(), |file| plain::line(&file).into_owned());
    let mut lines = vec![format!("{file} is in force ({dir})")];
    lines.push(changes("sinks", &reloaded.sinks));
    lines.push(changes("rules", &reloaded.rules));
    let keys = reloaded.keys;
    let news = match (keys.added, keys.removed) {
        (0, 0) => String::new(),
        (added, removed) => format!(" ({added} added, {removed} removed)"),
    };
    lines.push(format!("keys         {} live{news}", keys.live));
    if let Some(certificate) = &reloaded.certificate {
        let until = when_known(certificate.not_after);
        let until = until.map_or_else(
            || "there is none yet".to_owned(),
            |until| format!("valid until {until}"),
        );
        lines.push(match (&certificate.error, certificate.changed) {
            (Some(error), _) => format!(
                "certificate  the new one can't be used, the old one stays ({until}): {}",
                plain::line(error)
            ),
            (None, true) => format!("certificate  changed, {until}"),
            (None, false) => format!("certificate  unchanged, {until}"),
        });
    }
    for (sink, count) in &reloaded.stranded {
        let sink = plain::line(sink);
        lines.push(format!(
            "stranded     {count} event(s) that other sinks gave up for {sink}, which is not configured (`closehook dead list --sink {sink}`)"
        ));
    }
    if !reloaded.restart.is_empty() {
        let tables: Vec<String> = reloaded.restart.iter().map(|table| format!("[{table}]")).collect();
        lines.push(format!(
            "restart      changes in {} take effect at the next start",
            tables.join(", ")
        ));
    }
    lines.join("\n")
}

fn changes(what: &str, changes: &Changes) -> String {
    let list = |word: &str, names: &[String]| {
        (!names.is_empty()).then(|| format!("{word} {}", plain::line(&names.join(", "))))
    };
    let parts: Vec<String> = [
        list("added", &changes.added),
        list("removed", &changes.removed),
        list("changed", &changes.changed),
        list("unchanged", &changes.unchanged),
    ]
    .into_iter()
    .flatten()
    .collect();
    let parts = if parts.is_empty() {
        "none".to_owned()
    } else {
        parts.join("; ")
    };
    format!("{what:<12} {parts}")
}
