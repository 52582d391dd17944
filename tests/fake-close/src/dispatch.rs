//! Sending webhooks, as a state machine: what is due when, what a success or a failure means, when a subscription is paused. Time
//! and outcomes come in, attempts come out; nothing here waits or connects.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::dice::Dice;
use super::events::{Events, Place};
use super::happen;
use super::moment::Moment;
use super::settings::Settings;
use super::subscription::{Because, Subscription};

/// The longest delay between two attempts (documented).
pub const RETRY_DELAY_MAX: Duration = Duration::from_secs(20 * 60);

/// A delivery is dropped so long after its first attempt (documented).
pub const DROP_AFTER: Duration = Duration::from_secs(72 * 3600);

/// A subscription with nothing but failures for so long is paused (documented).
pub const FAILING_MAX: Duration = Duration::from_secs(3 * 86_400);

/// A subscription with more deliveries waiting is paused (documented).
pub const QUEUE_MAX: usize = 100_000;

/// At so many waiting an e-mail warns (documented).
pub const QUEUE_WARN: usize = 80_000;

/// Successes remembered at most.
const LEDGER_MAX: usize = 16_000_000;

/// The longest wait before a delivery is repeated for no reason.
const DUPLICATE_AFTER_MAX: Duration = Duration::from_secs(300);

/// A delivery that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Moment,
    /// Keeps the order of what is due at the same time.
    number: u64,
    attempt: Attempt,
}

/// One request that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    /// What is delivered.
    pub place: Place,
    /// Index of its subscription.
    pub subscription: usize,
    /// When it is due.
    pub due: Moment,
    first: Moment,
    failures: u32,
    epoch: u32,
    /// It was answered 2xx before.
    is_duplicate: bool,
}

/// A delivery that was answered 2xx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Success {
    /// What was delivered.
    pub place: Place,
    /// Index of its subscription.
    pub subscription: usize,
    /// When.
    pub at: Moment,
}

/// Everything that waits and what came of what did.
#[derive(Debug)]
pub struct Dispatch {
    seed: u64,
    /// Webhooks of revisions whose time has not come.
    hooks: BinaryHeap<Reverse<(Moment, Place)>>,
    queue: BinaryHeap<Reverse<Waiting>>,
    number: u64,
    /// In order.
    pub ledger: Vec<Success>,
    /// Successes that found the ledger full.
    pub ledger_overflow: u64,
}

impl Dispatch {
    pub fn new(seed: u64) -> Dispatch {
        Dispatch {
            seed,
            hooks: BinaryHeap::new(),
            queue: BinaryHeap::new(),
            number: 0,
            ledger: Vec::new(),
            ledger_overflow: 0,
        }
    }

    /// Sets the time of a revision's webhook.
    pub fn plan(&mut self, place: Place, at: Moment) {
        self.hooks.push(Reverse((at, place)));
    }

    /// When the next thing is to be done.
    pub fn next_due(&self) -> Option<Moment> {
        let hook = self.hooks.peek().map(|Reverse((at, _))| *at);
        let waiting = self.queue.peek().map(|Reverse(waiting)| waiting.due);
        hook.into_iter().chain(waiting).min()
    }

    /// Up to `max` attempts that are due by `until`. Empty exactly if nothing is.
    pub fn take_due(
        &mut self,
        until: Moment,
        max: usize,
        subscriptions: &mut [Option<Subscription>],
        events: &mut Events,
    ) -> Vec<Attempt> {
        let mut batch = Vec::new();
        while batch.len() < max {
            let Some(due) = self.next_due().filter(|due| *due <= until) else {
                break;
            };
            if self.hooks.peek().is_some_and(|Reverse((at, _))| *at == due) {
                if let Some(Reverse((_, place))) = self.hooks.pop() {
                    self.hook(place, due, subscriptions, events);
                }
            } else if let Some(Reverse(waiting)) = self.queue.pop() {
                let attempt = waiting.attempt;
                let Some(subscription) = live(subscriptions, &attempt) else {
                    continue;
                };
                subscription.queued = subscription.queued.saturating_sub(1);
                subscription.counts.attempts += 1;
                events.note(attempt.place, |fate| fate.attempted = true);
                batch.push(attempt);
            }
        }
        batch
    }

    /// A revision's webhook: into the queue of every subscription that wants it.
    fn hook(&mut self, place: Place, due: Moment, subscriptions: &mut [Option<Subscription>], events: &Events) {
        // What was changed again before its webhook went out is consolidated into the later one.
        if events.is_superseded(place, due) {
            return;
        }
        let (object_type, action) = events.type_action(place);
        for (index, slot) in subscriptions.iter_mut().enumerate() {
            let Some(subscription) = slot else { continue };
            let is_sent = subscription.active
                && place.updated >= subscription.active_since
                && subscription.wants(&object_type, &action, || events.text(place));
            if is_sent {
                let attempt = Attempt {
                    place,
                    subscription: index,
                    due,
                    first: due,
                    failures: 0,
                    epoch: subscription.epoch,
                    is_duplicate: false,
                };
                self.wait(attempt, subscription, due);
            }
        }
    }

