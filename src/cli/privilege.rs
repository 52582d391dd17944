//! What a command run by root may do in a data directory that is another user's.
//!
//! Whoever owns the directory can put anything there, also links to files that only root may write. So root does not write
//! there: before a command that changes the directory begins, or the daemon, it becomes the directory's owner, and keeps of root's
//! power only that to read, for the configuration, its secrets, and files named on the command line, and that to listen on a port
//! below 1024.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Gid, Uid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_keep_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use super::{Failure, Outcome};

/// Becomes the owner of a data directory (of what it will be in, where it is not there yet), if this is root and it is not
/// root's. To be called before there are threads: each has an identity of its own.
pub(super) fn become_owner_of(dir: &Path) -> Outcome {
    if !geteuid().is_root() {
        return Ok(());
    }
    let Some((user, group)) = owner(dir).filter(|(user, _)| *user != 0) else {
        return Ok(());
    };
    become_user(user, group).map_err(|error| {
        Failure::Work(format!(
            "{} belongs to user {user}, and root can't become that user here ({error}): run this as that user",
            dir.display()
        ))
    })
}

fn owner(dir: &Path) -> Option<(u32, u32)> {
    let absolute = std::path::absolute(dir).ok()?;
    let there = absolute.ancestors().find_map(|path| std::fs::metadata(path).ok())?;
    Some((there.uid(), there.gid()))
}

fn become_user(user: u32, group: u32) -> rustix::io::Result<()> {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    set_keep_capabilities(true)?;
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    set_keep_capabilities(false)?;
    // Containers often do not have even that; then what only root may read can't be read any more.
    let wanted = CapabilitySet::DAC_READ_SEARCH | CapabilitySet::NET_BIND_SERVICE;
    let kept = capabilities(None)?.permitted & wanted;
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )
}
