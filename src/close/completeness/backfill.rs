//! Storing what Close's event log has and ours lacks: the same duplicate rule as for deliveries, so doing it twice does nothing.
//!
//! A backfilled event has no signed bytes; its body is `{"event":<the element as Close sent it>}`. Where Close withholds
//! `data` (the key is not an administrator's and the event is older than an hour) what is left is stored as a part. Some events
//! have no data at all: that is believed of an administrator's key only, when the event says the same alone as in the list.

use std::collections::BTreeSet;

use bytes::Bytes;
use jiff::Timestamp;

use super::marks::{Counts, Spec};
use super::walk::{EventQuery, Fetched};
use super::witness::{Witness, looks_withheld, shows_old_data};
use crate::close::api::error::Error;
use crate::close::api::subscriptions::instant;
use crate::close::subscriptions::scope::{Scope, name, split};
use crate::event::{Kind, Seq, Source, View};
use crate::json::{Doc, Node};
use crate::log::{Appended, Incoming, Log};
use crate::rules::selection::EventPattern;
use crate::telemetry;

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
        // Each once: what two requests found would be counted twice.
        let asked: Option<BTreeSet<(String, String)>> = (!self.types.is_empty())
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

    /// Whether events of its type are meant, whatever their data says.
    fn takes_type(&self, view: &View) -> bool {
        let type_action = view.type_action();
        let type_action = type_action.as_deref();
        let asked = self.types.is_empty() || self.types.iter().any(|pattern| pattern.matches(type_action));
        let of_lead = self.lead.is_none() || self.lead == view.lead_id;
        asked && of_lead && self.scope.takes(type_action)
    }

    fn takes(&self, view: &View, event: Node<'_>, withheld: bool) -> bool {
        // Filters mostly look into the data: without it, only the type can tell.
        self.takes_type(view) && (withheld || self.scope.accepts(view.type_action().as_deref(), &Doc::of(event)))
    }
}

/// What comes of Close's log on its way into ours.
pub(in crate::close) struct Intake<'i, W> {
    log: &'i dyn Log,
    witness: &'i W,
    wanted: &'i Wanted,
    /// The log may have parts: what completes one is taken even where its data shows that no rule wants it.
    completes: bool,
    /// This key was not shown old data when it was last looked at.
    is_blind: bool,
}

/// Events that are ready to be stored, oldest first.
#[derive(Debug, Default)]
pub(in crate::close) struct Taken {
    incoming: Vec<Incoming>,
    counts: Counts,
    updated: Vec<Timestamp>,
}

/// What a batch added.
#[derive(Debug, Default)]
pub(in crate::close) struct Added {
    pub counts: Counts,
    /// `date_updated` of the newest event that was new, up to a bound.
    pub newest_missed: Option<Timestamp>,
    /// Whether some of them lacked their data.
    pub has_parts: bool,
    /// The first of the parts among them, be it new or known.
    pub first_part: Option<Seq>,
}

