//! Contract, section 2: the configuration's layers, and that its reference tells the truth.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output};

use closehook::config::{Config, Layers};

use crate::harness::{Daemon, binary};

fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("closehook.toml");
    std::fs::write(&path, text).unwrap();
    let environment = environment.iter().map(|(k, v)| (k.into(), v.into())).collect();
    let layers = Layers {
        file: Some(path),
        environment,
        ..Layers::new(closehook::sinks::REGISTRY, closehook::rules::faults)
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
            ("CLOSEHOOK__NODE__NAME", "1e3"),
            ("CLOSEHOOK__SERVER__MAX_CONNECTIONS", "0012"),
            ("CLOSEHOOK__CLOSE__LOCAL_KEY", "true"),
        ],
    )
    .unwrap();
    assert_eq!(config.log.dir.to_str(), Some("007"));
    assert_eq!(config.node.name, "1e3");
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
    assert_eq!(format!("{:?}", said.node), format!("{:?}", shown.node));
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

/// A variable's name and its value, of bytes that are no text.
fn variable(name: &[u8], value: &[u8]) -> (OsString, OsString) {
    (OsStr::from_bytes(name).into(), OsStr::from_bytes(value).into())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_that_is_no_text_stops_no_command() {
    let noise = [
        variable(b"FOO", b"\xff"),
        variable(b"B\xffR", b"text"),
        variable(b"CLOSEHOO\xff", b"\xfe"),
        variable(b"CLOSEHOOK_\xff", b""),
        variable(b"CLOSEHOOK", b"\x80"),
    ];
    let commands: [&[&str]; 25] = [
        &["--version"],
        &["--help"],
        &["help", "serve"],
        &["check"],
        &["status", "--json"],
        &["events", "list"],
        &["events", "verify"],
        &["events", "export"],
        &["dead", "list"],
        &["sinks", "list"],
        &["sinks", "types"],
        &["log", "export", "-"],
        &["log", "import", "/dev/null"],
        &["log", "erase", "--yes", "--id", "ev_none"],
        &["replay", "list"],
        &["replay", "--yes"],
        &["backup", "-"],
        &["restore", "--check", "/dev/null"],
        &["subscription", "plan"],
        &["backfill", "--dry-run"],
        &["trigger", "lead.created"],
        &["rules", "explain", "--id", "1"],
        &["filter", "{\"type\":\"is_null\"}", "/dev/null"],
        &["completions", "bash"],
        &["man"],
    ];
    let mut daemon = Daemon::new("");
    // With a daemon that such an environment did not stop, and then without one.
    let mut serve = daemon.command();
    serve.arg("serve").envs(noise.clone());
    daemon.launch(serve).await;
    daemon.store(1..=1).await;
    for is_running in [true, false] {
        for arguments in commands {
            let run = |noise: &[(OsString, OsString)]| -> Output {
                let mut command: Command = daemon.command();
                command.args(arguments).envs(noise.to_vec()).output().unwrap()
            };
            let (quiet, noisy) = (run(&[]), run(&noise));
            let said = String::from_utf8_lossy(&noisy.stderr).into_owned();
            assert_eq!(noisy.status.code(), quiet.status.code(), "{arguments:?}: {said}");
            assert!(!said.contains("panicked"), "{arguments:?}: {said}");
        }
        if is_running {
            daemon.stop().await;
        }
    }
}

#[test]
fn a_variable_of_ours_that_is_no_text_is_a_fault_with_its_name() {
    let daemon = Daemon::new("");
    let cases: [(&[u8], &[u8], &str); 3] = [
        (
            b"CLOSEHOOK__LOG__RETENTION",
            b"30\xffd",
            "closehook: CLOSEHOOK__LOG__RETENTION: the value of this environment variable is not UTF-8 text",
        ),
        (
            b"closehook__close__api_key",
            b"hunter2\xff",
            "closehook: closehook__close__api_key: the value of this environment variable is not UTF-8 text",
        ),
        (
            b"CLOSEHOOK__LOG__\xff",
            b"x",
            "closehook: CLOSEHOOK__LOG__\u{fffd}: this environment variable's name is not UTF-8 text",
        ),
    ];
    for (name, value, wanted) in cases {
        for command in ["check", "serve", "status"] {
            let (name, value) = variable(name, value);
            let output = daemon.command().arg(command).env(name, value).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{command}: {said}");
            assert!(said.contains(wanted) && !said.contains("hunter2"), "{command}: {said}");
        }
    }
    let env = variable(b"A_KEY", b"\xff");
    let text = "[[close.subscriptions]]\nsignature_key_env = \"A_KEY\"\n";
    daemon.configure(text);
    let output = Command::new(binary())
        .arg("-c")
        .arg(daemon.config())
        .arg("check")
        .env(env.0, env.1)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("A_KEY is not UTF-8 text"), "{said}");
}

