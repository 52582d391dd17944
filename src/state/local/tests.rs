//! What is stored stays, each value whole or not at all, whatever ends a change.

use super::*;

async fn put(store: &LocalStore, key: &str, value: &(impl serde::Serialize + Sync)) -> Result<Revision, StoreError> {
    super::super::put_json(store, key, value, Expected::Anything).await
}

async fn get<T: serde::de::DeserializeOwned>(store: &LocalStore, key: &str) -> Option<T> {
    let entry = store.get(key).await.unwrap();
    entry.map(|entry| entry.json().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("state");
    let state = LocalStore::open(&dir, false).unwrap();
    let big = "x".repeat(100_000);
    for round in 0..100_u32 {
        put(&state, "sink/a", &(round, &big)).await.unwrap();
    }
    put(&state, "sink/b", &1).await.unwrap();
    state.remove("sink/b", Expected::Anything).await.unwrap();
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2, "older generations go");
    state.close().await;
    let state = LocalStore::open(&dir, true).unwrap();
    assert_eq!(get::<(u32, String)>(&state, "sink/a").await.unwrap().0, 99);
    assert_eq!(state.keys("sink/").await.unwrap(), ["sink/a"]);
    assert!(put(&state, "sink/a", &0).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_was_not_finished_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let state = LocalStore::open(dir.path(), false).unwrap();
    put(&state, "a", &1).await.unwrap();
    state.close().await;
    let mut newer = FrameFile::create(&path_of(dir.path(), 9), FORMAT).unwrap();
    append(&mut newer, "a", Some(b"2")).unwrap();
    newer.sync().unwrap();
    // And one whose header is nonsense.
    std::fs::write(path_of(dir.path(), 10), b"nonsense").unwrap();
    let state = LocalStore::open(dir.path(), false).unwrap();
    assert_eq!(get::<u32>(&state, "a").await, Some(1));
    state.close().await;
    let state = LocalStore::open(dir.path(), false).unwrap();
    assert_eq!(get::<u32>(&state, "a").await, Some(1));
    state.close().await;
}

/// Whichever byte is damaged, everything that was saved before the newest generation began is still there.
#[tokio::test(flavor = "multi_thread")]
async fn damage_anywhere_costs_the_newest_changes_at_most() {
    let original = tempfile::tempdir().unwrap();
    for round in 0..3_u32 {
        let state = LocalStore::open(original.path(), false).unwrap();
        assert!(!state.is_damaged());
        for key in ["sink/a", "sink/b", "sink/c"] {
            put(&state, key, &round).await.unwrap();
        }
        state.close().await;
    }
    let names: Vec<_> = std::fs::read_dir(original.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2);
    let newest = names.iter().max().unwrap();
    let bytes = std::fs::read(original.path().join(newest)).unwrap();
    for at in 0..bytes.len() {
        let dir = tempfile::tempdir().unwrap();
        for name in &names {
            std::fs::copy(original.path().join(name), dir.path().join(name)).unwrap();
        }
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x40;
        std::fs::write(dir.path().join(newest), flipped).unwrap();
        let state = LocalStore::open(dir.path(), true).unwrap();
        for key in ["sink/a", "sink/b", "sink/c"] {
            let value = get::<u32>(&state, key).await;
            assert!(value.is_some_and(|value| value >= 1), "byte {at}: {key} is {value:?}");
        }
    }
    // Both of them: nothing is left, and that is known.
    for name in &names {
        std::fs::write(original.path().join(name), b"nonsense").unwrap();
    }
    let state = LocalStore::open(original.path(), false).unwrap();
    assert!(state.is_damaged() && state.keys("sink/").await.unwrap().is_empty());
    state.close().await;
    // It is whole from now on, and what was lost is lost all the same.
    let state = LocalStore::open(original.path(), false).unwrap();
    assert!(state.is_damaged(), "nobody has settled what is gone");
    state.mended().await.unwrap();
    assert!(!state.is_damaged());
    state.close().await;
    let state = LocalStore::open(original.path(), false).unwrap();
    assert!(!state.is_damaged());
    state.close().await;
}

/// What a file is its name says.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_header_costs_nothing_of_what_is_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=3_u32 {
        let state = LocalStore::open(dir.path(), false).unwrap();
        put(&state, "a", &round).await.unwrap();
        put(&state, "b", &round).await.unwrap();
        state.remove("b", Expected::Anything).await.unwrap();
        state.close().await;
    }
    let newest = path_of(dir.path(), *generations(dir.path()).unwrap().last().unwrap());
    let mut bytes = std::fs::read(&newest).unwrap();
    bytes[3] ^= 1;
    std::fs::write(&newest, &bytes).unwrap();
    let state = LocalStore::open(dir.path(), true).unwrap();
    assert_eq!(get::<u32>(&state, "a").await, Some(3));
    assert_eq!(state.keys("").await.unwrap(), ["a"]);
    assert!(!state.is_damaged());
    // With more of it: the key of the first change.
    bytes[framefile::HEADER_LEN as usize + 19] ^= 1;
    std::fs::write(&newest, &bytes).unwrap();
    let state = LocalStore::open(dir.path(), true).unwrap();
    assert_eq!(get::<u32>(&state, "a").await, Some(3));
    assert!(state.is_damaged());
}

