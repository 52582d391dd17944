//! What is answered, and what it makes of a configuration.

use super::super::edit::{Changes, edit, new_text};
use super::*;
use crate::config::Layers;

fn load(text: &str) -> Config {
    let layers = Layers {
        file: Some("/etc/closehook/closehook.toml".into()),
        ..Layers::new(crate::sinks::REGISTRY, crate::rules::faults)
    };
    Config::of_text(&layers, text).unwrap_or_else(|faults| panic!("{faults:?}: {text}"))
}

fn answers(url: &str, https: Https, listen: &str) -> Answers {
    Answers {
        url: PublicUrl::parse(url, "/webhooks/close").unwrap(),
        https,
        listen: listen.parse().unwrap(),
        data: None,
    }
}

fn ways() -> Vec<Answers> {
    let acme = |directory: Option<&str>| Https::Acme {
        domains: vec!["hooks.example.com".into()],
        email: Some("ops@example.com".into()),
        directory: directory.map(Into::into),
    };
    let proxy = |trusted: Option<Vec<String>>| Https::Proxy { trusted };
    let files = Tls {
        cert: "/c.pem".into(),
        key: "/k.pem".into(),
    };
    vec![
        answers("hooks.example.com", acme(None), "[::]:443"),
        answers("https://hooks.example.com/x", acme(Some("staging")), "0.0.0.0:443"),
        answers(
            "hooks.example.com",
            proxy(Some(vec!["10.0.0.0/8".into()])),
            "0.0.0.0:8480",
        ),
        answers("hooks.example.com", proxy(None), "unix:/run/closehook/public.sock"),
        answers("hooks.example.com", Https::Files(files), "[::]:443"),
        answers("http://127.0.0.1:8480", Https::Plain, "127.0.0.1:8480"),
    ]
}

#[test]
fn an_edit_says_what_was_answered_and_a_second_one_nothing_more() {
    let changes = Changes {
        api_key_file: Some("/etc/closehook/close_api_key".into()),
        dead_keys: Vec::new(),
    };
    let reference = include_str!("../../../../config/closehook.toml");
    for begin in [
        "",
        reference,
        &new_text().unwrap(),
        "[server]\nlisten = \"127.0.0.1:1\"\n[close]\napi_key = \"old\"\n",
    ] {
        let mut text = begin.to_owned();
        // From one way to the next, as people change their minds.
        for wanted in ways() {
            text = edit(&text, &load(&text), &wanted, &changes).unwrap();
            let config = load(&text);
            let server = &config.server;
            assert_eq!(server.public_url.as_deref(), Some(wanted.url.url().as_str()));
            assert_eq!(
                (&server.listen, server.path.as_str()),
                (&wanted.listen, wanted.url.url().path())
            );
            let found = match &wanted.https {
                Https::Acme { domains, email, .. } => server
                    .acme
                    .as_ref()
                    .is_some_and(|acme| acme.domains == *domains && acme.email == *email),
                Https::Files(files) => server.tls.as_ref() == Some(files),
                Https::Proxy { .. } | Https::Plain => server.acme.is_none() && server.tls.is_none(),
            };
            assert!(found && !text.contains("\"old\""), "{wanted:?}: {text}");
            assert_eq!(edit(&text, &config, &wanted, &changes).unwrap(), text, "nothing twice");
        }
        if begin == reference {
            // Still the commented reference, line by line.
            let lost = reference.lines().filter(|line| {
                line.len() > 60 && line.starts_with("# ") && !line.contains(" = ") && !text.contains(line)
            });
            assert_eq!(lost.collect::<Vec<_>>(), Vec::<&str>::new());
        }
    }
}

