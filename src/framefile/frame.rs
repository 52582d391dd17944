//! How a file and each frame in it begin, and when they are whole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of the file header: magic (8), version (4), reserved (16), CRC-32C of those (4).
pub const HEADER_LEN: u64 = 32;

/// Bytes in front of each frame's payload.
pub const FRAME_OVERHEAD: u64 = 16;

/// No frame is larger (a group commit holds at most one body of 64 MiB beside small ones).
pub const FRAME_LEN_MAX: usize = 128 << 20;

/// What each frame begins with.
pub(super) const FRAME_MAGIC: [u8; 4] = [0xC1, 0x05, 0xE7, 0x0F];

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

/// What a file begins with.
pub(super) fn header(format: Format) -> [u8; HEADER_LEN as usize] {
    let mut bytes = [0; HEADER_LEN as usize];
    bytes[..8].copy_from_slice(&format.magic);
    bytes[8..12].copy_from_slice(&format.version.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..28]);
    bytes[28..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Makes `frame` the bytes of one frame.
pub(super) fn encode(frame: &mut Vec<u8>, tag: u32, parts: &[&[u8]]) -> io::Result<()> {
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

/// The checksum of a frame.
pub(super) fn frame_crc(len: u32, tag: u32, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&len.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &tag.to_le_bytes());
    crc32c::crc32c_append(crc, payload)
}

/// A frame's head: payload length, CRC, tag. `None` where the bytes can't be one.
pub(super) fn parse_head(head: &[u8; FRAME_OVERHEAD as usize]) -> Option<(usize, u32, u32)> {
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let len = word(4) as usize;
    (head[..4] == FRAME_MAGIC && len <= FRAME_LEN_MAX).then(|| (len, word(8), word(12)))
}

/// The frame at an offset of a file, its tag and its payload.
pub(super) fn read_frame(file: &File, path: &Path, offset: u64) -> Result<(u32, Vec<u8>), FrameError> {
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
pub(super) fn whole_frame(
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

/// Whether a file that begins with this is one of this format.
pub(super) fn judge_header(bytes: &[u8; HEADER_LEN as usize], path: &Path, format: Format) -> Result<(), FrameError> {
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

/// Whether some of a header of this format is in its place. No chance puts its beginning or its checksum there.
pub(super) fn is_left_of_header(bytes: &[u8; HEADER_LEN as usize], format: Format) -> bool {
    let has_checksum = |version| bytes[28..] == header(Format { version, ..format })[28..];
    bytes[..8] == format.magic || (1..=format.version).any(has_checksum)
}
