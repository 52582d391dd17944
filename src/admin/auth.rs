//! Who looks, and what they may do: the one place that knows.
//!
//! A request comes with a session (a cookie that only this listener gets, begun by a link or a token) or with a token of its own. What it
//! may do is in the [`Viewer`] that is made of it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arc_swap::ArcSwap;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::hosts::{self, Host, Hosts};
use super::pace::{Pace, Try};
use super::refused::Refused;
use super::sessions::{LINK_LEN, Links, SESSION_LEN, Sessions, draw};
use super::tokens::{Digester, TOKEN_LEN_MAX, Token, Tokens};
use super::viewer::{LINK_PATH, Peer, Viewer};
use crate::config::{self, Fault, LINK, May};
use crate::control::sign_in::Linked;
use crate::sync::lock;

/// Tells the time that sessions, links and tries are measured by.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// Cookies of our name that are looked at: others' may be among them where several daemons share a host.
const COOKIES_MAX: usize = 8;

/// Sessions, links and tokens.
pub struct Auth {
    digester: Digester,
    tokens: ArcSwap<Tokens>,
    hosts: ArcSwap<Hosts>,
    listen: std::net::SocketAddr,
    sessions: Mutex<Sessions>,
    links: Mutex<Links>,
    pace: Mutex<Pace>,
    /// What sessions are begun under that no token has begun.
    by_link: CancellationToken,
    /// What the session's cookie is called; over TLS it has [`HOST_ONLY`] before it.
    cookie: String,
    url: String,
    clock: Clock,
}

/// Before a cookie's name it binds the cookie to one host and to TLS: browsers take none so called that another host or a page without
/// TLS would set.
pub(super) const HOST_ONLY: &str = "__Host-";

/// What a session's cookie is called, before the listener's port.
pub(super) const COOKIE: &str = "closehook_session_";

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").finish_non_exhaustive()
    }
}

/// What a reload would take over.
#[derive(Debug)]
pub struct Prepared {
    tokens: Tokens,
    hosts: Vec<String>,
}

/// Who signs in, and how long it lasts.
#[derive(Debug)]
pub struct SignedIn {
    /// `set-cookie`.
    pub cookie: HeaderValue,
    /// What they are called.
    pub name: String,
}

impl Auth {
    /// For the listener on this address, which is where links lead. Tokens that can't be had are faults, and do not count.
    pub fn new(
        config: &config::Admin,
        listen: std::net::SocketAddr,
        clock: Clock,
    ) -> Result<(Auth, Vec<Fault>), String> {
        let digester = Digester::new()?;
        let (tokens, faults) = Tokens::resolve(config, &digester);
        let auth = Auth {
            tokens: ArcSwap::from_pointee(tokens),
            hosts: ArcSwap::from_pointee(Hosts::new(listen, config.hosts.clone())),
            listen,
            sessions: Mutex::default(),
            links: Mutex::default(),
            pace: Mutex::new(Pace::new(clock())),
            by_link: CancellationToken::new(),
            // A browser does not keep the ports of a host apart, and several daemons may share one.
            cookie: format!("{COOKIE}{}", listen.port()),
            url: format!("http://{}", reachable(listen)),
            digester,
            clock,
        };
        Ok((auth, faults))
    }

    /// Reads what a reload would take over, which changes nothing yet.
    pub fn prepare(&self, config: &config::Admin) -> Result<Prepared, Vec<Fault>> {
        let (tokens, faults) = Tokens::resolve(config, &self.digester);
        if faults.is_empty() {
            let hosts = config.hosts.clone();
            Ok(Prepared { tokens, hosts })
        } else {
            Err(faults)
        }
    }

    /// Takes it over: sessions of a token that is not as it was end.
    pub fn take(&self, prepared: Prepared) {
        let Prepared { mut tokens, hosts } = prepared;
        tokens.succeed(&self.tokens.load());
        self.tokens.store(Arc::new(tokens));
        self.hosts.store(Arc::new(Hosts::new(self.listen, hosts)));
        let counting = self.tokens.load();
        lock(&self.pace).forget_wrong(|what| counting.find(what).is_some());
        lock(&self.sessions).sweep(self.now());
    }

