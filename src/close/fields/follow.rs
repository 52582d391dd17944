//! When the schema of custom fields is fetched: at the start, daily, when an event tells of a change, when a template meets a field that
//! nobody knows.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_retry::strategy::jitter;
use tokio_util::sync::CancellationToken;

use super::Fields;
use super::schema::Schema;
use crate::close::account::Account;
use crate::event::Seq;
use crate::log::{Narrow, Take};
use crate::render::NameBook;

/// The schema is fetched again after so long, whatever happens.
pub(super) const EVERY: Duration = Duration::from_secs(24 * 3600);

/// However often it changes, so much lies between the beginnings of two fetches.
pub(super) const APART: Duration = Duration::from_secs(5);

/// After a failure it is tried again: somebody waits for it, or nobody does.
pub(super) const RETRY_WAITING: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
pub(super) const RETRY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(900));

/// Events that tell of a change of the schema.
const TELLS: [&str; 3] = ["custom_fields.*", "custom_activity_type.*", "custom_object_type.*"];

/// Whoever is so far behind the log does not read all of it, and fetches.
const BEHIND_MAX: u64 = 100_000;

/// Events of the log that are looked at together.
const EVENTS: usize = 1024;
const BYTES: usize = 4 << 20;

/// When the schema is fetched.
pub(super) struct Plan {
    pub(super) due: Option<Instant>,
    pub(super) began: Option<Instant>,
    pub(super) failures: u32,
}

impl Plan {
    /// Something asks for it: soon.
    pub(super) fn hasten(&mut self) {
        let now = Instant::now();
        let soon = self.began.map_or(now, |began| (began + APART).max(now));
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }

    pub(super) fn ended(&mut self, is_well: bool, is_waited_for: bool) {
        let wait = if is_well {
            self.failures = 0;
            EVERY
        } else {
            self.failures += 1;
            after(self.failures - 1, if is_waited_for { RETRY_WAITING } else { RETRY })
        };
        self.due = Some(Instant::now() + wait);
    }
}

/// When to try again after so many failures.
pub(super) fn after(times: u32, (first, most): (Duration, Duration)) -> Duration {
    let bound = first.saturating_mul(2_u32.saturating_pow(times.min(16))).min(most);
    jitter(bound).max(bound / 4)
}

/// While it is there, somebody follows the schema. However that ends, nobody waits for a fetch that does not come.
pub(super) struct Followed<'f>(&'f Fields);

impl<'f> Followed<'f> {
    pub(super) fn begin(fields: &'f Fields) -> Followed<'f> {
        fields.change(|known| known.is_followed = true);
        Followed(fields)
    }
}

impl Drop for Followed<'_> {
    fn drop(&mut self) {
        self.0.change(|known| known.is_followed = false);
    }
}

/// Follows the schema until `stop`. `at_once`: else nothing is fetched before somebody asks.
pub(in crate::close) async fn follow(account: &Account, stop: &CancellationToken, at_once: bool) {
    let fields = &account.fields;
    let _followed = Followed::begin(fields);
    let mut head = account.log.head();
    let mut next = head.borrow_and_update().next();
    let mut plan = Plan {
        due: at_once.then(Instant::now),
        began: None,
        failures: 0,
    };
    loop {
        let due = plan.due.filter(|_| fields.may_fetch());
        let wake = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = wake => {
                plan.began = Some(Instant::now());
                let fetched = tokio::select! {
                    () = stop.cancelled() => return,
                    is_whole = account.fetch_fields() => is_whole,
                };
                plan.ended(fetched, fields.known().schema.is_none());
            }
            () = fields.changed.notified() => {
                plan.failures = 0;
                plan.due = Some(Instant::now());
            }
            () = fields.book.asked() => {
                // What failed is tried again in its time.
                if fields.take_up() && (plan.failures == 0 || fields.known().schema.is_some()) {
                    plan.hasten();
                }
            }
            Ok(()) = head.changed() => {
                let upto = *head.borrow_and_update();
                if !fields.may_fetch() {
                    next = upto.next();
                } else if account.tells_of_fields(&mut next, upto).await {
                    plan.hasten();
                }
            }
        }
    }
}

impl Account {
    /// What custom fields are called, for whoever renders.
    pub fn names(&self) -> &Arc<NameBook> {
        self.fields.book()
    }

    /// Fetches the schema. Whether all of it is there.
    async fn fetch_fields(&self) -> bool {
        self.fields.take_up();
        let asked = std::mem::take(&mut self.fields.known().asked);
        let fetched = async {
            let client = self.client().await?;
            Schema::fetch(&client, &self.store, self.now()).await
        };
        let fetched = fetched.await;
        let is_whole = fetched.as_ref().is_ok_and(|schema| schema.lacking.is_none());
        self.fields.note(fetched, asked).await;
        is_whole
    }

    /// Whether events up to this one tell of a change of the schema, or may: where they can't be read it is fetched in any case.
    async fn tells_of_fields(&self, next: &mut Seq, upto: Seq) -> bool {
        let narrow = Narrow {
            types: TELLS.map(str::to_owned).to_vec(),
            ..Narrow::default()
        };
        if upto.0.saturating_sub(next.0) > BEHIND_MAX {
            *next = upto.next();
            return true;
        }
        let mut tells = false;
        while *next <= upto {
            let take = Take {
                events: EVENTS,
                bytes: BYTES,
                narrow: Some(&narrow),
            };
            let batch = match self.log.read(*next, take).await {
                Ok(batch) if batch.next > *next => batch,
                Ok(_) => return tells,
                Err(error) => {
                    tracing::debug!(%error, "it is not known whether events tell of custom fields");
                    *next = upto.next();
                    return true;
                }
            };
            tells |= batch.events.iter().any(|event| narrow.leaves(event));
            *next = batch.next;
        }
        tells
    }
}
