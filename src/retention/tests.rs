use super::*;
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Cuts of ten events and a hundred bytes each, the newest event of each a hundred seconds after that of the one before.
fn cuts(count: u64) -> Vec<Cut> {
    let cut = |n: u64| Cut {
        before: Seq(n * 10 + 1),
        newest: at(n as i64 * 100),
        frees: n * 100,
    };
    (1..=count).map(cut).collect()
}

fn sight(floor: Floor) -> Sight {
    Sight {
        now: at(1000),
        at_least: Some(at(1000)),
        keep: SignedDuration::from_secs(650),
        cuts: cuts(5),
        floor,
        events: 600,
        others: 0,
        keys: 0,
        letters: 0,
        live: 0,
        cap: 10_000,
    }
}

#[test]
fn a_log_on_servers_without_a_limit_is_never_too_large_here() {
    let mut sight = sight(Floor::Known(Seq(1)));
    (sight.cap, sight.events, sight.live) = (u64::MAX, u64::MAX / 4, u64::MAX / 16);
    let plan = plan(&sight);
    assert_eq!((plan.drop_before, plan.bury), (None, None));
    assert!(plan.room > u64::MAX / 4, "{plan:?}");
}

#[test]
fn what_is_old_goes_as_far_as_every_reader_is_done_with_it() {
    // 300 s is older than 650 s before 1,000 s; 400 s is not.
    assert_eq!(plan(&sight(Floor::Known(Seq(100)))).drop_before, Some(Seq(31)));
    let behind = plan(&sight(Floor::Known(Seq(26))));
    assert_eq!((behind.drop_before, behind.bury), (Some(Seq(21)), None));
    assert!(behind.waits_for.unwrap().contains("from 26 to 30"));
    let far_behind = plan(&sight(Floor::Known(Seq(4))));
    assert_eq!((far_behind.drop_before, far_behind.bury), (None, None));
}

#[test]
fn a_clock_that_is_ahead_makes_nothing_old_and_is_named() {
    let ahead = |at_least| Sight {
        now: at(400 * 86_400),
        at_least,
        ..sight(Floor::Known(Seq(100)))
    };
    let unknown = plan(&ahead(None));
    assert_eq!((unknown.drop_before, unknown.bury), (None, None));
    let why = unknown.waits_for_clock.unwrap();
    assert!(why.contains("up to 50") && why.contains("no time"), "{why}");
    let told = plan(&ahead(Some(at(1000))));
    assert_eq!(told.drop_before, Some(Seq(31)), "that much is old for sure");
    let why = told.waits_for_clock.unwrap();
    assert!(why.contains("1970-01-01T00:16:40Z at the least"), "{why}");
    // What a delivery was on its way is worth no word, and neither is what makes no difference.
    let near = Sight {
        now: at(1150),
        ..sight(Floor::Known(Seq(100)))
    };
    assert_eq!(plan(&near).waits_for_clock, None);
    let none_old = Sight {
        cuts: Vec::new(),
        ..ahead(None)
    };
    assert_eq!(plan(&none_old).waits_for_clock, None);
    // A full log goes by its size.
    let full = Sight {
        cap: 460,
        ..ahead(None)
    };
    assert_eq!(plan(&full).drop_before, Some(Seq(31)));
}

#[test]
fn what_is_not_known_drops_and_buries_nothing() {
    let unknown = Floor::Unknown("the record of \"crm\" can't be read".into());
    let full = Sight {
        cap: 100,
        ..sight(unknown)
    };
    let plan = plan(&full);
    assert_eq!((plan.drop_before, plan.bury), (None, None));
    assert!(plan.waits_for.unwrap().contains("crm"));
}

#[test]
fn over_the_size_limit_what_is_unfinished_is_buried_and_then_goes() {
    let full = |floor| Sight {
        keep: SignedDuration::MAX,
        cap: 460,
        ..sight(Floor::Known(floor))
    };
    // 600 bytes, 360 wanted: three cuts.
    let behind = plan(&full(Seq(13)));
    assert_eq!((behind.drop_before, behind.bury), (Some(Seq(11)), Some(Seq(30))));
    assert!(behind.waits_for.unwrap().contains("dead letters"));
    let done = plan(&full(Seq(31)));
    assert_eq!(
        (done.drop_before, done.bury, done.waits_for),
        (Some(Seq(31)), None, None)
    );
}

