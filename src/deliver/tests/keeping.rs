//! What retention takes from the log, with a real engine that has read it.

use super::*;
use crate::age::Clock;
use crate::retention::{Options as Keep, Readers, Retention};

/// Readers of which one needs everything from the moment on when letters are copied.
struct Late {
    engine: Engine,
    floor: Mutex<Option<Floor>>,
    then: Floor,
}

#[async_trait]
impl Readers for Late {
    async fn floor(&self) -> Floor {
        let late = lock(&self.floor).clone();
        match late {
            Some(floor) => floor,
            None => self.engine.floor().await,
        }
    }

    fn bury(&self, upto: Seq) {
        self.engine.bury(upto);
    }

    async fn secure_letters(&self, before: Seq) -> Result<(), String> {
        *lock(&self.floor) = Some(self.then.clone());
        self.engine.secure_letters(before).await
    }
}

/// A reload brings a sink back, or a replay begins, while letters are copied: what it needs stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_needs_who_came_while_letters_were_copied_stays() {
    for (then, stays) in [
        (Floor::Known(Seq(1)), true),
        (Floor::Unknown("a record can't be read".into()), true),
        (Floor::Known(Seq(301)), false),
    ] {
        let (bench, engine) = full().await;
        let log: Arc<dyn Log> = Arc::new(bench.log.clone());
        let readers = Late {
            engine: engine.clone(),
            floor: Mutex::new(None),
            then: then.clone(),
        };
        let retention = keeping_nothing(&bench, Arc::new(readers));
        until("there is something to drop", async || !log.cuts().is_empty()).await;
        retention.round().await.unwrap();
        assert_eq!(log.first() == Seq(1), stays, "{then:?}");
        engine.shutdown().await;
    }
}

/// 300 events in several segments, delivered and that is durable.
async fn full() -> (Bench, Engine) {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(3000).collect();
    for from in (1..=300).step_by(10) {
        let pad: String = random.chars().cycle().skip(from as usize).take(2000).collect();
        bench.store_with(from..=from + 9, &pad).await;
    }
    let engine = bench.engine(Mode::Follow).await;
    durable(&engine, 300).await;
    (bench, engine)
}

/// Everything is too old.
fn keeping_nothing(bench: &Bench, readers: Arc<dyn Readers>) -> Retention {
    let options = Keep {
        dir: bench.dir.path().to_owned(),
        keep: Duration::ZERO,
        max_size: None,
        on_servers: false,
        round: Duration::from_secs(3600),
    };
    let later = || jiff::Timestamp::now() + Duration::from_secs(60);
    Retention::new(options, Arc::new(bench.log.clone()), readers, Clock::new(later))
}

/// A backup is one picture of letters, marks and events: nothing goes while it is made.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_while_a_backup_is_made() {
    let (bench, engine) = full().await;
    let log: Arc<dyn Log> = Arc::new(bench.log.clone());
    let retention = keeping_nothing(&bench, Arc::new(engine.clone()));
    until("there is something to drop", async || !log.cuts().is_empty()).await;
    let held = retention.hold().await;
    retention.round().await.unwrap();
    assert_eq!(log.first(), Seq(1));
    assert!(retention.standing().waits_for.unwrap().contains("backup"));
    drop(held);
    retention.round().await.unwrap();
    assert!(log.first() > Seq(1), "and then it goes");
    engine.shutdown().await;
}

/// A reader that has done nothing, and hears what is to be buried.
#[derive(Default)]
struct Behind(Mutex<Vec<Seq>>);

#[async_trait]
impl Readers for Behind {
    async fn floor(&self) -> Floor {
        Floor::Known(Seq(1))
    }

    fn bury(&self, upto: Seq) {
        lock(&self.0).push(upto);
    }

    async fn secure_letters(&self, _before: Seq) -> Result<(), String> {
        Ok(())
    }
}

