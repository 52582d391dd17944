//! Erasures that are cut off or stopped, and what stands for what was erased.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_that_was_cut_off_is_finished_by_whichever_node_runs() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let options = jetstream_options(&cluster);
    let log = open(&options).await;
    let mut seqs = Vec::new();
    for id in 1..=3 {
        let Ok(Appended::Stored(seq)) = log.append(incoming(id)).await else {
            panic!("not stored");
        };
        seqs.push(seq);
    }
    // A note without anything done, and one whose message has gone already.
    let client = cluster.client(0).await;
    for id in 1..=2_u64 {
        let made = super::super::key::Key::of_event(&key(id));
        let seq = seqs[id as usize - 1].0;
        let note = super::super::message::erasure(&made.subject("closehook", 0), &made.text(), seq, Timestamp::now());
        client
            .request_with_headers(super::super::key::erasure("closehook", seq), note, "".into())
            .await
            .unwrap();
    }
    cluster
        .api(0, "STREAM.MSG.DELETE.closehook", &json!({ "seq": seqs[1].0 }))
        .await;
    log.close().await;
    let log = JetStreamLog::open(options).await.unwrap();
    until("they are not finished", async || all(&log).await.len() == 1).await;
    for id in 1..=2 {
        until("its key is free", async || {
            log.find_revision(&key(id)).await.unwrap().is_some()
        })
        .await;
        assert_eq!(
            log.append(incoming(id)).await,
            Ok(Appended::Duplicate(seqs[id as usize - 1]))
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_that_is_stopped_says_what_it_has_erased_and_that_it_came_no_further() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let log = open(&jetstream_options(&cluster)).await;
    let ids: Vec<u64> = (1..=1100).collect();
    for some in ids.chunks(100) {
        let stored = futures::future::join_all(some.iter().map(|id| log.append(incoming(*id)))).await;
        assert!(stored.iter().all(Result::is_ok));
    }
    let stop = log.shared.closing.clone();
    let doomed = move |event: &Event| {
        if event.seq.0 == 1000 {
            stop.cancel();
        }
        event.seq.0 <= 2 || event.seq.0 > 1050
    };
    let erased = log.erase(Narrow::default(), Arc::new(doomed)).await.unwrap();
    assert_eq!(erased.seqs, [Seq(1), Seq(2)]);
    assert!(
        erased.left.len() == 1 && erased.left[0].contains("from 1001 on") && erased.left[0].contains("run it again"),
        "{erased:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_something_came_is_not_told_by_what_stands_for_what_was_erased() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let log = open(&jetstream_options(&cluster)).await;
    let at = |id: u64| Timestamp::from_second(1_700_000_000 + id as i64 * 1000).unwrap();
    for id in 1..=20 {
        let one = Incoming {
            received_at: at(id),
            ..incoming(id)
        };
        log.append(one).await.unwrap();
    }
    let early = |event: &Event| event.seq.0 <= 16 && !event.seq.0.is_multiple_of(4);
    let erased = log.erase(Narrow::default(), Arc::new(early)).await.unwrap();
    assert_eq!(erased.seqs.len(), 12);
    for id in [8, 17, 20] {
        let from = log.seq_at(at(id)).await.unwrap();
        let take = Take {
            events: 1,
            bytes: 1,
            narrow: None,
        };
        let batch = log.read(from, take).await.unwrap();
        assert_eq!(batch.events[0].seq, Seq(id), "from {from} on");
    }
    let after = log.seq_at(at(21)).await.unwrap();
    assert!(after > Seq(20), "{after}");
}