    /// The clock.
    pub fn now(&self) -> Instant {
        (self.clock)()
    }

    /// Whether the request is meant for this listener.
    pub fn host(&self, parts: &Parts) -> Result<Host, Refused> {
        self.hosts.load().check(parts)
    }

    /// Looks at a token somebody presents, at the pace that there is.
    pub fn present(&self, who: Peer, token: &str) -> Result<Token, Refused> {
        let wrong = || {
            Refused::new(
                StatusCode::UNAUTHORIZED,
                "this token is not known: admin.token and [[admin.tokens]] say which are",
            )
        };
        if token.len() > TOKEN_LEN_MAX {
            return Err(wrong());
        }
        let digest = self.digester.of(token.as_bytes());
        let mut pace = lock(&self.pace);
        match pace.try_one(who.0, &digest, self.now()) {
            Try::Wrong => return Err(wrong()),
            Try::After(after) => {
                let seconds = after.as_secs() + 1;
                let message = format!(
                    "too many wrong tokens were tried: try again in {seconds} s, or sign in with `closehook status --open`"
                );
                return Err(Refused::new(StatusCode::TOO_MANY_REQUESTS, message).after(seconds));
            }
            Try::Now => {}
        }
        if let Some(token) = self.tokens.load().find(&digest) {
            pace.was_right(who.0, digest);
            return Ok(token.clone());
        }
        pace.was_wrong(digest);
        drop(pace);
        tracing::warn!(target: "audit", from = %who.0, "a wrong token was presented to the admin listener");
        Err(wrong())
    }

    /// Begins a session with a token.
    pub fn sign_in(&self, who: Peer, token: &str, headers: &HeaderMap) -> Result<SignedIn, Refused> {
        let token = self.present(who, token)?;
        self.begin(&token.name, token.may, &token.over, headers)
    }

    /// Begins a session with a link, which is used up by it.
    pub fn follow(&self, secret: &str, headers: &HeaderMap) -> Result<SignedIn, Refused> {
        let digest = self.digester.of(secret.as_bytes());
        if !lock(&self.links).take(&digest, self.now()) {
            let message =
                "this link was used before, or is older than a minute: `closehook status --open` prints a new one";
            return Err(Refused::new(StatusCode::FORBIDDEN, message));
        }
        self.begin(LINK, May::Act, &self.by_link, headers)
    }

    fn begin(&self, name: &str, may: May, under: &CancellationToken, headers: &HeaderMap) -> Result<SignedIn, Refused> {
        let secret = draw().map_err(|error| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error))?;
        let (prefix, secure) = if is_over_tls(headers) {
            (HOST_ONLY, "; Secure")
        } else {
            ("", "")
        };
        let pair = format!("{prefix}{}={secret}", self.cookie);
        // With its name: what was set for TLS alone signs nobody in who sends it as if it were not.
        let digest = self.digester.of(pair.as_bytes());
        // Who signs in anew is signed out of what there was.
        self.sign_out(headers);
        lock(&self.sessions).begin(digest, name, may, under, self.now());
        let age = SESSION_LEN.as_secs();
        let cookie = format!("{pair}; HttpOnly; SameSite=Strict; Path=/; Max-Age={age}{secure}");
        let cookie = HeaderValue::try_from(cookie)
            .map_err(|error| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        tracing::info!(target: "audit", who = name, "signed in to the operator's page");
        Ok(SignedIn {
            cookie,
            name: name.to_owned(),
        })
    }

    /// Ends the session of a request, if it has one; gives what makes the browser forget it.
    pub fn sign_out(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut sessions = lock(&self.sessions);
        let mut is_host_only = is_over_tls(headers);
        for pair in self.cookies(headers) {
            is_host_only |= pair.starts_with(HOST_ONLY);
            sessions.end(&self.digester.of(pair.as_bytes()));
        }
        let (prefix, secure) = if is_host_only {
            (HOST_ONLY, "; Secure")
        } else {
            ("", "")
        };
        let cookie = &self.cookie;
        HeaderValue::try_from(format!(
            "{prefix}{cookie}=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0{secure}"
        ))
        .ok()
    }

