//! Every request the client can send, recorded on its way and held against Close's OpenAPI document. Where the document lacks a
//! parameter that its text describes, the text counts.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use axum::http::{Request, Response};
use fake_close::{Fake, Options, Settings};
use serde_json::{Value, json};

use crate::close::PUBLIC_URL;
use crate::harness::{Daemon, until};

/// Parameters that only the descriptions mention ("The endpoint supports the following parameters for pagination").
const DESCRIBED: [(&str, &str); 2] = [("_cursor", "string"), ("request_id", "string")];

#[derive(Debug, Clone)]
struct Recorded {
    method: String,
    path: String,
    query: Vec<(String, String)>,
    authorization: String,
    content_type: String,
    body: String,
}

/// Passes requests on to the fake and remembers them. Gives the base URL.
async fn recorder(fake: &Fake) -> (String, Arc<Mutex<Vec<Recorded>>>) {
    let recorded = Arc::new(Mutex::new(Vec::new()));
    let (target, record) = (fake.root_url(), recorded.clone());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let pass_on = move |request: Request<Body>| async move {
        let (head, body) = request.into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        let header = |name: &str| {
            head.headers
                .get(name)
                .map_or("", |value| value.to_str().unwrap())
                .to_owned()
        };
        let url = reqwest::Url::parse(&format!("{target}{}", head.uri)).unwrap();
        record.lock().unwrap().push(Recorded {
            method: head.method.to_string().to_lowercase(),
            path: head.uri.path().to_owned(),
            query: url.query_pairs().into_owned().collect(),
            authorization: header("authorization"),
            content_type: header("content-type"),
            body: String::from_utf8(body.to_vec()).unwrap(),
        });
        let mut forwarded = client.request(head.method, url).body(body);
        for name in ["authorization", "content-type"] {
            forwarded = forwarded.header(name, header(name));
        }
        let answer = forwarded.send().await.unwrap();
        let mut response = Response::builder().status(answer.status());
        for (name, value) in answer.headers() {
            if name != "content-length" && name != "transfer-encoding" {
                response = response.header(name, value);
            }
        }
        response.body(Body::from(answer.bytes().await.unwrap())).unwrap()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/api/v1", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(pass_on)).await });
    (base, recorded)
}

struct Document(Value);

impl Document {
    fn load() -> Document {
        let text = std::fs::read_to_string("tests/fixtures/close/openapi-webhooks.json").unwrap();
        Document(serde_json::from_str(&text).unwrap())
    }

    /// The operation a request is, as `method template`, with every way in which it is not what the document says.
    fn check(&self, request: &Recorded) -> (String, Vec<String>) {
        let mut faults = Vec::new();
        let path = request.path.strip_prefix("/api/v1").unwrap_or(&request.path);
        let fits = |template: &str| {
            let (parts, template): (Vec<&str>, Vec<&str>) = (path.split('/').collect(), template.split('/').collect());
            parts.len() == template.len()
                && parts
                    .iter()
                    .zip(&template)
                    .all(|(part, name)| part == name || (name.starts_with('{') && !part.is_empty()))
        };
        let paths = self.0["paths"].as_object().unwrap();
        // A literal path is meant before one with a parameter.
        let template = paths
            .keys()
            .find(|template| *template == path)
            .or_else(|| paths.keys().find(|template| fits(template)));
        let Some(template) = template else {
            return (path.to_owned(), vec!["there is no such path".into()]);
        };
        let name = format!("{} {template}", request.method);
        let operation = &paths[template][&request.method];
        if operation.is_null() {
            return (name, vec!["there is no such method".into()]);
        }
        let parameters = operation["parameters"].as_array().unwrap();
        for (name, value) in &request.query {
            let declared = parameters
                .iter()
                .find(|p| p["in"] == "query" && p["name"] == name.as_str());
            let kind = declared.map(|p| p["schema"]["type"].clone());
            let described = operation["description"]
                .as_str()
                .is_some_and(|text| text.contains(&format!("`{name}`")));
            let kind = kind.or_else(|| {
                let known = DESCRIBED.iter().find(|(known, _)| known == name && described);
                known.map(|(_, kind)| json!(kind))
            });
            match kind {
                None => faults.push(format!("no parameter {name}")),
                Some(kind) if kind == "integer" && value.parse::<i64>().is_err() => {
                    faults.push(format!("{name} is no integer"));
                }
                Some(_) if value.is_empty() => faults.push(format!("{name} is empty")),
                Some(_) => {}
            }
        }
        let wants_authorization = parameters
            .iter()
            .any(|p| p["name"] == "Authorization" && p["required"] == true);
        if wants_authorization && !request.authorization.starts_with("Basic ") {
            faults.push("it is not authorized".into());
        }
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        match (schema.is_null(), request.body.is_empty()) {
            (true, true) => {}
            (true, false) => faults.push("it has a body".into()),
            (false, _) => {
                if request.content_type != "application/json" {
                    faults.push(format!("its content type is {}", request.content_type));
                }
                match serde_json::from_str(&request.body) {
                    Ok(body) => self.check_value(schema, &body, "body", &mut faults),
                    Err(error) => faults.push(format!("its body is no JSON: {error}")),
                }
            }
        }
        (name, faults)
    }

    fn check_value(&self, schema: &Value, value: &Value, place: &str, faults: &mut Vec<String>) {
        if let Some(reference) = schema["$ref"].as_str() {
            let pointer = reference.strip_prefix('#').unwrap();
            return self.check_value(self.0.pointer(pointer).unwrap(), value, place, faults);
        }
        let is = |kind: &str| match kind {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            other => panic!("the document has a type {other} that this check does not know"),
        };
        let fits = match &schema["type"] {
            Value::String(kind) => is(kind),
            Value::Array(kinds) => kinds.iter().any(|kind| is(kind.as_str().unwrap())),
            _ => true,
        };
        if !fits {
            faults.push(format!("{place} is no {}", schema["type"]));
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            if value.get(name.as_str().unwrap()).is_none() {
                faults.push(format!("{place} has no {name}"));
            }
        }
        for (name, inner) in value.as_object().into_iter().flatten() {
            match (&schema["properties"][name], schema.get("additionalProperties")) {
                (Value::Null, None) if schema["properties"].is_object() => faults.push(format!("{place} has {name}")),
                (Value::Null, _) => {}
                (schema, _) => self.check_value(schema, inner, &format!("{place}.{name}"), faults),
            }
        }
        for (index, element) in value.as_array().into_iter().flatten().enumerate() {
            self.check_value(&schema["items"], element, &format!("{place}[{index}]"), faults);
        }
    }
}

#[test]
fn the_check_finds_what_is_wrong() {
    let document = Document::load();
    let request = |method: &str, path: &str, query: &[(&str, &str)], body: &str| Recorded {
        method: method.into(),
        path: format!("/api/v1{path}"),
        query: query
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        authorization: "Basic eA==".into(),
        content_type: "application/json".into(),
        body: body.into(),
    };
    let good = r#"{"url":"https://x/","events":[{"object_type":"lead","action":"created","extra_filter":{"type":"is_null"}}]}"#;
    assert_eq!(document.check(&request("post", "/webhook/", &[], good)).1, [""; 0]);
    assert_eq!(
        document
            .check(&request("get", "/event/", &[("_limit", "50"), ("_cursor", "x")], ""))
            .1,
        [""; 0]
    );
    for (bad, why) in [
        (request("get", "/hooks/", &[], ""), "no such path"),
        (request("patch", "/webhook/", &[], ""), "no such method"),
        (
            request("get", "/event/", &[("_limit", "x")], ""),
            "_limit is no integer",
        ),
        (request("get", "/event/", &[("limit", "5")], ""), "no parameter limit"),
        (
            request("get", "/webhook/", &[("_cursor", "x")], ""),
            "no parameter _cursor",
        ),
        (
            request("post", "/webhook/", &[], r#"{"url":1,"events":[]}"#),
            "body.url is no",
        ),
        (request("post", "/webhook/", &[], r#"{"url":"x"}"#), "has no \"events\""),
        (
            request(
                "post",
                "/webhook/",
                &[],
                r#"{"url":"x","events":[{"action":"created"}]}"#,
            ),
            "body.events[0] has no",
        ),
        (
            request("post", "/webhook/", &[], r#"{"url":"x","events":[],"secret":1}"#),
            "body has secret",
        ),
        (request("delete", "/webhook/whsub_1/", &[], "{}"), "it has a body"),
    ] {
        let faults = document.check(&bad).1.join("; ");
        assert!(faults.contains(why), "{why}: {faults}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_one_that_the_openapi_document_knows() {
    let fake = Fake::start(Options {
        settings: Settings::calm(),
        ..Options::default()
    })
    .await
    .unwrap();
    let (base_url, recorded) = recorder(&fake).await;
    let filter =
        r#"{"type":"field_accessor","field":"changed_fields","filter":{"type":"contains","value":"status_id"}}"#;
    let config = format!(
        "[server]\npublic_url = \"{PUBLIC_URL}\"\n[close]\napi_key = \"{}\"\nbase_url = \"{base_url}\"\n\
         [close.health]\ninterval = \"1s\"\n[close.reconcile]\ninterval = \"1s\"\n\
         [[sinks]]\nname = \"out\"\ntype = \"file\"\npath = \"DIR/out\"\n\
         [[rules]]\nname = \"r\"\nevents = [\"lead.updated\"]\nsinks = [\"out\"]\nfilter = '{filter}'\n\
         [[rules]]\nname = \"s\"\nevents = [\"*\"]\nsinks = [\"out\"]\n",
        fake.api_key()
    );
    let daemon = {
        let now = fake.world().now();
        fake.world()
            .generate(300, now, std::time::Duration::from_secs(86_400))
            .unwrap();
        fake.advance(std::time::Duration::from_secs(86_400)).await;
        let mut daemon = Daemon::new(&config);
        daemon.run().await;
        daemon
    };
    daemon.ok(&["check", "--probe"]);
    daemon.ok(&["subscription", "apply"]);
    daemon.ok(&["subscription", "list"]);
    let made = daemon
        .lines(&[
            "subscription",
            "create",
            "--event",
            "lead.updated",
            "--filter",
            filter,
            "--no-verify-ssl",
        ])
        .pop();
    let made = made.unwrap()["id"].as_str().unwrap().to_owned();
    daemon.ok(&["subscription", "show", &made]);
    daemon.ok(&["subscription", "pause", &made]);
    daemon.ok(&["subscription", "resume", &made]);
    daemon.ok(&["subscription", "delete", "--yes", &made]);
    // A change in place, with a filter over the whole taken away.
    let apply_again = config.replace("[\"*\"]", "[\"lead.*\", \"opportunity.*\"]");
    daemon.configure(&apply_again);
    assert!(daemon.reload().await);
    daemon.ok(&["subscription", "apply"]);
    daemon.ok(&["subscription", "apply", "--rotate"]);
    let since = "40d";
    daemon.ok(&["backfill", "--since", since]);
    daemon.ok(&["backfill", "--since", since, "--type", "lead.updated"]);
    daemon.ok(&["backfill", "--since", since, "--lead", "lead_x"]);
    daemon.ok(&[
        "backfill",
        "--since",
        since,
        "--lead",
        "lead_x",
        "--type",
        "lead.updated",
    ]);
    until("the logs were compared", async || {
        daemon.status()["close"]["reconciled_at"].is_string()
    })
    .await;

    let document = Document::load();
    let mut seen = BTreeSet::new();
    let mut parameters = BTreeSet::new();
    for request in recorded.lock().unwrap().iter() {
        let (operation, faults) = document.check(request);
        assert!(faults.is_empty(), "{faults:?}: {request:?}");
        seen.insert(operation);
        parameters.extend(request.query.iter().map(|(name, _)| name.clone()));
    }
    let expected = [
        "delete /webhook/{id}/",
        "get /event/",
        "get /me/",
        "get /webhook/",
        "get /webhook/{id}/",
        "post /webhook/",
        "put /webhook/{id}/",
    ];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected, "all of them were sent");
    let expected = [
        "_cursor",
        "_limit",
        "action",
        "date_updated__gte",
        "date_updated__lt",
        "lead_id",
        "object_type",
    ];
    assert_eq!(parameters.into_iter().collect::<Vec<_>>(), expected);
}

/// An API that accepts and never answers keeps nobody waiting in silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_waits_for_close_says_so() {
    use std::io::BufRead;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = format!(
        "[close]\nbase_url = \"http://{}/api/v1/\"\napi_key = \"api_1\"\nlocal_key = true\n\
         [server]\npublic_url = \"https://hooks.example.com/\"\n",
        silent.local_addr().unwrap()
    );
    let accepting = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = silent.accept().await {
            held.push(stream);
        }
    });
    for command in [
        &["subscription", "plan"][..],
        &["subscription", "list"],
        &["backfill", "--since", "1d", "--dry-run"],
        &["check", "--probe"],
    ] {
        let daemon = crate::harness::Daemon::new(&config);
        let mut child = daemon
            .command()
            .args(command)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let said = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        let said: Vec<String> = said
            .map(Result::unwrap)
            .take_while(|line| !line.contains("not answered yet"))
            .collect();
        // Its own end would come a minute later, without that line.
        assert!(child.try_wait().unwrap().is_none(), "{command:?}: {said:?}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    accepting.abort();
}
