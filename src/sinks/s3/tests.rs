//! Each window of the table in the module's head, with a bucket that can lose answers.

use std::collections::BTreeMap;
use std::io::Read as _;

use serde_json::json;

use super::super::common::aws::tests::Fake;
use super::super::common::line::tests::delivery;
use super::*;
use crate::event::Origin;
use crate::net::percent::decoded;
use crate::sinks::tests::{self, deliver};

/// What a bucket does with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Good,
    /// It takes it, and the answer is lost.
    LosesAnswers,
    /// It does not take it yet; it will.
    Delays,
    /// It may not be asked what is there.
    Secretive,
    /// It takes nothing.
    Down,
    /// Every tenth question goes unanswered.
    Tires,
    /// It is none: it says yes to anything.
    Nods,
}

#[derive(Default)]
struct Stored {
    asked: usize,
    objects: BTreeMap<String, (String, Vec<u8>)>,
    delayed: Vec<(String, String, Vec<u8>)>,
}

/// A bucket that keeps an object for a name once.
struct Bucket {
    url: String,
    mood: Arc<Mutex<Mood>>,
    stored: Arc<Mutex<Stored>>,
}

impl Stored {
    fn tires(&mut self) -> bool {
        self.asked += 1;
        self.asked.is_multiple_of(10)
    }

    fn put(&mut self, name: &str, digest: &str, body: &[u8]) -> u16 {
        if self.objects.contains_key(name) {
            return 412;
        }
        self.objects.insert(name.to_owned(), (digest.to_owned(), body.to_vec()));
        200
    }
}

