//! What a log's copy takes along of deliveries: dead letters, and of the state what is not of one machine alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub use super::letters::Carried;
use super::letters::{self, Letters};
use super::mark::{RECORDS, Record, record_key};
use super::stored::open_store;
use super::types::{DEAD, EngineError, Mode, failed};
use crate::state::journal::Journal;
use crate::state::{Expected, Revision, Store, put_json};
use crate::task;

/// Puts the dead letters of a data directory into a journal that holds nothing but what an earlier try has left of them. They stay where
/// they are as well, with the log that they are of. `state`: the copy's, with the records of sinks as they are in the directory; what damage has
/// taken of the letters is noted there.
pub async fn carry_dead_letters(
    data_dir: &Path,
    state: &dyn Store,
    journal: Arc<dyn Journal>,
) -> Result<Carried, EngineError> {
    let dir = data_dir.join(DEAD);
    let (mut records, revisions) = records_in(state).await?;
    let before = records.clone();
    // What is noted of a file is not of the copy.
    let (noted, _) = records_in(&*open_store(data_dir, Mode::Look).await?).await?;
    for (sink, record) in &mut records {
        let noted = noted.get(sink);
        record.letters = noted.and_then(|noted| noted.letters);
        record.letters_doubted = noted.and_then(|noted| noted.letters_doubted);
    }
    let work = move || -> Result<(Carried, BTreeMap<String, Record>), String> {
        let mut carried = letters::carry_into(&dir, &letters::Desk::new(journal).map_err(text)?)?;
        compare(&dir, &mut records, &mut carried)?;
        Ok((carried, records))
    };
    let (carried, records) = carried(work).await?;
    for (sink, record) in records.iter().filter(|(sink, record)| before[*sink] != **record) {
        let expected = Expected::Revision(revisions[sink]);
        put_json(state, &record_key(sink), record, expected)
            .await
            .map_err(failed)?;
    }
    Ok(carried)
}

/// Puts the dead letters of a journal into a data directory that holds nothing but what an earlier try has left of them.
pub async fn fetch_dead_letters(data_dir: &Path, journal: Arc<dyn Journal>) -> Result<Carried, EngineError> {
    let dir = data_dir.join(DEAD);
    carried(move || letters::fetch_from(&dir, &letters::Desk::new(journal).map_err(text)?)).await
}

/// A state as a data directory gets it that a journal's dead letters go to: the records of sinks say what damage has taken of these.
pub async fn fetched_state(
    state: Vec<(String, Vec<u8>)>,
    journal: Arc<dyn Journal>,
) -> Result<Vec<(String, Vec<u8>)>, EngineError> {
    carried(move || {
        let desk = letters::Desk::new(journal).map_err(text)?;
        let fetched = |(key, value): (String, Vec<u8>)| {
            let value = fetched_value(&desk, &key, value);
            value.map(|value| (key, value))
        };
        state.into_iter().map(fetched).collect()
    })
    .await
}

/// One of its values. Blocking.
pub(super) fn fetched_value(desk: &Arc<letters::Desk>, key: &str, mut value: Vec<u8>) -> Result<Vec<u8>, String> {
    if let Some(sink) = key.strip_prefix(RECORDS)
        && let Ok(mut record) = serde_json::from_slice::<Record>(&value)
    {
        let letters = Letters::shared(desk, sink, true);
        let read = letters.read();
        read.map_err(|error| format!("dead letters of sink \"{sink}\": {error}"))?;
        if record.compare_letters(&letters) {
            value = with_lost(value, &record);
        }
    }
    Ok(carried_value(key, value))
}

/// The value of a record with what this one says of letters that were lost. Nothing else in it is another one, whoever has written it.
fn with_lost(value: Vec<u8>, of: &Record) -> Vec<u8> {
    let Ok(serde_json::Value::Object(mut record)) = serde_json::from_slice(&value) else {
        return value;
    };
    record.insert("letters_lost_upto".to_owned(), of.letters_lost_upto.0.into());
    if let Some(at) = of.letters_lost {
        record.insert("letters_lost".to_owned(), at.to_string().into());
    }
    serde_json::to_vec(&record).unwrap_or(value)
}

/// Whether a data directory holds dead letters, of whatever log. Blocking.
pub fn holds_dead_letters(data_dir: &Path) -> std::io::Result<bool> {
    letters::is_imported(&data_dir.join(DEAD)).map(|is_empty| !is_empty)
}

/// In a sink's record: how much there is of the file of its dead letters, and by what damage to them is told. Both are of where they are
/// kept. The copy has another file, or none, as it makes none for a sink without letters.
const OF_LETTERS: [&str; 3] = ["letters", "letters_doubted", "letters_seen"];

