//! The Debian package, built from the tested binary and installed into a fresh root; and the root of the container.
//!
//! Needs root, dpkg, cargo-deb and podman (`tests/run.sh` installs them); skipped, loudly, without.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use closehook::ingress::verify::Key;
use serde_json::Value;

use crate::harness::{self, Daemon, KEY, binary, faults_of_units, skipped, until};

/// Who builds packages here.
const MAINTAINER: [(&str, &str); 2] = [("DEBFULLNAME", "A Packager"), ("DEBEMAIL", "packager@example.com")];

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).envs(MAINTAINER).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn missing() -> Option<String> {
    let has = |program: &str, argument: &str| {
        let found = Command::new(program).arg(argument).output();
        found.is_ok_and(|output| output.status.success())
    };
    if !rustix::process::geteuid().is_root() {
        return Some("only root installs packages".into());
    }
    for (program, argument) in [
        ("dpkg", "--version"),
        ("systemd-sysusers", "--version"),
        ("systemd-tmpfiles", "--version"),
        ("strip", "--version"),
        ("cargo-deb", "--version"),
    ] {
        if !has(program, argument) {
            return Some(format!("{program} is not installed"));
        }
    }
    None
}

/// A root of its own, in which nothing is installed yet.
struct Root {
    dir: tempfile::TempDir,
    debs: tempfile::TempDir,
    binary: PathBuf,
}

