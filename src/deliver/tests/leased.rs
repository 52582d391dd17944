//! Two nodes on one log and one store, and leases that come and go as a test says.

use super::*;
use crate::deliver::Known;
use crate::deliver::mark::{Record, record_key};
use pair::{ByHand, Node, Pair};

mod pair;
mod removed;
mod replays;
mod set_back;
mod starts;

#[tokio::test(flavor = "multi_thread")]
async fn only_the_node_with_the_lease_delivers_and_the_next_goes_on_from_its_mark() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    let one = pair.node("one", &receiver, Commit::Acknowledge).await;
    let two = pair.node("two", &receiver, Commit::Acknowledge).await;
    pair.bench.store(1..=20).await;
    until("both see that nobody has it", async || {
        [&one, &two].iter().all(|node| {
            status(&node.engine)
                .waits_for
                .is_some_and(|why| why.contains("no node"))
        })
    })
    .await;
    assert_eq!(receiver.seqs(), [0; 0], "nobody has it");
    one.leases.gets(1);
    assert_eq!(pair.durable(20).await.fence, 1);
    assert_eq!(one.engine.driven().len(), 1);
    one.leases.loses();
    until("the first stops", async || {
        one.engine.driven().is_empty() && one.leases.given_up.load(Ordering::SeqCst) > 0
    })
    .await;
    pair.bench.store(21..=40).await;
    two.leases.gets(2);
    assert_eq!(pair.durable(40).await.fence, 2);
    assert_eq!(receiver.sorted(), (1..=40).collect::<Vec<_>>(), "each once");
    caught_up(&one.engine, 40).await;
    let refused = one.engine.pause("a", true).await.unwrap_err().to_string();
    assert!(refused.contains("no other node"), "{refused}");
    two.leases.loses();
    one.leases.gets(3);
    pair.bench.store(41..=60).await;
    assert_eq!(pair.durable(60).await.fence, 3);
    assert_eq!(receiver.sorted(), (1..=60).collect::<Vec<_>>());
    pair.nobody_came_between();
    one.engine.shutdown().await;
    two.engine.shutdown().await;
}

/// As while the servers are away that all nodes share: what was known of a sink is not what there is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_no_node_drives_stays_in_sight_with_what_was_seen_last_and_says_why() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    let one = pair.node_at_work("one", &receiver, Commit::Acknowledge, 20).await;
    caught_up(&one.engine, 20).await;
    pair.store.broken.store(true, Ordering::SeqCst);
    one.leases.loses();
    until("it says why it does nothing", async || {
        let seen = status(&one.engine);
        assert_eq!(seen.cursor, Seq(20));
        let is_said = seen.waits_for.is_some_and(|why| why.contains("nobody answers"));
        is_said && seen.known == Known::Saved
    })
    .await;
    // One that has not been able to read anything says so, and no number.
    let two = pair.node("two", &receiver, Commit::Acknowledge).await;
    assert_eq!(status(&two.engine).known, Known::Nothing);
    pair.store.broken.store(false, Ordering::SeqCst);
    until("it can be read", async || {
        status(&two.engine).known == Known::Saved && status(&two.engine).cursor == Seq(20)
    })
    .await;
    one.engine.shutdown().await;
    two.engine.shutdown().await;
}

/// The lease of a sink is here before its worker is.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_for_a_sink_that_is_just_coming_is_carried_out_when_it_is_there() {
    let pair = Pair::new().await;
    let one = pair.node("one", &Receiver::new(), Commit::Acknowledge).await;
    let engine = one.engine.clone();
    // Its workers are not settled meanwhile.
    let changing = engine.inner.changing.lock().await;
    one.leases.gets(1);
    let pausing = tokio::spawn({
        let engine = engine.clone();
        async move {
            engine
                .obey_other_node("sink/a", &serde_json::json!({ "pause": true }))
                .await
        }
    });
    tokio::task::yield_now().await;
    assert!(!pausing.is_finished());
    drop(changing);
    pausing.await.unwrap().unwrap();
    until("it is paused", async || status(&engine).paused).await;
    engine.shutdown().await;
}

