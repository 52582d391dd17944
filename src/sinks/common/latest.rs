//! A row for each object: its newest revision, whatever the order in which they come (decision 40).
//!
//! A row has two parts, each with a rule of its own, so that all orders give the same row:
//!
//! - the revision (`type, lead_id, date_updated, seq, event`): the one with the latest `date_updated`, of equal ones that with the
//!   higher Seq. A deletion is a revision like any other, whose moment is in `deleted_at`; a newer one that is none takes it away.
//! - the merge (`merged_into`, and its moment in `deleted_at`, which then says nothing else): the latest `lead.merged` that the lead
//!   was the source of; of equal ones that into the lead whose id is the greater text. A merged lead never comes back.
//!
//! Where only a merge is known of a lead, its row has no revision.

use jiff::Timestamp;

use super::field::{Field, text};
#[cfg(any(test, feature = "sink-postgres"))]
use super::jsonb::fit_for_jsonb;
use crate::event::{Delivery, Updated};
use crate::json::{self, Node};

/// Where objects go when `table` is not set.
pub(in crate::sinks) const LATEST_TABLE: &str = "closehook_latest";

/// One revision of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sinks) struct Revision {
    pub(in crate::sinks) object_id: String,
    pub(in crate::sinks) object_type: Option<String>,
    pub(in crate::sinks) lead_id: Option<String>,
    /// To the microsecond. `None`: older than any that has one.
    pub(in crate::sinks) date_updated: Option<Timestamp>,
    pub(in crate::sinks) deleted_at: Option<Timestamp>,
    pub(in crate::sinks) seq: i64,
    /// The event object, without white space between its tokens.
    pub(in crate::sinks) event: String,
    pub(in crate::sinks) merge: Option<Merge>,
}

/// What a `lead.merged` says of the lead that is no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sinks) struct Merge {
    pub(in crate::sinks) source: String,
    pub(in crate::sinks) into: String,
    pub(in crate::sinks) at: Timestamp,
}

impl Revision {
    /// `None` where the event is about no object.
    pub(super) fn of(delivery: &Delivery) -> Option<Revision> {
        let event = &delivery.event;
        let view = event.view()?;
        let object_id = view.object_id.clone()?;
        let date_updated = Updated::moment(&view.date_updated).map(to_microsecond);
        let at = date_updated.unwrap_or_else(|| to_microsecond(event.received_at));
        let is = |action: &str| view.action.as_deref() == Some(action);
        let merge = (is("merged") && view.object_type.as_deref() == Some("lead"))
            .then(|| merge(event.object(), &object_id, at))
            .flatten();
        Some(Revision {
            object_type: view.object_type.clone(),
            lead_id: view.lead_id.clone(),
            date_updated,
            deleted_at: is("deleted").then_some(at),
            seq: event.seq.0 as i64,
            event: json::compact(event.object().raw()),
            merge,
            object_id,
        })
    }

    /// Where it stands among the revisions of its object.
    pub(in crate::sinks) fn place(&self) -> (Option<Timestamp>, i64) {
        (self.date_updated, self.seq)
    }

    #[cfg(any(test, feature = "sink-postgres"))]
    /// Makes of it what PostgreSQL can hold. Whether that changed anything: the log keeps the bytes.
    pub(in crate::sinks) fn fit_for_postgres(&mut self) -> bool {
        let merge = self
            .merge
            .iter_mut()
            .flat_map(|merge| [&mut merge.source, &mut merge.into]);
        let texts = [&mut self.object_id].into_iter().chain(merge);
        let optional = [&mut self.object_type, &mut self.lead_id].into_iter().flatten();
        let mut changed = false;
        for text in texts.chain(optional).filter(|text| text.contains('\0')) {
            *text = text.replace('\0', "\u{fffd}");
            changed = true;
        }
        if let std::borrow::Cow::Owned(cleaned) = fit_for_jsonb(&self.event) {
            self.event = cleaned;
            changed = true;
        }
        changed
    }

    /// Its columns, for people.
    pub(super) fn fields(self) -> Vec<(String, Field)> {
        let moment = |at: Option<Timestamp>| text(at.map(shown).as_deref());
        let fields = [
            ("object_id", text(Some(&self.object_id))),
            ("type", text(self.object_type.as_deref())),
            ("lead_id", text(self.lead_id.as_deref())),
            ("date_updated", moment(self.date_updated)),
            ("deleted_at", moment(self.deleted_at)),
            ("seq", Field::Number(self.seq.to_string())),
            ("event", Field::Json(self.event)),
        ];
        fields.map(|(name, value)| (name.to_owned(), value)).into()
    }
}

