//! The dead letters of sinks that are not configured: they have no worker that notes damage to them, and nobody who is shown how they do.

use std::collections::BTreeMap;

use super::engine::Engine;
use super::letters::Letters;
use super::mark::{RECORDS, Record};
use super::reading::aside;
use super::types::EngineError;
use crate::framefile::FrameError;
use crate::sync::lock;

/// What looking at the letters of a removed sink came to.
pub(super) enum Compared {
    /// Its record with what damage may have taken of them, and whether that is news, which has to be saved.
    Done(Box<Record>, bool),
    /// They can't be read now: this has to be tried again.
    NotNow,
    /// They can't be read by this closehook.
    Never,
}

/// Compares the letters of a removed sink with what was noted of them.
pub(super) async fn compare(mut record: Record, letters: &Letters) -> Compared {
    let letters = letters.clone();
    let compare = move || {
        letters.read()?;
        let is_news = record.compare_letters(&letters);
        if is_news {
            // Else the next start would miss the same again.
            record.letters = letters.extent();
        }
        Ok::<_, FrameError>((record, is_news))
    };
    match aside(compare).await {
        Ok(Ok((record, is_news))) => Compared::Done(Box::new(record), is_news),
        Ok(Err(FrameError::Newer { .. })) => Compared::Never,
        Ok(Err(_)) | Err(_) => Compared::NotNow,
    }
}

impl Engine {
    /// The letters of a sink that are on this machine, as far as there are any, or were when that was noted.
    pub(super) fn own_letters_of(&self, sink: &str, record: &Record) -> Option<Letters> {
        let is_here = self.inner.desk.is_none() && (record.letters.is_some() || self.has_letters(sink));
        is_here.then(|| self.letters_of(sink))
    }

    /// What is wrong with the dead letters of sinks that are not configured: a sentence by sink.
    pub async fn damaged_removed(&self) -> Result<BTreeMap<String, String>, EngineError> {
        let letters = lock(&self.inner.letters).clone();
        let mut found = BTreeMap::new();
        for key in self.record_keys().await? {
            let sink = key.trim_start_matches(RECORDS);
            if self.is_configured(sink) {
                continue;
            }
            let trouble = match self.record(&key).await {
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
            found.extend(trouble.map(|trouble| (sink.to_owned(), trouble)));
        }
        for (sink, letters) in letters {
            if !self.is_configured(&sink)
                && let Some(trouble) = letters.trouble()
            {
                // It says more.
                found.insert(sink, trouble);
            }
        }
        Ok(found)
    }
}
