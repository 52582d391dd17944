//! Close's API, as a function: a request and the state in, an answer out. Whatever the documents forbid is refused, and what
//! they do not mention (an unknown parameter, a missing slash) is refused too, so that a client can't come to rely on it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::access::{Caller, Role};
use super::cursor::{Cursor, Refused};
use super::events::{Place, Query, Start, WITHHOLD_AFTER, withheld};
use super::fault::{Fault, Kind};
use super::limits::Budget;
use super::moment::Moment;
use super::subscription::{Change, Invalid, Subscription};
use super::world::World;

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
            Kind::Latency => self.answer_well(request, wall),
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
        if request.path == "/oauth2/token/" {
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
        let parts: Vec<&str> = path.split('/').collect();
        match (request.method, parts.as_slice()) {
            ("GET", ["", "webhook", ""]) => self.list_subscriptions(request),
            ("POST", ["", "webhook", ""]) => self.create_subscription(request, &caller),
            (_, ["", "webhook", ""]) => not_allowed("GET, POST"),
            ("GET", ["", "webhook", id, ""]) => match self.subscription(id) {
                Some(subscription) => Reply::json(200, subscription.show(&self.organization(), false)),
                None => Reply::error(404, "Not found."),
            },
            ("PUT", ["", "webhook", id, ""]) => self.update_subscription(request, id, &caller),
            ("DELETE", ["", "webhook", id, ""]) => {
                if self.unsubscribe(id) {
                    Reply::json(200, "{}")
                } else {
                    Reply::error(404, "Not found.")
                }
            }
            (_, ["", "webhook", _, ""]) => not_allowed("GET, PUT, DELETE"),
            ("GET", ["", "event", ""]) => self.list_events(request, wall, &caller),
            ("GET", ["", "event", id, ""]) => match self.events.shown(id, self.now()) {
                Some(place) => Reply::json(200, self.shown_to(&caller, place)),
                None => Reply::error(404, "Not found."),
            },
            ("GET", ["", "me", ""]) => self.me(&caller),
            (_, ["", "event" | "me", ""] | ["", "event", _, ""]) => not_allowed("GET"),
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
            "organizations": [{ "id": self.organization(), "name": "Fake organization" }],
        });
        Reply::json(200, me.to_string())
    }

    fn list_subscriptions(&self, request: &Request<'_>) -> Reply {
        let parameters = match parameters(request.query, &["_limit", "_skip"]) {
            Ok(parameters) => parameters,
            Err(invalid) => return invalid.into(),
        };
        let number = |name: &str, default: usize| match parameters.iter().find(|(key, _)| key == name) {
            None => Ok(default),
            Some((_, text)) => text
                .parse()
                .map_err(|_| Invalid::field(name, "This must be a whole number.")),
        };
        let (limit, skip) = match (number("_limit", 100), number("_skip", 0)) {
            (Ok(limit), Ok(skip)) => (limit, skip),
            (Err(invalid), _) | (_, Err(invalid)) => return invalid.into(),
        };
        let organization = self.organization();
        let all = self.subscriptions().count();
        let shown: Vec<String> = self
            .subscriptions()
            .skip(skip)
            .take(limit)
            .map(|subscription| subscription.show(&organization, false))
            .collect();
        let has_more = skip.saturating_add(limit) < all;
        Reply::json(
            200,
            format!("{{\"has_more\": {has_more}, \"data\": [{}]}}", shown.join(", ")),
        )
    }

    fn create_subscription(&mut self, request: &Request<'_>, caller: &Caller) -> Reply {
        if !is_json(request) {
            return unsupported_media_type();
        }
        let organization = self.organization();
        let created = Change::parse(request.body, true, self.settings())
            .and_then(|change| self.subscribe(change, &caller.user_id, caller.api_key_id.clone()));
        match created {
            Ok(subscription) => Reply::json(201, subscription.show(&organization, true)),
            Err(invalid) => invalid.into(),
        }
    }

    fn update_subscription(&mut self, request: &Request<'_>, id: &str, caller: &Caller) -> Reply {
        if self.subscription(id).is_none() {
            return Reply::error(404, "Not found.");
        }
        if !is_json(request) {
            return unsupported_media_type();
        }
        let organization = self.organization();
        let show = |subscription: &Subscription| Reply::json(200, subscription.show(&organization, false));
        match Change::parse(request.body, false, self.settings()) {
            Ok(change) => match self.change(id, change, &caller.user_id) {
                Some(subscription) => show(subscription),
                None => Reply::error(404, "Not found."),
            },
            Err(invalid) => invalid.into(),
        }
    }

    fn list_events(&self, request: &Request<'_>, wall: Moment, caller: &Caller) -> Reply {
        match self.events_page(request, wall, caller) {
            Ok(body) => Reply::json(200, body),
            Err(invalid) => invalid.into(),
        }
    }

    fn events_page(&self, request: &Request<'_>, wall: Moment, caller: &Caller) -> Result<String, Invalid> {
        let asked = Asked::parse(request.query)?;
        let Asked { mut query, limit, .. } = asked;
        let start = match &asked.cursor {
            None => Start::Top,
            Some(text) => {
                let cursor = Cursor::open(text, self.seed, &query).and_then(|cursor| {
                    let has_expired = cursor.epoch != self.cursor_epoch
                        || wall.since(cursor.written) >= self.settings().cursor_life.0;
                    if has_expired { Err(Refused::Invalid) } else { Ok(cursor) }
                });
                let cursor = cursor.map_err(|refused| Invalid::field("_cursor", refused.to_string()))?;
                (query.from, query.to) = (cursor.from, cursor.to);
                cursor.start
            }
        };
        let page = self.events.page(self.now(), &query, start, limit);
        let cursor = |is_more: bool, start: Option<Start>| match start.filter(|_| is_more) {
            Some(start) => {
                let cursor = Cursor::new(start, &query, wall, self.cursor_epoch);
                format!("\"{}\"", cursor.seal(self.seed))
            }
            None => "null".to_owned(),
        };
        let reversed = match start {
            // An empty page leads back to where it came from.
            Start::Top => None,
            Start::Older(place) => Some(Start::Newer(place)),
            Start::Newer(place) => Some(Start::Older(place)),
        };
        let older = page.places.last().map(|last| Start::Older(*last)).or(reversed);
        let newer = page.places.first().map(|first| Start::Newer(*first)).or(reversed);
        let events: Vec<String> = page.places.iter().map(|place| self.shown_to(caller, *place)).collect();
        Ok(format!(
            "{{\"data\": [{}], \"cursor_next\": {}, \"cursor_previous\": {}}}",
            events.join(", "),
            cursor(page.older, older),
            cursor(page.newer, newer),
        ))
    }

    fn shown_to(&self, caller: &Caller, place: Place) -> String {
        let text = self.events.text(place);
        if caller.role == Role::Admin || self.now().since(place.updated) <= WITHHOLD_AFTER {
            text
        } else {
            withheld(&text, self.settings().withheld)
        }
    }
}

