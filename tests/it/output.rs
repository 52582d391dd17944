//! Files that commands write where a person says: whole or not at all, private, and over nothing that is there.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::Daemon;

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
