//! Marks that do not fit the log which nodes share: those of another log, and those that have seen more than the log has.
//!
//! Both come about when streams are put back or made anew one by one: a mark is nothing but a Seq, and would pass what comes at it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::mark::Record;
use super::reading::{end_of, within};
use crate::event::Seq;
use crate::log::{Log, ReadError};

/// A server that has just become the log's first may not know all of it yet. So often it is asked, and so long is waited in between.
const ASKED: u32 = 12;
const REST: Duration = Duration::from_millis(250);

/// What a log needs to go on behind something, or to say that it can't.
const SKIPPED_WITHIN: Duration = Duration::from_secs(120);

/// Nodes' clocks are no further apart, and no mark is saved later, than this.
const APART: SignedDuration = SignedDuration::from_mins(10);

/// What a mark has seen.
pub(super) fn seen(record: &Record) -> Seq {
    record.main.as_ref().map_or(Seq::ZERO, |main| main.next.prev())
}

/// Whether a log that ends with `head` can have given out a Seq, and has lost it.
pub(super) fn is_possible(log: &dyn Log, head: Seq, seq: Seq) -> bool {
    seq.0.saturating_sub(head.0) <= log.leap_max()
}

/// Where the log ends, if it ends before this Seq for good.
pub(super) async fn end_before(log: &dyn Log, seen: Seq) -> Result<Option<Seq>, ReadError> {
    for round in 0..ASKED {
        if seen <= *log.head().borrow() {
            return Ok(None);
        }
        let end = end_of(log).await?;
        if seen < end {
            return Ok(None);
        }
        if round + 1 == ASKED {
            return Ok(Some(end));
        }
        tokio::time::sleep(REST).await;
    }
    Ok(None)
}

/// Makes a mark of another log one of this. `true`: it was one.
pub(super) fn adopt(log: &dyn Log, sink: &str, record: &mut Record) -> bool {
    let is_other = record.log_id.as_deref().is_some_and(|id| id != log.id());
    if is_other {
        tracing::error!(
            sink,
            "the sink's position is of another log than the one that is here now: it begins at the oldest event kept"
        );
        let main = record.main.is_some().then(|| log.first());
        *record = Record {
            paused: record.paused,
            position: record.position.take(),
            detached_at: record.detached_at,
            fence: record.fence,
            begun_anew: main.map(|_| Timestamp::now()),
            letters_lost: record.letters_lost,
            log_id: Some(log.id().to_owned()),
            ..Record::default()
        };
        if let Some(first) = main {
            record.begin_at(first);
        }
    }
    is_other
}

/// The first event that came after a mark was saved; the oldest kept where it does not say when that was.
pub(super) async fn came_since(log: &dyn Log, record: &Record) -> Result<Seq, ReadError> {
    match record.saved_at.and_then(|at| at.checked_sub(APART).ok()) {
        Some(since) => within(log.seq_at(since)).await,
        None => Ok(log.first()),
    }
}

/// Takes a mark back that has seen more than the log has: to what came after it was saved. What it had seen by then, the log has lost; of
/// what has come since, it had seen nothing, whatever its Seq. Whoever drives the sink has the log go on behind what it had seen, when that is
/// durable.
pub(super) async fn take_back(log: &dyn Log, sink: &str, record: &mut Record, end: Seq) -> Result<(), ReadError> {
    let new = came_since(log, record).await?;
    let (head, seen) = (end.prev(), seen(record));
    if is_possible(log, head, seen) {
        tracing::error!(
            sink,
            head = head.0,
            seen = seen.0,
            "the sink has seen more than the log has, which was set back: what came since may repeat, and what the log has lost is not here"
        );
        record.unskipped = record.unskipped.max(Some(seen));
    } else {
        tracing::error!(
            sink,
            head = head.0,
            "the sink's position is that of event {seen}, which this log can't have given out: it is taken back, and what came since it was saved \
             may repeat"
        );
    }
    let Some(main) = &mut record.main else { return Ok(()) };
    if new < end {
        main.next = main.next.min(new);
        let next = main.next;
        main.open.retain(|item| item.seq < next);
    }
    // Whatever Seqs are given out next, it waits there for what comes.
    main.next = main.next.min(end);
    record.fates.none_outdated_from(end);
    Ok(())
}

/// Seqs up to there are not given out again; an error says why they may be, and is worth another try.
pub(super) async fn skip_past(log: &dyn Log, seen: Seq) -> Result<(), String> {
    let skipped = tokio::time::timeout(SKIPPED_WITHIN, log.skip_past(seen)).await;
    let why = match skipped {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it does not answer".to_owned(),
    };
    Err(format!(
        "the log can't go on behind event {seen}, which it has lost and the sink has seen: {why}"
    ))
}

/// Has the record of a sink that begins fit the log. `true`: it has to be saved. An error says why that can't be known now.
pub(super) async fn fit(log: &dyn Log, sink: &str, record: &mut Record) -> Result<bool, String> {
    let text = |error: ReadError| format!("the log does not say how far it is: {error}");
    let mut is_changed = adopt(log, sink, record);
    if let Some(end) = end_before(log, seen(record)).await.map_err(text)? {
        take_back(log, sink, record, end).await.map_err(text)?;
        is_changed = true;
    }
    if record.log_id.is_none() {
        record.log_id = Some(log.id().to_owned());
        is_changed = true;
    }
    Ok(is_changed)
}
