//! Sinks that gather for long before they hand anything over, and whose receiver gives nothing back.

use serde_json::json;

use super::*;
use crate::contract::Gather;

/// Gathers, and hands over as one what it has.
#[derive(Debug, Default)]
struct Store {
    gathered: Mutex<Vec<u64>>,
    objects: Mutex<Vec<Vec<u64>>>,
    /// What it was opened with.
    positions: Mutex<Vec<Option<serde_json::Value>>>,
    /// The next hand-over has no answer, although it is done.
    loses_answer: AtomicBool,
}

#[derive(Debug, Clone)]
struct Gathering {
    store: Arc<Store>,
    gather: Gather,
}

#[async_trait]
impl SinkKind for Gathering {
    fn drive(&self) -> Drive {
        Drive {
            batch: Limits {
                events: 10,
                bytes: 1 << 20,
                wait: Duration::ZERO,
            },
            concurrency: 1,
            commit: Commit::Checkpoint,
        }
    }

    fn gathers(&self) -> Option<Gather> {
        Some(self.gather)
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint(String::new())
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let position = context.position.map(|position| position.0);
        lock(&self.store.positions).push(position);
        lock(&self.store.gathered).clear();
        Ok(Opened {
            sink: Box::new(self.clone()),
            mark: None,
            position: Some(Position(json!("opened"))),
        })
    }

    async fn probe(&self, _context: Context) -> Result<String, Unavailable> {
        Ok("there".into())
    }
}

#[async_trait]
impl Sink for Gathering {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let seqs = batch.deliveries().iter().map(|delivery| delivery.event.seq.0);
        lock(&self.store.gathered).extend(seqs);
        Ok(vec![Outcome::Delivered; batch.deliveries().len()])
    }

    async fn plan(&self) -> Result<Option<Position>, Unavailable> {
        let gathered = lock(&self.store.gathered);
        Ok((!gathered.is_empty()).then(|| Position(json!({ "plan": *gathered }))))
    }

    async fn checkpoint(&self) -> Result<Option<Position>, Unavailable> {
        let gathered = std::mem::take(&mut *lock(&self.store.gathered));
        if !gathered.is_empty() {
            lock(&self.store.objects).push(gathered);
            if self.store.loses_answer.swap(false, Ordering::SeqCst) {
                return Err(Unavailable::new("no answer"));
            }
        }
        Ok(Some(Position(json!("handed over"))))
    }
}

fn gathering(events: usize, wait: Duration) -> (Arc<Store>, SinkConfig) {
    let store = Arc::<Store>::default();
    let kind = Gathering {
        store: store.clone(),
        gather: Gather {
            events,
            bytes: 1 << 20,
            wait,
        },
    };
    let mut config = sink_on(&Receiver::new(), Commit::Checkpoint);
    config.options = Arc::new(kind);
    (store, config)
}

const AN_HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_gathers_hands_over_when_it_has_enough_or_somebody_waits() {
    let (store, config) = gathering(50, AN_HOUR);
    let bench = Bench::new(vec![config]);
    let engine = bench.engine(Mode::Follow).await;
    let objects = || lock(&store.objects).clone();
    let gathered = async |count: u64| {
        until("it is gathered", async || {
            let status = status(&engine);
            let waits_by = status.waits_by.unwrap_or_default();
            status.lag_events == count && waits_by.starts_with("it gathers events: what it has goes out at 2")
        })
        .await;
    };
    bench.store(1..=40).await;
    gathered(40).await;
    let is = status(&engine);
    assert_eq!((is.cursor, is.delivered), (Seq(0), 0), "nothing of it is anywhere else");
    until("it grows older", async || status(&engine).lag_seconds > is.lag_seconds).await;
    assert_eq!(
        engine.floor().await,
        Floor::Known(Seq(1)),
        "the log keeps what is gathered"
    );
    bench.store(41..=50).await;
    durable(&engine, 50).await;
    assert_eq!(objects(), [(1..=50).collect::<Vec<_>>()]);
    until("it counts", async || {
        let is = status(&engine);
        (is.cursor, is.delivered, is.lag_events, is.lag_seconds) == (Seq(50), 50, 0, 0.0)
    })
    .await;
    // A replay is done when it is there.
    let id = replay(&engine, 1, 5).await;
    replay_done(&engine, &id).await;
    until("it is there", async || objects().len() == 2).await;
    assert_eq!(objects()[1], [1, 2, 3, 4, 5]);
    // So is what there is at a stop.
    bench.store(51..=53).await;
    gathered(3).await;
    engine.shutdown().await;
    assert_eq!(objects()[2], [51, 52, 53]);
    assert_eq!(engine.floor().await, Floor::Known(Seq(54)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_event_does_not_wait_longer_than_it_may() {
    let (store, config) = gathering(1000, Duration::from_millis(100));
    let bench = Bench::new(vec![config]);
    let engine = bench.engine(Mode::Follow).await;
    for id in 1..=3 {
        bench.store(id..=id).await;
        durable(&engine, id).await;
    }
    assert_eq!(*lock(&store.objects), [[1], [2], [3]]);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_about_to_be_handed_over_is_saved_with_the_mark_before_it() {
    let (store, config) = gathering(10, AN_HOUR);
    let bench = Bench::new(vec![config]);
    let engine = bench.engine(Mode::Follow).await;
    store.loses_answer.store(true, Ordering::SeqCst);
    bench.store(1..=10).await;
    durable(&engine, 10).await;
    let plan = json!({ "plan": (1..=10).collect::<Vec<_>>() });
    assert_eq!(
        *lock(&store.positions),
        [None, Some(plan)],
        "it hears what it was about to do"
    );
    let once: Vec<u64> = (1..=10).collect();
    assert_eq!(*lock(&store.objects), [once.clone(), once], "and gets all of it again");
    until("each counts", async || status(&engine).delivered >= 10).await;
    assert_eq!(status(&engine).delivered, 10, "once");
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    until("it is opened", async || lock(&store.positions).len() == 3).await;
    assert_eq!(lock(&store.positions)[2], Some(json!("handed over")));
    engine.shutdown().await;
}
