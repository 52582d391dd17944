use jiff::Timestamp;
use serde::Serialize;

use super::*;
use crate::deliver::ReplaySpec;
use crate::deliver::mark::ReplayRecord;
use crate::deliver::mark::tests::{record, saved};
use crate::state::{Expected, LocalStore, put_json};

async fn put(store: &LocalStore, key: &str, value: &(impl Serialize + Sync)) {
    put_json(store, key, value, Expected::Anything).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_stay_is_what_the_slowest_durable_record_has_not_finished() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path(), false).unwrap();
    assert_eq!(floor(&store, &[]).await, Floor::Known(Seq(u64::MAX)));
    assert!(matches!(floor(&store, &["a"]).await, Floor::Unknown(_)));
    put(&store, "sink/a", &record(50, &[])).await;
    put(&store, "sink/b", &record(80, &[40, 41])).await;
    assert_eq!(
        floor(&store, &["a"]).await,
        Floor::Known(Seq(40)),
        "b is not known to be detached"
    );
    let detached = Record {
        detached_at: Some(Timestamp::UNIX_EPOCH),
        ..record(1, &[])
    };
    put(&store, "sink/c", &detached).await;
    let holder = holder(&store, &["a"]).await.unwrap();
    assert!(holder.contains("\"b\", which is not configured any more"), "{holder}");
    assert_eq!(floor(&store, &["a", "b"]).await, Floor::Known(Seq(40)));
    assert_eq!(floor(&store, &["a", "b", "c"]).await, Floor::Known(Seq(1)));
    assert!(matches!(floor(&store, &["a", "d"]).await, Floor::Unknown(why) if why.contains("\"d\"")));
    put(&store, "sink/d", &Record::default()).await;
    assert!(
        matches!(floor(&store, &["a"]).await, Floor::Unknown(_)),
        "a start that is not settled"
    );
    put(&store, "sink/d", &"nonsense").await;
    assert!(matches!(floor(&store, &["a"]).await, Floor::Unknown(why) if why.contains("sink/d")));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_runs_keeps_what_it_has_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path(), false).unwrap();
    put(&store, "sink/a", &record(50, &[])).await;
    let mut job = JobRecord {
        spec: ReplaySpec::of_partials(Seq(7), Seq(20)),
        planned: [("a".to_owned(), 3)].into(),
        created_at: Timestamp::UNIX_EPOCH,
        running: true,
        forgotten: BTreeMap::new(),
    };
    put(&store, "replay/rp_1", &job).await;
    assert_eq!(
        floor(&store, &["a"]).await,
        Floor::Known(Seq(7)),
        "no sink has begun it"
    );
    let mut begun = record(50, &[]);
    let replay = ReplayRecord {
        saved: saved(18, &[12]),
        ..ReplayRecord::default()
    };
    begun.replays.insert("rp_1".into(), replay);
    put(&store, "sink/a", &begun).await;
    assert_eq!(floor(&store, &["a"]).await, Floor::Known(Seq(12)));
    job.running = false;
    put(&store, "replay/rp_1", &job).await;
    assert_eq!(
        floor(&store, &["a"]).await,
        Floor::Known(Seq(50)),
        "an interrupted one keeps nothing"
    );
    store.close().await;
}
