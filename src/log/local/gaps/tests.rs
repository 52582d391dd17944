//! The list of what is lost: durable, believed only where it is whole, and never found twice.

use super::*;

fn gap(from: u64, to: u64, skipped: bool) -> Gap {
    Gap {
        from: Seq(from),
        to: Seq(to),
        reason: "why".into(),
        found_at: Timestamp::UNIX_EPOCH,
        skipped,
        certain_to: None,
    }
}

#[test]
fn what_nobody_knows_the_end_of_is_as_long_as_somebody_has_seen_it() {
    let dir = tempfile::tempdir().unwrap();
    let gaps = Gaps::open(dir.path(), true, false).unwrap();
    gaps.record_or_owe(Seq(11), Seq(1000), "why", Stood::AtLeastTo(Seq(10)))
        .unwrap();
    let lost = || -> (Vec<(u64, u64)>, u64) {
        let parts = gaps.without_skipped(Seq(11), Seq(1005)).into_iter();
        (
            parts.map(|(from, to)| (from.0, to.0)).collect(),
            gaps.lost()[0].certain(),
        )
    };
    assert_eq!(lost(), (vec![(1001, 1005)], 0));
    let told = gaps.lost()[0].told();
    assert!(told.contains("11") && told.contains("nobody knows how many"), "{told}");
    // Before it, all of it, and behind it.
    for seen in [5, 10, 1000, 2000] {
        gaps.prove(Seq(seen));
        assert_eq!(lost().1, 0, "{seen}");
    }
    for (seen, certain) in [(15, 5), (12, 5), (20, 10)] {
        gaps.prove(Seq(seen));
        assert_eq!(lost(), (vec![(11, 10 + certain), (1001, 1005)], certain), "{seen}");
    }
    assert_eq!(
        Gaps::open(dir.path(), true, false).unwrap().lost(),
        gaps.lost(),
        "it is durable"
    );
}

#[test]
fn who_only_looks_knows_what_it_has_found_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("gaps.json"), "[{").unwrap();
    let gaps = Gaps::open(dir.path(), false, false).unwrap();
    gaps.record(Seq(5), Seq(9), "why").unwrap();
    assert_eq!((gaps.lost().len(), gaps.holds(Seq(7))), (1, true));
    assert!(gaps.damage().is_some_and(|why| why.contains("gaps.json")));
    assert_eq!(std::fs::read_to_string(dir.path().join("gaps.json")).unwrap(), "[{");
}

/// Else nobody would know after a crash that something is not known.
#[test]
fn a_damaged_list_is_in_its_place_until_the_next_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let (path, aside) = (dir.path().join("gaps.json"), dir.path().join("gaps.json.damaged"));
    std::fs::write(&path, "[{").unwrap();
    for _ in 0..2 {
        let gaps = Gaps::open(dir.path(), true, false).unwrap();
        assert!(gaps.is_incomplete() && gaps.is_owed());
        assert_eq!(std::fs::read_to_string(&aside).unwrap(), "[{");
    }
    Gaps::open(dir.path(), true, false).unwrap().settle_listed().unwrap();
    assert!(!Gaps::open(dir.path(), true, false).unwrap().is_incomplete());
    assert_eq!(std::fs::read_to_string(&aside).unwrap(), "[{");
}

/// A start that ends in between is followed by another one, which has to know that the list tells not all.
#[test]
fn a_damaged_list_gives_way_to_all_that_is_found_and_not_to_the_first_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gaps.json");
    std::fs::write(&path, "[{").unwrap();
    let find = |gaps: &Gaps| {
        gaps.record_or_owe(Seq(5), Seq(9), "why", Stood::All).unwrap();
        gaps.record(Seq(6), Seq(8), "again").unwrap();
        gaps.record(Seq(20), Seq(29), "why").unwrap();
        gaps.prove(Seq(7));
        assert!(gaps.is_owed() && gaps.holds(Seq(7)) && gaps.holds(Seq(25)));
    };
    for _ in 0..2 {
        let gaps = Gaps::open(dir.path(), true, false).unwrap();
        find(&gaps);
        assert!(gaps.is_incomplete());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[{");
    }
    let gaps = Gaps::open(dir.path(), true, false).unwrap();
    find(&gaps);
    gaps.settle_listed().unwrap();
    assert!(!gaps.is_owed());
    let again = Gaps::open(dir.path(), true, false).unwrap();
    assert_eq!((again.list(), again.is_incomplete()), (gaps.list(), false));
    assert_eq!(again.list().len(), 2);
}

#[test]
fn a_damaged_list_that_can_not_be_set_aside_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (path, aside) = (dir.path().join("gaps.json"), dir.path().join("gaps.json.damaged"));
    std::fs::write(&path, "[{").unwrap();
    std::fs::create_dir(&aside).unwrap();
    let gaps = Gaps::open(dir.path(), true, false).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "[{");
    gaps.settle_listed().unwrap();
    assert!(!Gaps::open(dir.path(), true, false).unwrap().is_incomplete());
}

