//! A log that is copied into a stream.

use super::super::copy::{Begun, CopyTarget, Item, Origin};
use super::*;

/// What is at which place, of a log that has lost, erased and forgotten some.
fn items() -> Vec<Item> {
    use crate::log::known_key::{KeyPart, KnownKey, KnownUpdated};
    let event = |seq: u64| {
        let body = long(seq, 20).body;
        let kind = crate::event::Kind::Event;
        let at = Timestamp::from_microsecond(1_700_000_000_000_000 + seq as i64).unwrap();
        Item::Event(Arc::new(Event::new(Seq(seq), at, Source::Webhook, kind, None, body)))
    };
    let known = |id: u64| KnownKey::Revision {
        id: KeyPart::Text(format!("ev_{id}")),
        updated: match Updated::parse("2024-02-15T12:48:23") {
            Updated::Instant(at) => KnownUpdated::Instant(at),
            other => panic!("{other:?}"),
        },
        partial: false,
    };
    let mut items: Vec<Item> = (1000..=1400).map(event).collect();
    items.push(Item::Erased(Seq(1401), Timestamp::UNIX_EPOCH, Some(known(1401))));
    items.push(Item::Erased(Seq(1402), Timestamp::UNIX_EPOCH, None));
    items.push(Item::Lost(Seq(1403), Seq(1410), Timestamp::UNIX_EPOCH));
    // Nothing from 1411 to 1799.
    items.extend((1800..=1900).map(event));
    items.push(Item::Known(Seq(1901), known(7), Seq(7)));
    items
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_stands_at_its_own_seqs_goes_on_where_it_was_and_is_opened_only_when_it_is_whole() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let options = Options {
        replicas: 1,
        ..jetstream_options(&cluster)
    };
    let origin = Origin {
        id: "the id".into(),
        epoch: "the epoch".into(),
        first: Seq(1000),
        last: Seq(1900),
    };
    let items = items();
    for upto in [3, 402, 404, items.len()] {
        let Begun::Target(target) = CopyTarget::begin(options.clone(), &origin).await.unwrap() else {
            panic!("it is not whole");
        };
        target.put(&items[..upto]).await.unwrap();
        let refused = JetStreamLog::open(options.clone()).await.unwrap_err().to_string();
        assert!(refused.contains("does not hold all of the log yet"), "{refused}");
        let other = Origin {
            epoch: "another".into(),
            ..origin.clone()
        };
        let refused = CopyTarget::begin(options.clone(), &other).await.unwrap_err();
        assert!(refused.contains("another log is being copied"), "{refused}");
        if upto == items.len() {
            assert_eq!(target.clear().await.unwrap(), 401 + 2 + 1 + 101 + 1);
            target.finish().await.unwrap();
        }
    }
    let begun = CopyTarget::begin(options.clone(), &origin).await.unwrap();
    assert!(matches!(begun, Begun::Done));
    let log = JetStreamLog::open(options.clone()).await.unwrap();
    assert_eq!((log.id(), log.epoch(), log.first()), ("the id", "the epoch", Seq(1000)));
    let (mut from, mut there, mut lost) = (Seq(1000), Vec::new(), Vec::new());
    while from <= *log.head().borrow() {
        let take = Take {
            events: 500,
            bytes: 8 << 20,
            narrow: None,
        };
        let batch = log.read(from, take).await.unwrap();
        there.extend(batch.events.iter().map(|event| event.seq.0));
        lost.extend(batch.lost);
        from = batch.next;
    }
    // Every sink that has not passed them counts them.
    assert_eq!(lost, [(Seq(1403), Seq(1410))]);
    assert!(log.get(Seq(1403)).await.unwrap().is_none());
    assert_eq!(there, (1000..=1400).chain(1800..=1900).collect::<Vec<_>>());
    for seq in [1401, 1402] {
        let kind = log.get(Seq(seq)).await.unwrap().map(|event| event.kind);
        assert_eq!(kind, Some(crate::event::Kind::Erased), "{seq}");
    }
    for (id, seq) in [(1000, 1000), (1401, 1401), (1900, 1900), (7, 7)] {
        assert_eq!(
            log.append(incoming(id)).await,
            Ok(Appended::Duplicate(Seq(seq))),
            "{id}"
        );
    }
    assert_eq!(log.append(incoming(1)).await, Ok(Appended::Stored(Seq(1902))));
    log.close().await;
    // Opened once more, where cut-off erasures are finished: nothing of it is one.
    let log = JetStreamLog::open(options).await.unwrap();
    assert_eq!(
        log.get(Seq(1402)).await.unwrap().unwrap().kind,
        crate::event::Kind::Erased
    );
    log.close().await;
}
