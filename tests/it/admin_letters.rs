//! Dead letters on the page and over its API: what is dropped is what somebody was shown, they are told what nobody gets back, and a sink
//! that is configured no more hides none.

use reqwest::Method;
use serde_json::{Value, json};

use crate::admin_door::{TOKENS, browser};
use crate::harness::{Daemon, Receiver, body, until};

/// A sink whose receiver refuses whatever it is sent.
fn refused(url: &str) -> String {
    format!(
        "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"{url}\"\nallow_private = true\nstart = \"beginning\"\n\
         breaker = {{ refusals = 100000 }}\n"
    )
}

/// Somebody who looks at the page.
struct Looker<'d> {
    daemon: &'d Daemon,
    cookie: String,
}

impl Looker<'_> {
    async fn at(daemon: &Daemon) -> Looker<'_> {
        let cookie = daemon.session().await;
        Looker { daemon, cookie }
    }

    async fn go(&self, path: &str) -> (u16, String) {
        let request = browser().get(format!("{}{path}", self.daemon.admin));
        let answer = request.header("cookie", &self.cookie).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// Sends the form of a page as it stands there; gives where it leads, or what is said instead.
    async fn send(&self, page: &str) -> Result<String, String> {
        let form = page.split("<form class=\"do-row\"").nth(1).unwrap();
        let form = form.split("</form>").next().unwrap();
        let value = |text: &str, name: &str| {
            let (_, rest) = text.split_once(&format!("{name}=\"")).unwrap();
            rest.split('"').next().unwrap().replace("&#34;", "\"")
        };
        let fields = form.split("<input ").skip(1);
        let fields: Vec<(String, String)> = fields
            .map(|input| (value(input, "name"), value(input, "value")))
            .collect();
        self.post(&value(form, "action"), &fields).await
    }

    async fn post(&self, path: &str, fields: &[(String, String)]) -> Result<String, String> {
        let encoded: Vec<String> = fields
            .iter()
            .map(|(name, value)| format!("{name}={}", closehook::net::percent::encoded(value)))
            .collect();
        let request = browser()
            .post(format!("{}{path}", self.daemon.admin))
            .header("cookie", &self.cookie)
            .header("origin", &self.daemon.admin)
            .header("content-type", "application/x-www-form-urlencoded");
        let answer = request.body(encoded.join("&")).send().await.unwrap();
        match answer.headers().get("location") {
            Some(place) => Ok(place.to_str().unwrap().to_owned()),
            None => Err(answer.text().await.unwrap()),
        }
    }

    /// What a job has come to.
    async fn says(&self, job: &str, what: &str) {
        until(&format!("it says {what:?}"), async || {
            self.go(job).await.1.contains(what)
        })
        .await;
    }
}