/// A moment as a text; they sort as their moments do.
pub(in crate::sinks) fn shown(at: Timestamp) -> String {
    format!("{at:.6}")
}

/// Databases know no nanoseconds; of what they would round, all must think alike.
fn to_microsecond(at: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(at.as_nanosecond().div_euclid(1000) as i64).unwrap_or(at)
}

fn merge(event: Node<'_>, object_id: &str, at: Timestamp) -> Option<Merge> {
    let meta = event.get("meta")?;
    let id = |key: &str| Some(meta.get(key)?.as_string()?.into_owned()).filter(|id| !id.is_empty());
    let source = id("merge_source_lead_id")?;
    let into = id("merge_destination_lead_id").unwrap_or_else(|| object_id.to_owned());
    (source != into).then_some(Merge { source, into, at })
}

#[cfg(test)]
pub(in crate::sinks) mod tests {
    use std::collections::BTreeMap;

    use super::super::line::tests::delivery;
    use super::*;
    use crate::event::Origin;

    /// A row as both databases tell it, in the order of its columns; of the event its id.
    pub(in crate::sinks) type Told = (
        String,
        Option<String>,
        Option<String>,
        Option<String>,
        Option<String>,
        Option<String>,
        Option<i64>,
        Option<String>,
    );

    /// A step of a history: what happens to which object when.
    struct Step {
        seq: u64,
        object: String,
        action: &'static str,
        /// Whole seconds, so that a test reads well; `None`: it says no date.
        second: Option<u32>,
        into: Option<String>,
    }

    impl Step {
        fn delivery(&self, random: &mut fastrand::Rng) -> Delivery {
            let seq = self.seq;
            // One instant in several ways of writing it.
            let date = self.second.map(|second| {
                let text = match random.u8(..4) {
                    0 => format!("2024-02-15T12:00:{second:02}.5"),
                    1 => format!("2024-02-15T12:00:{second:02}.500000Z"),
                    2 => format!("2024-02-15T13:30:{second:02}.5000+01:30"),
                    _ => format!("2024-02-15T12:00:{second:02}.500000+00:00"),
                };
                format!("\"date_updated\":\"{text}\",")
            });
            let meta = self.into.as_ref().map(|_| {
                format!(
                    "\"meta\":{{\"merge_source_lead_id\":\"{}\",\"merge_destination_lead_id\":\"{}\"}},",
                    self.object,
                    self.into.as_deref().unwrap_or_default()
                )
            });
            let object = self.into.as_ref().unwrap_or(&self.object);
            delivery(
                seq,
                &format!(
                    "{{\"event\":{{{}{}\"id\":\"ev_{seq}\",\"object_type\":\"lead\",\"action\":\"{}\",\"object_id\":\"{object}\",\"lead_id\":\"{object}\"}}}}",
                    date.unwrap_or_default(),
                    meta.unwrap_or_default(),
                    self.action
                ),
            )
        }
    }

    fn told(second: u32) -> String {
        format!("2024-02-15T12:00:{second:02}.500000Z")
    }

    /// A random history in a random order with repeats, and what the table says in the end.
    pub(in crate::sinks) fn history(random: &mut fastrand::Rng) -> (Vec<Delivery>, Vec<Told>) {
        let steps: Vec<Step> = (1..=random.u64(1..60))
            .map(|seq| {
                let action = *random
                    .choice(&["created", "updated", "updated", "deleted", "merged"])
                    .unwrap();
                let (object, other) = (random.u8(..5), random.u8(5..8));
                Step {
                    seq,
                    object: format!("lead_{object}"),
                    action,
                    // Merges always say when they were. Few seconds, so that many are the same.
                    second: (action == "merged" || random.u8(..10) > 0).then(|| random.u32(..8)),
                    into: (action == "merged").then(|| format!("lead_{other}")),
                }
            })
            .collect();
        let rows = table(&steps);
        let mut deliveries: Vec<Delivery> = steps.iter().map(|step| step.delivery(random)).collect();
        let none = r#"{"event":{"id":"ev_none","object_type":"lead","action":"updated"}}"#;
        deliveries.push(delivery(1000, none));
        for _ in 0..random.usize(..20) {
            let origin = [Origin::Live, Origin::Letter, Origin::Replay("1".into())];
            let again = Delivery {
                origin: random.choice(origin).unwrap(),
                ..random.choice(&deliveries).unwrap().clone()
            };
            deliveries.push(again);
        }
        random.shuffle(&mut deliveries);
        (deliveries, rows)
    }

