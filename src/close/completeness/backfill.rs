//! Storing what Close's event log has and ours lacks: the same duplicate rule as for deliveries, so doing it twice does nothing.
//!
//! A backfilled event has no signed bytes; its body is `{"event":<the element as Close sent it>}`. Where Close withholds
//! `data` (the key is not an administrator's and the event is older than an hour) what is left is stored as a part.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use super::marks::{BackfillJob, Counts, Spec};
use super::walk::{EventQuery, Fetched, Window};
use crate::close::api::error::Error;
use crate::close::subscriptions::scope::{Scope, name, split};
use crate::event::{Seq, Source, View};
use crate::json::{Doc, Kind, Node};
use crate::log::{Appended, Incoming, Log};
use crate::rules::selection::EventPattern;
use crate::telemetry;

/// `data` is withheld from events older than an hour; where the clocks differ a little, the shape decides.
const WITHHELD_AFTER: SignedDuration = SignedDuration::from_mins(55);

/// More types than this are not asked for one by one: the whole log is read and filtered here.
const QUERIES_MAX: usize = 8;

/// Which events are meant: the scope, narrowed by what was asked for.
#[derive(Debug, Clone)]
pub(in crate::close) struct Wanted {
    pub scope: Scope,
    pub types: Vec<EventPattern>,
    pub lead: Option<String>,
}

impl Wanted {
    /// All of a scope.
    pub fn all(scope: Scope) -> Wanted {
        Wanted {
            scope,
            types: Vec::new(),
            lead: None,
        }
    }

    /// What a person asked for. An error is a bad pattern.
    pub fn asked(scope: Scope, spec: &Spec) -> Result<Wanted, Error> {
        let types = spec.types.iter().map(|text| EventPattern::parse(text));
        Ok(Wanted {
            scope,
            types: types.collect::<Result<_, _>>().map_err(Error::Missing)?,
            lead: spec.lead.clone(),
        })
    }

    /// The fewest requests that surely find all of it, in combinations that Close allows.
    pub fn queries(&self) -> Vec<EventQuery> {
        let asked: Option<Vec<(String, String)>> = (!self.types.is_empty())
            .then(|| self.types.iter().map(|pattern| split(pattern.literal()?)).collect())
            .flatten();
        let pairs = match (asked, self.scope.literal_types()) {
            (Some(asked), _) => Some(
                asked
                    .into_iter()
                    .filter(|pair| self.scope.takes(Some(&name(pair))))
                    .collect(),
            ),
            (None, Some(scope)) => {
                let meant = |pair: &(String, String)| {
                    self.types.is_empty() || self.types.iter().any(|pattern| pattern.matches(Some(&name(pair))))
                };
                Some(scope.into_iter().filter(meant).collect::<Vec<_>>())
            }
            (None, None) => None,
        };
        let one = |type_action| EventQuery {
            type_action,
            lead_id: self.lead.clone(),
        };
        match pairs {
            Some(pairs) if pairs.len() <= QUERIES_MAX => pairs.into_iter().map(|pair| one(Some(pair))).collect(),
            _ => vec![one(None)],
        }
    }

    fn takes(&self, view: &View, event: Node<'_>, withheld: bool) -> bool {
        let type_action = view.type_action();
        let type_action = type_action.as_deref();
        let asked = self.types.is_empty() || self.types.iter().any(|pattern| pattern.matches(type_action));
        let of_lead = self.lead.is_none() || self.lead == view.lead_id;
        // Filters mostly look into the data: without it, only the type can tell.
        asked
            && of_lead
            && if withheld {
                self.scope.takes(type_action)
            } else {
                self.scope.accepts(type_action, &Doc::of(event))
            }
    }
}

/// Whether Close has withheld the event's data: it is old enough for that, and neither the object nor what it was before is
/// there. (An event that deletes something has no `data`, but all of `previous_data`.)
fn is_withheld(event: Node<'_>, updated: Timestamp, close_now: Timestamp) -> bool {
    let is_null = |key| event.get(key).is_none_or(|node| node.kind() == Kind::Null);
    close_now.duration_since(updated) >= WITHHELD_AFTER && is_null("data") && is_null("previous_data")
}