/// The first does not know that it was taken for dead: as after a SIGSTOP, in the middle of a delivery.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_only_slow_moves_no_mark_and_stops() {
    for commit in [Commit::Acknowledge, Commit::Checkpoint, Commit::Transaction] {
        let pair = Pair::new().await;
        let one = pair.node("one", &Receiver::new(), commit).await;
        let two = pair.node("two", &Receiver::new(), commit).await;
        one.receiver.gate.send_replace(false);
        one.leases.gets(1);
        pair.bench.store(1..=20).await;
        until("it is in the middle of it", async || {
            one.receiver.calls.load(Ordering::SeqCst) > 0
        })
        .await;
        two.leases.gets(2);
        assert_eq!(pair.durable(20).await.fence, 2);
        assert_eq!(two.receiver.sorted(), (1..=20).collect::<Vec<_>>());
        one.receiver.gate.send_replace(true);
        until("the first gives it up", async || {
            one.leases.given_up.load(Ordering::SeqCst) > 0
        })
        .await;
        let opened = one.receiver.opened.load(Ordering::SeqCst);
        pair.bench.store(21..=40).await;
        assert_eq!(pair.durable(40).await.fence, 2);
        assert_eq!(one.receiver.opened.load(Ordering::SeqCst), opened, "it reopens nothing");
        assert!(
            one.receiver.seqs().iter().all(|seq| *seq <= 20),
            "what was in flight may repeat, and nothing else"
        );
        pair.nobody_came_between();
        one.engine.shutdown().await;
        two.engine.shutdown().await;
        pair.nobody_came_between();
    }
}

/// A node whose view of the log is behind the mark that it takes over sends nothing again.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_ahead_of_what_a_node_has_heard_of_the_log_is_believed() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    let mut record = Record::default();
    record.begin_at(Seq(11));
    record.fence = 4;
    let value = serde_json::to_vec(&record).unwrap();
    pair.store
        .put(&record_key("a"), value, Expected::Nothing)
        .await
        .unwrap();
    pair.bench.store(1..=10).await;
    let (said, heard) = tokio::sync::watch::channel(Seq(5));
    let mut log = super::faulty::Faulty::on(&pair.bench.log);
    log.heard = Some(heard);
    let one = pair.node_on(Arc::new(log), "one", &receiver, Commit::Acknowledge).await;
    one.leases.gets(5);
    pair.bench.store(11..=20).await;
    said.send_replace(Seq(20));
    pair.durable(20).await;
    assert_eq!(receiver.sorted(), (11..=20).collect::<Vec<_>>());
    one.engine.shutdown().await;
}

/// Both sinks' leases go and come back at once, as after a hiccup of the servers; one sink's delivery hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_whose_lease_is_back_goes_on_while_another_has_still_to_come_to_its_end() {
    let pair = Pair::new().await;
    let (hanging, other) = (Receiver::new(), Receiver::new());
    let (leases, dir) = (ByHand::new("one"), tempfile::tempdir().unwrap());
    let second = SinkConfig {
        name: "b".into(),
        ..sink_on(&other, Commit::Acknowledge)
    };
    let options = Options {
        log: Arc::new(pair.bench.log.clone()),
        store: pair.store.clone(),
        dir: dir.path().to_owned(),
        rules: pair.bench.rules.clone(),
        sinks: vec![sink_on(&hanging, Commit::Acknowledge), second],
        mode: Mode::Follow,
        names: Arc::default(),
        clock: crate::age::Clock::new(jiff::Timestamp::now),
    };
    let engine = Engine::start_with(options, leases.clone()).await.unwrap();
    hanging.gate.send_replace(false);
    leases.gets(1);
    pair.bench.store(1..=1).await;
    until("one is in the middle of it, the other done", async || {
        hanging.calls.load(Ordering::SeqCst) == 1 && other.seqs() == [1]
    })
    .await;
    leases.loses();
    until("the other has let go", async || {
        leases.given_up.load(Ordering::SeqCst) > 0
    })
    .await;
    leases.gets(2);
    pair.bench.store(2..=2).await;
    until("the other goes on", async || other.seqs() == [1, 2]).await;
    let stopping = engine.stopping().unwrap_or_default();
    assert!(stopping.contains("sink \"a\""), "{stopping}");
    hanging.gate.send_replace(true);
    until("so does the first", async || hanging.seqs().contains(&2)).await;
    engine.shutdown().await;
}

