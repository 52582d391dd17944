//! `/event/`

use std::collections::BTreeSet;

use super::{PAGE_MAX, Reply, Request, parameters};
use crate::access::{Caller, Role};
use crate::cursor::{Cursor, Refused};
use crate::events::{Place, Query, Start, WITHHOLD_AFTER, withheld};
use crate::moment::Moment;
use crate::settings::Withheld;
use crate::subscription::Invalid;
use crate::world::World;

impl World {
    pub(super) fn list_events(&self, request: &Request<'_>, wall: Moment, caller: &Caller) -> Reply {
        match self.events_page(request, wall, caller) {
            Ok(body) => Reply::json(200, body),
            Err(refused) => refused,
        }
    }

    fn events_page(&self, request: &Request<'_>, wall: Moment, caller: &Caller) -> Result<String, Reply> {
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
                let cursor = cursor.map_err(|refused| match refused {
                    Refused::Invalid => Reply::error(400, "invalid cursor"),
                    Refused::OtherQuery => Invalid::field("_cursor", refused.to_string()).into(),
                })?;
                // Dates that are given again do no harm.
                query.from = query.from.max(cursor.from);
                query.to = match (query.to, cursor.to) {
                    (Some(one), Some(other)) => Some(one.min(other)),
                    (one, other) => one.or(other),
                };
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

    pub(super) fn shown_to(&self, caller: &Caller, place: Place) -> String {
        let text = self.events.text(place);
        let (object_type, action) = self.events.type_action(place);
        if self.settings().bare_types.contains(&format!("{object_type}.{action}")) {
            return withheld(&text, Withheld::Absent);
        }
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

/// What can be asked for besides dates.
const FILTERS: [&str; 6] = ["object_type", "object_id", "action", "lead_id", "user_id", "request_id"];

/// Which filters may be used together (documented); besides these, none at all.
pub(super) const COMBINATIONS: [&[&str]; 15] = [
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
        let parameters = parameters(query)?;
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
                // Empty, it is the first page: scripts begin their loops so.
                "_cursor" => asked.cursor = text().filter(|cursor| !cursor.is_empty()),
                "_limit" => {
                    let limit: usize = value
                        .parse()
                        .ok()
                        .filter(|limit| *limit > 0)
                        .ok_or_else(|| Invalid::field("_limit", "This must be a positive whole number."))?;
                    asked.limit = limit.min(PAGE_MAX);
                }
                _ => {}
            }
        }
        let used: BTreeSet<&str> = parameters
            .keys()
            .map(String::as_str)
            .filter(|name| FILTERS.contains(name))
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
