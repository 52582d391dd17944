//! The keys of an http sink, read in one place.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Method;
use reqwest::Url;
use reqwest::header::HeaderMap;
use sha2::Sha256;

use super::auth::Auth;
use super::request::{self, Header};
use crate::config::{Secret, Size, Span, Table};
use crate::event::Delivery;
use crate::net::client::unsendable;
use crate::net::http::Way;
use crate::render::{Escape, Template};
use crate::sinks::common::identity;
use crate::sinks::{Fingerprint, Limits};

/// What a request may be. None that is not meant to carry a body.
const METHODS: [&str; 4] = [POST, "PUT", "PATCH", "DELETE"];

const POST: &str = "POST";

const BATCH_EVENTS: usize = 100;
const BATCH_EVENTS_MAX: usize = 10_000;
const BATCH_BYTES: Size = Size(1 << 20);
const BATCH_BYTES_MIN: Size = Size(1 << 10);
const BATCH_BYTES_MAX: Size = Size(64 << 20);
const BATCH_WAIT: Span = Span(Duration::from_secs(1));
const BATCH_WAIT_MAX: Span = Span(Duration::from_secs(3600));

#[derive(Debug, Clone)]
pub(super) struct Options {
    /// `POST` where `None`.
    pub method: Option<Template>,
    pub url: Template,
    /// Whose server it is does not depend on the event. What fails on the way to it says nothing of an event then.
    pub has_one_origin: bool,
    pub headers: Vec<Header>,
    pub secret: Option<Secret>,
    pub forward_signature: bool,
    pub auth: Auth,
    pub gather: Option<Gather>,
    pub way: Way,
    pub fingerprint: Fingerprint,
}

/// `batch` and `format`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gather {
    pub limits: Limits,
    pub format: Format,
}

/// How events stand in one body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `[{...},{...}]`
    JsonArray,
    /// One on each line.
    Jsonl,
}

/// Where a request goes, and the configured part of what is said with it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Head {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
}

impl Head {
    /// The same for two of them exactly if they are equal.
    pub(super) fn place(&self) -> Vec<u8> {
        let mut lines: Vec<(&[u8], &[u8])> = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
            .collect();
        lines.sort_unstable();
        // None of these has a line end in it.
        let mut place = format!("{} {}", self.method, self.url).into_bytes();
        for (name, value) in lines {
            place.extend_from_slice(b"\n");
            place.extend_from_slice(name);
            place.extend_from_slice(b":");
            place.extend_from_slice(value);
        }
        place
    }
}

impl Options {
    pub(super) fn parse(table: &mut Table<'_>) -> Option<Options> {
        let source: Option<String> = table.needed("url");
        let method = method(table);
        let secret = table.secret("secret");
        let forward_signature = table.or("forward_signature", false);
        let configured: BTreeMap<String, String> = table.or("headers", BTreeMap::new());
        let auth = Auth::parse(table);
        let gather = gather(table);
        let way = way(table);
        let headers = request::headers(table, &configured);
        let url = url(table, &source?, &way)?;
        if let Auth::OAuth2(oauth) = &auth
            && let Some(fault) = way.fault(&oauth.token_url)
        {
            table.fault("token_url", fault);
        }
        let says_who = headers.iter().any(|header| header.name == "authorization");
        let names_a_user =
            Url::parse(url.source()).is_ok_and(|url| !url.username().is_empty() || url.password().is_some());
        if says_who && names_a_user {
            table.fault("headers", "\"authorization\" is in url too: keep one of them");
        }
        if !matches!(auth, Auth::None) && (says_who || names_a_user) {
            table.fault("auth", "is said by headers or url too: keep one of them");
        }
        if !has_one_origin(&url) {
            no_credentials(table, &url, &auth, &headers, &way);
        }
        if gather.is_some() && forward_signature {
            table.fault(
                "forward_signature",
                "can't be with batch: Close signs each event, not several",
            );
        }
        // What is in files counts as it is now: a reload has to see that it is another.
        let digest = <Sha256 as sha2::Digest>::digest(format!(
            "{method:?}\n{url:?}\n{:?}\n{forward_signature}\n{configured:?}\n{}\n{gather:?}\n{way:?}\n{:?}",
            secret.as_ref().map(Secret::fingerprint),
            auth.fingerprint(),
            way.files(),
        ));
        Some(Options {
            has_one_origin: has_one_origin(&url),
            method,
            url,
            headers,
            secret,
            forward_signature,
            auth,
            gather,
            way,
            fingerprint: Fingerprint(hex::encode(digest)),
        })
    }

    /// Whether a request's head says the same for every event.
    pub(super) fn is_constant(&self) -> bool {
        let headers = self.headers.iter().map(|header| &header.template);
        headers
            .chain(&self.method)
            .chain([&self.url])
            .all(Template::is_constant)
    }

    /// Its keys that are templates, as the engine renders them.
    pub(super) fn templates(&self) -> Vec<(String, Template)> {
        let headers = self
            .headers
            .iter()
            .map(|header| (header.key(), header.template.clone()));
        let method = self.method.iter().map(|method| ("method".to_owned(), method.clone()));
        let url = [("url".to_owned(), self.url.clone())];
        method.chain(url).chain(headers).collect()
    }

