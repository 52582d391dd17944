//! The pubsub sink with the built daemon and a Pub/Sub of our own, made from its documented REST interface: tokens for a signed
//! assertion, `publish`, `testIamPermissions`, and errors as Google writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::campaign;
use crate::harness::{Daemon, body, skipped};
use crate::web::{Answer, Asked, Web};

const EAGER: &str = "start = \"beginning\"\ntimeout = \"5s\"\ntopic = \"close\"\ncredentials_file = \"DIR/account.json\"\n\
     retry = { initial = \"10ms\", max_delay = \"50ms\" }\nbreaker = { probe = \"50ms\" }\n";

/// What the fake does besides what is documented.
#[derive(Default)]
pub struct Moods {
    /// Tokens from here on up are good.
    good_from: AtomicUsize,
    granted: AtomicUsize,
    /// Answers to publishing: a status and Google's name for it.
    refuses: Mutex<Option<(u16, &'static str)>>,
    /// Every so many-th publishing is taken and its answer lost; 0: none.
    loses_each: AtomicUsize,
    published: AtomicUsize,
    key: Mutex<Vec<u8>>,
}

fn fault(status: u16, name: &str) -> Option<Answer> {
    Answer::new(
        status,
        json!({ "error": { "code": status, "message": "as documented", "status": name } }).to_string(),
    )
}

/// Whether an assertion is one of the account's, by its signature and what it says.
fn is_sound(assertion: &str, key: &[u8], audience: &str) -> bool {
    let Some((signed, signature)) = assertion.rsplit_once('.') else {
        return false;
    };
    let decoded = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let claims: Value = serde_json::from_slice(&decoded(signed.split('.').nth(1).unwrap())).unwrap();
    let now = jiff::Timestamp::now().as_second();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key)
        .verify(signed.as_bytes(), &decoded(signature))
        .is_ok()
        && claims["iss"] == "closehook@acme.iam.gserviceaccount.com"
        && claims["aud"] == audience
        && claims["scope"] == "https://www.googleapis.com/auth/pubsub"
        && claims["iat"].as_i64().unwrap() <= now
        && claims["exp"].as_i64().unwrap() > now
}

