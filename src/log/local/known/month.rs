//! The keys of many segments of one calendar month, in one database.
//!
//! `keys/<month>-<first segment>-<last segment>-<generation>/` holds a database with the pages of keys, made as that of a
//! sealed segment is (built, read back until it rests, synced); `index`, which is what stays in memory of them: a filter and the
//! first hash of each page; and a manifest, twice, that says whose keys these are and names the database's files with their
//! checksums. It never changes. The database is opened when one of its keys is asked for, after its files were compared, and
//! closed when idle. Every page has a checksum of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::super::fault::SegmentError;
use super::super::scratch::{self, Scratch};
use super::super::sealed::database::{self, Database, FileSum, Tree};
use super::super::space::Left;
use super::disk::{damage, is_damage};
use super::file::Head;
use super::filter::Probe;
use super::page::{self, pages_of};
use super::part::{Part, part};
use super::set::Known;
use crate::event::Seq;
use crate::framefile::{self, Format, FrameError, FrameFile, StreamReader};
use crate::sync::lock;

pub(super) use database::DB_NAME as DATABASE;
pub(super) const INDEX: &str = "index";
const MANIFESTS: [&str; 2] = ["manifest.second", "manifest"];

const INDEX_MAGIC: [u8; 8] = *b"CLHKKIDX";
const MANIFEST: Format = Format {
    magic: *b"CLHKMNTH",
    version: 1,
};

/// A database is opened anew when so much was read from it: its cache forgets nothing.
const READ_MAX: usize = 8 << 20;

/// What a month's directory holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The directory's name.
    pub name: String,
    /// The month of receipt, as in `2024-02`.
    pub month: String,
    /// Grows with each time that keys are merged.
    pub generation: u32,
    /// The segments all of whose keys are in it.
    pub segments: Vec<Seq>,
    /// The segments of which some keys are in it: it is what could be saved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partly: Vec<Seq>,
    /// How many keys.
    pub count: u64,
    /// When the newest event was received, in µs.
    pub newest_us: i64,
    /// How many pages.
    pub pages: usize,
    /// The database's files.
    pub files: Vec<FileSum>,
}

impl Manifest {
    /// Reads the manifest in a directory, or else the second one.
    pub fn load(dir: &Path) -> io::Result<Manifest> {
        Manifest::load_one(dir, MANIFESTS[1]).or_else(|error| {
            if is_damage(&error) {
                Manifest::load_one(dir, MANIFESTS[0])
            } else {
                Err(error)
            }
        })
    }

