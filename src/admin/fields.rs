//! The fields of a form or of a URL's query, as they come: each once, as text. What can't be read is said in our own words, with the field
//! it is about.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Form;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::{DeserializeOwned, Error, Visitor};
use serde::{Deserializer, forward_to_deserialize_any};
use serde_json::{Map, Value};

use super::refused::Refused;
use crate::names;

/// A body has so long to come.
pub const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// Fields at the most.
const FIELDS_MAX: usize = 256;

/// What a form is sent as.
const FORM: &str = "application/x-www-form-urlencoded";

/// Every pair of a query, in its order.
pub fn pairs(parts: &Parts) -> Result<Vec<(String, String)>, Refused> {
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
    let Query(pairs) =
        pairs.map_err(|_| Refused::bad("the query can't be read: it has to be name=value&name=value"))?;
    few(pairs, "the query")
}

fn few(pairs: Vec<(String, String)>, what: &str) -> Result<Vec<(String, String)>, Refused> {
    if pairs.len() > FIELDS_MAX {
        return Err(Refused::bad(format!("{what} has more than {FIELDS_MAX} parameters")));
    }
    Ok(pairs)
}

/// Fields of which each part of a view takes its own: what none takes may have been meant to restrict what is shown or done.
#[derive(Debug)]
pub struct Fields {
    left: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// Those of a query.
    pub fn of_query(parts: &Parts) -> Result<Fields, Refused> {
        Fields::new(pairs(parts)?)
    }

    /// Those of a form of so many bytes at the most.
    pub async fn of_form(request: Request, most: usize) -> Result<Fields, Refused> {
        Fields::new(form(request, most).await?)
    }

    fn new(pairs: Vec<(String, String)>) -> Result<Fields, Refused> {
        let mut left = BTreeMap::new();
        for (name, value) in pairs {
            if left.contains_key(&name) {
                return Err(twice(shortened(&name)));
            }
            left.insert(name, Value::String(value));
        }
        Ok(Fields {
            left: left.into_iter().collect(),
            known: Vec::new(),
        })
    }

    /// A part, a struct of texts with defaults: what each has to be is for who takes it.
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<T, Refused> {
        serde::Deserialize::deserialize(Taking(self)).map_err(|error: serde_json::Error| {
            // By two names that mean the same.
            let said = error.to_string();
            let name = said
                .strip_prefix("duplicate field `")
                .and_then(|rest| rest.split('`').next());
            name.map_or_else(|| Refused::bad(said.as_str()), twice)
        })
    }

    /// The parts that are taken, which have to be all of them.
    pub fn all<T>(mut self, take: impl FnOnce(&mut Fields) -> Result<T, Refused>) -> Result<T, Refused> {
        let said = take(&mut self)?;
        self.all_taken().map(|()| said)
    }

    /// There is nothing left that nobody knows.
    pub fn all_taken(self) -> Result<(), Refused> {
        let Some(name) = self.left.keys().next() else {
            return Ok(());
        };
        let name = shortened(name);
        let wrong = format!("there is no field \"{name}\" here");
        Err(Refused::bad(names::unknown(wrong, name, self.known)).at(name))
    }
}

/// A name that comes twice could mean either.
pub fn twice(name: &str) -> Refused {
    Refused::bad(format!("{name} is given more than once")).at(name)
}

/// Gives a struct those of the fields that it has.
struct Taking<'f>(&'f mut Fields);

impl<'de> Deserializer<'de> for Taking<'_> {
    type Error = serde_json::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let Fields { left, known } = self.0;
        known.extend(fields);
        let own: Map<String, Value> = fields.iter().filter_map(|field| left.remove_entry(*field)).collect();
        Value::Object(own).deserialize_struct(name, fields, visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("fields are read into a struct"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

/// The fields of a query that are known; others are nobody's business where all it leads to is a page to sign in on.
pub fn of_query<T: DeserializeOwned>(parts: &Parts) -> Result<T, Refused> {
    Fields::of_query(parts)?.take()
}

/// The same of a form of so many bytes at the most.
pub async fn of_form<T: DeserializeOwned>(request: Request, most: usize) -> Result<T, Refused> {
    Fields::of_form(request, most).await?.take()
}

async fn form(request: Request, most: usize) -> Result<Vec<(String, String)>, Refused> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()?.split(';').next());
    if !kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case(FORM)) {
        let message = format!("a form has to come with content-type: {FORM}");
        return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let bytes = body(request, most).await?;
    // The one who reads forms takes a request.
    let form = Request::post("/")
        .header(header::CONTENT_TYPE, FORM)
        .body(Body::from(bytes));
    let not_read = || Refused::bad("the form can't be read: it has to be name=value&name=value");
    let form = Form::<Vec<(String, String)>>::from_request(form.map_err(|_| not_read())?, &()).await;
    let Form(pairs) = form.map_err(|_| not_read())?;
    few(pairs, "the form")
}

/// A body of so many bytes at the most, that has to come in time.
pub async fn body(request: Request, most: usize) -> Result<bytes::Bytes, Refused> {
    let too_large = || {
        let size = if most >= 1 << 20 {
            format!("{} MiB", most >> 20)
        } else {
            format!("{} KiB", most >> 10)
        };
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {size}"))
    };
    if said_len(request.headers()).is_some_and(|len| len > most as u64) {
        return Err(too_large());
    }
    let coming = to_bytes(request.into_body(), most);
    let Ok(came) = tokio::time::timeout(BODY_PATIENCE, coming).await else {
        let message = "the body did not come in time";
        return Err(Refused::new(StatusCode::REQUEST_TIMEOUT, message));
    };
    came.map_err(|_| too_large())
}

