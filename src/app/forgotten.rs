//! What would be forgotten where a node keeps its log on servers: a log that was this machine's own.

use anyhow::bail;

use super::copy;
use super::nodes::servers;
use super::patience::Why;
use crate::config::Config;
use crate::event::Seq;
use crate::log::{self, LocalLog, Log};

/// Refuses a data directory whose own log nobody has copied, or which has received more since: its events, and what its sinks have still to
/// get of them, would be forgotten.
pub(super) async fn refuse(config: &Config, log: &dyn Log, why: &Why) -> anyhow::Result<()> {
    let dir = &config.log.dir;
    let has_moved = log::moved(dir)?.is_some();
    let Some((id, _)) = log::identity(dir)? else {
        return Ok(());
    };
    let is_same = id == log.id();
    // One that did not note up to where copied all there was, and what may have come since is not known; its events may have left the stream.
    let upto = log::shared_upto(dir).unwrap_or_default();
    if has_moved && upto.is_none() {
        return Ok(());
    }
    let (stream, shown) = (servers(config).stream, dir.display());
    let options = log::Options {
        read_only: true,
        ..log::Options::from_config(config)
    };
    let opened = tokio::task::spawn_blocking(move || LocalLog::open(options)).await?;
    let holds = match opened {
        _ if is_same && upto.is_none() => None,
        Ok(own) if *own.head().borrow() <= upto.filter(|_| is_same || has_moved).unwrap_or(Seq::ZERO) => None,
        Ok(own) if is_same => {
            let what =
                format!("what {shown} has received since it was copied can't be looked for in the stream {stream}");
            let look = || async { copy::only_here(&own, log, upto.unwrap_or(Seq::ZERO)).await };
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
             closehook.json, gaps.json, copied.json, log, keys, state and dead out of {shown}"
        ),
        None if is_same && !has_moved => tracing::warn!(
            "{shown} holds a copy of the log of the stream {stream}, and nothing of it is used: move closehook.json, gaps.json, log, keys, state and dead away"
        ),
        None => {}
    }
    Ok(())
}
