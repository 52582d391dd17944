//! What every log promises, whichever engine keeps it: the same tests on each of them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use super::{Appended, Clock, Incoming, LocalLog, Log, Narrow, Options, Take};
use crate::event::{Event, EventKey, Kind, Seq, SignatureHeaders, Source, Updated};

#[cfg(feature = "engine-jetstream")]
#[allow(clippy::duplicate_mod)]
#[path = "../../tests/it/jetstream_cluster.rs"]
pub mod jetstream_cluster;

/// Where a log is kept, and how far ahead its clock is.
enum Place {
    Local(tempfile::TempDir),
    #[cfg(feature = "engine-jetstream")]
    JetStream(Box<jetstream_cluster::Cluster>),
}

struct Bench {
    place: Place,
    days_ahead: Arc<std::sync::atomic::AtomicI64>,
}

impl Bench {
    fn new(place: Place) -> Bench {
        Bench {
            place,
            days_ahead: Arc::default(),
        }
    }

    fn now(&self) -> Clock {
        let ahead = self.days_ahead.clone();
        let hours = move || jiff::SignedDuration::from_hours(24 * ahead.load(std::sync::atomic::Ordering::SeqCst));
        Clock::new(move || Timestamp::now() + hours())
    }

    /// The log, opened (again).
    async fn open(&self) -> Arc<dyn Log> {
        match &self.place {
            Place::Local(dir) => Arc::new(open_local(dir.path(), self.now()).await),
            #[cfg(feature = "engine-jetstream")]
            Place::JetStream(cluster) => Arc::new(open_jetstream(cluster, self.now()).await),
        }
    }

    /// Whether several may have it open at a time.
    fn is_shared(&self) -> bool {
        !matches!(self.place, Place::Local(_))
    }
}

async fn open_local(dir: &std::path::Path, now: Clock) -> LocalLog {
    let options = Options {
        dir: dir.to_owned(),
        segment_size: 1 << 30,
        segment_age: Duration::from_secs(86_400),
        reserve: Some(0),
        keys_kept: Duration::from_secs(31 * 86_400),
        cache_bytes: 1 << 20,
        read_only: false,
        round: Duration::from_secs(3600),
        now,
    };
    // A program that another test starts just then holds the lock of a log that was closed until it is executed.
    for _ in 0..2000 {
        match LocalLog::open(options.clone()) {
            Err(super::OpenError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            opened => return opened.unwrap(),
        }
    }
    panic!("the log's lock is never given back");
}

#[cfg(feature = "engine-jetstream")]
pub(in crate::log) fn jetstream_options(cluster: &jetstream_cluster::Cluster) -> super::jetstream::Options {
    use crate::net::nats::{Server, Way};
    let servers = cluster.urls().iter().map(|url| Server::parse(url).unwrap()).collect();
    super::jetstream::Options {
        replicas: cluster.nodes.len(),
        ..super::jetstream::Options::usual(Way::plain(servers, "test"), cluster.monitors())
    }
}

#[cfg(feature = "engine-jetstream")]
async fn open_jetstream(cluster: &jetstream_cluster::Cluster, now: Clock) -> super::jetstream::JetStreamLog {
    let options = super::jetstream::Options {
        servers_now: Some(now.clone()),
        now,
        ..jetstream_options(cluster)
    };
    super::jetstream::check::create(&options).await.unwrap();
    super::jetstream::JetStreamLog::open(options).await.unwrap()
}

fn body(id: u64, revision: u64) -> String {
    format!(
        r#"{{"event": {{"id": "ev_{id}", "date_updated": "2024-02-15T12:48:23.{revision:06}", "lead_id": "lead_{}", "data": {{"n": {id}}}}}}}"#,
        id % 7
    )
}

fn incoming(body: impl Into<Bytes>) -> Incoming {
    let signature = SignatureHeaders {
        timestamp: "1544271440".into(),
        hash: "0a".repeat(32),
    };
    Incoming::new(body.into(), Timestamp::now(), Source::Webhook, Some(signature))
}

fn stored(appended: Appended) -> Seq {
    match appended {
        Appended::Stored(seq) => seq,
        other => panic!("{other:?}"),
    }
}

async fn store(log: &dyn Log, ids: std::ops::RangeInclusive<u64>) -> Vec<Seq> {
    let mut seqs = Vec::new();
    for id in ids {
        seqs.push(stored(log.append(incoming(body(id, 0))).await.unwrap()));
    }
    seqs
}

fn everything() -> Take<'static> {
    Take {
        events: 1000,
        bytes: 8 << 20,
        narrow: None,
    }
}

