//! What the rules say of one sink, as text: so that it can be told later by which rules an event was judged, although these have changed.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::RuleSet;
use crate::config::RuleConfig;

/// What the rules say of one sink. Equal texts send the same events there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What [`RuleSet::from_source`] reads.
    pub text: String,
    /// Stands for the text.
    pub digest: String,
}

#[derive(Serialize, Deserialize)]
struct Said {
    /// There is no rule at all, and so every event goes there.
    everything: bool,
    /// Events whose data Close withholds go out as they are.
    partials: bool,
    /// Patterns and filter of each rule that names the sink.
    rules: Vec<(Vec<String>, Option<String>)>,
}

/// In a text no sink has a name.
const ANY: &str = "sink";

impl RuleSet {
    /// What these rules say of a sink.
    pub fn source(&self, sink: &str) -> Source {
        let of_sink = self
            .rules
            .iter()
            .filter(|rule| rule.sinks.iter().any(|name| name == sink));
        let said = Said {
            everything: self.is_without_rules(sink),
            partials: self.partials,
            rules: of_sink.map(|rule| rule.source.clone()).collect(),
        };
        let text = serde_json::to_string(&said).unwrap_or_default();
        let digest = Sha256::digest(text.as_bytes());
        Source {
            digest: hex::encode(&digest[..16]),
            text,
        }
    }

    /// The rules of a [`Source`]'s text, and the sink they send to; `None` where this closehook can't read them any more.
    pub fn from_source(text: &str) -> Option<(RuleSet, &'static str)> {
        let said: Said = serde_json::from_slice(text.as_bytes()).ok()?;
        let rule = |(number, (events, filter)): (usize, (Vec<String>, Option<String>))| RuleConfig {
            program: None,
            name: number.to_string(),
            events,
            filter,
            sinks: vec![ANY.into()],
        };
        let mut rules: Vec<RuleConfig> = said.rules.into_iter().enumerate().map(rule).collect();
        if rules.is_empty() && !said.everything {
            // There were rules, and none of them named the sink.
            let nowhere = rule((0, (Vec::new(), None)));
            rules.push(RuleConfig {
                sinks: Vec::new(),
                ..nowhere
            });
        }
        let rules = RuleSet::compile(&rules, &[ANY]).ok()?;
        Some((rules.dispatching_partials(said.partials), ANY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Kind, Seq, Source as From};

    fn event(lead: u64, kind: Kind) -> Event {
        let body =
            format!(r#"{{"event":{{"id":"ev_1","object_type":"lead","action":"updated","lead_id":"lead_{lead}"}}}}"#);
        Event::new(
            Seq(1),
            jiff::Timestamp::UNIX_EPOCH,
            From::Webhook,
            kind,
            None,
            body.into(),
        )
    }

    fn rule(name: &str, events: &[&str], lead: Option<u64>, sinks: &[&str]) -> RuleConfig {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let filter = |lead| {
            format!(
                r#"{{"type":"field_accessor","field":"lead_id","filter":{{"type":"equals","value":"lead_{lead}"}}}}"#
            )
        };
        RuleConfig {
            program: None,
            name: name.into(),
            events: owned(events),
            filter: lead.map(filter),
            sinks: owned(sinks),
        }
    }

    #[test]
    fn rules_read_from_their_text_send_the_same_events_to_the_sink() {
        let all = ["a", "b"];
        let sets = [
            vec![],
            vec![rule("one", &[], Some(1), &["a"])],
            vec![rule("b only", &[], None, &["b"])],
            vec![
                rule("x", &["contact.*"], None, &["a"]),
                rule("y", &["lead.*"], Some(2), &["b", "a"]),
            ],
        ];
        for (configs, partials) in sets.iter().flat_map(|set| [(set, false), (set, true)]) {
            let rules = RuleSet::compile(configs, &all).unwrap().dispatching_partials(partials);
            for sink in all {
                let (again, any) = RuleSet::from_source(&rules.source(sink).text).unwrap();
                for event in [event(1, Kind::Event), event(2, Kind::Event), event(1, Kind::Partial)] {
                    let sent = rules.route(sink, &event).is_some();
                    assert_eq!(again.route(any, &event).is_some(), sent, "{configs:?} {sink} {event:?}");
                }
            }
        }
    }

    #[test]
    fn a_text_changes_with_what_it_says_of_its_sink_and_with_nothing_else() {
        let digest = |configs: &[RuleConfig]| RuleSet::compile(configs, &["a", "b"]).unwrap().source("a").digest;
        let one = [rule("one", &[], Some(1), &["a"])];
        let renamed = [rule("other name", &[], Some(1), &["a"]), rule("b", &[], None, &["b"])];
        assert_eq!(digest(&one), digest(&renamed));
        assert_ne!(digest(&one), digest(&[rule("one", &[], Some(2), &["a"])]));
        assert_ne!(digest(&one), digest(&[]));
        assert_ne!(digest(&[]), digest(&[rule("b", &[], None, &["b"])]), "all, and nothing");
    }
}
