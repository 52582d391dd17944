//! The secrets that a sink sends or gives to a program, found again in what is said back.
//!
//! Receivers say back what they were sent: Express answers 404 with `Cannot POST /path`, debug pages print the head of the request. What
//! they say is kept and shown, so each secret is hidden there in every form in which it was sent or is usually repeated: raw, without its
//! percent signs, with them, as HTML or JSON escapes it, in base64 as `Basic`; in upper and lower case alike.
//!
//! | from | hidden |
//! |---|---|
//! | URL | user, password and both as `Basic`; each value of the query, and the query; each part of the path that could be a token |
//! | header | its value, each word of it, and what `Basic` encodes; not what says only what is sent or wanted (`content-type`, `accept`) |
//! | variable | its value, each line of it, and of a URL what is said above; not what says only where a program runs (`PATH`, `LANG`) |
//! | argument | what an option takes that is called like a secret; URLs as above |
//! | signing secret | with and without `whsec_` |
//!
//! A part of a path could be a token if it has eight characters, or three with a digit or a capital among them. Versions (`v1`) and the
//! words that such paths are made of ([`PLAIN`]) are none, so that an answer stays one that can be read. What is shorter than
//! [`ANYWHERE_LEN_MIN`] is hidden only as a word of its own, and what is shorter than [`WORD_LEN_MIN`] not at all.

use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use reqwest::Url;

use crate::config::names_a_secret;
use crate::net::percent::{decoded, encoded};

/// Stands for a secret.
const HIDDEN: &str = "(secret)";

/// Shorter ones would be found within words.
const ANYWHERE_LEN_MIN: usize = 6;

/// Shorter ones would be found where they are not.
const WORD_LEN_MIN: usize = 3;

/// A part of a path that has so many letters may be a token.
const SEGMENT_LEN_MIN: usize = 8;

/// Words of paths, queries, headers and sentences that are no secret of anybody.
const PLAIN: [&str; 40] = [
    "apikey",
    "application",
    "automation",
    "automations",
    "basic",
    "bearer",
    "callback",
    "callbacks",
    "catch",
    "closehook",
    "connection",
    "connectors",
    "digest",
    "endpoint",
    "endpoints",
    "events",
    "false",
    "functions",
    "incoming",
    "integration",
    "integrations",
    "invoke",
    "listener",
    "negotiate",
    "notification",
    "notifications",
    "production",
    "public",
    "receive",
    "receiver",
    "request",
    "requests",
    "services",
    "staging",
    "subscriptions",
    "token",
    "triggers",
    "webhook",
    "webhooks",
    "workflows",
];

/// Headers that say only what is sent or wanted.
const PLAIN_HEADERS: [&str; 8] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "content-type",
    "date",
    "user-agent",
];

/// Variables that say only where and how a program runs.
const PLAIN_VARIABLES: [&str; 10] = [
    "HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "PWD", "SHELL", "TERM", "TMPDIR", "TZ",
];

/// What is hidden. A secret is in it in each of its forms.
#[derive(Default, Clone)]
pub(in crate::sinks) struct Secrets(Vec<Vec<u8>>);

impl Secrets {
    /// A secret.
    pub(in crate::sinks) fn add(&mut self, secret: &str) {
        let secret = secret.trim();
        for form in [secret.to_owned(), decoded(secret), decoded(&secret.replace('+', " "))] {
            for form in [
                encoded(&form),
                html(&form),
                json(&form),
                json(&form).replace('/', "\\/"),
                form,
            ] {
                let form = form.to_ascii_lowercase().into_bytes();
                if form.len() >= WORD_LEN_MIN && !self.0.contains(&form) {
                    self.0.push(form);
                }
            }
        }
    }

    /// What may be one: letters alone have to be this many.
    fn add_likely(&mut self, text: &str, letters_min: usize) {
        let is_odd = |c: char| c.is_ascii_digit() || c.is_ascii_uppercase();
        let could_be_one = text.len() >= letters_min || text.len() >= WORD_LEN_MIN && text.contains(is_odd);
        if could_be_one && !is_plain(text) && !is_version(text) {
            self.add(text);
        }
    }

