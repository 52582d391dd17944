//! Dead letters: made, kept, copied, erased.

use super::*;

/// G7: the copies are made when the log drops the events, and only then.
#[tokio::test(flavor = "multi_thread")]
async fn letters_are_copied_when_their_events_go_and_can_be_tried_again_then() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    let mut sinks = bench.sinks.clone();
    sinks[0].breaker.refusals = 10_000;
    let bench = Bench { sinks, ..bench };
    let engine = bench.engine(Mode::Follow).await;
    // Random, so that it fills segments.
    let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(3000).collect();
    for from in (1..=1000).step_by(10) {
        let pad: String = random.chars().cycle().skip(from as usize).take(2000).collect();
        bench.store_with(from..=from + 9, &pad).await;
    }
    until("all are dead", async || status(&engine).dead == 1000).await;
    let size = || std::fs::metadata(bench.dir.path().join("dead/a")).unwrap().len();
    let referring = size();
    assert!(referring < 1000 * 500, "{referring} bytes without copies");
    engine.secure_letters(Seq(501)).await.unwrap();
    assert!(size() > referring);
    let copied = size();
    engine.secure_letters(Seq(501)).await.unwrap();
    assert_eq!(size(), copied, "once is enough");
    let log: &dyn Log = &bench.log;
    let dropped = log.drop_before(Seq(501)).await.unwrap();
    assert!(dropped > Seq(1), "something was dropped");
    let (_, event) = engine.dead_get("a", Seq(1)).await.unwrap().unwrap();
    assert_eq!(event.unwrap().view().unwrap().id, "ev_1");
    receiver.says(|_| Ok(Outcome::Delivered));
    let all: Vec<Seq> = (1..=1000).map(Seq).collect();
    let asked = engine.dead_retry("a", all).await.unwrap();
    assert_eq!(settled(&asked).await, (1000, 1000, 0));
    assert_eq!(receiver.sorted(), (1..=1000).collect::<Vec<_>>());
    engine.shutdown().await;
}

/// G7: dead letters have a limit of their own.
#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_letters_go_when_there_are_too_many() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    bench.sinks[0].breaker.refusals = 10_000;
    bench.sinks[0].dead_max = crate::config::Size(20_000);
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=1000).await;
    caught_up(&engine, 1000).await;
    let letters = engine.dead_list(None, Seq::ZERO, usize::MAX).unwrap();
    assert!((20..200).contains(&letters.len()), "{}", letters.len());
    assert_eq!(letters.last().unwrap().seq, Seq(1000));
    assert_eq!(engine.dead_list(None, Seq::ZERO, 1).unwrap().len(), 1);
    // What is gone for good is counted, and stays so.
    assert_eq!(status(&engine).dropped, 1000 - letters.len() as u64);
    engine.dead_drop("a", &[Seq(1000)]).unwrap();
    engine.shutdown().await;
    let engine = bench.engine(Mode::Follow).await;
    assert_eq!(status(&engine).dropped, 1001 - letters.len() as u64);
    engine.shutdown().await;
}

/// A letter that was made right before a crash: the event is dead, and not delivered once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_whose_mark_was_not_saved_is_not_delivered_as_well() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.store(1..=5).await;
    std::fs::create_dir_all(bench.dir.path().join("dead")).unwrap();
    let letters = crate::deliver::letters::Letters::open(&bench.dir.path().join("dead"), "a", false).unwrap();
    let event = bench.log.get(Seq(3)).unwrap().unwrap();
    letters
        .add(&[crate::deliver::types::dead_letter("a", &event, "no".into(), 1, None)])
        .unwrap();
    drop(letters);
    let engine = bench.engine(Mode::Follow).await;
    caught_up(&engine, 5).await;
    assert_eq!(receiver.sorted(), [1, 2, 4, 5]);
    engine.shutdown().await;
}

