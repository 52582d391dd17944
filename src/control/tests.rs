//! Questions on a real log that sees what whoever reads it keeps.

use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;

use super::request::Question;
use super::*;
use crate::config::{Config, Layers};
use crate::deliver::{self, Mode};
use crate::event::{Event, Seq, SignatureHeaders, Source};
use crate::log::{self, Appended, Batch, ChangeError, Doomed, Erased, Incoming, LocalLog, Narrow, ReadError, Take};
use crate::rules::RuleSet;
use crate::state::Store;
use crate::sync::lock;

mod erasing;
mod told;
mod turns;

/// A log that knows which of the events it has given out are still there.
#[derive(Debug)]
struct Lending {
    log: LocalLog,
    lent: Mutex<Vec<Weak<Event>>>,
    /// The most that were there at once.
    most: Mutex<usize>,
    /// What can't be read any more.
    damaged: Mutex<Vec<(Seq, Seq)>>,
    /// How often it was read.
    reads: Mutex<u64>,
    /// Behind this nothing is erased, for there is no room.
    erases_upto: Mutex<Seq>,
}

#[async_trait]
impl crate::passing::PassingLog for Lending {
    fn behind(&self) -> &dyn Log {
        &self.log
    }

    async fn read(&self, from: Seq, take: Take<'_>) -> Result<Batch, ReadError> {
        let mut batch = Log::read(&self.log, from, take).await?;
        *lock(&self.reads) += 1;
        for (first, last) in lock(&self.damaged).iter().copied() {
            batch.events.retain(|event| event.seq < first || event.seq > last);
            if from <= last && first < batch.next {
                batch.lost.push((first.max(from), last.min(batch.next.prev())));
            }
        }
        // The log itself keeps what is new in memory: what is lent is each time another.
        for event in &mut batch.events {
            *event = Arc::new(copy(event));
        }
        let mut lent = lock(&self.lent);
        lent.retain(|event| event.strong_count() > 0);
        lent.extend(batch.events.iter().map(Arc::downgrade));
        let mut most = lock(&self.most);
        *most = lent.len().max(*most);
        Ok(batch)
    }

    async fn erase(&self, narrow: Narrow, doomed: Arc<Doomed>) -> Result<Erased, ChangeError> {
        let upto = *lock(&self.erases_upto);
        let part = Arc::new(move |event: &Event| event.seq <= upto && doomed(event));
        let mut erased = Log::erase(&self.log, narrow, part).await?;
        if upto < Seq(u64::MAX) {
            if erased.seqs.is_empty() {
                return Err(ChangeError("no room".into()));
            }
            erased.left.push(Erased::not_reached(upto.next(), "no room"));
        }
        Ok(erased)
    }
}

fn copy(event: &Event) -> Event {
    let (signature, body) = (event.signature.clone(), event.body.clone());
    let mut copy = Event::new(event.seq, event.received_at, event.source, event.kind, signature, body);
    copy.held = event.held;
    copy
}

/// Nothing is in front of the log, and no key is known: for want of any, or for these reasons.
#[derive(Debug, Default)]
struct Nothing {
    unknown: Vec<String>,
}

