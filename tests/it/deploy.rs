//! The systemd units: valid, and as hardened as promised.

use crate::harness::{binary, faults_of_units};

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
