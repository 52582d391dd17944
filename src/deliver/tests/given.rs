//! What other sinks gave up, and what may come between.

use super::diverting::{bench_of, named, status_of, takes_notes};
use super::*;

/// The first sends what it gives up to the second, that to the third; those two get nothing else.
fn chain_of(receivers: &[Arc<Receiver>; 3]) -> Bench {
    let mut bench = bench_of(&receivers[0], &receivers[1], Commit::Checkpoint);
    bench.sinks[1].dead_to = Some("c".into());
    bench.sinks[1].breaker.refusals = 1_000_000;
    bench.sinks.push(named(&receivers[2], Commit::Checkpoint, "c", None));
    let rules = RuleSet::compile(&[], &["a", "b", "c"]).unwrap();
    bench.rules = Arc::new(rules.naming_only(["b", "c"]));
    bench
}

/// Stores events that fill segments, of which the first twenty can be dropped.
async fn store_much(bench: &Bench) {
    for id in 1..=60 {
        let pad: String = std::iter::repeat_with(fastrand::alphanumeric).take(8000).collect();
        bench.store_with(id..=id, &pad).await;
    }
}

/// Keeps what letters need of the first twenty, and has the log drop them.
async fn drop_twenty(bench: &Bench, engine: &Engine) {
    engine.secure_letters(Seq(61)).await.unwrap();
    let log: &dyn Log = &bench.log;
    let first = log.drop_before(Seq(61)).await.unwrap();
    assert!(first > Seq(20), "{first}");
}

/// Up to the twentieth they are refused.
fn refuse_twenty(receiver: &Receiver) {
    receiver.says(|delivery| {
        let reason = "no".into();
        Ok(if delivery.event.seq.0 <= 20 {
            Outcome::Reject { reason }
        } else {
            Outcome::Delivered
        })
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_for_a_letter_goes_along_with_it_from_sink_to_sink() {
    let receivers = [Receiver::new(), Receiver::new(), Receiver::new()];
    refuse_twenty(&receivers[0]);
    receivers[1].says(|_| Err(Unavailable::new("it is closed")));
    let told = takes_notes(&receivers[2]);
    let bench = chain_of(&receivers);
    let engine = bench.engine(Mode::Follow).await;
    store_much(&bench).await;
    until("all wait at the second", async || status_of(&engine, "b").given == 20).await;
    durable(&engine, 60).await;
    let event = bench.log.get(Seq(9)).unwrap().unwrap();
    drop_twenty(&bench, &engine).await;
    refuse(&receivers[1]);
    until("the second has none", async || {
        status_of(&engine, "b").given == 0 && status_of(&engine, "c").given == 0
    })
    .await;
    let states: Vec<EventState> = engine.event_states(&event).await.into_values().collect();
    assert_eq!(
        states,
        [EventState::Diverted, EventState::Diverted, EventState::Delivered]
    );
    assert_eq!(receivers[2].sorted(), (1..=20).collect::<Vec<_>>());
    assert_eq!(lock(&told).len(), 20);
    engine.shutdown().await;
}