    /// What is secret of a URL.
    pub(in crate::sinks) fn add_url(&mut self, url: &Url) {
        self.add_user(&decoded(url.username()), &decoded(url.password().unwrap_or_default()));
        self.add_likely(url.username(), ANYWHERE_LEN_MIN);
        self.add(url.password().unwrap_or_default());
        for segment in url.path().split('/') {
            self.add_likely(segment, SEGMENT_LEN_MIN);
            // A receiver may know a part of it by a name: /bot123:ABC, /T0K3N.json, /key=T0K3N.
            for part in segment.split(['.', ':', ';', '=', ',', '@']) {
                self.add_likely(part, SEGMENT_LEN_MIN);
            }
        }
        let query = url.query().unwrap_or_default();
        self.add_likely(query, ANYWHERE_LEN_MIN);
        for pair in query.split('&') {
            match pair.split_once('=') {
                Some((name, value)) if names_a_secret(name) => self.add(value),
                Some((_, value)) => self.add_likely(value, ANYWHERE_LEN_MIN),
                None => self.add_likely(pair, ANYWHERE_LEN_MIN),
            }
        }
    }

    /// What is secret of a proxy, with or without its scheme.
    pub(in crate::sinks) fn add_proxy(&mut self, proxy: &str) {
        let url = Url::parse(proxy).ok().filter(Url::has_host);
        if let Some(url) = url.or_else(|| Url::parse(&format!("http://{proxy}")).ok()) {
            self.add_url(&url);
        }
    }

    /// A user and a password, as they are and as `Basic` sends them.
    pub(in crate::sinks) fn add_user(&mut self, user: &str, password: &str) {
        if user.is_empty() && password.is_empty() {
            return;
        }
        let both = format!("{user}:{password}");
        for basic in [STANDARD.encode(&both), URL_SAFE.encode(&both)] {
            self.add(&basic);
            self.add(basic.trim_end_matches('='));
        }
        self.add(&both);
        self.add(password);
        self.add_likely(user, ANYWHERE_LEN_MIN);
    }

    /// A configured header, by its name in lower case.
    pub(in crate::sinks) fn add_header(&mut self, name: &str, value: &str) {
        if PLAIN_HEADERS.contains(&name) {
            return;
        }
        self.add_likely(value, ANYWHERE_LEN_MIN);
        let mut scheme = "";
        for word in value.split_whitespace() {
            self.add_likely(word, ANYWHERE_LEN_MIN);
            // The name of a value is none.
            let value = word.split_once('=').map_or(word, |(_, value)| value);
            let has_value = value.contains(|c: char| c.is_ascii_alphanumeric());
            let value = if has_value { value } else { word };
            for part in value.split(['"', '\'', '=', ',', ';', ':']) {
                self.add_likely(part, ANYWHERE_LEN_MIN);
            }
            if scheme.eq_ignore_ascii_case("basic")
                && let Ok(both) = STANDARD.decode(word)
                && let Ok(both) = String::from_utf8(both)
            {
                let (user, password) = both.split_once(':').unwrap_or((&both, ""));
                self.add_user(user, password);
            }
            scheme = word;
        }
    }

    /// A variable of a program.
    pub(in crate::sinks) fn add_variable(&mut self, name: &str, value: &str) {
        if PLAIN_VARIABLES.contains(&name) || name.starts_with("LC_") {
            return;
        }
        // A key in PEM is said line by line.
        for text in value.lines().chain([value]) {
            if names_a_secret(name) {
                self.add(text);
            } else {
                self.add_likely(text, ANYWHERE_LEN_MIN);
            }
        }
        if let Ok(url) = Url::parse(value)
            && url.has_host()
        {
            self.add_url(&url);
        }
    }

