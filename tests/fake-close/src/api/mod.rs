//! Close's API, as a function: a request and the state in, an answer out. What the documents forbid is refused; where recorded
//! answers show more than the documents say (a missing last slash, an empty cursor, parameters nobody knows), those count.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::access::Caller;
use crate::fault::{Fault, Kind};
use crate::limits::Budget;
use crate::moment::Moment;
use crate::subscription::Invalid;
use crate::world::World;

mod event_log;
mod fields;
#[cfg(test)]
mod tests;
mod webhooks;

/// Events of a page at most, and where `_limit` is not given (documented).
pub const PAGE_MAX: usize = 50;

/// A request, taken apart.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'r> {
    /// `GET`, ...
    pub method: &'r str,
    /// Without the query.
    pub path: &'r str,
    /// Without the question mark.
    pub query: &'r str,
    /// The header.
    pub authorization: Option<&'r str>,
    /// The header.
    pub content_type: Option<&'r str>,
    /// The whole body.
    pub body: &'r [u8],
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP's.
    pub status: u16,
    /// Besides the length.
    pub headers: Vec<(&'static str, String)>,
    /// JSON, except from a proxy.
    pub body: String,
    /// How much of it is sent.
    pub sent: Sent,
}

/// How much of an answer is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// All of it.
    Whole,
    /// Its head and half of its body; then the connection breaks.
    Half,
    /// Nothing; the connection is closed.
    Nothing,
}

impl Reply {
    fn json(status: u16, body: impl Into<String>) -> Reply {
        Reply {
            status,
            headers: vec![("content-type", "application/json".into())],
            body: body.into(),
            sent: Sent::Whole,
        }
    }

    fn error(status: u16, message: &str) -> Reply {
        Reply::json(status, json!({ "error": message }).to_string())
    }

    fn header(mut self, name: &'static str, value: String) -> Reply {
        self.headers.push((name, value));
        self
    }

    fn budgeted(self, budget: &Budget) -> Reply {
        let reply = self.header("ratelimit", budget.header());
        if reply.status == 429 {
            return reply.header("retry-after", budget.retry_after());
        }
        reply
    }
}

impl From<Invalid> for Reply {
    fn from(invalid: Invalid) -> Reply {
        Reply::json(400, invalid.show())
    }
}

impl World {
    /// Answers a request, with whatever befalls it. `wall` is the machine's clock.
    pub fn answer(&mut self, request: &Request<'_>, wall: Moment, fault: Option<&Fault>) -> Reply {
        let reply = self.answer_befallen(request, wall, fault);
        let target = if request.query.is_empty() {
            request.path.to_owned()
        } else {
            format!("{}?{}", request.path, request.query)
        };
        let seen = if reply.sent == Sent::Nothing { 0 } else { reply.status };
        self.remember(request.method, &target, seen);
        reply
    }

    fn answer_befallen(&mut self, request: &Request<'_>, wall: Moment, fault: Option<&Fault>) -> Reply {
        let Some(fault) = fault else {
            return self.answer_well(request, wall);
        };
        match fault.kind {
            Kind::Latency | Kind::Late => self.answer_well(request, wall),
            Kind::Html => Reply {
                status: fault.status.unwrap_or(502),
                headers: vec![("content-type", "text/html".into())],
                body: "<html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>\n"
                    .into(),
                sent: Sent::Whole,
            },
            Kind::Reset => Reply {
                sent: Sent::Nothing,
                ..Reply::json(500, "")
            },
            Kind::DropAnswer => Reply {
                sent: Sent::Nothing,
                ..self.answer_well(request, wall)
            },
            Kind::Truncated => halved(self.answer_well(request, wall)),
            Kind::Cut => Reply {
                sent: Sent::Half,
                ..halved(self.answer_well(request, wall))
            },
            Kind::Status => {
                let budget = self.budget(request, wall);
                Reply::error(fault.status.unwrap_or(503), "Something went wrong.").budgeted(&budget)
            }
            Kind::RateLimited => {
                let budget = Budget {
                    remaining: 0,
                    reset: Duration::from_millis(fault.reset_ms).as_secs_f64(),
                    exceeded: true,
                    ..self.budget(request, wall)
                };
                Reply::error(429, "Too many requests.").budgeted(&budget)
            }
        }
    }

    fn budget(&mut self, request: &Request<'_>, wall: Moment) -> Budget {
        let caller = match self.access.admit(request.authorization, wall) {
            Ok(caller) => Some(caller.id),
            Err(refused) => refused.caller,
        };
        let settings = self.settings().clone();
        self.limits
            .count(&settings, caller.as_deref().unwrap_or_default(), request.path, wall)
    }

    fn answer_well(&mut self, request: &Request<'_>, wall: Moment) -> Reply {
        let budget = self.budget(request, wall);
        let reply = if budget.exceeded {
            Reply::error(429, "Too many requests.")
        } else {
            self.answer_within_limits(request, wall)
        };
        reply.budgeted(&budget)
    }

