//! The amqp sink with the built daemon and a real RabbitMQ: what arrives, whatever is killed or cut, and what is said of a server that
//! can't be used. What goes wrong while it can is in `sinks_amqp_faults`.

use std::collections::{BTreeMap, BTreeSet};

use lapin::options::BasicGetOptions;
use lapin::types::AMQPValue;
use lapin::{Connection, ConnectionProperties};
use serde_json::json;

use crate::campaign;
use crate::harness::{Daemon, body, until};
use crate::postgres_server::Proxy;
use crate::rabbit_server::Server;

/// What every sink here has: it starts with the first event and does not wait long.
pub const EAGER: &str = "start = \"beginning\"\ntimeout = \"5s\"\nretry = { initial = \"10ms\", max_delay = \"100ms\" }\n\
     breaker = { probe = \"100ms\" }\n";

/// A sink that writes to the queue `all`.
pub fn to_queue(url: &str) -> String {
    format!("[[sinks]]\nname = \"rabbit\"\ntype = \"amqp\"\nurl = \"{url}\"\nrouting_key = \"all\"\n{EAGER}")
}

/// A message, as another client reads it.
#[derive(Debug, Clone)]
pub struct Got {
    pub body: String,
    pub key: String,
    pub kind: String,
    pub content_type: String,
    pub timestamp: u64,
    pub mode: u8,
    pub routing_key: String,
    pub exchange: String,
    pub headers: BTreeMap<String, String>,
}

impl Got {
    /// The number of the event.
    pub fn seq(&self) -> u64 {
        self.headers["closehook-seq"].parse().unwrap()
    }
}

