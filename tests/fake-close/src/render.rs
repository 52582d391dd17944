//! The text of an event: written, not serialized, because numbers like `1.0` and `1e2`, white space, escapes and the order of
//! keys must be as odd as real ones are, and the same each time.

use std::fmt::Write as _;

use super::dice::Dice;
use super::happen::{Facts, Shape};
use super::ids::Ids;
use super::moment::Moment;

/// How a text is written.
#[derive(Debug, Clone, Copy)]
struct Style {
    comma: &'static str,
    colon: &'static str,
    /// Everything outside ASCII as `\u`.
    ascii: bool,
    /// `/` as `\/`.
    slashes: bool,
}

/// As most are: the way Python writes.
const PYTHON: Style = Style {
    comma: ", ",
    colon: ": ",
    ascii: false,
    slashes: false,
};

const STYLES: [Style; 4] = [
    Style { ascii: true, ..PYTHON },
    Style {
        comma: ",",
        colon: ":",
        slashes: true,
        ..PYTHON
    },
    Style {
        comma: ",\n  ",
        colon: ": ",
        ..PYTHON
    },
    Style {
        comma: " ,\t",
        colon: " :\r\n",
        ascii: true,
        slashes: true,
    },
];

/// An object while it is written.
struct Object {
    text: String,
    style: Style,
}

impl Object {
    fn new(style: Style) -> Object {
        Object {
            text: String::from("{"),
            style,
        }
    }

    /// A value that is JSON already.
    fn raw(mut self, key: &str, value: &str) -> Object {
        if self.text.len() > 1 {
            self.text.push_str(self.style.comma);
        }
        quote(&mut self.text, key, self.style);
        self.text.push_str(self.style.colon);
        self.text.push_str(value);
        self
    }

    fn string(self, key: &str, value: &str) -> Object {
        let mut quoted = String::with_capacity(value.len() + 2);
        quote(&mut quoted, value, self.style);
        self.raw(key, &quoted)
    }

    fn optional(self, key: &str, value: Option<&str>) -> Object {
        match value {
            Some(value) => self.string(key, value),
            None => self.raw(key, "null"),
        }
    }

    fn end(mut self) -> String {
        self.text.push('}');
        self.text
    }
}

fn list(items: &[String], style: Style) -> String {
    format!("[{}]", items.join(style.comma))
}

fn quote(out: &mut String, text: &str, style: Style) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '/' if style.slashes => out.push_str("\\/"),
            c if u32::from(c) < 0x20 || style.ascii && !c.is_ascii() => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String can't fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The delivery of an event to a subscription, as signed and posted.
pub fn envelope(event: &str, subscription_id: &str) -> String {
    format!("{{\"subscription_id\": \"{subscription_id}\", \"event\": {event}}}")
}

/// What an event is made of, besides what follows from seed and index.
#[derive(Debug, Clone, Copy)]
pub struct Revision {
    /// Event index.
    pub event: u64,
    /// Counts from 0: how often the event was consolidated before.
    pub nth: u8,
    /// `date_created`.
    pub created: Moment,
    /// `date_updated`.
    pub updated: Moment,
}

