//! What became of an event, as people ask for it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::oneshot;

use super::engine::Engine;
use super::finished::{Finished, dropped_given};
use super::judges;
use super::letters::{Letters, is_gone, is_of};
use super::mark::record_key;
use super::reading::aside;
use super::replay::is_superseded;
use super::types::EventState;
use super::worker::{self, Command};
use crate::event::{Event, Kind, Seq};
use crate::framefile::FrameError;
use crate::sorted;
use crate::sync::lock;

/// A worker that does not answer within this is busy with something else; what is saved answers instead.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

impl Engine {
    /// What became of an event, at every sink. What is not known is said to be so.
    pub async fn event_states(&self, event: &Event) -> BTreeMap<String, EventState> {
        let at = async |name: String| {
            let state = self.event_state(&name, event).await;
            let state = self.without_what_is_secret_now(&name, state).await;
            (name, state)
        };
        // Side by side: one that is busy keeps no other from answering.
        let states = join_all(self.driven_sinks().into_iter().map(at)).await;
        sorted::map(states)
    }

    /// The sinks there are workers for.
    pub fn driven_sinks(&self) -> Vec<String> {
        self.workers().by_sink.keys().cloned().collect()
    }

    /// What a dead letter says was kept as it was cleaned then.
    async fn without_what_is_secret_now(&self, sink: &str, state: EventState) -> EventState {
        let EventState::Dead { reason, answer } = state else {
            return state;
        };
        let (engine, name) = (self.clone(), sink.to_owned());
        let hider = super::reading::aside(move || engine.hider(&name)).await;
        match hider {
            Ok(Some(hide)) => EventState::Dead {
                reason: hide(&reason),
                answer: answer.as_deref().map(hide),
            },
            Ok(None) => EventState::Dead { reason, answer },
            // Said by nobody rather than with a secret in it.
            Err(error) => EventState::Dead {
                reason: format!("why can't be shown: {error}"),
                answer: None,
            },
        }
    }

    async fn event_state(&self, sink: &str, event: &Event) -> EventState {
        if event.kind == Kind::Quarantined {
            return EventState::NotRouted;
        }
        let known = self.state_at(sink, event.seq).await;
        if event.kind == Kind::Erased {
            // What else was before it was erased is not known any more.
            return match known {
                Finished::Is(EventState::InFlight) => EventState::InFlight,
                _ => EventState::Erased,
            };
        }
        let state = match known {
            // The rules of now judge what waits.
            Finished::Is(EventState::Waiting) if self.rules().route(sink, event).is_none() => EventState::NotRouted,
            Finished::Is(state) => state,
            Finished::Given => EventState::Waiting,
            Finished::Dead => self.dead_state(sink, event).await,
            Finished::JudgedBy { rules, secured, sure } => match self.judged(sink, &rules, event).await {
                EventState::Delivered if !secured => EventState::InFlight,
                EventState::Delivered => self.delivered_unless_a_letter_is_lost(sink, sure),
                state => state,
            },
        };
        if state == EventState::NotRouted
            && let Some(dropped) = dropped_given(&self.letters_of(sink), event.seq, &self.givers_of(sink))
        {
            return dropped;
        }
        if event.kind == Kind::Partial && state == EventState::NotRouted {
            return match is_superseded(&*self.inner.log, event).await {
                Ok(true) => EventState::Superseded,
                Ok(false) => EventState::Held,
                Err(error) => EventState::unknown(&error.to_string()),
            };
        }
        state
    }

    /// The letters of the sinks that give this one what they give up, as they are configured.
    fn givers_of(&self, sink: &str) -> Vec<Letters> {
        let configured = lock(&self.inner.sinks);
        let givers = configured
            .iter()
            .filter(|config| config.dead_to.as_deref() == Some(sink));
        let givers: Vec<String> = givers.map(|config| config.name.clone()).collect();
        drop(configured);
        givers.iter().map(|giver| self.letters_of(giver)).collect()
    }

