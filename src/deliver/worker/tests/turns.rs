//! What one turn may take, and what a worker makes of a log that other nodes know more of.

use super::*;
use crate::deliver::feed::Saved;
use crate::deliver::replay::Job;
use crate::deliver::tests::faulty::Faulty;
use crate::deliver::trail::Last;
use crate::deliver::types::{ReplaySpec, RetryProgress, dead_letter};
use crate::node::Lease;
use lanes::Lane;

fn config() -> SinkConfig {
    let mut config = willing();
    config.start = Start::Beginning;
    config
}

async fn store(log: &LocalLog, ids: std::ops::RangeInclusive<u64>) {
    let incoming = |id: u64| {
        let body = format!(r#"{{"event":{{"id":"ev_{id}"}}}}"#);
        Incoming::new(body.into(), jiff::Timestamp::now(), crate::event::Source::Webhook, None)
    };
    for stored in log.append_in_order(ids.map(incoming).collect()).await {
        stored.unwrap();
    }
}

/// Makes dead letters of these.
fn bury(kit: &Kit, log: &LocalLog, seqs: std::ops::RangeInclusive<u64>) {
    let letter = |seq| {
        let event = log.get(Seq(seq)).unwrap().unwrap();
        dead_letter("a", &event, "no".into(), 1, None)
    };
    kit.letters.add(&seqs.map(letter).collect::<Vec<_>>()).unwrap();
}

fn ask(worker: &mut Worker<'_>, seqs: std::ops::RangeInclusive<u64>) -> Arc<RetryProgress> {
    let seqs: Vec<Seq> = seqs.map(Seq).collect();
    let progress = Arc::new(RetryProgress::new(seqs.len() as u64));
    worker.obey(Command::RetryDead(Waiter::each(seqs, &progress)));
    progress
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_a_log_that_can_not_be_read_are_not_each_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path());
    store(&log, 1..=50).await;
    let faulty = Arc::new(Faulty::on(&log));
    let mut kit = kit(dir.path(), &log, config());
    kit.log = faulty.clone();
    bury(&kit, &log, 1..=50);
    let mut worker = Worker::new(&kit, kit.initial.clone(), None);
    let progress = ask(&mut worker, 1..=50);
    faulty.broken.store(true, std::sync::atomic::Ordering::SeqCst);
    // Whatever it does takes too long.
    worker.patience = Duration::ZERO;
    assert!(worker.take_letters(99).await.is_empty());
    assert_eq!(progress.counts(), (50, 0, 50), "all of them hear why");
    assert!(progress.why().unwrap().contains("too many open files"));
    let asked = faulty.asked.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(asked, 1);
    assert!(worker.not_before.is_some(), "it rests, and says so");
    kit.store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_whose_event_is_gone_keeps_no_other_from_being_tried() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path());
    store(&log, 1..=5).await;
    let kit = kit(dir.path(), &log, config());
    bury(&kit, &log, 5..=5);
    let mut worker = Worker::new(&kit, kit.initial.clone(), None);
    // The first four are no dead letters any more.
    let progress = ask(&mut worker, 1..=5);
    let taken = worker.take_letters(99).await;
    assert_eq!(
        taken.iter().map(|delivery| delivery.event.seq.0).collect::<Vec<_>>(),
        [5]
    );
    assert_eq!((progress.counts(), progress.gone()), ((1, 0, 0), 4));
    assert!(worker.not_before.is_none());
    kit.store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_has_been_long_ends_with_what_it_is_at_and_goes_on_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path());
    store(&log, 1..=30).await;
    let kit = kit(dir.path(), &log, config());
    bury(&kit, &log, 1..=10);
    let mut worker = Worker::new(&kit, kit.initial.clone(), None);
    let progress = ask(&mut worker, 1..=10);
    worker.patience = Duration::ZERO;
    worker.wakes.clear();
    assert_eq!(worker.take_letters(99).await.len(), 1);
    assert_eq!(progress.counts(), (10, 0, 0), "the others wait");
    assert!(worker.wake_at().is_some_and(|at| at <= Instant::now()));
    // A replay reads on from where it was.
    let spec = ReplaySpec {
        from: Seq(1),
        to: Seq(30),
        sinks: vec!["a".into()],
        ..ReplaySpec::default()
    };
    let job = Arc::new(Job::new("rp_1", spec, true, kit.log.clone()).unwrap());
    worker.obey(Command::Replay(job));
    let mut before = 1;
    while before <= 30 {
        // The main feed and the replay take turns.
        for _ in 0..2 {
            worker.fill().await;
        }
        let replay = &worker.lanes.replays[0];
        assert_eq!(replay.feed.next(), Seq(before + 1));
        assert_eq!(replay.feed.open_len() as u64, before);
        before += 1;
    }
    assert_eq!(worker.lanes.main.open_len(), 20, "what is no dead letter");
    kit.store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_is_not_handed_out_when_the_lease_has_ended_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path());
    store(&log, 1..=9).await;
    let mut kit = kit(dir.path(), &log, config());
    kit.lease = Lease::with_fence(4);
    bury(&kit, &log, 1..=3);
    let mut worker = Worker::new(&kit, kit.initial.clone(), None);
    worker.sink = Some(Arc::new(Willing));
    let _progress = ask(&mut worker, 1..=3);
    let batch = worker.take_letters(99).await;
    assert_eq!(batch.len(), 3);
    kit.lease.end();
    worker.launch(Lane::Letters, batch);
    assert!(worker.running == 0 && worker.tasks.is_empty());
    assert!(!worker.lanes.letters.was_handed(Seq(2)), "it waits again");
    kit.store.close().await;
}

