//! A daemon whose log is not there yet: the servers that several nodes share can't be used when it starts.
//!
//! It runs all the same. Senders are told to come again, `/readyz`, `status` and the page say what it waits for, and everything else
//! begins by itself when the servers are there. What is shown meanwhile is made of a log that has nothing and of sinks that nobody drives.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::nodes;
use super::receiving::Live;
use super::roles::{build_account, build_delivery, build_ingress, facts};
use super::signals::{Signals, Told, feed_watchdog, notify, watchdog_every};
use super::start::{Admin, FOR_ADMIN, FOR_LISTENER, Serving, Started, keep_answering};
use crate::admin::auth::Auth;
use crate::age::{Age, Clock};
use crate::config::Config;
use crate::control::configured::InForce;
use crate::control::{Bench, Facade, Facts};
use crate::deliver::Mode;
use crate::ingress::verify::Verifier;
use crate::listener::certificates::Certificates;
use crate::listener::connections::Limits;
use crate::listener::sockets::Listener;
use crate::log::{AbsentLog, Log};
use crate::task;
use crate::telemetry::door::Door;
use crate::telemetry::history::History;

/// Servers that say neither that they can be used nor that they can't are waited for so long without a word.
const SILENT_FOR: Duration = Duration::from_secs(5);

/// What answers while nothing can be kept.
#[derive(Clone, Copy)]
pub(super) struct Front<'a> {
    pub config: &'a Config,
    pub metrics: &'a PrometheusHandle,
    pub age: &'a Arc<Age>,
    pub keys: &'a Arc<ArcSwap<Verifier>>,
    pub on: &'a Handle,
    pub public: &'a Arc<Listener>,
    /// Where the public listener is.
    pub url: &'a str,
    pub admin: &'a Admin,
    pub auth: &'a Arc<Auth>,
    pub in_force: &'a Arc<InForce>,
    pub limits: &'a Limits,
    pub certificates: Option<&'a Certificates>,
}

/// How waiting has ended.
pub(super) enum Waited<T> {
    /// It is there.
    Opened(T),
    /// It is told to stop; what answered meanwhile is still to be stopped.
    Told(Started),
}

impl Front<'_> {
    /// Waits until what is being opened is there, and answers meanwhile if that takes long; `why` changes when it can't be now.
    pub async fn until<T>(
        self,
        opening: impl Future<Output = anyhow::Result<T>>,
        mut why: watch::Receiver<String>,
        signals: &mut Signals,
    ) -> anyhow::Result<Waited<T>> {
        let mut opening = std::pin::pin!(opening);
        why.borrow_and_update();
        tokio::select! {
            opened = &mut opening => return opened.map(Waited::Opened),
            () = until_stopped(signals) => return Ok(Waited::Told(Started::default())),
            _ = why.changed() => {}
            () = tokio::time::sleep(SILENT_FOR) => {}
        }
        let mut answering = self.answer(why).await?;
        notify(&[sd_notify::NotifyState::Ready]);
        let opened = tokio::select! {
            opened = &mut opening => opened,
            () = until_stopped(signals) => return Ok(Waited::Told(answering)),
        };
        // Requests that are open come to their end before everything else begins: no longer than in a stop, which may come in between.
        let within = self.config.server.drain_timeout.0 + FOR_LISTENER + FOR_ADMIN;
        let given_up = tokio::select! {
            given_up = answering.end(within) => given_up,
            () = until_stopped(signals) => return opened.map(|_| Waited::Told(answering)),
        };
        if !given_up.is_empty() {
            let given_up = given_up.join(", ");
            tracing::warn!(
                "some of what answered before the log was there does not end, and is given up on: {given_up}"
            );
        }
        opened.map(Waited::Opened)
    }

    /// Answers from now on, until what is given is stopped.
    async fn answer(self, why: watch::Receiver<String>) -> anyhow::Result<Started> {
        let mut started = Started::default();
        let config = self.config;
        let log: Arc<dyn Log> = Arc::new(AbsentLog::new(why, nodes::servers(config)));
        if let Some(every) = watchdog_every() {
            let log = log.clone();
            started.keep("watchdog", move |_| feed_watchdog(log.clone(), every));
        }
        let account = Arc::new(build_account(config, &log, self.keys, true, self.age, None)?);
        let engine = build_delivery(
            config,
            &log,
            account.names(),
            Mode::Look,
            Clock::of(self.age.clone()),
            None,
        )
        .await?;
        let door = Door::new(self.age.clone());
        let dir = config.log.dir.clone();
        let history = task::begin_blocking(move || History::look(&dir)).await?;
        let facade = Arc::new(Facade {
            log: log.clone(),
            engine,
            receiving: Arc::new(Live {
                verifier: self.keys.clone(),
                tls: self.certificates.cloned(),
                door: Some(door.clone()),
            }),
            account: account.clone(),
            retention: None,
            reload: None,
            links: Some(self.auth.clone()),
            bench: Bench::new(account.names().clone()),
            history: Some(Arc::new(history)),
            configured: Some(self.in_force.clone()),
            others: None,
            facts: Facts {
                url: nodes::receives(config).then(|| self.url.to_owned()),
                admin: Some(self.admin.url()?),
                ..facts(config, true)
            },
        });
        let Serving { stop, tasks } = self.admin.serve(&facade, self.auth, self.metrics.clone(), self.limits);
        started.push("what answers for the admin listener", async move {
            stop.cancel();
            tasks.close();
            tasks.wait().await;
        });
        if nodes::receives(config) {
            let front = build_ingress(config, &log, self.keys, &account, self.limits, &door);
            let (public, certificates) = (self.public.clone(), self.certificates.cloned());
            keep_answering(&mut started, self.on, public, certificates, self.limits.clone(), front);
        }
        Ok(started)
    }
}

/// Waits for the word to stop. There is nothing to be reloaded.
async fn until_stopped(signals: &mut Signals) {
    loop {
        match signals.next().await {
            Told::Stop => return,
            Told::Reload => {
                tracing::warn!(
                    "there is nothing to be reloaded before the log's servers are there: restart it for a change of [log]"
                );
            }
        }
    }
}