impl Receiving for Nothing {
    fn keys(&self) -> usize {
        0
    }
    fn is_signed(&self, _headers: &SignatureHeaders, _body: &[u8]) -> bool {
        false
    }
    fn signed_by(&self, _headers: &SignatureHeaders, _body: &[u8]) -> Option<Signer> {
        None
    }
    fn unknown_keys(&self) -> Vec<String> {
        self.unknown.clone()
    }
    fn sign(&self, _subscription: Option<&str>, _body: &[u8]) -> Option<(Option<String>, SignatureHeaders)> {
        None
    }
    fn received(&self) -> Option<crate::telemetry::door::Received> {
        None
    }
    fn certificate(&self) -> Option<Certificate> {
        None
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    log: Arc<Lending>,
    facade: Facade,
}

async fn facade(dir: &Path, log: Arc<dyn Log>) -> Facade {
    let store = deliver::open_store(dir, Mode::Follow).await.unwrap();
    facade_on(store, dir, log).await
}

async fn facade_on(store: Arc<dyn Store>, dir: &Path, log: Arc<dyn Log>) -> Facade {
    let mut config = Config::load(&Layers::new(&[], crate::rules::faults)).unwrap();
    config.log.dir = dir.to_owned();
    let rules = RuleSet::compile(&[], &[]).unwrap();
    let verifier = Arc::new(ArcSwap::default());
    let account = Account::open(&config, &rules, log.clone(), verifier, true);
    let options = deliver::Options {
        log: log.clone(),
        store,
        dir: dir.to_owned(),
        rules: Arc::new(rules),
        sinks: Vec::new(),
        mode: Mode::Follow,
        names: Arc::default(),
        clock: crate::age::Clock::new(jiff::Timestamp::now),
    };
    Facade {
        log,
        engine: Engine::start(options).await.unwrap(),
        receiving: Arc::new(Nothing::default()),
        account: Arc::new(account),
        retention: None,
        reload: None,
        links: None,
        bench: super::Bench::new(Arc::default()),
        history: Some(Arc::new(History::look(dir))),
        configured: None,
        others: None,
        facts: Facts {
            node: None,
            unreachable: None,
            running: false,
            pid: 1,
            version: String::new(),
            started_at: Timestamp::UNIX_EPOCH,
            url: None,
            request_ids: String::new(),
            admin: None,
            dir: dir.to_owned(),
        },
    }
}

impl Bench {
    /// One on a log with so many events, each third of lead `lead_0`.
    async fn with(events: u64) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::load(&Layers::new(&[], crate::rules::faults)).unwrap();
        config.log.dir = dir.path().to_owned();
        let log = LocalLog::open(log::Options {
            reserve: Some(0),
            ..log::Options::from_config(&config)
        });
        let log = log.unwrap();
        let incoming = |id: u64| {
            let lead = id % 3;
            let body = format!(
                r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"updated","lead_id":"lead_{lead}"}}}}"#
            );
            Incoming::new(body.into(), Timestamp::now(), Source::Webhook, None)
        };
        for from in (1..=events).step_by(500) {
            let some = from..=events.min(from + 499);
            for stored in log.append_in_order(some.map(incoming).collect()).await {
                assert!(matches!(stored, Ok(Appended::Stored(_))), "{stored:?}");
            }
        }
        let log = Arc::new(Lending {
            log,
            lent: Mutex::default(),
            most: Mutex::default(),
            damaged: Mutex::default(),
            reads: Mutex::default(),
            erases_upto: Mutex::new(Seq(u64::MAX)),
        });
        let facade = facade(dir.path(), log.clone()).await;
        Bench { _dir: dir, log, facade }
    }

    /// All answers to a question, as somebody hears them who takes one at a time.
    async fn answers<Q: Question>(&self, question: Q) -> Vec<Q::Answer> {
        let (to, mut from) = tokio::sync::mpsc::channel(1);
        let (facade, request) = (self.facade.clone(), question.into());
        let answering = tokio::spawn(async move { facade.answer(request, &Answers::new(to)).await });
        let mut heard = Vec::new();
        while let Some(answer) = from.recv().await {
            heard.push(serde_json::from_str(answer.get()).unwrap());
        }
        answering.await.unwrap().unwrap();
        heard
    }
}

fn newest(limit: u64, lead: Option<&str>) -> events::List {
    events::List {
        pick: Pick {
            lead: lead.map(str::to_owned),
            ..Pick::default()
        },
        limit: Some(limit),
        last: true,
        follow: false,
        from: None,
    }
}

async fn seqs(bench: &Bench, question: events::List) -> Vec<u64> {
    bench.answers(question).await.into_iter().filter_map(seq_of).collect()
}

