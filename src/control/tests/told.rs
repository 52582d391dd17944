//! What is told of a log that is damaged, imported or not to be erased: no more and no less than is known.

use super::*;
use crate::state::{Expected, StoreError};

/// Whoever asks, and not only through the command line.
#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_of_nobodys_data_is_refused_and_leaves_everything() {
    let bench = Bench::with(9).await;
    for whose in [
        r#"{"email":""}"#,
        r#"{"lead":" "}"#,
        r#"{"ids":[""]}"#,
        r#"{"email":"jane"}"#,
        "{}",
    ] {
        let whose: erase::Erase = serde_json::from_str(whose).unwrap();
        let here = erase::EraseHere {
            whose: whose.clone(),
            erased: Vec::new(),
        };
        for request in [Request::from(whose), Request::from(here)] {
            let (to, _from) = tokio::sync::mpsc::channel(1);
            let answered = bench.facade.answer(request.clone(), &Answers::new(to)).await;
            assert!(answered.is_err_and(|why| !why.is_empty()), "{request:?}");
        }
    }
    let kept = bench.answers(newest(9, None)).await;
    let is_kept = |listed: &events::Listed| matches!(listed, events::Listed::Event(line) if line.kind == crate::event::Kind::Event);
    assert!(kept.iter().all(is_kept));
}

/// A key that can't be read is no proof that anything is forged.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_may_have_signed_that_can_not_be_read_is_not_called_forged() {
    let mut bench = Bench::with(0).await;
    let signature = SignatureHeaders {
        timestamp: "1700000000".into(),
        hash: "ab".repeat(32),
    };
    let body = r#"{"event":{"id":"ev_1"}}"#;
    let incoming = Incoming::new(body.into(), Timestamp::now(), Source::Webhook, Some(signature));
    bench.log.append(incoming).await.unwrap();
    let said = async |bench: &Bench| {
        let shown = bench.answers(events::Show { id: "ev_1".into() }).await.remove(0);
        let whole = bench
            .answers(whole::Whole {
                id: "ev_1".into(),
                send: false,
            })
            .await
            .remove(0);
        let Some(events::Checked::Done(found)) = bench.answers(events::Verify {}).await.pop() else {
            panic!("no end");
        };
        (shown.signature, whole.signature.verdict, found.faults)
    };
    let (shown, verdict, faults) = said(&bench).await;
    assert_eq!(
        (shown.as_str(), verdict),
        ("no known key signed it", whole::Verdict::Invalid)
    );
    assert_eq!(faults, ["event 1: no known key signed it"]);
    bench.facade.receiving = Arc::new(Nothing {
        unknown: vec!["close.subscriptions[0].signature_key: it is not there".into()],
    });
    let (shown, verdict, faults) = said(&bench).await;
    assert!(
        shown.contains("can't be checked now: close.subscriptions[0]"),
        "{shown}"
    );
    assert_eq!(verdict, whole::Verdict::Unchecked);
    assert!(faults[0].contains("close.subscriptions[0].signature_key"), "{faults:?}");
    assert_eq!(faults[1..], ["event 1: it can't be checked now"]);
}

/// "missing" alone would be said of the event.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_a_signature_is_not_called_missing() {
    let bench = Bench::with(0).await;
    let incoming = Incoming::new(
        r#"{"event":{"id":"ev_1"}}"#.into(),
        Timestamp::now(),
        Source::Webhook,
        None,
    );
    bench.log.append(incoming).await.unwrap();
    let Some(events::Checked::Done(found)) = bench.answers(events::Verify {}).await.pop() else {
        panic!("no end");
    };
    assert_eq!(found.faults, ["event 1: it has no signature"]);
    let shown = bench.answers(events::Show { id: "ev_1".into() }).await.remove(0);
    assert_eq!(shown.signature, "missing");
}

