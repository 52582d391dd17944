//! What an event tells, made fit for a sentence.

use std::borrow::Cow;

use jiff::Timestamp;

use crate::json::{Kind, Node};
use crate::plain;

/// Characters of a name, an address, a subject.
const NAME_LEN_MAX: usize = 80;

/// Characters of a text that somebody wrote.
const TEXT_LEN_MAX: usize = 200;

/// Fields of an update that are named; the rest is counted.
const FIELDS_MAX: usize = 4;

/// Fields that follow from others, or change with every update.
const NOISE: [&str; 12] = [
    "date_updated",
    "updated_by",
    "updated_by_name",
    "updated_at",
    "updated_by_id",
    "display_name",
    "status_display_name",
    "last_published_at",
    "view",
    "activity_at",
    "users",
    "note_html",
];

/// What an event is about, and what it says of it.
pub(super) struct Told<'e> {
    event: Node<'e>,
    /// The object as it is now; of one that was deleted, as it was.
    object: Node<'e>,
    before: Node<'e>,
}

impl<'e> Told<'e> {
    pub fn new(event: Node<'e>) -> Told<'e> {
        let part = |key: &str| event.get(key).unwrap_or(Node::NULL);
        let (data, before) = (part("data"), part("previous_data"));
        Told {
            event,
            object: if data.kind() == Kind::Object { data } else { before },
            before,
        }
    }

    /// A text beside the object: `action`, `object_type`.
    pub fn envelope(&self, key: &str) -> Option<String> {
        name(&self.event.get(key)?.as_string()?)
    }

    /// A name or another short text of the object; `None` where it is missing or empty.
    pub fn name(&self, key: &str) -> Option<String> {
        name(&self.object.get(key)?.as_string()?)
    }

    /// The first of these that is there.
    pub fn first(&self, keys: &[&str]) -> Option<String> {
        keys.iter().find_map(|key| self.name(key))
    }

    /// The beginning of what somebody wrote, in quotation marks, without the tags of HTML.
    pub fn text(&self, keys: &[&str]) -> Option<String> {
        keys.iter().find_map(|key| {
            let text = self.object.get(key)?.as_string()?;
            let text = if key.ends_with("html") || *key == "body" {
                Cow::Owned(without_tags(&text))
            } else {
                text
            };
            cut(&text, TEXT_LEN_MAX).map(|text| format!("“{text}”"))
        })
    }

    /// What a field was before this update; `None` where it was not changed, or was nothing.
    pub fn was(&self, key: &str) -> Option<String> {
        name(&self.before.get(key)?.as_string()?)
    }

    /// From what to what a field has changed.
    pub fn moved(&self, key: &str) -> Option<(String, String)> {
        let (was, is) = (self.was(key)?, self.name(key)?);
        (was != is).then_some((was, is))
    }

    /// A whole number of the object.
    pub fn number(&self, key: &str) -> Option<i128> {
        self.object.get(key)?.raw().parse().ok()
    }

    /// The elements of a list, as names.
    pub fn names(&self, key: &str) -> Vec<String> {
        let list = self.object.get(key).unwrap_or(Node::NULL);
        list.elements()
            .filter_map(|element| name(&element.as_string()?))
            .collect()
    }

    /// Whether a field of the object says this.
    pub fn is(&self, key: &str, text: &str) -> bool {
        self.object
            .get(key)
            .and_then(Node::as_string)
            .is_some_and(|said| said == text)
    }

    /// Something of `meta`.
    pub fn meta(&self, key: &str) -> Option<String> {
        name(&self.event.get("meta")?.get(key)?.as_string()?)
    }

    /// ` by NAME`, or nothing.
    pub fn by(&self, keys: &[&str]) -> String {
        self.first(keys).map(|name| format!(" by {name}")).unwrap_or_default()
    }

    /// An amount in cents with its currency and period: `12,000 USD`, `99.50 EUR a month`. `prefix` is what its fields begin with.
    pub fn money(&self, prefix: &str) -> Option<String> {
        self.money_of(self.object, prefix)
    }

    /// The same as it was before this update.
    pub fn money_was(&self, prefix: &str) -> Option<String> {
        self.before.get(&format!("{prefix}value"))?;
        self.money_of(self.before, prefix)
    }

    fn money_of(&self, object: Node<'_>, prefix: &str) -> Option<String> {
        let cents: i128 = object.get(&format!("{prefix}value"))?.raw().parse().ok()?;
        let of_object = |key: &str| self.name(&format!("{prefix}{key}"));
        let currency = of_object("value_currency").map_or_else(String::new, |currency| format!(" {currency}"));
        let period = match of_object("value_period").as_deref() {
            Some("monthly") => " a month",
            Some("annual") => " a year",
            _ => "",
        };
        Some(format!("{}{currency}{period}", amount(cents)))
    }

    /// A moment, to the minute and in UTC.
    pub fn moment(&self, key: &str) -> Option<String> {
        let text = self.name(key)?;
        let at: Timestamp = text.parse().ok()?;
        Some(at.strftime("%Y-%m-%d %H:%M UTC").to_string())
    }

    /// A span in seconds: `3 min 3 s`.
    pub fn span(&self, key: &str) -> Option<String> {
        let seconds = self.number(key).filter(|seconds| (1..=86_400_000).contains(seconds))?;
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let parts = [(hours, "h"), (minutes, "min"), (seconds, "s")];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, unit)| format!("{count} {unit}"))
            .collect();
        Some(parts.join(" "))
    }

    /// `: status label, 2 custom fields`: what an update has changed, as far as it says something to a person.
    pub fn changes(&self) -> String {
        let list = self.event.get("changed_fields").unwrap_or(Node::NULL);
        let (mut fields, mut custom): (Vec<String>, usize) = (Vec::new(), 0);
        for field in list.elements().filter_map(Node::as_string) {
            let follows = field.strip_suffix("_id").is_some_and(|stem| {
                let label = format!("{stem}_label");
                list.elements()
                    .any(|other| other.as_string().is_some_and(|other| other == label))
            });
            if field.starts_with("custom.") {
                custom += 1;
            } else if !follows && !NOISE.contains(&&*field) {
                fields.extend(name(&field.replace('_', " ")));
            }
        }
        let more = fields.len().saturating_sub(FIELDS_MAX);
        fields.truncate(FIELDS_MAX);
        if custom > 0 {
            fields.push(several(custom, "custom field"));
        }
        if more > 0 {
            fields.push(format!("{more} more"));
        }
        if fields.is_empty() {
            String::new()
        } else {
            format!(": {}", fields.join(", "))
        }
    }
}

