//! The schema of custom fields as a whole: fetched, and kept on disk.

use std::collections::BTreeSet;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::close::api::client::Client;
use crate::close::api::error::Error;
use crate::close::api::fields::{Custom, CustomField, SchemaAnswer};
use crate::close::files::{VERSION, read_json, write_json};
use crate::close::organization;
use crate::close::store::CloseStore;
use crate::render::Names;

/// Where it is kept, below `close/`.
const FILE: &str = "custom_fields.json";

/// Kinds of objects that every organization has.
const PLAIN: [&str; 3] = ["lead", "contact", "opportunity"];

/// The fields of one kind of object, in Close's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    /// What Close calls it: `lead`, `activity/actitype_...`
    of: String,
    fields: Vec<CustomField>,
}

/// Close's schema of custom fields, and when it was so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Schema {
    version: u32,
    /// Whose it is; `None` where that is not known.
    organization: Option<String>,
    /// When it was fetched.
    pub fetched_at: Timestamp,
    parts: Vec<Part>,
    /// Why some of it is not there, half a sentence; `None`: it is whole.
    pub lacking: Option<String>,
}

impl Schema {
    /// Asks Close. What these credentials may not see of it is left out, and said; an error is about all of it.
    pub async fn fetch(client: &Client, store: &CloseStore, now: Timestamp) -> Result<Schema, Error> {
        let mut schema = Schema {
            version: VERSION,
            organization: None,
            fetched_at: now,
            parts: Vec::new(),
            lacking: None,
        };
        let mut refused = None;
        for of in PLAIN {
            let answer = client.field_schema(of).await;
            schema.take(of.to_owned(), answer, store, &mut refused)?;
        }
        for kind in [Custom::Activity, Custom::Object] {
            let ids = match client.custom_types(kind).await {
                Ok(ids) => ids,
                Err(error) if error.is_particular() => {
                    refused.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for id in ids {
                match client.field_schema(&kind.schema(&id)).await {
                    // It was deleted meanwhile.
                    Err(Error::NotFound(_)) => {}
                    answer => schema.take(kind.schema(&id), answer, store, &mut refused)?,
                }
            }
        }
        match refused {
            Some(error) if schema.parts.is_empty() => Err(error),
            refused => {
                schema.lacking = refused.map(|error| error.to_string());
                Ok(schema)
            }
        }
    }

    fn take(
        &mut self,
        of: String,
        answer: Result<SchemaAnswer, Error>,
        store: &CloseStore,
        refused: &mut Option<Error>,
    ) -> Result<(), Error> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.is_particular() => {
                refused.get_or_insert(error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        organization::vouch(store, answer.organization_id.as_deref())?;
        self.organization = self.organization.take().or(answer.organization_id);
        self.parts.push(Part {
            of,
            fields: answer.fields,
        });
        Ok(())
    }

    /// What is not there now stays as it was before.
    pub fn keep_of(&mut self, before: &Schema) {
        if self.lacking.is_none() {
            return;
        }
        let is_here = |of: &str| self.parts.iter().any(|part| part.of == of);
        let kept: Vec<Part> = before.parts.iter().filter(|part| !is_here(&part.of)).cloned().collect();
        self.parts.extend(kept);
    }

    /// How many fields it has, shared ones once.
    pub fn len(&self) -> usize {
        let fields = self.parts.iter().flat_map(|part| &part.fields);
        fields.map(|field| &field.id).collect::<BTreeSet<_>>().len()
    }

    /// What the fields are called.
    pub fn names(&self) -> Names {
        let pairs = |part: &Part| -> Vec<(String, String)> {
            let fields = part.fields.iter();
            fields.map(|field| (field.id.clone(), field.name.clone())).collect()
        };
        Names::new(self.parts.iter().map(|part| (part.of.clone(), pairs(part))))
    }
}

/// What is on disk.
#[derive(Debug)]
pub(super) enum Kept {
    /// Nothing.
    Nothing,
    /// This.
    Schema(Schema),
    /// Something that can't be read, and is fetched anew.
    Damaged(Error),
    /// Something of a newer closehook: it is not used, and never written over.
    Newer(Error),
}

impl Kept {
    /// Reads what there is below a data directory. What is another organization's is nothing.
    pub fn read(data_dir: &Path, organization: Option<&str>) -> Kept {
        let path = data_dir.join("close").join(FILE);
        match read_json::<Schema>(&path) {
            Ok(None) => Kept::Nothing,
            Ok(Some(schema)) => match (&schema.organization, organization) {
                (Some(theirs), Some(ours)) if theirs != ours => Kept::Nothing,
                _ => Kept::Schema(schema),
            },
            Err(error @ Error::Newer(_)) => Kept::Newer(error),
            Err(error) => Kept::Damaged(error),
        }
    }
}

/// Keeps it below a data directory. Blocking.
pub(super) fn write(data_dir: &Path, schema: &Schema) -> Result<(), Error> {
    write_json(&data_dir.join("close").join(FILE), schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(parts: &[(&str, &str)], lacking: Option<&str>) -> Schema {
        let part = |(of, id): &(&str, &str)| Part {
            of: (*of).to_owned(),
            fields: vec![CustomField {
                id: (*id).to_owned(),
                name: format!("Name of {id}"),
            }],
        };
        Schema {
            version: VERSION,
            organization: Some("orga_1".into()),
            fetched_at: Timestamp::UNIX_EPOCH,
            parts: parts.iter().map(part).collect(),
            lacking: lacking.map(str::to_owned),
        }
    }

    #[test]
    fn it_comes_back_from_disk_and_nothing_else_is_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("close").join(FILE);
        assert!(matches!(Kept::read(dir.path(), None), Kept::Nothing));
        let written = schema(&[("lead", "cf_1"), ("activity/actitype_1", "cf_2")], Some("403"));
        write(dir.path(), &written).unwrap();
        for organization in [None, Some("orga_1")] {
            match Kept::read(dir.path(), organization) {
                Kept::Schema(read) => assert_eq!(read, written),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(Kept::read(dir.path(), Some("orga_2")), Kept::Nothing));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(matches!(Kept::read(dir.path(), None), Kept::Damaged(_)));
        std::fs::write(&path, r#"{"version":2,"fields":"in another way"}"#).unwrap();
        match Kept::read(dir.path(), None) {
            Kept::Newer(error) => assert!(error.to_string().contains("format 2"), "{error}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_may_not_be_seen_any_more_stays_as_it_was() {
        let before = schema(&[("lead", "cf_1"), ("custom_object/cotype_1", "cf_2")], None);
        let mut now = schema(&[("lead", "cf_3")], Some("403"));
        now.keep_of(&before);
        assert!(now.names().has("custom_object/cotype_1"));
        assert_eq!(now.len(), 2);
        let mut whole = schema(&[("lead", "cf_3")], None);
        whole.keep_of(&before);
        assert!(!whole.names().has("custom_object/cotype_1"), "it is gone at Close");
    }
}
