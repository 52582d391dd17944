//! Copies of databases, for whoever reads a log that another process has, or one that may be damaged: sled writes into what it opens. They
//! hold events, so that nobody else may read them, and what a process that was cut off has left goes with the next one, with the next start
//! of the daemon, and with the next erasure.
//!
//! They are in `scratch/` of the data directory that the original is in, which the daemon makes and which stays. There an erasure reaches them
//! whoever made them: the daemon may have a `/tmp` of its own (systemd's `PrivateTmp`), or be in a container. Where this user may not write
//! there, where a copy would take of the room that the log keeps free, or where somebody else goes on filling one, they are in the directory
//! for temporary files.
//!
//! What root makes in a data directory is the daemon's user's from the beginning, who has to see whether it is held, and to be able to
//! remove it. So that user can put links there meanwhile. Who fills a copy writes through none that has a file's name; the names of
//! directories are followed, and so is what a database finds in its copy. Where the daemon's user is not trusted, a command that looks at
//! the log is better run as that user than as root.
//!
//! Whoever has a copy holds a lock on its directory. What nobody holds was left.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use tempfile::{Builder, TempDir};

use super::description;
use super::space::{self, Left};
use crate::{files, framefile};

/// Where they are, below a data directory. What is in it counts for no limit on that: looking at events must not make any go.
pub const DIR: &str = "scratch";

/// What it is called while root makes it.
const UNNAMED: &str = "scratch.new";

const PREFIX: &str = "closehook-copy-";

/// How the names of earlier versions began, before the number of the process, which held no lock.
const PREFIX_OF_OLD: &str = "closehook-";

/// The one directory that sled makes in a copy.
const BLOBS: &str = "blobs";

/// Somebody else may just be clearing what was left, and take a new one for that: so often another one is made.
const TRIES_MAX: u32 = 8;

/// What is in the directory for temporary files is cleared once, by the first copy that is made there.
static CLEARED: Once = Once::new();

/// So long somebody else may take to fill a copy; then another one is made elsewhere.
const FILLED_WITHIN: Duration = Duration::from_secs(10);

/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A directory that copies are in.
#[derive(Debug)]
struct Place {
    /// In a data directory it is used by its handle: whoever may write there can put a link in its place at any time. `None`: it is for
    /// temporary files, and others' as well.
    dir: Option<File>,
    name: PathBuf,
    /// Whose the copies are to be where root makes them: the daemon has to be able to remove them.
    owner: Option<(u32, u32)>,
}

impl Place {
    /// The one of a data directory.
    fn own(data_dir: &Path) -> io::Result<Place> {
        let name = data_dir.join(DIR);
        let dir = open_dir(&name)?;
        let found = dir.metadata()?;
        let is_root = rustix::process::geteuid().is_root();
        Ok(Place {
            dir: Some(dir),
            name,
            owner: is_root.then(|| (found.uid(), found.gid())),
        })
    }

    fn temporary(name: &Path) -> Place {
        Place {
            dir: None,
            name: name.to_owned(),
            owner: None,
        }
    }

    fn is_temporary(&self) -> bool {
        self.dir.is_none()
    }

