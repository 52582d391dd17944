//! Events whose data Close withholds, once they are to go out as they are: a replay sends those that were passed over before. What the
//! main feed comes to, or came to after that, it sends itself.

use super::Worker;
use crate::deliver::replay::Job;
use crate::event::{Event, Kind};

impl Worker<'_> {
    /// Whether an event that a release would send is the main feed's: it has not come to it yet, or has judged it by rules that
    /// wanted it. Where that can't be known, it is sent once more: the receiver knows it by its key.
    pub(super) async fn is_mains(&mut self, job: &Job, event: &Event) -> bool {
        let is_release = job.spec.only_partials && event.kind == Kind::Partial;
        if !is_release || (!self.kit.follow && self.record.main.is_none()) {
            return false;
        }
        let seq = event.seq;
        if seq >= self.lanes.main.next() {
            return true;
        }
        let fates = &self.record.fates;
        if fates.is_unwanted(seq) {
            return false;
        }
        let Some(judge) = fates.judge(seq).map(str::to_owned) else {
            return false;
        };
        // The rules of now want it, or the release would not.
        if judge == self.digest {
            return self.rules.route(self.kit.name(), event).is_some();
        }
        self.earlier_wanted(&judge, event).await.unwrap_or_default()
    }
}
