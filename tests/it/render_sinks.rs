//! `closehook render SINK` shows what that type of sink would be sent, and says why it would send nothing.

use serde_json::{Value, json};

use crate::harness::{Daemon, parsed};

const EVENT: &str = r#"{"id":"ev_1","date_updated":"2024-02-15T12:48:23.395000","object_type":"opportunity","action":"updated","object_id":"oppo_1","lead_id":"lead_1","data":{"value":12345678901234567890123,"share":0.10,"a":1,"a":2}}"#;

const KEY: &str = "ev_1:2024-02-15T12:48:23.395000";

/// A daemon that does not run, with one sink; and the file with an event.
fn with(sink: &str) -> (Daemon, String) {
    with_event(sink, EVENT)
}

fn with_event(sink: &str, event: &str) -> (Daemon, String) {
    let daemon = Daemon::new(&format!("[[sinks]]\nname = \"it\"\n{sink}\n"));
    let file = daemon.path("event.json");
    std::fs::write(&file, event).unwrap();
    (daemon, file.display().to_string())
}

/// What is shown of an event at a sink.
fn shown(sink: &str) -> Value {
    let (daemon, file) = with(sink);
    parsed(daemon.ok(&["render", "it", &file, "--json"]).trim_end())
}

/// The same for people.
fn told(sink: &str) -> String {
    let (daemon, file) = with(sink);
    daemon.ok(&["render", "it", &file])
}

fn refused(sink: &str) -> String {
    let (daemon, file) = with(sink);
    let error = daemon.fails(1, &["render", "it", &file]);
    assert!(error.starts_with("closehook: ev_1: "), "{error}");
    error
}

/// The keys that all of AWS's sinks need.
const AWS: &str = "region = \"eu-central-1\"\naccess_key_id = \"AKID\"\nsecret_access_key = \"hunter22\"\n";

fn aws(keys: &str) -> String {
    format!("{AWS}{keys}")
}

#[test]
fn http_shows_the_whole_request_but_what_depends_on_the_moment() {
    let url = "type = \"http\"\nurl = \"https://a.example/hook/{{ lead_id }}\"\nmethod = \"PUT\"\nheaders = { X-Team = \"{{ action }}\", Authorization = \"hunter22\" }\n";
    let sent = shown(url);
    let headers = &sent["headers"];
    for (name, value) in [
        ("webhook-id", "ev_1:2024-02-15T12:48:23_395000"),
        ("idempotency-key", KEY),
        ("closehook-key", KEY),
        ("closehook-type", "opportunity.updated"),
        ("closehook-lead-id", "lead_1"),
        ("closehook-attempt", "1"),
        ("content-type", "application/json"),
        ("x-team", "updated"),
    ] {
        assert_eq!(headers[name], value, "{name}: {sent}");
    }
    assert_eq!(sent["subject"], "PUT https://a.example/hook/lead_1", "{sent}");
    for none in ["url", "method", "webhook-timestamp", "webhook-signature"] {
        assert_eq!(headers.get(none), None, "{sent}");
    }
    assert!(!sent.to_string().contains("hunter22"), "{sent}");
    let text = told(url);
    assert!(
        text.contains("\nsubject: PUT https://a.example/hook/lead_1\n"),
        "{text}"
    );
}

#[test]
fn a_batch_is_shown_as_it_is_with_one_event_in_it() {
    for (format, content_type, begin, end) in [
        ("json_array", "application/json", "[{", "}]"),
        ("jsonl", "application/x-ndjson", "{", "}\n"),
    ] {
        let sink = "type = \"http\"\nurl = \"https://a.example\"\nbatch = { events = 10 }\n";
        let sent = shown(&format!("{sink}format = \"{format}\"\n"));
        let body = sent["body"].as_str().unwrap();
        assert!(body.starts_with(begin) && body.ends_with(end), "{sent}");
        assert!(body.contains("12345678901234567890123"), "{sent}");
        assert_eq!(sent["headers"]["content-type"], content_type, "{sent}");
        assert!(
            sent["headers"]["webhook-id"].as_str().unwrap().starts_with("b_"),
            "{sent}"
        );
        assert_eq!(sent["headers"].get("closehook-seq"), None, "{sent}");
    }
    let why = refused("type = \"http\"\nurl = \"https://a.example\"\nbatch = { events = 10 }\ntemplate = \"no JSON\"");
    assert!(why.contains("is no JSON"), "{why}");
}

