//! The model test of what lies behind the log: random lives of the real engine (log, store, workers, letters, retention) beside a
//! model that knows only the invariants. Receivers are simulated, so that each can fail in every way, and so is death: at a [`Gate`]
//! on every step between engine, log, store and receiver.
//!
//! A case is a list of [`Op`]s, drawn and shrunk by proptest. `CLOSEHOOK_TEST_LIVES=10000` runs more of them; a failed case
//! is printed whole, smallest first, and becomes a test of its own in [`found`].
//!
//! [`Gate`]: world::Gate

mod case;
mod check;
mod found;
mod gated;
mod receivers;
mod world;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use case::{Deed, Op, run};
use world::Mood;

/// Cases in CI.
const LIVES: u32 = 150;

fn mood() -> impl Strategy<Value = Mood> {
    prop::sample::select(vec![
        Mood::Well,
        Mood::Retry,
        Mood::Reject,
        Mood::Picky,
        Mood::Unavailable,
        Mood::LostAnswer,
        Mood::Panic,
        Mood::BadSync,
    ])
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        3 => (1_u8..25, 0_u8..3).prop_map(|(count, lead)| Deed::Append { count, lead }),
        3 => (0_usize..3, mood(), 1_u8..8).prop_map(|(sink, mood, calls)| Deed::Feel { sink, mood, calls }),
        1 => (0_usize..3, any::<bool>()).prop_map(|(sink, paused)| Deed::Pause { sink, paused }),
        1 => (0_usize..3).prop_map(|sink| Deed::Reload { sink }),
        1 => (0_usize..3, 0_u8..100).prop_map(|(sink, from)| Deed::Replay { sink, from }),
        2 => (0_usize..3).prop_map(|sink| Deed::RetryDead { sink }),
        1 => (0_u8..3).prop_map(|lead| Deed::Erase { lead }),
        2 => Just(Deed::Retain),
        2 => (0_u8..100).prop_map(|share| Deed::Cap { share }),
        1 => (1_u8..6).prop_map(|reads| Deed::BadReads { reads }),
        1 => (-3600_i32..3600).prop_map(|seconds| Deed::Clock { seconds }),
        2 => Just(Deed::Settle),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => deed().prop_map(Op::Do),
        2 => (deed(), 1_i64..40).prop_map(|(deed, steps)| Op::KillDuring { deed, steps }),
        1 => Just(Op::Restart),
    ]
}

/// Whatever is done to it, in whatever order, and wherever it dies.
#[test]
fn whatever_happens_every_event_ends_as_what_is_said_of_it() {
    let lives = std::env::var("CLOSEHOOK_TEST_LIVES")
        .ok()
        .and_then(|lives| lives.parse().ok());
    let config = Config {
        cases: lives.unwrap_or(LIVES),
        max_shrink_iters: 400,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let ops = prop::collection::vec(op(), 1..30);
    if let Err(error) = runner.run(&ops, |ops| run(&ops).map_err(TestCaseError::fail)) {
        panic!("{error}");
    }
}
