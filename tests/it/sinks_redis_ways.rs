//! Ways to a server of Redis's kind: who asks, TLS, sockets, clusters, replicas, and what is no such server at all.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::harness::{Daemon, Receiver, until};
use crate::redis_server::{Kind, Server};
use crate::sinks_redis::{entries, on_both, seqs, sink, store};

on_both!(
    the_line_of_the_reference_gives_a_user_what_it_needs_and_what_is_taken_from_it_is_told,
    a_password_that_is_changed_costs_nothing_once_it_is_known,
    a_stream_that_the_user_may_not_write_is_about_the_events_that_chose_it,
    a_socket_and_another_database_are_a_way_too,
    in_a_cluster_the_node_that_has_the_slot_is_found,
    a_replica_is_waited_for_until_it_is_the_primary,
);

/// The line that makes the user, as the reference has it.
fn line_of_the_user(daemon: &Daemon, password: &str) -> Vec<String> {
    let page = daemon.ok(&["sinks", "types", "redis"]);
    let line = page
        .lines()
        .find(|line| line.trim().starts_with("ACL SETUSER"))
        .unwrap();
    line.split_whitespace()
        .map(|word| word.replace("PASSWORD", password))
        .collect()
}

fn make_user(server: &Server, daemon: &Daemon, password: &str) {
    let words = line_of_the_user(daemon, password);
    server.tell(&words.iter().map(String::as_str).collect::<Vec<_>>());
}

