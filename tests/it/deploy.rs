//! The systemd units: valid, and as hardened as promised.

use std::process::Command;

use crate::harness::skipped;

pub fn systemd_analyze(arguments: &[&str]) -> Option<String> {
    let Ok(output) = Command::new("systemd-analyze").args(arguments).output() else {
        skipped("systemd-analyze is not installed");
        return None;
    };
    Some(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_units_are_hardened() {
    for unit in ["deploy/closehook.service", "deploy/closehook@.service"] {
        let Some(text) = systemd_analyze(&["security", "--offline=true", "--no-pager", unit]) else {
            return;
        };
        let line = text
            .lines()
            .find(|line| line.contains("Overall exposure level"))
            .unwrap_or_else(|| panic!("{text}"));
        let level: f64 = line.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
        assert!(level <= 1.2, "{unit}: {line}");
    }
}

#[test]
fn the_units_are_valid() {
    // `verify` wants the program to be there: a copy of the unit that names the built one.
    let dir = tempfile::tempdir().unwrap();
    for unit in ["closehook.service", "closehook@.service", "closehook.socket"] {
        let text = std::fs::read_to_string(format!("deploy/{unit}")).unwrap();
        let path = dir.path().join(unit.replace('@', "@test"));
        std::fs::write(
            &path,
            text.replace("/usr/bin/closehook", env!("CARGO_BIN_EXE_closehook")),
        )
        .unwrap();
        let Some(text) = systemd_analyze(&["verify", "--man=no", path.to_str().unwrap()]) else {
            return;
        };
        let complaints: Vec<&str> = text.lines().filter(|line| line.contains("closehook")).collect();
        assert_eq!(complaints, Vec::<&str>::new());
    }
}
