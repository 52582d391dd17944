//! The event log as the fake keeps it: 24 bytes a revision, 32 an event, in the order the API shows; texts are made when they
//! are asked for. Only events that a test has written itself are kept as text.

use std::collections::HashMap;
use std::time::Duration;

use crate::happen::{self, Facts, KINDS};
use crate::ids::Ids;
use crate::json;
use crate::moment::Moment;
use crate::render;
use crate::settings::{Settings, Withheld};

/// Events kept at most; making more is refused.
pub const EVENTS_MAX: usize = 4_000_000;

/// Bytes of written events kept at most.
const GIVEN_BYTES_MAX: usize = 256 << 20;

/// How far back the API shows events (documented).
pub const HISTORY: Duration = Duration::from_secs(30 * 86_400);

/// From this age on `data` is for admins only (documented).
pub const WITHHOLD_AFTER: Duration = Duration::from_secs(3600);

/// A revision's place in the log: by date, and where that is the same in the order things happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// `date_updated`.
    pub updated: Moment,
    /// The event's index.
    pub event: u32,
    /// Which revision of it, from 0.
    pub nth: u8,
}

#[derive(Debug, Clone, Copy)]
struct Revision {
    place: Place,
    visible: Moment,
    fate: Fate,
}

/// What became of a revision's webhooks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fate {
    /// It was sent at least once: the receiver may have it.
    pub attempted: bool,
    /// A receiver answered 2xx.
    pub delivered: bool,
}

#[derive(Debug)]
struct Record {
    /// `date_updated` of the first revision; of a made-up event also its `date_created`.
    first: Moment,
    /// Date and visibility of the later ones.
    later: Vec<(Moment, Moment)>,
}

/// What is asked of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    pub object_type: Option<String>,
    pub object_id: Option<String>,
    pub action: Option<String>,
    pub lead_id: Option<String>,
    pub user_id: Option<String>,
    pub request_id: Option<String>,
    /// Earliest `date_updated`.
    pub from: Option<Moment>,
    /// Latest `date_updated`.
    pub to: Option<Moment>,
}

/// Where a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the newest.
    Top,
    /// With what comes right after this place in the list: older.
    Older(Place),
    /// So that it ends right before this place: newer.
    Newer(Place),
}

/// A page, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub places: Vec<Place>,
    /// There is something older.
    pub older: bool,
    /// There is something newer.
    pub newer: bool,
}

/// The log is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the fake keeps at most {EVENTS_MAX} events: start another one")]
pub struct Full;

/// All events and their revisions.
#[derive(Debug)]
pub struct Events {
    seed: u64,
    timeline: Vec<Revision>,
    records: Vec<Record>,
    given: HashMap<(u32, u8), Box<str>>,
    given_ids: HashMap<String, u32>,
    given_bytes: usize,
}

impl Events {
    pub fn new(seed: u64) -> Events {
        Events {
            seed,
            timeline: Vec::new(),
            records: Vec::new(),
            given: HashMap::new(),
            given_ids: HashMap::new(),
            given_bytes: 0,
        }
    }

    /// How many events there are, those included that are dated in the future.
    pub fn count(&self) -> usize {
        self.records.len()
    }

    /// How many revisions they have.
    pub fn revisions(&self) -> usize {
        self.timeline.len()
    }

    /// Makes events up, dated as given. The places of their revisions.
    pub fn make(
        &mut self,
        settings: &Settings,
        dates: impl ExactSizeIterator<Item = Moment>,
    ) -> Result<Vec<Place>, Full> {
        if self.records.len() + dates.len() > EVENTS_MAX {
            return Err(Full);
        }
        let sorted_len = self.timeline.len();
        let mut made = Vec::with_capacity(dates.len());
        for created in dates {
            let created = created.to_millisecond();
            let event = self.records.len() as u32;
            let index = u64::from(event);
            let mut later = Vec::new();
            let dates = std::iter::once(created).chain(happen::revisions(self.seed, index, created));
            for (nth, updated) in (0..).zip(dates) {
                let updated = updated.to_millisecond();
                let visible = happen::visible(settings, self.seed, index, nth, updated);
                let place = Place { updated, event, nth };
                made.push(place);
                self.timeline.push(Revision {
                    place,
                    visible,
                    fate: Fate::default(),
                });
                if nth > 0 {
                    later.push((updated, visible));
                }
            }
            self.records.push(Record { first: created, later });
        }
        // Only from where the first new one belongs is there anything to sort.
        if let Some(first) = made.iter().min() {
            let from = self.timeline[..sorted_len].partition_point(|revision| revision.place < *first);
            self.timeline[from..].sort_by_key(|revision| revision.place);
        }
        Ok(made)
    }

