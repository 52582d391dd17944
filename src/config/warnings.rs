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
            warnings.push(format!(
                "rule \"{}\" names no sinks: it delivers nothing; Close is asked for its events all the same, and they are kept",
                rule.name
            ));
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
        warnings.extend(self.server.doubtful_url());
        warnings.extend(self.doubtful_stop());
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

#[cfg(test)]
mod tests {
    use crate::config::{Config, Fault, Layers};

    fn loaded(text: &str) -> Result<Config, Vec<Fault>> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("closehook.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(&Layers {
            file: Some(file),
            ..Layers::new(crate::sinks::REGISTRY, crate::rules::faults)
        })
    }

    fn warned(text: &str) -> Vec<String> {
        loaded(text).unwrap().warnings(true)
    }

    #[test]
    fn a_public_url_that_is_none_is_worth_a_word_and_keeps_nothing_from_starting() {
        for bad in [
            "hooks.example.com/webhooks/close",
            "hooks.example.com",
            "hooks.example.com:8443/webhooks/close",
            "/webhooks/close",
            "https://",
            "https:///webhooks/close",
            "ftp://hooks.example.com/webhooks/close",
            "unix:/run/closehook.sock",
            "mailto:a@b.example",
            "https://hooks.example.com/webhooks/close#x",
            "https://hooks.example.com/web hooks",
            " https://hooks.example.com/webhooks/close",
        ] {
            let warnings = warned(&format!("[server]\npublic_url = \"{bad}\"\n"));
            let is_said = |warning: &String| warning.starts_with("server.public_url: is no URL");
            assert!(warnings.iter().any(is_said), "{bad}: {warnings:?}");
        }
        for good in [
            "",
            "HTTPS://hooks.example.com/webhooks/close",
            "https://hooks.example.com/webhooks/close",
            "http://127.0.0.1:8480/webhooks/close",
            "https://[2001:db8::1]:8443/webhooks/close",
            "https://hooks.example.com/webhooks/close?from=close",
        ] {
            let warnings = warned(&format!("[server]\npublic_url = \"{good}\"\n"));
            assert!(
                !warnings.iter().any(|warning| warning.contains("public_url")),
                "{warnings:?}"
            );
        }
    }

    #[test]
    fn a_public_url_with_another_path_than_the_listener_s_is_worth_a_word() {
        for (url, path) in [
            ("https://hooks.example.com", "/webhooks/close"),
            ("https://hooks.example.com/", "/webhooks/close"),
            ("https://hooks.example.com/webhooks/close/", "/webhooks/close"),
            ("https://hooks.example.com/close", "/hook"),
        ] {
            let warnings = warned(&format!("[server]\npublic_url = \"{url}\"\npath = \"{path}\"\n"));
            let said: Vec<&String> = warnings
                .iter()
                .filter(|warning| warning.contains("public_url"))
                .collect();
            assert!(
                matches!(said[..], [said] if said.starts_with("server.public_url: ") && said.contains(path)),
                "{url}: {warnings:?}"
            );
        }
    }

    #[test]
    fn what_a_rule_without_sinks_does_is_said_truly() {
        let sink = "[[sinks]]\nname = \"s\"\ntype = \"stdout\"\n";
        let draft = "[[rules]]\nname = \"draft\"\nevents = [\"lead.created\"]\n";
        let real = "[[rules]]\nname = \"real\"\nsinks = [\"s\"]\n";
        let said = "rule \"draft\" names no sinks: it delivers nothing; Close is asked for its events all the same, and they are kept";
        for text in [
            format!("{sink}{draft}{real}"),
            draft.to_owned(),
            format!("{sink}{draft}"),
        ] {
            let mut warnings = warned(&text);
            warnings.retain(|warning| warning.contains("draft"));
            assert_eq!(warnings, [said]);
        }
    }
}