fn candidates(wanted: &Wanted, events: Vec<Fetched>, close_now: Timestamp, counts: &mut Counts) -> Vec<Incoming> {
    let now = Timestamp::now();
    let mut meant = Vec::with_capacity(events.len());
    for fetched in events {
        counts.seen += 1;
        let body = Bytes::from([b"{\"event\":", &fetched.raw[..], b"}"].concat());
        let mut incoming = Incoming::new(body, now, Source::Backfill, None);
        // What can't be read goes to quarantine, like a delivery that can't be: it says nothing that could be out of scope.
        if let Some(view) = &incoming.view {
            let event = std::str::from_utf8(&fetched.raw).map_or(Node::NULL, Node::new);
            let withheld = is_withheld(event, fetched.updated, close_now);
            if !wanted.takes(view, event, withheld) {
                counts.outside += 1;
                continue;
            }
            incoming.partial = withheld;
        }
        meant.push(incoming);
    }
    meant
}

/// What a batch added.
#[derive(Debug, Default)]
pub(in crate::close) struct Added {
    pub counts: Counts,
    /// `date_updated` of the newest event that was new, up to a bound.
    pub newest_missed: Option<Timestamp>,
    /// The parts that were stored.
    pub parts: Option<(Seq, Seq)>,
}

/// Stores what the log lacks of a batch. `missed_before`: what is new and older than this should have been delivered.
pub(in crate::close) async fn store(
    log: &dyn Log,
    wanted: &Wanted,
    events: Vec<Fetched>,
    close_now: Timestamp,
    missed_before: Timestamp,
) -> Result<Added, Error> {
    let mut added = Added::default();
    let updated: Vec<Timestamp> = events.iter().map(|event| event.updated).collect();
    let oldest_first = candidates(wanted, events, close_now, &mut added.counts);
    let newest = updated.into_iter().filter(|at| *at < missed_before).max();
    let partial: Vec<bool> = oldest_first.iter().map(|incoming| incoming.partial).collect();
    for (partial, appended) in partial.into_iter().zip(log.append_in_order(oldest_first).await) {
        match appended.map_err(|error| Error::Local(format!("events can't be stored: {error}")))? {
            Appended::Stored(seq) if partial => {
                added.counts.partial += 1;
                let (first, _) = added.parts.unwrap_or((seq, seq));
                added.parts = Some((first, seq));
            }
            Appended::Stored(_) | Appended::Quarantined { repeated: false, .. } => added.counts.stored += 1,
            Appended::Duplicate(_) | Appended::Quarantined { .. } => added.counts.known += 1,
        }
    }
    let Counts {
        stored, known, partial, ..
    } = added.counts;
    if stored + partial > 0 {
        added.newest_missed = newest;
    }
    telemetry::backfilled(stored, known, partial);
    Ok(added)
}

/// What [`store`] would do, without doing it.
pub(in crate::close) async fn rehearse(
    log: &dyn Log,
    wanted: &Wanted,
    events: Vec<Fetched>,
    close_now: Timestamp,
) -> Result<Counts, Error> {
    let mut counts = Counts::default();
    for incoming in candidates(wanted, events, close_now, &mut counts) {
        let Some(key) = incoming.view.as_ref().map(View::key) else {
            counts.stored += 1;
            continue;
        };
        match (log.find_revision(&key).await?, incoming.partial) {
            (Some(_), _) => counts.known += 1,
            (None, true) => counts.partial += 1,
            (None, false) => counts.stored += 1,
        }
    }
    Ok(counts)
}