/// Of what was erased while its letter was being tried no letter is made, and what waits is not tried.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_was_erased_while_it_was_tried_is_not_made_again() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].concurrency = Some(1);
    bench.sinks[0].breaker.refusals = 10_000;
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=20).await;
    until("all are dead", async || status(&engine).dead == 20).await;
    receiver.gate.send_replace(false);
    let asked = engine.dead_retry("a", (1..=20).map(Seq).collect()).await.unwrap();
    until("half of them run", async || status(&engine).in_flight == 10).await;
    let tried = Arc::new(Mutex::new(Vec::new()));
    let noted = tried.clone();
    receiver.says(move |delivery| {
        lock(&noted).push(delivery.event.seq.0);
        Ok(Outcome::Reject { reason: "still".into() })
    });
    let doomed = |event: &crate::event::Event| matches!(event.seq.0, 3 | 13);
    let log: &dyn Log = &bench.log;
    let erased = log
        .erase(crate::log::Narrow::default(), Arc::new(doomed))
        .await
        .unwrap();
    assert_eq!(erased.seqs, [Seq(3), Seq(13)]);
    let (dropped, left) = engine
        .dead_erase(std::collections::BTreeSet::new(), Some(erased.seqs))
        .await;
    assert_eq!((dropped, left), (2, Vec::new()));
    assert_eq!(asked.counts(), (20, 0, 1), "what waited is not tried");
    receiver.gate.send_replace(true);
    assert_eq!(settled(&asked).await, (20, 0, 20));
    assert_eq!(status(&engine).dead, 18);
    assert!(!lock(&tried).contains(&13));
    engine.shutdown().await;
}

/// The event may be in the log all the same, and was not delivered for that.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_letter_that_is_erased_without_its_event_it_stays_known_that_it_went() {
    let receiver = Receiver::new();
    let (bench, engine) = with_dead(&receiver, 3).await;
    assert_eq!(engine.dead_erase([Seq(2)].into(), None).await, (1, Vec::new()));
    let erased = engine.dead_erase([Seq(3)].into(), Some(Vec::new())).await;
    assert_eq!(erased, (1, Vec::new()));
    let check = async |engine: &Engine| {
        for seq in [2, 3] {
            let said = state(&bench, engine, seq).await;
            assert!(
                matches!(&said, EventState::Lost { reason } if reason.contains("was dropped")),
                "{seq}: {said:?}"
            );
        }
    };
    check(&engine).await;
    engine.shutdown().await;
    check(&bench.engine(Mode::Look).await).await;
}

/// A disk that hangs with one sink's letters: whoever erases is told so in time, and what that is.
#[tokio::test]
async fn letters_that_do_not_answer_are_left_and_named_when_somebody_is_erased() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    let engine = bench.engine(Mode::Follow).await;
    let letters = engine.letters_of("removed");
    letters.read().unwrap();
    let (begun, has_begun) = std::sync::mpsc::channel();
    let (release, is_released) = std::sync::mpsc::channel::<()>();
    let hanging = std::thread::spawn(move || {
        let _hangs = letters.hang();
        begun.send(()).unwrap();
        let _ = is_released.recv();
    });
    has_begun.recv().unwrap();
    tokio::time::pause();
    let asked = engine.clone();
    let asking = tokio::spawn(async move {
        asked
            .dead_erase(std::collections::BTreeSet::new(), Some(vec![Seq(1)]))
            .await
    });
    while !asking.is_finished() {
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
    }
    let (_, left) = asking.await.unwrap();
    let is_named = |left: &String| left.contains("dead/removed") && left.contains("does not answer");
    assert!(left.iter().any(is_named), "{left:?}");
    tokio::time::resume();
    drop(release);
    hanging.join().unwrap();
    let (_, left) = engine
        .dead_erase(std::collections::BTreeSet::new(), Some(vec![Seq(1)]))
        .await;
    assert_eq!(left, [""; 0]);
    engine.shutdown().await;
}

