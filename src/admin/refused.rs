//! What is answered to a request that is not carried out: one sentence, where it is about, and the status that says it to programs.

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::config::Fault;

/// Why a request was not carried out.
#[derive(Debug, Clone)]
pub struct Refused {
    /// For programs.
    pub status: StatusCode,
    /// For people: one sentence that says what to do next.
    pub message: String,
    /// What it is about: a parameter, or a place in what was sent; empty where it is about all of it.
    pub place: String,
    /// Seconds after which it may be tried again.
    pub retry_after: Option<u64>,
}

/// As it is sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Body {
    /// Why.
    pub error: Fault,
}

impl Refused {
    /// About the request as a whole.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Refused {
        Refused {
            status,
            message: message.into(),
            place: String::new(),
            retry_after: None,
        }
    }

    /// What was asked can't be meant: 400.
    pub fn bad(message: impl Into<String>) -> Refused {
        Refused::new(StatusCode::BAD_REQUEST, message)
    }

    /// There is no such thing: 404.
    pub fn missing(message: impl Into<String>) -> Refused {
        Refused::new(StatusCode::NOT_FOUND, message)
    }

    /// Whether there is such a thing can't be said now: 503.
    pub fn failing(message: impl Into<String>) -> Refused {
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// About one place.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Refused {
        self.place = place.into();
        self
    }

    /// It may be tried again after so many seconds.
    #[must_use]
    pub fn after(mut self, seconds: u64) -> Refused {
        self.retry_after = Some(seconds.max(1));
        self
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let error = Fault {
            place: self.place,
            message: self.message,
        };
        let mut response = (self.status, Json(Body { error })).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