fn said_len(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A number, where one is said.
pub fn number(name: &'static str, text: &str) -> Result<Option<u64>, Refused> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let wrong = || {
        Refused::bad(format!(
            "{name} is \"{}\", and has to be a whole number",
            shortened(text)
        ))
        .at(name)
    };
    text.trim().parse().map(Some).map_err(|_| wrong())
}

/// Yes or no, which has to be said.
pub fn flag(name: &'static str, text: &str) -> Result<bool, Refused> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        "" => Err(Refused::bad(format!("{name} is missing: it has to be true or false")).at(name)),
        other => {
            let message = format!("{name} is \"{}\", and has to be true or false", shortened(other));
            Err(Refused::bad(message).at(name))
        }
    }
}

/// One of these, or nothing.
pub fn choice(name: &'static str, text: &str, choices: &[&str]) -> Result<(), Refused> {
    if text.is_empty() || choices.contains(&text) {
        return Ok(());
    }
    let (said, choices) = (shortened(text), choices.join(" or "));
    Err(Refused::bad(format!("{name} is \"{said}\", and has to be {choices}")).at(name))
}

/// A text of somebody else's, as far as it is worth repeating.
pub fn shortened(text: &str) -> &str {
    let end = text.char_indices().nth(80).map_or(text.len(), |(end, _)| end);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Two {
        one: String,
        other: String,
    }

    fn parts(target: &str) -> Parts {
        Request::builder().uri(target).body(()).unwrap().into_parts().0
    }

    #[test]
    fn what_a_query_says_is_read_once_and_the_rest_is_left() {
        let two: Two = of_query(&parts("/x?one=a%20b&nobody=1")).unwrap();
        assert_eq!((two.one.as_str(), two.other.as_str()), ("a b", ""));
        let twice = of_query::<Two>(&parts("/x?one=a&one=b")).unwrap_err();
        assert_eq!(
            (twice.place.as_str(), twice.message.as_str()),
            ("one", "one is given more than once")
        );
        let many = (0..300).fold(String::new(), |text, number| text + &format!("a{number}=&"));
        assert!(
            of_query::<Two>(&parts(&format!("/x?{many}")))
                .unwrap_err()
                .message
                .contains("more than 256")
        );
        // Whatever bytes there are.
        for odd in ["%", "%ff", "=", "&&", "%00=%00", "one", "one=%e2%28"] {
            of_query::<Two>(&parts(&format!("/x?{odd}"))).unwrap();
        }
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Third {
        #[serde(alias = "type")]
        types: String,
    }

    #[test]
    fn each_part_takes_its_own_and_what_none_takes_is_refused() {
        let read = |target: &str| {
            let fields = Fields::of_query(&parts(target))?;
            fields.all(|fields| Ok((fields.take::<Two>()?, fields.take::<Third>()?)))
        };
        let (two, third) = read("/x?one=a&type=b").unwrap();
        assert_eq!((two.one.as_str(), third.types.as_str()), ("a", "b"));
        for (target, place, message) in [
            (
                "/x?othr=1",
                "othr",
                "there is no field \"othr\" here: did you mean \"other\"?",
            ),
            ("/x?type=a&types=b", "types", "types is given more than once"),
            ("/x?one=a&one=b", "one", "one is given more than once"),
        ] {
            let refused = read(target).unwrap_err();
            assert_eq!((refused.place.as_str(), refused.message.as_str()), (place, message));
        }
        choice("live", "on", &["on", "off"]).unwrap();
        choice("live", "", &["on", "off"]).unwrap();
        let refused = choice("live", "maybe", &["on", "off"]).unwrap_err();
        assert_eq!(refused.message, "live is \"maybe\", and has to be on or off");
    }

    #[tokio::test]
    async fn a_form_is_read_and_what_is_wrong_with_it_is_said() {
        let form = async |kind: &str, body: &str| {
            let request = Request::post("/")
                .header("content-type", kind)
                .body(Body::from(body.to_owned()));
            of_form::<Two>(request.unwrap(), 64).await
        };
        assert_eq!(
            form("application/x-www-form-urlencoded; charset=utf-8", "other=%3Cb%3E")
                .await
                .unwrap()
                .other,
            "<b>"
        );
        for (kind, body, status, says) in [
            ("text/plain", "one=a", 415, "content-type"),
            (FORM, "one=a&one=b", 400, "one is given more than once"),
            (FORM, &"x".repeat(65), 413, "larger than 0 KiB"),
        ] {
            let refused = form(kind, body).await.unwrap_err();
            assert_eq!(refused.status.as_u16(), status);
            assert!(refused.message.contains(says), "{}", refused.message);
        }
    }

    #[test]
    fn numbers_and_choices_are_said_to_be_wrong_at_their_place() {
        assert_eq!(
            (number("before", " 7 ").unwrap(), number("before", "").unwrap()),
            (Some(7), None)
        );
        for bad in ["x", "-1", "1.5", "99999999999999999999999"] {
            let refused = number("before", bad).unwrap_err();
            assert_eq!(refused.place, "before");
            assert!(refused.message.contains(bad) && refused.message.contains("whole number"));
        }
        assert!(flag("paused", "true").unwrap() && !flag("paused", "false").unwrap());
        assert!(flag("paused", "").unwrap_err().message.contains("missing"));
        assert!(flag("paused", "yes").unwrap_err().message.contains("\"yes\""));
    }
}
