//! What a log holds, read from end to end: the same of both logs, or the copy is none.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::bail;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{Copied, Progress, Step};
use crate::event::{Event, Kind, Seq};
use crate::log::{Batch, Log, ReadError, Take};

/// Events that are read at a time, and bytes of them.
pub(super) const BATCH: (usize, usize) = (1024, 4 << 20);

/// What a log holds, as it was read from end to end.
#[derive(Default)]
pub(super) struct Survey {
    pub events: u64,
    pub quarantined: u64,
    pub bytes: u64,
    pub erased: BTreeMap<Seq, Timestamp>,
    pub lost: Vec<(Seq, Seq)>,
    digest: Sha256,
}

impl Survey {
    pub fn add(&mut self, event: &Event) {
        if event.kind == Kind::Erased {
            self.erased.insert(event.seq, event.received_at);
            return;
        }
        self.events += 1;
        self.quarantined += u64::from(event.kind == Kind::Quarantined);
        self.bytes += event.body.len() as u64;
        let signature = event.signature.as_ref();
        let (at, hash) = signature.map_or(("", ""), |signature| (&signature.timestamp, &signature.hash));
        let head = format!(
            "{} {} {} {:?} {} {}\n{at}\n{hash}\n{}\n",
            event.seq,
            event.received_at.as_microsecond(),
            event.source,
            event.kind,
            event.held,
            signature.is_some(),
            event.body.len()
        );
        self.digest.update(head.as_bytes());
        self.digest.update(&event.body);
    }

    pub fn sha256(&self) -> String {
        hex::encode(self.digest.clone().finalize())
    }

    /// Refuses a copy in which something else was read.
    pub fn compare(&self, there: &Survey) -> anyhow::Result<()> {
        if (there.events, there.bytes, there.sha256()) == (self.events, self.bytes, self.sha256()) {
            return Ok(());
        }
        bail!(
            "the copy is not what was copied: {} events with {} bytes are there, and {} with {} were copied; remove it and begin anew",
            there.events,
            there.bytes,
            self.events,
            self.bytes
        )
    }

    /// Says what it was.
    pub fn tell(self, copied: &mut Copied) {
        copied.events = self.events;
        copied.quarantined = self.quarantined;
        copied.bytes = self.bytes;
        copied.sha256 = self.sha256();
        copied.damaged = self.lost;
    }
}

/// The next events of a log.
pub(super) async fn some(log: &dyn Log, from: Seq) -> Result<Batch, ReadError> {
    let take = Take {
        events: BATCH.0,
        bytes: BATCH.1,
        narrow: None,
    };
    log.read(from, take).await
}

/// Reads a log up to a Seq, in order, from `from` on.
pub(super) async fn scan(
    log: &dyn Log,
    from: Seq,
    last: Seq,
    mut each: impl AsyncFnMut(Vec<Arc<Event>>, Vec<(Seq, Seq)>, Seq) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut next = from;
    while next <= last {
        let batch = some(log, next).await?;
        if batch.next <= next {
            bail!("the log can't be read beyond event {next}");
        }
        next = batch.next;
        each(batch.events, batch.lost, next).await?;
    }
    Ok(())
}

pub(super) async fn survey(
    log: &dyn Log,
    from: Seq,
    last: Seq,
    step: Step,
    progress: Progress<'_>,
) -> anyhow::Result<Survey> {
    let mut survey = Survey::default();
    scan(log, from, last, async |events, lost, next| {
        for event in &events {
            survey.add(event);
        }
        survey.lost.extend(lost);
        progress(step, next.prev(), last);
        Ok(())
    })
    .await?;
    Ok(survey)
}
