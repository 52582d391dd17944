//! What is odd in a configuration that can run.

use super::{Config, Listen};
use crate::event::{EventPattern, types};

impl Config {
    /// What is odd but can run, one sentence each. `has_kept`: a key to verify with lies in the data directory, which is not for
    /// the configuration to read.
    pub fn warnings(&self, has_kept: bool) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.close.subscriptions.is_empty() && !self.close.local_key && !has_kept {
            let remedy = if self.close.credentials.is_some() {
                "run `closehook subscription apply`"
            } else {
                "run `closehook init`, or add [[close.subscriptions]]"
            };
            warnings.push(format!(
                "no signature key is configured: every delivery is refused with 401; {remedy}"
            ));
        }
        for subscription in &self.close.subscriptions {
            if let Err(error) = subscription.signature_key.resolve() {
                warnings.push(error);
            }
        }
        if self.sinks.is_empty() {
            warnings.push("no sinks are configured: events are kept and delivered nowhere".into());
        }
        for sink in &self.sinks {
            let sends = |rule: &&super::RuleConfig| rule.program.is_some() && rule.sinks.contains(&sink.name);
            let has_programs = sink.program.is_some() || self.rules.iter().any(|rule| sends(&rule));
            let of_programs = sink.options.warning_of_programs().filter(|_| has_programs);
            let all = sink.options.warning().into_iter().chain(of_programs);
            warnings.extend(all.map(|warning| format!("sink \"{}\": {warning}", sink.name)));
        }
        for rule in self.rules.iter().filter(|rule| rule.sinks.is_empty()) {
            warnings.push(format!("rule \"{}\" names no sinks: it has no effect", rule.name));
        }
        if !self.rules.is_empty() {
            for sink in &self.sinks {
                let is_dead_to = self.dead_to().any(|name| name == sink.name);
                if !is_dead_to && !self.rules.iter().any(|rule| rule.sinks.contains(&sink.name)) {
                    warnings.push(format!("no rule names the sink \"{}\": it gets nothing", sink.name));
                }
            }
        }
        warnings.extend(self.doubtful_events());
        if self.server.tls.is_none()
            && self.server.acme.is_none()
            && let Listen::Tcp(address) = self.server.listen
            && !address.ip().is_loopback()
        {
            warnings.push(format!(
                "plain HTTP on {address}, which other machines can reach: set [server.acme] or [server.tls], or listen on loopback behind a proxy"
            ));
        }
        warnings
    }

    /// Patterns of rules that fit no event Close documents.
    fn doubtful_events(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        for (index, rule) in self.rules.iter().enumerate() {
            for (number, text) in rule.events.iter().enumerate() {
                let pattern = EventPattern::parse(text).ok();
                let doubt = pattern.and_then(|pattern| types::doubt(&pattern));
                doubts.extend(doubt.map(|doubt| format!("rules[{index}].events[{number}]: {doubt}")));
            }
        }
        doubts
    }
}