/// The range of a job that is left.
pub(in crate::close) fn rest(job: &BackfillJob) -> Window {
    Window {
        from: job.done_to,
        to: job.spec.until,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RuleConfig;
    use crate::rules::RuleSet;

    fn scope(patterns: &[&str], filter: Option<&str>) -> Scope {
        let rule = RuleConfig {
            name: "r".into(),
            events: patterns.iter().map(ToString::to_string).collect(),
            filter: filter.map(Into::into),
            sinks: Vec::new(),
        };
        Scope::of(&RuleSet::compile(&[rule], &[]).unwrap(), true)
    }

    fn wanted(scope_patterns: &[&str], types: &[&str], lead: Option<&str>) -> Wanted {
        let spec = Spec {
            since: Timestamp::UNIX_EPOCH,
            until: Timestamp::UNIX_EPOCH,
            types: types.iter().map(ToString::to_string).collect(),
            lead: lead.map(Into::into),
        };
        Wanted::asked(scope(scope_patterns, None), &spec).unwrap()
    }

    #[test]
    fn requests_are_restricted_where_the_api_allows_it() {
        let queries = |w: Wanted| -> Vec<String> {
            w.queries()
                .iter()
                .map(|query| {
                    format!(
                        "{} {}",
                        query.lead_id.as_deref().unwrap_or("-"),
                        query.type_action.as_ref().map_or("-".into(), name)
                    )
                })
                .collect()
        };
        assert_eq!(queries(wanted(&["*"], &[], None)), ["- -"]);
        assert_eq!(
            queries(wanted(&["lead.created", "comment.created"], &[], None)),
            ["- comment.created", "- lead.created"]
        );
        assert_eq!(
            queries(wanted(&["lead.created", "comment.*"], &[], None)),
            ["- -"],
            "comments could have other actions"
        );
        assert_eq!(
            queries(wanted(&["*"], &["activity.email.sent"], Some("lead_1"))),
            ["lead_1 activity.email.sent"]
        );
        assert_eq!(queries(wanted(&["*"], &["lead.*"], Some("lead_1"))), ["lead_1 -"]);
        assert_eq!(
            queries(wanted(&["lead.created", "comment.created"], &["lead.*"], None)),
            ["- lead.created"]
        );
        assert!(
            queries(wanted(&["lead.created"], &["comment.created"], None)).is_empty(),
            "no rule wants it"
        );
        let many: Vec<String> = (0..9).map(|n| format!("a.b{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(queries(wanted(&many, &[], None)), ["- -"]);
    }

    fn fetched(text: &str, updated: &str) -> Fetched {
        Fetched {
            raw: Bytes::copy_from_slice(text.as_bytes()),
            updated: updated.parse().unwrap(),
        }
    }

    const AT: &str = "2024-02-15T12:00:00Z";

    #[test]
    fn data_is_withheld_where_both_halves_are_missing_and_the_event_is_old() {
        let is = |text: &str, now: &str| is_withheld(Node::new(text), AT.parse().unwrap(), now.parse().unwrap());
        let later = "2024-02-15T13:00:00Z";
        assert!(is(r#"{"id":"e","data":null,"previous_data":null}"#, later) && is(r#"{"id":"e"}"#, later));
        assert!(!is(r#"{"id":"e"}"#, "2024-02-15T12:30:00Z"), "too young");
        assert!(
            !is(r#"{"id":"e","data":null,"previous_data":{"name":"x"}}"#, later),
            "a deletion"
        );
        assert!(!is(r#"{"id":"e","data":{}}"#, later));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_in_scope_is_stored_once_as_close_wrote_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::config::Config::load(&crate::config::Layers::default()).unwrap();
        let options = crate::log::Options {
            dir: dir.path().to_owned(),
            ..crate::log::Options::from_config(&config)
        };
        let log = crate::log::LocalLog::open(options).unwrap();
        let won = r#"{"type":"field_accessor","field":"data","filter":{"type":"equals","value":"won"}}"#;
        let wanted = Wanted::all(scope(&["lead.updated"], Some(won)));
        let event = |id: u32, name: &str, data: &str| {
            fetched(
                &format!(
                    r#"{{"id": "ev_{id}", "date_updated":"{AT}","object_type":"lead","action":"{name}", "data":{data},"n":1.50}}"#
                ),
                AT,
            )
        };
        let events = vec![
            event(1, "updated", "\"won\""),
            event(2, "updated", "\"lost\""),
            event(3, "created", "\"won\""),
            event(4, "updated", "null"),
            fetched(r#"{"no":"id"}"#, AT),
        ];
        let now: Timestamp = "2024-02-16T00:00:00Z".parse().unwrap();
        let rehearsed = rehearse(&log, &wanted, events.clone(), now).await.unwrap();
        assert_eq!(
            rehearsed,
            Counts {
                seen: 5,
                outside: 2,
                known: 0,
                stored: 2,
                partial: 1
            }
        );
        let added = store(&log, &wanted, events.clone(), now, now).await.unwrap();
        assert_eq!(added.counts, rehearsed);
        assert_eq!(
            (added.newest_missed, added.parts),
            (AT.parse().ok(), Some((Seq(2), Seq(2))))
        );
        let first = log.get(Seq(1)).unwrap().unwrap();
        assert_eq!(
            first.body,
            format!(r#"{{"event":{}}}"#, std::str::from_utf8(&events[0].raw).unwrap())
        );
        assert_eq!((first.source, &first.signature), (Source::Backfill, &None));
        assert_eq!(log.get(Seq(2)).unwrap().unwrap().kind, crate::event::Kind::Partial);
        let again = store(&log, &wanted, events, now, now).await.unwrap();
        assert_eq!(
            again.counts,
            Counts {
                seen: 5,
                outside: 2,
                known: 3,
                stored: 0,
                partial: 0
            }
        );
        assert_eq!(again.newest_missed, None);
        // The whole of it comes later and gets a place of its own.
        let full = store(&log, &wanted, vec![event(4, "updated", "\"won\"")], now, now)
            .await
            .unwrap();
        assert_eq!(full.counts.stored, 1);
        log.close();
    }
}
