//! What every view has: who looks, the daemon to ask, and the frame around what it shows.

use std::time::Duration;

use askama::Template;
use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{Html, IntoResponse, Redirect, Response};

use super::{assets, text};
use crate::admin::refused::Refused;
use crate::admin::state::AdminState;
use crate::admin::viewer::{May, Viewer};
use crate::control::{Ask, Question, Refusal};

/// A page waits so long for an answer, and says so where there is none.
const PATIENCE: Duration = Duration::from_secs(30);

/// Somebody looks at something.
#[derive(Debug, Clone)]
pub struct View {
    /// The daemon.
    pub state: AdminState,
    /// Who looks.
    pub viewer: Viewer,
}

impl FromRequestParts<AdminState> for View {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &AdminState) -> Result<View, Refused> {
        let viewer = Viewer::from_request_parts(parts, state).await?;
        Ok(View {
            state: state.clone(),
            viewer,
        })
    }
}

/// What is around a page.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Who looks.
    pub who: String,
    /// Whether they may act.
    pub may_act: bool,
    /// Which of the places of the navigation this belongs to; empty: none.
    pub here: &'static str,
}

/// The places of the navigation: what each is called, and where it is.
const PLACES: [(&str, &str); 8] = [
    ("Overview", "/"),
    ("Events", "/events"),
    ("Sinks", "/sinks"),
    ("Replays", "/replays"),
    ("Try", "/try"),
    ("Close", "/close"),
    ("Configuration", "/configuration"),
    ("Acts", "/acts"),
];

impl Frame {
    /// For the navigation.
    #[expect(clippy::unused_self, reason = "a template asks the frame")]
    pub fn places(&self) -> &'static [(&'static str, &'static str)] {
        &PLACES
    }

    /// Whether the page belongs there.
    pub fn is_here(&self, place: &str) -> bool {
        self.here == place
    }
}

/// Why a page can't be shown.
#[derive(Debug)]
pub struct Failed {
    frame: Frame,
    status: StatusCode,
    message: String,
}

/// A page, or why there is none.
pub type Shown = Result<Response, Failed>;

#[derive(Template)]
#[template(path = "failed.html")]
struct FailedPage<'a> {
    frame: &'a Frame,
    what: &'a str,
    message: &'a str,
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let what = match self.status {
            StatusCode::NOT_FOUND => "There is no such thing",
            StatusCode::FORBIDDEN => "This needs somebody who may act",
            StatusCode::BAD_REQUEST => "That can't be meant",
            StatusCode::METHOD_NOT_ALLOWED => "There is no page here",
            StatusCode::SERVICE_UNAVAILABLE => "This can't be read now",
            _ => "This could not be done",
        };
        let page = FailedPage {
            frame: &self.frame,
            what,
            message: &self.message,
        };
        (self.status, html(&page)).into_response()
    }
}

impl View {
    /// What is around the page.
    pub fn frame(&self, here: &'static str) -> Frame {
        Frame {
            who: self.viewer.name.clone(),
            may_act: self.viewer.may >= May::Act,
            here,
        }
    }

    /// It can't be shown, or done.
    pub fn failed(&self, status: StatusCode, message: impl Into<String>) -> Failed {
        Failed {
            frame: self.frame(""),
            status,
            message: message.into(),
        }
    }

    /// What was asked can't be meant.
    pub fn bad(&self, message: impl Into<String>) -> Failed {
        self.failed(StatusCode::BAD_REQUEST, message)
    }

    /// The same, with the place that it is about.
    pub fn wrong(&self, refused: Refused) -> Failed {
        self.failed(refused.status, refused.message)
    }

    /// The daemon has refused an answer.
    pub fn refused(&self, message: Refusal) -> Failed {
        self.failed(StatusCode::UNPROCESSABLE_ENTITY, message)
    }

    /// What it is about may be there, and can't be read now.
    pub fn unreadable(&self, message: Refusal) -> Failed {
        self.failed(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// The last answer to a question: the others say how it gets on.
    pub async fn one<Q: Question + Into<Ask>>(&self, question: Q) -> Result<Q::Answer, Refusal> {
        let asking = self.state.ask(question).last();
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(late)
    }

    /// Every answer to a question, so many at the most.
    pub async fn all<Q: Question + Into<Ask>>(&self, question: Q, most: usize) -> Result<Vec<Q::Answer>, Refusal> {
        let asking = self.state.ask(question).all(most);
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(late)
    }
}

fn late<T>(_: tokio::time::error::Elapsed) -> Result<T, Refusal> {
    Err(format!(
        "the daemon had no answer within {}: try again",
        text::length(PATIENCE.as_secs())
    ))
}

/// A template as an answer.
pub fn html(template: &impl Template) -> Response {
    match template.render() {
        Ok(page) => Html(page).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page could not be made");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                "the page could not be made: the log says why\n",
            )
                .into_response()
        }
    }
}

/// After an act: the page where its outcome is.
pub fn to(place: &str) -> Response {
    Redirect::to(place).into_response()
}

/// Where an asset is, for the frame's template.
pub fn asset(name: &str) -> String {
    assets::href(name)
}
