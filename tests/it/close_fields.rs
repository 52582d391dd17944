//! The filter `named`: what custom fields are called at Close, from its schema to what a sink is given.

use std::path::Path;

use fake_close::fault::{Fault, Faults, Kind};
use fake_close::{Fake, Settings, State};
use serde_json::{Value, json};

use crate::close::{Rig, configuration};
use crate::harness::{Daemon, parsed, until};

/// Files with names and without, and keys to be verified with.
const SINKS: &str = r#"
[[close.subscriptions]]
signature_key_file = "DIR/key"
[[sinks]]
name = "named"
type = "file"
path = "DIR/named.jsonl"
start = "beginning"
template = "{{ (data | named) | tojson }}"
retry = { initial = "100ms", max_delay = "1s" }
[[sinks]]
name = "plain"
type = "file"
path = "DIR/plain.jsonl"
start = "beginning"
template = "{{ data | tojson }}"
[[rules]]
name = "sent"
events = ["lead.*", "activity.*", "custom_object.*"]
sinks = ["named", "plain"]
"#;

/// Requests for the schema of leads, which every fetch begins with.
const LEADS: &str = "GET /api/v1/custom_field_schema/lead";

async fn rig() -> Rig {
    Rig::new(Settings::calm(), "", SINKS).await
}