/// One sink's letters that can't be read hold up that sink and nobody else; when they can be, it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn letters_that_can_not_be_read_hold_up_their_sink_and_no_start() {
    let receivers = [Receiver::new(), Receiver::new()];
    let sinks = sinks_on(&receivers, Commit::Acknowledge);
    let bench = Bench::new(sinks);
    bench.store(1..=5).await;
    let dead = bench.dir.path().join("dead");
    std::fs::create_dir_all(&dead).unwrap();
    let event = bench.log.get(Seq(3)).unwrap().unwrap();
    let letters = crate::deliver::letters::Letters::open(&dead, "b", false).unwrap();
    letters
        .add(&[crate::deliver::types::dead_letter("b", &event, "no".into(), 1, None)])
        .unwrap();
    drop(letters);
    // A newer closehook's file.
    let good = std::fs::read(dead.join("b")).unwrap();
    let newer = crate::framefile::Format {
        magic: *b"CLHKDEAD",
        version: 9,
    };
    drop(crate::framefile::FrameFile::create(&dead.join("b"), newer).unwrap());
    let engine = bench.engine(Mode::Follow).await;
    until("the other sink has all", async || receivers[0].seqs().len() == 5).await;
    until("it says why it waits", async || {
        let sinks = engine.sinks();
        let waits_for = sinks[1].waits_for.as_deref().unwrap_or_default();
        waits_for.contains("dead letters") && waits_for.contains("run the newer version")
    })
    .await;
    assert!(
        engine.dead_list(Some("b"), Seq::ZERO, 9).is_err(),
        "an error is no absence"
    );
    assert!(engine.secure_letters(Seq(9)).await.is_err());
    assert!(receivers[1].seqs().is_empty());
    std::fs::write(dead.join("b"), good).unwrap();
    until("the other four are delivered", async || {
        receivers[1].sorted() == [1, 2, 4, 5]
    })
    .await;
    assert_eq!(engine.dead_list(Some("b"), Seq::ZERO, 9).unwrap().len(), 1);
    engine.shutdown().await;
}

/// What is erased goes out no more, although the sink had it in memory; and nothing of its letters is in any file.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_is_in_no_file_of_letters_and_is_not_delivered_any_more() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].breaker.refusals = 10_000;
    // Two are refused; the others wait, in memory, for a receiver that is not there.
    receiver.says(|delivery| match delivery.event.seq.0 {
        1..=2 => Ok(Outcome::Reject { reason: "no".into() }),
        _ => Err(Unavailable::new("nobody is there")),
    });
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=2).await;
    until("two are dead", async || status(&engine).dead == 2).await;
    bench.store(3..=6).await;
    until("the others were tried", async || {
        status(&engine).last_error.is_some_and(|why| why == "nobody is there")
    })
    .await;
    engine.pause("a", true).await.unwrap();
    until("nothing is under way", async || status(&engine).in_flight == 0).await;
    engine.secure_letters(Seq(3)).await.unwrap();
    assert_eq!(engine.dead_drop("a", &[Seq(2)]).unwrap(), 1);
    let file = || std::fs::read(bench.dir.path().join("dead/a")).unwrap();
    let holds = |name: &str| memchr::memmem::find(&file(), name.as_bytes()).is_some();
    assert!(holds("ev_1") && holds("ev_2"), "dropping gives no space back at once");
    let doomed = Arc::new(|event: &crate::event::Event| [1, 2, 4].contains(&event.seq.0));
    let log: &dyn Log = &bench.log;
    let erased = log.erase(crate::log::Narrow::default(), doomed).await.unwrap();
    assert_eq!(erased.seqs, [1, 2, 4].map(Seq));
    std::fs::write(bench.dir.path().join("dead/b.damaged"), "what was set aside").unwrap();
    let (count, left) = engine
        .dead_erase(std::collections::BTreeSet::new(), Some(erased.seqs))
        .await;
    assert_eq!(count, 1);
    assert!(left.len() == 1 && left[0].contains("b.damaged"), "{left:?}");
    assert!(!holds("ev_1") && !holds("ev_2"));
    receiver.says(|_| Ok(Outcome::Delivered));
    engine.pause("a", false).await.unwrap();
    caught_up(&engine, 6).await;
    assert_eq!(receiver.sorted(), [3, 5, 6]);
    engine.shutdown().await;
}

/// Whoever goes through many letters has a page of them in memory; that some go meanwhile ends nothing early.
#[tokio::test(flavor = "multi_thread")]
async fn letters_come_page_by_page() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    refuse(&receiver);
    bench.sinks[0].breaker.refusals = 10_000;
    let engine = bench.engine(Mode::Follow).await;
    bench.store(1..=7).await;
    caught_up(&engine, 7).await;
    let page = |from: u64| {
        let (letters, next) = engine.dead_page("a", Seq(from), 3, false).unwrap();
        let seqs = letters.iter().map(|letter| letter.seq.0).collect::<Vec<_>>();
        (seqs, next)
    };
    assert_eq!(page(0), (vec![1, 2, 3], Some(Seq(4))));
    engine.dead_drop("a", &[Seq(4), Seq(6)]).unwrap();
    assert_eq!(page(4), (vec![5, 7], None));
    assert_eq!(page(8), (Vec::new(), None));
    assert_eq!(engine.dead_sinks(None).unwrap(), ["a"]);
    engine.shutdown().await;
}