    /// Those of our name, each as it is sent: with its name.
    fn cookies<'h>(&self, headers: &'h HeaderMap) -> Vec<&'h str> {
        let lines = headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|line| line.to_str().ok());
        let is_own = |pair: &&str| {
            let name = pair.split_once('=').map(|(name, _)| name);
            name.map(|name| name.strip_prefix(HOST_ONLY).unwrap_or(name)) == Some(self.cookie.as_str())
        };
        let pairs = lines.flat_map(|line| line.split(';')).map(str::trim);
        pairs.filter(is_own).take(COOKIES_MAX).collect()
    }

    /// Who sends a request. With a token of its own, that alone counts.
    pub(super) fn viewer(&self, parts: &Parts, host: &Host) -> Result<Viewer, Refused> {
        let acts = !matches!(parts.method, Method::GET | Method::HEAD);
        if let Some(bearer) = bearer(&parts.headers) {
            hosts::not_from_elsewhere(&parts.headers, host)?;
            let who = parts.extensions.get::<Peer>().copied().unwrap_or(NOBODY);
            let token = self.present(who, bearer?)?;
            let viewer = Viewer::new(&token.name, token.may, token.over, None);
            return Ok(viewer.acting(acts));
        }
        let viewer = {
            let (mut sessions, now) = (lock(&self.sessions), self.now());
            let mut pairs = self.cookies(&parts.headers).into_iter();
            let found = pairs.find_map(|pair| sessions.find(&self.digester.of(pair.as_bytes()), now));
            found.ok_or_else(|| {
                let message = "sign in first: `closehook status --open` prints a link, or send a token as \"authorization: Bearer\"";
                Refused::new(StatusCode::UNAUTHORIZED, message)
            })?
        };
        if acts {
            hosts::from_own_page(&parts.headers, host)?;
        } else {
            hosts::not_fetched_elsewhere(&parts.headers)?;
        }
        Ok(viewer.acting(acts))
    }
}

/// Where a request comes from that does not say so: it shares the tries of all of its kind.
const NOBODY: Peer = Peer(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));