/// All events from a Seq on, and what is lost of them.
async fn all(log: &dyn Log, from: Seq, take: Take<'_>) -> (Vec<Arc<Event>>, Vec<(Seq, Seq)>) {
    let (mut from, mut events, mut lost) = (from, Vec::new(), Vec::new());
    loop {
        let batch = log.read(from, take).await.unwrap();
        assert!(batch.events.len() <= take.events, "as many as were asked for");
        events.extend(batch.events);
        lost.extend(batch.lost);
        if batch.next <= from || batch.next > *log.head().borrow() {
            assert!(events.is_sorted_by_key(|event| event.seq), "in order");
            return (events, lost);
        }
        from = batch.next;
    }
}

async fn what_is_stored_comes_back_as_it_came(bench: &Bench) {
    let log = bench.open().await;
    assert_eq!(*log.head().borrow(), Seq::ZERO);
    let mut sent = incoming(body(1, 0));
    sent.held = true;
    let (bytes, received_at) = (sent.body.clone(), sent.received_at);
    let first = stored(log.append(sent).await.unwrap());
    let odd = "\u{feff} {\"event\": {\"id\": \"ev \\u0000 \\r\\n é\"}}\r\n";
    let odd_body: Bytes = odd.as_bytes().to_vec().into();
    let second = log.append(incoming(odd_body.clone())).await.unwrap();
    let backfilled = Incoming::new(body(3, 0).into(), Timestamp::now(), Source::Backfill, None);
    let third = stored(log.append(backfilled).await.unwrap());
    let seq_of_second = match second {
        Appended::Quarantined { seq, repeated: false } | Appended::Stored(seq) => seq,
        other => panic!("{other:?}"),
    };
    assert!(first < seq_of_second && seq_of_second < third);
    assert_eq!(*log.head().borrow(), third);

    let event = log.get(first).await.unwrap().unwrap();
    assert_eq!((&event.body, event.held, event.kind), (&bytes, true, Kind::Event));
    assert_eq!(event.received_at.as_microsecond(), received_at.as_microsecond());
    assert_eq!(event.signature.as_ref().unwrap().hash, "0a".repeat(32));
    assert_eq!(log.get(seq_of_second).await.unwrap().unwrap().body, odd_body);
    let event = log.get(third).await.unwrap().unwrap();
    assert_eq!(
        (event.source, event.signature.is_none(), event.held),
        (Source::Backfill, true, false)
    );
    assert!(log.get(third.next()).await.unwrap().is_none());
    assert!(log.get(Seq::ZERO).await.unwrap().is_none());
    log.close().await;
}

async fn an_event_is_stored_once_and_the_second_is_told_where(bench: &Bench) {
    let log = bench.open().await;
    let seqs = store(&*log, 1..=3).await;
    let again = |id, revision| log.append(incoming(body(id, revision)));
    assert_eq!(again(2, 0).await, Ok(Appended::Duplicate(seqs[1])));
    // The same instant, written otherwise, in other bytes.
    let other =
        r#"{"event": {"date_updated": "2024-02-15T12:48:23.000+00:00", "id": "ev_2", "lead_id": "lead_other"}}"#;
    assert_eq!(log.append(incoming(other)).await, Ok(Appended::Duplicate(seqs[1])));
    let revision = stored(again(2, 1).await.unwrap());
    assert_eq!(log.find("ev_2").await.unwrap(), [seqs[1], revision]);
    assert_eq!(log.find("ev_22").await.unwrap(), []);
    let key = |id: &str, text: &str| EventKey {
        id: id.into(),
        updated: Updated::parse(text),
    };
    let known = log.find_revision(&key("ev_2", "2024-02-15T12:48:23.000001Z")).await;
    assert_eq!(known.unwrap(), Some(revision));
    assert_eq!(
        log.find_revision(&key("ev_2", "2024-02-15T12:48:24")).await.unwrap(),
        None
    );

    let junk = || incoming("no json");
    let Ok(Appended::Quarantined { seq, repeated: false }) = log.append(junk()).await else {
        panic!("not in quarantine");
    };
    assert_eq!(
        log.append(junk()).await,
        Ok(Appended::Quarantined { seq, repeated: true })
    );
    assert_eq!(log.get(seq).await.unwrap().unwrap().kind, Kind::Quarantined);

    // Known after a restart, too.
    log.close().await;
    let log = bench.open().await;
    assert_eq!(log.append(incoming(body(2, 0))).await, Ok(Appended::Duplicate(seqs[1])));
    assert_eq!(
        log.append(junk()).await,
        Ok(Appended::Quarantined { seq, repeated: true })
    );
    log.close().await;
}

