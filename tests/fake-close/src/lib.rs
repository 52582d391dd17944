//! A Close of one's own, for tests and for trying closehook out: the API for webhooks and events with its documented rules, a
//! made-up organization in which things happen, and webhooks sent as Close sends them.
//!
//! The core is a state machine, [`World`]: calls and time go in, answers and due webhooks come out. `server` gives it sockets
//! and a clock, `sender` posts. closehook does not know that it exists, and it knows nothing of closehook: it signs, reads
//! filters and reads dates on its own. The program is `cargo run -p fake-close`.
//!
//! # In a test
//!
//! ```no_run
//! # async fn test() -> Result<(), String> {
//! use std::time::Duration;
//! use fake_close::{Fake, Options, Settings, fault};
//!
//! let fake = Fake::start(Options { settings: Settings::calm(), ..Options::default() }).await?;
//! // [close] base_url = fake.base_url(), api_key = fake.api_key()
//! fake.world().generate(20_000, fake.world().now(), Duration::from_secs(30 * 86_400)).map_err(|full| full.to_string())?;
//! let order = fault::Fault::new(fault::Kind::DropAnswer).on("POST /api/v1/webhook/");
//! fake.world().faults.order(order)?;
//! fake.advance(Duration::from_secs(4 * 86_400)).await; // comes back when everything due was attempted
//! let delivered: Vec<_> = fake.world().deliveries(0).collect();
//! # Ok(())
//! # }
//! ```
//!
//! Time is virtual unless asked otherwise: it stands still until it is advanced, and then takes no longer than the work. By
//! simulated time go events, webhooks, retries, pauses and what the API shows; by the machine's clock go rate limits, cursors,
//! tokens and, so that a daemon accepts them, signatures. The world begins thirty days before now, unless `start` says otherwise.
//! Another process does the same over HTTP: `GET /fake/` lists the calls.
//!
//! Webhooks go to this machine only. A subscription to a public URL is delivered to a daemon here by
//! [`Settings::deliver_to`]; `Month` in closehook's `tests/it/month.rs` shows that with kills in between. What was delivered is in
//! [`World::deliveries`]; a receiver may also have what was only attempted, see [`Revised::attempted`].
//!
//! Everything made up follows from the seed; nothing from the machine.

mod access;
mod api;
mod control;
mod cursor;
mod dice;
mod dispatch;
mod events;
pub mod fault;
mod fields;
mod filter;
mod happen;
mod ids;
mod json;
mod limits;
mod moment;
mod render;
mod sender;
mod server;
mod settings;
pub mod signature;
mod span;
mod subscription;
mod world;

use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use access::{Access, ApiKey, Caller, Grant, Role, State};
pub use api::{PAGE_MAX, Reply, Request, Sent};
pub use dispatch::{DROP_AFTER, FAILING_MAX, QUEUE_MAX, QUEUE_WARN, RETRY_DELAY_MAX};
pub use events::{EVENTS_MAX, Full, HISTORY, WITHHOLD_AFTER};
pub use moment::Moment;
pub use server::{Advanced, Pace};
pub use settings::{Settings, SignedAt, Withheld};
pub use span::Span;
pub use subscription::{Because, Counts, SUBSCRIPTIONS_MAX, Subscription};
pub use world::{Delivered, Revised, Seen, World};

/// How a fake begins.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything made up follows from it. Default 7.
    pub seed: u64,
    /// Where to listen. Default any free port of `127.0.0.1`.
    pub listen: SocketAddr,
    /// How time goes. Default virtual.
    pub pace: Pace,
    /// Simulated time at the start. Default: 30 days ago in virtual time, else now.
    pub start: Option<Moment>,
    /// The API key; made up where `None`.
    pub api_key: Option<String>,
    /// How it behaves.
    pub settings: Settings,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seed: 7,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            pace: Pace::Virtual,
            start: None,
            api_key: None,
            settings: Settings::default(),
        }
    }
}

/// A running fake. It stops when this is dropped.
#[derive(Debug)]
pub struct Fake {
    shared: Arc<server::Shared>,
    address: SocketAddr,
    shutdown: CancellationToken,
}

impl Fake {
    /// Listens and serves in the background.
    pub async fn start(options: Options) -> Result<Fake, String> {
        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(|error| format!("{} can't be listened on: {error}", options.listen))?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let wall = Moment::wall();
        let start = options.start.unwrap_or(match options.pace {
            Pace::Virtual => wall.minus(HISTORY),
            Pace::Real { .. } => wall,
        });
        let world = World::new(options.seed, start, options.settings, options.api_key);
        let shared = Arc::new(server::Shared::new(world, options.pace)?);
        let shutdown = CancellationToken::new();
        tokio::spawn(server::serve(listener, shared.clone(), shutdown.clone()));
        Ok(Fake {
            shared,
            address,
            shutdown,
        })
    }

    /// What `[close] base_url` is to be.
    pub fn base_url(&self) -> String {
        format!("http://{}/api/v1", self.address)
    }

    /// The start of all its URLs: `/oauth2/token/` and `/fake/` are below it.
    pub fn root_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What `[close] api_key` is to be.
    pub fn api_key(&self) -> String {
        self.world().access.keys[0].key.clone()
    }

    /// The state, to look at and to change. Not to be held across an await.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world()
    }

    /// Moves virtual time on, and comes back when everything that was due was attempted.
    pub async fn advance(&self, span: Duration) -> Advanced {
        let until = self.world().now().plus(span);
        self.shared.advance(until).await
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
