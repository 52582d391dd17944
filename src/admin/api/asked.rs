//! What a request says beside its path: its query, its body, and in which form it wants its answer. What is not understood is refused
//! with its place, before anything is asked.

use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::admin::fields::{self, shortened};
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

/// A query. That it has nothing which its route does not know was checked before (`declared`).
#[derive(Debug)]
pub struct Asked {
    pairs: Vec<(String, String)>,
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Asked, Refused> {
        fields::pairs(parts).map(|pairs| Asked { pairs })
    }
}

impl Asked {
    /// Every value of a parameter.
    pub fn every(&mut self, name: &'static str) -> Vec<String> {
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
            return Err(fields::twice(name));
        }
        Ok(value.filter(|value| !value.is_empty()))
    }

    /// The same, read as what it has to be.
    pub fn read<T: FromStr>(&mut self, name: &'static str, what: &str) -> Result<Option<T>, Refused> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let wrong = |_| Refused::bad(format!("{name} is \"{}\", and has to be {what}", shortened(&text))).at(name);
        text.parse().map(Some).map_err(wrong)
    }

    /// A whole number from 1 to this.
    pub fn number(&mut self, name: &'static str, most: u64) -> Result<Option<u64>, Refused> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let number = text.parse::<u64>().ok().filter(|number| (1..=most).contains(number));
        let wrong = || {
            let said = shortened(&text);
            Refused::bad(format!(
                "{name} is \"{said}\", and has to be a whole number from 1 to {most}"
            ))
            .at(name)
        };
        number.map(Some).ok_or_else(wrong)
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

/// What the path names.
#[derive(Debug)]
pub struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Named, Refused> {
        let Path(name) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Refused::bad("the path can't be read: it is no UTF-8").at("path"))?;
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
        let bytes = fields::body(request, BODY_MAX).await?;
        // Serde would take an array as well, by the order of the fields.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(Refused::bad("the body has to be an object").at(BODY));
        }
        let mut reader = serde_json::Deserializer::from_slice(&bytes);
        let read = serde_path_to_error::deserialize(&mut reader);
        let body = read.map_err(|error| not_so(&error.path().to_string(), error.inner()))?;
        reader.end().map_err(|error| not_so("", &error))?;
        Ok(Body(body))
    }
}

/// The place of a body as a whole.
pub(super) const BODY: &str = "body";

/// What is wrong with a body, at its place in it.
fn not_so(path: &str, error: &serde_json::Error) -> Refused {
    if !error.is_data() {
        let (line, column) = (error.line(), error.column());
        return Refused::bad(format!("the body is no JSON: line {line}, column {column}")).at(BODY);
    }
    let said = error.to_string();
    let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said);
    let named: Vec<&str> = said.split('`').skip(1).step_by(2).collect();
    let (within, last) = path.rsplit_once('.').unwrap_or(("", path));
    let place = |within: &str, name: &str| {
        let parts = [BODY, within, name];
        let parts = parts.into_iter().filter(|part| !part.is_empty() && *part != ".");
        parts.collect::<Vec<_>>().join(".")
    };
    match (said.split_once(" field ").map(|(kind, _)| kind), named.split_first()) {
        (Some("missing"), Some((name, _))) => {
            let at = place(path, name);
            Refused::bad(format!("{at} is missing")).at(at)
        }
        (Some("unknown"), Some((name, known))) => {
            let within = if last == *name { within } else { path };
            let name = shortened(name);
            let wrong = format!("there is no \"{name}\" here");
            Refused::bad(names::unknown(wrong, name, known.iter().copied())).at(place(within, name))
        }
        _ => {
            let at = place(path, "");
            let message = match said.split_once("expected ") {
                Some((_, what)) => format!("{at} has to be {}", expected(what)),
                None => format!("{at}: {said}"),
            };
            Refused::bad(message).at(at)
        }
    }
}

/// What a library calls a type, in words.
fn expected(what: &str) -> &str {
    match what {
        "u8" | "u16" | "u32" | "u64" | "usize" | "u128" => "a whole number",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a string" | "string" | "a borrowed string" | "str" => "a text",
        "a sequence" => "a list",
        what if what.starts_with("struct ") || what.starts_with("a map") || what.contains("tagged enum") => "an object",
        what => what,
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
    let kinds: std::collections::HashMap<String, Box<RawValue>> = serde_json::from_slice(answer.get().as_bytes())
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
    list_of(&answers, is_cut)
}

/// A list of answers, and whether there are more.
pub fn list_of(answers: &[Answer], is_cut: bool) -> Response {
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

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body as Bytes;
    use serde::Deserialize;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        limit: u64,
        names: Vec<String>,
        all: bool,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "they are read into")]
    struct Outer {
        spec: Inner,
        #[serde(default)]
        id: String,
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_body_is_said_in_our_words_at_its_place() {
        for (body, place, message) in [
            ("[1]", "body", "the body has to be an object"),
            ("{", "body", "the body is no JSON: line 1, column 1"),
            ("{\"spec\":{}} x", "body", "the body is no JSON: line 1, column 13"),
            ("{}", "body.spec", "body.spec is missing"),
            (
                "{\"spec\":{},\"ide\":1}",
                "body.ide",
                "there is no \"ide\" here: did you mean \"id\"?",
            ),
            (
                "{\"spec\":{\"limt\":1}}",
                "body.spec.limt",
                "there is no \"limt\" here: did you mean \"limit\"?",
            ),
            (
                "{\"spec\":{\"limit\":\"x\"}}",
                "body.spec.limit",
                "body.spec.limit has to be a whole number",
            ),
            (
                "{\"spec\":{\"limit\":-1}}",
                "body.spec.limit",
                "body.spec.limit has to be a whole number",
            ),
            (
                "{\"spec\":{\"names\":[\"a\",7]}}",
                "body.spec.names[1]",
                "body.spec.names[1] has to be a text",
            ),
            (
                "{\"spec\":{\"names\":7}}",
                "body.spec.names",
                "body.spec.names has to be a list",
            ),
            (
                "{\"spec\":{\"all\":7}}",
                "body.spec.all",
                "body.spec.all has to be true or false",
            ),
            ("{\"spec\":7}", "body.spec", "body.spec has to be an object"),
        ] {
            let request = Request::post("/").header("content-type", "application/json");
            let read = Body::<Outer>::from_request(request.body(Bytes::from(body)).unwrap(), &()).await;
            let refused = read.unwrap_err();
            assert_eq!(
                (refused.message.as_str(), refused.place.as_str()),
                (message, place),
                "{body}"
            );
        }
    }
}
