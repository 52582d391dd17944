//! The API asked as a function, without sockets.

use base64::Engine as _;
use proptest::prelude::*;

use super::event_log::COMBINATIONS;
use super::*;
use crate::access::Role;
use crate::settings::Settings;

const WALL: Moment = Moment(1_700_000_000_000_000);

fn world(settings: Settings) -> (World, String) {
    let world = World::new(
        7,
        WALL,
        Settings {
            rate_limit: 1_000_000,
            ..settings
        },
        None,
    );
    let key = base64::engine::general_purpose::STANDARD.encode(format!("{}:", world.access.keys[0].key));
    (world, format!("Basic {key}"))
}

fn get(world: &mut World, authorization: &str, path: &str, query: &str) -> (u16, Value) {
    let request = Request {
        method: "GET",
        path,
        query,
        authorization: Some(authorization),
        ..Request::default()
    };
    let reply = world.answer(&request, WALL, None);
    (reply.status, serde_json::from_str(&reply.body).unwrap())
}

#[test]
fn exactly_the_documented_combinations_of_filters_are_allowed() {
    const FILTERS: [&str; 6] = ["object_type", "object_id", "action", "lead_id", "user_id", "request_id"];
    let (mut world, key) = world(Settings::calm());
    let mut allowed = 0;
    for mask in 0..1 << FILTERS.len() {
        let used: Vec<&str> = (0..FILTERS.len())
            .filter(|bit| mask >> bit & 1 == 1)
            .map(|bit| FILTERS[bit])
            .collect();
        let query: Vec<String> = used.iter().map(|name| format!("{name}=x")).collect();
        for dates in ["", "&date_updated__gte=2024-01-01"] {
            let (status, answer) = get(&mut world, &key, "/api/v1/event/", &(query.join("&") + dates));
            let documented = used.is_empty()
                || COMBINATIONS
                    .iter()
                    .any(|one| one.len() == used.len() && one.iter().all(|name| used.contains(name)));
            assert_eq!(status, if documented { 200 } else { 400 }, "{used:?}");
            assert_eq!(answer["errors"].is_array(), !documented);
            allowed += usize::from(documented);
        }
    }
    assert_eq!(allowed, 32);
}

#[test]
fn pages_have_at_most_fifty_events_and_lead_through_the_whole_log_and_back() {
    let (mut world, key) = world(Settings::calm());
    world
        .generate(
            1234,
            WALL.minus(Duration::from_secs(86_400)),
            Duration::from_secs(80_000),
        )
        .unwrap();
    let mut query = "date_updated__lt=2100-01-01T00:00:00&_limit=500".to_owned();
    let mut pages: Vec<Value> = Vec::new();
    let last = loop {
        let (status, page) = get(&mut world, &key, "/api/v1/event/", &query);
        assert_eq!(status, 200, "{page}");
        let next = page["cursor_next"].as_str().map(ToOwned::to_owned);
        assert_eq!(page["cursor_previous"].is_null(), pages.is_empty());
        pages.push(page);
        match next {
            Some(next) => query = format!("_cursor={next}"),
            None => break pages.last().unwrap(),
        }
    };
    assert!(
        pages[..pages.len() - 1]
            .iter()
            .all(|page| page["data"].as_array().unwrap().len() == PAGE_MAX)
    );
    let dates: Vec<&str> = pages
        .iter()
        .flat_map(|page| page["data"].as_array().unwrap())
        .map(|event| event["date_updated"].as_str().unwrap())
        .collect();
    assert_eq!(dates.len(), 1234);
    assert!(
        dates
            .windows(2)
            .all(|pair| Moment::parse(pair[0]) >= Moment::parse(pair[1]))
    );
    let back = format!("_cursor={}", last["cursor_previous"].as_str().unwrap());
    let (_, before) = get(&mut world, &key, "/api/v1/event/", &back);
    assert_eq!(before["data"], pages[pages.len() - 2]["data"]);
    let one = &dates.len();
    assert!(*one > PAGE_MAX);
    let (status, event) = get(
        &mut world,
        &key,
        &format!("/api/v1/event/{}/", pages[0]["data"][3]["id"].as_str().unwrap()),
        "",
    );
    assert_eq!((status, &event), (200, &pages[0]["data"][3]));
}

