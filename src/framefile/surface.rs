//! A file on a medium that does not give all of it back.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::disk::{is_bad_medium, make_file, sync_parent};

/// All of a file; zeros where the medium does not give it back.
pub fn read_what_is_there(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut content = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?];
    Surface::new(&file, len).read_exact_at(&mut content, 0)?;
    Ok(content)
}

/// Gives a file a second name, durably: what is to take its place may do so then. Not every file system gives a file two names, where it is
/// copied instead, with zeros for what the medium does not give back. Nothing that has that name already gives way.
pub fn name_again(path: &Path, name: &Path) -> io::Result<()> {
    match std::fs::hard_link(path, name) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => copy(path, name)?,
        linked => linked?,
    }
    sync_parent(name)
}

/// Copies what is there of a file, durably.
fn copy(path: &Path, name: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let surface = Surface::new(&file, file.metadata()?.len());
    let mut made = make_file(name)?;
    let copied = io::copy(&mut surface.reader(0), &mut made).and_then(|_| made.sync_all());
    if copied.is_err() {
        // Half a copy would be taken for one. The original is still there.
        let _ = std::fs::remove_file(name);
    }
    copied
}

/// A file as far as it can be read. Where the medium fails there are zeros, which are no frame, and a note of it.
pub(super) struct Surface<'a, F> {
    file: &'a F,
    /// The file's length.
    pub end: u64,
    /// Where reading failed, and is not tried again.
    holes: RefCell<Vec<Range<u64>>>,
}

impl<'a, F: FileExt> Surface<'a, F> {
    /// Of a file of so many bytes.
    pub fn new(file: &'a F, end: u64) -> Surface<'a, F> {
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

    /// Reads on from here, front to back.
    pub fn reader<'s>(&'s self, at: u64) -> impl Read + use<'s, 'a, F> {
        BufReader::with_capacity(1 << 18, SurfaceReader { surface: self, at })
    }

    /// Reads so many bytes.
    pub fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
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
    pub fn last_hole_behind(&self, offset: u64) -> Option<u64> {
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

    /// A link or, where there are none, a copy.
    type Naming = fn(&Path, &Path) -> io::Result<()>;

    #[test]
    fn a_second_name_holds_what_the_first_does_and_takes_nobody_s_place() {
        let ways: [Naming; 2] = [name_again, copy];
        for way in ways {
            let dir = tempfile::tempdir().unwrap();
            let (path, name) = (dir.path().join("a"), dir.path().join("a.damaged"));
            assert!(way(&path, &name).is_err() && !name.exists(), "there is nothing");
            let content = vec![7; 300_000];
            std::fs::write(&path, &content).unwrap();
            way(&path, &name).unwrap();
            std::fs::remove_file(&path).unwrap();
            assert_eq!(std::fs::read(&name).unwrap(), content);
            std::fs::write(&path, b"another").unwrap();
            let taken = way(&path, &name).unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(std::fs::read(&name).unwrap(), content);
        }
    }
}
