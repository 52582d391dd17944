//! `dead_to`: what would become a dead letter goes to another sink.

use std::collections::BTreeMap;

use super::*;
use crate::event::{Dead, Origin};

/// By Seq, what a receiver was told of why it gets events that another sink gave up.
pub(super) type Told = Arc<Mutex<BTreeMap<u64, Dead>>>;

pub(super) fn takes_notes(receiver: &Receiver) -> Told {
    let told = Told::default();
    let notes = told.clone();
    receiver.says(move |delivery| {
        if let Origin::Diverted(dead) = &delivery.origin {
            lock(&notes).insert(delivery.event.seq.0, (**dead).clone());
        }
        Ok(Outcome::Delivered)
    });
    told
}

pub(super) fn named(receiver: &Arc<Receiver>, commit: Commit, name: &str, dead_to: Option<&str>) -> SinkConfig {
    SinkConfig {
        name: name.into(),
        dead_to: dead_to.map(ToOwned::to_owned),
        ..sink_on(receiver, commit)
    }
}

/// The first sink sends what it gives up to the second, which gets nothing else.
pub(super) fn bench_of(first: &Arc<Receiver>, second: &Arc<Receiver>, commit: Commit) -> Bench {
    let mut bench = Bench::new(vec![
        named(first, Commit::Acknowledge, "a", Some("b")),
        named(second, commit, "b", None),
    ]);
    bench.sinks[0].breaker.refusals = 1_000_000;
    bench.rules = Arc::new(RuleSet::compile(&[], &["a", "b"]).unwrap().naming_only(["b"]));
    bench
}

pub(super) async fn states_of(bench: &Bench, engine: &Engine, seq: u64) -> Vec<EventState> {
    let event = bench.log.get(Seq(seq)).unwrap().unwrap();
    engine.event_states(&event).await.into_values().collect()
}

pub(super) fn status_of(engine: &Engine, sink: &str) -> SinkStatus {
    engine.sinks().into_iter().find(|status| status.name == sink).unwrap()
}

pub(super) const COMMITS: [Commit; 3] = [Commit::Acknowledge, Commit::Checkpoint, Commit::Transaction];