/// Sends an event about an object.
async fn send(daemon: &Daemon, number: u64, object_type: &str, data: &Value) {
    let event = json!({ "event": { "id": format!("ev_{number}"), "date_updated": "2024-02-15T12:48:23.395000",
        "object_type": object_type, "action": "updated", "lead_id": "lead_1", "data": data }, "subscription_id": "whsub_1" });
    let (status, answer) = daemon.send(event.to_string()).await.unwrap();
    assert_eq!((status, answer["status"].as_str()), (200, Some("stored")), "{answer}");
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Waits until the sink has written so many lines, and gives the last.
async fn line(daemon: &Daemon, sink: &str, number: usize) -> String {
    let path = daemon.path(&format!("{sink}.jsonl"));
    until(&format!("line {number} of {sink}"), async || {
        lines(&path).len() >= number
    })
    .await;
    lines(&path)[number - 1].clone()
}

fn fetched_at(daemon: &Daemon) -> Option<String> {
    let status = daemon.status();
    let at = status["close"]["custom_fields"]["fetched_at"].as_str();
    at.map(str::to_owned)
}

async fn fetched(daemon: &Daemon) -> String {
    until("the schema is fetched", async || fetched_at(daemon).is_some()).await;
    fetched_at(daemon).unwrap()
}

/// What a command prints, whatever it comes to.
fn said(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = daemon.run_command(arguments);
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A key under which a custom field stands.
fn key(id: &str) -> String {
    format!("custom.{id}")
}

fn fetches(fake: &Fake) -> usize {
    let world = fake.world();
    world
        .requests()
        .filter(|seen| seen.target.contains("custom_field_schema/lead"))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_have_their_names_and_a_renamed_one_its_new_name_after_its_event() {
    let mut rig = rig().await;
    let (industry, tags, visit, outcome) = {
        let mut world = rig.fake.world();
        let visit = world.add_custom_type("activity", "Site visit").unwrap();
        let of_visit = format!("activity/{visit}");
        let industry = world.add_custom_field(&["lead"], "Industry", "choices").unwrap();
        let tags = world.add_custom_field(&["lead", &of_visit], "Tags", "text").unwrap();
        let outcome = world.add_custom_field(&[&of_visit], "Industry", "text").unwrap();
        (industry, tags, visit, outcome)
    };
    rig.run().await;
    // At once: the first rendering waits for the names.
    send(
        &rig.daemon,
        1,
        "lead",
        &json!({ "name": "A", key(&industry): "Paint", key(&tags): ["x"] }),
    )
    .await;
    let made = parsed(&line(&rig.daemon, "named", 1).await);
    assert_eq!(made, json!({ "Industry": "Paint", "Tags": ["x"], "name": "A" }));
    let data = json!({ "custom_activity_type_id": visit, key(&outcome): 1.5, key(&tags): 2 });
    send(&rig.daemon, 2, "activity.custom_activity", &data).await;
    let made = parsed(&line(&rig.daemon, "named", 2).await);
    assert_eq!((&made["Industry"], &made["Tags"]), (&json!(1.5), &json!(2)), "{made}");
    let before = fetched(&rig.daemon).await;
    let gauge = rig
        .daemon
        .metric("closehook_close_custom_fields_timestamp_seconds")
        .await;
    assert!(gauge > 1_700_000_000.0, "{gauge}");

    rig.fake.world().rename_custom_field(&industry, "Branch").unwrap();
    send(
        &rig.daemon,
        3,
        "custom_fields.lead",
        &json!({ "id": industry, "name": "Branch" }),
    )
    .await;
    until("it is fetched again", async || {
        fetched_at(&rig.daemon) != Some(before.clone())
    })
    .await;
    send(&rig.daemon, 4, "lead", &json!({ key(&industry): "Paint" })).await;
    assert_eq!(line(&rig.daemon, "named", 3).await, r#"{"Branch":"Paint"}"#);
    assert!(rig.daemon.ok(&["status"]).contains("3 custom field(s), called as at"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_was_made_since_is_looked_for_before_its_first_event_goes_out() {
    let mut rig = rig().await;
    rig.run().await;
    fetched(&rig.daemon).await;
    let industry = rig
        .fake
        .world()
        .add_custom_field(&["lead"], "Industry", "text")
        .unwrap();
    // No event tells of it.
    send(&rig.daemon, 1, "lead", &json!({ key(&industry): "Paint" })).await;
    assert_eq!(line(&rig.daemon, "named", 1).await, r#"{"Industry":"Paint"}"#);
    // One that Close does not have keeps its id, and is looked for once.
    for number in 2..=3 {
        send(&rig.daemon, number, "lead", &json!({ "custom.cf_gone": number })).await;
        let made = line(&rig.daemon, "named", number as usize).await;
        assert_eq!(made, format!("{{\"custom.cf_gone\":{number}}}"));
    }
    let done = fetches(&rig.fake);
    send(&rig.daemon, 4, "lead", &json!({ "custom.cf_gone": 4 })).await;
    line(&rig.daemon, "named", 4).await;
    assert_eq!(fetches(&rig.fake), done);
    assert_eq!(rig.daemon.sink("named")["dead"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_starts_while_close_is_away_knows_the_names_and_so_do_commands() {
    let mut rig = rig().await;
    let industry = rig
        .fake
        .world()
        .add_custom_field(&["lead"], "Industry", "text")
        .unwrap();
    let event =
        json!({ "id": "ev_9", "object_type": "lead", "action": "updated", "data": { key(&industry): "Paint" } });
    std::fs::write(rig.daemon.path("event.json"), event.to_string()).unwrap();
    let file = rig.daemon.path("event.json").display().to_string();
    let cases = format!("[[cases]]\nname = \"named\"\nevent = \"@{file}\"\npayload = '{{\"Industry\":\"Paint\"}}'\n");
    let cases = cases.replace("payload = ", "payload.\"sent -> named\" = ");
    std::fs::write(rig.daemon.path("cases.toml"), cases).unwrap();
    let tests = rig.daemon.path("cases.toml").display().to_string();

    // Nothing is known yet, and nothing else is printed in its place.
    let error = rig.daemon.fails(1, &["render", "named", &file]);
    assert!(
        error.contains("has not been fetched yet: a running daemon fetches it"),
        "{error}"
    );
    rig.daemon.ok(&["render", "plain", &file]);
    let tested = said(&rig.daemon, &["rules", "test", &tests]);
    assert!(tested.contains("has not been fetched yet"), "{tested}");
    let probed = rig.daemon.ok(&["check", "--probe"]);
    assert!(
        probed.contains("Close's schema of custom fields can be read: 1 field(s)"),
        "{probed}"
    );
    assert!(
        !rig.daemon.data().join("close/custom_fields.json").exists(),
        "a probe writes nothing"
    );

    rig.run().await;
    fetched(&rig.daemon).await;
    let check = |daemon: &Daemon| {
        let rendered = daemon.ok(&["render", "named", &file]);
        assert!(rendered.contains(r#"{"Industry":"Paint"}"#), "{rendered}");
        daemon.ok(&["rules", "test", &tests]);
    };
    check(&rig.daemon);
    until("it is kept", async || {
        rig.daemon.data().join("close/custom_fields.json").exists()
    })
    .await;
    let Rig { fake, mut daemon } = rig;
    daemon.stop().await;
    drop(fake);
    check(&daemon);
    daemon.run().await;
    send(&daemon, 1, "lead", &json!({ key(&industry): "Paint" })).await;
    assert_eq!(line(&daemon, "named", 1).await, r#"{"Industry":"Paint"}"#);
    until("it says that Close is away", async || {
        daemon.status()["close"]["custom_fields"]["trouble"].is_string()
    })
    .await;
    assert_eq!(
        daemon.stderr().matches("keep the names that they had").count(),
        1,
        "{}",
        daemon.stderr()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_fetch_only_those_wait_that_want_names_and_it_is_said_why() {
    let mut rig = rig().await;
    let industry = rig
        .fake
        .world()
        .add_custom_field(&["lead"], "Industry", "text")
        .unwrap();
    let order = |fault: Fault| rig.fake.world().faults.order(fault.on(LEADS).times(1000)).unwrap();
    order(Fault::new(Kind::Status).status(500));
    rig.daemon.run().await;
    send(&rig.daemon, 1, "lead", &json!({ "name": "A" })).await;
    send(&rig.daemon, 2, "lead", &json!({ key(&industry): "Paint" })).await;
    line(&rig.daemon, "plain", 2).await;
    // What has no custom field wants no name.
    assert_eq!(line(&rig.daemon, "named", 1).await, r#"{"name":"A"}"#);
    rig.daemon
        .says("named", "has not been fetched yet: Close has a problem (500)")
        .await;
    let status = said(&rig.daemon, &["status"]);
    assert!(
        status.contains("sinks whose templates use `named` wait for them"),
        "{status}"
    );
    let probed = said(&rig.daemon, &["check", "--probe"]);
    assert!(
        probed.contains("custom_field_schema/: FAILED: Close has a problem (500)"),
        "{probed}"
    );

    // Other troubles, one after the other; the sink waits and counts no attempt.
    rig.fake.world().faults = Faults::default();
    rig.fake.world().access.keys[0].state = State::Revoked;
    rig.daemon.says("named", "(401)").await;
    rig.fake
        .world()
        .faults
        .order(Fault::new(Kind::RateLimited).on(LEADS))
        .unwrap();
    rig.fake.world().access.keys[0].state = State::Ok;
    assert_eq!(line(&rig.daemon, "named", 2).await, r#"{"Industry":"Paint"}"#);
    let sink = rig.daemon.sink("named");
    assert_eq!((&sink["dead"], &sink["retrying"]), (&json!(0), &json!(0)), "{sink}");
    until("it is well again", async || {
        rig.daemon.sink("named")["last_error"].is_null()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_api_key_ids_stay_and_a_reload_brings_names() {
    let fake = rig().await.fake;
    let industry = fake.world().add_custom_field(&["lead"], "Industry", "text").unwrap();
    let mut daemon = Daemon::new(&configuration(&fake.base_url(), "", SINKS));
    daemon.run().await;
    send(&daemon, 1, "lead", &json!({ key(&industry): "Paint" })).await;
    assert_eq!(
        line(&daemon, "named", 1).await,
        format!("{{\"custom.{industry}\":\"Paint\"}}")
    );
    assert!(daemon.status()["close"]["custom_fields"].is_null());
    assert_eq!(fake.world().requests().count(), 0);

    let with_key =
        |key: &str| daemon.configure(&configuration(&fake.base_url(), &format!("api_key = \"{key}\""), SINKS));
    with_key(&fake.api_key());
    assert!(daemon.reload().await);
    send(&daemon, 2, "lead", &json!({ key(&industry): "Paint" })).await;
    assert_eq!(line(&daemon, "named", 2).await, r#"{"Industry":"Paint"}"#);
    // Of a wrong one the names stay, and the right one is taken over at once.
    let before = fetched(&daemon).await;
    with_key("api_wrong");
    assert!(daemon.reload().await);
    until("it is refused", async || {
        daemon.status()["close"]["custom_fields"]["trouble"].is_string()
    })
    .await;
    send(&daemon, 3, "lead", &json!({ key(&industry): "Paint" })).await;
    assert_eq!(line(&daemon, "named", 3).await, r#"{"Industry":"Paint"}"#);
    with_key(&fake.api_key());
    assert!(daemon.reload().await);
    until("it is fetched again", async || {
        fetched_at(&daemon) != Some(before.clone())
    })
    .await;
    daemon.configure(&configuration(&fake.base_url(), "", SINKS));
    assert!(daemon.reload().await);
    send(&daemon, 4, "lead", &json!({ key(&industry): "Paint" })).await;
    assert_eq!(
        line(&daemon, "named", 4).await,
        format!("{{\"custom.{industry}\":\"Paint\"}}")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_cache_is_fetched_anew_and_one_of_a_newer_closehook_is_left_alone() {
    let mut rig = rig().await;
    let industry = rig
        .fake
        .world()
        .add_custom_field(&["lead"], "Industry", "text")
        .unwrap();
    let path = rig.daemon.data().join("close/custom_fields.json");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let newer = r#"{"version":2,"fields":[]}"#;
    for (number, kept, stays) in [(1, newer, true), (2, "{\"version\":1,\"parts\":[", false)] {
        std::fs::write(&path, kept).unwrap();
        rig.run().await;
        send(&rig.daemon, number, "lead", &json!({ key(&industry): number })).await;
        let made = line(&rig.daemon, "named", number as usize).await;
        assert_eq!(made, format!("{{\"Industry\":{number}}}"));
        rig.daemon.stop().await;
        let said = rig.daemon.stderr();
        assert!(
            said.contains("custom_fields.json") && said.contains("is fetched anew"),
            "{said}"
        );
        let now = std::fs::read_to_string(&path).unwrap();
        assert_eq!(now == kept, stays, "{now}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_these_credentials_may_not_see_holds_up_only_what_wants_it() {
    let mut rig = rig().await;
    let (industry, contract, price) = {
        let mut world = rig.fake.world();
        let contract = world.add_custom_type("custom_object", "Contract").unwrap();
        let industry = world.add_custom_field(&["lead"], "Industry", "text").unwrap();
        let of_contract = format!("custom_object/{contract}");
        let price = world.add_custom_field(&[&of_contract], "Price", "number").unwrap();
        (industry, contract, price)
    };
    let types = Fault::new(Kind::Status)
        .status(403)
        .on("GET /api/v1/custom_object_type")
        .times(1000);
    rig.fake.world().faults.order(types).unwrap();
    rig.run().await;
    send(
        &rig.daemon,
        1,
        "lead",
        &json!({ key(&industry): "Paint", "custom.cf_gone": 1 }),
    )
    .await;
    let made = parsed(&line(&rig.daemon, "named", 1).await);
    assert_eq!(made, json!({ "Industry": "Paint", "custom.cf_gone": 1 }));
    send(
        &rig.daemon,
        2,
        "custom_object",
        &json!({ "custom_object_type_id": contract, key(&price): 1.50 }),
    )
    .await;
    rig.daemon
        .says(
            "named",
            "could not be fetched as a whole: the credentials may not do this at Close (403",
        )
        .await;
    assert!(said(&rig.daemon, &["status"]).contains("the names of some custom fields can't be fetched"));
    rig.fake.world().faults = Faults::default();
    // An event tells of it; else it is tried again in a minute.
    send(&rig.daemon, 3, "custom_object_type", &json!({ "id": contract })).await;
    let made = parsed(&line(&rig.daemon, "named", 2).await);
    assert_eq!(made["Price"], 1.5, "{made}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_without_custom_objects_is_no_trouble() {
    let mut rig = rig().await;
    let industry = rig
        .fake
        .world()
        .add_custom_field(&["lead"], "Industry", "text")
        .unwrap();
    let plan = Fault::new(Kind::Status)
        .status(402)
        .on("GET /api/v1/custom_object_type")
        .times(1000);
    rig.fake.world().faults.order(plan).unwrap();
    rig.run().await;
    send(&rig.daemon, 1, "lead", &json!({ key(&industry): "Paint" })).await;
    assert_eq!(line(&rig.daemon, "named", 1).await, r#"{"Industry":"Paint"}"#);
    let fields = rig.daemon.status()["close"]["custom_fields"].clone();
    assert!(fields["lacking"].is_null() && fields["trouble"].is_null(), "{fields}");
}
