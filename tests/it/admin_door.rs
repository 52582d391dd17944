//! Who gets in at the admin listener: with a link, a token or a session, to look or to act; and who does not.

use reqwest::header::{HeaderMap, LOCATION, SET_COOKIE};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use crate::harness::{Daemon, until};

/// Two tokens, one for each right.
pub const TOKENS: &str = r#"
[admin]
token = "act-0123456789abcdef0123456789abcdef"
hosts = ["closehook.example.com"]
[[admin.tokens]]
name = "viewer"
token = "read-0123456789abcdef0123456789abcdef"
may = "read"
"#;
pub const ACT: &str = "act-0123456789abcdef0123456789abcdef";
pub const READ: &str = "read-0123456789abcdef0123456789abcdef";

/// A browser that follows nothing by itself.
pub fn browser() -> reqwest::Client {
    closehook::install_crypto();
    let builder = reqwest::Client::builder().no_proxy();
    builder.redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

impl Daemon {
    /// A request to the admin listener.
    pub fn admin_request(&self, method: Method, path: &str) -> RequestBuilder {
        browser().request(method, format!("{}{path}", self.admin))
    }

    /// Asks with a token.
    pub async fn with_token(&self, token: &str, method: Method, path: &str) -> Response {
        let request = self.admin_request(method, path).bearer_auth(token);
        request.send().await.unwrap()
    }

    /// A link, as `status --open` prints it.
    pub fn link(&self) -> String {
        self.ok(&["status", "--open"]).trim().to_owned()
    }

    /// Signs in with a link; gives the cookie.
    pub async fn session(&self) -> String {
        let answer = browser().get(self.link()).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        cookie(answer.headers())
    }

    /// Signs in on the page, as a browser does; gives the answer.
    pub async fn type_token(&self, token: &str) -> Response {
        let request = self
            .admin_request(Method::POST, "/sign-in")
            .header("origin", &self.admin);
        let form = format!("token={token}&next=%2Fevents");
        let request = request
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form);
        request.send().await.unwrap()
    }

    /// Who a session's cookie is taken for.
    pub async fn whoami(&self, cookie: &str) -> Option<Value> {
        let request = self.admin_request(Method::GET, "/api/v1/me").header("cookie", cookie);
        let answer = request.send().await.unwrap();
        if answer.status() == StatusCode::UNAUTHORIZED {
            return None;
        }
        Some(serde_json::from_str(&answer.text().await.unwrap()).unwrap())
    }
}

