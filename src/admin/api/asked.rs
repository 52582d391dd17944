//! What a request says beside its path: its query, its body, and in which form it wants its answer. What is not understood is refused
//! with its place, before anything is asked.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::admin::refused::Refused;
use crate::admin::state::AdminState;
use crate::admin::streams::{AsTheyCome, streamed};
use crate::admin::viewer::Viewer;
use crate::config::time;
use crate::control::{Answer, Pick, Told};
use crate::listener::standing::Standing;
use crate::names;

/// Largest body of a request.
pub const BODY_MAX: usize = 4 << 20;

/// A body has so long to come.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// Parameters at the most.
const PARAMETERS_MAX: usize = 256;

/// A query, of which every parameter has to be taken before [`Asked::all_taken`].
#[derive(Debug)]
pub struct Asked {
    pairs: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Asked, Refused> {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
        let Query(pairs) = pairs.map_err(|error| Refused::bad(format!("the query can't be read: {error}")))?;
        if pairs.len() > PARAMETERS_MAX {
            return Err(Refused::bad(format!(
                "the query has more than {PARAMETERS_MAX} parameters"
            )));
        }
        Ok(Asked {
            pairs,
            known: Vec::new(),
        })
    }
}

impl Asked {
    /// Every value of a parameter.
    pub fn every(&mut self, name: &'static str) -> Vec<String> {
        self.known.push(name);
        let (own, rest) = std::mem::take(&mut self.pairs)
            .into_iter()
            .partition(|(key, _)| key == name);
        self.pairs = rest;
        let own: Vec<(String, String)> = own;
        own.into_iter().map(|(_, value)| value).collect()
    }

    /// The one value of a parameter; an empty one is none, as a form sends it.
    pub fn one(&mut self, name: &'static str) -> Result<Option<String>, Refused> {
        let mut values = self.every(name).into_iter();
        let (value, second) = (values.next(), values.next());
        if second.is_some() {
            return Err(Refused::bad(format!("{name} is given more than once")).at(name));
        }
        Ok(value.filter(|value| !value.is_empty()))
    }

    /// The same, read as what it has to be.
    pub fn read<T: FromStr>(&mut self, name: &'static str, what: &str) -> Result<Option<T>, Refused> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let wrong = |_| Refused::bad(format!("{name} is \"{}\", and has to be {what}", shortened(&text))).at(name);
        text.parse().map(Some).map_err(wrong)
    }

    /// A time, as commands take it.
    pub fn time(&mut self, name: &'static str) -> Result<Option<Timestamp>, Refused> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        time::argument(&text)
            .map(Some)
            .map_err(|error| Refused::bad(error.clone()).at(name))
    }

    /// Which events are meant.
    pub fn pick(&mut self) -> Result<Pick, Refused> {
        let pick = Pick {
            ids: self.every("id"),
            types: self.every("type"),
            lead: self.one("lead")?,
            filter: self.one("filter")?,
            since: self.time("since")?,
            until: self.time("until")?,
            quarantined: self.read("quarantined", "true or false")?,
            partial: self.read("partial", "true or false")?,
        };
        check(&pick)?;
        Ok(pick)
    }

    /// There is nothing left that nobody knows.
    pub fn all_taken(self) -> Result<(), Refused> {
        let Some((name, _)) = self.pairs.first() else {
            return Ok(());
        };
        let name = shortened(name);
        Err(Refused::bad(names::unknown(
            format!("there is no parameter \"{name}\" here"),
            name,
            self.known,
        ))
        .at(name))
    }
}

/// Checks which events are meant, and says which part of it is wrong.
pub fn check(pick: &Pick) -> Result<(), Refused> {
    let parts = [
        (
            "filter",
            Pick {
                filter: pick.filter.clone(),
                ..Pick::default()
            },
        ),
        (
            "type",
            Pick {
                types: pick.types.clone(),
                ..Pick::default()
            },
        ),
        (
            "id",
            Pick {
                ids: pick.ids.clone(),
                ..Pick::default()
            },
        ),
        (
            "lead",
            Pick {
                lead: pick.lead.clone(),
                ..Pick::default()
            },
        ),
    ];
    for (place, part) in parts {
        part.compile().map_err(|error| Refused::bad(error).at(place))?;
    }
    pick.compile().map(drop).map_err(Refused::bad)
}

/// A text of somebody else's, as far as it is worth repeating.
fn shortened(text: &str) -> &str {
    let end = text.char_indices().nth(80).map_or(text.len(), |(end, _)| end);
    &text[..end]
}