/// What a request to the event log asks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    query: Query,
    limit: usize,
    cursor: Option<String>,
}

const DATES: [&str; 5] = [
    "date_updated",
    "date_updated__gt",
    "date_updated__gte",
    "date_updated__lt",
    "date_updated__lte",
];

/// Which filters may be used together (documented); besides these, none at all.
const COMBINATIONS: [&[&str]; 15] = [
    &["object_type", "object_id"],
    &["object_type", "action"],
    &["object_id", "action"],
    &["lead_id", "object_type"],
    &["lead_id", "object_type", "action"],
    &["lead_id", "user_id", "object_type"],
    &["lead_id", "user_id", "object_type", "action"],
    &["lead_id", "user_id"],
    &["user_id", "object_id"],
    &["user_id", "object_id", "action"],
    &["user_id", "object_type"],
    &["user_id", "object_type", "action"],
    &["lead_id"],
    &["user_id"],
    &["request_id"],
];

impl Asked {
    fn parse(query: &str) -> Result<Asked, Invalid> {
        let mut known = vec![
            "object_type",
            "object_id",
            "action",
            "lead_id",
            "user_id",
            "request_id",
            "_limit",
            "_cursor",
        ];
        known.extend(DATES);
        let parameters = parameters(query, &known)?;
        let mut asked = Asked {
            query: Query::default(),
            limit: PAGE_MAX,
            cursor: None,
        };
        for (name, value) in &parameters {
            let text = || Some(value.clone());
            let date = || Moment::parse(value).ok_or_else(|| Invalid::field(name, "This must be an ISO date."));
            let from = asked.query.from;
            let later = |from_other: Moment| Some(from.map_or(from_other, |from| from.max(from_other)));
            let to = asked.query.to;
            let earlier = |to_other: Moment| Some(to.map_or(to_other, |to| to.min(to_other)));
            match name.as_str() {
                "object_type" => asked.query.object_type = text(),
                "object_id" => asked.query.object_id = text(),
                "action" => asked.query.action = text(),
                "lead_id" => asked.query.lead_id = text(),
                "user_id" => asked.query.user_id = text(),
                "request_id" => asked.query.request_id = text(),
                "date_updated__gte" => asked.query.from = later(date()?),
                "date_updated__gt" => asked.query.from = later(Moment(date()?.0 + 1)),
                "date_updated__lte" => asked.query.to = earlier(date()?),
                "date_updated__lt" => asked.query.to = earlier(Moment(date()?.0 - 1)),
                "date_updated" => {
                    asked.query.from = later(date()?);
                    asked.query.to = earlier(date()?);
                }
                "_cursor" => asked.cursor = text(),
                _ => {
                    let limit: usize = value
                        .parse()
                        .ok()
                        .filter(|limit| *limit > 0)
                        .ok_or_else(|| Invalid::field("_limit", "This must be a positive whole number."))?;
                    asked.limit = limit.min(PAGE_MAX);
                }
            }
        }
        if asked.cursor.is_some()
            && let Some((name, _)) = parameters.iter().find(|(name, _)| DATES.contains(&name.as_str()))
        {
            return Err(Invalid::field(name, "This can't be used together with _cursor."));
        }
        let used: BTreeSet<&str> = parameters
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !name.starts_with('_') && !DATES.contains(name))
            .collect();
        let is_allowed = |combination: &&[&str]| combination.iter().copied().collect::<BTreeSet<_>>() == used;
        if used.is_empty() || COMBINATIONS.iter().any(is_allowed) {
            return Ok(asked);
        }
        let used: Vec<&str> = used.into_iter().collect();
        Err(Invalid::general(format!(
            "This combination of filters is not supported: {}.",
            used.join(", ")
        )))
    }
}

