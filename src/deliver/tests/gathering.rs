//! Sinks that gather: a batch that is not full waits for more, and not for ever.

use super::*;

/// A receiver over HTTP, and a sink of batches to it that gathers for long.
async fn over_http(says: impl Fn(&str) -> (u16, Option<&'static str>) + Clone + Send + Sync + 'static) -> SinkConfig {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let answer = move |body: String| async move {
        let (status, after) = says(&body);
        let mut response = axum::response::Response::new(axum::body::Body::empty());
        *response.status_mut() = axum::http::StatusCode::from_u16(status).unwrap();
        if let Some(after) = after {
            response.headers_mut().insert("retry-after", after.parse().unwrap());
        }
        response
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    let table = serde_json::json!({"url": url, "allow_private": true, "batch": {"events": 20, "wait": "5s"}});
    let http = crate::sinks::REGISTRY.iter().find(|kind| kind.name == "http").unwrap();
    let mut faults = Vec::new();
    let options = http.options_of("sinks[0]", table, &mut faults).unwrap();
    assert_eq!(faults, []);
    let receiver = Receiver::new();
    SinkConfig {
        options,
        concurrency: Some(1),
        ..sink_on(&receiver, Commit::Acknowledge)
    }
}

/// The ids in a body.
fn ids(body: &str) -> Vec<u64> {
    let named = body.split("\"ev_").skip(1);
    named
        .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
        .collect()
}

/// What stands before a receiver says 502 when that falls over an event.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_over_which_a_receiver_of_batches_seems_away_holds_up_no_other() {
    let requests: Arc<Mutex<Vec<Vec<u64>>>> = Arc::default();
    let seen = requests.clone();
    let sink = over_http(move |body| {
        let came = ids(body);
        let status = if came.contains(&7) { 502 } else { 200 };
        lock(&seen).push(came);
        (status, None)
    })
    .await;
    let bench = Bench::new(vec![sink]);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=40).await;
    let mut id = 40;
    // More comes, so that there are full batches.
    until("all others have arrived, and it is tried alone", async || {
        id += 1;
        bench.store(id..=id).await;
        let requests = lock(&requests);
        let taken = requests.iter().filter(|came| !came.contains(&7)).flatten();
        let taken: std::collections::BTreeSet<u64> = taken.copied().collect();
        let has_others = (1..=40).all(|id| id == 7 || taken.contains(&id));
        has_others && requests.iter().filter(|came| **came == [7]).count() > 2
    })
    .await;
    let (mut with_others, mut was_alone) = (0, false);
    for came in lock(&requests).iter().filter(|came| came.contains(&7)) {
        was_alone |= came.len() == 1;
        with_others += usize::from(came.len() > 1);
        assert!(!was_alone || came.len() == 1, "alone from then on: {came:?}");
    }
    assert!(with_others < 8, "it was looked for once");
    assert_eq!(status(&engine).dead, 0);
    engine.shutdown().await;
}

/// As long as it is away it gets one event at a time, and nothing before the time that it asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_of_batches_that_is_away_is_asked_little_until_it_is_back() {
    let requests: Arc<Mutex<Vec<Vec<u64>>>> = Arc::default();
    let is_back = Arc::new(AtomicBool::new(false));
    let (seen, back) = (requests.clone(), is_back.clone());
    let sink = over_http(move |body| {
        lock(&seen).push(ids(body));
        if back.load(Ordering::SeqCst) {
            (200, None)
        } else {
            (503, Some("1"))
        }
    })
    .await;
    let bench = Bench::new(vec![sink]);
    let engine = bench.engine(Mode::Follow).await;
    let began = std::time::Instant::now();
    bench.store(1..=20).await;
    until("it was asked thrice", async || lock(&requests).len() >= 3).await;
    assert!(began.elapsed() >= Duration::from_secs(1), "not before it wanted to be");
    assert_eq!(lock(&requests)[0].len(), 20);
    assert!(lock(&requests)[1..].iter().all(|came| came.len() == 1), "probes");
    is_back.store(true, Ordering::SeqCst);
    caught_up(&engine, 20).await;
    assert_eq!(status(&engine).dead, 0);
    engine.shutdown().await;
}

