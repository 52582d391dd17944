//! One worker, turned by hand.

mod turns;

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::*;
use crate::config::{Rate, Start};
use crate::log::{Clock, Incoming, LocalLog, Options};
use crate::sinks::{Batch, Context, Fingerprint, Limits, Outcome, SinkKind};
use crate::state::LocalStore;

#[derive(Debug)]
struct Willing;

#[async_trait]
impl SinkKind for Willing {
    fn drive(&self) -> Drive {
        Drive {
            batch: Limits {
                events: 1,
                bytes: 1 << 20,
                wait: Duration::ZERO,
            },
            concurrency: 1,
            commit: Commit::Acknowledge,
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint(String::new())
    }

    async fn open(&self, _: Context) -> Result<Opened, Unavailable> {
        let sink: Box<dyn Sink> = Box::new(Willing);
        Ok(sink.into())
    }

    async fn probe(&self, _: Context) -> Result<String, Unavailable> {
        Ok("there".into())
    }
}

#[async_trait]
impl Sink for Willing {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        Ok(vec![Outcome::Delivered; batch.deliveries().len()])
    }
}

fn open_log(dir: &std::path::Path) -> LocalLog {
    LocalLog::open(Options {
        dir: dir.to_owned(),
        round: Duration::from_millis(50),
        now: Clock::default(),
        segment_size: 64 << 10,
        segment_age: Duration::from_secs(3600),
        reserve: Some(0),
        keys_kept: Duration::from_secs(3600),
        cache_bytes: 1 << 20,
        read_only: false,
    })
    .unwrap()
}

fn kit(dir: &std::path::Path, log: &LocalLog, config: SinkConfig) -> Kit {
    let (_, bury) = watch::channel(Seq::ZERO);
    let rendering = Rendering::new(&config, crate::render::Guard::new(Arc::default()));
    Kit {
        lease: crate::node::Lease::for_ever(),
        view: Arc::new(Mutex::new(View::new(status::empty_status(&config), BTreeMap::new()))),
        config,
        log: Arc::new(log.clone()),
        rules: Arc::new(ArcSwap::from_pointee(RuleSet::compile(&[], &[]).unwrap())),
        store: Arc::new(LocalStore::open(&dir.join("state"), false).unwrap()),
        letters: Letters::open(&dir.join("dead"), "a", false).unwrap(),
        bury,
        initial: Record {
            main: Some(crate::deliver::feed::Saved {
                next: Seq(1),
                open: Vec::new(),
            }),
            ..Record::default()
        },
        jobs: crate::deliver::replay::Jobs::default(),
        follow: true,
        delivered: AtomicU64::new(0),
        skipped: AtomicU64::new(0),
        superseded: AtomicU64::new(0),
        diverted: AtomicU64::new(0),
        dead_to: None,
        rendering,
        memory: crate::deliver::memory::Memory::default(),
        outset: Arc::default(),
        clock: crate::age::Clock::new(jiff::Timestamp::now),
    }
}

/// One that takes everything.
fn willing() -> SinkConfig {
    let mut config = crate::sinks::tests::common(Arc::new(Willing));
    config.name = "a".into();
    config
}

impl Worker<'_> {
    /// Turns until nothing runs and a turn begins nothing.
    async fn turn_until_quiet(&mut self) {
        loop {
            let more = self.turn().await;
            match self.tasks.join_next().await {
                Some(done) => self.collect(done).await,
                None if !more => return,
                None => {}
            }
        }
    }
}

