use std::sync::mpsc;
use std::time::Duration;

use jiff::Timestamp;

use super::disk::{COMPACT_LEN, copy_live};
use super::record::{FORMAT, TAG_REMOVE, TAG_WITH_COPY, version_of};
use super::*;
use crate::event::{Kind, Source};
use crate::framefile::{Format, FrameFile};

mod beginnings;

pub(super) fn letter(seq: u64) -> DeadLetter {
    DeadLetter {
        sink: "a".into(),
        seq: Seq(seq),
        id: format!("ev_{seq}"),
        event_type: None,
        lead_id: None,
        reason: "n".repeat(5000),
        answer: None,
        attempts: 1,
        first_attempt: None,
        died_at: Timestamp::UNIX_EPOCH,
        dead: None,
        replay: None,
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

fn live_bytes(store: &Letters) -> u64 {
    store.index(|index| index.live_bytes)
}

fn fail_at(store: &Letters, step: Option<&'static str>) {
    store.fail_at(step);
}

fn letters(seqs: std::ops::RangeInclusive<u64>) -> Vec<DeadLetter> {
    seqs.map(letter).collect()
}

#[test]
fn what_is_given_is_withheld_as_soon_as_it_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    // What makes it seen, without what comes after that.
    let given = record::letter_payload(&letter(1));
    store
        .write("add", &mut |_| vec![(super::record::TAG_GIVEN, given.clone())])
        .unwrap();
    assert_eq!(store.given_len(), 1);
    assert_eq!(store.given(9, |_| false), []);
    store.release(&[Seq(1)]);
    assert_eq!(store.given(9, |_| false).len(), 1);
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

#[test]
fn the_oldest_go_first_when_it_is_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(1..=100)).unwrap();
    store.keep_copies(&(1..=100).map(event).collect::<Vec<_>>()).unwrap();
    let all = live_bytes(&store);
    assert!(store.beyond(all).is_empty());
    let gone = store.beyond(all / 2);
    assert_eq!(gone.first(), Some(&Seq(1)));
    assert!((45..=55).contains(&gone.len()), "{}", gone.len());
    store.remove(&gone).unwrap();
    assert!(live_bytes(&store) <= all / 2);
    assert_eq!(store.beyond(0).len(), store.len());
    let rest = store.beyond(0);
    store.remove(&rest).unwrap();
    assert_eq!((live_bytes(&store), store.index(|index| index.blocks.len())), (0, 0));
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
}

/// Of what is no file of letters at all nothing is lost: neither it nor what was set aside before.
#[test]
fn what_is_no_file_of_letters_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=2 {
        let foreign = format!("something else, {round}");
        std::fs::write(dir.path().join("a"), &foreign).unwrap();
        assert_eq!(Letters::open(dir.path(), "a", true).unwrap().len(), 0);
        let store = Letters::open(dir.path(), "a", false).unwrap();
        store.add(&letters(4..=4)).unwrap();
        assert_eq!(store.seqs(Seq(1), 9), [Seq(4)]);
    }
    let aside = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(aside(".a.damaged"), "something else, 1");
    assert_eq!(aside(".a.damaged~1"), "something else, 2");
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
        let expected = if read_only { 1 } else { FORMAT.version };
        assert_eq!(version_of(&path).unwrap(), expected);
    }
}

/// The version before this one remembered nothing of what was dropped, and can be read as it is.
#[test]
fn what_was_dropped_is_remembered_in_a_file_that_older_versions_refuse() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let mut file = FrameFile::create(&path, Format { version: 2, ..FORMAT }).unwrap();
    for seq in 1..=9_u64 {
        let json = serde_json::to_vec(&letter(seq)).unwrap();
        file.append(TAG_LETTER, &[&seq.to_le_bytes(), &json]).unwrap();
    }
    file.append(TAG_REMOVE, &[&9_u64.to_le_bytes()]).unwrap();
    file.sync().unwrap();
    drop(file);
    let store = Letters::open(dir.path(), "a", false).unwrap();
    assert_eq!((version_of(&path).unwrap(), store.len()), (3, 8));
    assert_eq!(store.drop_for_good(&[1, 2, 3, 5, 77].map(Seq)).unwrap(), 4);
    assert_eq!(store.remove(&[Seq(6)]).unwrap(), 1);
    // One of them is a letter again, and then delivered.
    store.add(&letters(2..=2)).unwrap();
    let again = Letters::open(dir.path(), "a", true).unwrap();
    store.remove(&[Seq(2)]).unwrap();
    assert!(again.get(Seq(2)).unwrap().is_some() && !again.was_dropped(Seq(2)));
    store.scrub(&|| ()).unwrap();
    let reopened = Letters::open(dir.path(), "a", true).unwrap();
    for store in [store, reopened] {
        let dropped: Vec<u64> = (1..=99).filter(|seq| store.was_dropped(Seq(*seq))).collect();
        assert_eq!(
            dropped,
            [1, 3, 5],
            "neither what was delivered nor what was never there"
        );
        assert_eq!(
            (store.seqs(Seq(1), 99), store.forgotten_upto()),
            (vec![Seq(4), Seq(7), Seq(8)], Seq::ZERO)
        );
    }
}

