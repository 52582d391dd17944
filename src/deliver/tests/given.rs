//! What other sinks gave up, and what may come between.

use super::diverting::{COMMITS, bench_of, named, states_of, status_of, takes_notes};
use super::*;
use crate::deliver::letters::Letters;

/// The first sends what it gives up to the second, that to the third; those two get nothing else.
fn chain_of(receivers: &[Arc<Receiver>; 3]) -> Bench {
    let mut bench = bench_of(&receivers[0], &receivers[1], Commit::Checkpoint);
    bench.sinks[1].dead_to = Some("c".into());
    bench.sinks[1].breaker.refusals = 1_000_000;
    bench.sinks.push(named(&receivers[2], Commit::Checkpoint, "c", None));
    let rules = RuleSet::compile(&[], &["a", "b", "c"]).unwrap();
    bench.rules = Arc::new(rules.naming_only(["b", "c"]));
    bench
}

/// Stores events that fill segments, of which the first twenty can be dropped.
async fn store_much(bench: &Bench) {
    for id in 1..=60 {
        let pad: String = std::iter::repeat_with(fastrand::alphanumeric).take(8000).collect();
        bench.store_with(id..=id, &pad).await;
    }
}

/// Keeps what letters need of the first twenty, and has the log drop them.
async fn drop_twenty(bench: &Bench, engine: &Engine) {
    engine.secure_letters(Seq(61)).await.unwrap();
    let log: &dyn Log = &bench.log;
    let first = log.drop_before(Seq(61)).await.unwrap();
    assert!(first > Seq(20), "{first}");
}

