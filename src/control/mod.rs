//! Questions, orders and deeds: everything a command or a page can want, answered in one place, by the daemon over its socket or by
//! the command itself on the data directory when no daemon runs.
//!
//! ```text
//! cli, a page ──► Request (an Ask, an Order or a Deed) ──► Facade ──► log, engine, account
//!                                     typed answers ◄──────┘
//! ```
//!
//! A request is a struct with a type of answers ([`Question`]); the table of all of them is in [`request`], each topic in a file of
//! its own. Whoever may only look is given [`Facade::ask`], whoever may act on a page [`Facade::order`] beside it, and only who has
//! the data directory [`Facade::answer`]. What is reached over HTTP holds a [`Window`], which has no way to deeds.
//!
//! Nothing here knows HTTP, or how what is told came to be known: certificates, keys and counts come in as plain facts ([`facts`]).

pub mod agreed;
pub mod ahead;
pub mod answers;
mod back;
pub mod backup;
mod bench;
pub mod browse;
pub mod close;
pub mod configured;
pub mod dead;
pub mod deployed;
pub mod erase;
pub mod events;
pub mod facts;
pub mod groups;
pub mod history;
mod looked;
mod overview;
mod passing;
mod pick;
pub mod picture;
mod reasons;
pub mod reload;
pub mod replay;
pub mod request;
pub mod sent;
pub mod sign;
pub mod sign_in;
pub mod sinks;
pub mod status;
#[cfg(test)]
mod tests;
pub mod transfer;
pub mod tries;
mod troubles;
mod walk;
pub mod whole;
pub mod window;

use std::sync::Arc;

use tokio::sync::mpsc::Sender;

pub use answers::{Answer, Answers, Done, Refusal};
pub use bench::Bench;
pub use facts::{Certificate, Facts, Receiving, Signer};
pub use pick::Pick;
pub use reload::{ReloadOrder, Reloaded};
pub use request::{Ask, Deed, Order, Question, Request};
pub use sign_in::Links;
pub use window::{Told, Window};

use crate::close::Account;
use crate::deliver::Engine;
use crate::log::Log;
use crate::node::Leases;
use crate::retention::Retention;
use crate::telemetry::history::History;

/// What everything is answered from.
#[derive(Debug, Clone)]
pub struct Facade {
    /// The log.
    pub log: Arc<dyn Log>,
    /// The sinks.
    pub engine: Engine,
    /// What is in front of the log.
    pub receiving: Arc<dyn Receiving>,
    /// Close's side.
    pub account: Arc<Account>,
    /// What decides how long the log keeps events; `None` without a daemon.
    pub retention: Option<Arc<Retention>>,
    /// The way to the daemon's main loop; `None` without a daemon.
    pub reload: Option<Sender<ReloadOrder>>,
    /// The configuration in force; `None` without a daemon.
    pub configured: Option<Arc<configured::InForce>>,
    /// Who makes links to the operator's page; `None` without a daemon.
    pub links: Option<Arc<dyn Links>>,
    /// Where drafts are tried and payloads shown.
    pub bench: Bench,
    /// The last 24 hours; `None` where they can't be read.
    pub history: Option<Arc<History>>,
    /// The other nodes, which do what this one does not; `None`: there are none, or they are not to be asked.
    pub others: Option<Arc<dyn Leases>>,
    /// What does not change while it runs.
    pub facts: Facts,
}
