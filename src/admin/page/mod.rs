//! The operator's page: what happened, why, and what can be done about it.
//!
//! Each view is a file: it asks the daemon what `/api/v1` and the commands ask (`View::one`), makes rows and words of the typed
//! answers, and gives them to a template. What is read has a URL to share and works without scripts; what changes on its own (the live
//! tail, parts that look again, a search that goes on) is the same templates in pieces, put in place by htmx. What acts is a form of a page
//! of ours, sent by somebody who may act ([`super::viewer::Actor`]).
//!
//! Nothing that came from elsewhere can be more than text on it: every template writes through `text::Inert`.

mod acting;
mod acts;
mod assets;
mod charts;
mod close;
mod configuration;
mod event;
mod events;
mod jobs;
mod letter;
mod letters;
mod overview;
mod picture;
mod query;
mod removed;
mod replays;
mod said;
pub(super) mod sign_in;
mod sinks;
mod tail;
pub(crate) mod text;
mod tile;
mod tries;
mod trouble;
mod view;
mod went;

use axum::Router;
use axum::http::request::Parts;
use axum::response::{Redirect, Response};
use axum::routing::{get, post};

use super::refused::Refused;
use super::state::AdminState;

/// What is behind the sign-in.
pub fn router() -> Router<AdminState> {
    Router::new()
        .route("/", get(overview::show))
        .route("/parts/overview", get(overview::part))
        .route("/tail", get(tail::follow))
        .route("/events", get(events::show))
        .route("/events/more", get(events::more))
        .route("/events/{id}", get(event::show))
        .route("/events/{id}/raw", get(event::raw))
        .route("/sinks", get(sinks::list))
        .route("/sinks/{sink}", get(sinks::show))
        .route("/parts/sinks/{sink}", get(sinks::part))
        .route("/sinks/{sink}/pause", post(sinks::pause))
        .route("/sinks/{sink}/letters", get(letters::confirm).post(letters::act))
        .route("/replay", get(replays::plan).post(replays::start))
        .route("/replay/count", get(replays::count))
        .route("/replays", get(replays::list))
        .route("/replays/{id}", get(replays::show).post(replays::set))
        .route("/try", get(tries::show).post(tries::run))
        .route("/try/check", post(tries::check))
        .route("/close", get(close::show))
        .route("/close/subscriptions/{id}/resume", post(close::resume))
        .route("/close/backfill", post(close::backfill))
        .route("/close/backfill/set", post(close::set))
        .route("/configuration", get(configuration::show))
        .route("/configuration/reload", post(configuration::reload))
        .route("/acts", get(acts::show))
        .route("/jobs/{id}", get(jobs::show))
        .layer(axum::Extension(jobs::Jobs::default()))
}

/// The page that says why something is not done, for whoever has signed in.
pub async fn refused(parts: &mut Parts, state: &AdminState, refused: Refused) -> Response {
    said::page(parts, state, refused).await
}

/// What the sign-in page needs too: nothing in it tells anything.
pub fn open() -> Router<AdminState> {
    Router::new()
        .route("/assets/{name}", get(assets::serve))
        // What a browser asks for where what it shows names no icon: a body as it came.
        .route(
            "/favicon.ico",
            get(async || Redirect::temporary(&assets::href("icon.svg"))),
        )
}
