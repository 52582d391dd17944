//! Custom fields, and the types of custom activities and objects that have some: what Close's schema says of them.

use serde_json::{Value, json};

use super::ids::Ids;
use super::moment::Moment;

/// Kinds of objects that every organization has.
const PLAIN: [&str; 3] = ["lead", "contact", "opportunity"];

/// Types of fields (documented).
const TYPES: [&str; 10] = [
    "text",
    "textarea",
    "number",
    "date",
    "datetime",
    "choices",
    "user",
    "contact",
    "custom_object",
    "hidden",
];

/// A type of custom activities or objects.
#[derive(Debug, Clone)]
struct CustomType {
    id: String,
    name: String,
    made: Moment,
}

/// A custom field. Shared ones have several associations.
#[derive(Debug, Clone)]
struct Field {
    id: String,
    name: String,
    kind: String,
    is_shared: bool,
    /// What Close calls their schemas: `lead`, `activity/actitype_...`
    of: Vec<String>,
    made: Moment,
    changed: Moment,
}

/// The schema of custom fields.
#[derive(Debug, Default)]
pub struct CustomFields {
    types: Vec<CustomType>,
    fields: Vec<Field>,
    made: u64,
}

/// What a change of the schema is told by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// `custom_fields.lead`, ...
    pub object_type: String,
    /// Of the field or type.
    pub object_id: String,
    /// As the event has it.
    pub data: Value,
}

