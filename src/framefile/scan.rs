//! Going through a file: every whole frame is found, whatever lies between.

use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::frame::{
    FRAME_MAGIC, FRAME_OVERHEAD, Format, FrameError, HEADER_LEN, frame_crc, is_left_of_header, judge_header,
    parse_head, whole_frame,
};
use super::surface::Surface;

/// A range of bytes that is no frame although whole frames follow it, or that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// First bad byte.
    pub from: u64,
    /// The next whole frame, or the end of the file.
    pub to: u64,
}

impl std::fmt::Display for Damage {
    /// What is wrong with a file, to be said behind its name.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Damage { from, to } = self;
        if from == to {
            f.write_str("its beginning is missing")
        } else {
            write!(f, "bytes {from} to {to} are damaged")
        }
    }
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

    /// Whether the file has lost its beginning: nobody knows what was in front of the first frame that was found.
    pub fn lacks_beginning(&self) -> bool {
        self.damage.first().is_some_and(|damage| damage.from == damage.to)
    }
}

/// One whole frame of a scan.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Where it begins; hand it to `FrameFile::read` later.
    pub offset: u64,
    /// The owner's mark on it.
    pub tag: u32,
    /// What was appended.
    pub payload: &'a [u8],
    /// The damage stepped over right before it, if any.
    pub after_damage: Option<Damage>,
}

/// Hands every whole frame of a file to `each` without changing anything.
pub fn scan(path: &Path, format: Format, each: impl FnMut(Frame<'_>)) -> Result<Scan, FrameError> {
    let fail = |source| FrameError::Io {
        path: path.to_owned(),
        source,
    };
    let file = crate::files::open(path).map_err(fail)?;
    let file_len = file.metadata().map_err(fail)?.len();
    scan_file(&file, file_len, path, format, each)
}

/// Whether a file begins as one of this format, of whatever version. Nothing else of it is looked at.
pub fn has_header(path: &Path, format: Format) -> Result<bool, FrameError> {
    let fail = |source| FrameError::Io {
        path: path.to_owned(),
        source,
    };
    let file = crate::files::open(path).map_err(fail)?;
    let end = file.metadata().map_err(fail)?.len();
    match check_header(&Surface::new(&file, end), path, format) {
        Ok(()) | Err(FrameError::Newer { .. }) => Ok(true),
        Err(FrameError::Alien(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Hands every whole frame to `each` of a file whose header is damaged, or which has lost its beginning: what it is, its owner knows from elsewhere.
/// The header counts as damage. Where there is nothing of a header in front of a frame that stands right behind one, as many bytes may be missing
/// as other frames took up, and that counts as well ([`Scan::lacks_beginning`]).
pub fn scan_behind_header(path: &Path, format: Format, mut each: impl FnMut(Frame<'_>)) -> Result<Scan, FrameError> {
    let fail = |source| FrameError::Io {
        path: path.to_owned(),
        source,
    };
    let file = crate::files::open(path).map_err(fail)?;
    let end = file.metadata().map_err(fail)?.len();
    let surface = Surface::new(&file, end);
    // Where bytes are missing at the beginning a frame may have moved to where the header was.
    let moved = find_frame(&surface, 0).map_err(fail)?;
    let begin = moved.filter(|at| *at < HEADER_LEN).unwrap_or(HEADER_LEN);
    let mut first = None;
    let mut scan = scan_frames(&surface, path, begin, |frame| {
        first.get_or_insert(frame.offset);
        each(frame);
    })?;
    let header = Damage {
        from: 0,
        to: begin.min(end),
    };
    scan.damage.insert(0, header);
    if first == Some(HEADER_LEN) {
        let mut bytes = [0; HEADER_LEN as usize];
        surface.read_exact_at(&mut bytes, 0).map_err(fail)?;
        if !is_left_of_header(&bytes, format) {
            scan.damage.insert(0, Damage { from: 0, to: 0 });
        }
    }
    Ok(scan)
}

/// Goes through a file of `end` bytes. What is appended meanwhile (a command without a daemon beside a starting one) is not
/// ours to judge.
pub(super) fn scan_file(
    file: &impl FileExt,
    end: u64,
    path: &Path,
    format: Format,
    each: impl FnMut(Frame<'_>),
) -> Result<Scan, FrameError> {
    let surface = Surface::new(file, end);
    check_header(&surface, path, format)?;
    scan_frames(&surface, path, HEADER_LEN, each)
}

fn scan_frames(
    surface: &Surface<'_, impl FileExt>,
    path: &Path,
    begin: u64,
    mut each: impl FnMut(Frame<'_>),
) -> Result<Scan, FrameError> {
    let fail = |source| FrameError::Io {
        path: path.to_owned(),
        source,
    };
    let end = surface.end;
    let mut scan = Scan {
        good_len: begin.min(end),
        ..Scan::default()
    };
    let mut reader = surface.reader(begin);
    let mut offset = begin;
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