/// What is left begins with a whole change, which says nothing of those before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_has_lost_its_beginning_is_damaged_and_keeps_what_was_saved_before() {
    let original = tempfile::tempdir().unwrap();
    // A change takes up more than a header does: what is left of one fills the place of that.
    let (first, second_key) = ("sink/the first one", "sink/the second one");
    for (round, keys) in [(1_u32, &[first, second_key][..]), (2, &[second_key][..])] {
        let state = LocalStore::open(original.path(), false).unwrap();
        for key in keys {
            put(&state, key, &round).await.unwrap();
        }
        state.close().await;
    }
    let newest = path_of(original.path(), *generations(original.path()).unwrap().last().unwrap());
    let mut places = Vec::new();
    framefile::scan(&newest, FORMAT, |frame| places.push(frame.offset)).unwrap();
    let (bytes, second) = (std::fs::read(&newest).unwrap(), places[1]);
    // Exactly the header and the first change, a little less, and as much as the first change takes up: the second one is where that was.
    for missing in [second, second - 9, second - framefile::HEADER_LEN] {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(original.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        let cut = dir.path().join(newest.file_name().unwrap());
        std::fs::write(cut, &bytes[missing as usize..]).unwrap();
        let state = LocalStore::open(dir.path(), true).unwrap();
        assert!(state.is_damaged(), "{missing}");
        let values = (get::<u32>(&state, first).await, get::<u32>(&state, second_key).await);
        assert_eq!(values, (Some(1), Some(2)), "{missing}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_expects_another_value_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let state = LocalStore::open(dir.path(), false).unwrap();
    let conflict = Err(StoreError::Conflict("a".into()));
    let none = Expected::Revision(Revision(7));
    assert_eq!(state.put("a", b"0".to_vec(), none).await, conflict);
    let first = state.put("a", b"1".to_vec(), Expected::Nothing).await.unwrap();
    assert_eq!(state.put("a", b"2".to_vec(), Expected::Nothing).await, conflict);
    let second = state.put("a", b"2".to_vec(), Expected::Revision(first)).await.unwrap();
    assert_eq!(state.put("a", b"3".to_vec(), Expected::Revision(first)).await, conflict);
    let entry = Entry {
        value: b"2".to_vec().into(),
        revision: second,
        stored_at: None,
    };
    assert_eq!(state.get("a").await.unwrap(), Some(entry));
    assert!(state.remove("a", Expected::Revision(first)).await.is_err());
    state.remove("a", Expected::Revision(second)).await.unwrap();
    assert_eq!(state.get("a").await.unwrap(), None);
    state.close().await;
}

/// A disk that hangs, as far as anybody who waits can tell: the saver does not get on.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_ever_for_a_disk_that_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = LocalStore::open(dir.path(), false).unwrap();
    state.patience = Duration::from_millis(100);
    let entries = state.entries.clone();
    let (held, is_held) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let disk = std::thread::spawn(move || {
        let guard = lock(&entries);
        held.send(()).unwrap();
        let in_time = ended.recv_timeout(Duration::from_secs(30)).is_ok();
        drop(guard);
        in_time
    });
    is_held.recv().unwrap();
    // More than the queue takes.
    let changes = (0..2 * QUEUE_MAX + 50).map(|value| {
        let state = state.clone();
        async move { put(&state, "a", &value).await }
    });
    let saved = futures::future::join_all(changes).await;
    assert!(saved.iter().all(|saved| matches!(saved, Err(StoreError::Failing(_)))));
    state.close().await;
    end.send(()).unwrap();
    assert!(disk.join().unwrap(), "it was not waited for");
}

/// A directory in the place of the next generation makes saving fail, as a full disk would.
#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_saved_is_not_given_and_does_not_come_later() {
    let dir = tempfile::tempdir().unwrap();
    let state = LocalStore::open(dir.path(), false).unwrap();
    put(&state, "a", &1).await.unwrap();
    let in_the_way = dir.path().join("00000000000000000002.tmp");
    std::fs::create_dir(&in_the_way).unwrap();
    // Larger than a generation may be, so the one after it begins a new one.
    put(&state, "big", &"x".repeat(GENERATION_LEN as usize)).await.unwrap();
    put(&state, "big", &1).await.unwrap_err();
    assert!(get::<String>(&state, "big").await.is_some());
    std::fs::remove_dir(&in_the_way).unwrap();
    put(&state, "a", &2).await.unwrap();
    state.close().await;
    let state = LocalStore::open(dir.path(), true).unwrap();
    assert_eq!(get::<u32>(&state, "a").await, Some(2));
    assert!(get::<String>(&state, "big").await.is_some());
}

/// The change that it panicked over is in the file, and its sender was told that nobody knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_saver_that_panics_starts_again_and_what_it_panicked_over_does_not_come_later() {
    let dir = tempfile::tempdir().unwrap();
    let state = LocalStore::open(dir.path(), false).unwrap();
    put(&state, "a", &1).await.unwrap();
    let refused = {
        state.trap.store(true, Ordering::SeqCst);
        put(&state, "a", &2).await.unwrap_err()
    };
    assert!(
        matches!(&refused, StoreError::Failing(why) if why.contains("given up")),
        "{refused:?}"
    );
    assert_eq!(get::<u32>(&state, "a").await, Some(1), "what is seen is what was saved");
    put(&state, "b", &3).await.expect("it is at work again");
    // A panic at the end keeps nobody from ending.
    state.trap.store(true, Ordering::SeqCst);
    put(&state, "b", &4).await.unwrap_err();
    state.close().await;
    assert_eq!(put(&state, "b", &5).await, Err(StoreError::Closed));
    let state = LocalStore::open(dir.path(), true).unwrap();
    assert_eq!(get::<u32>(&state, "a").await, Some(1));
}
