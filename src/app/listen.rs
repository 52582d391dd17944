//! Receiving without delivering: the public listener as the daemon has it, on a log that is thrown away. For development.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use arc_swap::ArcSwap;

use super::roles::{build_account, build_certificates, build_ingress, build_log, limits};
use super::start::{FOR_LOG, Started, keep_answering, public_listener};
use crate::config::Config;
use crate::ingress::verify::Verifier;
use crate::listener::threads::Threads;
use crate::log::{self, Log};
use crate::telemetry::door::Door;

/// Receives, verifies and keeps deliveries until it is stopped.
pub struct Receiver {
    /// What was received.
    pub log: Arc<dyn Log>,
    /// Where it listens.
    pub url: String,
    started: Started,
    stop_within: Duration,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Receiver {
    /// Starts it, in the data directory of this configuration, accepting what these keys have signed. Nothing else of a daemon is
    /// started: no sinks, no admin listener, nothing at Close.
    pub async fn start(config: &Config, keys: Verifier) -> anyhow::Result<Receiver> {
        let (mut started, stop_within) = (Started::default(), config.stop_within());
        match receive(&mut started, config, keys).await {
            Ok((log, url)) => Ok(Receiver {
                log,
                url,
                started,
                stop_within,
            }),
            Err(error) => {
                started.stop(stop_within).await;
                Err(error)
            }
        }
    }

    /// Answers what is open, and lets go.
    pub async fn stop(self) {
        self.started.stop(self.stop_within).await;
    }
}

async fn receive(started: &mut Started, config: &Config, keys: Verifier) -> anyhow::Result<(Arc<dyn Log>, String)> {
    let threads = Threads::start().context("the listener's threads can't be started")?;
    let on = threads.handle().clone();
    started.push("the listener's threads", async move { drop(threads) });
    let log = build_log(log::Options::from_config(config), &on).await??;
    let closing = log.clone();
    started.reserve("the log", FOR_LOG, async move { closing.close().await });
    let certificates = build_certificates(config).map_err(|error| anyhow!(error))?;
    let public = public_listener(None, config, &on).await?;
    let scheme = if certificates.is_some() { "https" } else { "http" };
    let url = public.url(scheme, &config.server.path)?;
    let keys = Arc::new(ArcSwap::from_pointee(keys));
    let age = Arc::default();
    let account = build_account(config, &log, &keys, true, &age, None)?;
    let limits = limits(config);
    let front = build_ingress(config, &log, &keys, &account, &limits, &Door::new(age));
    keep_answering(started, &on, Arc::new(public), certificates, limits, front);
    Ok((log, url))
}
