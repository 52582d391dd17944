//! What the other side has to be set up with is enough, as the reference has it, word for word. (The line for Redis is tried in
//! `sinks_redis_ways`; Kafka's rights can't be tried with tansu, nor AWS's policies with ministack, which let everybody do everything.)

use serde_json::json;

use crate::harness::{Daemon, until};
use crate::{nats_server, postgres_server, rabbit_server, sinks_amqp, sinks_nats, sinks_sql};

fn reference(kind: &str) -> &'static closehook::config::SinkType {
    let types = closehook::sinks::REGISTRY.iter();
    types.copied().find(|known| known.name == kind).unwrap()
}

/// What stands in a text between two parts of it.
fn between<'t>(text: &'t str, begin: &str, end: &str) -> &'t str {
    let (_, rest) = text.split_once(begin).unwrap_or_else(|| panic!("{begin}: {text}"));
    rest.split_once(end).unwrap_or_else(|| panic!("{end}: {text}")).0
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_and_grants_that_the_reference_names_are_enough_in_postgresql() {
    let Some(server) = postgres_server::Server::start("").await else {
        return;
    };
    let (notes, setup) = (reference("postgres").notes, reference("postgres").setup);
    let events = between(notes, "Its columns: ", ". What jsonb")
        .replace(" (object_type.action)", "")
        .replace("; UNIQUE", ", UNIQUE");
    let latest = between(notes, "a row for each object_id: ", ". The newest").replace(" (object_type)", "");
    let marks = between(setup, "closehook_mark (", ", PRIMARY KEY").replace(", ", " NOT NULL, ");
    let key = between(setup, "updated_at timestamptz, ", "), all NOT");
    server
        .sql(&format!(
            "CREATE ROLE closehook LOGIN; CREATE TABLE closehook_events ({events}); CREATE TABLE closehook_latest ({latest});
             CREATE TABLE closehook_mark ({marks} NOT NULL, {key}); CREATE TABLE deals (lead text)"
        ))
        .await;
    let grants: Vec<&str> = setup.lines().filter(|line| line.starts_with("  GRANT")).collect();
    assert_eq!(grants.len(), 2, "{setup}");
    for grant in &grants {
        server.sql(grant).await;
    }
    assert!(grants[0].contains("closehook_events") && setup.contains("the same on closehook_latest"));
    server
        .sql(&grants[0].replace("closehook_events", "closehook_latest"))
        .await;
    let one =
        sinks_sql::postgres(&format!("postgres://closehook@127.0.0.1:{}/postgres", server.port)) + "create = false\n";
    let named = |name: &str, more: &str| one.replace("\"db\"", &format!("\"{name}\"")) + more;
    let daemon = Daemon::start(&format!(
        "{one}{}{}",
        named("latest", "mode = \"latest\"\n"),
        named("deals", "table = \"deals\"\ncolumns = { lead = \"{{ lead_id }}\" }\n")
    ))
    .await;
    daemon.ok(&["check", "--probe"]);
    let deal = json!({ "event": { "id": "ev_1", "object_type": "opportunity", "action": "created", "object_id": "oppo_1",
        "lead_id": "lead_1", "date_updated": "2024-02-15T12:48:23.395000", "data": {} } });
    assert_eq!(daemon.send(deal.to_string()).await.unwrap().0, 200);
    for (sink, rows) in [
        ("db", "closehook_events WHERE id = 'ev_1'"),
        ("latest", "closehook_latest WHERE object_id = 'oppo_1'"),
        ("deals", "deals WHERE lead = 'lead_1'"),
    ] {
        daemon.done(sink).await;
        let count = server.number(&format!("SELECT count(*) FROM {rows}")).await;
        assert_eq!((count, &daemon.sink(sink)["dead"]), (1, &json!(0)), "{sink}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_that_the_reference_names_is_enough_in_nats() {
    let setup = reference("nats").setup;
    let begin = setup.find("  authorization {").unwrap();
    let all = setup[begin..].replace("users = [", &format!("users = [ {}", nats_server::ADMIN));
    let Some(server) = nats_server::Server::start(&(all + "\n")).await else {
        return;
    };
    let subjects = between(setup, "--subjects '", "'");
    server.stream("CLOSE", &[subjects], &json!({ "discard": "new" })).await;
    let user = format!(
        "user = \"{}\"\npassword = \"{}\"\n",
        between(setup, "user: ", ","),
        between(setup, "password: \"", "\"")
    );
    let mut daemon = Daemon::new(&(sinks_nats::constant(&server.url()) + &user));
    let probed = daemon.ok(&["check", "--probe"]);
    assert!(probed.contains("the stream CLOSE takes close.events"), "{probed}");
    daemon.run().await;
    daemon.store(1..=20).await;
    daemon.done("bus").await;
    assert_eq!(server.count("CLOSE").await, 20);
    // Also where the subject is the event's choice, and no stream takes it.
    let chosen = sinks_nats::nats(&server.url(), &format!("subject = \"close.{{{{ lead_id }}}}\"\n{user}"));
    daemon.configure(&chosen);
    assert!(daemon.reload().await);
    server
        .stream("CLOSE", &["close.lead_1"], &json!({ "discard": "new" }))
        .await;
    daemon.store(21..=23).await;
    daemon.done("bus").await;
    assert_eq!(
        (server.count("CLOSE").await, &daemon.sink("bus")["dead"]),
        (21, &json!(2))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_and_the_queue_that_the_reference_names_are_enough_in_rabbitmq() {
    let Some(server) = rabbit_server::Server::start("", &[]).await else {
        return;
    };
    let setup = reference("amqp").setup;
    let line = |begin: &str| {
        let found = setup.lines().find_map(|line| line.trim().strip_prefix(begin));
        found.unwrap_or_else(|| panic!("{begin}: {setup}"))
    };
    let word = |line: &str, key: &str| {
        let found = line.split_whitespace().find_map(|word| word.strip_prefix(key)).unwrap();
        found.trim_matches('"').to_owned()
    };
    let user = line("rabbitmqctl add_user ");
    let rights: Vec<&str> = line("rabbitmqctl set_permissions -p / ").split(' ').collect();
    assert_eq!((rights[0], rights[1], rights[3]), (user, "\"\"", "\"\""));
    let exchange = line("rabbitmqadmin declare exchange ");
    let (name, kind) = (word(exchange, "name="), word(exchange, "type="));
    server.exchange("%2F", &name, &kind).await;
    let queue = word(line("rabbitmqadmin declare queue "), "name=");
    server.queue("%2F", &queue, json!({})).await;
    let binding = line("rabbitmqadmin declare binding ");
    assert_eq!(
        (word(binding, "source="), word(binding, "destination=")),
        (name.clone(), queue.clone())
    );
    server.bind("%2F", &name, &queue, &word(binding, "routing_key=")).await;
    server
        .user("%2F", user, "hunter2-one", rights[2].trim_matches('"'))
        .await;
    // What the example has of the place.
    let example: toml_edit::DocumentMut = reference("amqp").example.parse().unwrap();
    let shown = example["sinks"].as_array_of_tables().unwrap().get(0).unwrap();
    let config = format!(
        "[[sinks]]\nname = \"rabbit\"\ntype = \"amqp\"\nurl = \"amqp://{user}:hunter2-one@127.0.0.1:{}\"\nexchange = {}\nrouting_key = {}\n{}",
        server.port,
        shown["exchange"],
        shown["routing_key"],
        sinks_amqp::EAGER
    );
    let mut daemon = Daemon::new(&config);
    daemon.ok(&["check", "--probe"]);
    daemon.run().await;
    daemon.store(1..=20).await;
    until("all are there", async || daemon.sink("rabbit")["delivered"] == 20).await;
    assert_eq!(sinks_amqp::taken(&server, "%2F", &queue).await.len(), 20);
    daemon.stop().await;
}