/// Up to the twentieth they are refused.
fn refuse_twenty(receiver: &Receiver) {
    receiver.says(|delivery| {
        let reason = "no".into();
        Ok(if delivery.event.seq.0 <= 20 {
            Outcome::Reject { reason }
        } else {
            Outcome::Delivered
        })
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_for_a_letter_goes_along_with_it_from_sink_to_sink() {
    let receivers = [Receiver::new(), Receiver::new(), Receiver::new()];
    refuse_twenty(&receivers[0]);
    receivers[1].says(|_| Err(Unavailable::new("it is closed")));
    let told = takes_notes(&receivers[2]);
    let bench = chain_of(&receivers);
    let engine = bench.engine(Mode::Follow).await;
    store_much(&bench).await;
    until("all wait at the second", async || status_of(&engine, "b").given == 20).await;
    durable(&engine, 60).await;
    let event = bench.log.get(Seq(9)).unwrap().unwrap();
    drop_twenty(&bench, &engine).await;
    refuse(&receivers[1]);
    until("the second has none", async || {
        status_of(&engine, "b").given == 0 && status_of(&engine, "c").given == 0
    })
    .await;
    let states: Vec<EventState> = engine.event_states(&event).await.into_values().collect();
    assert_eq!(
        states,
        [EventState::Diverted, EventState::Diverted, EventState::Delivered]
    );
    assert_eq!(receivers[2].sorted(), (1..=20).collect::<Vec<_>>());
    assert_eq!(lock(&told).len(), 20);
    engine.shutdown().await;
}

/// Flips a byte near the end of a file: in the frame that was written last.
fn damage_end(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() - 20;
    bytes[at] ^= 0xff;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_and_is_gone_is_lost_there_and_said_so() {
    for commit in COMMITS {
        let (first, second) = (Receiver::new(), Receiver::new());
        first.says(|delivery| {
            let reason = "no".into();
            Ok(if delivery.event.seq.0 == 9 {
                Outcome::Reject { reason }
            } else {
                Outcome::Delivered
            })
        });
        second.says(|_| Err(Unavailable::new("it is closed")));
        let bench = bench_of(&first, &second, commit);
        let engine = bench.engine(Mode::Follow).await;
        store_much(&bench).await;
        until("one waits at the second", async || status_of(&engine, "b").given == 1).await;
        durable(&engine, 60).await;
        let event = bench.log.get(Seq(9)).unwrap().unwrap();
        drop_twenty(&bench, &engine).await;
        engine.shutdown().await;
        damage_end(&bench.dir.path().join("dead/b"));
        let told = takes_notes(&second);
        let engine = bench.engine(Mode::Follow).await;
        until("it is known to be gone", async || status_of(&engine, "b").given == 0).await;
        assert_eq!(status_of(&engine, "b").lost, 1, "{commit:?}");
        let states: Vec<EventState> = engine.event_states(&event).await.into_values().collect();
        assert!(
            matches!(&states[..], [EventState::Diverted, EventState::Lost { .. }]),
            "{states:?}"
        );
        assert!(lock(&told).is_empty());
        engine.shutdown().await;
        let engine = bench.engine(Mode::Follow).await;
        until("it is known after a restart", async || {
            status_of(&engine, "b").lost == 1
        })
        .await;
        engine.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_at_a_sink_that_is_removed_is_shown_and_delivered_when_that_comes_back() {
    let (first, second) = (Receiver::new(), Receiver::new());
    refuse(&first);
    second.says(|_| Err(Unavailable::new("it is closed")));
    let bench = bench_of(&first, &second, Commit::Acknowledge);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=5).await;
    until("all wait there", async || status_of(&engine, "b").given == 5).await;
    durable(&engine, 5).await;
    let alone = [named(&first, Commit::Acknowledge, "a", None)];
    engine.reload(bench.rules.clone(), &alone).await.unwrap();
    let shown = engine.dead_list(None, Seq::ZERO, 99).unwrap();
    assert_eq!(shown.len(), 5);
    assert!(shown.iter().all(|letter| letter.sink == "b" && letter.reason == "no"));
    let (page, _) = engine.dead_page("b", Seq::ZERO, 99, false).unwrap();
    assert_eq!(page.len(), 5);
    assert_eq!(engine.stranded(), [("b".to_owned(), 5)].into());
    second.says(|_| Ok(Outcome::Delivered));
    engine.reload(bench.rules.clone(), &bench.sinks).await.unwrap();
    until("all are there", async || status_of(&engine, "b").given == 0).await;
    assert_eq!(second.sorted(), [1, 2, 3, 4, 5]);
    assert!(engine.dead_list(None, Seq::ZERO, 99).unwrap().is_empty() && engine.stranded().is_empty());
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_letter_that_was_dropped_costs_no_delivery_of_the_sink_s_own() {
    let (first, second) = (Receiver::new(), Receiver::new());
    refuse(&first);
    let mut bench = bench_of(&first, &second, Commit::Acknowledge);
    bench.rules = Arc::new(RuleSet::compile(&[], &["a", "b"]).unwrap());
    bench.sinks[1].dead_max = crate::config::Size(2000);
    let engine = bench.engine(Mode::Follow).await;
    engine.pause("b", true).await.unwrap();
    bench.store(1..=100).await;
    until("all went there", async || status_of(&engine, "a").diverted == 100).await;
    assert!(status_of(&engine, "b").given < 50, "the oldest were dropped");
    // Written anew it says the same.
    engine.letters_of("b").scrub(&|| ()).unwrap();
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    engine.pause("b", false).await.unwrap();
    until("it has passed all", async || status_of(&engine, "b").cursor == Seq(100)).await;
    let mut has = second.sorted();
    has.dedup();
    assert_eq!(has, (1..=100).collect::<Vec<_>>());
    assert_eq!(states_of(&bench, &engine, 1).await[1], EventState::Delivered);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_letter_that_was_dropped_and_that_no_rule_sends_there_is_said_to_be_lost() {
    let (first, second) = (Receiver::new(), Receiver::new());
    refuse(&first);
    let mut bench = bench_of(&first, &second, Commit::Acknowledge);
    bench.sinks[1].dead_max = crate::config::Size(2000);
    let engine = bench.engine(Mode::Follow).await;
    engine.pause("b", true).await.unwrap();
    bench.store(1..=100).await;
    until("all went there", async || status_of(&engine, "a").diverted == 100).await;
    let is_lost = |state: &EventState| matches!(state, EventState::Lost { reason } if reason.contains("dead_max"));
    assert!(is_lost(&states_of(&bench, &engine, 1).await[1]));
    engine.pause("b", false).await.unwrap();
    until("it has passed all", async || status_of(&engine, "b").lag_events == 0).await;
    assert!(is_lost(&states_of(&bench, &engine, 1).await[1]));
    engine.shutdown().await;
}

/// The disk fails between the two files, and then the receiver takes the event after all.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_by_half_is_delivered_by_one_of_the_two() {
    let (first, second) = (Receiver::new(), Receiver::new());
    let bench = bench_of(&first, &second, Commit::Acknowledge);
    let engine = bench.engine(Mode::Follow).await;
    let failing = engine.letters_of("a");
    failing.fail_at(Some("divert"));
    let tried = AtomicU64::new(0);
    first.says(move |_| {
        if tried.fetch_add(1, Ordering::SeqCst) == 0 {
            return Ok(Outcome::Reject { reason: "no".into() });
        }
        failing.fail_at(None);
        Ok(Outcome::Delivered)
    });
    bench.store(1..=1).await;
    until("the first has it after all", async || first.seqs() == [1]).await;
    until("and is done", async || status_of(&engine, "a").cursor == Seq(1)).await;
    assert_eq!(status_of(&engine, "b").given, 0);
    durable(&engine, 1).await;
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    bench.store(2..=2).await;
    until("both go on", async || {
        status_of(&engine, "a").cursor == Seq(2) && status_of(&engine, "b").lag_events == 0
    })
    .await;
    assert_eq!(
        states_of(&bench, &engine, 1).await,
        [EventState::Delivered, EventState::NotRouted]
    );
    assert_eq!(second.seqs(), [0; 0]);
    engine.shutdown().await;
}

/// And where that can't be taken back either, it is not the first's to deliver any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_taken_back_is_not_delivered_where_it_was_given_up() {
    let (first, second) = (Receiver::new(), Receiver::new());
    let bench = bench_of(&first, &second, Commit::Acknowledge);
    let engine = bench.engine(Mode::Follow).await;
    let (own, others) = (engine.letters_of("a"), engine.letters_of("b"));
    own.fail_at(Some("divert"));
    others.fail_at(Some("remove"));
    let tried = AtomicU64::new(0);
    first.says(move |_| {
        Ok(if tried.fetch_add(1, Ordering::SeqCst) == 0 {
            Outcome::Reject { reason: "no".into() }
        } else {
            Outcome::Delivered
        })
    });
    bench.store(1..=1).await;
    until("the disk failed", async || {
        let error = status_of(&engine, "a").last_error;
        error.is_some_and(|error| error.contains("could not be stored"))
    })
    .await;
    own.fail_at(None);
    others.fail_at(None);
    until("the second has it", async || second.seqs() == [1]).await;
    until("the first is done", async || status_of(&engine, "a").cursor == Seq(1)).await;
    bench.store(2..=2).await;
    until("it goes on", async || first.seqs() == [2]).await;
    assert_eq!(
        states_of(&bench, &engine, 1).await,
        [EventState::Diverted, EventState::Delivered]
    );
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_waits_until_a_batch_of_it_is_full() {
    let (first, second) = (Receiver::new(), Receiver::new());
    refuse(&first);
    let mut bench = bench_of(&first, &second, Commit::Acknowledge);
    bench.sinks[1].options = Arc::new(waits(&second, Duration::from_secs(3600), 20));
    let engine = bench.engine(Mode::Follow).await;
    for id in 1..=20 {
        bench.store(id..=id).await;
        until("it is there", async || status_of(&engine, "a").diverted == id).await;
    }
    until("all are delivered", async || second.seqs().len() == 20).await;
    assert_eq!(second.calls.load(Ordering::SeqCst), 1);
    // One more waits, and not for ever.
    bench.store(21..=21).await;
    until("one more waits", async || status_of(&engine, "b").given == 1).await;
    bench.sinks[1].options = Arc::new(waits(&second, Duration::from_secs(1), 20));
    bench.sinks[1].timeout = Span::secs(19);
    engine.reload(bench.rules.clone(), &bench.sinks).await.unwrap();
    until("it is delivered", async || second.seqs().len() == 21).await;
    engine.shutdown().await;
}

/// A sink whose batches wait so long for so many.
fn waits(receiver: &Arc<Receiver>, wait: Duration, events: usize) -> Kind {
    Kind {
        receiver: receiver.clone(),
        drive: Drive {
            batch: Limits {
                events,
                bytes: 1 << 20,
                wait,
            },
            concurrency: 1,
            commit: Commit::Acknowledge,
        },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_at_a_dead_to_is_as_old_as_it_has_waited() {
    let (first, second) = (Receiver::new(), Receiver::new());
    refuse(&first);
    let bench = bench_of(&first, &second, Commit::Acknowledge);
    let engine = bench.engine(Mode::Follow).await;
    engine.pause("b", true).await.unwrap();
    bench.store(1..=5).await;
    until("all wait there", async || status_of(&engine, "b").given == 5).await;
    let age = || status_of(&engine, "b").lag_seconds;
    until("that takes time", async || age() > 0.0).await;
    let before = age();
    until("it grows", async || age() > before).await;
    engine.shutdown().await;
    let engine = bench.engine(Mode::Look).await;
    assert!(status_of(&engine, "b").lag_seconds > 0.0, "also without a daemon");
    engine.shutdown().await;
}

/// Its tries count from start to start.
#[tokio::test(flavor = "multi_thread")]
async fn tries_of_what_was_given_outlast_a_restart() {
    for commit in COMMITS {
        let (first, second) = (Receiver::new(), Receiver::new());
        refuse(&first);
        second.says(|_| {
            Ok(Outcome::Retry {
                reason: "busy".into(),
                after: None,
            })
        });
        let bench = bench_of(&first, &second, commit);
        let engine = bench.engine(Mode::Follow).await;
        bench.store(1..=1).await;
        let attempts = async || match states_of(&bench, &engine, 1).await[1] {
            EventState::Retrying { attempts, .. } => attempts,
            _ => 0,
        };
        until("it was tried", async || attempts().await >= 3).await;
        durable(&engine, 1).await;
        engine.shutdown().await;
        refuse(&second);
        let engine = bench.engine(Mode::Follow).await;
        until("it is dead there", async || status_of(&engine, "b").dead == 1).await;
        let letter = engine.dead_list(None, Seq::ZERO, 9).unwrap().remove(0);
        assert!(letter.attempts >= 4, "{commit:?}: {letter:?}");
        assert!(letter.first_attempt.unwrap() < letter.died_at);
        engine.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_is_given_up_when_the_sink_takes_nothing_for_too_long() {
    for commit in COMMITS {
        let (first, second) = (Receiver::new(), Receiver::new());
        refuse(&first);
        second.says(|_| Err(Unavailable::new("it is closed")));
        let mut bench = bench_of(&first, &second, commit);
        bench.sinks[1].retry.max_age = Span(Duration::from_millis(50));
        let engine = bench.engine(Mode::Follow).await;
        bench.store(1..=3).await;
        until("they are dead there", async || status_of(&engine, "b").dead == 3).await;
        assert_eq!(status_of(&engine, "b").given, 0);
        let letter = engine.dead_list(None, Seq::ZERO, 9).unwrap().remove(0);
        assert!(letter.reason.contains("it is closed"), "{letter:?}");
        assert_eq!(letter.dead.map(|dead| dead.sink).as_deref(), Some("a"));
        assert!(matches!(
            states_of(&bench, &engine, 2).await[1],
            EventState::Dead { .. }
        ));
        engine.shutdown().await;
    }
}

/// Privacy: what was erased while it was handed over is not in what the sink gathers.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_and_erased_is_not_among_what_is_gathered() {
    let (first, second) = (Receiver::new(), Receiver::new());
    refuse(&first);
    *lock(&second.gather) = Some(crate::sinks::Gather {
        events: 100_000,
        bytes: 1 << 30,
        wait: Duration::from_secs(3600),
    });
    let bench = bench_of(&first, &second, Commit::Checkpoint);
    let engine = bench.engine(Mode::Follow).await;
    engine.pause("b", true).await.unwrap();
    bench.store(1..=9).await;
    until("all wait there", async || status_of(&engine, "b").given == 9).await;
    engine.pause("b", false).await.unwrap();
    second.gate.send_replace(false);
    until("a call runs", async || status_of(&engine, "b").in_flight == 9).await;
    durable(&engine, 9).await;
    let erased = crate::log::Log::erase(
        &bench.log,
        crate::log::Narrow::default(),
        Arc::new(|event| event.seq == Seq(5)),
    )
    .await;
    assert_eq!(erased.unwrap().seqs, [Seq(5)]);
    let ask = engine.dead_erase(std::collections::BTreeSet::new(), Some(vec![Seq(5)]));
    tokio::pin!(ask);
    assert!(futures::poll!(&mut ask).is_pending());
    second.gate.send_replace(true);
    let (_, left) = ask.await;
    assert_eq!(left, [""; 0]);
    until("the rest is gathered", async || second.seqs().len() == 8).await;
    engine.shutdown().await;
    assert_eq!(second.sorted(), [1, 2, 3, 4, 6, 7, 8, 9]);
    assert_eq!(second.synced.load(Ordering::SeqCst), 8);
}

/// Privacy: the log has dropped these long ago, so only the letters say whose they are.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_erased_and_was_kept_only_for_its_letter_is_not_delivered_any_more() {
    for commit in COMMITS {
        let (first, second) = (Receiver::new(), Receiver::new());
        refuse_twenty(&first);
        second.says(|_| Err(Unavailable::new("it is closed")));
        let bench = bench_of(&first, &second, commit);
        let engine = bench.engine(Mode::Follow).await;
        engine.pause("b", true).await.unwrap();
        store_much(&bench).await;
        until("all wait there", async || status_of(&engine, "b").given == 20).await;
        engine.pause("b", false).await.unwrap();
        until("some are in memory", async || second.calls.load(Ordering::SeqCst) > 0).await;
        durable(&engine, 60).await;
        drop_twenty(&bench, &engine).await;
        let (count, left) = engine.dead_erase([Seq(3), Seq(9)].into(), Some(Vec::new())).await;
        assert_eq!((count, left), (2, Vec::new()));
        second.says(|_| Ok(Outcome::Delivered));
        until("the rest is there", async || status_of(&engine, "b").given == 0).await;
        let rest: Vec<u64> = (1..=20).filter(|seq| ![3, 9].contains(seq)).collect();
        until("and no more", async || second.sorted() == rest).await;
        engine.shutdown().await;
        assert_eq!(second.sorted(), rest, "{commit:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_takes_no_letter_that_was_made_since() {
    let (first, second) = (Receiver::new(), Receiver::new());
    refuse(&first);
    second.says(|_| Err(Unavailable::new("it is closed")));
    let mut bench = bench_of(&first, &second, Commit::Acknowledge);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=1).await;
    until("it waits there", async || status_of(&engine, "b").given == 1).await;
    durable(&engine, 1).await;
    bench.sinks[0].dead_to = None;
    engine.reload(bench.rules.clone(), &bench.sinks).await.unwrap();
    let id = replay(&engine, 1, 1).await;
    replay_done(&engine, &id).await;
    assert_eq!(status_of(&engine, "a").dead, 1);
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    assert_eq!(status_of(&engine, "a").dead, 1, "somebody has to see it");
    assert_eq!(status_of(&engine, "b").given, 1);
    engine.shutdown().await;
}

/// `dead_to` was turned round since, and a crash came in between: the letter is in both lists.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_the_direction_was_turned_leaves_one_letter() {
    for is_old in [false, true] {
        let (first, second) = (Receiver::new(), Receiver::new());
        let mut bench = bench_of(&first, &second, Commit::Acknowledge);
        bench.sinks[0].dead_to = None;
        bench.sinks[1].dead_to = Some("a".into());
        let rules = RuleSet::compile(&[], &["a", "b"]).unwrap();
        bench.rules = Arc::new(rules.naming_only(["a", "b"]));
        bench.store(1..=1).await;
        let dir = bench.dir.path().join("dead");
        let open = |sink| Letters::open(&dir, sink, false).unwrap();
        let (own, others) = (open("a"), open("b"));
        let event = bench.log.get(Seq(1)).unwrap().unwrap();
        let letter = |sink| crate::deliver::types::dead_letter(sink, &event, "no".into(), 4, None);
        others.give(&[letter("a").given_to("b")], 0).unwrap();
        own.divert(&[Seq(1)], None).unwrap();
        if !is_old {
            others.release(&[Seq(1)]);
        }
        own.give(&[letter("b").given_to("a")], 0).unwrap();
        drop((own, others));
        let engine = bench.engine(Mode::Follow).await;
        let has = || first.seqs().len() + second.seqs().len();
        until("one has it", async || has() > 0).await;
        until("both are done", async || {
            status_of(&engine, "a").given + status_of(&engine, "b").given == 0
        })
        .await;
        assert_eq!(has(), 1);
        engine.shutdown().await;
    }
}

/// Of a letter that was given and diverted while a copy is made, the copy has the one or the other, or both.
#[tokio::test(flavor = "multi_thread")]
async fn a_picture_takes_the_letters_of_who_gives_before_those_of_who_gets() {
    let receiver = Receiver::new();
    let names = ["s5", "s3", "s1", "s4", "s2", "s6"];
    let sinks = names.iter().enumerate();
    let sinks = sinks.map(|(at, name)| named(&receiver, Commit::Acknowledge, name, names.get(at + 1).copied()));
    let bench = Bench::new(sinks.collect());
    bench.store(1..=1).await;
    let event = bench.log.get(Seq(1)).unwrap().unwrap();
    for name in names.iter().chain(&["removed"]) {
        let letters = Letters::open(&bench.dir.path().join("dead"), name, false).unwrap();
        let letter = crate::deliver::types::dead_letter(name, &event, "no".into(), 1, None);
        letters.add(&[letter]).unwrap();
    }
    let engine = bench.engine(Mode::Follow).await;
    let picture = engine.picture().await.unwrap();
    let taken = picture
        .dead
        .iter()
        .map(|(path, ..)| path.file_name().unwrap().to_str().unwrap());
    let taken: Vec<&str> = taken.filter(|name| *name != "removed").collect();
    assert_eq!(taken, names);
    assert_eq!(picture.dead.len(), 7);
    engine.shutdown().await;
}