impl Bucket {
    async fn start() -> Bucket {
        let mood = Arc::new(Mutex::new(Mood::Good));
        let stored: Arc<Mutex<Stored>> = Arc::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (moods, kept) = (mood.clone(), stored.clone());
        let answer = move |method: axum::http::Method,
                           uri: axum::http::Uri,
                           head: axum::http::HeaderMap,
                           body: Bytes| async move {
            let mood = *lock(&moods);
            let mut stored = lock(&kept);
            let name = decoded(uri.path().strip_prefix("/archive/").unwrap());
            let header = |name: &str| {
                head.get(name)
                    .map(|value| value.to_str().unwrap().to_owned())
                    .unwrap_or_default()
            };
            let digest = header(DIGEST);
            let status = match (method.as_str(), mood) {
                (_, Mood::Down) => 503,
                (_, Mood::Nods) => {
                    return (
                        axum::http::StatusCode::OK,
                        [(DIGEST, String::new()), ("x", String::new())],
                    );
                }
                ("HEAD", Mood::Tires) if stored.tires() => 503,
                ("HEAD", Mood::Secretive) => 403,
                ("HEAD", _) => {
                    let found = stored.objects.get(&name);
                    let status = if found.is_some() { 200 } else { 404 };
                    let digest = found.map(|(digest, _)| digest.clone()).unwrap_or_default();
                    let head = [(DIGEST, digest), ("etag", "\"1\"".to_owned())];
                    return (axum::http::StatusCode::from_u16(status).unwrap(), head);
                }
                (_, Mood::Delays) => {
                    stored.delayed.push((name, digest, body.to_vec()));
                    504
                }
                (_, mood) => {
                    assert_eq!(header("if-none-match"), "*");
                    let status = stored.put(&name, &digest, &body);
                    if mood == Mood::LosesAnswers { 504 } else { status }
                }
            };
            (
                axum::http::StatusCode::from_u16(status).unwrap(),
                [(DIGEST, String::new()), ("etag", "\"1\"".to_owned())],
            )
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        Bucket { url, mood, stored }
    }

    fn is(&self, mood: Mood) {
        *lock(&self.mood) = mood;
    }

    /// What was under way arrives.
    fn arrives(&self) {
        let mut stored = lock(&self.stored);
        for (name, digest, body) in std::mem::take(&mut stored.delayed) {
            stored.put(&name, &digest, &body);
        }
    }

    fn names(&self) -> Vec<String> {
        lock(&self.stored).objects.keys().cloned().collect()
    }

    /// The Seqs in all objects, sorted.
    fn seqs(&self) -> Vec<u64> {
        let stored = lock(&self.stored);
        let mut seqs: Vec<u64> = stored
            .objects
            .iter()
            .flat_map(|(name, (_, bytes))| seqs_in(name, bytes))
            .collect();
        seqs.sort_unstable();
        seqs
    }
}

fn text_of(name: &str, bytes: &[u8]) -> String {
    let mut text = String::new();
    if name.rsplit('.').next() == Some("zst") {
        text = String::from_utf8(zstd::decode_all(bytes).unwrap()).unwrap();
    } else {
        flate2::read::GzDecoder::new(bytes).read_to_string(&mut text).unwrap();
    }
    text
}

fn seqs_in(name: &str, bytes: &[u8]) -> Vec<u64> {
    let seq = |line: &str| {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"]
            .as_u64()
            .unwrap()
    };
    text_of(name, bytes).lines().map(seq).collect()
}

/// The engine, as far as this sink knows it: a mark, and the position with it.
struct Engine {
    options: SinkOptions,
    bucket: Bucket,
    position: Option<Position>,
    sink: Option<Box<dyn Sink>>,
    epoch: &'static str,
}

fn event(seq: u64) -> Delivery {
    delivery(
        seq,
        &format!(r#"{{"event":{{"id":"ev_{seq}","date_updated":"2024-01-01"}}}}"#),
    )
}

impl Engine {
    async fn start(more: serde_json::Value) -> Engine {
        let bucket = Bucket::start().await;
        let mut table = json!({
            "bucket": "archive", "region": "eu-central-1", "endpoint": bucket.url, "access_key_id": "AKID", "secret_access_key": "s",
        });
        for (key, value) in more.as_object().unwrap() {
            table[key] = value.clone();
        }
        let options = tests::sound(&definition::TYPE, table);
        let mut engine = Engine {
            options,
            bucket,
            position: None,
            sink: None,
            epoch: "e1",
        };
        engine.open().await.unwrap();
        engine
    }

    /// From the newest durable position; what the sink had is forgotten.
    async fn open(&mut self) -> Result<(), Unavailable> {
        self.sink = None;
        let context = Context {
            timeout: Duration::from_secs(10),
            epoch: self.epoch.into(),
            position: self.position.clone(),
            ..Context::default()
        };
        let opened = self.options.open(context).await?;
        self.position = opened.position;
        self.sink = Some(opened.sink);
        Ok(())
    }

    fn sink(&self) -> &dyn Sink {
        self.sink.as_deref().unwrap()
    }

    async fn deliver(&self, seqs: impl IntoIterator<Item = u64>) {
        let deliveries: Vec<Delivery> = seqs.into_iter().map(event).collect();
        let outcomes = deliver(self.sink(), &deliveries).await.unwrap();
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Delivered));
    }

    /// Saves the plan, with the mark as it was.
    async fn plan(&mut self) {
        let plan = self.sink().plan().await.unwrap();
        self.position = plan.or(self.position.take());
    }

    /// The whole of a save; an error is what the engine hears.
    async fn save(&mut self) -> Result<(), Unavailable> {
        self.plan().await;
        self.position = self.sink().checkpoint().await?;
        self.sink().committed().await?;
        Ok(())
    }
}