/// The query's parameters, each known and given once.
fn parameters(query: &str, known: &[&str]) -> Result<Vec<(String, String)>, Invalid> {
    let parameters = pairs(query).ok_or_else(|| Invalid::general("The query can't be read."))?;
    let mut seen = BTreeSet::new();
    for (name, _) in &parameters {
        if !known.contains(&name.as_str()) {
            return Err(Invalid::field(name, "This parameter is not supported."));
        }
        if !seen.insert(name) {
            return Err(Invalid::field(name, "This parameter is given twice."));
        }
    }
    Ok(parameters)
}

/// Reads `a=1&b=2`.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
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
pub(super) fn to_value(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use proptest::prelude::*;

    use super::*;
    use crate::fake::settings::Settings;

    const WALL: Moment = Moment(1_700_000_000_000_000);

    fn world(settings: Settings) -> (World, String) {
        let world = World::new(
            7,
            WALL,
            Settings {
                rate_limit: 1_000_000,
                ..settings
            },
            None,
        );
        let key = base64::engine::general_purpose::STANDARD.encode(format!("{}:", world.access.keys[0].key));
        (world, format!("Basic {key}"))
    }

    fn get(world: &mut World, authorization: &str, path: &str, query: &str) -> (u16, Value) {
        let request = Request {
            method: "GET",
            path,
            query,
            authorization: Some(authorization),
            ..Request::default()
        };
        let reply = world.answer(&request, WALL, None);
        (reply.status, serde_json::from_str(&reply.body).unwrap())
    }

    #[test]
    fn exactly_the_documented_combinations_of_filters_are_allowed() {
        const FILTERS: [&str; 6] = ["object_type", "object_id", "action", "lead_id", "user_id", "request_id"];
        let (mut world, key) = world(Settings::calm());
        let mut allowed = 0;
        for mask in 0..1 << FILTERS.len() {
            let used: Vec<&str> = (0..FILTERS.len())
                .filter(|bit| mask >> bit & 1 == 1)
                .map(|bit| FILTERS[bit])
                .collect();
            let query: Vec<String> = used.iter().map(|name| format!("{name}=x")).collect();
            for dates in ["", "&date_updated__gte=2024-01-01"] {
                let (status, answer) = get(&mut world, &key, "/api/v1/event/", &(query.join("&") + dates));
                let documented = used.is_empty()
                    || COMBINATIONS
                        .iter()
                        .any(|one| one.len() == used.len() && one.iter().all(|name| used.contains(name)));
                assert_eq!(status, if documented { 200 } else { 400 }, "{used:?}");
                assert_eq!(answer["errors"].is_array(), !documented);
                allowed += usize::from(documented);
            }
        }
        assert_eq!(allowed, 32);
    }

    #[test]
    fn pages_have_at_most_fifty_events_and_lead_through_the_whole_log_and_back() {
        let (mut world, key) = world(Settings::calm());
        world
            .generate(
                1234,
                WALL.minus(Duration::from_secs(86_400)),
                Duration::from_secs(80_000),
            )
            .unwrap();
        let mut query = "date_updated__lt=2100-01-01T00:00:00&_limit=500".to_owned();
        let mut pages: Vec<Value> = Vec::new();
        let last = loop {
            let (status, page) = get(&mut world, &key, "/api/v1/event/", &query);
            assert_eq!(status, 200, "{page}");
            let next = page["cursor_next"].as_str().map(ToOwned::to_owned);
            assert_eq!(page["cursor_previous"].is_null(), pages.is_empty());
            pages.push(page);
            match next {
                Some(next) => query = format!("_cursor={next}"),
                None => break pages.last().unwrap(),
            }
        };
        assert!(
            pages[..pages.len() - 1]
                .iter()
                .all(|page| page["data"].as_array().unwrap().len() == PAGE_MAX)
        );
        let dates: Vec<&str> = pages
            .iter()
            .flat_map(|page| page["data"].as_array().unwrap())
            .map(|event| event["date_updated"].as_str().unwrap())
            .collect();
        assert_eq!(dates.len(), 1234);
        assert!(
            dates
                .windows(2)
                .all(|pair| Moment::parse(pair[0]) >= Moment::parse(pair[1]))
        );
        let back = format!("_cursor={}", last["cursor_previous"].as_str().unwrap());
        let (_, before) = get(&mut world, &key, "/api/v1/event/", &back);
        assert_eq!(before["data"], pages[pages.len() - 2]["data"]);
        let one = &dates.len();
        assert!(*one > PAGE_MAX);
        let (status, event) = get(
            &mut world,
            &key,
            &format!("/api/v1/event/{}/", pages[0]["data"][3]["id"].as_str().unwrap()),
            "",
        );
        assert_eq!((status, &event), (200, &pages[0]["data"][3]));
    }

    #[test]
    fn a_cursor_wants_the_same_filters_again_but_no_dates_and_can_expire() {
        let (mut world, key) = world(Settings::calm());
        world
            .generate(500, WALL.minus(Duration::from_secs(3000)), Duration::from_secs(2000))
            .unwrap();
        let filters = "object_type=lead&action=updated";
        let (_, page) = get(
            &mut world,
            &key,
            "/api/v1/event/",
            &format!("{filters}&_limit=5&date_updated__gt=2001-01-01"),
        );
        let cursor = page["cursor_next"].as_str().unwrap().to_owned();
        let mut with = |query: &str| get(&mut world, &key, "/api/v1/event/", &format!("_cursor={cursor}{query}"));
        assert_eq!(with(&format!("&{filters}")).0, 200);
        for bad in [
            "",
            "&object_type=lead&action=created",
            &format!("&{filters}&date_updated__gt=2001-01-01"),
            &format!("&{filters}&_skip=1"),
        ] {
            let (status, answer) = with(bad);
            assert_eq!(status, 400, "{bad}");
            assert_eq!(answer["field-errors"].as_object().unwrap().len(), 1);
        }
        world.expire_cursors();
        let (status, answer) = get(
            &mut world,
            &key,
            "/api/v1/event/",
            &format!("_cursor={cursor}&{filters}"),
        );
        assert_eq!((status, answer["field-errors"]["_cursor"].is_string()), (400, true));
    }

    #[test]
    fn what_the_documents_do_not_know_is_refused() {
        let (mut world, key) = world(Settings::calm());
        for bad in [
            "_skip=0",
            "_limit=0",
            "_limit=x",
            "nonsense=1",
            "date_updated__gte=yesterday",
            "lead_id=a&lead_id=b",
            "date_updated__gt=2024-01-01T00:00:00+00:00",
        ] {
            let (status, answer) = get(&mut world, &key, "/api/v1/event/", bad);
            assert_eq!(
                (status, answer["field-errors"].as_object().unwrap().len()),
                (400, 1),
                "{bad}"
            );
        }
        for path in [
            "/api/v1/event",
            "/api/v1/webhook",
            "/api/v2/event/",
            "/",
            "/api/v1/nonsense/",
            "/api/v1/event/ev_x/",
            "/api/v1/webhook/whsub_x/",
        ] {
            assert_eq!(get(&mut world, &key, path, "").0, 404, "{path}");
        }
        let request = Request {
            method: "PATCH",
            path: "/api/v1/webhook/",
            authorization: Some(&key),
            ..Request::default()
        };
        let reply = world.answer(&request, WALL, None);
        assert_eq!(reply.status, 405);
        assert!(reply.headers.contains(&("allow", "GET, POST".into())));
        let request = Request {
            method: "POST",
            body: b"{}",
            content_type: Some("text/plain"),
            ..request
        };
        assert_eq!(world.answer(&request, WALL, None).status, 415);
    }

    #[test]
    fn only_admins_see_data_that_is_older_than_an_hour() {
        for (withheld, is_there) in [
            (super::super::settings::Withheld::Absent, false),
            (super::super::settings::Withheld::Null, true),
        ] {
            let (mut world, key) = world(Settings {
                withheld,
                ..Settings::calm()
            });
            let minutes = |n: u64| WALL.minus(Duration::from_secs(60 * n)).plain();
            for (id, age) in [("ev_new", 59), ("ev_old", 61)] {
                let text = format!(
                    r#"{{"id": "{id}", "date_updated": "{}", "data": {{"n": 1.0}}}}"#,
                    minutes(age)
                );
                world.inject(&text, Duration::ZERO, false).unwrap();
            }
            let data = |world: &mut World| {
                let (_, page) = get(world, &key, "/api/v1/event/", "");
                let old = page["data"][1].as_object().unwrap().clone();
                (
                    page["data"][0]["data"].is_object(),
                    old.contains_key("data"),
                    old.contains_key("previous_data"),
                    old.get("data").is_some_and(Value::is_object),
                )
            };
            assert_eq!(data(&mut world), (true, true, true, true));
            world.access.keys[0].role = Role::User;
            assert_eq!(data(&mut world), (true, is_there, is_there, false));
            let (_, one) = get(&mut world, &key, "/api/v1/event/ev_old/", "");
            assert!(!one["data"].is_object());
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_on_anything(method in "(GET|POST|PUT|DELETE|X)", path in "(/api/v1/(event|webhook)/)?\\PC{0,20}", query in "\\PC{0,40}", body in "\\PC{0,40}") {
            let (mut world, key) = world(Settings::calm());
            let request = Request { method: &method, path: &path, query: &query, authorization: Some(&key), content_type: Some("application/json"), body: body.as_bytes() };
            let reply = world.answer(&request, WALL, None);
            prop_assert!(serde_json::from_str::<Value>(&reply.body).is_ok());
            let _ = world.control(&method, &format!("/fake/{path}"), &query, body.as_bytes());
        }
    }
}
