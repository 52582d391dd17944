//! Dead letters of events that the log has lost, and letters that damage took.

use super::diverting::{bench_of, states_of, status_of};
use super::*;
use crate::deliver::letters::Letters;
use crate::deliver::types::dead_letter;
use crate::event::Event;

/// An event that the log does not have.
fn lost(seq: u64, id: &str) -> Arc<Event> {
    let body = format!(r#"{{"event":{{"id":"{id}","object_type":"lead","action":"updated"}}}}"#);
    let (at, kind) = (jiff::Timestamp::now(), crate::event::Kind::Event);
    Arc::new(Event::new(Seq(seq), at, Source::Webhook, kind, None, body.into()))
}

fn letters_in(dir: &Path) -> Letters {
    Letters::open(&dir.join("dead"), "a", false).unwrap()
}

/// A letter is durable before the mark that passes its event: where the end of the log is lost, it may be all that tells of that.
#[tokio::test(flavor = "multi_thread")]
async fn no_seq_that_has_a_dead_letter_or_had_one_is_given_out_again() {
    for what in ["is there", "was dropped", "was diverted", "was given"] {
        let receiver = Receiver::new();
        let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
        bench.store(1..=3).await;
        let letters = letters_in(bench.dir.path());
        let letter = dead_letter("a", &lost(8, "ev_8"), "no".into(), 1, None);
        match what {
            "was diverted" => letters.divert(&[Seq(8)], None).unwrap(),
            "was given" => {
                letters.give(&[letter.given_to("a")], 0).unwrap();
                letters.drop_for_good(&[Seq(8)]).unwrap();
            }
            _ => letters.add(&[letter]).unwrap(),
        }
        if what == "was dropped" {
            letters.drop_for_good(&[Seq(8)]).unwrap();
        }
        drop(letters);
        let engine = bench.engine(Mode::Follow).await;
        assert_eq!(*bench.log.head().borrow(), Seq(8), "{what}");
        bench.store(9..=9).await;
        until("what is new is delivered", async || receiver.sorted() == [1, 2, 3, 9]).await;
        engine.shutdown().await;
    }
}

/// With this in the sink's record, as if it had seen all before it.
async fn state_with(bench: &Bench, next: u64) -> Arc<dyn Store> {
    let state = crate::deliver::open_store(bench.dir.path(), Mode::Follow)
        .await
        .unwrap();
    let record = crate::deliver::mark::Record {
        main: Some(crate::deliver::feed::Saved {
            next: Seq(next),
            open: Vec::new(),
        }),
        ..crate::deliver::mark::Record::default()
    };
    crate::state::put_json(&*state, "sink/a", &record, Expected::Anything)
        .await
        .unwrap();
    state
}

/// As of the file of another log, or of a bit that was another one in memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_no_event_of_this_log_can_have_keeps_nobody_from_receiving() {
    for beyond in [1 << 50, u64::MAX] {
        let receiver = Receiver::new();
        let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
        bench.store(1..=3).await;
        let letters = letters_in(bench.dir.path());
        let letter = |seq, id| dead_letter("a", &lost(seq, id), "no".into(), 1, None);
        letters.add(&[letter(8, "ev_8"), letter(beyond, "ev_9")]).unwrap();
        drop(letters);
        let engine = bench.engine(Mode::Follow).await;
        assert_eq!(*bench.log.head().borrow(), Seq(8), "{beyond}");
        bench.store(9..=9).await;
        until("what is new is delivered", async || receiver.sorted() == [1, 2, 3, 9]).await;
        engine.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_this_log_can_not_have_come_to_keeps_nobody_from_receiving_and_is_taken_back() {
    for next in [1 << 50, u64::MAX] {
        let receiver = Receiver::new();
        let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
        bench.store(1..=3).await;
        let state = state_with(&bench, next).await;
        let engine = bench.engine_with(Arc::new(bench.log.clone()), Some(state)).await;
        assert_eq!(*bench.log.head().borrow(), Seq(3), "{next}");
        bench.store(4..=5).await;
        until("all is delivered", async || receiver.sorted() == [1, 2, 3, 4, 5]).await;
        durable(&engine, 5).await;
        engine.shutdown().await;
    }
}

/// Marks that have seen 8 of a log that ends at 3, and dead letters in a file that this closehook can't read; where the real ones are.
async fn without_its_end(bench: &Bench) -> (Arc<dyn Store>, std::path::PathBuf, std::path::PathBuf) {
    bench.store(1..=3).await;
    let state = state_with(bench, 9).await;
    let letters = letters_in(bench.dir.path());
    let letter = dead_letter("a", &lost(12, "ev_12"), "no".into(), 1, None);
    letters.add(&[letter]).unwrap();
    drop(letters);
    let (place, away) = (bench.dir.path().join("dead/a"), bench.dir.path().join("away"));
    std::fs::rename(&place, &away).unwrap();
    let newer = crate::framefile::Format {
        magic: *b"CLHKDEAD",
        version: 99,
    };
    drop(crate::framefile::FrameFile::create(&place, newer).unwrap());
    (state, place, away)
}

/// They may be newer than all that marks have seen, and what came at their Seqs would be taken for dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_has_lost_its_end_goes_on_when_it_is_known_of_which_events_there_are_letters() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    let (state, place, away) = without_its_end(&bench).await;
    let engine = bench.engine_with(Arc::new(bench.log.clone()), Some(state)).await;
    assert_eq!(*bench.log.head().borrow(), Seq(3));
    let body = r#"{"event":{"id":"ev_4","object_type":"lead","action":"updated"}}"#;
    let new = Incoming::new(body.into(), jiff::Timestamp::now(), Source::Webhook, None);
    let held = bench.log.append(new).await.unwrap_err().to_string();
    assert!(held.contains("events up to 8"), "{held}");
    std::fs::rename(&away, &place).unwrap();
    until("the log has gone on", async || *bench.log.head().borrow() == Seq(12)).await;
    bench.store(13..=13).await;
    until("what is new is delivered", async || receiver.sorted() == [13]).await;
    engine.shutdown().await;
}

/// Receiving waits for no sink: behind all that they can be of, the log goes on without them after a minute.
#[tokio::test]
async fn letters_that_can_not_be_read_keep_nobody_from_receiving_for_good() {
    let bench = Bench::new(vec![sink_on(&Receiver::new(), Commit::Acknowledge)]);
    let (state, _, _) = without_its_end(&bench).await;
    let engine = bench.engine_with(Arc::new(bench.log.clone()), Some(state)).await;
    tokio::time::pause();
    let mut head = bench.log.head();
    let is_past = |head: &Seq| head.0 >= 8 + 250_000;
    assert!(is_past(&head.wait_for(|head| *head != Seq(3)).await.unwrap()));
    tokio::time::resume();
    engine.shutdown().await;
}

/// The log was put back to before an event, and has given its Seq to another one since.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_whose_seq_another_event_has_sends_what_was_kept_for_it_or_nothing() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.store(1..=3).await;
    let letters = letters_in(bench.dir.path());
    let (kept, bare) = (lost(1, "ev_8"), lost(2, "ev_9"));
    let letter = |event: &Event| dead_letter("a", event, "no".into(), 1, None);
    letters.add(&[letter(&kept), letter(&bare)]).unwrap();
    letters.keep_copies(&[kept]).unwrap();
    drop(letters);
    let ids: Arc<Mutex<Vec<String>>> = Arc::default();
    let sent = ids.clone();
    receiver.says(move |delivery| {
        lock(&sent).extend(delivery.event.view().map(|view| view.id.clone()));
        Ok(Outcome::Delivered)
    });
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 3).await;
    for (seq, id) in [(1, Some("ev_8")), (2, None)] {
        let (_, event) = engine.dead_get("a", Seq(seq)).await.unwrap().unwrap();
        let shown = event.as_ref().and_then(|event| event.view());
        assert_eq!(shown.map(|view| view.id.as_str()), id);
        let said = state(&bench, &engine, seq).await;
        assert!(
            matches!(&said, EventState::Unknown { reason } if reason.contains("another event")),
            "{said:?}"
        );
    }
    let progress = engine.dead_retry("a", vec![Seq(1), Seq(2)]).await.unwrap();
    assert_eq!(settled(&progress).await, (2, 1, 1));
    assert!(progress.why().unwrap().contains("not kept any more"));
    assert_eq!(*lock(&ids), ["ev_3", "ev_8"]);
    engine.shutdown().await;
}