#[tokio::test]
async fn events_of_a_batch_are_lines_of_one_object_that_is_named_by_them() {
    let mut engine = Engine::start(json!({ "prefix": "/crm/close/" })).await;
    engine.deliver(1..=3).await;
    engine.deliver([5]).await;
    assert_eq!(engine.bucket.names(), Vec::<String>::new(), "it gathers");
    engine.save().await.unwrap();
    engine.deliver([6]).await;
    engine.save().await.unwrap();
    engine.save().await.unwrap();
    assert_eq!(
        engine.bucket.names(),
        [
            "crm/close/dt=2023-11-14/e1-1-5.jsonl.gz",
            "crm/close/dt=2023-11-14/e1-6-6.jsonl.gz"
        ]
    );
    assert_eq!(engine.bucket.seqs(), [1, 2, 3, 5, 6]);
    let stored = lock(&engine.bucket.stored);
    let (name, (_, bytes)) = stored.objects.first_key_value().unwrap();
    let mut lines = String::new();
    for seq in [1, 2, 3, 5] {
        line::append(&mut lines, &event(seq));
    }
    assert_eq!(text_of(name, bytes), lines);
}

#[tokio::test]
async fn what_a_template_made_is_the_line_and_zstd_is_the_other_format() {
    let mut engine = Engine::start(json!({ "format": "jsonl.zst" })).await;
    let mut made = event(1);
    made.rendered = Some(Arc::new(crate::render::Rendered {
        payload: Some(crate::render::Payload::Json("{\"seq\":77}".into())),
        ..crate::render::Rendered::default()
    }));
    deliver(engine.sink(), &[made]).await.unwrap();
    engine.save().await.unwrap();
    assert_eq!(engine.bucket.names(), ["dt=2023-11-14/e1-1-1.jsonl.zst"]);
    assert_eq!(engine.bucket.seqs(), [77]);
}

/// Decision 36.
#[tokio::test]
async fn replays_and_letters_have_objects_of_their_own() {
    let mut engine = Engine::start(json!({})).await;
    let of = |seq: u64, origin: Origin| Delivery { origin, ..event(seq) };
    let replay = || Origin::Replay("r7".into());
    let deliveries = [event(9), of(1, replay()), of(2, replay()), of(9, Origin::Letter)];
    deliver(engine.sink(), &deliveries).await.unwrap();
    engine.save().await.unwrap();
    let names = engine.bucket.names();
    assert_eq!(names[0], "dt=2023-11-14/e1-9-9.jsonl.gz");
    assert!(
        names[1].starts_with("dt=2023-11-14/e1-letters") && names[1].ends_with("-9-9.jsonl.gz"),
        "{names:?}"
    );
    assert_eq!(names[2], "dt=2023-11-14/e1-r7-1-2.jsonl.gz");
    assert_eq!(engine.bucket.seqs(), [1, 2, 9, 9]);
}

/// Each row of the table: what is left after it, and how the events come again.
#[tokio::test]
async fn whatever_ends_it_each_event_is_in_one_object() {
    let again: [&[u64]; 4] = [&[1, 2, 3, 4], &[1, 2, 3, 4, 5, 6], &[1], &[1, 3, 4]];
    for again in again {
        for mood in [Mood::Good, Mood::LosesAnswers, Mood::Delays, Mood::Down] {
            for arrives in 0..4 {
                let mut engine = Engine::start(json!({})).await;
                engine.deliver(1..=4).await;
                engine.plan().await;
                // Down: killed before it was sent. Good: before the mark was saved.
                engine.bucket.is(mood);
                if mood != Mood::Down {
                    let handed_over = engine.sink().checkpoint().await;
                    assert_eq!(handed_over.is_ok(), mood == Mood::Good);
                }
                engine.bucket.is(Mood::Good);
                let arrives_at = |step: i32, engine: &Engine| {
                    if step == arrives {
                        engine.bucket.arrives();
                    }
                };
                arrives_at(0, &engine);
                engine.open().await.unwrap();
                arrives_at(1, &engine);
                // What does not come again is not wanted any more; it may be there all the same.
                let mut wanted: Vec<u64> = again.to_vec();
                let mut rest: Vec<u64> = if again == [1] { vec![2, 3, 4] } else { Vec::new() };
                rest.extend([7, 8]);
                let mut tries = 0;
                for step in [wanted.clone(), rest.clone()] {
                    loop {
                        engine.deliver(step.iter().copied()).await;
                        arrives_at(2, &engine);
                        if engine.save().await.is_ok() {
                            break;
                        }
                        tries += 1;
                        assert!(tries < 4, "{mood:?} {again:?} {arrives}");
                        engine.open().await.unwrap();
                    }
                }
                arrives_at(3, &engine);
                wanted.extend(rest);
                let seqs = engine.bucket.seqs();
                let mut once = seqs.clone();
                once.dedup();
                assert_eq!(seqs, once, "{mood:?} {again:?} {arrives}: {:?}", engine.bucket.names());
                assert!(
                    wanted.iter().all(|seq| seqs.contains(seq)),
                    "{mood:?} {again:?} {arrives}: {seqs:?}"
                );
                assert!(seqs.iter().all(|seq| *seq <= 4 || wanted.contains(seq)), "{seqs:?}");
                let left = State::of(engine.position.as_ref());
                assert_eq!(left, State::default(), "nothing is remembered for ever");
            }
        }
    }
}

