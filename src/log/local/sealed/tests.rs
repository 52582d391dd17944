//! Reading less than everything gives no event less than reading everything.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;

use super::database::{DB_NAME, Database, Tree};
use super::*;
use crate::event::{Event, EventPattern, Kind, Seq, Source, View};
use crate::log::local::journal;
use crate::log::local::{Clock, LocalLog, Options, Restorer};
use crate::log::{Log, Narrow, Take};

fn options(dir: &Path) -> Options {
    Options {
        dir: dir.to_owned(),
        segment_size: 1 << 30,
        segment_age: Duration::from_secs(86_400),
        reserve: Some(0),
        keys_kept: Duration::from_secs(73 * 3600),
        cache_bytes: 64 << 20,
        read_only: false,
        round: Duration::from_secs(3600),
        now: Clock::default(),
    }
}

/// An entry of a log, made up.
#[derive(Debug, Clone)]
struct Made {
    kind: Kind,
    fields: Vec<(&'static str, String)>,
    padding: usize,
}

impl Made {
    fn event(&self, seq: u64) -> Event {
        let long = |json: &String| {
            if json == "\"long\"" {
                format!("\"{}\"", LONG.repeat(5_000))
            } else {
                json.clone()
            }
        };
        let fields: Vec<String> = self
            .fields
            .iter()
            .map(|(name, json)| format!("{}:{}", serde_json::json!(name), long(json)))
            .collect();
        let noise = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(seq.to_be_bytes()));
        let noise = noise.repeat(self.padding.div_ceil(64));
        let body = match self.kind {
            Kind::Quarantined => format!("no delivery {seq}"),
            Kind::Erased => String::new(),
            _ => format!(r#"{{"event":{{{}}},"noise":"{noise}"}}"#, fields.join(",")),
        };
        let at = Timestamp::from_second(1_700_000_000 + seq as i64).unwrap();
        Event::new(Seq(seq), at, Source::Webhook, self.kind, None, body.into())
    }
}

/// A text too long to be printed when a test fails.
const LONG: &str = "long and longer and ";

const ODD: [&str; 6] = ["", "a", "lead_1", "läd ☃ \"\\", "null", "*"];

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (0..12_u32).prop_map(|n| format!("x_{n}")),
        2 => prop::sample::select(&ODD[..]).prop_map(str::to_owned),
        1 => Just("long".to_owned()),
    ]
}

/// A field's JSON; `None` where it is missing.
fn field() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        8 => text().prop_map(|text| Some(serde_json::json!(text).to_string())),
        1 => Just(None),
        1 => prop::sample::select(&["null", "7", "[]", "{\"id\":\"x_1\"}"][..]).prop_map(|json| Some(json.to_owned())),
    ]
}

fn made() -> impl Strategy<Value = Made> {
    let kind = prop_oneof![
        12 => Just(Kind::Event),
        1 => Just(Kind::Partial),
        1 => Just(Kind::Quarantined),
        1 => Just(Kind::Erased)
    ];
    let padding = prop_oneof![6 => Just(0_usize), 1 => 100_000..300_000_usize];
    let names = ["lead_id", "object_id", "object_type", "action"];
    let fields = prop::collection::vec(field(), names.len());
    (kind, text(), fields, padding).prop_map(move |(kind, id, fields, padding)| {
        let mut all = vec![("id", serde_json::json!(id).to_string())];
        all.extend(
            names
                .into_iter()
                .zip(fields)
                .filter_map(|(name, json)| Some((name, json?))),
        );
        Made {
            kind,
            fields: all,
            padding,
        }
    })
}

const PATTERNS: [&str; 8] = ["x_1.*", "*.x_2", "*", "x_3.x_4", "*x_5*", "not one", ".a", "**"];

fn narrow() -> impl Strategy<Value = Narrow> {
    let some = || prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(text(), 1..4)];
    let types = prop_oneof![
        2 => Just(Vec::new()),
        1 => prop::collection::vec(prop::sample::select(&PATTERNS[..]).prop_map(str::to_owned), 1..3)
    ];
    (some(), some(), some(), types).prop_map(|(ids, leads, objects, types)| Narrow {
        ids: ids.into_iter().collect(),
        leads: leads.into_iter().collect(),
        objects: objects.into_iter().collect(),
        types,
    })
}

