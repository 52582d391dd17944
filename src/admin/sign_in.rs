//! The sign-in page, the link that `closehook status --open` prints, and what is answered to who has not signed in.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;

use super::fields;
use super::hosts::{self, Host};
use super::refused::Refused;
use super::state::AdminState;
use super::viewer::{LINK_PATH, Peer};
use crate::net::percent;

/// Longest place to go back to.
const NEXT_LEN_MAX: usize = 2048;

/// Largest form.
const FORM_MAX: usize = 16 << 10;

/// What is open to who has not signed in.
pub fn open() -> Router<AdminState> {
    Router::new()
        .route("/sign-in", get(form).post(sign_in))
        .route(LINK_PATH, get(follow))
        .layer(axum::extract::DefaultBodyLimit::max(FORM_MAX))
}

/// What is not.
pub fn router() -> Router<AdminState> {
    Router::new().route("/sign-out", post(sign_out))
}

/// What is answered where somebody has to sign in: to a program what is wrong, to a browser the sign-in page.
pub fn answer(parts: &Parts, refused: Refused) -> Response {
    let wants_page =
        parts.method == Method::GET && !is_api(parts.uri.path()) && !parts.headers.contains_key(header::AUTHORIZATION);
    let is_act = parts.method == Method::POST && !is_api(parts.uri.path());
    let host = parts.extensions.get::<Host>();
    if is_act && host.is_some_and(|host| hosts::not_from_elsewhere(&parts.headers, host).is_err()) {
        // The browser keeps the cookie back then, so that nothing is known of a session.
        let message = "this comes from another site's page, and nothing was done: do it on the operator's page itself";
        if wants_markup(&parts.headers) {
            return page(StatusCode::FORBIDDEN, None, message);
        }
        return Refused::new(StatusCode::FORBIDDEN, message).into_response();
    }
    if is_act && wants_markup(&parts.headers) && !parts.headers.contains_key("hx-request") {
        // What was to be done is not remembered: whoever comes back looks at it again first.
        let place = parts.uri.path().split('/').nth(1).map(|first| format!("/{first}"));
        let message = "your session is over, and nothing was done: sign in, and do it again";
        return page(StatusCode::UNAUTHORIZED, place.as_deref(), message);
    }
    if !wants_page {
        let mut response = refused.into_response();
        let headers = response.headers_mut();
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        // A page that is open there shows the sign-in page instead of a piece of it.
        if parts.headers.contains_key("hx-request") {
            headers.insert("hx-redirect", HeaderValue::from_static("/sign-in"));
        }
        return response;
    }
    let here = parts.uri.path_and_query().map_or("/", |here| here.as_str());
    if parts.headers.contains_key("hx-request") {
        let mut response = refused.into_response();
        response
            .headers_mut()
            .insert("hx-redirect", HeaderValue::from_static("/sign-in"));
        return response;
    }
    // Where a page elsewhere led here the browser keeps the cookie back, whether there is one or not. Our own page has it.
    if hosts::was_led_here(&parts.headers) && !parts.headers.contains_key(header::COOKIE) {
        return go_on(own_path(Some(here)));
    }
    to(&format!("/sign-in?next={}", percent::encoded(here)))
}

/// Whether it is a browser that shows what it gets, and no program.
pub fn wants_markup(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

/// Whether it is for programs.
pub fn is_api(path: &str) -> bool {
    path == "/api" || path.starts_with("/api/")
}

fn to(place: &str) -> Response {
    match HeaderValue::try_from(place) {
        Ok(place) => (StatusCode::SEE_OTHER, [(header::LOCATION, place)]).into_response(),
        Err(_) => StatusCode::SEE_OTHER.into_response(),
    }
}

/// A page of ours that goes on by itself: with a redirect the browser would still think of where it was led from.
fn go_on(place: &str) -> Response {
    let place = escaped(place);
    Html(format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"0;url={place}\"><title>closehook</title>\
         <p><a href=\"{place}\">Go on</a></p></html>\n"
    ))
    .into_response()
}

/// Where to go on to: a path of ours, and nothing that a browser takes for another host.
fn own_path(next: Option<&str>) -> &str {
    let is_fine = |next: &&str| {
        let bytes = next.as_bytes();
        next.len() <= NEXT_LEN_MAX
            && bytes.first() == Some(&b'/')
            && !matches!(bytes.get(1), Some(b'/' | b'\\'))
            && bytes.iter().all(|byte| (0x21..0x7f).contains(byte))
    };
    next.filter(is_fine).unwrap_or("/")
}

pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Next {
    next: Option<String>,
}

async fn form(request: Request) -> Response {
    // What can't be read leads nowhere.
    let Next { next } = fields::of_query(&request.into_parts().0).unwrap_or_default();
    page(StatusCode::OK, next.as_deref(), "")
}

/// The sign-in page. That it sends its origin along is for browsers that would keep it back with the referrer.
fn page(status: StatusCode, next: Option<&str>, said: &str) -> Response {
    (status, Html(super::page::sign_in::page(own_path(next), said))).into_response()
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Typed {
    token: String,
    next: Option<String>,
}

/// Who signs in at somebody else's wish would act in somebody else's name: this takes a page of ours, or a program.
async fn sign_in(State(state): State<AdminState>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let from_own = parts
        .extensions
        .get::<Host>()
        .ok_or_else(|| Refused::bad("the request says no Host"))
        .and_then(|host| hosts::not_from_elsewhere(&parts.headers, host));
    if let Err(refused) = from_own {
        return page(refused.status, None, &refused.message);
    }
    let peer = parts.extensions.get::<Peer>().copied();
    let headers = parts.headers.clone();
    let typed = match fields::of_form::<Typed>(Request::from_parts(parts, body), FORM_MAX).await {
        Ok(typed) if typed.token.trim().is_empty() => {
            let next = typed.next.as_deref();
            return page(StatusCode::BAD_REQUEST, next, "type the token that you were given");
        }
        Ok(typed) => typed,
        Err(refused) => return page(refused.status, None, &refused.message),
    };
    let Some(peer) = peer else {
        return page(StatusCode::FORBIDDEN, None, "it is not known where this comes from");
    };
    match state.auth().sign_in(peer, typed.token.trim(), &headers) {
        Ok(signed_in) => {
            let mut response = to(own_path(typed.next.as_deref()));
            response.headers_mut().insert(header::SET_COOKIE, signed_in.cookie);
            response
        }
        Err(refused) => {
            let mut response = page(refused.status, typed.next.as_deref(), &refused.message);
            if let Some(seconds) = refused.retry_after {
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            response
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Key {
    key: Option<String>,
}

/// A link. Who only looks where it leads (HEAD, or a browser that fetches ahead of a click) does not use it up.
async fn follow(State(state): State<AdminState>, request: Request) -> Response {
    let parts = request.into_parts().0;
    let Key { key } = fields::of_query(&parts).unwrap_or_default();
    let (method, headers) = (parts.method, parts.headers);
    let is_ahead = ["sec-purpose", "purpose", "x-moz"].iter().any(|name| {
        let purpose = headers.get(*name).and_then(|purpose| purpose.to_str().ok());
        let purpose = purpose.map(str::to_ascii_lowercase);
        purpose.is_some_and(|purpose| purpose.contains("prefetch") || purpose.contains("preview"))
    });
    if method != Method::GET || is_ahead {
        return Refused::new(StatusCode::METHOD_NOT_ALLOWED, "this link is for opening, once").into_response();
    }
    match state.auth().follow(&key.unwrap_or_default(), &headers) {
        Ok(signed_in) => {
            let mut response = go_on("/");
            response.headers_mut().insert(header::SET_COOKIE, signed_in.cookie);
            response
        }
        Err(refused) => page(refused.status, None, &refused.message),
    }
}

/// Signing out takes a page of ours too, by the layer in front of it; anybody may who has signed in.
async fn sign_out(State(state): State<AdminState>, headers: HeaderMap) -> Response {
    let mut response = to("/sign-in");
    if let Some(cookie) = state.auth().sign_out(&headers) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_goes_on_to_a_path_of_ours_only() {
        for own in ["/", "/events?type=lead.updated&limit=5", "/events/ev_1#x"] {
            assert_eq!(own_path(Some(own)), own);
        }
        for other in [
            "",
            "events",
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "javascript:alert(1)",
            "/a b",
            "/a\nb",
            "/ä",
            "\\/x",
        ] {
            assert_eq!(own_path(Some(other)), "/", "{other}");
        }
        assert_eq!(own_path(Some(&format!("/{}", "a".repeat(NEXT_LEN_MAX)))), "/");
        assert_eq!(own_path(None), "/");
    }

    #[test]
    fn what_is_put_into_a_page_is_text() {
        assert_eq!(escaped(r#"<a href='x'>"&"#), "&lt;a href=&#39;x&#39;&gt;&quot;&amp;");
    }
}