#[test]
fn which_letters_were_dropped_is_remembered_within_bounds_and_known_beyond_not_to_be_known() {
    let dir = tempfile::tempdir().unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    let many = super::index::DROPPED_MAX as u64 + 2;
    let short = |seq| DeadLetter {
        reason: String::new(),
        ..letter(seq)
    };
    store
        .add(&(1..=many).map(|seq| short(seq * 2)).collect::<Vec<_>>())
        .unwrap();
    store
        .drop_for_good(&(1..=many).map(|seq| Seq(seq * 2)).collect::<Vec<_>>())
        .unwrap();
    store.scrub(&|| ()).unwrap();
    let reopened = Letters::open(dir.path(), "a", true).unwrap();
    for store in [store, reopened] {
        assert_eq!((store.len(), store.forgotten_upto()), (0, Seq(4)));
        assert!(store.was_dropped(Seq(6)) && store.was_dropped(Seq(many * 2)) && !store.was_dropped(Seq(7)));
    }
}

/// A header is what a file's owner knows anyway: damage to it costs no letter.
#[test]
fn a_damaged_header_costs_no_letter() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(1..=3)).unwrap();
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(Letters::open(dir.path(), "a", true).unwrap().len(), 3);
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "looking changes nothing");
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(4..=4)).unwrap();
    drop(store);
    let store = Letters::open(dir.path(), "a", false).unwrap();
    assert_eq!(store.len(), 4);
    assert!(asides(dir.path()).unwrap().is_empty());
}

/// What no other frame tells from letters is set aside, and the letters go on.
#[test]
fn letters_that_can_be_read_go_on_where_a_damaged_file_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(1..=3)).unwrap();
    store.drop_for_good(&[Seq(2)]).unwrap();
    drop(store);
    let mut file = FrameFile::open(&path, FORMAT, |_| ()).unwrap().0;
    file.append(99, &[b"of another kind"]).unwrap();
    file.sync().unwrap();
    drop(file);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(Letters::open(dir.path(), "a", true).unwrap().len(), 2);
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "looking changes nothing");
    let store = Letters::open(dir.path(), "a", false).unwrap();
    assert_eq!(std::fs::read(dir.path().join(".a.damaged")).unwrap(), bytes);
    store.add(&letters(4..=4)).unwrap();
    assert!(
        store
            .trouble()
            .unwrap()
            .contains("the 2 letter(s) that can be read are kept")
    );
    let reopened = Letters::open(dir.path(), "a", false).unwrap();
    assert_eq!(reopened.trouble(), None);
    for store in [store, reopened] {
        assert_eq!(store.seqs(Seq(1), 9), [1, 3, 4].map(Seq));
        assert!(store.was_dropped(Seq(2)));
        assert_eq!(store.get(Seq(3)).unwrap(), Some(letter(3)));
    }
}

/// A medium that does not give the file back is damage; whatever else keeps it from being read is none.
#[test]
fn only_proven_damage_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    Letters::open(dir.path(), "a", false)
        .unwrap()
        .add(&letters(1..=3))
        .unwrap();
    let store = Letters::new(dir.path(), "a", false);
    fail_at(&store, Some("medium"));
    store.read().unwrap();
    assert!(store.trouble().is_some() && dir.path().join(".a.damaged").exists());
    assert_eq!(store.seqs(Seq(1), 9), [1, 2, 3].map(Seq));
    drop(store);
    // A newer closehook's.
    let good = std::fs::read(&path).unwrap();
    drop(FrameFile::create(&path, Format { version: 9, ..FORMAT }).unwrap());
    let store = Letters::new(dir.path(), "a", false);
    assert!(store.read().is_err() && store.trouble().unwrap().contains("run the newer version"));
    assert!(!dir.path().join(".a.damaged~1").exists());
    std::fs::write(&path, good).unwrap();
    store.read().unwrap();
    assert_eq!((store.len(), store.trouble()), (3, None));
}

