//! The data directory: who has it, who owns it, and a command's work on it without a daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::keys::readable_keys;
use super::nodes::{self, Nodes};
use super::receiving::Live;
use super::roles::{build_account, build_delivery, build_log, facts, sentences};
use crate::admin::socket;
use crate::age::Clock;
use crate::close;
use crate::config::Config;
use crate::control::{Bench, Facade, Facts};
use crate::deliver::Mode;
use crate::framefile;
use crate::log::{self, Log, OpenError};
use crate::task;
use crate::telemetry::history::History;

/// A daemon that starts asks a command that has the data directory to give way by making this file.
const GIVE_WAY: &str = "give-way";

/// How long a starting daemon waits for a command to give way.
const PATIENCE: Duration = Duration::from_secs(30);

/// Opens the log for the daemon; a command that has it is asked to give way.
pub(super) async fn open_patiently(config: &Config, clock: &Clock, on: &Handle) -> anyhow::Result<Arc<dyn Log>> {
    log::refuse_moved(&config.log.dir)?;
    let request = config.log.dir.join(GIVE_WAY);
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let options = log::Options {
            now: clock.clone(),
            ..log::Options::from_config(config)
        };
        match build_log(options, on).await? {
            Ok(log) => {
                let _ = std::fs::remove_file(&request);
                if let Err(error) = log::note_serving(&config.log.dir) {
                    tracing::debug!(%error, "the lock file could not be written");
                }
                return Ok(log);
            }
            // Another daemon has a socket and does not give way.
            Err(error @ OpenError::Locked { .. }) => {
                let daemon = socket::connect(&config.log.dir).await.is_ok();
                if daemon || tokio::time::Instant::now() > until {
                    bail!(error);
                }
                ask_to_give_way(&request).with_context(|| format!("{} can't be made", request.display()))?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => bail!(error),
        }
    }
}

/// Takes the data directory of a daemon whose log is kept elsewhere.
pub(super) fn hold(config: &Config) -> anyhow::Result<std::fs::File> {
    make_data_dir(&config.log.dir)?;
    let held = log::take_dir(&config.log.dir)?;
    if let Err(error) = log::note_serving(&config.log.dir) {
        tracing::debug!(%error, "the lock file could not be written");
    }
    Ok(held)
}

/// Makes the file by which a command is asked to give way. Whoever else may write to the directory may have put a link there:
/// nothing is written to where it leads.
fn ask_to_give_way(request: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    if std::fs::symlink_metadata(request).is_ok_and(|found| !found.is_file()) {
        std::fs::remove_file(request)?;
    }
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(request);
    match made {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        // It was asked before, and has not given way yet.
        _ => Ok(()),
    }
}

/// Opens the data directory to look at it: takes no lock, writes nothing.
pub async fn open_read(config: &Config) -> anyhow::Result<Facade> {
    let options = log::Options {
        read_only: true,
        ..log::Options::from_config(config)
    };
    if nodes::are_several(config) {
        return facade(config, nodes::open_log(config).await?, Mode::Look).await;
    }
    let log = build_log(options, &Handle::current()).await??;
    let looked = facade(config, log, Mode::Look).await?;
    // A log whose end is missing does not show that by itself.
    let seen = match looked.engine.seen_beyond().await {
        Ok(Some(seen)) => seen,
        Ok(None) => return Ok(looked),
        Err(error) => {
            tracing::warn!(%error, "whether the end of the log is missing can't be seen");
            return Ok(looked);
        }
    };
    drop(looked);
    // It may have been stored since the log was opened. What is opened now has all that had been seen by then, or has lost it.
    let options = log::Options {
        read_only: true,
        ..log::Options::from_config(config)
    };
    let log = build_log(options, &Handle::current()).await??;
    log.skip_past(seen).await?;
    facade(config, log, Mode::Look).await
}

/// Opens the data directory to work on it without a daemon. `give_way` is cancelled when a daemon wants it.
pub async fn open_write(config: &Config, give_way: CancellationToken) -> anyhow::Result<Facade> {
    if nodes::are_several(config) {
        // Sinks are driven by nodes that have a lease; what is durable of an order they carry out.
        return facade(config, nodes::open_log(config).await?, Mode::Outside).await;
    }
    let before = owner(&config.log.dir);
    if before.is_none() {
        bail!(OpenError::Missing(config.log.dir.clone()));
    }
    log::refuse_moved(&config.log.dir)?;
    let log = build_log(log::Options::from_config(config), &Handle::current()).await??;
    let request = config.log.dir.join(GIVE_WAY);
    // Whoever asked for it before may be gone. A daemon that still wants it asks again at once.
    let _ = std::fs::remove_file(&request);
    task::begin(async move {
        while !request.exists() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        give_way.cancel();
    });
    match facade(config, log.clone(), Mode::Jobs).await {
        Err(error) => {
            // What opening it has made is root's where root runs this.
            log.close().await;
            let dir = config.log.dir.clone();
            let _ = task::begin_blocking(move || leave_to_owner(&dir)).await;
            Err(error)
        }
        opened => opened,
    }
}

