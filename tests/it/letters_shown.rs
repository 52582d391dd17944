//! Dead letters as they are shown: without what is secret now, whatever was kept of it when it was none.

use axum::http::StatusCode;

use crate::harness::{Daemon, until};

const SECRETS: [&str; 3] = ["hunter-in-header", "hunter-in-signature", "hunter-in-variable"];

/// Sinks of two kinds whose receivers say the words that are secrets later.
fn sinks(url: &str, of_web: &str, of_program: &str) -> String {
    let [header, signing, variable] = SECRETS;
    format!(
        "[[sinks]]\nname = \"web\"\ntype = \"http\"\nstart = \"beginning\"\nallow_private = true\nurl = \"{url}\"\n{of_web}\n\
         [[sinks]]\nname = \"run\"\ntype = \"exec\"\nstart = \"beginning\"\n{of_program}\n\
         command = [\"/bin/sh\", \"-c\", \"echo no lead {header} {signing} {variable} >&2; exit 1\"]\n"
    )
}

/// A receiver that refuses everything, and says this. Gives its URL.
async fn refuses(said: String) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let answer = move || async move { (StatusCode::UNPROCESSABLE_ENTITY, said) };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_shown_without_what_is_secret_now() {
    let [header, signing, variable] = SECRETS;
    let url = refuses(format!("no lead {header} {signing} {variable}")).await;
    let mut daemon = Daemon::start(&sinks(&url, "", "")).await;
    daemon.store(1..=1).await;
    until("both are dead", async || {
        daemon.sink("web")["dead"] == 1 && daemon.sink("run")["dead"] == 1
    })
    .await;
    let before = daemon.ok(&["dead", "list", "--json"]);
    assert!(SECRETS.iter().all(|secret| before.contains(secret)), "{before}");
    daemon.configure(&sinks(
        &url,
        &format!("headers = {{ x-key = \"{header}\" }}\nsecret = \"{signing}\""),
        &format!("env = {{ KEY = \"{variable}\" }}"),
    ));
    assert!(daemon.reload().await);
    for is_stopped in [false, true] {
        if is_stopped {
            daemon.stop().await;
        }
        let letters = daemon.lines(&["dead", "list"]);
        let of = |name: &str| letters.iter().find(|letter| letter["sink"] == name).unwrap()["answer"].clone();
        assert_eq!(of("web"), format!("no lead (secret) (secret) {variable}"));
        assert_eq!(of("run"), format!("no lead {header} {signing} (secret)"));
        let events = daemon.ok(&["events", "show", "ev_1"]);
        assert!(events.contains(&format!("(secret) (secret) {variable}")), "{events}");
        let shown = daemon.ok(&["dead", "show", "ev_1"]);
        assert!(shown.contains(&format!("{header} {signing} (secret)")), "{shown}");
    }
}
