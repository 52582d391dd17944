//! Putting the layers together: built-in defaults < file < environment < flags.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rustls_acme::acme::{LETS_ENCRYPT_PRODUCTION_DIRECTORY, LETS_ENCRYPT_STAGING_DIRECTORY};
use serde_json::Value;
use toml_edit::{Document, Item};

use super::secret::names_a_secret;
use super::table::{FromValue, Table};
use super::{
    Acme, Admin, Breaker, Close, CloseHealth, Config, Credentials, Fault, Listen, Log, Networks, OAuth, Order, Partial,
    Rate, Reconcile, Retry, RuleConfig, Server, SinkConfig, Size, Span, Start, SubscriptionKey, Tls,
};
use crate::sinks;

/// Where the configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// The file; `None`: defaults and environment alone.
    pub file: Option<PathBuf>,
    /// `CLOSEHOOK__...` variables; others are ignored.
    pub environment: HashMap<String, String>,
    /// From flags: dotted key and value.
    pub overrides: Vec<(String, String)>,
}

const ENVIRONMENT_PREFIX: &str = "CLOSEHOOK";

fn single(place: &Path, message: String) -> Vec<Fault> {
    vec![Fault {
        place: place.display().to_string(),
        message,
    }]
}

impl Config {
    /// Reads every layer and checks everything in them. All faults are reported, not only the first.
    pub fn load(layers: &Layers) -> Result<Config, Vec<Fault>> {
        let text = match &layers.file {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path).map_err(|error| {
                single(
                    path,
                    format!("the configuration can't be read ({error}): name the right file with -c FILE"),
                )
            })?,
        };
        Config::of_text(layers, &text)
    }

    /// The same as if the file had this text.
    pub fn of_text(layers: &Layers, text: &str) -> Result<Config, Vec<Fault>> {
        let mut builder = config::Config::builder();
        let mut faults = Vec::new();
        if let Some(path) = &layers.file {
            let text = with_filters_as_text(path, text, &mut faults)?;
            builder = builder.add_source(config::File::from_str(&text, config::FileFormat::Toml));
        }
        let environment = config::Environment::with_prefix(ENVIRONMENT_PREFIX)
            .prefix_separator("__")
            .separator("__")
            // Text is all an environment has; what wants a number or a truth reads it out of the text. Guessing would make a
            // directory "007" into "7".
            .try_parsing(false)
            .source(Some(layers.environment.clone()));
        builder = builder.add_source(environment);
        let place = layers.file.clone().unwrap_or_else(|| "environment".into());
        for (key, value) in &layers.overrides {
            builder = builder
                .set_override(key, value.as_str())
                .map_err(|error| single(Path::new(key), error.to_string()))?;
        }
        let tree: Value = builder
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|error| single(&place, error.to_string()))?;
        let config = read_config(tree, &mut faults);
        config.check(&mut faults);
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }
}

/// The configuration that has nothing but the data directory of this one, however bad the rest of it is: to find the daemon that
/// runs there. Where the file can't be read or is no TOML, that is the environment's or the default one.
pub fn data_dir_only(layers: &Layers) -> Result<Config, Vec<Fault>> {
    let text = layers.file.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
    let file = text
        .as_deref()
        .and_then(|text| text.parse::<toml_edit::DocumentMut>().ok());
    let in_file = file.as_ref().and_then(|file| file.get("log")?.get("dir")?.as_str());
    let variable = format!("{ENVIRONMENT_PREFIX}__LOG__DIR");
    let mut dir = in_file.map(ToOwned::to_owned);
    if let Some(named) = layers.environment.get(&variable) {
        dir = Some(named.clone());
    }
    if let Some((_, named)) = layers.overrides.iter().find(|(key, _)| key == "log.dir") {
        dir = Some(named.clone());
    }
    Config::load(&Layers {
        overrides: dir.map(|dir| ("log.dir".to_owned(), dir)).into_iter().collect(),
        ..Layers::default()
    })
}

