//! The email sink with the built daemon and a real mail server (aiosmtpd). What an answer means is tried beside the sink
//! (`src/sinks/email/tests.rs`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::campaign;
use crate::harness::{Daemon, until};
use crate::smtp_server::{Mail, Server};

/// What every sink here has: it does not wait long.
const EAGER: &str = "start = \"beginning\"\ntimeout = \"10s\"\nfrom = \"closehook <closehook@example.com>\"\n\
     retry = { initial = \"10ms\", max_delay = \"50ms\" }\nbreaker = { probe = \"50ms\" }\n";

pub fn sink(server: &Server, scheme: &str, more: &str) -> String {
    format!(
        "[[sinks]]\nname = \"mail\"\ntype = \"email\"\nserver = \"{scheme}://127.0.0.1:{}\"\nto = [\"sales@example.com\"]\n{EAGER}{more}",
        server.port
    )
}

fn with_login(server: &Server) -> String {
    format!(
        "ca = \"{}\"\nusername = \"me\"\npassword_file = \"DIR/password\"\n",
        server.path("ca.pem")
    )
}

fn login() -> serde_json::Value {
    json!({ "tls": "starttls", "user": "me", "pass": "hunter2222" })
}

/// The Seqs of mails that are about one event each, in the order they came.
fn seqs(mails: &[Mail]) -> Vec<u64> {
    mails
        .iter()
        .map(|mail| mail.header("closehook-seq").parse().unwrap())
        .collect()
}

