//! What is noticed while a log is open: that its stream is another one, or set up otherwise; and clocks that go wrong.

use super::*;

/// As the servers have it, for who makes it again.
async fn made_as(cluster: &Cluster, stream: &str) -> Value {
    let info = cluster.api(0, &format!("STREAM.INFO.{stream}"), &Value::Null).await;
    info["config"].clone()
}

async fn says(log: &JetStreamLog, part: &str) {
    until(
        &format!("it does not say \"{part}\""),
        async || matches!(log.ready(), Err(AppendError::Failing(why)) if why.contains(part)),
    )
    .await;
    let refused = log.append(incoming(77)).await;
    assert!(refused.is_err(), "{refused:?}");
}

fn some() -> Take<'static> {
    Take {
        events: 500,
        bytes: 8 << 20,
        narrow: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_made_anew_takes_and_gives_nothing_until_the_node_begins_anew() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let options = jetstream_options(&cluster);
    let log = open(&options).await;
    for id in 1..=5 {
        log.append(incoming(id)).await.unwrap();
    }
    let config = made_as(&cluster, "closehook").await;
    cluster.api(0, "STREAM.DELETE.closehook", &Value::Null).await;
    cluster.api(0, "STREAM.DELETE.closehook_dead", &Value::Null).await;
    check::create(&options).await.unwrap();
    says(&log, "is another log").await;
    assert!(log.read(Seq(1), some()).await.is_err());
    assert!(log.drop_before(Seq(2)).await.is_err());
    let other = JetStreamLog::open(options.clone()).await.unwrap();
    assert_eq!(other.append(incoming(6)).await, Ok(Appended::Stored(Seq(1))));
    other.close().await;

    // As it was when it was backed up: the same log, without what came since.
    cluster.api(0, "STREAM.DELETE.closehook", &Value::Null).await;
    cluster.api(0, "STREAM.CREATE.closehook", &config).await;
    says(&log, "was set back").await;
    assert!(log.read(Seq(1), some()).await.is_err());
}

/// Whoever has seen what had these Seqs passes it: nobody is told that it is kept, however far the stream comes by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_gets_a_seq_of_one_before_is_not_acknowledged_and_nothing_is_until_the_node_begins_anew() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let log = open(&jetstream_options(&cluster)).await;
    for id in 1..=5 {
        log.append(incoming(id)).await.unwrap();
    }
    let config = made_as(&cluster, "closehook").await;
    cluster.api(0, "STREAM.DELETE.closehook", &Value::Null).await;
    cluster.api(0, "STREAM.CREATE.closehook", &config).await;
    let refused = log.append(incoming(6)).await;
    assert!(
        matches!(&refused, Err(AppendError::Failing(why)) if why.contains("was set back")),
        "{refused:?}"
    );
    // Another node, which began since, takes it past where it was.
    let other = JetStreamLog::open(jetstream_options(&cluster)).await.unwrap();
    for id in 7..=20 {
        other.append(incoming(id)).await.unwrap();
    }
    super::super::pulse::look(&log.shared).await.unwrap();
    assert!(log.append(incoming(21)).await.is_err());
    assert!(log.read(Seq(1), some()).await.is_err());
    let together = log.append_in_order(vec![incoming(22), incoming(23)]).await;
    assert!(together.iter().all(Result::is_err), "{together:?}");
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_weakens_a_promise_since_takes_nothing_until_that_is_put_right() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let log = open(&jetstream_options(&cluster)).await;
    log.append(incoming(1)).await.unwrap();
    let right = made_as(&cluster, "closehook").await;
    let mut wrong = right.clone();
    wrong["discard"] = json!("old");
    wrong["discard_new_per_subject"] = json!(false);
    cluster.api(0, "STREAM.UPDATE.closehook", &wrong).await;
    says(&log, "set discard = new").await;
    cluster.api(0, "STREAM.UPDATE.closehook", &right).await;
    until("it does not heal", async || log.append(incoming(2)).await.is_ok()).await;
}

/// One with a clock that is a few minutes or many days ahead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_clock_is_ahead_takes_nothing_away_that_is_young() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let mut options = jetstream_options(&cluster);
    open(&options).await.close().await;
    options.now = crate::log::Clock::new(|| Timestamp::now() + jiff::SignedDuration::from_hours(24 * 400));
    let log = JetStreamLog::open(options).await.unwrap();
    for id in 1..=40 {
        log.append(incoming(id)).await.unwrap();
    }
    // Its message comes in a moment.
    let headers = super::super::message::part("closehook.ev.a.b", "id:a b");
    let client = cluster.client(0).await;
    let piece = client.request_with_headers("closehook_parts.coming.0", headers, "half".into());
    assert!(piece.await.unwrap().payload.starts_with(b"{\"stream\""));
    super::super::sweep::Sweeper::default().sweep(&log.shared).await;
    let info = cluster.api(0, "STREAM.INFO.closehook_parts", &Value::Null).await;
    assert_eq!(info["state"]["messages"], 1, "{info}");

    super::super::cuts::find(&log.shared).await;
    assert_eq!(log.cuts(), []);
    assert_eq!(log.drop_before(Seq(30)).await.unwrap(), Seq(1));
    assert_eq!(all(&log).await.len(), 40);
}

/// Has a server acknowledge what a power cut takes, and tags it and the others, so that streams can be put where they are to be: by
/// itself a cluster puts them again and again where there is most room.
async fn make_lazy(cluster: &mut Cluster, lazy: usize) {
    for number in 0..cluster.nodes.len() {
        cluster.kill(number);
        let file = cluster.nodes[number].dir.join("nats.conf");
        let mut text = std::fs::read_to_string(&file).unwrap();
        if number == lazy {
            text = text.replace("sync_interval: always", "");
        }
        let tag = if number == lazy { "lazy" } else { "diligent" };
        std::fs::write(&file, format!("{text}\nserver_tags: [\"{tag}\"]\n")).unwrap();
        cluster.run(number).await;
        cluster.settled().await;
    }
}

