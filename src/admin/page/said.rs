//! What a request to the page says: its path, its query, its form. What can't be read is answered with a page that says so.

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use super::view::View;
use crate::admin::api::asked::BODY_MAX;
use crate::admin::fields;
use crate::admin::refused::Refused;
use crate::admin::state::AdminState;

/// The fields of a URL's query.
#[derive(Debug)]
pub struct Url<T>(pub T);

/// The fields of a form.
#[derive(Debug)]
pub struct Form<T>(pub T);

/// What the path names.
#[derive(Debug)]
pub struct Named(pub String);

/// The page that says what is wrong, for whoever looks.
pub async fn page(parts: &mut Parts, state: &AdminState, refused: Refused) -> Response {
    match View::from_request_parts(parts, state).await {
        Ok(view) => view.wrong(refused).into_response(),
        Err(who) => who.into_response(),
    }
}

impl<T: DeserializeOwned + Send> FromRequestParts<AdminState> for Url<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &AdminState) -> Result<Url<T>, Response> {
        match fields::of_query(parts) {
            Ok(said) => Ok(Url(said)),
            Err(refused) => Err(page(parts, state, refused).await),
        }
    }
}

impl FromRequestParts<AdminState> for Named {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &AdminState) -> Result<Named, Response> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Named(name)),
            Err(_) => Err(page(parts, state, Refused::bad("the address can't be read: it is no UTF-8")).await),
        }
    }
}

impl<T: DeserializeOwned + Send> FromRequest<AdminState> for Form<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &AdminState) -> Result<Form<T>, Response> {
        let (mut parts, body) = request.into_parts();
        let mut form = Request::new(body);
        form.headers_mut().clone_from(&parts.headers);
        match fields::of_form(form, BODY_MAX).await {
            Ok(said) => Ok(Form(said)),
            Err(refused) => Err(page(&mut parts, state, refused).await),
        }
    }
}
