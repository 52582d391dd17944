//! Each step: what it does, and what it says where it is in order already.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_a_proved_subscription_and_again_without_a_change() {
    let mut host = Host::new().await;
    let steps = host.first().ended(0);
    assert_eq!(
        steps.results(),
        [
            ("port", "ok"),
            ("api-key", "changed"),
            ("configuration", "changed"),
            ("daemon", "changed"),
            ("subscription", "changed"),
            ("delivery", "ok")
        ]
    );
    let made = host.subscriptions();
    assert_eq!(made.len(), 1);
    assert_eq!(
        (made[0].1.as_str(), steps.step("subscription")["subscription"].as_str()),
        (host.url().as_str(), Some(made[0].0.as_str()))
    );
    let delivery = steps.step("delivery");
    assert_eq!((&delivery["seq"], &delivery["http_status"]), (&1.into(), &200.into()));
    assert_eq!(host.quarantined(), 1);
    assert_eq!(mode(&host.path("close_api_key")), 0o600);
    assert_eq!(mode(&host.path("closehook-data")), 0o700);
    // One readable file: the reference with the answers in their places, and no secret.
    let text = host.text();
    assert!(
        text.contains("# What Close is told.\npublic_url = \"http://127.0.0.1"),
        "{text}"
    );
    assert!(text.contains("#: max_body") && !text.contains(&host.fake.api_key()));
    assert_ne!(
        host.status()["daemon"]["running"],
        true,
        "the daemon was for the checks"
    );

    // Again: one more test is kept, and nothing else has changed.
    let before = (text, std::fs::metadata(host.config()).unwrap().ino());
    let steps = host.init(&[]).ended(0);
    assert_eq!(steps.result("daemon"), "changed", "none ran");
    assert!(
        steps
            .results()
            .iter()
            .all(|(step, result)| *step == "daemon" || *result == "ok"),
        "{steps:?}"
    );
    host.serve().await;
    let steps = host.init(&[]).ended(0);
    assert_eq!(steps.results(), ALL_GOOD);
    assert_eq!((host.text(), std::fs::metadata(host.config()).unwrap().ino()), before);
    assert_eq!((host.subscriptions(), host.quarantined()), (made, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_configuration_keeps_its_words_its_mode_and_its_sinks_and_they_get_nothing() {
    let host = Host::new().await;
    let sink = host.path("events.jsonl");
    let text = format!(
        "# Ours. Ask Kim before you change it.\n[server] # the front\nlisten = \"127.0.0.1:8480\"   # loopback\n\n\
         [log]\ndir = \"{}\"\n\n[[sinks]]\nname = \"all\"\ntype = \"file\"\npath = \"{}\"\nstart = \"beginning\" # everything\n\n\
         [[close.subscriptions]]\nsignature_key_file = \"{}\" # lost\n",
        host.path("data").display(),
        sink.display(),
        host.path("no-such-key").display()
    );
    std::fs::write(host.config(), &text).unwrap();
    std::fs::set_permissions(host.config(), std::fs::Permissions::from_mode(0o604)).unwrap();
    let steps = host.first().ended(0);
    assert!(
        steps
            .says("configuration")
            .contains("whose key is nowhere are comments now")
    );
    let wanted = text
        .replace("\"127.0.0.1:8480\"", &format!("\"{}\"", host.listen()))
        .replace("[[close.subs", "# [[close.subs")
        .replace("signature_key_file", "# signature_key_file")
        .replace(
            "# loopback\n",
            &format!("# loopback\npublic_url = \"{}\"\n", host.url()),
        )
        + &format!(
            "\n[close]\napi_key_file = \"{}\"\n",
            host.path("close_api_key").display()
        );
    assert_eq!(host.text(), wanted);
    assert_eq!(mode(&host.config()), 0o604);
    assert!(!host.path("closehook-data").exists());
    assert_eq!(host.quarantined(), 1);
    assert_eq!(
        std::fs::read_to_string(sink).unwrap_or_default(),
        "",
        "a test is no event"
    );
    assert!(host.run(&["check"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_broke_is_repaired_and_only_that() {
    let mut host = Host::new().await;
    host.first().ended(0);
    host.serve().await;
    let first = host.subscriptions();

    // The subscription was deleted at Close.
    let deleted = host.run(&["subscription", "delete", "--yes", &first[0].0]);
    assert!(deleted.status.success());
    let steps = host.init(&[]).ended(0);
    assert_eq!(
        (steps.result("configuration"), steps.result("subscription")),
        ("ok", "changed")
    );
    let second = host.subscriptions();
    assert!(second.len() == 1 && second != first, "{second:?}");
    assert_eq!(steps.result("delivery"), "ok", "signed with the new key");

    // Close paused it.
    assert!(host.fake.world().pause(&second[0].0));
    let steps = host.init(&[]).ended(0);
    assert!(
        matches!(steps.result("subscription"), "changed" | "ok"),
        "the daemon may have been faster"
    );
    assert!(host.fake.world().subscription(&second[0].0).unwrap().active);

    // A person paused it: that is for a person to undo.
    assert!(host.run(&["subscription", "pause", &second[0].0]).status.success());
    let steps = host.init(&[]).ended(1);
    assert!(
        steps
            .says("subscription")
            .contains(&format!("closehook subscription resume {}", second[0].0))
    );
    assert!(host.run(&["subscription", "resume", &second[0].0]).status.success());

    // The key file is lost: it is needed again, and says so before anything is touched.
    std::fs::remove_file(host.path("close_api_key")).unwrap();
    let steps = host.init(&[]).ended(2);
    assert!(
        steps.all.is_empty() && steps.stderr.contains("--api-key @FILE"),
        "{steps:?}"
    );
    let steps = host.init(&["--api-key", &host.key_argument()]).ended(0);
    assert_eq!(
        (
            steps.result("api-key"),
            steps.result("configuration"),
            steps.result("daemon")
        ),
        ("changed", "ok", "changed")
    );
    assert_eq!(mode(&host.path("close_api_key")), 0o600);

    // The URL is another one: the subscription moves along.
    let moved = format!("http://localhost:{}/webhooks/close", host.proxy.port);
    let steps = host.init(&["--url", &moved]).ended(0);
    assert_eq!(
        steps.step("configuration")["changed"],
        serde_json::json!(["server.public_url"])
    );
    assert_eq!(
        (steps.result("daemon"), steps.result("subscription")),
        ("changed", "changed")
    );
    assert_eq!(host.subscriptions(), [(second[0].0.clone(), moved)]);

    // The daemon died.
    host.kill();
    let steps = host.init(&[]).ended(0);
    assert!(steps.says("daemon").contains("for the time of the checks"));

    // The keys of the data directory are lost: without a key a subscription is of no use. It is replaced, and that is said.
    let useless = host.subscriptions()[0].0.clone();
    std::fs::remove_file(host.path("closehook-data/close/keys.json")).unwrap();
    let steps = host.init(&[]).ended(0);
    assert_eq!(
        (steps.result("subscription"), steps.result("delivery")),
        ("changed", "ok")
    );
    let notes = steps.step("subscription")["notes"].to_string();
    assert!(
        notes.contains(&format!(
            "{useless} delivers here and asks for the same, and its key is not known here: it is replaced"
        )),
        "{notes}"
    );
    let left = host.subscriptions();
    assert!(left.len() == 1 && left[0].0 != useless, "{left:?}");

    // What only a start takes over is not taken for done.
    host.serve().await;
    let other = format!("unix:{}", host.path("other.sock").display());
    let steps = host.init(&["--listen", &other]).ended(1);
    assert!(
        steps
            .says("daemon")
            .contains("[server] at its next start only: restart it"),
        "{steps:?}"
    );
    assert_eq!(
        (steps.result("subscription"), steps.result("delivery")),
        ("skipped", "skipped")
    );
    let steps = host.init(&[]).ended(1);
    assert_eq!(
        (steps.result("configuration"), steps.result("daemon")),
        ("ok", "failed"),
        "still"
    );
    host.kill();
    *host.proxy.to.lock().unwrap() = host.path("other.sock");
    host.serve().await;
    assert_eq!(host.init(&[]).ended(0).results(), ALL_GOOD);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_api_key_stops_before_anything_is_written() {
    let host = Host::new().await;
    std::fs::write(host.path("given.key"), "api_nobody.knows").unwrap();
    let steps = host.first().ended(1);
    assert_eq!(steps.results(), [("api-key", "failed")]);
    assert!(steps.says("api-key").contains("does not know the API key"), "{steps:?}");
    assert!(steps.stderr.contains("nothing was changed"), "{steps:?}");
    assert!(!format!("{steps:?}").contains("api_nobody.knows"));
    let names: Vec<_> = std::fs::read_dir(host.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["given.key"]);
    // A key in an argument would be in every list of processes.
    let output = host.run(&["init", "--yes", "--api-key", &host.fake.api_key()]);
    assert_eq!(output.status.code(), Some(2));
    host.says_no_secret(&output);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_close_revoked_is_exchanged_while_the_daemon_runs() {
    let mut host = Host::new().await;
    host.first().ended(0);
    host.serve().await;
    host.fake.world().access.keys[0].state = fake_close::State::Revoked;
    let steps = host.init(&[]).ended(1);
    assert!(
        steps.says("api-key").contains("give another one with --api-key"),
        "{steps:?}"
    );
    let new = host
        .fake
        .world()
        .access
        .add(None, fake_close::Role::Admin)
        .unwrap()
        .key
        .clone();
    std::fs::write(host.path("given.key"), &new).unwrap();
    let steps = host.init(&["--api-key", &host.key_argument()]).ended(0);
    assert_eq!(
        (steps.result("daemon"), steps.result("subscription")),
        ("changed", "ok")
    );
    assert!(!format!("{steps:?}").contains(&new));
    assert_eq!(host.init(&[]).ended(0).results(), ALL_GOOD);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_leads_elsewhere_is_told_with_its_cause() {
    let mut host = Host::new().await;
    host.first().ended(0);
    host.serve().await;
    // Something else answers.
    let other = Receiver::start(200).await;
    let elsewhere = other.url.replace("/hook", "/webhooks/close");
    for (status, part) in [
        (200, "something else than this closehook"),
        (401, "another receiver, or a login"),
        (404, "does not pass /webhooks/close on to unix:"),
        (502, "the proxy is there and does not reach closehook"),
    ] {
        other.answer_with(status);
        let steps = host.init(&["--url", &elsewhere]).ended(1);
        assert!(steps.says("delivery").contains(part), "{part}: {steps:?}");
        assert_eq!(steps.step("delivery")["answered_by_this_closehook"], false);
        assert_eq!(
            steps.result("subscription"),
            if status == 200 { "changed" } else { "ok" }
        );
    }
    // Nobody answers.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let steps = host.init(&["--url", &format!("http://{free}/webhooks/close")]).ended(1);
    assert!(
        steps.says("delivery").contains("no connection to 127.0.0.1"),
        "{steps:?}"
    );
    // Another closehook answers, with keys of its own.
    let stranger = Daemon::start("").await;
    let steps = host.init(&["--url", &stranger.url]).ended(1);
    assert!(
        steps
            .says("delivery")
            .contains("401 from something else than this closehook"),
        "{steps:?}"
    );
    // It is this one, at another path than the proxy passes on.
    let elsewhere = host.url().replace("/webhooks/close", "/hooks");
    let steps = host.init(&["--url", &elsewhere]).ended(1);
    assert!(steps.says("daemon").contains("restart it"), "{steps:?}");
    host.kill();
    host.serve().await;
    let steps = host.init(&[]).ended(0);
    assert_eq!(steps.step("delivery")["answered_by_this_closehook"], true);
    let behind = host.text().replace("path = \"/hooks\"", "path = \"/behind\"");
    std::fs::write(host.config(), behind).unwrap();
    host.kill();
    host.serve().await;
    let steps = host.init(&[]).ended(1);
    assert_eq!(steps.result("configuration"), "ok", "a proxy may have other paths");
    assert!(
        steps
            .says("delivery")
            .contains("404: the request reached closehook at another path"),
        "{steps:?}"
    );
    assert_eq!(steps.step("delivery")["answered_by_this_closehook"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_can_not_be_read_is_left_to_a_person() {
    let host = Host::new().await;
    for (text, part) in [
        ("[server\n", "closehook.toml:1:"),
        ("[server]\nlissten = \"127.0.0.1:1\"\n", "did you mean \"listen\"?"),
    ] {
        std::fs::write(host.config(), text).unwrap();
        let steps = host.first().ended(2);
        assert!(steps.all.is_empty() && steps.stderr.contains(part), "{steps:?}");
        assert_eq!(host.text(), text);
        assert!(!host.path("close_api_key").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_missing_is_named_at_once() {
    let host = Host::new().await;
    let steps = host.init(&[]).ended(2);
    for flag in ["--url URL", "--https acme|proxy|files", "--api-key @FILE"] {
        assert!(steps.stderr.contains(flag), "{flag}: {steps:?}");
    }
    let output = host.run(&["init"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("this is no terminal: say --yes, and --url URL"), "{said}");
    let steps = host
        .init(&[
            "--url",
            "hooks.example.com",
            "--https",
            "files",
            "--api-key",
            &host.key_argument(),
        ])
        .ended(2);
    assert!(steps.stderr.contains("--cert FILE, --cert-key FILE"), "{steps:?}");
    for (flags, part) in [
        (&["--url", "http://hooks.example.com"][..], "is not https"),
        (
            &["--url", "https://user:pass@hooks.example.com"],
            "more than scheme, host and path",
        ),
        (&["--url", "https://192.0.2.1", "--https", "acme"], "ordered for a name"),
        (&["--url", "https://a.example:8443", "--https", "acme"], "at port 443"),
        (&["--acme-directory", "letsencrypt"], "is not \"production\""),
        (&["--listen", "8480"], "is no address and port"),
    ] {
        let steps = host.init(flags).ended(2);
        assert!(steps.stderr.contains(part), "{part}: {steps:?}");
    }
    assert!(!host.config().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_shows_everything_and_writes_nothing() {
    let host = Host::new().await;
    let url = host.url();
    let flags = host.first_flags();
    let flags = [&["--dry-run"], &flags.each_ref().map(String::as_str)[..]].concat();
    let steps = host.init(&flags).ended(0);
    assert_eq!(
        steps.results(),
        [
            ("port", "ok"),
            ("api-key", "ok"),
            ("configuration", "skipped"),
            ("subscription", "skipped")
        ]
    );
    let diff = steps.step("configuration")["diff"].to_string();
    assert!(diff.contains(&format!("+public_url = \\\"{url}\\\"")), "{diff}");
    assert_eq!(steps.step("subscription")["plan"]["steps"][0]["step"], "create");
    assert!(host.subscriptions().is_empty());
    let names: Vec<_> = std::fs::read_dir(host.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["given.key"]);

    host.first().ended(0);
    let before = host.text();
    let moved = url.replace("127.0.0.1", "localhost");
    let output = host.run(&["init", "--dry-run", "--url", &moved]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    for line in [
        format!("-public_url = \"{url}\""),
        format!("+public_url = \"{moved}\""),
        format!("+url {moved}"),
    ] {
        assert!(said.contains(&line), "{line}: {said}");
    }
    assert_eq!((host.text(), &host.subscriptions()[0].1), (before, &url));
    let steps = host.init(&["--dry-run"]).ended(0);
    assert!(steps.results().iter().all(|(_, result)| *result == "ok"), "{steps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_difference_shows_a_secret() {
    let host = Host::new().await;
    // By value, right beside what changes.
    let text = format!(
        "[log]\ndir = \"DIR/data\"\n[close]\nbase_url = \"{}\"\napi_key = \"{}\"\n[server]\nlisten = \"unix:DIR/old.sock\"\n\
         [[close.subscriptions]]\nsignature_key = \"{}\"\n",
        host.fake.base_url(),
        host.fake.api_key(),
        "ab".repeat(32),
    );
    let text = text.replace("DIR", &host.dir.path().display().to_string());
    let secrets = [&"ab".repeat(32), &host.fake.api_key()];
    let shown = text.replace(
        "\n[[close.subscriptions]]\nsignature_key = ",
        "\n# [[close.subscriptions]]\n# signature_key = ",
    );
    for text in [&text, &shown] {
        for json in [&["--json"][..], &[]] {
            std::fs::write(host.config(), text).unwrap();
            let flags = [
                "init",
                "--yes",
                "--dry-run",
                "--url",
                &host.url(),
                "--https",
                "proxy",
                "--listen",
                &host.listen(),
            ];
            let output = host.run(&[&flags[..], json].concat());
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("public_url") && said.contains("api_key"), "{said}");
            for secret in secrets {
                assert!(!said.contains(secret), "{secret}: {said}");
            }
        }
    }
}
