//! One sink's letters, on a disk.

use super::*;
use crate::event::Kind;

fn letter(seq: u64) -> DeadLetter {
    DeadLetter {
        sink: "a".into(),
        seq: Seq(seq),
        id: format!("ev_{seq}"),
        event_type: None,
        lead_id: None,
        reason: "n".repeat(5000),
        attempts: 1,
        first_attempt: None,
        died_at: Timestamp::UNIX_EPOCH,
    }
}

fn event(seq: u64) -> Arc<Event> {
    let body = format!(r#"{{"event":{{"id":"ev_{seq}","pad":"{}"}}}}"#, "x".repeat(5000));
    let at = Timestamp::UNIX_EPOCH;
    Arc::new(Event::new(
        Seq(seq),
        at,
        Source::Webhook,
        Kind::Event,
        None,
        body.into(),
    ))
}

fn letters(seqs: std::ops::RangeInclusive<u64>) -> Vec<DeadLetter> {
    seqs.map(letter).collect()
}

#[test]
fn letters_stay_until_they_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("dead");
    let store = Letters::open(&dir, "a", false).unwrap();
    assert!(!dir.exists());
    store.add(&letters(1..=400)).unwrap();
    let events: Vec<_> = (380..=400).map(event).collect();
    store.keep_copies(&events).unwrap();
    for seq in 1..=390 {
        assert_eq!(store.remove(&[Seq(seq), Seq(1000)]).unwrap(), 1);
    }
    let len = std::fs::metadata(dir.join("a")).unwrap().len();
    assert!(len < COMPACT_LEN, "removed letters give their space back: {len}");
    let reopened = Letters::open(&dir, "a", false).unwrap();
    for store in [store, reopened] {
        assert_eq!((store.len(), store.seqs(Seq(395), 2)), (10, vec![Seq(395), Seq(396)]));
        assert_eq!(store.get(Seq(391)).unwrap(), Some(letter(391)));
        assert_eq!(store.copy(Seq(391)).unwrap().unwrap().body, event(391).body);
        assert!(store.get(Seq(1)).unwrap().is_none() && store.copy(Seq(381)).unwrap().is_none());
    }
}

#[test]
fn a_reference_costs_no_body_and_copies_are_compressed_and_stay_when_the_letter_changes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    let short = |seq| DeadLetter {
        reason: "no".into(),
        ..letter(seq)
    };
    store.add(&(1..=1000).map(short).collect::<Vec<_>>()).unwrap();
    let len = || std::fs::metadata(dir.path().join("a")).unwrap().len();
    let referring = len();
    assert!(referring < 300_000, "{referring}");
    assert_eq!(store.without_copy(Seq::ZERO, Seq(501), 9999).len(), 500);
    store.keep_copies(&(1..=500).map(event).collect::<Vec<_>>()).unwrap();
    assert!(
        len() - referring < 500 * 5000 / 10,
        "{} bytes of copies",
        len() - referring
    );
    assert_eq!(store.without_copy(Seq::ZERO, Seq(9999), 1), [Seq(501)]);
    let again = DeadLetter {
        attempts: 7,
        ..short(3)
    };
    store.add(std::slice::from_ref(&again)).unwrap();
    let reopened = Letters::open(dir.path(), "a", true).unwrap();
    for store in [store, reopened] {
        assert_eq!(store.get(Seq(3)).unwrap().as_ref(), Some(&again));
        assert_eq!(store.copy(Seq(3)).unwrap().unwrap().body, event(3).body);
        assert!(store.copy(Seq(501)).unwrap().is_none());
    }
}

/// G7: however many are removed, it is one frame with one sync.
#[test]
fn thousands_are_removed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    let short = |seq| DeadLetter {
        reason: "no".into(),
        ..letter(seq)
    };
    store.add(&(1..=3000).map(short).collect::<Vec<_>>()).unwrap();
    let seqs: Vec<Seq> = (1..=2999).map(Seq).collect();
    assert_eq!(store.remove(&seqs).unwrap(), 2999);
    let mut frames = BTreeMap::<u32, u32>::new();
    framefile::scan(&dir.path().join("a"), FORMAT, |frame| {
        *frames.entry(frame.tag).or_default() += 1;
    })
    .unwrap();
    assert_eq!(frames, [(TAG_LETTER, 3000), (TAG_REMOVE, 1)].into());
    assert_eq!(
        Letters::open(dir.path(), "a", true).unwrap().seqs(Seq(1), 9),
        [Seq(3000)]
    );
}

