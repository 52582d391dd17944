//! Programs that this process starts, and what they leave behind.
//!
//! Whoever is process 1 of a container inherits the children of every process that ends before them, and must wait for them, or
//! they stay as zombies for ever. Our own children have somebody who waits for each; nobody else may, or he never learns how
//! his ended. So they are known here, and only the others are reaped.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, getpid, waitpid};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::task;

/// Our own children; where it is set, nobody waits for that one any more since then.
static OURS: Mutex<Option<HashMap<Pid, Option<Instant>>>> = Mutex::new(None);

/// The runtime waits for a child that was given up, at the next signal; after so long nobody does.
const GIVEN_UP: Duration = Duration::from_secs(10);

/// Looked at this often even without a signal.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// A child of ours is known as one until this is dropped.
#[derive(Debug)]
pub struct Ours(Option<Pid>);

fn ours() -> MutexGuard<'static, Option<HashMap<Pid, Option<Instant>>>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a program that somebody will wait for: keep the second value until that is done.
pub fn spawn(command: &mut Command) -> io::Result<(Child, Ours)> {
    // Held over the start, so that a child that ends at once is known before anybody looks.
    let mut ours = ours();
    let child = command.spawn()?;
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Some(pid) = pid {
        ours.get_or_insert_default().insert(pid, None);
    }
    Ok((child, Ours(pid)))
}

/// The same for a program that a thread waits for.
pub fn spawn_std(command: &mut std::process::Command) -> io::Result<(std::process::Child, Ours)> {
    let mut ours = ours();
    let child = command.spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    if let Some(pid) = pid {
        ours.get_or_insert_default().insert(pid, None);
    }
    Ok((child, Ours(pid)))
}

impl Drop for Ours {
    fn drop(&mut self) {
        if let Some(pid) = self.0
            && let Some(since) = ours().get_or_insert_default().get_mut(&pid)
        {
            *since = Some(Instant::now());
        }
    }
}

/// As process 1: reaps what was left behind, until dropped. As any other there is nothing to do.
pub async fn run() {
    if getpid() != Pid::INIT {
        return;
    }
    let mut ended = match signal(SignalKind::child()) {
        Ok(ended) => ended,
        Err(error) => {
            tracing::warn!(%error, "children that programs leave behind stay as zombies");
            return;
        }
    };
    loop {
        let _ = task::begin_blocking(reap).await;
        let _ = tokio::time::timeout(LOOK_EVERY, ended.recv()).await;
    }
}

/// Waits for every child that has ended and is nobody's.
fn reap() {
    let Ok(listing) = std::fs::read_dir("/proc") else {
        return;
    };
    let pids: Vec<Pid> = listing
        .flatten()
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .filter(|pid| is_zombie_of_ours(*pid))
        .collect();
    let mut ours = ours();
    let ours = ours.get_or_insert_default();
    ours.retain(|_, since| since.is_none_or(|since| since.elapsed() < GIVEN_UP));
    for pid in pids {
        if !ours.contains_key(&pid) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// Whether a process is a child of this one and has ended.
fn is_zombie_of_ours(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // `pid (name) state parent ...`, and the name may hold anything.
    let after_name = stat.rsplit_once(") ").map_or("", |(_, after)| after);
    let mut fields = after_name.split(' ');
    let (state, parent) = (fields.next(), fields.next());
    state == Some("Z") && parent == Some(&getpid().to_string())
}
