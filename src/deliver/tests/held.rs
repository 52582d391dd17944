//! What is given up because the sink took nothing for too long.

use super::*;

/// Nobody has tried while the sink was paused, or closehook stopped: that says nothing about the receiver.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_given_up_after_a_pause_or_a_stop_before_the_sink_was_tried() {
    for restart in [false, true] {
        let receiver = Receiver::new();
        let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
        bench.sinks[0].retry.max_age = Span(Duration::from_millis(1));
        receiver.says(|_| Err(Unavailable::new("nobody is there")));
        let mut engine = bench.engine(Mode::Follow).await;
        bench.store(1..=1).await;
        until("the first is given up", async || status(&engine).dead == 1).await;
        if restart {
            engine.shutdown().await;
        } else {
            engine.pause("a", true).await.unwrap();
        }
        receiver.says(|_| Ok(Outcome::Delivered));
        receiver.gate.send_replace(false);
        // More than are read at once.
        bench.store(2..=3000).await;
        if restart {
            engine = bench.engine(Mode::Follow).await;
        } else {
            engine.pause("a", false).await.unwrap();
        }
        until("one is tried", async || status(&engine).in_flight > 0).await;
        receiver.gate.send_replace(true);
        caught_up(&engine, 3000).await;
        assert_eq!(status(&engine).dead, 1, "restart: {restart}");
        assert_eq!(receiver.sorted(), (2..=3000).collect::<Vec<_>>());
        engine.shutdown().await;
    }
}