async fn dead(daemon: &Daemon, count: u64) {
    until(&format!("{count} are dead"), async || {
        daemon.sink("crm")["dead"] == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_drops_letters_is_told_which_events_nothing_else_keeps() {
    let receiver = Receiver::start(422).await;
    let brief = "[log]\nsegment_size = \"64 KiB\"\nretention = \"1s\"\n";
    let daemon = Daemon::start(&[TOKENS, brief, &refused(&receiver.url)].concat()).await;
    let noise: String = (0..8000_u64)
        .map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect();
    let large = |id: u64| body(id).replace("\"n\"", &format!("\"noise\": \"{noise}{id}\", \"n\""));
    let mut id = 0;
    until("the log keeps no event of some letters", async || {
        id += 1;
        assert_eq!(daemon.send(large(id)).await.unwrap().0, 200);
        daemon.status()["log"]["first"].as_u64() > Some(5)
    })
    .await;
    dead(&daemon, id).await;
    let looker = Looker::at(&daemon).await;
    // Nothing is added any more, and the log drops nothing but on its own.
    let first = daemon.status()["log"]["first"].as_u64().unwrap();
    let (_, page) = looker.go("/sinks/crm/letters?act=drop").await;
    assert!(!page.contains("The events stay in the log"), "{page}");
    assert!(
        page.contains("kept only as dead letters: what is dropped of these is gone")
            || page.contains("does not keep the events any more: what is dropped is gone"),
        "{page}"
    );
    let count = daemon.api_ok(Method::GET, "/dead/count", None).await;
    assert!(count["only_copies"].as_u64() >= Some(first - 1), "{count}");
    assert_eq!(count["letters"], id);
    // The newest of a group leads to a page, and so does the oldest.
    let (status, page) = looker.go("/events/1").await;
    assert_eq!(status, 200, "{page}");
    assert!(
        page.contains("keeps this event no more") && page.contains("422") && page.contains("ev_1"),
        "{page}"
    );
    let (status, raw) = looker.go("/events/1/raw").await;
    assert_eq!((status, raw), (200, large(1)));
    let (status, _) = looker.go("/events/ev_2").await;
    assert_eq!(status, 200);
    let (status, page) = looker.go("/events/ev_none").await;
    assert_eq!(status, 404, "{page}");
    // One whose event is there is told to be there: all that is said is true of what is meant.
    let (_, page) = looker.go(&format!("/sinks/crm/letters?act=drop&id=ev_{id}")).await;
    assert!(page.contains("1 dead letter would be removed for good"), "{page}");
    let (_, page) = looker.go("/sinks/crm/letters?act=drop&id=ev_1").await;
    assert!(page.contains("The log does not keep the events any more"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_agreed_to_is_dropped_and_no_more() {
    let receiver = Receiver::start(422).await;
    let daemon = Daemon::start(&[TOKENS, &refused(&receiver.url)].concat()).await;
    daemon.store(1..=3).await;
    dead(&daemon, 3).await;
    let looker = Looker::at(&daemon).await;
    let (_, shown) = looker.go("/sinks/crm/letters?act=drop&since=1h").await;
    assert!(shown.contains("3 dead letters would be removed"), "{shown}");
    assert!(
        !shown.contains("name=\"since\" value=\"1h\""),
        "a time is a moment by now: {shown}"
    );
    let count = daemon.api_ok(Method::GET, "/dead/count?sink=crm", None).await;
    // More are given up while somebody reads.
    daemon.store(4..=8).await;
    dead(&daemon, 8).await;
    let job = looker.send(&shown).await.unwrap();
    looker.says(&job, "3 dead letters removed").await;
    dead(&daemon, 5).await;
    // The same count once more: of those it was for none is left.
    let order = |agreed: &Value| Some(json!({ "sink": "crm", "agreed": agreed }));
    let dropped = daemon.api_ok(Method::POST, "/dead/drop", order(&count["agreed"])).await;
    assert_eq!(dropped["dropped"], 0);
    let count = daemon.api_ok(Method::GET, "/dead/count?sink=crm", None).await;
    assert_eq!((&count["letters"], &count["only_copies"]), (&json!(5), &json!(0)));
    let fewer = json!({ "letters": 4, "upto": count["agreed"]["upto"] });
    for act in ["/dead/drop", "/dead/retry"] {
        let (status, said) = daemon
            .api(crate::admin_door::ACT, Method::POST, act, order(&fewer))
            .await;
        assert_eq!(status.as_u16(), 409, "{said}");
        assert!(
            said["error"]["message"].as_str().unwrap().contains("count them again"),
            "{said}"
        );
    }
    let retried = daemon
        .api_ok(Method::POST, "/dead/retry", order(&count["agreed"]))
        .await;
    assert_eq!(retried["total"], 5);
    // What was tried anew was given up anew.
    let count = daemon.api_ok(Method::GET, "/dead/count?sink=crm", None).await;
    let dropped = daemon.api_ok(Method::POST, "/dead/drop", order(&count["agreed"])).await;
    assert_eq!(dropped["dropped"], 5);
    // A form that nobody was shown does nothing.
    let fields = [("act".to_owned(), "drop".to_owned())];
    let said = looker.post("/sinks/crm/letters", &fields).await.unwrap_err();
    assert!(said.contains("count them first"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_a_removed_sink_are_seen_and_dropped() {
    let receiver = Receiver::start(422).await;
    let other = "[[sinks]]\nname = \"archive\"\ntype = \"file\"\npath = \"DIR/out.jsonl\"\n";
    let daemon = Daemon::start(&[TOKENS, other, &refused(&receiver.url)].concat()).await;
    daemon.store(1..=4).await;
    dead(&daemon, 4).await;
    daemon.configure(&[TOKENS, other].concat());
    assert!(daemon.reload().await);
    for path in ["/dead?sink=crm", "/dead/groups?sink=crm", "/dead/1?sink=crm"] {
        let listed = daemon.api_ok(Method::GET, path, None).await;
        assert!(!listed["items"].as_array().unwrap().is_empty(), "{path}: {listed}");
    }
    let count = daemon.api_ok(Method::GET, "/dead/count?sink=crm", None).await;
    assert_eq!(count["letters"], 4);
    let act = crate::admin_door::ACT;
    let which = Some(json!({ "sink": "crm" }));
    let (status, said) = daemon.api(act, Method::POST, "/dead/retry", which).await;
    assert_eq!(status.as_u16(), 409, "{said}");
    assert!(
        said["error"]["message"]
            .as_str()
            .unwrap()
            .contains("configured no more"),
        "{said}"
    );
    let (status, said) = daemon.api(act, Method::GET, "/dead?sink=crn", None).await;
    assert_eq!(
        (status.as_u16(), &said["error"]["place"]),
        (404, &json!("sink")),
        "{said}"
    );
    let looker = Looker::at(&daemon).await;
    let (_, sinks) = looker.go("/sinks").await;
    assert!(
        sinks.contains("href=\"/sinks/crm#letters\"") && sinks.contains("4 dead letters"),
        "{sinks}"
    );
    let (status, page) = looker.go("/sinks/crm").await;
    assert_eq!(status, 200, "{page}");
    assert!(page.contains("configured no more") && page.contains("422"), "{page}");
    assert!(page.contains("act=drop") && !page.contains("act=retry"), "{page}");
    let (status, said) = looker.go("/sinks/crm/letters?act=retry").await;
    assert_eq!(status, 409);
    assert!(said.contains("configured no more"), "{said}");
    let (_, shown) = looker.go("/sinks/crm/letters?act=drop").await;
    let job = looker.send(&shown).await.unwrap();
    looker.says(&job, "4 dead letters removed").await;
    let (status, page) = looker.go("/sinks/crm").await;
    assert!(status == 200 && page.contains("None."), "it leads back: {page}");
    assert_eq!(looker.go("/sinks/none").await.0, 404);
}