    /// The head for an event. An error says what is wrong with what a template or transform made, without quoting it.
    pub(super) fn head(&self, delivery: &Delivery) -> Result<Head, String> {
        let method = self
            .method
            .as_ref()
            .map_or(POST, |method| delivery.text("method", method));
        let method = request_method(method)
            .ok_or_else(|| format!("what the template of method makes is none of {}", METHODS.join(", ")))?;
        let url = receiver(delivery.text("url", &self.url))
            .ok_or("what the template of url makes is no URL like \"https://example.com/hook\"")?;
        if let Some(why) = unsendable(&url) {
            return Err(format!("what the template of url makes {why}"));
        }
        if leads_elsewhere(delivery.text("url", &self.url), &self.url) {
            return Err(
                "what the template of url makes has a . or .. for a part of its path, which would lead elsewhere"
                    .into(),
            );
        }
        if !self.has_one_origin
            && let Some(refusal) = self.way.stranger(&url)
        {
            return Err(refusal);
        }
        Ok(Head {
            method,
            url,
            headers: request::made_headers(&self.headers, delivery)?,
        })
    }

    /// The head where it is the same for every event.
    pub(super) fn constant_head(&self) -> Option<Head> {
        if !self.is_constant() {
            return None;
        }
        let headers = self
            .headers
            .iter()
            .map(|header| (&header.name, header.template.source()));
        Some(Head {
            method: request_method(self.method.as_ref().map_or(POST, Template::source))?,
            url: receiver(self.url.source())?,
            headers: headers
                .map(|(name, text)| (name.clone(), request::value(text)))
                .collect(),
        })
    }
}

fn method(table: &mut Table<'_>) -> Option<Template> {
    let method = table.template("method", Escape::None);
    if let Some(method) = &method
        && method.is_constant()
        && request_method(method.source()).is_none()
    {
        table.fault("method", format!("must be one of {}", METHODS.join(", ")));
    }
    method
}

fn request_method(text: &str) -> Option<Method> {
    let text = text.trim().to_ascii_uppercase();
    METHODS.contains(&text.as_str()).then(|| text.parse().ok()).flatten()
}

fn receiver(text: &str) -> Option<Url> {
    let url = Url::parse(text.trim()).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.host().is_some()).then_some(url)
}

fn url(table: &mut Table<'_>, source: &str, way: &Way) -> Option<Template> {
    const WANTED: &str = "must be a URL like \"https://example.com/hook\"";
    let template = match Template::parse(source, Escape::None) {
        Ok(template) => template,
        Err(fault) => {
            table.fault("url", fault);
            return None;
        }
    };
    let template = if has_one_origin(&template) {
        // What an event fills in behind the host is a part of the path or the query, and nothing else.
        Template::parse(source, Escape::Url).unwrap_or(template)
    } else {
        template
    };
    if !has_one_origin(&template) {
        let scheme = literal_beginning(source).split_once("://").map(|(scheme, _)| scheme);
        if scheme.is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
            table.fault("url", WANTED);
            return None;
        }
        return Some(template);
    }
    let Some(url) = receiver(literal_beginning(source)) else {
        table.fault("url", WANTED);
        return None;
    };
    if let Some(why) = unsendable(&url) {
        table.fault("url", why);
        return None;
    }
    if let Some(fault) = way.fault(&url) {
        table.fault("url", fault);
    }
    Some(template)
}

/// What stands in front of what a template fills in first.
fn literal_beginning(source: &str) -> &str {
    let marks = ["{{", "{%", "{#"];
    let first = marks.iter().filter_map(|mark| source.find(mark)).min();
    &source[..first.unwrap_or(source.len())]
}

/// Whether scheme, host and port are the same for every event: they end before anything is filled in.
fn has_one_origin(url: &Template) -> bool {
    let beginning = literal_beginning(url.source());
    let rest = beginning.split_once("://").map_or("", |(_, rest)| rest);
    // Slashes in front of a host are passed over.
    let rest = rest.trim_start_matches('/');
    url.is_constant() || rest.contains(['/', '?', '#'])
}

/// Whether what was made of a template has parts of a path that mean the directory itself or the one above, and the template does not say
/// so itself.
fn leads_elsewhere(made: &str, template: &Template) -> bool {
    let count = |text: &str, dots: &str| {
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        let path = rest.split(['?', '#']).next().unwrap_or_default();
        let is_it = |part: &&str| part.to_ascii_lowercase().replace("%2e", ".") == dots;
        path.split(['/', '\\']).skip(1).filter(is_it).count()
    };
    let said = literal(template.source());
    !template.is_constant()
        && has_one_origin(template)
        && [".", ".."].iter().any(|dots| count(made, dots) > count(&said, dots))
}

