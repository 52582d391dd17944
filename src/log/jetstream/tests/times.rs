//! Times of a log into which old events are imported, and of a copied one.

use jiff::SignedDuration;

use super::super::copy::{Begun, CopyTarget, Item, Origin};
use super::super::cuts;
use super::*;
use crate::event::{Event, Kind};

fn days_ago(days: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_hours(24 * days)
}

/// By when they were received: one that is old enough to go, young ones, many of long ago, and new ones.
fn received(id: u64) -> Timestamp {
    match id {
        1 => days_ago(40),
        2..=10 => days_ago(20),
        11..=300 => days_ago(400),
        _ => days_ago(0),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_of_old_events_makes_nothing_young_go_and_hides_nothing_that_is_asked_for() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let log = open(&jetstream_options(&cluster)).await;
    let store = async |id: u64, received_at: Timestamp| {
        let one = Incoming {
            received_at,
            ..incoming(id)
        };
        log.append(one).await.unwrap();
    };
    for id in 1..=10 {
        store(id, received(id)).await;
    }
    // What stands for what was erased is in the middle of the search, and of no time.
    for id in 501..=650 {
        store(id, days_ago(15)).await;
    }
    let erased = log
        .erase(Narrow::default(), Arc::new(|event: &Event| event.seq > Seq(10)))
        .await
        .unwrap();
    assert_eq!(erased.seqs.len(), 150);
    // Of each there is a tombstone under its key, and a note of its Seq.
    let imported = log.head().borrow().next().0;
    for id in 11..=310 {
        store(id, received(id)).await;
    }
    cuts::find(&log.shared).await;
    assert_eq!(log.cuts(), []);
    assert_eq!(log.drop_before(Seq(imported + 280)).await.unwrap(), Seq(1));
    assert_eq!(log.seq_at(days_ago(500)).await.unwrap(), Seq(1));
    assert_eq!(log.seq_at(days_ago(30)).await.unwrap(), Seq(2));
    assert_eq!(log.seq_at(days_ago(10)).await.unwrap(), Seq(imported + 290));
    assert_eq!(log.seq_at(days_ago(-1)).await.unwrap(), Seq(imported + 300));
    log.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copied_events_are_as_old_as_they_were() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let options = jetstream_options(&cluster);
    let origin = Origin {
        id: "the id".into(),
        epoch: "the epoch".into(),
        first: Seq(1),
        last: Seq(310),
    };
    // The first ones are older than all that is kept, and what is imported stands among younger ones.
    let came = |id: u64| match id {
        ..=100 => days_ago(50 - id as i64 / 10),
        101..=110 => days_ago(20),
        id => received(id),
    };
    let item = |id: u64| {
        let body = incoming(id).body;
        Item::Event(Arc::new(Event::new(
            Seq(id),
            came(id),
            Source::Webhook,
            Kind::Event,
            None,
            body,
        )))
    };
    let items: Vec<Item> = (1..=310).map(item).collect();
    for upto in [150, 310] {
        let Begun::Target(target) = CopyTarget::begin(options.clone(), &origin).await.unwrap() else {
            panic!("it is not whole");
        };
        target.put(&items[..upto]).await.unwrap();
        if upto == 310 {
            target.clear().await.unwrap();
            target.finish().await.unwrap();
        }
    }
    let log = JetStreamLog::open(options).await.unwrap();
    cuts::find(&log.shared).await;
    let newest = log.cuts().last().map(|cut| cut.before);
    assert!(newest.is_some_and(|cut| (50..=101).contains(&cut.0)), "{newest:?}");
    assert_eq!(log.seq_at(days_ago(30)).await.unwrap(), Seq(101));
    assert_eq!(log.drop_before(Seq(300)).await.unwrap(), Seq(101));
    log.close().await;
}