impl<'i, W: Witness + Sync> Intake<'i, W> {
    pub fn new(log: &'i dyn Log, witness: &'i W, wanted: &'i Wanted, completes: bool) -> Intake<'i, W> {
        Intake {
            log,
            witness,
            wanted,
            completes,
            is_blind: false,
        }
    }

    /// Leaves what is not meant, and finds out what is whole.
    pub async fn take(&mut self, events: Vec<Fetched>) -> Result<Taken, Error> {
        let (close_now, now) = (self.witness.now(), Timestamp::now());
        let mut taken = Taken {
            updated: events.iter().map(|event| event.updated).collect(),
            ..Taken::default()
        };
        let is_proof = |event: &Fetched| shows_old_data(node(&event.raw), event.updated, close_now);
        let sees = events.iter().any(is_proof);
        self.is_blind &= !sees;
        for fetched in events {
            taken.counts.seen += 1;
            let mut incoming = incoming(&fetched.raw, now);
            // What can't be read goes to quarantine, like a delivery that can't be: it says nothing that could be out of scope.
            if let Some(view) = &incoming.view {
                let withheld = looks_withheld(node(&fetched.raw), fetched.updated, close_now);
                let is_meant = self.wanted.takes(view, node(&fetched.raw), withheld);
                if !is_meant && (withheld || !self.is_completion(view).await?) {
                    taken.counts.outside += 1;
                    continue;
                }
                if withheld && self.log.find_revision(&view.key()).await?.is_none() {
                    match self.whole(view, &fetched, sees).await? {
                        Some(raw) => incoming = self::incoming(&raw, now),
                        None => incoming.partial = true,
                    }
                }
            }
            taken.incoming.push(incoming);
        }
        Ok(taken)
    }

    /// The event as it is in truth, of one that looks as if its data were withheld; `None` where that can't be found out.
    /// `sees`: this key was shown the data of old events just now.
    async fn whole(&mut self, view: &View, fetched: &Fetched, sees: bool) -> Result<Option<Bytes>, Error> {
        if self.is_blind {
            return Ok(None);
        }
        if !sees && !self.witness.sees_old_data().await? {
            self.is_blind = true;
            return Ok(None);
        }
        let Some(alone) = self.witness.event(&view.id).await? else {
            return Ok(None);
        };
        let updated = node(&alone).get("date_updated").and_then(Node::as_string);
        // One that was changed since is found at its new place.
        let is_same = updated.and_then(|text| instant(&text)) == Some(fetched.updated);
        Ok(is_same.then_some(alone))
    }

    /// Whether the log has this revision without its data.
    async fn is_completion(&self, view: &View) -> Result<bool, Error> {
        if !self.completes || !self.wanted.takes_type(view) {
            return Ok(false);
        }
        has_part(self.log, view).await
    }
}

impl Taken {
    /// Whether some of them lack their data.
    pub fn has_parts(&self) -> bool {
        self.incoming.iter().any(|incoming| incoming.partial)
    }

    /// Stores what the log lacks. `missed_before`: what is new and older than this should have been delivered.
    pub async fn store(self, log: &dyn Log, missed_before: Timestamp) -> Result<Added, Error> {
        let mut added = Added {
            counts: self.counts,
            has_parts: self.has_parts(),
            ..Added::default()
        };
        let partial: Vec<bool> = self.incoming.iter().map(|incoming| incoming.partial).collect();
        for (partial, appended) in partial.into_iter().zip(log.append_in_order(self.incoming).await) {
            let appended = appended.map_err(|error| Error::Local(format!("events can't be stored: {error}")))?;
            match appended {
                Appended::Stored(_) if partial => added.counts.partial += 1,
                Appended::Stored(_) | Appended::Quarantined { repeated: false, .. } => added.counts.stored += 1,
                Appended::Duplicate(_) | Appended::Quarantined { .. } => added.counts.known += 1,
            }
            if let (true, Appended::Stored(seq) | Appended::Duplicate(seq)) = (partial, appended) {
                added.first_part = Some(added.first_part.map_or(seq, |first| first.min(seq)));
            }
        }
        let Counts {
            stored, known, partial, ..
        } = added.counts;
        if stored + partial > 0 {
            added.newest_missed = self.updated.into_iter().filter(|at| *at < missed_before).max();
        }
        telemetry::backfilled(stored, known, partial);
        Ok(added)
    }

