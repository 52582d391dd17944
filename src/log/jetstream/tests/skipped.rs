//! Seqs that are never given out again, and events that come meanwhile.

use super::super::skip::use_up;
use super::*;

/// How many messages the stream has.
async fn messages(cluster: &Cluster) -> u64 {
    let info = cluster.api(0, "STREAM.INFO.closehook", &Value::Null).await;
    info["state"]["messages"].as_u64().unwrap()
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
    let until = tokio::time::Instant::now() + PATIENCE;
    use_up(&one.shared, Seq(0), Seq(40_000), until).await.unwrap();
    let Ok(Appended::Stored(next)) = other.append(incoming(4)).await else {
        panic!("it is new");
    };
    assert!(next > Seq(40_000), "{next}");
    for id in 1..=4 {
        assert!(one.find_revision(&key(id)).await.unwrap().is_some(), "{id}");
    }
    assert_eq!(messages(&cluster).await, 4, "nothing else stays");
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
    let (skipped, ()) = tokio::join!(one.skip_past(Seq(20_000)), come);
    skipped.unwrap();
    let Ok(Appended::Stored(next)) = other.append(incoming(201)).await else {
        panic!("it is new");
    };
    assert!(next > Seq(20_000), "{next}");
    for id in 1..=201 {
        assert!(one.find_revision(&key(id)).await.unwrap().is_some(), "{id}");
    }
    assert_eq!(messages(&cluster).await, 201, "nothing else stays");
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
    assert!(why.contains("500"), "{why}");
    one.skip_past(Seq(500)).await.unwrap();
    let Ok(Appended::Stored(next)) = one.append(incoming(1)).await else {
        panic!("it is new");
    };
    assert!(next > Seq(500), "{next}");
}