/// What can't be read is still there for whatever names it, and moves nothing that stands behind it.
#[test]
fn a_faulty_sink_says_nothing_of_the_others() {
    let sinks = [
        "[[sinks]]\nname = \"x\"\ntype = \"fil\"\n",
        "[[sinks]]\nname = \"y\"\ntype = \"stdout\"\ndead_to = \"x\"\n",
        "[[sinks]]\nname = \"z\"\ntype = \"stdout\"\n",
        "[[sinks]]\nname = \"z\"\ntype = \"stdout\"\n",
        "[[sinks]]\nname = \"x\"\ntype = \"file\"\n",
        "[[rules]]\nname = \"r\"\nsinks = [\"x\"]\n",
    ];
    let faults = load(&sinks.concat(), &[]).unwrap_err();
    let places: Vec<&str> = faults.iter().map(|fault| fault.split(": ").next().unwrap()).collect();
    assert_eq!(
        places,
        ["sinks[0].type", "sinks[4].path", "sinks[3].name", "sinks[4].name"],
        "{faults:?}"
    );
    let tokens = "[[admin.tokens]]\nname = \"a\"\nmay = \"read\"\n[[admin.tokens]]\nname = \"a\"\nmay = \"act\"\ntoken = \"0123456789abcdef\"\n";
    let faults = load(tokens, &[]).unwrap_err();
    assert!(
        faults[1].starts_with("admin.tokens[1].name: two tokens are called"),
        "{faults:?}"
    );
}

#[test]
fn two_names_of_one_file_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    std::fs::write(&one, "").unwrap();
    std::fs::hard_link(&one, &two).unwrap();
    let said = |path: &std::path::Path| {
        let sink =
            |name, path: &std::path::Path| format!("[[sinks]]\nname = \"{name}\"\ntype = \"file\"\npath = {path:?}\n");
        load(&format!("{}{}", sink("a", &one), sink("b", path)), &[])
            .unwrap_err()
            .remove(0)
    };
    let (one, two) = (one.display(), two.display());
    assert_eq!(
        said(dir.path().join("two").as_path()),
        format!("sinks[1]: \"a\" and \"b\" would both write one file: {one} and {two} are two names of it")
    );
    assert_eq!(
        said(dir.path().join("one").as_path()),
        format!("sinks[1]: \"a\" and \"b\" would both write {one}")
    );
}

#[test]
fn check_names_every_fault_in_one_go() {
    let daemon = Daemon::new(
        "[server]\nallow = [\"10.0.0.0/33\", \"10.0.0.0/8\", \"nowhere\"]\n[admin]\nhosts = [\"a.example\", \"a:80\"]\n\
        [[close.subscriptions]]\nsignature_key_file = \"/nowhere/key\"\n\
        [[sinks]]\nname = \"bad\"\ntype = \"http\"\nurl = \"nowhere\"\n\
        [[sinks]]\nname = \"out\"\ntype = \"file\"\npath = \"/dev/stdout\"\n",
    );
    let output = daemon.run_command(&["check"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    for place in [
        "server.allow[0]: ",
        "server.allow[2]: ",
        "admin.hosts[1]: ",
        "sinks[0].url: ",
        "close.subscriptions[0].signature_key: ",
        "sinks[1]: /dev/stdout is ",
    ] {
        assert!(said.contains(&format!("closehook: {place}")), "{place} in {said}");
    }
}

#[test]
fn a_log_directory_that_can_never_be_there_is_a_fault() {
    let daemon = Daemon::new("");
    let mut command = daemon.command();
    let output = command
        .arg("check")
        .env("CLOSEHOOK__LOG__DIR", "/etc/passwd/x")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("log.dir: /etc/passwd/x can't be made: /etc/passwd is no directory"),
        "{said}"
    );
}

#[test]
fn dead_letters_end_at_a_sink_that_there_is() {
    let faults = |to: &[(&str, &str)]| {
        let sinks = to.iter().map(|(name, to)| {
            format!("[[sinks]]\nname = \"{name}\"\ntype = \"file\"\npath = \"/tmp/{name}\"\ndead_to = \"{to}\"\n")
        });
        let last = "[[sinks]]\nname = \"last\"\ntype = \"stdout\"\n".to_owned();
        let found = load(&sinks.chain([last]).collect::<String>(), &[])
            .err()
            .unwrap_or_default();
        found
            .into_iter()
            .filter(|fault| fault.contains("dead_to"))
            .collect::<Vec<_>>()
    };
    assert!(faults(&[("a", "b"), ("b", "last")]).is_empty());
    let own = faults(&[("a", "a")]);
    assert!(own[0].contains("can't get its own dead letters"), "{own:?}");
    let unknown = faults(&[("a", "lost")]);
    assert!(
        unknown[0].contains("there is no sink \"lost\"") && unknown[0].contains("last"),
        "{unknown:?}"
    );
    let circle = faults(&[("a", "b"), ("b", "c"), ("c", "b")]);
    assert_eq!(circle.len(), 2, "a only leads there: {circle:?}");
    assert!(circle[0].contains("in a circle: b, c, b"), "{circle:?}");
}

/// Who waits for one that does not answer would wait for each.
#[tokio::test(flavor = "multi_thread")]
async fn check_contacts_sinks_side_by_side_and_tells_of_them_in_their_order() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        // None is answered before all have asked.
        let mut waiting = Vec::new();
        while waiting.len() < 4 {
            waiting.push(listener.accept().await.unwrap().0);
        }
        for mut stream in waiting.into_iter().rev() {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
    });
    let sink = |name: &str| {
        format!(
            "[[sinks]]\nname = \"{name}\"\ntype = \"http\"\nurl = \"{url}\"\nallow_private = true\ntimeout = \"20s\"\n"
        )
    };
    let names = ["d", "c", "b", "a"];
    let daemon = Daemon::new(&names.map(sink).concat());
    let said = daemon.ok(&["check", "--probe"]);
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("sink ")).collect();
    assert_eq!(lines.len(), 4, "{said}");
    for (name, line) in names.iter().zip(lines) {
        assert!(
            line.starts_with(&format!("sink {name}: the receiver answers (204")),
            "{said}"
        );
    }
}

