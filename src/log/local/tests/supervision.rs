//! A panic of one of the log's threads is survived.

use super::*;

/// A clock that panics once in a thread of this name, when it is armed.
fn panicking(thread: &'static str) -> (Clock, Arc<AtomicBool>) {
    let armed = Arc::new(AtomicBool::new(false));
    let trap = armed.clone();
    let clock = Clock::new(move || {
        let here = std::thread::current().name() == Some(thread);
        assert!(!(here && trap.swap(false, Ordering::SeqCst)), "as told");
        Timestamp::now()
    });
    (clock, armed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_panics_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let (now, armed) = panicking("keeper");
    let log = LocalLog::open(Options {
        now,
        round: Duration::from_millis(20),
        ..options(dir.path())
    })
    .unwrap();
    store(&log, 1..=10).await;
    armed.store(true, Ordering::SeqCst);
    wait_until("it has panicked", || !armed.load(Ordering::SeqCst));
    log.roll().await.unwrap();
    wait_until("it seals again", || log.stats().unsealed == 1);
    assert_eq!(erase(&log, |event| event.seq == Seq(3)).await, [Seq(3)]);
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_keeper_that_panics_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (now, armed) = panicking("keeper");
    let log = LocalLog::open(Options {
        now,
        round: Duration::from_millis(20),
        ..options(dir.path())
    })
    .unwrap();
    store(&log, 1..=10).await;
    let doomed = |_: &Event| panic!("as told");
    let refused = LocalLog::erase(&log, Narrow::default(), Arc::new(doomed))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("gave up"), "{refused}");
    armed.store(true, Ordering::SeqCst);
    wait_until("it is at work again", || !armed.load(Ordering::SeqCst));
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_loop_that_panics_starts_again_and_stores_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (now, armed) = panicking("commit");
    let log = LocalLog::open(Options {
        now,
        ..options(dir.path())
    })
    .unwrap();
    // The first event of a segment looks at the clock when it is durable, and before anybody is told.
    armed.store(true, Ordering::SeqCst);
    let refused = log.append(incoming(body(1, 0))).await;
    assert!(matches!(refused, Err(AppendError::Failing(_))), "{refused:?}");
    assert_eq!(
        log.append(incoming(body(1, 0))).await.unwrap(),
        Appended::Duplicate(Seq(1))
    );
    store(&log, 2..=5).await;
    seal(&log).await;
    for _ in 0..2 {
        let log = if log.ready().is_ok() {
            log.clone()
        } else {
            open(dir.path())
        };
        assert_eq!(ids(&log), ((1..=5).collect(), vec![]));
        log.close();
    }
}
