//! The data directory's own description: which log it holds, which life of it, and in which format.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::UNIX_EPOCH;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::refused::OpenError;
use crate::event::Seq;
use crate::sync::lock;
use crate::{files, framefile};

/// Held by whoever changes one that others of this process may change meanwhile.
static CHANGING: Mutex<()> = Mutex::new(());

/// The data directory's own description.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Description {
    /// Format of the directory as a whole.
    pub format: u32,
    /// Which log it is: random, the same for all its life, restored backups included. Directories from before there were ids have
    /// their epoch as their id.
    #[serde(default)]
    pub id: String,
    /// Random, but where it was lost ([`Description::anew`]); a restored backup gets a new one.
    pub epoch: String,
    pub created_at: Timestamp,
    /// The log was copied from one engine to the other: up to here either holds what the other does. What came later is in one of them
    /// alone. `None`: it never was, or by a closehook that did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_upto: Option<Seq>,
    /// There was a whole state beside the log once: that there is none is damage, and no first start. Older versions did not note it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub state_begun: bool,
    /// The same of the list of gaps, with which stands where the log begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gaps_begun: bool,
    /// There was no room for it: it is in memory alone.
    #[serde(skip)]
    pub is_owed: bool,
}

const NAME: &str = "closehook.json";
/// 2: sealed segments have an index and databases of other sizes, known keys are written small and merged by month. 3: the list of gaps has a
/// checksum, and another name.
const DIRECTORY_FORMAT: u32 = 3;