async fn with_password(config: &str) -> Daemon {
    let mut daemon = Daemon::new(config);
    std::fs::write(daemon.path("password"), "hunter2222\n").unwrap();
    daemon.run().await;
    daemon
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_comes_over_tls_with_a_login_and_carries_the_key() {
    let Some(server) = Server::start(login()) else { return };
    let mut daemon = with_password(&sink(&server, "smtp", &with_login(&server))).await;
    let probed = daemon.ok(&["check", "--probe"]);
    assert!(probed.contains("the server is there, and knows the user"), "{probed}");
    daemon.ok(&["trigger", "opportunity.updated"]);
    daemon.store(2..=4).await;
    daemon.done("mail").await;
    let mails = server.mails();
    assert_eq!(seqs(&mails), [1, 2, 3, 4]);
    let first = &mails[0];
    assert!(first.tls && first.to == ["sales@example.com"], "{first:?}");
    assert_eq!(
        first.header("subject"),
        "Opportunity of KLine moved from Active to Won (1,000 USD) by Joe Kemp"
    );
    assert!(
        first
            .text
            .contains("https://app.close.com/lead/lead_zwqYhEFwzPyfCErS8uQ77is2wFLvr9BgVi6cTfbFM68/"),
        "{first:?}"
    );
    let id = first.header("message-id");
    assert!(id.starts_with("<ev_") && id.ends_with("@example.com>"), "{id}");
    let ids: BTreeSet<String> = mails.iter().map(|mail| mail.header("message-id")).collect();
    assert_eq!(ids.len(), 4);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn smtps_works_as_well_and_an_unknown_authority_is_said_with_what_to_do() {
    let Some(server) = Server::start(json!({ "tls": "smtps" })) else {
        return;
    };
    let Some(other) = Server::start(json!({ "tls": "starttls" })) else {
        return;
    };
    let daemon = Daemon::start(&sink(&server, "smtps", "")).await;
    daemon.store(1..=1).await;
    daemon
        .says("mail", "set ca to the authority that signed the server's certificate")
        .await;
    // The certificate of another one.
    daemon.configure(&sink(&server, "smtps", &format!("ca = \"{}\"\n", other.path("ca.pem"))));
    assert!(daemon.reload().await);
    daemon.store(2..=2).await;
    daemon.says("mail", "no TLS with the server").await;
    daemon.configure(&sink(
        &server,
        "smtps",
        &format!("ca = \"{}\"\n", server.path("ca.pem")),
    ));
    assert!(daemon.reload().await);
    daemon.done("mail").await;
    assert_eq!(seqs(&server.mails()), [1, 2]);
    // By its very certificate, too, and after STARTTLS.
    daemon.configure(&sink(&other, "smtp", &format!("ca = \"{}\"\n", other.path("cert.pem"))));
    assert!(daemon.reload().await);
    daemon.store(3..=3).await;
    daemon.done("mail").await;
    assert_eq!(seqs(&other.mails()), [3]);
    assert_eq!(daemon.sink("mail")["dead"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_in_plain_text_unless_that_is_meant() {
    let Some(server) = Server::start(json!({ "tls": "none" })) else {
        return;
    };
    let daemon = Daemon::start(&sink(&server, "smtp", "")).await;
    daemon.store(1..=1).await;
    daemon
        .says("mail", "the server offers no STARTTLS, so nothing was sent")
        .await;
    daemon.configure(&sink(&server, "smtp", "insecure = true\n"));
    let checked = daemon.run_command(&["check"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert!(
        said.contains("whoever is on the way to the server can read mails"),
        "{said}"
    );
    assert!(daemon.reload().await);
    daemon.done("mail").await;
    assert!(!server.mails()[0].tls);
    // Where the server offers it, it is used, whoever it is.
    let Some(known) = Server::start(json!({ "tls": "starttls" })) else {
        return;
    };
    daemon.configure(&sink(&known, "smtp", "insecure = true\n"));
    assert!(daemon.reload().await);
    daemon.store(2..=2).await;
    daemon.done("mail").await;
    assert!(known.mails()[0].tls);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_mail_is_dead_and_a_refused_sender_waits() {
    let Some(mut server) = Server::start(json!({ "tls": "starttls" })) else {
        return;
    };
    let ca = format!("ca = \"{}\"\n", server.path("ca.pem"));
    let daemon = Daemon::start(&sink(&server, "smtp", &ca)).await;
    let mut id = 0;
    for (rule, answer, part, is_dead) in [
        (
            "rcpt",
            json!({ "sales@example.com": "550 5.1.1 No such user here" }),
            "550 5.1.1",
            true,
        ),
        ("data", json!("554 5.7.1 Looks like spam"), "554 5.7.1", true),
        ("data", json!("552 5.3.4 Too big"), "552 5.3.4", true),
        (
            "rcpt",
            json!({ "sales@example.com": "450 4.2.0 Greylisted" }),
            "450 4.2.0",
            false,
        ),
        (
            "rcpt",
            json!({ "sales@example.com": "554 5.7.1 Relay access denied" }),
            "Relay access denied",
            false,
        ),
        ("mail", json!("553 5.7.1 Not yours"), "set from to an address", false),
        (
            "data",
            json!("452 4.3.1 Insufficient system storage"),
            "Insufficient system storage",
            false,
        ),
        ("data", json!("421 4.3.2 Going down"), "Going down", false),
        ("connect", json!("421 4.3.2 Too busy"), "Too busy", false),
        ("connect", json!("554 5.7.1 You are on a list"), "on a list", false),
    ] {
        id += 1;
        let dead = daemon.sink("mail")["dead"].as_u64().unwrap();
        // A new connection, which is greeted anew.
        server.kill();
        server.run();
        server.says(rule, answer);
        daemon.store(id..=id).await;
        if is_dead {
            until(&format!("{part}: a dead letter"), async || {
                daemon.sink("mail")["dead"] == dead + 1
            })
            .await;
            let letter = daemon.ok(&["dead", "show", &format!("ev_{id}"), "--sink", "mail"]);
            assert!(letter.contains(part), "{letter}");
        } else {
            daemon.says("mail", part).await;
            assert_eq!(daemon.sink("mail")["dead"], dead, "{part}");
        }
        server.says(rule, json!(null));
        daemon.done("mail").await;
    }
    assert_eq!(seqs(&server.mails()), [4, 5, 6, 7, 8, 9, 10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_not_good_any_more_costs_nothing_and_is_shown_nowhere() {
    let Some(mut server) = Server::start(login()) else {
        return;
    };
    let daemon = with_password(&sink(&server, "smtp", &with_login(&server))).await;
    daemon.store(1..=1).await;
    daemon.done("mail").await;
    server.says("pass", json!("other-hunter2222"));
    server.kill();
    server.run();
    daemon.store(2..=10).await;
    daemon
        .says(
            "mail",
            "No such user, or not this password\": see username and password",
        )
        .await;
    let sink = daemon.sink("mail");
    assert_eq!(
        (&sink["dead"], &sink["retrying"], &sink["delivered"]),
        (&json!(0), &json!(0), &json!(1)),
        "{sink}"
    );
    std::fs::write(daemon.path("password"), "other-hunter2222").unwrap();
    assert!(daemon.reload().await);
    daemon.done("mail").await;
    assert_eq!(seqs(&server.mails()), (1..=10).collect::<Vec<_>>());
    let mut said = daemon.stderr();
    for arguments in [
        &["sinks", "list", "--json"][..],
        &["status", "--json"],
        &["check", "--probe"],
        &["events", "show", "ev_1"],
    ] {
        let output = daemon.run_command(arguments);
        said += &String::from_utf8_lossy(&output.stdout);
        said += &String::from_utf8_lossy(&output.stderr);
    }
    assert!(!said.contains("hunter2222"), "{said}");
}

/// The answer of a mail that was taken is lost: it comes again, and mailboxes see that it is the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_loses_nothing_and_a_repeat_has_the_same_id() {
    let Some(mut server) = Server::start(json!({ "tls": "starttls", "cut": "before" })) else {
        return;
    };
    let ca = format!("ca = \"{}\"\n", server.path("ca.pem"));
    let daemon = Daemon::start(&sink(&server, "smtp", &ca)).await;
    daemon.store(1..=3).await;
    daemon.says("mail", "the connection to the server broke").await;
    assert_eq!(server.mails().len(), 0);
    server.says("cut", json!("after"));
    until("one came several times", async || server.mails().len() > 2).await;
    server.says("cut", json!(null));
    daemon.done("mail").await;
    let mut ids: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for mail in server.mails() {
        let seq = mail.header("closehook-seq").parse().unwrap();
        ids.entry(seq).or_default().insert(mail.header("message-id"));
    }
    assert_eq!(
        ids.values().map(BTreeSet::len).collect::<Vec<_>>(),
        [1, 1, 1],
        "{ids:?}"
    );
    assert_eq!(daemon.sink("mail")["dead"], 0);
}

/// `CLOSEHOOK_TEST_KILLS` asks for more than CI's 2.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missing_whenever_the_daemon_or_the_server_is_killed() {
    let Some(mut server) = Server::start(json!({ "tls": "starttls" })) else {
        return;
    };
    let ca = format!("ca = \"{}\"\n", server.path("ca.pem"));
    let mut daemon = Daemon::new(&sink(&server, "smtp", &ca));
    let by_seq = campaign::kills(&mut daemon, Some(&mut server), "mail").await;
    let mut keys: BTreeMap<u64, BTreeSet<(String, String)>> = BTreeMap::new();
    for mail in server.mails() {
        let both = (mail.header("closehook-key"), mail.header("message-id"));
        keys.entry(mail.header("closehook-seq").parse().unwrap())
            .or_default()
            .insert(both);
    }
    assert_eq!(keys.keys().collect::<Vec<_>>(), by_seq.keys().collect::<Vec<_>>());
    for (seq, found) in keys {
        let key = format!("ev_{}:2024-02-15T12:48:23.395000", by_seq[&seq]);
        assert!(
            found.len() == 1 && found.iter().all(|(known, _)| *known == key),
            "{seq}: {found:?}"
        );
    }
    daemon.stop().await;
}

/// What came within the time is one mail, also when the daemon was killed meanwhile, and it is the same mail when it is sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_digest_is_one_mail_and_survives_kills() {
    let Some(mut server) = Server::start(json!({ "tls": "starttls", "cut": "after" })) else {
        return;
    };
    let more = format!(
        "ca = \"{}\"\ndigest = \"10s\"\nsubject = \"Close today\"\n",
        server.path("ca.pem")
    );
    let mut daemon = Daemon::new(&sink(&server, "smtp", &more));
    daemon.run().await;
    daemon.ok(&["trigger", "lead.created"]);
    daemon.store(2..=30).await;
    assert_eq!(daemon.sink("mail")["delivered"], 0, "it waits");
    daemon.kill();
    daemon.run().await;
    until("it was sent, and the answer lost", async || !server.mails().is_empty()).await;
    daemon.kill();
    server.says("cut", json!(null));
    daemon.run().await;
    daemon.done("mail").await;
    // However slow this machine is: what is in one mail is in no other one, and all is there.
    let mut parts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for mail in server.mails() {
        assert_eq!(mail.header("subject"), "Close today");
        parts
            .entry(mail.header("message-id"))
            .or_default()
            .insert(mail.header("closehook-seq"));
    }
    assert!(
        parts.len() < 15 && parts.values().all(|seqs| seqs.len() == 1),
        "the same mail: {parts:?}"
    );
    let mut ranges: Vec<(u64, u64)> = parts
        .values()
        .flatten()
        .map(|range| range.split_once('-').unwrap())
        .map(|(first, last)| (first.parse().unwrap(), last.parse().unwrap()))
        .collect();
    ranges.sort_unstable();
    let next = ranges
        .iter()
        .fold(1, |next, (first, last)| if *first == next { last + 1 } else { 0 });
    assert_eq!(next, 31, "{ranges:?}");
    let first = &server.mails()[0];
    assert!(first.text.contains("* New lead: Bluth Travel Company"), "{first:?}");
    assert_eq!(daemon.sink("mail")["dead"], 0);
}

/// One bad event in a digest costs one dead letter, and the others come once.
#[tokio::test(flavor = "multi_thread")]
async fn one_event_that_makes_the_server_refuse_a_digest_is_found() {
    let Some(server) = Server::start(json!({ "tls": "starttls", "data_with": { "Spam GmbH": "554 5.7.1 Spam" } }))
    else {
        return;
    };
    let more = format!("ca = \"{}\"\ndigest = \"5s\"\n", server.path("ca.pem"));
    let daemon = Daemon::start(&sink(&server, "smtp", &more)).await;
    for id in 1..=20 {
        let name = if id == 13 {
            "Spam GmbH".to_owned()
        } else {
            format!("Lead{id} Ltd")
        };
        let body = format!(
            r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"created","data":{{"display_name":"{name}"}}}}}}"#
        );
        assert_eq!(daemon.send(body).await.unwrap().0, 200);
    }
    daemon.done("mail").await;
    let sink = daemon.sink("mail");
    assert_eq!((&sink["dead"], &sink["delivered"]), (&json!(1), &json!(19)), "{sink}");
    assert!(
        daemon
            .ok(&["dead", "show", "ev_13", "--sink", "mail"])
            .contains("554 5.7.1")
    );
    let all: String = server.mails().into_iter().map(|mail| mail.text).collect();
    for id in (1..=20).filter(|id| *id != 13) {
        assert_eq!(all.matches(&format!("Lead{id} Ltd")).count(), 1, "{all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_can_not_add_to_the_head_of_its_mail() {
    let Some(server) = Server::start(json!({ "tls": "starttls" })) else {
        return;
    };
    let ca = format!("ca = \"{}\"\n", server.path("ca.pem"));
    let daemon = Daemon::start(&sink(&server, "smtp", &ca)).await;
    let body = r#"{"event":{"id":"ev_1\r\nBcc: evil@example.com","object_type":"lead","action":"created","lead_id":"x\r\n.\r\nMAIL FROM:<a@b.c>","data":{"display_name":"A\r\nBcc: evil@example.com\r\n\r\n.\r\n"}}}"#;
    assert_eq!(daemon.send(body).await.unwrap().0, 200);
    daemon.done("mail").await;
    let mails = server.mails();
    assert_eq!((mails.len(), mails[0].header("bcc")), (1, String::new()), "{mails:?}");
    assert_eq!(mails[0].to, ["sales@example.com"]);
}

/// Decision 41.
#[tokio::test(flavor = "multi_thread")]
async fn templates_make_the_subject_the_text_the_html_and_the_recipients() {
    let Some(server) = Server::start(json!({ "tls": "starttls" })) else {
        return;
    };
    let more = format!(
        "ca = \"{}\"\nsubject = 'About {{{{ data.display_name }}}}'\ntext = 'Plain {{{{ data.display_name }}}}'\n\
         html = '<p>{{{{ data.display_name }}}}</p>'\n",
        server.path("ca.pem")
    );
    let to = "to = [\"sales@example.com\", \"{{ data.owner | default('') }}\"]";
    let config = sink(&server, "smtp", &more).replace("to = [\"sales@example.com\"]", to);
    let daemon = Daemon::start(&config).await;
    for (id, owner) in [(1, "ann@example.com"), (2, ""), (3, "nobody")] {
        let body = format!(
            r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"created","data":{{"display_name":"A\r\nBcc: x@y.z <b>","owner":"{owner}"}}}}}}"#
        );
        assert_eq!(daemon.send(body).await.unwrap().0, 200);
    }
    daemon.done("mail").await;
    let mails = server.mails();
    let to: Vec<Vec<String>> = mails.iter().map(|mail| mail.to.clone()).collect();
    assert_eq!(
        to,
        [vec!["sales@example.com", "ann@example.com"], vec!["sales@example.com"]]
    );
    let mail = &mails[0];
    assert_eq!(
        (mail.header("subject"), mail.header("bcc")),
        ("About A Bcc: x@y.z <b>".to_owned(), String::new()),
        "{mail:?}"
    );
    assert!(
        mail.text.contains("&lt;b&gt;</p>") && mail.text.contains("Plain A"),
        "{mail:?}"
    );
    assert!(
        daemon
            .ok(&["dead", "show", "ev_3", "--sink", "mail"])
            .contains("to[1] is no address for this event")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digests_templates_see_all_its_events() {
    let Some(server) = Server::start(json!({ "tls": "starttls" })) else {
        return;
    };
    let more = format!(
        "ca = \"{}\"\ndigest = \"5s\"\nsubject = '{{{{ count }}}} new'\n\
         text = '{{% for e in events %}}- {{{{ e.data.display_name }}}}|{{% endfor %}}and {{{{ more }}}} more'\n\
         html = '{{% for e in events %}}<li>{{{{ e.data.display_name }}}}</li>{{% endfor %}}'\n",
        server.path("ca.pem")
    );
    let daemon = Daemon::start(&sink(&server, "smtp", &more)).await;
    for id in 1..=4 {
        let body = format!(
            r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"created","data":{{"display_name":"<L{id}>"}}}}}}"#
        );
        assert_eq!(daemon.send(body).await.unwrap().0, 200);
    }
    daemon.done("mail").await;
    let mails = server.mails();
    let all: String = mails.iter().map(|mail| mail.text.clone()).collect();
    for id in 1..=4 {
        assert!(
            all.contains(&format!("- <L{id}>|")) && all.contains(&format!("<li>&lt;L{id}&gt;</li>")),
            "{all}"
        );
    }
    assert!(all.contains("|and 0 more"), "{all}");
    let counts = mails
        .iter()
        .map(|mail| mail.header("subject").trim_end_matches(" new").parse::<u64>().unwrap());
    assert_eq!(counts.sum::<u64>(), 4, "{mails:?}");
    assert_eq!(daemon.sink("mail")["dead"], 0);
}