/// Replaces every `rules[].filter` table by its JSON text, so that numbers keep the digits they are written with: TOML's own
/// parse would make floats of them. `@file` becomes the file's content.
fn with_filters_as_text(path: &Path, text: &str, faults: &mut Vec<Fault>) -> Result<String, Vec<Fault>> {
    let document = Document::parse(text).map_err(|error| {
        let position = error.span().map(|span| {
            let before = text.get(..span.start).unwrap_or(text);
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            format!(":{line}:{column}")
        });
        let place = format!("{}{}", path.display(), position.unwrap_or_default());
        let literal = error.span().and_then(|span| text.get(span));
        let message = match literal.filter(|literal| is_long_integer(literal)) {
            Some(number) => format!(
                "{} is beyond the 64 bits of a TOML integer: write the filter it is in as JSON text, where numbers have no \
                 limit, like filter = '{{\"type\": ...}}'",
                if is_for_a_secret(text, error.span()) { "a number" } else { number }
            ),
            None => format!("not valid TOML: {}", error.message().replace('\n', ", ")),
        };
        vec![Fault { place, message }]
    })?;
    let mut document = document.into_mut();
    let Some(rules) = document.get_mut("rules") else {
        return Ok(text.to_owned());
    };
    let mut index = 0;
    let mut each = |filter: Option<&mut Item>| {
        let place = format!("rules[{index}].filter");
        index += 1;
        let Some(filter) = filter else { return };
        let json = match filter.as_str().map(ToOwned::to_owned) {
            Some(text) => match text.strip_prefix('@') {
                Some(name) => std::fs::read_to_string(beside(path, name))
                    .map_err(|error| format!("the filter in {name} can't be read: {error}")),
                None => return,
            },
            None => json_of(filter),
        };
        match json {
            Ok(json) => *filter = toml_edit::value(json),
            Err(message) => {
                faults.push(Fault { place, message });
                // Reported already; what stands in for it is valid.
                *filter = toml_edit::value(r#"{"type":"is_null"}"#);
            }
        }
    };
    if let Some(tables) = rules.as_array_of_tables_mut() {
        tables.iter_mut().for_each(|rule| each(rule.get_mut("filter")));
    } else if let Some(array) = rules.as_array_mut() {
        let mut items: Vec<Item> = array.iter().cloned().map(Item::Value).collect();
        for item in &mut items {
            each(item.get_mut("filter"));
        }
        *array = items.into_iter().filter_map(|item| item.into_value().ok()).collect();
    }
    Ok(document.to_string())
}

/// Whether what stands there is the value of a key that is called like a secret.
fn is_for_a_secret(text: &str, span: Option<std::ops::Range<usize>>) -> bool {
    let before = span.and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.rsplit('\n').next().unwrap_or_default();
    let key = line.trim_end().strip_suffix('=').unwrap_or_default();
    names_a_secret(
        key.rsplit(['{', ',', '.', ' '])
            .find(|word| !word.is_empty())
            .unwrap_or_default(),
    )
}

/// A decimal integer that TOML has no room for.
fn is_long_integer(literal: &str) -> bool {
    let digits = plain_number(literal);
    let digits = digits.strip_prefix('-').unwrap_or(&digits);
    digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.len() > 18
}

/// A file named in the configuration's `@file` is looked for beside the configuration, so that both can move together.
fn beside(config: &Path, name: &str) -> PathBuf {
    config.parent().map_or_else(|| name.into(), |dir| dir.join(name))
}

fn json_of(item: &Item) -> Result<String, String> {
    let text = |value: &str| Value::from(value).to_string();
    if let Some(table) = item.as_table_like() {
        let fields: Vec<String> = table
            .iter()
            .map(|(key, value)| Ok(format!("{}:{}", text(key), json_of(value)?)))
            .collect::<Result<_, String>>()?;
        return Ok(format!("{{{}}}", fields.join(",")));
    }
    if let Some(tables) = item.as_array_of_tables() {
        let elements: Vec<String> = tables
            .iter()
            .map(|table| json_of(&Item::Table(table.clone())))
            .collect::<Result<_, _>>()?;
        return Ok(format!("[{}]", elements.join(",")));
    }
    let Some(value) = item.as_value() else {
        return Ok("null".into());
    };
    match value {
        toml_edit::Value::String(string) => Ok(text(string.value())),
        toml_edit::Value::Boolean(truth) => Ok(truth.value().to_string()),
        toml_edit::Value::Integer(number) => {
            let source = number
                .as_repr()
                .and_then(|repr| repr.as_raw().as_str())
                .map(plain_number);
            let decimal = source
                .filter(|digits| !digits.starts_with("0x") && !digits.starts_with("0o") && !digits.starts_with("0b"));
            Ok(decimal.unwrap_or_else(|| number.value().to_string()))
        }
        toml_edit::Value::Float(number) => {
            if !number.value().is_finite() {
                return Err("infinite and undefined numbers do not exist in JSON".into());
            }
            let source = number
                .as_repr()
                .and_then(|repr| repr.as_raw().as_str())
                .map(plain_number);
            Ok(source.unwrap_or_else(|| number.value().to_string()))
        }
        toml_edit::Value::Datetime(_) => Err("dates do not exist in JSON: write the date in quotes".into()),
        toml_edit::Value::Array(array) => {
            let elements: Vec<String> = array
                .iter()
                .map(|element| json_of(&Item::Value(element.clone())))
                .collect::<Result<_, _>>()?;
            Ok(format!("[{}]", elements.join(",")))
        }
        toml_edit::Value::InlineTable(_) => Err("must be a table".into()),
    }
}

/// TOML allows underscores and a plus sign, JSON does not.
fn plain_number(text: &str) -> String {
    text.trim_start_matches('+').replace('_', "")
}

fn read_config(tree: Value, faults: &mut Vec<Fault>) -> Config {
    let mut root = Table::new("", tree, faults);
    let config = Config {
        server: root.table("server", read_server),
        admin: root.table("admin", |table| Admin {
            listen: table.or("listen", ([127, 0, 0, 1], 8481).into()),
        }),
        close: root.table("close", read_close),
        log: root.table("log", read_log),
        sinks: root
            .list("sinks")
            .into_iter()
            .filter_map(|(place, value)| read_sink(&place, value, root.faults()))
            .collect(),
        rules: root
            .list("rules")
            .into_iter()
            .map(|(place, value)| read_rule(place, value, root.faults()))
            .collect(),
    };
    root.finish();
    config
}

fn read_server(table: &mut Table<'_>) -> Server {
    let server = Server {
        listen: table.or("listen", Listen::Tcp(([127, 0, 0, 1], 8480).into())),
        listen_mode: read_mode(table, "listen_mode", 0o660),
        trusted_proxies: table.or("trusted_proxies", Networks::default()),
        allow: table.or("allow", Networks::default()),
        connections_per_address: table.within("connections_per_address", 256, 1, 1_000_000),
        failures_per_address: table.or("failures_per_address", Rate(1.0)),
        proxy_protocol: table.or("proxy_protocol", false),
        path: table.or("path", "/webhooks/close".to_owned()),
        public_url: table.optional("public_url"),
        max_body: table.within("max_body", Size(4 << 20), Size(1 << 10), Size(64 << 20)),
        signature_tolerance: table.or("signature_tolerance", Span::secs(73 * 3600)),
        clock_skew: table.or("clock_skew", Span::secs(300)),
        tls: if table.has("tls") {
            table.table("tls", read_tls)
        } else {
            None
        },
        acme: if table.has("acme") {
            table.table("acme", read_acme)
        } else {
            None
        },
        head_timeout: table.within("head_timeout", Span::secs(10), Span::secs(1), Span::secs(600)),
        body_timeout: table.within("body_timeout", Span::secs(30), Span::secs(1), Span::secs(600)),
        idle_timeout: table.within("idle_timeout", Span::secs(75), Span::secs(1), Span::secs(3600)),
        max_connections: table.within("max_connections", 10_000, 1, 1_000_000),
        max_inflight: table.or("max_inflight", Size(64 << 20)),
        drain_timeout: table.within("drain_timeout", Span::secs(20), Span::secs(0), Span::secs(600)),
    };
    if !server.path.starts_with('/') {
        table.fault("path", "must begin with a slash, like \"/webhooks/close\"");
    }
    if server.tls.is_some() && server.acme.is_some() {
        table.fault(
            "acme",
            "and server.tls are both given: keep the one the certificate comes from",
        );
    }
    if server.proxy_protocol && server.trusted_proxies.is_empty() && !matches!(server.listen, Listen::Unix(_)) {
        table.fault(
            "proxy_protocol",
            "is believed of trusted peers only: set trusted_proxies to the networks of your proxies",
        );
    }
    if server.max_inflight < server.max_body {
        table.fault(
            "max_inflight",
            format!("must be at least max_body ({})", server.max_body),
        );
    }
    server
}

/// Permission bits, in octal digits.
fn read_mode(table: &mut Table<'_>, key: &str, default: u32) -> u32 {
    let Some(text) = table.optional::<String>(key) else {
        return default;
    };
    u32::from_str_radix(&text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .unwrap_or_else(|| {
            table.fault(
                key,
                format!("\"{text}\" is no file mode in octal digits, like \"0660\""),
            );
            default
        })
}

fn read_tls(table: &mut Table<'_>) -> Option<Tls> {
    let cert = table.required("cert", "\"/etc/closehook/fullchain.pem\"");
    let key = table.required("key", "\"/etc/closehook/privkey.pem\"");
    Some(Tls { cert: cert?, key: key? })
}

fn read_acme(table: &mut Table<'_>) -> Option<Acme> {
    let domains: Option<Vec<String>> = table.required("domains", "[\"hooks.example.com\"]");
    if let Some(domains) = &domains {
        if domains.is_empty() {
            table.fault("domains", "is empty: name this host, like [\"hooks.example.com\"]");
        }
        for domain in domains.iter().filter(|domain| !is_host_name(domain)) {
            table.fault(
                "domains",
                format!("\"{domain}\" is no host name (addresses, ports and wildcards are none)"),
            );
        }
    }
    let directory = table.or("directory", "production".to_owned());
    let directory = acme_directory(&directory).unwrap_or_else(|fault| {
        table.fault("directory", fault);
        directory
    });
    Some(Acme {
        domains: domains?,
        email: table.optional("email"),
        directory,
        cache: table.optional("cache"),
        ca: table.optional("ca"),
    })
}

/// The URL of an ACME directory that is given by name or by URL. An error is one sentence.
pub fn acme_directory(text: &str) -> Result<String, String> {
    match text {
        "production" => Ok(LETS_ENCRYPT_PRODUCTION_DIRECTORY.to_owned()),
        "staging" => Ok(LETS_ENCRYPT_STAGING_DIRECTORY.to_owned()),
        url if url.starts_with("https://") => Ok(url.to_owned()),
        other => Err(format!(
            "\"{other}\" is not \"production\", \"staging\" (both Let's Encrypt's) or an https URL"
        )),
    }
}

fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label) && name.parse::<std::net::IpAddr>().is_err()
}

