//! Contract, section 2: the configuration's layers, and that its reference tells the truth.

use std::collections::HashMap;

use closehook::config::{Config, Layers};

fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("closehook.toml");
    std::fs::write(&path, text).unwrap();
    let environment: HashMap<String, String> = environment
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let layers = Layers {
        file: Some(path),
        environment,
        overrides: Vec::new(),
    };
    Config::load(&layers).map_err(|faults| faults.iter().map(ToString::to_string).collect())
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_defaults() {
    let config = load(
        "[log]\ndir = \"/a\"\n",
        &[
            ("CLOSEHOOK__LOG__DIR", "/b"),
            ("CLOSEHOOK__SERVER__MAX_BODY", "1 MiB"),
            ("CLOSEHOOK_CONFIG", "x"),
        ],
    )
    .unwrap();
    assert_eq!(
        (config.log.dir.to_str(), config.server.max_body.0),
        (Some("/b"), 1 << 20)
    );
    assert_eq!(config.log.retention.to_string(), "30d");
    assert_eq!(load("[log]\ndir = \"/a\"\n", &[]).unwrap().log.dir.to_str(), Some("/a"));
}

#[test]
fn text_in_the_environment_stays_text_and_numbers_are_read_from_it() {
    let config = load(
        "",
        &[
            ("CLOSEHOOK__LOG__DIR", "007"),
            ("CLOSEHOOK__SERVER__PUBLIC_URL", "1e3"),
            ("CLOSEHOOK__SERVER__MAX_CONNECTIONS", "0012"),
            ("CLOSEHOOK__CLOSE__LOCAL_KEY", "true"),
        ],
    )
    .unwrap();
    assert_eq!(config.log.dir.to_str(), Some("007"));
    assert_eq!(config.server.public_url.as_deref(), Some("1e3"));
    assert_eq!((config.server.max_connections, config.close.local_key), (12, true));
    let faults = load(
        "",
        &[
            ("CLOSEHOOK__SERVER__MAX_CONNECTIONS", "many"),
            ("CLOSEHOOK__CLOSE__LOCAL_KEY", "yes"),
        ],
    );
    assert_eq!(
        faults.unwrap_err(),
        [
            "server.max_connections: must be a whole number that is not negative",
            "close.local_key: must be true or false, not a string"
        ]
    );
}

#[test]
fn a_number_that_toml_has_no_room_for_is_named_with_the_way_out() {
    let text = "[[rules]]\nname = \"r\"\nfilter = { type = \"equals\", value = -9223372036854775809 }\n";
    let faults = load(text, &[]).unwrap_err();
    assert!(
        faults[0].contains(":3:37: -9223372036854775809 is beyond") && faults[0].contains("as JSON text"),
        "{faults:?}"
    );
    let as_text = "[[rules]]\nname = \"r\"\nfilter = '{\"type\":\"equals\",\"value\":-9223372036854775809}'\n";
    load(as_text, &[]).unwrap();
}

#[test]
fn filters_keep_the_numbers_and_names_they_are_written_with() {
    let text = "[[sinks]]\nname = \"s\"\ntype = \"stdout\"\n[[rules]]\nname = \"r\"\nsinks = [\"s\"]\n\
        filter = { type = \"field_accessor\", field = \"custom.cf_AbC\", filter = { type = \"equals\", value = [9007199254740993, 1.10, 1_000, 0xff, { aB = true }] } }\n";
    let filter = load(text, &[]).unwrap().rules[0].filter.clone().unwrap();
    assert!(
        filter.contains("custom.cf_AbC") && filter.contains("[9007199254740993,1.10,1000,255,{\"aB\":true}]"),
        "{filter}"
    );
    let faults = load(&text.replace("0xff", "inf"), &[]).unwrap_err();
    assert!(faults[0].starts_with("rules[0].filter: "), "{faults:?}");
    let as_text = "[[rules]]\nname = \"r\"\nfilter = '{\"type\":\"equals\",\"value\":null}'\n";
    assert!(load(as_text, &[]).unwrap().rules[0].filter.is_some());
}

#[test]
fn headers_and_variables_keep_their_names() {
    let text = "[[sinks]]\nname = \"s\"\ntype = \"exec\"\ncommand = [\"/bin/true\"]\nenv = { Some_Name = \"Value\" }\n";
    let config = load(text, &[]).unwrap();
    assert!(format!("{:?}", config.sinks[0].options).contains("\"Some_Name\": \"Value\""));
}

