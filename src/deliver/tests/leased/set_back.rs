//! A log that was set back behind what sinks had seen, and nodes that begin on it.

use super::*;
use crate::deliver::letters::Letters;

/// With three events in the log.
async fn begins_not_and_skips_nothing(pair: &Pair, receiver: &Arc<Receiver>) {
    let log = Arc::new(pair.bench.log.clone());
    let sink = sink_on(receiver, Commit::Acknowledge);
    assert!(pair.try_node(log, "one", receiver, sink).await.is_err());
    assert_eq!(*pair.bench.log.head().borrow(), Seq(3));
}

async fn begins_and_delivers_all(pair: &Pair, receiver: &Arc<Receiver>) {
    let two = pair.node("two", receiver, Commit::Acknowledge).await;
    two.leases.gets(2);
    until("all are delivered", async || receiver.seqs().len() >= 3).await;
    assert_eq!(receiver.sorted(), [1, 2, 3]);
    two.engine.shutdown().await;
}

/// A mark that is not taken back yet would seem to be right as soon as the log has gone on behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_set_back_skips_nothing_before_marks_that_were_taken_back_are_durable() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    pair.bench.store(1..=3).await;
    pair.saved("a", &saved_long_ago(51)).await;
    pair.store.refuses.store(true, Ordering::SeqCst);
    begins_not_and_skips_nothing(&pair, &receiver).await;
    pair.store.refuses.store(false, Ordering::SeqCst);
    begins_and_delivers_all(&pair, &receiver).await;
}

/// One that nobody can read just now may have seen less than the log goes on behind, and would pass what has come since.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_set_back_skips_nothing_before_every_mark_is_known() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    pair.bench.store(1..=3).await;
    for (sink, next) in [("a", 41), ("b", 51)] {
        pair.saved(sink, &saved_long_ago(next)).await;
    }
    *lock(&pair.store.unread) = Some(record_key("a"));
    begins_not_and_skips_nothing(&pair, &receiver).await;
    *lock(&pair.store.unread) = None;
    begins_and_delivers_all(&pair, &receiver).await;
}

/// A new event at a Seq that was given out before would be taken for the one that was there, a letter of it for one of that.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_received_before_a_log_that_was_set_back_goes_on_behind_what_was_seen() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    pair.bench.store(1..=3).await;
    pair.saved("a", &saved_long_ago(51)).await;
    let logs = [(); 2].map(|()| Arc::new(Faulty::on(&pair.bench.log)));
    let mut nodes = Vec::new();
    // By the second its position fits the log, as by then for another node that begins meanwhile.
    for (log, name) in logs.iter().zip(["one", "two"]) {
        log.stuck.store(true, Ordering::SeqCst);
        // What makes room in a full log begins with the node.
        nodes.push(pair.node_on(log.clone(), name, &receiver, Commit::Acknowledge).await);
        let record = pair.record().await.unwrap();
        assert_eq!((record.cursor(), record.unskipped), (Some(Seq::ZERO), Some(Seq(50))));
    }
    assert_eq!(*pair.bench.log.head().borrow(), Seq(3));
    let new = || {
        let body = r#"{"event":{"id":"ev_4","object_type":"lead","action":"updated","lead_id":"lead_4"}}"#;
        Incoming::new(body.into(), jiff::Timestamp::now(), Source::Webhook, None)
    };
    for log in &logs {
        assert!(log.ready().is_err() && log.append(new()).await.is_err());
    }
    // It is enough that one of them can.
    logs[0].stuck.store(false, Ordering::SeqCst);
    until("it goes on although nobody drives the sink", async || {
        *pair.bench.log.head().borrow() == Seq(50)
    })
    .await;
    assert_eq!(logs[1].ready(), Ok(()));
    assert_eq!(logs[1].append(new()).await, Ok(Appended::Stored(Seq(51))));
    nodes[0].leases.gets(2);
    until("all are delivered", async || receiver.seqs().len() >= 4).await;
    assert_eq!(receiver.sorted(), [1, 2, 3, 51]);
    assert_eq!(pair.durable(51).await.unskipped, None);
    for node in &nodes {
        node.engine.shutdown().await;
    }
}

