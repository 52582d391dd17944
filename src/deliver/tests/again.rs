//! A letter that is made anew while the one before it was delivered and has not gone yet: only what was delivered goes, and nobody is
//! asked once more because the letter has to wait.

use super::diverting::{COMMITS, bench_of, named, states_of, status_of};
use super::*;
use crate::deliver::types::DeadLetter;

/// Until what a replay sends was refused by the first sink, and its letter waits.
async fn waits_for_its_letter(engine: &Engine) {
    until("it is refused again, and says why it waits", async || {
        let status = status_of(engine, "a");
        let waits_for = status.waits_for.unwrap_or_default();
        status.retrying == 1 && waits_for.contains("wait until earlier ones")
    })
    .await;
}

/// How often a receiver was asked.
fn asked(receiver: &Receiver) -> u64 {
    receiver.calls.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_again_before_the_first_letter_went_is_delivered_again() {
    for commit in COMMITS {
        let (first, second) = (Receiver::new(), Receiver::new());
        refuse(&first);
        let bench = bench_of(&first, &second, commit);
        let engine = bench.engine(Mode::Follow).await;
        let letters = engine.letters_of("b");
        letters.fail_at(Some("remove"));
        bench.store(1..=1).await;
        until("the second has it", async || second.seqs() == [1]).await;
        until("its letter can't go", async || status_of(&engine, "b").given == 1).await;
        let before = asked(&first);
        let id = replay(&engine, 1, 1).await;
        waits_for_its_letter(&engine).await;
        letters.fail_at(None);
        assert_eq!(replay_done(&engine, &id).await.dead, 1, "{commit:?}");
        assert_eq!(asked(&first), before + 1, "{commit:?}");
        until("the second has it again", async || second.seqs() == [1, 1]).await;
        until("no letter is left", async || status_of(&engine, "b").given == 0).await;
        engine.shutdown().await;
    }
}

/// The same where it is a checkpoint that has not come to its end.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_again_before_the_first_delivery_is_secured_is_delivered_again() {
    let (first, second) = (Receiver::new(), Receiver::new());
    refuse(&first);
    let bench = bench_of(&first, &second, Commit::Checkpoint);
    let engine = bench.engine(Mode::Follow).await;
    until("the second is open", async || {
        second.checkpoints.load(Ordering::SeqCst) > 0
    })
    .await;
    second.checkpoint_gate.send_replace(false);
    bench.store(1..=1).await;
    until("the second has it", async || second.seqs() == [1]).await;
    let before = asked(&first);
    let id = replay(&engine, 1, 1).await;
    waits_for_its_letter(&engine).await;
    second.checkpoint_gate.send_replace(true);
    until("the second has it again", async || second.seqs() == [1, 1]).await;
    until("no letter is left", async || status_of(&engine, "b").given == 0).await;
    assert_eq!(replay_done(&engine, &id).await.dead, 1);
    assert_eq!(asked(&first), before + 1);
    engine.shutdown().await;
}

/// What two sinks, or two deaths, give it before it has begun with the first is one delivery, as ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_again_before_it_is_tried_is_delivered_once() {
    let (first, second) = (Receiver::new(), Receiver::new());
    refuse(&first);
    let bench = bench_of(&first, &second, Commit::Acknowledge);
    let engine = bench.engine(Mode::Follow).await;
    engine.pause("b", true).await.unwrap();
    bench.store(1..=1).await;
    until("it waits there", async || status_of(&engine, "b").given == 1).await;
    let id = replay(&engine, 1, 1).await;
    assert_eq!(replay_done(&engine, &id).await.dead, 1);
    engine.pause("b", false).await.unwrap();
    until("it is there", async || status_of(&engine, "b").given == 0).await;
    assert_eq!(second.seqs(), [1]);
    engine.shutdown().await;
}

/// A letter was delivered, and its event dies once more, of a replay, before it could be removed. A sink that secures what it has at
/// checkpoints delivers nothing while its letters can't be removed, so it does not come to that.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_of_a_second_death_does_not_go_with_the_delivered_one() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].breaker.refusals = 1_000_000;
    refuse(&receiver);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=1).await;
    until("it is dead", async || status(&engine).dead == 1).await;
    durable(&engine, 1).await;
    let letters = engine.letters_of("a");
    letters.fail_at(Some("remove"));
    receiver.says(|_| Ok(Outcome::Delivered));
    let retried = engine.dead_retry("a", vec![Seq(1)]).await.unwrap();
    until("it was delivered", async || receiver.seqs() == [1]).await;
    refuse(&receiver);
    let before = asked(&receiver);
    let id = replay(&engine, 1, 1).await;
    until("it is refused again", async || status(&engine).retrying == 1).await;
    letters.fail_at(None);
    assert_eq!(replay_done(&engine, &id).await.dead, 1);
    assert_eq!(asked(&receiver), before + 1);
    assert_eq!(settled(&retried).await, (1, 1, 0));
    bench.store(2..=2).await;
    until("that is saved", async || status(&engine).dead == 2).await;
    durable(&engine, 2).await;
    let of_replay = |letter: &DeadLetter| letter.seq == Seq(1) && letter.replay.as_ref() == Some(&id);
    let dead = engine.dead_list(Some("a"), Seq::ZERO, 9).unwrap();
    assert!(dead.iter().any(of_replay), "{dead:?}");
    engine.shutdown().await;
}