/// Close's API.
const CLOSE_API: &str = "https://api.close.com/api/v1/";

fn read_close(table: &mut Table<'_>) -> Close {
    let api_key = table.secret("api_key");
    let has_oauth = table.has("oauth");
    let oauth = if has_oauth {
        table.table("oauth", read_oauth)
    } else {
        None
    };
    if api_key.is_some() && has_oauth {
        table.fault("oauth", "is given beside api_key: keep one of them");
    }
    Close {
        subscriptions: table
            .list("subscriptions")
            .into_iter()
            .filter_map(|(place, value)| read_subscription(place, value, table.faults()))
            .collect(),
        local_key: table.or("local_key", false),
        credentials: oauth.map(Credentials::OAuth).or(api_key.map(Credentials::ApiKey)),
        base_url: read_base_url(table),
        push_down: table.or("push_down", true),
        auto_resume: table.or("auto_resume", true),
        partial: table.or("partial", Partial::Hold),
        health: table.table("health", |table| CloseHealth {
            interval: table.within("interval", Span::secs(300), Span::secs(1), Span::secs(86_400)),
        }),
        reconcile: table.table("reconcile", |table| Reconcile {
            interval: table.within("interval", Span::secs(900), Span::secs(1), Span::secs(86_400)),
            // Close recommends to scan the last five minutes again: events can become visible out of order.
            overlap: table.within("overlap", Span::secs(600), Span::secs(300), Span::secs(86_400)),
        }),
    }
}