/// Odd ones are refused.
pub(super) fn refuse_odd(receiver: &Receiver) {
    receiver.says(|delivery| {
        let reason = "no".into();
        Ok(if delivery.event.seq.0 % 2 == 1 {
            Outcome::Reject { reason }
        } else {
            Outcome::Delivered
        })
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_goes_to_the_other_sink_once_with_the_reason_and_nothing_else_does() {
    for commit in COMMITS {
        let (first, second) = (Receiver::new(), Receiver::new());
        refuse_odd(&first);
        let told = takes_notes(&second);
        let bench = bench_of(&first, &second, commit);
        let engine = bench.engine(Mode::Follow).await;
        bench.store(1..=99).await;
        until("the first is done", async || status_of(&engine, "a").cursor == Seq(99)).await;
        until("the second has them", async || status_of(&engine, "b").given == 0).await;
        until("and passed the rest", async || status_of(&engine, "b").lag_events == 0).await;
        assert_eq!(second.sorted(), (1..=99).step_by(2).collect::<Vec<_>>());
        let dead = Dead {
            sink: "a".into(),
            reason: "no".into(),
            attempts: 1,
        };
        assert_eq!(lock(&told).get(&7), Some(&dead));
        assert_eq!(
            states_of(&bench, &engine, 7).await,
            [EventState::Diverted, EventState::Delivered]
        );
        assert_eq!(
            states_of(&bench, &engine, 8).await,
            [EventState::Delivered, EventState::NotRouted]
        );
        let status = status_of(&engine, "a");
        assert_eq!((status.dead, status.diverted), (0, 50));
        durable(&engine, 99).await;
        engine.shutdown().await;
        let engine = bench.engine(Mode::Follow).await;
        bench.store(100..=100).await;
        until("it goes on", async || status_of(&engine, "a").cursor == Seq(100)).await;
        assert_eq!(
            states_of(&bench, &engine, 7).await,
            [EventState::Diverted, EventState::Delivered]
        );
        assert_eq!(second.seqs().len(), 50, "none again");
        engine.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_other_sink_has_not_had_yet_waits_there_over_a_restart_and_is_lag() {
    for commit in COMMITS {
        let (first, second) = (Receiver::new(), Receiver::new());
        refuse(&first);
        second.says(|_| Err(Unavailable::new("it is closed")));
        let bench = bench_of(&first, &second, commit);
        let engine = bench.engine(Mode::Follow).await;
        bench.store(1..=30).await;
        until("all wait there", async || status_of(&engine, "b").given == 30).await;
        until("the rest is passed", async || status_of(&engine, "b").lag_events == 30).await;
        assert_eq!(states_of(&bench, &engine, 3).await[0], EventState::Diverted);
        let waits = states_of(&bench, &engine, 3).await.remove(1);
        assert!(matches!(waits, EventState::Waiting | EventState::InFlight), "{waits:?}");
        assert_eq!(status_of(&engine, "b").dead, 0, "they are no dead letters");
        assert!(engine.dead_list(None, Seq::ZERO, 99).unwrap().is_empty());
        durable(&engine, 30).await;
        engine.shutdown().await;
        let told = takes_notes(&second);
        let engine = bench.engine(Mode::Follow).await;
        until("all are there", async || status_of(&engine, "b").given == 0).await;
        assert_eq!(second.sorted(), (1..=30).collect::<Vec<_>>());
        assert_eq!(lock(&told).len(), 30);
        engine.shutdown().await;
    }
}

/// It has read none of them, and other sinks give it each once more.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_paused_sink_has_not_read_and_is_given_too_is_one_event_of_its_lag() {
    let (first, second) = (Receiver::new(), Receiver::new());
    refuse(&first);
    let bench = bench_of(&first, &second, Commit::Acknowledge);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=10).await;
    until("the first are given", async || second.sorted().len() == 10).await;
    engine.pause("b", true).await.unwrap();
    bench.store(11..=30).await;
    until("the rest waits there", async || status_of(&engine, "b").given == 20).await;
    // It looks at itself again.
    engine.pause("b", true).await.unwrap();
    assert_eq!(status_of(&engine, "b").lag_events, 20);
    engine.shutdown().await;
    let engine = bench.engine(Mode::Look).await;
    assert_eq!(status_of(&engine, "b").lag_events, 20, "as it is saved");
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    engine.pause("b", false).await.unwrap();
    until("all are there", async || status_of(&engine, "b").given == 0).await;
    assert_eq!(second.sorted(), (1..=30).collect::<Vec<_>>());
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_there_is_its_dead_letter_and_is_retried_with_why_it_came() {
    let (first, second) = (Receiver::new(), Receiver::new());
    refuse(&first);
    second.says(|_| {
        Ok(Outcome::Reject {
            reason: "neither".into(),
        })
    });
    let bench = bench_of(&first, &second, Commit::Acknowledge);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=2).await;
    until("both are dead there", async || status_of(&engine, "b").dead == 2).await;
    let letters = engine.dead_list(None, Seq::ZERO, 9).unwrap();
    assert!(
        letters
            .iter()
            .all(|letter| letter.sink == "b" && letter.reason == "neither")
    );
    assert_eq!(letters[0].dead.as_ref().map(|dead| dead.reason.as_str()), Some("no"));
    let told = takes_notes(&second);
    let progress = engine.dead_retry("b", vec![Seq(1), Seq(2)]).await.unwrap();
    assert_eq!(settled(&progress).await, (2, 2, 0));
    assert_eq!(lock(&told).keys().copied().collect::<Vec<_>>(), [1, 2]);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_along_from_sink_to_sink() {
    let receivers = [Receiver::new(), Receiver::new(), Receiver::new()];
    refuse(&receivers[0]);
    receivers[1].says(|_| {
        Ok(Outcome::Reject {
            reason: "neither".into(),
        })
    });
    let told = takes_notes(&receivers[2]);
    let mut bench = bench_of(&receivers[0], &receivers[1], Commit::Checkpoint);
    bench.sinks[1].dead_to = Some("c".into());
    // As many refusals in a row as there are events say nothing of the sink here.
    bench.sinks[1].breaker.refusals = 100;
    bench.sinks.push(named(&receivers[2], Commit::Checkpoint, "c", None));
    let rules = RuleSet::compile(&[], &["a", "b", "c"]).unwrap();
    bench.rules = Arc::new(rules.naming_only(["b", "c"]));
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=20).await;
    until("the last has all", async || receivers[2].seqs().len() == 20).await;
    until("and is done with them", async || status_of(&engine, "c").given == 0).await;
    let last = lock(&told)[&9].clone();
    assert_eq!((last.sink.as_str(), last.reason.as_str()), ("b", "neither"));
    let states = states_of(&bench, &engine, 9).await;
    assert_eq!(
        states,
        [EventState::Diverted, EventState::Diverted, EventState::Delivered]
    );
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_drops_goes_there_too() {
    let (first, second) = (Receiver::new(), Receiver::new());
    first.says(|_| Err(Unavailable::new("nobody is there")));
    let told = takes_notes(&second);
    let bench = bench_of(&first, &second, Commit::Acknowledge);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=20).await;
    engine.bury(Seq(15));
    until("they are there", async || second.seqs().len() >= 15).await;
    assert!(lock(&told)[&1].reason.contains("size limit"));
    until("the first has passed them", async || {
        status_of(&engine, "a").buried == 15
    })
    .await;
    engine.shutdown().await;
}

/// A crash right after the second sink has it durably: the first still has it open.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_between_gives_it_once() {
    for commit in COMMITS {
        let (first, second) = (Receiver::new(), Receiver::new());
        let told = takes_notes(&second);
        let bench = bench_of(&first, &second, commit);
        bench.store(1..=3).await;
        let letters = super::super::letters::Letters::open(&bench.dir.path().join("dead"), "b", false).unwrap();
        let event = bench.log.get(Seq(2)).unwrap().unwrap();
        let letter = super::super::types::dead_letter("a", &event, "no".into(), 4, None);
        letters.give(&[letter.given_to("b")], 0).unwrap();
        drop(letters);
        let engine = bench.engine(Mode::Follow).await;
        until("the second has it", async || second.seqs() == [2]).await;
        until("the first is done", async || status_of(&engine, "a").cursor == Seq(3)).await;
        assert_eq!(first.sorted(), [1, 3], "it had given that up");
        assert_eq!(lock(&told)[&2].attempts, 4);
        assert_eq!(states_of(&bench, &engine, 2).await[0], EventState::Diverted);
        engine.shutdown().await;
    }
}

/// Events 1 to 6 were given up at once when they were new, and are replayed; of the replay the mark says nothing yet, and the second sink has
/// got some of it already.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_replay_gave_up_is_given_once_when_the_process_is_killed_before_the_mark_is_saved() {
    for commit in COMMITS {
        let (first, second) = (Receiver::new(), Receiver::new());
        refuse(&first);
        let bench = bench_of(&first, &second, commit);
        bench.store(1..=6).await;
        let engine = bench.engine(Mode::Follow).await;
        until("all went there", async || second.seqs().len() == 6).await;
        durable(&engine, 6).await;
        engine.shutdown().await;
        let store = super::super::open_store(bench.dir.path(), Mode::Follow).await.unwrap();
        let before = store.get("sink/a").await.unwrap().unwrap().value.to_vec();
        store.close().await;
        let engine = bench.engine(Mode::Follow).await;
        let id = replay(&engine, 1, 6).await;
        assert_eq!(replay_done(&engine, &id).await.dead, 6);
        until("the second has all of it", async || {
            second.seqs().len() == 12 && status_of(&engine, "b").given == 0
        })
        .await;
        engine.shutdown().await;
        // As if the process had been killed then.
        let store = super::super::open_store(bench.dir.path(), Mode::Follow).await.unwrap();
        store.put("sink/a", before, Expected::Anything).await.unwrap();
        store.close().await;
        let engine = bench.engine(Mode::Follow).await;
        let replay = replay_done(&engine, &id).await;
        assert_eq!((replay.dead, replay.delivered), (6, 0), "{commit:?}");
        until("the second has none left", async || status_of(&engine, "b").given == 0).await;
        let twice: Vec<u64> = (1..=6).flat_map(|seq| [seq, seq]).collect();
        assert_eq!(
            second.sorted(),
            twice,
            "{commit:?}: once when it was new, and once of the replay"
        );
        engine.shutdown().await;
    }
}

/// The second sink's file has it and the first's does not say so yet, when the process is killed.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_replay_gave_by_half_is_given_once() {
    let (first, second) = (Receiver::new(), Receiver::new());
    refuse(&first);
    let bench = bench_of(&first, &second, Commit::Acknowledge);
    bench.store(1..=3).await;
    let engine = bench.engine(Mode::Follow).await;
    until("all went there", async || second.seqs().len() == 3).await;
    durable(&engine, 3).await;
    engine.pause("a", true).await.unwrap();
    let id = replay(&engine, 1, 3).await;
    engine.shutdown().await;
    let letters = super::super::letters::Letters::open(&bench.dir.path().join("dead"), "b", false).unwrap();
    let event = bench.log.get(Seq(2)).unwrap().unwrap();
    let letter = super::super::types::dead_letter("a", &event, "no".into(), 4, None);
    let letter = super::super::types::DeadLetter {
        replay: Some(id.clone()),
        ..letter
    };
    letters.give(&[letter.given_to("b")], 0).unwrap();
    drop(letters);
    let engine = bench.engine(Mode::Follow).await;
    until("the second has it", async || second.seqs().len() == 4).await;
    engine.pause("a", false).await.unwrap();
    assert_eq!(replay_done(&engine, &id).await.dead, 3);
    until("the second has none left", async || status_of(&engine, "b").given == 0).await;
    assert_eq!(second.sorted(), [1, 1, 2, 2, 3, 3]);
    engine.shutdown().await;
}

