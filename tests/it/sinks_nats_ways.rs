//! The nats sink, and all that can be wrong with a server, an account, or the way to it: the sink waits and says what to do, and no event is
//! dead or has tried in vain.

use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Daemon, until};
use crate::nats_server::{ADMIN, Nkey, Operated, Server, USER};
use crate::sinks_nats::{assert_once, constant, nats, with_stream};

/// The next event waits and the sink says why; none is dead, none has tried.
async fn waits(daemon: &Daemon, next: &mut u64, part: &str) {
    daemon.store(*next..=*next).await;
    *next += 1;
    daemon.says("bus", part).await;
    let sink = daemon.sink("bus");
    assert_eq!(
        (&sink["dead"], &sink["retrying"]),
        (&json!(0), &json!(0)),
        "{part}: {sink}"
    );
}

/// What `check --probe` says that finds something wrong.
fn probed_badly(daemon: &Daemon) -> String {
    let output = daemon.run_command(&["check", "--probe"]);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn assert_all(messages: &[crate::nats_server::Stored], next: u64) {
    assert_once(messages, &(1..next).map(|id| (id, id)).collect());
}

/// What commands say that show a sink, and the log.
async fn all_that_is_said(daemon: &Daemon) -> String {
    let mut said = daemon.stderr();
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["sinks", "list"],
        &["sinks", "list", "--json"],
        &["check", "--probe"],
        &["check", "--probe", "--json"],
        &["render", "bus", "--id", "ev_1"],
    ] {
        let output = daemon.run_command(arguments);
        said += &String::from_utf8_lossy(&output.stdout);
        said += &String::from_utf8_lossy(&output.stderr);
    }
    said + &daemon.metrics().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_stream_waits_and_says_what_to_do() {
    let Some(server) = Server::start("").await else { return };
    let daemon = Daemon::start(&constant(&server.url())).await;
    let mut next = 1;
    waits(&daemon, &mut next, "no stream takes messages on close.events: make one").await;
    server
        .stream("CLOSE", &["close.>"], &json!({ "max_msgs": 3, "discard": "new" }))
        .await;
    daemon.done("bus").await;
    daemon.store(next..=next + 1).await;
    next += 2;
    daemon.done("bus").await;
    waits(
        &daemon,
        &mut next,
        "\"maximum messages exceeded\" (10077): the stream is full",
    )
    .await;
    let info = server.good("STREAM.INFO.CLOSE", &Value::Null).await;
    let used = info["state"]["bytes"].as_u64().unwrap();
    server
        .stream(
            "CLOSE",
            &["close.>"],
            &json!({ "max_bytes": used + 100, "discard": "new" }),
        )
        .await;
    daemon.says("bus", "\"maximum bytes exceeded\"").await;
    server.stream("CLOSE", &["close.>"], &Value::Null).await;
    daemon.done("bus").await;
    server.stream("CLOSE", &["close.>"], &json!({ "no_ack": true })).await;
    waits(
        &daemon,
        &mut next,
        "did not acknowledge in time: is it overloaded, does the stream acknowledge",
    )
    .await;
    let probed = probed_badly(&daemon);
    assert!(probed.contains("CLOSE acknowledges nothing (no_ack)"), "{probed}");
    server.stream("CLOSE", &["close.>"], &Value::Null).await;
    daemon.done("bus").await;
    assert_all(&server.messages("CLOSE").await, next);
    let probed = daemon.ok(&["check", "--probe"]);
    assert!(
        probed.contains("the stream CLOSE takes close.events, and knows a repeat for 600 s"),
        "{probed}"
    );
    server.good("STREAM.DELETE.CLOSE", &Value::Null).await;
    let probed = probed_badly(&daemon);
    assert!(probed.contains("no stream takes messages on close.events"), "{probed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_account_waits_and_says_what_to_do() {
    let accounts = |jetstream: &str| {
        format!("accounts {{ A {{ {jetstream}\nusers = [ {ADMIN} ] }} }}\njetstream {{ store_dir: \"DIR/js\" }}\n")
    };
    let on = "jetstream: { max_file: 4000000, max_mem: 3000 }";
    let Some(mut server) = Server::start(&accounts(on)).await else {
        return;
    };
    server
        .stream("CLOSE", &["close.>"], &json!({ "storage": "memory" }))
        .await;
    let more = "subject = \"close.events\"\nuser = \"admin\"\npassword = \"admin-pass\"\n";
    let daemon = Daemon::start(&nats(&server.url(), more)).await;
    daemon.store(1..=30).await;
    daemon
        .says("bus", "(10002): the account's limit for JetStream is reached")
        .await;
    assert_eq!(daemon.sink("bus")["dead"], 0);
    server
        .reload(&accounts("jetstream: { max_file: 4000000, max_mem: 3000000 }"))
        .await;
    daemon.done("bus").await;
    assert_all(&server.messages("CLOSE").await, 31);
    let mut next = 31;
    server.kill();
    waits(&daemon, &mut next, "the server can't be reached: 127.0.0.1:").await;
    server.configure("# without jetstream\ndebug: false\n");
    server.run().await;
    daemon.says("bus", "JetStream does not answer there: turn it on").await;
    assert!(probed_badly(&daemon).contains("JetStream does not answer there"));
    server.kill();
    server.configure(&accounts(on));
    server.run().await;
    server
        .stream("CLOSE", &["close.>"], &json!({ "storage": "memory" }))
        .await;
    daemon.done("bus").await;
    assert_eq!(daemon.sink("bus")["dead"], 0);
}

/// As it stands in the reference.
fn users(password: &str, publish: &str, subscribe: &str) -> String {
    format!(
        "authorization {{\n  users = [\n    {ADMIN}\n    {{\n      user: closehook, password: \"{password}\"\n      permissions: {{\n        \
         publish: [{publish}]\n        subscribe: [{subscribe}]\n      }}\n    }}\n  ]\n}}\n"
    )
}

const PUBLISH: &str = "\"close.>\", \"$JS.API.STREAM.NAMES\", \"$JS.API.STREAM.INFO.*\"";
const SUBSCRIBE: &str = "\"_INBOX.>\"";

#[tokio::test(flavor = "multi_thread")]
async fn rights_and_passwords_that_are_taken_and_given_back_cost_no_event() {
    let Some(mut server) = with_stream(&users("hunter22-one", PUBLISH, SUBSCRIBE)).await else {
        return;
    };
    let mut daemon = Daemon::new("");
    let secret = daemon.path("password");
    std::fs::write(&secret, "hunter22-one\n").unwrap();
    daemon.configure(&nats(
        &server.url(),
        "subject = \"close.events\"\nuser = \"closehook\"\npassword_file = \"DIR/password\"\n",
    ));
    daemon.run().await;
    daemon.store(1..=3).await;
    daemon.done("bus").await;
    let probed = daemon.ok(&["check", "--probe"]);
    assert!(
        probed.contains("the stream CLOSE takes close.events, and knows a repeat"),
        "{probed}"
    );
    let mut next = 4;
    // The password first: the server ends the session that had it.
    server.reload(&users("hunter22-two", PUBLISH, SUBSCRIBE)).await;
    waits(&daemon, &mut next, "\"Authorization Violation\": see user and password").await;
    std::fs::write(&secret, "hunter22-two\n").unwrap();
    daemon.done("bus").await;
    // Then the right to publish, then that to hear.
    server
        .reload(&users("hunter22-two", "\"other.>\", \"$JS.API.>\"", SUBSCRIBE))
        .await;
    waits(&daemon, &mut next, "the user may not publish to close.events: allow it").await;
    server.reload(&users("hunter22-two", PUBLISH, "\"other.>\"")).await;
    daemon.says("bus", "the user may not subscribe to _INBOX.>").await;
    server.reload(&users("hunter22-two", "\"close.>\"", SUBSCRIBE)).await;
    daemon.done("bus").await;
    let probed = daemon.ok(&["check", "--probe"]);
    assert!(
        probed.contains("which stream takes close.events can't be seen"),
        "{probed}"
    );
    // Another prefix for answers.
    server
        .reload(&users("hunter22-two", "\"close.>\"", "\"_MINE.>\""))
        .await;
    waits(&daemon, &mut next, "or set inbox_prefix").await;
    daemon.configure(&nats(
        &server.url(),
        "subject = \"close.events\"\nuser = \"closehook\"\npassword_file = \"DIR/password\"\ninbox_prefix = \"_MINE\"\n",
    ));
    assert!(daemon.reload().await);
    daemon.done("bus").await;
    assert_all(&server.messages("CLOSE").await, next);
    assert_eq!(daemon.sink("bus")["dead"], 0);
    let said = all_that_is_said(&daemon).await;
    assert!(!said.contains("hunter22"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_nkeys_and_logins_in_the_address_let_it_in_and_are_shown_nowhere() {
    let key = Nkey::new(USER);
    let user = format!(
        "authorization {{ users = [ {ADMIN}\n {{ nkey: {} }} ] }}\n",
        key.public()
    );
    let Some(mut server) = with_stream(&user).await else {
        return;
    };
    let daemon = Daemon::start(&nats(
        &server.url(),
        "subject = \"close.events\"\nnkey_file = \"DIR/seed\"\n",
    ))
    .await;
    daemon.store(1..=1).await;
    daemon.says("bus", "can't be read").await;
    std::fs::write(daemon.path("seed"), key.seed() + "\n").unwrap();
    daemon.done("bus").await;
    // A seed that is nobody's there.
    std::fs::write(daemon.path("seed"), Nkey::new(USER).seed()).unwrap();
    assert!(daemon.reload().await);
    let mut next = 2;
    waits(&daemon, &mut next, "Authorization Violation").await;
    std::fs::write(daemon.path("seed"), key.seed()).unwrap();
    daemon.done("bus").await;
    let in_address = format!("nats://admin:admin-pass@127.0.0.1:{}", server.port);
    daemon.configure(&constant(&in_address));
    assert!(daemon.reload().await);
    daemon.store(next..=next).await;
    next += 1;
    daemon.done("bus").await;
    let mut said = all_that_is_said(&daemon).await;
    // A wrong one, and one in an address that is none.
    daemon.configure(&constant(&in_address.replace("admin-pass", "admin-password")));
    assert!(daemon.reload().await);
    waits(&daemon, &mut next, "Authorization Violation").await;
    said += &all_that_is_said(&daemon).await;
    daemon.configure(&constant("nats://admin:admin-pass@127.0.0.1:port"));
    said += &daemon.fails(2, &["check"]);
    daemon.configure(&constant(&in_address));
    assert!(daemon.reload().await);
    daemon.done("bus").await;
    assert_all(&server.messages("CLOSE").await, next);
    assert!(!said.contains("admin-pass") && !said.contains(&key.seed()), "{said}");
    // A token.
    server.kill();
    server.configure("authorization { token: \"hunter22-token\" }\n");
    daemon.configure(&nats(
        &server.url(),
        "subject = \"close.events\"\ntoken = \"hunter22-token\"\n",
    ));
    assert!(daemon.reload().await);
    daemon.store(next..=next).await;
    server.token = Some("hunter22-token".into());
    server.run().await;
    daemon.done("bus").await;
    assert!(!all_that_is_said(&daemon).await.contains("hunter22"));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_expire_are_read_again_and_what_waited_goes_with_new_ones() {
    let operated = Operated::new();
    let Some(mut server) = Server::new() else { return };
    server.configure(&operated.config);
    server.creds = Some(operated.creds(None));
    server.run().await;
    server.stream("CLOSE", &["close.>"], &Value::Null).await;
    let mut daemon = Daemon::new("");
    let first = operated.creds(Some(3));
    std::fs::write(daemon.path("user.creds"), &first).unwrap();
    daemon.configure(&nats(
        &server.url(),
        "subject = \"close.events\"\ncredentials_file = \"DIR/user.creds\"\n",
    ));
    daemon.run().await;
    daemon.store(1..=3).await;
    until("they are there, or it has expired", async || {
        server.count("CLOSE").await == 3 || !daemon.last_error("bus").is_empty()
    })
    .await;
    let mut next = 4;
    until("it has expired", async || {
        daemon.store(next..=next).await;
        next += 1;
        daemon.last_error("bus").contains("xpired") || daemon.last_error("bus").contains("Authorization Violation")
    })
    .await;
    let second = operated.creds(None);
    std::fs::write(daemon.path("user.creds"), &second).unwrap();
    daemon.done("bus").await;
    assert_all(&server.messages("CLOSE").await, next);
    let sink = daemon.sink("bus");
    assert_eq!((&sink["dead"], &sink["retrying"]), (&json!(0), &json!(0)), "{sink}");
    let said = all_that_is_said(&daemon).await;
    for creds in [&first, &second] {
        for line in creds.lines().filter(|line| line.len() > 50) {
            assert!(!said.contains(line), "{said}");
        }
    }
}

/// Certificates of an authority, in a server's directory.
fn certificates(server: &Server) -> PathBuf {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    let write = |name: &str, text: String| {
        let path = server.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, &issuer).unwrap();
    write("cert.pem", cert.pem());
    write("key.pem", key.serialize_pem());
    write("ca.pem", authority.pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_authority_is_not_trusted_and_what_waited_goes_once_it_is_known() {
    let Some(mut server) = Server::new() else { return };
    server.ca = Some(certificates(&server));
    let tls = "tls { cert_file: \"DIR/cert.pem\", key_file: \"DIR/key.pem\"";
    server.configure(&format!("{tls} }}\n"));
    server.run().await;
    server.stream("CLOSE", &["close.>"], &Value::Null).await;
    let here = server.dir.path().display().to_string();
    let url = format!("nats://127.0.0.1:{}", server.port);
    let daemon = Daemon::start(&constant(&url)).await;
    let mut next = 1;
    waits(&daemon, &mut next, "UnknownIssuer: set ca to the authority").await;
    let ca = format!("subject = \"close.events\"\nca = \"{here}/ca.pem\"\n");
    daemon.configure(&nats(&url, &ca));
    assert!(daemon.reload().await);
    daemon.done("bus").await;
    // It wants a certificate of ours, too; then TLS before anything else.
    server.kill();
    server.configure(&format!("{tls}, ca_file: \"DIR/ca.pem\", verify: true }}\n"));
    let in_dir = |name: &str| server.dir.path().join(name);
    server.identity = Some((in_dir("cert.pem"), in_dir("key.pem")));
    server.run().await;
    waits(&daemon, &mut next, "certificate").await;
    let identity = format!("{ca}cert = \"{here}/cert.pem\"\nkey = \"{here}/key.pem\"\n");
    daemon.configure(&nats(&url, &identity));
    assert!(daemon.reload().await);
    daemon.done("bus").await;
    server.kill();
    server.configure(&format!("{tls}, handshake_first: true }}\n"));
    server.run().await;
    waits(&daemon, &mut next, "tls_first = true").await;
    daemon.configure(&nats(&url, &format!("{identity}tls_first = true\n")));
    assert!(daemon.reload().await);
    daemon.done("bus").await;
    // A server without TLS, where it is demanded.
    server.kill();
    server.configure("");
    server.ca = None;
    server.run().await;
    daemon.configure(&nats(&url, &identity));
    assert!(daemon.reload().await);
    waits(&daemon, &mut next, "the server speaks no TLS there").await;
    daemon.configure(&constant(&url));
    assert!(daemon.reload().await);
    daemon.done("bus").await;
    assert_all(&server.messages("CLOSE").await, next);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_is_waited_for_and_nothing_comes_twice() {
    let Some(server) = with_stream("").await else { return };
    let daemon = Daemon::start(&nats(
        &server.url(),
        "subject = \"close.events\"\nconcurrency = 4\nbatch = { events = 10 }\n",
    ))
    .await;
    daemon.store(1..=20).await;
    daemon.done("bus").await;
    server.freeze();
    daemon.store(21..=200).await;
    daemon.says("bus", "did not acknowledge in time").await;
    server.thaw();
    daemon.done("bus").await;
    assert_all(&server.messages("CLOSE").await, 201);
    assert_eq!(daemon.sink("bus")["dead"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lame_duck_is_left_for_another_server_and_so_is_a_dead_one() {
    let (Some(mut one), Some(other)) = (
        with_stream("lame_duck_duration: \"60s\"\nlame_duck_grace_period: \"50s\"\n").await,
        with_stream("").await,
    ) else {
        return;
    };
    let both = format!("nats://127.0.0.1:{},nats://127.0.0.1:{}", one.port, other.port);
    let daemon = Daemon::start(&constant(&both)).await;
    daemon.store(1..=10).await;
    daemon.done("bus").await;
    assert_eq!((one.count("CLOSE").await, other.count("CLOSE").await), (10, 0));
    let before = one.messages("CLOSE").await;
    one.signal("USR2");
    until("it says so", async || one.log().contains("lame duck mode")).await;
    let mut next = 11;
    until("the other one is used", async || {
        daemon.store(next..=next).await;
        next += 1;
        other.count("CLOSE").await > 0
    })
    .await;
    daemon.done("bus").await;
    assert_eq!(daemon.sink("bus")["dead"], 0);
    one.kill();
    one.run().await;
    let first = one.messages("CLOSE").await;
    assert!(first.len() >= before.len());
    let mut all = first;
    all.extend(other.messages("CLOSE").await);
    assert_all(&all, next);
    // The other one dies: it goes back.
    let mut other = other;
    other.kill();
    let count = one.count("CLOSE").await;
    daemon.store(next..=next).await;
    daemon.done("bus").await;
    assert_eq!(one.count("CLOSE").await, count + 1);
}

/// Three servers that are one cluster; a stream on all of them.
async fn cluster() -> Option<Vec<Server>> {
    let routes: Vec<u16> = (0..3)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
        .map(|free| free.local_addr().unwrap().port())
        .collect();
    let all: Vec<String> = routes
        .iter()
        .map(|port| format!("\"nats://127.0.0.1:{port}\""))
        .collect();
    let mut servers = Vec::new();
    for (number, port) in routes.iter().enumerate() {
        let mut server = Server::new()?;
        server.configure(&format!(
            "server_name: n{number}\ncluster {{ name: C, listen: \"127.0.0.1:{port}\", routes: [{}] }}\n",
            all.join(", ")
        ));
        server.run().await;
        servers.push(server);
    }
    until("the cluster takes a stream", async || {
        servers[0]
            .try_stream("CLOSE", &["close.>"], &json!({ "num_replicas": 3 }))
            .await
            .is_ok()
    })
    .await;
    Some(servers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_a_leader_is_waited_for_also_where_the_event_has_chosen_the_subject() {
    let Some(mut servers) = cluster().await else { return };
    // One server is named: what the cluster says of the others is not followed.
    let daemon = Daemon::start(&nats(&servers[0].url(), "subject = \"close.{{ action }}\"\n")).await;
    daemon.store(1..=20).await;
    daemon.done("bus").await;
    servers[1].kill();
    servers[2].kill();
    daemon.store(21..=40).await;
    until("it says why", async || {
        let said = daemon.last_error("bus");
        [
            "has no leader",
            "gives no answer",
            "did not acknowledge in time",
            "wait until the cluster has a leader",
        ]
        .iter()
        .any(|part| said.contains(part))
    })
    .await;
    assert_eq!(daemon.sink("bus")["dead"], 0);
    servers[1].run().await;
    servers[2].run().await;
    daemon.done("bus").await;
    until("all are there", async || servers[0].count("CLOSE").await == 40).await;
    assert_all(&servers[0].messages("CLOSE").await, 41);
    assert_eq!(daemon.sink("bus")["dead"], 0);
}

/// What may stand at a port instead of NATS.
#[derive(Clone, Copy)]
enum Mood {
    /// Says nothing.
    Silent,
    /// Speaks something else.
    Http,
    /// One line without end.
    Endless,
    /// Is NATS as far as the login, and then sends without end.
    Flooding,
    /// Is NATS as far as that, and answers nothing more.
    Mute,
}

async fn behave(mut stream: TcpStream, mood: Mood) -> std::io::Result<()> {
    const INFO: &str = "INFO {\"server_id\":\"x\",\"version\":\"2.11.0\",\"proto\":1,\"headers\":true,\"max_payload\":1048576,\"jetstream\":true}\r\n";
    let mut read = vec![0; 4096];
    match mood {
        Mood::Silent => {}
        Mood::Http => stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await?,
        Mood::Endless => loop {
            stream.write_all("x".repeat(1 << 16).as_bytes()).await?;
        },
        Mood::Flooding | Mood::Mute => {
            stream.write_all(INFO.as_bytes()).await?;
            // CONNECT and PING come together, or one after the other.
            let mut said = Vec::new();
            while !said.windows(4).any(|part| part == b"PING") {
                let len = stream.read(&mut read).await?;
                said.extend_from_slice(&read[..len]);
                if len == 0 {
                    return Ok(());
                }
            }
            stream.write_all(b"PONG\r\n").await?;
            while let Mood::Flooding = mood {
                stream.write_all("+OK\r\n".repeat(1 << 14).as_bytes()).await?;
            }
        }
    }
    while stream.read(&mut read).await? > 0 {}
    Ok(())
}

/// Its port.
async fn instead(mood: Mood) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(behave(stream, mood));
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_nats_server_says_so_in_time_and_takes_neither_memory_nor_the_others_time() {
    let Some(server) = with_stream("").await else { return };
    let daemon = Daemon::start(&constant(&server.url())).await;
    daemon.store(1..=1).await;
    daemon.done("bus").await;
    let mut next = 2;
    for (mood, part) in [
        (Mood::Http, "that is no NATS server"),
        (Mood::Silent, "it did not answer in time: is it a NATS server"),
        (Mood::Endless, "it did not answer in time: is it a NATS server"),
        (Mood::Flooding, "the server sends without end, and was cut off"),
        (Mood::Mute, "did not acknowledge in time"),
    ] {
        let beside = "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/all.jsonl\"\nstart = \"beginning\"\n";
        daemon.configure(&(constant(&format!("nats://127.0.0.1:{}", instead(mood).await)) + beside));
        assert!(daemon.reload().await);
        waits(&daemon, &mut next, part).await;
        daemon.done("file").await;
        assert!(daemon.resident() < 400 << 20, "{part}: {}", daemon.resident());
        // A session leaves no thread behind.
        let threads = || std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        until("the threads of its sessions are gone", async || {
            threads()
                .filter(|task| {
                    let comm = task.as_ref().unwrap().path().join("comm");
                    std::fs::read_to_string(comm).is_ok_and(|name| name.trim() == "nats")
                })
                .count()
                <= 2
        })
        .await;
    }
    daemon.configure(&constant(&server.url()));
    assert!(daemon.reload().await);
    daemon.done("bus").await;
    assert_all(&server.messages("CLOSE").await, next);
}