    /// The arguments of a program: what an option takes that is called like a secret, and URLs.
    pub(in crate::sinks) fn add_arguments(&mut self, arguments: &[String]) {
        let mut before = "";
        for argument in arguments {
            let (name, value) = argument.split_once('=').unwrap_or((before, argument));
            if name.starts_with('-') && names_a_secret(name) {
                self.add(value);
            }
            for word in argument.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '=')) {
                if let Ok(url) = Url::parse(word)
                    && url.has_host()
                {
                    self.add_url(&url);
                }
            }
            before = argument;
        }
    }

    /// The key of the signatures.
    pub(in crate::sinks) fn add_signing(&mut self, secret: &str) {
        self.add(secret);
        self.add(secret.strip_prefix("whsec_").unwrap_or(secret));
    }

    /// The length of the longest.
    pub(in crate::sinks) fn len_max(&self) -> usize {
        self.0.iter().map(Vec::len).max().unwrap_or_default()
    }

    /// The text without them.
    pub(in crate::sinks) fn hidden_in(&self, text: &str) -> String {
        String::from_utf8_lossy(&self.hidden_within(text.as_bytes(), 0..text.len())).into_owned()
    }

    /// A part of what was said, without them. Who cuts after having looked for them leaves none cut in two: a secret that stands across
    /// an end of the part is found if the bytes go on beyond it by the length of the longest.
    pub(in crate::sinks) fn hidden_within(&self, bytes: &[u8], part: Range<usize>) -> Vec<u8> {
        let mut kept = Vec::new();
        let mut at = part.start;
        for found in self.places(bytes) {
            if found.end <= at || found.start >= part.end {
                continue;
            }
            kept.extend_from_slice(&bytes[at..found.start.max(at)]);
            kept.extend_from_slice(HIDDEN.as_bytes());
            at = found.end.min(part.end);
        }
        kept.extend_from_slice(&bytes[at..part.end]);
        kept
    }

    /// Where they stand, in order; none touches the next.
    fn places(&self, bytes: &[u8]) -> Vec<Range<usize>> {
        let bytes = bytes.to_ascii_lowercase();
        let mut places = Vec::new();
        for secret in &self.0 {
            let finder = memchr::memmem::Finder::new(secret);
            let mut from = 0;
            while let Some(found) = finder.find(&bytes[from..]) {
                let place = from + found..from + found + secret.len();
                from = place.start + 1;
                if secret.len() >= ANYWHERE_LEN_MIN || is_word(&bytes, &place) {
                    places.push(place);
                }
            }
            // What was said ends in the middle of it.
            let begun = (ANYWHERE_LEN_MIN..secret.len())
                .rev()
                .map(|len| &secret[..len])
                .find(|begun| bytes.ends_with(begun) && !std::str::from_utf8(begun).is_ok_and(is_plain));
            places.extend(begun.map(|begun| bytes.len() - begun.len()..bytes.len()));
        }
        places.sort_unstable_by_key(|place| place.start);
        places.dedup_by(|next, place| {
            let touches = next.start <= place.end;
            if touches {
                place.end = place.end.max(next.end);
            }
            touches
        });
        places
    }
}

fn is_plain(text: &str) -> bool {
    PLAIN.iter().any(|word| word.eq_ignore_ascii_case(text))
}

