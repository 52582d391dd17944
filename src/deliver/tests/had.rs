//! What a sink has had is delivered, whatever was tried with it besides and came to nothing.

use super::diverting::{COMMITS, bench_of, states_of, status_of};
use super::*;

fn patient(receiver: &Arc<Receiver>, commit: Commit) -> Bench {
    let mut bench = Bench::new(vec![sink_on(receiver, commit)]);
    bench.sinks[0].breaker.refusals = 1_000_000;
    bench
}

/// What is said now, and after a restart.
async fn is_said(bench: &Bench, engine: Engine, seq: u64, wanted: impl Fn(&EventState) -> bool) {
    let now = state(bench, &engine, seq).await;
    assert!(wanted(&now), "event {seq} is said to be {now:?}");
    engine.shutdown().await;
    let look = bench.engine(Mode::Look).await;
    let then = state(bench, &look, seq).await;
    assert!(wanted(&then), "event {seq} is said to be {then:?} after a restart");
}

fn is_delivered(state: &EventState) -> bool {
    *state == EventState::Delivered
}

fn is_dead(state: &EventState) -> bool {
    matches!(state, EventState::Dead { .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_replay_delivered_is_delivered_when_its_letter_is_dropped() {
    for commit in COMMITS {
        let receiver = Receiver::new();
        let bench = patient(&receiver, commit);
        refuse(&receiver);
        bench.store(1..=3).await;
        let engine = bench.engine(Mode::Follow).await;
        until("all are dead", async || status(&engine).dead == 3).await;
        receiver.says(|_| Ok(Outcome::Delivered));
        let id = replay(&engine, 2, 2).await;
        assert_eq!(replay_done(&engine, &id).await.delivered, 1);
        assert!(is_dead(&state(&bench, &engine, 2).await), "its letter is still there");
        assert_eq!(engine.dead_drop("a", &[2, 3].map(Seq)).unwrap(), 2);
        assert!(matches!(state(&bench, &engine, 3).await, EventState::Lost { .. }));
        until("what the sink has is delivered", async || {
            is_delivered(&state(&bench, &engine, 2).await)
        })
        .await;
        is_said(&bench, engine, 2, is_delivered).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_is_delivered_when_the_letter_of_a_later_replay_is_dropped() {
    for commit in COMMITS {
        let receiver = Receiver::new();
        let bench = patient(&receiver, commit);
        bench.store(1..=3).await;
        let engine = bench.engine(Mode::Follow).await;
        caught_up(&engine, 3).await;
        durable(&engine, 3).await;
        refuse(&receiver);
        let id = replay(&engine, 2, 2).await;
        assert_eq!(replay_done(&engine, &id).await.dead, 1);
        assert!(is_dead(&state(&bench, &engine, 2).await));
        assert_eq!(engine.dead_drop("a", &[Seq(2)]).unwrap(), 1);
        assert_eq!(receiver.sorted(), [1, 2, 3]);
        is_said(&bench, engine, 2, is_delivered).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_letter_is_dead_and_what_the_sink_had_before_stays_delivered() {
    let receiver = Receiver::new();
    let bench = patient(&receiver, Commit::Acknowledge);
    refuse(&receiver);
    bench.store(1..=1).await;
    let engine = bench.engine(Mode::Follow).await;
    until("it is dead", async || status(&engine).dead == 1).await;
    receiver.says(|_| Ok(Outcome::Delivered));
    let id = replay(&engine, 1, 1).await;
    replay_done(&engine, &id).await;
    assert_eq!(engine.dead_drop("a", &[Seq(1)]).unwrap(), 1);
    refuse(&receiver);
    let id = replay(&engine, 1, 1).await;
    assert_eq!(replay_done(&engine, &id).await.dead, 1);
    assert!(is_dead(&state(&bench, &engine, 1).await));
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    assert!(is_dead(&state(&bench, &engine, 1).await), "a letter is there");
    assert_eq!(engine.dead_drop("a", &[Seq(1)]).unwrap(), 1);
    is_said(&bench, engine, 1, is_delivered).await;
}

/// Rules that send it there no more say nothing of what it had by those of then.
#[tokio::test(flavor = "multi_thread")]
async fn what_earlier_rules_sent_is_delivered_whatever_a_replay_comes_to() {
    let receiver = Receiver::new();
    let bench = patient(&receiver, Commit::Acknowledge);
    bench.store(1..=3).await;
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 3).await;
    durable(&engine, 3).await;
    engine.reload(of_lead(6), &bench.sinks).await.unwrap();
    refuse(&receiver);
    let id = replay(&engine, 2, 2).await;
    assert_eq!(replay_done(&engine, &id).await.dead, 1);
    assert_eq!(engine.dead_drop("a", &[Seq(2)]).unwrap(), 1);
    receiver.says(|_| Ok(Outcome::Skipped));
    let id = replay(&engine, 3, 3).await;
    assert_eq!(replay_done(&engine, &id).await.skipped, 1);
    assert_eq!(state(&bench, &engine, 3).await, EventState::Delivered);
    is_said(&bench, engine, 2, is_delivered).await;
}

/// And what it never had is not said to be delivered for that.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_sink_never_had_is_lost_or_skipped_after_a_replay_in_vain() {
    let receiver = Receiver::new();
    let mut bench = patient(&receiver, Commit::Acknowledge);
    bench.rules = of_lead(6);
    refuse(&receiver);
    bench.store(1..=6).await;
    let engine = bench.engine(Mode::Follow).await;
    until("it is dead", async || status(&engine).dead == 1).await;
    durable(&engine, 6).await;
    for seq in [2, 6] {
        let id = replay(&engine, seq, seq).await;
        assert_eq!(replay_done(&engine, &id).await.dead, 1);
        assert_eq!(engine.dead_drop("a", &[Seq(seq)]).unwrap(), 1);
        assert!(
            matches!(state(&bench, &engine, seq).await, EventState::Lost { .. }),
            "{seq}"
        );
    }
    receiver.says(|_| Ok(Outcome::Skipped));
    let id = replay(&engine, 3, 3).await;
    assert_eq!(replay_done(&engine, &id).await.skipped, 1);
    is_said(&bench, engine, 3, |state| *state == EventState::Skipped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_is_delivered_when_a_later_replay_is_diverted() {
    let (first, second) = (Receiver::new(), Receiver::new());
    let bench = bench_of(&first, &second, Commit::Acknowledge);
    bench.store(1..=3).await;
    let engine = bench.engine(Mode::Follow).await;
    until("the first has them", async || status_of(&engine, "a").cursor == Seq(3)).await;
    durable(&engine, 3).await;
    refuse(&first);
    let id = replay(&engine, 2, 2).await;
    replay_done(&engine, &id).await;
    until("the second has it", async || second.seqs() == [2]).await;
    assert_eq!(states_of(&bench, &engine, 2).await[0], EventState::Delivered);
    // What the first never had went to the second, and is said to.
    bench.store(4..=4).await;
    until("it is given up", async || status_of(&engine, "a").cursor == Seq(4)).await;
    assert_eq!(states_of(&bench, &engine, 4).await[0], EventState::Diverted);
    is_said(&bench, engine, 2, is_delivered).await;
}
