//! Every key that may be set, with its default.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Listen, Networks, Rate, Secret, Size, Span};
use crate::render::Program;

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The public listener.
    pub server: Server,
    /// The listener for the operator's page, metrics and health.
    pub admin: Admin,
    /// Keys to verify with, and the API.
    pub close: Close,
    /// The event log.
    pub log: Log,
    /// Where events go, in the order written.
    pub sinks: Vec<SinkConfig>,
    /// What goes where, in the order written.
    pub rules: Vec<RuleConfig>,
    /// This node, where several share the log.
    pub node: Node,
}

/// `[node]`
#[derive(Debug, Clone)]
pub struct Node {
    /// What other nodes know it by. Default: the host's name.
    pub name: String,
    /// What it does. Default: everything.
    pub roles: Vec<Role>,
}

/// What a node may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Receives.
    Ingress,
    /// Drives sinks.
    Deliver,
    /// Looks after Close's side.
    Close,
}

/// `[server]`
#[derive(Debug, Clone)]
pub struct Server {
    /// Default `127.0.0.1:8480`.
    pub listen: Listen,
    /// Permission bits of the socket where `listen` is one in the file system. Default 0660.
    pub listen_mode: u32,
    /// Peers that are believed when they say whom they speak for. Default: none.
    pub trusted_proxies: Networks,
    /// Networks that may send; empty: all. Default: all.
    pub allow: Networks,
    /// Open connections of one address (or IPv6 /64) at a time. Default 256.
    pub connections_per_address: usize,
    /// Failed requests of one address that are answered without delay, after a burst. Default 1/s.
    pub failures_per_address: Rate,
    /// Whether trusted peers' connections begin with the PROXY protocol's header. Default false.
    pub proxy_protocol: bool,
    /// Default `/webhooks/close`; must start with a slash.
    pub path: String,
    /// What Close is told.
    pub public_url: Option<String>,
    /// Largest body accepted. Default 4 MiB; at most 64 MiB.
    pub max_body: Size,
    /// An authentic delivery older than this is refused. Default 73 h.
    pub signature_tolerance: Span,
    /// How far in the future a timestamp may lie. Default 5 min.
    pub clock_skew: Span,
    /// TLS with a certificate from files. Without it and without `acme`: plain HTTP.
    pub tls: Option<Tls>,
    /// TLS with a certificate that comes by itself.
    pub acme: Option<Acme>,
    /// How long a client may take to send a request's head (and to finish a TLS handshake). Default 10 s.
    pub head_timeout: Span,
    /// How long a client may take to send a request's body. Default 30 s.
    pub body_timeout: Span,
    /// How long an idle keep-alive connection is kept. Default 75 s.
    pub idle_timeout: Span,
    /// Open connections at a time; who comes then takes the place of one that has been idle. Default 10,000, and never more than
    /// the limit of open files leaves room for.
    pub max_connections: usize,
    /// Bytes of request bodies held in memory at a time; beyond it new ones are answered 503. Default 64 MiB.
    pub max_inflight: Size,
    /// How long open requests may take to finish at shutdown. Default 20 s.
    pub drain_timeout: Span,
}

/// `[server.tls]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM file: the certificate, then its chain.
    pub cert: PathBuf,
    /// PEM file: the private key.
    pub key: PathBuf,
}

/// `[server.acme]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// The names of the certificate; the first one is this host's.
    pub domains: Vec<String>,
    /// Where the directory writes to when something is wrong.
    pub email: Option<String>,
    /// URL of the ACME directory. Default: Let's Encrypt's `production`; `staging` is its other one.
    pub directory: String,
    /// Where account and certificates are kept. Default: `acme` in the data directory.
    pub cache: Option<PathBuf>,
    /// PEM file: authorities that are trusted besides the web's when the directory is spoken to.
    pub ca: Option<PathBuf>,
}

/// `[admin]`
#[derive(Debug, Clone)]
pub struct Admin {
    /// Default `127.0.0.1:8481`.
    pub listen: SocketAddr,
    /// Names that `Host` may have beside the address and localhost's, in small letters. Default: none.
    pub hosts: Vec<String>,
    /// `admin.token` and `[[admin.tokens]]`, in this order.
    pub tokens: Vec<AdminToken>,
}