#[test]
fn slack_shows_its_message_with_metadata_and_refuses_what_it_would_not_send() {
    let app = "type = \"slack\"\ntoken = \"xoxb-hunter22\"\nchannel = \"#{{ action }}\"\n";
    let sent = shown(app);
    let body: Value = serde_json::from_str(sent["body"].as_str().unwrap()).unwrap();
    assert_eq!(body["channel"], "#updated", "{sent}");
    assert_eq!(body["metadata"]["event_payload"]["key"], KEY, "{sent}");
    assert_eq!(sent["headers"]["idempotency-key"], KEY, "{sent}");
    assert!(!sent.to_string().contains("hunter22"), "{sent}");
    let hook = "type = \"slack\"\nwebhook_url = \"https://hooks.slack.com/services/T0/B0/x\"\n";
    assert!(!shown(hook)["body"].as_str().unwrap().contains("metadata"));
    for (keys, part) in [
        ("blocks = \"[{{ action }}]\"", "blocks is not JSON for this event"),
        ("text = \"{{ data.text | default }}\"", "the message is empty"),
    ] {
        let why = refused(&format!("{hook}{keys}"));
        assert!(why.contains(part), "{keys}: {why}");
    }
    let why = refused(&app.replace("#{{ action }}", "{{ data.channel | default }}"));
    assert!(why.contains("channel is empty"), "{why}");
}

const MAIL: &str = "type = \"email\"\nserver = \"smtp://mail.example.com\"\nfrom = \"c@example.com\"\n";

#[test]
fn email_shows_the_mail_with_its_id_and_refuses_one_to_nobody() {
    let to = format!("{MAIL}to = [\"a@example.com\"]\n");
    let sent = shown(&to);
    let id = |sent: &Value| {
        let mail = sent["body"].as_str().unwrap();
        let id = mail.lines().find_map(|line| line.strip_prefix("Message-ID: "));
        id.unwrap_or_else(|| panic!("{mail}")).to_owned()
    };
    // sha256 of "it\n" and the key: the sink's name is in it.
    let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(format!("it\n{KEY}")));
    assert_eq!(
        id(&sent),
        format!("<ev_1.2024-02-15T12.48.23.395000.{}@example.com>", &digest[..16])
    );
    assert_eq!(sent["headers"]["closehook-key"], KEY, "{sent}");
    assert_eq!(sent["headers"]["To"], "a@example.com", "{sent}");
    let own = shown(&format!("{to}subject = \"Für {{{{ lead_id }}}}\"\n"));
    assert_eq!(own["subject"], "Für lead_1", "{own}");
    assert!(
        own["headers"].get("Subject").is_none() && own["headers"].get("Date").is_none(),
        "{own}"
    );
    let why = refused(&format!("{MAIL}to = [\"{{{{ data.mail | default }}}}\"]\n"));
    assert!(why.contains("to names nobody"), "{why}");
}

#[test]
fn a_digest_is_shown_as_it_is_with_one_event_in_it() {
    let digest = format!("{MAIL}to = [\"a@example.com\"]\ndigest = \"1h\"\n");
    let own = "subject = \"{{ count }} of {{ meta.sink }}\"\ntext = \"{% for e in events %}{{ e.lead_id }}: {{ e.data.share }}{% endfor %}\"\n";
    let mail = shown(&format!("{digest}{own}"));
    let mail = mail["body"].as_str().unwrap();
    assert!(mail.contains("Subject: 1 of it\r\n"), "{mail}");
    assert!(mail.contains("lead_1: 0.10"), "{mail}");
    let why = refused(&format!("{digest}text = \"{{{{ events[0].data.none }}}}\"\n"));
    assert!(why.contains("the digest's template text failed in line 1"), "{why}");
}

