//! What a log's copy takes along of deliveries beside the durable records.

use std::path::Path;

use super::letters;
use super::types::{DEAD, EngineError, failed};

/// Takes the dead letters along when a log is copied from one engine to the other; gives how many there are. They lie in `dead/` of the
/// data directory with either engine, and that stays what it is: so each file has to be whole, and nothing is to be done.
pub async fn carry_dead_letters(data_dir: &Path) -> Result<u64, EngineError> {
    let dir = data_dir.join(DEAD);
    let read = move || -> Result<u64, EngineError> {
        let mut count = 0;
        for (sink, _) in letters::listed(&dir).map_err(failed)? {
            let of_sink = letters::Letters::new(&dir, &sink, true);
            let cant = |error| EngineError(format!("the dead letters of {sink} can't be read: {error}"));
            of_sink.read().map_err(cant)?;
            count += of_sink.len() as u64;
        }
        Ok(count)
    };
    tokio::task::spawn_blocking(read).await.map_err(failed)?
}