fn answer(asked: &Asked, moods: &Moods) -> Option<Answer> {
    if asked.path == "/token" {
        let form = String::from_utf8_lossy(&asked.body).into_owned();
        let assertion = form
            .split('&')
            .find_map(|pair| pair.strip_prefix("assertion="))
            .unwrap_or_default();
        let audience = format!("http://{}/token", asked.header("host"));
        let is_grant = form.contains("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer");
        if !is_grant || !is_sound(assertion, &moods.key.lock().unwrap(), &audience) {
            return Answer::new(
                400,
                r#"{"error":"invalid_grant","error_description":"Invalid JWT Signature."}"#,
            );
        }
        let number = moods.granted.fetch_add(1, Ordering::SeqCst);
        return Answer::new(
            200,
            format!(r#"{{"access_token":"ya29.hunter-{number:06}","expires_in":3599,"token_type":"Bearer"}}"#),
        );
    }
    let token = asked
        .header("authorization")
        .strip_prefix("Bearer ya29.hunter-")
        .and_then(|number| number.parse::<usize>().ok());
    if token.is_none_or(|number| number < moods.good_from.load(Ordering::SeqCst)) {
        return fault(401, "UNAUTHENTICATED");
    }
    match asked.path.as_str() {
        "/v1/projects/acme/topics/close:testIamPermissions" => Answer::new(200, asked.json().to_string()),
        "/v1/projects/acme/topics/close:publish" => publish(asked, moods),
        _ => fault(404, "NOT_FOUND"),
    }
}

fn publish(asked: &Asked, moods: &Moods) -> Option<Answer> {
    if let Some((status, name)) = *moods.refuses.lock().unwrap() {
        return fault(status, name);
    }
    let messages = asked.json()["messages"].as_array().cloned().unwrap_or_default();
    let is_bad = |message: &Value| {
        STANDARD
            .decode(message["data"].as_str().unwrap())
            .unwrap()
            .windows(6)
            .any(|part| part == b"POISON")
    };
    if messages.is_empty() || messages.len() > 1000 || messages.iter().any(is_bad) {
        return fault(400, "INVALID_ARGUMENT");
    }
    let each = moods.loses_each.load(Ordering::SeqCst);
    let number = moods.published.fetch_add(1, Ordering::SeqCst);
    if each > 0 && number % each == each - 1 {
        return None;
    }
    let ids: Vec<String> = messages.iter().map(|_| "1".to_owned()).collect();
    Answer::new(200, json!({ "messageIds": ids }).to_string())
}

/// Messages that were taken: the attributes, the ordering key and the data of each, in the order they came.
pub fn taken(web: &Web) -> Vec<(Value, Value, Vec<u8>)> {
    let publishings = web.asked().into_iter().filter(|asked| asked.path.ends_with(":publish"));
    publishings
        .flat_map(|asked| asked.json()["messages"].as_array().cloned().unwrap_or_default())
        .map(|message| {
            let data = STANDARD.decode(message["data"].as_str().unwrap()).unwrap();
            (message["attributes"].clone(), message["orderingKey"].clone(), data)
        })
        .collect()
}

pub fn sink(url: &str, more: &str) -> String {
    format!("[[sinks]]\nname = \"queue\"\ntype = \"pubsub\"\nendpoint = \"{url}\"\n{EAGER}{more}")
}

/// A fake, and a daemon's configuration whose account it knows; `None`, loudly, where no key can be made.
pub async fn start(more: &str) -> Option<(Web, Arc<Moods>, Daemon)> {
    let moods = Arc::new(Moods::default());
    let own = moods.clone();
    let web = Web::start(move |asked| answer(asked, &own)).await;
    let daemon = Daemon::new(&sink(&web.url, more));
    let key = make_key(&daemon, &web, &moods)?;
    drop(key);
    Some((web, moods, daemon))
}

/// A new key of the account's, which the fake knows from now on.
fn make_key(daemon: &Daemon, web: &Web, moods: &Moods) -> Option<String> {
    let (private, public) = write_account(&daemon.path("account.json"), &format!("{}/token", web.url))?;
    *moods.key.lock().unwrap() = public;
    Some(private)
}

/// Writes the file of a service account with a new key, and gives that: in PEM, and its public half in DER. `None`, loudly, where no
/// key can be made.
pub fn write_account(file: &Path, token_url: &str) -> Option<(String, Vec<u8>)> {
    let openssl = |arguments: &[&str]| Command::new("openssl").args(arguments).output();
    let path = file.with_extension("pem");
    let path = path.to_str().unwrap();
    if openssl(&[
        "genpkey",
        "-quiet",
        "-algorithm",
        "RSA",
        "-pkeyopt",
        "rsa_keygen_bits:2048",
        "-out",
        path,
    ])
    .is_err()
    {
        skipped("openssl is not installed");
        return None;
    }
    let public = openssl(&["rsa", "-in", path, "-RSAPublicKey_out", "-outform", "DER"]).unwrap();
    let private_key = std::fs::read_to_string(path).unwrap();
    assert!(
        rustls::pki_types::PrivatePkcs8KeyDer::from_pem_slice(private_key.as_bytes()).is_ok(),
        "{private_key}"
    );
    let account = json!({
        "type": "service_account",
        "project_id": "acme",
        "private_key_id": "k1",
        "private_key": private_key,
        "client_email": "closehook@acme.iam.gserviceaccount.com",
        "token_uri": token_url,
    });
    std::fs::write(file, account.to_string()).unwrap();
    Some((private_key, public.stdout))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_is_the_data_and_what_is_known_of_it_are_attributes() {
    let Some((web, moods, mut daemon)) = start("ordering_key = \"all\"\n").await else {
        return;
    };
    let probed = daemon.ok(&["check", "--probe"]);
    assert!(probed.contains("projects/acme/topics/close is there"), "{probed}");
    daemon.run().await;
    daemon.store(1..=50).await;
    daemon.done("queue").await;
    let messages = taken(&web);
    assert_eq!(messages.len(), 50);
    for (index, (attributes, ordering_key, data)) in messages.iter().enumerate() {
        let id = index as u64 + 1;
        assert_eq!(String::from_utf8_lossy(data), body(id));
        assert_eq!(ordering_key, "all");
        assert_eq!(attributes["closehook-seq"], id.to_string());
        assert_eq!(
            attributes["closehook-key"],
            format!("ev_{id}:2024-02-15T12:48:23.395000")
        );
        assert_eq!(attributes["closehook-type"], "lead.updated");
        assert_eq!(attributes["closehook-event-id"], format!("ev_{id}"));
        assert_eq!(attributes["closehook-lead-id"], format!("lead_{}", id % 7));
        assert_eq!(attributes["closehook-source"], "webhook");
        assert!(attributes["closehook-received-at"].as_str().unwrap().ends_with('Z'));
    }
    // One for the probe, one for the daemon: a token is used again.
    assert_eq!(moods.granted.load(Ordering::SeqCst), 2);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_good_any_more_is_fetched_anew_once() {
    let Some((web, moods, mut daemon)) = start("").await else {
        return;
    };
    daemon.run().await;
    daemon.store(1..=1).await;
    daemon.done("queue").await;
    moods.good_from.store(1, Ordering::SeqCst);
    daemon.store(2..=2).await;
    daemon.done("queue").await;
    assert_eq!(moods.granted.load(Ordering::SeqCst), 2);
    let sink = daemon.sink("queue");
    assert_eq!((&sink["dead"], &sink["retrying"]), (&json!(0), &json!(0)));
    // None is good: that is the sink's trouble, and no event's.
    moods.good_from.store(usize::MAX, Ordering::SeqCst);
    daemon.store(3..=9).await;
    daemon.says("queue", "Pub/Sub answered 401").await;
    let sink = daemon.sink("queue");
    assert_eq!((&sink["dead"], &sink["retrying"]), (&json!(0), &json!(0)));
    moods.good_from.store(0, Ordering::SeqCst);
    daemon.done("queue").await;
    let seqs: BTreeSet<String> = taken(&web)
        .iter()
        .map(|message| message.0["closehook-seq"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(seqs.len(), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_deleted_costs_nothing_and_what_waited_goes_with_the_new_one() {
    let Some((web, moods, mut daemon)) = start("").await else {
        return;
    };
    daemon.run().await;
    // The fake forgets the key: as if it were deleted.
    let old = std::mem::take(&mut *moods.key.lock().unwrap());
    drop(old);
    daemon.store(1..=20).await;
    daemon
        .says(
            "queue",
            "it said \"invalid_grant Invalid JWT Signature.\": is the key in credentials still one of the account's",
        )
        .await;
    let Some(private) = make_key(&daemon, &web, &moods) else {
        return;
    };
    assert!(daemon.reload().await);
    daemon.done("queue").await;
    let sink = daemon.sink("queue");
    assert_eq!((&sink["dead"], &sink["delivered"]), (&json!(0), &json!(20)));
    let mut said = daemon.stderr();
    for arguments in [
        &["sinks", "list", "--json"][..],
        &["status", "--json"],
        &["check", "--probe"],
    ] {
        let output = daemon.run_command(arguments);
        said += &String::from_utf8_lossy(&output.stdout);
        said += &String::from_utf8_lossy(&output.stderr);
    }
    let line = private.lines().nth(3).unwrap();
    assert!(!said.contains(line) && !said.contains("hunter-"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_message_of_a_batch_is_one_dead_letter_and_no_repeats() {
    let Some((web, moods, mut daemon)) = start("batch = { events = 500, wait = \"500ms\" }\n").await else {
        return;
    };
    daemon.run().await;
    for id in 1..=300_u64 {
        let bad = if id == 123 { "POISON" } else { "" };
        let sent = daemon
            .send(format!(
                r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"created","x":"{bad}"}}}}"#
            ))
            .await;
        assert_eq!(sent.unwrap().0, 200);
    }
    daemon.done("queue").await;
    let sink = daemon.sink("queue");
    assert_eq!(
        (&sink["dead"], &sink["delivered"], &sink["retrying"]),
        (&json!(1), &json!(299), &json!(0)),
        "{sink}"
    );
    assert!(
        daemon
            .ok(&["dead", "show", "ev_123", "--sink", "queue"])
            .contains("INVALID_ARGUMENT")
    );
    // Of the refused requests nothing was taken.
    let own = moods.clone();
    drop(own);
    let good = web
        .asked()
        .into_iter()
        .filter(|asked| asked.path.ends_with(":publish") && !has_poison(asked));
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for message in good.flat_map(|asked| asked.json()["messages"].as_array().cloned().unwrap()) {
        *count
            .entry(message["attributes"]["closehook-seq"].as_str().unwrap().to_owned())
            .or_default() += 1;
    }
    assert_eq!((count.len(), count.values().max()), (299, Some(&1)));
}

fn has_poison(asked: &Asked) -> bool {
    let messages = asked.json()["messages"].as_array().cloned().unwrap_or_default();
    messages.iter().any(|message| {
        let data = STANDARD.decode(message["data"].as_str().unwrap()).unwrap();
        String::from_utf8_lossy(&data).contains("POISON")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_topic_or_the_quota_waits_and_says_what_to_do() {
    let Some((web, moods, mut daemon)) = start("").await else {
        return;
    };
    daemon.run().await;
    let mut id = 0;
    for (status, name, part) in [
        (
            403,
            "PERMISSION_DENIED",
            "give the service account the role Pub/Sub Publisher",
        ),
        (404, "NOT_FOUND", "there is no such topic"),
        (429, "RESOURCE_EXHAUSTED", "quota is used up"),
        (503, "UNAVAILABLE", "Pub/Sub answered 503"),
        (409, "ABORTED", "Pub/Sub answered 409"),
    ] {
        *moods.refuses.lock().unwrap() = Some((status, name));
        id += 1;
        daemon.store(id..=id).await;
        daemon.says("queue", part).await;
        let sink = daemon.sink("queue");
        assert_eq!(
            (&sink["dead"], &sink["retrying"]),
            (&json!(0), &json!(0)),
            "{name}: {sink}"
        );
        *moods.refuses.lock().unwrap() = None;
        daemon.done("queue").await;
    }
    assert!(taken(&web).len() >= 5);
}

/// `CLOSEHOOK_TEST_KILLS` asks for more than CI's 2.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missing_after_kills_and_cuts_and_repeats_carry_the_same_key() {
    let Some((web, moods, mut daemon)) = start("").await else {
        return;
    };
    moods.loses_each.store(23, Ordering::SeqCst);
    let by_seq = campaign::kills(&mut daemon, None, "queue").await;
    let mut keys: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for (attributes, _, data) in taken(&web) {
        let seq: u64 = attributes["closehook-seq"].as_str().unwrap().parse().unwrap();
        assert_eq!(String::from_utf8(data).unwrap(), body(by_seq[&seq]), "I5");
        keys.entry(seq)
            .or_default()
            .insert(attributes["closehook-key"].as_str().unwrap().to_owned());
    }
    assert_eq!(keys, campaign::keys(&by_seq));
    daemon.stop().await;
}