#[test]
fn redis_nats_and_the_like_show_where_it_goes_or_why_it_does_not() {
    if !cfg!(all(
        feature = "sink-redis",
        feature = "sink-pubsub",
        feature = "sink-kafka"
    )) {
        return;
    }
    let redis = "type = \"redis\"\nurl = \"redis://127.0.0.1\"\n";
    let sent = shown(&format!("{redis}stream = \"close:{{{{ action }}}}\""));
    assert_eq!(
        (&sent["subject"], &sent["body"]),
        (&json!("close:updated"), &whole()),
        "{sent}"
    );
    assert_eq!(sent["headers"]["closehook-key"], KEY);
    let why = refused(&format!("{redis}stream = \"{{{{ data.stream | default }}}}\""));
    assert!(why.contains("the name of the stream is empty"), "{why}");

    let pubsub = "type = \"pubsub\"\nendpoint = \"http://127.0.0.1:1\"\nordering_key = \"{{ lead_id }}\"\n";
    let sent = shown(&format!("{pubsub}topic = \"projects/p/topics/{{{{ action }}}}\""));
    assert_eq!(
        (&sent["subject"], &sent["key"], &sent["body"]),
        (&json!("projects/p/topics/updated"), &json!("lead_1"), &whole()),
        "{sent}"
    );
    assert_eq!(sent["headers"]["closehook-key"], KEY);
    let why = refused(&format!("{pubsub}topic = \"projects/p/topics/{{{{ data.share }}}}\""));
    assert!(why.contains("topic is no topic's name"), "{why}");

    let kafka = "type = \"kafka\"\nbrokers = [\"127.0.0.1:1\"]\n";
    let sent = shown(&format!("{kafka}topic = \"close.{{{{ action }}}}\""));
    assert_eq!(
        (&sent["subject"], &sent["key"]),
        (&json!("close.updated"), &json!("lead_1")),
        "{sent}"
    );
    let why = refused(&format!("{kafka}topic = \"a/{{{{ action }}}}\""));
    assert!(why.contains("topic is no topic's name"), "{why}");
}

/// The delivery as it is made of an event that came without one.
fn whole() -> Value {
    Value::String(format!("{{\"event\":{EVENT}}}"))
}

#[test]
fn sinks_for_aws_show_attributes_groups_and_names_and_say_what_is_not_taken() {
    let sqs = format!(
        "type = \"sqs\"\n{}",
        aws("queue = \"https://sqs.eu-central-1.amazonaws.com/1/q.fifo\"\n")
    );
    let sent = shown(&sqs);
    assert_eq!((&sent["key"], &sent["body"]), (&json!("lead_1"), &whole()), "{sent}");
    assert_eq!(sent["headers"]["closehook-key"], KEY, "{sent}");
    let headers =
        |names: &str| format!("transform = \"export default () => ({{ payload: 'x', headers: {{ {names} }} }})\"\n");
    let why = refused(&format!("{sqs}{}", headers("a: '1', b: '2', c: '3', d: '4'")));
    assert!(why.contains("it has 11 attributes, and SQS takes 10"), "{why}");
    let sns = format!(
        "type = \"sns\"\n{}",
        aws("topic = \"arn:aws:sns:eu-central-1:1:t\"\nsubject = \"{{ action }}\"\n")
    );
    assert_eq!(shown(&sns)["subject"], "updated");
    let why = refused(&format!("{sns}{}", headers("'a b': '1'")));
    assert!(why.contains("no attribute may be called a b"), "{why}");
    let bus = format!("type = \"eventbridge\"\n{AWS}");
    let sent = shown(&bus);
    assert_eq!(
        (&sent["headers"]["source"], &sent["headers"]["detail-type"]),
        (&json!("closehook"), &json!("opportunity.updated")),
        "{sent}"
    );
    let why = refused(&format!("{bus}template = \"{{{{ action }}}}\"\n"));
    assert!(why.contains("is no JSON object, which EventBridge wants"), "{why}");
    let stream = format!("type = \"kinesis\"\n{}", aws("stream = \"s\"\n"));
    let sent = shown(&stream);
    assert_eq!(sent["key"], "lead_1", "{sent}");
    assert!(
        sent["body"].as_str().unwrap().starts_with("{\"meta\":{\"seq\":"),
        "{sent}"
    );
}

#[test]
fn s3_shows_where_its_objects_are_and_refuses_a_way_out_of_there() {
    let bucket = format!("type = \"s3\"\n{}", aws("bucket = \"archive\"\n"));
    let sent = shown(&format!("{bucket}prefix = \"close/{{{{ action }}}}\"\n"));
    let day = sent["subject"].as_str().unwrap();
    assert!(day.starts_with("close/updated/dt=2") && day.ends_with('/'), "{sent}");
    assert_eq!(sent.get("headers"), None, "{sent}");
    assert!(sent["body"].as_str().unwrap().contains("\"share\":0.10"), "{sent}");
    let why = refused(&format!(
        "{bucket}prefix = \"close/{{{{ data.up | default('..') }}}}/x\"\n"
    ));
    assert!(why.contains("its prefix has"), "{why}");
}