    /// Adds a revision: of a new event where the id is new, else of the one that has it, which is thereby consolidated.
    pub fn give(&mut self, id: &str, text: String, updated: Moment, visible: Moment) -> Result<Place, String> {
        if self.given_bytes + text.len() > GIVEN_BYTES_MAX {
            return Err("the fake keeps at most 256 MiB of written events: start another one".into());
        }
        let event = match self.index_of(id) {
            Some(event) => event,
            None if self.records.len() >= EVENTS_MAX => return Err(Full.to_string()),
            None => {
                self.given_ids.insert(id.to_owned(), self.records.len() as u32);
                self.records.push(Record {
                    first: updated,
                    later: Vec::new(),
                });
                let place = Place {
                    updated,
                    event: self.records.len() as u32 - 1,
                    nth: 0,
                };
                self.keep(place, text);
                self.insert(place, visible);
                return Ok(place);
            }
        };
        let place = self.append(event, updated, visible)?;
        self.keep(place, text);
        Ok(place)
    }

    fn keep(&mut self, place: Place, text: String) {
        self.given_bytes += text.len();
        self.given.insert((place.event, place.nth), text.into());
    }

    /// Changes an event again, now: it moves to the top. A written event keeps its text but for the date.
    pub fn consolidate(&mut self, id: &str, updated: Moment, visible: Moment) -> Result<Place, String> {
        let event = self
            .index_of(id)
            .ok_or_else(|| format!("there is no event {id}: GET /fake/events lists them"))?;
        let last = self.records[event as usize].later.len() as u8;
        let text = self.given.get(&(event, last)).map(|text| redated(text, updated));
        let place = self.append(event, updated, visible)?;
        if let Some(text) = text {
            self.keep(place, text);
        }
        Ok(place)
    }

    fn append(&mut self, event: u32, updated: Moment, visible: Moment) -> Result<Place, String> {
        let record = &mut self.records[event as usize];
        let last = record.later.last().map_or(record.first, |(last, _)| *last);
        if updated <= last {
            return Err(format!(
                "a later revision has a later date_updated: this event has {}",
                last.plain()
            ));
        }
        let nth = u8::try_from(record.later.len() + 1).map_err(|_| "an event has at most 256 revisions")?;
        record.later.push((updated, visible));
        let place = Place { updated, event, nth };
        self.insert(place, visible);
        Ok(place)
    }

    fn insert(&mut self, place: Place, visible: Moment) {
        let at = self.timeline.partition_point(|revision| revision.place < place);
        let fate = Fate::default();
        self.timeline.insert(at, Revision { place, visible, fate });
    }

    /// The index of the event with this id.
    pub fn index_of(&self, id: &str) -> Option<u32> {
        if let Some(event) = self.given_ids.get(id) {
            return Some(*event);
        }
        let number = u32::try_from(Ids(self.seed).number("ev_", id)?).ok()?;
        let is_made = (number as usize) < self.records.len() && !self.given.contains_key(&(number, 0));
        is_made.then_some(number)
    }

    fn find(&self, place: Place) -> Option<usize> {
        self.timeline
            .binary_search_by_key(&place, |revision| revision.place)
            .ok()
    }

    /// Notes what became of a revision's webhooks.
    pub fn note(&mut self, place: Place, note: impl FnOnce(&mut Fate)) {
        if let Some(at) = self.find(place) {
            note(&mut self.timeline[at].fate);
        }
    }

    /// Every revision in the order of the log, oldest first, and when it can be seen.
    pub fn all(&self) -> impl ExactSizeIterator<Item = (Place, Moment, Fate)> {
        self.timeline
            .iter()
            .map(|revision| (revision.place, revision.visible, revision.fate))
    }

