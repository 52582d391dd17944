//! closehook receives Close CRM webhooks, keeps every event, and delivers each one by rules.
//!
//! An event's journey:
//!
//! 1. [`listener`] accepts the connection, and [`ingress`] takes the request within its limits as an
//!    [`ingress::verify::Unverified`] body;
//! 2. [`ingress::verify`] checks the HMAC and the clock and makes it [`ingress::verify::Verified`], the only thing the log
//!    accepts;
//! 3. [`log`] drops duplicates, writes the group to the journal, syncs it, and only then does Close get its 200;
//! 4. [`deliver`] runs one worker per sink, each reading the log at its own durable cursor;
//! 5. [`rules`] say, event by event, whether it goes to that sink;
//! 6. [`render`] makes of it what is delivered instead, where a template or transform says so;
//! 7. [`sinks`] deliver and answer delivered, retry or reject ([`contract`]), which moves the cursor, the retry set or the dead
//!    letters.
//!
//! [`close`] looks after the other end: it makes the subscription, keeps it alive, and fetches what never came.
//! [`backup`] takes all of it along in one file.
//!
//! What they all stand on: [`event`] and [`json`] (what an event is), [`files`] (those that people name), [`framefile`] (files that survive), [`state`] (positions),
//! [`node`] (which machine does what, where several share one log), [`age`] (what is old), [`net`] (reaching others), [`supervise`] (tasks that must not end), [`config`] and [`telemetry`].
//!
//! [`control`] answers whatever is asked of them, and [`app`] wires these together and is the only place that does; [`cli`] and
//! [`admin`] are the ways to ask.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod admin;
pub mod age;
pub mod allocator;
pub mod app;
pub mod backup;
mod causes;
pub mod cli;
pub mod close;
pub mod config;
pub mod contract;
pub mod control;
pub mod deliver;
pub mod event;
pub mod files;
pub mod framefile;
pub mod ingress;
pub mod listener;
pub mod log;
pub mod names;
pub mod net;
pub mod node;
#[cfg(test)]
mod passing;
pub mod plain;
pub mod reap;
pub mod render;
pub mod retention;
pub mod rules;
pub mod sinks;
mod sorted;
pub mod state;
pub mod supervise;
mod sync;
mod task;
pub mod telemetry;

pub use closehook_json as json;
pub use net::tls::install_crypto;
