//! Which events are meant: the restrictions that `events`, `replay`, `dead` and rules have in common.

use jiff::Timestamp;

pub use crate::event::EventPattern;

use super::filter::Filter;
use crate::event::Event;
use crate::json::Doc;
use crate::log::Narrow;

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
    /// Only events whose data Close withholds (`Some(true)`), only others.
    pub partial: Option<bool>,
}

/// A choice of events as it is written: in flags, in a question to the daemon, in a job.
#[derive(Debug, Clone, Copy, Default)]
pub struct Written<'w> {
    /// Event ids.
    pub ids: &'w [String],
    /// Patterns over `object_type.action`.
    pub types: &'w [String],
    /// A lead's id.
    pub lead: Option<&'w str>,
    /// A filter as JSON text.
    pub filter: Option<&'w str>,
    /// Received at or after.
    pub since: Option<Timestamp>,
    /// Received before.
    pub until: Option<Timestamp>,
    /// See [`Selection::quarantined`].
    pub quarantined: Option<bool>,
    /// See [`Selection::partial`].
    pub partial: Option<bool>,
}

impl Written<'_> {
    /// Checks and compiles it. An error is one sentence.
    pub fn compile(self) -> Result<Selection, String> {
        let filter = self.filter.map(Filter::parse).transpose();
        let filter = filter.map_err(|faults| {
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            format!("the filter is not valid: {}", faults.join("; "))
        })?;
        let types = self.types.iter().map(|text| EventPattern::parse(text));
        Ok(Selection {
            ids: self.ids.to_vec(),
            types: types.collect::<Result<_, _>>()?,
            lead: self.lead.map(ToOwned::to_owned),
            filter,
            since: self.since,
            until: self.until,
            quarantined: self.quarantined,
            partial: self.partial,
        })
    }
}

impl Selection {
    /// What a log can look up of it, so that it does not have to give everything. Each event has to be looked at all the same: the
    /// filter and the quarantine are not in it, and a log may give more than it was asked for.
    pub fn narrow(&self) -> Narrow {
        // A pattern for everything also means what has no type.
        let is_any_type = self.types.iter().any(EventPattern::is_all);
        let types = self.types.iter().filter(|_| !is_any_type);
        Narrow {
            ids: self.ids.iter().cloned().collect(),
            leads: self.lead.iter().cloned().collect(),
            types: types.map(|pattern| pattern.as_str().to_owned()).collect(),
            ..Narrow::default()
        }
    }

    /// Whether the event is meant.
    pub fn selects(&self, event: &Event) -> bool {
        let is_quarantined = event.kind == crate::event::Kind::Quarantined;
        let is_partial = event.kind == crate::event::Kind::Partial;
        if self.quarantined.is_some_and(|wanted| wanted != is_quarantined)
            || self.partial.is_some_and(|wanted| wanted != is_partial)
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
    use jiff::Timestamp;

    use super::*;
    use crate::event::{Kind, Seq, Source};

    #[test]
    fn a_log_that_leaves_out_what_was_not_asked_for_leaves_out_nothing_that_is_meant() {
        let event = |body: &str| {
            let body = body.to_owned().into();
            Event::new(Seq(1), Timestamp::UNIX_EPOCH, Source::Webhook, Kind::Event, None, body)
        };
        let events = [
            event(r#"{"event":{"id":"ev_1","lead_id":"lead_1","object_type":"lead","action":"updated"}}"#),
            event(r#"{"event":{"id":"ev_2","lead_id":"lead_2","object_type":"activity.email","action":"sent"}}"#),
            event(r#"{"event":{"id":"ev_3","lead_id":"lead_1"}}"#),
            event(r#"{"event":{"id":"ev_4","object_type":"lead","action":"created"}}"#),
        ];
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        for ids in [texts(&[]), texts(&["ev_2", "ev_3"])] {
            for lead in [None, Some("lead_1".to_owned())] {
                for types in [
                    &[][..],
                    &["lead.*"],
                    &["*.sent", "lead.created"],
                    &["*"],
                    &["lead.*", "*"],
                ] {
                    let selection = Selection {
                        ids: ids.clone(),
                        lead: lead.clone(),
                        types: types.iter().map(|text| EventPattern::parse(text).unwrap()).collect(),
                        ..Selection::default()
                    };
                    let narrow = selection.narrow();
                    for event in &events {
                        assert_eq!(
                            selection.selects(event),
                            narrow.leaves(event),
                            "{selection:?} {event:?}"
                        );
                    }
                }
            }
        }
        assert!(Selection::default().narrow().is_empty());
    }
}
