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
