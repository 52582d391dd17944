//! Known keys that damage has taken, of events that are kept: they are read from the events, and nothing that may repeat one is stored before.

use super::*;
use crate::sync::read_lock;

/// Damages the keys of the segment of events 1 to 10, which are in a file, and has that found.
async fn damage_keys(log: &LocalLog, dir: &Path) {
    assert!(read_lock(&log.shared.known).has_file(Seq(1)));
    // In its only page, which nobody looks at before one of its keys is asked for.
    flip(&dir.join("keys").join(format!("{:020}", 1)), 99);
    for _ in 0..2 {
        let error = log.append(incoming(body(1, 0))).await.unwrap_err();
        assert!(matches!(error, AppendError::Failing(_)), "{error}");
    }
}

async fn all_known(log: &LocalLog, ids: std::ops::RangeInclusive<u64>) {
    for id in ids {
        let again = log.append(incoming(body(id, 0))).await;
        assert_eq!(again, Ok(Appended::Duplicate(Seq(id))), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_keys_of_kept_events_are_known_again_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = two_sealed(dir.path()).await;
    damage_keys(&log, dir.path()).await;
    log.go_round().await.unwrap();
    all_known(&log, 1..=20).await;
    assert_eq!(log.append(incoming(body(21, 0))).await, Ok(Appended::Stored(Seq(21))));
    assert!(read_lock(&log.shared.known).has_file(Seq(1)));
    log.close();
    let log = open(dir.path());
    all_known(&log, 1..=21).await;
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_keys_of_events_in_a_journal_are_known_again_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=10).await;
    log.roll().await.unwrap();
    store(&log, 11..=12).await;
    // No room to seal anything.
    log.set_room(64 << 10);
    log.go_round().await.unwrap();
    log.set_room(1 << 30);
    damage_keys(&log, dir.path()).await;
    log.set_room(64 << 10);
    log.go_round().await.unwrap();
    log.set_room(1 << 30);
    assert!(matches!(log.shared.segment(Seq(1)), Some(Segment::Open(_))));
    all_known(&log, 1..=12).await;
    log.close();
}

/// While the events can't be read, what may repeat one of them is neither stored nor called known.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_repeat_an_event_waits_until_the_keys_are_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = two_sealed(dir.path()).await;
    assert_eq!(log.stats().keys_doubted, None);
    damage_keys(&log, dir.path()).await;
    let doubted = || log.stats().keys_doubted.unwrap_or_default();
    assert!(doubted().contains("damaged"), "{}", doubted());
    let db = segment(dir.path(), 1).join("sled/db");
    let kept = dir.path().join("kept");
    std::fs::rename(&db, &kept).unwrap();
    std::os::unix::fs::symlink(&db, &db).unwrap();
    for _ in 0..2 {
        log.go_round().await.unwrap();
        for id in 1..=10 {
            let error = log.append(incoming(body(id, 0))).await.unwrap_err();
            assert!(error.to_string().contains("from the events"), "{error}");
        }
        assert!(log.find("ev_1").is_err(), "an error is no absence");
        assert!(doubted().contains("from the events"), "{}", doubted());
        all_known(&log, 11..=20).await;
    }
    // What the damaged set can't have held is new, and stored.
    let mut stored = 0;
    for id in 1001..=1100 {
        stored += u64::from(log.append(incoming(body(id, 0))).await.is_ok());
    }
    assert!(stored > 90, "{stored}");
    std::fs::rename(&kept, &db).unwrap();
    log.go_round().await.unwrap();
    all_known(&log, 1..=20).await;
    assert_eq!((doubted(), log.stats().keys_doubted), (String::new(), None));
    assert_eq!(log.find("ev_1").unwrap(), [Seq(1)]);
    assert_eq!(log.stats().events, 20 + stored);
    log.close();
}