/// A disk that hangs under the dead letters holds up deliveries, and no order.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_dead_letters_that_takes_its_time_keeps_no_order_waiting() {
    for commit in [Commit::Acknowledge, Commit::Checkpoint] {
        let receiver = Receiver::new();
        let bench = Bench::new(vec![sink_on(&receiver, commit)]);
        let engine = bench.engine(Mode::Follow).await;
        receiver.says(|delivery| {
            Ok(match delivery.event.seq.0 {
                2 => Outcome::Reject { reason: "no".into() },
                _ => Outcome::Delivered,
            })
        });
        bench.store(1..=1).await;
        caught_up(&engine, 1).await;
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (holding, holds) = std::sync::mpsc::channel();
        let letters = engine.read_letters_of("a").await.unwrap();
        let holder = std::thread::spawn(move || {
            let disk = letters.hold();
            holding.send(()).unwrap();
            let _ = held.recv();
            drop(disk);
        });
        holds.recv().unwrap();
        bench.store(2..=3).await;
        until("it was handed out", async || {
            !receiver.seqs().is_empty() && receiver.opened.load(Ordering::SeqCst) > 0
        })
        .await;
        // Each is answered although nothing can be written.
        for paused in [true, false] {
            engine.pause("a", paused).await.unwrap();
        }
        release.send(()).unwrap();
        holder.join().unwrap();
        until("it is a dead letter, and the rest is delivered", async || {
            let status = status(&engine);
            status.dead == 1 && status.cursor == Seq(3)
        })
        .await;
        assert_eq!(receiver.sorted(), [1, 3], "{commit:?}");
        engine.shutdown().await;
    }
}

/// In the middle of a reload that brings a sink back, its letters are not forgotten under it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_a_reload_brings_back_is_not_forgotten_meanwhile() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    bench.store(1..=1).await;
    let engine = bench.engine(Mode::Follow).await;
    until("it is dead", async || status(&engine).dead == 1).await;
    let rules = engine.rules();
    engine.reload(rules.clone(), &[]).await.unwrap();
    let changing = engine.inner.changing.lock().await;
    let (forgetting, other) = (engine.clone(), engine.clone());
    let forgotten = tokio::spawn(async move { forgetting.forget("a").await });
    let sinks = bench.sinks.clone();
    // As a reload has it, before its worker begins.
    lock(&other.inner.configured).insert("a".to_owned());
    drop(changing);
    let refused = forgotten.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("in use"), "{refused}");
    engine.reload(rules, &sinks).await.unwrap();
    until("its letter is there", async || status(&engine).dead == 1).await;
    engine.shutdown().await;
}

/// Whatever a sink may keep by itself: all letters together have a part of what the data directory may take up.
#[tokio::test(flavor = "multi_thread")]
async fn letters_take_up_no_more_than_their_part_of_the_data_directory() {
    use crate::retention::Readers;
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    receiver.says(|_| Ok(Outcome::Reject { reason: "no".into() }));
    bench.sinks[0].breaker.refusals = 100_000;
    let engine = bench.engine(Mode::Follow).await;
    // Random, so that nothing of it can be left out.
    for from in (1..=2000).step_by(10) {
        let pad: String = std::iter::repeat_with(fastrand::alphanumeric).take(4000).collect();
        for id in from..from + 10 {
            bench.store_with(id..=id, &pad[id as usize % 50..]).await;
        }
    }
    until("all are dead", async || status(&engine).dead == 2000).await;
    let size = || std::fs::metadata(bench.dir.path().join("dead/a")).unwrap().len();
    engine.allow_letters(2 << 20);
    engine.secure_letters(Seq(2001)).await.unwrap();
    assert!(size() <= 3 << 20, "{} bytes", size());
    assert!(status(&engine).dead > 0 && status(&engine).dead < 2000);
    engine.shutdown().await;
}
