//! The rules that judged events, kept as text by their digest: so that it can be told of an event whether they wanted it, although the rules
//! are others now.

use std::collections::BTreeSet;

use super::mark::{RECORDS, Record};
use crate::event::Event;
use crate::rules::{RuleSet, Source};
use crate::state::{Expected, Store};

/// Rules whose text is longer are known by their digest only.
const TEXT_MAX: usize = 256 << 10;

/// Where the texts of rules are kept, by their digest.
const RULES: &str = "rules/";

/// Keeps the text of rules before anything is judged by them, so that it can be asked for later.
pub(super) async fn keep_rules(store: &dyn Store, rules: &RuleSet, sinks: impl Iterator<Item = &str>) {
    let known: BTreeSet<String> = match store.keys(RULES).await {
        Ok(keys) => keys.into_iter().collect(),
        Err(error) => return not_kept(&error),
    };
    let mut put = BTreeSet::new();
    for Source { text, digest } in sinks.map(|sink| rules.source(sink)) {
        let key = format!("{RULES}{digest}");
        if text.len() > TEXT_MAX || known.contains(&key) || !put.insert(key.clone()) {
            continue;
        }
        if let Err(error) = store.put(&key, text.into_bytes(), Expected::Anything).await {
            return not_kept(&error);
        }
    }
}

fn not_kept(error: &dyn std::fmt::Display) {
    tracing::warn!(%error, "the text of the rules can't be kept: of events that are judged by them it will not be known later whether they were wanted");
}

/// Removes texts that no record names any more. Only while no worker runs: it may have begun with rules that its record does not name yet.
pub(super) async fn forget_rules(store: &dyn Store) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut named = BTreeSet::new();
    for key in store.keys(RECORDS).await.map_err(|error| text(&error))? {
        let Some(entry) = store.get(&key).await.map_err(|error| text(&error))? else {
            continue;
        };
        let record: Record = entry.json()?;
        named.extend(record.fates.judges().map(str::to_owned));
    }
    for key in store.keys(RULES).await.map_err(|error| text(&error))? {
        if !named.contains(key.trim_start_matches(RULES)) {
            let removed = store.remove(&key, Expected::Anything).await;
            removed.map_err(|error| text(&error))?;
        }
    }
    Ok(())
}

/// Rules of before.
pub(super) struct Earlier {
    rules: RuleSet,
    sink: &'static str,
}

impl Earlier {
    /// Whether they wanted an event.
    pub fn wanted(&self, event: &Event) -> bool {
        self.rules.route(self.sink, event).is_some()
    }
}

/// The rules with this digest. `Ok(Err)`: they are not there any more; an error: that can't be known now. Both say why.
pub(super) async fn earlier(store: &dyn Store, digest: &str) -> Result<Result<Earlier, &'static str>, String> {
    let entry = store.get(&format!("{RULES}{digest}")).await;
    let entry = entry.map_err(|error| format!("the rules that judged it can't be read now: {error}"))?;
    let Some(text) = entry else {
        return Ok(Err("the rules that judged it were not kept"));
    };
    let text = String::from_utf8_lossy(&text.value);
    let read = RuleSet::from_source(&text).ok_or("the rules that judged it can't be read any more");
    Ok(read.map(|(rules, sink)| Earlier { rules, sink }))
}

/// Whether the rules with this digest wanted an event; an error says why that is not known.
pub(super) async fn wanted_by(store: &dyn Store, digest: &str, event: &Event) -> Result<bool, String> {
    let rules = earlier(store, digest).await??;
    Ok(rules.wanted(event))
}
