//! Cases that once failed, as the simulation found them.

use super::case::{Deed, Op, run};
use super::world::Mood;

const TRANS: usize = 2;

fn feel(sink: usize, mood: Mood, calls: u8) -> Op {
    Op::Do(Deed::Feel { sink, mood, calls })
}

fn append(count: u8) -> Op {
    Op::Do(Deed::Append { count, lead: 0 })
}

fn holds(ops: &[Op]) {
    if let Err(why) = run(ops) {
        panic!("{why}");
    }
}

/// The receiver has it, the answer was lost, and before the receiver can be asked the log is at its size limit.
#[test]
fn what_is_buried_while_a_commit_is_in_doubt_is_not_dead_when_it_was_committed() {
    holds(&[
        feel(TRANS, Mood::LostAnswer, 1),
        feel(TRANS, Mood::Unavailable, 60),
        append(24),
        append(24),
        append(24),
        Op::Do(Deed::Settle),
        Op::Do(Deed::Cap { share: 0 }),
        Op::Do(Deed::Settle),
    ]);
}

/// The same, with a kill between the lost answer and the receiver's.
#[test]
fn what_is_buried_after_a_restart_is_not_dead_when_the_receiver_has_it() {
    holds(&[
        append(24),
        append(24),
        Op::KillDuring {
            deed: Deed::Append { count: 24, lead: 1 },
            steps: 30,
        },
        feel(TRANS, Mood::Unavailable, 60),
        Op::Restart { retain: false },
        Op::Do(Deed::Cap { share: 0 }),
        Op::Do(Deed::Settle),
    ]);
}

/// A replay that began after the worker was forgotten when the receiver's mark was taken over, and began again after a restart.
#[test]
fn a_replay_whose_answer_was_lost_is_not_sent_twice() {
    holds(&[
        append(20),
        Op::Do(Deed::Settle),
        feel(TRANS, Mood::LostAnswer, 2),
        Op::Do(Deed::Replay { sink: TRANS, from: 0 }),
        Op::Do(Deed::Settle),
        Op::Restart { retain: false },
        Op::Do(Deed::Settle),
    ]);
}

/// A worker that had just begun did not seem to be paused: letters were asked for, and never tried.
#[test]
fn letters_of_a_sink_that_is_paused_since_the_last_life_are_not_waited_for() {
    holds(&[
        Op::Do(Deed::Pause { sink: 1, paused: true }),
        append(24),
        append(24),
        Op::Do(Deed::Cap { share: 0 }),
        Op::Restart { retain: false },
        Op::Do(Deed::RetryDead { sink: 1 }),
    ]);
}

/// A position that could not be read for a moment was taken for a damaged one, and overwritten.
#[test]
fn a_position_that_can_not_be_read_for_a_moment_is_still_there() {
    holds(&[
        append(24),
        Op::Do(Deed::Settle),
        Op::Do(Deed::Retain),
        Op::Do(Deed::BadStore { reads: 2, puts: 0 }),
        Op::Do(Deed::Reload { sink: 1, retain: false }),
        Op::Do(Deed::BadStore { reads: 2, puts: 0 }),
        Op::Do(Deed::Reload {
            sink: TRANS,
            retain: false,
        }),
        Op::Do(Deed::Settle),
    ]);
}

/// A sink whose start could not be saved has no record, and while it stopped it counted as nothing to keep.
#[test]
fn a_sink_that_stops_before_anything_of_it_was_saved_keeps_the_log() {
    holds(&[
        Op::Do(Deed::BadStore { reads: 0, puts: 9 }),
        feel(0, Mood::Unavailable, 40),
        feel(1, Mood::Unavailable, 40),
        append(24),
        append(24),
        Op::Restart { retain: true },
        Op::Do(Deed::Settle),
    ]);
}