fn read_oauth(table: &mut Table<'_>) -> Option<OAuth> {
    let client_id = table.required("client_id", "\"oa2client_...\"");
    let mut secret = |key: &str| {
        let secret = table.secret(key);
        if secret.is_none() {
            table.fault(key, format!("is missing: set {key}_file (or {key}_env, or {key})"));
        }
        secret
    };
    let (client_secret, refresh_token) = (secret("client_secret"), secret("refresh_token"));
    Some(OAuth {
        client_id: client_id?,
        client_secret: client_secret?,
        refresh_token: refresh_token?,
    })
}

fn read_base_url(table: &mut Table<'_>) -> reqwest::Url {
    let text: Option<String> = table.optional("base_url");
    // Requests are relative to it, so it has to end with a slash.
    let text = text.map_or_else(
        || CLOSE_API.to_owned(),
        |text| format!("{}/", text.trim_end_matches('/')),
    );
    let parsed = reqwest::Url::parse(&text).ok().filter(reqwest::Url::has_host);
    let url = parsed.unwrap_or_else(|| {
        table.fault("base_url", format!("must be a URL like \"{CLOSE_API}\""));
        fallback_url()
    });
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback) {
        table.fault("base_url", "must be https: the API key travels with every request");
    }
    url
}

/// Stands in for a URL whose fault is reported.
fn fallback_url() -> reqwest::Url {
    #[expect(clippy::expect_used, reason = "a constant that a test reads")]
    reqwest::Url::parse(CLOSE_API).expect("Close's own URL is one")
}

