//! glibc's allocator, told to give large blocks back.
//!
//! By itself it raises the size from which a block is mapped (and unmapped when it is freed) to the largest one it has seen
//! freed. After one segment was sealed or read back, hundreds of MB that nobody uses then stay resident for ever. A fixed limit
//! keeps that from happening: measured, one database of 53 MB opened, read and closed again leaves 3 MB instead of 55.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// glibc reads this when a process starts (mallopt(3)); setting any such limit also keeps it from moving.
const LIMIT: &str = "MALLOC_MMAP_THRESHOLD_";

/// Bytes: far above what a delivery takes, below what databases and packs are read in.
const LIMIT_BYTES: &str = "131072";

/// Says that this was done. Where a program has capabilities of its file, glibc takes the limit out of the environment before it
/// begins (2.39, `unsecvars.h`): without a word of our own it would be started anew for ever.
const DONE: &str = "STARTED_ANEW_BY_CLOSEHOOK";

/// Starts this program anew, in the same process and with the same arguments, with the allocator's limit fixed. To be called
/// first thing, by a process that will live long. Returns if it is fixed already (by the person who started it, perhaps to
/// another value), or if it can't be: then more memory is used, and nothing else changes.
pub fn fix_limit() {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    if is_set(LIMIT) || is_set(DONE) || !cfg!(target_env = "gnu") {
        return;
    }
    let mut arguments = std::env::args_os();
    let mut anew = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        anew.arg0(name);
    }
    // It only returns if it fails, and then all is as before.
    let _ = anew.args(arguments).env(LIMIT, LIMIT_BYTES).env(DONE, "1").exec();
}