/// The text of one revision of an event.
pub fn event(seed: u64, facts: &Facts, revision: Revision) -> String {
    let mut dice = Dice::of(&[seed, 5, revision.event]);
    let style = if dice.chance(0.9) {
        PYTHON
    } else {
        STYLES[dice.below(STYLES.len() as u64) as usize]
    };
    let ids = Ids(seed);
    let organization = ids.id("orga_", 0);
    let lead = facts.lead.map(|lead| ids.id("lead_", lead));
    let user = facts.user.map(|user| ids.id("user_", user));
    let request = facts.request.map(|request| ids.id("req_", request));
    let api_key = facts
        .request
        .filter(|request| request % 7 == 0)
        .map(|_| ids.id("api_", 0));
    let oauth_client = facts
        .request
        .filter(|request| request % 7 == 3)
        .map(|_| ids.id("oa2client_", 0));
    let object_id = ids.id(facts.kind.prefix, facts.object);
    let mut painter = Painter {
        ids,
        style,
        dice,
        facts,
        object_id: &object_id,
        lead: lead.as_deref(),
        user: user.as_deref(),
        organization: &organization,
        revision,
    };
    let (before, now, changed) = painter.object();
    let (data, previous) = match facts.kind.action {
        "deleted" => ("null".to_owned(), now),
        "updated" => (now, before),
        _ => (now, "{}".to_owned()),
    };
    let meta = painter.meta();
    let object = Object::new(style)
        .string("date_created", &revision.created.plain())
        .string("date_updated", &revision.updated.plain())
        .string("organization_id", &organization)
        .optional("user_id", user.as_deref())
        .optional("request_id", request.as_deref())
        .optional("api_key_id", api_key.as_deref())
        .optional("oauth_client_id", oauth_client.as_deref())
        .optional(
            "oauth_scope",
            oauth_client.as_ref().map(|_| "all.full_access offline_access"),
        )
        .optional("lead_id", lead.as_deref())
        .raw("changed_fields", &list(&changed, style))
        .raw("previous_data", &previous)
        .raw("meta", &meta)
        .string("id", &ids.id("ev_", revision.event))
        .string("object_type", facts.kind.object_type)
        .string("action", facts.kind.action)
        .string("object_id", &object_id)
        .raw("data", &data);
    if facts.kind.shape == Shape::Unknown {
        return object
            .raw("an_undocumented_field", r#"{"keep":["me", 1.1, 1000.0, 1e2]}"#)
            .end();
    }
    object.end()
}

const FIRST_NAMES: [&str; 12] = [
    "Paul",
    "Zoë",
    "Jürgen",
    "María",
    "Nguyễn",
    "東子",
    "Олег",
    "Aïsha",
    "Bob",
    "Ann",
    "🚀 Rocket",
    "O'Neil",
];
const LAST_NAMES: [&str; 10] = [
    "Smith",
    "Müller",
    "García",
    "\"Quote\"",
    "Back\\slash",
    "Łukasz",
    "محمد",
    "D'Arcy",
    "Jones",
    "Kim",
];
const COMPANIES: [&str; 10] = [
    "Bluth Company",
    "Señor & Söhne",
    "東京商事",
    "Kline / Partners",
    "Ödön Kft.",
    "ACME \"Rockets\"",
    "Tab\tand\nline",
    "Ælfred Ltd",
    "Zero\u{200d}Width",
    "Plain Inc",
];
const NUMBERS: [&str; 8] = [
    "1.0",
    "1e2",
    "-0.50",
    "12345678901234567890",
    "3.5",
    "0",
    "1E+3",
    "9007199254740993",
];
const STATUSES: [&str; 5] = ["Potential", "Qualified", "Customer", "Bad Fit", "Gagné"];

/// The field that an update changes, what was there before, and the object as it is now.
type Told = (&'static str, String, Object);

/// Writes the object an event is about.
struct Painter<'p> {
    ids: Ids,
    style: Style,
    dice: Dice,
    facts: &'p Facts,
    object_id: &'p str,
    lead: Option<&'p str>,
    user: Option<&'p str>,
    organization: &'p str,
    revision: Revision,
}

impl Painter<'_> {
    fn quoted(&self, text: &str) -> String {
        let mut quoted = String::new();
        quote(&mut quoted, text, self.style);
        quoted
    }

    fn person(&mut self) -> String {
        format!("{} {}", self.dice.pick(&FIRST_NAMES), self.dice.pick(&LAST_NAMES))
    }

    fn email(&self) -> String {
        format!("person{}@example.com", self.facts.object)
    }

    fn status_id(&self, status: &str) -> String {
        self.ids.id("stat_", status.len() as u64)
    }

    /// `previous_data` for an update, the object as it is now, and the names of what changed.
    fn object(&mut self) -> (String, String, Vec<String>) {
        let nth = u64::from(self.revision.nth);
        // Consolidated, an update still tells what was there before its first change.
        let (old, new) = (self.dice.below(1000), 1000 + self.dice.below(1000) + nth);
        let style = self.style;
        let object = Object::new(style).string("id", self.object_id);
        let touched = self.revision.created.minus(std::time::Duration::from_secs(3600 + old));
        let (field, before, object) = match self.facts.kind.shape {
            Shape::Lead => self.lead(object, old, new),
            Shape::Contact => self.contact(object, new),
            Shape::Opportunity => self.opportunity(object, old, new),
            Shape::Email => self.mail(object, old, new),
            Shape::Call | Shape::Sms | Shape::Note | Shape::Comment | Shape::Meeting | Shape::StatusChange => {
                self.activity(object, old, new)
            }
            _ => self.other(object, old, new),
        };
        let object = object
            .string("organization_id", self.organization)
            .optional("updated_by", self.user)
            .string("date_created", &touched.with_offset())
            .string("date_updated", &self.revision.updated.with_offset());
        let before = Object::new(style)
            .raw(field, &before)
            .string("date_updated", &touched.with_offset())
            .end();
        let changed = match self.facts.kind.action {
            "updated" => vec![self.quoted(field), self.quoted("date_updated")],
            _ => Vec::new(),
        };
        (before, object.end(), changed)
    }

    fn contact(&mut self, object: Object, new: u64) -> Told {
        let style = self.style;
        let (name, email) = (self.person(), self.email());
        let emails = |gone: bool| {
            let email = Object::new(style)
                .string("email", &email)
                .string("type", "office")
                .raw("is_unsubscribed", if gone { "true" } else { "false" });
            list(&[email.end()], style)
        };
        let phone = Object::new(style)
            .string("phone", &format!("+1800{new:07}"))
            .string("country", "US");
        let object = object
            .optional("lead_id", self.lead)
            .string("name", &name)
            .raw("title", "null")
            .raw("emails", &emails(self.revision.nth.is_multiple_of(2)))
            .raw("phones", &list(&[phone.end()], style));
        ("emails", emails(false), object)
    }

    fn opportunity(&mut self, object: Object, old: u64, new: u64) -> Told {
        let status = STATUSES[(new % 5) as usize];
        let object = object
            .optional("lead_id", self.lead)
            .string("note", "")
            .raw("confidence", &(new % 101).to_string())
            .raw("value", &(new * 100).to_string())
            .string("value_currency", "USD")
            .string("value_formatted", &format!("${new}"))
            .string("value_period", self.dice.pick(&["one_time", "monthly", "annual"]))
            .string("status_id", &self.status_id(status))
            .string("status_label", status)
            .raw("date_won", "null")
            .raw("custom.cf_expected_margin", self.dice.pick(&NUMBERS));
        ("value", (old * 100).to_string(), object)
    }

    fn mail(&mut self, object: Object, old: u64, new: u64) -> Told {
        let to = list(&[self.quoted(&self.email())], self.style);
        // Now and then somebody pastes a book.
        let paragraphs = if self.dice.chance(0.002) {
            400
        } else {
            1 + self.dice.below(4)
        };
        let body = "<p>Hej — wie geht's?</p>\n".repeat(paragraphs as usize);
        let object = object
            .string("_type", "Email")
            .optional("lead_id", self.lead)
            .string("direction", self.dice.pick(&["incoming", "outgoing"]))
            .string("subject", &format!("Re: offer #{new} “final”"))
            .raw("to", &to)
            .string("body_html", &body)
            .raw("opens", "[]");
        ("subject", self.quoted(&format!("Re: offer #{old}")), object)
    }

    fn activity(&mut self, object: Object, old: u64, new: u64) -> Told {
        let object = object.optional("lead_id", self.lead);
        match self.facts.kind.shape {
            Shape::Call => {
                // It comes before anybody has spoken; how long it took is told by a later update.
                let duration = match self.facts.kind.action {
                    "updated" | "completed" => new.to_string(),
                    _ => "0".to_owned(),
                };
                let object = object
                    .string("_type", "Call")
                    .string("direction", self.dice.pick(&["inbound", "outbound"]))
                    .string("disposition", self.dice.pick(&["answered", "vm-left", "no-answer"]))
                    .raw("duration", &duration)
                    .string("cost", "2.5")
                    .raw("recording_transcript", "null");
                ("duration", "0".to_owned(), object)
            }
            Shape::Meeting => {
                let guest = Object::new(self.style)
                    .string("email", &self.email())
                    .string("status", self.dice.pick(&["yes", "no", "noreply"]));
                let object = object
                    .string("title", &format!("Demo {new}"))
                    .string("starts_at", &self.revision.updated.with_offset())
                    .raw("attendees", &list(&[guest.end()], self.style));
                ("title", self.quoted(&format!("Demo {old}")), object)
            }
            Shape::StatusChange => {
                let (before, after) = (STATUSES[(old % 5) as usize], STATUSES[(new % 5) as usize]);
                let object = object
                    .string("old_status_label", before)
                    .string("new_status_label", after);
                ("new_status_label", self.quoted(before), object)
            }
            _ => {
                let text = format!("Line {new}\nLine \"two\" \\ tab\t end — {}", self.person());
                (
                    "text",
                    self.quoted(&format!("Line {old}")),
                    object.string("text", &text),
                )
            }
        }
    }

    fn other(&mut self, object: Object, old: u64, new: u64) -> Told {
        let style = self.style;
        match self.facts.kind.shape {
            Shape::Unsubscribed => (
                "email",
                self.quoted(&self.email()),
                object.string("email", &self.email()),
            ),
            Shape::BulkAction => {
                let object = object.string("status", self.facts.kind.action).raw("n_leads", "1e2");
                ("status", self.quoted("created"), object)
            }
            Shape::Membership => ("role_id", self.quoted("user"), object.string("role_id", "admin")),
            Shape::Unknown => {
                let nested = format!("{}1.10{}", "[".repeat(60), "]".repeat(60));
                let object = object.raw("x", self.dice.pick(&NUMBERS)).raw("deep", &nested);
                ("x", "0.0".into(), object)
            }
            Shape::CustomActivity | Shape::CustomObject => {
                // Published so soon that no update tells: the creation itself comes again.
                let status = if self.revision.nth == 0 { "draft" } else { "published" };
                let object = object
                    .string("status", status)
                    .optional("lead_id", self.lead)
                    .string("name", &format!("Contract {new}"))
                    .raw("custom.cf_a", &list(&["\"x\"".into(), "\"y\"".into()], style))
                    .raw("custom.cf_b", self.dice.pick(&NUMBERS));
                ("name", self.quoted(&format!("Contract {old}")), object)
            }
            _ => {
                let is_done = self.facts.kind.action == "completed" || !self.revision.nth.is_multiple_of(2);
                let object = object
                    .optional("lead_id", self.lead)
                    .string("text", &format!("Follow up {new}"))
                    .string("status", if is_done { "finished" } else { "active" })
                    .raw("is_complete", if is_done { "true" } else { "false" });
                ("status", self.quoted("active"), object)
            }
        }
    }

    fn lead(&mut self, object: Object, old: u64, new: u64) -> Told {
        let style = self.style;
        let company = self.dice.pick(&COMPANIES);
        let name = format!("{company} {new}");
        let status = STATUSES[(new % 5) as usize];
        let contacts: Vec<String> = (0..self.dice.below(3))
            .map(|n| self.quoted(&self.ids.id("cont_", self.facts.object * 4 + n)))
            .collect();
        let address = Object::new(style)
            .string("label", "business")
            .string("address_1", &format!("{new} Howard St"))
            .string("city", self.dice.pick(&["San Francisco", "Zürich", "Łódź", "京都"]))
            .string("country", self.dice.pick(&["US", "CH", "PL", "JP"]));
        let object = object
            .string("name", &name)
            .string("display_name", &name)
            .string("description", "Best. Show. Ever. — über señor 東京 🚀")
            .string("url", "https://example.com")
            .string("status_id", &self.status_id(status))
            .string("status_label", status)
            .raw("contact_ids", &list(&contacts, style))
            .raw("addresses", &list(&[address.end()], style))
            .string("custom.cf_product", &format!("product_{}", old % 9))
            .raw(
                "custom.cf_plans",
                &list(&["\"sub_5678\"".into(), "\"sub_9\"".into()], style),
            )
            .raw("custom.lcf_score", self.dice.pick(&NUMBERS));
        ("name", self.quoted(&format!("{company} {old}")), object)
    }

    fn meta(&mut self) -> String {
        let meta = Object::new(self.style);
        if self.facts.kind.action == "merged" {
            let source = self.facts.object.saturating_sub(1 + self.dice.below(5));
            return meta
                .string("merge_source_lead_id", &self.ids.id("lead_", source))
                .string("merge_destination_lead_id", self.object_id)
                .raw("bulk_action_id", "null")
                .end();
        }
        if self.facts.kind.action == "deleted" && self.dice.chance(0.3) {
            return meta.string("revert_import_id", &self.ids.id("impo_", 0)).end();
        }
        if self.facts.user.is_none() || self.dice.chance(0.5) {
            return meta.end();
        }
        let path = format!("/api/v1/{}/", self.facts.kind.object_type.replace('.', "/"));
        let method = self.dice.pick(&["POST", "PUT"]);
        meta.string("request_method", method)
            .string("request_path", &path)
            .end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::happen::facts;

    fn revision(event: u64, nth: u8) -> Revision {
        let created = Moment(1_700_000_000_123_000);
        Revision {
            event,
            nth,
            created,
            updated: Moment(created.0 + i64::from(nth) * 5_000_000),
        }
    }

    #[test]
    fn every_text_is_a_delivery_with_the_right_fields_and_the_same_each_time() {
        let mut odd = 0;
        for (seed, index) in [7, 15_742_930_932_673_604_651]
            .into_iter()
            .flat_map(|seed| (0..3000).map(move |index| (seed, index)))
        {
            let facts = facts(seed, index);
            let text = event(seed, &facts, revision(index, 0));
            assert_eq!(text, event(seed, &facts, revision(index, 0)));
            let body = envelope(&text, "whsub_1");
            let delivery: serde_json::Value =
                serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
            let view = &delivery["event"];
            assert_eq!(view["id"], Ids(seed).id("ev_", index));
            assert_eq!(view["object_type"], facts.kind.object_type);
            assert_eq!(view["action"], facts.kind.action);
            assert_eq!(
                view["lead_id"].as_str(),
                facts.lead.map(|lead| Ids(seed).id("lead_", lead)).as_deref()
            );
            assert_eq!(delivery["subscription_id"], "whsub_1");
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["data"].is_null(), facts.kind.action == "deleted");
            assert_eq!(
                value["changed_fields"].as_array().unwrap().is_empty(),
                facts.kind.action != "updated"
            );
            odd += usize::from(!text.starts_with("{\"date_created\": \"20"));
        }
        assert!(odd > 100);
    }

    #[test]
    fn a_later_revision_keeps_id_and_creation_and_what_was_before_but_not_its_text() {
        let index = (0..1000)
            .find(|index| facts(7, *index).kind.action == "updated")
            .unwrap();
        let texts: Vec<String> = (0..3)
            .map(|nth| event(7, &facts(7, index), revision(index, nth)))
            .collect();
        let values: Vec<serde_json::Value> = texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        for value in &values[1..] {
            assert_eq!(value["id"], values[0]["id"]);
            assert_eq!(value["date_created"], values[0]["date_created"]);
            assert_eq!(
                value["previous_data"]["date_updated"],
                values[0]["previous_data"]["date_updated"]
            );
            assert_ne!(value["data"], values[0]["data"]);
        }
        let keys: std::collections::HashSet<Moment> = values
            .iter()
            .map(|value| Moment::parse(value["date_updated"].as_str().unwrap()).unwrap())
            .collect();
        assert_eq!(keys.len(), 3);
    }
}