#[test]
fn what_was_given_and_what_was_diverted_outlast_a_file_that_is_written_anew() {
    use super::super::letters::Letters;
    let dir = tempfile::tempdir().unwrap();
    let letters = Letters::open(dir.path(), "b", false).unwrap();
    let event = |seq| {
        let at = jiff::Timestamp::UNIX_EPOCH;
        crate::event::Event::new(
            Seq(seq),
            at,
            Source::Webhook,
            crate::event::Kind::Event,
            None,
            "{}".into(),
        )
    };
    let letter = |seq| super::super::types::dead_letter("a", &event(seq), "no".into(), 1, None);
    letters.add(&[letter(1)]).unwrap();
    letters
        .give(&[letter(2).given_to("b"), letter(3).given_to("b")], 0)
        .unwrap();
    assert!(letters.given(9, |_| false).is_empty(), "withheld");
    letters.release(&[Seq(2)]);
    letters.divert(&[Seq(7), Seq(8)], Some("rp_1")).unwrap();
    let is_right = |letters: &Letters, given: &[u64]| {
        let seqs: Vec<u64> = letters.given(9, |_| false).iter().map(|(seq, _)| seq.0).collect();
        assert_eq!(seqs, given);
        assert_eq!((letters.len(), letters.given_len()), (1, 2));
        assert!(letters.is_dead(Seq(8)) && letters.was_diverted(Seq(7)) && !letters.is_dead(Seq(2)));
        assert_eq!(letters.get(Seq(3)).unwrap().unwrap().dead.unwrap().sink, "a");
        let of_replay = |replay, seq| letters.was_diverted_by(replay, Seq(seq));
        assert!(of_replay("rp_1", 7) && of_replay("rp_1", 8) && !of_replay("rp_1", 3) && !of_replay("rp_2", 7));
    };
    letters.scrub(&|| ()).unwrap();
    is_right(&letters, &[2]);
    drop(letters);
    let letters = Letters::open(dir.path(), "b", false).unwrap();
    is_right(&letters, &[2, 3]);
    letters.add(&[letter(2)]).unwrap();
    letters.divert(&[Seq(3)], None).unwrap();
    assert_eq!((letters.len(), letters.given_len()), (2, 0));
}
