//! Who looks, and who acts.
//!
//! What somebody may do is in the [`Viewer`] that the layer `gate::needed` puts among a request's extensions.
//! Acting takes an [`Actor`], which is only made of a request that may act, is not a mere `GET`, and comes from one of our own pages or
//! carries its token: nothing that forgets to check can act.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use tokio_util::sync::CancellationToken;

use super::refused::Refused;
pub use crate::config::May;

/// Where a link leads, with its secret behind it.
pub const LINK_PATH: &str = "/sign-in/link";

/// Who looks.
#[derive(Debug, Clone)]
pub struct Viewer {
    /// What their token is called, or `link`.
    pub name: String,
    /// What they may do.
    pub may: May,
    /// Cancelled when they may look no more: what still runs for them ends then.
    pub over: CancellationToken,
    /// When they may look no more at the latest; `None` where they show their token each time.
    pub until: Option<Instant>,
    /// Whether this request can act, as far as it is not about who sent it.
    is_own_act: bool,
}

impl Viewer {
    pub(super) fn new(name: &str, may: May, over: CancellationToken, until: Option<Instant>) -> Viewer {
        Viewer {
            name: name.to_owned(),
            may,
            over,
            until,
            is_own_act: false,
        }
    }

    /// The same, of a request that acts and comes from where acts may come from, or of another.
    pub(super) fn acting(self, is_own_act: bool) -> Viewer {
        Viewer { is_own_act, ..self }
    }
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

impl<S: Send + Sync> FromRequestParts<S> for Viewer {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Viewer, Refused> {
        let viewer = parts.extensions.get::<Viewer>().cloned();
        viewer.ok_or_else(|| Refused::new(StatusCode::UNAUTHORIZED, "sign in first"))
    }
}

/// Somebody who acts. There is no other way to give the daemon an order than `AdminState::order`.
#[derive(Debug)]
pub struct Actor {
    viewer: Viewer,
}

impl Actor {
    /// Who it is.
    pub fn viewer(&self) -> &Viewer {
        &self.viewer
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Actor, Refused> {
        let viewer = Viewer::from_request_parts(parts, state).await?;
        if viewer.may < May::Act {
            let message = format!(
                "\"{}\" may look and not act: sign in with a token that has may = \"act\"",
                viewer.name
            );
            return Err(Refused::new(StatusCode::FORBIDDEN, message));
        }
        if !viewer.is_own_act {
            return Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, "what acts is a POST"));
        }
        Ok(Actor { viewer })
    }
}

/// How long a stream may go on for somebody.
pub fn time_left(viewer: &Viewer, now: Instant) -> Duration {
    viewer
        .until
        .map_or(Duration::MAX, |until| until.saturating_duration_since(now))
}
