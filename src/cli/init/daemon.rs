//! The daemon: the one that runs, one that systemd starts, or one of our own for as long as we need it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::files::{self, Owner};
use crate::cli::Failure;
use crate::cli::connect::Connection;
use crate::config::Config;
use crate::control::reload::{Outcome, Reload, Reloaded};
use crate::control::{Question, status as asked};

/// How long a daemon may take to start: recovering a large log, or waiting for a command to give way, takes a while.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How long one that we started may take to stop; its own limit for open requests is shorter.
const STOP_PATIENCE: Duration = Duration::from_secs(40);

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Bytes at the end of what a daemon said that are looked at.
const SAID_MAX: u64 = 16 << 10;

/// A daemon of our own; it is told to stop when this is dropped.
#[derive(Debug)]
pub(super) struct Own {
    child: Child,
    said: File,
}

impl Own {
    /// Starts `serve` on a configuration, as the user who has the data directory.
    pub fn start(file: &Path, owner: Option<Owner>, environment: Vec<(String, String)>) -> Result<Own, String> {
        let fail = |error: std::io::Error| format!("no daemon can be started: {error}");
        let program = std::env::current_exe().map_err(fail)?;
        let said = tempfile::tempfile().map_err(fail)?;
        let mut command = Command::new(program);
        command
            .arg("-c")
            .arg(file)
            .arg("serve")
            .envs(environment)
            .stdin(Stdio::null())
            // A sink of type stdout must not write between our lines.
            .stdout(Stdio::null())
            .stderr(said.try_clone().map_err(fail)?);
        if let Some((user, group)) = owner.filter(|(user, _)| files::is_root() && *user != 0) {
            command.uid(user).gid(group);
        }
        let child = command.spawn().map_err(fail)?;
        Ok(Own { child, said })
    }

    /// Waits until it answers. An error is one sentence, with the daemon's own words.
    pub async fn is_ready(&mut self, config: &Config) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let status = status(config).await.ok().flatten();
            if status.is_some_and(|status| status["daemon"]["pid"] == self.child.id()) {
                return Ok(());
            }
            if let Ok(Some(exit)) = self.child.try_wait() {
                return Err(format!("the daemon does not start ({exit}): {}", self.last_words()));
            }
            if began.elapsed() > START_PATIENCE {
                return Err(format!(
                    "the daemon was not ready within {} s: {}",
                    START_PATIENCE.as_secs(),
                    self.last_words()
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// What it complained about last, in one line.
    fn last_words(&mut self) -> String {
        let mut said = String::new();
        let len = self.said.metadata().map_or(0, |metadata| metadata.len());
        let from = SeekFrom::Start(len.saturating_sub(SAID_MAX));
        if self.said.seek(from).is_ok() {
            let _ = self.said.read_to_string(&mut said);
        }
        complaint(&said)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let began = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if began.elapsed() > STOP_PATIENCE {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// The lines that say what is wrong: errors, else the last line.
fn complaint(said: &str) -> String {
    let own: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("closehook: "))
        .collect();
    if !own.is_empty() {
        return own.join("; ");
    }
    said.lines().last().unwrap_or("it says nothing").to_owned()
}

/// What the running daemon says of itself; `None`: none runs.
pub(super) async fn status(config: &Config) -> Result<Option<Value>, Failure> {
    match Connection::to_daemon(config).await? {
        None => Ok(None),
        Some(daemon) => daemon.ask_value(asked::Show {}).await.map(Some),
    }
}

/// Asks for one answer of the running daemon. An error is one sentence.
pub(super) async fn ask<Q: Question>(config: &Config, question: Q) -> Result<Value, String> {
    let last = ask_all(config, question).await?.pop();
    Ok(last.unwrap_or_default())
}

/// Asks for every answer of the running daemon. An error is one sentence.
pub(super) async fn ask_all<Q: Question>(config: &Config, question: Q) -> Result<Vec<Value>, String> {
    let daemon = Connection::to_daemon(config).await.map_err(sentence)?;
    let daemon = daemon.ok_or_else(|| "no daemon runs any more".to_owned())?;
    let mut answers = daemon.ask(question).await.map_err(sentence)?;
    let mut all = Vec::new();
    while let Some(answer) = answers.next().await.map_err(sentence)? {
        all.push(serde_json::to_value(answer).map_err(|error| error.to_string())?);
    }
    Ok(all)
}

/// Has the running daemon take over the configuration.
pub(super) async fn reload(config: &Config) -> Result<Reloaded, String> {
    let daemon = Connection::to_daemon(config).await.map_err(sentence)?;
    let daemon = daemon.ok_or_else(|| "no daemon runs any more".to_owned())?;
    match daemon.ask_one(Reload {}).await.map_err(sentence)? {
        Outcome::Reloaded(reloaded) => Ok(*reloaded),
        Outcome::Faults(faults) => Err(sentence(Failure::Faults(faults))),
        // The last answer is none of these.
        Outcome::Waits(what) => Err(format!("the reload did not come to its end: {what}")),
    }
}

/// Waits for a daemon that somebody else starts.
pub(super) async fn appears(config: &Config) -> Result<(), String> {
    let began = Instant::now();
    loop {
        if status(config).await.map_err(sentence)?.is_some() {
            return Ok(());
        }
        if began.elapsed() > START_PATIENCE {
            return Err("it was started and does not answer: its log says why (journalctl -u closehook)".into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

pub(super) fn sentence(failure: Failure) -> String {
    match failure {
        Failure::Work(text) | Failure::Usage(text) => text,
        Failure::Faults(faults) | Failure::Unchanged(faults) => {
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            faults.join("; ")
        }
        Failure::Found | Failure::Unread => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_s_own_words_tell_why_it_does_not_start() {
        let said = "2024 INFO makes a key\nclosehook: close.local_key: no\nclosehook: log.dir: neither\n";
        assert_eq!(complaint(said), "close.local_key: no; log.dir: neither");
        assert_eq!(complaint("a\nb\n"), "b");
        assert_eq!(complaint(""), "it says nothing");
    }
}
