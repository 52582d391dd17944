//! `/api/v1`: what the page and programs ask and order, with the answers that commands get over the socket.

use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use super::auth::{May, Viewer};
use super::state::AdminState;

/// Its routes, below `/api/v1`.
pub fn router() -> Router<AdminState> {
    Router::new().route("/me", get(me))
}

/// Who looks.
#[derive(Debug, Serialize)]
struct Me {
    name: String,
    may: May,
}

async fn me(viewer: Viewer) -> Json<Me> {
    Json(Me {
        name: viewer.name,
        may: viewer.may,
    })
}
