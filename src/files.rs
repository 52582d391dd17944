//! Files that are read whole, by a name that a person or a configuration gives: regular ones, of a length that such a file has.
//!
//! A pipe in such a place would be waited for until somebody writes into it, and a device may have no end. Both are refused at once,
//! with what stands there. Where a stream is as good as a file, that is said by [`open_or_stream`].

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// No file that is read whole is longer.
const LEN_MAX: u64 = 256 << 20;

/// Opens a regular file to be read, through any number of links. What is no such file is an error that says what it is
/// ([`io::ErrorKind::InvalidInput`]), and is neither opened nor waited for. The empty device is as good as an empty file.
pub fn open(path: &Path) -> io::Result<File> {
    // Opening alone can do something to a device.
    refuse(&std::fs::metadata(path)?)?;
    // It may have been exchanged since.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path)?;
    refuse(&file.metadata()?)?;
    Ok(file)
}

/// The same for a name on the command line: it may also be a stream that this process was given (`/dev/stdin`, the `/dev/fd/63` of a
/// shell's `<(...)`).
pub fn open_or_stream(path: &Path) -> io::Result<File> {
    if is_stream(path) { File::open(path) } else { open(path) }
}

/// Reads a regular file whole.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    whole(open(path)?)
}

/// Reads a regular file of text whole.
pub fn read_text(path: &Path) -> io::Result<String> {
    text(read(path)?)
}

/// Reads a file or stream whole that the command line names.
pub fn read_argument(path: &Path) -> io::Result<Vec<u8>> {
    whole(open_or_stream(path)?)
}

/// The same with text in it.
pub fn read_text_argument(path: &Path) -> io::Result<String> {
    text(read_argument(path)?)
}

/// What tells a file or directory from all others, whatever name or link leads to it; `None`: there is none, or it can't be looked at.
pub fn id(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// What to do about an error of writing, as the end of a sentence, where there is no room for what is written; else nothing.
pub fn room_advice(error: &(dyn std::error::Error + 'static)) -> &'static str {
    if is_full(error) {
        ": make room on that file system, or name a place on another one"
    } else {
        ""
    }
}

/// Whether there is no room for what was to be written, on the disk or within a quota or limit, however deep the error says so.
pub fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let mut at = Some(error);
    while let Some(error) = at {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|error| matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)) {
            return true;
        }
        // The source of what an I/O error was made of is the one behind that.
        at = match io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

fn whole(file: File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(LEN_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > LEN_MAX {
        let why = format!("it is longer than the {} MiB that are read", LEN_MAX >> 20);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(content)
}

fn text(content: Vec<u8>) -> io::Result<String> {
    let no_text = |_| io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8 text");
    String::from_utf8(content).map_err(no_text)
}

/// Whether a name is that of something this process has open already.
fn is_stream(path: &Path) -> bool {
    let is_of_fds = |dir: &Path| dir == Path::new("/dev/fd") || dir.starts_with("/proc") && dir.ends_with("fd");
    path == Path::new("/dev/stdin") || path.parent().is_some_and(is_of_fds)
}

fn refuse(metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    let what = if kind.is_file() || kind.is_char_device() && is_null(metadata.rdev()) {
        return Ok(());
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    let why = format!("it is {what}, and no regular file");
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// `/dev/null` (the kernel's list of devices, 1:3).
fn is_null(device: u64) -> bool {
    (rustix::fs::major(device), rustix::fs::minor(device)) == (1, 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_file_is_read_and_nothing_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, pipe) = (
            dir.path().join("file"),
            dir.path().join("link"),
            dir.path().join("pipe"),
        );
        std::fs::write(&file, "text").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for path in [&file, &link] {
            assert_eq!(read_text(path).unwrap(), "text");
            assert_eq!(read_text_argument(path).unwrap(), "text");
        }
        assert_eq!(read(Path::new("/dev/null")).unwrap(), b"");
        for (path, what) in [
            (pipe.as_path(), "a pipe"),
            (dir.path(), "a directory"),
            (Path::new("/dev/zero"), "a device"),
            (Path::new("/dev/full"), "a device"),
        ] {
            for error in [read(path).unwrap_err(), read_argument(path).unwrap_err()] {
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{}", path.display());
                assert!(error.to_string().contains(what), "{error}");
            }
        }
        let missing = read(&dir.path().join("none")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn only_what_the_process_was_given_is_a_stream() {
        for stream in ["/dev/stdin", "/dev/fd/63", "/proc/self/fd/0", "/proc/7/fd/63"] {
            assert!(is_stream(Path::new(stream)), "{stream}");
        }
        for other in ["/dev/zero", "/srv/fd/63", "/dev/fd", "stdin"] {
            assert!(!is_stream(Path::new(other)), "{other}");
        }
    }
}
