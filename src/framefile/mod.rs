//! Append-only files of checksummed frames: what the journal, the state and the dead letters are kept in.
//!
//! A file is a 32-byte header and then frames: `magic, payload length, CRC-32C, tag`, each a little-endian `u32`, and the
//! payload. The CRC covers length, tag and payload, so a frame is either whole or recognised as damage.
//!
//! Promises:
//!
//! - A frame for which [`FrameFile::sync`] returned is there after a power cut (`fdatasync`; creating a file also syncs its
//!   directory).
//! - After a failed or partial write the file is truncated to its last good offset and synced before anything else is
//!   appended. After a failed sync, or where the truncation fails, the file is *poisoned* and takes no more frames: what the
//!   kernel then holds can't be known, so the owner goes on in a new file.
//! - Opening finds every whole frame. Bytes that are no frame are cut off only at the end, where no whole frame follows;
//!   in the middle they are stepped over and reported as [`Damage`], and the file stays as it is.
//! - Bytes that the medium does not give back (`EIO` and the like) are damage too, and stepped over as bytes that are no frame.
//!   Where they are at the end nobody knows what they held: nothing is cut off then.
//! - A file may be told to [make room](FrameFile::with_room): zeros written ahead, so that a frame goes where the file system has
//!   nothing to note down, and syncing it takes half the time (measured on ext4: 97 instead of 193 µs). Zeros at the end of a
//!   file are room and no damage; opening it for writing cuts them off.
//! - A file of a newer format is refused ([`FrameError::Newer`]), never guessed at.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What room is made of.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Bytes of the file header: magic (8), version (4), reserved (16), CRC-32C of those (4).
pub const HEADER_LEN: u64 = 32;

/// Bytes in front of each frame's payload.
pub const FRAME_OVERHEAD: u64 = 16;

/// No frame is larger (a group commit holds at most one body of 64 MiB beside small ones).
pub const FRAME_LEN_MAX: usize = 128 << 20;

const FRAME_MAGIC: [u8; 4] = [0xC1, 0x05, 0xE7, 0x0F];

/// What a file holds: its magic and the newest format version this program knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Eight bytes at the start of every such file.
    pub magic: [u8; 8],
    /// Written into new files; a file with a higher one is refused.
    pub version: u32,
}

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Another program's file, or its header is damaged.
    #[error("{0} does not begin as a closehook file of this kind; it is damaged or not one")]
    Alien(PathBuf),
    /// Written by a newer closehook.
    #[error("{path} has format version {found}, this closehook knows up to {known}: run the newer version")]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest one known here.
        known: u32,
    },
    /// A frame that was whole when it was written is not any more.
    #[error("{path}: the frame at byte {offset} is damaged")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
    },
    /// An earlier failure made the file unusable for writing.
    #[error("{0} can't be written any more after an earlier failure")]
    Poisoned(PathBuf),
}

/// A range of bytes that is no frame although whole frames follow it, or that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// First bad byte.
    pub from: u64,
    /// The next whole frame, or the end of the file.
    pub to: u64,
}

/// What a scan found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scan {
    /// Where the last whole frame ends, or what can't be read behind it: nothing before this is cut off.
    pub good_len: u64,
    /// Bytes behind it that are no frame: a write that was under way when the process or the machine stopped. Zeros at the end
    /// do not count.
    pub torn: u64,
    /// Bytes at the end that may have held frames, and can't be read; the zeros behind them do not count.
    pub unknown: u64,
    /// Damage in the middle, and what can't be read at the end.
    pub damage: Vec<Damage>,
}

impl Scan {
    /// Whether the file ends with bytes that can't be read: there may be more frames than were found.
    pub fn ends_unreadable(&self) -> bool {
        self.damage.last().is_some_and(|damage| damage.to == self.good_len)
    }
}

/// One whole frame of a scan.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Where it begins; hand it to [`FrameFile::read`] later.
    pub offset: u64,
    /// The owner's mark on it.
    pub tag: u32,
    /// What was appended.
    pub payload: &'a [u8],
    /// The damage stepped over right before it, if any.
    pub after_damage: Option<Damage>,
}

/// An open file of frames.
#[derive(Debug)]
pub struct FrameFile {
    file: File,
    path: PathBuf,
    len: u64,
    /// Where the file ends; behind `len` there are only zeros.
    end: u64,
    /// Bytes of room made at a time; 0: none is made.
    room: u64,
    /// The file's length has changed since the last sync.
    grown: bool,
    poisoned: bool,
    scratch: Vec<u8>,
}

impl FrameFile {
    /// Makes a new, empty file (mode 0600) and syncs it and its directory; its owner makes sure that the name is free. It
    /// takes its name only when its header is on disk, so a crash never leaves a file without one.
    pub fn create(path: &Path, format: Format) -> Result<FrameFile, FrameError> {
        let fail = |source| FrameError::Io {
            path: path.to_owned(),
            source,
        };
        let file = replace_with(path, &header(format), 0o600, None).map_err(fail)?;
        Ok(FrameFile {
            file,
            path: path.to_owned(),
            len: HEADER_LEN,
            end: HEADER_LEN,
            room: 0,
            grown: false,
            poisoned: false,
            scratch: Vec::new(),
        })
    }