#[test]
fn forgotten_letters_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("dead");
    let store = Letters::open(&dir, "a", false).unwrap();
    assert_eq!(store.destroy().unwrap(), 0, "there never was one");
    store.add(&letters(1..=3)).unwrap();
    std::fs::write(dir.join("a.damaged"), "x").unwrap();
    assert_eq!((store.destroy().unwrap(), store.len()), (3, 0));
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    store.add(&letters(7..=7)).unwrap();
    assert_eq!(Letters::open(&dir, "a", true).unwrap().seqs(Seq(1), 9), [Seq(7)]);
}

#[test]
fn the_oldest_go_first_when_it_is_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(1..=100)).unwrap();
    store.keep_copies(&(1..=100).map(event).collect::<Vec<_>>()).unwrap();
    let all = store.lock().live_bytes;
    assert!(store.beyond(all).is_empty());
    let gone = store.beyond(all / 2);
    assert_eq!(gone.first(), Some(&Seq(1)));
    assert!((45..=55).contains(&gone.len()), "{}", gone.len());
    store.remove(&gone).unwrap();
    assert!(store.lock().live_bytes <= all / 2);
    assert_eq!(store.beyond(0).len(), store.len());
    let rest = store.beyond(0);
    store.remove(&rest).unwrap();
    let inner = store.lock();
    assert_eq!((inner.live_bytes, inner.blocks.len()), (0, 0));
}

/// A directory in the place of the new file makes every rewrite fail, as a full disk would.
#[test]
fn letters_survive_a_rewrite_that_fails() {
    let dir = tempfile::tempdir().unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(1..=400)).unwrap();
    std::fs::create_dir(dir.path().join("a.new.tmp")).unwrap();
    let removed: Vec<Seq> = (1..=390).map(Seq).collect();
    store.remove(&removed).unwrap();
    store.add(&letters(401..=401)).unwrap();
    let reopened = Letters::open(dir.path(), "a", false).unwrap();
    for store in [store, reopened] {
        assert_eq!(store.len(), 11);
        assert!(store.get(Seq(391)).unwrap().is_some() && store.get(Seq(401)).unwrap().is_some());
    }
}

#[test]
fn a_damaged_file_costs_what_is_damaged_and_no_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(1..=3)).unwrap();
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    let second = bytes.len() / 2;
    bytes[second] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    assert_eq!(store.seqs(Seq(1), 9), [Seq(1), Seq(3)]);
    drop(store);
    bytes[3] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(Letters::open(dir.path(), "a", true).unwrap().len(), 0);
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(4..=4)).unwrap();
    assert_eq!(store.seqs(Seq(1), 9), [Seq(4)]);
    assert!(dir.path().join("a.damaged").exists());
}

#[test]
fn a_file_of_the_version_before_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let old = Format { version: 1, ..FORMAT };
    let mut file = FrameFile::create(&path, old).unwrap();
    for seq in 1..=3 {
        let record = serde_json::json!({
            "letter": letter(seq), "received_at": Timestamp::UNIX_EPOCH, "source": "webhook", "signature": null,
        });
        let json = serde_json::to_vec(&record).unwrap();
        let parts: [&[u8]; 4] = [
            &seq.to_le_bytes(),
            &(json.len() as u32).to_le_bytes(),
            &json,
            &event(seq).body,
        ];
        file.append(TAG_WITH_COPY, &parts).unwrap();
    }
    file.append(TAG_REMOVE, &[&2_u64.to_le_bytes()]).unwrap();
    file.sync().unwrap();
    drop(file);
    for read_only in [true, false, false] {
        let store = Letters::open(dir.path(), "a", read_only).unwrap();
        assert_eq!(store.seqs(Seq(0), 9), [Seq(1), Seq(3)]);
        assert_eq!(store.get(Seq(3)).unwrap(), Some(letter(3)));
        assert_eq!(store.copy(Seq(3)).unwrap().unwrap().body, event(3).body);
        assert!(store.without_copy(Seq::ZERO, Seq(9), 9).is_empty());
        let expected = if read_only { 1 } else { 2 };
        assert_eq!(version_of(&path).unwrap(), expected);
    }
}