    fn wait(&mut self, attempt: Attempt, subscription: &mut Subscription, now: Moment) {
        self.number += 1;
        let (due, number) = (attempt.due, self.number);
        self.queue.push(Reverse(Waiting { due, number, attempt }));
        subscription.queued += 1;
        subscription.warned |= subscription.queued >= QUEUE_WARN;
        if subscription.queued > QUEUE_MAX {
            pause(subscription, now, Because::TooManyFailures);
        }
    }

    /// What came of an attempt.
    pub fn settle(
        &mut self,
        settings: &Settings,
        attempt: Attempt,
        delivered: bool,
        at: Moment,
        subscriptions: &mut [Option<Subscription>],
        events: &mut Events,
    ) {
        if delivered {
            events.note(attempt.place, |fate| fate.delivered = true);
            if self.ledger.len() < LEDGER_MAX {
                self.ledger.push(Success {
                    place: attempt.place,
                    subscription: attempt.subscription,
                    at,
                });
            } else {
                self.ledger_overflow += 1;
            }
            if let Some(Some(subscription)) = subscriptions.get_mut(attempt.subscription) {
                subscription.counts.delivered += 1;
                subscription.failing_since = None;
                subscription.latest_error = None;
            }
        }
        let Some(subscription) = live(subscriptions, &attempt) else {
            return;
        };
        let Place { event, nth, .. } = attempt.place;
        let mut dice = Dice::of(&[
            self.seed,
            7,
            u64::from(event),
            u64::from(nth),
            u64::from(attempt.failures),
            attempt.subscription as u64,
        ]);
        if delivered {
            if !attempt.is_duplicate && dice.chance(settings.duplicates) {
                let due = at.plus(dice.span(DUPLICATE_AFTER_MAX));
                let again = Attempt {
                    due,
                    first: due,
                    failures: 0,
                    is_duplicate: true,
                    ..attempt
                };
                self.wait(again, subscription, at);
            }
            return;
        }
        subscription.counts.failed += 1;
        subscription.latest_error = Some("The endpoint did not answer with a 2xx status in time.");
        subscription.failed_at = Some(at);
        let failing_since = *subscription.failing_since.get_or_insert(at);
        if at.since(failing_since) >= FAILING_MAX {
            pause(subscription, at, Because::TooManyFailures);
            return;
        }
        let failures = attempt.failures + 1;
        let due = at.plus(backoff(settings, failures, &mut dice));
        if due.since(attempt.first) > DROP_AFTER {
            subscription.counts.dropped += 1;
            return;
        }
        let again = Attempt {
            due,
            failures,
            ..attempt
        };
        self.wait(again, subscription, at);
    }
}

/// The subscription of an attempt, if its queue was not cleared since.
fn live<'s>(subscriptions: &'s mut [Option<Subscription>], attempt: &Attempt) -> Option<&'s mut Subscription> {
    subscriptions
        .get_mut(attempt.subscription)?
        .as_mut()
        .filter(|subscription| subscription.active && subscription.epoch == attempt.epoch)
}

/// Doubles with every failure, with a quarter of jitter, up to the longest delay.
fn backoff(settings: &Settings, failures: u32, dice: &mut Dice) -> Duration {
    let doubled = settings
        .retry_initial
        .0
        .saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX));
    let full = doubled.min(RETRY_DELAY_MAX);
    full.saturating_sub(dice.span(full / 4))
}

/// Pauses a subscription as Close does: what was waiting is gone.
pub fn pause(subscription: &mut Subscription, now: Moment, because: Because) {
    if !subscription.active {
        return;
    }
    subscription.active = false;
    subscription.updated = now;
    subscription.paused_because = Some(because);
    subscription.counts.cleared += subscription.queued as u64;
    subscription.queued = 0;
    subscription.epoch += 1;
    subscription.failing_since = None;
    subscription.warned = false;
    subscription.note(now, "paused");
}

/// When the webhook of a revision goes out; a written event's action counts like a made-up one's.
pub fn hook_time(settings: &Settings, seed: u64, place: Place, action: &str) -> Moment {
    happen::webhook(settings, seed, u64::from(place.event), place.nth, action, place.updated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::Span;
    use proptest::prelude::*;

    #[test]
    fn delays_double_up_to_twenty_minutes() {
        let settings = Settings {
            retry_initial: Span::secs(10),
            ..Settings::calm()
        };
        let mut dice = Dice::of(&[1]);
        for (failures, longest) in [(1, 10), (2, 20), (5, 160), (8, 1200), (40, 1200), (400, 1200)] {
            let delay = backoff(&settings, failures, &mut dice);
            let longest = Duration::from_secs(longest);
            assert!(delay <= longest && delay >= longest * 3 / 4, "{failures}: {delay:?}");
        }
    }

    proptest! {
        #[test]
        fn no_delay_is_longer_than_documented(failures in 1_u32..1000, initial in 1_u64..100_000, roll: u64) {
            let settings = Settings { retry_initial: Span::secs(initial), ..Settings::calm() };
            prop_assert!(backoff(&settings, failures, &mut Dice::of(&[roll])) <= RETRY_DELAY_MAX);
        }
    }
}