#[tokio::test]
async fn a_mark_that_could_not_be_saved_keeps_the_plan_of_what_was_handed_over() {
    let mut engine = Engine::start(json!({})).await;
    engine.deliver(1..=2).await;
    engine.plan().await;
    engine.sink().checkpoint().await.unwrap();
    // The mark is not saved; more comes, and a plan with the mark as it was.
    engine.deliver(3..=4).await;
    engine.plan().await;
    engine.open().await.unwrap();
    engine.deliver(1..=6).await;
    engine.save().await.unwrap();
    assert_eq!(engine.bucket.seqs(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(State::of(engine.position.as_ref()), State::default());
}

#[tokio::test]
async fn somebody_else_s_object_stays_and_ours_gets_another_name() {
    let mut engine = Engine::start(json!({})).await;
    let theirs = "dt=2023-11-14/e1-1-2.jsonl.gz";
    lock(&engine.bucket.stored).put(theirs, "", b"theirs");
    engine.deliver(1..=2).await;
    let refused = engine.save().await.unwrap_err();
    assert!(refused.reason.contains("has other events"), "{refused}");
    engine.open().await.unwrap();
    engine.deliver(1..=2).await;
    engine.save().await.unwrap();
    assert_eq!(engine.bucket.names(), ["dt=2023-11-14/e1-1-2-2.jsonl.gz", theirs]);
    assert_eq!(lock(&engine.bucket.stored).objects[theirs].1, b"theirs");
}

#[tokio::test]
async fn a_bucket_that_may_not_be_asked_is_enough_where_nothing_is_in_doubt() {
    let mut engine = Engine::start(json!({})).await;
    engine.bucket.is(Mood::Secretive);
    engine.deliver(1..=2).await;
    engine.save().await.unwrap();
    engine.deliver(3..=4).await;
    engine.plan().await;
    engine.bucket.is(Mood::LosesAnswers);
    engine.sink().checkpoint().await.unwrap_err();
    engine.bucket.is(Mood::Secretive);
    engine.open().await.unwrap();
    engine.deliver(3..=4).await;
    engine.save().await.unwrap();
    // An object of the name that was never planned before is somebody's.
    lock(&engine.bucket.stored).put("dt=2023-11-14/e1-5-5.jsonl.gz", "", b"");
    engine.deliver([5]).await;
    let refused = engine.save().await.unwrap_err();
    assert!(refused.reason.contains("grant the right"), "{refused}");
    lock(&engine.bucket.stored)
        .objects
        .remove("dt=2023-11-14/e1-5-5.jsonl.gz");
    assert_eq!(engine.bucket.seqs(), [1, 2, 3, 4]);
}

#[tokio::test]
async fn an_open_bucket_is_not_needed_to_start_and_a_closed_one_is_said() {
    let mut engine = Engine::start(json!({})).await;
    engine.bucket.is(Mood::Down);
    engine.open().await.unwrap();
    engine.deliver(1..=2).await;
    assert!(engine.save().await.unwrap_err().reason.contains("503"));
    assert!(engine.open().await.is_err(), "what may be there has to be known");
    engine.bucket.is(Mood::Good);
    engine.open().await.unwrap();
    engine.deliver(1..=2).await;
    engine.save().await.unwrap();
    assert_eq!(engine.bucket.seqs(), [1, 2]);
}

/// What says yes to an object has it only if it is a store.
#[tokio::test]
async fn what_says_yes_to_anything_is_no_bucket() {
    let mut engine = Engine::start(json!({})).await;
    engine.bucket.is(Mood::Nods);
    engine.deliver(1..=2).await;
    let said = engine.save().await.unwrap_err().reason;
    assert!(said.contains("no store: correct endpoint and proxy"), "{said}");
    engine.bucket.is(Mood::Good);
    engine.open().await.unwrap();
    engine.deliver(1..=2).await;
    engine.save().await.unwrap();
    assert_eq!(engine.bucket.seqs(), [1, 2]);
}

fn with_prefix(seq: u64, prefix: &str) -> Delivery {
    let mut delivery = event(seq);
    delivery.rendered = Some(Arc::new(crate::render::Rendered {
        texts: [("prefix".to_owned(), prefix.to_owned())].into(),
        ..crate::render::Rendered::default()
    }));
    delivery
}

/// A backlog under a prefix with a value for each event: checkpoints stay short, and opening anew comes to an end.
#[tokio::test]
async fn a_prefix_that_is_spread_far_is_full_early_and_opened_in_parts() {
    let mut engine = Engine::start(json!({ "prefix": "{{ event.lead_id }}" })).await;
    let call = engine.options.drive().batch.events as u64;
    assert!(call <= 64, "each event of a call may be an object");
    let deliveries: Vec<Delivery> = (1..=call).map(|seq| with_prefix(seq, &format!("p{seq}"))).collect();
    assert!(!engine.sink().is_full());
    deliver(engine.sink(), &deliveries[..9]).await.unwrap();
    assert!(!engine.sink().is_full());
    deliver(engine.sink(), &deliveries[9..]).await.unwrap();
    assert!(engine.sink().is_full());
    engine.plan().await;
    assert!(u64::from(engine.sink().exchanges()) * AT_A_TIME as u64 >= call);
    engine.bucket.is(Mood::LosesAnswers);
    engine.sink().checkpoint().await.unwrap_err();
    engine.bucket.is(Mood::Tires);
    let mut tries = 0;
    while engine.open().await.is_err() {
        tries += 1;
        assert!(tries < 20, "no opening gets any further");
    }
    assert!(tries > 0, "it tires");
    engine.bucket.is(Mood::Good);
    deliver(engine.sink(), &deliveries).await.unwrap();
    engine.save().await.unwrap();
    assert_eq!(engine.bucket.seqs(), (1..=call).collect::<Vec<_>>());
    assert!(!engine.sink().is_full(), "it has room again");
}

/// Each of these may still arrive, however many there are.
#[tokio::test]
async fn no_plan_of_new_events_is_forgotten_before_what_is_behind_it_came() {
    let mut engine = Engine::start(json!({ "prefix": "{{ event.lead_id }}" })).await;
    // Two of each prefix.
    let of = |seq: u64| with_prefix(seq, &format!("p{}", seq.div_ceil(2)));
    let deliveries: Vec<Delivery> = (1..=200).map(of).collect();
    deliver(engine.sink(), &deliveries).await.unwrap();
    engine.plan().await;
    engine.bucket.is(Mood::Delays);
    engine.sink().checkpoint().await.unwrap_err();
    engine.bucket.is(Mood::Good);
    engine.open().await.unwrap();
    engine.bucket.arrives();
    assert!(!engine.bucket.names().is_empty());
    // They come again one by one.
    for delivery in deliveries {
        let mut tries = 0;
        loop {
            deliver(engine.sink(), std::slice::from_ref(&delivery)).await.unwrap();
            if engine.save().await.is_ok() {
                break;
            }
            engine.open().await.unwrap();
            tries += 1;
            assert!(tries < 4);
        }
    }
    let seqs = engine.bucket.seqs();
    assert_eq!(seqs, (1..=200).collect::<Vec<_>>(), "each once");
}

/// What was planned and did not come again may arrive all the same, with other events than what has its name would say.
#[tokio::test]
async fn a_name_of_the_durable_mark_is_given_to_nothing_else() {
    let mut engine = Engine::start(json!({})).await;
    engine.deliver([1, 3]).await;
    engine.plan().await;
    engine.bucket.is(Mood::Delays);
    engine.sink().checkpoint().await.unwrap_err();
    engine.bucket.is(Mood::Good);
    engine.open().await.unwrap();
    // One behind them comes first: they were put off.
    let mut gathered = Gathered::new("e1".into(), Format::Gzip, State::of(engine.position.as_ref()));
    let with = |seq: u64, prefix: &str| (event(seq), prefix.to_owned());
    gathered.take(&[with(4, "x"), with(1, ""), with(3, "")]).unwrap();
    let plans = gathered.plan().unwrap().unwrap().plans;
    let mut names: Vec<&str> = plans.iter().map(|plan| &*plan.name).collect();
    names.sort_unstable();
    let expected = [
        "dt=2023-11-14/e1-1-3-2.jsonl.gz",
        "dt=2023-11-14/e1-1-3.jsonl.gz",
        "x/dt=2023-11-14/e1-4-4.jsonl.gz",
    ];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn a_prefix_that_a_url_would_not_keep_is_refused() {
    let engine = Engine::start(json!({ "prefix": "{{ event.lead_id }}" })).await;
    let prefixes = ["..", "a/../../other", "./a", "a/.", "a..b/c", "%2e%2e"];
    let deliveries: Vec<Delivery> = (1..)
        .zip(prefixes)
        .map(|(seq, prefix)| with_prefix(seq, prefix))
        .collect();
    let outcomes = deliver(engine.sink(), &deliveries).await.unwrap();
    let refused = outcomes.iter().map(|outcome| matches!(outcome, Outcome::Reject { .. }));
    assert_eq!(refused.collect::<Vec<_>>(), [true, true, true, true, false, false]);
}

#[tokio::test]
async fn what_was_planned_in_another_format_keeps_it() {
    let mut engine = Engine::start(json!({})).await;
    engine.deliver(1..=4).await;
    engine.plan().await;
    let other = json!({
        "bucket": "archive", "region": "eu-central-1", "endpoint": engine.bucket.url, "access_key_id": "AKID",
        "secret_access_key": "s", "format": "jsonl.zst",
    });
    engine.options = tests::sound(&definition::TYPE, other);
    engine.open().await.unwrap();
    engine.deliver(1..=5).await;
    engine.save().await.unwrap();
    assert_eq!(
        engine.bucket.names(),
        ["dt=2023-11-14/e1-1-4.jsonl.gz", "dt=2023-11-14/e1-5-5.jsonl.zst"]
    );
    assert_eq!(
        engine.bucket.seqs(),
        [1, 2, 3, 4, 5],
        "each can be read as what it is called"
    );
}

#[tokio::test]
async fn a_prefix_of_the_date_makes_an_object_for_each() {
    let mut engine = Engine::start(json!({ "prefix": "{{ meta.received_at }}" })).await;
    let long = "x".repeat(2000);
    let mut deliveries: Vec<Delivery> = (1..=40)
        .map(|seq| with_prefix(seq, &format!("p{}", seq % 20)))
        .collect();
    deliveries.push(with_prefix(41, &long));
    let outcomes = deliver(engine.sink(), &deliveries).await.unwrap();
    assert!(matches!(outcomes[40], Outcome::Reject { .. }));
    engine.save().await.unwrap();
    assert_eq!(engine.bucket.seqs(), (1..=40).collect::<Vec<_>>());
    assert!(engine.bucket.names().iter().all(|name| name.starts_with('p')));
}

#[tokio::test]
async fn a_restored_log_has_names_of_its_own() {
    let mut engine = Engine::start(json!({})).await;
    engine.deliver(1..=2).await;
    engine.plan().await;
    engine.sink().checkpoint().await.unwrap();
    // The backup was made in between.
    engine.epoch = "e2";
    engine.open().await.unwrap();
    engine.deliver(1..=4).await;
    engine.save().await.unwrap();
    assert_eq!(engine.bucket.seqs(), [1, 2, 3, 4]);
    assert_eq!(
        engine.bucket.names(),
        ["dt=2023-11-14/e1-1-2.jsonl.gz", "dt=2023-11-14/e2-3-4.jsonl.gz"]
    );
}

#[test]
fn what_can_t_be_is_a_fault() {
    let base = json!({ "bucket": "archive", "region": "eu-central-1" });
    for (key, value, part) in [
        ("bucket", json!("a/b"), "the name of a bucket"),
        ("format", json!("csv"), "jsonl.zst"),
        ("batch", json!({ "events": 0 }), "between 1 and 50000"),
        ("batch", json!({ "wait": "2h" }), "at most 1h"),
        ("prefix", json!("{{ x"), "not a template"),
        ("prefix", json!("a/../b"), "no path can"),
        ("region", json!("EU (Frankfurt)"), "the name of a region"),
    ] {
        let mut table = base.clone();
        table[key] = value;
        let (_, faults) = tests::parsed(&definition::TYPE, table);
        let said = format!("{faults:?}");
        assert!(said.contains(part), "{key}: {said}");
    }
    let mut unread = base.clone();
    unread["access_key_id"] = json!("x");
    unread["secret_access_key_file"] = json!("/not/there");
    let said = tests::faults(&definition::TYPE, unread).join("; ");
    assert!(said.contains("/not/there"), "{said}");
    let one = tests::sound(&definition::TYPE, base.clone());
    let mut other = base;
    other["format"] = json!("jsonl.zst");
    let other = tests::sound(&definition::TYPE, other);
    assert_eq!(one.exclusive(), other.exclusive());
    assert_ne!(one.fingerprint(), other.fingerprint());
}

/// `https://BUCKET.s3.REGION.amazonaws.com`, but for buckets with dots, and stores that are named.
#[tokio::test]
async fn a_bucket_is_found_where_it_is() {
    let fake = Fake::start(|_| (404, Vec::new(), "<Error><Code>NoSuchKey</Code></Error>".into())).await;
    let base = |table: serde_json::Value| {
        let mut faults = Vec::new();
        let mut table = Table::new("s", table, &mut faults);
        let access = Access::of(&mut table, "s3");
        let bucket: String = table.required("bucket", "").unwrap();
        let options = Options {
            bucket,
            prefix: None,
            format: Format::Gzip,
            batch: GATHERS,
            fingerprint: access.fingerprint(&()),
            found: Arc::default(),
            access,
        };
        options.store(&Context::default()).unwrap().base.to_string()
    };
    let region = "eu-central-1";
    assert_eq!(
        base(json!({ "bucket": "a-b", "region": region })),
        "https://a-b.s3.eu-central-1.amazonaws.com/"
    );
    assert_eq!(
        base(json!({ "bucket": "a.b", "region": region })),
        "https://s3.eu-central-1.amazonaws.com/a.b/"
    );
    let named = json!({ "bucket": "a-b", "region": region, "endpoint": "http://minio:9000/x" });
    assert_eq!(base(named), "http://minio:9000/x/a-b/");
    let options = tests::sound(
        &definition::TYPE,
        json!({ "bucket": "a-b", "region": region, "endpoint": fake.url, "access_key_id": "x", "secret_access_key": "y" }),
    );
    let context = Context {
        timeout: Duration::from_secs(10),
        ..Context::default()
    };
    assert_eq!(options.probe(context).await.unwrap(), "the bucket a-b answers");
    assert_eq!(fake.asked(), ["GET /a-b/closehook-probe"], "nothing is written");
}