/// Of an event that was changed over and over the newest revisions are shown, and every one is named.
#[tokio::test]
async fn of_many_revisions_the_newest_are_shown_and_all_are_named() {
    let bench = Bench::with(0).await;
    for second in 0..=whole::REVISIONS_MAX {
        let body = format!(r#"{{"event":{{"id":"ev_1","date_updated":"2024-02-15T12:48:{second:02}.000000"}}}}"#);
        let incoming = Incoming::new(body.into(), Timestamp::now(), Source::Webhook, None);
        bench.log.append(incoming).await.unwrap();
    }
    let question = whole::Whole {
        id: "ev_1".into(),
        send: false,
    };
    let shown = bench.answers(question).await;
    let all: Vec<Seq> = (1..=whole::REVISIONS_MAX as u64 + 1).map(Seq).collect();
    let seqs: Vec<Seq> = shown.iter().map(|found| found.event.seq).collect();
    let newest: Vec<Seq> = all[1..].iter().rev().copied().collect();
    assert_eq!(seqs, newest);
    assert_eq!(shown[0].revisions, all);
}

#[test]
fn a_tree_weighs_what_all_its_nodes_do() {
    let mut node = whole::Node {
        kind: "or".into(),
        text: String::new(),
        place: String::new(),
        saw: String::new(),
        matched: true,
        deciding: false,
        children: Vec::new(),
    };
    let one = node.weight();
    node.children = vec![node.clone(), node.clone()];
    assert_eq!(node.weight(), 3 * one);
}

/// The rest of a long log is not read for nothing, nor is anything waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_full_reads_no_further() {
    let bench = Bench::with(3000).await;
    for (limit, follow, reads) in [(0, false, 0), (1, false, 1), (1, true, 1)] {
        *lock(&bench.log.reads) = 0;
        let list = events::List {
            pick: Pick {
                ids: vec!["ev_1".into()],
                ..Pick::default()
            },
            limit: Some(limit),
            last: false,
            follow,
            from: Some(Seq(1)),
        };
        let events = bench.answers(list).await;
        assert_eq!(events.len() as u64, limit);
        let read = *lock(&bench.log.reads);
        assert_eq!(read, reads, "{limit} {follow}");
    }
}

/// An import is no sign of life of Close's, however new it is and wherever it stands.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_delivery_is_the_newest_one_that_close_made() {
    let bench = Bench::with(0).await;
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let (delivered, older, newer) = (
        at("2024-03-01T00:00:00Z"),
        at("2024-02-01T00:00:00Z"),
        at("2024-04-01T00:00:00Z"),
    );
    let sent = [
        (1, delivered, Source::Webhook, false),
        (2, older, Source::Webhook, false),
        (3, newer, Source::Webhook, true),
        (4, newer, Source::Backfill, false),
    ];
    for (id, received_at, source, held) in sent {
        let body = format!(r#"{{"event":{{"id":"ev_{id}"}}}}"#);
        let incoming = Incoming {
            held,
            ..Incoming::new(body.into(), received_at, source, None)
        };
        bench.log.append(incoming).await.unwrap();
    }
    let status = bench.answers(status::Show {}).await.pop().unwrap();
    assert_eq!(status.last_delivery_at, Some(delivered));
}

/// Nor are events that were not asked for missing from a list.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_says_what_is_missing_between_its_events() {
    let bench = Bench::with(1200).await;
    *lock(&bench.log.damaged) = vec![(Seq(5), Seq(9)), (Seq(1100), Seq(1101))];
    let listed = async |last: bool, limit: u64| {
        let list = events::List {
            pick: Pick::default(),
            limit: Some(limit),
            last,
            follow: false,
            from: None,
        };
        let (mut count, mut missing) = (0, Vec::new());
        for listed in bench.answers(list).await {
            match listed {
                events::Listed::Event(_) => count += 1,
                events::Listed::Unread(unread) => {
                    missing.extend(unread.unread.iter().map(|lost| (lost.from.0, lost.to.0)));
                }
            }
        }
        (count, missing)
    };
    assert_eq!(listed(true, 50).await, (50, Vec::new()), "both are before them");
    assert_eq!(listed(true, 110).await, (110, vec![(1100, 1101)]));
    assert_eq!(listed(true, 2000).await, (1193, vec![(5, 9), (1100, 1101)]));
    assert_eq!(listed(false, 4).await, (4, Vec::new()), "it is behind the last one");
    assert_eq!(listed(false, 5).await, (5, vec![(5, 9)]));
}

