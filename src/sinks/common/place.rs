//! What stands at a path where a file should be.
//!
//! A sink that writes a file, cuts it and renames it can only do so with a regular file, or with one that it makes. Everything else is
//! found out before the first event, and through any number of links.

use std::io;
use std::path::{Path, PathBuf};

/// As many links as Linux follows.
const LINKS_MAX: usize = 40;

/// File systems that show the kernel, and keep no data (`statfs(2)`): proc, sysfs, devpts, debugfs, tracefs, securityfs, cgroup,
/// cgroup2, bpf, pstore, efivarfs, configfs, selinuxfs, `binfmt_misc`, mqueue, namespaces, pipes, sockets.
const KERNEL_MAGICS: [u64; 18] = [
    0x9fa0,
    0x6265_6572,
    0x1cd1,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x0027_e0eb,
    0x6367_7270,
    0xcafe_4a11,
    0x6165_676c,
    0xde5e_81e4,
    0x6265_6570,
    0xf97c_ff8c,
    0x4249_4e4d,
    0x1980_0202,
    0x6e73_6673,
    0x5049_5045,
    0x534f_434b,
];

/// What is not a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sinks) enum Instead {
    Directory,
    Pipe,
    /// An open stream of whichever process looks: `/dev/stdout`, `/proc/self/fd/3`.
    Stream,
    /// A device, a socket, or another thing that is no regular file.
    Other,
    /// In a place that holds no files, whatever is there.
    Kernel(PathBuf),
    /// Links in a circle.
    Circle,
    /// It ends like a directory.
    NoName,
}

impl std::fmt::Display for Instead {
    /// As the end of a sentence that begins with the path.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Instead::Directory => f.write_str("is a directory"),
            Instead::Pipe => f.write_str("is a pipe"),
            Instead::Stream => f.write_str("is an open stream of the process, no file that can be cut and rotated"),
            Instead::Other => f.write_str("is no regular file"),
            Instead::Kernel(place) => write!(f, "is in {}, which holds no files", place.display()),
            Instead::Circle => f.write_str("is a link that leads in a circle"),
            Instead::NoName => f.write_str("names no file"),
        }
    }
}

/// What stands there, if it is something else than a regular file and no file can be made there. What can't be looked at is no fault:
/// it may be there later. Writes nothing.
pub(in crate::sinks) fn what_it_is_instead(path: &Path) -> Option<Instead> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::FileTypeExt;
    let metadata = std::fs::metadata(path);
    if metadata.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
        return Some(Instead::Directory);
    }
    if path.file_name().is_none() || path.as_os_str().as_bytes().ends_with(b"/") {
        return Some(Instead::NoName);
    }
    let Ok(steps) = steps(path) else {
        return Some(Instead::Circle);
    };
    if let Some(instead) = steps.iter().find_map(|step| no_place_for_files(step)) {
        return Some(instead);
    }
    match metadata {
        Ok(metadata) if metadata.file_type().is_fifo() => Some(Instead::Pipe),
        Ok(metadata) => (!metadata.is_file()).then_some(Instead::Other),
        Err(_) => None,
    }
}

/// Where the path leads in the end, each link followed, also one to what is not there yet.
pub(in crate::sinks) fn target(path: &Path) -> io::Result<PathBuf> {
    let last = steps(path)?.pop();
    Ok(last.unwrap_or_else(|| path.to_owned()))
}

/// The directory a path is in.
pub(in crate::sinks) fn directory_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// The path, and what each link on leads to. Only the last one is no link.
fn steps(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut steps = Vec::new();
    let mut at = anchored(&std::path::absolute(path)?);
    while steps.len() <= LINKS_MAX {
        steps.push(at.clone());
        let is_link = std::fs::symlink_metadata(&at).is_ok_and(|metadata| metadata.is_symlink());
        if !is_link {
            return Ok(steps);
        }
        let to = std::fs::read_link(&at)?;
        at = anchored(&at.parent().unwrap_or(Path::new("/")).join(to));
    }
    Err(io::Error::other("its links lead in a circle"))
}