impl Root {
    fn new() -> Root {
        let (dir, debs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for path in [
            "var/lib/dpkg/info",
            "var/lib/dpkg/updates",
            "var/lib/dpkg/triggers",
            "etc",
            "tmp",
        ] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        std::fs::write(dir.path().join("var/lib/dpkg/status"), "").unwrap();
        std::fs::write(dir.path().join("etc/group"), "root:x:0:\n").unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        let stripped = debs.path().join("closehook");
        run("strip", &["-o", stripped.to_str().unwrap(), binary()]);
        Root {
            dir,
            debs,
            binary: stripped,
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    /// Builds a package of this version.
    fn build(&self, version: &str) -> PathBuf {
        let deb = self.debs.path().join(format!("{version}.deb"));
        let (binary, output) = (self.binary.to_str().unwrap(), deb.to_str().unwrap());
        run(
            "deploy/package.sh",
            &[
                "--binary",
                binary,
                "--fast",
                "--quiet",
                "--deb-version",
                version,
                "--output",
                output,
            ],
        );
        deb
    }

    /// Runs dpkg on the root, and gives what it and the package's scripts said.
    fn dpkg(&self, arguments: &[&str]) -> String {
        let root = format!("--root={}", self.dir.path().display());
        let mut all = vec![
            root.as_str(),
            "--force-script-chrootless",
            "--force-depends",
            "--force-confdef",
            "--force-confold",
        ];
        all.extend_from_slice(arguments);
        let output = run("dpkg", &all);
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// Mode and owner.
    fn mode(&self, path: &str) -> (u32, u32, u32) {
        let metadata = std::fs::metadata(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        (metadata.permissions().mode() & 0o7777, metadata.uid(), metadata.gid())
    }

    fn files(&self, below: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut pending = vec![self.path(below)];
        while let Some(dir) = pending.pop() {
            for entry in std::fs::read_dir(&dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    pending.push(path.clone());
                }
                found.push(path);
            }
        }
        found
    }
}

fn group_of(root: &Root) -> u32 {
    let groups = std::fs::read_to_string(root.path("etc/group")).unwrap();
    let group = groups.lines().find(|line| line.starts_with("closehook:")).unwrap();
    group.split(':').nth(2).unwrap().parse().unwrap()
}

#[test]
fn the_package_installs_upgrades_and_goes_without_surprises() {
    if let Some(why) = missing() {
        skipped(&why);
        return;
    }
    let root = Root::new();
    let deb = root.build("1.0-1");
    let maintainer = run("dpkg-deb", &["--field", deb.to_str().unwrap(), "Maintainer"]).stdout;
    assert_eq!(
        String::from_utf8_lossy(&maintainer).trim(),
        "A Packager <packager@example.com>"
    );
    root.dpkg(&["-i", deb.to_str().unwrap()]);

    let group = group_of(&root);
    for (path, mode) in BTreeMap::from([
        ("usr/bin/closehook", (0o755, 0, 0)),
        ("usr/lib/systemd/system/closehook.service", (0o644, 0, 0)),
        ("usr/lib/systemd/system/closehook@.service", (0o644, 0, 0)),
        ("usr/lib/systemd/system/closehook.socket", (0o644, 0, 0)),
        ("usr/lib/sysusers.d/closehook.conf", (0o644, 0, 0)),
        ("usr/lib/tmpfiles.d/closehook.conf", (0o644, 0, 0)),
        ("usr/share/man/man1/closehook.1.gz", (0o644, 0, 0)),
        ("usr/share/man/man1/closehook-serve.1.gz", (0o644, 0, 0)),
        ("usr/share/bash-completion/completions/closehook", (0o644, 0, 0)),
        ("usr/share/zsh/vendor-completions/_closehook", (0o644, 0, 0)),
        ("usr/share/fish/vendor_completions.d/closehook.fish", (0o644, 0, 0)),
        ("usr/share/doc/closehook/copyright", (0o644, 0, 0)),
        ("etc/closehook", (0o750, 0, group)),
        ("etc/closehook/closehook.toml", (0o640, 0, group)),
    ]) {
        assert_eq!(root.mode(path), mode, "{path}");
    }
    let said = run(root.path("usr/bin/closehook").to_str().unwrap(), &["--version"]);
    assert!(said.stdout.starts_with(b"closehook "));
    assert_eq!(root.files("etc/systemd"), Vec::<PathBuf>::new(), "nothing is enabled");
    assert!(
        !root.path("var/lib/closehook").exists(),
        "the data directory is the service's to make"
    );
    units_are_good(&root);

    // What was edited, enabled and received stays through an upgrade.
    let config = root.path("etc/closehook/closehook.toml");
    let edited = std::fs::read_to_string(&config).unwrap() + "\n# mine\n";
    std::fs::write(&config, &edited).unwrap();
    std::fs::write(root.path("etc/closehook/signature_key"), "secret").unwrap();
    std::fs::create_dir_all(root.path("var/lib/closehook/log")).unwrap();
    let wants = root.path("etc/systemd/system/multi-user.target.wants");
    std::fs::create_dir_all(&wants).unwrap();
    let enabled = wants.join("closehook.service");
    std::os::unix::fs::symlink("/usr/lib/systemd/system/closehook.service", &enabled).unwrap();
    root.dpkg(&["-i", root.build("1.1-1").to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&config).unwrap(), edited);
    assert_eq!(root.mode("etc/closehook/closehook.toml"), (0o640, 0, group));
    assert!(enabled.is_symlink());

    // A removal takes the program and leaves the configuration; a purge takes that, and never events or keys.
    root.dpkg(&["-r", "closehook"]);
    assert!(!root.path("usr/bin/closehook").exists());
    assert!(config.exists() && enabled.is_symlink());
    let said = root.dpkg(&["-P", "closehook"]);
    assert!(!config.exists() && !enabled.is_symlink());
    for kept in ["var/lib/closehook/log", "etc/closehook/signature_key"] {
        assert!(root.path(kept).exists(), "{kept}");
    }
    assert!(said.contains("/var/lib/closehook stays"), "{said}");
    assert_eq!(
        root.files("usr")
            .into_iter()
            .filter(|path| path.to_string_lossy().contains("closehook"))
            .collect::<Vec<_>>(),
        Vec::<PathBuf>::new()
    );
}

/// The installed units are valid and hardened.
fn units_are_good(root: &Root) {
    // What they take from the rest of a system, which is not here.
    for target in [
        "sysinit",
        "basic",
        "shutdown",
        "network-online",
        "multi-user",
        "sockets",
    ] {
        std::fs::write(
            root.path(&format!("usr/lib/systemd/system/{target}.target")),
            "[Unit]\n",
        )
        .unwrap();
    }
    std::fs::create_dir_all(root.path("bin")).unwrap();
    std::fs::copy("/bin/true", root.path("bin/kill")).unwrap();
    let at = format!("--root={}", root.dir.path().display());
    let units = ["closehook.service", "closehook@test.service", "closehook.socket"];
    assert_eq!(faults_of_units(&[&at], &units), Vec::<String>::new());
}

#[test]
fn a_static_package_that_can_t_be_built_is_refused_with_the_way_out() {
    let refused = |variables: &[(&str, &str)]| {
        let output = Command::new("deploy/package.sh")
            .env_remove("TARGET")
            .env_remove("RUSTFLAGS")
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    // A target that nobody has.
    let said = refused(&[("TARGET", "mips64-unknown-linux-muslabi64")]);
    assert_eq!(
        said,
        "the standard library of mips64-unknown-linux-muslabi64 is not installed: \
         run `rustup target add mips64-unknown-linux-muslabi64`\n"
    );
    let said = refused(&[("RUSTFLAGS", "-C target-feature=+crt-static")]);
    assert!(said.contains("use TARGET=x86_64-unknown-linux-musl"), "{said}");
}

#[test]
fn the_container_s_root_holds_all_that_closehook_needs() {
    let chroot = Command::new("chroot").arg("--version").output();
    if !rustix::process::geteuid().is_root()
        || chroot.is_err()
        || !Path::new("/etc/ssl/certs/ca-certificates.crt").exists()
    {
        skipped("needs root, chroot and ca-certificates");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    run("deploy/rootfs.sh", &[binary(), root.to_str().unwrap()]);
    std::fs::create_dir_all(root.join("run/secrets")).unwrap();
    std::fs::write(root.join("run/secrets/signature_key"), KEY).unwrap();
    // As the user of the container, with nothing but what was laid out.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let inside = |arguments: &[&str]| {
        let mut all = vec!["--userspec=65532:65532", root.to_str().unwrap(), "/usr/bin/closehook"];
        all.extend_from_slice(arguments);
        let output = Command::new("chroot")
            .env_remove("CLOSEHOOK_CONFIG")
            .args(all)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };
    assert!(inside(&["--version"]).1.starts_with("closehook "));
    let (code, text) = inside(&["check"]);
    assert_eq!(code, Some(0), "{text}");
    let data = std::fs::metadata(root.join("var/lib/closehook")).unwrap();
    assert_eq!((data.permissions().mode() & 0o7777, data.uid()), (0o700, 65532));
    for shell in ["bin/sh", "bin/bash", "usr/bin/sh"] {
        assert!(!root.join(shell).exists());
    }
}

/// podman with a store of its own, so that it knows no other image and leaves none behind.
struct Podman {
    dir: tempfile::TempDir,
}

impl Podman {
    const NAME: &str = "closehook-test";

    /// `None`, loudly, where there is none.
    fn new() -> Option<Podman> {
        let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
        if !rustix::process::geteuid().is_root() || !has("podman") || !has("runc") {
            skipped("needs root, podman and runc");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        Some(Podman { dir })
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        let at = |name: &str| self.dir.path().join(name);
        Command::new("podman")
            .arg("--root")
            .arg(at("store"))
            .arg("--runroot")
            .arg(at("run"))
            .arg("--tmpdir")
            .arg(at("tmp"))
            .args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"])
            .args(["--events-backend", "none", "--runtime", "runc"])
            .args(arguments)
            .output()
            .unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// What closehook says in the container.
    fn inside(&self, arguments: &[&str]) -> Option<Value> {
        let all = [&["exec", Podman::NAME, "/usr/bin/closehook", "--json"], arguments].concat();
        serde_json::from_slice(&self.ask(&all).stdout).ok()
    }

    /// Where the daemon in the container listens, once it is ready.
    async fn url(&self) -> String {
        let mut url = None;
        until("the container answers", async || {
            let status = self.inside(&["status"]).unwrap_or_default();
            url = status["daemon"]["url"].as_str().map(str::to_owned);
            url.is_some()
        })
        .await;
        url.unwrap()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.ask(&["rm", "--force", "--volumes", "--time", "0", Podman::NAME]);
    }
}

/// The image is the container file's, but for its first stage: what that builds is the tested binary here, as the base image
/// of Rust is in a registry that tests do not ask.
#[tokio::test(flavor = "multi_thread")]
async fn the_container_receives_keeps_and_stops_as_it_should() {
    let Some(podman) = Podman::new() else { return };
    let built = podman.dir.path().join("built");
    run("deploy/rootfs.sh", &[binary(), built.join("out").to_str().unwrap()]);
    let file = std::fs::read_to_string("deploy/Containerfile").unwrap();
    let last_stage = podman.dir.path().join("Containerfile");
    std::fs::write(&last_stage, &file[file.find("\nFROM scratch").unwrap()..]).unwrap();
    let context = format!("build={}", built.display());
    let last_stage = last_stage.to_str().unwrap();
    podman.ok(&[
        "build",
        "--isolation=chroot",
        "--build-context",
        &context,
        "--file",
        last_stage,
        "--tag",
        "closehook",
        built.to_str().unwrap(),
    ]);

    let key = podman.dir.path().join("key");
    std::fs::write(&key, KEY).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let key = format!("{}:/run/secrets/signature_key:ro", key.display());
    // Free ports, on this machine's loopback; and no more files than any machine has.
    let started = podman.ask(&[
        "run",
        "--detach",
        "--name",
        Podman::NAME,
        "--network=host",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=1024:1024",
        "--env=CLOSEHOOK__SERVER__LISTEN=127.0.0.1:0",
        "--env=CLOSEHOOK__ADMIN__LISTEN=127.0.0.1:0",
        "--volume",
        &key,
        "localhost/closehook",
    ]);
    // What podman and runc themselves can't do here is not the image's fault; that its program can't be run (127) is.
    if let Some(125 | 126) = started.status.code() {
        skipped(&format!(
            "container: none can be run here: {}",
            String::from_utf8_lossy(&started.stderr).trim()
        ));
        return;
    }
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));

    let key = Key::from_hex(None, KEY).unwrap();
    let client = Daemon::client();
    let deliver = async |url: &str| {
        let (status, answer) = harness::send(&client, url, &key, harness::body(1).as_bytes())
            .await
            .unwrap();
        (status, answer["status"].as_str().unwrap().to_owned())
    };
    let url = podman.url().await;
    assert_eq!(deliver(&url).await, (200, "stored".to_owned()));
    assert_eq!(
        podman
            .ok(&["exec", Podman::NAME, "/usr/bin/closehook", "events", "list"])
            .lines()
            .count(),
        2
    );

    // It ends well when asked to, and what it had is in the volume.
    podman.ok(&["stop", "--time=30", Podman::NAME]);
    assert_eq!(
        podman.ok(&["inspect", "--format={{.State.ExitCode}}", Podman::NAME]),
        "0"
    );
    podman.ok(&["start", Podman::NAME]);
    let url = podman.url().await;
    assert_eq!(deliver(&url).await, (200, "duplicate".to_owned()));
    podman.ok(&["stop", "--time=30", Podman::NAME]);
}
