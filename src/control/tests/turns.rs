//! Waiting for a turn: it comes, or is given up.

use super::*;

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3600);

/// The places may all be held by what a disk does not give.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_too_long_for_a_place_is_told() {
    let bench = Bench::with(600).await;
    let window = Window::new(Arc::new(bench.facade.clone())).read_within(LONG);
    let hasty = window.clone().place_within(Duration::from_millis(20));
    // Each has more answers than are on their way at once, and nobody reads on.
    let mut unread: Vec<_> = (0..16).map(|_| window.ask(newest(600, None))).collect();
    for one in &mut unread {
        one.next_text().await.unwrap().unwrap();
    }
    let refused = hasty.ask(newest(1, None)).last().await.unwrap_err();
    assert!(refused.contains("too much is asked at once"), "{refused}");
    drop(unread);
    let asked = tokio::time::timeout(Duration::from_secs(60), window.ask(newest(1, None)).last()).await;
    assert_eq!(seq_of(asked.expect("its turn comes").unwrap()), Some(600));
}

#[tokio::test]
async fn whoever_waits_too_long_for_the_bench_is_told() {
    let bench = super::super::Bench::new(Arc::default()).place_within(Duration::from_millis(20));
    let mut taken = Vec::new();
    let refused = loop {
        match bench.place().await {
            Ok(place) => taken.push(place),
            Err(refused) => break refused,
        }
    };
    assert!(refused.contains("too much is asked at once"), "{refused}");
    taken.pop();
    assert!(bench.place().await.is_ok());
}
