//! When the schema is fetched, and what is settled meanwhile.

use std::time::Duration;

use tokio::time::Instant;

use super::follow::{APART, EVERY, Plan, RETRY, RETRY_WAITING, after};
use super::*;

#[test]
fn failures_are_tried_again_sooner_where_somebody_waits() {
    for (limits, first, most) in [(RETRY_WAITING, 2, 60), (RETRY, 60, 900)] {
        let (first, most) = (Duration::from_secs(first), Duration::from_secs(most));
        for times in 0..40 {
            let wait = after(times, limits);
            assert!(wait <= most && wait >= first / 4, "{times}: {wait:?}");
        }
        assert!(after(0, limits) <= first && after(30, limits) >= most / 4);
    }
}

#[tokio::test]
async fn whatever_asks_again_and_again_does_not_get_it_more_often_than_so() {
    let mut plan = Plan {
        due: None,
        began: None,
        failures: 0,
    };
    plan.hasten();
    let first = plan.due.unwrap();
    assert!(first <= Instant::now());
    plan.began = Some(Instant::now());
    plan.ended(true, false);
    assert!(plan.due.unwrap() > Instant::now() + EVERY / 2);
    plan.hasten();
    let next = plan.due.unwrap();
    assert!(next >= plan.began.unwrap() + APART && next < Instant::now() + EVERY / 2);
    plan.hasten();
    assert_eq!(plan.due, Some(next));
}

fn fields(is_configured: bool) -> (tempfile::TempDir, Fields) {
    let dir = tempfile::tempdir().unwrap();
    let known = Known {
        is_configured,
        is_followed: true,
        ..Known::default()
    };
    let fields = Fields {
        book: Arc::new(NameBook::with(known.names(dir.path()))),
        known: Mutex::new(known),
        changed: Notify::new(),
        dir: dir.path().to_owned(),
        read_only: false,
    };
    (dir, fields)
}

fn schema(lacking: Option<&str>) -> Schema {
    let text = serde_json::json!({ "version": 1, "organization": "orga_1", "fetched_at": "2024-02-15T12:00:00Z", "lacking": lacking,
        "parts": [{ "of": "lead", "fields": [{ "id": "cf_1", "name": "Industry" }] }] });
    serde_json::from_value(text).unwrap()
}

#[test]
fn when_nobody_follows_the_schema_any_more_nobody_waits_for_it() {
    let (_dir, fields) = fields(true);
    let is_followed = || fields.book().now().is_followed;
    let followed = super::follow::Followed::begin(&fields);
    assert!(is_followed());
    drop(followed);
    assert!(!is_followed());
}

#[tokio::test]
async fn names_come_with_the_schema_and_stay_when_it_can_not_be_fetched_again() {
    let (_dir, fields) = fields(true);
    let lacking = || fields.book().now().lacking.clone();
    assert!(
        lacking()
            .unwrap()
            .ends_with("has not been fetched yet: it is being fetched")
    );
    fields.note(Err(Error::Server(500)), BTreeSet::new()).await;
    assert!(lacking().unwrap().contains("Close has a problem (500)"));
    fields.note(Ok(schema(None)), ["cf_9".to_owned()].into()).await;
    let known = fields.book().now();
    assert!(known.has("lead") && known.lacking.is_none() && known.strangers.contains("cf_9"));
    fields.note(Err(Error::Server(500)), ["cf_8".to_owned()].into()).await;
    let known = fields.book().now();
    assert!(known.has("lead") && known.lacking.is_none());
    assert!(
        known.strangers.contains("cf_8"),
        "it goes out under its id rather than to wait for Close"
    );
    fields.note(Ok(schema(None)), BTreeSet::new()).await;
    let known = fields.book().now();
    assert!(
        !known.strangers.contains("cf_8"),
        "and is looked for again when Close answers"
    );
    assert!(
        known.strangers.contains("cf_9"),
        "which nobody does for what Close did not have"
    );
    fields.note(Ok(schema(Some("403"))), BTreeSet::new()).await;
    assert!(lacking().unwrap().ends_with("as a whole: 403"));
    // Kept, and there for the next start.
    let kept = std::fs::read_to_string(fields.dir.join("close/custom_fields.json")).unwrap();
    assert!(kept.contains("Industry"), "{kept}");
}

#[tokio::test]
async fn without_credentials_there_are_no_names_and_nobody_waits() {
    let (_dir, fields) = fields(false);
    assert_eq!(*fields.book().now(), Names::default());
    fields.note(Ok(schema(None)), BTreeSet::new()).await;
    assert_eq!(*fields.book().now(), Names::default());
    fields.expect_credentials(true);
    assert!(fields.book().now().has("lead"));
}