#[tokio::test]
async fn where_to_listen_follows_from_the_way_unless_somebody_chose_it() {
    const ACME: &str = "[server.acme]\ndomains = [\"hooks.example.com\"]\n";
    let proxied = "[server]\npublic_url = \"https://hooks.example.com/x\"\n";
    for (text, way, given, listen) in [
        ("", Way::Acme, None, ":443"),
        (ACME, Way::Acme, None, ":443"),
        (
            &format!("[server]\nlisten = \"192.0.2.1:443\"\n{ACME}"),
            Way::Acme,
            None,
            "192.0.2.1:443",
        ),
        (
            &format!("[server]\nlisten = \"192.0.2.1:443\"\n{ACME}"),
            Way::Proxy,
            None,
            "127.0.0.1:8480",
        ),
        (proxied, Way::Acme, None, ":443"),
        (
            &format!("{proxied}listen = \"127.0.0.1:9000\"\n"),
            Way::Proxy,
            None,
            "127.0.0.1:9000",
        ),
        (
            &format!("{proxied}listen = \"unix:/run/x.sock\"\n"),
            Way::Proxy,
            None,
            "unix:/run/x.sock",
        ),
        ("", Way::Proxy, Some("unix:/run/y.sock"), "unix:/run/y.sock"),
    ] {
        let flags = Flags {
            url: Some("hooks.example.com".into()),
            https: Some(way),
            listen: given.map(|listen| listen.parse().unwrap()),
            ..Flags::default()
        };
        let config = load(text);
        let known = Known {
            config: &config,
            file: Path::new("/etc/closehook/closehook.toml"),
            is_new: false,
        };
        let mut asked = Asked::Nobody(Vec::new());
        let answers = gather(&flags, &known, &mut asked).await.unwrap().unwrap();
        assert!(answers.listen.to_string().ends_with(listen), "{text}: {answers:?}");
        let trusts = matches!(&answers.https, Https::Proxy { trusted: Some(_) });
        assert_eq!(
            trusts,
            way == Way::Proxy && listen.starts_with("127."),
            "{text}: {answers:?}"
        );
    }
    // A proxy elsewhere has to be named.
    let flags = Flags {
        url: Some("hooks.example.com".into()),
        https: Some(Way::Proxy),
        listen: Some("0.0.0.0:8480".parse().unwrap()),
        ..Flags::default()
    };
    let config = load("");
    let known = Known {
        config: &config,
        file: Path::new("/etc/closehook/closehook.toml"),
        is_new: false,
    };
    let mut asked = Asked::Nobody(Vec::new());
    gather(&flags, &known, &mut asked).await.unwrap();
    assert!(matches!(asked, Asked::Nobody(missing) if missing == ["--trusted-proxies"]));
}

#[tokio::test]
async fn events_can_be_kept_elsewhere_while_there_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let config = load(&format!("[log]\ndir = {data:?}\n"));
    let known = Known {
        config: &config,
        file: Path::new("/etc/closehook/closehook.toml"),
        is_new: false,
    };
    let flags = Flags {
        url: Some("hooks.example.com".into()),
        https: Some(Way::Proxy),
        data: Some("/srv/elsewhere".into()),
        ..Flags::default()
    };
    let gathered = async || gather(&flags, &known, &mut Asked::Nobody(Vec::new())).await;
    for make in [false, true] {
        if make {
            std::fs::create_dir(&data).unwrap();
        }
        let answers = gathered().await.unwrap().unwrap();
        assert_eq!(answers.data.as_deref(), Some(Path::new("/srv/elsewhere")));
    }
    std::fs::write(data.join("closehook.json"), "{}").unwrap();
    let said = gathered().await.unwrap_err();
    assert!(
        matches!(&said, Failure::Usage(why) if why.contains("events are kept in") && why.contains("already")),
        "{said:?}"
    );
}

#[test]
fn a_public_url_is_https_and_has_a_path() {
    for (text, url) in [
        ("hooks.example.com", "https://hooks.example.com/webhooks/close"),
        ("https://hooks.example.com", "https://hooks.example.com/webhooks/close"),
        ("https://hooks.example.com/", "https://hooks.example.com/"),
        ("https://HOOKS.example.com:443/a", "https://hooks.example.com/a"),
        ("hooks.example.com:8443/a", "https://hooks.example.com:8443/a"),
        ("http://localhost:1/x", "http://localhost:1/x"),
    ] {
        assert_eq!(
            PublicUrl::parse(text, "/webhooks/close").map(|url| url.url().to_string()),
            Ok(url.to_owned())
        );
    }
    for bad in [
        "",
        "http://example.com/",
        "https://",
        "ftp://example.com",
        "https://a:b@c.example/",
        "https://a.example/?x=1",
        "a b",
    ] {
        assert!(PublicUrl::parse(bad, "/x").is_err(), "{bad}");
    }
}
