use super::*;
use crate::event::{Kind, Source};
use proptest::prelude::*;

fn event(seq: u64, lead: u64) -> Arc<Event> {
    let body = format!(r#"{{"event":{{"id":"ev_{seq}","lead_id":"lead_{lead}"}}}}"#);
    let received_at = Timestamp::from_second(seq as i64).unwrap();
    Arc::new(Event::new(
        Seq(seq),
        received_at,
        Source::Webhook,
        Kind::Event,
        None,
        body.into(),
    ))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

#[test]
fn a_failed_event_holds_back_what_its_order_says() {
    for (order, expected) in [
        (Order::None, vec![2, 3]),
        (Order::Lead, vec![2]),
        (Order::Strict, vec![]),
    ] {
        let mut feed = Feed::restore(
            &Saved {
                next: Seq(1),
                open: vec![],
            },
            order,
        );
        for (seq, lead) in [(1, 1), (2, 2), (3, 1)] {
            feed.offer(&event(seq, lead), Arc::default());
        }
        assert_eq!(feed.deliverable(at(0), 1), [Seq(1)]);
        feed.started(Seq(1), at(0));
        feed.failed(Seq(1), at(60), "no".into());
        assert_eq!(
            feed.deliverable(at(59), 9).iter().map(|seq| seq.0).collect::<Vec<_>>(),
            expected,
            "{order:?}"
        );
        assert_eq!((feed.cursor(), feed.next_due()), (Seq(0), Some(at(60))));
        assert_eq!(feed.deliverable(at(60), 9).first(), Some(&Seq(1)));
    }
}

/// One whose event was tried first at this time, is due at 5010, and was saved by a clock that was an hour ahead: it is 1410.
fn tried_and_set_back(first: Timestamp) -> Feed {
    let mut feed = Feed::restore(&Saved::default(), Order::None);
    feed.offer(&event(1, 1), Arc::default());
    feed.started(Seq(1), first);
    feed.failed(Seq(1), at(5010), "no".into());
    let mut saved = feed.save();
    saved.set_back(SignedDuration::from_secs(3600), at(1410));
    Feed::restore(&saved, Order::None)
}

#[test]
fn a_clock_that_was_set_back_makes_nothing_wait_longer() {
    let mut feed = tried_and_set_back(at(5000));
    assert_eq!(feed.tries(Seq(1)).unwrap().first_attempt, Some(at(1400)));
    assert_eq!(
        (feed.deliverable(at(1409), 1).len(), feed.deliverable(at(1410), 1).len()),
        (0, 1)
    );
}

/// The machine's clock was ahead for a while, long after the first try: that one is no older for it.
#[test]
fn a_clock_that_was_ahead_makes_no_try_older_that_was_noted_before() {
    let feed = tried_and_set_back(at(1000));
    assert_eq!(feed.tries(Seq(1)).unwrap().first_attempt, Some(at(1000)));
    assert_eq!(feed.next_due(), Some(at(1410)), "and it waits no longer");
}

#[test]
fn what_waits_for_more_holds_no_bodies_and_is_read_again() {
    let mut feed = Feed::restore(&Saved::default(), Order::None);
    for seq in 1..=3 {
        feed.offer(&event(seq, 1), Arc::default());
    }
    feed.started(Seq(1), at(0));
    assert!(feed.held_bytes() > 0);
    feed.unload();
    let (held, first) = (feed.held_bytes(), feed.came_first(&[Seq(3), Seq(2)]));
    assert_eq!(first, Some(at(2)));
    assert!(
        held > 0 && feed.loaded(Seq(1)).is_some(),
        "what is being delivered stays"
    );
    feed.finished(Seq(1));
    assert_eq!(
        (feed.held_bytes(), feed.deliverable(at(0), 9)),
        (0, vec![Seq(2), Seq(3)])
    );
    feed.load(&event(2, 1), Arc::default());
    feed.unload();
    assert!(feed.held_bytes() == 0 && feed.loaded(Seq(2)).is_none());
    assert_eq!(
        feed.save().next,
        Seq(2),
        "what only waits is read again after a restart"
    );
}

/// The machine began with a clock that was 100 hours ahead, and it was set right: what comes now is not 100 hours old.
#[test]
fn an_events_age_is_told_by_one_clock() {
    let hours = |hours: i64| at(hours * 3600);
    let age = SignedDuration::from_hours(72);
    let mut feed = Feed::restore(&Saved::default(), Order::None);
    feed.offer(&event(1, 1), Arc::default());
    // It came at second 1 by the machine's clock; the receiver has been gone since hour -1.
    let (now, wall) = (hours(100), at(2));
    assert_eq!(
        feed.overdue(
            Some(hours(-1)),
            age,
            SignedDuration::ZERO,
            (Ages::believed(now), wall),
            9
        )
        .0,
        []
    );
    let later = |by: i64| {
        (
            now + SignedDuration::from_hours(by),
            wall + SignedDuration::from_hours(by),
        )
    };
    let (now, wall) = later(73);
    assert_eq!(
        feed.overdue(
            Some(hours(-1)),
            age,
            SignedDuration::ZERO,
            (Ages::believed(now), wall),
            9
        )
        .0,
        [Seq(1)]
    );
    // Where nobody has set it, both are the same.
    assert_eq!(
        feed.overdue(
            Some(at(0)),
            age,
            SignedDuration::ZERO,
            (Ages::believed(hours(73)), hours(73)),
            9
        )
        .0,
        [Seq(1)]
    );
    assert_eq!(
        feed.overdue(
            Some(at(0)),
            age,
            SignedDuration::ZERO,
            (Ages::believed(hours(71)), hours(71)),
            9
        )
        .0,
        []
    );
}

/// I6: an id is whatever a body says, and thousands are kept.
#[test]
fn ids_of_any_length_take_no_more_room_than_short_ones_and_stay_apart() {
    let id = |n: u64| format!("{}{n}", "x".repeat(1_000_000));
    let body = |n: u64| {
        format!(
            r#"{{"event":{{"id":"ev_{n}","object_id":"{0}","lead_id":"{0}"}}}}"#,
            id(n)
        )
    };
    let change = |seq: u64, n: u64| {
        let (source, kind) = (crate::event::Source::Webhook, crate::event::Kind::Event);
        Event::new(Seq(seq), at(seq as i64), source, kind, None, body(n).into())
    };
    let mut feed = Feed::restore(
        &Saved {
            next: Seq(1),
            open: vec![],
        },
        Order::Lead,
    );
    let superseded: Vec<Option<Seq>> = [(1, 1), (2, 2), (3, 1)]
        .into_iter()
        .map(|(seq, n)| feed.settle(&change(seq, n), SignedDuration::from_secs(60), |wait| at(0) + wait))
        .collect();
    assert_eq!(superseded, [None, None, Some(Seq(1))]);
    let saved = feed.save();
    assert!(serde_json::to_string(&saved).unwrap().len() < 1000);
    // What an older closehook saved is taken over.
    let mut older = saved.clone();
    for (item, n) in older.open.iter_mut().zip([2, 1]) {
        item.lead = Some(id(n));
        item.held.as_mut().unwrap().object = id(n);
    }
    assert_ne!(older, saved);
    assert_eq!(Feed::restore(&older, Order::Lead).save(), saved);
}

/// It was refused: nothing is left to be tried but its letter.
#[test]
fn what_was_given_up_and_has_no_letter_yet_stays_open_and_does_not_go_again() {
    let mut feed = Feed::restore(&Saved::default(), Order::Lead);
    for seq in 1..=3 {
        feed.offer(&event(seq, seq / 3), Arc::default());
    }
    feed.started(Seq(1), at(0));
    let letter = crate::deliver::types::dead_letter("a", &event(1, 0), "no".into(), 1, Some(at(0)));
    feed.park(letter.clone(), false, at(5));
    let is_right = |feed: &mut Feed, due: i64| {
        assert_eq!(
            feed.deliverable(at(9999), 9),
            [Seq(3)],
            "what is behind it waits, and it does not go"
        );
        assert_eq!((feed.in_flight(), feed.next_due(), feed.cursor()), (0, None, Seq(0)));
        assert_eq!(feed.stage(Seq(1)), Some((false, Some(at(due)))));
        assert_eq!((feed.parked_len(), feed.is_parked(Seq(1))), (1, true));
        let clocks = (Ages::believed(at(9999)), at(9999));
        let (overdue, _) = feed.overdue(
            Some(at(0)),
            SignedDuration::from_secs(1),
            SignedDuration::ZERO,
            clocks,
            9,
        );
        assert!(!overdue.contains(&Seq(1)), "once is enough");
        assert_eq!(feed.idle_upto(Seq(2), 9), [Seq(2)]);
    };
    is_right(&mut feed, 5);
    feed.park(letter.clone(), false, at(6));
    is_right(&mut feed, 6);
    assert_eq!(feed.parked()[0].2, Some(letter));
    feed.started(Seq(3), at(0));
    feed.finished(Seq(3));
    let mut feed = Feed::restore(&feed.save(), Order::Lead);
    feed.offer(&event(4, 4), Arc::default());
    feed.finished(Seq(4));
    assert_eq!(feed.parked()[0].2, None, "it is made again");
    assert_eq!(feed.tries(Seq(1)).unwrap().reason, "no");
    assert_eq!(feed.deliverable(at(9999), 9), [] as [Seq; 0]);
    assert!(feed.erase(&[Seq(1)].into()));
    assert_eq!((feed.parked_len(), feed.deliverable(at(9999), 9)), (0, vec![Seq(2)]));
}

#[test]
fn what_waits_for_another_try_can_be_put_off_further() {
    let mut feed = Feed::restore(&Saved::default(), Order::None);
    feed.offer(&event(1, 1), Arc::default());
    feed.started(Seq(1), at(0));
    feed.failed(Seq(1), at(10), "no".into());
    feed.failed(Seq(1), at(20), "no".into());
    assert_eq!((feed.deliverable(at(10), 9), feed.next_due()), (vec![], Some(at(20))));
    assert_eq!(feed.deliverable(at(20), 9), [Seq(1)]);
}

#[test]
fn what_may_not_go_yet_is_not_held_up_while_it_waits_for_that() {
    let mut feed = Feed::restore(&Saved::default(), Order::None);
    let (apart, gone_since, age) = (
        SignedDuration::from_secs(7200),
        at(600),
        SignedDuration::from_secs(3600),
    );
    // Both came in the first seconds.
    feed.put_off(&event(1, 1), at(7201));
    feed.put_off(&event(2, 1), at(7202));
    let overdue = |feed: &Feed, now| feed.overdue(Some(gone_since), age, apart, (Ages::believed(now), now), 9);
    assert_eq!(overdue(&feed, at(10_800)), (vec![], Some(at(10_801))));
    // Also when it might go meanwhile, and no sink was there.
    assert_eq!(feed.deliverable(at(7202), 9), [Seq(1), Seq(2)]);
    assert_eq!(overdue(&feed, at(10_800)), (vec![], Some(at(10_801))));
    assert_eq!(overdue(&feed, at(10_801)).0, [Seq(1)]);
    assert_eq!(overdue(&feed, at(10_802)).0, [Seq(1), Seq(2)]);
}

proptest! {
    /// Whatever the outcomes, the order, and the moments of crashes (going on from any earlier save): every event is
    /// finished at least once, nothing is finished before what its order puts before it, the cursor never passes an open
    /// event, and the room is never exceeded.
    #[test]
    fn nothing_is_skipped(
        total in 1_u64..40,
        order in prop::sample::select(vec![Order::None, Order::Lead, Order::Strict]),
        steps in prop::collection::vec((0_u8..6, any::<prop::sample::Index>()), 0..300),
    ) {
        let mut feed = Feed::restore(&Saved { next: Seq(1), open: vec![] }, order);
        let mut saved = feed.save();
        let mut finished: Vec<u64> = Vec::new();
        let mut finished_at_save = 0;
        let mut now = 0_i64;
        let finish = |feed: &mut Feed, finished: &mut Vec<u64>, seq: Seq| {
            feed.finished(seq);
            finished.push(seq.0);
            assert!(feed.cursor() < feed.open.keys().next().copied().unwrap_or(Seq(u64::MAX)), "I4");
        };
        for (action, index) in steps {
            now += 1;
            match action {
                0 => if feed.next().0 <= total { let seq = feed.next().0; feed.offer(&event(seq, seq % 3), Arc::default()) },
                1 => {
                    let ready = feed.deliverable(at(now), 3);
                    for seq in ready { feed.started(seq, at(now)); }
                }
                2 | 3 => {
                    let running: Vec<Seq> = feed.open.iter().filter(|(_, item)| item.stage == Stage::InFlight).map(|(seq, _)| *seq).collect();
                    if !running.is_empty() {
                        let seq = *index.get(&running);
                        if action == 2 { finish(&mut feed, &mut finished, seq) } else { feed.failed(seq, at(now + 5), "x".into()) }
                    }
                }
                4 => { saved = feed.save(); finished_at_save = finished.len(); }
                _ => {
                    feed = Feed::restore(&saved, order);
                    finished.truncate(finished_at_save);
                }
            }
            prop_assert_eq!(feed.in_flight(), feed.open.values().filter(|item| item.stage == Stage::InFlight).count());
        }
        // In the end everything is delivered.
        let mut patience = 0;
        while feed.next().0 <= total || !feed.is_idle() {
            patience += 1;
            prop_assert!(patience < 10_000);
            now += 10;
            if feed.next().0 <= total { let seq = feed.next().0; feed.offer(&event(seq, seq % 3), Arc::default()); }
            for seq in feed.deliverable(at(now), 2) { feed.started(seq, at(now)); }
            let running: Vec<Seq> = feed.open.iter().filter(|(_, item)| item.stage == Stage::InFlight).map(|(seq, _)| *seq).collect();
            for seq in running { finish(&mut feed, &mut finished, seq); }
        }
        let distinct: BTreeSet<u64> = finished.iter().copied().collect();
        prop_assert_eq!(distinct, (1..=total).collect::<BTreeSet<_>>());
        prop_assert_eq!(finished.len() as u64, total, "each exactly once when the save and the result go together");
        prop_assert_eq!(feed.cursor(), Seq(total));
        prop_assert_eq!((feed.bytes, feed.leads.len(), feed.ready.len(), feed.waiting.len()), (0, 0, 0, 0));
    }
}

#[test]
fn a_feed_reads_on_when_another_has_let_go_of_what_it_held() {
    let memory = Memory::default();
    let feed = || Feed::restore(&Saved::default(), Order::None).within(&memory);
    let fill = |feed: &mut Feed, from: u64| {
        let mut seq = from;
        while feed.room() > 0 {
            let body = vec![b'x'; 60_000];
            let large = Event::new(Seq(seq), at(0), Source::Webhook, Kind::Quarantined, None, body.into());
            feed.offer(&Arc::new(large), Arc::default());
            seq += 1;
        }
    };
    let (mut first, mut second, mut third) = (feed(), feed(), feed());
    fill(&mut first, 1);
    assert_eq!(
        first.held_bytes() / BYTES_MAX,
        1,
        "alone it has as much as any may have"
    );
    fill(&mut second, 1_000_000);
    fill(&mut third, 2_000_000);
    assert!(third.held_bytes() < second.held_bytes() && second.held_bytes() < first.held_bytes());
    assert_eq!((third.room(), third.room_bytes()), (0, 0));
    assert!(third.may_load(), "nothing of it is under way that would make room");
    third.started(Seq(2_000_000), at(0));
    assert!(!third.may_load());
    for seq in first.open_seqs() {
        first.finished(seq);
    }
    assert!(third.room() > 0);
    let before = third.held_bytes();
    fill(&mut third, 3_000_000);
    assert!(third.held_bytes() > before);
    // What one holds already takes nothing from what another may have.
    let mut fourth = feed();
    fill(&mut fourth, 2_000_000);
    assert!(fourth.held_bytes() > third.held_bytes() * 3 / 5);
}
