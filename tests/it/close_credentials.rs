//! Who we are at Close, and what it says where that is not enough.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use fake_close::fault::{Fault, Faults, Kind};
use fake_close::{Fake, Options, Settings, State};

use crate::close::{FILE_SINK, PUBLIC_URL, Rig, configuration};
use crate::harness::{Daemon, until};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn each_trouble_has_its_sentence_and_the_daemon_goes_on() {
    let rig = Rig::subscribed(Settings::calm(), "", FILE_SINK).await;
    let trouble = |rig: &Rig| rig.daemon.status()["close"]["trouble"].as_str().map(ToOwned::to_owned);
    until("all is well", async || {
        rig.daemon.status()["close"]["checked_at"].is_string() && trouble(&rig).is_none()
    })
    .await;
    for (state, sentence) in [
        (State::Revoked, "no longer accepts the credentials (401)"),
        (
            State::PaymentRequired,
            "plan of this organization does not include this (402",
        ),
        (State::Forbidden, "use the API key of an administrator"),
    ] {
        rig.fake.world().access.keys[0].state = state;
        until(sentence, async || {
            trouble(&rig).is_some_and(|text| text.contains(sentence))
        })
        .await;
        let error = rig.daemon.fails(1, &["subscription", "list"]);
        assert!(error.contains(sentence), "{error}");
        rig.fake.world().access.keys[0].state = State::Ok;
        until("all is well again", async || trouble(&rig).is_none()).await;
    }
    let list = "GET /api/v1/webhook/";
    for (fault, sentence) in [
        (
            Fault::new(Kind::Html),
            "not Close but something in front of it answered (502",
        ),
        (
            Fault::new(Kind::Html).status(403),
            "check [close] base_url and any proxy on the way",
        ),
        (Fault::new(Kind::Status).status(500), "Close has a problem (500)"),
        (Fault::new(Kind::Reset), "Close did not answer"),
        (Fault::new(Kind::Truncated), "Close's answer can't be read"),
    ] {
        rig.fake.world().faults.order(fault.on(list).times(1000)).unwrap();
        until(sentence, async || {
            trouble(&rig).is_some_and(|text| text.contains(sentence))
        })
        .await;
        rig.fake.world().faults = Faults::default();
        until("all is well again", async || trouble(&rig).is_none()).await;
    }
    // Each was said once, however often it was tried.
    assert_eq!(
        rig.daemon
            .stderr()
            .matches("use the API key of an administrator")
            .count(),
        1
    );
    let key = "closehook-test-key-that-nobody-knows";
    let wrong = format!(
        "[server]\npublic_url = \"{PUBLIC_URL}\"\n[close]\nbase_url = \"{}\"\napi_key = \"{key}\"\n",
        rig.fake.base_url()
    );
    let other = Daemon::new(&wrong);
    let error = other.fails(1, &["check", "--probe"]);
    let output = other.run_command(&["check", "--probe"]);
    let said = String::from_utf8(output.stdout).unwrap() + &error;
    assert!(
        said.contains("Close does not know the API key (401)") && !said.contains(key),
        "{said}"
    );
    assert!(rig.daemon.ok(&["check", "--probe"]).contains("Close answers for orga_"));
    // Field errors are Close's own words.
    let error = rig.daemon.fails(
        1,
        &["subscription", "create", "--url", "nonsense", "--event", "lead.created"],
    );
    assert!(error.contains("Close refuses the request (400): url: "), "{error}");
    assert!(
        rig.daemon
            .fails(1, &["subscription", "show", "whsub_nobody"])
            .contains("Close knows no subscription whsub_nobody")
    );
    assert!(
        rig.daemon
            .fails(2, &["subscription", "create", "--event", "lead.*"])
            .contains("without *")
    );
    // Receiving never stopped.
    rig.happen(30, HOUR).await;
    until("events are stored", async || {
        rig.daemon.status()["log"]["last"].as_u64() > Some(0)
    })
    .await;
}

