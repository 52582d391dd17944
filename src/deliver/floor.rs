//! What the log has to keep for the sinks: what follows from all their durable records together.

use std::collections::BTreeMap;

use super::mark::{JOBS, JobRecord, RECORDS, Record, unfinished};
use crate::event::Seq;
use crate::retention::Floor;
use crate::state::Store;

/// What must stay for the configured sinks, for those that are not known to be detached, and for replays that run. Reads nothing but
/// durable records; writes nothing.
pub(super) async fn floor(store: &dyn Store, configured: &[&str]) -> Floor {
    match least(store, configured).await {
        Ok((seq, _)) => Floor::Known(seq),
        Err(why) => Floor::Unknown(why),
    }
}

/// Who is not done with what is at the floor, in words; `None`: nobody, or that can't be known now.
pub(super) async fn holder(store: &dyn Store, configured: &[&str]) -> Option<String> {
    let (_, sink) = least(store, configured).await.ok()?;
    let sink = sink?;
    Some(if configured.contains(&&*sink) {
        format!("sink \"{sink}\"")
    } else {
        format!("sink \"{sink}\", which is not configured any more, and that could not be noted yet,")
    })
}

/// What must stay, and for which sink.
async fn least(store: &dyn Store, configured: &[&str]) -> Result<(Seq, Option<String>), String> {
    let mut jobs = BTreeMap::new();
    for key in store.keys(JOBS).await.map_err(|error| error.to_string())? {
        let job: JobRecord = read(store, &key).await?.ok_or_else(|| format!("{key} has just gone"))?;
        jobs.insert(key.trim_start_matches(JOBS).to_owned(), job);
    }
    let mut records = BTreeMap::new();
    for key in store.keys(RECORDS).await.map_err(|error| error.to_string())? {
        let record: Option<Record> = read(store, &key).await?;
        records.extend(record.map(|record| (key.trim_start_matches(RECORDS).to_owned(), record)));
    }
    if let Some(missing) = configured.iter().find(|name| !records.contains_key(**name)) {
        return Err(format!("the position of sink \"{missing}\" is not known"));
    }
    let (mut least, mut holder) = (Seq(u64::MAX), None);
    for (name, record) in &records {
        let is_configured = configured.contains(&name.as_str());
        if record.detached_at.is_some() && !is_configured {
            continue;
        }
        let main = record.main.as_ref();
        let main = main.ok_or_else(|| format!("the start of sink \"{name}\" is not settled"))?;
        let mut own = unfinished(main);
        for (id, job) in &jobs {
            if !job.running || !job.is_for(name) {
                continue;
            }
            match record.replays.get(id) {
                Some(replay) if replay.done => {}
                Some(replay) => own = own.min(unfinished(&replay.saved)),
                None => own = own.min(job.spec.from),
            }
        }
        if own < least {
            (least, holder) = (own, Some(name.clone()));
        }
    }
    Ok((least, holder))
}

/// A value; an error names its key.
async fn read<T: serde::de::DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<T>, String> {
    let entry = store.get(key).await.map_err(|error| error.to_string())?;
    let value = entry.map(|entry| entry.json()).transpose();
    value.map_err(|error| format!("{key}: {error}"))
}

#[cfg(test)]
mod tests;