/// What became a dead letter meanwhile would make no room.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_buried_while_a_backup_is_made() {
    let (bench, engine) = full().await;
    let behind = Arc::new(Behind::default());
    let options = Keep {
        dir: bench.dir.path().to_owned(),
        keep: Duration::from_secs(24 * 3600),
        max_size: Some(64 << 10),
        on_servers: false,
        round: Duration::from_secs(3600),
    };
    let log = Arc::new(bench.log.clone());
    let retention = Retention::new(options, log, behind.clone(), Clock::new(jiff::Timestamp::now));
    until("there is something to drop", async || !Log::cuts(&bench.log).is_empty()).await;
    let held = retention.hold().await;
    retention.round().await.unwrap();
    assert_eq!(*lock(&behind.0), [Seq::ZERO]);
    assert!(retention.standing().waits_for.unwrap().contains("backup"));
    drop(held);
    retention.round().await.unwrap();
    assert!(lock(&behind.0)[1] > Seq::ZERO);
    engine.shutdown().await;
}

/// One sink's letters that can't be read keep the log from dropping what they may refer to, and nobody else's from being copied.
#[tokio::test(flavor = "multi_thread")]
async fn letters_that_can_not_be_read_postpone_and_are_named() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].breaker.refusals = 10_000;
    refuse(&receiver);
    bench.store(1..=5).await;
    let engine = bench.engine(Mode::Follow).await;
    until("all are dead", async || status(&engine).dead == 5).await;
    // Of sinks that have gone: one before it in the list, and one behind.
    for sink in ["0", "z"] {
        let newer = crate::framefile::Format {
            magic: *b"CLHKDEAD",
            version: 9,
        };
        let path = bench.dir.path().join("dead").join(sink);
        drop(crate::framefile::FrameFile::create(&path, newer).unwrap());
    }
    let why = engine.secure_letters(Seq(6)).await.unwrap_err();
    for sink in ["\"0\"", "\"z\""] {
        assert!(why.contains(sink) && why.contains("run the newer version"), "{why}");
    }
    let copied = |seq| engine.letters_of("a").copy(Seq(seq)).unwrap().is_some();
    assert!((1..=5).all(copied), "{why}");
    // What can be read is listed, and what can't is named.
    let (found, left) = engine.dead_readable(None, Seq::ZERO, 9).unwrap();
    assert_eq!((found.len(), left.len()), (5, 2));
    assert!(engine.dead_list(None, Seq::ZERO, 9).is_err() && engine.dead_list(Some("a"), Seq::ZERO, 9).is_ok());
    // And erased is what can be.
    let doomed = |event: &crate::event::Event| event.seq == Seq(4);
    let log: &dyn Log = &bench.log;
    let erased = log
        .erase(crate::log::Narrow::default(), Arc::new(doomed))
        .await
        .unwrap();
    let (count, left) = engine
        .dead_erase(std::collections::BTreeSet::new(), Some(erased.seqs))
        .await;
    assert_eq!(count, 1);
    assert!(
        left.len() == 2 && left.iter().all(|left| left.contains("newer version")),
        "{left:?}"
    );
    engine.shutdown().await;
}

/// Damage costs what is damaged, and keeps nothing from going.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_letters_keep_nothing_from_going_and_are_said() {
    let receiver = Receiver::new();
    let (bench, engine) = with_dead(&receiver, 5).await;
    engine.shutdown().await;
    let path = bench.dir.path().join("dead/a");
    std::fs::write(&path, vec![b'x'; 5000]).unwrap();
    let engine = bench.engine(Mode::Follow).await;
    let why = status(&engine).dead_trouble.unwrap();
    assert!(
        why.contains("(5000 bytes); it is set aside as") && why.contains("a.damaged"),
        "{why}"
    );
    engine.secure_letters(Seq(6)).await.unwrap();
    bench.store(6..=6).await;
    until("the sink goes on", async || status(&engine).dead == 1).await;
    engine.shutdown().await;
}