fn read_subscription(place: String, value: Value, faults: &mut Vec<Fault>) -> Option<SubscriptionKey> {
    let mut table = Table::new(place, value, faults);
    let id = table.optional("id");
    let key = table.secret("signature_key");
    if key.is_none() {
        table.fault(
            "signature_key",
            "is missing: set signature_key_file (or signature_key_env, or signature_key)",
        );
    }
    table.finish();
    Some(SubscriptionKey {
        id,
        signature_key: key?,
    })
}

fn read_log(table: &mut Table<'_>) -> Log {
    Log {
        dir: table.or("dir", "/var/lib/closehook".into()),
        retention: table.or("retention", Span::secs(30 * 86_400)),
        max_size: table.optional("max_size"),
        segment_size: table.within("segment_size", Size(256 << 20), Size(64 << 10), Size(1 << 30)),
        segment_age: table.or("segment_age", Span::secs(86_400)),
        reserve: table.optional("reserve"),
    }
}

/// Keys every sink has, beside those of its type.
const COMMON_KEYS: [&str; 10] = [
    "name",
    "type",
    "start",
    "concurrency",
    "rate",
    "timeout",
    "retry",
    "order",
    "breaker",
    "dead_max",
];

fn read_sink(place: &str, value: Value, faults: &mut Vec<Fault>) -> Option<SinkConfig> {
    let mut table = Table::new(place, value, faults);
    let name: Option<String> = table.required("name", "\"audit\"");
    let kind: Option<String> = table.required("type", "\"file\"");
    let start = table.or("start", Start::Now);
    let concurrency = table.optional("concurrency");
    let rate = table.optional("rate");
    let timeout = table.within(
        "timeout",
        Span::secs(30),
        Span(std::time::Duration::from_millis(1)),
        Span::secs(3600),
    );
    let order = table.or("order", Order::None);
    let retry = table.table("retry", read_retry);
    let breaker = table.table("breaker", |table| Breaker {
        failures: table.within("failures", 10, 1, 1_000_000),
        refusals: table.within("refusals", 5, 1, 1_000_000),
        probe: table.or("probe", Span::secs(30)),
    });
    let dead_max = table.or("dead_max", Size(256 << 20));
    if let Some(name) = &name
        && (name.is_empty()
            || name.len() > 64
            || name.starts_with('.')
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)))
    {
        table.fault(
            "name",
            format!("\"{name}\" is no name: up to 64 letters, digits, '-', '_' and '.'"),
        );
    }
    let rest = table.rest();
    let kind = kind?;
    let Some(sink_type) = sinks::REGISTRY.iter().find(|candidate| candidate.name == kind) else {
        let known: Vec<&str> = sinks::REGISTRY.iter().map(|candidate| candidate.name).collect();
        table.fault(
            "type",
            format!("there is no sink type \"{kind}\"; known are {}", known.join(", ")),
        );
        return None;
    };
    let mut options_table = Table::new(place, rest, faults);
    let options = (sink_type.parse)(&mut options_table);
    options_table.report_unknown(&COMMON_KEYS.map(str::to_owned));
    let options = options?;
    if options.drive().commit != sinks::Commit::Acknowledge && concurrency.is_some_and(|concurrency| concurrency != 1) {
        let message = format!("a sink of type \"{kind}\" writes one batch at a time: leave concurrency out");
        faults.push(Fault {
            place: format!("{place}.concurrency"),
            message,
        });
    }
    if concurrency.is_some_and(|concurrency| !(1..=1024).contains(&concurrency)) {
        faults.push(Fault {
            place: format!("{place}.concurrency"),
            message: "must be between 1 and 1024".into(),
        });
    }
    Some(SinkConfig {
        name: name?,
        kind,
        start,
        concurrency,
        rate,
        timeout,
        retry,
        order,
        breaker,
        dead_max,
        options,
    })
}