/// Two receivers refuse the first event, and their sinks "a" and "c" send it on to "b", which is the third's.
fn two_that_refuse(receivers: &[Arc<Receiver>; 3]) -> Bench {
    let [first, other, second] = receivers;
    for receiver in [first, other] {
        receiver.says(|delivery| match delivery.event.seq.0 {
            1 => Ok(Outcome::Reject { reason: "no".into() }),
            _ => Ok(Outcome::Delivered),
        });
    }
    let mut bench = bench_of(first, second, Commit::Acknowledge);
    bench.sinks.push(named(other, Commit::Acknowledge, "c", Some("b")));
    let rules = RuleSet::compile(&[], &["a", "b", "c"]).unwrap();
    bench.rules = Arc::new(rules.naming_only(["b"]));
    bench
}

/// What is said of the first event at the second of those that refuse it.
async fn at_other(bench: &Bench, engine: &Engine) -> EventState {
    states_of(bench, engine, 1).await.remove(2)
}

/// Whatever comes between, its receiver has refused it: what is still to be done is to send it on.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_and_has_no_letter_yet_is_not_sent_again_over_a_pause_a_reload_and_a_restart() {
    let receivers = [Receiver::new(), Receiver::new(), Receiver::new()];
    let mut bench = two_that_refuse(&receivers);
    let [_, other, second] = &receivers;
    let engine = bench.engine(Mode::Follow).await;
    engine.pause("c", true).await.unwrap();
    engine.letters_of("b").fail_at(Some("remove"));
    bench.store(1..=1).await;
    until("the second has it", async || second.seqs() == [1]).await;
    until("its letter can't go", async || status_of(&engine, "b").given == 1).await;
    engine.pause("c", false).await.unwrap();
    let is_said = async |engine: &Engine| match at_other(&bench, engine).await {
        EventState::Retrying {
            attempts: 1, reason, ..
        } => reason == "no; its dead letter waits until an earlier one, which is being delivered, has gone",
        _ => false,
    };
    until("it says what it waits for", async || is_said(&engine).await).await;
    for paused in [true, false] {
        engine.pause("c", paused).await.unwrap();
    }
    let rules = bench.rules.clone();
    let mut sinks = bench.sinks.clone();
    sinks[2].timeout = Span::secs(19);
    let changes = engine.reload(rules, &sinks).await.unwrap();
    assert_eq!(changes.changed, ["c"]);
    until("it still says so", async || is_said(&engine).await).await;
    bench.store(2..=2).await;
    until("others go on meanwhile", async || other.seqs() == [2]).await;
    engine.shutdown().await;
    bench.sinks = sinks;
    let engine = bench.engine(Mode::Follow).await;
    until("the second has all of them", async || second.seqs() == [1, 1]).await;
    until("and none is left", async || {
        status_of(&engine, "b").given == 0 && status_of(&engine, "c").cursor == Seq(2)
    })
    .await;
    assert_eq!(at_other(&bench, &engine).await, EventState::Diverted);
    assert_eq!(asked(other), 2, "once for each");
    engine.shutdown().await;
}

/// A node that takes a sink over, or a daemon after a crash, has the mark and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_and_has_no_letter_yet_is_in_the_mark() {
    let receivers = [Receiver::new(), Receiver::new(), Receiver::new()];
    let bench = two_that_refuse(&receivers);
    let [_, other, second] = &receivers;
    let store = super::super::open_store(bench.dir.path(), Mode::Follow).await.unwrap();
    let engine = bench
        .engine_with(Arc::new(bench.log.clone()), Some(store.clone()))
        .await;
    engine.pause("c", true).await.unwrap();
    engine.letters_of("b").fail_at(Some("remove"));
    bench.store(1..=1).await;
    until("the second has it", async || second.seqs() == [1]).await;
    engine.pause("c", false).await.unwrap();
    let saved = async || {
        store
            .get("sink/c")
            .await
            .unwrap()
            .unwrap()
            .json::<serde_json::Value>()
            .unwrap()
    };
    until("it is in the mark", async || {
        saved().await["main"]["open"][0]["parked"]["died_at"].is_string()
    })
    .await;
    let mark = saved().await.to_string().into_bytes();
    engine.shutdown().await;
    let store = super::super::open_store(bench.dir.path(), Mode::Follow).await.unwrap();
    store.put("sink/c", mark, Expected::Anything).await.unwrap();
    store.close().await;
    let engine = bench.engine(Mode::Follow).await;
    until("the second has it twice", async || second.seqs() == [1, 1]).await;
    until("the other is done", async || status_of(&engine, "c").cursor == Seq(1)).await;
    assert_eq!(asked(other), 1);
    engine.shutdown().await;
}