    /// A path that leads to it, by its handle whatever becomes of its name.
    fn path(&self) -> PathBuf {
        match &self.dir {
            Some(dir) => Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()),
            None => self.name.clone(),
        }
    }

    /// Keeps others from filling copies here. Where somebody else goes on doing so there is no room that could be counted on.
    fn claim(&self, within: Duration) -> io::Result<()> {
        let until = Instant::now() + within;
        while let Some(Err(error)) = self.dir.as_ref().map(File::try_lock) {
            if let TryLockError::Error(error) = error {
                return Err(error);
            }
            if Instant::now() >= until {
                let busy = io::Error::new(io::ErrorKind::StorageFull, "another process goes on filling a copy");
                return Err(self.named(busy));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// The copy is filled: others may count on the room that is left.
    fn give_back(&self) -> io::Result<()> {
        self.dir.as_ref().map_or(Ok(()), File::unlock)
    }

    /// Where there is no room for a copy may not be where the log is: it is named.
    fn named(&self, error: io::Error) -> io::Error {
        if error.kind() != io::ErrorKind::StorageFull {
            return error;
        }
        let which = if self.is_temporary() { " (TMPDIR)" } else { "" };
        let text = format!(
            "{error}: there is no room for a copy of a part of it in {}{which}",
            self.name.display()
        );
        io::Error::new(error.kind(), text)
    }

    fn have_room(&self, bytes: u64, left: Left) -> io::Result<()> {
        space::is_room(space::of(&self.path())?, &self.name, bytes, left).map_err(|error| self.named(error))
    }

    fn make(self) -> io::Result<Scratch> {
        for _ in 0..TRIES_MAX {
            let dir = Builder::new()
                .prefix(PREFIX)
                .permissions(Permissions::from_mode(0o700))
                .tempdir_in(self.path())
                .map_err(|error| self.named(error))?;
            let Some(held) = hold(dir.path(), self.owner)? else {
                continue;
            };
            if let Some((user, group)) = self.owner {
                let blobs = dir.path().join(BLOBS);
                framefile::make_dir(&blobs)?;
                lchown(&blobs, Some(user), Some(group))?;
            }
            return Ok(Scratch {
                dir,
                _held: held,
                place: self,
            });
        }
        let why = format!("others remove again and again what is made in {}", self.name.display());
        Err(io::Error::other(why))
    }

    /// Removes what nobody holds; names what can't be removed.
    fn clear(&self) -> Vec<String> {
        let entries = match std::fs::read_dir(self.path()) {
            Ok(entries) => entries,
            Err(error) if self.is_temporary() && error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => return vec![unseen(&self.name, &error)],
        };
        let own = rustix::process::geteuid().as_raw();
        let is_ours = |found: Metadata| found.is_dir() && (!self.is_temporary() || found.uid() == own);
        let mut left = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            if !may_be_left(&name) || !entry.metadata().is_ok_and(is_ours) {
                continue;
            }
            let at = entry.path();
            let removed = match hold(&at, None) {
                Ok(Some(_held)) => remove(&at),
                Ok(None) => Ok(()),
                // One that root has only just made is empty.
                Err(error) => std::fs::remove_dir(&at).map_err(|_| error),
            };
            match removed {
                // Another one may have removed it meanwhile.
                Err(error) if !matches!(at.try_exists(), Ok(false)) => left.push(format!(
                    "{}: a copy of a part of a log that a command has left, which can't be removed: {error}",
                    self.name.join(&name).display()
                )),
                _ => {}
            }
        }
        left.sort();
        left
    }
}

/// A directory that nobody else may look into, and which goes when it is dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    dir: TempDir,
    /// Given back when the directory is gone.
    _held: File,
    place: Place,
}

impl Scratch {
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What is said of the copy as something said of its original: nobody else can find the copy.
    pub fn as_of(&self, original: &Path, said: &str) -> String {
        let copy = self.path().display().to_string();
        said.replace(&copy, &original.display().to_string())
    }
}

/// Makes one for a copy of so many bytes of what is at `original`, and leaves so much free where the log is. As long as it is there nobody
/// else fills one beside it: they would count on the same room.
pub(super) fn dir(original: &Path, bytes: u64, left: Left) -> io::Result<Scratch> {
    dir_or_in(&std::env::temp_dir(), original, bytes, left)
}

fn dir_or_in(temporary: &Path, original: &Path, bytes: u64, left: Left) -> io::Result<Scratch> {
    let data_dir = original.ancestors().find(|dir| description::is_in(dir));
    let own =
        data_dir.map(|dir| beside(dir, FILLED_WITHIN, |place| place.have_room(bytes, left)).and_then(Place::make));
    let lacking = match own {
        Some(Ok(made)) => return Ok(made),
        Some(Err(error)) => {
            tracing::debug!(%error, "a copy is made elsewhere");
            // What else keeps it from being there is no fault: it may be somebody else's directory, and one on a medium that nobody writes.
            files::is_full(&error).then_some(error)
        }
        None => None,
    };
    CLEARED.call_once(|| drop(Place::temporary(temporary).clear()));
    let made = elsewhere(data_dir, Place::temporary(temporary), bytes, left).and_then(Place::make);
    // Where only room was lacking, room is what it takes: that nothing can be written elsewhere has to be no fault either.
    made.map_err(|error| match lacking {
        Some(lacking) => {
            let text = format!("{lacking}; nor can one be made elsewhere: {error}");
            io::Error::new(io::ErrorKind::StorageFull, text)
        }
        None => error,
    })
}