/// The same path, with its directory as it really is, as far as that exists.
fn anchored(path: &Path) -> PathBuf {
    let mut behind = Vec::new();
    let mut at = path;
    while let (Some(parent), Some(name)) = (at.parent(), at.file_name()) {
        behind.push(name);
        if let Ok(real) = std::fs::canonicalize(parent) {
            return behind.iter().rev().fold(real, |path, name| path.join(name));
        }
        at = parent;
    }
    path.to_owned()
}

/// Whether a path (not what it may lead to) is where no file is, or stays.
fn no_place_for_files(path: &Path) -> Option<Instead> {
    let dir = path.ancestors().skip(1).find(|ancestor| ancestor.is_dir())?;
    let is_below_fd = dir.starts_with("/proc") && dir.ends_with("fd");
    if is_below_fd || path == Path::new("/dev/stdout") || path == Path::new("/dev/stderr") {
        return Some(Instead::Stream);
    }
    // What is made among the devices is gone at the next start; shared memory is a place for files all the same.
    let is_device = || std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    if path.starts_with("/dev") && !path.starts_with("/dev/shm") && !is_device() {
        return Some(Instead::Kernel("/dev".into()));
    }
    let magic = rustix::fs::statfs(dir).ok()?.f_type;
    let is_kernel = u64::try_from(magic).is_ok_and(|magic| KERNEL_MAGICS.contains(&magic));
    is_kernel.then(|| Instead::Kernel(dir.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_a_regular_file_or_one_that_can_be_made_is_none_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let at = |name: &str| dir.join(name);
        std::fs::write(at("file"), "").unwrap();
        std::fs::create_dir(at("dir")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        for (name, to) in [
            ("to-file", "file"),
            ("to-nothing", "new/file"),
            ("to-pipe", "pipe"),
            ("to-dir", "dir"),
            ("to-mem", "/proc/self/mem"),
            ("to-stream", "/dev/stdout"),
            ("twice", "to-mem"),
            ("circle", "circle"),
        ] {
            symlink(to, at(name)).unwrap();
        }
        let is = |path: &Path| what_it_is_instead(path);
        for fine in ["file", "new", "new/file", "to-file", "to-nothing", "file/below"] {
            assert_eq!(is(&at(fine)), None, "{fine}");
        }
        for (name, instead) in [
            ("dir", Instead::Directory),
            ("to-dir", Instead::Directory),
            ("pipe", Instead::Pipe),
            ("to-pipe", Instead::Pipe),
            ("socket", Instead::Other),
            ("to-stream", Instead::Stream),
            ("circle", Instead::Circle),
            ("new/", Instead::NoName),
            ("new/..", Instead::NoName),
        ] {
            assert_eq!(is(&at(name)), Some(instead), "{name}");
        }
        for name in ["to-mem", "twice"] {
            assert!(matches!(is(&at(name)), Some(Instead::Kernel(_))), "{name}");
        }
        for path in ["/proc/self/mem", "/proc/self/new", "/sys/kernel/new", "/dev/new"] {
            assert!(matches!(is(Path::new(path)), Some(Instead::Kernel(_))), "{path}");
        }
        for path in [
            "/dev/stdout",
            "/dev/stderr",
            "/dev/fd/1",
            "/proc/self/fd/1",
            "/dev/fd/77",
        ] {
            assert_eq!(is(Path::new(path)), Some(Instead::Stream), "{path}");
        }
        for path in ["/dev/null", "/dev/full", "/dev/zero"] {
            assert_eq!(is(Path::new(path)), Some(Instead::Other), "{path}");
        }
        assert_eq!(is(Path::new("/")), Some(Instead::Directory));
        drop(socket);
    }

    #[test]
    fn a_path_leads_where_its_links_lead_also_to_what_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        std::fs::create_dir(dir.join("real")).unwrap();
        symlink("real", dir.join("linked")).unwrap();
        symlink("linked/new", dir.join("one")).unwrap();
        symlink(dir.join("one"), dir.join("two")).unwrap();
        let new = dir.join("real/new");
        for path in ["linked/new", "one", "two"] {
            assert_eq!(target(&dir.join(path)).unwrap(), new, "{path}");
        }
        assert_eq!(target(&dir.join("none/new")).unwrap(), dir.join("none/new"));
    }
}