    /// What decision 40 makes of a history, by sorting it.
    fn table(steps: &[Step]) -> Vec<Told> {
        let mut rows: BTreeMap<String, Told> = BTreeMap::new();
        let mut sorted: Vec<&Step> = steps.iter().collect();
        sorted.sort_by_key(|step| (step.second, step.seq));
        for step in &sorted {
            let object = step.into.as_ref().unwrap_or(&step.object);
            let row = rows.entry(object.clone()).or_default();
            let received = received(step.seq);
            *row = (
                object.clone(),
                Some("lead".into()),
                Some(object.clone()),
                step.second.map(told),
                (step.action == "deleted").then(|| step.second.map_or(received, told)),
                None,
                Some(step.seq as i64),
                Some(format!("ev_{}", step.seq)),
            );
        }
        sorted.sort_by_key(|step| (step.second, &step.into));
        for step in sorted.iter().filter(|step| step.into.is_some()) {
            let row = rows.entry(step.object.clone()).or_insert_with(|| {
                let object = Some(step.object.clone());
                (
                    step.object.clone(),
                    Some("lead".into()),
                    object,
                    None,
                    None,
                    None,
                    None,
                    None,
                )
            });
            row.4 = step.second.map(told);
            row.5.clone_from(&step.into);
        }
        rows.into_values().collect()
    }

    fn received(seq: u64) -> String {
        shown(delivery(seq, r#"{"event":{"id":"ev_1"}}"#).event.received_at)
    }

    /// In batches of random sizes.
    pub(in crate::sinks) fn batches<'d>(deliveries: &'d [Delivery], random: &mut fastrand::Rng) -> Vec<&'d [Delivery]> {
        let mut rest = deliveries;
        let mut batches = Vec::new();
        while !rest.is_empty() {
            let (some, others) = rest.split_at(random.usize(1..=rest.len().min(25)));
            batches.push(some);
            rest = others;
        }
        batches
    }

    fn of(event: &str) -> Option<Revision> {
        Revision::of(&delivery(7, &format!("{{\"event\":{event}}}")))
    }

    #[test]
    fn a_merge_is_read_as_close_writes_it() {
        let revision = of(
            r#"{"id":"ev_1","object_type":"lead","action":"merged","object_id":"lead_d","lead_id":"lead_d",
            "date_updated":"2024-02-15T12:48:23.395000",
            "meta":{"merge_source_lead_id":"lead_s","merge_destination_lead_id":"lead_d"}}"#,
        )
        .unwrap();
        let at: Timestamp = "2024-02-15T12:48:23.395Z".parse().unwrap();
        assert_eq!(
            revision.merge,
            Some(Merge {
                source: "lead_s".into(),
                into: "lead_d".into(),
                at
            })
        );
        assert_eq!((revision.date_updated, revision.deleted_at), (Some(at), None));
        for none in [
            r#"{"id":"ev_1","object_type":"lead","action":"merged","object_id":"lead_d","meta":{}}"#,
            r#"{"id":"ev_1","object_type":"lead","action":"merged","object_id":"l","meta":{"merge_source_lead_id":"l"}}"#,
            r#"{"id":"ev_1","object_type":"lead","action":"updated","object_id":"d","meta":{"merge_source_lead_id":"s"}}"#,
            r#"{"id":"ev_1","object_type":"contact","action":"merged","object_id":"d","meta":{"merge_source_lead_id":"s"}}"#,
        ] {
            assert_eq!(of(none).unwrap().merge, None, "{none}");
        }
        assert_eq!(of(r#"{"id":"ev_1","object_type":"lead","action":"merged"}"#), None);
    }

    #[test]
    fn moments_are_compared_as_instants_to_the_microsecond() {
        let at = |text: &str| Updated::moment(text).map(to_microsecond).map(shown);
        for same in [
            "2024-02-15T12:48:23.395",
            "2024-02-15T13:48:23.395000999+01:00",
            "2024-02-15T12:48:23.3950001Z",
        ] {
            assert_eq!(at(same).as_deref(), Some("2024-02-15T12:48:23.395000Z"), "{same}");
        }
        assert_eq!(
            at("2016-12-31T23:59:60").as_deref(),
            Some("2016-12-31T23:59:59.000000Z")
        );
        assert_eq!(
            at("1969-12-31T23:59:59.9999999").as_deref(),
            Some("1969-12-31T23:59:59.999999Z")
        );
        assert_eq!((at("soon"), at("")), (None, None));
        // A deletion without a moment of its own was when it was heard of.
        let deleted = of(r#"{"id":"ev_1","object_id":"o","action":"deleted"}"#).unwrap();
        assert_eq!((deleted.date_updated, deleted.deleted_at.is_some()), (None, true));
    }
}