    /// No letter of the event can be read. Where damage may have taken it, or letters can't be read, that does not say that it was delivered.
    fn delivered_unless_a_letter_is_lost(&self, sink: &str, sure: bool) -> EventState {
        match self.letters_of(sink).unread() {
            None if sure => EventState::Delivered,
            None => EventState::unknown("delivered, or a dead letter that was lost to damage"),
            Some(why) => EventState::unknown(&format!("delivered, or a dead letter that can't be read now: {why}")),
        }
    }

    /// The sink is finished with the event, and these rules said whether it was to have it.
    async fn judged(&self, sink: &str, digest: &str, event: &Event) -> EventState {
        let now = self.rules();
        let wanted = if now.source(sink).digest == digest {
            Ok(now.route(sink, event).is_some())
        } else {
            judges::wanted_by(&*self.inner.store, digest, event).await
        };
        match wanted {
            Ok(true) => EventState::Delivered,
            Ok(false) => EventState::NotRouted,
            Err(why) => EventState::unknown(&format!("delivered, or not wanted by the rules of then: {why}")),
        }
    }

    /// Why an event is dead, as its letter says.
    async fn dead_state(&self, sink: &str, event: &Event) -> EventState {
        let (letters, seq) = (self.letters_of(sink), event.seq);
        let reason = match soon(aside(move || letters.get(seq))).await {
            Ok(Ok(Some(letter))) if !is_of(event, &letter.id) => {
                return EventState::unknown(
                    "its Seq has a dead letter of another event, which the log has lost: whether the sink has this one is not known",
                );
            }
            Ok(Ok(Some(letter))) => {
                return EventState::Dead {
                    reason: letter.reason,
                    answer: letter.answer,
                };
            }
            Ok(Ok(None)) => return EventState::unknown("it was a dead letter until a moment ago: ask again"),
            Ok(Err(error)) if is_gone(&error) => format!("its dead letter can't be read any more: {error}"),
            Ok(Err(error)) => format!("its dead letter can't be read now: {error}"),
            Err(why) => format!("its dead letter can't be read now: {why}"),
        };
        EventState::Dead { reason, answer: None }
    }

    /// As the worker knows it, or as it is saved.
    async fn state_at(&self, sink: &str, seq: Seq) -> Finished {
        if self.inner.desk.is_some() {
            // What other nodes have written is known then. Where that can't be read now, what is known here has to do.
            let letters = self.letters_of(sink);
            let _ = soon(aside(move || letters.read())).await;
        }
        let (answer, state) = oneshot::channel();
        if self.inner.mode.drives()
            && let Ok(worker) = self.worker(sink)
            && worker.commands.try_send(Command::EventState(seq, answer)).is_ok()
            && let Ok(Ok(state)) = tokio::time::timeout(ANSWER_WITHIN, state).await
        {
            return state;
        }
        let unknown = |why: String| Finished::Is(EventState::unknown(&why));
        let mut record = match self.record(&record_key(sink)).await {
            Ok(record) => record.map(|(record, _)| record).unwrap_or_default(),
            Err(error) => return unknown(format!("the sink's position can't be read now: {error}")),
        };
        let letters = self.letters_of(sink);
        let read = letters.clone();
        let compare = move || {
            read.read()?;
            record.compare_letters(&read);
            read.note_lost_upto(record.letters_lost_upto);
            Ok::<_, FrameError>(record)
        };
        let compared = aside(compare).await;
        match compared.and_then(|compared| compared.map_err(|error| error.to_string())) {
            Ok(record) => worker::saved_state(&record, &letters, seq),
            Err(error) => unknown(format!("the sink's dead letters can't be read now: {error}")),
        }
    }
}

/// What is read comes soon, or whoever asks is told that it does not.
async fn soon<T>(read: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let read = tokio::time::timeout(ANSWER_WITHIN, read).await;
    read.unwrap_or_else(|_| Err("they do not answer".into()))
}
