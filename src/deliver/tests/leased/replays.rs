//! Replays that one node begins and another carries out.

use super::*;

/// A replay that is taken back, or forgotten, by one node is none of another's any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_gone_from_the_state_stops_at_the_node_that_carries_it_out() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    let one = pair.node("one", &receiver, Commit::Acknowledge).await;
    let two = pair.node_at_work("two", &receiver, Commit::Acknowledge, 20).await;
    two.engine.pause("a", true).await.unwrap();
    let id = replay(&one.engine, 1, 20).await;
    until("it is begun there", async || {
        pair.record().await.unwrap().replays.contains_key(&id)
    })
    .await;
    let key = format!("{}{id}", crate::deliver::mark::JOBS);
    pair.store.remove(&key, Expected::Anything).await.unwrap();
    until("nobody knows of it", async || {
        one.engine.replays().is_empty() && two.engine.replays().is_empty()
    })
    .await;
    until("the sink has let go of it", async || {
        pair.record().await.unwrap().replays.is_empty()
    })
    .await;
    two.engine.pause("a", false).await.unwrap();
    pair.bench.store(21..=21).await;
    pair.durable(21).await;
    assert_eq!(receiver.sorted(), (1..=21).collect::<Vec<_>>(), "nothing of it is sent");
    one.engine.shutdown().await;
    two.engine.shutdown().await;
}

/// State that is lost says nothing about what was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_on_where_the_state_that_had_it_is_lost() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    let one = pair.node_at_work("one", &receiver, Commit::Acknowledge, 5).await;
    one.engine.pause("a", true).await.unwrap();
    let id = replay(&one.engine, 1, 5).await;
    // It is noted anew as soon as every sink has a record again, which does not come about.
    pair.store.refuses.store(true, Ordering::SeqCst);
    for key in [
        "begun",
        &record_key("a"),
        &format!("{}{id}", crate::deliver::mark::JOBS),
    ] {
        pair.store.remove(key, Expected::Anything).await.unwrap();
    }
    one.engine.look_at_jobs().await.unwrap();
    assert_eq!(one.engine.replays().len(), 1, "it is known here");
    pair.store.refuses.store(false, Ordering::SeqCst);
    one.engine.shutdown().await;
}

/// What another node has noted of a replay counts here too.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_another_node_forgets_is_waited_for_by_no_replay_here() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    let one = pair.node("one", &receiver, Commit::Acknowledge).await;
    let two = pair.node_at_work("two", &receiver, Commit::Acknowledge, 5).await;
    two.engine.pause("a", true).await.unwrap();
    replay(&one.engine, 1, 5).await;
    until("both know it", async || !two.engine.replays().is_empty()).await;
    two.engine.part_for_good("a").await.unwrap();
    until("it ends here too", async || {
        one.engine.replays()[0].state == "incomplete"
    })
    .await;
    one.engine.shutdown().await;
    two.engine.shutdown().await;
}
