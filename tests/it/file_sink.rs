//! The file sink from outside: what it makes of the paths that people name.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Daemon, ids_in, until};

/// A file sink that moves on to a new file after each event.
fn restless(path: &str) -> String {
    format!(
        "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"{path}\"\nstart = \"beginning\"\n\
         rotate = {{ size = \"1 B\", compress = false }}\n"
    )
}

/// The files in a directory, but for the one with this name.
fn others(dir: &Path, name: &str) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap() != name).collect()
}

/// D2
#[tokio::test(flavor = "multi_thread")]
async fn what_a_link_leads_to_is_rotated_beside_itself() {
    let mut daemon = Daemon::new(&restless("DIR/events.jsonl"));
    let (link, elsewhere) = (daemon.path("events.jsonl"), daemon.path("elsewhere"));
    std::fs::create_dir(&elsewhere).unwrap();
    symlink("elsewhere/real.jsonl", &link).unwrap();
    daemon.run().await;
    daemon.store(1..=1).await;
    until("the first file was moved away", async || {
        !others(&elsewhere, "real.jsonl").is_empty()
    })
    .await;
    daemon.store(2..=2).await;
    until("the second one was", async || {
        others(&elsewhere, "real.jsonl").len() == 2
    })
    .await;
    daemon.stop().await;
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink(), "the link stays");
    let mut ids: Vec<String> = others(&elsewhere, "").iter().flat_map(|file| ids_in(file)).collect();
    ids.sort();
    assert_eq!(ids, ["ev_1", "ev_2"], "nothing stands anywhere else");
}

/// D3
#[tokio::test(flavor = "multi_thread")]
async fn mode_and_group_go_along_when_the_file_is_rotated() {
    let mut daemon = Daemon::new(&restless("DIR/out/events.jsonl"));
    let path = daemon.path("out/events.jsonl");
    std::fs::create_dir(daemon.path("out")).unwrap();
    std::fs::write(&path, "").unwrap();
    // Only root may give it to others; anybody can give it a mode.
    let _ = std::os::unix::fs::chown(&path, None, Some(4));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o664)).unwrap();
    let whose = |path: &Path| {
        let metadata = std::fs::metadata(path).unwrap();
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    let before = whose(&path);
    daemon.run().await;
    daemon.store(1..=1).await;
    until("the file was moved away", async || {
        !others(&daemon.path("out"), "events.jsonl").is_empty() && path.exists()
    })
    .await;
    daemon.stop().await;
    assert_eq!(whose(&path), before);
    let moved = others(&daemon.path("out"), "events.jsonl");
    assert_eq!(whose(&moved[0]), before);
}

/// A2, and its kin: whatever is no regular file, and no place for one, also through links, is a fault that names it.
#[test]
fn what_can_be_no_file_is_a_fault_of_check() {
    let daemon = Daemon::new("");
    let at = |name: &str| daemon.path(name);
    std::fs::write(at("file"), "").unwrap();
    let made = Command::new("mkfifo").arg(at("pipe")).status().unwrap();
    assert!(made.success());
    for (name, to) in [
        ("to-pipe", "pipe"),
        ("to-mem", "/proc/self/mem"),
        ("to-out", "/dev/stdout"),
        ("to-null", "/dev/null"),
        ("twice", "to-mem"),
        ("circle", "circle"),
    ] {
        symlink(to, at(name)).unwrap();
    }
    let sinks = |path: &str| {
        let sqlite = "[[sinks]]\nname = \"db\"\ntype = \"sqlite\"\npath";
        [restless(path), format!("{sqlite} = \"{path}\"\n")]
    };
    for path in [
        "/proc/self/mem",
        "/proc/self/fd/1",
        "/proc/new",
        "/sys/kernel/new",
        "/dev/full",
        "/dev/new",
        "DIR/pipe",
        "DIR/to-pipe",
        "DIR/to-mem",
        "DIR/to-out",
        "DIR/to-null",
        "DIR/twice",
        "DIR/circle",
        "DIR/new/",
        "DIR",
    ] {
        for config in sinks(path) {
            daemon.configure(&config);
            let shown = path.replace("DIR", &daemon.dir.path().display().to_string());
            let error = daemon.fails(2, &["check"]);
            assert!(
                error.contains("sinks[0]") && error.contains(&shown),
                "{config}: {error}"
            );
        }
    }
    for path in ["DIR/file", "DIR/new", "DIR/new/file"] {
        for config in sinks(path) {
            daemon.configure(&config);
            daemon.ok(&["check"]);
        }
    }
}

/// A daemon with a sink of each kind that writes a file, both at a path where something else stands.
fn hampered(path: &str) -> String {
    let quick =
        "retry = { initial = \"20ms\", max_delay = \"50ms\" }\nbreaker = { probe = \"50ms\" }\nstart = \"beginning\"\n";
    let file = format!("[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"{path}\"\n{quick}");
    let db = if cfg!(feature = "sink-sqlite") {
        format!("[[sinks]]\nname = \"db\"\ntype = \"sqlite\"\npath = \"{path}.db\"\n{quick}")
    } else {
        String::new()
    };
    file + &db
}