/// What is in the place of the file and can't be looked at is not taken for no file.
#[test]
fn a_file_that_can_not_be_looked_at_is_not_replaced_by_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    std::os::unix::fs::symlink("a", &path).unwrap();
    assert!(Letters::open(dir.path(), "a", false).is_err());
    assert!(path.is_symlink());
}

/// Where the new file has its name and that may not last, nothing goes into the old one, and nothing is believed before it lasts.
#[test]
fn letters_survive_a_rewrite_whose_name_can_not_be_synced() {
    let dir = tempfile::tempdir().unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(1..=3)).unwrap();
    fail_at(&store, Some("name"));
    assert!(store.scrub(&|| ()).is_err());
    assert!(
        store.add(&letters(4..=4)).is_err(),
        "it might be gone after a power cut"
    );
    assert_eq!(store.get(Seq(3)).unwrap(), Some(letter(3)));
    fail_at(&store, None);
    store.add(&letters(5..=5)).unwrap();
    let reopened = Letters::open(dir.path(), "a", false).unwrap();
    assert_eq!(reopened.get(Seq(5)).unwrap(), Some(letter(5)));
    for store in [store, reopened] {
        assert_eq!(store.seqs(Seq(1), 9), [1, 2, 3, 5].map(Seq));
    }
}

/// A new file that can't be read (too many files are open, say) takes nobody's place.
#[test]
fn letters_survive_a_rewrite_that_can_not_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(1..=3)).unwrap();
    fail_at(&store, Some("reader"));
    assert!(store.scrub(&|| ()).is_err());
    store.add(&letters(4..=4)).unwrap();
    assert!(!dir.path().join("a.new").exists());
    let reopened = Letters::open(dir.path(), "a", false).unwrap();
    for store in [store, reopened] {
        assert_eq!(store.len(), 4);
        assert_eq!(store.get(Seq(3)).unwrap(), Some(letter(3)));
    }
}

/// A new file is made only where there is none.
#[test]
fn a_file_that_somebody_else_made_meanwhile_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    Letters::open(dir.path(), "a", false)
        .unwrap()
        .add(&letters(1..=2))
        .unwrap();
    store.add(&letters(3..=3)).unwrap();
    let reopened = Letters::open(dir.path(), "a", false).unwrap();
    for store in [store, reopened] {
        assert_eq!(store.len(), 3);
        assert_eq!(store.get(Seq(1)).unwrap(), Some(letter(1)));
    }
}

/// An error is not an absence.
#[test]
fn letters_that_were_not_read_are_not_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    Letters::open(dir.path(), "a", false)
        .unwrap()
        .add(&letters(1..=2))
        .unwrap();
    let store = Letters::new(dir.path(), "a", false);
    assert!(store.get(Seq(1)).is_err() && store.copy(Seq(1)).is_err());
    store.read().unwrap();
    assert_eq!(store.get(Seq(1)).unwrap(), Some(letter(1)));
    assert_eq!(store.get(Seq(9)).unwrap(), None);
}

/// What the status, the feeds and people ask waits for no disk.
#[test]
fn questions_are_answered_while_the_file_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(1..=3)).unwrap();
    store.keep_copies(&[event(1)]).unwrap();
    // As it is held while a write takes its time.
    let written = lock(&store.shared.keeper);
    let (answer, answered) = mpsc::channel();
    let asking = store.clone();
    std::thread::spawn(move || {
        let known = (asking.len(), asking.has(Seq(3)), asking.seqs(Seq(2), 9).len());
        let read = (asking.get(Seq(2)).unwrap(), asking.copy(Seq(1)).unwrap().is_some());
        let said = (
            known,
            read,
            asking.beyond(0).len(),
            asking.without_copy(Seq(1), Seq(9), 9).len(),
        );
        answer.send(said).unwrap();
    });
    let answered = answered.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(answered, ((3, true, 2), (Some(letter(2)), true), 3, 2));
    drop(written);
}