/// Letters may have been put back to a later moment than the log and the marks.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_set_back_goes_on_behind_what_has_letters() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    pair.bench.store(1..=3).await;
    pair.saved("a", &saved_long_ago(4)).await;
    let dir = tempfile::tempdir().unwrap();
    let letters = Letters::open(&dir.path().join("dead"), "a", false).unwrap();
    letters.divert(&[Seq(50)], None).unwrap();
    drop(letters);
    let log = Arc::new(pair.bench.log.clone());
    let sink = sink_on(&receiver, Commit::Acknowledge);
    let node = pair.try_node_in(dir, log, "one", &receiver, sink).await.unwrap();
    assert_eq!(*pair.bench.log.head().borrow(), Seq(50));
    node.leases.gets(2);
    pair.bench.store(4..=4).await;
    until("what is new is delivered", async || receiver.sorted() == [51]).await;
    node.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_set_back_skips_nothing_before_all_letters_are_known() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    pair.bench.store(1..=3).await;
    pair.saved("a", &saved_long_ago(51)).await;
    let dir = tempfile::tempdir().unwrap();
    let dead = dir.path().join("dead");
    std::fs::create_dir(&dead).unwrap();
    let newer = crate::framefile::Format {
        magic: *b"CLHKDEAD",
        version: 99,
    };
    drop(crate::framefile::FrameFile::create(&dead.join("a"), newer).unwrap());
    let log = Arc::new(pair.bench.log.clone());
    let sink = sink_on(&receiver, Commit::Acknowledge);
    assert!(pair.try_node_in(dir, log, "one", &receiver, sink).await.is_err());
    assert_eq!(*pair.bench.log.head().borrow(), Seq(3));
    begins_and_delivers_all(&pair, &receiver).await;
    assert_eq!(*pair.bench.log.head().borrow(), Seq(50));
}

/// To go on behind it would never come to an end.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_this_log_can_not_have_come_to_is_taken_back_and_nothing_is_skipped() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    pair.bench.store(1..=3).await;
    pair.saved("a", &saved_long_ago(1 << 50)).await;
    begins_and_delivers_all(&pair, &receiver).await;
    assert_eq!(pair.record().await.unwrap().unskipped, None);
    assert_eq!(*pair.bench.log.head().borrow(), Seq(3));
}

/// The log was set back while nodes run: whoever takes the sink over finds it out.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_waits_until_a_log_that_was_set_back_goes_on_behind_what_it_has_seen() {
    let pair = Pair::new().await;
    let receiver = Receiver::new();
    pair.bench.store(1..=3).await;
    let log = Arc::new(Faulty::on(&pair.bench.log));
    let one = pair.node_on(log.clone(), "one", &receiver, Commit::Acknowledge).await;
    let two = pair.node_on(log.clone(), "two", &receiver, Commit::Acknowledge).await;
    pair.saved("a", &saved_long_ago(51)).await;
    log.stuck.store(true, Ordering::SeqCst);
    let waits = async |node: &Node| {
        until("it says why it waits", async || {
            let waits_for = status(&node.engine).waits_for;
            waits_for.is_some_and(|why| why.contains("go on behind event 50"))
        })
        .await;
    };
    one.leases.gets(2);
    waits(&one).await;
    one.engine.shutdown().await;
    // Its position fits the log by now, and whoever has the sink next waits for the same.
    assert_eq!(pair.record().await.unwrap().cursor(), Some(Seq::ZERO));
    two.leases.gets(3);
    waits(&two).await;
    assert!(receiver.seqs().is_empty());
    log.stuck.store(false, Ordering::SeqCst);
    until("all are delivered", async || receiver.seqs().len() >= 3).await;
    pair.bench.store(4..=4).await;
    until("so is what comes then", async || receiver.seqs().len() >= 4).await;
    assert_eq!(receiver.sorted(), [1, 2, 3, 51]);
    assert_eq!(pair.durable(51).await.unskipped, None);
    two.engine.shutdown().await;
}
