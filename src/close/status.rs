//! How Close's side does, for people and metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::account::Account;
use super::completeness::marks::JobState;
use super::completeness::walk::eta;
use super::seen::Condition;

/// How Close's side does, in a few numbers.
#[derive(Debug, Clone)]
pub struct Vitals {
    /// The last look went well.
    pub reachable: bool,
    /// See `status`.
    pub silent: bool,
    /// A backfill is under way.
    pub backfilling: bool,
    /// The completeness mark; `None` before the first comparison.
    pub complete_upto: Option<Timestamp>,
    /// Each of our subscriptions: whether it is active and points here.
    pub active: BTreeMap<String, bool>,
}

impl Account {
    /// The newest backfill with its pace, for people who watch it.
    pub fn job_status(&self) -> Option<Value> {
        let job = self.job()?;
        let elapsed = Duration::try_from(Timestamp::now().duration_since(job.begun_at)).unwrap_or_default();
        let left = (job.state == JobState::Running)
            .then(|| eta(elapsed, job.fraction()))
            .flatten();
        let mut value = json!(job);
        value["fraction"] = json!(job.fraction());
        value["eta_seconds"] = json!(left.map(|left| left.as_secs()));
        Some(value)
    }

    /// For `status` and metrics.
    pub fn status(&self) -> Value {
        let marks = self.store.marks();
        let keys = self.store.keys();
        let seen = self.seen();
        json!({
            "configured": self.is_configured(),
            "trouble": seen.trouble.as_ref().map(ToString::to_string),
            "checked_at": seen.checked_at,
            "reconciled_at": seen.reconciled_at,
            "subscriptions": seen.found,
            "silence": seen.silence,
            "complete": marks.complete,
            "backfill": marks.job.is_some_and(|job| job.state != JobState::Done).then(|| self.job_status()),
            "rotation": keys.rotation.map(|rotation| json!({ "old": rotation.old, "new": rotation.new, "begun_at": rotation.begun_at })),
        })
    }

    /// For metrics.
    pub fn health(&self) -> Vitals {
        let marks = self.store.marks();
        let seen = self.seen();
        let is_active = |id: &String| {
            seen.found
                .iter()
                .any(|found| found.id == *id && found.state == Condition::Active)
        };
        Vitals {
            reachable: seen.trouble.is_none() && seen.checked_at.is_some(),
            silent: seen.silence.is_some(),
            backfilling: marks.job.is_some_and(|job| job.state == JobState::Running),
            complete_upto: marks.complete.map(|complete| complete.upto),
            active: seen.ever.iter().map(|id| (id.clone(), is_active(id))).collect(),
        }
    }
}