    fn answer_within_limits(&mut self, request: &Request<'_>, wall: Moment) -> Reply {
        if request.path.trim_end_matches('/') == "/oauth2/token" {
            return self.token(request, wall);
        }
        let Some(path) = request.path.strip_prefix("/api/v1") else {
            return Reply::error(404, "Not found.");
        };
        let caller = match self.access.admit(request.authorization, wall) {
            Ok(caller) => caller,
            Err(refused) => {
                let reply = Reply::error(refused.status, refused.message);
                return if refused.status == 401 {
                    reply.header("www-authenticate", "Basic realm=\"Close\"".into())
                } else {
                    reply
                };
            }
        };
        // Close redirects nobody who leaves the last slash out.
        let path = path.strip_suffix('/').unwrap_or(path);
        let parts: Vec<&str> = path.split('/').collect();
        match (request.method, parts.as_slice()) {
            ("GET", ["", "webhook"]) => self.list_subscriptions(request),
            ("POST", ["", "webhook"]) => self.create_subscription(request, &caller),
            (_, ["", "webhook"]) => not_allowed("GET, POST"),
            ("GET", ["", "webhook", id]) => match self.subscription(id) {
                Some(subscription) => Reply::json(200, subscription.show(&self.organization(), false)),
                None => Reply::error(404, "Not found."),
            },
            ("PUT", ["", "webhook", id]) => self.update_subscription(request, id, &caller),
            ("DELETE", ["", "webhook", id]) => {
                if self.unsubscribe(id) {
                    Reply::json(200, "{}")
                } else {
                    Reply::error(404, "Not found.")
                }
            }
            (_, ["", "webhook", _]) => not_allowed("GET, PUT, DELETE"),
            ("GET", ["", "event"]) => self.list_events(request, wall, &caller),
            ("GET", ["", "event", id]) => match self.events.shown(id, self.now()) {
                Some(place) => Reply::json(200, self.shown_to(&caller, place)),
                None => Reply::error(404, "Not found."),
            },
            ("GET", ["", "me"]) => self.me(&caller),
            ("GET", ["", rest @ ..]) if is_of_fields(rest) => self.custom_fields_answer(request, rest),
            (_, ["", "event" | "me"] | ["", "event", _]) => not_allowed("GET"),
            _ => Reply::error(404, "Not found."),
        }
    }

    fn token(&mut self, request: &Request<'_>, wall: Moment) -> Reply {
        if request.method != "POST" {
            return not_allowed("POST");
        }
        let is_form = media_type(request) == "application/x-www-form-urlencoded";
        let form = std::str::from_utf8(request.body).ok().filter(|_| is_form);
        let Some(form) = form.and_then(pairs) else {
            return Reply::error(415, "Send a form: application/x-www-form-urlencoded.");
        };
        let settings = self.settings().clone();
        match self.access.refresh(&form, &settings, wall) {
            Ok(tokens) => Reply::json(200, tokens),
            Err("invalid_client") => Reply::error(401, "invalid_client"),
            Err(code) => Reply::error(400, code),
        }
    }

    fn me(&self, caller: &Caller) -> Reply {
        let me = json!({
            "id": caller.user_id,
            "email": "somebody@example.com",
            "first_name": "Some",
            "last_name": "Body",
            "organizations": [{ "id": self.organization(), "name": self.organization_name() }],
        });
        Reply::json(200, me.to_string())
    }
}

/// Whether a path is about custom fields. Here they are only looked at.
fn is_of_fields(path: &[&str]) -> bool {
    let of_fields = [
        "custom_field_schema",
        "custom_field",
        "custom_activity",
        "custom_object_type",
    ];
    path.first().is_some_and(|first| of_fields.contains(first))
}

/// The query's parameters. What is not known is ignored, as Close does; of one that is given twice the last counts.
fn parameters(query: &str) -> Result<BTreeMap<String, String>, Invalid> {
    let parameters = pairs(query).ok_or_else(|| Invalid::general("The query can't be read."))?;
    Ok(parameters.into_iter().collect())
}

/// Reads `a=1&b=2`.
pub(crate) fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let url = reqwest::Url::parse(&format!("http://fake/?{text}")).ok()?;
    Some(
        url.query_pairs()
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect(),
    )
}

/// With the first half of its body only.
fn halved(mut reply: Reply) -> Reply {
    let mut half = reply.body.len() / 2;
    while !reply.body.is_char_boundary(half) {
        half -= 1;
    }
    reply.body.truncate(half);
    reply
}

fn media_type<'r>(request: &Request<'r>) -> &'r str {
    let value = request.content_type.unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

fn is_json(request: &Request<'_>) -> bool {
    media_type(request).eq_ignore_ascii_case("application/json")
}

fn not_allowed(allow: &str) -> Reply {
    Reply::error(405, "This method is not allowed.").header("allow", allow.to_owned())
}

fn unsupported_media_type() -> Reply {
    Reply::error(415, "Send JSON: application/json.")
}

/// An object for people and tests: a key, a grant or whatever serializes.
pub(crate) fn to_value(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}
