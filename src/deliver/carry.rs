//! What a log's copy takes along of deliveries beside the state: dead letters.

use std::path::Path;
use std::sync::Arc;

use super::letters;
pub use super::letters::Carried;
use super::types::{DEAD, EngineError, failed};
use crate::state::journal::Journal;
use crate::task;

/// Puts the dead letters of a data directory into a journal that holds nothing but what an earlier try has left of them. They stay where
/// they are as well, with the log that they are of.
pub async fn carry_dead_letters(data_dir: &Path, journal: Arc<dyn Journal>) -> Result<Carried, EngineError> {
    let dir = data_dir.join(DEAD);
    carried(move || letters::carry_into(&dir, &letters::Desk::new(journal).map_err(text)?)).await
}

/// Puts the dead letters of a journal into a data directory that holds nothing but what an earlier try has left of them.
pub async fn fetch_dead_letters(data_dir: &Path, journal: Arc<dyn Journal>) -> Result<Carried, EngineError> {
    let dir = data_dir.join(DEAD);
    carried(move || letters::fetch_from(&dir, &letters::Desk::new(journal).map_err(text)?)).await
}

/// Whether a data directory holds dead letters, of whatever log. Blocking.
pub fn holds_dead_letters(data_dir: &Path) -> std::io::Result<bool> {
    letters::is_imported(&data_dir.join(DEAD)).map(|is_empty| !is_empty)
}

async fn carried(work: impl FnOnce() -> Result<Carried, String> + Send + 'static) -> Result<Carried, EngineError> {
    task::begin_blocking(work).await.map_err(failed)?.map_err(EngineError)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
