//! What a log's copy takes along of deliveries: dead letters, and of the state what is not of one machine alone.

use std::path::Path;
use std::sync::Arc;

use super::letters;
pub use super::letters::Carried;
use super::mark::RECORDS;
use super::types::{DEAD, EngineError, failed};
use crate::state::journal::Journal;
use crate::task;

/// Puts the dead letters of a data directory into a journal that holds nothing but what an earlier try has left of them. They stay where
/// they are as well, with the log that they are of.
pub async fn carry_dead_letters(data_dir: &Path, journal: Arc<dyn Journal>) -> Result<Carried, EngineError> {
    let dir = data_dir.join(DEAD);
    carried(move || letters::carry_into(&dir, &letters::Desk::new(journal).map_err(text)?)).await
}

/// Puts the dead letters of a journal into a data directory that holds nothing but what an earlier try has left of them.
pub async fn fetch_dead_letters(data_dir: &Path, journal: Arc<dyn Journal>) -> Result<Carried, EngineError> {
    let dir = data_dir.join(DEAD);
    carried(move || letters::fetch_from(&dir, &letters::Desk::new(journal).map_err(text)?)).await
}

/// Whether a data directory holds dead letters, of whatever log. Blocking.
pub fn holds_dead_letters(data_dir: &Path) -> std::io::Result<bool> {
    letters::is_imported(&data_dir.join(DEAD)).map(|is_empty| !is_empty)
}

/// In a sink's record: how much there is of the file of its dead letters, which is of this machine. The copy has another file, or none, as it
/// makes none for a sink without letters.
const LETTERS: &str = "letters";

/// A value of the state as the copy gets it.
pub fn carried_value(key: &str, value: Vec<u8>) -> Vec<u8> {
    if !key.starts_with(RECORDS) {
        return value;
    }
    // What can't be made out goes as it is: whoever needs it says so.
    let Ok(serde_json::Value::Object(mut record)) = serde_json::from_slice(&value) else {
        return value;
    };
    if record.remove(LETTERS).is_none() {
        return value;
    }
    serde_json::to_vec(&record).unwrap_or(value)
}

async fn carried(work: impl FnOnce() -> Result<Carried, String> + Send + 'static) -> Result<Carried, EngineError> {
    task::begin_blocking(work).await.map_err(failed)?.map_err(EngineError)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::letters::{Extent, Letters};
    use super::super::mark::{Record, record_key};
    use super::*;
    use crate::event::Seq;

    /// All letters of the sink have gone from its file by the time the log is copied: there is none where it goes.
    #[test]
    fn what_is_noted_of_a_file_of_letters_is_not_of_the_copy() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, "letters").unwrap();
        let mut record = Record {
            letters: Extent::of(&file, 7),
            ..Record::default()
        };
        record.begin_at(Seq(5));
        assert!(record.letters.is_some());
        std::fs::remove_file(&file).unwrap();
        let key = record_key("a");
        let value = carried_value(&key, serde_json::to_vec(&record).unwrap());
        let mut copied: Record = serde_json::from_slice(&value).unwrap();
        assert_eq!(copied.letters, None);
        assert_eq!(copied.cursor(), record.cursor());
        let letters = Letters::open(dir.path(), "a", false).unwrap();
        copied.compare_letters(&letters);
        assert_eq!((letters.trouble(), copied.letters_lost_upto), (None, Seq::ZERO));
    }

    #[test]
    fn what_notes_no_such_file_goes_as_it_is() {
        for (key, value) in [
            ("replay/rp_1", r#"{"letters": 1}"#),
            ("sink/a", r#"{ "lost": 18446744073709551615 }"#),
            ("sink/b", "{ torn"),
        ] {
            assert_eq!(carried_value(key, value.into()), value.as_bytes());
        }
    }
}
