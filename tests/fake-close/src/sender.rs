//! Posts webhooks. All it knows is whether a receiver answered 2xx in time.

use std::collections::BTreeMap;

use futures::StreamExt;
use reqwest::redirect::Policy;

use super::dispatch::Attempt;
use super::moment::Moment;
use super::server::Shared;
use super::signature::{HASH_HEADER, TIMESTAMP_HEADER};
use super::world::Outgoing;

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Delivered,
    Failed,
    /// Nobody listens there.
    Unreachable,
}

/// Two clients: one that verifies certificates and one that does not.
#[derive(Debug)]
pub struct Sender {
    verifying: reqwest::Client,
    trusting: reqwest::Client,
}

impl Sender {
    pub fn new() -> Result<Sender, String> {
        // An error means that the process has a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || reqwest::Client::builder().no_proxy().redirect(Policy::none());
        let build = |builder: reqwest::ClientBuilder| builder.build().map_err(|error| error.to_string());
        Ok(Sender {
            verifying: build(builder())?,
            trusting: build(builder().tls_danger_accept_invalid_certs(true))?,
        })
    }

    /// Sends what is due together and tells the world what came of each. Where a receiver that failed before can't even be
    /// reached, it is asked once for all of them: they would fare no better.
    pub async fn send(&self, shared: &Shared, batch: Vec<Attempt>) {
        let mut by_subscription: BTreeMap<usize, Vec<Attempt>> = BTreeMap::new();
        for attempt in batch {
            by_subscription.entry(attempt.subscription).or_default().push(attempt);
        }
        // A receiver that hangs does not delay those of other subscriptions.
        futures::stream::iter(by_subscription.into_values())
            .for_each_concurrent(None, |attempts| self.send_to_one(shared, attempts))
            .await;
    }

    async fn send_to_one(&self, shared: &Shared, mut attempts: Vec<Attempt>) {
        let (is_failing, parallel) = {
            let world = shared.world();
            let subscription = attempts
                .first()
                .and_then(|attempt| world.subscriptions.get(attempt.subscription)?.as_ref());
            let is_failing = subscription.is_some_and(|subscription| subscription.failing_since.is_some());
            (is_failing, world.settings().parallel)
        };
        if is_failing && attempts.len() > 1 {
            let first = attempts.remove(0);
            if self.send_one(shared, first).await == Outcome::Unreachable {
                for attempt in attempts {
                    shared.settle(attempt, false);
                }
                return;
            }
        }
        futures::stream::iter(attempts)
            .for_each_concurrent(parallel, |attempt| async move {
                self.send_one(shared, attempt).await;
            })
            .await;
    }

    async fn send_one(&self, shared: &Shared, attempt: Attempt) -> Outcome {
        let (outgoing, timeout) = {
            let world = shared.world();
            let outgoing = world.outgoing(&attempt, Moment::wall());
            (outgoing, world.settings().delivery_timeout.0)
        };
        let outcome = match outgoing {
            Some(outgoing) => self.post(outgoing, timeout).await,
            None => Outcome::Failed,
        };
        shared.settle(attempt, outcome == Outcome::Delivered);
        outcome
    }

    async fn post(&self, outgoing: Outgoing, timeout: std::time::Duration) -> Outcome {
        let url = match outgoing.url {
            Ok(url) => url,
            Err(reason) => {
                tracing::debug!("a webhook was not sent: {reason}");
                return Outcome::Unreachable;
            }
        };
        let client = if outgoing.verify_ssl {
            &self.verifying
        } else {
            &self.trusting
        };
        let request = client
            .post(url)
            .timeout(timeout)
            .header("content-type", "application/json")
            .header("user-agent", "Close Webhooks 2.0")
            .header(TIMESTAMP_HEADER, outgoing.signature.timestamp)
            .header(HASH_HEADER, outgoing.signature.hash)
            .body(outgoing.body);
        match request.send().await {
            Ok(answer) => {
                let delivered = answer.status().is_success();
                // Read to its end, so that the connection can be used again.
                let _ = answer.bytes().await;
                if delivered { Outcome::Delivered } else { Outcome::Failed }
            }
            Err(error) if error.is_connect() => Outcome::Unreachable,
            Err(_) => Outcome::Failed,
        }
    }
}