/// Another node has stored more than this one has heard of.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_does_not_end_before_this_node_has_heard_of_all_that_it_sends() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path());
    store(&log, 1..=10).await;
    let (said, heard) = watch::channel(Seq(6));
    let mut faulty = Faulty::on(&log);
    faulty.heard = Some(heard);
    let mut kit = kit(dir.path(), &log, config());
    kit.log = Arc::new(faulty);
    kit.lease = Lease::with_fence(4);
    let mut worker = Worker::new(&kit, kit.initial.clone(), None);
    let until = |to: u64| ReplaySpec {
        from: Seq(1),
        to: Seq(to),
        sinks: vec!["a".into()],
        ..ReplaySpec::default()
    };
    let job = |id: &str, to: u64| Arc::new(Job::new(id, until(to), true, kit.log.clone()).unwrap());
    worker.obey(Command::Replay(job("rp_1", 10)));
    // And one whose end the log never had.
    worker.obey(Command::Replay(job("rp_2", 20)));
    let at = |worker: &Worker<'_>| -> Vec<u64> {
        let replays = worker.lanes.replays.iter();
        replays.map(|replay| replay.feed.next().0).collect()
    };
    let mut more = true;
    for _ in 0..5 {
        more = worker.fill().await;
    }
    assert_eq!(at(&worker), [7, 7]);
    assert!(!more, "it waits to hear of more");
    said.send_replace(Seq(10));
    while worker.fill().await {}
    assert_eq!(at(&worker), [11, 21]);
    assert_eq!(worker.lanes.replays[0].feed.open_len(), 10);
    kit.store.close().await;
}

/// The receiver has got further than this node has heard of the log, and no further than that is.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_receiver_has_is_believed_where_the_log_has_it_after_all() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path());
    store(&log, 1..=10).await;
    // Nobody says any more.
    let (_, heard) = watch::channel(Seq(6));
    let mut faulty = Faulty::on(&log);
    faulty.heard = Some(heard);
    let mut kit = kit(dir.path(), &log, config());
    kit.log = Arc::new(faulty);
    kit.lease = Lease::with_fence(4);
    let worker = Worker::new(&kit, kit.initial.clone(), None);
    let ending = |next: u64| Record {
        main: Some(Saved {
            next: Seq(next),
            open: Vec::new(),
        }),
        ..Record::default()
    };
    for (theirs, believed) in [(11, 11), (21, 5)] {
        let (ours, theirs) = (ending(5), ending(theirs));
        let settled = worker.settled_with_log(&ours, &theirs, theirs.clone()).await.unwrap();
        assert_eq!(settled.main.unwrap().next, Seq(believed));
    }
    store(&log, 11..=11).await;
    assert!(
        log.get(Seq(21)).unwrap().is_some(),
        "what the receiver has got is used up"
    );
    kit.store.close().await;
}