    /// Whether it is the last revision of its event, ever.
    pub fn is_latest(&self, place: Place) -> bool {
        usize::from(place.nth) == self.records[place.event as usize].later.len()
    }

    /// Whether the event was changed again between this revision and `now`, both included.
    pub fn is_superseded(&self, place: Place, now: Moment) -> bool {
        let later = &self.records[place.event as usize].later[usize::from(place.nth)..];
        later.iter().any(|(updated, _)| *updated <= now)
    }

    /// Whether the API shows this revision: it is visible, and no later one is.
    fn is_current(&self, revision: &Revision, now: Moment) -> bool {
        let later = &self.records[revision.place.event as usize].later[usize::from(revision.place.nth)..];
        revision.visible <= now && !later.iter().any(|(_, visible)| *visible <= now)
    }

    /// The revision of an event that the API shows.
    pub fn shown(&self, id: &str, now: Moment) -> Option<Place> {
        let event = self.index_of(id)?;
        let record = &self.records[event as usize];
        let dates = std::iter::once(record.first).chain(record.later.iter().map(|(updated, _)| *updated));
        let places = (0..).zip(dates).map(|(nth, updated)| Place { updated, event, nth });
        let shown = places
            .filter_map(|place| self.find(place))
            .find(|at| self.is_current(&self.timeline[*at], now))?;
        let place = self.timeline[shown].place;
        (place.updated >= now.minus(HISTORY)).then_some(place)
    }

    /// A page of the log as the API shows it at this time.
    pub fn page(&self, now: Moment, query: &Query, start: Start, limit: usize) -> Page {
        let wanted = Wanted::new(self.seed, query);
        let oldest = now.minus(HISTORY).max(query.from.unwrap_or(Moment(i64::MIN)));
        let newest = now.min(query.to.unwrap_or(Moment(i64::MAX)));
        let bottom = self
            .timeline
            .partition_point(|revision| revision.place.updated < oldest);
        let top = self
            .timeline
            .partition_point(|revision| revision.place.updated <= newest)
            .max(bottom);
        let is_shown = |at: &usize| {
            let revision = &self.timeline[*at];
            self.is_current(revision, now) && self.is_wanted(&wanted, revision.place)
        };
        let split = |place: Place| {
            let at = self.timeline.partition_point(|revision| revision.place < place);
            at.clamp(bottom, top)
        };
        let (found, below, above): (Vec<usize>, usize, usize) = match start {
            Start::Top => ((bottom..top).rev().filter(is_shown).take(limit).collect(), top, top),
            Start::Older(place) => {
                let at = split(place);
                ((bottom..at).rev().filter(is_shown).take(limit).collect(), at, at)
            }
            Start::Newer(place) => {
                let behind = self.timeline.partition_point(|revision| revision.place <= place);
                let behind = behind.clamp(bottom, top);
                let mut found: Vec<usize> = (behind..top).filter(is_shown).take(limit).collect();
                found.reverse();
                (found, behind, behind)
            }
        };
        // Beyond the page on both sides; around the place asked for, where the page is empty.
        let below = found.last().copied().unwrap_or(below);
        let above = found.first().map_or(above, |first| first + 1);
        Page {
            older: (bottom..below).rev().any(|at| is_shown(&at)),
            newer: (above..top).any(|at| is_shown(&at)),
            places: found.into_iter().map(|at| self.timeline[at].place).collect(),
        }
    }

    fn is_wanted(&self, wanted: &Wanted<'_>, place: Place) -> bool {
        if wanted.everything {
            return true;
        }
        if let Some(text) = self.given.get(&(place.event, place.nth)) {
            return wanted.takes_text(text);
        }
        wanted.takes(&self.facts(place))
    }

    /// What a made-up event is about.
    pub fn facts(&self, place: Place) -> Facts {
        happen::facts(self.seed, u64::from(place.event))
    }

    /// The event object, exactly as it is delivered and shown.
    pub fn text(&self, place: Place) -> String {
        if let Some(text) = self.given.get(&(place.event, place.nth)) {
            return text.to_string();
        }
        let revision = render::Revision {
            event: u64::from(place.event),
            nth: place.nth,
            created: self.records[place.event as usize].first,
            updated: place.updated,
        };
        render::event(self.seed, &self.facts(place), revision)
    }

