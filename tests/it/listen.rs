//! `closehook listen`: what Close sends, on the screen and at the program one is writing (contract 1).

use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use closehook::ingress::verify::Key;
use serde_json::Value;

use crate::harness::{Daemon, KEY, Receiver, binary, body, send, until};

/// A running `closehook listen`, its temporary directories in a directory of its own.
struct Listening {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    temporary: tempfile::TempDir,
}

impl Listening {
    fn start(mut command: Command, arguments: &[&str]) -> Listening {
        let temporary = tempfile::tempdir().unwrap();
        let mut child = command
            .arg("listen")
            .args(arguments)
            .env("TMPDIR", temporary.path())
            .env("CLOSEHOOK__SERVER__LISTEN", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Listening {
            child,
            lines,
            temporary,
        }
    }

    fn line(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }

    /// Reads what it says at first; gives its URL and the command that sends a sample.
    fn announced(&mut self) -> (String, Vec<String>) {
        let first = self.line();
        let url = first.strip_prefix("listens on ").unwrap().split(' ').next().unwrap();
        let sample = self.line();
        let sample = sample.strip_prefix("send a sample: closehook ").unwrap();
        let words = sample.split(' ').map(ToOwned::to_owned).collect();
        assert_eq!(self.line(), "Ctrl-C ends it");
        (url.to_owned(), words)
    }

    fn left(&self) -> Vec<PathBuf> {
        let listing = std::fs::read_dir(self.temporary.path()).unwrap();
        listing.map(|entry| entry.unwrap().path()).collect()
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Told to end, it does so well, and nothing is left.
    fn end(&mut self, signal: &str) {
        self.signal(signal);
        assert!(self.child.wait().unwrap().success(), "{signal} ends it well");
        assert!(self.left().is_empty(), "{:?}", self.left());
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn without_configuration() -> Command {
    let mut command = Command::new(binary());
    command.env_remove("CLOSEHOOK_CONFIG");
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_shown_and_forwarded_as_they_came_with_the_answers() {
    let receiver = Receiver::start(200).await;
    let daemon = Daemon::new("");
    let mut listening = Listening::start(daemon.command(), &["--forward-to", &receiver.url]);
    let (url, _) = listening.announced();
    let key = Key::from_hex(None, KEY).unwrap();
    let sent = body(1);
    let (status, answer) = send(&daemon.client, &url, &key, sent.as_bytes()).await.unwrap();
    assert_eq!((status, answer["status"].as_str()), (200, Some("stored")));
    let event = listening.line();
    assert!(event.contains("Z  ") && event.contains("ev_1"), "{event}");
    let answered = listening.line();
    assert!(
        answered.contains("-> 200 OK (") && answered.ends_with(" ms)"),
        "{answered}"
    );
    {
        let received = receiver.received.lock().unwrap();
        let (headers, forwarded) = &received[0];
        assert_eq!(forwarded, &sent, "byte for byte");
        let header = |name: &str| headers[name].to_str().unwrap().to_owned();
        let signature = closehook::event::SignatureHeaders {
            timestamp: header("close-sig-timestamp"),
            hash: header("close-sig-hash"),
        };
        assert!(
            key.signed(&signature, forwarded.as_bytes()),
            "with Close's own signature"
        );
    }
    // A program that fails is told about, and the next event goes on its way all the same.
    receiver.answer_with(500);
    send(&daemon.client, &url, &key, body(2).as_bytes()).await.unwrap();
    assert!(listening.line().contains("ev_2"));
    let answered = listening.line();
    assert!(answered.contains("-> the receiver answered 500"), "{answered}");
    receiver.answer_with(204);
    send(&daemon.client, &url, &key, body(3).as_bytes()).await.unwrap();
    assert!(listening.line().contains("ev_3"));
    assert!(listening.line().contains("-> 204 No Content"));
    assert_eq!(receiver.bodies(), [body(1), body(3)], "nothing is tried again");
    // What is not signed gets what the daemon would say, and is not shown.
    let (status, _) = send(
        &daemon.client,
        &url,
        &Key::from_hex(None, &"00".repeat(32)).unwrap(),
        b"{}",
    )
    .await
    .unwrap();
    assert_eq!(status, 401);
    let (_, answer) = send(&daemon.client, &url, &key, body(3).as_bytes()).await.unwrap();
    assert_eq!(answer["status"], "duplicate");
    let (_, answer) = send(&daemon.client, &url, &key, b"[\"\x1b[2J\"]").await.unwrap();
    assert_eq!(answer["status"], "quarantined");
    let shown = listening.line();
    assert!(shown.contains("not readable as a delivery"), "{shown}");
    assert!(!daemon.data().exists(), "the data directory is left alone");
    listening.end("-INT");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_configuration_a_key_is_made_that_trigger_signs_with() {
    let mut listening = Listening::start(without_configuration(), &["--json"]);
    let first: Value = serde_json::from_str(&listening.line()).unwrap();
    let sample = first["sample"].as_str().unwrap().to_owned();
    let words: Vec<&str> = sample.split(' ').skip(1).collect();
    let key_file = Path::new(words.last().unwrap().strip_prefix('@').unwrap());
    let mode = std::fs::metadata(key_file).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    let key = std::fs::read_to_string(key_file).unwrap();
    assert!(!sample.contains(key.trim()), "the key itself is shown nowhere");
    let triggered = without_configuration().args(&words).output().unwrap();
    let said = String::from_utf8_lossy(&triggered.stdout).into_owned();
    assert!(
        triggered.status.success() && said.ends_with("is stored as Seq 1\n"),
        "{said} {triggered:?}"
    );
    let event: Value = serde_json::from_str(&listening.line()).unwrap();
    assert_eq!((&event["seq"], &event["type"]), (&1.into(), &"lead.created".into()));
    listening.end("-TERM");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_is_said_and_tried_for_each_event() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let daemon = Daemon::new("");
    let mut listening = Listening::start(
        daemon.command(),
        &["--json", "--forward-to", &format!("http://{closed}/")],
    );
    let first: Value = serde_json::from_str(&listening.line()).unwrap();
    let key = Key::from_hex(None, KEY).unwrap();
    for id in 1..=2 {
        send(
            &daemon.client,
            first["listens"].as_str().unwrap(),
            &key,
            body(id).as_bytes(),
        )
        .await
        .unwrap();
        let event: Value = serde_json::from_str(&listening.line()).unwrap();
        assert_eq!(event["id"], format!("ev_{id}"));
        let answer: Value = serde_json::from_str(&listening.line()).unwrap();
        assert_eq!(
            (&answer["outcome"], &answer["status"]),
            (&"unavailable".into(), &Value::Null)
        );
        assert!(
            answer["reason"].as_str().unwrap().contains("can't be reached"),
            "{answer}"
        );
    }
    listening.end("-INT");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_it_leaves_a_temporary_directory_and_nothing_else() {
    let daemon = Daemon::new("");
    let mut listening = Listening::start(daemon.command(), &[]);
    let (url, _) = listening.announced();
    let key = Key::from_hex(None, KEY).unwrap();
    send(&daemon.client, &url, &key, body(1).as_bytes()).await.unwrap();
    assert!(listening.line().contains("ev_1"));
    listening.signal("-KILL");
    listening.child.wait().unwrap();
    let left = listening.left();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(
        left[0]
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("closehook-listen-")
    );
    assert!(!daemon.data().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_leaves_nothing_when_its_terminal_is_closed() {
    let daemon = Daemon::new("");
    let mut listening = Listening::start(daemon.command(), &[]);
    let (url, _) = listening.announced();
    let key = Key::from_hex(None, KEY).unwrap();
    send(&daemon.client, &url, &key, body(1).as_bytes()).await.unwrap();
    assert!(listening.line().contains("ev_1"));
    listening.end("-HUP");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_makes_nothing_where_the_daemon_would_keep_its_certificate() {
    let daemon = Daemon::new("[server.acme]\ndomains = [\"a.example\"]\nemail = \"a@a.example\"\n");
    let mut listening = Listening::start(daemon.command(), &["--json"]);
    let first: Value = serde_json::from_str(&listening.line()).unwrap();
    assert!(first["listens"].as_str().unwrap().starts_with("https:"), "{first}");
    listening.end("-INT");
    assert!(!daemon.data().exists(), "the data directory is left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_when_nobody_reads_what_it_says() {
    let daemon = Daemon::new("");
    let mut listening = Listening::start(daemon.command(), &[]);
    listening.announced();
    // Whoever read has gone, as `| head -3` does, and nothing comes.
    let mut child = std::mem::replace(&mut listening.child, Command::new("true").spawn().unwrap());
    listening.lines = {
        let mut other = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(other.stdout.take().unwrap()).lines();
        other.wait().unwrap();
        lines
    };
    let mut exit = None;
    until("it has ended", async || {
        exit = child.try_wait().unwrap();
        exit.is_some()
    })
    .await;
    assert_eq!(exit.unwrap().code(), Some(141), "as of a program that SIGPIPE ends");
    assert!(listening.left().is_empty(), "{:?}", listening.left());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_cannot_do_is_said() {
    let mut daemon = Daemon::new("");
    for url in ["nonsense", "ftp://example.com/", ""] {
        let said = daemon.fails(2, &["listen", "--forward-to", url]);
        assert!(said.contains("--forward-to: must be a URL"), "{url}: {said}");
    }
    let missing = without_configuration()
        .args(["listen", "-c", "/does/not/exist"])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(2), "a file that was named must be there");
    // Beside a daemon on the same port.
    daemon.run().await;
    let address = daemon.address();
    let output = daemon
        .command()
        .arg("listen")
        .env("CLOSEHOOK__SERVER__LISTEN", &address)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&address) && said.contains("server.listen"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_key_that_cannot_be_read_keeps_nobody_from_developing() {
    let daemon = Daemon::new("[[close.subscriptions]]\nsignature_key_file = \"DIR/none\"\n");
    let mut command = daemon.command();
    command.stderr(Stdio::piped());
    let mut listening = Listening::start(command, &[]);
    let (_, sample) = listening.announced();
    let triggered = without_configuration().args(&sample).output().unwrap();
    assert!(triggered.status.success(), "{triggered:?}");
    assert!(listening.line().contains("lead.created"));
    listening.end("-INT");
    let said = std::io::read_to_string(listening.child.stderr.take().unwrap()).unwrap();
    assert!(
        said.contains("close.subscriptions[0].signature_key") && said.contains("is refused"),
        "{said}"
    );
}

/// The command that is printed sends a sample to wherever it listens.
#[tokio::test(flavor = "multi_thread")]
async fn the_sample_that_is_shown_arrives_whatever_the_listener_wants() {
    for (config, arguments) in [
        (
            "[server.tls]\ncert = \"DIR/cert.pem\"\nkey = \"DIR/key.pem\"",
            &["-c", "DIR/closehook.toml"][..],
        ),
        // As whoever has no configuration of that kind.
        ("[server.tls]\ncert = \"DIR/cert.pem\"\nkey = \"DIR/key.pem\"", &[]),
        (
            "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\nproxy_protocol = true",
            &["-c", "DIR/closehook.toml"],
        ),
    ] {
        let daemon = Daemon::new(config);
        let made = rcgen::generate_simple_self_signed(vec!["hooks.example.com".to_owned()]).unwrap();
        std::fs::write(daemon.path("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(daemon.path("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let mut listening = Listening::start(daemon.command(), &[]);
        let (url, sample) = listening.announced();
        let dir = daemon.path("").display().to_string();
        let listens_at = url.split('/').nth(2).unwrap();
        let triggered = without_configuration()
            .env("CLOSEHOOK__SERVER__LISTEN", listens_at)
            .args(arguments.iter().map(|one| one.replace("DIR/", &dir)))
            .args(&sample)
            .output()
            .unwrap();
        assert!(triggered.status.success(), "{config}: {triggered:?}");
        assert!(listening.line().contains("lead.created"));
        listening.end("-INT");
    }
}