/// The address that a browser on this machine finds the listener at.
fn reachable(listen: std::net::SocketAddr) -> std::net::SocketAddr {
    let mut address = listen;
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(std::net::Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(std::net::Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// Whether the browser speaks TLS to whoever is in front of this listener. Who lies about it only keeps its own cookie back.
fn is_over_tls(headers: &HeaderMap) -> bool {
    let begins = |name: &str, with: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.is_some_and(|value| value.starts_with(with))
    };
    begins("origin", "https://") || begins("x-forwarded-proto", "https")
}

/// The token that a request carries itself.
fn bearer(headers: &HeaderMap) -> Option<Result<&str, Refused>> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    let (line, second) = (lines.next()?, lines.next());
    let found = line.to_str().ok().and_then(|line| {
        let (scheme, token) = line.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let not_understood = || Refused::new(StatusCode::UNAUTHORIZED, "authorization must be \"Bearer TOKEN\"");
    Some(found.filter(|_| second.is_none()).ok_or_else(not_understood))
}

impl crate::control::Links for Auth {
    fn link(&self) -> Result<Linked, String> {
        let secret = draw()?;
        lock(&self.links).add(self.digester.of(secret.as_bytes()), self.now());
        let expires_at = Timestamp::now() + LINK_LEN;
        Ok(Linked {
            url: format!("{}{LINK_PATH}?key={secret}", self.url),
            expires_at,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::viewer::time_left;
    use super::*;
    use crate::control::Links as _;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// One whose clock goes as far as the test moves it, in seconds.
    fn auth() -> (Auth, Arc<AtomicU64>) {
        let moved = Arc::new(AtomicU64::new(0));
        let (began, seconds) = (Instant::now(), moved.clone());
        let clock: Clock = Arc::new(move || began + Duration::from_secs(seconds.load(Ordering::SeqCst)));
        let config = config::Admin {
            listen: ([127, 0, 0, 1], 8481).into(),
            hosts: Vec::new(),
            tokens: Vec::new(),
        };
        let (auth, faults) = Auth::new(&config, config.listen, clock).unwrap();
        assert!(faults.is_empty());
        (auth, moved)
    }

    fn key(auth: &Auth) -> String {
        let url = auth.link().unwrap().url;
        assert!(url.starts_with("http://127.0.0.1:8481/sign-in/link?key="), "{url}");
        url.split_once('=').unwrap().1.to_owned()
    }

    /// Who a cookie that was set is taken for.
    fn who(auth: &Auth, signed_in: &SignedIn) -> Option<Viewer> {
        let cookie = signed_in.cookie.to_str().unwrap().split(';').next().unwrap();
        let request = axum::http::Request::builder()
            .header("cookie", cookie)
            .body(())
            .unwrap();
        auth.viewer(&request.into_parts().0, &Host("localhost:8481".to_owned()))
            .ok()
    }

    #[test]
    fn a_link_is_over_after_a_minute_and_a_session_after_twelve_hours() {
        let (auth, moved) = auth();
        let none = HeaderMap::new();
        let (used, late) = (key(&auth), key(&auth));
        moved.store(59, Ordering::SeqCst);
        let session = auth.follow(&used, &none).unwrap();
        assert!(auth.follow(&used, &none).is_err(), "once");
        moved.store(60, Ordering::SeqCst);
        assert_eq!(auth.follow(&late, &none).unwrap_err().status, StatusCode::FORBIDDEN);
        moved.store(59 + 12 * 3600 - 1, Ordering::SeqCst);
        let viewer = who(&auth, &session).unwrap();
        assert_eq!((viewer.name.as_str(), viewer.may), (LINK, May::Act));
        assert_eq!(time_left(&viewer, auth.now()), Duration::from_secs(1));
        moved.store(59 + 12 * 3600, Ordering::SeqCst);
        assert!(who(&auth, &session).is_none());
    }

    #[test]
    fn a_cookie_is_for_tls_alone_where_the_browser_speaks_it() {
        let (auth, _) = auth();
        for (name, value, is_secure) in [
            ("origin", "http://localhost:8481", false),
            ("origin", "https://closehook.example.com", true),
            ("x-forwarded-proto", "https", true),
            ("x-forwarded-proto", "http", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            let signed_in = auth.follow(&key(&auth), &headers).unwrap();
            let cookie = signed_in.cookie.to_str().unwrap();
            assert_eq!(cookie.contains("; Secure"), is_secure, "{value}: {cookie}");
            // Bound to this host and to TLS by its name, as far as a browser goes by it.
            assert_eq!(
                cookie.starts_with("__Host-closehook_session_8481="),
                is_secure,
                "{cookie}"
            );
            assert!(who(&auth, &signed_in).is_some(), "{cookie}");
            let renamed = match cookie.strip_prefix("__Host-") {
                Some(without) => without.to_owned(),
                None => format!("__Host-{cookie}"),
            };
            let renamed = SignedIn {
                cookie: HeaderValue::try_from(renamed).unwrap(),
                name: signed_in.name,
            };
            assert!(who(&auth, &renamed).is_none(), "it is another one under another name");
        }
    }

    #[test]
    fn who_signs_in_anew_is_signed_out_of_what_there_was() {
        let (auth, _) = auth();
        let first = auth.follow(&key(&auth), &HeaderMap::new()).unwrap();
        let mut headers = HeaderMap::new();
        let cookie = first.cookie.to_str().unwrap().split(';').next().unwrap();
        headers.insert("cookie", HeaderValue::try_from(cookie).unwrap());
        let second = auth.follow(&key(&auth), &headers).unwrap();
        assert!(who(&auth, &first).is_none() && who(&auth, &second).is_some());
    }
}
