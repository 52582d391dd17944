//! glibc's allocator, told to keep what is used again and again, and to give the rest back.
//!
//! By itself it raises the size from which a block is mapped (and unmapped when it is freed) to the largest one it has seen
//! freed. After one segment was sealed or read back, hundreds of MB that nobody uses then stay resident for ever. A fixed limit
//! keeps that from happening: measured, one database of 53 MB opened, read and closed again leaves 3 MB instead of 55.
//!
//! The limit is above what is made anew with every block that is read and every batch that is sent (1 to 2 MB): memory that was mapped
//! just now costs a fault for each page, and with a limit of 128 KiB those were a third of what delivering took. What is kept for that
//! stays small as long as few threads have arenas of their own.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// What glibc reads when a process starts (mallopt(3)), and bytes or a number. Setting any of the limits also keeps them from moving.
const SETTINGS: [(&str, &str); 3] = [
    ("MALLOC_MMAP_THRESHOLD_", "2097152"),
    ("MALLOC_TRIM_THRESHOLD_", "2097152"),
    ("MALLOC_ARENA_MAX", "2"),
];

/// Says that this was done. Where a program has capabilities of its file, glibc takes the settings out of the environment before it
/// begins (2.39, `unsecvars.h`): without a word of our own it would be started anew for ever.
const DONE: &str = "STARTED_ANEW_BY_CLOSEHOOK";

/// Starts this program anew, in the same process and with the same arguments, with the allocator's settings. To be called
/// first thing, by a process that will live long. Returns if they are there already (of the person who started it, perhaps with
/// other values), or if that can't be done: then more memory is used, and nothing else changes.
pub fn fix_limit() {
    let missing = SETTINGS.iter().filter(|(name, _)| std::env::var_os(name).is_none());
    let missing: Vec<_> = missing.copied().collect();
    if missing.is_empty() || !cfg!(target_env = "gnu") || std::env::var_os(DONE).is_some() {
        return;
    }
    let mut arguments = std::env::args_os();
    let mut anew = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        anew.arg0(name);
    }
    // It only returns if it fails, and then all is as before.
    let _ = anew.args(arguments).envs(missing).env(DONE, "1").exec();
}