    /// `object_type` and `action`, empty where a written event has none.
    pub fn type_action(&self, place: Place) -> (String, String) {
        if let Some(text) = self.given.get(&(place.event, place.nth)) {
            let field = |name| json::string_at(text, name).unwrap_or_default();
            return (field("object_type"), field("action"));
        }
        let kind = self.facts(place).kind;
        (kind.object_type.to_owned(), kind.action.to_owned())
    }

    /// The event's id.
    pub fn id(&self, place: Place) -> String {
        if let Some(text) = self.given.get(&(place.event, place.nth)) {
            return json::string_at(text, "id").unwrap_or_default();
        }
        Ids(self.seed).id("ev_", u64::from(place.event))
    }
}

/// A query with its ids resolved to numbers, so that looking at a million events reads no text.
struct Wanted<'q> {
    query: &'q Query,
    everything: bool,
    lead: Option<u64>,
    user: Option<u64>,
    request: Option<u64>,
    object: Option<(&'static str, u64)>,
}

impl<'q> Wanted<'q> {
    fn new(seed: u64, query: &'q Query) -> Wanted<'q> {
        let ids = Ids(seed);
        let number = |prefix, id: &Option<String>| id.as_deref().and_then(|id| ids.number(prefix, id));
        let object = query.object_id.as_deref().and_then(|id| {
            KINDS
                .iter()
                .find_map(|kind| Some((kind.prefix, ids.number(kind.prefix, id)?)))
        });
        let dates_only = Query {
            from: query.from,
            to: query.to,
            ..Query::default()
        };
        Wanted {
            query,
            everything: dates_only == *query,
            lead: number("lead_", &query.lead_id),
            user: number("user_", &query.user_id),
            request: number("req_", &query.request_id),
            object,
        }
    }

    fn takes(&self, facts: &Facts) -> bool {
        let query = self.query;
        let text = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        let number = |asked: &Option<String>, wanted: Option<u64>, is: Option<u64>| {
            asked.is_none() || (wanted.is_some() && wanted == is)
        };
        text(&query.object_type, facts.kind.object_type)
            && text(&query.action, facts.kind.action)
            && number(&query.lead_id, self.lead, facts.lead)
            && number(&query.user_id, self.user, facts.user)
            && number(&query.request_id, self.request, facts.request)
            && (query.object_id.is_none() || self.object == Some((facts.kind.prefix, facts.object)))
    }

    fn takes_text(&self, event: &str) -> bool {
        let query = self.query;
        let fields = [
            ("object_type", &query.object_type),
            ("object_id", &query.object_id),
            ("action", &query.action),
            ("lead_id", &query.lead_id),
            ("user_id", &query.user_id),
            ("request_id", &query.request_id),
        ];
        fields.iter().all(|(name, wanted)| {
            wanted
                .as_deref()
                .is_none_or(|wanted| json::string_at(event, name).is_some_and(|is| is == wanted))
        })
    }
}

/// The text with another `date_updated`.
fn redated(text: &str, updated: Moment) -> String {
    let date = format!("\"{}\"", updated.plain());
    edited(text, |key| match key {
        "date_updated" => Some(Some(date.as_str())),
        _ => None,
    })
}

/// The text as a key sees it whose data is withheld.
pub fn withheld(text: &str, how: Withheld) -> String {
    edited(text, |key| match (key, how) {
        ("data" | "previous_data", Withheld::Absent) => Some(None),
        ("data" | "previous_data", Withheld::Null) => Some(Some("null")),
        _ => None,
    })
}

/// The object with some values replaced or left out; everything else as written, but for the space between entries.
fn edited<'e>(text: &str, edit: impl Fn(&str) -> Option<Option<&'e str>>) -> String {
    let mut entries = Vec::new();
    for json::Entry { key, name, value } in json::entries(text).unwrap_or_default() {
        match edit(&name) {
            None => entries.push(format!("{key}: {value}")),
            Some(Some(other)) => entries.push(format!("{key}: {other}")),
            Some(None) => {}
        }
    }
    format!("{{{}}}", entries.join(", "))
}

#[cfg(test)]
mod tests;