/// A value of the state as the copy gets it.
pub fn carried_value(key: &str, value: Vec<u8>) -> Vec<u8> {
    if !key.starts_with(RECORDS) {
        return value;
    }
    // What can't be made out goes as it is: whoever needs it says so.
    let Ok(serde_json::Value::Object(mut record)) = serde_json::from_slice(&value) else {
        return value;
    };
    let removed = OF_LETTERS.map(|field| record.remove(field));
    if removed.iter().all(Option::is_none) {
        return value;
    }
    serde_json::to_vec(&record).unwrap_or(value)
}

/// The records of sinks that can be made out, and their revisions.
async fn records_in(state: &dyn Store) -> Result<(BTreeMap<String, Record>, BTreeMap<String, Revision>), EngineError> {
    let (mut records, mut revisions) = (BTreeMap::new(), BTreeMap::new());
    for key in state.keys(RECORDS).await.map_err(failed)? {
        let sink = key.trim_start_matches(RECORDS);
        if let Some(entry) = state.get(&key).await.map_err(failed)?
            && let Ok(record) = entry.json::<Record>()
        {
            records.insert(sink.to_owned(), record);
            revisions.insert(sink.to_owned(), entry.revision);
        }
    }
    Ok((records, revisions))
}

/// Notes and says what the files of letters lack of what their sinks have noted. Of where they go to nothing is noted yet. Blocking.
fn compare(dir: &Path, records: &mut BTreeMap<String, Record>, carried: &mut Carried) -> Result<(), String> {
    for (sink, record) in records {
        let letters = Letters::new(dir, sink, true);
        let of_sink = format!("dead letters of sink \"{sink}\"");
        letters.read().map_err(|error| format!("{of_sink}: {error}"))?;
        record.compare_letters(&letters);
        (record.letters, record.letters_doubted, record.letters_seen) = (None, None, None);
        if let Some(trouble) = letters.trouble() {
            carried.damaged.retain(|said| !said.starts_with(&of_sink));
            carried.damaged.push(format!("{of_sink}: {trouble}"));
        }
    }
    Ok(())
}

async fn carried<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, EngineError> {
    task::begin_blocking(work).await.map_err(failed)?.map_err(EngineError)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::letters::Extent;
    use super::*;
    use crate::deliver::types::dead_letter;
    use crate::event::{Event, Kind, Seq, Source};

    /// All letters of the sink have gone from its file by the time the log is copied: there is none where it goes.
    #[test]
    fn what_is_noted_of_a_file_of_letters_is_not_of_the_copy() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, "letters").unwrap();
        let mut record = Record {
            letters: Extent::of(&file, 7),
            letters_doubted: Some(u64::MAX),
            letters_seen: Some(u64::MAX),
            ..Record::default()
        };
        record.begin_at(Seq(5));
        assert!(record.letters.is_some());
        std::fs::remove_file(&file).unwrap();
        let key = record_key("a");
        let value = carried_value(&key, serde_json::to_vec(&record).unwrap());
        let mut copied: Record = serde_json::from_slice(&value).unwrap();
        assert_eq!((copied.letters, copied.letters_doubted), (None, None));
        assert_eq!(copied.letters_seen, None);
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
            ("sink/c", r#"{ "letters_lost_upto": 7 }"#),
        ] {
            assert_eq!(carried_value(key, value.into()), value.as_bytes());
        }
    }

    #[test]
    fn what_the_letters_lack_is_said_and_noted_where_they_go() {
        let dir = tempfile::tempdir().unwrap();
        let event = Event::new(
            Seq(3),
            jiff::Timestamp::UNIX_EPOCH,
            Source::Webhook,
            Kind::Event,
            None,
            r#"{"event":{"id":"ev_3"}}"#.into(),
        );
        let mut records = BTreeMap::new();
        for sink in ["gone", "kept"] {
            let letters = Letters::open(dir.path(), sink, false).unwrap();
            letters.add(&[dead_letter(sink, &event, "no".into(), 1, None)]).unwrap();
            let mut record = Record {
                letters: letters.extent(),
                ..Record::default()
            };
            record.begin_at(Seq(9));
            records.insert(sink.to_owned(), record);
        }
        std::fs::remove_file(dir.path().join("gone")).unwrap();
        let mut carried = Carried::default();
        compare(dir.path(), &mut records, &mut carried).unwrap();
        assert_eq!(carried.damaged.len(), 1, "{carried:?}");
        let said = &carried.damaged[0];
        assert!(said.contains("sink \"gone\"") && said.contains("is gone"), "{said}");
        let noted = |sink: &str| (records[sink].letters_lost_upto, records[sink].letters);
        assert_eq!(noted("gone"), (Seq(8), None));
        assert_eq!(noted("kept"), (Seq::ZERO, None));
        let is_to_be_seen = |sink: &str| records[sink].letters_lost.is_some();
        assert!(is_to_be_seen("gone") && !is_to_be_seen("kept"));
    }
}