async fn a_partial_event_is_none_of_the_full_one(bench: &Bench) {
    let log = bench.open().await;
    let partial = |id| Incoming {
        partial: true,
        ..incoming(body(id, 0))
    };
    let part = stored(log.append(partial(1)).await.unwrap());
    assert_eq!(log.append(partial(1)).await, Ok(Appended::Duplicate(part)));
    assert_eq!(log.get(part).await.unwrap().unwrap().kind, Kind::Partial);
    let key = EventKey {
        id: "ev_1".into(),
        updated: Updated::parse("2024-02-15T12:48:23"),
    };
    assert_eq!(log.find_revision(&key).await.unwrap(), None, "complete it is not there");
    let full = stored(log.append(incoming(body(1, 0))).await.unwrap());
    let Ok(Appended::Duplicate(known)) = log.append(partial(1)).await else {
        panic!("a part of what is there is a duplicate");
    };
    assert!(known == part || known == full, "{known}");
    assert_eq!(log.find_revision(&key).await.unwrap(), Some(full));
    assert_eq!(log.find("ev_1").await.unwrap(), [part, full]);
    log.close().await;
}

async fn several_are_stored_in_their_order(bench: &Bench) {
    let log = bench.open().await;
    let known = store(&*log, 5..=5).await[0];
    // One is known, and one stands there twice.
    let ids: Vec<u64> = (1..=600).chain([300]).collect();
    let answers = log
        .append_in_order(ids.iter().map(|id| incoming(body(*id, 0))).collect())
        .await;
    let answers: Vec<Appended> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers[4], Appended::Duplicate(known));
    assert_eq!(answers[600], Appended::Duplicate(stored(answers[299])));
    let seqs: Vec<Seq> = answers[..600]
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != 4)
        .map(|(_, one)| stored(*one))
        .collect();
    assert!(seqs.is_sorted() && seqs.len() == 599);
    for (id, seq) in [(1, seqs[0]), (300, seqs[298]), (600, seqs[598])] {
        let event = log.get(seq).await.unwrap().unwrap();
        assert_eq!(event.view().unwrap().id, format!("ev_{id}"));
    }
    log.close().await;
}

async fn whatever_comes_at_once_is_stored_once_each(bench: &Bench) {
    let log = bench.open().await;
    let other = if bench.is_shared() {
        bench.open().await
    } else {
        log.clone()
    };
    let mut tasks = tokio::task::JoinSet::new();
    for round in 0..4 {
        for id in 1..=50 {
            let log = if round % 2 == 0 { log.clone() } else { other.clone() };
            tasks.spawn(async move { (id, log.append(incoming(body(id, 0))).await.unwrap()) });
        }
    }
    let mut seqs = std::collections::BTreeMap::new();
    let mut stored_now = 0;
    while let Some(done) = tasks.join_next().await {
        let (id, appended) = done.unwrap();
        let (Appended::Stored(seq) | Appended::Duplicate(seq)) = appended else {
            panic!("{appended:?}");
        };
        stored_now += u32::from(matches!(appended, Appended::Stored(_)));
        assert_eq!(*seqs.entry(id).or_insert(seq), seq, "ev_{id} is at one place");
    }
    assert_eq!((stored_now, seqs.len()), (50, 50));
    let (found, lost) = all(&*log, Seq(1), everything()).await;
    assert_eq!((found.len(), lost.len()), (50, 0));
    for event in found {
        let id: u64 = event.view().unwrap().id.trim_start_matches("ev_").parse().unwrap();
        assert_eq!(seqs[&id], event.seq);
    }
    // Both see all of it without being told.
    let mut ends = other.head();
    let newest = *seqs.values().max().unwrap();
    tokio::time::timeout(Duration::from_secs(20), ends.wait_for(|end| *end >= newest))
        .await
        .unwrap()
        .unwrap();
    log.close().await;
    other.close().await;
}