#[test]
fn exec_shows_its_variables_and_of_those_configured_not_the_secrets() {
    let sent =
        shown("type = \"exec\"\ncommand = [\"/bin/true\"]\nenv = { API_TOKEN = \"hunter22\", LANG = \"C.UTF-8\" }\n");
    for (name, value) in [
        ("CLOSEHOOK_SINK", "it"),
        ("CLOSEHOOK_EVENT_ID", "ev_1"),
        ("CLOSEHOOK_IDEMPOTENCY_KEY", KEY),
        ("CLOSEHOOK_EVENT_TYPE", "opportunity.updated"),
        ("CLOSEHOOK_ATTEMPT", "1"),
        ("API_TOKEN", "(secret)"),
        ("LANG", "C.UTF-8"),
    ] {
        assert_eq!(sent["headers"][name], value, "{name}: {sent}");
    }
    assert_eq!(sent["body"], format!("{EVENT}\n"));
}

/// What a transform says beside a line is written nowhere.
#[test]
fn a_file_shows_its_line_and_nothing_that_is_not_written() {
    let made =
        "transform = \"export default () => ({ payload: ['x'], headers: { a: 'b' }, key: 'k', subject: 's' })\"\n";
    let sent = shown(&format!("type = \"file\"\npath = \"DIR/f\"\n{made}"));
    assert_eq!(sent, json!({ "event_id": "ev_1", "sink": "it", "body": "[\"x\"]" }));
}

fn sqlite(keys: &str) -> String {
    format!("type = \"sqlite\"\npath = \"DIR/crm.db\"\n{keys}")
}

const COLUMNS: &str =
    "columns = { data = \"{{ data }}\", share = \"{{ data.share }}\", value = \"{{ data.value }}\" }\n";

#[test]
fn every_number_of_a_row_is_shown_as_it_is_written_there() {
    let data = r#""data":{"value":12345678901234567890123,"share":0.10,"a":1,"a":2}"#;
    for (keys, part) in [
        ("", data),
        ("mode = \"latest\"\n", data),
        (COLUMNS, r#""share":0.10,"value":12345678901234567890123}"#),
        (COLUMNS, "\"a\":1,\"a\":2}"),
    ] {
        let (daemon, file) = with(&sqlite(keys));
        let line = daemon.ok(&["render", "it", &file, "--json"]);
        assert!(line.contains("\"row\":{") && line.contains(part), "{keys}: {line}");
        let text = daemon.ok(&["render", "it", &file]);
        assert!(text.contains("\nrow: {") && text.contains(part), "{keys}: {text}");
    }
}

#[test]
fn what_is_no_row_is_skipped_or_refused() {
    let why = refused(&sqlite("template = \"[1]\"\n"));
    assert!(why.contains("is no JSON object, whose keys are the columns"), "{why}");
    let (daemon, file) = with_event(&sqlite("mode = \"latest\"\n"), "{\"id\":\"ev_1\"}");
    let sent = parsed(daemon.ok(&["render", "it", &file, "--json"]).trim_end());
    assert_eq!(sent, json!({ "event_id": "ev_1", "sink": "it", "skipped": true }));
}

#[test]
fn rules_test_expects_a_row_or_that_there_is_none() {
    for (keys, expected, is_so) in [
        (COLUMNS, "{ share = 0.1, data = { a = 2 } }", false),
        (
            "columns = { share = \"{{ data.share }}\", who = \"{{ lead_id }}\" }\n",
            r#"{ share = 0.1, who = "lead_1" }"#,
            true,
        ),
        (
            "columns = { share = \"{{ data.share }}\", who = \"{{ lead_id }}\" }\n",
            r#"{ share = 0.2, who = "lead_1" }"#,
            false,
        ),
        ("template = \"[1]\"\n", "\"[1]\"", false),
    ] {
        let (daemon, _) = with(&sqlite(keys));
        let cases = daemon.path("rules.test.toml");
        let case = format!("[[cases]]\nname = \"row\"\nevent = '{EVENT}'\npayload = {expected}\n");
        std::fs::write(&cases, case).unwrap();
        let run = daemon.run_command(&["rules", "test", cases.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&run.stdout).into_owned();
        assert_eq!(run.status.success(), is_so, "{keys}: {said}");
    }
}

#[test]
fn check_warns_where_what_a_program_makes_is_not_what_is_written() {
    for (keys, is_warned) in [
        (
            format!("{COLUMNS}transform = \"export default e => ({{ a: 1 }})\"\n"),
            true,
        ),
        ("mode = \"latest\"\ntemplate = \"x\"\n".to_owned(), true),
        (COLUMNS.to_owned(), false),
        ("transform = \"export default e => ({ a: 1 })\"\n".to_owned(), false),
    ] {
        let (daemon, _) = with(&sqlite(&keys));
        let said = daemon.ok(&["check"]);
        assert_eq!(said.contains("is not written"), is_warned, "{keys}: {said}");
    }
}
