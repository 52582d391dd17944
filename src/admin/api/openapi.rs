//! The OpenAPI document, made of the routes and the schemas.

use axum::Json;
use serde_json::{Map, Value, json};

use super::{ROUTES, Route, Says, Verb, Who, schemas};
use crate::admin::auth;
use crate::admin::viewer::Viewer;

/// `GET /openapi.json`
pub async fn document(_: Viewer) -> Json<Value> {
    Json(made())
}

/// The document.
pub fn made() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let verb = match route.verb {
            Verb::Get => "get",
            Verb::Post => "post",
        };
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[verb] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "closehook",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What the operator's page asks and orders, with the answers that commands get. Sign in with a token of [admin] as \
                            `authorization: Bearer`, or with the page's session; with a session, what is no GET takes the page's own Origin. What \
                            may be streamed comes as server-sent events for `accept: text/event-stream`: `answer` for each answer, then `done` or \
                            `failed`."
        },
        "servers": [{ "url": "/api/v1" }],
        "security": [{ "token": [] }, { "session": [] }, { "session_over_tls": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas::all(),
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer" },
                "session": session(""),
                "session_over_tls": session(auth::HOST_ONLY)
            }
        }
    })
}

/// Signed in on the page; `prefix` is what stands before the cookie's name.
fn session(prefix: &str) -> Value {
    json!({ "type": "apiKey", "in": "cookie", "name": format!("{prefix}{}PORT", auth::COOKIE) })
}

fn operation(route: &Route) -> Value {
    let mut parameters: Vec<Value> = Vec::new();
    for part in route.path.split('/') {
        if let Some(name) = part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            parameters.push(json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
        }
    }
    for (name, kind, about) in route.parameters() {
        parameters.push(json!({ "name": name, "in": "query", "description": about, "schema": schemas::of_type(kind) }));
    }
    if matches!(route.says, Says::Events) {
        let about = "The Seq of the last event that was seen: it goes on behind it";
        parameters.push(
            json!({ "name": "Last-Event-ID", "in": "header", "description": about, "schema": { "type": "integer" } }),
        );
    }
    let mut operation = json!({
        "summary": route.about,
        "operationId": id(route),
        "x-may": if route.who == Who::Acts { "act" } else { "read" },
        "parameters": parameters,
        "responses": {
            "200": { "description": "Done", "content": content(route) },
            "default": not_carried_out("Not carried out")
        }
    });
    if route.path.contains('{') {
        operation["responses"]["404"] = not_carried_out("There is no such thing");
    }
    if !route.body.is_empty() {
        operation["requestBody"] = json!({
            "required": true,
            "content": { "application/json": { "schema": schemas::of_type(route.body) } }
        });
    }
    operation
}

fn not_carried_out(about: &str) -> Value {
    json!({ "description": about, "content": { "application/json": { "schema": schemas::of_type("Error") } } })
}

fn content(route: &Route) -> Value {
    let stream = json!({ "schema": { "type": "string" } });
    let schema = match route.says {
        Says::Events => return json!({ "text/event-stream": stream }),
        Says::One(name) => schemas::of_type(name),
        Says::Items(name) => json!({
            "type": "object",
            "properties": { "items": schemas::of_type(&format!("{name}[]")), "is_cut": { "type": "boolean" } },
            "required": ["items", "is_cut"]
        }),
    };
    let mut content = json!({ "application/json": { "schema": schema } });
    if route.streams {
        content["text/event-stream"] = stream;
    }
    content
}

fn id(route: &Route) -> String {
    let verb = match route.verb {
        Verb::Get => "get",
        Verb::Post => "post",
    };
    let parts = route.path.split(['/', '.']).filter(|part| !part.is_empty());
    let parts = parts.map(|part| part.trim_matches(['{', '}']));
    std::iter::once(verb).chain(parts).collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_each_way_to_sign_in_and_says_where_there_may_be_nothing() {
        let document = made();
        let schemes = &document["components"]["securitySchemes"];
        let ways = document["security"].as_array().unwrap().iter();
        let ways: Vec<&str> = ways
            .flat_map(|way| way.as_object().unwrap().keys())
            .map(String::as_str)
            .collect();
        assert_eq!(ways, ["token", "session", "session_over_tls"]);
        let cookie = |way: &str| schemes[way]["name"].as_str().unwrap();
        assert_eq!(cookie("session"), "closehook_session_PORT");
        assert_eq!(cookie("session_over_tls"), "__Host-closehook_session_PORT");
        let says = |path: &str| document["paths"][path]["get"]["responses"]["404"].is_object();
        assert!(says("/close/subscriptions/{id}") && says("/events/{id}") && !says("/events"));
    }
}