/// The same, and has it filled; then others may be.
pub(super) fn copy(
    original: &Path,
    bytes: u64,
    left: Left,
    fill: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<Scratch> {
    let made = dir(original, bytes, left)?;
    fill(made.path()).map_err(|error| made.place.named(error))?;
    made.place.give_back()?;
    Ok(made)
}

/// The place in a data directory, where nobody else is filling a copy and there is room.
fn beside(data_dir: &Path, within: Duration, have_room: impl FnOnce(&Place) -> io::Result<()>) -> io::Result<Place> {
    let place = Place::own(data_dir)?;
    place.clear();
    place.claim(within)?;
    have_room(&place)?;
    Ok(place)
}

/// Another place, where that takes nothing of the room that is left to the log.
fn elsewhere(data_dir: Option<&Path>, place: Place, bytes: u64, left: Left) -> io::Result<Place> {
    let file_system = |dir: &Path| std::fs::metadata(dir).map(|found| found.dev()).ok();
    let is_the_logs = data_dir.is_some_and(|dir| file_system(dir) == file_system(&place.name));
    if is_the_logs {
        place.have_room(bytes, left)?;
    }
    Ok(place)
}

/// Opens a directory, and none that a link leads to.
fn open_dir(at: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::DIRECTORY;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(at)
}

/// Takes the lock on a directory; `None` where somebody else has it, or has removed it.
fn hold(dir: &Path, owner: Option<(u32, u32)>) -> io::Result<Option<File>> {
    let held = match open_dir(dir) {
        Ok(held) => held,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // First: who can't look into it takes no notice of the lock.
    if let Some((user, group)) = owner {
        fchown(&held, Some(user), Some(group))?;
    }
    match held.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // It may have been removed in between, and the lock is on what is no more.
    let is_it = |found: &Metadata, held: &Metadata| (found.dev(), found.ino()) == (held.dev(), held.ino());
    match std::fs::symlink_metadata(dir) {
        Ok(found) => Ok(is_it(&found, &held.metadata()?).then_some(held)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a copy that may be one of root's.
fn remove(at: &Path) -> io::Result<()> {
    std::fs::remove_dir_all(at).or_else(|_| {
        // What root has only just made is empty, and goes although nobody else may look into it.
        let _ = std::fs::remove_dir(at.join(BLOBS));
        std::fs::remove_dir_all(at)
    })
}

/// For whoever opens a log to write it: makes the place for copies, and removes what was left there. Gives a sentence for each that can't be.
pub(super) fn prepare(data_dir: &Path) -> Vec<String> {
    let made = if rustix::process::geteuid().is_root() {
        make_for_owner(data_dir)
    } else {
        make_own(data_dir)
    };
    match made {
        Ok(()) => clear_own(data_dir),
        Err(error) => {
            let name = data_dir.join(DIR);
            vec![format!("{} can't be made for copies: {error}", name.display())]
        }
    }
}

fn make_own(data_dir: &Path) -> io::Result<()> {
    let name = data_dir.join(DIR);
    framefile::make_dir(&name)?;
    match open_dir(&name) {
        // A command of root's made it, with an older closehook, and was cut off before it had left it to whose it is to be: it is empty.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            std::fs::remove_dir(&name).map_err(|_| error)?;
            framefile::make_dir(&name)
        }
        opened => opened.map(drop),
    }
}

/// Makes the place as root, for whose the data directory is, before it has its name: once this was cut off the daemon could not look into it,
/// nor remove what is left there.
fn make_for_owner(data_dir: &Path) -> io::Result<()> {
    let owner = std::fs::metadata(data_dir)?;
    let leave = |place: &Path| fchown(open_dir(place)?, Some(owner.uid()), Some(owner.gid()));
    let name = data_dir.join(DIR);
    match leave(&name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        left => return left,
    }
    // It may be there: what made it was cut off.
    let unnamed = data_dir.join(UNNAMED);
    framefile::make_dir(&unnamed)?;
    leave(&unnamed)?;
    match std::fs::rename(&unnamed, &name) {
        // Somebody else has made one, and uses it.
        Err(_) if open_dir(&name).is_ok() => std::fs::remove_dir(&unnamed),
        renamed => renamed,
    }
}

/// Removes what processes have left that are there no more, for an erasure: gives a sentence for each copy that can't be removed and may
/// hold some of it. What a process has that runs goes with it.
pub(super) fn clear(data_dir: &Path, temporary: &Path) -> Vec<String> {
    let mut left = clear_own(data_dir);
    left.extend(Place::temporary(temporary).clear());
    left
}

fn clear_own(data_dir: &Path) -> Vec<String> {
    match Place::own(data_dir) {
        Ok(place) => place.clear(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => vec![unseen(&data_dir.join(DIR), &error)],
    }
}

fn unseen(place: &Path, error: &io::Error) -> String {
    format!("{} can't be looked at for copies: {error}", place.display())
}

/// Whether what is called so is a copy that nobody has who holds no lock. An earlier version's is there with its process.
fn may_be_left(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    if name.starts_with(PREFIX) {
        return true;
    }
    // Other things of closehook's have the same beginning.
    let number = name.strip_prefix(PREFIX_OF_OLD).and_then(|rest| rest.split_once('-'));
    let number = number.and_then(|(number, _)| number.parse::<u32>().ok());
    number.is_some_and(|number| !Path::new("/proc").join(number.to_string()).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// A data directory as the daemon leaves it, and where copies are.
    fn data_dir() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        description::Description::open(dir.path(), true).unwrap();
        assert_eq!(prepare(dir.path()), [""; 0]);
        let copies = dir.path().join(DIR);
        (dir, copies)
    }

    /// A copy that a command has left.
    fn leave(place: &Path, name: &str) -> PathBuf {
        let left = place.join(name);
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("db"), "jane@example.com").unwrap();
        left
    }

    #[test]
    fn a_copy_is_for_nobody_else_and_what_nobody_holds_goes() {
        let into = tempfile::tempdir().unwrap();
        let copy = Place::temporary(into.path()).make().unwrap();
        let mode = std::fs::metadata(copy.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let held = copy.path().file_name().unwrap().to_str().unwrap().to_owned();
        // An earlier version's of a process that runs, and of none: they end far below.
        let of_old = format!("closehook-{}-a", std::process::id());
        let left = leave(into.path(), "closehook-copy-a");
        let others = ["closehook-old", "closehook-listen-a", "else-4294967295-a"].map(str::to_owned);
        let mut stay = vec![held, of_old];
        stay.extend(others);
        for name in &stay[1..] {
            leave(into.path(), name);
        }
        leave(into.path(), "closehook-4294967295-a");
        assert_eq!(clear(Path::new("/nowhere"), into.path()), [""; 0]);
        stay.sort();
        assert_eq!(names(into.path()), stay);
        assert!(!left.exists());
        drop(copy);
        assert_eq!(names(into.path()).len(), stay.len() - 1);
    }

    #[test]
    fn a_copy_is_in_the_data_directory_that_the_original_is_in() {
        let (data_dir, copies) = data_dir();
        let dir = data_dir.path();
        let full = beside(dir, Duration::ZERO, |_| Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull, "there is no room");
        let (all, left) = (u64::MAX, Left::ReserveTwice);
        assert!(Place::own(dir).unwrap().have_room(all, left).is_err());
        let full = elsewhere(Some(dir), Place::temporary(dir), all, left).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull, "nor on the same file system");
        elsewhere(Some(Path::new("/proc")), Place::temporary(dir), all, left).unwrap();
        elsewhere(None, Place::temporary(dir), all, left).unwrap();
        let copy = beside(dir, Duration::ZERO, |_| Ok(())).unwrap().make().unwrap();
        std::fs::write(copy.path().join("db"), "x").unwrap();
        assert_eq!(names(&copies).len(), 1);
        drop(copy);
        assert_eq!(names(&copies), [""; 0], "nothing is left of it");

        // Where nobody has made the place, and where a link leads, nothing goes.
        std::fs::remove_dir(&copies).unwrap();
        assert!(beside(dir, Duration::ZERO, |_| Ok(())).is_err());
        let target = tempfile::tempdir().unwrap();
        let there = leave(target.path(), "closehook-copy-a");
        std::os::unix::fs::symlink(target.path(), &copies).unwrap();
        assert!(beside(dir, Duration::ZERO, |_| Ok(())).is_err());
        assert_eq!(clear_own(dir).len(), 1, "that is said");
        assert!(there.exists());
    }

    /// A copy stays where it is made, and is cleared from there, whatever takes the place's name meanwhile.
    #[test]
    fn a_link_that_takes_the_places_name_leads_nobody_away() {
        let (data_dir, copies) = data_dir();
        let place = Place::own(data_dir.path()).unwrap();
        leave(&copies, "closehook-copy-a");
        let target = tempfile::tempdir().unwrap();
        let there = leave(target.path(), "closehook-copy-a");
        let away = data_dir.path().join("away");
        std::fs::rename(&copies, &away).unwrap();
        std::os::unix::fs::symlink(target.path(), &copies).unwrap();
        assert_eq!(place.clear(), [""; 0]);
        assert!(!away.join("closehook-copy-a").exists() && there.exists());
        let copy = place.make().unwrap();
        assert_eq!((names(&away).len(), names(target.path()).len()), (1, 1));
        drop(copy);
        assert_eq!(names(&away), [""; 0]);
    }

    /// Whoever made it was cut off before it was the daemon's.
    #[test]
    fn a_place_that_root_could_not_leave_to_the_daemon_keeps_nobody_from_one() {
        let (data_dir, copies) = data_dir();
        let dir = data_dir.path();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir, Some(1), Some(1)).unwrap();
            std::fs::remove_dir(&copies).unwrap();
            framefile::make_dir(&dir.join(UNNAMED)).unwrap();
            assert_eq!(prepare(dir), [""; 0]);
            let made = std::fs::metadata(&copies).unwrap();
            assert_eq!((made.uid(), made.gid()), (1, 1));
            assert!(!dir.join(UNNAMED).exists());
        } else {
            std::fs::set_permissions(&copies, Permissions::from_mode(0o0)).unwrap();
            assert_eq!(prepare(dir), [""; 0]);
            assert_eq!(clear_own(dir), [""; 0]);
        }
        let mode = std::fs::metadata(&copies).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    /// What is only waited for must not look like what can't be: a start goes on without it.
    #[test]
    fn where_only_room_is_lacking_that_is_said_whatever_keeps_a_copy_from_being_elsewhere() {
        let (_data_dir, copies) = data_dir();
        let nowhere = Path::new("/proc/nowhere");
        let dir = |bytes| dir_or_in(nowhere, &copies, bytes, Left::Little);
        let full = dir(u64::MAX / 2).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let text = full.to_string();
        for part in ["have to be free", copies.to_str().unwrap(), "/proc/nowhere"] {
            assert!(text.contains(part), "{text}");
        }
        dir(0).unwrap();
        std::fs::remove_dir(&copies).unwrap();
        assert_ne!(dir(0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn nobody_counts_on_the_room_of_a_copy_that_is_being_filled() {
        let (data_dir, copies) = data_dir();
        let filled = beside(data_dir.path(), Duration::ZERO, |_| Ok(()))
            .unwrap()
            .make()
            .unwrap();
        let busy = beside(data_dir.path(), Duration::ZERO, |_| Ok(())).unwrap_err();
        assert_eq!(busy.kind(), io::ErrorKind::StorageFull, "{busy}");
        filled.place.give_back().unwrap();
        let other = beside(data_dir.path(), Duration::ZERO, |_| Ok(()))
            .unwrap()
            .make()
            .unwrap();
        assert_eq!(names(&copies).len(), 2, "the first one is held all the same");
        drop((filled, other));
        assert!(beside(data_dir.path(), Duration::ZERO, |_| Ok(())).is_ok());
    }

    #[test]
    fn what_was_left_in_a_data_directory_goes_and_what_is_held_stays() {
        let (data_dir, copies) = data_dir();
        let copy = beside(data_dir.path(), Duration::ZERO, |_| Ok(()))
            .unwrap()
            .make()
            .unwrap();
        let left = ["closehook-copy-left", "closehook-4294967295-left"].map(|name| leave(&copies, name));
        assert_eq!(prepare(data_dir.path()), [""; 0]);
        assert!(copy.path().exists() && left.iter().all(|left| !left.exists()));
    }
}
