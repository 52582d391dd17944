//! `/custom_field_schema/`, `/custom_field/`, `/custom_activity/` and `/custom_object_type/`.

use serde_json::{Value, json};

use super::{Reply, Request, parameters};
use crate::subscription::Invalid;
use crate::world::World;

/// Entries of a list where `_limit` is not given (documented).
const LISTED: usize = 100;

impl World {
    /// `parts`: of the path, below the API's own.
    pub(super) fn custom_fields_answer(&self, request: &Request<'_>, parts: &[&str]) -> Reply {
        let organization = self.organization();
        let listed = |all: Vec<Value>| match page(request, all) {
            Ok(page) => Reply::json(200, page.to_string()),
            Err(refused) => refused.into(),
        };
        let one = |all: Vec<Value>, id: &str| {
            let found = all.into_iter().find(|one| one["id"] == id);
            found.map_or_else(not_found, |one| Reply::json(200, one.to_string()))
        };
        match parts {
            ["custom_field_schema", of @ ..] => {
                let schema = self.custom_fields.schema(&of.join("/"), &organization);
                schema.map_or_else(not_found, |schema| Reply::json(200, schema.to_string()))
            }
            ["custom_activity"] => listed(self.custom_fields.types("activity", &organization)),
            ["custom_activity", id] => one(self.custom_fields.types("activity", &organization), id),
            ["custom_object_type"] => listed(self.custom_fields.types("custom_object", &organization)),
            ["custom_object_type", id] => one(self.custom_fields.types("custom_object", &organization), id),
            ["custom_field", sort] => self
                .custom_fields
                .list(sort, &organization)
                .map_or_else(not_found, listed),
            ["custom_field", sort, id] => {
                let all = self.custom_fields.list(sort, &organization);
                all.map_or_else(not_found, |all| one(all, id))
            }
            _ => not_found(),
        }
    }
}

fn not_found() -> Reply {
    Reply::error(404, "Not found.")
}

/// What `_skip` and `_limit` leave of a list.
fn page(request: &Request<'_>, all: Vec<Value>) -> Result<Value, Invalid> {
    let parameters = parameters(request.query)?;
    let number = |name: &str, default: usize| match parameters.get(name) {
        None => Ok(default),
        Some(text) => text
            .parse::<usize>()
            .map_err(|_| Invalid::field(name, "This must be a whole number.")),
    };
    let (skip, limit) = (number("_skip", 0)?, number("_limit", LISTED)?.min(LISTED));
    let has_more = all.len() > skip.saturating_add(limit);
    let data: Vec<Value> = all.into_iter().skip(skip).take(limit).collect();
    Ok(json!({ "has_more": has_more, "data": data }))
}
