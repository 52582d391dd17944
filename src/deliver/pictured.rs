//! What a backup takes along of the engine, and what damage had taken of that before.

use std::collections::BTreeMap;

use super::engine::Engine;
use super::letters::{self, Extent};
use super::mark::RECORDS;
use super::reading::aside;
use super::types::{EngineError, Picture};
use crate::framefile::FrameError;
use crate::sync::lock;

impl Engine {
    /// What has to be remembered of the engine. An event that the state has passed as dead is in the dead letters, since these
    /// are looked at later.
    pub async fn picture(&self) -> std::io::Result<Picture> {
        let state = self.inner.store.all().await.map_err(std::io::Error::other)?;
        let state = state.into_iter().map(|(key, value)| (key, value.to_vec())).collect();
        // Whoever has none yet may have some by the time it is their turn.
        let mut sinks = lock(&self.inner.configured).clone();
        sinks.extend(letters::listed(&self.inner.dead_dir)?.into_iter().map(|(sink, _)| sink));
        let dead = letters::files(&self.inner.dead_dir, &self.givers_first(sinks))?;
        let damaged = self.damaged_letters().await.map_err(std::io::Error::other)?;
        Ok(Picture { state, dead, damaged })
    }

    /// A sentence for each sink of whose dead letters some are damaged or gone.
    async fn damaged_letters(&self) -> Result<Vec<String>, EngineError> {
        // What nodes share is in no file.
        if self.inner.desk.is_some() {
            return Ok(Vec::new());
        }
        let sinks: Vec<String> = lock(&self.inner.letters).keys().cloned().collect();
        let mut noted: BTreeMap<String, Option<Extent>> = sinks.into_iter().map(|sink| (sink, None)).collect();
        for key in self.record_keys().await? {
            let record = self.whole_record(&key).await?;
            if let Some(extent) = record.and_then(|(record, _)| record.letters) {
                noted.insert(key.trim_start_matches(RECORDS).to_owned(), Some(extent));
            }
        }
        let mut found = Vec::new();
        for (sink, noted) in noted {
            let letters = self.letters_of(&sink);
            let look = move || match letters.read() {
                // It is taken along as it is, for the closehook that can read it.
                Err(FrameError::Newer { .. }) => None,
                Err(error) => Some(error.to_string()),
                Ok(()) => {
                    // Comparing is what has it say that some are missing.
                    let is_cut = noted.is_some_and(|noted| letters.lacks(noted));
                    (is_cut || letters.is_damaged()).then(|| letters.trouble()).flatten()
                }
            };
            let why = aside(look).await.map_err(EngineError)?;
            found.extend(why.map(|why| format!("dead letters of \"{sink}\": {why}")));
        }
        Ok(found)
    }
}