/// The same with the long text.
fn written_out(narrow: &Narrow) -> Narrow {
    let all = |texts: &BTreeSet<String>| {
        let long = |text: &String| {
            if text == "long" {
                LONG.repeat(5_000)
            } else {
                text.clone()
            }
        };
        texts.iter().map(long).collect()
    };
    Narrow {
        ids: all(&narrow.ids),
        leads: all(&narrow.leads),
        objects: all(&narrow.objects),
        types: narrow.types.clone(),
    }
}

/// What a reader wants, by the words of [`Narrow`].
fn is_wanted(narrow: &Narrow, event: &Event) -> bool {
    let Some(view) = event.view() else { return false };
    let one_of = |texts: &BTreeSet<String>, text: Option<&String>| {
        texts.is_empty() || text.is_some_and(|text| texts.contains(text))
    };
    let matches = |pattern: &String| {
        EventPattern::parse(pattern).is_ok_and(|pattern| pattern.matches(view.type_action().as_deref()))
    };
    one_of(&narrow.ids, Some(&view.id))
        && one_of(&narrow.leads, view.lead_id.as_ref())
        && one_of(&narrow.objects, view.object_id.as_ref())
        && (narrow.types.is_empty() || narrow.types.iter().any(matches))
}

/// Makes a log of sealed segments, the ones named without an index as earlier versions sealed them.
fn make_log(dir: &Path, segments: &[Vec<Made>], without_index: &[bool]) -> LocalLog {
    let mut restorer = Restorer::new(dir).unwrap();
    let mut seq = 1;
    let mut firsts = Vec::new();
    for events in segments {
        restorer.segment(Seq(seq), true).unwrap();
        firsts.push(Seq(seq));
        let mut encoder = super::super::block::Encoder::new(1).unwrap();
        for event in events {
            encoder.push(&event.event(seq), &[]);
            seq += 1;
        }
        restorer.block(encoder.finish().unwrap()).unwrap();
        // Seqs between two segments that were never given out or are lost.
        seq += 3;
    }
    restorer.finish(Seq(seq), Vec::new()).unwrap();
    drop(restorer);
    for (first, without_index) in firsts.iter().zip(without_index) {
        if *without_index {
            let dir = journal::segment_dir(&dir.join("log"), *first);
            let mut manifest = Manifest::load(&dir).unwrap();
            assert!(manifest.index.take().is_some());
            manifest.store(&dir).unwrap();
        }
    }
    LocalLog::open(options(dir)).unwrap()
}

/// Everything that is read from a place on, with what is lost.
async fn read_all(
    log: &LocalLog,
    from: Seq,
    narrow: Option<&Narrow>,
    events: usize,
) -> (Vec<Arc<Event>>, Vec<Seq>, Seq) {
    let (mut found, mut lost, mut at) = (Vec::new(), Vec::new(), from);
    loop {
        let take = Take {
            events,
            bytes: 1 << 20,
            narrow,
        };
        let batch = Log::read(log, at, take).await.unwrap();
        for (from, to) in batch.lost {
            assert!(at <= from && to < batch.next);
            lost.extend((from.0..=to.0).map(Seq));
        }
        for event in &batch.events {
            assert!(at <= event.seq && event.seq < batch.next, "I3");
            at = event.seq.next();
        }
        found.extend(batch.events);
        if batch.next == at && batch.next > *log.head().borrow() {
            return (found, lost, at);
        }
        at = batch.next;
    }
}

fn seqs(events: &[Arc<Event>], narrow: &Narrow) -> Vec<u64> {
    let wanted = events.iter().filter(|event| is_wanted(narrow, event));
    wanted.map(|event| event.seq.0).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn reading_what_is_looked_up_leaves_out_nothing_that_reading_everything_finds(
        segments in prop::collection::vec(prop::collection::vec(made(), 1..40), 1..4),
        without_index in prop::collection::vec(prop::bool::weighted(0.3), 4),
        narrows in prop::collection::vec((narrow(), 1_u64..90, 1_usize..9), 12),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let log = make_log(dir.path(), &segments, &without_index);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            for (narrow, from, events) in &narrows {
                let narrow = &written_out(narrow);
                let (all, all_lost, end) = read_all(&log, Seq(*from), None, 1000).await;
                let (some, some_lost, some_end) = read_all(&log, Seq(*from), Some(narrow), *events).await;
                assert_eq!(seqs(&all, narrow), seqs(&some, narrow));
                assert_eq!((all_lost, end), (some_lost, some_end));
                let indexed = |event: &&Arc<Event>| {
                    let mut firsts = 1;
                    for (segment, without) in segments.iter().zip(&without_index) {
                        if (firsts..firsts + segment.len() as u64).contains(&event.seq.0) {
                            return !*without;
                        }
                        firsts += segment.len() as u64 + 3;
                    }
                    false
                };
                // So few texts that not even checksums of a few bits are expected to be the same often.
                let superfluous = some.iter().filter(indexed).filter(|event| !is_wanted(narrow, event)).count();
                let restricts = !narrow.is_empty() && narrow.types.iter().all(|text| text == "x_3.x_4");
                assert!(!restricts || superfluous * 4 <= some.len().max(40), "{superfluous} of {} are not wanted", some.len());
            }
        });
        log.close();
    }
}