/// Takes from a queue until it is empty, in order.
pub async fn taken(server: &Server, vhost: &str, queue: &str) -> Vec<Got> {
    let connection = Connection::connect(&server.url(vhost), ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut all = Vec::new();
    while let Some(message) = channel
        .basic_get(queue.into(), BasicGetOptions { no_ack: true })
        .await
        .unwrap()
    {
        let properties = &message.delivery.properties;
        let text =
            |text: &Option<lapin::types::ShortString>| text.as_ref().map_or_else(String::new, ToString::to_string);
        let header = |(name, value): (&lapin::types::ShortString, &AMQPValue)| {
            let AMQPValue::LongString(value) = value else {
                panic!("{name} is {value:?}");
            };
            (name.to_string(), value.to_string())
        };
        all.push(Got {
            body: String::from_utf8(message.delivery.data.clone()).unwrap(),
            key: text(properties.message_id()),
            kind: text(properties.kind()),
            content_type: text(properties.content_type()),
            timestamp: properties.timestamp().unwrap(),
            mode: properties.delivery_mode().unwrap(),
            routing_key: message.delivery.routing_key.to_string(),
            exchange: message.delivery.exchange.to_string(),
            headers: properties.headers().as_ref().unwrap().into_iter().map(header).collect(),
        });
    }
    connection.close(200, "bye".into()).await.unwrap();
    all
}

/// Each event at least once, with its body and its one key.
pub fn assert_all(got: &[Got], by_seq: &BTreeMap<u64, u64>) {
    let mut keys: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for message in got {
        assert_eq!(message.body, body(by_seq[&message.seq()]), "I5: byte for byte");
        assert_eq!(message.key, message.headers["closehook-key"]);
        keys.entry(message.seq()).or_default().insert(message.key.clone());
    }
    assert_eq!(keys, campaign::keys(by_seq), "I4: each event, under one key");
}

/// Seq and id are the same where one sender stores them in order.
pub fn in_order(ids: std::ops::RangeInclusive<u64>) -> BTreeMap<u64, u64> {
    ids.map(|id| (id, id)).collect()
}

const TOPICS: &str = "[[sinks]]
name = \"topics\"
type = \"amqp\"
url = \"URL\"
exchange = \"close\"
routing_key = \"{{ object_type }}.{{ action }}.{{ lead_id }}\"
order = \"strict\"
";

const MADE: &str = r#"[[sinks]]
name = "made"
type = "amqp"
url = "URL"
exchange = "close"
routing_key = "made"
transform = """
export default function (event, meta) {
  if (event.id === "ev_3") return null;
  if (event.id === "ev_4") return "text only";
  return { payload: { id: event.id, seq: meta.seq }, key: "made." + event.lead_id, headers: { "x-team": "sales", "closehook-source": "mine", "X-Naïve": "é" } };
}
"""
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_has_the_body_as_it_came_and_says_of_the_event_what_is_known() {
    let Some(server) = Server::start("", &[]).await else {
        return;
    };
    server.vhost("a%2Fb").await;
    for (queue, key) in [("leads", "lead.updated.*"), ("made", "made.*"), ("plain", "made")] {
        server.queue("a%2Fb", queue, json!({})).await;
        server.exchange("a%2Fb", "close", "topic").await;
        server.bind("a%2Fb", "close", queue, key).await;
    }
    server.queue("%2F", "all", json!({})).await;
    let url = server.url("a%2Fb");
    let (topics, made) = (format!("{TOPICS}{EAGER}"), format!("{MADE}{EAGER}"));
    let config = format!("{topics}{made}{}", to_queue(&server.url(""))).replace("URL", &url);
    let mut daemon = Daemon::new(&config);
    let probed = daemon.ok(&["check", "--probe"]);
    assert!(probed.contains("exchange \"close\" is there"), "{probed}");
    assert!(probed.contains("queue \"all\" is there"), "{probed}");
    daemon.run().await;
    daemon.store(1..=60).await;
    for sink in ["topics", "made", "rabbit"] {
        daemon.done(sink).await;
        assert_eq!(daemon.sink(sink)["dead"], 0, "{sink}");
    }
    check_topics(&taken(&server, "a%2Fb", "leads").await);
    let plain = taken(&server, "a%2Fb", "plain").await;
    assert_eq!(plain.len(), 1, "{plain:?}");
    assert_eq!((plain[0].body.as_str(), plain[0].seq()), ("text only", 4));
    assert_eq!(plain[0].content_type, "text/plain; charset=utf-8");
    let made = taken(&server, "a%2Fb", "made").await;
    assert_eq!(made.len(), 58);
    assert_eq!(made[0].body, r#"{"id":"ev_1","seq":1}"#);
    assert_eq!(made[0].routing_key, "made.lead_1");
    assert_eq!(made[0].headers["x-team"], "sales");
    assert_eq!(made[0].headers["X-Naïve"], "é");
    assert_eq!(made[0].headers["closehook-source"], "mine");
    let all = taken(&server, "%2F", "all").await;
    assert_all(&all, &in_order(1..=60));
    assert!(all.iter().all(|message| message.exchange.is_empty()));
    // What is said before is what was sent.
    let rendered = daemon.lines(&["render", "topics", "--id", "ev_7"]);
    assert_eq!(rendered[0]["key"], "lead.updated.lead_0");
    assert_eq!(rendered[0]["subject"], "close");
    assert_eq!(rendered[0]["body"], body(7));
    assert_eq!(rendered[0]["headers"]["message-id"], "ev_7:2024-02-15T12:48:23.395000");
    assert_eq!(rendered[0]["headers"]["closehook-seq"], "7");
    daemon.stop().await;
}

fn check_topics(leads: &[Got]) {
    assert_eq!(leads.len(), 60);
    for (index, message) in leads.iter().enumerate() {
        let id = index as u64 + 1;
        assert_eq!(message.body, body(id));
        assert_eq!(message.key, format!("ev_{id}:2024-02-15T12:48:23.395000"));
        assert_eq!(message.kind, "lead.updated");
        assert_eq!(message.content_type, "application/json");
        assert_eq!(message.mode, 2, "persistent");
        assert_eq!(message.exchange, "close");
        assert_eq!(message.routing_key, format!("lead.updated.lead_{}", id % 7));
        let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap();
        assert!((now - 600..=now).contains(&message.timestamp), "{}", message.timestamp);
        let headers = &message.headers;
        assert_eq!(headers["closehook-seq"], id.to_string());
        assert_eq!(headers["closehook-type"], "lead.updated");
        assert_eq!(headers["closehook-event-id"], format!("ev_{id}"));
        assert_eq!(headers["closehook-key"], message.key);
        assert_eq!(headers["closehook-lead-id"], format!("lead_{}", id % 7));
        assert_eq!(headers["closehook-source"], "webhook");
        assert!(headers["closehook-received-at"].ends_with('Z'));
        assert_eq!(headers.len(), 7);
    }
}

#[async_trait::async_trait]
impl campaign::Peer for Server {
    fn kill(&mut self) {
        Server::kill(self);
    }

    async fn run(&mut self) {
        Server::run(self).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missing_whenever_the_daemon_or_the_server_is_killed_and_a_repeat_has_the_same_key() {
    let Some(mut server) = Server::start("", &[]).await else {
        return;
    };
    server.queue("%2F", "all", json!({})).await;
    server.keep_definitions();
    let mut daemon = Daemon::new(&to_queue(&server.url("")));
    let by_seq = campaign::kills(&mut daemon, Some(&mut server), "rabbit").await;
    let got = taken(&server, "%2F", "all").await;
    assert_all(&got, &by_seq);
    eprintln!("{} events, {} messages", by_seq.len(), got.len());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_on_its_way_when_a_connection_is_cut_comes_again_and_a_reload_loses_nothing() {
    let Some(server) = Server::start("", &[]).await else {
        return;
    };
    server.queue("%2F", "all", json!({})).await;
    let proxy = Proxy::start(server.port).await;
    let url = format!("amqp://guest:guest@127.0.0.1:{}", proxy.port);
    let daemon = Daemon::start(&to_queue(&url)).await;
    daemon.store(1..=1).await;
    daemon.done("rabbit").await;
    let mut next = 2;
    // By half, and as a whole without an answer; while it signs in, and in the middle of messages.
    for (at, whole, signs_in) in [
        ("\"text\"", false, false),
        ("\"text\"", true, false),
        ("PLAIN", false, true),
        ("PLAIN", true, true),
        ("closehook-lead-id", true, false),
    ] {
        proxy.cut(at, whole);
        daemon.store(next..=next + 99).await;
        next += 100;
        until("it was cut", async || {
            // A connection that is there signs in no more, and a new one is made for an event.
            if signs_in {
                server.close_connections().await;
                daemon.store(next..=next).await;
                next += 1;
            }
            proxy.has_cut()
        })
        .await;
        daemon.done("rabbit").await;
    }
    // In the middle of what comes, the sink is exchanged for another one.
    let more = async {
        daemon.store(next..=next + 399).await;
    };
    let exchanged = async {
        daemon.configure(&format!("{}batch = {{ events = 7 }}\n", to_queue(&url)));
        assert!(daemon.reload().await);
        daemon.configure(&to_queue(&url));
        assert!(daemon.reload().await);
    };
    tokio::join!(more, exchanged);
    daemon.done("rabbit").await;
    let got = taken(&server, "%2F", "all").await;
    assert_all(&got, &in_order(1..=next + 399));
    assert_eq!(daemon.sink("rabbit")["dead"], 0);
}

/// An authority's certificate, and one for a name that it has signed, with its key.
struct Made {
    ca: String,
    cert: String,
    key: String,
    client_cert: String,
    client_key: String,
}

fn certificates() -> Made {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "a test's authority");
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let signed = |names: &[&str], common: &str| {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common);
        let cert = params.signed_by(&key, &issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    };
    let (cert, key) = signed(&["localhost", "127.0.0.1"], "localhost");
    let (client_cert, client_key) = signed(&["close"], "closehook");
    Made {
        ca: ca.pem(),
        cert,
        key,
        client_cert,
        client_key,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_the_server_has_to_be_known_and_a_certificate_can_sign_in() {
    let made = certificates();
    let settings = "listeners.ssl.1 = 127.0.0.1:TLS_PORT\nssl_options.cacertfile = DIR/ca.pem\n\
         ssl_options.certfile = DIR/cert.pem\nssl_options.keyfile = DIR/key.pem\nssl_options.verify = verify_peer\n\
         auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = EXTERNAL\nssl_cert_login_from = common_name\n";
    let files = [
        ("ca.pem", made.ca.clone()),
        ("cert.pem", made.cert),
        ("key.pem", made.key),
    ];
    let Some(server) = Server::start(settings, &files).await else {
        return;
    };
    server.queue("%2F", "all", json!({})).await;
    server.user("%2F", "closehook", "hunter2-unused", ".*").await;
    let url = format!("amqps://guest:guest@localhost:{}", server.tls_port);
    let daemon = Daemon::start(&to_queue(&url)).await;
    daemon.store(1..=5).await;
    daemon.says("rabbit", "set ca to the authority").await;
    for (name, text) in [
        ("ca.pem", &made.ca),
        ("client.pem", &made.client_cert),
        ("client.key", &made.client_key),
    ] {
        std::fs::write(daemon.path(name), text).unwrap();
    }
    daemon.configure(&format!("{}ca = \"DIR/ca.pem\"\n", to_queue(&url)));
    assert!(daemon.reload().await);
    daemon.done("rabbit").await;
    // As its certificate says.
    let url = format!("amqps://localhost:{}", server.tls_port);
    let signing = "ca = \"DIR/ca.pem\"\ncert = \"DIR/client.pem\"\nkey = \"DIR/client.key\"\n";
    daemon.configure(&format!("{}{signing}", to_queue(&url)));
    assert!(daemon.reload().await);
    daemon.store(6..=9).await;
    daemon.done("rabbit").await;
    let got = taken(&server, "%2F", "all").await;
    assert_all(&got, &in_order(1..=9));
    // The wrong port, both ways round.
    for (url, said) in [
        (
            format!("amqp://guest:guest@localhost:{}", server.tls_port),
            "use amqps://",
        ),
        (format!("amqps://guest:guest@localhost:{}", server.port), "use amqp://"),
    ] {
        daemon.configure(&to_queue(&url));
        let output = daemon.run_command(&["check", "--probe"]);
        let all = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(all.contains(said), "{all}");
    }
}
