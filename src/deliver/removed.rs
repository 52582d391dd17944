//! The dead letters of sinks that are not configured: they have no worker that notes damage to them, and nobody who is shown how they do.

use std::collections::BTreeMap;

use super::comparing::{Compared, Turn, compare};
use super::engine::Engine;
use super::letters::Letters;
use super::mark::{RECORDS, Record, record_key};
use crate::state::{Expected, put_json};
use crate::sync::lock;

impl Engine {
    /// The letters of a sink that are on this machine, as far as there are any, or were when that was noted.
    fn own_letters_of(&self, sink: &str, record: &Record) -> Option<Letters> {
        let is_here = self.inner.desk.is_none() && (record.letters.is_some() || self.has_letters(sink));
        is_here.then(|| self.letters_of(sink))
    }

    /// Compares the letters of removed sinks with what was noted of them, and notes what damage may have taken. However long a disk takes for that,
    /// nobody waits for it. `false`: of some of them that has to be tried again.
    pub(super) async fn compare_removed(&self) -> bool {
        let Ok(keys) = self.record_keys().await else {
            return false;
        };
        let mut is_done = true;
        for key in keys {
            let sink = key.trim_start_matches(RECORDS);
            if !self.is_wanted(sink) {
                is_done &= self.compare_one(sink, &key).await;
            }
        }
        is_done
    }

    /// Whether a sink is configured by the newest configuration, wherever it is driven.
    fn is_wanted(&self, sink: &str) -> bool {
        lock(&self.inner.sinks).iter().any(|config| config.name == sink)
    }

    async fn compare_one(&self, sink: &str, key: &str) -> bool {
        let (record, revision) = match self.record(key).await {
            Ok(Some(found)) => found,
            Ok(None) => return true,
            // Who notes that it was removed says so.
            Err(_) => return false,
        };
        let Some(letters) = self.own_letters_of(sink, &record) else {
            return true;
        };
        let Some(turn) = Turn::take(&self.inner.comparing, sink) else {
            return false;
        };
        let (record, is_news) = match compare(record, &letters, turn).await {
            Compared::Done(record, is_news) => (record, is_news),
            Compared::NotNow => return false,
            Compared::Never => return true,
        };
        if is_news {
            // A reload may be about to bring it back: then its worker compares them.
            let _changing = self.inner.changing.lock().await;
            if self.is_wanted(sink) {
                return true;
            }
            let expected = Expected::Revision(revision);
            if let Err(error) = put_json(&*self.inner.store, key, &*record, expected).await {
                tracing::warn!(sink, %error, "that dead letters of a removed sink are lost could not be noted; this is tried again");
                return false;
            }
        }
        letters.damage_is_noted(record.letters_doubted);
        true
    }

    /// What is wrong with the dead letters of those of these sinks that are not configured, and of sinks without a position: a sentence by sink.
    pub async fn damaged_removed(&self, kept: &[String]) -> BTreeMap<String, String> {
        let letters = lock(&self.inner.letters).clone();
        let mut found = BTreeMap::new();
        for sink in kept.iter().filter(|sink| !self.is_configured(sink)) {
            let trouble = match self.record(&record_key(sink)).await {
                Ok(None) => None,
                Ok(Some((record, _))) => {
                    if let Some(letters) = letters.get(sink) {
                        letters.damage_is_seen(record.letters_seen);
                    }
                    let lost = record.letters_lost;
                    lost.map(|at| format!("some were lost to damage that was found at {at:.0}"))
                }
                Err(error) => Some(format!("whether some were lost can't be read: {error}")),
            };
            found.extend(trouble.map(|trouble| (sink.clone(), trouble)));
        }
        for (sink, letters) in letters {
            if !self.is_configured(&sink)
                && let Some(trouble) = letters.trouble()
            {
                // It says more.
                found.insert(sink, trouble);
            }
        }
        found
    }
}