/// By the newest event that a mark of a receiver's names it is known whether it speaks of what the log has.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_receiver_has_is_not_believed_where_the_log_has_other_events() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path());
    store(&log, 1..=10).await;
    log.skip_past(Seq(20)).await.unwrap();
    store(&log, 11..=20).await;
    let kit = kit(dir.path(), &log, config());
    let worker = Worker::new(&kit, kit.initial.clone(), None);
    let event = |seq: u64, id: u64| {
        let body = format!(r#"{{"event":{{"id":"ev_{id}"}}}}"#);
        let (source, kind) = (crate::event::Source::Webhook, crate::event::Kind::Event);
        crate::event::Event::new(Seq(seq), jiff::Timestamp::UNIX_EPOCH, source, kind, None, body.into())
    };
    let ending = |commits: u64, next: u64, last: Option<(u64, u64)>| {
        let mut record = Record {
            commits,
            last: last.map(|(seq, id)| Last::of(&event(seq, id))),
            saved_at: Some(jiff::Timestamp::now() - SignedDuration::from_hours(1)),
            ..Record::default()
        };
        record.begin_at(Seq(next));
        record
    };
    for (commits, last, believed, why) in [
        (9, Some((8, 8)), 9, "it is the same"),
        (9, None, 9, "it says nothing"),
        (9, Some((8, 108)), 5, "another one is there"),
        (9, Some((15, 108)), 5, "that was never given out"),
        (1, Some((8, 8)), 9, "the receiver was set back"),
        (1, Some((8, 108)), 1, "both were set back: what came since comes again"),
    ] {
        let ours = ending(4, 5, None);
        let theirs = ending(commits, 9, last);
        let settled = worker.settled_with_log(&ours, &theirs, theirs.clone()).await.unwrap();
        assert_eq!(
            (settled.main.unwrap().next, settled.commits),
            (Seq(believed), commits),
            "{why}"
        );
    }
    kit.store.close().await;
}

/// What comes at the Seqs that the log has lost is something else.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_events_that_the_log_has_lost_goes_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path());
    let kit = kit(dir.path(), &log, config());
    let event = |seq: u64| {
        let body = format!(r#"{{"event":{{"id":"ev_{seq}"}}}}"#);
        let (source, kind) = (crate::event::Source::Webhook, crate::event::Kind::Event);
        crate::event::Event::new(Seq(seq), jiff::Timestamp::UNIX_EPOCH, source, kind, None, body.into())
    };
    let mut record = kit.initial.clone();
    assert!(record.fates.outdate(&event(5)) && record.fates.outdate(&event(6)));
    let mut gone_on_with = kit.going_on_with(&record, schedule::now(), Seq(6));
    assert!(gone_on_with.fates.was_outdated(&event(5)) && !gone_on_with.fates.was_outdated(&event(6)));
    record.main.as_mut().unwrap().next = Seq(9);
    crate::deliver::setback::take_back(&log, "a", &mut record, Seq(6))
        .await
        .unwrap();
    assert!(record.fates.was_outdated(&event(5)) && !record.fates.was_outdated(&event(6)));
    kit.store.close().await;
}

/// However long nothing was saved here, and whoever has saved what is durable.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_is_as_old_as_itself_and_counts_as_the_process_does_that_saves_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path());
    let kit = kit(dir.path(), &log, config());
    let long_ago = schedule::now() - SignedDuration::from_hours(50);
    let durable = crate::deliver::mark::tests::waiting_for_an_hour(long_ago, Some("another"));
    let mut worker = Worker::new(&kit, durable, None);
    worker.record.saved_at = Some(long_ago);
    let before = schedule::now();
    let made = worker.snapshot();
    assert!(made.saved_at >= Some(before) && made.saved_by.as_deref() == Some(schedule::process()));
    // Of what is durable only the orders are others: the rest is as another process has left it.
    let ordered = worker.durable.with_orders_of(&worker.record);
    let secured = worker.securing(ordered, None).run().await;
    let (saved, _) = secured.saved.unwrap();
    let hour = SignedDuration::from_hours(1);
    assert!(saved.saved_at >= Some(before) && saved.held_counted_from >= Some(before - hour));
    kit.store.close().await;
}