fn read_retry(table: &mut Table<'_>) -> Retry {
    let retry = Retry {
        initial: table.or("initial", Span::secs(1)),
        factor: table.within("factor", 2, 1, 100),
        max_delay: table.or("max_delay", Span::secs(900)),
        max_age: table.or("max_age", Span::secs(72 * 3600)),
    };
    if retry.initial > retry.max_delay {
        table.fault(
            "initial",
            format!("must not be longer than max_delay ({})", retry.max_delay),
        );
    }
    retry
}

fn read_rule(place: String, value: Value, faults: &mut Vec<Fault>) -> RuleConfig {
    let mut table = Table::new(place, value, faults);
    let rule = RuleConfig {
        name: table.required("name", "\"unsubscribes\"").unwrap_or_default(),
        events: table.or("events", Vec::new()),
        filter: table
            .raw("filter")
            .map(|filter| String::from_value(filter).unwrap_or_default()),
        sinks: table.or("sinks", Vec::new()),
    };
    table.finish();
    rule
}

impl Config {
    /// What only the whole shows: names that stand twice, rules that name no sink, files two sinks would write.
    fn check(&self, faults: &mut Vec<Fault>) {
        let mut fault = |place: String, message: String| faults.push(Fault { place, message });
        for (index, sink) in self.sinks.iter().enumerate() {
            let earlier = &self.sinks[..index];
            if earlier.iter().any(|other| other.name == sink.name) {
                fault(
                    format!("sinks[{index}].name"),
                    format!("two sinks are called \"{}\"", sink.name),
                );
            }
            if let Some(exclusive) = sink.options.exclusive()
                && let Some(other) = earlier
                    .iter()
                    .find(|other| other.options.exclusive().as_ref() == Some(&exclusive))
            {
                let message = format!("\"{}\" and \"{}\" would both write {exclusive}", other.name, sink.name);
                fault(format!("sinks[{index}]"), message);
            }
        }
        if self.log.retention.0.is_zero() {
            fault("log.retention".into(), "can't be zero: nothing would be kept".into());
        }
        let names: Vec<&str> = self.sinks.iter().map(|sink| sink.name.as_str()).collect();
        if let Err(found) = crate::rules::RuleSet::compile(&self.rules, &names) {
            // A name that is missing was reported when the rule was read.
            faults.extend(
                found
                    .into_iter()
                    .filter(|fault| !fault.message.contains("a rule needs a name")),
            );
        }
    }

    /// What is odd but can run, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let has_kept = || crate::close::signature_keys(&self.log.dir).is_ok_and(|(live, _)| !live.is_empty());
        if self.close.subscriptions.is_empty() && !self.close.local_key && !has_kept() {
            let remedy = if self.close.credentials.is_some() {
                "run `closehook subscription apply`"
            } else {
                "run `closehook init`, or add [[close.subscriptions]]"
            };
            warnings.push(format!(
                "no signature key is configured: every delivery is refused with 401; {remedy}"
            ));
        }
        for subscription in &self.close.subscriptions {
            if let Err(error) = subscription.signature_key.resolve() {
                warnings.push(error);
            }
        }
        if self.sinks.is_empty() {
            warnings.push("no sinks are configured: events are kept and delivered nowhere".into());
        }
        for rule in self.rules.iter().filter(|rule| rule.sinks.is_empty()) {
            warnings.push(format!("rule \"{}\" names no sinks: it has no effect", rule.name));
        }
        if !self.rules.is_empty() {
            for sink in &self.sinks {
                if !self.rules.iter().any(|rule| rule.sinks.contains(&sink.name)) {
                    warnings.push(format!("no rule names the sink \"{}\": it gets nothing", sink.name));
                }
            }
        }
        if self.server.tls.is_none()
            && self.server.acme.is_none()
            && let Listen::Tcp(address) = self.server.listen
            && !address.ip().is_loopback()
        {
            warnings.push(format!(
                "plain HTTP on {address}, which other machines can reach: set [server.acme] or [server.tls], or listen on loopback behind a proxy"
            ));
        }
        warnings
    }
}
