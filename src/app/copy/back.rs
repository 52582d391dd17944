//! From JetStream into a data directory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, anyhow, bail};

use super::survey::{Survey, survey};
use super::{COPYING, Copied, Progress, SEALED, Step, open_source, refuse_running};
use crate::app::nodes;
use crate::config::Config;
use crate::event::Seq;
use crate::log::jetstream;
use crate::log::jetstream::copy::{CopySource, Found, Origin};
use crate::log::known_key::KnownKey;
use crate::log::{self, LocalLog, Log, OpenError};
use crate::state::local::DAMAGED;
use crate::sync::lock;
use crate::task;
use crate::{close, deliver};

/// Copies the log of the stream of the configuration into its data directory.
pub async fn copy_to_local(config: &Config, progress: Progress<'_>) -> anyhow::Result<Copied> {
    let dir = &config.log.dir;
    crate::app::make_data_dir(dir)?;
    // Nobody else has the directory as long as this is kept: this machine's node does not run either.
    let _held = log::take_dir(dir)?;
    let to = format!("{} of node {}", dir.display(), config.node.name);
    let options = jetstream::Options::from_config(config).map_err(|error| anyhow!(error))?;
    let stores = nodes::stores(config).await?;
    let opened = CopySource::open(options, &to).await;
    let (source, origin) = opened.map_err(|error| anyhow!(error))?;
    let is_begun = log::is_copy_begun(dir)?;
    let here = if is_begun { None } else { identity_here(config).await? };
    if source.has_moved && here.as_ref() == Some(&(origin.id.clone(), origin.epoch.clone())) {
        source.close().await;
        return Ok(Copied {
            was_done: true,
            ..Copied::of(&to, &origin)
        });
    }
    refuse_running(&stores).await?;
    // Those beside another log are that log's, and it is refused with them.
    if !is_begun && here.is_none() && deliver::holds_dead_letters(dir)? {
        bail!(
            "there are dead letters in {}, and not of this copy: if they are of the stream's log, start `closehook serve` here once with log.engine = \"jetstream\", which takes them into the stream; otherwise move them away",
            dir.join("dead").display()
        );
    }
    let mut copied = Copied::of(&to, &origin);
    place_events(config, &source, &origin, &mut copied, progress).await?;
    let mut state = stores.state.all().await?;
    state.retain(|(key, _)| key != COPYING && key != DAMAGED && !key.starts_with(SEALED));
    copied.state = state.len() as u64;
    let state = state.into_iter().map(|(key, value)| (key, value.to_vec())).collect();
    // Earlier copies have taken along what is of one machine alone.
    let state = deliver::fetched_state(state, stores.letters.clone()).await?;
    let into = dir.clone();
    task::begin_blocking(move || deliver::restore_state(&into, state)).await??;
    copied.close = close::shared::fetch(dir, &*stores.sealed).await? as u64;
    copied.take(deliver::fetch_dead_letters(dir, stores.letters.clone()).await?);
    refuse_running(&stores).await?;
    source.moved(&origin, &to).await.map_err(|error| anyhow!(error))?;
    source.close().await;
    log::commit_copy(dir)?;
    Ok(copied)
}

/// Id and epoch of the log that the data directory holds; `None`: it holds none.
async fn identity_here(config: &Config) -> anyhow::Result<Option<(String, String)>> {
    match open_source(config).await {
        Ok(log) => Ok(Some((log.id().to_owned(), log.epoch().to_owned()))),
        Err(error) if matches!(error.downcast_ref(), Some(OpenError::Missing(_))) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the log of what is in the stream, and compares it.
async fn place_events(
    config: &Config,
    source: &CopySource,
    origin: &Origin,
    copied: &mut Copied,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    let (found, keys) = read_all(source, origin, progress).await?;
    copied.erased = keys.range(origin.first..).count() as u64;
    copied.known = keys.len() as u64 - copied.erased;
    let (dir, first, text) = (config.log.dir.clone(), origin.first, serde_json::to_string(origin)?);
    let begin = move || log::Placer::begin(&dir, &text, first, keys);
    let placer = task::begin_blocking(begin).await??;
    let next = placer.next();
    copied.resumed_at = (next > first).then(|| next.prev());
    let mut placer = place_all(source, origin, placer, progress).await?;
    let (origin, options) = (origin.clone(), log::Options::from_config(config));
    let last = origin.last;
    let finish = move || -> anyhow::Result<LocalLog> {
        placer.finish(origin.last, &origin.id, &origin.epoch)?;
        Ok(LocalLog::open_unfinished(options)?)
    };
    let log = task::begin_blocking(finish).await??;
    found.compare(&survey(&log, first, last, Step::Comparing, progress).await?)?;
    found.tell(copied);
    Ok(())
}

/// What is in the stream, and the keys of what is not there any more.
async fn read_all(
    source: &CopySource,
    origin: &Origin,
    progress: Progress<'_>,
) -> anyhow::Result<(Survey, BTreeMap<Seq, KnownKey>)> {
    let (mut found, mut keys) = (Survey::default(), BTreeMap::new());
    let each = async |read: Found| {
        read.events.iter().for_each(|event| found.add(event));
        found.lost.extend(&read.lost);
        keys.extend(read.known);
        Ok(())
    };
    scan_stream(source, origin, each, Step::Reading, origin.first, progress).await?;
    Ok((found, keys))
}

/// Puts what is not in place yet there.
async fn place_all(
    source: &CopySource,
    origin: &Origin,
    placer: log::Placer,
    progress: Progress<'_>,
) -> anyhow::Result<log::Placer> {
    let next = placer.next();
    let placer = Arc::new(Mutex::new(placer));
    let each = async |read: Found| {
        let placer = placer.clone();
        let add = move || {
            let mut placer = lock(&placer);
            read.events.iter().try_for_each(|event| placer.add(event))
        };
        Ok(task::begin_blocking(add).await??)
    };
    scan_stream(source, origin, each, Step::Copying, next, progress).await?;
    let placer = Arc::into_inner(placer).context("the copy is still being written")?;
    Ok(placer.into_inner().unwrap_or_else(PoisonError::into_inner))
}

async fn scan_stream(
    source: &CopySource,
    origin: &Origin,
    mut each: impl AsyncFnMut(Found) -> anyhow::Result<()>,
    step: Step,
    from: Seq,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    let mut next = from;
    while next <= origin.last {
        let (read, behind) = source.read(next).await.map_err(|error| anyhow!(error))?;
        if behind <= next {
            bail!("the stream can't be read beyond event {next}");
        }
        next = behind;
        each(read).await?;
        progress(step, next.prev(), origin.last);
    }
    Ok(())
}