#[cfg(feature = "engine-jetstream")]
#[test]
fn what_is_said_of_jetstream_is_taken_over_and_its_faults_have_places() {
    let good = "[log]\nengine = \"jetstream\"\n[log.jetstream]\nservers = [\"nats://a:4222\", \"b\"]\nsecret = \"s\"\n";
    let config = load(good, &[]).unwrap();
    let jetstream = config.log.jetstream.unwrap();
    assert_eq!(
        (jetstream.servers.len(), jetstream.stream.as_str(), jetstream.replicas),
        (2, "closehook", 3)
    );
    assert_eq!(
        config.log.retention.to_string(),
        "31d",
        "what has left would be stored again"
    );
    let environment = [
        ("CLOSEHOOK__LOG__ENGINE", "jetstream"),
        ("CLOSEHOOK__LOG__JETSTREAM__SERVERS", "nats://a:1, tls://b:2"),
        ("CLOSEHOOK__LOG__JETSTREAM__SECRET_ENV", "X"),
        ("CLOSEHOOK__LOG__JETSTREAM__REPLICAS", "1"),
    ];
    let jetstream = load("", &environment).unwrap().log.jetstream.unwrap();
    assert_eq!(
        (jetstream.servers, jetstream.replicas),
        (vec!["nats://a:1".to_owned(), "tls://b:2".to_owned()], 1)
    );

    let faults = |text: &str| load(text, &[]).unwrap_err();
    let none = faults("[log]\nengine = \"jetstream\"\n");
    assert!(
        none.len() == 1 && none[0].starts_with("log.jetstream: is missing"),
        "{none:?}"
    );
    let other = faults("[log]\nengine = \"kafka\"\n");
    assert!(other[0].starts_with("log.engine: \"kafka\" is not"), "{other:?}");
    for (more, place) in [
        ("replicas = 2", "log.jetstream.replicas: must be 3"),
        ("stream = \"a.b\"", "log.jetstream.stream: must be a name"),
        ("durability = \"maybe\"", "log.jetstream.durability: \"maybe\" is not"),
        ("monitor = [\"nats://a\"]", "log.jetstream.monitor[0]: must be"),
        ("user = \"u\"", "log.jetstream.password: is missing"),
        ("password = \"p\"", "log.jetstream.user: is missing"),
        ("system = { user = \"u\" }", "log.jetstream.system.password: is missing"),
        (
            "credentials = \"c\"\nuser = \"u\"\npassword = \"p\"",
            "log.jetstream.credentials: stands beside",
        ),
        ("cert = \"/x\"", "log.jetstream.key: is missing"),
        ("subjects = \"x\"", "log.jetstream.subjects: there is no such key"),
    ] {
        let found = faults(&format!("{good}{more}\n"));
        assert!(found.len() == 1 && found[0].contains(place), "{more}: {found:?}");
    }
    for (servers, place) in [
        ("servers = [\"http://a\"]", "log.jetstream.servers[0]: must be a server"),
        (
            "servers = [\"a\", \"nats://b/c\"]",
            "log.jetstream.servers[1]: must be a server",
        ),
        ("servers = []", "log.jetstream.servers: is missing"),
    ] {
        let found = faults(&format!(
            "[log]\nengine = \"jetstream\"\n[log.jetstream]\n{servers}\nsecret = \"s\"\n"
        ));
        assert!(found.len() == 1 && found[0].contains(place), "{servers}: {found:?}");
    }
    let short = good.replace("\n[log.jetstream]", "\nretention = \"7d\"\n[log.jetstream]");
    assert!(
        faults(&short)[0].starts_with("log.retention: is 7d, and with engine"),
        "{:?}",
        faults(&short)
    );
    let secretless = good.replace("secret = \"s\"\n", "");
    assert!(
        faults(&secretless)[0].starts_with("log.jetstream.secret: is missing"),
        "{:?}",
        faults(&secretless)
    );
}