/// Whether or not the sink had come to the events themselves by then, which are not for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_and_went_with_the_file_is_not_said_to_be_none_of_the_sink_s() {
    for is_behind in [false, true] {
        let (first, second) = (Receiver::new(), Receiver::new());
        second.says(|_| Err(Unavailable::new("it is closed")));
        let bench = bench_of(&first, &second, Commit::Acknowledge);
        let engine = bench.engine(Mode::Follow).await;
        bench.store(1..=1).await;
        durable(&engine, 1).await;
        if is_behind {
            engine.pause("b", true).await.unwrap();
        }
        refuse(&first);
        bench.store(2..=4).await;
        until("all went there", async || {
            (status_of(&engine, "a").diverted, status_of(&engine, "b").given) == (3, 3)
        })
        .await;
        if !is_behind {
            durable(&engine, 4).await;
        }
        engine.shutdown().await;
        std::fs::write(bench.dir.path().join("dead/b"), vec![b'x'; 5000]).unwrap();
        let is_unknown = |states: &[EventState]| {
            let is_of_damage =
                |state: &EventState| matches!(state, EventState::Unknown { reason } if reason.contains("damage"));
            states[0] == EventState::Diverted && is_of_damage(&states[1])
        };
        first.says(|_| Ok(Outcome::Delivered));
        second.says(|_| Ok(Outcome::Delivered));
        let engine = bench.engine(Mode::Follow).await;
        until("that is said", async || {
            is_unknown(&states_of(&bench, &engine, 3).await)
        })
        .await;
        if is_behind {
            engine.pause("b", false).await.unwrap();
        }
        // What nobody has given it is not for it.
        bench.store(5..=5).await;
        durable(&engine, 5).await;
        assert_eq!(
            states_of(&bench, &engine, 5).await,
            [EventState::Delivered, EventState::NotRouted]
        );
        engine.shutdown().await;
        let look = bench.engine(Mode::Look).await;
        assert!(is_unknown(&states_of(&bench, &look, 3).await), "{is_behind}");
    }
}
