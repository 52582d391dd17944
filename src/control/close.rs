//! Questions and orders about Close's side.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::query::{Answers, Facade, Refusal, say, text};
use crate::close::{Ask, Counts, Error, NewByHand, Standing, Subscription};

/// How often somebody who watches a backfill is told how it gets on.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// A question or an order.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "about", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are those of the commands")]
pub enum CloseQuery {
    Subscriptions,
    Subscription {
        id: String,
    },
    Create {
        new: Box<NewByHand>,
    },
    SetActive {
        id: String,
        active: bool,
    },
    Delete {
        id: String,
    },
    Plan,
    Apply {
        rotate: bool,
    },
    /// What a backfill would do: progress, then the counts.
    Rehearse {
        ask: Box<Ask>,
    },
    Backfill {
        ask: Box<Ask>,
    },
    /// How the newest backfill gets on, until it stops.
    WatchBackfill,
    SetBackfill {
        running: bool,
    },
}

impl Facade {
    /// Answers a question about Close's side.
    pub(super) async fn answer_close(&self, query: CloseQuery, out: &Answers) -> Result<(), Refusal> {
        let account = &self.account;
        match query {
            CloseQuery::Subscriptions => {
                for (subscription, standing) in account.subscriptions().await.map_err(text)? {
                    say(out, listed(&subscription, standing)).await?;
                }
                Ok(())
            }
            CloseQuery::Subscription { id } => say(out, account.subscription(&id).await.map_err(text)?).await,
            CloseQuery::Create { new } => {
                let id = account.create(&new).await.map_err(text)?;
                say(out, json!({ "id": id })).await
            }
            CloseQuery::SetActive { id, active } => account.set_active(&id, active).await.map_err(text),
            CloseQuery::Delete { id } => account.delete(&id).await.map_err(text),
            CloseQuery::Plan => say(out, json!(account.plan().await.map_err(text)?)).await,
            CloseQuery::Apply { rotate } => say(out, json!(account.apply(rotate).await.map_err(text)?)).await,
            CloseQuery::Rehearse { ask } => self.rehearse(*ask, out).await,
            CloseQuery::Backfill { ask } => account.begin_job(*ask).await.map_err(text),
            CloseQuery::WatchBackfill => self.watch_backfill(out).await,
            CloseQuery::SetBackfill { running } => account.set_job_running(running).await.map_err(text),
        }
    }

    async fn rehearse(&self, ask: Ask, out: &Answers) -> Result<(), Refusal> {
        let progress = |fraction: f64, counts: Counts| {
            // Progress may be dropped.
            let _ = out.try_send(json!({ "progress": { "fraction": fraction, "seen": counts.seen } }));
        };
        let (spec, counts) = tokio::select! {
            rehearsed = self.account.rehearse(ask, progress) => rehearsed.map_err(text)?,
            () = out.closed() => return Ok(()),
        };
        say(
            out,
            json!({ "scope": self.account.scope(), "spec": spec, "counts": counts }),
        )
        .await
    }

    async fn watch_backfill(&self, out: &Answers) -> Result<(), Refusal> {
        // The daemon carries it out beside everything else; a command without one does it while it watches.
        let work = async {
            if self.facts.running {
                std::future::pending::<()>().await;
            }
            self.account.run_job().await
        };
        let mut work = std::pin::pin!(work);
        loop {
            let ended = tokio::select! {
                result = &mut work => Some(result),
                () = tokio::time::sleep(TELL_EVERY) => None,
                () = out.closed() => return Ok(()),
            };
            let status = self.account.job_status();
            let status = status.ok_or("there is no backfill: begin one with `closehook backfill`")?;
            let is_over = status["state"] != "running";
            say(out, status).await?;
            match ended {
                // A person has stopped it, who knows.
                Some(Ok(()) | Err(Error::Interrupted)) => return Ok(()),
                Some(Err(error)) => return Err(text(error)),
                None if is_over => return Ok(()),
                None => {}
            }
        }
    }
}

/// A subscription in a line of `subscription list`.
fn listed(subscription: &Subscription, standing: Standing) -> Value {
    json!({
        "id": subscription.id,
        "url": subscription.url,
        "status": subscription.status,
        "standing": standing,
        "date_created": subscription.date_created,
        "verify_ssl": subscription.verify_ssl,
        "events": subscription.events,
    })
}
