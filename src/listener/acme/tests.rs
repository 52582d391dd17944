//! When orders are made, and where what they bring is kept.

use super::pace::RETRY_MAX;
use super::*;
use proptest::prelude::*;

#[test]
fn other_names_and_directories_have_other_files() {
    let settings = Acme {
        domains: vec!["a.example".into(), "b.example".into()],
        email: None,
        directory: "https://one.example/dir".into(),
        cache: None,
        ca: None,
    };
    let files = |settings: &Acme| Files::of(settings, Path::new("/dir"));
    let one = files(&settings);
    let other = files(&Acme {
        domains: vec!["a.exampleb.example".into()],
        ..settings.clone()
    });
    assert_ne!(one.certificate, other.certificate);
    assert_eq!(one.account, other.account);
    let staging = files(&Acme {
        directory: "https://two.example/dir".into(),
        ..settings
    });
    assert_ne!((one.certificate, one.account), (staging.certificate, staging.account));
}

#[test]
fn an_hour_lies_between_two_orders_whatever_the_clock_says() {
    let at = |days: i64| Timestamp::from_second(1_700_000_000 + days * 86_400).unwrap();
    let hour = Duration::from_secs(3600);
    let monotonic = Instant::now();
    // To a clock that is seventy days ahead a new certificate is past its renewal.
    for now in [at(70), at(0), at(-70), at(1000)] {
        let mut progress = Progress {
            next_order_at: renewal_at(at(0), at(90), 0.5),
            ..Progress::default()
        };
        progress.pace(pace_left(at(0), at(90), Some(now), now), now, monotonic);
        // Wherever it is set meanwhile.
        for later in [now, at(5000), at(-5000)] {
            let minutes = |minutes: u64| monotonic + Duration::from_secs(minutes * 60);
            assert!(progress.wait(later, minutes(0)) >= hour);
            assert!(progress.wait(later, minutes(59)) >= Duration::from_secs(60));
        }
        assert_eq!(progress.wait(at(5000), monotonic + hour), Duration::ZERO);
        assert!(progress.next_order_at >= now.saturating_add(SignedDuration::from_hours(1)).unwrap());
    }
    // A restart knows what was written down; a clock that was set back counts as no time at all.
    let ordered = ordered_at(format!("{ORDERED_AT}{}\n-----BEGIN", at(70)).as_bytes());
    assert_eq!(ordered, Some(at(70)));
    let later = at(70).saturating_add(SignedDuration::from_mins(10)).unwrap();
    assert_eq!(pace_left(at(0), at(90), ordered, later), Duration::from_secs(50 * 60));
    assert_eq!(pace_left(at(0), at(90), ordered, at(3)), hour);
    assert_eq!(pace_left(at(0), at(90), ordered, at(80)), Duration::ZERO);
    // Those that live for minutes are renewed within them.
    let minute = at(0).saturating_add(SignedDuration::from_secs(60)).unwrap();
    assert_eq!(pace_left(at(0), minute, Some(at(0)), at(0)), Duration::from_secs(20));
}

#[test]
fn a_failed_order_is_tried_again_at_its_time_and_not_when_the_clock_is_set() {
    let (now, monotonic) = (Timestamp::from_second(1_700_000_000).unwrap(), Instant::now());
    let mut progress = Progress::default();
    progress.pace(Duration::from_secs(15), now, monotonic);
    let year = now.saturating_add(SignedDuration::from_hours(24 * 365)).unwrap();
    assert_eq!(progress.wait(year, monotonic), Duration::from_secs(15));
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_never_answers_is_given_up_after_ten_minutes() {
    crate::install_crypto();
    let dir = tempfile::tempdir().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = Acme {
        domains: vec!["a.example".into()],
        email: None,
        directory: format!("https://{}/dir", silent.local_addr().unwrap()),
        cache: None,
        ca: None,
    };
    let keeper = Keeper::new(settings, dir.path()).unwrap();
    let began = tokio::time::Instant::now();
    let error = keeper.order().await.unwrap_err();
    assert!(error.contains("did not finish the order within 10 minutes"), "{error}");
    assert_eq!(began.elapsed().as_secs(), 600);
}

/// C7: a daemon that is ended again and again, whenever that is, orders no more often than one that stays.
#[tokio::test]
async fn an_order_that_came_to_nothing_is_known_after_a_restart() {
    crate::install_crypto();
    let dir = tempfile::tempdir().unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let settings = Acme {
        domains: vec!["a.example".into()],
        email: None,
        directory: format!("https://{nobody}/dir"),
        cache: None,
        ca: None,
    };
    let start = || Keeper::new(settings.clone(), dir.path()).unwrap();
    let left = |keeper: &Keeper| keeper.progress().wait(Timestamp::now(), Instant::now()).as_secs();
    assert_eq!(left(&start()), 0, "the first is made at once");
    for (order, full) in [15, 60, 240, 900, 900].into_iter().enumerate() {
        // It ends before it has said what became of the order.
        start().order().await.unwrap_err();
        let keeper = start();
        let progress = keeper.progress();
        assert_eq!(progress.failures as usize, order + 1);
        assert_eq!(
            progress.last_error.as_deref(),
            Some("closehook ended before the last order did")
        );
        assert!((full / 2..=full).contains(&left(&keeper)), "{order}: {}", left(&keeper));
        keeper.try_now();
        assert_eq!(left(&keeper), 0, "a person has looked at it");
    }
    let note = |at: Timestamp| format!("5 {at}\nno");
    let hour = SignedDuration::from_hours(1);
    let ago = Timestamp::now().saturating_sub(hour).unwrap();
    std::fs::write(&start().files.attempt, note(ago)).unwrap();
    assert_eq!(
        (left(&start()), start().progress().failures),
        (0, 5),
        "that was long ago"
    );
    let ahead = Timestamp::now().saturating_add(hour).unwrap();
    std::fs::write(&start().files.attempt, note(ahead)).unwrap();
    assert!(left(&start()) > 800, "a clock that was set back is no time at all");
    std::fs::write(&start().files.attempt, "nonsense").unwrap();
    assert_eq!(left(&start()), 0);
}

#[test]
fn an_hour_sees_no_more_failures_than_a_directory_allows() {
    let waited = |share| -> u64 { (1..=5).map(|failures| retry_after(failures, share).as_secs()).sum() };
    assert!(
        waited(0.0) >= 3600 && waited(1.0) >= 3600,
        "the sixth try is in another hour"
    );
    assert_eq!(retry_after(u32::MAX, 0.0), RETRY_MAX);
}

proptest! {
    #[test]
    fn a_renewal_lies_well_before_the_end(begin in 0_i64..4_000_000_000, life in 60_i64..40_000_000, share in 0.0..=1.0) {
        let at = |second| Timestamp::from_second(second).unwrap();
        let renewal = renewal_at(at(begin), at(begin + life), share);
        prop_assert!(renewal > at(begin + life / 2) && renewal <= at(begin + life * 2 / 3 + 1));
    }
}

#[test]
fn what_proves_a_name_can_be_made() {
    crate::install_crypto();
    let proof = order::proof("a.example", "token.thumbprint").unwrap();
    assert_eq!(proof.cert.len(), 1);
}
