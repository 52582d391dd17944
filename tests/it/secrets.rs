//! Where secrets must not turn up.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Daemon, KEY, skipped};

const SINK: &str = "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"http://127.0.0.1:9/\"\nallow_private = true\nsecret = \"whsec_aHVudGVyMmh1bnRlcjJodW50ZXIy\"\n";

/// Every file that somebody else could open, given a directory that anybody may enter.
fn readable_by_others(dir: &Path, found: &mut Vec<String>) {
    const READ: u32 = 0o004;
    const ENTER: u32 = 0o001;
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let metadata = std::fs::symlink_metadata(entry.path()).unwrap();
        let mode = metadata.permissions().mode();
        if metadata.is_dir() && mode & ENTER != 0 {
            readable_by_others(&entry.path(), found);
        } else if !metadata.is_dir() && mode & READ != 0 {
            found.push(entry.path().display().to_string());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_output_and_no_command_line_has_a_secret() {
    let daemon = Daemon::start(SINK).await;
    daemon.store(1..=3).await;
    let mut said = daemon.stderr();
    for command in [
        &["status", "--json"][..],
        &["check", "--json"],
        &["sinks", "list", "--json"],
        &["events", "list", "--json"],
        &["events", "show", "1", "--json"],
        &["rules", "explain", "--id", "ev_1", "--json"],
        &["trigger", "lead.created", "--json"],
    ] {
        let output = daemon.run_command(command);
        said += &String::from_utf8_lossy(&output.stdout);
        said += &String::from_utf8_lossy(&output.stderr);
    }
    said += &daemon.metrics().await;
    said += &String::from_utf8_lossy(&std::fs::read(format!("/proc/{}/cmdline", daemon.pid())).unwrap());
    assert!(said.contains("ev_1") && said.contains("closehook.toml"), "{said}");
    for secret in [KEY, "aHVudGVyMmh1bnRlcjJodW50ZXIy"] {
        assert!(!said.contains(secret), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_the_data_directory_is_for_others_to_read() {
    let mut daemon = Daemon::new(&format!("{SINK}[close]\nlocal_key = true"));
    daemon.run().await;
    assert!(
        daemon
            .ok(&["trigger", "lead.created", "--count", "3"])
            .contains("stored")
    );
    daemon.stop().await;
    daemon.run().await;
    let mode = std::fs::metadata(daemon.data()).unwrap().permissions().mode();
    let mut found = Vec::new();
    readable_by_others(daemon.data(), &mut found);
    assert_eq!(mode & 0o777, 0o700, "the directory itself");
    let secret = |name: &str| {
        std::fs::metadata(daemon.data().join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(secret("signature_key"), 0o600);
    assert_eq!(found, Vec::<String>::new());
}

/// Runs a shell script that ends by SIGQUIT, with core dumps allowed.
fn quits_with_a_core(script: &str, dir: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit -c unlimited 2>/dev/null; {script}"), "sh"])
        .current_dir(dir)
        .stdin(Stdio::null());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_no_image_of_the_memory() {
    let mut daemon = Daemon::new("");
    let dir = tempfile::tempdir().unwrap();
    let control = quits_with_a_core("kill -QUIT $$", dir.path()).status().unwrap();
    if !control.core_dumped() {
        skipped("core dump: none is possible here at all");
        return;
    }
    let serve = daemon.command();
    let mut command = quits_with_a_core(r#"exec "$@""#, dir.path());
    command.arg(serve.get_program()).args(serve.get_args()).arg("serve");
    for (name, value) in serve.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    daemon.launch(command).await;
    daemon.signal(libc::SIGQUIT);
    let ended = daemon.ended().await;
    assert_eq!((ended.signal(), ended.core_dumped()), (Some(libc::SIGQUIT), false));
}

/// Empty secrets of the operator's page and of sinks, with their places.
fn other_empty_ones() -> Vec<(String, &'static str)> {
    let token = |line: &str| format!("[admin]\n{line}\n");
    let tokens = |line: &str| format!("[[admin.tokens]]\nname = \"a\"\n{line}\n");
    let mut others = vec![
        (token("token = \"\""), "admin.token: "),
        (token("token_file = \"DIR/blank\""), "admin.token: "),
        (token("token_env = \"EMPTY_SECRET\""), "admin.token: "),
        (tokens("token = \" \""), "admin.tokens[0].token: "),
        (tokens("token_file = \"DIR/empty\""), "admin.tokens[0].token: "),
        (tokens("token_env = \"EMPTY_SECRET\""), "admin.tokens[0].token: "),
    ];
    for (is_there, kind, with, key) in [
        (
            cfg!(feature = "sink-email"),
            "email",
            "server = \"smtp://mail.example\"\nuser = \"a\"\nfrom = \"a@example.com\"\nto = [\"b@example.com\"]",
            "password",
        ),
        (
            cfg!(feature = "sink-postgres"),
            "postgres",
            "url = \"postgres://a@db.example/crm\"",
            "password",
        ),
        (
            cfg!(feature = "sink-nats"),
            "nats",
            "servers = [\"nats://nats.example\"]\nsubject = \"close\"\nuser = \"a\"",
            "password",
        ),
        (
            cfg!(feature = "aws-messages"),
            "sqs",
            "region = \"eu-central-1\"\nqueue = \"https://sqs.example/1/q\"\naccess_key_id = \"a\"",
            "secret_access_key",
        ),
    ] {
        if !is_there {
            continue;
        }
        let place: &str = format!("sinks[0].{key}: ").leak();
        for secret in ["= \"\"", "_file = \"DIR/blank\"", "_env = \"EMPTY_SECRET\""] {
            let sink = format!("[[sinks]]\nname = \"a\"\ntype = \"{kind}\"\n{with}\n{key}{secret}\n");
            others.push((sink, place));
        }
    }
    others
}

/// C4
#[test]
fn an_empty_secret_is_a_fault_wherever_it_comes_from() {
    let daemon = Daemon::new("");
    std::fs::write(daemon.path("empty"), "\n").unwrap();
    std::fs::write(daemon.path("blank"), " \t\r\n").unwrap();
    std::fs::write(daemon.path("prefix"), "whsec_\n").unwrap();
    let sink = |line: &str| format!("[[sinks]]\nname = \"a\"\ntype = \"http\"\nurl = \"https://example.com/\"\n{line}");
    let oauth = |id: &str, secret: &str| format!("[close.oauth]\nclient_id = \"x\"\n{id}\n{secret}");
    for (config, place) in [
        (sink("secret = \"\""), "sinks[0].secret: "),
        (sink("secret = \"  \""), "sinks[0].secret: "),
        (sink("secret = \"whsec_\""), "sinks[0].secret: "),
        (sink("secret = \"whsec_ \""), "sinks[0].secret: "),
        (sink("secret_file = \"DIR/empty\""), "sinks[0].secret: "),
        (sink("secret_file = \"DIR/blank\""), "sinks[0].secret: "),
        (sink("secret_file = \"DIR/prefix\""), "sinks[0].secret: "),
        (sink("secret_env = \"EMPTY_SECRET\""), "sinks[0].secret: "),
        (sink("secret_env = \"PREFIX_SECRET\""), "sinks[0].secret: "),
        ("[close]\napi_key = \"\"".into(), "close.api_key: "),
        ("[close]\napi_key = \" \"".into(), "close.api_key: "),
        ("[close]\napi_key_file = \"DIR/empty\"".into(), "close.api_key: "),
        ("[close]\napi_key_env = \"EMPTY_SECRET\"".into(), "close.api_key: "),
        (
            oauth("client_secret = \"\"", "refresh_token = \"x\""),
            "close.oauth.client_secret: ",
        ),
        (
            oauth("client_secret = \"x\"", "refresh_token_env = \"EMPTY_SECRET\""),
            "close.oauth.refresh_token: ",
        ),
        (
            "[[close.subscriptions]]\nsignature_key = \"\"".into(),
            "close.subscriptions[0].signature_key: ",
        ),
        (
            "[[close.subscriptions]]\nsignature_key_file = \"DIR/blank\"".into(),
            "close.subscriptions[0].signature_key: ",
        ),
        (
            "[[close.subscriptions]]\nsignature_key_env = \"EMPTY_SECRET\"".into(),
            "close.subscriptions[0].signature_key: ",
        ),
    ]
    .into_iter()
    .chain(other_empty_ones())
    {
        daemon.configure(&config);
        let output = daemon
            .command()
            .env("EMPTY_SECRET", "")
            .env("PREFIX_SECRET", "whsec_")
            .arg("check")
            .output()
            .unwrap();
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{config}: {says}");
        assert!(says.contains(place) && says.contains("empty"), "{config}: {says}");
    }
}
