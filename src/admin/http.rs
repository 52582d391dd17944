//! The admin listener: everything it answers, in front of everything what is checked.
//!
//! ```text
//! /healthz /readyz /metrics                         open to everybody who reaches the listener, but for pages ([`gate::not_for_pages`])
//! /sign-in, assets                                  addressed to us ([`gate::addressed`])
//! the page, /api/v1, whatever else is asked for     addressed to us, and signed in ([`gate::needed`])
//! ```
//!
//! Health and metrics are asked for by whatever name or address the scraper and the prober have for this machine, so of them no Host is
//! checked there. Where a browser says that a page asks, it has to be one of ours.
//!
//! All answers carry the same headers: nothing from elsewhere, in nobody's frame, kept by nobody.

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};

use super::api::asked::BODY_MAX;
use super::health::Health;
use super::refused::Refused;
use super::state::AdminState;
use super::{api, gate, page, sign_in};
use crate::ingress::add_request_id;

/// Where nothing may come from but this listener, and nothing may be shown in a frame or sent elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// All routes.
pub fn router(health: Health, state: AdminState) -> Router {
    let inside = Router::new()
        .merge(page::router())
        .merge(sign_in::router())
        .nest("/api/v1", api::router())
        .fallback(nothing_here)
        .method_not_allowed_fallback(not_by_this_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(from_fn_with_state(state.clone(), gate::needed));
    let addressed = Router::new()
        .merge(sign_in::open())
        .merge(page::open())
        .merge(inside)
        .layer(from_fn_with_state(state.clone(), gate::addressed));
    let open = health
        .router()
        .route_layer(from_fn_with_state(state.clone(), gate::not_for_pages));
    Router::new()
        .merge(addressed)
        .with_state(state)
        .merge(open)
        .layer(map_response(dressed))
}

async fn nothing_here(State(state): State<AdminState>, request: Request) -> Response {
    let hint = if sign_in::is_api(request.uri().path()) {
        ": /api/v1/openapi.json lists what there is"
    } else {
        ""
    };
    let refused = Refused::new(StatusCode::NOT_FOUND, format!("there is nothing here{hint}"));
    said(state, request, refused).await
}

async fn not_by_this_method(State(state): State<AdminState>, request: Request) -> Response {
    let message = if sign_in::is_api(request.uri().path()) {
        "this is not done by this method: /api/v1/openapi.json lists what there is"
    } else {
        "this is done by a button of the page, and is no page itself"
    };
    let refused = Refused::new(StatusCode::METHOD_NOT_ALLOWED, message);
    said(state, request, refused).await
}

/// To a browser as a page, to a program as JSON.
async fn said(state: AdminState, request: Request, refused: Refused) -> Response {
    let (mut parts, _) = request.into_parts();
    if sign_in::is_api(parts.uri.path()) || !sign_in::wants_markup(&parts.headers) {
        return refused.into_response();
    }
    page::refused(&mut parts, &state, refused).await
}

/// With the headers that all answers have.
async fn dressed(mut response: Response) -> Response {
    let headers = response.headers_mut();
    add_request_id(headers);
    let mut set = |name: HeaderName, value: &'static str| headers.insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::X_FRAME_OPTIONS, "DENY");
    set(header::REFERRER_POLICY, "no-referrer");
    set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    set(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    keep_nowhere(headers);
    response
}

/// Assets say themselves how long they are kept; of a stream it is said by the library, in other words.
fn keep_nowhere(headers: &mut HeaderMap) {
    let is_kept = headers
        .get(header::CACHE_CONTROL)
        .is_some_and(|kept| kept != "no-cache");
    if !is_kept {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}