#[test]
fn a_cursor_wants_the_same_filters_again_takes_dates_and_can_expire() {
    let (mut world, key) = world(Settings::calm());
    world
        .generate(500, WALL.minus(Duration::from_secs(3000)), Duration::from_secs(2000))
        .unwrap();
    let filters = "object_type=lead&action=updated&_limit=5";
    let dated = format!("{filters}&date_updated__gt=2001-01-01");
    let first = get(&mut world, &key, "/api/v1/event/", &format!("{dated}&_cursor=")).1;
    assert_eq!(
        first,
        get(&mut world, &key, "/api/v1/event/", &dated).1,
        "empty, it is the first page"
    );
    let cursor = first["cursor_next"].as_str().unwrap().to_owned();
    let mut with = |query: &str| get(&mut world, &key, "/api/v1/event/", &format!("_cursor={cursor}{query}"));
    let second = with(&format!("&{filters}"));
    assert_eq!(second.0, 200);
    assert_eq!(
        with(&format!("&{dated}")).1["data"],
        second.1["data"],
        "the dates may be repeated"
    );
    let none = with(&format!("&{filters}&date_updated__gte=2100-01-01"));
    assert_eq!(
        (none.0, none.1["data"].as_array().unwrap().len()),
        (200, 0),
        "and count"
    );
    for bad in ["", "&object_type=lead&action=created"] {
        let (status, answer) = with(bad);
        assert_eq!(status, 400, "{bad}");
        assert_eq!(answer["field-errors"].as_object().unwrap().len(), 1);
    }
    world.expire_cursors();
    let query = format!("_cursor={cursor}&{filters}");
    let invalid = (400, serde_json::json!({ "error": "invalid cursor" }));
    assert_eq!(get(&mut world, &key, "/api/v1/event/", &query), invalid);
    assert_eq!(get(&mut world, &key, "/api/v1/event/", "_cursor=nonsense"), invalid);
}

#[test]
fn what_cannot_be_read_is_refused_and_what_nobody_knows_is_ignored() {
    let (mut world, key) = world(Settings::calm());
    for bad in [
        "_limit=0",
        "_limit=x",
        "date_updated__gte=yesterday",
        "date_updated__gt=2024-01-01T00:00:00+00:00",
    ] {
        let (status, answer) = get(&mut world, &key, "/api/v1/event/", bad);
        assert_eq!(
            (status, answer["field-errors"].as_object().unwrap().len()),
            (400, 1),
            "{bad}"
        );
    }
    for ignored in ["_skip=50", "nonsense=1", "_fields=id", "lead_id=a&lead_id=b"] {
        assert_eq!(get(&mut world, &key, "/api/v1/event/", ignored).0, 200, "{ignored}");
    }
    for path in ["/api/v1/event", "/api/v1/webhook", "/api/v1/me"] {
        let with_slash = format!("{path}/");
        assert_eq!(
            get(&mut world, &key, path, ""),
            get(&mut world, &key, &with_slash, ""),
            "{path}"
        );
    }
    for path in [
        "/api/v2/event/",
        "/",
        "/api/v1/nonsense/",
        "/api/v1/event/ev_x/",
        "/api/v1/webhook/whsub_x/",
        "/api/v1/webhook//",
    ] {
        assert_eq!(get(&mut world, &key, path, "").0, 404, "{path}");
    }
    let request = Request {
        method: "PATCH",
        path: "/api/v1/webhook/",
        authorization: Some(&key),
        ..Request::default()
    };
    let reply = world.answer(&request, WALL, None);
    assert_eq!(reply.status, 405);
    assert!(reply.headers.contains(&("allow", "GET, POST".into())));
    let request = Request {
        method: "POST",
        body: b"{}",
        content_type: Some("text/plain"),
        ..request
    };
    assert_eq!(world.answer(&request, WALL, None).status, 415);
}

#[test]
fn only_admins_see_data_that_is_older_than_an_hour() {
    for (withheld, is_there) in [
        (crate::settings::Withheld::Absent, false),
        (crate::settings::Withheld::Null, true),
    ] {
        let (mut world, key) = world(Settings {
            withheld,
            ..Settings::calm()
        });
        let minutes = |n: u64| WALL.minus(Duration::from_secs(60 * n)).plain();
        for (id, age) in [("ev_new", 59), ("ev_old", 61)] {
            let text = format!(
                r#"{{"id": "{id}", "date_updated": "{}", "data": {{"n": 1.0}}}}"#,
                minutes(age)
            );
            world.inject(&text, Duration::ZERO, false).unwrap();
        }
        let data = |world: &mut World| {
            let (_, page) = get(world, &key, "/api/v1/event/", "");
            let old = page["data"][1].as_object().unwrap().clone();
            (
                page["data"][0]["data"].is_object(),
                old.contains_key("data"),
                old.contains_key("previous_data"),
                old.get("data").is_some_and(Value::is_object),
            )
        };
        assert_eq!(data(&mut world), (true, true, true, true));
        world.access.keys[0].role = Role::User;
        assert_eq!(data(&mut world), (true, is_there, is_there, false));
        let (_, one) = get(&mut world, &key, "/api/v1/event/ev_old/", "");
        assert!(!one["data"].is_object());
    }
}

proptest! {
    #[test]
    fn nothing_panics_on_anything(method in "(GET|POST|PUT|DELETE|X)", path in "(/api/v1/(event|webhook)/)?\\PC{0,20}", query in "\\PC{0,40}", body in "\\PC{0,40}") {
        let (mut world, key) = world(Settings::calm());
        let request = Request { method: &method, path: &path, query: &query, authorization: Some(&key), content_type: Some("application/json"), body: body.as_bytes() };
        let reply = world.answer(&request, WALL, None);
        prop_assert!(serde_json::from_str::<Value>(&reply.body).is_ok());
        let _ = world.control(&method, &format!("/fake/{path}"), &query, body.as_bytes());
    }
}
