//! The delivery engine: one worker per sink, each reading the log at its own durable mark.
//!
//! ```text
//! log ──► `worker` ──► rules ──► `feed` ──► sink ──► delivered | retry (`schedule`) | `letters`
//!             ▲                                          │
//!             └──────────── `mark`: one durable record ◄─┘
//! ```
//!
//! [`Engine`] starts and stops workers, and passes questions and orders on to them; it knows nothing about delivering.
//! A `replay` is one more feed in the same workers, so it shares their limits and never overtakes the sink's breaker.
//!
//! Owned below the data directory: `state/` and `dead/`.

mod arrivals;
mod begun;
mod carry;
mod comparing;
mod dead;
mod driving;
mod engine;
mod fates;
mod feed;
mod finished;
mod floor;
mod jobs;
mod judges;
mod letters;
mod mark;
mod memory;
mod outset;
mod parting;
mod pictured;
mod reading;
mod reload;
mod removed;
mod rendering;
mod replay;
mod replays;
mod retain;
mod schedule;
mod seqs;
mod setback;
mod sharing;
mod starts;
mod states;
mod stopping;
mod stored;
mod trail;
mod types;
mod worker;

#[cfg(test)]
pub(crate) mod tests;

pub use carry::{Carried, carried_value, carry_dead_letters, fetch_dead_letters, fetched_state, holds_dead_letters};
pub use driving::Referral;
pub use engine::{Engine, Options, probe};
pub use letters::is_dead_letters;
pub use rendering::Rendering;
pub use starts::note_begun;
pub use stored::{open_store, restore_state};
pub use types::{
    DeadLetter, EngineError, EventState, Known, Mode, Picture, ReplaySpec, ReplayStatus, RetryProgress, SinkChanges,
    SinkStatus,
};

use mark::JobRecord;
