//! Which events are meant, as a form and a URL say it.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use crate::admin::fields;
use crate::config;
use crate::control::Pick;
use crate::event::{EventPattern, types};
use crate::net::percent;

/// The fields of a form that chooses events; what is empty restricts nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Query {
    /// Patterns, with commas or spaces between them.
    #[serde(alias = "type")]
    pub types: String,
    /// A lead's id.
    pub lead: String,
    /// Event ids, with commas or spaces between them.
    pub id: String,
    /// A filter as JSON.
    pub filter: String,
    /// A time, or how long ago.
    pub since: String,
    /// The same.
    pub until: String,
    /// `only`, `without`, or empty; as the API says it, `true` or `false`.
    #[serde(deserialize_with = "as_here")]
    pub quarantined: String,
    /// The same, of events whose data Close withholds.
    #[serde(deserialize_with = "as_here")]
    pub partial: String,
}

/// A choice as it is called here.
fn as_here<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    Ok(match text.as_str() {
        "true" => ONLY.to_owned(),
        "false" => WITHOUT.to_owned(),
        _ => text,
    })
}

const ONLY: &str = "only";
const WITHOUT: &str = "without";

fn list(text: &str) -> Vec<String> {
    let parts = text.split([',', ' ', '\n', '\t', '\r']);
    parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn optional(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Only those, all but those, or either. An error says what else it is.
fn choice(name: &'static str, text: &str) -> Result<Option<bool>, String> {
    fields::choice(name, text, &[ONLY, WITHOUT]).map_err(|refused| refused.message)?;
    Ok((!text.is_empty()).then_some(text == ONLY))
}

/// A time as people write it. An error says what is wrong.
pub fn time(text: &str, now: Timestamp) -> Result<Option<Timestamp>, String> {
    optional(text).map(|text| config::time::parse(&text, now)).transpose()
}

impl Query {
    /// As the daemon is asked. An error says which field is wrong, and how.
    pub fn pick(&self) -> Result<Pick, String> {
        let now = Timestamp::now();
        let at = |name: &str, text: &str| time(text, now).map_err(|error| format!("{name}: {error}"));
        let pick = Pick {
            ids: list(&self.id),
            types: list(&self.types),
            lead: optional(&self.lead),
            filter: optional(&self.filter),
            since: at("since", &self.since)?,
            until: at("until", &self.until)?,
            quarantined: choice("quarantined", &self.quarantined)?,
            partial: choice("partial", &self.partial)?,
        };
        pick.compile()?;
        Ok(pick)
    }

    /// The same with its times as moments: `1h` means another one each time it is read. An error says which field is wrong, and how.
    pub fn frozen(&self) -> Result<Query, String> {
        let pick = self.pick()?;
        let text = |at: Option<Timestamp>| at.map(|at| at.to_string()).unwrap_or_default();
        Ok(Query {
            since: text(pick.since),
            until: text(pick.until),
            ..self.clone()
        })
    }

    /// Types that Close documents nowhere, each with what is perhaps meant: they may be new, and are searched for all the same.
    pub fn doubts(&self) -> Vec<String> {
        let patterns = list(&self.types).into_iter();
        patterns
            .filter_map(|text| types::doubt(&EventPattern::parse(&text).ok()?))
            .collect()
    }

    /// Whether it restricts nothing.
    pub fn is_empty(&self) -> bool {
        *self == Query::default()
    }

    /// As the end of a URL, without `?`; empty where it restricts nothing.
    pub fn url(&self) -> String {
        let fields = self.fields().into_iter().filter(|(_, value)| !value.is_empty());
        let fields: Vec<String> = fields
            .map(|(name, value)| format!("{name}={}", percent::encoded(value)))
            .collect();
        fields.join("&")
    }

    /// Each field by name, for forms that hand it on.
    pub fn fields(&self) -> [(&'static str, &str); 8] {
        [
            ("types", &self.types),
            ("lead", &self.lead),
            ("id", &self.id),
            ("filter", &self.filter),
            ("since", &self.since),
            ("until", &self.until),
            ("quarantined", &self.quarantined),
            ("partial", &self.partial),
        ]
    }

    /// What it restricts, for people.
    pub fn words(&self) -> String {
        let said: Vec<String> = self
            .fields()
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        if said.is_empty() {
            "every event".to_owned()
        } else {
            said.join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_chooses_events_and_its_url_says_the_same() {
        let query = Query {
            types: "lead.*, contact.created".into(),
            lead: " lead_1 ".into(),
            filter: r#"{"type":"non_null"}"#.into(),
            since: "2024-02-15T12:00:00Z".into(),
            ..Query::default()
        };
        let pick = query.pick().unwrap();
        assert_eq!(pick.types, ["lead.*", "contact.created"]);
        assert_eq!(pick.lead.as_deref(), Some("lead_1"));
        assert!(pick.since.is_some() && pick.until.is_none() && pick.ids.is_empty());
        let url = query.url();
        assert!(
            url.starts_with("types=lead.%2A") || url.starts_with("types=lead.*"),
            "{url}"
        );
        assert!(
            !url.contains(' ') && !url.contains('"') && !url.contains("until="),
            "{url}"
        );
        assert!(Query::default().is_empty() && Query::default().url().is_empty());
    }

    #[test]
    fn a_time_that_is_so_long_ago_is_a_moment_once_it_is_frozen() {
        let query = Query {
            since: "1h".into(),
            lead: "lead_1".into(),
            ..Query::default()
        };
        let frozen = query.frozen().unwrap();
        assert_eq!(frozen.frozen().unwrap(), frozen);
        assert_eq!((frozen.lead.as_str(), frozen.until.as_str()), ("lead_1", ""));
        let since = frozen.pick().unwrap().since.unwrap();
        assert!((3599..3700).contains(&Timestamp::now().duration_since(since).as_secs()));
    }

    #[test]
    fn a_type_that_is_perhaps_misspelt_is_doubted_and_searched_for() {
        let query = Query {
            types: "leed.updated, lead.updated robot.*".into(),
            ..Query::default()
        };
        assert_eq!(query.pick().unwrap().types.len(), 3);
        let doubts = query.doubts();
        assert_eq!(doubts.len(), 2, "{doubts:?}");
        assert!(doubts[0].contains("did you mean \"lead.updated\"?"), "{doubts:?}");
    }

    #[test]
    fn what_the_api_says_means_the_same() {
        let said = serde_json::json!({ "type": "lead.*", "quarantined": "true", "partial": "false" });
        let query: Query = serde_json::from_value(said).unwrap();
        let pick = query.pick().unwrap();
        assert_eq!(pick.types, ["lead.*"]);
        assert_eq!((pick.quarantined, pick.partial), (Some(true), Some(false)));
        assert!(query.url().ends_with("quarantined=only&partial=without"));
    }

    #[test]
    fn what_can_not_be_meant_is_named() {
        let wrong = |query: Query| query.pick().unwrap_err();
        assert!(
            wrong(Query {
                since: "soon".into(),
                ..Query::default()
            })
            .starts_with("since: ")
        );
        let maybe = Query {
            quarantined: "maybe".into(),
            ..Query::default()
        };
        assert_eq!(wrong(maybe), "quarantined is \"maybe\", and has to be only or without");
        assert!(
            !wrong(Query {
                filter: "{".into(),
                ..Query::default()
            })
            .is_empty()
        );
    }
}
