//! The slack sink with the built daemon and a Slack that answers as Slack's documentation says. What a word means is tried beside the
//! sink (`src/sinks/slack/tests.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::campaign::{self, Ledger};
use crate::harness::{Daemon, until};
use crate::web::{Answer, Asked, Web};

/// What every sink here has: it does not wait long.
const EAGER: &str = "start = \"beginning\"\nallow_private = true\ntimeout = \"5s\"\n\
     retry = { initial = \"10ms\", max_delay = \"50ms\" }\nbreaker = { probe = \"50ms\" }\n";

pub const FAST: &str = "rate = \"100000/s\"\n";

const PLACE: &str = "/services/T0AAAAAAA/B0BBBBBBB/hunter2hunter2hunter2222";

/// A webhook as documented: wants a text or blocks.
pub fn webhook(asked: &Asked) -> Option<Answer> {
    let message = asked.json();
    match &message {
        Value::Object(message) if message.contains_key("text") || message.contains_key("blocks") => {
            Answer::new(200, "ok")
        }
        Value::Object(_) => Answer::new(400, "no_text"),
        _ => Answer::new(400, "invalid_payload"),
    }
}

/// The API as documented, for one token.
fn api(asked: &Asked, token: &str) -> Option<Answer> {
    if asked.header("authorization") != format!("Bearer {token}") {
        return Answer::new(200, r#"{"ok":false,"error":"invalid_auth"}"#);
    }
    match asked.path.as_str() {
        "/api/auth.test" => {
            let mut answer = Answer::new(200, r#"{"ok":true,"team":"Acme","user":"closehook"}"#)?;
            answer
                .headers
                .push(("x-oauth-scopes", "chat:write,channels:read".into()));
            Some(answer)
        }
        "/api/chat.postMessage" if asked.json()["channel"] == "#sales" => Answer::new(200, r#"{"ok":true,"ts":"1.2"}"#),
        _ => Answer::new(200, r#"{"ok":false,"error":"channel_not_found"}"#),
    }
}

pub fn on_webhook(web: &Web, more: &str) -> String {
    format!(
        "[[sinks]]\nname = \"chat\"\ntype = \"slack\"\nwebhook_url = \"{}{PLACE}\"\n{EAGER}{more}",
        web.url
    )
}

fn on_api(web: &Web, more: &str) -> String {
    format!(
        "[[sinks]]\nname = \"chat\"\ntype = \"slack\"\ntoken_file = \"DIR/token\"\nchannel = \"#sales\"\napi_url = \"{}/api\"\n{EAGER}{FAST}{more}",
        web.url
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentence_with_a_link_arrives_and_is_marked_with_the_key() {
    let web = Web::start(|asked| api(asked, "xoxb-1-hunter22")).await;
    let mut daemon = Daemon::new(&on_api(&web, ""));
    std::fs::write(daemon.path("token"), "xoxb-1-hunter22\n").unwrap();
    daemon.run().await;
    let probed = daemon.ok(&["check", "--probe"]);
    assert!(
        probed.contains("Slack knows the token, as closehook in Acme"),
        "{probed}"
    );
    daemon.ok(&["trigger", "opportunity.updated"]);
    until("it is there", async || daemon.sink("chat")["delivered"] == 1).await;
    let posted = web
        .asked()
        .into_iter()
        .find(|asked| asked.path == "/api/chat.postMessage")
        .unwrap();
    let message = posted.json();
    assert_eq!(
        message["text"],
        "Opportunity of KLine moved from Active to Won (1,000 USD) by Joe Kemp \
         (<https://app.close.com/lead/lead_zwqYhEFwzPyfCErS8uQ77is2wFLvr9BgVi6cTfbFM68/|open in Close>)"
    );
    assert_eq!(posted.method, "POST");
    let key = posted.header("closehook-key");
    assert!(
        key.starts_with("ev_") && posted.header("idempotency-key") == key,
        "{posted:?}"
    );
    assert_eq!(
        (
            &message["metadata"]["event_type"],
            &message["metadata"]["event_payload"]["key"]
        ),
        (&json!("closehook_event"), &json!(key))
    );
    assert_eq!(
        (posted.header("closehook-seq"), posted.header("closehook-type")),
        ("1", "opportunity.updated")
    );
    daemon.stop().await;
}

/// Each documented sample makes a message that the webhook takes.
#[tokio::test(flavor = "multi_thread")]
async fn every_sample_is_a_message() {
    let web = Web::start(webhook).await;
    let daemon = Daemon::start(&on_webhook(&web, FAST)).await;
    let samples = daemon.ok(&["trigger", "--list"]);
    let samples: Vec<&str> = samples
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.contains('.'))
        .collect();
    assert!(samples.len() >= 15, "{samples:?}");
    for sample in &samples {
        daemon.run_command(&["trigger", sample]);
    }
    daemon.done("chat").await;
    let sink = daemon.sink("chat");
    assert_eq!(
        (sink["dead"].as_u64(), sink["retrying"].as_u64()),
        (Some(0), Some(0)),
        "{sink}"
    );
    let texts: BTreeSet<String> = web
        .asked()
        .iter()
        .map(|asked| asked.json()["text"].as_str().unwrap().to_owned())
        .collect();
    assert!(texts.len() >= 15, "{texts:?}");
    for text in texts {
        let sentence = text.split(" (<").next().unwrap();
        assert!(!sentence.contains(['<', '>', '\n']) && sentence.len() > 8, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slack_is_given_about_one_message_a_second_unless_rate_says_otherwise() {
    let web = Web::start(webhook).await;
    let daemon = Daemon::start(&on_webhook(&web, "")).await;
    daemon.store(1..=3).await;
    daemon.done("chat").await;
    let asked = web.asked();
    assert_eq!(asked.len(), 3);
    for two in asked.windows(2) {
        let between = two[1].at.duration_since(two[0].at);
        assert!(between.as_millis() > 800, "{between:?}");
    }
}

/// What is wrong with one message is a dead letter, whatever is wrong with the way there costs no event anything and says what to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_message_is_dead_and_a_refused_sender_waits() {
    let web = Web::start(|asked| match asked.path.rsplit('/').next() {
        Some("no_text") => Answer::new(400, "no_text"),
        Some("no_service") => Answer::new(404, "no_service"),
        Some("archived") => Answer::new(410, "channel_is_archived"),
        Some("prohibited") => Answer::new(403, "action_prohibited"),
        Some("limited") => {
            let mut answer = Answer::new(429, "rate_limited")?;
            answer.headers.push(("retry-after", "3600".into()));
            Some(answer)
        }
        _ => Answer::new(503, "later"),
    })
    .await;
    let cases = [
        ("no_text", "dead", "Slack answered no_text"),
        (
            "no_service",
            "waits",
            "Slack answered no_service: make a new incoming webhook",
        ),
        (
            "archived",
            "waits",
            "Slack answered channel_is_archived: unarchive the channel",
        ),
        (
            "prohibited",
            "waits",
            "Slack answered action_prohibited: an administrator",
        ),
        (
            "limited",
            "waits",
            "Slack answered rate_limited: it takes about one message a second",
        ),
        ("trouble", "retries", "Slack answered 503"),
    ];
    let sinks = cases.map(|(name, _, _)| {
        let url = format!("{}/services/T0AAAAAAA/B0BBBBBBB/{name}", web.url);
        format!("[[sinks]]\nname = \"{name}\"\ntype = \"slack\"\nwebhook_url = \"{url}\"\n{EAGER}{FAST}")
    });
    let daemon = Daemon::start(&sinks.concat()).await;
    daemon.store(1..=1).await;
    for (name, becomes, says) in cases {
        until(&format!("{name} {becomes}"), async || {
            let sink = daemon.sink(name);
            let is = match becomes {
                "dead" => sink["dead"] == 1,
                "waits" => sink["dead"] == 0 && sink["retrying"] == 0 && sink["breaker"] != "closed",
                _ => sink["dead"] == 0 && sink["retrying"] == 1,
            };
            is && (becomes == "dead" || sink["last_error"].as_str().is_some_and(|error| error.contains(says)))
        })
        .await;
    }
    let letter = daemon.ok(&["dead", "show", "ev_1", "--sink", "no_text"]);
    assert!(letter.contains("Slack answered no_text"), "{letter}");
    let limited = || {
        web.asked()
            .iter()
            .filter(|asked| asked.path.ends_with("limited"))
            .count()
    };
    assert_eq!(limited(), 1, "retry-after is honoured");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_revoked_costs_nothing_and_what_waited_goes_with_the_new_one() {
    let web = Web::start(|asked| api(asked, "xoxb-2-new")).await;
    let mut daemon = Daemon::new(&on_api(&web, ""));
    std::fs::write(daemon.path("token"), "xoxb-1-hunter22").unwrap();
    daemon.run().await;
    daemon.store(1..=20).await;
    until("it says so", async || {
        daemon.last_error("chat").contains("invalid_auth: set token")
    })
    .await;
    let probed = daemon.run_command(&["check", "--probe"]);
    assert!(!probed.status.success());
    let sink = daemon.sink("chat");
    assert_eq!(
        (&sink["dead"], &sink["retrying"], &sink["delivered"]),
        (&json!(0), &json!(0), &json!(0)),
        "{sink}"
    );
    std::fs::write(daemon.path("token"), "xoxb-2-new").unwrap();
    assert!(daemon.reload().await);
    daemon.done("chat").await;
    assert_eq!(daemon.sink("chat")["dead"], 0);
    let seqs: Vec<String> = web
        .asked()
        .iter()
        .filter(|asked| asked.header("authorization").ends_with("new"))
        .map(|asked| asked.header("closehook-seq").to_owned())
        .collect();
    assert_eq!(
        seqs,
        (1..=20).map(|seq| seq.to_string()).collect::<Vec<_>>(),
        "each once, and in order"
    );
}

/// `CLOSEHOOK_TEST_KILLS` asks for more than CI's 2.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missing_after_kills_and_cuts_and_repeats_carry_the_same_key() {
    let turns = Arc::new(AtomicUsize::new(0));
    let web = Web::start(move |asked| {
        // Now and then the message is taken and the answer is lost.
        if turns.fetch_add(1, Ordering::Relaxed) % 97 == 7 {
            None
        } else {
            webhook(asked)
        }
    })
    .await;
    let mut daemon = Daemon::new(&on_webhook(&web, FAST));
    let by_seq = campaign::kills(&mut daemon, None, "chat").await;
    let mut keys: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for asked in web.asked() {
        let seq = asked.header("closehook-seq").parse().unwrap();
        keys.entry(seq)
            .or_default()
            .insert(asked.header("closehook-key").to_owned());
    }
    assert_eq!(keys, campaign::keys(&by_seq));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_in_the_middle_changes_the_words_and_loses_nothing() {
    let web = Web::start(webhook).await;
    let daemon = Daemon::start(&on_webhook(&web, &format!("{FAST}text = \"one\"\n"))).await;
    let ledger = Ledger::new();
    let load = ledger.load(&daemon);
    until("some came", async || web.count() > 20).await;
    daemon.configure(&on_webhook(&web, &format!("{FAST}text = \"two\"\n")));
    assert!(daemon.reload().await);
    until("the new words come", async || {
        web.asked().last().is_some_and(|asked| asked.json()["text"] == "two")
    })
    .await;
    load.stop().await;
    let by_seq = ledger.settle(&daemon).await;
    daemon.done("chat").await;
    let asked = web.asked();
    let seqs: BTreeSet<u64> = asked
        .iter()
        .map(|asked| asked.header("closehook-seq").parse().unwrap())
        .collect();
    assert_eq!(seqs, by_seq.keys().copied().collect::<BTreeSet<_>>());
    let texts: BTreeSet<String> = asked.iter().map(|asked| asked.json()["text"].to_string()).collect();
    assert_eq!(texts, ["\"one\"", "\"two\""].map(str::to_owned).into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_address_is_refused_and_no_secret_is_shown() {
    let web = Web::start(|_| Answer::new(400, format!("Cannot POST {PLACE}"))).await;
    let guarded = on_webhook(&web, FAST).replace("allow_private = true\n", "");
    let daemon = Daemon::new(&guarded);
    let fault = daemon.fails(2, &["check"]);
    assert!(
        fault.contains("private address") && !fault.contains("hunter2"),
        "{fault}"
    );
    let named = guarded.replace("127.0.0.1", "localhost");
    daemon.configure(&named);
    let daemon = {
        let mut daemon = daemon;
        daemon.run().await;
        daemon
    };
    daemon.store(1..=1).await;
    until("it is refused", async || {
        daemon.last_error("chat").contains("private address")
    })
    .await;
    assert_eq!(web.count(), 0);
    daemon.configure(&on_webhook(&web, FAST));
    assert!(daemon.reload().await);
    until("it is dead", async || daemon.sink("chat")["dead"] == 1).await;
    let mut said = daemon.stderr();
    for arguments in [
        &["dead", "show", "ev_1", "--sink", "chat"][..],
        &["dead", "list", "--json"],
        &["sinks", "list", "--json"],
        &["status"],
        &["check", "--probe"],
    ] {
        let output = daemon.run_command(arguments);
        said += &String::from_utf8_lossy(&output.stdout);
        said += &String::from_utf8_lossy(&output.stderr);
    }
    assert!(said.contains("Cannot POST /services/"), "{said}");
    assert!(!said.contains("hunter2") && !said.contains("B0BBBBBBB"), "{said}");
}

/// Decision 41, and contract 7: what a template takes from the event pings nobody, wherever the template stands.
#[tokio::test(flavor = "multi_thread")]
async fn templates_are_filled_in_and_what_comes_from_the_event_is_escaped() {
    let web = Web::start(webhook).await;
    let sink = |name: &str, more: &str| {
        on_webhook(&web, &format!("{FAST}{more}\n"))
            .replace("name = \"chat\"", &format!("name = \"{name}\""))
            .replace(PLACE, &format!("{PLACE}/{name}"))
    };
    let config = [
        sink("text", "text = '<!here> {{ data.display_name }}'"),
        sink("template", "template = '<!here> {{ data.display_name }}'"),
        sink(
            "blocks",
            "blocks = '[{\"type\": \"section\", \"text\": {\"type\": \"mrkdwn\", \"text\": {{ data.display_name | tojson }}}}]'",
        ),
    ];
    let daemon = Daemon::start(&config.concat()).await;
    let body = r#"{"event":{"id":"ev_1","object_type":"lead","action":"created","data":{"display_name":"A <!channel> & \"b\""}}}"#;
    assert_eq!(daemon.send(body).await.unwrap().0, 200);
    let of = |name: &str| {
        web.asked()
            .into_iter()
            .find(|asked| asked.path.ends_with(&format!("/{name}")))
    };
    let all = ["text", "template", "blocks"];
    until("each has one", async || all.iter().all(|name| of(name).is_some())).await;
    let escaped = "A &lt;!channel&gt; &amp; \"b\"";
    for name in ["text", "template"] {
        assert_eq!(of(name).unwrap().json()["text"], format!("<!here> {escaped}"), "{name}");
    }
    let blocks = of("blocks").unwrap().json();
    assert_eq!(blocks["blocks"][0]["text"]["text"], escaped, "{blocks}");
    assert!(
        blocks["text"]
            .as_str()
            .unwrap()
            .starts_with("New lead: A &lt;!channel&gt;"),
        "{blocks}"
    );
}
