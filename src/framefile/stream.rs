//! Frames in what is read front to back: a backup in a pipe.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::frame::{
    FRAME_OVERHEAD, Format, FrameError, HEADER_LEN, encode, frame_crc, header, judge_header, parse_head,
};

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