/// The record of a sink whose next event is this one, saved before everything that a test stores.
fn saved_long_ago(next: u64) -> Record {
    let mut record = Record {
        fence: 1,
        saved_at: Some(jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1)),
        ..Record::default()
    };
    record.begin_at(Seq(next));
    record
}

/// As after the log was put back from a copy that is older than the mark.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_beyond_the_end_of_the_log_passes_nothing_that_comes() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    let put = async |next: u64| {
        pair.saved("a", &saved_long_ago(next)).await;
    };
    // It has come to the first three after that mark was made, and to others before this node begins.
    pair.bench.store(1..=3).await;
    put(51).await;
    let one = pair.node("one", &receiver, Commit::Acknowledge).await;
    pair.bench.store(4..=5).await;
    one.leases.gets(2);
    until("all are delivered", async || receiver.seqs().len() >= 5).await;
    caught_up(&one.engine, 52).await;
    assert_eq!(receiver.sorted(), [1, 2, 3, 51, 52]);

    // And while it runs: whoever takes the sink over finds it out.
    one.leases.loses();
    until("it stops", async || one.engine.driven().is_empty()).await;
    put(101).await;
    one.leases.gets(3);
    until("what came after that mark was saved is delivered again", async || {
        receiver.seqs().len() >= 10
    })
    .await;
    pair.bench.store(6..=6).await;
    until("it is delivered", async || receiver.seqs().contains(&101)).await;
    one.engine.shutdown().await;
}

/// The receiver's mark had seen more than the sink's own, which the log goes on behind: new events come at Seqs that it speaks of.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_of_a_receiver_passes_nothing_that_comes_after_the_log_was_set_back() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    let ahead = |next: u64, commits: u64| Record {
        commits,
        ..saved_long_ago(next)
    };
    let lost = crate::event::Event::new(
        Seq(100),
        jiff::Timestamp::UNIX_EPOCH,
        Source::Webhook,
        crate::event::Kind::Event,
        None,
        r#"{"event":{"id":"ev_lost"}}"#.into(),
    );
    let theirs = Record {
        last: Some(crate::deliver::trail::Last::of(&lost)),
        ..ahead(101, 9)
    };
    lock(&receiver.marks).push(theirs.to_mark(pair.bench.log.epoch()));
    pair.saved("a", &ahead(51, 5)).await;
    pair.bench.store(1..=3).await;
    let one = pair.node("one", &receiver, Commit::Transaction).await;
    pair.bench.store(4..=103).await;
    one.leases.gets(2);
    until("all are delivered", async || receiver.seqs().len() >= 103).await;
    caught_up(&one.engine, 150).await;
    assert_eq!(receiver.sorted(), (1..=3).chain(51..=150).collect::<Vec<_>>());
    one.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_vanishes_is_written_again_by_whoever_drives_the_sink() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    let one = pair.node_at_work("one", &receiver, Commit::Acknowledge, 20).await;
    pair.store.remove(&record_key("a"), Expected::Anything).await.unwrap();
    pair.bench.store(21..=22).await;
    assert_eq!(pair.durable(22).await.fence, 1);
    // What was delivered while its record could not be saved may come twice, and nothing from before.
    let delivered = receiver.sorted();
    let (before, since) = delivered.split_at(20);
    assert_eq!(before, (1..=20).collect::<Vec<_>>());
    assert!(since.contains(&21) && since.contains(&22), "{since:?}");
    one.engine.shutdown().await;
}

