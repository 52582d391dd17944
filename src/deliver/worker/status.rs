//! What is seen of a worker from outside.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::hanging::shown;
use super::{Handle, Worker};
use crate::config::SinkConfig;
use crate::deliver::letters::Letters;
use crate::deliver::mark::{Record, ReplayRecord};
use crate::deliver::schedule;
use crate::deliver::types::{EventState, SinkStatus};
use crate::event::Seq;
use crate::sync::lock;

/// What everybody may look at.
#[derive(Debug, Clone)]
pub(in crate::deliver) struct View {
    pub status: SinkStatus,
    pub replays: BTreeMap<String, ReplayRecord>,
}

impl Worker<'_> {
    pub(super) fn event_state(&self, seq: Seq) -> EventState {
        if let Ok(Some(letter)) = self.kit.letters.get(seq) {
            return EventState::Dead {
                reason: letter.reason,
                answer: letter.answer,
            };
        }
        let main = &self.lanes.main;
        if let (Some((in_flight, due)), Some(tries)) = (main.stage(seq), main.tries(seq)) {
            return match due {
                _ if in_flight => EventState::InFlight,
                Some(due) => EventState::Retrying {
                    attempts: tries.attempts,
                    due,
                    reason: tries.reason.clone(),
                },
                None => EventState::Waiting,
            };
        }
        passed(&self.record, main.next(), seq)
    }

    /// Why it waits, if it does; one sentence.
    fn waits_for(&self) -> Option<String> {
        let reason = || self.last_error.as_ref().map(|(reason, _)| reason.clone());
        if self.record.paused {
            Some("it is paused".into())
        } else if self.not_before.is_some() {
            reason()
        } else if !self.breaker.is_closed() {
            let reason = reason().unwrap_or_else(|| "it keeps failing".into());
            let again = self.breaker.wake_at().and_then(|at| shown(at, schedule::now()));
            Some(match (again, self.hangs()) {
                (Some(at), _) => format!("{reason}; it is tried again at {at:.0}"),
                (None, Some(hangs)) => hangs,
                (None, None) => reason,
            })
        } else if self.opening {
            Some("it is being opened".into())
        } else if self.progress.settle {
            Some("its position is being saved".into())
        } else {
            self.hangs()
        }
    }

    fn hangs(&self) -> Option<String> {
        let since = self.calls.hangs_since(Instant::now())?;
        Some(format!("it waits for the receiver's answer since {since:.0}"))
    }

    pub(super) fn publish(&mut self) {
        let head = *self.head.borrow();
        let main = &self.lanes.main;
        let lag_events = if self.kit.follow {
            (head.0 + 1).saturating_sub(main.next().0)
        } else {
            0
        };
        let oldest = main.oldest_open().or(self.read_upto.filter(|_| lag_events > 0));
        let lag_seconds = oldest.map_or(0.0, |at| Timestamp::now().duration_since(at).as_secs_f64().max(0.0));
        let last_error = self
            .last_error
            .clone()
            .or_else(|| unmarked(&self.record, self.kit.name()));
        let (last_error, last_error_at) = last_error.unzip();
        let status = SinkStatus {
            cursor: main.cursor(),
            lag_events: lag_events + main.open_len() as u64,
            lag_seconds,
            in_flight: self.lanes.in_flight(),
            retrying: self.lanes.retrying(),
            dead: self.kit.letters.len() as u64,
            lost: self.record.lost,
            buried: self.record.buried,
            delivered: self.kit.delivered.load(Ordering::Relaxed),
            breaker: self.breaker.state().to_owned(),
            paused: self.record.paused,
            waits_for: self.waits_for(),
            last_error,
            last_error_at,
            ..empty_status(&self.kit.config)
        };
        let view = View {
            status,
            replays: self.lanes.replay_records(),
        };
        *lock(&self.kit.view) = view;
    }
}

/// What somebody has to see to at the receiver, and since when.
fn unmarked(record: &Record, sink: &str) -> Option<(String, Timestamp)> {
    let unmarked = record.unmarked.as_ref()?;
    Some((unmarked.words(sink), unmarked.at))
}

/// What became of an event that is not open.
fn passed(record: &Record, next: Seq, seq: Seq) -> EventState {
    if seq >= next {
        EventState::Waiting
    } else if record.begin.is_some_and(|begin| seq < begin) {
        EventState::NotRouted
    } else if record.has_lost(seq) {
        EventState::Lost
    } else {
        EventState::Delivered
    }
}

/// A handle on what is saved of a sink, without a worker behind it.
pub(in crate::deliver) fn look(config: &SinkConfig, record: Record, letters: Letters, head: Seq) -> Handle {
    let (commands, _) = mpsc::channel(1);
    let cursor = record.cursor().unwrap_or_default();
    let open = record.main.as_ref().map_or(0, |main| main.open.len());
    let next = record.main.as_ref().map_or(head.next(), |main| main.next);
    let (last_error, last_error_at) = unmarked(&record, &config.name).unzip();
    let status = SinkStatus {
        cursor,
        lag_events: head.next().0.saturating_sub(next.0) + open as u64,
        retrying: open,
        dead: letters.len() as u64,
        lost: record.lost,
        buried: record.buried,
        paused: record.paused,
        last_error,
        last_error_at,
        ..empty_status(config)
    };
    let view = Arc::new(Mutex::new(View {
        status,
        replays: record.replays,
    }));
    Handle {
        config: config.clone(),
        commands,
        view,
        letters,
    }
}

/// What the saved record says about an event that is for the sink.
pub(in crate::deliver) fn saved_state(record: &Record, letters: &Letters, seq: Seq) -> EventState {
    if let Ok(Some(letter)) = letters.get(seq) {
        return EventState::Dead {
            reason: letter.reason,
            answer: letter.answer,
        };
    }
    let Some(main) = &record.main else {
        return EventState::Waiting;
    };
    match main.open.iter().find(|item| item.seq == seq) {
        Some(item) => match item.due {
            Some(due) => EventState::Retrying {
                attempts: item.tries.attempts,
                due,
                reason: item.tries.reason.clone(),
            },
            None => EventState::Waiting,
        },
        None => passed(record, main.next, seq),
    }
}

/// The status of a sink of which nothing is known yet.
pub(in crate::deliver) fn empty_status(config: &SinkConfig) -> SinkStatus {
    SinkStatus {
        name: config.name.clone(),
        kind: config.kind.clone(),
        cursor: Seq::ZERO,
        lag_events: 0,
        lag_seconds: 0.0,
        in_flight: 0,
        retrying: 0,
        dead: 0,
        lost: 0,
        buried: 0,
        delivered: 0,
        breaker: "closed".into(),
        paused: false,
        waits_for: None,
        last_error: None,
        last_error_at: None,
    }
}
