//! The operator's page.

use axum::Router;
use axum::response::Html;
use axum::routing::get;

use super::auth::Viewer;
use super::sign_in::escaped;
use super::state::AdminState;

/// What is behind the sign-in: each handler has a [`Viewer`].
pub fn router() -> Router<AdminState> {
    Router::new().route("/", get(home))
}

/// What the sign-in page needs too: nothing in it may tell anything.
pub fn open() -> Router<AdminState> {
    Router::new()
}

async fn home(viewer: Viewer) -> Html<String> {
    let name = escaped(&viewer.name);
    Html(format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"referrer\" content=\"same-origin\"><title>closehook</title>\
         <p>Signed in as {name}. <a href=\"/api/v1/openapi.json\">What can be asked</a></p>\
         <form method=\"post\" action=\"/sign-out\"><button>Sign out</button></form></html>\n"
    ))
}