/// What is damaged is not passed over as if it had never been there.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_says_what_is_missing_from_it() {
    let bench = Bench::with(1200).await;
    let exported = async |asked: transfer::Export| {
        let mut answers = bench.answers(asked).await;
        let unread = match answers.pop() {
            Some(transfer::Line::Unread(unread)) => unread.unread.iter().map(|lost| (lost.from.0, lost.to.0)).collect(),
            Some(event) => {
                answers.push(event);
                Vec::new()
            }
            None => Vec::new(),
        };
        assert!(answers.iter().all(|line| matches!(line, transfer::Line::Event(_))));
        (answers.len(), unread)
    };
    let first = |limit| transfer::Export {
        limit: Some(limit),
        ..transfer::Export::default()
    };
    assert_eq!(exported(transfer::Export::default()).await, (1200, Vec::new()));
    // Over the end of what is read in one go.
    *lock(&bench.log.damaged) = vec![(Seq(5), Seq(9)), (Seq(500), Seq(600))];
    let both = vec![(5, 9), (500, 600)];
    assert_eq!(exported(transfer::Export::default()).await, (1094, both));
    assert_eq!(exported(first(4)).await, (4, Vec::new()), "it is behind the last one");
    assert_eq!(exported(first(5)).await, (5, vec![(5, 9)]));
    let before_all = transfer::Export {
        pick: Pick {
            until: Some(Timestamp::UNIX_EPOCH),
            ..Pick::default()
        },
        limit: None,
    };
    assert_eq!(exported(before_all).await, (0, Vec::new()), "none of it was asked for");
}

/// A state that can't be read for a while.
#[derive(Debug)]
struct Deaf {
    inner: Arc<dyn Store>,
    is_deaf: std::sync::atomic::AtomicBool,
}

#[async_trait]
impl crate::passing::PassingStore for Deaf {
    fn behind(&self) -> &dyn Store {
        &*self.inner
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        if self.is_deaf.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(StoreError::Unreadable("nobody is there".to_owned()));
        }
        self.inner.keys(prefix).await
    }
}

/// Whoever looks whether a sink's position is still kept must not hear that it is not.
#[tokio::test(flavor = "multi_thread")]
async fn removed_sinks_that_can_not_be_read_are_not_said_to_be_none() {
    let bench = Bench::with(1).await;
    let dir = tempfile::tempdir().unwrap();
    let inner = deliver::open_store(dir.path(), Mode::Follow).await.unwrap();
    inner.put("sink/old", b"{}".to_vec(), Expected::Nothing).await.unwrap();
    let deaf = Arc::new(Deaf {
        inner,
        is_deaf: false.into(),
    });
    let facade = facade_on(deaf.clone(), dir.path(), bench.log.clone()).await;
    let bench = Bench { facade, ..bench };
    let status = bench.answers(status::Show {}).await.pop().unwrap();
    assert_eq!(
        (status.removed_sinks, status.removed_sinks_unread),
        (vec!["old".to_owned()], None)
    );
    deaf.is_deaf.store(true, std::sync::atomic::Ordering::SeqCst);
    let status = bench.answers(status::Show {}).await.pop().unwrap();
    assert_eq!(status.removed_sinks, Vec::<String>::new());
    let why = status.removed_sinks_unread.unwrap_or_default();
    assert!(why.contains("nobody is there"), "{why}");
}
