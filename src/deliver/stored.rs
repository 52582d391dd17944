//! The state in a data directory on this machine.

use std::path::Path;
use std::sync::Arc;

use super::types::{EngineError, Mode, failed};
use crate::log;
use crate::state::{self, LocalStore, Store};
use crate::task;

/// Where the state is, below the data directory.
const STATE: &str = "state";

/// Opens the store of a data directory on this machine; with [`Mode::Look`] nothing is written. The directory notes that there is one, as
/// else one that is gone would be taken for one that was never begun.
pub async fn open_store(dir: &Path, mode: Mode) -> Result<Arc<dyn Store>, EngineError> {
    let dir = dir.to_owned();
    let opened = task::begin_blocking(move || open(&dir, mode == Mode::Look));
    Ok(Arc::new(opened.await.map_err(failed)??))
}

fn open(dir: &Path, read_only: bool) -> Result<LocalStore, EngineError> {
    let was_begun = log::is_state_begun(dir).map_err(failed)?;
    let store = LocalStore::open_again(&dir.join(STATE), read_only, was_begun).map_err(failed)?;
    // Only what is durable has begun.
    if !read_only
        && !was_begun
        && store.is_begun()
        && let Err(error) = log::note_state_begun(dir)
    {
        tracing::warn!(%error, "that there are positions can't be noted now; the next start does that");
    }
    Ok(store)
}

/// Writes a [`Picture`](super::Picture)'s state into a data directory that has none. Blocking.
pub fn restore_state(dir: &Path, state: Vec<(String, Vec<u8>)>) -> Result<(), EngineError> {
    state::local::write(&dir.join(STATE), state).map_err(failed)
}
