//! Waiting, at a start, for what only servers elsewhere have.

use std::time::Duration;

use tokio::sync::watch;

/// It is tried again after so long, and said that often.
pub(super) const AGAIN_AFTER: Duration = Duration::from_secs(1);
const SAID_EVERY: u32 = 30;

/// What is waited for, as whoever asks is told.
#[derive(Debug)]
pub(super) struct Why(watch::Sender<String>);

impl Default for Why {
    fn default() -> Why {
        Why(watch::Sender::new("the log's servers have not answered yet".into()))
    }
}

impl Why {
    #[cfg(feature = "engine-jetstream")]
    pub fn subscribe(&self) -> watch::Receiver<String> {
        self.0.subscribe()
    }

    /// It can't be had now; `round`: tries before this one.
    pub fn say(&self, round: u32, why: String) {
        if round.is_multiple_of(SAID_EVERY) {
            tracing::error!("{why}; until that is over nothing is received, and it is tried again and again");
        }
        self.0.send_replace(why);
    }

    /// Does what a start needs of the servers, as often as it takes: they were there a moment ago, and may be gone again.
    pub async fn patiently<T, E: std::fmt::Display, F: Future<Output = Result<T, E>>>(
        &self,
        what: &str,
        work: impl Fn() -> F,
    ) -> anyhow::Result<T> {
        for round in 0.. {
            match work().await {
                Ok(done) => return Ok(done),
                Err(error) => self.say(round, format!("{what}: {error}")),
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        anyhow::bail!("{what}")
    }
}