#[test]
fn a_secret_is_given_once_and_never_shown() {
    let text = "[[sinks]]\nname = \"s\"\ntype = \"http\"\nurl = \"https://example.com\"\nsecret = \"hunter2\"\n";
    assert!(!format!("{:?}", load(text, &[]).unwrap()).contains("hunter2"));
    let faults = load(&format!("{text}secret_env = \"X\"\n"), &[]).unwrap_err();
    assert!(faults[0].contains("given more than once"), "{faults:?}");
}

#[test]
fn syntax_errors_have_a_line() {
    let faults = load("[server]\nlisten = \n", &[]).unwrap_err();
    assert!(faults[0].contains("closehook.toml:2:"), "{faults:?}");
}

/// The reference shows defaults commented out: with the comments taken off, nothing changes.
#[test]
fn the_reference_shows_every_default() {
    let reference = std::fs::read_to_string("config/closehook.toml").unwrap();
    let shown = load(&reference, &[]).unwrap();
    let uncommented: String = reference
        .lines()
        .map(|line| line.strip_prefix("#: ").unwrap_or(line).to_owned() + "\n")
        .collect();
    assert!(uncommented.lines().count() > 60);
    let said = load(&uncommented, &[]).unwrap_or_else(|faults| panic!("{faults:?}"));
    assert_eq!(format!("{:?}", said.server), format!("{:?}", shown.server));
    assert_eq!(format!("{:?}", said.admin), format!("{:?}", shown.admin));
    assert_eq!(format!("{:?}", said.log), format!("{:?}", shown.log));
    assert_eq!(format!("{:?}", said.close), format!("{:?}", shown.close));
    for (said, shown) in said.sinks.iter().zip(&shown.sinks) {
        assert_eq!(
            format!(
                "{:?}",
                (
                    said.start,
                    said.rate,
                    said.timeout,
                    said.retry,
                    said.order,
                    said.breaker
                )
            ),
            format!(
                "{:?}",
                (
                    shown.start,
                    shown.rate,
                    shown.timeout,
                    shown.retry,
                    shown.order,
                    shown.breaker
                )
            )
        );
    }
}

#[test]
fn a_sink_starts_at_any_time_a_command_takes() {
    use closehook::config::Start;
    let start = |written: &str| {
        let text = format!("[[sinks]]\nname = \"s\"\ntype = \"stdout\"\nstart = {written}\n");
        load(&text, &[]).map(|config| config.sinks[0].start)
    };
    let midnight: jiff::Timestamp = "2024-02-15T00:00:00Z".parse().unwrap();
    for written in [
        "\"2024-02-15\"",
        "\"2024-02-15T00:00:00Z\"",
        "2024-02-15T00:00:00Z",
        "\"2024-02-15T01:00:00+01:00\"",
    ] {
        assert_eq!(start(written), Ok(Start::At(midnight)), "{written}");
    }
    let before = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(7 * 24);
    assert!(matches!(start("\"7d\""), Ok(Start::At(at)) if at >= before));
    assert!(start("\"soon\"").unwrap_err()[0].starts_with("sinks[0].start: "));
}

#[test]
fn the_api_is_reached_with_one_credential_over_https() {
    let config = load(
        "[close]\napi_key_env = \"X\"\nbase_url = \"http://127.0.0.1:1/api/v1\"\n",
        &[],
    )
    .unwrap();
    assert_eq!(config.close.base_url.as_str(), "http://127.0.0.1:1/api/v1/");
    let faults = |text: &str| load(text, &[]).unwrap_err().join("; ");
    let text = "[close]\napi_key = \"secret-key\"\nbase_url = \"http://example.com\"\npartial = \"drop\"\n[close.oauth]\nclient_id = \"x\"\n[close.reconcile]\noverlap = \"1m\"\n";
    let said = faults(text);
    for part in [
        "close.oauth: is given beside api_key",
        "close.oauth.client_secret: is missing",
        "close.base_url: must be https",
        "close.partial: \"drop\"",
        "close.reconcile.overlap: must be between 5m and 1d",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("secret-key"));
}