/// A sector that is gone costs the letter or the copies in it, and keeps no other letter from being written.
#[test]
fn what_the_medium_has_lost_is_left_out_of_the_new_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(1..=4)).unwrap();
    store.keep_copies(&[event(1)]).unwrap();
    store.keep_copies(&[event(2), event(3)]).unwrap();
    let known = store.index(|index| index.clone());
    let reader = known.reader.clone().unwrap();
    let path = dir.path().join("b");
    let bad = [known.places[&Seq(4)].offset, known.places[&Seq(1)].copy.unwrap()];
    let read = |error: fn() -> std::io::Error| {
        let (reader, path) = (reader.clone(), path.clone());
        move |offset: u64| {
            if bad.contains(&offset) {
                return Err(FrameError::Io {
                    path: path.clone(),
                    source: error(),
                });
            }
            reader.read(offset)
        }
    };
    let mut file = FrameFile::create(&path, FORMAT).unwrap();
    let busy = read(|| rustix::io::Errno::MFILE.into());
    assert!(copy_live(&path, &mut file, &known, &busy).is_err(), "that passes");
    let mut file = FrameFile::create(&path, FORMAT).unwrap();
    let lost = read(|| rustix::io::Errno::IO.into());
    copy_live(&path, &mut file, &known, &lost).unwrap();
    file.sync().unwrap();
    let store = Letters::open(dir.path(), "b", false).unwrap();
    assert_eq!(store.seqs(Seq(1), 9), [1, 2, 3].map(Seq));
    assert_eq!(store.without_copy(Seq(1), Seq(9), 9), [Seq(1)]);
    assert_eq!(store.copy(Seq(3)).unwrap().unwrap().body, event(3).body);
}

/// What is durable is a dead letter, whether or not an older one can be removed for it now.
#[test]
fn letters_are_added_although_the_oldest_can_not_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    fail_at(&store, Some("remove"));
    assert_eq!(store.add_within(&letters(1..=4), 12_000).unwrap(), 0);
    assert_eq!(store.len(), 4);
    fail_at(&store, None);
    assert_eq!(store.add_within(&letters(5..=5), 12_000).unwrap(), 3);
    assert_eq!(store.seqs(Seq(1), 9), [4, 5].map(Seq));
}

/// What went is in the file until that is written anew.
#[test]
fn nothing_is_left_in_the_file_of_what_went_once_it_is_scrubbed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(1..=3)).unwrap();
    store.keep_copies(&[event(1), event(2)]).unwrap();
    store.remove(&[Seq(1), Seq(3)]).unwrap();
    std::fs::write(dir.path().join(".a.new"), "what a stop in the middle of a rewrite left").unwrap();
    let file = || std::fs::read(dir.path().join("a")).unwrap();
    let holds = |name: &str| memchr::memmem::find(&file(), name.as_bytes()).is_some();
    assert!(holds("ev_1") && holds("ev_3"));
    let before = file().len();
    store.scrub(&|| ()).unwrap();
    assert!(!holds("ev_1") && !holds("ev_3") && holds("ev_2") && file().len() < before);
    assert!(!dir.path().join(".a.new").exists());
    assert_eq!(store.copy(Seq(2)).unwrap().unwrap().body, event(2).body);
    store.remove(&[Seq(2)]).unwrap();
    store.scrub(&|| ()).unwrap();
    assert!(!holds("ev_2"));
    store.add(&letters(7..=7)).unwrap();
    assert_eq!(Letters::open(dir.path(), "a", false).unwrap().seqs(Seq(1), 9), [Seq(7)]);
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
    let mut frames = std::collections::BTreeMap::<u32, u32>::new();
    crate::framefile::scan(&dir.path().join("a"), FORMAT, |frame| {
        *frames.entry(frame.tag).or_default() += 1;
    })
    .unwrap();
    assert_eq!(
        frames.into_values().collect::<Vec<_>>(),
        [1, 3000],
        "one that removes, and the letters"
    );
    assert_eq!(
        Letters::open(dir.path(), "a", true).unwrap().seqs(Seq(1), 9),
        [Seq(3000)]
    );
}

#[test]
fn of_letters_added_together_none_is_there_where_not_all_could_be() {
    let dir = tempfile::tempdir().unwrap();
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(1..=1)).unwrap();
    fail_at(&store, Some("add"));
    assert!(store.add(&letters(2..=4)).is_err());
    fail_at(&store, None);
    store.mend().unwrap();
    let seqs = |store: &Letters| store.seqs(Seq::ZERO, 9);
    assert_eq!(seqs(&Letters::open(dir.path(), "a", true).unwrap()), [Seq(1)]);
    store.add(&letters(5..=5)).unwrap();
    assert_eq!(seqs(&Letters::open(dir.path(), "a", true).unwrap()), [Seq(1), Seq(5)]);
}
