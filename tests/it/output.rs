//! Files that commands write where a person says: whole or not at all, private, and over nothing that is there.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::harness::{Daemon, until};

fn listing(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_there_is_overwritten_only_when_asked_to() {
    let daemon = Daemon::start("").await;
    daemon.store(1..=3).await;
    std::fs::create_dir(daemon.path("out")).unwrap();
    for (command, said_of_it) in [
        (&["log", "export"][..], "3 events exported to "),
        (&["backup"], "3 events "),
    ] {
        let file = daemon.path("out/events");
        let path = file.to_str().unwrap();
        let with = |more: &[&'static str]| [command, &[path], more].concat();
        std::fs::write(&file, "mine").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let said = daemon.fails(1, &with(&[]));
        assert!(
            said.contains("exists already") && said.contains("--force"),
            "{command:?}: {said}"
        );
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
        let said = daemon.ok(&with(&["--force"]));
        assert!(said.contains(said_of_it), "{command:?}: {said}");
        let metadata = std::fs::metadata(&file).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{command:?}");
        assert!(metadata.len() > 100);
        assert_eq!(
            listing(&daemon.path("out")),
            ["events"],
            "{command:?} leaves nothing else"
        );
        std::fs::remove_file(&file).unwrap();
        daemon.ok(&with(&[]));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

        // Not through a link, and over nothing that is no file.
        let link = daemon.path("out/link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let over = |name: &str| [command, &[name], &["--force"]].concat().join("\n");
        let try_over = |name: &str| {
            let arguments = over(name);
            daemon.run_command(&arguments.split('\n').collect::<Vec<_>>())
        };
        let before = std::fs::read(&file).unwrap();
        assert!(try_over(link.to_str().unwrap()).status.success());
        assert!(
            !link.is_symlink() && std::fs::read(&file).unwrap() == before,
            "{command:?}"
        );
        for (name, why) in [
            ("/dev/null", "no regular file"),
            (daemon.path("out").to_str().unwrap(), "is a directory"),
        ] {
            let refused = try_over(name);
            let said = String::from_utf8(refused.stderr).unwrap();
            assert_eq!(refused.status.code(), Some(1), "{command:?} {name}");
            assert!(said.contains(why), "{command:?}: {said}");
        }
        let nowhere = daemon.fails(1, &[command, &["/does/not/exist/file"]].concat());
        assert!(nowhere.contains("/does/not/exist/file can't be written"), "{nowhere}");
        std::fs::remove_file(&link).unwrap();
        std::fs::remove_file(&file).unwrap();
    }
    let printed = daemon.ok(&["log", "export", "-"]);
    assert_eq!(printed.lines().count(), 3, "standard output is nobody's file");
    let exported = daemon.path("out/whole.jsonl");
    daemon.ok(&["log", "export", exported.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(exported).unwrap(), printed);
}

#[test]
fn an_export_that_fails_leaves_nothing_behind() {
    let daemon = Daemon::new("");
    std::fs::create_dir(daemon.path("out")).unwrap();
    // There is no data directory to export.
    let file = daemon.path("out/events.jsonl");
    daemon.fails(1, &["log", "export", file.to_str().unwrap()]);
    daemon.fails(1, &["log", "export", "--force", file.to_str().unwrap()]);
    assert_eq!(listing(&daemon.path("out")), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_onto_a_full_disk_leaves_nothing_behind() {
    let daemon = Daemon::start("").await;
    daemon.store(1..=50).await;
    std::fs::create_dir(daemon.path("out")).unwrap();
    let file = daemon.path("out/events.jsonl");
    // As large as a file may get: the write fails as on a full disk.
    let mut command = std::process::Command::new("sh");
    command
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 8; exec \"$@\"",
            "sh",
            crate::harness::binary(),
            "-c",
        ])
        .arg(daemon.config())
        .env("CLOSEHOOK__LOG__DIR", daemon.data())
        .args(["log", "export"])
        .arg(&file);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("events.jsonl can't be written: "), "{said}");
    assert_eq!(listing(&daemon.path("out")), [""; 0]);
}

/// Something that answers on the socket as a daemon does, and comes to no end: a command that waits for it is told to stop.
struct Endless(tempfile::TempDir);

impl Endless {
    /// It gives this one answer, and then says that it is at work for ever.
    fn start(answer: &'static str) -> (Daemon, Endless) {
        let daemon = Daemon::new("");
        std::fs::create_dir(daemon.data()).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(daemon.data().join("closehook.sock")).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut line = String::new();
                    let _ = BufReader::new(&stream).read_line(&mut line);
                    let _ = writeln!(&stream, "{{\"alive\":true}}\n{{\"answer\":{answer}}}");
                    while writeln!(&stream, "{{\"alive\":true}}").is_ok() {
                        std::thread::sleep(std::time::Duration::from_millis(50));
                    }
                });
            }
        });
        (daemon, Endless(tempfile::tempdir().unwrap()))
    }

    fn out(&self) -> &Path {
        self.0.path()
    }
}

