//! Close's side of the wire: the subscriptions that deliver to us, their health, and the events that never came.
//!
//! ```text
//! rules ──► `plan` ──► `apply` ──► subscriptions at Close ──► deliveries ──► event log
//!                                        ▲                                      ▲
//!                          `health` ────┘        Close's event log ──► `walk` ─┴─ `compare`, `backfill`
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
mod api;
mod care;
mod chronicle;
mod completeness;
mod connection;
mod damaged;
mod fields;
mod files;
mod noted;
mod noting;
mod organization;
mod seams;
mod seen;
pub mod shared;
mod status;
mod store;
mod subscriptions;
#[cfg(test)]
mod unanswered;

pub use account::{Account, Policy, Probed, preview, probe, probe_all};
pub use api::error::Error;
pub use api::identity::Organization;
pub use api::setbacks::{Setback, Setbacks};
pub use api::subscriptions::{EventSpec, Subscription};
pub use care::{SETTLED_WITHIN, follow_fields, follow_shared, supervise};
pub use chronicle::Chronicle;
pub use completeness::marks::{Ask, BackfillJob, Complete, Counts, Covered, JobState, Spec, Withheld};
pub use completeness::past::{Past, PastKind};
pub use damaged::DamagedFile;
pub use fields::{FieldsStatus, names_on_disk};
pub use seams::{Seams, StepHook, TimeSource};
pub use seen::{Condition, DeliverySilence, FoundSubscription};
pub use shared::Shared;
pub use status::{BackfillStatus, Claim, CloseStatus, Held, Rotating, Vitals};
pub use subscriptions::apply::{Applied, NewByHand};
pub use subscriptions::ownership::Standing;
pub use subscriptions::plan::{PlanStep, SubscriptionPlan};
pub use subscriptions::scope::Scope;

pub(crate) use damaged::damaged_on_disk;
pub(crate) use store::{has_live_key, signature_keys};
