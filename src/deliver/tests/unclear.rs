//! What becomes of a change of the state that was given up, whether or not it is still on its way to the disk.

use std::collections::BTreeMap;

use super::*;
use crate::deliver::mark::JobRecord;

/// A store that gives changes of replays up, and makes them all the same.
#[derive(Debug)]
struct Unclear {
    inner: Arc<dyn Store>,
    gives_up: AtomicBool,
    /// What is to be removed is not.
    keeps: AtomicBool,
    /// That a sink was removed is not saved.
    forgets: AtomicBool,
}

fn failing<T>() -> Result<T, StoreError> {
    Err(StoreError::Failing("the disk does not answer".into()))
}

#[async_trait]
impl crate::passing::PassingStore for Unclear {
    fn behind(&self) -> &dyn Store {
        &*self.inner
    }

    async fn put(&self, key: &str, value: Vec<u8>, expected: Expected) -> Result<Revision, StoreError> {
        let json: serde_json::Value = serde_json::from_slice(&value).unwrap();
        if json["detached_at"].is_string() && self.forgets.load(Ordering::SeqCst) {
            return failing();
        }
        let put = self.inner.put(key, value, expected).await?;
        if key.starts_with("replay/") && self.gives_up.load(Ordering::SeqCst) {
            return failing();
        }
        Ok(put)
    }

    async fn remove(&self, key: &str, expected: Expected) -> Result<(), StoreError> {
        if self.keeps.load(Ordering::SeqCst) {
            return failing();
        }
        self.inner.remove(key, expected).await
    }
}

/// An engine on such a store, with one sink that has five events.
async fn engine_on(bench: &Bench) -> (Engine, Arc<Unclear>) {
    let store = Arc::new(Unclear {
        inner: super::super::open_store(bench.dir.path(), Mode::Follow).await.unwrap(),
        gives_up: AtomicBool::new(false),
        keeps: AtomicBool::new(false),
        forgets: AtomicBool::new(false),
    });
    let engine = bench
        .engine_with(Arc::new(bench.log.clone()), Some(store.clone()))
        .await;
    bench.store(1..=5).await;
    caught_up(&engine, 5).await;
    (engine, store)
}

/// A replay of all of them.
async fn planned(engine: &Engine) -> (ReplaySpec, BTreeMap<String, u64>) {
    let spec = ReplaySpec {
        from: Seq(1),
        to: Seq(5),
        sinks: vec!["a".into()],
        ..ReplaySpec::default()
    };
    engine.replay_plan(spec, &mut |_| ()).await.unwrap()
}

async fn stored(store: &Unclear, id: &str) -> JobRecord {
    let entry = store.get(&format!("replay/{id}")).await.unwrap();
    entry.unwrap().json().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_may_have_begun_is_known_and_taken_back() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    let (engine, store) = engine_on(&bench).await;
    let (spec, planned) = planned(&engine).await;
    store.gives_up.store(true, Ordering::SeqCst);
    store.keeps.store(true, Ordering::SeqCst);
    engine.replay_start(spec, planned).await.unwrap_err();
    let shown = engine.replays();
    assert_eq!(shown.len(), 1, "it is durable, and holds the log");
    assert_eq!(shown[0].state, "interrupted");
    assert!(shown[0].waits_for.as_ref().unwrap().contains("being taken back"));
    engine.replay_set_running(&shown[0].id, true).await.unwrap_err();
    assert!(stored(&store, &shown[0].id).await.running);
    store.keeps.store(false, Ordering::SeqCst);
    until("it is taken back", async || engine.replays().is_empty()).await;
    assert!(store.keys("replay/").await.unwrap().is_empty());
    assert_eq!(receiver.seqs().len(), 5, "nothing of it is sent");
    engine.shutdown().await;
}

/// One that is to be once is asked for again under the same id, and by others: it is not taken back.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_to_be_once_and_may_have_begun_is_carried_out() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    let (engine, store) = engine_on(&bench).await;
    let (spec, planned) = planned(&engine).await;
    store.gives_up.store(true, Ordering::SeqCst);
    let begun = engine.replay_start_once("rp_once", spec.clone(), planned.clone()).await;
    begun.unwrap_err();
    assert_eq!(
        engine.replay_start_once("rp_once", spec, planned).await.unwrap(),
        Seq(5)
    );
    assert_eq!(replay_done(&engine, "rp_once").await.delivered, 5);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_could_not_be_interrupted_goes_on_also_after_a_restart() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    let (engine, store) = engine_on(&bench).await;
    engine.pause("a", true).await.unwrap();
    let id = replay(&engine, 1, 5).await;
    store.gives_up.store(true, Ordering::SeqCst);
    engine.replay_set_running(&id, false).await.unwrap_err();
    assert_eq!(
        engine.replays()[0].state,
        "running",
        "whoever asked was told that it did not work"
    );
    store.gives_up.store(false, Ordering::SeqCst);
    until("it is durable that it runs", async || stored(&store, &id).await.running).await;
    until("it is clear", async || engine.inner.jobs.unclear(&id).is_none()).await;
    engine.pause("a", false).await.unwrap();
    assert_eq!(replay_done(&engine, &id).await.delivered, 5);
    engine.shutdown().await;
}

/// What another node has changed of a replay stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_parts_with_a_sink_and_stays_as_it_is_otherwise() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    let (engine, store) = engine_on(&bench).await;
    engine.pause("a", true).await.unwrap();
    let id = replay(&engine, 1, 5).await;
    let mut elsewhere = stored(&store, &id).await;
    elsewhere.running = false;
    engine.put_job(&id, &elsewhere, Expected::Anything).await.unwrap();
    engine.part_for_good("a").await.unwrap();
    let record = stored(&store, &id).await;
    assert!(record.forgotten.contains_key("a") && !record.running);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_sink_that_can_not_be_noted_is_named_and_noted_as_soon_as_that_works() {
    let (here, gone) = (Receiver::new(), Receiver::new());
    gone.says(|_| Err(Unavailable::new("busy")));
    let mut other = sink_on(&gone, Commit::Acknowledge);
    other.name = "b".into();
    let bench = Bench::new(vec![sink_on(&here, Commit::Acknowledge), other]);
    let (engine, store) = engine_on(&bench).await;
    store.forgets.store(true, Ordering::SeqCst);
    engine.reload(engine.rules(), &bench.sinks[..1]).await.unwrap();
    until("only the removed one is behind", async || {
        engine
            .holder()
            .await
            .is_some_and(|holder| holder.contains("sink \"b\", which is not configured any more"))
    })
    .await;
    assert_eq!(engine.floor().await, Floor::Known(Seq(1)));
    store.forgets.store(false, Ordering::SeqCst);
    durable(&engine, 5).await;
    engine.shutdown().await;
}
