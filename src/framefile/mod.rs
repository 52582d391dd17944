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

mod disk;
mod file;
mod frame;
mod scan;
mod stream;
mod surface;
#[cfg(test)]
mod tests;

pub use disk::{
    beside, is_bad_medium, is_damage, make_dir, make_file, replace_file, replace_file_as, sync_dir, sync_parent,
};
pub use file::{FrameFile, FrameReader, put_header_back};
pub use frame::{FRAME_LEN_MAX, FRAME_OVERHEAD, Format, FrameError, HEADER_LEN};
pub use scan::{Damage, Frame, Scan, has_header, scan, scan_behind_header};
pub use stream::{StreamReader, StreamWriter};
pub use surface::{name_again, read_what_is_there};
