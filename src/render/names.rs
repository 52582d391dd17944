//! What custom fields are called, as the template filter `named` knows it.
//!
//! Names come from Close's schema, which another part fetches: it puts them into a [`NameBook`], and templates see them from the next
//! batch on. A template that wants names which are not there yet gets no ids in their place: whoever has events rendered is told to wait,
//! and the book that somebody asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, watch};

/// So many ids that no schema knows are remembered, and waited for, at the most.
const IDS_MAX: usize = 10_000;

/// What custom fields are called now. The default has no names, and ids stay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// The names by the fields' ids (`cf_...`), in each schema by what Close calls it: `lead`, `activity/actitype_...`. No two fields of
    /// a schema have the same.
    pub(super) schemas: BTreeMap<String, BTreeMap<String, String>>,
    /// Why objects of other schemas than these may have fields with names, half a sentence; `None`: they have none.
    pub lacking: Option<String>,
    /// Ids that no schema had when it was last fetched for them: these stay.
    pub strangers: BTreeSet<String>,
    /// Whether the schema is fetched for an id that is neither known nor a stranger. Else it stays.
    pub is_followed: bool,
}

impl Names {
    /// From the fields of each schema, ids and names, in its order: of equal names the first keeps it.
    pub fn new<F>(schemas: impl IntoIterator<Item = (String, F)>) -> Names
    where
        F: IntoIterator<Item = (String, String)>,
    {
        let schemas = schemas.into_iter().map(|(of, fields)| (of, told_apart(fields)));
        Names {
            schemas: schemas.collect(),
            ..Names::default()
        }
    }

    /// None are known, and this is why: whoever wants one waits.
    pub fn unknown(why: impl Into<String>) -> Names {
        Names {
            lacking: Some(why.into()),
            ..Names::default()
        }
    }

    /// As they came over from another process, told apart already.
    pub(super) fn taken_over(schemas: BTreeMap<String, BTreeMap<String, String>>) -> Names {
        Names {
            schemas,
            ..Names::default()
        }
    }

    pub(super) fn schemas(&self) -> &BTreeMap<String, BTreeMap<String, String>> {
        &self.schemas
    }

    /// Whether a schema is known.
    pub fn has(&self, schema: &str) -> bool {
        self.schemas.contains_key(schema)
    }

    /// What a field is called, by its own schema where that has it, else by another one: some are shared.
    pub(super) fn of(&self, schema: Option<&str>, id: &str) -> Option<&str> {
        let own = schema.and_then(|schema| self.schemas.get(schema)?.get(id));
        let found = own.or_else(|| self.schemas.values().find_map(|fields| fields.get(id)));
        found.map(String::as_str)
    }

    /// The schema to go by for an object that does not say which: the first that has all of its fields.
    pub(super) fn that_has(&self, ids: &[&str]) -> Option<&str> {
        let has_all = |fields: &BTreeMap<String, String>| ids.iter().all(|id| fields.contains_key(*id));
        let (of, _) = self.schemas.iter().find(|(_, fields)| has_all(fields))?;
        Some(of)
    }

    /// Whether it is settled that an id which no schema knows stays. `schema`: the object's own.
    pub(super) fn lets_stay(&self, schema: Option<&str>, id: &str) -> bool {
        let is_lacking = self.lacking.is_some() && !schema.is_some_and(|schema| self.has(schema));
        !is_lacking && (!self.is_followed || self.strangers.contains(id))
    }
}

/// The names of a schema's fields, each given once: whoever comes later by the same name has its id behind it.
fn told_apart(fields: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let mut taken = BTreeSet::new();
    let mut names = BTreeMap::new();
    for (id, name) in fields {
        let name = untaken(name, &id, |name| taken.contains(name));
        taken.insert(name.clone());
        names.entry(id).or_insert(name);
    }
    names
}

/// The name, or where that is taken, with the id behind it.
pub(super) fn untaken(mut name: String, id: &str, is_taken: impl Fn(&str) -> bool) -> String {
    while is_taken(&name) {
        name = format!("{name} ({id})");
    }
    name
}

/// The names of now, for all who render; and who asked for those that are not there.
#[derive(Debug)]
pub struct NameBook {
    now: watch::Sender<Arc<Names>>,
    /// Ids that are waited for. Somebody may have asked for any name at all, and then there is none here.
    asked: Mutex<BTreeSet<String>>,
    was_asked: Notify,
}

impl Default for NameBook {
    fn default() -> NameBook {
        NameBook::with(Names::default())
    }
}

impl NameBook {
    /// One with these names.
    pub fn with(names: Names) -> NameBook {
        NameBook {
            now: watch::Sender::new(Arc::new(names)),
            asked: Mutex::default(),
            was_asked: Notify::new(),
        }
    }

