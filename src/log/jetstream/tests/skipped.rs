//! Seqs that are never given out again, and events that come meanwhile.

use super::super::skip::{skip_until, take_away, use_up};
use super::*;

/// How many messages the stream has.
async fn messages(cluster: &Cluster) -> u64 {
    let info = cluster.api(0, "STREAM.INFO.closehook", &Value::Null).await;
    info["state"]["messages"].as_u64().unwrap()
}

fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + PATIENCE
}

/// Nothing stays but what was stored. A purge that comes to nothing is made up for with the next.
async fn nothing_stays_but(count: u64, cluster: &Cluster, log: &JetStreamLog) {
    until("nothing else stays", async || {
        take_away(&log.shared, soon()).await;
        messages(cluster).await == count
    })
    .await;
}

/// A new event gets a Seq behind this.
async fn stores_behind(seen: Seq, log: &JetStreamLog, id: u64) {
    let Ok(Appended::Stored(next)) = log.append(incoming(id)).await else {
        panic!("it is new");
    };
    assert!(next > seen, "{next}");
}

/// One node has looked, and found the stream empty; before it does anything another one stores events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_after_a_stream_was_found_empty_stays() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let options = jetstream_options(&cluster);
    let one = open(&options).await;
    let other = JetStreamLog::open(options).await.unwrap();
    for id in 1..=3 {
        other.append(incoming(id)).await.unwrap();
    }
    // So many that some are taken away in between.
    use_up(&one.shared, Seq(0), Seq(17_000), soon()).await.unwrap();
    stores_behind(Seq(17_000), &other, 4).await;
    for id in 1..=4 {
        assert!(one.find_revision(&key(id)).await.unwrap().is_some(), "{id}");
    }
    nothing_stays_but(4, &cluster, &one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_while_a_stream_goes_on_behind_a_seq_stays() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let options = jetstream_options(&cluster);
    let one = open(&options).await;
    let other = JetStreamLog::open(options).await.unwrap();
    let come = async {
        for id in 1..=200 {
            let appended = other.append(incoming(id)).await;
            assert!(matches!(appended, Ok(Appended::Stored(_))), "{appended:?}");
        }
    };
    let (skipped, ()) = tokio::join!(one.skip_past(Seq(1_000)), come);
    skipped.unwrap();
    stores_behind(Seq(1_000), &other, 201).await;
    for id in 1..=201 {
        assert!(one.find_revision(&key(id)).await.unwrap().is_some(), "{id}");
    }
    nothing_stays_but(201, &cluster, &one).await;
}

/// What it takes may not be there in time: it goes on from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_has_no_more_time_goes_on_behind_a_seq_the_next_time() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let one = open(&jetstream_options(&cluster)).await;
    let late = use_up(&one.shared, Seq(0), Seq(500), tokio::time::Instant::now()).await;
    let why = late.unwrap_err().to_string();
    assert!(why.contains("event 500, and 500 of 500"), "{why}");
    one.skip_past(Seq(500)).await.unwrap();
    stores_behind(Seq(500), &one, 1).await;
}

/// However far that is, it gets on: nothing is received before it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_gets_on_towards_a_seq_that_is_very_far() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let one = open(&jetstream_options(&cluster)).await;
    until("it gets on", async || {
        let a_moment = tokio::time::Instant::now() + Duration::from_secs(1);
        let why = skip_until(&one.shared, Seq(1 << 40), a_moment).await.unwrap_err();
        assert!(matches!(why, AppendError::Failing(_)), "{why:?}");
        *one.head().borrow() > Seq::ZERO
    })
    .await;
}

/// What holds the places takes up room too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_with_little_room_goes_on_behind_a_seq_all_the_same() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let mut options = jetstream_options(&cluster);
    options.max_bytes = Some(256 << 10);
    let one = open(&options).await;
    one.skip_past(Seq(5_000)).await.unwrap();
    nothing_stays_but(0, &cluster, &one).await;
    until(
        "there is room",
        async || matches!(one.append(incoming(1)).await, Ok(Appended::Stored(next)) if next > Seq(5_000)),
    )
    .await;
}

/// There may be room for a few of them only: fewer are stored at a time, and not one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_with_room_for_a_few_goes_on_by_so_many_at_a_time() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let mut options = jetstream_options(&cluster);
    options.max_bytes = Some(32 << 10);
    let one = open(&options).await;
    one.skip_past(Seq(5_000)).await.unwrap();
    nothing_stays_but(0, &cluster, &one).await;
}

/// Sinks have seen what the stream has lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_stored_before_a_stream_has_gone_on_whoever_has_it_do_so() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let options = jetstream_options(&cluster);
    let one = open(&options).await;
    let other = JetStreamLog::open(options).await.unwrap();
    one.append(incoming(1)).await.unwrap();
    one.hold_until_past(Seq(500));
    one.hold_until_past(Seq(400));
    let why = one.append(incoming(2)).await.unwrap_err();
    assert!(why.to_string().contains("event 500, and 499 of 499"), "{why}");
    assert_eq!(one.ready(), Err(why.clone()));
    let together = one.append_in_order(vec![incoming(2), incoming(3)]).await;
    assert_eq!(together, [Err(why.clone()), Err(why)]);
    other.skip_past(Seq(500)).await.unwrap();
    until(
        "it is stored",
        async || matches!(one.append(incoming(2)).await, Ok(Appended::Stored(next)) if next > Seq(500)),
    )
    .await;
    assert_eq!(one.ready(), Ok(()));
}
