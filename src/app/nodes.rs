//! What nodes share beside the log, where `log.engine` says that there are several: state, leases, and what is known of Close's side.
//!
//! | bucket | what is in it |
//! |---|---|
//! | `STREAM_state` | marks, replays, rules; below `sealed/`, encrypted, what is known of Close's side |
//! | `STREAM_nodes` | which nodes there are and who does what, orders from one to another |

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio_util::sync::CancellationToken;

use super::patience::{AGAIN_AFTER, Why};
use crate::close::{self, Account};
use crate::config::{Config, Engine, Role};
use crate::log::jetstream::{self, JetStreamLog, OpenError, StreamJournal};
use crate::log::{Log, Servers};
use crate::node::{self, Leases, SharedLeases, Timing};
use crate::state::jetstream::{JetStreamStore, Options};
use crate::state::journal::Journal;
use crate::state::{SealedStore, Store, is_of_another_secret};
use crate::task;

/// A record of a node has to be renewed in time, or given up in time.
const NODES_PATIENCE: Duration = Duration::from_millis(1500);

/// Servers that were not there at first are believed when they have refused something for so long.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// What looks after Close's side has so long to come to an end when this node has to let go of it.
const CLOSE_ENDS_WITHIN: Duration = Duration::from_secs(10);

/// How often it is looked whether Close's side is this node's.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What several nodes share.
#[derive(Debug, Clone)]
pub struct Nodes {
    /// Marks and jobs.
    pub state: Arc<dyn Store>,
    /// Who does what.
    pub leases: SharedLeases,
    /// Dead letters.
    pub letters: Arc<dyn Journal>,
    /// What is known of Close's side.
    pub close: Arc<close::Shared>,
    /// What only nodes may read.
    pub sealed: Arc<dyn Store>,
}

impl Nodes {
    /// Who is asked for what this node does not do.
    pub fn others(&self) -> Arc<dyn Leases> {
        Arc::new(self.leases.clone())
    }
}

/// Whether the configuration says that there may be several nodes.
pub(super) fn are_several(config: &Config) -> bool {
    config.log.engine == Engine::JetStream
}

fn bucket(config: &Config, of: &str, patience: Option<Duration>) -> anyhow::Result<JetStreamStore> {
    let settings = config.log.jetstream.as_ref();
    let settings = settings.context("log.jetstream is missing: engine = \"jetstream\" needs it")?;
    Ok(JetStreamStore::new(Options {
        way: jetstream::way(settings, &settings.login).map_err(|error| anyhow!(error))?,
        bucket: format!("{}_{of}", settings.stream),
        replicas: settings.replicas,
        patience,
    }))
}

fn buckets(config: &Config) -> anyhow::Result<[JetStreamStore; 2]> {
    Ok([
        bucket(config, "state", None)?,
        bucket(config, "nodes", Some(NODES_PATIENCE))?,
    ])
}

/// Makes the buckets that are missing, with the streams of the log; gives the names of what was made.
pub async fn create(config: &Config) -> anyhow::Result<Vec<String>> {
    let options = jetstream::Options::from_config(config).map_err(|error| anyhow!(error))?;
    let mut made = jetstream::check::create(&options)
        .await
        .map_err(|error| anyhow!(error))?;
    made.extend(create_stores(config).await?);
    Ok(made)
}

/// Makes the buckets that are missing; gives the names of what was made.
pub(super) async fn create_stores(config: &Config) -> anyhow::Result<Vec<String>> {
    let options = jetstream::Options::from_config(config).map_err(|error| anyhow!(error))?;
    let mut made = Vec::new();
    for of in jetstream::BUCKETS {
        let store = bucket(config, of, None)?;
        if store.create().await.map_err(|error| anyhow!(error))? {
            made.push(format!("KV_{}_{of}", options.stream));
        }
        store.close().await;
    }
    Ok(made)
}

/// What of the buckets weakens a promise, a sentence each. An error: they can't be looked at.
pub async fn faults(config: &Config) -> anyhow::Result<Vec<String>> {
    let mut faults = Vec::new();
    for of in jetstream::BUCKETS {
        let store = bucket(config, of, None)?;
        faults.extend(store.faults().await.map_err(|error| anyhow!(error))?);
        store.close().await;
    }
    Ok(faults)
}

/// The buckets.
pub(super) struct Stores {
    /// Marks and jobs.
    pub state: Arc<dyn Store>,
    /// Which nodes there are.
    pub nodes: Arc<dyn Store>,
    /// What is known of Close's side.
    pub sealed: Arc<SealedStore>,
    /// Dead letters.
    pub letters: Arc<dyn Journal>,
}