/// Makes a data directory that is missing (mode 0700). A command run by root leaves it to the owner of what it is in, as whom the
/// daemon may run; systemd gives it to the unit's user at every start.
pub fn make_data_dir(dir: &Path) -> anyhow::Result<()> {
    if dir.exists() {
        return Ok(());
    }
    let made = framefile::make_dir(dir).and_then(|()| framefile::sync_parent(dir));
    made.with_context(|| format!("the data directory {} can't be made", dir.display()))?;
    if rustix::process::geteuid().is_root()
        && let Some((user, group)) = dir.parent().and_then(owner)
    {
        give(dir, user, group);
    }
    Ok(())
}

/// Closes what [`open_write`] opened, leaving every file to the directory's owner.
pub async fn close(facade: Facade) -> anyhow::Result<()> {
    facade.account.settle().await;
    facade.engine.shutdown().await;
    facade.log.close().await;
    let dir = facade.facts.dir.clone();
    task::begin_blocking(move || leave_to_owner(&dir)).await?;
    Ok(())
}

async fn facade(config: &Config, log: Arc<dyn Log>, mode: Mode) -> anyhow::Result<Facade> {
    // Keys are needed to check signatures only; without them everything else works.
    let (verifier, faults) = readable_keys(config, false);
    if !faults.is_empty() {
        tracing::warn!("{}", sentences(&faults).join("; "));
    }
    let verifier = Arc::new(ArcSwap::from_pointee(verifier));
    let nodes = if nodes::are_several(config) {
        let nodes = nodes::build(config).await?;
        match nodes.leases.look_from_outside().await {
            Ok(()) => {}
            Err(error) if mode == Mode::Look => tracing::warn!(%error, "the nodes can't be looked at now"),
            // Whoever acts has to know them: an erasure, say, is for what each of them has in memory.
            Err(error) => bail!("the nodes can't be looked at now: {error}"),
        }
        Some(nodes)
    } else {
        None
    };
    let shared = nodes.as_ref().map(|nodes| nodes.close.clone());
    // A command does not run for so long that somebody tells it the time: nothing grows old by it.
    let age = Arc::default();
    let account = Arc::new(build_account(config, &log, &verifier, !mode.drives(), &age, shared)?);
    let engine = build_delivery(config, &log, account.names(), mode, Clock::of(age), nodes.as_ref()).await?;
    if mode.drives() {
        // Replays may want to know what custom fields are called. It ends with the command.
        task::begin(close::follow_fields(account.clone(), CancellationToken::new(), false));
    }
    let dir = config.log.dir.clone();
    let history = task::begin_blocking(move || History::look(&dir)).await;
    Ok(Facade {
        bench: Bench::new(account.names().clone()),
        history: history.ok().map(Arc::new),
        log,
        engine,
        receiving: Arc::new(Live {
            verifier,
            tls: None,
            door: None,
        }),
        account,
        retention: None,
        reload: None,
        links: None,
        configured: None,
        others: nodes.as_ref().map(Nodes::others),
        facts: Facts {
            unreachable: match log::holder(&config.log.dir) {
                Ok(Some(holder)) if holder.serves => holder.pid,
                _ => None,
            },
            ..facts(config, false)
        },
    })
}

/// What is known of Close's side, where several nodes share it. Contacts nobody.
pub async fn shared_close(config: &Config) -> anyhow::Result<Option<Arc<close::Shared>>> {
    if !nodes::are_several(config) {
        return Ok(None);
    }
    Ok(Some(nodes::build(config).await?.close))
}

/// Gives everything in a data directory to the directory's owner: a command run by root must not lock the daemon out of its
/// own files.
pub fn leave_to_owner(dir: &Path) {
    if rustix::process::geteuid().is_root()
        && let Some((user, group)) = owner(dir)
    {
        give(dir, user, group);
    }
}

fn owner(dir: &Path) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(dir).ok()?;
    Some((metadata.uid(), metadata.gid()))
}

fn give(dir: &Path, user: u32, group: u32) {
    let mut pending: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        let _ = std::os::unix::fs::lchown(&path, Some(user), Some(group));
        let is_dir = std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
        if is_dir && let Ok(listing) = std::fs::read_dir(&path) {
            pending.extend(listing.flatten().map(|entry| entry.path()));
        }
    }
}
