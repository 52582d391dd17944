//! The keys of known events: what makes a second delivery of the same revision a duplicate (invariant I2).
//!
//! The newest segment has a table in memory (`table`), rebuilt from its journal at start. When a segment is complete its keys
//! go into a file of their own, `keys/<first seq>` (`file`), and the table goes; where that could not be done yet it is rebuilt, too.
//! The file outlives the segment: a duplicate is known for as long as Close may send it again, however short the log's retention. The
//! files of a month are merged into databases (`month`, `merge`). Of all these only a filter (about two bytes a key) stays in memory; a filter's "maybe" is confirmed by comparing whole keys on disk,
//! never by hash alone. Nothing on disk is open but for the moment it is read, or a little longer.
//!
//! Keys are found by the hash of the event's id, so the same sets answer "which revisions of this id are there?".
//! Whoever asks the disk does so without the lock (`look`), so that nobody waits for anybody else's reading.
//!
//! What can't be read now is an error. What is proven to be damaged is set aside; what can be read of it is kept, and where there is no
//! room for that the damaged set waits for it under a name of its own.

mod carried;
mod copies;
mod disk;
mod file;
mod filter;
mod first;
mod identity;
mod keys;
mod left;
mod look;
mod merge;
mod month;
mod opening;
mod page;
mod part;
mod set;
mod table;
#[cfg(test)]
mod tests;
mod unit;

pub use carried::CarriedKeys;
pub use copies::KeyFiles;
pub(super) use file::{KeyFile, write_file};
#[cfg(test)]
pub(super) use first::old;
pub(super) use identity::Identity;
pub(super) use keys::{KnownKeys, Recalled};
pub(super) use look::{Answer, every, find, revisions};
pub(super) use merge::{Merged, abandon, publish};
pub(super) use opening::{Unsaved, covered, is_month, remove_damaged, save};
pub(super) use table::Table;
pub(super) use unit::Unit;