/// Handles on the buckets. Reads secrets, contacts nobody.
pub(super) async fn stores(config: &Config) -> anyhow::Result<Stores> {
    let options = jetstream::Options::from_config(config).map_err(|error| anyhow!(error))?;
    let [state, nodes] = buckets(config)?;
    let settings = config.log.jetstream.as_ref().context("log.jetstream is missing")?;
    let secret = settings.secret.as_ref();
    let secret = secret
        .context("log.jetstream.secret is missing")?
        .resolve()
        .map_err(|error| anyhow!(error))?;
    let (below, of): (Arc<dyn Store>, _) = (Arc::new(state.clone()), settings.stream.clone());
    let sealed =
        task::begin_blocking(move || SealedStore::new(below, secrecy::ExposeSecret::expose_secret(&secret), &of));
    let sealed = sealed
        .await?
        .map_err(|error| anyhow!("log.jetstream.secret: {error}"))?;
    Ok(Stores {
        state: Arc::new(state),
        nodes: Arc::new(nodes),
        sealed: Arc::new(sealed),
        letters: Arc::new(StreamJournal::new(&options)),
    })
}

/// Connects to what nodes share. Reads secrets, contacts nobody.
pub(super) async fn build(config: &Config) -> anyhow::Result<Nodes> {
    let stores = stores(config).await?;
    let leases = SharedLeases::new(node::Options {
        store: stores.nodes.clone(),
        node: config.node.name.clone(),
        roles: config.node.roles.clone(),
        timing: Timing::default(),
    });
    // Whoever may only write to the bucket gives no orders.
    let leases = leases.ordering_in(Arc::new(stores.sealed.over(stores.nodes)));
    Ok(Nodes {
        state: stores.state,
        letters: stores.letters,
        leases,
        close: close::Shared::new(stores.sealed.clone(), &config.log.dir),
        sealed: stores.sealed,
    })
}

/// Where the log is, for people.
pub(super) fn stream_of(config: &Config) -> String {
    let jetstream = config.log.jetstream.as_ref();
    jetstream.map_or_else(String::new, |jetstream| {
        format!(
            "the stream {} of JetStream ({})",
            jetstream.stream,
            jetstream.servers.join(", ")
        )
    })
}

/// The same of whichever engine.
pub(super) fn place(config: &Config) -> String {
    if are_several(config) {
        stream_of(config)
    } else {
        config.log.dir.display().to_string()
    }
}

/// Whether this node is one that receives.
pub(super) fn receives(config: &Config) -> bool {
    !are_several(config) || config.node.roles.contains(&Role::Ingress)
}

/// What the configuration says of the log's servers.
pub(super) fn servers(config: &Config) -> Servers {
    let settings = config.log.jetstream.as_ref();
    Servers {
        stream: settings.map(|settings| settings.stream.clone()).unwrap_or_default(),
        replicas: settings.map(|settings| settings.replicas).unwrap_or_default(),
        ..Servers::default()
    }
}

/// Whether no time mends why what nodes share can't be read.
pub(super) fn stays_wrong(why: &str) -> bool {
    is_of_another_secret(why)
}

/// Opens the log on its servers.
pub(super) async fn open_log(config: &Config) -> anyhow::Result<Arc<dyn Log>> {
    let options = jetstream::Options::from_config(config).map_err(|error| anyhow!(error))?;
    Ok(Arc::new(JetStreamLog::open(options).await?))
}

/// The same for the daemon: where its servers can't be used now it waits for them, and `why` says so.
///
/// What is refused is wrong. But servers that have just come may not know everything yet, a login included: what they refuse then counts when
/// they have done so for a while.
pub(super) async fn open_log_patiently(config: &Config, why: &Why) -> anyhow::Result<Arc<dyn Log>> {
    let options = jetstream::Options::from_config(config).map_err(|error| anyhow!(error))?;
    let mut refused_since = None;
    for round in 0.. {
        match JetStreamLog::open(options.clone()).await {
            Ok(log) => return Ok(Arc::new(log)),
            Err(OpenError::Unreachable(unreachable)) => {
                refused_since = None;
                why.say(round, format!("the log's servers can't be used now: {unreachable}"));
            }
            Err(refused) => {
                let since = *refused_since.get_or_insert_with(tokio::time::Instant::now);
                if round == 0 || since.elapsed() >= REFUSED_FOR {
                    bail!(refused);
                }
                why.say(round, refused.to_string());
            }
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
    bail!("the log's servers can't be used")
}

/// Looks after Close's side as long as this node has the lease for it.
pub(super) async fn look_after_close(account: Arc<Account>, leases: SharedLeases, stop: CancellationToken) {
    let mut changes = leases.changes();
    loop {
        let Some(lease) = leases.lease(node::CLOSE) else {
            let _ = tokio::time::timeout(LOOK_EVERY, stop.run_until_cancelled(changes.changed())).await;
            if stop.is_cancelled() {
                return;
            }
            continue;
        };
        tracing::info!("this node looks after Close's side");
        let end = CancellationToken::new();
        let caring = close::supervise(account.clone(), end.clone());
        tokio::pin!(caring);
        let mut has_ended = false;
        while !has_ended && lease.holds() && !stop.is_cancelled() {
            tokio::select! {
                () = &mut caring => has_ended = true,
                () = stop.cancelled() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        end.cancel();
        if !has_ended && tokio::time::timeout(CLOSE_ENDS_WITHIN, caring).await.is_err() {
            tracing::warn!("what looked after Close's side did not come to its end, and is cut off");
        }
        leases.give_up(node::CLOSE).await;
        if stop.is_cancelled() {
            return;
        }
    }
}
