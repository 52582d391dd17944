//! What templates and transforms make of events on their way, and what becomes of the others.

use super::*;
use crate::render::{Escape, Program, Template, Transform};

fn transform(source: &str) -> Program {
    Program::Transform(Transform::parse(source).unwrap())
}

fn template(source: &str) -> Program {
    Program::Template(Template::parse(source, Escape::None).unwrap())
}

/// What the receiver was handed, by Seq.
type Made = Arc<Mutex<std::collections::BTreeMap<u64, String>>>;

fn remembering(receiver: &Receiver) -> Made {
    let made = Made::default();
    let remembered = made.clone();
    receiver.says(move |delivery| {
        let payload = delivery.payload().map(|payload| payload.bytes().to_vec());
        let text = payload.map_or("the event".to_owned(), |payload| String::from_utf8(payload).unwrap());
        lock(&remembered).insert(delivery.event.seq.0, text);
        Ok(Outcome::Delivered)
    });
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_transform_skips_is_known_for_good_and_what_it_fails_at_is_dead() {
    for commit in [Commit::Acknowledge, Commit::Checkpoint, Commit::Transaction] {
        let receiver = Receiver::new();
        let made = remembering(&receiver);
        let mut bench = Bench::new(vec![sink_on(&receiver, commit)]);
        bench.sinks[0].program = Some(transform(
            "export default (event, meta) => { if (meta.seq % 3 === 0) return null;
               if (meta.seq === 7) throw new Error(event.id); return { of: event.id } }",
        ));
        bench.store(1..=40).await;
        let engine = bench.engine(Mode::Follow).await;
        caught_up(&engine, 40).await;
        let wanted: Vec<u64> = (1..=40).filter(|seq| seq % 3 != 0 && *seq != 7).collect();
        assert_eq!(receiver.sorted(), wanted, "{commit:?}");
        assert_eq!(lock(&made)[&4], r#"{"of":"ev_4"}"#);
        assert_eq!((status(&engine).skipped, status(&engine).dead), (13, 1), "{commit:?}");
        durable(&engine, 40).await;
        // What is durable is known there a moment later.
        until("the worker knows", async || {
            state(&bench, &engine, 4).await == EventState::Delivered
        })
        .await;
        let check = async |engine: &Engine| {
            assert_eq!(state(&bench, engine, 3).await, EventState::Skipped, "{commit:?}");
            assert_eq!(state(&bench, engine, 4).await, EventState::Delivered, "{commit:?}");
            match state(&bench, engine, 7).await {
                EventState::Dead { reason, answer } => {
                    assert!(reason.starts_with("its transform failed in line 2, column"), "{reason}");
                    assert!(
                        !reason.contains("ev_7"),
                        "a log is no place for what is in events: {reason}"
                    );
                    assert_eq!(answer.as_deref(), Some("Error: ev_7"));
                }
                other => panic!("{commit:?}: {other:?}"),
            }
        };
        check(&engine).await;
        engine.shutdown().await;
        check(&bench.engine(Mode::Look).await).await;
        // Whoever mends the transform sends it again, and it is made anew.
        bench.sinks[0].program = Some(transform(
            "export default (event, meta) => meta.seq === 7 ? { mended: meta.attempt } : null",
        ));
        bench.store(41..=45).await;
        let engine = bench.engine(Mode::Follow).await;
        caught_up(&engine, 45).await;
        let retried = engine.dead_retry("a", vec![Seq(7)]).await.unwrap();
        assert_eq!(settled(&retried).await, (1, 1, 0));
        assert!(lock(&made)[&7].starts_with(r#"{"mended":"#), "{commit:?}");
        assert_eq!(receiver.sorted().len(), wanted.len() + 1, "{commit:?}: nothing twice");
        assert_eq!(state(&bench, &engine, 43).await, EventState::Skipped, "{commit:?}");
        engine.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_rule_that_sends_an_event_and_has_a_template_wins_over_the_sink() {
    let receiver = Receiver::new();
    let made = remembering(&receiver);
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].program = Some(template("the sink's {{ meta.seq }}"));
    let rule = |name: &str, lead: Option<u64>, program: Option<Program>| crate::config::RuleConfig {
        name: name.into(),
        events: Vec::new(),
        filter: lead.map(|lead| {
            format!(
                r#"{{"type":"field_accessor","field":"lead_id","filter":{{"type":"equals","value":"lead_{lead}"}}}}"#
            )
        }),
        sinks: vec!["a".into()],
        program,
    };
    let rules = [
        rule("all", None, None),
        rule(
            "two",
            Some(2),
            Some(template("two's {{ meta.seq }} {{ meta.rules | join('+') }}")),
        ),
        rule("two again", Some(2), Some(template("never"))),
    ];
    bench.rules = Arc::new(RuleSet::compile(&rules, &["a"]).unwrap());
    bench.store(1..=2).await;
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 2).await;
    assert_eq!(lock(&made)[&1], "the sink's 1");
    assert_eq!(lock(&made)[&2], "two's 2 all+two+two again");
    // A reload is for what is not delivered yet.
    let rules = [rule("all", None, Some(template("all's {{ meta.seq }}")))];
    let rules = Arc::new(RuleSet::compile(&rules, &["a"]).unwrap());
    engine.reload(rules, &bench.sinks).await.unwrap();
    let mut changed = bench.sinks.clone();
    changed[0].program = None;
    bench.store(3..=3).await;
    caught_up(&engine, 3).await;
    assert_eq!(lock(&made)[&3], "all's 3");
    let rules = Arc::new(RuleSet::compile(&[rule("all", None, None)], &["a"]).unwrap());
    let became = engine.reload(rules, &changed).await.unwrap();
    assert_eq!(became.changed, ["a"], "a sink with another template is another sink");
    bench.store(4..=4).await;
    caught_up(&engine, 4).await;
    assert_eq!(lock(&made)[&4], "the event");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_fails_on_every_event_opens_the_breaker_and_the_rest_waits() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].program = Some(template("{{ data.no }}"));
    bench.sinks[0].breaker.probe = Span::secs(3600);
    let engine = bench.engine(Mode::Follow).await;
    for seq in 1..=5 {
        bench.store(seq..=seq).await;
        until("it is refused", async || status(&engine).dead == seq).await;
    }
    until("the breaker is open", async || status(&engine).breaker == "open").await;
    bench.store(6..=100).await;
    until("they wait", async || status(&engine).lag_events == 95).await;
    assert_eq!(status(&engine).dead, 5);
    let said = status(&engine).waits_for.unwrap();
    assert!(said.contains("its template failed in line 1, column 4"), "{said}");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_more_than_is_made_at_a_time_is_delivered_all_the_same_and_once() {
    for commit in [Commit::Acknowledge, Commit::Checkpoint, Commit::Transaction] {
        let receiver = Receiver::new();
        let made = Arc::new(Mutex::new(Vec::new()));
        let remembered = made.clone();
        receiver.says(move |delivery| {
            let len = delivery.payload().map_or(0, |payload| payload.bytes().len());
            lock(&remembered).push((delivery.event.seq.0, delivery.attempt, len));
            Ok(Outcome::Delivered)
        });
        let mut bench = Bench::new(vec![sink_on(&receiver, commit)]);
        bench.sinks[0].program = Some(transform("export default () => 'x'.repeat(3 << 20)"));
        bench.store(1..=25).await;
        let engine = bench.engine(Mode::Follow).await;
        caught_up(&engine, 25).await;
        let mut made = lock(&made).clone();
        made.sort_unstable();
        let wanted: Vec<(u64, u32, usize)> = (1..=25).map(|seq| (seq, 1, 3 << 20)).collect();
        assert_eq!(made, wanted, "{commit:?}");
        engine.shutdown().await;
    }
}

/// What a receiver has got it has got, whatever a later replay's transform wants; and the replay's counts add up.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_replay_skips_was_delivered_before_and_is_counted() {
    for commit in [Commit::Acknowledge, Commit::Checkpoint, Commit::Transaction] {
        let receiver = Receiver::new();
        let (mut bench, engine) = Bench::caught_up(&receiver, commit, 6).await;
        durable(&engine, 6).await;
        engine.shutdown().await;
        bench.sinks[0].program = Some(transform(
            "export default (event, meta) => meta.seq % 3 === 0 ? null : {}",
        ));
        let engine = bench.engine(Mode::Follow).await;
        let id = replay(&engine, 1, 6).await;
        let done = replay_done(&engine, &id).await;
        let counts = (done.delivered, done.skipped, done.dead, done.lost);
        assert_eq!(counts, (4, 2, 0, 0), "{commit:?}");
        for seq in 1..=6 {
            assert_eq!(
                state(&bench, &engine, seq).await,
                EventState::Delivered,
                "{commit:?} {seq}"
            );
        }
        engine.shutdown().await;
    }
}

/// That the names of custom fields are not there is no event's doing, and says nothing of the receiver.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_names_has_no_attempt_counted_and_goes_when_they_come() {
    use crate::render::Names;
    for commit in [Commit::Acknowledge, Commit::Checkpoint, Commit::Transaction] {
        let receiver = Receiver::new();
        let made = Arc::new(Mutex::new(Vec::new()));
        let remembered = made.clone();
        receiver.says(move |delivery| {
            let payload = delivery.payload().unwrap().bytes().to_vec();
            lock(&remembered).push((
                delivery.event.seq.0,
                delivery.attempt,
                String::from_utf8(payload).unwrap(),
            ));
            Ok(Outcome::Delivered)
        });
        let mut bench = Bench::new(vec![sink_on(&receiver, commit)]);
        bench.sinks[0].program = Some(template("{{ data | named }}"));
        let engine = bench.engine(Mode::Follow).await;
        engine.inner.names.set(Names::unknown("nobody has fetched them"));
        let body = |seq: u64| {
            let data = if seq == 1 { "{}" } else { r#"{"custom.cf_1":1.50}"# };
            let body = format!(r#"{{"event":{{"id":"ev_{seq}","object_type":"lead","data":{data}}}}}"#);
            Incoming::new(body.into(), jiff::Timestamp::now(), Source::Webhook, None)
        };
        for stored in bench.log.append_in_order((1..=3).map(body).collect()).await {
            assert!(stored.is_ok());
        }
        until("it waits, and says for what", async || {
            let waits_for = status(&engine).waits_for.unwrap_or_default();
            waits_for.contains("nobody has fetched them")
        })
        .await;
        until("what wants no name has gone", async || lock(&made).len() == 1).await;
        let field = ("cf_1".to_owned(), "Price".to_owned());
        engine.inner.names.set(Names::new([("lead".to_owned(), [field])]));
        caught_up(&engine, 3).await;
        let mut made = lock(&made).clone();
        made.sort_unstable();
        let one = |seq: u64, text: &str| (seq, 1, text.to_owned());
        let wanted = [one(1, "{}"), one(2, r#"{"Price":1.50}"#), one(3, r#"{"Price":1.50}"#)];
        assert_eq!(made, wanted, "{commit:?}");
        assert_eq!((status(&engine).dead, status(&engine).retrying), (0, 0), "{commit:?}");
        engine.shutdown().await;
    }
}