fn seq_of(listed: events::Listed) -> Option<u64> {
    match listed {
        events::Listed::Event(line) => Some(line.seq.0),
        events::Listed::Unread(_) => None,
    }
}

/// What there is none of is no refusal: who asks tells it from what can't be known now.
#[tokio::test]
async fn what_is_not_there_is_told_from_what_can_not_be_read() {
    let bench = Bench::with(2).await;
    for (id, count) in [("ev_1", 1), ("2", 1), ("ev_9", 0), ("9", 0)] {
        let whole = whole::Whole {
            id: id.to_owned(),
            send: false,
        };
        assert_eq!(bench.answers(whole).await.len(), count, "{id}");
        let letters = dead::Show {
            sink: None,
            id: id.to_owned(),
        };
        assert_eq!(bench.answers(letters).await, [], "{id}");
    }
}

/// What is not known is refused, and never answered as if there were nothing.
#[tokio::test]
async fn what_a_node_without_its_log_can_not_know_it_does_not_say() {
    let dir = tempfile::tempdir().unwrap();
    let (_say, why) = watch::channel("nobody is there".to_owned());
    let servers = log::Servers {
        stream: String::new(),
        replicas: 1,
        leader: None,
        servers: Vec::new(),
    };
    let facade = facade(dir.path(), Arc::new(log::AbsentLog::new(why, servers))).await;
    for asked in [
        r#"{"query":"sinks"}"#,
        r#"{"query":"dead-list","sink":null,"pick":{},"limit":9}"#,
        r#"{"query":"dead-groups"}"#,
        r#"{"query":"dead-count"}"#,
        r#"{"query":"replays"}"#,
        r#"{"query":"event","id":"ev_1"}"#,
        r#"{"query":"whole","id":"ev_1"}"#,
        r#"{"query":"dead-show","sink":null,"id":"ev_1"}"#,
    ] {
        let (to, mut from) = tokio::sync::mpsc::channel(9);
        let request = Request::read(asked).unwrap();
        let refused = facade.answer(request, &Answers::new(to)).await;
        assert_eq!(refused, Err("nobody is there".to_owned()), "{asked}");
        assert!(from.recv().await.is_none(), "{asked}");
    }
}

/// A node that does not drive a sink says so, and no number that it does not know.
#[test]
fn what_is_not_known_of_a_sink_is_null_and_read_back() {
    let sink = |known: &str| {
        let json = format!(
            r#"{{"name":"crm","kind":"http","known":"{known}","cursor":7,"lag_events":3,"lag_seconds":5.0,"in_flight":1,"retrying":1,"dead":2,
            "lost":0,"delivered":0,"breaker":"closed","paused":false,"last_error":null,"last_error_at":null}}"#
        );
        let shown: sinks::Shown = serde_json::from_str(&json).unwrap();
        let json = serde_json::to_value(&shown).unwrap();
        serde_json::from_value::<sinks::Shown>(json.clone()).unwrap();
        json
    };
    let now = sink("now");
    assert_eq!((&now["cursor"], &now["breaker"]), (&7.into(), &"closed".into()));
    let saved = sink("saved");
    assert_eq!(
        (&saved["cursor"], &saved["breaker"]),
        (&7.into(), &serde_json::Value::Null)
    );
    let nothing = sink("nothing");
    assert!(nothing["cursor"].is_null() && nothing["dead"].is_null() && nothing["lag_events"].is_null());
}

