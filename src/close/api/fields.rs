//! Custom fields, as Close's schema has them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::answer::text;
use super::client::{Call, Client};
use super::error::Error;
use crate::json::Node;

/// No organization has more types of custom activities, or fields of one schema.
const LISTED_MAX: usize = 10_000;

/// A custom field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::close) struct CustomField {
    /// `cf_...`, of old ones `lcf_...`
    pub id: String,
    /// As people call it.
    pub name: String,
}

/// The fields of one kind of object, in the order in which Close shows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::close) struct SchemaAnswer {
    pub fields: Vec<CustomField>,
    pub organization_id: Option<String>,
}

impl SchemaAnswer {
    fn read(answer: &Bytes) -> Result<SchemaAnswer, Error> {
        let node = Node::new(text(answer)?);
        let listed = node.get("fields").ok_or_else(|| lacks("fields"))?;
        let field = |field: Node<'_>| {
            let text = |key| {
                field
                    .get(key)
                    .and_then(Node::as_string)
                    .map(std::borrow::Cow::into_owned)
            };
            // One without a name keeps its id.
            let name = text("name").filter(|name| !name.is_empty())?;
            Some(CustomField { id: text("id")?, name })
        };
        Ok(SchemaAnswer {
            fields: listed.elements().take(LISTED_MAX).filter_map(field).collect(),
            organization_id: node.get("organization_id").and_then(Node::as_string).map(Into::into),
        })
    }
}

fn lacks(what: &str) -> Error {
    Error::Garbled(format!("it has no {what}"))
}

/// Kinds of objects that an organization makes itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::close) enum Custom {
    Activity,
    Object,
}

impl Custom {
    fn list(self) -> &'static str {
        match self {
            Custom::Activity => "custom_activity/",
            Custom::Object => "custom_object_type/",
        }
    }

    /// What Close calls the schema of one of its types.
    pub fn schema(self, id: &str) -> String {
        match self {
            Custom::Activity => format!("activity/{id}"),
            Custom::Object => format!("custom_object/{id}"),
        }
    }
}

impl Client {
    /// The custom fields of one kind of object, shared ones included. `of`: `lead`, `contact`, `opportunity`, `activity/ID` or
    /// `custom_object/ID`.
    pub async fn field_schema(&self, of: &str) -> Result<SchemaAnswer, Error> {
        SchemaAnswer::read(&self.send(&Call::get(format!("custom_field_schema/{of}/"))).await?)
    }

    /// The types of custom activities or objects, archived ones included, by their ids. None where Close's plan has none.
    pub async fn custom_types(&self, kind: Custom) -> Result<Vec<String>, Error> {
        let mut ids: Vec<String> = Vec::new();
        loop {
            let mut call = Call::get(kind.list());
            if !ids.is_empty() {
                call = call.query("_skip", ids.len().to_string());
            }
            let answer = match self.send(&call).await {
                Ok(answer) => answer,
                Err(Error::PlanLimit(_) | Error::NotFound(_) | Error::NotClose { status: 404, .. }) => return Ok(ids),
                Err(error) => return Err(error),
            };
            let node = Node::new(text(&answer)?);
            let listed = node.get("data").ok_or_else(|| lacks("data"))?;
            let before = ids.len();
            let id = |one: Node<'_>| {
                one.get("id")
                    .and_then(Node::as_string)
                    .map(std::borrow::Cow::into_owned)
            };
            // An id that would lead elsewhere is none of Close's.
            let plain = |id: &String| {
                let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
                !id.is_empty() && id.bytes().all(is_plain)
            };
            ids.extend(listed.elements().filter_map(id).filter(plain));
            let is_more = node.get("has_more").is_some_and(|more| more.raw() == "true");
            if !is_more || ids.len() == before || ids.len() >= LISTED_MAX {
                return Ok(ids);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_is_read_in_its_order_and_what_has_no_name_is_left_out() {
        let read = |text: &str| SchemaAnswer::read(&Bytes::copy_from_slice(text.as_bytes()));
        let schema = read(
            r##"{"object_type":"lead","organization_id":"orga_1","fields":[{"id":"cf_2","name":"# of \u00e4","type":"number"},
               {"id":"cf_1","name":""},{"name":"x"},{"id":"cf_0","name":null},{"id":"lcf_3","name":"A","is_shared":true}]}"##,
        )
        .unwrap();
        let found: Vec<(&str, &str)> = schema.fields.iter().map(|field| (&*field.id, &*field.name)).collect();
        assert_eq!(found, [("cf_2", "# of \u{e4}"), ("lcf_3", "A")]);
        assert_eq!(schema.organization_id.as_deref(), Some("orga_1"));
        assert!(matches!(read("{}"), Err(Error::Garbled(_))), "an error is no absence");
        assert!(read(r#"{"fields":[]}"#).unwrap().fields.is_empty());
    }
}
