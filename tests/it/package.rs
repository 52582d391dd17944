//! The Debian package, built from the tested binary and installed into a fresh root; and the root of the container.
//!
//! Needs root, dpkg and cargo-deb (`tests/run.sh` installs it); skipped, loudly, without.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::{binary, faults_of_units, skipped};

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
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
    root.dpkg(&["-i", root.build("1.0-1").to_str().unwrap()]);

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
    std::fs::write(root.join("run/secrets/signature_key"), crate::harness::KEY).unwrap();
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