async fn end_of(child: &mut Child) -> ExitStatus {
    let mut exit = None;
    until("the command has ended", async || {
        exit = child.try_wait().unwrap();
        exit.is_some()
    })
    .await;
    exit.unwrap()
}

fn signal(child: &Child, signal: &str) {
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

const EVENT: &str = r#"{"seq":1,"received_at":"2024-02-15T12:00:00Z","source":"webhook","body":"{}"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_told_to_stop_takes_away_what_it_had_begun() {
    for (command, answer) in [(&["backup"][..], r#"{"data":"AAAA"}"#), (&["log", "export"], EVENT)] {
        let (daemon, endless) = Endless::start(answer);
        let file = endless.out().join("file");
        for how in ["-TERM", "-INT", "-HUP"] {
            let mut begun = daemon.command();
            begun
                .args(command)
                .arg(&file)
                .stdout(Stdio::null())
                .stderr(Stdio::piped());
            let mut child = begun.spawn().unwrap();
            until("the file is begun", async || !listing(endless.out()).is_empty()).await;
            signal(&child, how);
            assert_eq!(end_of(&mut child).await.code(), Some(1), "{command:?} {how}");
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            assert!(said.contains("nothing was written"), "{command:?} {how}: {said}");
            assert_eq!(listing(endless.out()), [""; 0], "{command:?} {how}");
        }
        // What a killed one has left goes with the next, which says so; that of one that still runs does not.
        let begin = || {
            let mut begun = daemon.command();
            begun
                .args(command)
                .arg(&file)
                .stdout(Stdio::null())
                .stderr(Stdio::piped());
            begun.spawn().unwrap()
        };
        let mut killed = begin();
        until("the file is begun", async || listing(endless.out()).len() == 1).await;
        let left = listing(endless.out());
        killed.kill().unwrap();
        killed.wait().unwrap();
        let one = begin();
        until("the next has taken its place", async || {
            let found = listing(endless.out());
            found.len() == 1 && found != left
        })
        .await;
        let other = begin();
        until("both are begun", async || listing(endless.out()).len() == 2).await;
        for mut child in [one, other] {
            signal(&child, "-TERM");
            end_of(&mut child).await;
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            assert!(said.contains("nothing was written"), "{said}");
        }
        assert_eq!(listing(endless.out()), [""; 0], "{command:?}");
    }
}

/// A restore from a stream that does not end, and how far it has come.
fn restore(daemon: &Daemon, dir: &Path, bytes: &[u8]) -> (Child, std::process::ChildStdin) {
    let mut command = daemon.command();
    command.args(["restore", "-", "--dir"]).arg(dir);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(bytes).unwrap();
    input.flush().unwrap();
    (child, input)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_told_to_stop_leaves_no_half_directory_and_one_that_was_killed_can_be_done_again() {
    let mut daemon = Daemon::start("").await;
    daemon.store(1..=50).await;
    let backup = daemon.path("file.backup");
    daemon.ok(&["backup", backup.to_str().unwrap()]);
    daemon.stop().await;
    let bytes = std::fs::read(&backup).unwrap();
    let half = &bytes[..bytes.len() / 2];
    let dir = daemon.path("new/data");
    for how in ["-TERM", "-INT", "-HUP"] {
        let (mut child, input) = restore(&daemon, &dir, half);
        until("it has begun", async || dir.join("log").exists()).await;
        signal(&child, how);
        assert_eq!(end_of(&mut child).await.code(), Some(1), "{how}");
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(said.contains("interrupted"), "{how}: {said}");
        assert!(!dir.exists() && !daemon.path("new").exists(), "{how}: nothing is left");
        drop(input);
    }
    let (mut child, _input) = restore(&daemon, &dir, half);
    until("it has begun", async || dir.join("log").exists()).await;
    // Not beside one that works.
    let said = daemon.fails(
        1,
        &["restore", backup.to_str().unwrap(), "--dir", dir.to_str().unwrap()],
    );
    assert!(said.contains("in use"), "{said}");
    child.kill().unwrap();
    child.wait().unwrap();
    let again = daemon.run_command(&["restore", backup.to_str().unwrap(), "--dir", dir.to_str().unwrap()]);
    let said = String::from_utf8(again.stderr).unwrap();
    assert!(again.status.success(), "{said}");
    assert!(
        said.contains("cut off") && said.contains(dir.to_str().unwrap()),
        "{said}"
    );
}

/// Whoever read our output has gone: it is said by the exit code, as of a program that SIGPIPE ends.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_reads_to_its_end_is_not_called_done() {
    let daemon = Daemon::start("").await;
    daemon.store(1..=300).await;
    for command in [
        &["events", "export"][..],
        &["events", "list", "--limit", "1000000"],
        &["log", "export", "-"],
        &["backup", "-"],
    ] {
        let mut child = daemon.command();
        child.args(command).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        // Nobody reads.
        drop(child.stdout.take());
        let exit = end_of(&mut child).await;
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        if command[0] == "backup" {
            // Half a backup is none.
            assert_eq!(exit.code(), Some(141), "{command:?}: {said}");
            assert!(said.contains("standard output"), "{said}");
        } else {
            assert_eq!((exit.code(), said.as_str()), (Some(141), ""), "{command:?}");
        }
    }
    let help = daemon.ok(&["--help"]);
    assert!(help.contains("141"), "it is written down: {help}");
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    // What is said beside the output is not worth a panic.
    for none in [
        &["dead", "list"][..],
        &["dead", "reasons"],
        &["events", "list", "--type", "task.*"],
    ] {
        let exit = daemon.command().args(none).stderr(full()).status().unwrap();
        assert_eq!(exit.code(), Some(0), "{none:?}");
    }
    for asked in [&["--help"][..], &["events", "--help"], &["--version"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = daemon.command().args(asked).stdout(writer).spawn();
        assert_eq!(end_of(&mut child.unwrap()).await.code(), Some(141), "{asked:?}");
        let said = daemon
            .command()
            .args(asked)
            .stdout(full())
            .stderr(Stdio::piped())
            .output();
        let said = said.unwrap();
        assert_eq!(said.status.code(), Some(1), "{asked:?}");
        assert!(
            String::from_utf8_lossy(&said.stderr).contains("standard output"),
            "{asked:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_with_what_to_do() {
    let daemon = Daemon::start("").await;
    daemon.store(1..=300).await;
    let full = |command: &[&str]| {
        let out = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = daemon.command().args(command).stdout(out).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for command in [&["events", "export"][..], &["log", "export", "-"], &["backup", "-"]] {
        let (code, said) = full(command);
        assert_eq!(code, Some(1), "{command:?}");
        assert!(
            said.contains("standard output can't be written") && said.contains("make room"),
            "{command:?}: {said}"
        );
    }
    let small = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16k", "tmpfs"])
        .arg(small.path())
        .output();
    if !mounted.is_ok_and(|mounted| mounted.status.success()) {
        crate::harness::skipped("mounting a tmpfs needs root");
        return;
    }
    let file = small.path().join("out");
    let name = file.to_str().unwrap();
    let backup = daemon.path("whole.backup");
    daemon.ok(&["backup", backup.to_str().unwrap()]);
    let outcomes = [
        daemon.run_command(&["backup", name]),
        daemon.run_command(&["log", "export", name]),
        daemon.run_command(&["restore", backup.to_str().unwrap(), "--dir", name]),
    ];
    let left = listing(small.path());
    let _ = Command::new("umount").arg("-l").arg(small.path()).status();
    for outcome in outcomes {
        let said = String::from_utf8(outcome.stderr).unwrap();
        assert_eq!(outcome.status.code(), Some(1), "{said}");
        assert!(said.contains(name) && said.contains("make room"), "{said}");
    }
    assert_eq!(left, [""; 0]);
}

/// There it would count towards the log's room, and be taken for a part of the log.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_into_the_data_directory() {
    let mut daemon = Daemon::start("").await;
    daemon.store(1..=3).await;
    let link = daemon.path("link");
    std::os::unix::fs::symlink(daemon.data().join("log"), &link).unwrap();
    for runs in [true, false] {
        if !runs {
            daemon.stop().await;
        }
        for place in [daemon.data().join("all"), link.join("00000000000000000009")] {
            for command in [&["backup"][..], &["log", "export"], &["backup", "--force"]] {
                let arguments = [command, &[place.to_str().unwrap()]].concat();
                let said = daemon.fails(1, &arguments);
                assert!(said.contains("is in the data directory"), "{command:?}: {said}");
                assert!(!place.exists());
            }
        }
    }
}