/// The cookie that was set, as it is sent back.
pub fn cookie(headers: &HeaderMap) -> String {
    let set = headers[SET_COOKIE].to_str().unwrap();
    for part in ["; HttpOnly", "; SameSite=Strict", "; Path=/"] {
        assert!(set.contains(part), "{set}");
    }
    set.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn without_having_signed_in_only_health_metrics_and_the_sign_in_page_answer() {
    let daemon = Daemon::start(TOKENS).await;
    for path in ["/healthz", "/readyz", "/metrics", "/sign-in"] {
        assert_eq!(daemon.ask_admin(path).await.status(), StatusCode::OK, "{path}");
    }
    let pages = [
        "/",
        "/events",
        "/nothing",
        "/healthz/",
        "/metrics/x",
        "//api/v1/me",
        "/sign-in/",
    ];
    for path in pages {
        let answer = daemon.admin_request(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SEE_OTHER, "{path}");
        assert!(
            answer.headers()[LOCATION]
                .to_str()
                .unwrap()
                .starts_with("/sign-in?next=%2F"),
            "{path}"
        );
    }
    for (method, path) in [
        (Method::GET, "/api/v1/me"),
        (Method::GET, "/api/v1/nothing"),
        (Method::GET, "/api/v1/openapi.json"),
        (Method::POST, "/api/v1/me"),
        (Method::OPTIONS, "/api/v1/me"),
        (Method::POST, "/sign-out"),
        (Method::POST, "/"),
        (Method::DELETE, "/nothing"),
    ] {
        let answer = daemon.admin_request(method.clone(), path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
        let error: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert!(
            error["error"]["message"]
                .as_str()
                .unwrap()
                .contains("closehook status --open"),
            "{error}"
        );
    }
    let none = "closehook_session=; closehook_session_0=x";
    assert_eq!(daemon.whoami(none).await, None);
}

#[tokio::test]
async fn a_link_signs_in_once_to_act_and_who_only_looks_where_it_leads_does_not_use_it_up() {
    let daemon = Daemon::start("").await;
    let link = daemon.link();
    let head = browser().head(&link).send().await.unwrap();
    assert_eq!(head.status(), StatusCode::METHOD_NOT_ALLOWED);
    let ahead = browser()
        .get(&link)
        .header("sec-purpose", "prefetch;prerender")
        .send()
        .await
        .unwrap();
    assert!(!ahead.status().is_success() && !ahead.headers().contains_key(SET_COOKIE));
    let answer = browser().get(&link).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let cookie = cookie(answer.headers());
    assert_eq!(
        daemon.whoami(&cookie).await.unwrap(),
        serde_json::json!({ "name": "link", "may": "act" })
    );
    let again = browser().get(&link).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::FORBIDDEN);
    assert!(!again.headers().contains_key(SET_COOKIE));
    assert!(again.text().await.unwrap().contains("closehook status --open"));
    // Another one is another session, and one ends without the other.
    let other = daemon.session().await;
    assert_ne!(cookie, other);
    let out = daemon
        .admin_request(Method::POST, "/sign-out")
        .header("cookie", &cookie);
    let out = out.header("origin", &daemon.admin).send().await.unwrap();
    assert_eq!(
        (out.status(), out.headers()[LOCATION].to_str().unwrap()),
        (StatusCode::SEE_OTHER, "/sign-in")
    );
    assert_eq!(daemon.whoami(&cookie).await, None);
    assert!(daemon.whoami(&other).await.is_some());
}

#[tokio::test]
async fn sessions_end_with_the_daemon() {
    let mut daemon = Daemon::start(TOKENS).await;
    let cookie = daemon.session().await;
    assert!(daemon.whoami(&cookie).await.is_some());
    daemon.stop().await;
    daemon.run().await;
    // Its cookie has the port in its name, and it is another port now.
    let name = format!("closehook_session_{}", daemon.admin.rsplit_once(':').unwrap().1);
    let value = cookie.split_once('=').unwrap().1;
    assert_eq!(daemon.whoami(&format!("{name}={value}")).await, None);
}

#[tokio::test]
async fn without_a_daemon_there_is_no_link() {
    let daemon = Daemon::new("");
    let said = daemon.fails(1, &["status", "--open"]);
    assert!(
        said.contains("no daemon is running") && said.contains("closehook serve"),
        "{said}"
    );
}

#[tokio::test]
async fn a_token_signs_in_on_the_page_and_is_taken_with_a_request() {
    let daemon = Daemon::start(TOKENS).await;
    for (token, name, may) in [(ACT, "admin", "act"), (READ, "viewer", "read")] {
        let me = daemon.with_token(token, Method::GET, "/api/v1/me").await;
        let me: Value = serde_json::from_str(&me.text().await.unwrap()).unwrap();
        assert_eq!(me, serde_json::json!({ "name": name, "may": may }));
        let answer = daemon.type_token(token).await;
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        assert_eq!(answer.headers()[LOCATION], "/events");
        assert_eq!(daemon.whoami(&cookie(answer.headers())).await.unwrap(), me);
    }
    let wrong = daemon.type_token("nobody's").await;
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    assert!(!wrong.headers().contains_key(SET_COOKIE));
    for authorization in [
        "Bearer",
        "Bearer ",
        "Bearer nobody's",
        "Basic YTpi",
        ACT,
        "Bearer link",
        "Bearer admin",
    ] {
        let request = daemon
            .admin_request(Method::GET, "/api/v1/me")
            .header("authorization", authorization);
        assert_eq!(
            request.send().await.unwrap().status(),
            StatusCode::UNAUTHORIZED,
            "{authorization}"
        );
    }
    // A token that is wrong is not made good by a session beside it.
    let cookie = daemon.session().await;
    let request = daemon
        .admin_request(Method::GET, "/api/v1/me")
        .header("cookie", cookie)
        .bearer_auth("nobody's");
    assert_eq!(request.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let stderr = daemon.stderr();
    assert!(
        !stderr.contains(ACT) && !stderr.contains(READ) && !stderr.contains("nobody's"),
        "{stderr}"
    );
}

#[tokio::test]
async fn names_that_are_not_ours_are_refused_whatever_else_is_right() {
    let daemon = Daemon::start(TOKENS).await;
    let cookie = daemon.session().await;
    let port = daemon.admin.rsplit_once(':').unwrap().1.to_owned();
    for host in ["evil.example", "localhost.evil.example", "10.1.2.3"] {
        for path in ["/", "/sign-in", "/api/v1/me", "/sign-in/link?key=x"] {
            let request = daemon
                .admin_request(Method::GET, path)
                .header("host", format!("{host}:{port}"));
            let answer = request.header("cookie", &cookie).bearer_auth(ACT).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST, "{host} {path}");
            assert!(answer.text().await.unwrap().contains("admin.hosts"));
        }
    }
    for host in ["localhost", "closehook.example.com", "127.0.0.1"] {
        let request = daemon
            .admin_request(Method::GET, "/api/v1/me")
            .header("host", format!("{host}:{port}"));
        assert_eq!(
            request.bearer_auth(ACT).send().await.unwrap().status(),
            StatusCode::OK,
            "{host}"
        );
    }
}

#[tokio::test]
async fn every_answer_forbids_frames_sniffing_and_keeping() {
    let daemon = Daemon::start(TOKENS).await;
    for path in ["/metrics", "/sign-in", "/", "/nothing", "/api/v1/me", "/api/v1/nothing"] {
        for token in [None, Some(ACT)] {
            let request = daemon.admin_request(Method::GET, path);
            let request = token.into_iter().fold(request, RequestBuilder::bearer_auth);
            let answer = request.send().await.unwrap();
            let said = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
            let policy = said("content-security-policy");
            for part in [
                "default-src 'none'",
                "script-src 'self'",
                "frame-ancestors 'none'",
                "base-uri 'none'",
                "form-action 'self'",
            ] {
                assert!(policy.contains(part), "{path}: {policy}");
            }
            assert!(!policy.contains("unsafe"), "{policy}");
            assert_eq!(said("x-content-type-options"), "nosniff", "{path}");
            assert_eq!(said("referrer-policy"), "no-referrer", "{path}");
            assert_eq!(said("cache-control"), "no-store", "{path}");
            assert_eq!(said("cross-origin-opener-policy"), "same-origin", "{path}");
            assert_eq!(said("cross-origin-resource-policy"), "same-origin", "{path}");
            assert!(!answer.headers().contains_key("access-control-allow-origin"), "{path}");
        }
    }
}

#[tokio::test]
async fn guessing_tokens_is_slowed_and_sessions_and_links_are_not() {
    let daemon = Daemon::start(TOKENS).await;
    let cookie = daemon.session().await;
    for number in 0..10 {
        let answer = daemon
            .with_token(&format!("guess-{number}"), Method::GET, "/api/v1/me")
            .await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{number}");
    }
    // From here on one every few seconds, however fast this machine is.
    let (mut number, mut slowed) = (10, 0);
    until("guesses are slowed", async || {
        number += 1;
        let answer = daemon
            .with_token(&format!("guess-{number}"), Method::GET, "/api/v1/me")
            .await;
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            let seconds: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((1..=6).contains(&seconds), "{seconds}");
            slowed += 1;
        }
        slowed == 3
    })
    .await;
    // The page says it as well, and takes a link all the same; who is in stays in.
    until("typing is slowed", async || {
        number += 1;
        daemon.type_token(&format!("guess-{number}")).await.status() == StatusCode::TOO_MANY_REQUESTS
    })
    .await;
    assert!(daemon.whoami(&cookie).await.is_some());
    let other = daemon.session().await;
    assert!(daemon.whoami(&other).await.is_some());
    // What was tried before is known to be wrong, which costs nobody a try.
    let known = daemon.with_token("guess-0", Method::GET, "/api/v1/me").await;
    assert_eq!(known.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_reload_takes_over_tokens_and_names_and_ends_the_sessions_of_tokens_that_are_gone() {
    let daemon = Daemon::start(TOKENS).await;
    let viewer = cookie(daemon.type_token(READ).await.headers());
    let admin = cookie(daemon.type_token(ACT).await.headers());
    let link = daemon.session().await;
    // A configuration that is bad changes nothing.
    daemon.configure(&TOKENS.replace("may = \"read\"", "may = \"write\""));
    assert!(!daemon.reload().await);
    assert!(daemon.whoami(&viewer).await.is_some());
    // Neither does one whose token can't be had.
    daemon.configure(&format!(
        "{TOKENS}\n[[admin.tokens]]\nname = \"gone\"\nmay = \"act\"\ntoken_file = \"DIR/nowhere\"\n"
    ));
    assert!(!daemon.reload().await);
    assert!(daemon.stderr().contains("admin.tokens[1].token"), "{}", daemon.stderr());
    assert!(daemon.whoami(&viewer).await.is_some());
    // One token goes, another comes.
    std::fs::write(daemon.path("token"), "newcomer-0123456789abcdef\n").unwrap();
    let next = TOKENS
        .replace("\"viewer\"", "\"newcomer\"")
        .replace(&format!("token = \"{READ}\""), "token_file = \"DIR/token\"");
    daemon.configure(&next.replace("closehook.example.com", "other.example.com"));
    assert!(daemon.reload().await);
    assert_eq!(daemon.whoami(&viewer).await, None, "its token is gone");
    assert!(daemon.whoami(&admin).await.is_some() && daemon.whoami(&link).await.is_some());
    assert_eq!(
        daemon.with_token(READ, Method::GET, "/api/v1/me").await.status(),
        StatusCode::UNAUTHORIZED
    );
    let newcomer = daemon
        .with_token("newcomer-0123456789abcdef", Method::GET, "/api/v1/me")
        .await;
    assert_eq!(newcomer.status(), StatusCode::OK);
    for (host, status) in [
        ("other.example.com", StatusCode::OK),
        ("closehook.example.com", StatusCode::MISDIRECTED_REQUEST),
    ] {
        let request = daemon
            .admin_request(Method::GET, "/api/v1/me")
            .header("host", host)
            .bearer_auth(ACT);
        assert_eq!(request.send().await.unwrap().status(), status, "{host}");
    }
    // It needs no restart: nothing of it is said to take effect at the next start.
    assert!(
        !daemon.stderr().contains("take effect at the next start"),
        "{}",
        daemon.stderr()
    );
    // The same token with less in its hands ends its sessions too.
    daemon.configure(&next.replace(&format!("token = \"{ACT}\""), "").replace(
        "name = \"newcomer\"",
        &format!("name = \"admin\"\nmay = \"read\"\ntoken = \"{ACT}\"\n[[admin.tokens]]\nname = \"newcomer\""),
    ));
    assert!(daemon.reload().await, "{}", daemon.stderr());
    assert_eq!(daemon.whoami(&admin).await, None);
    assert!(daemon.whoami(&link).await.is_some());
}

#[test]
fn what_is_wrong_with_tokens_and_names_is_said_with_its_place() {
    let daemon = Daemon::new(
        r#"
[admin]
hosts = ["https://x.example", "x.example:80", "ok.example"]
[[admin.tokens]]
name = "link"
token = "0123456789abcdef"
may = "read"
[[admin.tokens]]
name = "a b"
token = "0123456789abcdeg"
may = "write"
[[admin.tokens]]
name = "twice"
token = "0123456789abcdeh"
may = "act"
[[admin.tokens]]
name = "twice"
may = "act"
tokn = "x"
[[admin.tokens]]
token = ""
may = "act"
"#,
    );
    let said = daemon.fails(2, &["check"]);
    for part in [
        "admin.hosts[0]: \"https://x.example\"",
        "admin.hosts[1]: \"x.example:80\"",
        "admin.tokens[0].name",
        "admin.tokens[1].name",
        "admin.tokens[1].may",
        "admin.tokens[3].token: is missing",
        "admin.tokens[3].tokn: there is no such key: did you mean \"token\"?",
        "admin.tokens[4].name: is missing",
        "admin.tokens[4].token: it is empty",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    // What only shows when they are fetched.
    daemon.configure(
        "[admin]\ntoken_file = \"DIR/nowhere\"\n[[admin.tokens]]\nname = \"a\"\nmay = \"act\"\ntoken = \"0123456789abcdef\"\n[[admin.tokens]]\nname = \"b\"\nmay = \"read\"\ntoken = \"0123456789abcdef\"\n",
    );
    let said = daemon.fails(2, &["check"]);
    assert!(said.contains("admin.token: ") && said.contains("nowhere"), "{said}");
    assert!(
        said.contains("admin.tokens[1].token: is the same as that of \"a\""),
        "{said}"
    );
    assert!(!said.contains("0123456789"), "{said}");
    daemon.configure("[admin]\ntoken = \"short\"\n");
    let said = daemon.ok(&["check"]);
    assert!(
        said.contains("warning: admin.token: is shorter than") && !said.contains("\"short\""),
        "{said}"
    );
}

#[tokio::test]
async fn a_token_that_can_not_be_had_keeps_nobody_from_starting() {
    let daemon = Daemon::start("[admin]\ntoken_file = \"DIR/token\"\n").await;
    assert!(daemon.stderr().contains("admin.token"), "{}", daemon.stderr());
    assert_eq!(
        daemon.with_token(ACT, Method::GET, "/api/v1/me").await.status(),
        StatusCode::UNAUTHORIZED
    );
    std::fs::write(daemon.path("token"), ACT).unwrap();
    assert!(daemon.reload().await);
    assert_eq!(
        daemon.with_token(ACT, Method::GET, "/api/v1/me").await.status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn behind_a_proxy_who_guesses_holds_up_nobody_else() {
    let config = format!("[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\n{TOKENS}");
    let daemon = Daemon::start(&config).await;
    let tried = async |token: &str, client: &str| {
        let request = daemon.admin_request(Method::GET, "/api/v1/me").bearer_auth(token);
        let request = request.header("x-forwarded-for", client);
        request.send().await.unwrap().status()
    };
    let mut guesses = 0;
    while tried(&format!("guess-{guesses}"), "198.51.100.7").await != StatusCode::TOO_MANY_REQUESTS {
        guesses += 1;
        assert!(guesses < 1000, "it is slowed");
    }
    assert_eq!(tried(ACT, "203.0.113.9").await, StatusCode::OK);
    // What was right from somewhere is looked at there as before, also when the tokens are taken over again.
    assert_eq!(tried(READ, "203.0.113.9").await, StatusCode::OK);
    while tried(&format!("guess-{guesses}"), "203.0.113.9").await != StatusCode::TOO_MANY_REQUESTS {
        guesses += 1;
        assert!(guesses < 1000, "it is slowed");
    }
    assert!(daemon.reload().await);
    assert_eq!(tried(READ, "203.0.113.9").await, StatusCode::OK);
}