#[test]
fn a_gap_that_could_not_be_stored_is_not_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let (place, away) = (dir.path().join("data"), dir.path().join("away"));
    std::fs::create_dir(&place).unwrap();
    Gaps::write(&place, None, &[gap(1, 2, false)]).unwrap();
    let gaps = Gaps::open(&place, true, false).unwrap();
    std::fs::rename(&place, &away).unwrap();
    for _ in 0..2 {
        assert!(gaps.record(Seq(5), Seq(9), "why").is_err(), "each time anew");
        assert!(gaps.add(Seq(10), Seq(19), "why", Stood::Nothing).is_err());
        assert!(gaps.forget_before(Seq(3), &|_| true).is_err());
        assert_eq!(*gaps.list(), [gap(1, 2, false)]);
    }
    std::fs::rename(&away, &place).unwrap();
    gaps.record(Seq(5), Seq(9), "why").unwrap();
    gaps.add(Seq(10), Seq(19), "why", Stood::Nothing).unwrap();
    gaps.forget_before(Seq(3), &|_| true).unwrap();
    let stored = Gaps::open(&place, true, false).unwrap();
    assert_eq!((gaps.list().len(), stored.list()), (2, gaps.list()));
}

/// Who has seen it goes on, and tells it only once.
#[test]
fn what_was_proven_and_could_not_be_stored_is_known_and_stored_later() {
    let dir = tempfile::tempdir().unwrap();
    let (place, away) = (dir.path().join("data"), dir.path().join("away"));
    std::fs::create_dir(&place).unwrap();
    let gaps = Gaps::open(&place, true, false).unwrap();
    let uncertain = Stood::AtLeastTo(Seq(10));
    gaps.record_or_owe(Seq(11), Seq(1000), "why", uncertain).unwrap();
    std::fs::rename(&place, &away).unwrap();
    gaps.prove(Seq(15));
    assert_eq!((gaps.lost()[0].certain(), gaps.is_owed()), (5, true));
    assert!(gaps.settle().is_err());
    std::fs::rename(&away, &place).unwrap();
    gaps.settle().unwrap();
    assert!(!gaps.is_owed());
    assert_eq!(Gaps::open(&place, true, false).unwrap().lost()[0].certain(), 5);
}

#[test]
fn what_is_on_record_is_left_out_in_whatever_order_it_was_found() {
    let dir = tempfile::tempdir().unwrap();
    Gaps::write(
        dir.path(),
        None,
        &[gap(30, 39, true), gap(10, 19, false), gap(12, 14, true)],
    )
    .unwrap();
    let gaps = Gaps::open(dir.path(), true, false).unwrap();
    let plain =
        |parts: Vec<(Seq, Seq)>| -> Vec<(u64, u64)> { parts.into_iter().map(|(from, to)| (from.0, to.0)).collect() };
    assert_eq!(plain(gaps.unrecorded(Seq(1), Seq(50))), [(1, 9), (20, 29), (40, 50)]);
    assert_eq!(plain(gaps.unrecorded(Seq(12), Seq(16))), []);
    assert_eq!(
        plain(gaps.without_skipped(Seq(1), Seq(50))),
        [(1, 11), (15, 29), (40, 50)]
    );
}

#[test]
fn a_gap_is_found_later_than_those_before_it_and_than_what_was_stored() {
    let dir = tempfile::tempdir().unwrap();
    let gaps = Gaps::open(dir.path(), true, false).unwrap();
    // The clock is behind both.
    let newest = Timestamp::now() + SignedDuration::from_hours(24 * 400);
    gaps.found_after(newest.as_microsecond());
    for seq in [1, 5, 9] {
        gaps.record(Seq(seq), Seq(seq), "why").unwrap();
    }
    let found: Vec<Timestamp> = gaps.list().iter().map(|gap| gap.found_at).collect();
    assert!(found[0].as_microsecond() >= newest.as_microsecond(), "{found:?}");
    assert!(found[0] < found[1] && found[1] < found[2], "{found:?}");
}

#[test]
fn what_was_never_given_out_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    Gaps::write(
        dir.path(),
        None,
        &[gap(5, 9, false), gap(10, 19, true), gap(30, 39, true)],
    )
    .unwrap();
    let gaps = Gaps::open(dir.path(), true, false).unwrap();
    assert_eq!(gaps.lost(), [gap(5, 9, false)]);
    let parts = |from, to| {
        let parts = gaps.without_skipped(Seq(from), Seq(to)).into_iter();
        parts.map(|(from, to)| (from.0, to.0)).collect::<Vec<_>>()
    };
    assert_eq!(parts(1, 9), [(1, 9)]);
    assert_eq!(parts(5, 19), [(5, 9)]);
    assert_eq!(parts(10, 19), []);
    assert_eq!(parts(15, 35), [(20, 29)]);
    assert_eq!(parts(1, 50), [(1, 9), (20, 29), (40, 50)]);
    // On record in two parts is on record.
    gaps.record(Seq(6), Seq(19), "again").unwrap();
    assert_eq!(gaps.list().len(), 3);
    gaps.record(Seq(6), Seq(20), "more").unwrap();
    assert_eq!(gaps.list().len(), 4);
}
