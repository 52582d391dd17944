//! Sinks that are configured no more, and may have letters.

use axum::http::StatusCode;

use super::view::{Failed, View};
use crate::control::answers::Refusal;
use crate::control::dead;

/// So many removed sinks are shown.
const REMOVED_MAX: usize = 10_000;

/// All of them that are shown.
pub async fn all(view: &View) -> Result<Vec<dead::OfRemoved>, Refusal> {
    view.all(dead::Removed {}, REMOVED_MAX).await
}

/// A sink that is configured no more, and may have letters; `None`: there is none of the name.
pub async fn removed(view: &View, name: &str) -> Result<Option<dead::OfRemoved>, Failed> {
    let all = all(view).await.map_err(|error| view.refused(error))?;
    Ok(all.into_iter().find(|one| one.sink == name))
}

/// Refuses what would be delivered to a sink that is configured no more.
pub async fn refuse(view: &View, name: &str) -> Result<(), Failed> {
    match removed(view, name).await? {
        Some(_) => Err(view.failed(StatusCode::CONFLICT, dead::not_configured(name))),
        None => Ok(()),
    }
}
