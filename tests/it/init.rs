//! `closehook init`: from nothing to verified events, and from whatever broke back to them.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use fake_close::{Fake, Options, Settings};
use serde_json::Value;

use crate::acme::Pebble;
use crate::harness::{Daemon, Receiver, binary, skipped, until};

/// A machine of one's own: a Close, a proxy in front, and a directory with nothing in it.
pub struct Host {
    dir: tempfile::TempDir,
    fake: Fake,
    proxy: Proxy,
    daemon: Option<Child>,
}

/// What stands in front: passes connections on to a Unix socket, wherever that is just then.
struct Proxy {
    port: u16,
    to: Arc<Mutex<PathBuf>>,
}

impl Proxy {
    async fn start(to: PathBuf) -> Proxy {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy {
            port: listener.local_addr().unwrap().port(),
            to: Arc::new(Mutex::new(to)),
        };
        let to = proxy.to.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let to = to.lock().unwrap().clone();
                tokio::spawn(async move {
                    if let Ok(mut server) = tokio::net::UnixStream::connect(to).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        proxy
    }
}

impl Host {
    pub async fn new() -> Host {
        closehook::install_crypto();
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::start(Options {
            settings: Settings::calm(),
            ..Options::default()
        })
        .await
        .unwrap();
        std::fs::write(dir.path().join("given.key"), format!("{}\n", fake.api_key())).unwrap();
        let proxy = Proxy::start(dir.path().join("public.sock")).await;
        Host {
            dir,
            fake,
            proxy,
            daemon: None,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("closehook.toml")
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.config()).unwrap()
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/webhooks/close", self.proxy.port)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .env_remove("CLOSEHOOK_CONFIG")
            .env("CLOSEHOOK__CLOSE__BASE_URL", self.fake.base_url())
            .env("CLOSEHOOK__ADMIN__LISTEN", "127.0.0.1:0")
            .arg("-c")
            .arg(self.config())
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a script says at the first run, behind a proxy.
    pub fn first_flags(&self) -> [String; 8] {
        [
            "--url".to_owned(),
            self.url(),
            "--https".to_owned(),
            "proxy".to_owned(),
            "--listen".to_owned(),
            self.listen(),
            "--api-key".to_owned(),
            self.key_argument(),
        ]
    }

    /// The first run, as a script does it.
    fn first(&self) -> Steps {
        self.init(&self.first_flags().each_ref().map(String::as_str))
    }

    fn listen(&self) -> String {
        format!("unix:{}", self.path("public.sock").display())
    }

    fn key_argument(&self) -> String {
        format!("@{}", self.path("given.key").display())
    }

    /// `init --yes --json` with these flags.
    fn init(&self, flags: &[&str]) -> Steps {
        let mut arguments = vec!["init", "--yes", "--json"];
        arguments.extend_from_slice(flags);
        let output = self.run(&arguments);
        self.says_no_secret(&output);
        Steps::of(output)
    }

    fn says_no_secret(&self, output: &Output) {
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains(&self.fake.api_key()), "{said}");
        for subscription in self.fake.world().subscriptions() {
            assert!(!said.contains(&subscription.signature_key), "{said}");
        }
    }

    fn subscriptions(&self) -> Vec<(String, String)> {
        let world = self.fake.world();
        world
            .subscriptions()
            .map(|subscription| (subscription.id.clone(), subscription.url.clone()))
            .collect()
    }

    fn quarantined(&self) -> usize {
        let output = self.run(&["events", "list", "--quarantined", "--json"]);
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().lines().count()
    }

    /// Starts the daemon for good.
    async fn serve(&mut self) {
        let log = std::fs::File::create(self.path("stderr")).unwrap();
        let mut command = self.command(&["serve"]);
        self.daemon = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let pid = self.daemon.as_ref().unwrap().id();
        until("the daemon runs", async || self.status()["daemon"]["pid"] == pid).await;
    }

    fn status(&self) -> Value {
        let output = self.run(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.kill();
        }
    }
}

/// What `init` has said.
#[derive(Debug)]
struct Steps {
    code: Option<i32>,
    stderr: String,
    all: Vec<Value>,
}

impl Steps {
    fn of(output: Output) -> Steps {
        let lines = String::from_utf8(output.stdout).unwrap();
        Steps {
            code: output.status.code(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            all: lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        }
    }

    /// Every step with how it ended.
    fn results(&self) -> Vec<(&str, &str)> {
        self.all
            .iter()
            .map(|step| (step["step"].as_str().unwrap(), step["result"].as_str().unwrap()))
            .collect()
    }

    fn step(&self, name: &str) -> &Value {
        let found = self.all.iter().find(|step| step["step"] == name);
        found.unwrap_or_else(|| panic!("{name}: {self:?}"))
    }

    fn result(&self, name: &str) -> &str {
        self.step(name)["result"].as_str().unwrap()
    }

    fn says(&self, name: &str) -> &str {
        self.step(name)["says"].as_str().unwrap()
    }

    fn ended(self, code: i32) -> Steps {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

const ALL_GOOD: [(&str, &str); 6] = [
    ("port", "ok"),
    ("api-key", "ok"),
    ("configuration", "ok"),
    ("daemon", "ok"),
    ("subscription", "ok"),
    ("delivery", "ok"),
];

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_a_proved_subscription_and_again_without_a_change() {
    let mut host = Host::new().await;
    let steps = host.first().ended(0);
    assert_eq!(
        steps.results(),
        [
            ("port", "ok"),
            ("api-key", "changed"),
            ("configuration", "changed"),
            ("daemon", "changed"),
            ("subscription", "changed"),
            ("delivery", "ok")
        ]
    );
    let made = host.subscriptions();
    assert_eq!(made.len(), 1);
    assert_eq!(
        (made[0].1.as_str(), steps.step("subscription")["subscription"].as_str()),
        (host.url().as_str(), Some(made[0].0.as_str()))
    );
    let delivery = steps.step("delivery");
    assert_eq!((&delivery["seq"], &delivery["http_status"]), (&1.into(), &200.into()));
    assert_eq!(host.quarantined(), 1);
    assert_eq!(mode(&host.path("close_api_key")), 0o600);
    assert_eq!(mode(&host.path("closehook-data")), 0o700);
    // One readable file: the reference with the answers in their places, and no secret.
    let text = host.text();
    assert!(
        text.contains("# What Close is told.\npublic_url = \"http://127.0.0.1"),
        "{text}"
    );
    assert!(text.contains("#: max_body") && !text.contains(&host.fake.api_key()));
    assert_ne!(
        host.status()["daemon"]["running"],
        true,
        "the daemon was for the checks"
    );

    // Again: one more test is kept, and nothing else has changed.
    let before = (text, std::fs::metadata(host.config()).unwrap().ino());
    let steps = host.init(&[]).ended(0);
    assert_eq!(steps.result("daemon"), "changed", "none ran");
    assert!(
        steps
            .results()
            .iter()
            .all(|(step, result)| *step == "daemon" || *result == "ok"),
        "{steps:?}"
    );
    host.serve().await;
    let steps = host.init(&[]).ended(0);
    assert_eq!(steps.results(), ALL_GOOD);
    assert_eq!((host.text(), std::fs::metadata(host.config()).unwrap().ino()), before);
    assert_eq!((host.subscriptions(), host.quarantined()), (made, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_configuration_keeps_its_words_its_mode_and_its_sinks_and_they_get_nothing() {
    let host = Host::new().await;
    let sink = host.path("events.jsonl");
    let text = format!(
        "# Ours. Ask Kim before you change it.\n[server] # the front\nlisten = \"127.0.0.1:8480\"   # loopback\n\n\
         [log]\ndir = \"{}\"\n\n[[sinks]]\nname = \"all\"\ntype = \"file\"\npath = \"{}\"\nstart = \"beginning\" # everything\n\n\
         [[close.subscriptions]]\nsignature_key_file = \"{}\" # lost\n",
        host.path("data").display(),
        sink.display(),
        host.path("no-such-key").display()
    );
    std::fs::write(host.config(), &text).unwrap();
    std::fs::set_permissions(host.config(), std::fs::Permissions::from_mode(0o604)).unwrap();
    let steps = host.first().ended(0);
    assert!(
        steps
            .says("configuration")
            .contains("whose key is nowhere are comments now")
    );
    let wanted = text
        .replace("\"127.0.0.1:8480\"", &format!("\"{}\"", host.listen()))
        .replace("[[close.subs", "# [[close.subs")
        .replace("signature_key_file", "# signature_key_file")
        .replace(
            "# loopback\n",
            &format!("# loopback\npublic_url = \"{}\"\n", host.url()),
        )
        + &format!(
            "\n[close]\napi_key_file = \"{}\"\n",
            host.path("close_api_key").display()
        );
    assert_eq!(host.text(), wanted);
    assert_eq!(mode(&host.config()), 0o604);
    assert!(!host.path("closehook-data").exists());
    assert_eq!(host.quarantined(), 1);
    assert_eq!(
        std::fs::read_to_string(sink).unwrap_or_default(),
        "",
        "a test is no event"
    );
    assert!(host.run(&["check"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_broke_is_repaired_and_only_that() {
    let mut host = Host::new().await;
    host.first().ended(0);
    host.serve().await;
    let first = host.subscriptions();

    // The subscription was deleted at Close.
    let deleted = host.run(&["subscription", "delete", "--yes", &first[0].0]);
    assert!(deleted.status.success());
    let steps = host.init(&[]).ended(0);
    assert_eq!(
        (steps.result("configuration"), steps.result("subscription")),
        ("ok", "changed")
    );
    let second = host.subscriptions();
    assert!(second.len() == 1 && second != first, "{second:?}");
    assert_eq!(steps.result("delivery"), "ok", "signed with the new key");

    // Close paused it.
    assert!(host.fake.world().pause(&second[0].0));
    let steps = host.init(&[]).ended(0);
    assert!(
        matches!(steps.result("subscription"), "changed" | "ok"),
        "the daemon may have been faster"
    );
    assert!(host.fake.world().subscription(&second[0].0).unwrap().active);

    // A person paused it: that is for a person to undo.
    assert!(host.run(&["subscription", "pause", &second[0].0]).status.success());
    let steps = host.init(&[]).ended(1);
    assert!(
        steps
            .says("subscription")
            .contains(&format!("closehook subscription resume {}", second[0].0))
    );
    assert!(host.run(&["subscription", "resume", &second[0].0]).status.success());

    // The key file is lost: it is needed again, and says so before anything is touched.
    std::fs::remove_file(host.path("close_api_key")).unwrap();
    let steps = host.init(&[]).ended(2);
    assert!(
        steps.all.is_empty() && steps.stderr.contains("--api-key @FILE"),
        "{steps:?}"
    );
    let steps = host.init(&["--api-key", &host.key_argument()]).ended(0);
    assert_eq!(
        (
            steps.result("api-key"),
            steps.result("configuration"),
            steps.result("daemon")
        ),
        ("changed", "ok", "changed")
    );
    assert_eq!(mode(&host.path("close_api_key")), 0o600);

    // The URL is another one: the subscription moves along.
    let moved = format!("http://localhost:{}/webhooks/close", host.proxy.port);
    let steps = host.init(&["--url", &moved]).ended(0);
    assert_eq!(
        steps.step("configuration")["changed"],
        serde_json::json!(["server.public_url"])
    );
    assert_eq!(
        (steps.result("daemon"), steps.result("subscription")),
        ("changed", "changed")
    );
    assert_eq!(host.subscriptions(), [(second[0].0.clone(), moved)]);

    // The daemon died.
    host.kill();
    let steps = host.init(&[]).ended(0);
    assert!(steps.says("daemon").contains("for the time of the checks"));

    // The keys of the data directory are lost: without a key a subscription is of no use. It is replaced, and that is said.
    let useless = host.subscriptions()[0].0.clone();
    std::fs::remove_file(host.path("closehook-data/close/keys.json")).unwrap();
    let steps = host.init(&[]).ended(0);
    assert_eq!(
        (steps.result("subscription"), steps.result("delivery")),
        ("changed", "ok")
    );
    let notes = steps.step("subscription")["notes"].to_string();
    assert!(
        notes.contains(&format!(
            "{useless} delivers here and asks for the same, and its key is not known here: it is replaced"
        )),
        "{notes}"
    );
    let left = host.subscriptions();
    assert!(left.len() == 1 && left[0].0 != useless, "{left:?}");

    // What only a start takes over is not taken for done.
    host.serve().await;
    let other = format!("unix:{}", host.path("other.sock").display());
    let steps = host.init(&["--listen", &other]).ended(1);
    assert!(
        steps
            .says("daemon")
            .contains("[server] at its next start only: restart it"),
        "{steps:?}"
    );
    assert_eq!(
        (steps.result("subscription"), steps.result("delivery")),
        ("skipped", "skipped")
    );
    let steps = host.init(&[]).ended(1);
    assert_eq!(
        (steps.result("configuration"), steps.result("daemon")),
        ("ok", "failed"),
        "still"
    );
    host.kill();
    *host.proxy.to.lock().unwrap() = host.path("other.sock");
    host.serve().await;
    assert_eq!(host.init(&[]).ended(0).results(), ALL_GOOD);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_api_key_stops_before_anything_is_written() {
    let host = Host::new().await;
    std::fs::write(host.path("given.key"), "api_nobody.knows").unwrap();
    let steps = host.first().ended(1);
    assert_eq!(steps.results(), [("api-key", "failed")]);
    assert!(steps.says("api-key").contains("does not know the API key"), "{steps:?}");
    assert!(steps.stderr.contains("nothing was changed"), "{steps:?}");
    assert!(!format!("{steps:?}").contains("api_nobody.knows"));
    let names: Vec<_> = std::fs::read_dir(host.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["given.key"]);
    // A key in an argument would be in every list of processes.
    let output = host.run(&["init", "--yes", "--api-key", &host.fake.api_key()]);
    assert_eq!(output.status.code(), Some(2));
    host.says_no_secret(&output);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_close_revoked_is_exchanged_while_the_daemon_runs() {
    let mut host = Host::new().await;
    host.first().ended(0);
    host.serve().await;
    host.fake.world().access.keys[0].state = fake_close::State::Revoked;
    let steps = host.init(&[]).ended(1);
    assert!(
        steps.says("api-key").contains("give another one with --api-key"),
        "{steps:?}"
    );
    let new = host
        .fake
        .world()
        .access
        .add(None, fake_close::Role::Admin)
        .unwrap()
        .key
        .clone();
    std::fs::write(host.path("given.key"), &new).unwrap();
    let steps = host.init(&["--api-key", &host.key_argument()]).ended(0);
    assert_eq!(
        (steps.result("daemon"), steps.result("subscription")),
        ("changed", "ok")
    );
    assert!(!format!("{steps:?}").contains(&new));
    assert_eq!(host.init(&[]).ended(0).results(), ALL_GOOD);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_leads_elsewhere_is_told_with_its_cause() {
    let mut host = Host::new().await;
    host.first().ended(0);
    host.serve().await;
    // Something else answers.
    let other = Receiver::start(200).await;
    let elsewhere = other.url.replace("/hook", "/webhooks/close");
    for (status, part) in [
        (200, "something else than this closehook"),
        (401, "another receiver, or a login"),
        (404, "does not pass /webhooks/close on to unix:"),
        (502, "the proxy is there and does not reach closehook"),
    ] {
        other.answer_with(status);
        let steps = host.init(&["--url", &elsewhere]).ended(1);
        assert!(steps.says("delivery").contains(part), "{part}: {steps:?}");
        assert_eq!(steps.step("delivery")["answered_by_this_closehook"], false);
        assert_eq!(
            steps.result("subscription"),
            if status == 200 { "changed" } else { "ok" }
        );
    }
    // Nobody answers.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let steps = host.init(&["--url", &format!("http://{free}/webhooks/close")]).ended(1);
    assert!(
        steps.says("delivery").contains("no connection to 127.0.0.1"),
        "{steps:?}"
    );
    // Another closehook answers, with keys of its own.
    let stranger = Daemon::start("").await;
    let steps = host.init(&["--url", &stranger.url]).ended(1);
    assert!(
        steps
            .says("delivery")
            .contains("401 from something else than this closehook"),
        "{steps:?}"
    );
    // It is this one, at another path than the proxy passes on.
    let elsewhere = host.url().replace("/webhooks/close", "/hooks");
    let steps = host.init(&["--url", &elsewhere]).ended(1);
    assert!(steps.says("daemon").contains("restart it"), "{steps:?}");
    host.kill();
    host.serve().await;
    let steps = host.init(&[]).ended(0);
    assert_eq!(steps.step("delivery")["answered_by_this_closehook"], true);
    let behind = host.text().replace("path = \"/hooks\"", "path = \"/behind\"");
    std::fs::write(host.config(), behind).unwrap();
    host.kill();
    host.serve().await;
    let steps = host.init(&[]).ended(1);
    assert_eq!(steps.result("configuration"), "ok", "a proxy may have other paths");
    assert!(
        steps
            .says("delivery")
            .contains("404: the request reached closehook at another path"),
        "{steps:?}"
    );
    assert_eq!(steps.step("delivery")["answered_by_this_closehook"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_can_not_be_read_is_left_to_a_person() {
    let host = Host::new().await;
    for (text, part) in [
        ("[server\n", "closehook.toml:1:"),
        ("[server]\nlissten = \"127.0.0.1:1\"\n", "did you mean \"listen\"?"),
    ] {
        std::fs::write(host.config(), text).unwrap();
        let steps = host.first().ended(2);
        assert!(steps.all.is_empty() && steps.stderr.contains(part), "{steps:?}");
        assert_eq!(host.text(), text);
        assert!(!host.path("close_api_key").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_missing_is_named_at_once() {
    let host = Host::new().await;
    let steps = host.init(&[]).ended(2);
    for flag in ["--url URL", "--https acme|proxy|files", "--api-key @FILE"] {
        assert!(steps.stderr.contains(flag), "{flag}: {steps:?}");
    }
    let output = host.run(&["init"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("this is no terminal: say --yes, and --url URL"), "{said}");
    let steps = host
        .init(&[
            "--url",
            "hooks.example.com",
            "--https",
            "files",
            "--api-key",
            &host.key_argument(),
        ])
        .ended(2);
    assert!(steps.stderr.contains("--cert FILE, --cert-key FILE"), "{steps:?}");
    for (flags, part) in [
        (&["--url", "http://hooks.example.com"][..], "is not https"),
        (
            &["--url", "https://user:pass@hooks.example.com"],
            "more than scheme, host and path",
        ),
        (&["--url", "https://192.0.2.1", "--https", "acme"], "ordered for a name"),
        (&["--url", "https://a.example:8443", "--https", "acme"], "at port 443"),
        (&["--acme-directory", "letsencrypt"], "is not \"production\""),
        (&["--listen", "8480"], "is no address and port"),
    ] {
        let steps = host.init(flags).ended(2);
        assert!(steps.stderr.contains(part), "{part}: {steps:?}");
    }
    assert!(!host.config().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_shows_everything_and_writes_nothing() {
    let host = Host::new().await;
    let url = host.url();
    let flags = host.first_flags();
    let flags = [&["--dry-run"], &flags.each_ref().map(String::as_str)[..]].concat();
    let steps = host.init(&flags).ended(0);
    assert_eq!(
        steps.results(),
        [
            ("port", "ok"),
            ("api-key", "ok"),
            ("configuration", "skipped"),
            ("subscription", "skipped")
        ]
    );
    let diff = steps.step("configuration")["diff"].to_string();
    assert!(diff.contains(&format!("+public_url = \\\"{url}\\\"")), "{diff}");
    assert_eq!(steps.step("subscription")["plan"]["steps"][0]["step"], "create");
    assert!(host.subscriptions().is_empty());
    let names: Vec<_> = std::fs::read_dir(host.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["given.key"]);

    host.first().ended(0);
    let before = host.text();
    let moved = url.replace("127.0.0.1", "localhost");
    let output = host.run(&["init", "--dry-run", "--url", &moved]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    for line in [
        format!("-public_url = \"{url}\""),
        format!("+public_url = \"{moved}\""),
        format!("+url {moved}"),
    ] {
        assert!(said.contains(&line), "{line}: {said}");
    }
    assert_eq!((host.text(), &host.subscriptions()[0].1), (before, &url));
    let steps = host.init(&["--dry-run"]).ended(0);
    assert!(steps.results().iter().all(|(_, result)| *result == "ok"), "{steps:?}");
}

/// A port nobody uses now.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Host {
    /// A certificate for this machine, which only `trusting` commands trust.
    fn certificate(&self) -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (cert, key) = (self.path("cert.pem"), self.path("key.pem"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (cert.display().to_string(), key.display().to_string())
    }

    /// The program as a shell's word list, in an environment that trusts the certificate.
    fn trusting(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        command.env("SSL_CERT_FILE", self.path("cert.pem"));
        command
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn https_from_files_is_proved_with_its_certificate() {
    let host = Host::new().await;
    let (cert, key) = host.certificate();
    let port = free_port();
    let (url, listen, api_key) = (
        format!("https://localhost:{port}"),
        format!("127.0.0.1:{port}"),
        host.key_argument(),
    );
    let flags = [
        "init",
        "--yes",
        "--json",
        "--url",
        &url,
        "--https",
        "files",
        "--cert",
        &cert,
        "--cert-key",
        &key,
    ];
    let run = |trusting: bool| {
        let mut command = if trusting {
            host.trusting(&flags)
        } else {
            host.command(&flags)
        };
        let output = command
            .args(["--listen", &listen, "--api-key", &api_key])
            .output()
            .unwrap();
        Steps::of(output)
    };
    let steps = run(true).ended(0);
    assert!(steps.says("name").contains("localhost is ") && steps.result("name") == "ok");
    let delivery = steps.step("delivery");
    assert!(
        delivery["says"].as_str().unwrap().contains("certificate valid until"),
        "{delivery}"
    );
    assert!(delivery["certificate_not_after"].is_string());
    assert_eq!(host.subscriptions()[0].1, format!("{url}/webhooks/close"));
    // Others do not trust it, and neither would Close.
    let steps = run(false).ended(1);
    assert_eq!(steps.result("subscription"), "ok");
    assert!(
        steps
            .says("delivery")
            .contains("Close would not accept the certificate")
            && steps.says("delivery").contains("then its chain"),
        "{steps:?}"
    );
    // Somebody else has the port.
    let _taken = std::net::TcpListener::bind(&listen).unwrap();
    let before = host.text();
    let steps = host.init(&["--url", "https://localhost/other"]).ended(1);
    assert!(steps.says("port").contains("something else listens"), "{steps:?}");
    assert_eq!((steps.results().len(), host.text()), (2, before), "it stops there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_ordered_and_waited_for() {
    let host = Host::new().await;
    let port = free_port();
    let Some(pebble) = Pebble::start(host.dir.path(), port, 3600).await else {
        return;
    };
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:{port}\"\n[server.acme]\ndomains = [\"old.example.com\"] # so far\n\
         directory = \"{}\"\nca = \"{}\"\n[log]\ndir = \"{}\"\n",
        pebble.directory,
        host.path("pebble.pem").display(),
        host.path("data").display()
    );
    std::fs::write(host.config(), config).unwrap();
    let url = format!("https://localhost:{port}/webhooks/close");
    let steps = host.init(&["--url", &url, "--api-key", &host.key_argument()]).ended(0);
    assert!(host.text().contains("domains = [\"localhost\"] # so far"));
    assert_eq!(steps.result("certificate"), "changed");
    assert!(
        steps.says("certificate").contains("for localhost, valid until"),
        "{steps:?}"
    );
    // It came through, though nobody on the web trusts that issuer.
    assert!(
        steps.says("delivery").contains("--acme-directory production"),
        "{steps:?}"
    );
    assert_eq!(host.init(&[]).ended(0).result("certificate"), "ok");
    // No name, no order: everything stays as it was.
    let before = host.text();
    let steps = host.init(&["--url", "https://closehook.invalid/x"]).ended(1);
    assert!(
        steps.says("name").contains("closehook.invalid leads nowhere"),
        "{steps:?}"
    );
    assert_eq!(host.text(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_fails_is_told_with_the_issuer_s_reason() {
    let host = Host::new().await;
    // The issuer looks where nobody listens.
    let Some(pebble) = Pebble::start(host.dir.path(), free_port(), 3600).await else {
        return;
    };
    let port = free_port();
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:{port}\"\n[server.acme]\ndomains = [\"localhost\"]\n\
         directory = \"{}\"\nca = \"{}\"\n[log]\ndir = \"{}\"\n",
        pebble.directory,
        host.path("pebble.pem").display(),
        host.path("data").display()
    );
    std::fs::write(host.config(), config).unwrap();
    let url = format!("https://localhost:{port}/webhooks/close");
    let steps = host.init(&["--url", &url, "--api-key", &host.key_argument()]).ended(1);
    assert!(
        steps
            .says("certificate")
            .contains("its port 443 must reach server.listen"),
        "{steps:?}"
    );
    assert_eq!(
        (steps.result("subscription"), steps.result("delivery")),
        ("changed", "skipped")
    );
}

/// A person at a terminal, as `script` gives one.
struct Person {
    child: Child,
    keyboard: ChildStdin,
    screen: Arc<Mutex<String>>,
    seen: usize,
}

impl Person {
    /// Runs a shell command line at a terminal; `"$@"` in it is `command`.
    fn run(line: &str, command: &Command) -> Option<Person> {
        let mut script = Command::new("script");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => script.env(name, value),
                None => script.env_remove(name),
            };
        }
        let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.to_str().unwrap());
        let mut words = quoted(command.get_program());
        for argument in command.get_args() {
            words += " ";
            words += &quoted(argument);
        }
        script
            .args([
                "--quiet",
                "--return",
                "--command",
                &line.replace("\"$@\"", &words),
                "/dev/null",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let Ok(mut child) = script.spawn() else {
            skipped("script is not installed");
            return None;
        };
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut out, copy) = (child.stdout.take().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(len @ 1..) = out.read(&mut piece) {
                copy.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..len]));
            }
        });
        Some(Person {
            keyboard: child.stdin.take().unwrap(),
            child,
            screen,
            seen: 0,
        })
    }

    /// Waits for a question and types the answer.
    async fn answers(&mut self, question: &str, answer: &str) {
        let mut found = None;
        until(question, async || {
            let screen = self.screen.lock().unwrap();
            found = screen[self.seen..]
                .find(question)
                .map(|at| self.seen + at + question.len());
            found.is_some()
        })
        .await;
        self.seen = found.unwrap();
        self.keyboard.write_all(answer.as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    /// Waits for the end: how it ended, and all there was to see.
    async fn ended(mut self) -> (ExitStatus, String) {
        let mut exit = None;
        until("it has ended", async || {
            exit = self.child.try_wait().unwrap();
            exit.is_some()
        })
        .await;
        let screen = self.screen.lock().unwrap().clone();
        (exit.unwrap(), screen)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_is_asked_shown_and_asked_again() {
    let host = Host::new().await;
    let (cert, key) = host.certificate();
    let port = free_port();
    let Some(mut person) = Person::run("\"$@\"", &host.trusting(&["init"])) else {
        return;
    };
    let listen = format!("listen = \"[::]:{port}\"");
    person
        .answers("this host's public name: ", "http://example.com\n")
        .await;
    person
        .answers("Close delivers nowhere else", &format!("https://localhost:{port}\n"))
        .await;
    person.answers("One of these [acme]: ", "files\n").await;
    person.answers("certificate and its chain: ", "/no/such/file\n").await;
    person
        .answers("there is no file /no/such/file", &format!("{cert}\n"))
        .await;
    person.answers("its private key: ", &format!("{key}\n")).await;
    person.answers("in which events are kept [", "\n").await;
    person.answers("API keys) (not shown): ", "api_mistyped.key\n").await;
    person.answers("does not know this API key", "").await;
    person
        .answers("API keys) (not shown): ", &format!("{}\n", host.fake.api_key()))
        .await;
    person.answers("Write this to ", "y\n").await;
    person.answers("+lead.created", "").await;
    person.answers("Make this so at Close? [Y/n]: ", "\n").await;
    let (exit, screen) = person.ended().await;
    assert_eq!(exit.code(), Some(0), "{screen}");
    for part in [
        "changed  api-key",
        "changed  configuration",
        "changed  subscription",
        "ok       delivery",
        "closehook serve -c ",
    ] {
        assert!(screen.contains(part), "{part}: {screen}");
    }
    assert!(
        !screen.contains(&host.fake.api_key()) && !screen.contains("api_mistyped"),
        "{screen}"
    );
    assert!(
        host.text().contains(&listen) || host.text().contains("0.0.0.0"),
        "{}",
        host.text()
    );

    // Again: what is there is offered, and nothing has to be agreed to.
    let mut person = Person::run("\"$@\"", &host.trusting(&["init"])).unwrap();
    person
        .answers(&format!("[https://localhost:{port}/webhooks/close]: "), "\n")
        .await;
    person.answers("One of these [files]: ", "\n").await;
    person.answers(&format!("[{cert}]: "), "\n").await;
    person.answers(&format!("[{key}]: "), "\n").await;
    let (exit, screen) = person.ended().await;
    assert_eq!(exit.code(), Some(0), "{screen}");
    assert!(
        screen.contains("ok       configuration") && screen.contains("ok       subscription"),
        "{screen}"
    );

    // A no is a no.
    let mut person = Person::run(
        "\"$@\"",
        &host.trusting(&[
            "init",
            "--url",
            "https://localhost/no-thanks",
            "--listen",
            "127.0.0.1:0",
            "--https",
            "proxy",
        ]),
    )
    .unwrap();
    person.answers("-#: path = ", "").await;
    person.answers("Write this to ", "n\n").await;
    let (exit, screen) = person.ended().await;
    assert_eq!(exit.code(), Some(1), "{screen}");
    assert!(
        screen.contains("nothing was changed") && !host.text().contains("no-thanks"),
        "{screen}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_without_its_key_is_replaced_after_a_person_was_told() {
    let host = Host::new().await;
    host.first().ended(0);
    let lost = host.subscriptions()[0].0.clone();
    std::fs::remove_dir_all(host.path("closehook-data")).unwrap();
    let Some(mut person) = Person::run("\"$@\"", &host.command(&["init"])) else {
        return;
    };
    person.answers("/webhooks/close]: ", "\n").await;
    person.answers("Make this so at Close? [Y/n]: ", "\n").await;
    let (exit, screen) = person.ended().await;
    assert_eq!(exit.code(), Some(0), "{screen}");
    let left = host.subscriptions();
    assert!(left.len() == 1 && left[0].0 != lost, "{screen}");
    let said = screen.split_whitespace().collect::<Vec<_>>().join(" ");
    let note = format!("{lost} delivers here and asks for the same, and its key is not known here: it is replaced");
    let asked = said.find("Make this so at Close?").unwrap();
    assert!(
        said.find(&note).is_some_and(|at| at < asked),
        "said before it is done: {screen}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interruption_leaves_everything_as_it_was_and_the_terminal_too() {
    let host = Host::new().await;
    let command = host.command(&[
        "init",
        "--url",
        &host.url(),
        "--https",
        "proxy",
        "--listen",
        &host.listen(),
    ]);
    // Ctrl-C is for all in front of the terminal; the shell is to tell how it ended.
    let Some(mut person) = Person::run("trap : INT; \"$@\"; echo ended with $?; stty -a", &command) else {
        return;
    };
    person.answers("in which events are kept [", "\n").await;
    person.answers("API keys) (not shown): ", "\u{3}").await;
    person.answers("ended with 1", "").await;
    let (_, screen) = person.ended().await;
    assert!(screen.contains("interrupted: what was done stays"), "{screen}");
    assert!(screen.contains(" echo ") && !screen.contains("-echo "), "{screen}");
    assert!(!host.config().exists() && host.subscriptions().is_empty());

    // In the middle of the steps: the next run goes on.
    let mut slow = fake_close::fault::Fault::new(fake_close::fault::Kind::Latency)
        .on("GET /api/v1/webhook/")
        .times(1000);
    slow.delay_ms = 60_000;
    host.fake.world().faults.order(slow).unwrap();
    let flags = host.first_flags();
    let flags = [&["init", "--yes"], &flags.each_ref().map(String::as_str)[..]].concat();
    let mut running = host.command(&flags);
    let mut running = running.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("its daemon runs", async || host.status()["daemon"]["running"] == true).await;
    let sent = Command::new("kill")
        .args(["-INT", &running.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    let mut exit = None;
    until("it has ended", async || {
        exit = running.try_wait().unwrap();
        exit.is_some()
    })
    .await;
    assert_eq!(exit.unwrap().code(), Some(1));
    assert_ne!(host.status()["daemon"]["running"], true, "its daemon went with it");
    host.fake.world().faults = fake_close::fault::Faults::default();
    let steps = host.init(&[]).ended(0);
    assert_eq!(
        (steps.result("configuration"), steps.result("subscription")),
        ("ok", "changed")
    );
    assert_eq!(host.subscriptions().len(), 1);
}

/// Stands in for systemd: keeps one service as it is told to, and writes down what it was told.
const SYSTEMCTL: &str = r#"#!/bin/sh
cd "$SYSTEMD_DIR" || exit 1
up() {
    mkdir -p credentials; cp close_api_key credentials/ 2>/dev/null || echo >credentials/close_api_key
    CREDENTIALS_DIRECTORY="$SYSTEMD_DIR/credentials" setsid "$PROGRAM" -c "$FILE" serve >/dev/null 2>>service.log & echo $! >pid
}
down() { if [ -e pid ]; then kill "$(cat pid)"; while kill -0 "$(cat pid)" 2>/dev/null; do :; done; rm pid; fi; }
if [ "$1" = show ]; then
    case $2 in
    closehook.service)
        echo LoadState=loaded
        echo User=
        echo "ExecStart={ path=$PROGRAM ; argv[]=$PROGRAM serve -c $FILE ; ignore_errors=no }"
        echo "Environment=CLOSEHOOK__LOG__DIR=$SYSTEMD_DIR/state"
        if [ -e pid ]; then echo ActiveState=active; echo "MainPID=$(cat pid)"; else echo ActiveState=inactive; echo MainPID=0; fi
        if [ -e enabled ]; then echo UnitFileState=enabled; else echo UnitFileState=disabled; fi ;;
    *) echo LoadState=not-found ;;
    esac
    exit 0
fi
shift
echo "$*" >>told
case "$*" in
"enable --now closehook.service") touch enabled; [ -e pid ] || up ;;
"start closehook.service") [ -e pid ] || up ;;
"restart closehook.service") down; up ;;
"reset-failed closehook.service") ;;
*) echo "what is $*?" >&2; exit 1 ;;
esac
"#;

#[tokio::test(flavor = "multi_thread")]
async fn systemd_runs_it_where_it_has_a_unit_for_it() {
    if !rustix::process::geteuid().is_root() {
        skipped("only root tells systemd anything");
        return;
    }
    let host = Host::new().await;
    let bin = host.path("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("systemctl"), SYSTEMCTL).unwrap();
    std::fs::set_permissions(bin.join("systemctl"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let told = || std::fs::read_to_string(host.path("told")).unwrap_or_default();
    let pid = || std::fs::read_to_string(host.path("pid")).unwrap_or_default();
    let init = |flags: &[&str]| {
        let mut command = host.command(&["init", "--yes", "--json"]);
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        command
            .args(flags)
            .env("PATH", path)
            .env("SYSTEMD_DIR", host.dir.path())
            .env("PROGRAM", binary())
            .env("FILE", host.config())
            .env("CLOSEHOOK__LOG__DIR", host.path("state"));
        let output = command.output().unwrap();
        Steps::of(output)
    };
    let first = host.first_flags();
    let steps = init(&first.each_ref().map(String::as_str));
    let stop = Stop(host.path("pid"));
    let steps = steps.ended(0);
    assert_eq!(
        told(),
        "reset-failed closehook.service\nenable --now closehook.service\n"
    );
    assert!(
        steps.says("daemon").contains("now and after a start of the machine"),
        "{steps:?}"
    );
    assert!(
        host.path("state/close/keys.json").exists() && !host.path("closehook-data").exists(),
        "where the unit says"
    );

    let (before, ran) = (told(), pid());
    assert_eq!(init(&[]).ended(0).results(), ALL_GOOD);
    assert_eq!((told(), pid()), (before.clone(), ran.clone()), "nothing to tell");
    // What only a start takes over.
    let other = format!("unix:{}", host.path("other.sock").display());
    *host.proxy.to.lock().unwrap() = host.path("other.sock");
    let steps = init(&["--listen", &other]).ended(0);
    assert_eq!(told(), format!("{before}restart closehook.service\n"));
    assert_eq!((steps.result("daemon"), steps.result("delivery")), ("changed", "ok"));
    assert_ne!(pid(), ran);

    // What systemd hands over comes with a start, too.
    let (before, file) = (told(), format!("\"{}\"", host.path("close_api_key").display()));
    std::fs::write(
        host.config(),
        host.text().replace(&file, "\"credential:close_api_key\""),
    )
    .unwrap();
    std::fs::remove_file(host.path("close_api_key")).unwrap();
    let steps = init(&["--api-key", &host.key_argument()]).ended(0);
    assert_eq!(steps.result("configuration"), "ok");
    assert!(
        steps.says("api-key").contains("which systemd hands to the daemon"),
        "{steps:?}"
    );
    assert_eq!(told(), format!("{before}restart closehook.service\n"));
    assert_eq!(init(&[]).ended(0).results(), ALL_GOOD);
    drop(stop);
}

/// Ends the process whose id is in a file.
struct Stop(PathBuf);

impl Drop for Stop {
    fn drop(&mut self) {
        if let Ok(pid) = std::fs::read_to_string(&self.0) {
            let _ = Command::new("kill").args(["-KILL", pid.trim()]).status();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_difference_shows_a_secret() {
    let host = Host::new().await;
    // By value, right beside what changes.
    let text = format!(
        "[log]\ndir = \"DIR/data\"\n[close]\nbase_url = \"{}\"\napi_key = \"{}\"\n[server]\nlisten = \"unix:DIR/old.sock\"\n\
         [[close.subscriptions]]\nsignature_key = \"{}\"\n",
        host.fake.base_url(),
        host.fake.api_key(),
        "ab".repeat(32),
    );
    let text = text.replace("DIR", &host.dir.path().display().to_string());
    let secrets = [&"ab".repeat(32), &host.fake.api_key()];
    let shown = text.replace(
        "\n[[close.subscriptions]]\nsignature_key = ",
        "\n# [[close.subscriptions]]\n# signature_key = ",
    );
    for text in [&text, &shown] {
        for json in [&["--json"][..], &[]] {
            std::fs::write(host.config(), text).unwrap();
            let flags = [
                "init",
                "--yes",
                "--dry-run",
                "--url",
                &host.url(),
                "--https",
                "proxy",
                "--listen",
                &host.listen(),
            ];
            let output = host.run(&[&flags[..], json].concat());
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("public_url") && said.contains("api_key"), "{said}");
            for secret in secrets {
                assert!(!said.contains(secret), "{secret}: {said}");
            }
        }
    }
}
