//! What would be forgotten where a node keeps its log on servers: a log that was this machine's own.

use anyhow::bail;

use super::copy;
use super::nodes::servers;
use super::patience::Why;
use crate::config::Config;
use crate::event::Seq;
use crate::log::{self, LocalLog, Log, OpenError};
use crate::task;

/// Refuses a data directory whose own log nobody has copied, or which has received more since: its events, and what its sinks have still to
/// get of them, would be forgotten.
pub(super) async fn refuse(config: &Config, log: &dyn Log, why: &Why) -> anyhow::Result<()> {
    let dir = &config.log.dir;
    let has_moved = log::moved(dir)?.is_some();
    let Some((id, epoch)) = log::identity(dir)? else {
        return Ok(());
    };
    let is_same = id == log.id();
    let upto = match log::shared_upto(dir) {
        Ok(upto) => upto,
        Err(error @ OpenError::Io { .. }) => return Err(error.into()),
        // What is wrong with it otherwise keeps the log from being opened.
        Err(_) => None,
    };
    if has_moved && upto.is_none() {
        return Ok(());
    }
    // An older closehook copied all there was and did not note up to where. What has not been reopened since has received nothing since, and
    // what of it the stream does not have has left it.
    let is_old_copy = is_same && upto.is_none() && epoch == log.epoch();
    let (stream, shown) = (servers(config).stream, dir.display());
    let options = log::Options {
        read_only: true,
        ..log::Options::from_config(config)
    };
    let opened = task::begin_blocking(move || LocalLog::open(options)).await?;
    let holds = match opened {
        _ if is_old_copy => None,
        Ok(own) if *own.head().borrow() <= upto.filter(|_| is_same || has_moved).unwrap_or(Seq::ZERO) => None,
        Ok(own) if is_same => {
            let what =
                format!("what {shown} has received since it was copied can't be looked for in the stream {stream}");
            let look = || async {
                let upto = match upto {
                    Some(upto) => upto,
                    None => copy::parting(&own, log).await?,
                };
                copy::only_here(&own, log, upto).await
            };
            let rest = why.patiently(&what, look).await?;
            (rest.events > 0).then(|| {
                let rest = rest.shown();
                format!("a copy of the log of the stream {stream} which has gone on by itself: {rest} that it has received since")
            })
        }
        Ok(own) => Some(format!("a log of its own, up to event {}", *own.head().borrow())),
        Err(error) => Some(format!("a log of its own, which can't be looked at ({error})")),
    };
    match holds {
        Some(holds) => bail!(
            "{shown} holds {holds}, which was not copied into the stream {stream}: its events, and what its sinks have still to get, would be \
             forgotten. Run `closehook log copy --to jetstream` first, which takes all of it along; or, where nobody needs it any more, move \
             closehook.json, gaps (gaps.json), copied.json, log, keys, state and dead out of {shown}"
        ),
        None if is_same && !has_moved => tracing::warn!(
            "{shown} holds a copy of the log of the stream {stream}, and nothing of it is used: move closehook.json, gaps (gaps.json), log, keys, state and dead away"
        ),
        None => {}
    }
    Ok(())
}