/// With one replica each stream is on a server of its own: every one of them counts, and no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_server_that_keeps_anything_has_to_sync() {
    let Some(mut cluster) = Cluster::start().await else {
        return;
    };
    make_lazy(&mut cluster, 2).await;
    let options = Options {
        replicas: 1,
        ..jetstream_options(&cluster)
    };
    check::create(&options).await.unwrap();
    for lazy in ["closehook", "closehook_parts", "closehook_dead"] {
        for stream in ["closehook", "closehook_parts", "closehook_dead"] {
            let mut config = made_as(&cluster, stream).await;
            let tag = if stream == lazy { "lazy" } else { "diligent" };
            config["placement"] = json!({ "tags": [tag] });
            let began = Instant::now();
            while (cluster.leader(stream).await == 2) != (stream == lazy) {
                assert!(
                    began.elapsed() < PATIENCE,
                    "{stream} does not come to where it is to be"
                );
                cluster.api(0, &format!("STREAM.DELETE.{stream}"), &Value::Null).await;
                cluster.api(0, &format!("STREAM.CREATE.{stream}"), &config).await;
            }
        }
        let found = check::look(&options).await.unwrap();
        assert!(
            found.faults.len() == 1 && found.faults[0].starts_with("n2 acknowledges"),
            "{lazy}: {found:?}"
        );
    }
}

/// The key of what is being erased is free for a moment: what comes in it, and was answered, is the same person's data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_again_while_an_erasure_is_cut_off_goes_as_well_also_by_another_node() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let options = jetstream_options(&cluster);
    let log = open(&options).await;
    assert_eq!(log.append(incoming(1)).await, Ok(Appended::Stored(Seq(1))));
    let made = super::super::key::Key::of_event(&key(1));
    let note = super::super::message::erasure(&made.subject("closehook", 0), &made.text(), 1, Timestamp::now());
    let client = cluster.client(0).await;
    let put = client.request_with_headers(super::super::key::erasure("closehook", 1), note, "".into());
    assert!(put.await.unwrap().payload.starts_with(b"{\"stream\""));
    cluster
        .api(0, "STREAM.MSG.DELETE.closehook", &json!({ "seq": 1 }))
        .await;
    // The node that began it is dead; this one has run all the time.
    log.append(incoming(1)).await.unwrap();
    until("it is still there", async || all(&log).await.is_empty()).await;
    assert!(matches!(log.append(incoming(1)).await, Ok(Appended::Duplicate(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_no_server_can_give_any_more_is_stored_anew_when_it_comes_again() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let log = open(&jetstream_options(&cluster)).await;
    let sent = || long(1, 4 << 20);
    assert_eq!(log.append(sent()).await, Ok(Appended::Stored(Seq(1))));
    cluster
        .api(0, "STREAM.MSG.DELETE.closehook_parts", &json!({ "seq": 2 }))
        .await;
    assert_eq!(log.append(sent()).await, Ok(Appended::Stored(Seq(2))));
    assert_eq!(log.append(sent()).await, Ok(Appended::Duplicate(Seq(2))));
    assert_eq!(log.get(Seq(2)).await.unwrap().unwrap().body, sent().body);
    let info = cluster.api(0, "STREAM.INFO.closehook_parts", &Value::Null).await;
    assert_eq!(
        info["state"]["messages"], 5,
        "what was left of the first has gone: {info}"
    );
}

/// Long bodies lie elsewhere, and take up room as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_of_long_bodies_count_for_the_size_limit() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let log = open(&jetstream_options(&cluster)).await;
    log.append(long(1, 4 << 20)).await.unwrap();
    until("they are not counted", async || log.disk_bytes().0 > 4 << 20).await;
    log.set_room(2 << 20);
    let Err(AppendError::Full(why)) = log.append(incoming(2)).await else {
        panic!("it is stored");
    };
    assert!(why.contains("log.max_size"), "{why}");
    assert!(log.stats().disk_bytes > 4 << 20);
    log.set_room(u64::MAX);
    log.append(incoming(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_for_what_was_erased_counts_as_no_event() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let log = open(&jetstream_options(&cluster)).await;
    for id in 1..=10 {
        log.append(incoming(id)).await.unwrap();
    }
    let early = |event: &Event| event.seq.0 <= 3;
    log.erase(Narrow::default(), Arc::new(early)).await.unwrap();
    super::super::cuts::find(&log.shared).await;
    until("they are counted", async || log.stats().events == 7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_erased_comes_to_no_reader_that_had_asked_for_it_ahead() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let log = open(&jetstream_options(&cluster)).await;
    for id in 1..=60 {
        log.append(incoming(id)).await.unwrap();
    }
    // As many as a reader takes that asks ahead.
    let take = Take {
        events: 20,
        bytes: 8 << 20,
        narrow: None,
    };
    let before = log.read(Seq(1), take).await.unwrap();
    assert_eq!(before.next, Seq(21));
    let doomed = |event: &Event| (21..=40).contains(&event.seq.0);
    let erased = log.erase(Narrow::default(), Arc::new(doomed)).await.unwrap();
    assert_eq!(erased.seqs.len(), 20);
    let after = log.read(before.next, take).await.unwrap();
    assert_eq!(after.events[0].seq, Seq(41));
}