/// Events of a hundred leads, with bodies that make several packs.
fn of_leads(count: u64) -> Vec<Made> {
    let event = |number: u64| Made {
        kind: Kind::Event,
        fields: [
            ("id", number),
            ("lead_id", number / 40),
            ("object_id", number % 7),
            ("object_type", 0),
            ("action", number % 3),
        ]
        .map(|(name, number)| (name, format!("\"{name}_{number}\"")))
        .to_vec(),
        padding: 20_000,
    };
    (0..count).map(event).collect()
}

fn of_lead(number: u64) -> Narrow {
    Narrow {
        leads: [format!("lead_id_{number}")].into(),
        ..Narrow::default()
    }
}

#[tokio::test]
async fn only_packs_that_hold_a_candidate_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let log = make_log(dir.path(), &[of_leads(400)], &[false]);
    let (found, _, _) = read_all(&log, Seq(1), Some(&of_lead(5)), 1000).await;
    assert_eq!(
        found.iter().map(|event| event.seq.0).collect::<Vec<_>>(),
        (201..=240).collect::<Vec<_>>()
    );
    let Some(crate::log::local::shared::Segment::Sealed(sealed)) = log.shared.segment_for(Seq(1)) else {
        panic!("it is sealed")
    };
    let packs = &sealed.manifest.packs;
    assert!(packs.len() > 6, "{} packs", packs.len());
    let read = packs
        .iter()
        .filter(|pack| log.shared.cached(pack.first, pack.first).is_some());
    for pack in read.clone() {
        assert!(
            pack.first <= Seq(240) && pack.last() >= Seq(201),
            "{pack:?} was read for nothing"
        );
    }
    assert_ne!(read.count(), 0);
    // Both of these hold for one event in it.
    let both = Narrow {
        objects: ["object_id_3".to_owned()].into(),
        ..of_lead(5)
    };
    let (found, _, _) = read_all(&log, Seq(1), Some(&both), 1000).await;
    assert!(
        found.len() < 7 && found.iter().all(|event| is_wanted(&both, event)),
        "{}",
        found.len()
    );
    let view = found[0].view().map(|view: &View| view.object_id.as_deref());
    assert_eq!(view, Some(Some("object_id_3")));
    log.close();
}

#[tokio::test]
async fn an_index_that_can_not_be_believed_hides_nothing() {
    for tree in [Tree::Leads, Tree::Ids] {
        let dir = tempfile::tempdir().unwrap();
        make_log(dir.path(), &[of_leads(90)], &[false]).close();
        let segment = journal::segment_dir(&dir.path().join("log"), Seq(1));
        let mut manifest = Manifest::load(&segment).unwrap();
        // As if sled gave something else back than what was put, with all files as they were sealed.
        let path = segment.join(DB_NAME);
        let other = {
            let db = Database::open(&path).unwrap();
            let page = db.get(Tree::Objects, &0_u32.to_be_bytes()).unwrap().unwrap();
            db.put(tree, &0_u32.to_be_bytes(), &page).unwrap();
            db.flush().unwrap();
            page
        };
        manifest.files = database::settle(&path, &mut |db| {
            assert_eq!(db.get(tree, &0_u32.to_be_bytes())?.as_ref(), Some(&other));
            Ok(())
        })
        .unwrap();
        manifest.store(&segment).unwrap();
        let log = LocalLog::open(options(dir.path())).unwrap();
        let narrow = Narrow {
            ids: ["id_85".to_owned()].into(),
            ..of_lead(2)
        };
        let (found, _, _) = read_all(&log, Seq(1), Some(&narrow), 1000).await;
        assert_eq!(seqs(&found, &narrow), [86]);
        assert_eq!(found.len(), 90, "{tree:?}: the segment is read whole");
        log.close();
    }
}
