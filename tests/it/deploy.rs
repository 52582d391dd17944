//! The systemd units: valid, and as hardened as promised.

use crate::harness::{Daemon, binary, faults_of_units};

/// The units in a directory of their own, naming the built program (`verify` wants it to be there).
fn units() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for unit in ["closehook.service", "closehook@.service", "closehook.socket"] {
        let text = std::fs::read_to_string(format!("deploy/{unit}")).unwrap();
        let text = text.replace("/usr/bin/closehook", binary());
        std::fs::write(dir.path().join(unit.replace('@', "@test")), text).unwrap();
    }
    dir
}

fn faults(dir: &tempfile::TempDir, unit: &str) -> Vec<String> {
    faults_of_units(&[], &[dir.path().join(unit).to_str().unwrap()])
}

#[test]
fn the_units_are_valid_and_hardened() {
    let dir = units();
    // The socket takes the service beside it, so this is also the pair of them.
    for unit in ["closehook.service", "closehook@test.service", "closehook.socket"] {
        assert_eq!(faults(&dir, unit), Vec::<String>::new());
    }
}

#[test]
fn the_socket_unit_takes_the_low_port_and_runs_nothing_itself() {
    let socket = std::fs::read_to_string("deploy/closehook.socket").unwrap();
    assert!(socket.contains("\nListenStream=[::]:443\n"));
    for key in ["Exec", "Service=", "SocketUser=", "Capability"] {
        let set = socket.lines().filter(|line| line.starts_with(key));
        assert_eq!(set.collect::<Vec<_>>(), Vec::<&str>::new());
    }
}

#[test]
fn a_socket_in_run_has_a_directory_that_the_unit_makes() {
    for (unit, dir) in [
        ("closehook.service", "closehook"),
        ("closehook@.service", "closehook-%i"),
    ] {
        let text = std::fs::read_to_string(format!("deploy/{unit}")).unwrap();
        assert!(text.contains(&format!("\nRuntimeDirectory={dir}\n")), "{unit}");
        // A proxy, which is another user, must be able to reach the socket in it.
        assert!(text.contains("\nRuntimeDirectoryMode=0755\n"), "{unit}");
    }
}

#[test]
fn a_configuration_that_can_not_run_is_not_started_again_and_again() {
    for unit in ["closehook.service", "closehook@.service"] {
        let text = std::fs::read_to_string(format!("deploy/{unit}")).unwrap();
        assert!(text.contains("\nRestartPreventExitStatus=2\n"), "{unit}");
        // It counts for the main process only: what fails before it would be started again for ever.
        assert!(!text.contains("\nExecStartPre="), "{unit}");
    }
    // So the main process ends with 2 for whatever keeps it from running. A sink that can't work yet waits by itself (decision 2).
    for config in [
        "[server]\npath = \"nonsense\"",
        "[server.tls]\ncert = \"DIR/none\"\nkey = \"DIR/none\"",
        "[[close.subscriptions]]\nsignature_key_file = \"DIR/none\"",
        "not toml",
    ] {
        let daemon = Daemon::new(config);
        daemon.fails(2, &["check"]);
        daemon.fails(2, &["serve"]);
    }
}

/// `tests/run.sh` with nothing but stubs and the few programs it can't do without; gives its status and all that it says.
fn run_script(rustc: &str, apt: &str) -> (Option<i32>, String) {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for program in ["bash", "sed", "grep", "sort", "head", "cut", "dirname", "cat"] {
        let found = ["/usr/bin", "/bin"].map(|place| std::path::Path::new(place).join(program));
        let found = found.into_iter().find(|path| path.exists()).unwrap();
        std::os::unix::fs::symlink(found, at(program)).unwrap();
    }
    let stubs = [
        ("id", "echo 0".to_owned()),
        ("sleep", "exit 0".to_owned()),
        ("cargo", "echo \"cargo runs: $*\"".to_owned()),
        ("rustc", format!("echo 'rustc {rustc} (x 2026-01-01)'")),
        ("apt-get", apt.replace("DIR", &dir.path().display().to_string())),
    ];
    for (name, text) in stubs {
        std::fs::write(at(name), format!("#!{}\n{text}\n", at("bash").display())).unwrap();
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let output = std::process::Command::new(at("bash"))
        .arg("tests/run.sh")
        .arg("chosen")
        .env_clear()
        .env("PATH", dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said)
}

#[test]
fn the_tests_wait_for_apts_lock_and_one_missing_package_keeps_nothing_else_from_running() {
    // Somebody has the lock for two tries; then pebble can't be had, and so never all at once.
    let apt = r#"case "$*" in
*update*) n=$(cat DIR/tries 2>/dev/null); echo "x$n" > DIR/tries
  [ "$n" = xx ] || { echo "E: Could not get lock /var/lib/apt/lists/lock" >&2; exit 100; };;
*pebble*) exit 100;;
*install*) [[ "$*" == *DPkg::Lock::Timeout=* ]] || exit 100; echo "$*" >> DIR/installed;;
esac"#;
    let (status, said) = run_script("1.99.0", apt);
    assert_eq!(status, Some(0), "{said}");
    assert!(
        said.contains("The package pebble can't be installed") && !said.contains("package openssl can't"),
        "{said}"
    );
    assert!(
        said.contains("cargo runs: test --locked --workspace --all-features chosen"),
        "{said}"
    );
}

#[test]
fn the_tests_say_first_what_they_need() {
    let version = env!("CARGO_PKG_RUST_VERSION");
    let (status, said) = run_script("1.60.0", "echo apt runs");
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains(&format!("{version} or newer is needed")), "{said}");
    assert!(!said.contains("apt runs") && !said.contains("cargo runs"), "{said}");
}
