//! A file on a medium that does not give all of it back.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::disk::is_bad_medium;

/// All of a file; zeros where the medium does not give it back.
pub fn read_what_is_there(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut content = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?];
    Surface::new(&file, len).read_exact_at(&mut content, 0)?;
    Ok(content)
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
