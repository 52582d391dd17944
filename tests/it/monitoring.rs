//! What is in `deploy/` for Prometheus and Grafana: valid, about metrics that there are, and firing when it should.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use closehook::telemetry::known::{Begins, all};
use serde_json::Value;

use crate::harness::Daemon;
use crate::skip::skipped;

const RULES: &str = include_str!("../../deploy/prometheus/closehook.rules.yml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/closehook.json");

/// Runs Prometheus's own checker; gives what it says. `None`: it is not there.
fn promtool(dir: &Path, arguments: &[&str]) -> Option<Result<String, String>> {
    let output = match Command::new("promtool").current_dir(dir).args(arguments).output() {
        Ok(output) => output,
        Err(error) => {
            skipped(&format!("promtool can't be run ({error}): install Debian's prometheus"));
            return None;
        }
    };
    let said = [output.stdout, output.stderr]
        .map(|said| String::from_utf8_lossy(&said).into_owned())
        .join("\n");
    Some(if output.status.success() { Ok(said) } else { Err(said) })
}

#[test]
fn the_alert_rules_are_valid_and_fire_where_they_should_and_nowhere_else() {
    let dir = Path::new("deploy/prometheus");
    for arguments in [
        ["check", "rules", "closehook.rules.yml"],
        ["test", "rules", "closehook.test.yml"],
    ] {
        let Some(said) = promtool(dir, &arguments) else { return };
        said.unwrap_or_else(|said| panic!("{arguments:?}: {said}"));
    }
    // A rule that never fires is found by its test.
    let broken = tempfile::tempdir().unwrap();
    let rules = RULES.replace("closehook_ready == 0", "closehook_ready == 2");
    assert_ne!(rules, RULES);
    std::fs::write(broken.path().join("closehook.rules.yml"), rules).unwrap();
    std::fs::copy(dir.join("closehook.test.yml"), broken.path().join("closehook.test.yml")).unwrap();
    let Some(said) = promtool(broken.path(), &["test", "rules", "closehook.test.yml"]) else {
        return;
    };
    assert!(said.unwrap_err().contains("ClosehookNotReady"));
}

#[test]
fn every_alert_says_what_to_do_and_has_a_test() {
    let tests = include_str!("../../deploy/prometheus/closehook.test.yml");
    let alerts: Vec<&str> = RULES.split("- alert: ").skip(1).collect();
    assert!(alerts.len() > 15);
    for alert in alerts {
        let name = alert.lines().next().unwrap();
        assert!(tests.contains(&format!("name: {name}\n")), "{name} is not tested");
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(alert.contains(part), "{name} has no {part}");
        }
    }
}

/// The expressions of the dashboard, with what Grafana puts in.
fn expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let expressions = targets.map(|target| target["expr"].as_str().unwrap());
    let filled = expressions.map(|text| {
        text.replace("$__rate_interval", "5m")
            .replace("$instance", ".*")
            .replace("$sink", ".*")
    });
    filled.collect()
}

#[test]
fn the_dashboard_is_valid_and_its_panels_do_not_overlap() {
    let mut rules = "groups:\n  - name: panels\n    rules:\n".to_owned();
    for (number, expression) in expressions().iter().enumerate() {
        assert!(!expression.contains('$'), "{expression}");
        let expression = serde_json::to_string(expression).unwrap();
        rules += &format!("      - record: panel:{number}\n        expr: {expression}\n");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("panels.yml"), rules).unwrap();
    if let Some(said) = promtool(dir.path(), &["check", "rules", "panels.yml"]) {
        said.unwrap_or_else(|said| panic!("{said}"));
    }
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let (mut taken, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()));
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24);
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{} lies on another", panel["title"]);
            }
        }
    }
}

/// Names of metrics in a text; those of a histogram's parts are that of the histogram.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_of_name(c));
    let names = words.filter(|word| word.starts_with("closehook_") || word.starts_with("process_"));
    let parts = ["_bucket", "_sum", "_count"];
    let whole = names.map(|name| {
        let whole = parts.iter().find_map(|part| name.strip_suffix(part));
        whole.unwrap_or(name).to_owned()
    });
    whole.collect()
}

/// Whether there is a line of a metric, or of a part of its histogram; one that only begins like it is another one.
fn is_given(given: &str, name: &str) -> bool {
    given.lines().any(|line| {
        let Some(rest) = line.strip_prefix(name) else {
            return false;
        };
        let of_histogram = ["_bucket", "_sum", "_count"];
        let rest = of_histogram
            .iter()
            .find_map(|part| rest.strip_prefix(part))
            .unwrap_or(rest);
        rest.starts_with(['{', ' '])
    })
}

#[test]
fn a_metric_that_only_begins_like_one_is_not_given() {
    let given = "closehook_ready 1\nclosehook_dead_letters{sink=\"a\"} 2\nclosehook_took_seconds_bucket{le=\"1\"} 3\n";
    for name in ["closehook_ready", "closehook_dead_letters", "closehook_took_seconds"] {
        assert!(is_given(given, name), "{name}");
    }
    for name in ["closehook_dead", "closehook_rea", "closehook_took", "closehook_gone"] {
        assert!(!is_given(given, name), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_rules_and_dashboard_is_one_that_the_daemon_gives() {
    let daemon = Daemon::start("[[sinks]]\nname = \"archive\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\n").await;
    let given = daemon.metrics().await;
    let rules: String = RULES
        .lines()
        .filter(|line| line.trim_start().starts_with("expr:"))
        .collect();
    let named = metrics_in(&(rules + &expressions().join("\n")));
    assert!(named.len() > 25, "{named:?}");
    for name in named {
        let is_given = is_given(&given, &name);
        // What would claim something by being zero comes when it is known.
        let comes_later = all().any(|metric| metric.name == name && metric.begins == Begins::WhenKnown);
        assert!(is_given || comes_later, "{name} is no metric of closehook");
    }
}

/// Of a journal that is gone as a whole nobody knows how many events it held: that is said wherever a loss is.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_is_gone_is_told_of_without_a_number() {
    let mut daemon = Daemon::start("").await;
    daemon.store(1..=5).await;
    daemon.stop().await;
    let segments = std::fs::read_dir(daemon.data().join("log")).unwrap();
    let newest = segments.map(|entry| entry.unwrap().path()).max().unwrap();
    std::fs::write(newest.join("journal"), b"nonsense").unwrap();
    daemon.run().await;
    let said = |daemon: &Daemon, arguments: &[&str]| {
        let listed = daemon.run_command(arguments);
        assert!(listed.status.success());
        String::from_utf8(listed.stderr).unwrap()
    };
    for has_more in [false, true] {
        if has_more {
            daemon.store(6..=6).await;
        }
        let said = said(&daemon, &["events", "list"]);
        assert!(said.contains("nobody knows how many"), "{said}");
    }
    assert_eq!(
        said(&daemon, &["events", "list", "--limit", "1"]),
        "",
        "it is before that one"
    );
    let given = daemon.metrics().await;
    for line in ["closehook_log_gaps 1", "closehook_log_lost_events 0"] {
        assert!(given.lines().any(|given| given == line), "{line}");
    }
}
