//! Receivers that send without end: whatever it is, it costs nobody but them (I7).

use crate::flooder::{
    Deed, FLOODS, FRAMES, Flooder, changes_keys, endless, others_go_on, says_nothing, sealed, server, sink,
};

/// I7
#[tokio::test(flavor = "multi_thread")]
async fn interim_answers_without_end_hold_up_nobody_and_end_at_the_timeout() {
    let (name, is_taken, deed) = FLOODS[0];
    let flooder = Flooder::start(None, deed);
    let config = sink(name, &format!("http://127.0.0.1:{}/", flooder.port), "");
    others_go_on(config, vec![(name.into(), Some(is_taken), flooder)]).await;
}

/// I7
#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_without_end_over_http_1_holds_up_nobody() {
    let (pem, tls) = server(b"http/1.1");
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let (mut config, mut floods) = (String::new(), Vec::new());
    for (name, is_taken, deed) in FLOODS {
        let plain = Flooder::start(None, deed);
        config += &sink(name, &format!("http://127.0.0.1:{}/", plain.port), "");
        floods.push((name.to_owned(), Some(is_taken), plain));
        let name = format!("tls-{name}");
        let sealed = Flooder::start(Some(tls.clone()), deed);
        let url = format!("https://localhost:{}/", sealed.port);
        config += &sink(&name, &url, &format!("ca = \"{}\"", ca.display()));
        floods.push((name, Some(is_taken), sealed));
    }
    others_go_on(config, floods).await;
}

/// I7
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_sends_without_end_holds_up_nobody() {
    let (mut config, mut floods) = (String::new(), Vec::new());
    for (name, is_taken, deed) in FLOODS {
        for scheme in ["http", "https"] {
            let proxy = Flooder::start(None, deed);
            let name = format!("{scheme}-{name}");
            let proxied = format!("proxy = \"http://127.0.0.1:{}\"", proxy.port);
            config += &sink(&name, &format!("{scheme}://receiver.example/"), &proxied);
            // A tunnel that is no way to the receiver: the sink waits as a whole.
            floods.push((name, (scheme == "http").then_some(is_taken), proxy));
        }
    }
    others_go_on(config, floods).await;
}
/// I7
#[tokio::test(flavor = "multi_thread")]
async fn tls_without_end_holds_up_nobody() {
    let pem = &sealed().0;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let (mut config, mut floods) = (String::new(), Vec::new());
    let deeds: [(&str, Deed); 6] = [
        ("nothing", says_nothing),
        ("keys", changes_keys),
        ("empty", |wire| endless(wire, b"", b"\x16\x03\x03\x00\x00")),
        ("alerts", |wire| endless(wire, b"", b"\x15\x03\x03\x00\x02\x01\x5a")),
        ("ciphers", |wire| endless(wire, b"", b"\x14\x03\x03\x00\x01\x01")),
        ("hello", |wire| {
            endless(wire, b"\x16\x03\x03\x40\x00\x02\xff\xff\xff", b"\x00")
        }),
    ];
    for (name, deed) in deeds {
        let flooder = Flooder::start(None, deed);
        let url = format!("https://localhost:{}/", flooder.port);
        config += &sink(name, &url, &format!("ca = \"{}\"", ca.display()));
        // What TLS is no way for: the sink waits as a whole.
        floods.push((name.to_owned(), None, flooder));
    }
    others_go_on(config, floods).await;
}

/// I7
#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_without_end_over_http_2_holds_up_nobody() {
    let (pem, tls) = server(b"h2");
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let (mut config, mut floods) = (String::new(), Vec::new());
    for (name, is_taken, deed) in FRAMES {
        let flooder = Flooder::start(Some(tls.clone()), deed);
        let url = format!("https://localhost:{}/", flooder.port);
        config += &sink(name, &url, &format!("ca = \"{}\"", ca.display()));
        floods.push((name.to_owned(), Some(is_taken), flooder));
    }
    others_go_on(config, floods).await;
}
