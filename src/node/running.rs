//! Which nodes run, for who is none.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::record::{NODES, NodeRecord, NodeState};
use crate::state::{Revision, Store, StoreError};

/// How often their records are looked at.
const LOOK: Duration = Duration::from_millis(300);

/// The nodes that renew their records. One that has left, or was declared dead, does not; whoever seems to be alive is watched for so long.
pub async fn running(store: &dyn Store, watched: Duration) -> Result<Vec<String>, StoreError> {
    let until = Instant::now() + watched;
    let first = alive(store).await?;
    if first.is_empty() {
        return Ok(Vec::new());
    }
    loop {
        let now = alive(store).await?;
        let renewed = now
            .into_iter()
            .filter(|(name, revision)| first.get(name) != Some(revision));
        let renewed: Vec<String> = renewed.map(|(name, _)| name).collect();
        if !renewed.is_empty() || Instant::now() >= until {
            return Ok(renewed);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn alive(store: &dyn Store) -> Result<BTreeMap<String, Revision>, StoreError> {
    let mut alive = BTreeMap::new();
    for key in store.keys(NODES).await? {
        let Some(entry) = store.get(&key).await? else { continue };
        // One that can't be read is a newer closehook's.
        let state = entry
            .json::<NodeRecord>()
            .map_or(NodeState::Alive, |record| record.state);
        if state == NodeState::Alive {
            alive.insert(key.trim_start_matches(NODES).to_owned(), entry.revision);
        }
    }
    Ok(alive)
}