impl CustomFields {
    fn next(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// Makes a type of custom activities (`activity`) or objects (`custom_object`).
    pub fn add_type(&mut self, kind: &str, name: &str, ids: Ids, now: Moment) -> Result<Told, String> {
        let (prefix, object_type) = match kind {
            "activity" => ("actitype_", "custom_activity_type"),
            "custom_object" => ("cotype_", "custom_object_type"),
            _ => return Err(format!("there are no types of {kind}: activity, custom_object")),
        };
        let id = ids.id(prefix, self.next());
        let made = CustomType {
            id: id.clone(),
            name: name.to_owned(),
            made: now,
        };
        let data = self.show_type(&made, &ids.id("orga_", 0));
        self.types.push(made);
        Ok(Told {
            object_type: object_type.to_owned(),
            object_id: id,
            data,
        })
    }

    /// Makes a field; of several schemas a shared one.
    pub fn add(&mut self, of: &[String], name: &str, kind: &str, ids: Ids, now: Moment) -> Result<Told, String> {
        if !TYPES.contains(&kind) {
            return Err(format!("there are no fields of type {kind}"));
        }
        if let Some(unknown) = of.iter().find(|of| !self.knows(of)) {
            return Err(format!("there is no schema {unknown}"));
        }
        let field = Field {
            id: ids.id("cf_", self.next()),
            name: name.to_owned(),
            kind: kind.to_owned(),
            is_shared: of.len() != 1,
            of: of.to_vec(),
            made: now,
            changed: now,
        };
        let told = CustomFields::tell(&field, ids);
        self.fields.push(field);
        Ok(told)
    }

    /// Calls a field otherwise.
    pub fn rename(&mut self, id: &str, name: &str, ids: Ids, now: Moment) -> Result<Told, String> {
        let field = self.fields.iter_mut().find(|field| field.id == id);
        let field = field.ok_or_else(|| format!("there is no field {id}"))?;
        (field.name, field.changed) = (name.to_owned(), now);
        let field = field.clone();
        Ok(CustomFields::tell(&field, ids))
    }

    /// Deletes a field.
    pub fn remove(&mut self, id: &str, ids: Ids) -> Result<Told, String> {
        let at = self.fields.iter().position(|field| field.id == id);
        let field = self.fields.remove(at.ok_or_else(|| format!("there is no field {id}"))?);
        Ok(CustomFields::tell(&field, ids))
    }

    fn tell(field: &Field, ids: Ids) -> Told {
        let sort = match field.of.first().map(String::as_str) {
            _ if field.is_shared => "shared",
            Some(of) if of.starts_with("activity/") => "activity",
            Some(of) if of.starts_with("custom_object/") => "custom_object",
            Some(of) => of,
            None => "shared",
        };
        Told {
            object_type: format!("custom_fields.{sort}"),
            object_id: field.id.clone(),
            data: show(field, &ids.id("orga_", 0), true),
        }
    }

    fn knows(&self, of: &str) -> bool {
        PLAIN.contains(&of) || self.types.iter().any(|one| one.schema() == of)
    }

    fn fields_of<'f>(&'f self, of: &'f str) -> impl Iterator<Item = &'f Field> {
        self.fields
            .iter()
            .filter(move |field| field.of.iter().any(|one| one == of))
    }

    /// `/custom_field_schema/OF/`; `None`: there is none.
    pub fn schema(&self, of: &str, organization: &str) -> Option<Value> {
        if !self.knows(of) {
            return None;
        }
        let of_type = self.types.iter().find(|one| one.schema() == of);
        let name = of_type.map_or_else(
            || {
                let mut name = of.to_owned();
                name[..1].make_ascii_uppercase();
                name
            },
            |one| one.name.clone(),
        );
        let fields: Vec<Value> = self
            .fields_of(of)
            .map(|field| show(field, organization, false))
            .collect();
        Some(json!({ "object_type": of, "name": name, "organization_id": organization, "fields": fields }))
    }

    fn show_type(&self, one: &CustomType, organization: &str) -> Value {
        let fields = self.fields_of_type(one);
        let fields: Vec<Value> = fields.map(|field| json!({ "id": field.id, "name": field.name, "type": field.kind,
            "is_shared": field.is_shared, "accepts_multiple_values": false, "editable_with_roles": [], "required": false }))
            .collect();
        json!({
            "id": one.id, "name": one.name, "description": null, "api_create_only": false, "editable_with_roles": [],
            "is_archived": false, "fields": fields, "organization_id": organization, "created_by": null, "updated_by": null,
            "date_created": one.made.plain(), "date_updated": one.made.plain(),
        })
    }

    fn fields_of_type<'f>(&'f self, one: &'f CustomType) -> impl Iterator<Item = &'f Field> {
        let of = one.schema();
        self.fields.iter().filter(move |field| field.of.contains(&of))
    }

    /// `/custom_activity/` and `/custom_object_type/`.
    pub fn types(&self, kind: &str, organization: &str) -> Vec<Value> {
        let of_kind = self.types.iter().filter(|one| one.schema().starts_with(kind));
        of_kind.map(|one| self.show_type(one, organization)).collect()
    }

    /// `/custom_field/SORT/`: `lead`, ..., `activity`, `custom_object_type`, `shared`. `None`: there is no such sort.
    pub fn list(&self, sort: &str, organization: &str) -> Option<Vec<Value>> {
        let is_of = |field: &Field| match sort {
            "shared" => field.is_shared,
            "activity" => !field.is_shared && field.of[0].starts_with("activity/"),
            "custom_object_type" => !field.is_shared && field.of[0].starts_with("custom_object/"),
            sort => !field.is_shared && field.of[0] == sort,
        };
        let is_sort = PLAIN.contains(&sort) || ["shared", "activity", "custom_object_type"].contains(&sort);
        let shown = self
            .fields
            .iter()
            .filter(|field| is_of(field))
            .map(|field| show(field, organization, true));
        is_sort.then(|| shown.collect())
    }
}

impl CustomType {
    fn schema(&self) -> String {
        let kind = if self.id.starts_with("actitype_") {
            "activity"
        } else {
            "custom_object"
        };
        format!("{kind}/{}", self.id)
    }
}

/// `alone`: not in a schema, so that it says itself what it is of.
fn show(field: &Field, organization: &str, alone: bool) -> Value {
    let mut shown = json!({
        "id": field.id, "name": field.name, "description": null, "type": field.kind,
        "choices": if field.kind == "choices" { json!(["One", "Two"]) } else { Value::Null },
        "accepts_multiple_values": false, "editable_with_roles": [], "is_shared": field.is_shared,
        "referenced_custom_type_id": null, "back_reference_is_visible": null, "organization_id": organization,
        "created_by": null, "updated_by": null,
        "date_created": field.made.with_offset(), "date_updated": field.changed.with_offset(),
    });
    let association = |of: &String| {
        let (object_type, id) = match of.split_once('/') {
            Some(("activity", id)) => ("custom_activity_type", Some(("custom_activity_type_id", id))),
            Some((_, id)) => ("custom_object_type", Some(("custom_object_type_id", id))),
            None => (of.as_str(), None),
        };
        let mut association = json!({ "object_type": object_type, "editable_with_roles": [], "required": false });
        if let Some((key, id)) = id {
            association[key] = id.into();
        }
        association
    };
    if field.is_shared {
        shown["associations"] = field.of.iter().map(association).collect();
    } else if alone && let Some((kind, id)) = field.of[0].split_once('/') {
        let key = if kind == "activity" {
            "custom_activity_type_id"
        } else {
            "custom_object_type_id"
        };
        shown[key] = id.into();
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_has_its_own_fields_and_shared_ones_in_the_order_in_which_they_were_made() {
        let (mut fields, ids, now) = (CustomFields::default(), Ids(7), Moment(0));
        let visit = fields.add_type("activity", "Site visit", ids, now).unwrap();
        assert_eq!(visit.object_type, "custom_activity_type");
        let of_visit = format!("activity/{}", visit.object_id);
        let mut add = |of: &[&str], name: &str| {
            let of: Vec<String> = of.iter().map(|of| (*of).to_owned()).collect();
            fields.add(&of, name, "text", ids, now)
        };
        assert!(add(&["task"], "x").is_err() && add(&["activity/actitype_no"], "x").is_err());
        let told = add(&["lead"], "Industry").unwrap();
        assert_eq!(told.object_type, "custom_fields.lead");
        assert_eq!(
            add(&["lead", &of_visit], "Tags").unwrap().object_type,
            "custom_fields.shared"
        );
        assert_eq!(
            add(&[&of_visit], "Outcome").unwrap().object_type,
            "custom_fields.activity"
        );
        let names = |fields: &CustomFields, of: &str| -> Vec<String> {
            let schema = fields.schema(of, "orga_1").unwrap();
            let listed = schema["fields"].as_array().unwrap();
            listed
                .iter()
                .map(|field| field["name"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names(&fields, "lead"), ["Industry", "Tags"]);
        assert_eq!(names(&fields, &of_visit), ["Tags", "Outcome"]);
        assert_eq!(fields.schema("activity/no", "orga_1"), None);
        fields.rename(&told.object_id, "Branch", ids, now).unwrap();
        assert_eq!(names(&fields, "lead"), ["Branch", "Tags"]);
        assert_eq!(fields.types("activity", "orga_1").len(), 1);
        assert_eq!(fields.types("custom_object", "orga_1").len(), 0);
        for (sort, count) in [
            ("lead", 1),
            ("contact", 0),
            ("activity", 1),
            ("custom_object_type", 0),
            ("shared", 1),
        ] {
            assert_eq!(fields.list(sort, "orga_1").unwrap().len(), count, "{sort}");
        }
        assert_eq!(fields.list("task", "orga_1"), None);
        fields.remove(&told.object_id, ids).unwrap();
        assert_eq!(names(&fields, "lead"), ["Tags"]);
    }
}
