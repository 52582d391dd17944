//! Close's side of the wire: the subscriptions that deliver to us, their health, and the events that never came.
//!
//! ```text
//! rules ──► `plan` ──► `apply` ──► subscriptions at Close ──► deliveries ──► event log
//!                                        ▲                                      ▲
//!                          `health` ────┘        Close's event log ──► `walk` ─┴─ `reconcile`, `backfill`
//! ```
//!
//! A receiver that only waits loses whatever Close gives up on: after three days of failures or 100,000 queued events Close
//! pauses the subscription and clears its queue. So the daemon looks after both ends: [`Account`] makes the subscription and
//! keeps it alive, and compares the log with Close's own, which goes back 30 days. What it claims for it, "complete up to T",
//! is: the latest revision of every event in scope that Close's log had from `from` to T, and every revision that was
//! delivered.
//!
//! Nothing here is in the way of receiving or delivering: if Close can't be reached, it is tried again later.
//!
//! Owned below the data directory: `close/` (see `store`).

mod account;
mod apply;
mod backfill;
mod budget;
mod client;
mod error;
mod health;
mod heard;
mod oauth;
mod plan;
mod reconcile;
mod room;
mod store;
mod subscriptions;
mod walk;

pub use account::{Account, Health, Policy, preview, probe, probe_with_clock};
pub use apply::{Applied, NewByHand};
pub use backfill::{Ask, Counts, Job, JobState, Spec};
pub use error::Error;
pub use heard::Heard;
pub use plan::{Plan, Scope, Standing, Step};
pub use reconcile::supervise;
pub use store::Complete;
pub use subscriptions::{EventSpec, Subscription};

pub(crate) use store::signature_keys;