/// A sink whose batches wait so long, and its receiver.
fn gathers(wait: Duration, events: usize) -> (Arc<Receiver>, SinkConfig) {
    let receiver = Receiver::new();
    let mut sink = sink_on(&receiver, Commit::Acknowledge);
    let drive = Drive {
        batch: Limits {
            events,
            bytes: 1 << 20,
            wait,
        },
        concurrency: 1,
        commit: Commit::Acknowledge,
    };
    let kind = Kind {
        receiver: receiver.clone(),
        drive,
    };
    sink.options = Arc::new(kind);
    (receiver, sink)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_waits_from_its_first_event_on_however_many_follow() {
    let (receiver, sink) = gathers(Duration::from_secs(1), 100_000);
    let bench = Bench::new(vec![sink]);
    let engine = bench.engine(Mode::Follow).await;
    let began = std::time::Instant::now();
    let mut id = 0;
    // More comes more often than the wait is long, and does not end before something is delivered.
    until("it was delivered", async || {
        id += 1;
        bench.store(id..=id).await;
        !receiver.seqs().is_empty()
    })
    .await;
    assert!(began.elapsed() >= Duration::from_secs(1), "not at once");
    assert!(receiver.seqs().len() > 1, "and together");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_there_after_a_restart_and_a_full_batch_goes_at_once() {
    let (receiver, sink) = gathers(Duration::from_secs(3600), 7);
    let bench = Bench::new(vec![sink]);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=6).await;
    until("they are read", async || status(&engine).lag_events == 6).await;
    assert_eq!(receiver.seqs(), [0; 0]);
    // Nothing happens, and they grow older all the same.
    until("it says what it waits for", async || {
        let waits_by = status(&engine).waits_by.unwrap_or_default();
        waits_by.starts_with("it gathers events: what has come goes out at 2")
    })
    .await;
    let age = status(&engine).lag_seconds;
    until("they are older", async || status(&engine).lag_seconds > age + 0.2).await;
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    bench.store(7..=9).await;
    until("a batch is full", async || receiver.seqs().len() == 7).await;
    assert_eq!(receiver.seqs(), [1, 2, 3, 4, 5, 6, 7]);
    until("the rest waits", async || status(&engine).lag_events == 2).await;
    engine.shutdown().await;
    assert_eq!(receiver.seqs().len(), 7);
}

/// What is gathered for long is one message, and so is a probe of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_of_a_sink_that_gathers_for_long_is_a_whole_batch() {
    let (receiver, sink) = gathers(Duration::from_secs(3600), 5);
    let bench = Bench::new(vec![sink]);
    let calls: Arc<Mutex<Vec<u64>>> = Arc::default();
    let called = calls.clone();
    receiver.says(move |delivery| {
        let mut calls = lock(&called);
        calls.push(delivery.event.seq.0);
        // The first event of the first calls.
        if calls.len() < 4 {
            Err(Unavailable::new("busy"))
        } else {
            Ok(Outcome::Delivered)
        }
    });
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=5).await;
    until("it is delivered", async || receiver.seqs().len() == 5).await;
    assert_eq!(*lock(&calls), [1, 1, 1, 1, 2, 3, 4, 5], "one call took all");
    engine.shutdown().await;
}

/// What waits for a batch to fill is no backlog that could not be delivered.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_waits_for_more_goes_when_the_log_has_to_drop_it() {
    let (receiver, sink) = gathers(Duration::from_secs(3600), 100_000);
    let bench = Bench::new(vec![sink]);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=9).await;
    until("they wait", async || status(&engine).lag_events == 9).await;
    engine.bury(Seq(4));
    caught_up(&engine, 9).await;
    assert_eq!((receiver.seqs().len(), status(&engine).dead), (9, 0));
    engine.shutdown().await;
}

/// Whoever is woken for what is late must not be for what was told to wait.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_as_configured_is_behind_and_not_late() {
    let hour = Duration::from_secs(3600);
    for (delay, wait) in [(Some(hour), Duration::ZERO), (None, hour)] {
        let (_receiver, mut sink) = gathers(wait, 100);
        sink.delay = delay.map(crate::config::Span);
        let bench = Bench::new(vec![sink]);
        let engine = bench.engine(Mode::Follow).await;
        bench.store(1..=3).await;
        until("it is behind", async || status(&engine).lag_seconds > 0.2).await;
        let late = status(&engine).late_seconds;
        assert!(late.abs() < f64::EPSILON, "{late} with {delay:?} and {wait:?}");
        engine.shutdown().await;
    }
    // What goes on waiting is late, by as much as it waits longer.
    let wait = Duration::from_millis(100);
    let (receiver, sink) = gathers(wait, 100);
    receiver.gate.send_replace(false);
    let bench = Bench::new(vec![sink]);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=3).await;
    until("it is late", async || status(&engine).late_seconds > 0.1).await;
    let status_now = status(&engine);
    let longer = status_now.lag_seconds - status_now.late_seconds;
    assert!((longer - wait.as_secs_f64()).abs() < 0.001, "{status_now:?}");
    receiver.gate.send_replace(true);
    until("it has caught up", async || {
        status(&engine).late_seconds.abs() < f64::EPSILON
    })
    .await;
    engine.shutdown().await;
}
