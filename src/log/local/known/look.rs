//! Asking what is known without holding anybody up: memory is asked under the lock of the known keys, the disk without it.
//!
//! What is asked on disk is what there was at one moment. A set that gave way meanwhile (its keys are in a merged one by then, or
//! have expired) may be gone from under a reader: then everything is asked again. Only the error of a set that is still in force is
//! one, and only that proves damage.

use std::io;
use std::sync::{Arc, RwLock};

use super::identity::{Identity, id_part};
use super::keys::{KnownKeys, Recalled};
use super::unit::Unit;
use crate::event::{EventKey, Seq, Updated};
use crate::sync::read_lock;

/// What is known of an identity, and which sets were asked on disk: as long as no others may hold it, the answer stands.
#[derive(Debug, Default)]
pub(in crate::log::local) struct Answer {
    pub seq: Option<Seq>,
    pub asked: Vec<Arc<Unit>>,
}

/// The Seq under which this identity is known, other than those that are gone. Blocking.
pub(in crate::log::local) fn find(
    known: &RwLock<KnownKeys>,
    identity: &Identity,
    is_gone: &dyn Fn(Seq) -> bool,
) -> io::Result<Answer> {
    loop {
        let asked = match read_lock(known).recall(identity, is_gone) {
            Recalled::Known(seq) => {
                return Ok(Answer {
                    seq: Some(seq),
                    asked: Vec::new(),
                });
            }
            Recalled::Doubtful(asked) => asked,
            Recalled::New => Vec::new(),
        };
        let mut seq = None;
        let mut find = |key: &[u8], at: Seq| {
            // Twice only where damage took the first one: the newer one counts.
            if key == identity.as_bytes() && !is_gone(at) {
                seq = seq.max(Some(at));
            }
        };
        match ask(&in_force(known), &asked, identity.hash, &mut find) {
            Ok(true) => return Ok(Answer { seq, asked }),
            Ok(false) => {}
            // What others hold is known, whatever is in doubt.
            Err(_) if seq.is_some() && asked.iter().any(|unit| unit.is_doubted()) => {
                return Ok(Answer { seq, asked: Vec::new() });
            }
            Err(error) => return Err(error),
        }
    }
}

/// Hands on every known key with its Seq, in no order, some perhaps twice. Blocking.
pub(in crate::log::local) fn every(known: &RwLock<KnownKeys>, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()> {
    let (tables, units) = read_lock(known).everything();
    for table in tables {
        table.sorted().into_iter().for_each(|(_, key, seq)| each(key, seq));
    }
    for unit in units {
        unit.certain()?;
        for page in 0..unit.known().pages() {
            unit.known().page(page, each)?;
        }
    }
    Ok(())
}

/// Whether a set has not given way.
fn in_force(known: &RwLock<KnownKeys>) -> impl Fn(&Arc<Unit>) -> bool {
    |unit| read_lock(known).holds(unit)
}

/// The Seqs of every known revision of an event id, in order. Blocking.
pub(in crate::log::local) fn revisions(known: &RwLock<KnownKeys>, id: &str) -> io::Result<Vec<Seq>> {
    let identity = Identity::of_event(&EventKey {
        id: id.to_owned(),
        updated: Updated::Missing,
    });
    let id_part = id_part(identity.as_bytes());
    loop {
        let (mut found, units) = read_lock(known).recall_revisions(&identity);
        let mut add = |key: &[u8], seq| {
            if key.starts_with(id_part) {
                found.push(seq);
            }
        };
        if ask(&in_force(known), &units, identity.hash, &mut add)? {
            found.sort_unstable();
            found.dedup();
            return Ok(found);
        }
    }
}

/// Hands on every key with this hash in these sets, and perhaps others; `false` where one of them gave way meanwhile.
pub(super) fn ask(
    in_force: &dyn Fn(&Arc<Unit>) -> bool,
    units: &[Arc<Unit>],
    hash: u64,
    each: &mut dyn FnMut(&[u8], Seq),
) -> io::Result<bool> {
    for unit in units {
        let Err(error) = unit.around(hash, each) else {
            continue;
        };
        if !in_force(unit) {
            return Ok(false);
        }
        unit.judge(&error);
        return Err(error);
    }
    Ok(true)
}
