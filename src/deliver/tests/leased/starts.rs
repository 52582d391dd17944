//! Where sinks begin that no node has known, and for which a command stores something.

use super::*;

/// A command stores what is to be dispatched before any node has ever run, or while none does that knows the sink.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_stores_to_be_dispatched_goes_to_sinks_that_no_node_has_known() {
    for has_run in [false, true] {
        let pair = Pair::new().await;
        let receiver = Receiver::new();
        if has_run {
            pair.bench.store(8..=9).await;
            let log_id = pair.bench.log.id().to_owned();
            crate::deliver::note_begun(&*pair.store, &log_id).await.unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let mut sink = sink_on(&receiver, Commit::Acknowledge);
        sink.start = crate::config::Start::Now;
        let options = Options {
            log: Arc::new(pair.bench.log.clone()),
            store: pair.store.clone(),
            dir: dir.path().to_owned(),
            rules: pair.bench.rules.clone(),
            sinks: vec![sink],
            mode: Mode::Outside,
            names: Arc::default(),
            clock: crate::age::Clock::new(jiff::Timestamp::now),
        };
        let command = Engine::start_with(options, ByHand::new("command")).await.unwrap();
        pair.store.refuses.store(true, Ordering::SeqCst);
        command.settle_starts().await.unwrap_err();
        pair.store.refuses.store(false, Ordering::SeqCst);
        command.settle_starts().await.unwrap();
        pair.bench.store(1..=3).await;
        // Before each part of what it stores.
        command.settle_starts().await.unwrap();
        command.shutdown().await;
        let node = pair.node_from_now_on("one", &receiver).await;
        node.leases.gets(1);
        let before = if has_run { 2 } else { 0 };
        caught_up(&node.engine, before + 3).await;
        let expected: Vec<u64> = (before + 1..=before + 3).collect();
        assert_eq!(receiver.sorted(), expected, "has run: {has_run}");
        assert!(!status(&node.engine).needs_person, "nothing was lost");
        node.engine.shutdown().await;
    }
}