/// Decision 2: whatever stands in a sink's way keeps that sink waiting, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn what_stands_at_a_sink_s_path_keeps_no_daemon_from_starting_and_the_sink_goes_on_when_it_is_gone() {
    type Make = fn(&Path);
    let pipe: Make = |path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let directory: Make = |path| std::fs::create_dir(path).unwrap();
    let device: Make = |path| symlink("/dev/full", path).unwrap();
    let circle: Make = |path| symlink(path, path).unwrap();
    for (what, make) in [
        ("pipe", pipe),
        ("directory", directory),
        ("device", device),
        ("circle", circle),
    ] {
        let mut daemon = Daemon::new(&hampered("DIR/out"));
        let paths = [daemon.path("out"), daemon.path("out.db")];
        for path in &paths {
            make(path);
        }
        daemon.run().await;
        daemon.store(1..=2).await;
        let sinks: Vec<(&str, &PathBuf)> = ["file", "db"].into_iter().zip(&paths).collect();
        let sinks = &sinks[..if cfg!(feature = "sink-sqlite") { 2 } else { 1 }];
        for (sink, path) in sinks {
            let path = path.display().to_string();
            until("status names the sink and the path", async || {
                let troubles = daemon.status()["troubles"].clone();
                let troubles = troubles.as_array().unwrap();
                troubles.iter().any(|trouble| {
                    let said = trouble["what"].as_str().unwrap();
                    said.contains(&format!("sink {sink}")) && said.contains(&path)
                })
            })
            .await;
        }
        for path in &paths {
            if path.is_dir() && !path.is_symlink() {
                std::fs::remove_dir(path).unwrap();
            } else {
                std::fs::remove_file(path).unwrap();
            }
        }
        for (sink, _) in sinks {
            until("the sink has gone on by itself", async || {
                daemon.sink(sink)["cursor"] == 2
            })
            .await;
        }
        assert_eq!(ids_in(&paths[0]), ["ev_1", "ev_2"], "{what}");
        daemon.stop().await;
    }
}

/// What any other kind of sink lacks on this machine is no reason not to start either.
#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_not_there_keeps_its_sink_waiting_and_no_daemon_from_starting() {
    let receiver = crate::harness::Receiver::start(200).await;
    let config = format!(
        "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\nstart = \"beginning\"\n\
         secret_file = \"DIR/secret\"\nbreaker = {{ probe = \"50ms\" }}\nretry = {{ initial = \"20ms\", max_delay = \"50ms\" }}\n",
        receiver.url
    );
    let mut daemon = Daemon::new(&config);
    daemon.run().await;
    daemon.store(1..=1).await;
    until("status names the sink and the file", async || {
        let said = daemon.status()["troubles"].to_string();
        said.contains("sink crm") && said.contains("/secret")
    })
    .await;
    std::fs::write(daemon.path("secret"), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    until("it is delivered", async || receiver.count() == 1).await;
    daemon.stop().await;
}

/// A sink that writes what closehook keeps would destroy it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_at_one_of_closehook_s_own_files_is_a_fault_of_check_however_it_is_named() {
    let mut daemon = Daemon::start("[close]\nlocal_key = true\n").await;
    daemon.configure(&restless("DIR/x.jsonl"));
    daemon.reload().await;
    daemon.store(1..=3).await;
    let socket = daemon.data().join("closehook.sock");
    assert!(socket.exists());
    daemon.stop().await;
    let at = |name: &str| daemon.path(name);
    std::fs::create_dir(at("out")).unwrap();
    symlink("data", at("linked")).unwrap();
    symlink("key", at("to-key")).unwrap();
    symlink("data/log/new", at("to-new")).unwrap();
    std::fs::hard_link(at("key"), at("second-key")).unwrap();
    std::fs::hard_link(daemon.data().join("closehook.json"), at("second-description")).unwrap();
    std::fs::write(at("token"), "secret").unwrap();
    let sinks = |path: &str| {
        let sqlite = "[[sinks]]\nname = \"db\"\ntype = \"sqlite\"\npath";
        [restless(path), format!("{sqlite} = \"{path}\"\n")]
    };
    let beside =
        "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"https://crm.example.com/\"\nsecret_file = \"DIR/token\"\n";
    let mut own: Vec<String> = [
        "DIR/data/log/00000000000000000001/journal",
        "DIR/data/closehook.json",
        "DIR/data/closehook.json.tmp",
        "DIR/out/../data/state/new",
        "DIR/linked/dead/new",
        "DIR/linked/close/keys.json",
        "DIR/to-new",
        "DIR/closehook.toml",
        "DIR/out/../closehook.toml",
        "DIR/key",
        "DIR/to-key",
        "DIR/second-key",
        "DIR/second-description",
        "DIR/token",
    ]
    .map(ToOwned::to_owned)
    .to_vec();
    // Whatever else a daemon makes there.
    for entry in std::fs::read_dir(daemon.data()).unwrap() {
        let path = entry.unwrap().path();
        let path = if path.is_dir() { path.join("new") } else { path };
        own.push(path.to_str().unwrap().to_owned());
    }
    assert!(own.len() >= 19, "{own:?}");
    for path in own {
        for config in sinks(&path) {
            daemon.configure(&(config.clone() + beside));
            let error = daemon.fails(2, &["check"]);
            assert!(
                error.contains("sinks[0]") && error.contains("closehook's own") && !error.contains("sinks[1]"),
                "{config}: {error}"
            );
        }
    }
    for path in [
        "DIR/data.jsonl",
        "DIR/out/key",
        "DIR/database/events.jsonl",
        "DIR/data/events.jsonl",
        "DIR/data/logs/a",
    ] {
        for config in sinks(path) {
            daemon.configure(&(config + &beside.replace("secret_file = \"DIR/token\"\n", "")));
            daemon.ok(&["check"]);
        }
    }
}

/// What the daemon says of itself can be seen when it runs only.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_at_the_file_that_the_daemon_s_log_goes_to_waits_and_writes_nothing_there() {
    let daemon = Daemon::start(&hampered("DIR/stderr")).await;
    daemon.store(1..=1).await;
    until("status names it", async || {
        daemon.status()["troubles"].to_string().contains("the daemon's own log")
    })
    .await;
    assert!(!daemon.stderr().contains("{\"seq\":"), "{}", daemon.stderr());
}