/// One of `[[admin.tokens]]`: with it somebody signs in.
#[derive(Debug, Clone)]
pub struct AdminToken {
    /// Where it stands.
    pub place: String,
    /// Unique; what the log calls whoever acts with it.
    pub name: String,
    /// What is presented.
    pub token: Secret,
    /// What one may do with it.
    pub may: May,
}

/// What somebody may do who has signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum May {
    /// Look.
    Read,
    /// Look, and change what a page may change.
    Act,
}

/// `[close]`
#[derive(Debug, Clone)]
pub struct Close {
    /// `[[close.subscriptions]]`
    pub subscriptions: Vec<SubscriptionKey>,
    /// Make a random key in the data directory (`signature_key`, mode 0600) on first start and accept it: for trying
    /// closehook out and for `trigger`. Default false.
    pub local_key: bool,
    /// How the daemon shows Close's API who it is; `None`: the API is not used.
    pub credentials: Option<Credentials>,
    /// Close's API. Default `https://api.close.com/api/v1/`; always ends with a slash.
    pub base_url: reqwest::Url,
    /// Whether Close is told the rules' filters, so that it sends only what they want. Default true.
    pub push_down: bool,
    /// Whether a subscription that Close has paused is made active again. Default true.
    pub auto_resume: bool,
    /// What becomes of events whose data Close withholds. Default `hold`.
    pub partial: Partial,
    /// `[close.health]`
    pub health: CloseHealth,
    /// `[close.reconcile]`
    pub reconcile: Reconcile,
}

/// How Close's API knows the daemon.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// `close.api_key`: HTTP Basic, the key as user name.
    ApiKey(Secret),
    /// `[close.oauth]`
    OAuth(OAuth),
}

/// `[close.oauth]`
#[derive(Debug, Clone)]
pub struct OAuth {
    /// The app's id.
    pub client_id: String,
    /// The app's secret.
    pub client_secret: Secret,
    /// The refresh token the chain begins with; later ones are kept in the data directory.
    pub refresh_token: Secret,
}

/// `close.partial`: what becomes of a fetched event whose `data` Close withholds (the key is not an admin's).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partial {
    /// Kept, and dispatched only when the full event comes.
    Hold,
    /// Dispatched as it is.
    Dispatch,
}

/// `[close.health]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseHealth {
    /// How often the subscriptions are looked at. Default 5 min.
    pub interval: Span,
}

/// `[close.reconcile]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reconcile {
    /// How often the log is compared with Close's. Default 15 min.
    pub interval: Span,
    /// How much of what was compared before is compared again. Default 10 min, at least 5 min.
    pub overlap: Span,
}

/// `[[close.subscriptions]]`
#[derive(Debug, Clone)]
pub struct SubscriptionKey {
    /// Where it stands.
    pub place: String,
    /// With it, the key counts only for this `subscription_id`.
    pub id: Option<String>,
    /// `signature_key`, hex as Close gives it.
    pub signature_key: Secret,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct Log {
    /// Default `/var/lib/closehook`.
    pub dir: PathBuf,
    /// How long events are kept. Default 30 days.
    pub retention: Span,
    /// Hard cap on the log's size on disk. Default: 80 % of the file system.
    pub max_size: Option<Size>,
    /// A segment is closed when it has received this much. Default 256 MiB, and never over a tenth of `max_size`.
    pub segment_size: Size,
    /// A segment is closed when it is this old. Default 1 day, and never over a tenth of `retention`.
    pub segment_age: Span,
    /// Below this much free space ingress answers 503. Default: 64 MiB, and never over 5 % of the file system.
    pub reserve: Option<Size>,
    /// What keeps the events. Default `local`.
    pub engine: Engine,
    /// How the servers are reached, where they keep them.
    pub jetstream: Option<JetStream>,
}

/// `log.engine`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// This machine's disk.
    Local,
    /// Servers of NATS, for more than one machine.
    JetStream,
}

/// `[log.jetstream]`
#[derive(Debug, Clone)]
pub struct JetStream {
    /// Their addresses, at least one.
    pub servers: Vec<String>,
    /// Who this side is.
    pub login: NatsLogin,
    /// PEM file of authorities that are trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// TLS comes before anything the server says. Default false.
    pub tls_first: bool,
    /// The stream of events, and what the names of all others begin with. Default `closehook`.
    pub stream: String,
    /// On how many servers each event is. Default 3.
    pub replicas: usize,
    /// Whether it is looked that no server acknowledges what a power cut can take. Default `checked`.
    pub durability: Durability,
    /// The servers' monitoring addresses.
    pub monitor: Vec<String>,
    /// Who may ask the servers how they are set up, where it is not asked at `monitor`.
    pub system: NatsLogin,
    /// What is secret in the bucket is encrypted with this.
    pub secret: Option<Secret>,
}

