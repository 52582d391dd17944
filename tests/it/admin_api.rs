//! `/api/v1`: what it answers is what its own document says, who may act acts and nobody else, and what is hostile stays text.

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::admin_document::Document;
use crate::admin_door::{ACT, READ, TOKENS};
use crate::harness::Daemon;

/// A sink that takes everything, and one that nothing can be sent to.
fn config() -> String {
    format!(
        "{TOKENS}\n[[sinks]]\nname = \"audit\"\ntype = \"file\"\npath = \"DIR/out.jsonl\"\n\
         [[sinks]]\nname = \"broken\"\ntype = \"file\"\npath = \"DIR/broken.jsonl\"\ntransform = \"export default function () {{ throw new Error('no') }}\"\n\
         [[rules]]\nname = \"all\"\nsinks = [\"audit\"]\n[[rules]]\nname = \"leads\"\nevents = [\"lead.*\"]\nsinks = [\"broken\"]\n"
    )
}

pub fn event(id: &str, kind: &str, data: &Value) -> String {
    json!({ "subscription_id": "whsub_1", "event": {
        "id": id, "object_type": kind, "action": "created", "date_updated": "2024-02-15T10:00:00", "lead_id": "lead_1",
        "object_id": format!("{kind}_{id}"), "data": data } })
    .to_string()
}

impl Daemon {
    /// Asks the API, and gives the status with what it says.
    pub async fn api(&self, token: &str, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let mut request = self.admin_request(method, &format!("/api/v1{path}")).bearer_auth(token);
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(body.to_string());
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        assert_eq!(answer.headers()["content-type"], "application/json", "{path}");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff", "{path}");
        let text = answer.text().await.unwrap();
        (
            status,
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}")),
        )
    }

    /// The same where it is well.
    pub async fn api_ok(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.api(ACT, method, path, body).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        answer
    }
}

async fn stored(daemon: &Daemon, events: &[(&str, &str)]) {
    for (id, kind) in events {
        let (status, _) = daemon.send(event(id, kind, &json!({ "name": "Ada" }))).await.unwrap();
        assert_eq!(status, 200);
    }
}

