//! A daemon while it runs: what it says first, and what it is told.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::nodes;
use super::reload::{Reload, fault};
use super::signals::{Signals, Told, notify};
use crate::config::{Config, Fault};
use crate::control::{Facade, ReloadOrder, Reloaded};
use crate::task;

/// What waits for orders while the parts run.
pub(super) struct Daemon {
    pub signals: Signals,
    pub orders: mpsc::Receiver<ReloadOrder>,
    pub reload: Arc<Reload>,
}

impl Daemon {
    /// Reloads whenever it is told to, until it is told to stop.
    pub async fn wait_for_the_end(mut self) {
        loop {
            let order = tokio::select! {
                told = self.signals.next() => match told {
                    Told::Stop => return,
                    Told::Reload => None,
                },
                order = self.orders.recv() => order,
            };
            notify(&[sd_notify::NotifyState::Reloading]);
            let Some(reloaded) = self.reload_unless_told_to_stop().await else {
                return;
            };
            notify(&[sd_notify::NotifyState::Ready]);
            if let Some(order) = order {
                // Whoever does not wait any more does not want to know.
                let _ = order.send(reloaded);
            }
        }
    }

    /// Reloads, as often as it is told to meanwhile; `None` when it is told to stop, which waits for no reload.
    async fn reload_unless_told_to_stop(&mut self) -> Option<Result<Reloaded, Vec<Fault>>> {
        loop {
            let reload = self.reload.clone();
            // A defect in it must not take the daemon along.
            let mut reloading = task::begin(async move { reload.run().await });
            let mut again = false;
            let reloaded = loop {
                tokio::select! {
                    reloaded = &mut reloading => break reloaded,
                    told = self.signals.next() => match told {
                        Told::Stop => return None,
                        Told::Reload => again = true,
                    },
                }
            };
            if !again {
                let failed = |error| Err(vec![fault(format!("reloading has failed: {error}"))]);
                return Some(reloaded.unwrap_or_else(failed));
            }
        }
    }
}

/// The first lines: where it listens, what becomes of events, what to type next.
pub(super) fn announce(config: &Config, facade: &Facade, file: Option<&Path>) {
    let version = &facade.facts.version;
    if let Some(url) = &facade.facts.url {
        let keys = facade.receiving.keys();
        tracing::info!("closehook {version} listens on {url} for deliveries signed with {keys} known key(s)");
    } else {
        let node = &config.node.name;
        tracing::info!("closehook {version} receives no deliveries: the roles of node {node} are without ingress");
    }
    let names = |names: Vec<String>| {
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    };
    tracing::info!(
        "events are kept in {} for {}; sinks: {}; rules: {}",
        nodes::place(config),
        config.log.retention,
        names(
            config
                .sinks
                .iter()
                .map(|sink| format!("{} ({})", sink.name, sink.kind))
                .collect()
        ),
        names(config.rules.iter().map(|rule| rule.name.clone()).collect()),
    );
    tracing::info!(
        "the operator's page, metrics and health: {}; `closehook status --open` prints a link that signs in",
        facade.facts.admin.as_deref().unwrap_or_default()
    );
    let option = file.map_or_else(String::new, |file| format!(" -c {}", file.display()));
    if facade.facts.url.is_some() {
        tracing::info!("try it: closehook trigger unsubscribed_email.created{option}");
    }
}