/// Whether there is a log in a directory, whatever says so of it.
fn has_log(dir: &Path) -> io::Result<bool> {
    match std::fs::metadata(dir.join("log")) {
        Ok(found) => Ok(found.is_dir()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether this is a data directory, as far as can be seen.
pub(super) fn is_in(dir: &Path) -> bool {
    dir.join(NAME).is_file()
}

impl Description {
    /// Reads the description; makes one in a new directory if `create`. One that is damaged, missing or old beside a log is made anew on a full
    /// disk as well, and [`Description::is_owed`] then: the log starts all the same (decision 2).
    pub fn open(dir: &Path, create: bool) -> Result<Description, OpenError> {
        let path = dir.join(NAME);
        let fail = |source| OpenError::Io {
            path: path.clone(),
            source,
        };
        match read(&path) {
            Ok(Found::Newer(found)) => Err(OpenError::Newer {
                dir: dir.to_owned(),
                found,
            }),
            Ok(Found::Known(mut description)) => {
                if description.id.is_empty() {
                    description.id.clone_from(&description.epoch);
                }
                // From now on there may be files in it that an earlier version would take for damaged.
                if create && description.format < DIRECTORY_FORMAT {
                    description.format = DIRECTORY_FORMAT;
                    return description.put_or_owe(dir);
                }
                Ok(description)
            }
            // Where that can't be seen, another log would be begun in the place of one that may be there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => match (has_log(dir).map_err(fail)?, create) {
                (true, true) => {
                    tracing::error!(
                        path = %path.display(),
                        "the data directory's description is missing, which says which log this is; it is made anew, and no event is lost, but \
                         the log counts as another one from now on: that it was copied to or from other servers is not known any more, and \
                         files of sinks are only appended to this time; whoever has a copy of the file stops closehook and puts it back"
                    );
                    Description::anew(dir).map_err(fail)?.put_or_owe(dir)
                }
                (true, false) => Err(OpenError::DescriptionMissing { path }),
                (false, true) => Description::fresh(None).map_err(fail)?.put_or_owe(dir),
                (false, false) => Err(OpenError::Missing(dir.to_owned())),
            },
            Err(error) if !framefile::is_damage(&error) => Err(fail(error)),
            // Where there is a log it is ours, and it matters more than its description.
            Err(error) => match (has_log(dir).map_err(fail)?, create) {
                (true, true) => {
                    let aside = aside(&path);
                    tracing::error!(
                        %error,
                        aside = %aside.display(),
                        "the data directory's description is damaged; it is set aside and made anew, and files of sinks are only \
                         appended to this time"
                    );
                    Description::anew(dir).map_err(fail)?.put_or_owe(dir)
                }
                (true, false) => Err(OpenError::DescriptionDamaged {
                    path,
                    why: error.to_string(),
                }),
                (false, _) => Err(OpenError::Alien {
                    path,
                    why: error.to_string(),
                }),
            },
        }
    }

    /// Makes one with an epoch of its own; `id`: of the log it is a copy of. With the state that is beside it.
    pub fn make(dir: &Path, id: Option<String>) -> Result<Description, OpenError> {
        let path = dir.join(NAME);
        let describe = || -> io::Result<Description> {
            let mut made = Description::fresh(id)?;
            made.state_begun = is_state_beside(dir)?;
            Ok(made)
        };
        let made = describe().map_err(|source| OpenError::Io {
            path: path.clone(),
            source,
        })?;
        made.store(&path)
    }

    /// Makes one of the same log, in another life, which has what the one before had.
    pub fn make_another(dir: &Path, before: Description) -> Result<Description, OpenError> {
        let path = dir.join(NAME);
        let fresh = Description::fresh(None).map_err(|source| OpenError::Io {
            path: path.clone(),
            source,
        })?;
        let made = Description {
            format: fresh.format,
            epoch: fresh.epoch,
            created_at: fresh.created_at,
            is_owed: false,
            ..before
        };
        made.store(&path)
    }

    /// One with an epoch of its own, in memory.
    fn fresh(id: Option<String>) -> io::Result<Description> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let epoch = hex::encode(random);
        Ok(Description::of(epoch, id, None))
    }

    /// In place of one that is damaged or gone, in memory. Every start makes the same until it is written: sinks know by its epoch
    /// what they were given.
    fn anew(dir: &Path) -> io::Result<Description> {
        let epoch = hex::encode(&Sha256::digest(what_stands(dir)?)[..16]);
        let mut made = Description::of(epoch, None, None);
        // A log had a state beside it.
        made.state_begun = true;
        Ok(made)
    }

    fn of(epoch: String, id: Option<String>, shared_upto: Option<Seq>) -> Description {
        Description {
            format: DIRECTORY_FORMAT,
            id: id.unwrap_or_else(|| epoch.clone()),
            epoch,
            created_at: Timestamp::now(),
            shared_upto,
            state_begun: false,
            gaps_begun: false,
            is_owed: false,
        }
    }

    /// Writes it, with what was noted in the one in its place. A damaged one is set aside, and stays where it is until then.
    pub fn put(&self, dir: &Path) -> io::Result<()> {
        let _changing = lock(&CHANGING);
        let path = dir.join(NAME);
        let mut written = self.clone();
        match read(&path) {
            Ok(Found::Known(noted)) => {
                written.state_begun |= noted.state_begun;
                written.gaps_begun |= noted.gaps_begun;
            }
            Ok(Found::Newer(found)) => return Err(refuse(dir, found)),
            Err(error) if framefile::is_damage(&error) => set_aside(&path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        framefile::replace_file(&path, &serde_json::to_vec_pretty(&written)?)
    }

    fn put_or_owe(mut self, dir: &Path) -> Result<Description, OpenError> {
        match self.put(dir) {
            Ok(()) => {}
            Err(error) if files::is_full(&error) && matches!(has_log(dir), Ok(true)) => {
                tracing::warn!(%error, "there is no room for the data directory's description; it is written when there is");
                self.is_owed = true;
            }
            Err(source) => {
                let path = dir.join(NAME);
                return Err(OpenError::Io { path, source });
            }
        }
        Ok(self)
    }

    /// Notes up to where the other engine holds what is here.
    pub fn note_shared(mut self, dir: &Path, upto: Option<Seq>) -> Result<Description, OpenError> {
        self.shared_upto = upto;
        self.store(&dir.join(NAME))
    }

    /// Makes one for a log that was another engine's, in the same life, up to a Seq.
    pub fn make_as(dir: &Path, id: &str, epoch: &str, upto: Seq) -> Result<Description, OpenError> {
        Description::of(epoch.to_owned(), Some(id.to_owned()), Some(upto)).store(&dir.join(NAME))
    }

    fn store(self, path: &Path) -> Result<Description, OpenError> {
        let fail = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        let json = serde_json::to_vec_pretty(&self).map_err(|error| fail(error.into()))?;
        framefile::replace_file(path, &json).map_err(fail)?;
        Ok(self)
    }
}

/// Whether there was a whole state beside the log once.
pub fn is_state_begun(dir: &Path) -> io::Result<bool> {
    match read(&dir.join(NAME)) {
        Ok(Found::Known(description)) => Ok(description.state_begun),
        Ok(Found::Newer(found)) => Err(refuse(dir, found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // It is made anew, and notes it then.
        Err(error) if framefile::is_damage(&error) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Where the state is, below the data directory.
const STATE: &str = "state";

/// Whether a state was put beside a log that is made.
fn is_state_beside(dir: &Path) -> io::Result<bool> {
    match std::fs::read_dir(dir.join(STATE)) {
        Ok(mut listing) => listing.next().transpose().map(|first| first.is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The same where it was put beside a log that was made before it.
pub(super) fn note_state_beside(dir: &Path) -> io::Result<()> {
    if is_state_beside(dir)? {
        note_state_begun(dir)
    } else {
        Ok(())
    }
}

/// Notes that there is a whole state beside the log, durably. Only for the holder of the directory, and when the state is durable.
pub fn note_state_begun(dir: &Path) -> io::Result<()> {
    note(dir, |description| &mut description.state_begun)
}

/// The same of the list of gaps.
pub(super) fn note_gaps_begun(dir: &Path) -> io::Result<()> {
    note(dir, |description| &mut description.gaps_begun)
}

fn note(dir: &Path, what: impl Fn(&mut Description) -> &mut bool) -> io::Result<()> {
    let _changing = lock(&CHANGING);
    let path = dir.join(NAME);
    let mut description = match read(&path) {
        // It is owed: the one that is written later notes it.
        Err(error) if error.kind() == io::ErrorKind::NotFound || framefile::is_damage(&error) => return Ok(()),
        Err(error) => return Err(error),
        Ok(Found::Newer(found)) => return Err(refuse(dir, found)),
        Ok(Found::Known(description)) => description,
    };
    if std::mem::replace(what(&mut description), true) {
        return Ok(());
    }
    framefile::replace_file(&path, &serde_json::to_vec_pretty(&description)?)
}

/// What stands in a description.
enum Found {
    Known(Description),
    /// Of a newer closehook, and of this format. What else is in it may be of any kind.
    Newer(u32),
}

fn read(path: &Path) -> io::Result<Found> {
    #[derive(Deserialize)]
    struct Formatted {
        format: u32,
    }
    let json = files::read(path)?;
    let Formatted { format } = serde_json::from_slice(&json)?;
    if format > DIRECTORY_FORMAT {
        return Ok(Found::Newer(format));
    }
    Ok(Found::Known(serde_json::from_slice(&json)?))
}

/// Nothing is read of one that a newer closehook has written, nor is it written over.
fn refuse(dir: &Path, found: u32) -> io::Error {
    let dir = dir.to_owned();
    io::Error::other(OpenError::Newer { dir, found })
}

/// What tells this log from others without its description, and this damage from another: it stays the same until somebody writes.
fn what_stands(dir: &Path) -> io::Result<Vec<u8>> {
    let mut told = Vec::new();
    match std::fs::metadata(dir.join(NAME)) {
        Ok(damaged) => {
            told.extend(damaged.ino().to_be_bytes());
            told.extend(damaged.mtime().to_be_bytes());
            told.extend(damaged.mtime_nsec().to_be_bytes());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let log = std::fs::metadata(dir.join("log"))?;
    told.extend(log.ino().to_be_bytes());
    // Not every file system knows.
    let made = log.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    told.extend(made.unwrap_or_default().as_nanos().to_be_bytes());
    Ok(told)
}

/// Gives a damaged one another name as well: its own place is never empty, as the next start judges by what stands there.
fn set_aside(path: &Path) -> io::Result<()> {
    let aside = aside(path);
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match framefile::name_again(path, &aside) {
        Err(error) if !framefile::is_damage(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Where a damaged one goes.
fn aside(path: &Path) -> PathBuf {
    framefile::beside(path, ".damaged")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_description_says_who_mends_it_where_there_is_a_log() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(NAME), "{").unwrap();
        let says = |dir: &Path| Description::open(dir, false).unwrap_err().to_string();
        assert!(says(dir.path()).contains("is not closehook's"));
        std::fs::create_dir(dir.path().join("log")).unwrap();
        let said = says(dir.path());
        assert!(
            said.contains("is damaged") && said.contains("`closehook serve`"),
            "{said}"
        );
        Description::open(dir.path(), true).unwrap();
        Description::open(dir.path(), false).unwrap();
    }

    #[test]
    fn a_description_of_a_newer_closehook_is_refused_and_stays_whatever_else_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        let path = dir.path().join(NAME);
        let text = r#"{"format":99,"epoch":{"in":"another way"}}"#;
        std::fs::write(&path, text).unwrap();
        for create in [false, true] {
            let refused = Description::open(dir.path(), create).unwrap_err();
            assert!(matches!(refused, OpenError::Newer { found: 99, .. }), "{refused}");
        }
        is_state_begun(dir.path()).unwrap_err();
        note_state_begun(dir.path()).unwrap_err();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert!(!aside(&path).exists());
    }

    #[test]
    fn where_it_can_not_be_seen_whether_there_is_a_log_no_other_one_is_begun() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        // Following it ends with ELOOP.
        std::os::unix::fs::symlink(&log, &log).unwrap();
        Description::open(dir.path(), true).unwrap_err();
        assert!(!dir.path().join(NAME).exists());
    }

    #[test]
    fn a_missing_description_says_what_follows_where_there_is_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let says = |dir: &Path| Description::open(dir, false).unwrap_err().to_string();
        assert!(says(dir.path()).contains("is not a closehook data directory"));
        std::fs::create_dir(dir.path().join("log")).unwrap();
        let said = says(dir.path());
        for part in [
            "closehook.json is missing",
            "put it back from a copy",
            "`closehook serve`",
            "no event is lost",
            "counts as another one",
        ] {
            assert!(said.contains(part), "{said}");
        }
        assert!(!dir.path().join(NAME).exists(), "looking makes nothing");
        Description::open(dir.path(), true).unwrap();
        Description::open(dir.path(), false).unwrap();
    }

    #[test]
    fn that_a_state_was_begun_is_noted_and_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        let is_begun = || is_state_begun(dir.path()).unwrap();
        assert!(!is_begun());
        let made = Description::open(dir.path(), true).unwrap();
        assert!(!is_begun());
        note_state_begun(dir.path()).unwrap();
        assert!(is_begun());
        let again = Description::open(dir.path(), true).unwrap();
        assert_eq!((again.id.clone(), again.epoch.clone()), (made.id, made.epoch));
        let shared = again.note_shared(dir.path(), Some(Seq(3))).unwrap();
        assert!(is_begun());
        let another = Description::make_another(dir.path(), shared.clone()).unwrap();
        assert_eq!((&another.id, another.shared_upto), (&shared.id, Some(Seq(3))));
        assert!(another.epoch != shared.epoch && is_begun());
        // Beside a log its loss is no first start.
        std::fs::create_dir(dir.path().join("log")).unwrap();
        std::fs::remove_file(dir.path().join(NAME)).unwrap();
        Description::open(dir.path(), true).unwrap();
        assert!(is_begun());
    }

    #[test]
    fn what_was_noted_while_a_description_was_owed_stays_noted() {
        let dir = tempfile::tempdir().unwrap();
        let owed = Description::open(dir.path(), true).unwrap();
        note_state_begun(dir.path()).unwrap();
        note_gaps_begun(dir.path()).unwrap();
        owed.put(dir.path()).unwrap();
        let written = Description::open(dir.path(), false).unwrap();
        assert!(written.state_begun && written.gaps_begun);
    }

    #[test]
    fn a_state_that_comes_along_with_a_log_was_begun() {
        let is_begun = |dir: &Path| is_state_begun(dir).unwrap();
        let put_state = |dir: &Path| {
            std::fs::create_dir(dir.join(STATE)).unwrap();
            std::fs::write(dir.join(STATE).join("1"), b"").unwrap();
        };
        // As a backup is restored: the log comes last.
        let dir = tempfile::tempdir().unwrap();
        Description::make(dir.path(), None).unwrap();
        assert!(!is_begun(dir.path()), "none came along");
        put_state(dir.path());
        Description::make(dir.path(), None).unwrap();
        assert!(is_begun(dir.path()));
        // As another engine's log is put here: the state comes last.
        let dir = tempfile::tempdir().unwrap();
        Description::make_as(dir.path(), "id", "epoch", Seq(9)).unwrap();
        note_state_beside(dir.path()).unwrap();
        assert!(!is_begun(dir.path()), "none came along");
        put_state(dir.path());
        note_state_beside(dir.path()).unwrap();
        assert!(is_begun(dir.path()));
    }

    #[test]
    fn a_log_keeps_its_id_and_one_from_before_there_were_ids_has_its_epoch_as_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let made = Description::open(dir.path(), true).unwrap();
        assert!(!made.id.is_empty());
        let again = Description::open(dir.path(), false).unwrap();
        assert_eq!((again.id, again.epoch), (made.id, made.epoch));

        let old = r#"{"format":1,"epoch":"e0","created_at":"2024-02-15T12:48:23Z"}"#;
        std::fs::write(dir.path().join(NAME), old).unwrap();
        for create in [false, true] {
            let read = Description::open(dir.path(), create).unwrap();
            assert_eq!((read.id.as_str(), read.epoch.as_str()), ("e0", "e0"));
        }
    }
}
