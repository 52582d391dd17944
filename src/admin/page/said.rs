//! What a request to the page says: its path, its query, its form. What can't be read is answered with a page that says so.

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::view::View;
use crate::admin::api::asked::BODY_MAX;
use crate::admin::fields::Fields;
use crate::admin::refused::Refused;
use crate::admin::state::AdminState;

/// The fields of a URL's query: all of them, for what is not known may have been meant to restrict what is shown or done.
#[derive(Debug)]
pub struct Url<T>(pub T);

/// The same in two parts.
#[derive(Debug)]
pub struct Urls<A, B>(pub A, pub B);

/// The fields of a form, all of them, and nothing in its URL's query.
#[derive(Debug)]
pub struct Form<T>(pub T);

/// The same in three parts.
#[derive(Debug)]
pub struct Forms<A, B, C>(pub A, pub B, pub C);

/// A form that says nothing but what its button does.
#[derive(Debug, Deserialize)]
pub struct Nothing {}

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
        of_query(parts, state, |fields| fields.take().map(Url)).await
    }
}

impl<A: DeserializeOwned + Send, B: DeserializeOwned + Send> FromRequestParts<AdminState> for Urls<A, B> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &AdminState) -> Result<Urls<A, B>, Response> {
        of_query(parts, state, |fields| Ok(Urls(fields.take()?, fields.take()?))).await
    }
}

async fn of_query<T>(
    parts: &mut Parts,
    state: &AdminState,
    take: impl FnOnce(&mut Fields) -> Result<T, Refused>,
) -> Result<T, Response> {
    match Fields::of_query(parts).and_then(|fields| fields.all(take)) {
        Ok(said) => Ok(said),
        Err(refused) => Err(page(parts, state, refused).await),
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
        of_form(request, state, |fields| fields.take().map(Form)).await
    }
}

impl<A, B, C> FromRequest<AdminState> for Forms<A, B, C>
where
    A: DeserializeOwned + Send,
    B: DeserializeOwned + Send,
    C: DeserializeOwned + Send,
{
    type Rejection = Response;

    async fn from_request(request: Request, state: &AdminState) -> Result<Forms<A, B, C>, Response> {
        of_form(request, state, |fields| {
            Ok(Forms(fields.take()?, fields.take()?, fields.take()?))
        })
        .await
    }
}

async fn of_form<T>(
    request: Request,
    state: &AdminState,
    take: impl FnOnce(&mut Fields) -> Result<T, Refused>,
) -> Result<T, Response> {
    let (mut parts, body) = request.into_parts();
    let mut form = Request::new(body);
    form.headers_mut().clone_from(&parts.headers);
    let form = Fields::of_form(form, BODY_MAX).await;
    let read = form.and_then(|fields| fields.all(take));
    // What a form says is in its body.
    match read.and_then(|said| Fields::of_query(&parts)?.all_taken().map(|()| said)) {
        Ok(said) => Ok(said),
        Err(refused) => Err(page(&mut parts, state, refused).await),
    }
}
