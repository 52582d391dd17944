//! Finding out how everything does, for [`Show`].

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use futures::future::join4;
use jiff::Timestamp;
use tokio::time::{Instant, timeout, timeout_at};

use super::answers::{Out, Refusal, text};
use super::status::{Disk, Show, Status};
use super::walk::look_back;
use super::{Facade, sinks, troubles};
use crate::close::{CloseStatus, DamagedFile};
use crate::event::{Event, Seq};
use crate::log::{Stats, space};
use crate::node;
use crate::sync::OneAtATime;

/// Among so many of the newest events the last delivery is looked for that came before the daemon started.
const DELIVERIES_BACK: u64 = 256;

/// Who looks how everything does waits no longer for what has to be read for it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(4);

impl Show {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Status>) -> Result<(), Refusal> {
        let now = Timestamp::now();
        let running = on.facts.running;
        let ready = if running {
            on.log.ready().map_err(text)
        } else {
            Err("no daemon is running".to_owned())
        };
        // What is not said in time is left out: the rest of the picture is worth having at once.
        let (last_delivery_at, (removed_sinks, removed_sinks_damaged, unread), disk, damaged) = join4(
            timeout(ANSWERS_WITHIN, last_delivery(on)),
            removed(on),
            timeout(ANSWERS_WITHIN, disk(on)),
            timeout(ANSWERS_WITHIN, on.account.damaged()),
        )
        .await;
        let damaged = damaged.unwrap_or_else(|_| {
            let why = format!("it was not read within {} s", ANSWERS_WITHIN.as_secs());
            vec![DamagedFile::unread(&why)]
        });
        let mut status = Status {
            well: false,
            troubles: Vec::new(),
            daemon: on.facts.clone(),
            ready: ready.is_ok(),
            not_ready_because: ready.err(),
            keys: on.receiving.keys(),
            last_delivery_at: last_delivery_at.unwrap_or_default(),
            received: on.receiving.received(),
            clock_offset_seconds: on.account.clock_offset_seconds(),
            certificate: on.receiving.certificate(),
            log: on.log.stats(),
            stream: on.log.servers(),
            retention: on.retention.as_ref().map(|retention| retention.standing()),
            disk: disk.unwrap_or_default(),
            sinks: sinks::shown(on).await,
            nodes: on.engine.nodes(),
            removed_sinks,
            removed_sinks_unread: unread,
            removed_sinks_damaged,
            stranded: on.engine.stranded(),
            rules: on.engine.rules().names(),
            close: CloseStatus {
                looked_after_by: on.others.as_ref().and_then(|others| others.holder(node::CLOSE)),
                damaged,
                ..on.account.status()
            },
        };
        if let Some(claim) = &mut status.close.complete {
            claim.kept_from = kept_from(&status.log).filter(|kept| *kept > claim.complete.from);
        }
        status.troubles = troubles::of(&status, now);
        status.well = status.troubles.is_empty();
        out.say(&status).await
    }
}

/// The removed sinks, what is wrong with the dead letters of which, and why that is not all. Positions are listed once for both.
async fn removed(on: &Facade) -> (Vec<String>, BTreeMap<String, String>, Option<Refusal>) {
    let until = Instant::now() + ANSWERS_WITHIN;
    let late = |_| format!("they were not read within {} s", ANSWERS_WITHIN.as_secs());
    let kept = timeout_at(until, on.engine.kept()).await.map_err(late);
    let kept = match kept.and_then(|kept| kept.map_err(text)) {
        Ok(kept) => kept,
        Err(why) => return (Vec::new(), BTreeMap::new(), Some(why)),
    };
    let names = on.engine.detached(&kept).into_iter().cloned().collect();
    match timeout_at(until, on.engine.damaged_removed(&kept)).await.map_err(late) {
        Ok(damaged) => (names, damaged, None),
        Err(why) => (names, BTreeMap::new(), Some(why)),
    }
}

/// From when on the log has everything that it ever had: what happened then, and later, came later still. `None`: nothing has left it.
pub(super) fn kept_from(stats: &Stats) -> Option<Timestamp> {
    stats.oldest_at.filter(|_| stats.first > Seq(1))
}

/// When the last delivery came that is known of.
async fn last_delivery(on: &Facade) -> Option<Timestamp> {
    if let Some(at) = on.receiving.received().and_then(|received| received.last_delivery_at) {
        return Some(at);
    }
    let mut newest = None;
    let see = |event: &Event| {
        newest = newest.max(event.delivered_at());
    };
    look_back(on, DELIVERIES_BACK, see).await.ok()?;
    newest
}

async fn disk(on: &Facade) -> Option<Disk> {
    static LOOKING: LazyLock<OneAtATime> = LazyLock::new(OneAtATime::default);
    let dir = on.facts.dir.clone();
    let space = LOOKING.run(move || space::of(&dir)).await.ok()?.ok()?;
    Some(Disk {
        free_bytes: space.free,
        total_bytes: space.total,
    })
}