    /// What [`Taken::store`] would do, without doing it.
    pub async fn rehearse(self, log: &dyn Log) -> Result<Counts, Error> {
        let mut counts = self.counts;
        for incoming in self.incoming {
            let Some(view) = &incoming.view else {
                counts.stored += 1;
                continue;
            };
            let is_known = if incoming.partial {
                has_part(log, view).await?
            } else {
                log.find_revision(&view.key()).await?.is_some()
            };
            match (is_known, incoming.partial) {
                (true, _) => counts.known += 1,
                (false, true) => counts.partial += 1,
                (false, false) => counts.stored += 1,
            }
        }
        Ok(counts)
    }
}

/// Whether the log has this revision, without its data.
async fn has_part(log: &dyn Log, view: &View) -> Result<bool, Error> {
    for seq in log.find(&view.id).await? {
        let stored = log.get(seq).await?;
        let is_part = stored.is_some_and(|event| {
            event.kind == Kind::Partial && event.view().is_some_and(|stored| stored.key() == view.key())
        });
        if is_part {
            return Ok(true);
        }
    }
    Ok(false)
}

fn incoming(raw: &[u8], now: Timestamp) -> Incoming {
    let body = Bytes::from([b"{\"event\":", raw, b"}"].concat());
    Incoming::new(body, now, Source::Backfill, None)
}

fn node(raw: &[u8]) -> Node<'_> {
    std::str::from_utf8(raw).map_or(Node::NULL, Node::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RuleConfig;
    use crate::rules::RuleSet;

    fn scope(patterns: &[&str], filter: Option<&str>) -> Scope {
        let rule = RuleConfig {
            program: None,
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
        for asked in [
            &["lead.created", "lead.created"][..],
            &["lead.created", "lead.*", "*.created"],
        ] {
            assert_eq!(
                queries(wanted(&["lead.created"], asked, None)),
                ["- lead.created"],
                "once, however often it is said"
            );
        }
        assert_eq!(
            queries(wanted(&["*"], &["lead.created", "lead.created"], None)),
            ["- lead.created"]
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

    /// A Close as this key sees it.
    struct Eyes {
        now: Timestamp,
        sees: bool,
        /// What single events say, by id.
        alone: Vec<(&'static str, String)>,
        asked: std::sync::Mutex<u32>,
    }

    impl Witness for Eyes {
        fn now(&self) -> Timestamp {
            self.now
        }

        async fn event(&self, id: &str) -> Result<Option<Bytes>, Error> {
            let found = self.alone.iter().find(|(known, _)| *known == id);
            Ok(found.map(|(_, text)| Bytes::copy_from_slice(text.as_bytes())))
        }

        async fn sees_old_data(&self) -> Result<bool, Error> {
            *self.asked.lock().unwrap() += 1;
            Ok(self.sees)
        }
    }

    fn eyes(sees: bool, alone: Vec<(&'static str, String)>) -> Eyes {
        Eyes {
            now: "2024-02-16T00:00:00Z".parse().unwrap(),
            sees,
            alone,
            asked: std::sync::Mutex::default(),
        }
    }

    struct Bench {
        _dir: tempfile::TempDir,
        log: crate::log::LocalLog,
        wanted: Wanted,
    }

    impl Bench {
        fn new(wanted: Wanted) -> Bench {
            let dir = tempfile::tempdir().unwrap();
            let config = crate::config::Config::load(&crate::config::Layers::new(&[], crate::rules::faults)).unwrap();
            let options = crate::log::Options {
                dir: dir.path().to_owned(),
                ..crate::log::Options::from_config(&config)
            };
            Bench {
                log: crate::log::LocalLog::open(options).unwrap(),
                _dir: dir,
                wanted,
            }
        }

        async fn take(&self, eyes: &Eyes, completes: bool, events: Vec<Fetched>) -> Taken {
            let mut intake = Intake::new(&self.log, eyes, &self.wanted, completes);
            intake.take(events).await.unwrap()
        }

        async fn store(&self, eyes: &Eyes, completes: bool, events: Vec<Fetched>) -> Added {
            let taken = self.take(eyes, completes, events).await;
            taken.store(&self.log, eyes.now).await.unwrap()
        }

        fn kind(&self, seq: u64) -> Kind {
            self.log.get(Seq(seq)).unwrap().unwrap().kind
        }
    }

    const WON: &str = r#"{"type":"field_accessor","field":"data","filter":{"type":"equals","value":"won"}}"#;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_in_scope_is_stored_once_as_close_wrote_it() {
        let bench = Bench::new(Wanted::all(scope(&["lead.updated"], Some(WON))));
        let eyes = eyes(false, Vec::new());
        let event = |id: u32, name: &str, data: &str| {
            fetched(
                &format!(
                    r#"{{"id": "ev_{id}", "date_updated":"{AT}","object_type":"lead","action":"{name}"{data},"n":1.50}}"#
                ),
                AT,
            )
        };
        let events = vec![
            event(1, "updated", r#", "data":"won""#),
            event(2, "updated", r#", "data":"lost""#),
            event(3, "created", r#", "data":"won""#),
            event(4, "updated", ""),
            fetched(r#"{"no":"id"}"#, AT),
        ];
        // That one has its data shows an administrator's key, which is shown nothing more of the other.
        let taken = bench.take(&eyes, false, events.clone()).await;
        let rehearsed = taken.rehearse(&bench.log).await.unwrap();
        let counts = |known, stored, partial| Counts {
            seen: 5,
            outside: 2,
            known,
            stored,
            partial,
        };
        assert_eq!(rehearsed, counts(0, 2, 1));
        let added = bench.store(&eyes, false, events.clone()).await;
        assert_eq!(added.counts, rehearsed);
        assert_eq!((added.newest_missed, added.first_part), (AT.parse().ok(), Some(Seq(2))));
        let first = bench.log.get(Seq(1)).unwrap().unwrap();
        assert_eq!(
            first.body,
            format!(r#"{{"event":{}}}"#, std::str::from_utf8(&events[0].raw).unwrap())
        );
        assert_eq!((first.source, &first.signature), (Source::Backfill, &None));
        assert_eq!(bench.kind(2), Kind::Partial);
        let again = bench.store(&eyes, false, events.clone()).await;
        assert_eq!((again.counts, again.newest_missed), (counts(3, 0, 0), None));
        assert_eq!(again.first_part, Some(Seq(2)), "it still lacks its data");
        let again = bench
            .take(&eyes, false, events)
            .await
            .rehearse(&bench.log)
            .await
            .unwrap();
        assert_eq!(
            again,
            counts(2, 1, 0),
            "whether the same is in quarantine is not looked up"
        );
        // The whole of it comes later and gets a place of its own.
        let full = bench
            .store(&eyes, false, vec![event(4, "updated", r#", "data":"won""#)])
            .await;
        assert_eq!(full.counts.stored, 1);
        bench.log.close();
    }

    /// An event, with what stands behind its type.
    fn lead(id: u32, rest: &str) -> Fetched {
        let text = format!(r#"{{"id":"ev_{id}","date_updated":"{AT}","object_type":"lead","action":"updated"{rest}}}"#);
        fetched(&text, AT)
    }

    fn text(event: &Fetched) -> String {
        String::from_utf8(event.raw.to_vec()).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_event_without_data_is_whole_where_an_administrators_key_is_told_so_again() {
        let bench = Bench::new(Wanted::all(scope(&["*"], None)));
        let bare = vec![lead(1, ""), lead(2, ""), lead(3, "")];
        // Another key: one look for all of them, and they are parts.
        let other = eyes(false, vec![("ev_1", text(&bare[0]))]);
        assert_eq!(bench.store(&other, false, bare.clone()).await.counts.partial, 3);
        assert_eq!(*other.asked.lock().unwrap(), 1);
        // An administrator's: the first says the same, the second has its data when it is asked for alone, the third has moved on.
        let moved = text(&bare[2]).replace(AT, "2024-02-15T12:00:01Z");
        let full = lead(2, r#","data":{"name":"x"}"#);
        let admin = eyes(
            true,
            vec![("ev_1", text(&bare[0])), ("ev_2", text(&full)), ("ev_3", moved)],
        );
        let added = bench.store(&admin, true, bare.clone()).await;
        assert_eq!((added.counts.stored, added.counts.known), (2, 1), "{:?}", added.counts);
        assert_eq!((bench.kind(4), bench.kind(5)), (Kind::Event, Kind::Event));
        assert!(String::from_utf8_lossy(&bench.log.get(Seq(5)).unwrap().unwrap().body).contains("\"name\":\"x\""));
        // What is whole needs no more questions.
        let asked = eyes(true, Vec::new());
        bench.store(&asked, true, bare[..2].to_vec()).await;
        assert_eq!(*asked.asked.lock().unwrap(), 0);
        // Said to be none, it is none, whoever asks.
        let none = lead(4, r#","data":null,"previous_data":null"#);
        assert_eq!(bench.store(&other, false, vec![none]).await.counts.stored, 1);
        bench.log.close();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_completes_a_part_is_stored_even_if_no_rule_wants_it() {
        let bench = Bench::new(Wanted::all(scope(&["lead.updated"], Some(WON))));
        let other = eyes(false, Vec::new());
        assert_eq!(bench.store(&other, false, vec![lead(1, "")]).await.counts.partial, 1);
        let admin = eyes(true, Vec::new());
        let lost = || vec![lead(1, r#","data":"lost""#), lead(2, r#","data":"lost""#)];
        let before = bench.store(&admin, false, lost()).await.counts;
        assert_eq!((before.stored, before.outside), (0, 2));
        let after = bench.store(&admin, true, lost()).await.counts;
        assert_eq!((after.stored, after.outside), (1, 1));
        bench.log.close();
    }
}
