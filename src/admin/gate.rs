//! The layers in front of what the admin listener answers.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::hosts::{self, Host};
use super::refused::Refused;
use super::sign_in;
use super::state::AdminState;
use crate::listener::standing::Standing;

/// The layer in front of everything: whom the request is meant for.
pub async fn addressed(State(state): State<AdminState>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match state.auth().host(&parts) {
        Ok(host) => {
            parts.extensions.insert(host);
            next.run(Request::from_parts(parts, body)).await
        }
        Err(refused) => refused.into_response(),
    }
}

/// The layer in front of what is open to everybody, whatever name they have for this machine: to every page it is not.
pub async fn not_for_pages(State(state): State<AdminState>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match hosts::not_read_elsewhere(&parts, state.auth().host(&parts)) {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(refused) => refused.into_response(),
    }
}

/// The layer in front of all that is not open to everybody. It is behind [`addressed`].
pub async fn needed(State(state): State<AdminState>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let Some(host) = parts.extensions.get::<Host>().cloned() else {
        return Refused::new(StatusCode::MISDIRECTED_REQUEST, "the request says no Host").into_response();
    };
    match state.auth().viewer(&parts, &host) {
        Ok(viewer) => {
            // Where places are short, those go first over whose connection nobody ever came who has signed in.
            if let Some(standing) = parts.extensions.get::<Arc<Standing>>() {
                standing.deliver();
            }
            parts.extensions.insert(viewer);
            next.run(Request::from_parts(parts, body)).await
        }
        Err(refused) if refused.status == StatusCode::UNAUTHORIZED => sign_in::answer(&parts, refused),
        Err(refused) => refused.into_response(),
    }
}
