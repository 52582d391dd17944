//! When events arrived, told by a clock that nobody sets. Pure.
//!
//! An event says by the machine's clock when it was received, and that clock may be set meanwhile. A sink that waits for a span after that
//! must neither wait as much longer, nor go early by as much. So a worker notes, whenever it looks, how far the log was, by
//! [`schedule::now`](super::schedule::now)'s clock: what came between two looks arrived between them, whatever the event says. Looks that
//! lie close together count as one, so that little has to be remembered. Only of what was there before the worker began nothing is known
//! but what the event says, and that it had arrived by then.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

use crate::event::Seq;

/// Looks within this part of the span count as one.
const PARTS: i32 = 256;

/// Events up to `head` that are behind the mark before it arrived between these.
#[derive(Debug, Clone, Copy)]
struct Mark {
    head: Seq,
    from: Timestamp,
    upto: Timestamp,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Arrivals {
    span: SignedDuration,
    /// The newest is last; never empty.
    marks: VecDeque<Mark>,
    looked: Timestamp,
}

impl Arrivals {
    /// For a sink that waits for `span`; the log ends at `head` now.
    pub fn new(span: SignedDuration, head: Seq, now: Timestamp) -> Arrivals {
        let before = Mark {
            head,
            from: Timestamp::MIN,
            upto: now,
        };
        Arrivals {
            span,
            marks: [before].into(),
            looked: now,
        }
    }

    /// The log ends at `head` now.
    pub fn look(&mut self, head: Seq, now: Timestamp) {
        let from = self.looked;
        self.looked = now;
        let is_news = self.marks.back().is_none_or(|mark| mark.head < head);
        if !is_news {
            return;
        }
        match self.marks.back_mut() {
            Some(mark) if now.duration_since(mark.from) < self.span / PARTS => {
                mark.head = head;
                mark.upto = now;
            }
            _ => self.marks.push_back(Mark { head, from, upto: now }),
        }
        // What has waited for all of the span needs no mark of its own.
        while self.marks.len() > 1 && now.duration_since(self.marks[0].upto) > self.span {
            self.marks.pop_front();
        }
    }

    /// When an event arrived, by the clock of `now`, where the machine's shows `wall` at this moment.
    pub fn arrived(&self, seq: Seq, received_at: Timestamp, now: Timestamp, wall: Timestamp) -> Timestamp {
        let said = received_at.checked_add(now.duration_since(wall)).unwrap_or(now);
        let at = self.marks.partition_point(|mark| mark.head < seq);
        let (from, upto) = match self.marks.get(at) {
            // A mark that went has left its events to the next one.
            Some(mark) if at == 0 => (Timestamp::MIN, mark.upto),
            Some(mark) => (mark.from, mark.upto),
            None => (self.looked, now),
        };
        said.max(from).min(upto.max(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: SignedDuration = SignedDuration::from_secs(600);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn it_is_what_the_event_says_while_nobody_sets_the_clock() {
        let mut arrivals = Arrivals::new(SPAN, Seq(5), at(100));
        arrivals.look(Seq(5), at(130));
        arrivals.look(Seq(9), at(140));
        let arrived = |seq, second| arrivals.arrived(Seq(seq), at(second), at(150), at(150));
        assert_eq!((arrived(3, 20), arrived(8, 134)), (at(20), at(134)));
        assert_eq!(arrived(12, 149), at(149), "not seen yet when it was looked last");
    }

    #[test]
    fn a_clock_that_is_set_back_keeps_nothing_waiting_and_one_set_forward_lets_nothing_go_early() {
        let mut arrivals = Arrivals::new(SPAN, Seq(5), at(100));
        for (seq, second) in (6..).zip(101..200) {
            arrivals.look(Seq(seq), at(second));
        }
        // An hour back: by it what came before has not happened yet.
        let back = at(200 - 3600);
        for (seq, received) in [(3, 90), (20, 115), (60, 155)] {
            let arrived = arrivals.arrived(Seq(seq), at(received), at(200), back);
            assert!(arrived <= at(200), "{seq} would wait longer than the span");
            assert!(arrived <= at(received.max(100) + 3), "{seq}: {arrived}");
        }
        let forward = at(200 + 3600);
        for (seq, received) in [(20, 115), (60, 155)] {
            let arrived = arrivals.arrived(Seq(seq), at(received), at(200), forward);
            assert!(arrived >= at(received - 3), "{seq} would go early: {arrived}");
        }
    }

    #[test]
    fn however_long_it_is_looked_little_is_remembered() {
        let mut arrivals = Arrivals::new(SPAN, Seq(0), at(0));
        for (seq, second) in (1..).zip(1..20_000) {
            arrivals.look(Seq(seq), at(second));
            assert!(arrivals.marks.len() <= 2 * PARTS as usize + 3);
        }
        let arrived = arrivals.arrived(Seq(19_900), at(19_900), at(20_000), at(0));
        assert!((arrived.duration_since(at(19_900))).abs() <= SPAN / PARTS * 2);
    }
}