/// What the path names.
#[derive(Debug)]
pub struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Named, Refused> {
        let Path(name) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| Refused::bad(format!("the path can't be read: {}", error.body_text())))?;
        Ok(Named(name))
    }
}

/// A body that is JSON.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Body<T>, Refused> {
        let kind = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok());
        let kind = kind
            .and_then(|kind| kind.split(';').next())
            .map(|kind| kind.trim().to_ascii_lowercase());
        if kind.as_deref() != Some("application/json") {
            let message = "the body has to be JSON, with content-type: application/json";
            return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        let too_large = || {
            Refused::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is larger than {} MiB", BODY_MAX >> 20),
            )
        };
        let said = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|len| len.to_str().ok()?.parse().ok());
        if said.is_some_and(|len: usize| len > BODY_MAX) {
            return Err(too_large());
        }
        let coming = to_bytes(request.into_body(), BODY_MAX);
        let Ok(bytes) = tokio::time::timeout(BODY_PATIENCE, coming).await else {
            return Err(Refused::new(
                StatusCode::REQUEST_TIMEOUT,
                "the body did not come in time",
            ));
        };
        let bytes = bytes.map_err(|_| too_large())?;
        let not_so = |error: String| Refused::bad(format!("the body is not what is expected here: {error}")).at("body");
        // Serde would take an array as well, by the order of the fields.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(not_so("it has to be an object".to_owned()));
        }
        let read = serde_json::from_slice(&bytes);
        read.map(Body).map_err(|error| not_so(error.to_string()))
    }
}

/// Who asks, and in which form the answer is wanted.
#[derive(Debug)]
pub struct Way {
    /// Who asks.
    pub viewer: Viewer,
    standing: Option<Arc<Standing>>,
    wants_stream: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for Way {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Way, Refused> {
        Ok(Way {
            viewer: Viewer::from_request_parts(parts, state).await?,
            standing: parts.extensions.get::<Arc<Standing>>().cloned(),
            wants_stream: wants_stream(&parts.headers),
        })
    }
}

fn wants_stream(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.trim_start().starts_with("text/event-stream"))
}

impl Way {
    /// How its connection stands.
    pub fn standing(&self) -> Option<&Arc<Standing>> {
        self.standing.as_ref()
    }

    /// Whether every answer is wanted as it comes.
    pub fn wants_stream(&self) -> bool {
        self.wants_stream
    }

    /// Every answer as it comes.
    pub fn stream<T: Send + 'static>(&self, state: &AdminState, told: Told<T>) -> Result<Response, Refused> {
        streamed(state, &self.viewer, self.standing(), AsTheyCome::new(told))
    }

    /// The last answer; or, for who asks for `text/event-stream`, every answer as it comes. `last` makes of the last one what is sent.
    pub async fn give<T: Send + 'static>(
        &self,
        state: &AdminState,
        told: Told<T>,
        last: impl FnOnce(Answer) -> Result<Response, Refused>,
    ) -> Result<Response, Refused> {
        if self.wants_stream {
            return self.stream(state, told);
        }
        last(told.last_text().await.map_err(refused)?)
    }
}

/// What is refused although it could be meant: as things are it can't be done.
pub fn refused(refusal: String) -> Refused {
    Refused::new(StatusCode::CONFLICT, refusal)
}

/// An answer as it is.
pub fn plain(answer: &RawValue) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], answer.get().to_owned()).into_response()
}

/// What one of several kinds of answer says (`{"done": ...}`), without saying which it is.
pub fn inside(answer: &RawValue, name: &str) -> Result<Response, Refused> {
    let kinds: std::collections::HashMap<String, Box<RawValue>> = serde_json::from_str(answer.get())
        .map_err(|error| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    match kinds.get(name) {
        Some(inner) => Ok(plain(inner)),
        None => Err(Refused::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the daemon ended without an answer to this",
        )),
    }
}

/// A list of answers. One more than `most` was asked for: whether there is it, is said.
pub fn list(mut answers: Vec<Answer>, most: usize) -> Response {
    let is_cut = answers.len() > most;
    answers.truncate(most);
    let items: Vec<&str> = answers.iter().map(|answer| answer.get()).collect();
    let body = format!("{{\"items\":[{}],\"is_cut\":{is_cut}}}", items.join(","));
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Answers in a list at the most.
pub const ITEMS_MAX: usize = 1000;

/// Every answer, in a list.
pub async fn all<T: Send + 'static>(told: Told<T>, most: usize) -> Result<Response, Refused> {
    Ok(list(told.texts(most + 1).await.map_err(refused)?, most))
}