    /// The names of now.
    pub fn now(&self) -> Arc<Names> {
        self.now.borrow().clone()
    }

    /// These are the names from now on.
    pub fn set(&self, names: Names) {
        self.now.send_if_modified(|now| {
            let is_new = **now != names;
            if is_new {
                *now = Arc::new(names);
            }
            is_new
        });
    }

    /// Tells when there are others.
    pub fn changes(&self) -> watch::Receiver<Arc<Names>> {
        self.now.subscribe()
    }

    /// A template wants names that are not there: of fields with these ids, or of all where there are none.
    pub(super) fn ask(&self, ids: impl IntoIterator<Item = String>) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            if asked.len() < IDS_MAX {
                asked.insert(id);
            }
        }
        drop(asked);
        self.was_asked.notify_one();
    }

    /// Waits until somebody asks.
    pub async fn asked(&self) {
        self.was_asked.notified().await;
    }

    /// The ids that were asked for since this was last called.
    pub fn take_asked(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Names {
    /// What the sinks are told that wait for names.
    pub(super) fn waiting(&self) -> String {
        self.lacking.clone().unwrap_or_else(|| {
            "an event has a custom field that Close's schema did not have when it was fetched: it is fetched again"
                .to_owned()
        })
    }

    /// Remembers that no schema has these ids.
    pub fn estrange(&mut self, ids: BTreeSet<String>) {
        let is_unknown = |id: &String| self.of(None, id).is_none();
        let mut ids: BTreeSet<String> = ids.into_iter().filter(is_unknown).collect();
        if self.strangers.len() + ids.len() > IDS_MAX {
            // Those that still come are asked for again.
            self.strangers.clear();
        }
        self.strangers.append(&mut ids);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(schemas: &[(&str, &[(&str, &str)])]) -> Names {
        let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            let pair = |(id, name): &(&str, &str)| ((*id).to_owned(), (*name).to_owned());
            pairs.iter().map(pair).collect()
        };
        Names::new(schemas.iter().map(|(of, fields)| ((*of).to_owned(), owned(fields))))
    }

    #[test]
    fn of_equal_names_the_first_of_the_schema_keeps_it_and_no_two_are_the_same() {
        let names = names(&[(
            "lead",
            &[
                ("cf_z", "Industry"),
                ("cf_a", "Industry"),
                ("cf_b", "Industry (cf_c)"),
                ("cf_c", "Industry"),
            ],
        )]);
        let of = |id| names.of(Some("lead"), id).unwrap();
        assert_eq!(of("cf_z"), "Industry", "the schema's order counts, not that of the ids");
        assert_eq!(of("cf_a"), "Industry (cf_a)");
        assert_eq!(of("cf_b"), "Industry (cf_c)");
        assert_eq!(of("cf_c"), "Industry (cf_c) (cf_c)");
    }

    #[test]
    fn a_field_goes_by_its_own_schema_and_equal_names_of_another_are_no_clash() {
        let names = names(&[
            ("contact", &[("cf_1", "Industry"), ("cf_s", "Tags")]),
            ("lead", &[("cf_0", "Tags"), ("cf_2", "Industry"), ("cf_s", "Tags")]),
        ]);
        assert_eq!(names.of(Some("lead"), "cf_2"), Some("Industry"));
        assert_eq!(names.of(Some("contact"), "cf_1"), Some("Industry"));
        assert_eq!(names.of(Some("lead"), "cf_s"), Some("Tags (cf_s)"));
        assert_eq!(names.of(Some("contact"), "cf_s"), Some("Tags"));
        assert_eq!(names.of(Some("lead"), "cf_1"), Some("Industry"));
        assert_eq!(names.that_has(&["cf_0", "cf_s"]), Some("lead"));
        assert_eq!(names.that_has(&["cf_0", "cf_1"]), None);
    }

    #[test]
    fn an_id_stays_where_it_is_settled_that_it_has_no_name() {
        let mut names = names(&[("lead", &[("cf_1", "Industry")])]);
        assert!(names.lets_stay(Some("lead"), "cf_9"), "nobody fetches anything");
        names.lacking = Some("not all is known".into());
        assert!(names.lets_stay(Some("lead"), "cf_9"), "the lead's schema is known");
        assert!(!names.lets_stay(Some("contact"), "cf_9") && !names.lets_stay(None, "cf_9"));
        (names.lacking, names.is_followed) = (None, true);
        assert!(!names.lets_stay(Some("lead"), "cf_9"));
        names.estrange(["cf_9".to_owned(), "cf_1".to_owned()].into());
        assert!(names.lets_stay(Some("lead"), "cf_9"));
        assert_eq!(names.strangers.len(), 1, "what is known is no stranger");
        names.estrange((0..IDS_MAX).map(|id| format!("cf_x{id}")).collect());
        assert!(names.strangers.len() <= IDS_MAX);
    }
}