/// G16: with its allowance used up and nothing to send, it waits for an event, and for nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_rated_sink_that_has_nothing_to_send_sleeps() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path());
    let mut config = willing();
    config.start = Start::Beginning;
    // One an hour: what is due in this test is due at once or not at all.
    config.rate = Some(Rate(1.0 / 3600.0));
    let kit = kit(dir.path(), &log, config);
    let mut worker = Worker::new(&kit, kit.initial.clone(), None);
    let store = async |id: u64| {
        let body = format!(r#"{{"event":{{"id":"ev_{id}"}}}}"#);
        let at = jiff::Timestamp::now();
        let incoming = Incoming::new(body.into(), at, crate::event::Source::Webhook, None);
        log.append(incoming).await.unwrap();
    };
    store(1).await;
    worker.turn_until_quiet().await;
    assert_eq!(worker.lanes.main.cursor(), Seq(1), "it was sent");
    worker.progress.saved_at = Instant::now() - progress::SAVE_EVERY;
    worker.turn_until_quiet().await;
    assert!(!worker.progress.dirty, "and that is durable");
    worker.turn_until_quiet().await;
    assert_eq!(worker.wake_at(), None);
    // With something to send it waits for its allowance.
    store(2).await;
    worker.turn_until_quiet().await;
    let wait = worker.wakes.first().expect("it knows when it may go on");
    assert!(*wait > Instant::now() + Duration::from_secs(3000));
    assert_eq!(worker.lanes.main.cursor(), Seq(1));
    kit.store.close().await;
}

/// It is said while it lasts, without the worker's doing anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_hangs_is_named_with_how_long_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path());
    let kit = kit(dir.path(), &log, willing());
    let mut worker = Worker::new(&kit, kit.initial.clone(), None);
    let says = || kit.view.lock().unwrap().status_now().waits_for;
    worker.publish();
    assert_eq!(says(), None);
    worker.progress.saving = true;
    for (seconds, with_sink, expected) in [
        (1, true, None),
        (42, true, Some("its checkpoint is waiting since 2")),
        (42, false, Some("saving its position is waiting since 2")),
    ] {
        worker.progress.began = (Instant::now() - Duration::from_secs(seconds), with_sink);
        worker.publish();
        let said = says();
        match expected {
            None => assert_eq!(said, None),
            Some(expected) => {
                let said = said.unwrap();
                assert!(said.starts_with(expected) && said.contains(", for 4"), "{said}");
            }
        }
    }
    // A pause, say, does not hide it.
    worker.record.paused = true;
    worker.publish();
    assert!(says().unwrap().starts_with("saving its position is waiting since 2"));
    worker.progress.saving = false;
    worker.publish();
    assert!(says().unwrap().starts_with("it is paused"));
    kit.store.close().await;
}

/// A letter of what was erased meanwhile is not written, or is before the order is answered: then whoever erases removes it.
#[tokio::test(flavor = "multi_thread")]
async fn no_letter_is_written_of_what_was_erased_after_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path());
    let kit = kit(dir.path(), &log, willing());
    let mut worker = Worker::new(&kit, kit.initial.clone(), None);
    let make = |seqs: &[u64]| {
        let letter = |seq: &u64| {
            let now = jiff::Timestamp::UNIX_EPOCH;
            let (source, kind) = (crate::event::Source::Webhook, crate::event::Kind::Event);
            let event = crate::event::Event::new(Seq(*seq), now, source, kind, None, "{}".into());
            crate::deliver::types::dead_letter("a", &event, "no".into(), 1, None)
        };
        chores::Chore::Make {
            lane: lanes::Lane::Main,
            letters: seqs.iter().map(letter).collect(),
            buried: false,
        }
    };
    // The disk hangs over the first, and the others wait.
    worker.chores.running = Some((make(&[1, 2]), Instant::now()));
    worker.chores.waiting.extend([make(&[3]), make(&[4, 5])]);
    let erase = |worker: &mut Worker<'_>, seqs: &[u64]| {
        let (done, answer) = oneshot::channel();
        let seqs: Vec<Seq> = seqs.iter().copied().map(Seq).collect();
        worker.obey(Command::Erased(seqs.into(), Reach::Everything, done));
        answer
    };
    let mut later = erase(&mut worker, &[3, 4]);
    assert!(later.try_recv().is_ok(), "none of these is being written");
    let mut now = erase(&mut worker, &[2, 5]);
    worker.turn().await;
    assert!(now.try_recv().is_err(), "one of these is");
    worker.chore_ended(Ok(super::chores::Did::default())).await;
    worker.turn().await;
    assert!(now.try_recv().is_ok());
    assert!((2..=5).all(|seq| !kit.letters.has(Seq(seq))));
    kit.store.close().await;
}

