//! Close's own client for Python works on the fake as it is. `tests/run.sh` fetches it.

// Helpers of tests are tests, which clippy sees only in functions marked as such.
#![allow(clippy::unwrap_used)]

mod asker;
#[path = "../../skip.rs"]
mod skip;

use std::path::Path;
use std::process::{Command, Stdio};

use asker::{Asker, DAY};
use serde_json::Value;

/// Where `tests/run.sh` puts it.
const FETCHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/closeio");

/// Python with the client, or why there is none.
fn python() -> Result<Command, String> {
    let mut path = std::env::var_os("PYTHONPATH").unwrap_or_default();
    if Path::new(FETCHED).exists() {
        path = FETCHED.into();
    }
    let command = || {
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", &path).stdin(Stdio::null());
        command
    };
    match command().args(["-c", "import closeio_api"]).output() {
        Ok(output) if output.status.success() => Ok(command()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("python3: {error}")),
    }
}

#[tokio::test]
async fn the_official_client_walks_events_and_keeps_webhooks_on_it() {
    let mut python = match python() {
        Ok(python) => python,
        Err(why) => {
            skip::skipped(&format!(
                "Close's client for Python is not there, tests/run.sh fetches it: {why}"
            ));
            return;
        }
    };
    let asker = Asker::calm().await;
    {
        let mut world = asker.fake.world();
        let now = world.now();
        world.generate(1500, now.minus(2 * DAY), 2 * DAY).unwrap();
    }
    python
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/closeio_client.py"))
        .args([asker.fake.base_url(), asker.fake.api_key()]);
    let output = tokio::task::spawn_blocking(move || python.output())
        .await
        .unwrap()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        found["refused"]
            .as_str()
            .unwrap()
            .starts_with("Duplicate active subscription.")
    );
    assert_eq!(found["cursor"], serde_json::json!({ "error": "invalid cursor" }));
    let shown = asker.fake.world().revisions(0).filter(|one| one.nth == 0).count();
    assert!(
        found["events"].as_u64().unwrap() as usize > shown - 20,
        "{found} of {shown}"
    );
}