#[test]
fn what_is_no_event_counts_and_alone_makes_no_event_go() {
    let crowded_by = |others| Sight {
        keep: SignedDuration::MAX,
        others,
        cap: 1200,
        events: 250,
        ..sight(Floor::Known(Seq(100)))
    };
    assert_eq!(plan(&crowded_by(0)).drop_before, None);
    assert_eq!(plan(&crowded_by(0)).room, 1050);
    assert_eq!(plan(&crowded_by(1000)).room, 300, "a quarter stays for events");
    assert_eq!(plan(&crowded_by(50_000)).drop_before, None);
    assert!(crowded(1200, 900).is_none());
    assert!(crowded(1200, 901).unwrap().contains("Raise log.max_size"));
}

#[test]
fn room_is_left_for_dead_letters_that_are_written_anew() {
    let with = |letters, live| Sight {
        keep: SignedDuration::MAX,
        others: letters,
        letters,
        live,
        cap: 1600,
        events: 10,
        ..sight(Floor::Known(Seq(100)))
    };
    assert_eq!(plan(&with(0, 0)).room, 1400);
    assert_eq!(plan(&with(50, 20)).room, 1600 - 60 - 100 - 100);
    // However much of it is garbage just now, the room is the same: their file grows to twice what is in it, and is there once more
    // while it is written anew. Copies of what goes come on top.
    for letters in [200, 300, 400] {
        assert_eq!(plan(&with(letters, 200)).room, 1600 - 600 - 100 - 100, "{letters}");
    }
}

proptest! {
    /// Whatever is seen: nothing that a reader has not finished goes, nothing that is neither old nor too much goes, and where
    /// nothing more can be buried or dropped the log is within its room.
    #[test]
    fn nothing_goes_that_somebody_needs(
        count in 0_u64..12, floor in 0_u64..130, keep in 0_i64..2000, cap in 0_u64..3000, others in 0_u64..3000,
    ) {
        let sight = Sight {
            keep: SignedDuration::from_secs(keep),
            cuts: cuts(count),
            floor: Floor::Known(Seq(floor)),
            events: count * 100 + 40,
            others,
            keys: 0,
            letters: 0,
            live: 0,
            cap,
            now: at(1500),
            at_least: Some(at(1500)),
        };
        let plan = plan(&sight);
        if let Some(before) = plan.drop_before {
            prop_assert!(before <= Seq(floor));
            let cut = sight.cuts.iter().find(|cut| cut.before == before).copied();
            let previous_frees = (before.0 - 1) / 10 * 100 - 100;
            let needed = sight.events - previous_frees > plan.room / 100 * FULL_AT;
            prop_assert!(cut.unwrap().newest < at(1500 - keep) || needed);
        }
        if let Some(upto) = plan.bury {
            prop_assert!(upto >= Seq(floor) && sight.events > plan.room / 100 * FULL_AT);
        }
        prop_assert!(plan.room >= cap / EVENTS_SHARE && (plan.room + others <= cap || plan.room == cap / EVENTS_SHARE));
        if plan.bury.is_none() && plan.drop_before.is_none() && count > 0 {
            prop_assert!(sight.events <= plan.room / 100 * FULL_AT || sight.cuts[0].before > Seq(floor));
        }
    }
}

#[test]
fn copies_that_somebody_looks_at_events_by_count_for_no_limit() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, vec![1; 1 << 16]).unwrap();
    };
    write("log/1/journal");
    let before = used(dir.path()).unwrap();
    write("scratch/closehook-1-a/db");
    assert_eq!(used(dir.path()).unwrap(), before);
    write("log/scratch/db");
    assert!(used(dir.path()).unwrap() > before);
}
