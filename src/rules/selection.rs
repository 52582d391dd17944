//! Which events are meant: the restrictions that `events`, `replay`, `dead` and rules have in common.

use jiff::Timestamp;

use super::filter::Filter;
use crate::event::Event;
use crate::json::Doc;

/// A pattern over `object_type.action`, in which `*` stands for any text, dots included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPattern(String);

impl EventPattern {
    /// Parses a pattern. An error says what is wrong with it.
    pub fn parse(text: &str) -> Result<EventPattern, String> {
        if text.is_empty() {
            return Err("an event pattern can't be empty: write \"*\" for all events".into());
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!("an event pattern has no spaces: \"{text}\""));
        }
        if !text.contains('.') && !text.contains('*') {
            return Err(format!(
                "\"{text}\" names no action: write \"{text}.*\" or \"{text}.created\""
            ));
        }
        Ok(EventPattern(text.to_owned()))
    }

    /// Whether it stands for all events, also those without a type.
    pub fn is_all(&self) -> bool {
        self.0.bytes().all(|byte| byte == b'*')
    }

    /// The one type it names, if it has no `*`.
    pub fn literal(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(&self.0)
    }

    /// Whether it matches; `None` is an event without a readable type.
    pub fn matches(&self, type_action: Option<&str>) -> bool {
        match type_action {
            None => self.is_all(),
            Some(text) => glob(self.0.as_bytes(), text.as_bytes()),
        }
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `*` matches any text; linear in practice, without recursion.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            retry = Some((p, t));
            p += 1;
        } else if p < pattern.len() && pattern[p] == text[t] {
            p += 1;
            t += 1;
        } else if let Some((star, from)) = retry {
            retry = Some((star, from + 1));
            p = star + 1;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Restrictions; an empty one selects every event.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Event ids; any of them.
    pub ids: Vec<String>,
    /// Patterns; any of them.
    pub types: Vec<EventPattern>,
    /// Events of this lead.
    pub lead: Option<String>,
    /// Events this filter matches.
    pub filter: Option<Filter>,
    /// Received at or after.
    pub since: Option<Timestamp>,
    /// Received before.
    pub until: Option<Timestamp>,
    /// Only what is in quarantine (`Some(true)`), only what is not.
    pub quarantined: Option<bool>,
}

impl Selection {
    /// Whether the event is meant.
    pub fn selects(&self, event: &Event) -> bool {
        let is_quarantined = event.kind == crate::event::Kind::Quarantined;
        if self.quarantined.is_some_and(|wanted| wanted != is_quarantined)
            || self.since.is_some_and(|since| event.received_at < since)
            || self.until.is_some_and(|until| event.received_at >= until)
        {
            return false;
        }
        if self.ids.is_empty() && self.types.is_empty() && self.lead.is_none() && self.filter.is_none() {
            return true;
        }
        let Some(view) = event.view() else { return false };
        if !self.ids.is_empty() && !self.ids.contains(&view.id) {
            return false;
        }
        if self.lead.is_some() && self.lead != view.lead_id {
            return false;
        }
        if !self.types.is_empty() {
            let type_action = view.type_action();
            if !self.types.iter().any(|pattern| pattern.matches(type_action.as_deref())) {
                return false;
            }
        }
        self.filter
            .as_ref()
            .is_none_or(|filter| filter.matches(&Doc::of(event.object())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_star_stands_for_any_text() {
        let yes = [
            ("*", "lead.updated"),
            ("activity.*", "activity.email.sent"),
            ("*.created", "a.b.created"),
            ("a*b*c", "aXbYbZc"),
            ("lead.updated", "lead.updated"),
            ("**", ""),
        ];
        let no = [
            ("activity.*", "activityx.sent"),
            ("*.created", "a.created2"),
            ("lead.updated", "lead.updated2"),
            ("a*b", "a"),
        ];
        for (pattern, text) in yes {
            assert!(
                EventPattern::parse(pattern).unwrap().matches(Some(text)),
                "{pattern} {text}"
            );
        }
        for (pattern, text) in no {
            assert!(
                !EventPattern::parse(pattern).unwrap().matches(Some(text)),
                "{pattern} {text}"
            );
        }
        assert!(EventPattern::parse("*").unwrap().matches(None));
        assert!(!EventPattern::parse("*.*").unwrap().matches(None));
        for bad in ["", "a b", "lead"] {
            assert!(EventPattern::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn globs_agree_with_a_recursive_reading(pattern in "[ab*]{1,8}", text in "[ab]{0,10}") {
            fn reference(pattern: &[u8], text: &[u8]) -> bool {
                match pattern.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|skip| reference(rest, &text[skip..])),
                    Some((byte, rest)) => text.first() == Some(byte) && reference(rest, &text[1..]),
                }
            }
            prop_assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), reference(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
