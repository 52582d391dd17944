//! Sinks of each kind of commit that deliver into a [`World`], with its moods, through a [`Gate`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use closehook::sinks::{
    Batch, Commit, Context, Drive, Fingerprint, Limits, Opened, Outcome, Position, Sink, SinkKind, Unavailable,
};

use super::world::{Gate, Mood, Receiver, Row, World};

/// How long a slow receiver takes: a few such calls outlast what may be unsynced.
const SLOWLY: Duration = Duration::from_millis(60);

/// A sink's configuration in the simulation.
#[derive(Debug, Clone)]
pub struct ToWorld {
    pub name: String,
    pub world: Arc<World>,
    pub gate: Arc<Gate>,
    /// Changed by a reload, so that the sink is opened anew.
    pub version: u32,
}

#[async_trait]
impl SinkKind for ToWorld {
    fn drive(&self) -> Drive {
        let commit = self.world.at(&self.name, |receiver| receiver.commit);
        Drive {
            batch: Limits {
                events: 4,
                bytes: 1 << 20,
                wait: Duration::ZERO,
            },
            concurrency: if commit == Commit::Acknowledge { 3 } else { 1 },
            commit,
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint(format!("{} {}", self.name, self.version))
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        self.gate.pass().await;
        self.world.at(&self.name, |receiver| {
            if matches!(receiver.moods.front(), Some(Mood::Unavailable)) {
                receiver.moods.pop_front();
                return Err(Unavailable::new("not now"));
            }
            receiver.opening += 1;
            let mut position = None;
            if receiver.commit == Commit::Checkpoint {
                // As a file: what lies beyond the saved length is cut off, and what is left is whole or was never synced.
                let saved = context.position.as_ref().and_then(|position| position.0.as_u64());
                let len = saved.unwrap_or(0) as usize;
                assert!(len <= receiver.rows.len(), "what was checkpointed is there");
                receiver.rows.truncate(len);
                receiver.is_synced();
                position = Some(Position(len.into()));
            }
            let mark = receiver.mark.clone().filter(|_| receiver.commit == Commit::Transaction);
            let sink = Box::new(OpenedWorld {
                kind: self.clone(),
                opening: receiver.opening,
            });
            Ok(Opened { sink, mark, position })
        })
    }

    async fn probe(&self, _context: Context) -> Result<String, Unavailable> {
        Ok("it is a simulation".into())
    }
}

struct OpenedWorld {
    kind: ToWorld,
    opening: u64,
}

fn rows(batch: &Batch<'_>, outcomes: &[Outcome]) -> Vec<Row> {
    let delivered = batch.deliveries().iter().zip(outcomes);
    delivered
        .filter(|(_, outcome)| **outcome == Outcome::Delivered)
        .map(|(delivery, _)| Row {
            seq: delivery.event.seq,
            origin: delivery.origin.clone(),
            torn: false,
        })
        .collect()
}

impl OpenedWorld {
    fn take(&self, receiver: &mut Receiver, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        if receiver.opening != self.opening && receiver.commit != Commit::Acknowledge {
            return Err(Unavailable::new("another one has opened it since"));
        }
        receiver.begins();
        let reason = || "so it feels".into();
        let mood = receiver.mood();
        let outcome = |seq: u64| match mood {
            Mood::Retry => Outcome::Retry {
                reason: reason(),
                after: None,
            },
            Mood::Reject => Outcome::Reject { reason: reason() },
            Mood::Picky if seq % 2 == 1 => Outcome::Reject { reason: reason() },
            _ => Outcome::Delivered,
        };
        let outcomes: Vec<Outcome> = batch.deliveries().iter().map(|d| outcome(d.event.seq.0)).collect();
        match mood {
            Mood::Unavailable => return Err(Unavailable::new("not now")),
            Mood::Panic => panic!("a sink of the simulation panics, as it was told to"),
            Mood::BadSync => receiver.moods.push_front(Mood::BadSync),
            _ => {}
        }
        receiver.rows.extend(rows(batch, &outcomes));
        if receiver.commit == Commit::Transaction {
            receiver.mark = Some(batch.mark_after(&outcomes));
        }
        // Where each answer stands for itself, a lost one is a delivery that will be repeated.
        if mood == Mood::LostAnswer {
            return Err(Unavailable::new("the answer was lost"));
        }
        Ok(outcomes)
    }
}

#[async_trait]
impl Sink for OpenedWorld {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        self.kind.gate.pass().await;
        let (mood, taken) = self.kind.world.at(&self.kind.name, |receiver| {
            let mood = receiver.moods.front().copied();
            (mood, self.take(receiver, batch))
        });
        if mood == Some(Mood::Slow) {
            tokio::time::sleep(SLOWLY).await;
        }
        self.kind.gate.pass().await;
        taken
    }

    async fn checkpoint(&self) -> Result<Option<Position>, Unavailable> {
        self.kind.gate.pass().await;
        let done = self.kind.world.at(&self.kind.name, |receiver| {
            if receiver.commit != Commit::Checkpoint || receiver.opening != self.opening {
                return Ok(None);
            }
            if receiver.moods.front() == Some(&Mood::BadSync) {
                receiver.moods.pop_front();
                let synced = receiver.synced;
                receiver.rows[synced..].iter_mut().for_each(|row| row.torn = true);
                return Err(Unavailable::new("the disk did not take it"));
            }
            receiver.is_synced();
            Ok(Some(Position(receiver.synced.into())))
        });
        self.kind.gate.pass().await;
        done
    }
}