/// An event keeps the block in memory that it was read in: whoever asks for many must not make the daemon hold them all.
#[tokio::test(flavor = "multi_thread")]
async fn the_newest_events_are_told_without_being_gathered() {
    let bench = Bench::with(8000).await;
    assert_eq!(
        seqs(&bench, newest(7000, None)).await,
        (1001..=8000).collect::<Vec<_>>()
    );
    let most = *lock(&bench.log.most);
    assert!(most <= 1024, "{most} events were there at once");
    // Whoever gathers them is seen.
    let (mut gathered, mut next) = (Vec::new(), Seq(1));
    while gathered.len() < 7000 {
        let batch = walk::read(&bench.facade, next, 1024, None).await.unwrap();
        next = batch.next;
        gathered.extend(batch.events);
    }
    assert_eq!(*lock(&bench.log.most), gathered.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_events_are_those_that_were_asked_for() {
    let bench = Bench::with(5000).await;
    let of_lead = |least: u64| {
        (1..=5000)
            .filter(|id| id % 3 == 0 && *id >= least)
            .collect::<Vec<u64>>()
    };
    for (limit, lead, expected) in [
        (0, None, Vec::new()),
        (1, None, vec![5000]),
        (1025, None, (3976..=5000).collect()),
        (9999, None, (1..=5000).collect()),
        (1, Some("lead_0"), vec![4998]),
        (1500, Some("lead_0"), of_lead(501)),
        (u64::MAX, Some("lead_0"), of_lead(1)),
        (3, Some("lead_7"), Vec::new()),
    ] {
        assert_eq!(seqs(&bench, newest(limit, lead)).await, expected, "{limit} {lead:?}");
    }
}

/// Faults are counted; the first of them are named.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_finds_everything_wrong_names_a_few() {
    let bench = Bench::with(1000).await;
    let answers = bench.answers(events::Verify {}).await;
    let Some(events::Checked::Done(found)) = answers.last() else {
        panic!("{answers:?}");
    };
    assert_eq!(found.faults.first().unwrap(), "event 1: it has no signature");
    assert!(found.faults.len() <= 300, "{} sentences", found.faults.len());
    let found = serde_json::to_value(found).unwrap();
    let named = found["faults"].as_array().unwrap().len() as u64;
    assert_eq!(found["faults_more"].as_u64().map(|more| more + named), Some(1000));
}

/// What is rare is looked up, and what is not there costs time alone: that ends as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_costs_what_it_shows_and_gets_on_however_little_it_may_cost() {
    let bench = Bench::with(3000).await;
    let browse = |lead: Option<&str>, work: browse::Work| browse::Browse {
        pick: Pick {
            lead: lead.map(str::to_owned),
            ..Pick::default()
        },
        work,
        ..browse::Browse::default()
    };
    let page = async |question| match bench.answers(question).await.pop() {
        Some(browse::Browsed::Page(page)) => *page,
        other => panic!("{other:?}"),
    };
    let newest = page(browse(None, browse::Work::default())).await;
    assert_eq!(
        (newest.events.len(), newest.events[0].seq, newest.ended),
        (50, Seq(3000), browse::Ended::Full)
    );
    assert_eq!((newest.looked.scanned, newest.next), (50, Some(Seq(2951))));
    let most = *lock(&bench.log.most);
    assert!(most <= 64, "{most} events were read for 50");
    // No time at all: each page gets on, and all of them come to the beginning.
    let mut question = browse(
        Some("lead_7"),
        browse::Work {
            millis: 0,
            ..browse::Work::default()
        },
    );
    let mut pages = 0;
    while let Some(next) = page(question.clone()).await.next {
        assert!(question.before.is_none_or(|before| next < before));
        question.before = Some(next);
        pages += 1;
    }
    assert!(pages > 3, "{pages}");
}

/// What follows the log is told a piece at a time how far it was looked, whether or not anything was meant.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_the_log_gets_on_through_what_is_not_meant() {
    let bench = Bench::with(3000).await;
    let ahead = |lead: Option<&str>, after: u64, limit: u64| ahead::Ahead {
        pick: Pick {
            lead: lead.map(str::to_owned),
            ..Pick::default()
        },
        after: Seq(after),
        limit,
    };
    let found = async |question: ahead::Ahead| {
        let found: ahead::Found = bench.answers(question).await.pop().unwrap();
        let seqs: Vec<u64> = found.events.iter().map(|line| line.seq.0).collect();
        (seqs, found.looked.0)
    };
    assert_eq!(found(ahead(None, 2997, 9)).await, (vec![2998, 2999, 3000], 3000));
    assert_eq!(found(ahead(Some("lead_0"), 0, 2)).await, (vec![3, 6], 6));
    assert_eq!(found(ahead(Some("lead_0"), 3000, 2)).await, (vec![], 3000));
    let mut at = 0;
    while at < 3000 {
        let (seqs, looked) = found(ahead(Some("lead_7"), at, 9)).await;
        assert!(seqs.is_empty() && looked > at, "{seqs:?} {looked}");
        at = looked;
    }
}