    fn load_one(dir: &Path, name: &str) -> io::Result<Manifest> {
        let mut found = None;
        framefile::scan(&dir.join(name), MANIFEST, |frame| {
            found = serde_json::from_slice(frame.payload).ok();
        })
        .map_err(|error| match error {
            framefile::FrameError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                damage("there is no manifest")
            }
            framefile::FrameError::Io { source, .. } => source,
            error @ framefile::FrameError::Newer { .. } => io::Error::other(error.to_string()),
            other => damage(&other.to_string()),
        })?;
        found.ok_or_else(|| damage("its manifest can't be read"))
    }

    /// A sentence for each of the two on disk that is damaged.
    fn faults(dir: &Path) -> io::Result<Vec<String>> {
        let mut faults = Vec::new();
        for name in MANIFESTS {
            match Manifest::load_one(dir, name) {
                Err(error) if is_damage(&error) => faults.push(format!("{}: {error}", dir.join(name).display())),
                loaded => drop(loaded?),
            }
        }
        Ok(faults)
    }

    /// Whether this is the name of one, below a month's directory.
    pub fn is_one(name: &Path) -> bool {
        MANIFESTS.iter().any(|manifest| name == Path::new(manifest))
    }

    /// What the bytes of one say.
    fn read(bytes: &[u8]) -> io::Result<Manifest> {
        let told = |error: FrameError| match error {
            error @ FrameError::Newer { .. } => io::Error::other(error.to_string()),
            error => damage(&error.to_string()),
        };
        let mut frames = StreamReader::new(bytes, Path::new(MANIFESTS[1]), MANIFEST).map_err(told)?;
        let frame = frames.next_frame().map_err(told)?;
        let read = frame.and_then(|(_, payload)| serde_json::from_slice(payload).ok());
        read.ok_or_else(|| damage("its manifest can't be read"))
    }

    /// What is known without the index.
    fn head(&self) -> Head {
        Head {
            count: self.count,
            newest_us: self.newest_us,
            ..Head::new(0)
        }
    }

    fn store(&self, dir: &Path) -> io::Result<()> {
        let json = serde_json::to_vec(self)?;
        let unnamed = dir.join("manifest.new");
        let write = || -> Result<(), framefile::FrameError> {
            let mut file = FrameFile::create(&unnamed, MANIFEST)?;
            file.append(0, &[&json])?;
            file.sync()
        };
        for name in MANIFESTS {
            write().map_err(|error| io::Error::other(error.to_string()))?;
            std::fs::rename(&unnamed, dir.join(name))?;
            framefile::sync_dir(dir)?;
        }
        Ok(())
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Month {
    pub dir: PathBuf,
    pub manifest: Manifest,
    pub bytes: u64,
    head: Head,
    /// Not the owner of the directory: only copies are opened.
    visitor: bool,
    /// Bytes that are written while a copy of it is there.
    beside: u64,
    /// What a copy of it leaves free.
    left: Left,
    database: Mutex<Handle>,
}

#[derive(Debug, Default)]
struct Handle {
    open: Option<Open>,
    /// The files were compared with the manifest since this process started.
    checked: bool,
}

#[derive(Debug)]
struct Open {
    db: Database,
    last_used: Instant,
    read: usize,
    /// Deleted when the database is closed.
    _copy: Option<Scratch>,
}

impl Month {
    /// Opens what is in a directory: reads manifest and index.
    pub fn open(dir: &Path, visitor: bool) -> io::Result<Month> {
        let manifest = Manifest::load(dir)?;
        let index = dir.join(INDEX);
        let file = File::open(&index).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => damage("its index is missing"),
            _ => error,
        })?;
        let (head, index_len) = Head::read(&file, INDEX_MAGIC)?;
        if head.firsts.len() != manifest.pages {
            return Err(damage("its index is another one's"));
        }
        let files: u64 = manifest.files.iter().map(|file| file.len).sum();
        Ok(Month {
            dir: dir.to_owned(),
            bytes: files + index_len,
            manifest,
            head,
            visitor,
            beside: 0,
            left: Left::ReserveTwice,
            database: Mutex::default(),
        })
    }

    /// A sentence for each of its two manifests that is damaged: as long as the other one is whole, nothing is lost to that.
    pub fn damaged_manifests(&self) -> io::Result<Vec<String>> {
        Manifest::faults(&self.dir)
    }

    /// Writes both anew where one of them is damaged. For the owner; one that can't be written now is still damaged at the next start.
    pub fn mend_manifests(&self) {
        let mended = self.damaged_manifests().and_then(|faults| {
            for fault in &faults {
                tracing::error!(
                    fault,
                    "one of the two manifests of known keys is damaged; the other one is whole, and is written in its place"
                );
            }
            if faults.is_empty() { Ok(()) } else { self.manifest.store(&self.dir) }
        });
        if let Err(error) = mended {
            tracing::warn!(%error, dir = %self.dir.display(), "the manifests of known keys could not be looked at or written anew");
        }
    }

    /// Compares all its files with what they were, and opens none of them.
    pub fn check(&self) -> io::Result<()> {
        Month::open(&self.dir, true)?;
        check_files(&self.dir.join(DATABASE), &self.manifest.files)
    }

    /// Opens it without its index, for what can be saved of it.
    pub fn without_index(dir: &Path) -> io::Result<Month> {
        let manifest = Manifest::load(dir)?;
        Ok(Month {
            dir: dir.to_owned(),
            bytes: manifest.files.iter().map(|file| file.len).sum(),
            head: manifest.head(),
            manifest,
            visitor: true,
            beside: 0,
            left: Left::ReserveTwice,
            database: Mutex::default(),
        })
    }

    /// What to read of it although something in it is damaged: a copy, whose files are compared with nothing.
    pub fn to_be_saved(&self) -> Month {
        Month {
            dir: self.dir.clone(),
            bytes: 0,
            manifest: self.manifest.clone(),
            head: self.manifest.head(),
            visitor: true,
            beside: self.bytes,
            // As what it is merged into: were more asked for here, it would wait for that.
            left: Left::Little,
            database: Mutex::new(Handle {
                open: None,
                checked: true,
            }),
        }
    }

    /// Closes the database if nobody used it for `idle`.
    pub fn close_idle(&self, idle: Duration) {
        // Whoever holds the lock is using it.
        if let Ok(mut database) = self.database.try_lock()
            && database
                .open
                .as_ref()
                .is_some_and(|open| open.last_used.elapsed() >= idle)
        {
            database.open = None;
        }
    }

    fn read_page(&self, number: usize) -> io::Result<Vec<u8>> {
        let mut database = lock(&self.database);
        if database.open.is_none() {
            let path = self.dir.join(DATABASE);
            if !database.checked {
                check_files(&path, &self.manifest.files)?;
                database.checked = true;
            }
            database.open = Some(self.open_database(&path)?);
        }
        let open = database.open.as_mut().ok_or_else(|| damage("not open"))?;
        open.last_used = Instant::now();
        let page = open.db.get(Tree::Keys, &page_key(number)).map_err(told)?;
        let page = page.ok_or_else(|| damage("a page of known keys is missing"))?;
        open.read += page.len();
        if open.read > READ_MAX {
            database.open = None;
        }
        Ok(page)
    }

    fn open_database(&self, original: &Path) -> io::Result<Open> {
        let copy = if self.visitor {
            let bytes: u64 = self.manifest.files.iter().map(|file| file.len).sum();
            Some(copy_of(original, bytes + self.beside, self.left)?)
        } else {
            None
        };
        let path = copy.as_ref().map_or(original, |copy| copy.path());
        let named = |error| match (error, &copy) {
            (SegmentError::Damaged(why), Some(copy)) => SegmentError::Damaged(copy.as_of(original, &why)),
            (error, _) => error,
        };
        Ok(Open {
            db: Database::open(path).map_err(named).map_err(told)?,
            last_used: Instant::now(),
            read: 0,
            _copy: copy,
        })
    }
}