/// What is not told to everybody is no reason to call Close changed, nor is another server one.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_says_what_a_plan_says() {
    let rig = Rig::new(Settings::calm(), "", "").await;
    let probed = || {
        let output = rig.daemon.run_command(&["check", "--probe"]);
        let said = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), said)
    };
    for (kind, status, sentence) in [
        (Kind::Html, 404, "not Close but something in front of it answered (404"),
        (
            Kind::Status,
            404,
            "not Close but something in front of it answered (404",
        ),
        (Kind::Status, 403, "the credentials may not do this at Close (403"),
    ] {
        let fault = Fault::new(kind).status(status).on("GET /api/v1/").times(1000);
        rig.fake.world().faults.order(fault).unwrap();
        let (code, said) = probed();
        assert!(code == Some(1) && said.contains(sentence), "{code:?}: {said}");
        let planned = rig.daemon.fails(1, &["subscription", "plan"]);
        assert!(planned.contains(sentence), "{planned}");
        rig.fake.world().faults = Faults::default();
    }
    // Whoever may do all else is not told who they are.
    let fault = Fault::new(Kind::Status).status(403).on("GET /api/v1/me/").times(1000);
    rig.fake.world().faults.order(fault).unwrap();
    let (code, said) = probed();
    assert!(code == Some(0) && said.contains(": Close answers"), "{code:?}: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_over_who_we_are_at_close() {
    let mut rig = Rig::new(Settings::calm(), "", "").await;
    let base_url = rig.fake.base_url();
    let key_file = rig.daemon.path("api.key");
    let with = |close: &str| configuration(&base_url, close, "");
    rig.daemon.configure(&with("local_key = true\n"));
    rig.daemon.run().await;
    let list = ["subscription", "list"];
    assert!(rig.daemon.fails(1, &list).contains("needs a key"));

    std::fs::write(&key_file, "api_nobody.knows").unwrap();
    rig.daemon
        .configure(&with("local_key = true\napi_key_file = \"DIR/api.key\"\n"));
    assert!(rig.daemon.reload().await);
    assert!(rig.daemon.fails(1, &list).contains("does not know the API key"));
    // The same file, with another key in it.
    std::fs::write(&key_file, rig.fake.api_key()).unwrap();
    assert!(rig.daemon.reload().await);
    rig.daemon.ok(&list);
    until("Close's side is looked after", async || {
        let close = &rig.daemon.status()["close"];
        close["checked_at"].is_string() && close["trouble"].is_null()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_refresh_token_is_kept_and_a_revoked_one_is_said() {
    let fake = Fake::start(Options {
        settings: Settings::calm(),
        ..Options::default()
    })
    .await
    .unwrap();
    let grant = fake.world().access.grant.clone();
    let close = format!(
        "[close.oauth]\nclient_id = \"{}\"\nclient_secret = \"{}\"\nrefresh_token = \"{}\"\n",
        grant.client_id, grant.client_secret, grant.refresh_token
    );
    let mut daemon = Daemon::new(&configuration(&fake.base_url(), "", &close));
    daemon.run().await;
    let is_well = |daemon: &Daemon| {
        let close = &daemon.status()["close"];
        close["checked_at"].is_string() && close["trouble"].is_null()
    };
    until("Close is reached", async || is_well(&daemon)).await;
    for _ in 0..2 {
        let refreshes = fake.world().access.grant.refreshes;
        fake.world().access.expire_token();
        until("it is refreshed", async || {
            fake.world().access.grant.refreshes > refreshes
        })
        .await;
        let file = daemon.data().join("close/oauth.json");
        let current = fake.world().access.grant.refresh_token.clone();
        until("it is on disk", async || {
            std::fs::read_to_string(&file).unwrap().contains(&current)
        })
        .await;
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        // The configured token is long used up.
        daemon.kill();
        daemon.run().await;
        until("Close is reached", async || is_well(&daemon)).await;
    }
    assert!(!daemon.stderr().contains(&grant.client_secret));
    daemon.stop().await;
    // Commands without a daemon use and keep the same chain.
    daemon.ok(&["subscription", "list"]);
    daemon.ok(&["subscription", "list"]);
    fake.world().access.grant.refresh_token = "revoked elsewhere".into();
    fake.world().access.expire_token();
    let error = daemon.fails(1, &["subscription", "list"]);
    assert!(error.contains("authorize the app again"), "{error}");
}

/// A Close, and a daemon's configuration with its OAuth app.
async fn with_oauth() -> (Fake, Daemon) {
    let options = Options {
        settings: Settings::calm(),
        ..Options::default()
    };
    let fake = Fake::start(options).await.unwrap();
    let grant = fake.world().access.grant.clone();
    let close = format!(
        "[close.oauth]\nclient_id = \"{}\"\nclient_secret = \"{}\"\nrefresh_token = \"{}\"\n",
        grant.client_id, grant.client_secret, grant.refresh_token
    );
    let daemon = Daemon::new(&configuration(&fake.base_url(), "", &close));
    (fake, daemon)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_uses_up_no_refresh_token_that_it_has_no_place_to_keep_the_next_of() {
    let (fake, mut daemon) = with_oauth().await;
    let output = daemon.run_command(&["check", "--probe"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("FAILED: it was not asked"), "{said}");
    assert_eq!(fake.world().access.grant.refreshes, 0);
    assert!(!daemon.data().exists(), "a look makes nothing");
    // With a place, it is asked, and the newest token is kept.
    daemon.run().await;
    daemon.stop().await;
    fake.world().access.expire_token();
    assert!(daemon.ok(&["check", "--probe"]).contains("Close answers for"));
    let kept = std::fs::read_to_string(daemon.data().join("close/oauth.json")).unwrap();
    assert!(kept.contains(&fake.world().access.grant.refresh_token));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_a_refresh_waits_for_the_token_that_it_brings() {
    let (fake, mut daemon) = with_oauth().await;
    let late = Fault::new(Kind::Late).delayed(Duration::from_secs(3));
    let token = "POST /oauth2/token/";
    fake.world().faults.order(late.on(token)).unwrap();
    daemon.run().await;
    until("the token is traded in", async || {
        fake.world().access.grant.refreshes == 1
    })
    .await;
    daemon.stop().await;
    assert_eq!(fake.world().access.grant.refreshes, 1);
    fake.world().access.expire_token();
    assert!(daemon.ok(&["check", "--probe"]).contains("Close answers for"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_of_root_writes_through_no_link_and_as_the_directorys_owner() {
    use std::os::unix::fs::{MetadataExt, chown, symlink};
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        crate::harness::skipped("only root can be made to write elsewhere");
        return;
    }
    let (fake, daemon) = with_oauth().await;
    let (data, elsewhere) = (daemon.data().to_owned(), daemon.path("elsewhere"));
    for dir in [&data, &elsewhere] {
        std::fs::create_dir(dir).unwrap();
    }
    std::fs::set_permissions(&elsewhere, std::fs::Permissions::from_mode(0o700)).unwrap();
    chown(&data, Some(NOBODY), Some(NOBODY)).unwrap();
    symlink(&elsewhere, data.join("close")).unwrap();
    daemon.run_command(&["check", "--probe"]);
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0, "root's own place");
    assert_eq!(
        fake.world().access.grant.refreshes,
        0,
        "no token is used up without a place for the next"
    );
    std::fs::remove_file(data.join("close")).unwrap();
    daemon.ok(&["check", "--probe"]);
    for name in ["close", "close/oauth.json", "close/oauth.lock"] {
        let metadata = std::fs::metadata(data.join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (NOBODY, NOBODY), "{name}");
    }
}