/// Waits until nothing more is answered, whether or not it was read.
async fn has_ended<T: Send + 'static>(told: &window::Told<T>) {
    let ended = async {
        while !told.has_ended() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), ended).await;
    ended.expect("it is given up");
}

/// Each of the few places for tries is given back, whoever reads.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_what_a_try_has_found_keeps_nobody_from_trying() {
    let mut bench = Bench::with(600).await;
    bench.facade.bench = bench.facade.bench.read_within(Duration::from_millis(100));
    let window = Window::new(Arc::new(bench.facade.clone()));
    let all = |last| tries::Try {
        draft: tries::Draft::Filter {
            text: r#"{"type":"non_null"}"#.into(),
        },
        pick: Pick::default(),
        last: Some(last),
        work: browse::Work {
            millis: 3000,
            ..browse::Work::default()
        },
    };
    let mut unread: Vec<_> = (0..4).map(|_| window.ask(all(600))).collect();
    // One of them has its turn now, and then is not read.
    unread[0].next_text().await.unwrap().unwrap();
    let asked = tokio::time::timeout(Duration::from_secs(60), window.ask(all(1)).last()).await;
    let answer = asked.expect("its turn comes").unwrap();
    assert!(
        matches!(&answer, tries::Tried::Done(done) if done.events == 1),
        "{answer:?}"
    );
    // Whoever reads it after all hears that it is not all there is.
    has_ended(&unread[0]).await;
    let late = unread.remove(0).texts(usize::MAX).await;
    assert!(late.unwrap_err().contains("not read in time"));
}

/// Each of the places for questions is given back, whoever reads.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_the_answers_keeps_nobody_from_asking() {
    let bench = Bench::with(600).await;
    let window = Window::new(Arc::new(bench.facade.clone())).read_within(Duration::from_millis(100));
    let mut unread: Vec<_> = (0..32).map(|_| window.ask(newest(600, None))).collect();
    unread[0].next_text().await.unwrap().unwrap();
    let asked = tokio::time::timeout(Duration::from_secs(60), window.ask(newest(1, None)).last()).await;
    assert_eq!(seq_of(asked.expect("its turn comes").unwrap()), Some(600));
    // Whoever reads them after all hears that they are not all there are.
    has_ended(&unread[0]).await;
    let late = unread.remove(0).texts(usize::MAX).await;
    assert!(late.unwrap_err().contains("not read in time"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_looked_for_when_whoever_asked_has_gone() {
    let bench = Bench::with(500).await;
    let nobody = Pick {
        filter: Some(r#"{"type":"is_null"}"#.into()),
        ..Pick::default()
    };
    let browse = browse::Browse {
        pick: nobody.clone(),
        ..browse::Browse::default()
    };
    let try_all = tries::Try {
        draft: tries::Draft::Filter {
            text: r#"{"type":"is_null"}"#.into(),
        },
        pick: nobody,
        last: None,
        work: browse::Work::default(),
    };
    for request in [Request::from(browse), Request::from(try_all)] {
        let (to, gone) = tokio::sync::mpsc::channel(1);
        drop(gone);
        let answered = bench.facade.answer(request, &Answers::new(to)).await;
        assert_eq!(answered, Err(String::new()));
        assert_eq!(*lock(&bench.log.most), 0, "nothing was read for nobody");
    }
}