impl Known for Month {
    fn count(&self) -> u64 {
        self.head.count
    }

    fn newest_us(&self) -> i64 {
        self.head.newest_us
    }

    fn may_hold(&self, probe: &Probe) -> bool {
        self.head.filter.may_hold(probe)
    }

    fn around(&self, hash: u64, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()> {
        for number in pages_of(&self.head.firsts, hash) {
            self.page(number, each)?;
        }
        Ok(())
    }

    fn pages(&self) -> usize {
        self.manifest.pages
    }

    fn page(&self, number: usize, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()> {
        page::for_each(&self.read_page(number)?, number, each)
    }
}

/// A month that is being made, in a directory of its own.
pub(super) struct Builder {
    dir: PathBuf,
    db: Database,
    head: Head,
    pages: page::Pages,
    unflushed: usize,
}

impl Builder {
    /// Begins one of at most so many keys in an empty directory.
    pub fn new(dir: &Path, keys: u64, newest_us: i64) -> io::Result<Builder> {
        Ok(Builder {
            dir: dir.to_owned(),
            db: Database::of_small_values(&dir.join(DATABASE)).map_err(told)?,
            head: Head {
                newest_us,
                ..Head::new(keys)
            },
            pages: page::Pages::default(),
            unflushed: 0,
        })
    }

    /// Adds the next key in the order of hashes.
    pub fn push(&mut self, hash: u64, key: &[u8], seq: Seq) -> io::Result<()> {
        let number = self.pages.firsts.len();
        self.head.filter.insert(hash);
        self.head.count += 1;
        match self.pages.push(hash, key, seq)? {
            Some(page) => self.put(number - 1, &page),
            None => Ok(()),
        }
    }

    fn put(&mut self, number: usize, page: &[u8]) -> io::Result<()> {
        self.db.put(Tree::Keys, &page_key(number), page).map_err(told)?;
        self.unflushed += page.len();
        if self.unflushed > FLUSHED_LEN {
            self.unflushed = 0;
            self.db.flush().map_err(told)?;
        }
        Ok(())
    }

    /// Makes it durable; the manifest, whose files and pages are filled in here, comes last.
    pub fn finish(mut self, mut manifest: Manifest, go_on: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        if let Some(page) = self.pages.take()? {
            self.put(self.pages.firsts.len() - 1, &page)?;
        }
        self.db.flush().map_err(told)?;
        drop(self.db);
        manifest.pages = self.pages.firsts.len();
        (manifest.count, manifest.newest_us) = (self.head.count, self.head.newest_us);
        self.head.firsts = self.pages.firsts;
        manifest.files = database::settle(&self.dir.join(DATABASE), &mut |db| {
            for number in 0..manifest.pages {
                let page = db.get(Tree::Keys, &page_key(number))?.unwrap_or_default();
                page::for_each(&page, number, |_, _| ()).map_err(|error| SegmentError::Damaged(error.to_string()))?;
                go_on()?;
            }
            Ok(())
        })
        .map_err(told)?;
        framefile::replace_file(&self.dir.join(INDEX), &self.head.encode(INDEX_MAGIC))?;
        manifest.store(&self.dir)
    }
}

/// What is put between two flushes: without them the same leaves are rewritten again and again.
const FLUSHED_LEN: usize = 200 << 10;

fn page_key(number: usize) -> [u8; 4] {
    (number as u32).to_be_bytes()
}

fn told(error: SegmentError) -> io::Error {
    match error {
        SegmentError::Io(error) => error,
        SegmentError::Damaged(why) => damage(&why),
        SegmentError::Retired | SegmentError::Newer(_) => io::Error::other(error.to_string()),
    }
}

/// Compares a database's files with what they were, before it is opened.
fn check_files(dir: &Path, sums: &[FileSum]) -> io::Result<()> {
    for expected in sums {
        let bad = |why: &str| damage(&format!("{}: {why}", expected.name));
        let file = File::open(dir.join(&expected.name)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => bad("it is missing"),
            _ => error,
        })?;
        if file.metadata()?.len() != expected.len || database::sum(file, &mut || true)? != expected.crc {
            return Err(bad("it is not what it was"));
        }
    }
    Ok(())
}

/// Compares the files of one, as they passed by, with what they were: what [`Month::check`] does on disk.
pub(super) fn judge(parts: &BTreeMap<PathBuf, Part>) -> io::Result<()> {
    let manifest = |name: &str| Manifest::read(&part(parts, Path::new(name))?.begin);
    let manifest = manifest(MANIFESTS[1]).or_else(|error| {
        if is_damage(&error) {
            manifest(MANIFESTS[0])
        } else {
            Err(error)
        }
    })?;
    let index = part(parts, Path::new(INDEX))?;
    if !Head::is_all_of(index, INDEX_MAGIC, manifest.pages) {
        return Err(damage("its index is not what it was"));
    }
    for expected in &manifest.files {
        let found = part(parts, &Path::new(DATABASE).join(&expected.name))?;
        if (found.len, found.crc) != (expected.len, expected.crc) {
            return Err(damage(&format!("{}: it is not what it was", expected.name)));
        }
    }
    Ok(())
}

/// A copy that is where there is room for so many bytes and what is to be left.
fn copy_of(dir: &Path, bytes: u64, left: Left) -> io::Result<Scratch> {
    scratch::copy(dir, bytes, left, |to| {
        for name in database::files_below(dir)? {
            let target = to.join(&name);
            if let Some(parent) = target.parent() {
                framefile::make_dir(parent)?;
            }
            // No link is followed there, by which a user's would be written as root.
            io::copy(&mut File::open(dir.join(&name))?, &mut framefile::make_file(&target)?)?;
        }
        Ok(())
    })
}