/// Nobody was asked, so nothing is known of the receiver; but the next event may be asked about at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_ends_in_rendering_neither_closes_a_breaker_nor_keeps_the_next_event_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path());
    let kit = kit(dir.path(), &log, willing());
    let mut worker = Worker::new(&kit, kit.initial.clone(), None);
    let answered = |seq: u64, asked: bool| {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let (source, kind) = (crate::event::Source::Webhook, crate::event::Kind::Event);
        let event = crate::event::Event::new(Seq(seq), now, source, kind, None, "{}".into());
        let delivery = crate::event::Delivery {
            origin: lanes::Lane::Main.origin(),
            event: Arc::new(event),
            rules: Arc::default(),
            attempt: 1,
            rendered: None,
        };
        Answered {
            lane: lanes::Lane::Main,
            batch: vec![delivery],
            rest: Vec::new(),
            call: hanging::Calls::default().begin(Instant::now()),
            asked,
            answer: Ok(vec![Outcome::Reject { reason: "no".into() }]),
        }
    };
    worker.unavailable(&Unavailable::new("the receiver is down"));
    for by_sink in [true, false] {
        let later = schedule::now() + jiff::SignedDuration::from_hours(1);
        assert_eq!(worker.breaker.allows(later, 9), 1);
        for seq in 1..=40 {
            worker.breaker.started();
            worker.delivered(answered(seq, false)).await;
            assert_eq!(worker.breaker.state(), "open");
            let allowed = worker.breaker.allows(schedule::now(), 9);
            assert_eq!(allowed, 1, "the next one goes at once");
        }
        assert!(worker.record.held_since.is_some());
        worker.breaker.started();
        worker.delivered(answered(41, true)).await;
        if by_sink {
            assert!(worker.breaker.is_closed(), "it answers again");
            // Now what events say opens it.
            worker.record.held_since = Some(schedule::now());
            while worker.breaker.is_closed() {
                worker.delivered(answered(42, true)).await;
            }
        } else {
            assert_eq!(worker.breaker.state(), "open");
            assert_eq!(worker.breaker.allows(schedule::now(), 9), 0, "that was an answer");
        }
    }
    kit.store.close().await;
}

/// Decision 21, also where a sink is told of many events at a time: what follows the last that was taken counts, each for itself.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_at_the_end_of_a_batch_count_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path());
    let mut config = willing();
    config.breaker.refusals = 5;
    let kit = kit(dir.path(), &log, config);
    let refused = || Outcome::Reject { reason: "no".into() };
    let later = || Outcome::Retry {
        reason: "later".into(),
        after: None,
    };
    let taken = || Outcome::Delivered;
    for (batches, stays_closed) in [
        (vec![vec![refused(); 4]], true),
        (vec![vec![refused(); 5]], false),
        (vec![vec![refused(); 4], vec![Outcome::Skipped, refused()]], false),
        (vec![[vec![refused(); 5], vec![later(); 3]].concat()], false),
        (vec![[vec![taken()], vec![refused(); 5], vec![later()]].concat()], false),
        (
            vec![[vec![refused(); 9], vec![taken()], vec![refused(); 4]].concat()],
            true,
        ),
        (
            vec![vec![refused(); 4], [vec![taken()], vec![refused(); 4]].concat()],
            true,
        ),
        (vec![[vec![taken(); 9], vec![later(); 9]].concat()], true),
    ] {
        let mut worker = Worker::new(&kit, kit.initial.clone(), None);
        for outcomes in &batches {
            worker.judge(outcomes, crate::deliver::schedule::now());
        }
        assert_eq!(worker.breaker.is_closed(), stays_closed, "{batches:?}");
    }
    kit.store.close().await;
}
