use secrecy::SecretString;

use super::*;

#[test]
fn a_server_is_an_address_and_perhaps_a_login() {
    for (text, place, demands_tls) in [
        ("nats://nats.example.com:4333", "nats.example.com:4333", false),
        ("nats.example.com", "nats.example.com:4222", false),
        (" 127.0.0.1:1 ", "127.0.0.1:1", false),
        ("tls://[::1]/", "[::1]:4222", true),
    ] {
        let server = Server::parse(text).unwrap();
        assert_eq!(
            (server.place(), server.demands_tls()),
            (place.to_owned(), demands_tls),
            "{text}"
        );
        assert!(!server.has_login(), "{text}");
    }
    for bad in [
        "",
        "http://a",
        "wss://a",
        "nats://",
        "nats://a/b",
        "nats://a?b=c",
        "nats://a b",
        "tls://:4222",
    ] {
        assert!(Server::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_login_in_an_address_is_taken_out_of_it_and_shown_nowhere() {
    let user = Server::parse("tls://writer:hunter%2F2@a:1").unwrap();
    let Login::User { name, password } = &user.login else {
        panic!("no user")
    };
    assert_eq!((name.as_str(), password.expose_secret()), ("writer", "hunter/2"));
    let token = Server::parse("nats://hunter3@a:1").unwrap();
    assert!(matches!(&token.login, Login::Token(token) if token.expose_secret() == "hunter3"));
    for server in [user, token] {
        let said = format!("{server:?} {} {}", server.place(), server.fingerprint());
        assert!(!said.contains("hunter"), "{said}");
    }
    let print = |text: &str| Server::parse(text).unwrap().fingerprint();
    assert_ne!(print("nats://a:b@h"), print("nats://a:c@h"));
    assert_eq!(print("nats://a:b@h"), print("nats://a:b@h:4222"));
}

#[test]
fn what_can_be_no_login_is_a_fault_that_holds_nothing_of_it() {
    let seed = "SUAIO3FHUX5PNV2LQIIP7TZ3N4L7TX3W53MQGEIVYFIGA635OZCKEYHFLM";
    let creds = format!(
        "-----BEGIN NATS USER JWT-----\neyJ0eXAiOiJqd3QifQ.e30.c2ln\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    let text = |text: &str| SecretString::from(text.to_owned());
    for good in [
        Login::Nobody,
        Login::Nkey(text(&format!("{seed}\n"))),
        Login::Credentials(text(&creds)),
        // As it is where it was read as a secret.
        Login::Credentials(text(creds.trim_end())),
    ] {
        assert_eq!(good.fault(), None, "{good:?}");
    }
    assert_eq!(
        Login::Credentials(text(&creds)).secrets(),
        [seed],
        "the JWT is too short here to be told from a word"
    );
    for bad in [
        Login::Nkey(text("hunter2")),
        Login::Nkey(text(&seed.replace("SU", "SA"))),
        Login::Credentials(text("hunter2")),
        Login::Credentials(text(&creds.replace("SUAIO3", "SUAIO2"))),
    ] {
        let fault = bad.fault().unwrap();
        assert!(!fault.contains("hunter2") && !fault.contains("FHUX5"), "{fault}");
    }
}

#[test]
fn what_the_server_says_of_a_subject_is_told_from_the_rest() {
    let parse = Notice::parse;
    assert_eq!(
        parse(r#"Permissions Violation for Publish to "a.b""#),
        Some(Notice::MayNotPublish("a.b".into()))
    );
    assert_eq!(
        parse(r#"Permissions Violation for Publish to "a.\"b\\""#),
        Some(Notice::MayNotPublish("a.\"b\\".into()))
    );
    assert_eq!(
        parse(r#"Permissions Violation for Subscription to "_INBOX.x.*" using queue "q""#),
        Some(Notice::MayNotListen("_INBOX.x.*".into()))
    );
    assert_eq!(parse("User Authentication Expired"), None);
    assert_eq!(parse("Permissions Violation for "), None);
}