/// `v1` and the like.
fn is_version(text: &str) -> bool {
    let digits = text.strip_prefix(['v', 'V']).unwrap_or_default();
    (1..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether no letter and no digit stands beside it.
fn is_word(bytes: &[u8], place: &Range<usize>) -> bool {
    let before = place.start.checked_sub(1).and_then(|at| bytes.get(at));
    !before
        .into_iter()
        .chain(bytes.get(place.end))
        .any(u8::is_ascii_alphanumeric)
}

fn html(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;").replace('\'', "&#39;")
}

fn json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_url(url: &str) -> Secrets {
        let mut secrets = Secrets::default();
        secrets.add_url(&Url::parse(url).unwrap());
        secrets
    }

    #[test]
    fn of_a_url_all_is_hidden_that_could_be_a_token_and_the_rest_can_be_read() {
        let url = "http://user:hunter2222@host/webhooks/v1/hook/T0K3N-in-path/supersecret/a%2Fb%20c9?key=SECRET&b=2&t=x%26y%2Bz+w&abc";
        let secrets = of_url(url);
        for (said, kept) in [
            (
                "Cannot POST /webhooks/v1/hook/T0K3N-in-path",
                "Cannot POST /webhooks/v1/hook/(secret)",
            ),
            ("hook not found: supersecret", "hook not found: (secret)"),
            (
                "/a%2Fb%20c9 /a%2fb%20c9 a/b c9 a\\/b c9",
                "/(secret) /(secret) (secret) (secret)",
            ),
            (
                "authorization: Basic dXNlcjpodW50ZXIyMjIy",
                "authorization: Basic (secret)",
            ),
            ("user:hunter2222, hunter2222", "(secret), (secret)"),
            ("no such user: 2", "no such user: 2"),
            ("secret SECRET, b=2", "(secret) (secret), b=2"),
            ("x%26y%2Bz+w x&y+z w x&amp;y+z w", "(secret) (secret) (secret)"),
            (
                url,
                "http://(secret)@host/webhooks/v1/hook/(secret)/(secret)/(secret)?(secret)",
            ),
        ] {
            assert_eq!(secrets.hidden_in(said), kept);
        }
        assert_eq!(
            of_url("https://a.example/").hidden_in("a.example says no"),
            "a.example says no"
        );
        let short = of_url("https://u:ab%21@a.example/");
        assert_eq!(short.hidden_in("ab! ab%21 grab!s u"), "(secret) (secret) grab!s u");
        let telegram = of_url("https://a.example/bot123:ABC-d/sendMessage");
        assert_eq!(telegram.hidden_in("bot123 ABC-d abc-d1"), "(secret) (secret) abc-d1");
    }

    #[test]
    fn of_a_header_its_words_are_hidden_and_what_basic_encodes() {
        let mut secrets = Secrets::default();
        secrets.add_header("authorization", "Basic dXNlcjpodW50ZXIyMjIy");
        secrets.add_header("x-auth", "Bearer hunter33");
        secrets.add_header("cookie", "session=\"a/bc\\de\"; other=12");
        secrets.add_header("content-type", "application/json");
        for (said, kept) in [
            (
                "no Bearer token: Bearer hunter33, hunter33",
                "no Bearer token: (secret), (secret)",
            ),
            (
                "bad password hunter2222, or {\"user\":\"dXNlcjpodW50ZXIyMjIy\"}",
                "bad password (secret), or {\"user\":\"(secret)\"}",
            ),
            (r"a/bc\de a\/bc\\de", "(secret) (secret)"),
            ("application/json is wanted", "application/json is wanted"),
        ] {
            assert_eq!(secrets.hidden_in(said), kept);
        }
    }

    #[test]
    fn of_a_variable_all_is_hidden_but_where_a_program_runs() {
        let mut secrets = Secrets::default();
        secrets.add_variable("DATABASE", "postgres://writer:hunter44@db/crm");
        secrets.add_variable("KEY", "-----BEGIN-----\nabcdefgh\n-----END-----\n");
        secrets.add_variable("API_TOKEN", "abc");
        secrets.add_variable("LANG", "en_US.UTF-8");
        assert_eq!(
            secrets.hidden_in("crm as writer with hunter44, abcdefgh, abc or abcd in en_US.UTF-8"),
            "crm as (secret) with (secret), (secret), (secret) or abcd in en_US.UTF-8"
        );
    }

    #[test]
    fn of_arguments_urls_are_hidden_and_what_an_option_takes_that_is_called_like_a_secret() {
        let mut secrets = Secrets::default();
        let arguments = [
            "--token=abc1",
            "--password",
            "hunter55",
            "-c",
            "curl 'https://h/hook/T0K3N' --header x=1",
        ];
        secrets.add_arguments(&arguments.map(str::to_owned));
        assert_eq!(
            secrets.hidden_in("curl: T0K3N, hunter55 and abc1 are no header"),
            "curl: (secret), (secret) and (secret) are no header"
        );
    }

    #[test]
    fn a_signing_secret_is_hidden_with_and_without_what_it_begins_with() {
        let mut secrets = Secrets::default();
        secrets.add_signing("whsec_c2Vj/mV0");
        assert_eq!(
            secrets.hidden_in("whsec_c2Vj/mV0 c2Vj/mV0 c2Vj\\/mV0"),
            "(secret) (secret) (secret)"
        );
    }

    #[test]
    fn neither_the_secret_across_an_end_nor_the_one_that_overlaps_leaves_a_part() {
        let mut secrets = Secrets::default();
        secrets.add("abcdefgh");
        secrets.add("ghijklmn");
        secrets.add("secret");
        let text = "0123 abcdefghijklmn 4567";
        for cut in 0..=text.len() {
            for part in [0..cut, cut..text.len()] {
                let kept = secrets.hidden_within(text.as_bytes(), part);
                let kept = String::from_utf8(kept).unwrap().replace(HIDDEN, "");
                assert!(!kept.contains(|c: char| c.is_ascii_lowercase()), "{cut}: {kept}");
            }
        }
        assert_eq!(
            secrets.hidden_in("(secret) ends with abcdefg"),
            "((secret)) ends with (secret)"
        );
        assert_eq!(secrets.len_max(), 8);
    }
}
