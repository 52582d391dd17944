//! The OpenAPI document of the daemon's own, and what is answered held against it: also what is answered and not described is a fault.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::admin_door::ACT;
use crate::harness::Daemon;

/// What holds what is answered against the document.
pub struct Document {
    pub document: Value,
    pub looked_at: BTreeSet<String>,
}

impl Document {
    pub async fn of(daemon: &Daemon) -> Document {
        let document = daemon.api_ok(Method::GET, "/openapi.json", None).await;
        assert_eq!(document["openapi"], "3.1.0");
        Document {
            document,
            looked_at: BTreeSet::new(),
        }
    }

    /// What an answer is other than its schema says. It knows what our schemas are made of, and refuses what it does not know.
    fn compare(&self, schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>) {
        let Some(schema) = schema.as_object() else {
            panic!("no schema: {schema}")
        };
        for (word, says) in schema {
            match word.as_str() {
                "description" => {}
                "$ref" => {
                    let name = says.as_str().unwrap().strip_prefix("#/components/schemas/").unwrap();
                    let named = &self.document["components"]["schemas"][name];
                    assert!(named.is_object(), "there is no schema {name}");
                    self.compare(named, value, at, faults);
                }
                "anyOf" => {
                    let fits = |one: &Value| {
                        let mut faults = Vec::new();
                        self.compare(one, value, at, &mut faults);
                        faults
                    };
                    let all: Vec<Vec<String>> = says.as_array().unwrap().iter().map(fits).collect();
                    if all.iter().all(|faults| !faults.is_empty()) {
                        faults.extend(all.into_iter().next().unwrap());
                    }
                }
                "enum" => {
                    if !says.as_array().unwrap().contains(value) {
                        faults.push(format!("{at}: {value} is none of {says}"));
                    }
                }
                "type" => {
                    let is = match says.as_str().unwrap() {
                        "string" => value.is_string(),
                        "integer" => value.is_i64() || value.is_u64(),
                        "number" => value.is_number(),
                        "boolean" => value.is_boolean(),
                        "null" => value.is_null(),
                        "array" => value.is_array(),
                        "object" => value.is_object(),
                        other => panic!("{other} is no type"),
                    };
                    if !is {
                        faults.push(format!("{at}: {value} is no {says}"));
                    }
                }
                "format" => {
                    assert_eq!(says, "date-time");
                    if value
                        .as_str()
                        .is_some_and(|time| time.parse::<jiff::Timestamp>().is_err())
                    {
                        faults.push(format!("{at}: {value} is no time"));
                    }
                }
                "required" => {
                    let names = says.as_array().unwrap().iter().map(|name| name.as_str().unwrap());
                    let missing = names.filter(|name| value.is_object() && value.get(name).is_none());
                    faults.extend(missing.map(|name| format!("{at}: {name} is missing")));
                }
                "properties" => {
                    let fields = value.as_object().into_iter().flatten();
                    for (name, field) in fields {
                        let at = format!("{at}.{name}");
                        match (says.get(name), schema.get("additionalProperties")) {
                            (Some(inner), _) => self.compare(inner, field, &at, faults),
                            (None, Some(others)) if others.is_object() => self.compare(others, field, &at, faults),
                            (None, _) => faults.push(format!("{at}: is not described")),
                        }
                    }
                }
                "additionalProperties" => {
                    let fields = value.as_object().filter(|_| !schema.contains_key("properties"));
                    for (name, field) in fields.into_iter().flatten() {
                        self.compare(says, field, &format!("{at}.{name}"), faults);
                    }
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.compare(says, item, &format!("{at}[{index}]"), faults);
                    }
                }
                other => panic!("{other} is not known here"),
            }
        }
    }

    pub fn hold(&mut self, method: &Method, path: &str, status: StatusCode, answer: &Value) {
        let verb = method.as_str().to_lowercase();
        let operation = self.document["paths"][path][&verb].clone();
        assert!(operation.is_object(), "{verb} {path} is not described");
        let of = if status == StatusCode::OK { "200" } else { "default" };
        let schema = &operation["responses"][of]["content"]["application/json"]["schema"];
        let mut faults = Vec::new();
        self.compare(schema, answer, "", &mut faults);
        assert!(faults.is_empty(), "{verb} {path}: {faults:#?}\n{answer:#}");
        if status == StatusCode::OK {
            self.looked_at.insert(format!("{verb} {path}"));
        }
    }

    /// Asks, and holds what is answered against the document.
    pub async fn ask(&mut self, daemon: &Daemon, method: Method, path: &str, real: &str, body: Option<Value>) -> Value {
        let (status, answer) = daemon.api(ACT, method.clone(), real, body).await;
        self.hold(&method, path, status, &answer);
        answer
    }

    /// Every route, with its right.
    pub fn routes(&self) -> Vec<(Method, String, bool)> {
        let mut routes = Vec::new();
        for (path, operations) in self.document["paths"].as_object().unwrap() {
            for (verb, operation) in operations.as_object().unwrap() {
                let method = Method::from_bytes(verb.to_uppercase().as_bytes()).unwrap();
                routes.push((method, path.clone(), operation["x-may"] == "act"));
            }
        }
        routes
    }
}
