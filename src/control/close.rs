//! Close's side: its subscriptions, and backfills from its event log.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Facade;
use super::answers::{Done, Out, Refusal, text};
use super::replay::TELL_EVERY;
use crate::close::{
    self, Applied, Ask as Wanted, BackfillStatus, Counts, Error, EventSpec, JobState, NewByHand, Spec, Standing,
    SubscriptionPlan,
};
use crate::node;

/// Every subscription of the organization.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Subscriptions {
    /// Of others' URLs only scheme and host: the rest may be what lets whoever knows it in.
    #[serde(default)]
    pub masks: bool,
}

/// One subscription, as Close shows it. Without an answer Close knows none of this id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Subscription {
    /// Which.
    pub id: String,
    /// As in [`Subscriptions`].
    #[serde(default)]
    pub masks: bool,
}

/// A subscription in a line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Listed {
    /// `whsub_...`
    pub id: String,
    /// Where it delivers.
    pub url: String,
    /// `active` or `paused`.
    pub status: String,
    /// How it stands to us.
    pub standing: Standing,
    /// As Close writes it.
    pub date_created: Option<String>,
    /// Whether Close checks the URL's certificate.
    pub verify_ssl: Option<bool>,
    /// What it asks for.
    pub events: Vec<EventSpec>,
}

/// What `apply` would change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {}

/// Makes Close's side what the rules want.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Apply {
    /// Replace the subscription, to get a new key.
    pub rotate: bool,
}

/// Makes a subscription of a person's choice.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Create {
    /// What it is.
    pub new: Box<NewByHand>,
}

/// A subscription that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// `whsub_...`
    pub id: String,
}

/// Makes a paused subscription active.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resume {
    /// Which.
    pub id: String,
    /// Only if its deliveries are accepted here: what others have is not for everybody to set going.
    #[serde(default)]
    pub only_ours: bool,
}

/// Stops a subscription.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pause {
    /// Which.
    pub id: String,
}

/// Deletes a subscription and what Close has queued for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Delete {
    /// Which.
    pub id: String,
}

/// What a backfill would do. It reads all of the range at Close, so it is an order.
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "the macro that waits for one of several has it, no code here"
)]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rehearse {
    /// Of which events.
    pub ask: Box<Wanted>,
}

/// How a rehearsal gets on, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rehearsal {
    /// So far.
    Progress {
        /// How much of the range is done, from 0 to 1.
        fraction: f64,
        /// Events read.
        seen: u64,
    },
    /// At the end.
    Done(Rehearsed),
}

/// What a backfill would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsed {
    /// Which events the rules want, for people.
    pub scope: String,
    /// What was asked for, by Close's clock.
    pub spec: Spec,
    /// What would become of the events.
    pub counts: Counts,
}

/// Begins a backfill.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Begin {
    /// Of which events.
    pub ask: Box<Wanted>,
}

/// Stops the newest backfill, or lets it go on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Set {
    /// Whether it goes on.
    pub running: bool,
}

/// How the newest backfill gets on, until it stops.
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "the macro that waits for one of several has it, no code here"
)]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Watch {}

impl Subscriptions {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Listed>) -> Result<(), Refusal> {
        on.account.catch_up().await.map_err(text)?;
        for (subscription, standing) in on.account.subscriptions().await.map_err(text)? {
            let mut listed = listed(subscription, standing);
            if self.masks && standing == Standing::Foreign {
                listed.url = masked(&listed.url);
            }
            out.say(&listed).await?;
        }
        Ok(())
    }
}

/// What everybody may see of a stranger's URL.
fn masked(url: &str) -> String {
    let Ok(parsed) = reqwest::Url::parse(url) else {
        return String::new();
    };
    let port = parsed.port().map_or_else(String::new, |port| format!(":{port}"));
    let host = parsed.host_str().unwrap_or_default();
    format!("{}://{host}{port}/…", parsed.scheme())
}

fn listed(subscription: close::Subscription, standing: Standing) -> Listed {
    Listed {
        id: subscription.id,
        url: subscription.url,
        status: subscription.status,
        standing,
        date_created: subscription.date_created,
        verify_ssl: subscription.verify_ssl,
        events: subscription.events,
    }
}

impl Subscription {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Box<RawValue>>) -> Result<(), Refusal> {
        let (mut shown, standing) = match on.account.subscription(&self.id).await {
            Err(Error::NotFound(_)) => return Ok(()),
            shown => shown.map_err(text)?,
        };
        if self.masks && standing == Standing::Foreign {
            let url = shown["url"].as_str().map(masked);
            shown["url"] = url.into();
        }
        out.say(&serde_json::value::to_raw_value(&shown).map_err(text)?).await
    }
}

impl Plan {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, SubscriptionPlan>) -> Result<(), Refusal> {
        on.account.catch_up().await.map_err(text)?;
        out.say(&on.account.plan().await.map_err(text)?).await
    }
}

