//! The model test of what lies behind the log: random lives of the real engine (log, store, workers, letters, retention) beside a
//! model that knows only the invariants. Receivers are simulated, so that each can fail in every way, and so is death: at a [`Gate`]
//! on every step between engine, log, store and receiver.
//!
//! A case is a list of [`Op`]s, drawn and shrunk by proptest. `CLOSEHOOK_TEST_LIVES=10000` runs more of them,
//! and `CLOSEHOOK_TEST_SEED` draws others; a failed case
//! is printed whole, smallest first, and becomes a test of its own in [`found`].
//!
//! [`Gate`]: world::Gate

mod case;
mod check;
mod found;
mod gated;
mod receivers;
mod starting;
mod world;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use case::{Deed, Op, run};
use world::Mood;

/// Cases in CI, and what they are drawn from.
const LIVES: u32 = 150;
const SEED: u32 = 1;

fn mood() -> impl Strategy<Value = Mood> {
    prop::sample::select(vec![
        Mood::Well,
        Mood::Retry,
        Mood::Reject,
        Mood::Picky,
        Mood::Unavailable,
        Mood::LostAnswer,
        Mood::Slow,
        Mood::Panic,
        Mood::BadSync,
    ])
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        3 => (1_u8..25, 0_u8..3).prop_map(|(count, lead)| Deed::Append { count, lead }),
        3 => (0_usize..3, mood(), 1_u8..10).prop_map(|(sink, mood, calls)| Deed::Feel { sink, mood, calls }),
        1 => (0_usize..3, any::<bool>()).prop_map(|(sink, paused)| Deed::Pause { sink, paused }),
        1 => (0_usize..3, any::<bool>()).prop_map(|(sink, retain)| Deed::Reload { sink, retain }),
        1 => (0_usize..3, 0_u8..100).prop_map(|(sink, from)| Deed::Replay { sink, from }),
        2 => (0_usize..3).prop_map(|sink| Deed::RetryDead { sink }),
        1 => (0_u8..3).prop_map(|lead| Deed::Erase { lead }),
        2 => Just(Deed::Retain),
        2 => (0_u8..100).prop_map(|share| Deed::Cap { share }),
        1 => (1_u8..6).prop_map(|reads| Deed::BadReads { reads }),
        1 => (0_u8..6, 0_u8..4).prop_map(|(reads, puts)| Deed::BadStore { reads, puts }),
        1 => (-3600_i32..3600).prop_map(|seconds| Deed::Clock { seconds }),
        2 => Just(Deed::Settle),
    ]
}

/// A sink that is kept busy for longer than anything may be unsynced: its receiver is slow, and there is always more to do.
fn busy() -> impl Strategy<Value = Vec<Op>> {
    // What is checkpointed most of all: the others have no checkpoint to miss.
    let sink = prop_oneof![4 => Just(1_usize), 1 => 0_usize..3];
    (sink, 6_u8..14, 40_u8..70, 0_u8..3).prop_map(|(sink, calls, count, lead)| {
        let mood = Mood::Slow;
        vec![
            Op::Do(Deed::Feel { sink, mood, calls }),
            Op::Do(Deed::Append { count, lead }),
            Op::Do(Deed::Work { sink }),
        ]
    })
}

/// A life in which some sinks' starts are never saved while they get nothing, and everything is too old when it ends or changes.
fn recordless() -> impl Strategy<Value = Vec<Op>> {
    let puts = 3_u8..16;
    let dead = prop::collection::vec(prop::bool::weighted(0.7), 3);
    let end = prop_oneof![
        3 => Just(Op::Restart { retain: true }),
        1 => (0_usize..3).prop_map(|sink| Op::Do(Deed::Reload { sink, retain: true })),
        1 => Just(Op::Do(Deed::Retain)),
    ];
    (puts, dead, prop::collection::vec(10_u8..25, 1..4), end).prop_map(|(puts, dead, appends, end)| {
        let mut ops = vec![Op::Do(Deed::BadStore { reads: 0, puts })];
        let mood = Mood::Unavailable;
        let dead = dead.into_iter().enumerate().filter(|(_, dead)| *dead);
        ops.extend(dead.map(|(sink, _)| Op::Do(Deed::Feel { sink, mood, calls: 60 })));
        ops.extend(appends.into_iter().map(|count| Op::Do(Deed::Append { count, lead: 0 })));
        ops.push(end);
        ops
    })
}

/// What is done in a case. What takes several deeds in a row to go wrong is drawn as a whole, else it would be rare.
fn ops() -> impl Strategy<Value = Vec<Op>> {
    let any = || prop::collection::vec(op(), 1..20);
    let joined = |parts: Vec<Vec<Op>>| parts.into_iter().flatten().collect::<Vec<Op>>();
    prop_oneof![
        4 => prop::collection::vec(op(), 1..30),
        1 => (any(), busy(), any()).prop_map(move |(before, busy, after)| joined(vec![before, busy, after])),
        1 => (recordless(), any()).prop_map(move |(first, rest)| joined(vec![first, rest])),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => deed().prop_map(Op::Do),
        2 => (deed(), 1_i64..40).prop_map(|(deed, steps)| Op::KillDuring { deed, steps }),
        1 => any::<bool>().prop_map(|retain| Op::Restart { retain }),
    ]
}

/// Lives that run side by side: most of each is waiting.
const ABREAST: u32 = 8;

fn number(variable: &str) -> Option<u32> {
    std::env::var(variable).ok().and_then(|number| number.parse().ok())
}

/// Draws and runs so many lives; how many were run, and what went wrong.
fn live(lives: u32, seed: u32, failed: &AtomicBool) -> (u32, Option<String>) {
    let config = Config {
        cases: lives,
        max_shrink_iters: 400,
        max_shrink_time: 240_000,
        failure_persistence: None,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let (mine, lived) = (Cell::new(false), Cell::new(0));
    let result = runner.run(&ops(), |ops| {
        // One failure is enough; whose it is makes it smaller.
        if failed.load(Ordering::Relaxed) && !mine.get() {
            return Ok(());
        }
        let ended = run(&ops);
        if !mine.get() {
            lived.set(lived.get() + 1);
        }
        ended.map_err(|why| {
            mine.set(true);
            failed.store(true, Ordering::Relaxed);
            TestCaseError::fail(why)
        })
    });
    (lived.get(), result.err().map(|error| error.to_string()))
}

/// Whatever is done to it, in whatever order, and wherever it dies.
#[test]
fn whatever_happens_every_event_ends_as_what_is_said_of_it() {
    let lives = number("CLOSEHOOK_TEST_LIVES").unwrap_or(LIVES);
    let seed = number("CLOSEHOOK_TEST_SEED").unwrap_or(SEED);
    let failed = AtomicBool::new(false);
    let ended: Vec<(u32, Option<String>)> = std::thread::scope(|scope| {
        let abreast = ABREAST.min(lives);
        let threads: Vec<_> = (0..abreast)
            .map(|n| {
                let share = lives / abreast + u32::from(n < lives % abreast);
                let failed = &failed;
                scope.spawn(move || live(share, seed.wrapping_mul(1000).wrapping_add(n), failed))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let lived: u32 = ended.iter().map(|(lived, _)| lived).sum();
    if let Some(error) = ended.into_iter().find_map(|(_, error)| error) {
        panic!("after {lived} lives: {error}");
    }
    assert_eq!(lived, lives);
}