async fn a_reader_takes_as_much_as_it_wants(bench: &Bench) {
    let log = bench.open().await;
    let seqs = store(&*log, 1..=30).await;
    let few = Take {
        events: 7,
        ..everything()
    };
    let (events, lost) = all(&*log, Seq(1), few).await;
    assert_eq!(events.iter().map(|event| event.seq).collect::<Vec<_>>(), seqs);
    assert!(lost.is_empty());
    let tiny = Take {
        bytes: 1,
        ..everything()
    };
    let batch = log.read(seqs[3], tiny).await.unwrap();
    assert_eq!(
        (batch.events.len(), batch.next),
        (1, seqs[3].next()),
        "one is always taken"
    );
    let head = *log.head().borrow();
    let batch = log.read(head.next(), everything()).await.unwrap();
    assert_eq!((batch.events.len(), batch.next), (0, head.next()));

    let narrow = Narrow {
        ids: ["ev_3", "ev_9", "ev_77"].map(str::to_owned).into(),
        ..Narrow::default()
    };
    let narrowed = Take {
        narrow: Some(&narrow),
        ..few
    };
    let (events, _) = all(&*log, Seq(1), narrowed).await;
    let left: Vec<Seq> = events
        .iter()
        .filter(|event| narrow.leaves(event))
        .map(|event| event.seq)
        .collect();
    assert_eq!(left, [seqs[2], seqs[8]]);
    assert_eq!(log.last_before(seqs[5]), Some(seqs[5].prev()));
    assert_eq!(log.last_before(Seq(1)), None);
    log.close().await;
}

async fn a_time_is_found_and_what_is_restarted_is_the_same_log(bench: &Bench) {
    let log = bench.open().await;
    let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
    let mut seqs = Vec::new();
    for id in 0..20 {
        let mut incoming = incoming(body(id, 0));
        incoming.received_at = at(id as i64 * 10);
        seqs.push(stored(log.append(incoming).await.unwrap()));
    }
    assert_eq!(log.seq_at(at(-5)).await.unwrap(), seqs[0]);
    assert_eq!(log.seq_at(at(70)).await.unwrap(), seqs[7]);
    assert_eq!(log.seq_at(at(71)).await.unwrap(), seqs[8]);
    assert_eq!(log.seq_at(at(1000)).await.unwrap(), log.head().borrow().next());
    let (id, epoch) = (log.id().to_owned(), log.epoch().to_owned());
    assert!(!id.is_empty() && !epoch.is_empty());
    log.close().await;
    assert!(
        log.append(incoming(body(99, 0))).await.is_err(),
        "a closed log takes nothing"
    );

    let log = bench.open().await;
    assert_eq!((log.id(), log.epoch()), (id.as_str(), epoch.as_str()));
    let (events, lost) = all(&*log, Seq(1), everything()).await;
    assert_eq!((events.len(), lost.len()), (20, 0));
    assert_eq!(*log.head().borrow(), seqs[19]);
    assert_eq!(log.ready(), Ok(()));
    assert_eq!(log.verify(&|_, _| {}).await, [""; 0]);
    log.close().await;
}

async fn what_is_erased_is_gone_and_stays_known(bench: &Bench) {
    let log = bench.open().await;
    let seqs = store(&*log, 1..=10).await;
    let narrow = Narrow {
        ids: ["ev_4", "ev_8"].map(str::to_owned).into(),
        ..Narrow::default()
    };
    let doomed = narrow.clone();
    let erased = log
        .erase(narrow, Arc::new(move |event: &Event| doomed.leaves(event)))
        .await
        .unwrap();
    assert_eq!(erased.seqs, [seqs[3], seqs[7]]);
    assert_eq!(erased.left, [""; 0]);
    for seq in &erased.seqs {
        let tombstone = log.get(*seq).await.unwrap().unwrap();
        assert_eq!(
            (tombstone.kind, tombstone.body.len(), tombstone.seq),
            (Kind::Erased, 0, *seq)
        );
    }
    let (events, lost) = all(&*log, Seq(1), everything()).await;
    let left: Vec<Seq> = events
        .iter()
        .filter(|event| event.kind != Kind::Erased)
        .map(|event| event.seq)
        .collect();
    assert_eq!(left.len(), 8);
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!(log.append(incoming(body(4, 0))).await, Ok(Appended::Duplicate(seqs[3])));
    assert_eq!(log.find("ev_4").await.unwrap(), [seqs[3]]);
    let next = stored(log.append(incoming(body(11, 0))).await.unwrap());
    assert!(next > seqs[9]);

    // Others go by what only reading tells.
    let by_lead = Narrow {
        leads: ["lead_2".to_owned()].into(),
        ..Narrow::default()
    };
    let doomed = by_lead.clone();
    let erased = log
        .erase(by_lead, Arc::new(move |event: &Event| doomed.leaves(event)))
        .await
        .unwrap();
    assert_eq!(erased.seqs, [seqs[1], seqs[8]]);
    log.close().await;
    let log = bench.open().await;
    assert_eq!(log.append(incoming(body(9, 0))).await, Ok(Appended::Duplicate(seqs[8])));
    log.close().await;
}