    /// Stands for a file that could not be made: nothing can be written to it, as to one whose sync has failed.
    pub fn nowhere(path: &Path) -> io::Result<FrameFile> {
        Ok(FrameFile {
            file: File::open("/dev/null")?,
            path: path.to_owned(),
            len: HEADER_LEN,
            end: HEADER_LEN,
            room: 0,
            grown: false,
            poisoned: true,
            scratch: Vec::new(),
        })
    }

    /// Makes room for so many bytes ahead whenever a frame reaches the end of the file. For a file that is synced often.
    #[must_use]
    pub fn with_room(self, room: u64) -> FrameFile {
        FrameFile { room, ..self }
    }

    /// Opens a file for appending, handing every whole frame to `each`. A torn tail is cut off and the cut synced.
    pub fn open(path: &Path, format: Format, each: impl FnMut(Frame<'_>)) -> Result<(FrameFile, Scan), FrameError> {
        let fail = |source| FrameError::Io {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(fail)?;
        let file_len = file.metadata().map_err(fail)?.len();
        let scan = scan_file(&file, file_len, path, format, each)?;
        let len = scan.good_len;
        if file_len > len {
            file.set_len(len).map_err(fail)?;
            file.sync_all().map_err(fail)?;
        }
        Ok((
            FrameFile {
                file,
                path: path.to_owned(),
                len,
                end: len,
                room: 0,
                grown: false,
                poisoned: false,
                scratch: Vec::new(),
            },
            scan,
        ))
    }

    /// The file as it is called from now on: its owner gives it that name.
    #[must_use]
    pub fn named(self, path: &Path) -> FrameFile {
        FrameFile {
            path: path.to_owned(),
            ..self
        }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes: the offset of the next frame.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes it takes up, room included.
    pub fn disk_len(&self) -> u64 {
        self.end
    }

    /// Makes so much room from now on.
    pub fn set_room(&mut self, room: u64) {
        self.room = room;
    }

    /// Whether it holds no frame.
    pub fn is_empty(&self) -> bool {
        self.len == HEADER_LEN
    }

    /// Whether an earlier failure made it unusable for writing.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// A second handle for readers, independent of this one's lifetime.
    pub fn reader(&self) -> io::Result<FrameReader> {
        Ok(FrameReader {
            file: self.file.try_clone()?,
            path: self.path.clone(),
        })
    }

    /// Appends one frame, made of the parts one after the other, in one write, and says where it begins. Not durable
    /// before [`FrameFile::sync`].
    pub fn append(&mut self, tag: u32, parts: &[&[u8]]) -> Result<u64, FrameError> {
        if self.poisoned {
            return Err(FrameError::Poisoned(self.path.clone()));
        }
        let mut frame = std::mem::take(&mut self.scratch);
        if let Err(error) = encode(&mut frame, tag, parts) {
            self.scratch = frame;
            return Err(self.io(error));
        }

        let offset = self.len;
        let written = self.file.write_all_at(&frame, offset);
        let frame_len = frame.len() as u64;
        // Keep the buffer for the next frame, unless a huge body blew it up.
        if frame.capacity() <= 4 << 20 {
            self.scratch = frame;
        }
        match written {
            Ok(()) => {
                self.len += frame_len;
                if self.len > self.end {
                    self.end = self.len;
                    self.grown = true;
                    self.make_room(self.room);
                }
                Ok(offset)
            }
            Err(source) => {
                self.end = offset;
                if self.file.set_len(offset).and_then(|()| self.file.sync_all()).is_err() {
                    self.poisoned = true;
                }
                Err(self.io(source))
            }
        }
    }

    /// Makes a little more room, durably, where half of it is used up: for moments in which nobody waits, so that no append has to
    /// make all of it at once. Where there is no space for it nothing is done. A failure to sync poisons the file.
    pub fn top_up(&mut self) -> Result<(), FrameError> {
        let half = self.room / 2;
        if self.poisoned || self.end == self.len || self.end - self.len >= half {
            return Ok(());
        }
        let end = self.end;
        self.make_room(half.min(ZEROS.len() as u64));
        if self.end == end {
            return Ok(());
        }
        self.grown = true;
        self.sync()
    }

    /// Writes zeros behind the end; the next sync makes them last, too. Where there is no space for them there is none.
    fn make_room(&mut self, room: u64) {
        let room_end = self.end + room;
        while self.end < room_end {
            let len = (room_end - self.end).min(ZEROS.len() as u64) as usize;
            if self.file.write_all_at(&ZEROS[..len], self.end).is_err() {
                // A part of them may be there; that it can't be taken back harms nobody.
                let _ = self.file.set_len(self.end);
                return;
            }
            self.end += len as u64;
        }
    }

    /// Gives room that was made and is not needed any more back to the file system. Not durable by itself.
    pub fn trim(&mut self) {
        if self.end > self.len && self.file.set_len(self.len).is_ok() {
            self.end = self.len;
        }
    }

    /// Makes everything appended durable (`fdatasync`). A failure poisons the file.
    pub fn sync(&mut self) -> Result<(), FrameError> {
        if self.poisoned {
            return Err(FrameError::Poisoned(self.path.clone()));
        }
        // A new length is in the file system's journal, and ext4 can report success although that was aborted while it was
        // waited for (the file system was shut down, or its device failed). Asked again, it says so.
        let again = std::mem::take(&mut self.grown);
        let synced = self.file.sync_data();
        let synced = if again {
            synced.and_then(|()| self.file.sync_data())
        } else {
            synced
        };
        synced.map_err(|source| {
            self.poisoned = true;
            self.io(source)
        })
    }

    /// Reads one frame back, checking it.
    pub fn read(&self, offset: u64) -> Result<(u32, Vec<u8>), FrameError> {
        read_frame(&self.file, &self.path, offset)
    }

    fn io(&self, source: io::Error) -> FrameError {
        FrameError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

/// Reads single frames of a file that somebody else appends to.
#[derive(Debug)]
pub struct FrameReader {
    file: File,
    path: PathBuf,
}

impl FrameReader {
    /// Opens a file for reading single frames; its header is not looked at.
    pub fn open(path: &Path) -> Result<FrameReader, FrameError> {
        let file = File::open(path).map_err(|source| FrameError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(FrameReader {
            file,
            path: path.to_owned(),
        })
    }

    /// Reads one frame, checking it: its tag and its payload.
    pub fn read(&self, offset: u64) -> Result<(u32, Vec<u8>), FrameError> {
        read_frame(&self.file, &self.path, offset)
    }
}

/// Writes a header and frames to whatever takes bytes: a pipe, a socket, a file that somebody else syncs.
#[derive(Debug)]
pub struct StreamWriter<W> {
    out: W,
    scratch: Vec<u8>,
}

impl<W: Write> StreamWriter<W> {
    /// Begins with the header.
    pub fn new(mut out: W, format: Format) -> io::Result<StreamWriter<W>> {
        out.write_all(&header(format))?;
        Ok(StreamWriter {
            out,
            scratch: Vec::new(),
        })
    }

    /// Writes one frame, made of the parts one after the other.
    pub fn append(&mut self, tag: u32, parts: &[&[u8]]) -> io::Result<()> {
        encode(&mut self.scratch, tag, parts)?;
        self.out.write_all(&self.scratch)
    }

    /// Flushes, and gives the output back.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Reads what a [`StreamWriter`] wrote, front to back. Nothing is stepped over: the first bad frame is an error.
#[derive(Debug)]
pub struct StreamReader<R> {
    input: R,
    path: PathBuf,
    offset: u64,
    payload: Vec<u8>,
}

impl<R: Read> StreamReader<R> {
    /// Reads and checks the header; `path` is what errors call the input.
    pub fn new(mut input: R, path: &Path, format: Format) -> Result<StreamReader<R>, FrameError> {
        let mut bytes = [0; HEADER_LEN as usize];
        match input.read_exact(&mut bytes) {
            Ok(()) => judge_header(&bytes, path, format)?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(FrameError::Alien(path.to_owned()));
            }
            Err(source) => {
                return Err(FrameError::Io {
                    path: path.to_owned(),
                    source,
                });
            }
        }
        Ok(StreamReader {
            input,
            path: path.to_owned(),
            offset: HEADER_LEN,
            payload: Vec::new(),
        })
    }

    /// The next frame, its tag and its payload; `None` where the input ends, be it in the middle of a frame: who wrote the
    /// frames knows which one is the last.
    pub fn next_frame(&mut self) -> Result<Option<(u32, &[u8])>, FrameError> {
        let damaged = FrameError::Damaged {
            path: self.path.clone(),
            offset: self.offset,
        };
        let mut head = [0; FRAME_OVERHEAD as usize];
        if !self.fill(&mut head)? {
            return Ok(None);
        }
        let Some((len, crc, tag)) = parse_head(&head) else {
            return Err(damaged);
        };
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(len, 0);
        let whole = self.fill(&mut payload)?;
        self.payload = payload;
        if !whole {
            return Ok(None);
        }
        if frame_crc(len as u32, tag, &self.payload) != crc {
            return Err(damaged);
        }
        self.offset += FRAME_OVERHEAD + len as u64;
        Ok(Some((tag, &self.payload)))
    }

    /// `false`: the input ended before.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, FrameError> {
        match self.input.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(FrameError::Io {
                path: self.path.clone(),
                source,
            }),
        }
    }
}

/// Hands every whole frame of a file to `each` without changing anything.
pub fn scan(path: &Path, format: Format, each: impl FnMut(Frame<'_>)) -> Result<Scan, FrameError> {
    let fail = |source| FrameError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(fail)?;
    let file_len = file.metadata().map_err(fail)?.len();
    scan_file(&file, file_len, path, format, each)
}

/// The same for a file whose header is damaged: what it is, its owner knows from elsewhere. The header counts as damage.
pub fn scan_behind_header(path: &Path, each: impl FnMut(Frame<'_>)) -> Result<Scan, FrameError> {
    let fail = |source| FrameError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(fail)?;
    let end = file.metadata().map_err(fail)?.len();
    let surface = Surface::new(&file, end);
    let mut scan = scan_frames(&surface, path, each)?;
    let header = Damage {
        from: 0,
        to: HEADER_LEN.min(end),
    };
    scan.damage.insert(0, header);
    Ok(scan)
}

/// Writes a file's header anew, durably, where [`scan_behind_header`] has shown what the file is.
pub fn put_header_back(path: &Path, format: Format) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&header(format), 0)?;
    file.sync_all()
}

/// Syncs the directory a path is in, so that the path itself survives a power cut.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

/// Syncs a directory: the names in it survive a power cut.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes a directory that only its owner may look into (mode 0700), and those above it that are missing.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// The path with something added to its name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Replaces a small file so that after a crash either the old or the new content is there, never a mixture (mode 0600).
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_with(path, content, 0o600, None).map(drop)
}

/// The same for a file that others read: with these permission bits and, where it is given, this owner (user and group), from
/// the moment it can be seen under its name.
pub fn replace_file_as(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    replace_with(path, content, mode, owner).map(drop)
}

fn replace_with(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<File> {
    let temporary = beside(path, ".tmp");
    // What a crash left goes first. Made anew, it is nobody else's, and no link to anywhere.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all_at(content, 0)?;
    if let Some((user, group)) = owner {
        std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
    }
    if mode != 0o600 {
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    }
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_parent(path)?;
    Ok(file)
}

fn header(format: Format) -> [u8; HEADER_LEN as usize] {
    let mut bytes = [0; HEADER_LEN as usize];
    bytes[..8].copy_from_slice(&format.magic);
    bytes[8..12].copy_from_slice(&format.version.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..28]);
    bytes[28..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Makes `frame` the bytes of one frame.
fn encode(frame: &mut Vec<u8>, tag: u32, parts: &[&[u8]]) -> io::Result<()> {
    let payload_len: usize = parts.iter().map(|part| part.len()).sum();
    if payload_len > FRAME_LEN_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "a frame would be too large",
        ));
    }
    frame.clear();
    frame.extend_from_slice(&FRAME_MAGIC);
    frame.extend_from_slice(&(payload_len as u32).to_le_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&tag.to_le_bytes());
    for part in parts {
        frame.extend_from_slice(part);
    }
    let crc = frame_crc(payload_len as u32, tag, &frame[FRAME_OVERHEAD as usize..]);
    frame[8..12].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

fn frame_crc(len: u32, tag: u32, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&len.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &tag.to_le_bytes());
    crc32c::crc32c_append(crc, payload)
}

/// A frame's head: payload length, CRC, tag. `None` where the bytes can't be one.
fn parse_head(head: &[u8; FRAME_OVERHEAD as usize]) -> Option<(usize, u32, u32)> {
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let len = word(4) as usize;
    (head[..4] == FRAME_MAGIC && len <= FRAME_LEN_MAX).then(|| (len, word(8), word(12)))
}

fn read_frame(file: &File, path: &Path, offset: u64) -> Result<(u32, Vec<u8>), FrameError> {
    let fail = |source| FrameError::Io {
        path: path.to_owned(),
        source,
    };
    let file_len = file.metadata().map_err(fail)?.len();
    let frame = whole_frame(|buffer, at| file.read_exact_at(buffer, at), file_len, offset).map_err(fail)?;
    frame.ok_or_else(|| FrameError::Damaged {
        path: path.to_owned(),
        offset,
    })
}

/// The frame at an offset of a file of so many bytes, its tag and its payload; `None` where there is no whole one.
fn whole_frame(
    read_exact_at: impl Fn(&mut [u8], u64) -> io::Result<()>,
    file_len: u64,
    offset: u64,
) -> io::Result<Option<(u32, Vec<u8>)>> {
    // A file that has become shorter since is one without this frame.
    let read = |buffer: &mut [u8], at| match read_exact_at(buffer, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    };
    let mut head = [0; FRAME_OVERHEAD as usize];
    if !read(&mut head, offset)? {
        return Ok(None);
    }
    let Some((len, crc, tag)) = parse_head(&head) else {
        return Ok(None);
    };
    // A damaged length must not make us allocate what the file can't hold.
    if offset + FRAME_OVERHEAD + len as u64 > file_len {
        return Ok(None);
    }
    let mut payload = vec![0; len];
    if !read(&mut payload, offset + FRAME_OVERHEAD)? {
        return Ok(None);
    }
    Ok((frame_crc(len as u32, tag, &payload) == crc).then_some((tag, payload)))
}

/// Goes through a file of `end` bytes. What is appended meanwhile (a command without a daemon beside a starting one) is not
/// ours to judge.
fn scan_file(
    file: &impl FileExt,
    end: u64,
    path: &Path,
    format: Format,
    each: impl FnMut(Frame<'_>),
) -> Result<Scan, FrameError> {
    let surface = Surface::new(file, end);
    check_header(&surface, path, format)?;
    scan_frames(&surface, path, each)
}

fn scan_frames(
    surface: &Surface<'_, impl FileExt>,
    path: &Path,
    mut each: impl FnMut(Frame<'_>),
) -> Result<Scan, FrameError> {
    let fail = |source| FrameError::Io {
        path: path.to_owned(),
        source,
    };
    let end = surface.end;
    let mut scan = Scan {
        good_len: HEADER_LEN.min(end),
        ..Scan::default()
    };
    let mut reader = surface.reader(HEADER_LEN);
    let mut offset = HEADER_LEN;
    let mut payload = Vec::new();
    let mut after_damage = None;
    while offset < end {
        let frame = next_frame(&mut reader, end - offset, &mut payload).map_err(fail)?;
        if let Some(tag) = frame {
            each(Frame {
                offset,
                tag,
                payload: &payload,
                after_damage: after_damage.take(),
            });
            offset += FRAME_OVERHEAD + payload.len() as u64;
            scan.good_len = offset;
            continue;
        }
        let Some(next) = find_frame(surface, offset + 1).map_err(fail)? else {
            break;
        };
        let damage = Damage { from: offset, to: next };
        scan.damage.push(damage);
        after_damage = Some(damage);
        offset = next;
        reader = surface.reader(next);
    }
    if scan.good_len < end
        && let Some(hole_end) = surface.last_hole_behind(scan.good_len)
    {
        let written = last_written(surface, scan.good_len).map_err(fail)?;
        scan.unknown = hole_end.min(end).max(written) - scan.good_len;
        scan.damage.push(Damage {
            from: scan.good_len,
            to: end,
        });
        scan.good_len = end;
    }
    scan.torn = last_written(surface, scan.good_len).map_err(fail)? - scan.good_len;
    Ok(scan)
}

/// Where the zeros at the end of a file begin, `from` at the least.
fn last_written(surface: &Surface<'_, impl FileExt>, from: u64) -> io::Result<u64> {
    let mut window = vec![0; 1 << 16];
    let mut end = surface.end;
    while end > from {
        let len = (window.len() as u64).min(end - from);
        let begin = end - len;
        surface.read_exact_at(&mut window[..len as usize], begin)?;
        if let Some(last) = window[..len as usize].iter().rposition(|byte| *byte != 0) {
            return Ok(begin + last as u64 + 1);
        }
        end = begin;
    }
    Ok(from)
}

fn check_header(surface: &Surface<'_, impl FileExt>, path: &Path, format: Format) -> Result<(), FrameError> {
    let mut bytes = [0; HEADER_LEN as usize];
    match surface.read_exact_at(&mut bytes, 0) {
        Ok(()) => judge_header(&bytes, path, format),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(FrameError::Alien(path.to_owned())),
        Err(source) => Err(FrameError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

fn judge_header(bytes: &[u8; HEADER_LEN as usize], path: &Path, format: Format) -> Result<(), FrameError> {
    let crc = u32::from_le_bytes([bytes[28], bytes[29], bytes[30], bytes[31]]);
    if bytes[..8] != format.magic || crc32c::crc32c(&bytes[..28]) != crc {
        return Err(FrameError::Alien(path.to_owned()));
    }
    let found = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    if found > format.version {
        return Err(FrameError::Newer {
            path: path.to_owned(),
            found,
            known: format.version,
        });
    }
    Ok(())
}

/// Reads the frame at the reader's place into `payload` and gives its tag; `None` if there is no whole frame there.
fn next_frame(reader: &mut impl Read, left: u64, payload: &mut Vec<u8>) -> io::Result<Option<u32>> {
    if left < FRAME_OVERHEAD {
        return Ok(None);
    }
    let mut head = [0; FRAME_OVERHEAD as usize];
    reader.read_exact(&mut head)?;
    let Some((len, crc, tag)) = parse_head(&head) else {
        return Ok(None);
    };
    if len as u64 > left - FRAME_OVERHEAD {
        return Ok(None);
    }
    payload.resize(len, 0);
    reader.read_exact(payload)?;
    Ok((frame_crc(len as u32, tag, payload) == crc).then_some(tag))
}

/// The next whole frame at or after `from`, if there is one.
fn find_frame(surface: &Surface<'_, impl FileExt>, mut from: u64) -> io::Result<Option<u64>> {
    let end = surface.end;
    let mut window = vec![0; 1 << 18];
    while from + FRAME_OVERHEAD <= end {
        let len = (window.len() as u64).min(end - from) as usize;
        surface.read_exact_at(&mut window[..len], from)?;
        for at in memchr::memmem::find_iter(&window[..len], &FRAME_MAGIC) {
            let candidate = from + at as u64;
            let read = |buffer: &mut [u8], at| surface.read_exact_at(buffer, at);
            if whole_frame(read, end, candidate)?.is_some() {
                return Ok(Some(candidate));
            }
        }
        // A magic may lie across the edge of the window.
        from += len as u64 - (FRAME_MAGIC.len() as u64 - 1);
        if len < window.len() {
            break;
        }
    }
    Ok(None)
}

/// Whether a read failed because what holds the bytes does not give them back, or gives back others than were written: asking
/// again, or as somebody else, is of no use.
pub fn is_bad_medium(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // ENODATA is what drives say of a bad sector, EBADMSG and EUCLEAN what file systems say of a bad checksum.
    const BAD: [Errno; 4] = [Errno::IO, Errno::NODATA, Errno::BADMSG, Errno::UCLEAN];
    Errno::from_io_error(error).is_some_and(|errno| BAD.contains(&errno))
}

/// Whether a small file's content is at fault, and not the way to it: what `serde_json` says of a text that is none, and the medium of
/// what it has lost.
pub fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) || is_bad_medium(error)
}

/// A file as far as it can be read. Where the medium fails there are zeros, which are no frame, and a note of it.
struct Surface<'a, F> {
    file: &'a F,
    /// The file's length.
    end: u64,
    /// Where reading failed, and is not tried again.
    holes: RefCell<Vec<Range<u64>>>,
}

impl<'a, F: FileExt> Surface<'a, F> {
    fn new(file: &'a F, end: u64) -> Surface<'a, F> {
        Surface {
            file,
            end,
            holes: RefCell::default(),
        }
    }

    /// Smallest hole: a page.
    const HOLE_MIN: u64 = 4096;

    /// Each hole of a file is twice as large as the last one, up to this: a failing drive may try for seconds each time before
    /// it gives up, and what does not start in time is of no use either.
    const HOLE_MAX: u64 = 16 << 20;

    fn reader<'s>(&'s self, at: u64) -> impl Read + use<'s, 'a, F> {
        BufReader::with_capacity(1 << 18, SurfaceReader { surface: self, at })
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        if self.holes.borrow().is_empty() {
            match self.file.read_exact_at(buffer, at) {
                Err(error) if is_bad_medium(&error) => {}
                done => return done,
            }
        }
        // Page by page around the holes, those that are known and those that are found.
        let mut done = 0;
        while done < buffer.len() {
            let (from, rest) = (at + done as u64, &mut buffer[done..]);
            if let Some(hole_end) = self.hole_at(from) {
                let len = ((hole_end - from) as usize).min(rest.len());
                rest[..len].fill(0);
                done += len;
                continue;
            }
            let page_end = (from / Self::HOLE_MIN + 1) * Self::HOLE_MIN;
            let len = ((page_end - from) as usize).min(rest.len());
            match self.file.read_exact_at(&mut rest[..len], from) {
                Ok(()) => done += len,
                Err(error) if is_bad_medium(&error) => self.note_hole(from),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn hole_at(&self, at: u64) -> Option<u64> {
        let holes = self.holes.borrow();
        holes.iter().find(|hole| hole.contains(&at)).map(|hole| hole.end)
    }

    fn note_hole(&self, at: u64) {
        let mut holes = self.holes.borrow_mut();
        let size = (Self::HOLE_MIN << holes.len().min(32)).min(Self::HOLE_MAX);
        let from = at / Self::HOLE_MIN * Self::HOLE_MIN;
        holes.push(from..from + size);
    }

    /// Where the last hole ends that reaches beyond an offset.
    fn last_hole_behind(&self, offset: u64) -> Option<u64> {
        let holes = self.holes.borrow();
        holes.iter().map(|hole| hole.end).filter(|end| *end > offset).max()
    }
}

/// Sequential reads of a shared file handle that do not move its offset.
struct SurfaceReader<'a, F> {
    surface: &'a Surface<'a, F>,
    at: u64,
}

impl<F: FileExt> Read for SurfaceReader<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = (buffer.len() as u64).min(self.surface.end - self.at) as usize;
        self.surface.read_exact_at(&mut buffer[..len], self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORMAT: Format = Format {
        magic: *b"CLHKTEST",
        version: 1,
    };

    fn filled(dir: &Path, payloads: &[Vec<u8>]) -> (PathBuf, Vec<u64>) {
        let path = dir.join("frames");
        let mut file = FrameFile::create(&path, FORMAT).unwrap();
        let offsets = payloads
            .iter()
            .map(|payload| file.append(7, &[payload]).unwrap())
            .collect();
        file.sync().unwrap();
        (path, offsets)
    }

    fn frames(path: &Path) -> (Vec<Vec<u8>>, Scan) {
        let mut found = Vec::new();
        let scan = scan(path, FORMAT, |frame| found.push(frame.payload.to_vec())).unwrap();
        (found, scan)
    }

    #[test]
    fn frames_come_back_in_order_with_their_offsets() {
        let dir = tempfile::tempdir().unwrap();
        let payloads = vec![b"one".to_vec(), Vec::new(), vec![9; 300_000]];
        let (path, offsets) = filled(dir.path(), &payloads);
        let (found, scan) = frames(&path);
        assert_eq!(found, payloads);
        assert_eq!((scan.torn, scan.damage.len()), (0, 0));
        let reader = FrameReader::open(&path).unwrap();
        assert_eq!(reader.read(offsets[2]).unwrap(), (7, payloads[2].clone()));
        assert!(matches!(reader.read(offsets[2] + 1), Err(FrameError::Damaged { .. })));
    }

    #[test]
    fn a_newer_or_foreign_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = filled(dir.path(), &[]);
        let newer = Format { version: 0, ..FORMAT };
        assert!(matches!(
            scan(&path, newer, |_| ()),
            Err(FrameError::Newer { found: 1, known: 0, .. })
        ));
        let alien = Format {
            magic: *b"CLHKELSE",
            version: 1,
        };
        assert!(matches!(scan(&path, alien, |_| ()), Err(FrameError::Alien(_))));
        std::fs::write(&path, b"CLHK").unwrap();
        assert!(matches!(scan(&path, FORMAT, |_| ()), Err(FrameError::Alien(_))));
    }

    /// Every frame of a stream, and what ended it.
    fn streamed(bytes: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, FrameError> {
        let mut reader = StreamReader::new(bytes, Path::new("stream"), FORMAT)?;
        let mut found = Vec::new();
        while let Some((tag, payload)) = reader.next_frame()? {
            found.push((tag, payload.to_vec()));
        }
        Ok(found)
    }

    proptest! {
        #[test]
        fn a_stream_comes_back_whole_or_not_at_all(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..6),
            place in any::<prop::sample::Index>(),
        ) {
            let mut writer = StreamWriter::new(Vec::new(), FORMAT).unwrap();
            for payload in &payloads {
                let (one, two) = payload.split_at(payload.len() / 2);
                writer.append(3, &[one, two]).unwrap();
            }
            let bytes = writer.finish().unwrap();
            let all: Vec<(u32, Vec<u8>)> = payloads.iter().map(|payload| (3, payload.clone())).collect();
            prop_assert_eq!(&streamed(&bytes).unwrap(), &all);

            let at = place.index(bytes.len());
            // Cut off, it gives what is whole and nothing else.
            match streamed(&bytes[..at]) {
                Ok(found) => prop_assert!(found.len() < all.len() && all.starts_with(&found)),
                Err(error) => prop_assert!(at < HEADER_LEN as usize, "{error}"),
            }
            // With a flipped bit it never gives anything that was not written.
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            match streamed(&flipped) {
                Ok(found) => prop_assert!(found.len() < all.len() && all.starts_with(&found)),
                Err(FrameError::Damaged { offset, .. }) => prop_assert!(offset <= at as u64),
                Err(_) => prop_assert!(at < HEADER_LEN as usize),
            }
        }
    }

    #[test]
    fn appending_goes_on_behind_a_cut_tail() {
        let dir = tempfile::tempdir().unwrap();
        let (path, offsets) = filled(dir.path(), &[b"kept".to_vec(), b"torn".to_vec()]);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(offsets[1] + FRAME_OVERHEAD + 2).unwrap();
        let (mut file, scan) = FrameFile::open(&path, FORMAT, |_| ()).unwrap();
        assert_eq!(scan.torn, FRAME_OVERHEAD + 2);
        file.append(7, &[b"ne", b"xt"]).unwrap();
        file.sync().unwrap();
        assert_eq!(frames(&path).0, vec![b"kept".to_vec(), b"next".to_vec()]);
    }

    /// A file on a disk that has lost some of it.
    struct Worn {
        file: File,
        bad: Range<u64>,
        failures: std::cell::Cell<u32>,
    }

    impl FileExt for Worn {
        fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
            let end = at + buffer.len() as u64;
            if at < self.bad.end && end > self.bad.start {
                self.failures.set(self.failures.get() + 1);
                return Err(rustix::io::Errno::IO.into());
            }
            self.file.read_at(buffer, at)
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// What a scan finds of a file of which these bytes can't be read, and how often reading was tried in vain.
    fn worn_frames(path: &Path, bad: Range<u64>) -> (Vec<Vec<u8>>, Scan, u32) {
        let file = File::open(path).unwrap();
        let end = file.metadata().unwrap().len();
        let worn = Worn {
            file,
            bad,
            failures: std::cell::Cell::default(),
        };
        let mut found = Vec::new();
        let scan = scan_file(&worn, end, path, FORMAT, |frame| found.push(frame.payload.to_vec())).unwrap();
        (found, scan, worn.failures.get())
    }

    #[test]
    fn what_the_disk_does_not_give_back_is_stepped_over() {
        let dir = tempfile::tempdir().unwrap();
        let payloads: Vec<Vec<u8>> = (0..100_u8).map(|number| vec![number + 1; 1000]).collect();
        let (path, offsets) = filled(dir.path(), &payloads);
        let end = std::fs::metadata(&path).unwrap().len();

        // In the middle: what lies in the page, or partly in it.
        let (found, scan, _) = worn_frames(&path, 40_960..45_056);
        let hit = |index: &usize| offsets[*index] < 45_056 && offsets[*index] + FRAME_OVERHEAD + 1000 > 40_960;
        let expected: Vec<_> = (0..100)
            .filter(|index| !hit(index))
            .map(|index| payloads[index].clone())
            .collect();
        assert_eq!(found, expected);
        assert_eq!(
            (scan.damage.len(), scan.good_len, scan.ends_unreadable()),
            (1, end, false)
        );

        // At the end: nobody knows what was there, so nothing is cut off.
        let (found, scan, _) = worn_frames(&path, end - 10..end);
        assert!(payloads.starts_with(&found) && found.len() >= 95);
        assert_eq!((scan.good_len, scan.torn, scan.ends_unreadable()), (end, 0, true));

        // Its beginning says what a file is.
        let worn = Worn {
            file: File::open(&path).unwrap(),
            bad: 0..1,
            failures: std::cell::Cell::default(),
        };
        let scanned = scan_file(&worn, end, &path, FORMAT, |_| ());
        assert!(matches!(scanned, Err(FrameError::Alien(_))), "{scanned:?}");
    }

    #[test]
    fn a_disk_that_gives_nothing_back_is_soon_believed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = filled(dir.path(), &[]);
        let len = 256 << 20;
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(len)
            .unwrap();
        let (found, scan, failures) = worn_frames(&path, 4096..len);
        assert!(found.is_empty() && scan.ends_unreadable());
        assert!(failures < 50, "{failures} reads failed");
    }

    #[test]
    fn zeros_behind_the_last_frame_are_cut_off_without_a_word() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = filled(dir.path(), &[b"kept".to_vec()]);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let good = file.metadata().unwrap().len();
        file.set_len(good + 100_000).unwrap();
        let (found, scan) = frames(&path);
        assert_eq!((found.len(), scan.good_len, scan.torn), (1, good, 0));
        FrameFile::open(&path, FORMAT, |_| ()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), good);
    }

    #[test]
    fn room_is_neither_damage_nor_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut file = FrameFile::create(&path, FORMAT).unwrap().with_room(200_000);
        let payloads: Vec<Vec<u8>> = (0..40_u8).map(|number| vec![number; 9_000]).collect();
        for payload in &payloads {
            file.append(7, &[payload]).unwrap();
            file.sync().unwrap();
        }
        let len = file.len();
        let on_disk = || std::fs::metadata(&path).unwrap().len();
        assert!(on_disk() > len && on_disk() <= len + 200_000);
        let mut found = Vec::new();
        let seen = scan(&path, FORMAT, |frame| found.push(frame.payload.to_vec())).unwrap();
        assert_eq!((seen.good_len, seen.torn, seen.damage.len()), (len, 0, 0));
        assert_eq!(found, payloads);
        // A write that was under way goes into the room; only what it wrote counts as torn.
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(b"half", len + 3)
            .unwrap();
        let (reopened, seen) = FrameFile::open(&path, FORMAT, |_| ()).unwrap();
        assert_eq!((reopened.len(), seen.torn, on_disk()), (len, 7, len));
    }

    #[test]
    fn room_is_topped_up_before_it_is_used_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut file = FrameFile::create(&path, FORMAT).unwrap().with_room(200_000);
        let on_disk = || std::fs::metadata(&path).unwrap().len();
        file.top_up().unwrap();
        assert_eq!(on_disk(), HEADER_LEN, "a file that nothing is appended to needs none");
        let append = |file: &mut FrameFile| {
            file.append(7, &[&[1; 9_000]]).unwrap();
            file.sync().unwrap();
        };
        append(&mut file);
        for _ in 0..100 {
            let before = on_disk();
            append(&mut file);
            assert_eq!(on_disk(), before, "an append finds room");
            file.top_up().unwrap();
            assert!(on_disk() >= file.len() + 100_000);
        }
        assert!(on_disk() < file.len() + 200_000);
        let seen = scan(&path, FORMAT, |_| ()).unwrap();
        assert_eq!((seen.good_len, seen.torn, seen.damage.len()), (file.len(), 0, 0));

        let path = dir.path().join("small");
        let mut file = FrameFile::create(&path, FORMAT).unwrap().with_room(1024);
        for _ in 0..100 {
            file.append(7, &[&[1; 30]]).unwrap();
            file.top_up().unwrap();
            let room = std::fs::metadata(&path).unwrap().len() - file.len();
            assert!((512..=1024).contains(&room), "{room} bytes where 1024 were asked for");
        }
    }

    proptest! {
        /// Whatever single byte is damaged, at most the frame it lies in is lost, and never a wrong payload comes back.
        #[test]
        fn one_flipped_byte_costs_at_most_its_frame(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..12),
            position in any::<prop::sample::Index>(),
            flip in 1_u8..,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (path, offsets) = filled(dir.path(), &payloads);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = HEADER_LEN as usize + position.index(bytes.len() - HEADER_LEN as usize);
            bytes[at] ^= flip;
            std::fs::write(&path, &bytes).unwrap();
            let hit = offsets.iter().rposition(|offset| *offset as usize <= at).unwrap();
            let mut expected = payloads.clone();
            expected.remove(hit);
            let (found, scan) = frames(&path);
            prop_assert_eq!(found, expected);
            // Damage is reported in the middle, cut at the end.
            prop_assert_eq!(scan.damage.is_empty(), hit == payloads.len() - 1);
        }

        /// Cutting the file anywhere keeps exactly the frames that lie before the cut.
        #[test]
        fn a_cut_anywhere_keeps_every_whole_frame(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..12),
            position in any::<prop::sample::Index>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (path, offsets) = filled(dir.path(), &payloads);
            let len = std::fs::metadata(&path).unwrap().len();
            let cut = HEADER_LEN + position.index((len - HEADER_LEN) as usize) as u64;
            OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
            let whole = offsets.iter().skip(1).chain([&len]).filter(|end| **end <= cut).count();
            prop_assert_eq!(frames(&path).0, payloads[..whole].to_vec());
        }
    }
}
