//! The control API under `/fake/`: how tests and curious people drive the world. Loopback only, without authentication.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::access::{Role, State};
use super::api::{pairs, to_value};
use super::fault::Fault;
use super::moment::Moment;
use super::span::Span;
use super::subscription::{Because, Subscription};
use super::world::World;

/// Entries of a list at a time.
const LIST_MAX: usize = 10_000;

/// What `GET /fake/` answers.
pub const HELP: &str = "\
The control API of the fake. Bodies and answers are JSON; lists are JSON lines, GET takes ?after=N&limit=N (at most 10000).
Durations are written like \"90m\" or \"4d\".

GET    /fake/clock                       the simulated time
POST   /fake/clock {\"advance\":\"4d\"}      moves it (or {\"to\":\"2024-02-15T12:00:00Z\"}); answers when all that was due was attempted
POST   /fake/generate {\"count\":N,\"span\":\"30d\",\"from\":TIME}
                                         makes events up; default from now on; what lies in the past is never delivered
POST   /fake/events {\"event\":{...},\"visible_in\":\"90s\",\"deliver\":true}
                                         one event of your own, fields that are missing are added; a known id makes a revision
POST   /fake/events/ID/consolidate {\"visible_in\":\"0s\"}
                                         changes an event again, now
GET    /fake/events                      every revision: when visible, latest or not, attempted, delivered
GET    /fake/deliveries                  every delivery that was answered 2xx, with its exact body, in order
GET    /fake/subscriptions               with signature key, queue, failures and counts
POST   /fake/subscriptions/ID/pause {\"because\":\"too_many_failures|permission_revoked\"}
                                         pauses as Close does by itself, the queue is cleared
POST   /fake/integrations {\"count\":500}   subscriptions of others, whatever limit there is
GET    /fake/settings, PUT with changes  how the fake behaves
GET    /fake/keys                        the API keys and the OAuth grant
POST   /fake/keys {\"role\":\"user\"}        another key (or \"key\":\"...\" of your own)
PUT    /fake/keys/ID {\"role\":\"admin|user\",\"state\":\"ok|revoked|payment_required|forbidden\"}
                                         also for the grant, by its client_id
POST   /fake/tokens/expire               the OAuth access token expires
POST   /fake/cursors/expire              every cursor written so far expires
GET    /fake/faults, DELETE              what goes wrong next
POST   /fake/faults {\"kind\":\"drop_answer\",\"on\":\"POST /api/v1/webhook/\",\"times\":1,\"skip\":0}
                                         kinds: latency (delay_ms), late (done, and answered after delay_ms), status (status), html (status), rate_limited (reset_ms),
                                         reset (before it takes effect), drop_answer (after it did), truncated, cut
GET    /fake/requests                    the last 1000 requests to the API
POST   /fake/custom_types {\"kind\":\"activity|custom_object\",\"name\":\"Site visit\"}
                                         a type of custom activities or objects
POST   /fake/custom_fields {\"of\":[\"lead\"],\"name\":\"Industry\",\"type\":\"text\"}
                                         a custom field, of several schemas a shared one: lead, contact, opportunity, activity/ID,
                                         custom_object/ID. Every change is told by an event
PUT    /fake/custom_fields/ID {\"name\":\"Branch\"}
DELETE /fake/custom_fields/ID
GET    /fake/stats                       figures
";

/// What a control call comes to.
#[derive(Debug)]
pub enum Done {
    /// An answer.
    Json(Value),
    /// An answer with an entry a line.
    Lines(String),
    /// The help.
    Help,
    /// First the clock is to be moved to here.
    Advance(Moment),
    /// There is no such call.
    Unknown,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Clock {
    advance: Option<String>,
    to: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Generate {
    count: u64,
    span: Option<String>,
    from: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inject<'t> {
    #[serde(borrow)]
    event: &'t serde_json::value::RawValue,
    visible_in: Option<String>,
    deliver: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Consolidate {
    visible_in: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Pause {
    because: Option<Because>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Integrations {
    count: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct KeyChange {
    key: Option<String>,
    role: Option<Role>,
    state: Option<State>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewType {
    kind: String,
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewField {
    of: Vec<String>,
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Renaming {
    name: String,
}

impl World {
    /// Carries out a control call. An error is the caller's.
    pub fn control(&mut self, method: &str, path: &str, query: &str, body: &[u8]) -> Result<Done, String> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').skip(1).collect();
        let done = match (method, parts.as_slice()) {
            ("GET", []) => Done::Help,
            ("GET", ["clock"]) => Done::Json(self.clock()),
            ("POST", ["clock"]) => Done::Advance(self.target(&read(body)?)?),
            ("POST", ["generate"]) => {
                let order: Generate = read(body)?;
                let from = order.from.as_deref().map(time).transpose()?.unwrap_or(self.now());
                let span = span(order.span.as_deref())?.unwrap_or(Duration::from_secs(30 * 86_400));
                self.generate(order.count, from, span)
                    .map_err(|full| full.to_string())?;
                Done::Json(self.stats())
            }
            ("POST", ["events"]) => {
                let order: Inject<'_> = read(body)?;
                let visible_in = span(order.visible_in.as_deref())?.unwrap_or_default();
                let id = self.inject(order.event.get(), visible_in, order.deliver.unwrap_or(true))?;
                Done::Json(json!({ "id": id }))
            }
            ("POST", ["events", id, "consolidate"]) => {
                let order: Consolidate = read_or_default(body)?;
                let visible_in = span(order.visible_in.as_deref())?.unwrap_or_default();
                let date = self.consolidate(id, visible_in)?;
                Done::Json(json!({ "id": id, "date_updated": date }))
            }
            ("GET", ["events"]) => {
                let (after, limit) = page(query)?;
                lines(self.revisions(after).take(limit))
            }
            ("GET", ["deliveries"]) => {
                let (after, limit) = page(query)?;
                lines(self.deliveries(after).take(limit))
            }
            ("GET", ["requests"]) => {
                let (after, limit) = page(query)?;
                lines(self.requests().skip(after).take(limit))
            }
            ("GET", ["subscriptions"]) => Done::Json(self.subscriptions().map(inside).collect()),
            ("POST", ["subscriptions", id, "pause"]) => {
                let order: Pause = read_or_default(body)?;
                if !self.pause_because(id, order.because.unwrap_or(Because::TooManyFailures)) {
                    return Err(format!("there is no subscription {id}"));
                }
                Done::Json(json!({ "paused": id }))
            }
            ("POST", ["integrations"]) => {
                let order: Integrations = read(body)?;
                self.add_integrations(order.count);
                Done::Json(json!({ "subscriptions": self.subscriptions().count() }))
            }
            ("GET", ["settings"]) => Done::Json(to_value(self.settings())),
            ("PUT", ["settings"]) => {
                let settings = self.settings().changed(&read(body)?)?;
                self.set(settings);
                Done::Json(to_value(self.settings()))
            }
            ("GET", ["keys"]) => Done::Json(json!({ "keys": self.access.keys, "grant": self.access.grant })),
            ("POST", ["keys"]) => {
                let order: KeyChange = read_or_default(body)?;
                let key = self.access.add(order.key, order.role.unwrap_or(Role::Admin))?;
                Done::Json(to_value(key))
            }
            ("PUT", ["keys", id]) => self.change_key(id, &read(body)?)?,
            ("POST", ["tokens", "expire"]) => {
                self.access.expire_token();
                Done::Json(json!({}))
            }
            ("POST", ["cursors", "expire"]) => {
                self.expire_cursors();
                Done::Json(json!({}))
            }
            ("GET", ["faults"]) => Done::Json(to_value(&self.faults.list())),
            ("POST", ["faults"]) => {
                let fault: Fault = read(body)?;
                self.faults.order(fault)?;
                Done::Json(to_value(&self.faults.list()))
            }
            ("DELETE", ["faults"]) => {
                self.faults.clear();
                Done::Json(json!([]))
            }
            (_, ["custom_types" | "custom_fields", ..]) => self.control_fields(method, &parts, body)?,
            ("GET", ["stats"]) => Done::Json(self.stats()),
            _ => Done::Unknown,
        };
        Ok(done)
    }

    fn control_fields(&mut self, method: &str, parts: &[&str], body: &[u8]) -> Result<Done, String> {
        let id = match (method, parts) {
            ("POST", ["custom_types"]) => {
                let order: NewType = read(body)?;
                self.add_custom_type(&order.kind, &order.name)?
            }
            ("POST", ["custom_fields"]) => {
                let order: NewField = read(body)?;
                let of: Vec<&str> = order.of.iter().map(String::as_str).collect();
                self.add_custom_field(&of, &order.name, order.kind.as_deref().unwrap_or("text"))?
            }
            ("PUT", ["custom_fields", id]) => {
                let order: Renaming = read(body)?;
                self.rename_custom_field(id, &order.name)?
            }
            ("DELETE", ["custom_fields", id]) => self.remove_custom_field(id)?,
            _ => return Ok(Done::Unknown),
        };
        Ok(Done::Json(json!({ "id": id })))
    }

    /// The answer to a question about the clock.
    pub fn clock(&self) -> Value {
        json!({ "now": jiff::Timestamp::from(self.now()).to_string() })
    }

    fn target(&self, order: &Clock) -> Result<Moment, String> {
        match (order.advance.as_deref(), order.to.as_deref()) {
            (Some(text), None) => Ok(self.now().plus(text.parse::<Span>()?.0)),
            (None, Some(text)) => {
                let to = time(text)?;
                if to < self.now() {
                    return Err("the clock can only go forward".into());
                }
                Ok(to)
            }
            _ => Err("say either {\"advance\":\"4d\"} or {\"to\":\"2024-02-15T12:00:00Z\"}".into()),
        }
    }

    fn change_key(&mut self, id: &str, order: &KeyChange) -> Result<Done, String> {
        if order.key.is_some() {
            return Err("a key's text can't be changed: make another".into());
        }
        let access = &mut self.access;
        if access.grant.client_id == id {
            access.grant.role = order.role.unwrap_or(access.grant.role);
            access.grant.state = order.state.unwrap_or(access.grant.state);
            return Ok(Done::Json(to_value(&access.grant)));
        }
        let key = access
            .keys
            .iter_mut()
            .find(|key| key.id == id)
            .ok_or_else(|| format!("there is no key {id}: GET /fake/keys lists them"))?;
        key.role = order.role.unwrap_or(key.role);
        key.state = order.state.unwrap_or(key.state);
        Ok(Done::Json(to_value(key)))
    }
}

/// What the API does not show of a subscription.
fn inside(subscription: &Subscription) -> Value {
    json!({
        "id": subscription.id,
        "url": subscription.url,
        "status": if subscription.active { "active" } else { "paused" },
        "paused_because": subscription.paused_because,
        "signature_key": subscription.signature_key,
        "queued": subscription.queued,
        "warned": subscription.warned,
        "failing_since": subscription.failing_since.map(Moment::with_offset),
        "counts": subscription.counts,
    })
}

fn read<'t, T: Deserialize<'t>>(body: &'t [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn read_or_default<'t, T: Deserialize<'t> + Default>(body: &'t [u8]) -> Result<T, String> {
    if body.is_empty() { Ok(T::default()) } else { read(body) }
}

fn span(text: Option<&str>) -> Result<Option<Duration>, String> {
    text.map(|text| text.parse::<Span>().map(|span| span.0)).transpose()
}

fn time(text: &str) -> Result<Moment, String> {
    Moment::parse(text).ok_or_else(|| format!("\"{text}\" is no time: write 2024-02-15T12:00:00Z"))
}

/// `after` and `limit` of a list.
fn page(query: &str) -> Result<(usize, usize), String> {
    let (mut after, mut limit) = (0, LIST_MAX);
    for (name, value) in pairs(query).ok_or("the query can't be read")? {
        let number = value.parse().map_err(|_| format!("{name} is a whole number"));
        match name.as_str() {
            "after" => after = number?,
            "limit" => limit = number?,
            _ => return Err(format!("there is no {name}: a list takes after and limit")),
        }
    }
    Ok((after, limit.min(LIST_MAX)))
}

fn lines(entries: impl Iterator<Item = impl serde::Serialize>) -> Done {
    let mut text = String::new();
    for entry in entries {
        text.push_str(&to_value(&entry).to_string());
        text.push('\n');
    }
    Done::Lines(text)
}