impl Apply {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Applied>) -> Result<(), Refusal> {
        let Some(own) = on.pass_to_close(self, &out).await? else {
            return Ok(());
        };
        out.say(&on.account.apply(own.rotate).await.map_err(text)?).await
    }
}

impl Create {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Created>) -> Result<(), Refusal> {
        let Some(own) = on.pass_to_close(self, &out).await? else {
            return Ok(());
        };
        let id = on.account.create(&own.new).await.map_err(text)?;
        out.say(&Created { id }).await
    }
}

impl Resume {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Done>) -> Result<(), Refusal> {
        let Some(own) = on.pass_to_close(self, &out).await? else {
            return Ok(());
        };
        if own.only_ours && on.account.subscription(&own.id).await.map_err(text)?.1 != Standing::Ours {
            return Err(format!(
                "{} delivers to somebody else: who has it makes it active again, or `closehook subscription resume {}`",
                own.id, own.id
            ));
        }
        on.account.set_active(&own.id, true).await.map_err(text)?;
        out.say(&Done::default()).await
    }
}

impl Pause {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Done>) -> Result<(), Refusal> {
        let Some(own) = on.pass_to_close(self, &out).await? else {
            return Ok(());
        };
        on.account.set_active(&own.id, false).await.map_err(text)?;
        out.say(&Done::default()).await
    }
}

impl Delete {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Done>) -> Result<(), Refusal> {
        let Some(own) = on.pass_to_close(self, &out).await? else {
            return Ok(());
        };
        on.account.delete(&own.id).await.map_err(text)?;
        out.say(&Done::default()).await
    }
}

impl Rehearse {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Rehearsal>) -> Result<(), Refusal> {
        let progress = |fraction: f64, counts: Counts| {
            out.mention(&Rehearsal::Progress {
                fraction,
                seen: counts.seen,
            });
        };
        let (spec, counts) = tokio::select! {
            rehearsed = on.account.rehearse(*self.ask, progress) => rehearsed.map_err(text)?,
            () = out.closed() => return Ok(()),
        };
        let scope = on.account.scope();
        out.say(&Rehearsal::Done(Rehearsed { scope, spec, counts })).await
    }
}

impl Begin {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Done>) -> Result<(), Refusal> {
        let Some(own) = on.pass_to_close(self, &out).await? else {
            return Ok(());
        };
        on.account.begin_job(*own.ask).await.map_err(text)?;
        out.say(&Done::default()).await
    }
}

impl Set {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Done>) -> Result<(), Refusal> {
        let Some(own) = on.pass_to_close(self, &out).await? else {
            return Ok(());
        };
        on.account.set_job_running(own.running).await.map_err(text)?;
        out.say(&Done::default()).await
    }
}

impl Watch {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, BackfillStatus>) -> Result<(), Refusal> {
        if let Some(others) = on.others.as_ref().filter(|_| !on.facts.running) {
            // What is known here of Close's side is old, or nothing, and whoever has the lease is at work.
            let holder = others.holder_now(node::CLOSE).await?;
            return Err(holder.map_or_else(
                || "no node looks after Close's side now: the backfill goes on when one does".into(),
                |node| {
                    format!("node \"{node}\" carries the backfill out: `closehook status` shows there how it gets on")
                },
            ));
        }
        on.account.catch_up().await.map_err(text)?;
        if !on.facts.running {
            on.engine.settle_starts().await.map_err(text)?;
        }
        // The daemon carries it out beside everything else; where none runs, the command that began it does, while it watches.
        let work = async {
            if on.facts.running {
                std::future::pending::<()>().await;
            }
            on.account.run_job().await
        };
        let mut work = std::pin::pin!(work);
        loop {
            let ended = tokio::select! {
                result = &mut work => Some(result),
                () = tokio::time::sleep(TELL_EVERY) => None,
                () = out.closed() => return Ok(()),
            };
            let job = on.account.job_status();
            let job = job.ok_or("there is no backfill: begin one with `closehook backfill`")?;
            out.say(&job).await?;
            match ended {
                // A person has stopped it, who knows.
                Some(Ok(()) | Err(Error::Interrupted)) => return Ok(()),
                Some(Err(error)) => return Err(text(error)),
                None if job.job.state != JobState::Running => return Ok(()),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::masked;

    #[test]
    fn of_a_strangers_url_scheme_and_host_are_shown() {
        for (url, shown) in [
            (
                "https://hooks.example.com/in/s3cret?key=1#x",
                "https://hooks.example.com/…",
            ),
            ("http://user:s3cret@example.com:8080/", "http://example.com:8080/…"),
            ("s3cret", ""),
        ] {
            assert_eq!(masked(url), shown);
        }
    }
}