/// What a template says itself, for every event.
pub(super) fn literal(source: &str) -> String {
    let (mut kept, mut rest) = (String::new(), source);
    loop {
        let beginning = literal_beginning(rest);
        kept += beginning;
        rest = &rest[beginning.len()..];
        let close = match rest.get(..2) {
            Some("{{") => "}}",
            Some("{%") => "%}",
            Some(_) => "#}",
            None => return kept,
        };
        rest = rest.find(close).map_or("", |end| &rest[end + close.len()..]);
    }
}

fn gather(table: &mut Table<'_>) -> Option<Gather> {
    let is_wanted = table.has("batch");
    let limits = table.table("batch", |batch| Limits {
        events: batch.within("events", BATCH_EVENTS, 1, BATCH_EVENTS_MAX),
        bytes: batch.within("bytes", BATCH_BYTES, BATCH_BYTES_MIN, BATCH_BYTES_MAX).0 as usize,
        wait: batch.within("wait", BATCH_WAIT, Span::secs(0), BATCH_WAIT_MAX).0,
    });
    let format: Option<String> = table.optional("format");
    if format.is_some() && !is_wanted {
        table.fault(
            "format",
            "says how a batch is written: set batch, for example batch = { events = 100 }",
        );
    }
    let format = match format.as_deref() {
        None | Some("json_array") => Format::JsonArray,
        Some("jsonl") => Format::Jsonl,
        Some(other) => {
            table.fault("format", format!("\"{other}\" is not \"json_array\" or \"jsonl\""));
            Format::JsonArray
        }
    };
    is_wanted.then_some(Gather { limits, format })
}

/// Where an event chooses the server, nothing goes there that says who we are: it would be anybody's who can write an event.
fn no_credentials(table: &mut Table<'_>, url: &Template, auth: &Auth, headers: &[Header], way: &Way) {
    const WANTED: &str = "scheme, host and port have to be written out in url (\"https://example.com/{{ lead_id }}\")";
    if !matches!(auth, Auth::None) {
        table.fault(
            "auth",
            format!("would go to whatever server an event chooses: {WANTED}"),
        );
    }
    if let Some(header) = headers.iter().find(|header| request::is_credential(&header.name)) {
        table.fault(
            "headers",
            format!(
                "\"{}\" would go to whatever server an event chooses: {WANTED}",
                header.name
            ),
        );
    }
    if way.identity.is_some() {
        table.fault(
            "cert",
            format!("would be shown to whatever server an event chooses: {WANTED}"),
        );
    }
    let beginning = literal_beginning(url.source());
    if beginning.split_once("://").is_some_and(|(_, rest)| rest.contains('@')) {
        table.fault(
            "url",
            format!("its user would go to whatever server an event chooses: {WANTED}"),
        );
    }
}

fn way(table: &mut Table<'_>) -> Way {
    let identity = identity::read(table);
    Way {
        allow_private: table.or("allow_private", false),
        proxy: table.optional("proxy"),
        ca: table.optional("ca"),
        identity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> Template {
        Template::parse(source, Escape::None).unwrap()
    }

    #[test]
    fn whose_server_it_is_depends_on_the_event_unless_that_is_written_out() {
        for (source, has_one) in [
            ("https://a.example", true),
            ("https://a.example/{{ lead_id }}", true),
            ("https://a.example?x={{ lead_id }}", true),
            ("https://a.example{{ lead_id }}", false),
            ("https:///a.example{{ lead_id }}", false),
            ("https://{{ data.host }}/a", false),
            ("{{ data.url }}", false),
            ("{{ data.scheme }}://a.example/", false),
            ("https://a.example:{{ port }}/", false),
            ("https://a.example{# note #}/", false),
        ] {
            assert_eq!(has_one_origin(&template(source)), has_one, "{source}");
        }
    }

    #[test]
    fn an_event_leads_to_no_other_part_of_the_receivers_paths() {
        for (source, made, leads) in [
            ("https://a.example/x/{{ id }}", "https://a.example/x/ev_1.json", false),
            ("https://a.example/x/{{ id }}", "https://a.example/x/..", true),
            ("https://a.example/x/{{ id }}/y", "https://a.example/x/%2E./y", true),
            ("https://a.example/x/.{{ id }}", "https://a.example/x/..", true),
            ("https://a.example/../x/{{ id }}", "https://a.example/../x/a..b", false),
            ("https://a.example/../x/{{ id }}", "https://a.example/../x/../", true),
            ("https://a.example/x?at={{ id }}", "https://a.example/x?at=/../", false),
            ("{{ data.url }}", "https://a.example/../b", false),
            ("https://a.example/./x", "https://a.example/./x", false),
        ] {
            assert_eq!(leads_elsewhere(made, &template(source)), leads, "{source}: {made}");
        }
    }

    #[test]
    fn what_a_template_says_itself_is_what_it_does_not_fill_in() {
        for (source, said) in [
            ("https://a.example/T0K3N", "https://a.example/T0K3N"),
            (
                "https://a.example/{{ id }}/T0K3N{% if a %}x{% endif %}",
                "https://a.example//T0K3Nx",
            ),
            ("{{ open", ""),
            ("a{#b#}c{", "ac{"),
        ] {
            assert_eq!(literal(source), said, "{source}");
        }
    }
}
