//! A file that frames are appended to, and single ones are read from.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use super::disk::replace_with;
use super::frame::{Format, FrameError, HEADER_LEN, encode, header, read_frame};
use super::scan::{Frame, Scan, scan_file};

/// What room is made of. Made when it is needed, so that the program has no zeros to carry.
static ZEROS: LazyLock<Vec<u8>> = LazyLock::new(|| vec![0; 64 << 10]);

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

    /// Opens a file for appending, handing every whole frame to `each`. A torn tail is cut off and the cut synced. All of it is durable, but
    /// where the file is poisoned.
    pub fn open(path: &Path, format: Format, each: impl FnMut(Frame<'_>)) -> Result<(FrameFile, Scan), FrameError> {
        let fail = |source| FrameError::Io {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(fail)?;
        let file_len = file.metadata().map_err(fail)?.len();
        let scan = scan_file(&file, file_len, path, format, each)?;
        let len = scan.good_len;
        // Whoever wrote the last frames may have been killed before it synced them: they are read and relied on from now on.
        let poisoned = if file_len > len {
            file.set_len(len).map_err(fail)?;
            file.sync_all().map_err(fail)?;
            false
        } else {
            file.sync_data().is_err()
        };
        Ok((
            FrameFile {
                file,
                path: path.to_owned(),
                len,
                end: len,
                room: 0,
                grown: false,
                poisoned,
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

    /// Takes everything from this frame on back, durably. Where that fails the file is poisoned.
    pub fn take_back(&mut self, offset: u64) -> Result<(), FrameError> {
        if self.poisoned {
            return Err(FrameError::Poisoned(self.path.clone()));
        }
        (self.len, self.end) = (offset, offset);
        let cut = self.file.set_len(offset).and_then(|()| self.file.sync_all());
        cut.map_err(|source| {
            self.poisoned = true;
            self.io(source)
        })
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
        let file = crate::files::open(path).map_err(|source| FrameError::Io {
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

/// Writes a file's header anew, durably, where `scan_behind_header` has shown what the file is.
pub fn put_header_back(path: &Path, format: Format) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&header(format), 0)?;
    file.sync_all()
}
