//! What goes where: event patterns and filters, compiled once, asked for every event.

pub mod filter;

use std::sync::Arc;

use crate::config::{Fault, RuleConfig};
use crate::event::Event;

/// All rules, compiled and indexed by event type.
#[derive(Debug)]
pub struct RuleSet {}

impl RuleSet {
    /// Compiles the rules; every fault of every rule is reported, with its place (`rules[2].filter.filters[0].type`).
    pub fn compile(_rules: &[RuleConfig], _sinks: &[&str]) -> Result<RuleSet, Vec<Fault>> {
        todo!()
    }

    /// The names of the rules that send the event to the sink, or `None` if none does. Without any rules every event goes to
    /// every sink, with no names.
    pub fn route(&self, _sink: &str, _event: &Event) -> Option<Arc<[Arc<str>]>> {
        todo!()
    }
}
