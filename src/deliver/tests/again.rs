//! A letter that is made anew while the one before it was delivered and has not gone yet: only what was delivered goes.

use super::diverting::{COMMITS, bench_of, status_of};
use super::*;
use crate::deliver::types::DeadLetter;

/// Until a receiver that was asked so often has refused what a replay sends.
async fn refused_again(engine: &Engine, id: &str, receiver: &Receiver, asked: u64) {
    until("it is refused again", async || {
        let replays = engine.replays();
        let is_over = replays.iter().any(|replay| replay.id == id && replay.dead == 1);
        is_over || receiver.calls.load(Ordering::SeqCst) > asked + 1
    })
    .await;
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
        let id = replay(&engine, 1, 1).await;
        let asked = first.calls.load(Ordering::SeqCst);
        refused_again(&engine, &id, &first, asked).await;
        letters.fail_at(None);
        assert_eq!(replay_done(&engine, &id).await.dead, 1, "{commit:?}");
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
    let id = replay(&engine, 1, 1).await;
    let asked = first.calls.load(Ordering::SeqCst);
    refused_again(&engine, &id, &first, asked).await;
    second.checkpoint_gate.send_replace(true);
    until("the second has it again", async || second.seqs() == [1, 1]).await;
    until("no letter is left", async || status_of(&engine, "b").given == 0).await;
    assert_eq!(replay_done(&engine, &id).await.dead, 1);
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
    let asked = receiver.calls.load(Ordering::SeqCst);
    let id = replay(&engine, 1, 1).await;
    refused_again(&engine, &id, &receiver, asked).await;
    letters.fail_at(None);
    assert_eq!(replay_done(&engine, &id).await.dead, 1);
    assert_eq!(settled(&retried).await, (1, 1, 0));
    bench.store(2..=2).await;
    until("that is saved", async || status(&engine).dead == 2).await;
    durable(&engine, 2).await;
    let of_replay = |letter: &DeadLetter| letter.seq == Seq(1) && letter.replay.as_ref() == Some(&id);
    let dead = engine.dead_list(Some("a"), Seq::ZERO, 9).unwrap();
    assert!(dead.iter().any(of_replay), "{dead:?}");
    engine.shutdown().await;
}
