//! The log on this machine's disk.
//!
//! ```text
//! append ──► commit loop ──► journal (fdatasync: this is what 200 means)
//!                               │ segment complete: by size, by age
//!                               ▼
//!                keeper ──► database, verified and synced ──► journal dropped
//!                               │ told to
//!                               ▼
//!                           directory removed
//! ```
//!
//! The log is a row of segments, `log/<first seq>/`. The newest has a journal (`journal`), complete ones are sealed into
//! packs in a database (`sealed`). Readers do not care which: they ask for a Seq. The keys of known events
//! (`known`) outlive the segments. Whatever a crash or a power cut leaves is put in order when the log is opened
//! (`recovery`); what damage takes away is written down (`gaps`) and stepped over.
//!
//! Nothing goes by itself: whoever knows what must stay has the log [drop](super::Log::drop_before) the rest, and says how much it
//! may take up ([`super::Log::set_room`]). One thread changes what is stored, the keeper (`keeper`); who meets damage while reading
//! asks it, and waits.
//!
//! Owned directories below the data directory: `log/`, `keys/`, `damaged/`; files: `lock`, `closehook.json`, `gaps`, `copied.json`.

mod back;
mod block;
mod commit;
mod description;
mod desk;
mod engine;
mod fault;
mod files;
mod gaps;
mod handle;
mod journal;
mod keeper;
mod known;
mod lock;
mod lookup;
mod moved;
mod open;
mod options;
mod owed;
mod pending;
mod placed;
mod read;
mod recovery;
mod refused;
mod reread;
mod scratch;
mod sealed;
mod shared;
pub mod space;
#[cfg(test)]
mod tests;
mod transfer;
mod varint;

pub use crate::age::Clock;
pub use description::{is_state_begun, note_state_begun};
pub use files::raise_limit;
pub use handle::LocalLog;
pub use known::{CarriedKeys, KeyFiles};
pub use lock::{Holder, holder, note_serving, take_dir};
pub use moved::{Moved, identity, moved, note_moved, refuse_moved, reopen, shared_upto};
pub use options::{Options, SEGMENT_EVENTS_MAX};
pub use placed::{Placer, commit as commit_copy, is_begun as is_copy_begun};
pub use refused::OpenError;
pub use scratch::DIR as SCRATCH;
pub use transfer::{Piece, Restorer, Taken, key_file};