async fn nothing_goes_before_it_is_wanted_away_and_what_went_is_named(bench: &Bench) {
    let log = bench.open().await;
    let seqs = store(&*log, 1..=10).await;
    assert_eq!(log.first(), seqs[0]);
    if bench.is_shared() {
        // What an event is known by is the event itself.
        assert_eq!(log.drop_before(seqs[5]).await.unwrap(), seqs[0]);
        assert!(log.cuts().is_empty());
        bench.days_ahead.store(32, std::sync::atomic::Ordering::SeqCst);
    } else {
        log.local().unwrap().roll().await.unwrap();
        store(&*log, 11..=12).await;
        log.local().unwrap().go_round().await.unwrap();
    }
    let first = log.drop_before(seqs[9].next()).await.unwrap();
    assert_eq!(first, seqs[9].next());
    assert_eq!(log.first(), first);
    assert!(log.get(seqs[2]).await.unwrap().is_none());
    let next = if bench.is_shared() {
        store(&*log, 11..=11).await[0]
    } else {
        first
    };
    let batch = log.read(seqs[2], everything()).await.unwrap();
    assert_eq!(batch.lost, [(seqs[2], seqs[9])]);
    assert_eq!(batch.events.first().map(|event| event.seq), Some(next));
    log.close().await;
}

async fn seqs_that_were_seen_are_never_given_again(bench: &Bench) {
    let log = bench.open().await;
    log.skip_past(Seq(7)).await.unwrap();
    let first = store(&*log, 1..=1).await[0];
    assert!(first > Seq(7), "{first}");
    log.skip_past(Seq(3)).await.unwrap();
    log.skip_past(Seq(first.0 + 5)).await.unwrap();
    let second = store(&*log, 2..=2).await[0];
    assert!(second.0 > first.0 + 5, "{second}");
    let (events, _) = all(&*log, Seq(1), everything()).await;
    assert_eq!(
        events.iter().map(|event| event.seq).collect::<Vec<_>>(),
        [first, second]
    );
    log.close().await;
}

/// Each promise, on each engine.
macro_rules! promises {
    ($($promise:ident),* $(,)?) => {
        mod local {
            use super::{Bench, Place};
            $(
                #[tokio::test]
                async fn $promise() {
                    let place = Place::Local(tempfile::tempdir().unwrap());
                    super::$promise(&Bench::new(place)).await;
                }
            )*
        }

        #[cfg(feature = "engine-jetstream")]
        mod jetstream {
            use super::jetstream_cluster::{Cluster, Setup};
            use super::{Bench, Place};
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    let setup = Setup { servers: 1, ..Setup::default() };
                    let Some(cluster) = Cluster::start_with(setup).await else { return };
                    super::$promise(&Bench::new(Place::JetStream(Box::new(cluster)))).await;
                }
            )*
        }
    };
}

promises!(
    what_is_stored_comes_back_as_it_came,
    an_event_is_stored_once_and_the_second_is_told_where,
    a_partial_event_is_none_of_the_full_one,
    several_are_stored_in_their_order,
    whatever_comes_at_once_is_stored_once_each,
    a_reader_takes_as_much_as_it_wants,
    a_time_is_found_and_what_is_restarted_is_the_same_log,
    what_is_erased_is_gone_and_stays_known,
    nothing_goes_before_it_is_wanted_away_and_what_went_is_named,
    seqs_that_were_seen_are_never_given_again,
);