/// A mark says of which log it is: Seqs of another one mean other events.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_of_another_log_is_none_of_this_one() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    pair.bench.store(1..=5).await;
    let mut record = serde_json::to_value({
        let mut record = Record {
            fence: 4,
            ..Record::default()
        };
        record.begin_at(Seq(4));
        record
    })
    .unwrap();
    record["log_id"] = "another".into();
    pair.saved("a", &record).await;
    let one = pair.node("one", &receiver, Commit::Acknowledge).await;
    one.leases.gets(5);
    let durable = pair.durable(5).await;
    assert_eq!(receiver.sorted(), [1, 2, 3, 4, 5]);
    assert!(durable.begun_anew.is_some(), "somebody has to see it");
    assert_eq!(serde_json::to_value(durable).unwrap()["log_id"], pair.bench.log.id());
    one.engine.shutdown().await;
}

/// One read that fails while a node begins must not make a lost position a new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_whose_position_is_lost_begins_at_the_oldest_event_also_when_that_can_not_be_noted_at_once() {
    let pair = Pair::new().await;
    let (first, second) = (Receiver::new(), Receiver::new());
    pair.bench.store(1..=5).await;
    for fault in [&pair.store.broken, &pair.store.refuses] {
        fault.store(true, Ordering::SeqCst);
    }
    let one = pair.node_from_now_on("one", &first).await;
    assert_eq!(pair.store.get("begun").await.unwrap(), None, "it has no record yet");
    one.leases.gets(1);
    pair.store.broken.store(false, Ordering::SeqCst);
    pair.store.refuses.store(false, Ordering::SeqCst);
    pair.bench.store(6..=6).await;
    assert!(pair.durable(6).await.begun_anew.is_some(), "somebody has to see it");
    assert_eq!(first.sorted(), [1, 2, 3, 4, 5, 6]);
    until("that is noted", async || {
        pair.store.get("begun").await.unwrap().is_some()
    })
    .await;

    // Where it is lost while nodes run, they know where it was.
    let two = pair.node_from_now_on("two", &second).await;
    until("it has seen that", async || two.engine.inner.outset.seen("a").is_some()).await;
    one.leases.loses();
    until("it stops", async || one.engine.driven().is_empty()).await;
    for key in ["begun", &record_key("a")] {
        pair.store.remove(key, Expected::Anything).await.unwrap();
    }
    pair.bench.store(7..=7).await;
    two.leases.gets(2);
    pair.durable(7).await;
    assert_eq!(second.sorted(), [7]);
    until("that is noted again", async || {
        pair.store.get("begun").await.unwrap().is_some()
    })
    .await;
    one.engine.shutdown().await;
    two.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_and_not_saved_before_the_state_was_lost_is_not_delivered_again() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    let one = pair.node_at_work("one", &receiver, Commit::Acknowledge, 3).await;
    pair.store.refuses.store(true, Ordering::SeqCst);
    pair.bench.store(4..=6).await;
    until("it has them", async || receiver.seqs().len() >= 6).await;
    for key in ["begun", &record_key("a")] {
        pair.store.remove(key, Expected::Anything).await.unwrap();
    }
    pair.store.refuses.store(false, Ordering::SeqCst);
    pair.durable(6).await;
    assert_eq!(receiver.sorted(), [1, 2, 3, 4, 5, 6]);
    one.engine.shutdown().await;
}

/// Who would drive it may be down for longer than a removed sink's position is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_configured_again_is_kept_although_nobody_drives_it() {
    let pair = Pair::new().await;
    let mut record = Record {
        detached_at: Some(jiff::Timestamp::now() - jiff::SignedDuration::from_hours(6 * 24)),
        ..Record::default()
    };
    record.begin_at(Seq(2));
    pair.saved("a", &record).await;
    pair.bench.store(1..=3).await;
    let one = pair.node("one", &Receiver::new(), Commit::Acknowledge).await;
    let kept = pair.record().await.unwrap();
    assert_eq!(kept.detached_at, None);
    assert_eq!(kept.main.unwrap().next, Seq(2));
    one.engine.shutdown().await;
}
