//! Changing the schema of custom fields, which is told by events.

use std::time::Duration;

use serde_json::{Value, json};

use super::World;
use crate::fields::Told;
use crate::ids::Ids;

impl World {
    /// Makes a type of custom activities (`activity`) or objects (`custom_object`). Its id.
    pub fn add_custom_type(&mut self, kind: &str, name: &str) -> Result<String, String> {
        let (ids, now) = (Ids(self.seed), self.now());
        let told = self.custom_fields.add_type(kind, name, ids, now)?;
        self.tell(&told, "created")
    }

    /// Makes a custom field: of `lead`, `contact`, `opportunity`, `activity/ID` or `custom_object/ID`; of several a shared one. Its id.
    pub fn add_custom_field(&mut self, of: &[&str], name: &str, kind: &str) -> Result<String, String> {
        let (ids, now) = (Ids(self.seed), self.now());
        let of: Vec<String> = of.iter().map(|of| (*of).to_owned()).collect();
        let told = self.custom_fields.add(&of, name, kind, ids, now)?;
        self.tell(&told, "created")
    }

    /// Calls a custom field otherwise.
    pub fn rename_custom_field(&mut self, id: &str, name: &str) -> Result<String, String> {
        let (ids, now) = (Ids(self.seed), self.now());
        let told = self.custom_fields.rename(id, name, ids, now)?;
        self.tell(&told, "updated")
    }

    /// Deletes a custom field.
    pub fn remove_custom_field(&mut self, id: &str) -> Result<String, String> {
        let told = self.custom_fields.remove(id, Ids(self.seed))?;
        self.tell(&told, "deleted")
    }

    fn tell(&mut self, told: &Told, action: &str) -> Result<String, String> {
        let (data, before) = match action {
            "deleted" => (Value::Null, told.data.clone()),
            _ => (told.data.clone(), json!({})),
        };
        let changed = if action == "updated" {
            json!(["name"])
        } else {
            json!([])
        };
        let event = json!({
            "object_type": told.object_type, "action": action, "object_id": told.object_id, "changed_fields": changed,
            "data": data, "previous_data": before,
        });
        self.inject(&event.to_string(), Duration::ZERO, true)?;
        Ok(told.object_id.clone())
    }
}