/// Who this side is at servers of NATS.
#[derive(Debug, Clone, Default)]
pub enum NatsLogin {
    /// Nobody, or whoever stands in an address.
    #[default]
    Nobody,
    /// A user with a password.
    User(String, Secret),
    /// What stands in a `.creds` file.
    Credentials(Secret),
}

/// `log.jetstream.durability`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Servers that do not sync each message, or do not say so, are not used.
    Checked,
    /// They are, at the user's risk.
    Unchecked,
}

/// `[[sinks]]`: what every sink has; the keys of its own type are in `options`.
#[derive(Debug, Clone)]
pub struct SinkConfig {
    /// Unique; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// `file`, `http`, ...
    pub kind: String,
    /// Where a sink that was never seen before begins. Default `now`.
    pub start: Start,
    /// Deliveries at a time; the sink type's default where `None`.
    pub concurrency: Option<usize>,
    /// At most so many deliveries a second.
    pub rate: Option<Rate>,
    /// How long one delivery may take. Default 30 s.
    pub timeout: Span,
    /// When to try again.
    pub retry: Retry,
    /// What waits for what. Default `none`.
    pub order: Order,
    /// When to stop trying for a while.
    pub breaker: Breaker,
    /// Dead letters are kept up to so many bytes; beyond, the oldest go. Default 256 MiB.
    pub dead_max: Size,
    /// A first attempt is made no sooner than this after the event was received; `None`: at once.
    pub delay: Option<Span>,
    /// Only the newest event of an object that has been the newest for so long is delivered; `None`: every event.
    pub settle: Option<Span>,
    /// The sink that gets what would become a dead letter.
    pub dead_to: Option<String>,
    /// The only node that drives it, where several share the log; `None`: any.
    pub node: Option<String>,
    /// `template` or `transform`: what is delivered instead of the event.
    pub program: Option<Program>,
    /// The sink type's own options, typed by the sink itself.
    pub options: SinkOptions,
}

/// The options of a sink's own type, already parsed by that type.
pub type SinkOptions = std::sync::Arc<dyn crate::contract::SinkKind>;

/// Where a new sink begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the next event.
    Now,
    /// With the oldest event kept.
    Beginning,
    /// With the first event received at or after this.
    At(jiff::Timestamp),
}

/// `retry = { initial, factor, max_delay, max_age }`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retry {
    /// Upper bound of the first delay (full jitter draws below it). Default 1 s.
    pub initial: Span,
    /// What each next bound is multiplied by; a whole number from 1 to 100. Default 2.
    pub factor: u64,
    /// Largest bound. Default 15 min.
    pub max_delay: Span,
    /// Counted from the first attempt; after it, a dead letter. Default 72 h.
    pub max_age: Span,
}

/// `order = ...`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Nothing waits.
    None,
    /// An event waits for the earlier ones of its lead.
    Lead,
    /// Every event waits for the one before.
    Strict,
}

/// `breaker = { failures, refusals, probe }`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Breaker {
    /// Failures in a row (those worth a retry) that open it. Default 10.
    pub failures: u32,
    /// Permanent refusals in a row that open it. Default 5.
    pub refusals: u32,
    /// While open, one delivery is tried this often. Default 30 s.
    pub probe: Span,
}

/// `[[rules]]`
#[derive(Debug, Clone, PartialEq)]
pub struct RuleConfig {
    /// Unique.
    pub name: String,
    /// Patterns over `object_type.action`; empty: all events.
    pub events: Vec<String>,
    /// Close's filter language as JSON text (from a TOML table, a JSON string or `@file`), numbers as written.
    pub filter: Option<String>,
    /// Names of sinks.
    pub sinks: Vec<String>,
    /// `template` or `transform`: what these sinks are given instead of the event. Wins over the sink's own.
    pub program: Option<Program>,
}

/// Environment for `exec` and similar: names to values.
pub type EnvVars = BTreeMap<String, String>;
