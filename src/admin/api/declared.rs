//! A request beside what its route declares, before anything is asked: a parameter or a body that the route does not have may have been
//! meant to restrict what it does, which would do more without it than was asked.

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequestParts, Request};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;

use super::asked::BODY;
use super::{Route, Who};
use crate::admin::fields::{self, shortened};
use crate::admin::refused::Refused;
use crate::admin::viewer::Actor;
use crate::names;

/// Lets a request through that says nothing its route does not know.
pub(super) async fn checked(route: &'static Route, request: Request, next: Next) -> Result<Response, Refused> {
    let (mut parts, body) = request.into_parts();
    if route.who == Who::Acts {
        // That somebody may act comes before what they say.
        Actor::from_request_parts(&mut parts, &()).await?;
    }
    for (name, _) in fields::pairs(&parts)? {
        known(route, &name)?;
    }
    if !route.body.is_empty() || body.is_end_stream() {
        return Ok(next.run(Request::from_parts(parts, body)).await);
    }
    // One in pieces may still turn out to be empty.
    let mut coming = Request::new(body);
    coming.headers_mut().clone_from(&parts.headers);
    match fields::body(coming, 0).await {
        Ok(_) => Ok(next.run(Request::from_parts(parts, Body::empty())).await),
        Err(refused) if refused.status == StatusCode::PAYLOAD_TOO_LARGE => {
            Err(Refused::bad("this takes no body: what is meant is in the address alone").at(BODY))
        }
        Err(refused) => Err(refused),
    }
}

fn known(route: &Route, name: &str) -> Result<(), Refused> {
    if route.parameters().any(|(known, ..)| *known == name) {
        return Ok(());
    }
    let name = shortened(name);
    let wrong = format!("there is no parameter \"{name}\" here");
    let message = names::unknown(wrong, name, route.parameters().map(|(known, ..)| *known));
    let in_body = if route.body.is_empty() {
        ""
    } else {
        "; what is meant is said in the body"
    };
    Err(Refused::bad(format!("{message}{in_body}")).at(name))
}

#[cfg(test)]
mod tests {
    use super::super::ROUTES;
    use super::*;

    #[test]
    fn a_route_takes_what_it_declares_and_nothing_else() {
        let route = |path: &str| ROUTES.iter().find(|route| route.path == path).unwrap();
        known(route("/dead"), "lead").unwrap();
        known(route("/dead"), "limit").unwrap();
        let wrong = |path: &str, name: &str| known(route(path), name).unwrap_err();
        let refused = wrong("/dead", "leed");
        assert_eq!(refused.place, "leed");
        assert_eq!(
            refused.message,
            "there is no parameter \"leed\" here: did you mean \"lead\"?"
        );
        assert_eq!(wrong("/me", "x").message, "there is no parameter \"x\" here");
        assert!(wrong("/dead/drop", "sink").message.ends_with("said in the body"));
    }
}
