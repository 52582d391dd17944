//! What the child gives up before it reads anything, and how much memory it has.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::process::{Resource, Rlimit, Signal, getpid, kill_process, set_parent_process_death_signal, setrlimit};

use crate::render::MEMORY_MAX;

/// Beside what an event may take: what a batch is read into, and what is made of it until it is sent.
const BESIDE: u64 = 8 << 20;

/// For what is read next, which is not known yet: the longest frame and more.
const WIDE: u64 = 192 << 20;

/// Descriptors: standard input, output and error, the daemon (for reading and for writing), and where the kernel says how much memory
/// is used.
const DESCRIPTORS: u64 = 6;

/// How much memory there is.
pub(in crate::render) struct Room {
    /// `None`: there are no limits, in a test that has no process for them.
    used: Option<File>,
}

impl Room {
    /// Without limits.
    #[cfg(test)]
    pub fn unlimited() -> Room {
        Room { used: None }
    }

    /// Bytes of writable memory of its own that the child has now.
    fn used(file: &File) -> Option<u64> {
        let mut text = [0; 256];
        let len = file.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(text.get(..len)?).ok()?;
        let pages: u64 = text.split_ascii_whitespace().nth(5)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }

    fn limit(&self, room: u64) {
        let Some(file) = &self.used else { return };
        // Without an answer there is room for what a child has at rest.
        let used = Room::used(file).unwrap_or(64 << 20);
        let limit = Rlimit {
            current: Some(used + room),
            maximum: None,
        };
        // It can only fail for a limit that was set from outside, which holds then.
        let _ = setrlimit(Resource::Data, limit);
    }

    /// For reading what comes next, and for programs.
    pub fn open_wide(&self) {
        self.limit(WIDE);
    }

    /// For rendering events that came in a frame of so many bytes, which are there already.
    pub fn close_to(&self, frame_len: usize) {
        // The event is looked at as a copy of its own.
        self.limit(MEMORY_MAX as u64 + BESIDE + frame_len as u64);
    }
}

/// Gives up everything else. An error says what could not be given up.
pub(super) fn close_doors() -> Result<Room, String> {
    let wrong = |what: &'static str| move |error: rustix::io::Errno| format!("{what} can't be given up: {error}");
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(wrong("to outlive the daemon"))?;
    rustix::thread::set_no_new_privs(true).map_err(wrong("new privileges"))?;
    // Events are in its memory.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // In a list of processes it would be called as what it was started by, which is a link.
    let _ = rustix::thread::set_name(c"closehook");
    let used = File::open("/proc/self/statm").map_err(|error| format!("/proc can't be read: {error}"))?;
    let none = |resource, limit| {
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(resource, limit)
    };
    none(Resource::Core, 0).map_err(wrong("core files"))?;
    none(Resource::Fsize, 0).map_err(wrong("files"))?;
    none(Resource::Nofile, DESCRIPTORS).map_err(wrong("descriptors"))?;
    none(Resource::Nproc, 0).map_err(wrong("processes"))?;
    Ok(Room { used: Some(used) })
}

/// Ends this process as one that has used up its time.
pub(super) fn end_for_time() {
    let _ = kill_process(getpid(), Signal::XCPU);
}
