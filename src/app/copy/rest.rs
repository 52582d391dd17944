//! What a log on this machine has received since it was copied into a stream: it is in nobody's log but this one.

use std::sync::Arc;

use anyhow::{anyhow, bail};
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::Serialize;
use std::time::Duration;

use super::survey::{BATCH, scan};
use super::{Progress, Step};
use crate::event::{Event, Kind, Seq};
use crate::log::{Incoming, LocalLog, Log, ReadError, TakeBack};

/// So many keys are asked for side by side.
const ASKED_TOGETHER: usize = 32;

/// Of more than these it is not counted how many they are.
const COUNTED_MAX: u64 = 10_000;

/// Events that are only here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Rest {
    /// How many; `COUNTED_MAX` where there are more perhaps.
    pub events: u64,
    /// The first one.
    pub first: Seq,
    /// The last one that was counted.
    pub last: Seq,
}

impl Rest {
    fn add(&mut self, seq: Seq) {
        if self.events == 0 {
            self.first = seq;
        }
        self.events += 1;
        self.last = seq;
    }

    /// How many, and which.
    pub fn shown(&self) -> String {
        let (count, first, last) = (self.events, self.first, self.last);
        match count {
            1 => format!("1 event (Seq {first})"),
            COUNTED_MAX.. => format!("at least {count} events (from Seq {first} on)"),
            _ => format!("{count} events (Seq {first} to {last})"),
        }
    }
}

/// The events behind a Seq that another log does not know, by whatever Seq.
pub async fn only_here(own: &LocalLog, there: &dyn Log, upto: Seq) -> Result<Rest, ReadError> {
    let (last, mut rest) = (*own.head().borrow(), Rest::default());
    let mut next = upto.next().max(own.first());
    while next <= last && rest.events < COUNTED_MAX {
        let batch = super::survey::some(own, next).await?;
        if batch.next <= next {
            return Err(ReadError(format!("the log here can't be read beyond event {next}")));
        }
        next = batch.next;
        let asked = batch.events.into_iter().filter(|event| event.kind != Kind::Erased);
        let asked = asked.map(async |event: Arc<Event>| {
            let known = there.find_same(&event).await?;
            Ok::<_, ReadError>((event.seq, known.is_some()))
        });
        let found: Vec<(Seq, bool)> = futures::stream::iter(asked)
            .buffered(ASKED_TOGETHER)
            .try_collect()
            .await?;
        found
            .into_iter()
            .filter(|(_, is_known)| !is_known)
            .for_each(|(seq, _)| rest.add(seq));
    }
    Ok(rest)
}

/// Up to where two logs are the same one, which is not noted: the newest event that both have at the same Seq. What is before the first one
/// there has expired there, and must not come again.
pub async fn parting(own: &LocalLog, there: &dyn Log) -> Result<Seq, ReadError> {
    let first = own.first().max(there.first());
    let mut before = own.head().borrow().next();
    while before > first {
        let take = TakeBack {
            from: first,
            events: BATCH.0,
            bytes: BATCH.1,
            within: Duration::from_secs(5),
            narrow: None,
            since: None,
            until: None,
        };
        let back = Log::read_back(own, before, take).await?;
        for event in back.events.iter().filter(|event| event.kind != Kind::Erased) {
            if there.find_same(event).await? == Some(event.seq) {
                return Ok(event.seq);
            }
        }
        if back.reached >= before {
            break;
        }
        before = back.reached;
    }
    Ok(there.first().prev())
}

/// Stores what is behind a Seq in another log, which goes on as it is: under new Seqs, to be delivered from there. What it knows already is
/// passed over, so that this goes on where it was. Gives how many are new there.
pub(super) async fn append(own: &LocalLog, there: &dyn Log, upto: Seq, progress: Progress<'_>) -> anyhow::Result<u64> {
    let (last, mut count) = (*own.head().borrow(), 0);
    scan(own, upto.next().max(own.first()), last, async |events, _, next| {
        let events = events.into_iter().filter(|event| event.kind != Kind::Erased);
        for stored in there
            .append_in_order(events.map(|event| incoming(&event)).collect())
            .await
        {
            match stored {
                Ok(appended) => count += u64::from(appended.is_new()),
                Err(error) => bail!("the events that are only here can't be stored there: {error}"),
            }
        }
        progress(Step::Copying, next.prev(), last);
        Ok(())
    })
    .await?;
    // What was acknowledged is there; whether that is all of it is looked at.
    let left = only_here(own, there, upto).await.map_err(|error| anyhow!(error))?;
    if left.events > 0 {
        bail!("{} are only here still: run it again", left.shown());
    }
    Ok(count)
}

fn incoming(event: &Event) -> Incoming {
    let received_at: Timestamp = event.received_at;
    Incoming {
        held: event.held,
        partial: event.kind == Kind::Partial,
        ..Incoming::new(event.body.clone(), received_at, event.source, event.signature.clone())
    }
}