/// `1 e-mail`, `1,200 leads`.
pub(super) fn several(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {what}{plural}", thousands(&count.to_string()))
}

/// What Close names a thing, as words that begin a sentence.
pub(super) fn words(name: &str) -> String {
    let words = name.replace(['_', '.'], " ");
    let mut chars = words.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => words,
    }
}

/// An event of a type that is not documented.
pub(super) fn unknown(told: &Told<'_>, object_type: &str, action: &str) -> String {
    let called = told.first(&["name", "display_name", "label", "title", "subject", "text", "email"]);
    let called = called.map(|name| format!(" {name}")).unwrap_or_default();
    format!("{}{called}: {}", words(object_type), action.replace('_', " "))
}

/// Cents as an amount: `12,000`, `-0.50`.
fn amount(cents: i128) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    let cents = cents.unsigned_abs();
    let whole = thousands(&(cents / 100).to_string());
    match cents % 100 {
        0 => format!("{sign}{whole}"),
        rest => format!("{sign}{whole}.{rest:02}"),
    }
}

fn thousands(digits: &str) -> String {
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn name(text: &str) -> Option<String> {
    cut(text, NAME_LEN_MAX)
}

/// One line of at most so many characters; `None` where nothing is left.
fn cut(text: &str, max: usize) -> Option<String> {
    // More is not looked at: a text may have megabytes.
    let mut chars = text.chars();
    let beginning: String = chars.by_ref().take(max * 4).collect();
    let is_long = chars.next().is_some();
    let words: Vec<&str> = beginning.split_whitespace().collect();
    let line = words.join(" ");
    let line = plain::line(&line);
    let mut kept: String = line.chars().take(max).collect();
    if is_long || line.chars().nth(max).is_some() {
        kept.push('…');
    }
    (!kept.is_empty()).then_some(kept)
}

/// The text of a piece of HTML, roughly: for people, not for a browser.
fn without_tags(html: &str) -> String {
    let mut text = String::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        text.push_str(&rest[..start]);
        let Some(len) = rest[start..].find('>') else {
            // No tag after all.
            text.push_str(&rest[start..]);
            rest = "";
            break;
        };
        let tag = &rest[start..start + len];
        let is_within_a_line = ["<b", "<i", "<u", "<a ", "<em", "<strong", "<span", "<mention", "</"];
        let is_block =
            !is_within_a_line.iter().any(|begins| tag.starts_with(begins)) || tag.starts_with("<br") || tag == "</p";
        if is_block {
            text.push(' ');
        }
        rest = &rest[start + len + 1..];
    }
    text.push_str(rest);
    for (entity, stands_for) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&nbsp;", " "),
        ("&amp;", "&"),
    ] {
        text = text.replace(entity, stands_for);
    }
    text
}

/// What was done to a thing that has no words of its own for it.
pub(super) fn done(told: &Told<'_>, what: &str, action: &str) -> String {
    match action {
        "created" => {
            let lower = what
                .chars()
                .next()
                .filter(|_| !what.chars().nth(1).is_some_and(char::is_uppercase));
            let what = lower.map_or_else(
                || what.to_owned(),
                |first| first.to_lowercase().chain(what.chars().skip(1)).collect(),
            );
            format!("New {what}{}", told.by(&["created_by_name", "user_name"]))
        }
        "updated" => format!("{what} was updated{}{}", told.by(&["updated_by_name"]), told.changes()),
        "deleted" => format!("{what} was deleted"),
        other => format!(
            "{what} was {}{}",
            other.replace('_', " "),
            told.by(&["updated_by_name"])
        ),
    }
}
