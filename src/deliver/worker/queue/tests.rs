use std::sync::Arc;

use jiff::Timestamp;

use super::*;
use crate::deliver::types::RetryProgress;

fn progress(total: usize) -> Arc<RetryProgress> {
    Arc::new(RetryProgress::new(total as u64))
}

fn each(seqs: impl IntoIterator<Item = u64>, progress: &Arc<RetryProgress>) -> Vec<(Seq, Waiter)> {
    Waiter::each(seqs.into_iter().map(Seq).collect(), progress)
}

/// An event that is held as what is read to be delivered is.
fn held(queue: &Queue, seq: u64, len: usize) -> Held {
    let (source, kind) = (crate::event::Source::Webhook, crate::event::Kind::Event);
    let body = vec![b'x'; len];
    let event = crate::event::Event::new(Seq(seq), Timestamp::UNIX_EPOCH, source, kind, None, body.into());
    queue.memory.hold(&Arc::new(event))
}

/// G9
#[test]
fn letters_that_are_tried_count_in_the_memory_of_all_and_keep_to_their_share() {
    let mut queue = Queue::default();
    let others = queue.memory.clone();
    let free = others.share();
    let asked = progress(2000);
    queue.ask(each(1..=2000, &asked));
    let mut bytes = 0;
    while queue.is_ready() {
        let seq = queue.next().expect("less than all of them fits").0;
        let held = held(&queue, seq, 60_000);
        bytes += held.weight();
        queue.started(held);
    }
    assert_eq!(others.share(), free - bytes);
    assert!(bytes >= free / 2 && bytes < free / 2 + 100_000, "{bytes} of {free}");
    assert!(!queue.waiting.is_empty());
    queue.delivered(Seq(1));
    queue.failed(Seq(2), "no");
    assert!(queue.is_ready(), "there is room again");
    queue.go_back(&[], "the disk failed");
    assert_eq!(others.share(), free, "nothing is held any more");
    // One that is larger than all there is goes alone.
    queue.ask(each([3000], &progress(1)));
    let large = held(&queue, 3000, free);
    assert!(queue.is_ready());
    queue.started(large);
    queue.ask(each([3001], &progress(1)));
    assert!(!queue.is_ready());
}

#[test]
fn a_letter_whose_answer_was_lost_is_settled_by_what_the_receiver_says() {
    let asked = progress(3);
    let mut queue = Queue::default();
    queue.ask(each(1..=3, &asked));
    let now = Instant::now();
    for seq in [1, 2, 3] {
        queue.next();
        queue.started(held(&queue, seq, 2));
        queue.doubt(Seq(seq), "the connection broke", now);
    }
    let again = progress(1);
    queue.ask(each([2], &again));
    assert_eq!(
        (queue.next(), asked.counts()),
        (None, (3, 0, 0)),
        "neither tried again nor given up"
    );
    assert_eq!((again.counts(), again.elsewhere()), ((0, 0, 0), 1));
    queue.adopt(&[Seq(1), Seq(2)], "");
    assert_eq!(
        (asked.counts(), asked.why().as_deref()),
        ((3, 0, 1), Some("the connection broke"))
    );
    queue.removed(Seq(1));
    queue.removed(Seq(2));
    assert_eq!((asked.counts(), again.counts()), ((3, 2, 1), (0, 0, 0)));
    // A receiver that says nothing keeps nobody waiting for ever.
    let late = progress(1);
    queue.ask(each([4], &late));
    queue.next();
    queue.started(held(&queue, 4, 2));
    queue.doubt(Seq(4), "the connection broke", now);
    assert_eq!(queue.doubts_end(), Some(now + DOUBT_WITHIN));
    queue.leave_doubted();
    assert!(
        late.why()
            .unwrap()
            .starts_with("whether it was delivered is not known yet")
    );
    assert_eq!(queue.doubts_end(), None);
}

#[test]
fn two_who_ask_for_one_letter_hear_of_one_try_and_only_the_first_counts_it() {
    let (first, second) = (progress(2), progress(2));
    let mut queue = Queue::default();
    queue.ask(each([1, 2], &first));
    assert_eq!(queue.next(), Some(Seq(1)));
    queue.started(held(&queue, 1, 2));
    queue.ask(each([1, 3], &second));
    assert_eq!((second.counts(), second.elsewhere()), ((1, 0, 0), 1));
    queue.delivered(Seq(1));
    assert_eq!(first.counts(), (2, 0, 0), "not before it is removed");
    queue.removed(Seq(1));
    assert_eq!(
        (queue.next(), queue.next(), queue.next()),
        (Some(Seq(2)), Some(Seq(3)), None)
    );
    queue.started(held(&queue, 2, 2));
    queue.failed(Seq(2), "no");
    assert_eq!((first.counts(), second.counts()), ((2, 1, 1), (1, 0, 0)));
    assert_eq!(first.why().as_deref(), Some("no"));
    drop(queue);
    assert_eq!(second.counts(), (1, 0, 1), "nobody waits for ever");
}

#[test]
fn what_was_delivered_since_the_last_mark_is_still_dead_when_that_is_gone_back_to() {
    let asked = progress(4);
    let mut queue = Queue::default();
    queue.ask(each(1..=4, &asked));
    for seq in [1, 2, 3] {
        queue.next();
        queue.started(held(&queue, seq, 2));
    }
    queue.delivered(Seq(1));
    queue.delivered(Seq(2));
    queue.go_back(&[Seq(1)], "the disk failed");
    assert_eq!(
        (queue.done.first(), queue.done.len(), asked.counts()),
        (Some(&Seq(1)), 1, (4, 0, 3))
    );
    queue.removed(Seq(1));
    assert_eq!(asked.counts(), (4, 1, 3));
}

#[test]
fn what_the_receivers_mark_names_is_not_tried_again_and_what_it_does_not_is_dead() {
    let asked = progress(3);
    let mut queue = Queue::default();
    queue.ask(each(1..=3, &asked));
    queue.next();
    queue.started(held(&queue, 1, 2));
    queue.delivered(Seq(1));
    queue.adopt(&[Seq(2)], "it was set back");
    assert_eq!(asked.counts(), (3, 0, 1));
    assert_eq!((queue.next(), queue.next()), (Some(Seq(3)), None));
    queue.removed(Seq(2));
    assert_eq!(asked.counts(), (3, 1, 1));
}