#[expect(
    clippy::too_many_lines,
    reason = "each route once, in the order in which they hang together"
)]
#[tokio::test]
async fn every_answer_is_as_the_document_says() {
    let daemon = Daemon::start(&config()).await;
    stored(&daemon, &[("ev_1", "lead"), ("ev_2", "note"), ("ev_3", "lead")]).await;
    daemon.done("audit").await;
    crate::harness::until("there are dead letters", async || daemon.sink("broken")["dead"] == 2).await;
    let mut document = Document::of(&daemon).await;
    let (get, post) = (Method::GET, Method::POST);
    for path in [
        "/me",
        "/status",
        "/config",
        "/acts",
        "/sinks",
        "/events",
        "/dead",
        "/dead/groups",
        "/dead/count",
        "/replays",
        "/history",
        "/close/completeness",
        "/deployed",
    ] {
        document.ask(&daemon, get.clone(), path, path, None).await;
    }
    document
        .ask(&daemon, get.clone(), "/sinks/{name}", "/sinks/audit", None)
        .await;
    let page = document
        .ask(&daemon, get.clone(), "/events", "/events?sinks=true&after=1", None)
        .await;
    assert_eq!(
        page["went"],
        json!([{ "audit": "delivered", "broken": "dead" }, { "audit": "delivered" }]),
        "of the newest two: {page}"
    );
    let found = document
        .ask(&daemon, get.clone(), "/events/{id}", "/events/ev_1?send=true", None)
        .await;
    assert_eq!(found["items"][0]["lead_id"], "lead_1");
    document
        .ask(&daemon, get.clone(), "/dead/{id}", "/dead/ev_3", None)
        .await;
    document
        .ask(&daemon, post.clone(), "/sinks/{name}/pause", "/sinks/audit/pause", None)
        .await;
    assert_eq!(daemon.sink("audit")["paused"], true);
    document
        .ask(
            &daemon,
            post.clone(),
            "/sinks/{name}/resume",
            "/sinks/audit/resume",
            None,
        )
        .await;
    assert_eq!(daemon.sink("audit")["paused"], false);
    let filter = json!({ "draft": { "kind": "filter", "text": r#"{"type":"field_accessor","field":"lead_id","filter":{"type":"equals","value":"lead_1"}}"# } });
    let tried = document.ask(&daemon, post.clone(), "/try", "/try", Some(filter)).await;
    assert_eq!(tried["summary"]["matched"], 3, "{tried}");
    let template = json!({ "draft": { "kind": "template", "text": "{{ lead_id }}", "sink": "audit" } });
    let tried = document
        .ask(&daemon, post.clone(), "/try", "/try", Some(template))
        .await;
    assert_eq!(tried["summary"]["sent"], 3, "{tried}");
    let bad = json!({ "draft": { "kind": "filter", "text": "{" } });
    let tried = document.ask(&daemon, post.clone(), "/try", "/try", Some(bad)).await;
    assert!(
        !tried["faults"].as_array().unwrap().is_empty() && tried["summary"].is_null(),
        "{tried}"
    );
    let retried = document
        .ask(
            &daemon,
            post.clone(),
            "/dead/retry",
            "/dead/retry",
            Some(json!({ "sink": "broken", "pick": { "ids": ["ev_1"] } })),
        )
        .await;
    assert_eq!(
        (&retried["total"], &retried["failed"]),
        (&json!(1), &json!(1)),
        "{retried}"
    );
    let dropped = document
        .ask(
            &daemon,
            post.clone(),
            "/dead/drop",
            "/dead/drop",
            Some(json!({ "sink": "broken" })),
        )
        .await;
    assert_eq!(dropped["dropped"], 2);
    let plan = document
        .ask(
            &daemon,
            post.clone(),
            "/replays/plan",
            "/replays/plan",
            Some(json!({ "spec": { "sinks": ["audit"] } })),
        )
        .await;
    assert_eq!(plan["planned"]["audit"], 3, "{plan}");
    let begun = document
        .ask(&daemon, post.clone(), "/replays", "/replays", Some(plan))
        .await;
    let id = begun["id"].as_str().unwrap().to_owned();
    crate::harness::until("the replay is over", async || {
        daemon.api_ok(Method::GET, &format!("/replays/{id}"), None).await["state"] == "done"
    })
    .await;
    document
        .ask(&daemon, get.clone(), "/replays/{id}", &format!("/replays/{id}"), None)
        .await;
    document.ask(&daemon, get.clone(), "/replays", "/replays", None).await;
    let reloaded = document.ask(&daemon, post.clone(), "/reload", "/reload", None).await;
    assert_eq!(reloaded["sinks"]["unchanged"], json!(["audit", "broken"]), "{reloaded}");
    let acts = document.ask(&daemon, get.clone(), "/acts", "/acts", None).await;
    let orders: Vec<&str> = acts["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|act| act["order"]["order"].as_str().unwrap())
        .collect();
    assert_eq!(
        orders,
        ["reload", "replay-start", "dead-drop", "dead-retry", "pause", "pause"]
    );
    for act in acts["items"].as_array().unwrap() {
        assert_eq!(act["who"], "admin", "{act}");
        // A letter that is one still is told.
        let stays = act["order"]["order"] == "dead-retry";
        assert_eq!(act["ended"]["error"].is_string(), stays, "{act}");
    }
    document.looked_at.insert("get /openapi.json".to_owned());
    // What needs Close, or a replay that still runs, is held against the document where it is refused.
    let rest: Vec<String> = document
        .routes()
        .into_iter()
        .map(|(method, path, _)| format!("{} {path}", method.as_str().to_lowercase()))
        .collect();
    let not_here = ["/close/", "/tail", "/replays/{id}/"];
    for route in rest
        .iter()
        .filter(|route| !not_here.iter().any(|part| route.contains(part)))
    {
        assert!(
            document.looked_at.contains(route),
            "{route} was never held against the document"
        );
    }
}

/// Somebody else's reading of the specification.
const VALIDATOR: &str = "import json, sys
from openapi_spec_validator import OpenAPIV31SpecValidator as Validator
faults = [str(fault) for fault in Validator(json.load(open(sys.argv[1]))).iter_errors()]
print('\\n'.join(faults[:5]))
sys.exit(bool(faults))
";

#[tokio::test]
async fn the_document_is_valid_to_an_outside_validator_which_finds_what_is_not() {
    let tools = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/openapi");
    if !tools.join("openapi_spec_validator").exists() {
        crate::skip::skipped("openapi-spec-validator is not there: tests/run.sh installs it");
        return;
    }
    let daemon = Daemon::start(&config()).await;
    let document = daemon.api_ok(Method::GET, "/openapi.json", None).await;
    let judge = |document: &Value| {
        let file = daemon.path("openapi.json");
        std::fs::write(&file, document.to_string()).unwrap();
        let judged = std::process::Command::new("python3")
            .args(["-c", VALIDATOR])
            .arg(&file)
            .env("PYTHONPATH", &tools)
            .output()
            .unwrap();
        let said = [judged.stdout, judged.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        (judged.status.success(), said.concat())
    };
    let (is_valid, said) = judge(&document);
    assert!(is_valid, "{said}");
    let mut broken = document.clone();
    broken["paths"]["/events/{id}"]["get"]["parameters"] = json!([]);
    let (is_valid, said) = judge(&broken);
    assert!(
        !is_valid && said.contains("id"),
        "a parameter of a path that is not described: {said}"
    );
    let mut broken = document;
    broken["paths"]["/me"]["get"]["responses"]["200"] = json!({});
    assert!(!judge(&broken).0, "an answer that is not described");
}

/// What a route is asked with: something that is there, or that is refused for not being there.
fn real(path: &str) -> String {
    path.replace("{name}", "audit").replace("{id}", "ev_1")
}

#[tokio::test]
async fn a_token_that_may_look_never_acts_and_nothing_answers_without_one() {
    let daemon = Daemon::start(&config()).await;
    stored(&daemon, &[("ev_1", "lead")]).await;
    let mut document = Document::of(&daemon).await;
    let viewer = crate::admin_door::cookie(daemon.type_token(READ).await.headers());
    let (mut acting, mut looking) = (0, 0);
    for (method, path, acts) in document.routes() {
        let url = format!("/api/v1{}", real(&path));
        let nobody = daemon.admin_request(method.clone(), &url).send().await.unwrap();
        assert_eq!(nobody.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
        if !acts {
            looking += 1;
            continue;
        }
        acting += 1;
        // Whatever is sent along: that it may act comes before what it says.
        for body in [None, Some(json!({ "all": true, "spec": {}, "planned": {} }))] {
            let (status, answer) = daemon.api(READ, method.clone(), &real(&path), body.clone()).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}: {answer}");
            document.hold(&method, &path, status, &answer);
            let request = daemon
                .admin_request(method.clone(), &url)
                .header("cookie", &viewer)
                .header("origin", &daemon.admin);
            let request = request
                .header("content-type", "application/json")
                .body(body.unwrap_or_default().to_string());
            assert_eq!(
                request.send().await.unwrap().status(),
                StatusCode::FORBIDDEN,
                "{method} {path}"
            );
        }
        // And by no other method.
        for other in [Method::GET, Method::PUT, Method::DELETE, Method::PATCH, Method::HEAD] {
            let answer = daemon.with_token(READ, other.clone(), &url).await;
            let is_described = document.document["paths"][&path][other.as_str().to_lowercase()].is_object();
            assert!(
                is_described || answer.status() == StatusCode::METHOD_NOT_ALLOWED || other == Method::HEAD,
                "{other} {path}: {}",
                answer.status()
            );
        }
    }
    assert!(acting >= 10 && looking >= 15, "{acting} {looking}");
    assert_eq!(daemon.sink("audit")["paused"], false);
    assert_eq!(daemon.api_ok(Method::GET, "/acts", None).await["items"], json!([]));
}

#[tokio::test]
async fn what_comes_from_another_sites_page_acts_on_nothing() {
    let daemon = Daemon::start(&config()).await;
    let cookie = daemon.session().await;
    let url = "/api/v1/sinks/audit/pause";
    let own = daemon.admin.clone();
    for (origin, site) in [
        (None, None),
        (None, Some("same-origin")),
        (Some("http://evil.example"), None),
        (Some("http://evil.example"), Some("same-origin")),
        (Some("null"), None),
        (Some("null"), Some("cross-site")),
        (Some(own.as_str()), Some("cross-site")),
        (Some(own.as_str()), Some("same-site")),
        (Some("http://127.0.0.1:1"), Some("same-site")),
    ] {
        let mut request = daemon.admin_request(Method::POST, url).header("cookie", &cookie);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        if let Some(site) = site {
            request = request.header("sec-fetch-site", site);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{origin:?} {site:?}");
    }
    // Nor by a GET, however it comes.
    let get = daemon
        .admin_request(Method::GET, url)
        .header("cookie", &cookie)
        .header("origin", &own);
    assert_eq!(get.send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(daemon.sink("audit")["paused"], false);
    // Our own page acts, and a token that is sent along needs no page.
    let page = daemon
        .admin_request(Method::POST, url)
        .header("cookie", &cookie)
        .header("origin", &own);
    assert_eq!(
        page.header("sec-fetch-site", "same-origin")
            .send()
            .await
            .unwrap()
            .status(),
        StatusCode::OK
    );
    assert_eq!(daemon.sink("audit")["paused"], true);
    daemon.api_ok(Method::POST, "/sinks/audit/resume", None).await;
    let acts = daemon.api_ok(Method::GET, "/acts", None).await;
    let who: Vec<&Value> = acts["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|act| &act["who"])
        .collect();
    assert_eq!(who, ["admin", "link"]);
    let stderr = daemon.stderr();
    assert!(
        stderr.contains("audit") && stderr.contains("ordered") && stderr.contains("link"),
        "{stderr}"
    );
}

#[expect(clippy::too_many_lines, reason = "a table")]
#[tokio::test]
async fn what_is_not_understood_is_refused_with_its_place() {
    let daemon = Daemon::start(&config()).await;
    let (get, post) = (Method::GET, Method::POST);
    for (method, path, body, status, place) in [
        (&get, "/events?limt=5", None, 400, "limt"),
        (&get, "/events?limit=five", None, 400, "limit"),
        (&get, "/events?limit=1&limit=2", None, 400, "limit"),
        (&get, "/events?limit=-1", None, 400, "limit"),
        (&get, "/events?limit=501", None, 400, "limit"),
        (&get, "/dead?limit=1.5", None, 400, "limit"),
        (&get, "/dead?limit=99999999999999999999", None, 400, "limit"),
        (&get, "/history?hours=25", None, 400, "hours"),
        (&get, "/close/completeness?days=0", None, 400, "days"),
        (&get, "/events?before=-1", None, 400, "before"),
        (&get, "/events?filter=%7B", None, 400, "filter"),
        (&get, "/events?since=yesterday", None, 400, "since"),
        (&get, "/events?quarantined=maybe", None, 400, "quarantined"),
        (&get, "/events/ev_nowhere", None, 404, ""),
        (&get, "/events/99", None, 404, ""),
        (&get, "/sinks/adit", None, 404, "sink"),
        (&post, "/sinks/adit/pause", None, 404, "sink"),
        (&get, "/dead?sink=adit", None, 404, "sink"),
        (&get, "/dead/ev_1", None, 404, ""),
        (&get, "/replays/nowhere", None, 404, "id"),
        (&post, "/replays/nowhere/stop", None, 404, "id"),
        (&get, "/status?x=1", None, 400, "x"),
        (&get, "/me?x=1", None, 400, "x"),
        (&get, "/deployed?x=1", None, 400, "x"),
        (&get, "/sinks/audit?x=1", None, 400, "x"),
        (&get, "/openapi.json?x=1", None, 400, "x"),
        (&get, "/replays?x=1", None, 400, "x"),
        (&post, "/reload?dry_run=true", None, 400, "dry_run"),
        (&post, "/reload", Some(json!({ "dry_run": true })), 400, "body"),
        (&post, "/sinks/audit/pause", Some(json!({ "for": "1h" })), 400, "body"),
        (&post, "/dead/drop", Some(json!({})), 400, "all"),
        (
            &post,
            "/dead/drop?sink=broken&lead=lead_1",
            Some(json!({ "all": true })),
            400,
            "sink",
        ),
        (
            &post,
            "/dead/drop",
            Some(json!({ "pick": { "lead": null } })),
            400,
            "all",
        ),
        (
            &post,
            "/dead/drop",
            Some(json!({ "pick": { "filter": "{" } })),
            400,
            "filter",
        ),
        (&post, "/dead/drop", Some(json!({ "al": true })), 400, "body.al"),
        (
            &post,
            "/dead/drop",
            Some(json!({ "pick": { "leed": "x" } })),
            400,
            "body.pick.leed",
        ),
        (&post, "/dead/drop", Some(json!({ "sink": 7 })), 400, "body.sink"),
        (&post, "/dead/drop", Some(json!([])), 400, "body"),
        (
            &post,
            "/replays/plan",
            Some(json!({ "spec": { "sinks": ["adit"] } })),
            404,
            "sink",
        ),
        (
            &post,
            "/replays/plan",
            Some(json!({ "spec": { "rate": 0 } })),
            400,
            "rate",
        ),
        (&post, "/replays", Some(json!({ "spec": {} })), 400, "body.planned"),
        (
            &post,
            "/try",
            Some(json!({ "draft": { "kind": "nothing", "text": "" } })),
            400,
            "body.draft.kind",
        ),
        (
            &post,
            "/replays/plan",
            Some(json!({ "spec": { "since": "soon" } })),
            400,
            "body.spec.since",
        ),
        (
            &post,
            "/dead/drop",
            Some(json!({ "all": true, "pick": { "until": "soon" } })),
            400,
            "body.pick.until",
        ),
        (
            &post,
            "/try",
            Some(json!({ "draft": { "kind": "filter", "text": "{}" }, "pick": { "leed": "x" } })),
            400,
            "body.pick.leed",
        ),
        (
            &post,
            "/close/backfill/plan",
            Some(json!({ "since": "soon" })),
            400,
            "body.since",
        ),
        (
            &post,
            "/close/backfill/plan",
            Some(json!({ "types": ["lead"] })),
            400,
            "type",
        ),
        (&get, "/close/subscriptions", None, 409, ""),
        (&post, "/close/backfill", Some(json!({})), 409, ""),
        (&get, "/close/backfill", None, 404, ""),
        (&get, "/nothing", None, 404, ""),
    ] {
        let (got, answer) = daemon.api(ACT, method.clone(), path, body).await;
        assert_eq!(got.as_u16(), status, "{path}: {answer}");
        assert!(
            answer["error"]["message"]
                .as_str()
                .is_some_and(|message| message.len() > 10),
            "{path}: {answer}"
        );
        assert_eq!(
            answer["error"]["place"].as_str().unwrap_or_default(),
            place,
            "{path}: {answer}"
        );
    }
    let span = json!({ "spec": { "since": "36h", "until": "2099-01-01" } });
    daemon.api_ok(Method::POST, "/replays/plan", Some(span)).await;
    let acts = daemon.api_ok(Method::GET, "/acts", None).await;
    assert_eq!(acts["items"], json!([]), "nothing is ordered before it is understood");
    // A body that is empty is none, whatever it is called.
    let nothing = daemon
        .admin_request(Method::POST, "/api/v1/sinks/audit/pause")
        .bearer_auth(ACT)
        .header("content-type", "application/json")
        .body("");
    assert_eq!(nothing.send().await.unwrap().status(), StatusCode::OK);
    let say = |body: String, kind: &'static str| {
        daemon
            .admin_request(Method::POST, "/api/v1/dead/drop")
            .bearer_auth(ACT)
            .header("content-type", kind)
            .body(body)
    };
    assert_eq!(
        say("{\"all\":true}".to_owned(), "text/plain")
            .send()
            .await
            .unwrap()
            .status(),
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    );
    let long = format!("{{\"sink\":\"{}\"}}", "a".repeat(5 << 20));
    // It may be cut off while it still sends.
    if let Ok(answer) = say(long, "application/json").send().await {
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
    let many: String = (0..300).map(|number| format!("type=lead.{number}&")).collect();
    assert_eq!(
        daemon.api(ACT, Method::GET, &format!("/events?{many}"), None).await.0,
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test]
async fn an_event_with_more_revisions_than_are_shown_says_so() {
    let daemon = Daemon::start(&config()).await;
    for revision in 10..31 {
        let body = event("ev_1", "note", &json!({})).replace("10:00:00", &format!("10:00:{revision}"));
        assert_eq!(daemon.send(body).await.unwrap().0, 200);
    }
    let shown = daemon.api_ok(Method::GET, "/events/ev_1", None).await;
    let items = shown["items"].as_array().unwrap();
    assert_eq!((items.len(), &shown["is_cut"]), (20, &json!(true)));
    assert_eq!(items[0]["revisions"].as_array().unwrap().len(), 21);
    let one = daemon.api_ok(Method::GET, "/events/1", None).await;
    assert_eq!(
        (one["items"].as_array().unwrap().len(), &one["is_cut"]),
        (1, &json!(false))
    );
}

#[tokio::test]
async fn a_hostile_body_stays_text() {
    let daemon = Daemon::start(&config()).await;
    let evil = "</script><img src=x onerror=alert(1)>\u{202e}\u{0}\"'{{7*7}}";
    let long = "<b>".repeat(300_000);
    for (id, name) in [("ev_1", evil), ("ev_2", long.as_str())] {
        let (status, _) = daemon.send(event(id, "note", &json!({ "name": name }))).await.unwrap();
        assert_eq!(status, 200);
    }
    for path in [
        "/events",
        "/events/ev_1?send=true",
        "/events/ev_2?send=true",
        "/events/%3Cscript%3Ealert(1)%3C%2Fscript%3E",
        "/sinks/%3Cb%3E",
    ] {
        let (status, answer) = daemon.api(READ, Method::GET, path, None).await;
        assert!(
            status == StatusCode::OK || status == StatusCode::NOT_FOUND,
            "{path}: {answer}"
        );
    }
    let found = daemon.api_ok(Method::GET, "/events/ev_1", None).await;
    let body: Value = serde_json::from_str(found["items"][0]["body"].as_str().unwrap()).unwrap();
    assert_eq!(body["event"]["data"]["name"], evil, "byte for byte");
}

#[tokio::test]
async fn no_answer_has_a_secret_in_it() {
    const SECRET: &str = "hunter2-0123456789abcdef";
    let config = format!(
        "{TOKENS}\n[close]\napi_key = \"{SECRET}\"\nbase_url = \"http://127.0.0.1:1/\"\n[[close.subscriptions]]\nsignature_key = \"{}\"\n\
         [[sinks]]\nname = \"audit\"\ntype = \"http\"\nurl = \"http://user:{SECRET}@127.0.0.1:1/\"\nallow_private = true\nsecret = \"{SECRET}\"\nheaders = {{ x-key = \"{SECRET}\" }}\n",
        crate::harness::KEY
    );
    let daemon = Daemon::start(&config).await;
    stored(&daemon, &[("ev_1", "lead")]).await;
    let document = Document::of(&daemon).await;
    for (method, path, _) in document
        .routes()
        .into_iter()
        .filter(|(method, path, _)| *method == Method::GET && path != "/tail")
    {
        let answer: Response = daemon.with_token(ACT, method, &format!("/api/v1{}", real(&path))).await;
        let text = answer.text().await.unwrap();
        for secret in [SECRET, ACT, READ, crate::harness::KEY] {
            assert!(!text.contains(secret), "{path}: {text}");
        }
    }
    let sent = daemon
        .api_ok(Method::GET, "/events/ev_1?send=true", None)
        .await
        .to_string();
    assert!(!sent.contains(SECRET), "{sent}");
    let shown = daemon.api_ok(Method::GET, "/config", None).await;
    assert!(
        shown["text"].as_str().unwrap().contains("token = \"(secret)\""),
        "{shown}"
    );
    assert_eq!(shown["has_changed"], false);
    daemon.configure(&format!("{config}# a change\n"));
    assert_eq!(daemon.api_ok(Method::GET, "/config", None).await["has_changed"], true);
    assert!(!daemon.stderr().contains(SECRET));
}

#[tokio::test]
async fn a_reload_that_is_bad_says_every_fault_and_changes_nothing() {
    let daemon = Daemon::start(&config()).await;
    daemon.configure(&config().replace("type = \"file\"", "type = \"flie\""));
    let (status, answer) = daemon.api(ACT, Method::POST, "/reload", None).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    assert!(answer["faults"].as_array().unwrap().len() >= 2, "{answer}");
    assert_eq!(answer["error"]["place"], "sinks[0].type", "{answer}");
    let acts = daemon.api_ok(Method::GET, "/acts", None).await;
    let ended = &acts["items"][0]["ended"]["error"];
    assert!(
        ended
            .as_str()
            .is_some_and(|error| error.starts_with("nothing has changed: ")),
        "it was not done: {acts}"
    );
    assert_eq!(
        daemon.api_ok(Method::GET, "/sinks", None).await["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn a_page_of_events_is_followed_by_its_cursor_without_a_hole() {
    let daemon = Daemon::start(&config()).await;
    let ids: Vec<String> = (1..=25).map(|number| format!("ev_{number}")).collect();
    let events: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), "note")).collect();
    stored(&daemon, &events).await;
    let (mut seen, mut path) = (Vec::new(), "/events?limit=10".to_owned());
    loop {
        let page = daemon.api_ok(Method::GET, &path, None).await;
        seen.extend(
            page["events"]
                .as_array()
                .unwrap()
                .iter()
                .map(|event| event["seq"].as_u64().unwrap()),
        );
        assert_eq!(page["head"], 25);
        let Some(next) = page["next"].as_u64() else { break };
        path = format!("/events?limit=10&before={next}");
    }
    assert_eq!(seen, (1..=25).rev().collect::<Vec<u64>>());
    let one = daemon
        .api_ok(Method::GET, "/events?id=ev_7&type=note.*&lead=lead_1", None)
        .await;
    assert_eq!(one["events"].as_array().unwrap().len(), 1, "{one}");
    // The same as a stream, which says how it gets on.
    let request = daemon
        .admin_request(Method::GET, "/api/v1/events")
        .bearer_auth(READ)
        .header("accept", "text/event-stream");
    let text = request.send().await.unwrap().text().await.unwrap();
    assert!(
        text.contains("event: answer\ndata: {\"page\":") && text.ends_with("event: done\ndata: {}\n\n"),
        "{text}"
    );
}