/// What a probe that must fail says.
fn probe_fails(daemon: &Daemon) -> String {
    let output = daemon.run_command(&["check", "--probe"]);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

fn as_user(url: &str) -> String {
    sink(url) + "username = \"closehook\"\npassword_file = \"DIR/password\"\n"
}

/// A daemon whose sink logs in as the reference has it.
async fn with_user(server: &Server, change: impl Fn(String) -> String) -> Daemon {
    let mut daemon = Daemon::new("");
    daemon.configure(&change(as_user(&server.url())));
    std::fs::write(daemon.path("password"), "hunter2-one\n").unwrap();
    make_user(server, &daemon, "hunter2-one");
    daemon.run().await;
    daemon
}

async fn the_line_of_the_reference_gives_a_user_what_it_needs_and_what_is_taken_from_it_is_told(kind: Kind) {
    let Some(server) = Server::start(kind, &[]).await else {
        return;
    };
    let mut daemon = with_user(&server, |config| config).await;
    store(&daemon, 1..=3).await;
    assert_eq!(seqs(&server, "close"), [1, 2, 3]);
    daemon.ok(&["check", "--probe"]);
    // Each right by itself: where it lacks nothing is written, wherever the script is then.
    let line = line_of_the_user(&daemon, "");
    let rights: Vec<&String> = line.iter().filter(|word| word.starts_with('+')).collect();
    assert!(rights.len() > 5, "{rights:?}");
    for (next, right) in (4_u64..).zip(rights) {
        server.tell(&["ACL", "SETUSER", "closehook", &right.replace('+', "-")]);
        // Some are needed only to open the sink.
        daemon.stop().await;
        daemon.run().await;
        daemon.store(next..=next).await;
        daemon
            .says("stream", "lacks a right: `closehook sinks types redis`")
            .await;
        let said = probe_fails(&daemon);
        assert!(said.contains("lacks a right"), "{right}: {said}");
        assert_eq!(seqs(&server, "close"), (1..next).collect::<Vec<_>>(), "without {right}");
        server.tell(&["ACL", "SETUSER", "closehook", right]);
        daemon.done("stream").await;
        assert_eq!(seqs(&server, "close"), (1..=next).collect::<Vec<_>>(), "{right}");
    }
    let shown = daemon.sink("stream");
    assert_eq!(
        (shown["dead"].as_u64(), shown["retrying"].as_u64()),
        (Some(0), Some(0)),
        "{shown}"
    );
}

async fn a_password_that_is_changed_costs_nothing_once_it_is_known(kind: Kind) {
    let Some(server) = Server::start(kind, &[]).await else {
        return;
    };
    let daemon = with_user(&server, |config| config).await;
    store(&daemon, 1..=3).await;
    server.tell(&["ACL", "SETUSER", "closehook", "resetpass", ">hunter2-two"]);
    let _: u64 = server.ask(&["CLIENT", "KILL", "USER", "closehook"]);
    daemon.store(4..=6).await;
    daemon.says("stream", "refuses user or password").await;
    std::fs::write(daemon.path("password"), "hunter2-two").unwrap();
    daemon.done("stream").await;
    assert_eq!(seqs(&server, "close"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(daemon.sink("stream")["dead"], 0);
    assert!(!daemon.stderr().contains("hunter2"), "no password in the log");
    // Here nobody may come in without one.
    let Some(closed) = Server::start(kind, &["--requirepass", "hunter2-three"]).await else {
        return;
    };
    let other = Daemon::start(&sink(&closed.url())).await;
    other.store(1..=1).await;
    other.says("stream", "demands a password: set password_file").await;
}

async fn a_stream_that_the_user_may_not_write_is_about_the_events_that_chose_it(kind: Kind) {
    let Some(server) = Server::start(kind, &[]).await else {
        return;
    };
    let change = |config: String| {
        config.replace(
            "stream = \"close\"",
            "stream = \"{{ 'secret' if id == 'ev_7' else 'close' }}\"\nbatch = { wait = \"1s\" }",
        )
    };
    let daemon = with_user(&server, change).await;
    store(&daemon, 1..=20).await;
    assert_eq!(
        seqs(&server, "close"),
        (1..=20).filter(|seq| *seq != 7).collect::<Vec<_>>()
    );
    let dead = daemon.lines(&["dead", "list"]);
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert!(
        dead[0]
            .to_string()
            .contains("does not let its stream be written: NOPERM"),
        "{dead:?}"
    );
}

async fn a_socket_and_another_database_are_a_way_too(kind: Kind) {
    let Some(server) = Server::start(kind, &[]).await else {
        return;
    };
    let url = format!("unix://{}?db=3", server.socket().display());
    let daemon = Daemon::start(&sink(&url)).await;
    store(&daemon, 1..=3).await;
    assert!(entries(&server, "close").is_empty());
    let mut admin = server.admin();
    Server::ask_over::<()>(&mut admin, &["SELECT", "3"]);
    assert_eq!(Server::ask_over::<u64>(&mut admin, &["XLEN", "close"]), 3);
    daemon.configure(&sink(&format!("{}/99", server.url())));
    let said = probe_fails(&daemon);
    assert!(said.contains("there is no such database"), "{said}");
}

async fn in_a_cluster_the_node_that_has_the_slot_is_found(kind: Kind) {
    let mut nodes = Vec::new();
    for slots in [["0", "8191"], ["8192", "16383"]] {
        // By default it is ten thousand above the other one, where there may be no port.
        let bus = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
            .to_string();
        let settings = ["--cluster-enabled", "yes", "--cluster-port", bus.as_str()];
        let Some(node) = Server::start(kind, &settings).await else {
            return;
        };
        node.tell(&["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]]);
        nodes.push((node, bus));
    }
    let (other, bus) = (&nodes[1].0, &nodes[1].1);
    nodes[0]
        .0
        .tell(&["CLUSTER", "MEET", "127.0.0.1", &other.port.to_string(), bus]);
    until("the cluster is whole", async || {
        nodes
            .iter()
            .all(|(node, _)| node.ask::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
    })
    .await;
    let named = |name: &str, node: usize, stream: &str| {
        let sink = sink(&nodes[node].0.url()).replace("stream = \"close\"", &format!("stream = \"{stream}\""));
        sink.replace("name = \"stream\"", &format!("name = \"{name}\""))
    };
    // Whichever of them has it, one of the two is sent on.
    let config = [
        named("stream", 0, "{close}:{{ action }}"),
        named("other", 1, "{close}:{{ action }}"),
        named("apart", 0, "apart"),
        named("away", 1, "away"),
        named("each", 0, "each:{{ lead_id }}"),
    ];
    let daemon = Daemon::start(&config.concat()).await;
    store(&daemon, 1..=20).await;
    daemon.done("other").await;
    let at = |(node, _): &(Server, String)| {
        let keys: Vec<String> = node.ask(&["KEYS", "{close}:updated"]);
        keys.len() == 1
    };
    let node = &nodes.iter().find(|node| at(node)).unwrap().0;
    let mut found = seqs(node, "{close}:updated");
    found.sort_unstable();
    assert_eq!(found, (1..=20).flat_map(|seq| [seq, seq]).collect::<Vec<_>>());
    until("it is told what to do", async || {
        let said = [daemon.last_error("apart"), daemon.last_error("away")];
        said.iter().any(|said| said.contains("begin with a name in braces"))
    })
    .await;
    // Of streams that the event chooses it is the events that are told, and after five of them the rest waits.
    until("they are told", async || daemon.sink("each")["dead"] != 0).await;
    assert!(daemon.ok(&["dead", "list", "--sink", "each"]).contains("CROSSSLOT"));
}

async fn a_replica_is_waited_for_until_it_is_the_primary(kind: Kind) {
    let Some(primary) = Server::start(kind, &[]).await else {
        return;
    };
    let Some(replica) = Server::start(kind, &[]).await else {
        return;
    };
    let daemon = Daemon::start(&sink(&primary.url())).await;
    store(&daemon, 1..=5).await;
    replica.tell(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    until("it has all", async || {
        let info: String = replica.ask(&["INFO", "replication"]);
        info.contains("master_link_status:up") && replica.ask::<u64>(&["XLEN", "close"]) == 5
    })
    .await;
    daemon.configure(&sink(&replica.url()));
    assert!(daemon.reload().await);
    daemon.store(6..=8).await;
    daemon
        .says("stream", "is a replica and takes no changes: name the primary")
        .await;
    let said = probe_fails(&daemon);
    assert!(said.contains("is a replica"), "{said}");
    replica.tell(&["REPLICAOF", "NO", "ONE"]);
    daemon.done("stream").await;
    assert_eq!(
        seqs(&replica, "close"),
        (1..=8).collect::<Vec<_>>(),
        "the mark came with the data"
    );
    assert_eq!(daemon.sink("stream")["dead"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_the_server_must_be_known_and_may_demand_to_know_who_asks() {
    let keys = tempfile::tempdir().unwrap();
    let path = |name: &str| keys.path().join(name).display().to_string();
    for name in ["server", "client"] {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(path(name), made.cert.pem()).unwrap();
        std::fs::write(path(&format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
    }
    let (cert, key, clients) = (path("server"), path("server.key"), path("client"));
    let settings = [
        "--tls-cert-file",
        cert.as_str(),
        "--tls-key-file",
        key.as_str(),
        "--tls-ca-cert-file",
        clients.as_str(),
    ];
    let Some(server) = Server::start(Kind::Redis, &settings).await else {
        return;
    };
    let config = sink(&format!("rediss://localhost:{}", server.port));
    let daemon = Daemon::start(&config).await;
    daemon.store(1..=3).await;
    daemon
        .says("stream", "set ca to the authority that signed the server's certificate")
        .await;
    let config = format!("{config}ca = \"{cert}\"\n");
    daemon.configure(&config);
    assert!(daemon.reload().await);
    daemon
        .says("stream", "demands a client's certificate: set cert and key")
        .await;
    let config = format!("{config}cert = \"{clients}\"\nkey = \"{clients}.key\"\n");
    daemon.configure(&config);
    assert!(daemon.reload().await);
    daemon.done("stream").await;
    assert_eq!(seqs(&server, "close"), [1, 2, 3]);
    assert_eq!(daemon.sink("stream")["dead"], 0);
    // The one without and the one with TLS are taken for each other.
    daemon.configure(
        &sink(&format!("redis://localhost:{}", server.port)).replace("timeout = \"4s\"", "timeout = \"2s\""),
    );
    let said = probe_fails(&daemon);
    assert!(
        said.contains("was lost") || said.contains("wants TLS") || said.contains("did not answer"),
        "{said}"
    );
    let Some(plain) = Server::start(Kind::Redis, &[]).await else {
        return;
    };
    daemon.configure(
        &sink(&format!("rediss://localhost:{}", plain.port)).replace("timeout = \"4s\"", "timeout = \"2s\""),
    );
    let said = probe_fails(&daemon);
    assert!(
        said.contains("speaks no TLS") || said.contains("can't be reached"),
        "{said}"
    );
}

/// Something that says the same to everybody: once for each time it hears something, or without end.
async fn fake(says: &'static [u8], without_end: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut heard = vec![0; 1 << 16];
                while stream.read(&mut heard).await.is_ok_and(|len| len > 0) {
                    if stream.write_all(says).await.is_err() {
                        return;
                    }
                    if without_end {
                        while stream.write_all(&says.repeat(1000)).await.is_ok() {}
                        return;
                    }
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_such_server_or_not_ready_is_told_and_holds_nothing_up() {
    let quick = |port: u16| sink(&format!("redis://127.0.0.1:{port}")).replace("timeout = \"4s\"", "timeout = \"1s\"");
    let beside = "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/all.jsonl\"\nstart = \"beginning\"\n";
    let receiver = Receiver::start(200).await;
    let http = receiver
        .url
        .rsplit(':')
        .next()
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    for (port, part) in [
        (http, "does not speak Redis's protocol"),
        (
            fake(b"-LOADING Redis is loading the dataset in memory\r\n", false).await,
            "is loading its data",
        ),
        (
            fake(b"-ERR max number of clients reached\r\n", false).await,
            "maxclients",
        ),
        (
            fake(
                b"-MISCONF Errors writing to the AOF file: No space left on device\r\n",
                false,
            )
            .await,
            "can't save to its disk",
        ),
        (fake(b"+OK\r\n", false).await, "none that it gives"),
        (fake(b"+OK\r\n", true).await, "none that it gives"),
        (fake(b"", false).await, "did not answer within 0.9 s"),
        (fake(b"$99999999999\r\n", true).await, "did not answer within 0.9 s"),
    ] {
        let daemon = Daemon::start(&(quick(port) + beside)).await;
        let before = daemon.resident();
        daemon.store(1..=20).await;
        daemon.says("stream", part).await;
        daemon.done("file").await;
        let shown = daemon.sink("stream");
        assert_eq!(
            (shown["dead"].as_u64(), shown["retrying"].as_u64()),
            (Some(0), Some(0)),
            "{shown}"
        );
        let grown = daemon.resident().saturating_sub(before);
        assert!(grown < 32 << 20, "{part}: {grown} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_shown_nowhere() {
    let Some(server) = Server::start(Kind::Redis, &[]).await else {
        return;
    };
    let url = server.url().replace("redis://", "redis://somebody:hunter2@");
    let daemon = Daemon::start(&sink(&url)).await;
    daemon.store(1..=1).await;
    daemon.says("stream", "refuses user or password").await;
    let mut said = daemon.stderr();
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["sinks", "list"],
        &["sinks", "list", "--json"],
        &["check", "--probe"],
        &["check", "--probe", "--json"],
        &["render", "stream", "--id", "ev_1"],
        &["render", "stream", "--id", "ev_1", "--json"],
    ] {
        let output = daemon.run_command(arguments);
        said += &String::from_utf8_lossy(&output.stdout);
        said += &String::from_utf8_lossy(&output.stderr);
    }
    said += &daemon.metrics().await;
    assert!(said.contains("refuses user or password"));
    assert!(!said.contains("hunter2"), "{said}");
    // Nor where the configuration is wrong.
    let wrong = sink(&format!("{url}/zero")) + "password = \"hunter2\"\n";
    daemon.configure(&wrong);
    let said = daemon.fails(2, &["check"]);
    assert!(said.contains("no number") && !said.contains("hunter2"), "{said}");
}
