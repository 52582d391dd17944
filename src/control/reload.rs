//! Taking over what the configuration says now, and what came of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Facade;
use super::answers::{Out, Refusal};
use crate::config::Fault;

/// Takes over what the configuration says now, as SIGHUP does, and says how it went.
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "the macro that waits for one of several has it, no code here"
)]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reload {}

/// How a reload went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// What it has come to.
    Reloaded(Box<Reloaded>),
    /// Nothing has changed, for all of this.
    Faults(Vec<Fault>),
    /// None yet: it waits for this.
    Waits(String),
}

impl Outcome {
    /// What has failed of it, for who keeps what was done; `None`: nothing.
    pub(super) fn failure(&self) -> Option<String> {
        match self {
            Outcome::Faults(faults) => {
                let first = faults.first().map(ToString::to_string);
                let more = match faults.len() {
                    0 | 1 => String::new(),
                    many => format!(", and {} more", many - 1),
                };
                Some(format!("nothing has changed: {}{more}", first.unwrap_or_default()))
            }
            Outcome::Reloaded(reloaded) => {
                let error = reloaded.certificate.as_ref()?.error.as_ref()?;
                Some(format!("the new certificate can't be used: {error}"))
            }
            Outcome::Waits(_) => None,
        }
    }
}

/// A reload that takes longer says what it waits for, and whenever that is something else.
const SAY_AFTER: Duration = Duration::from_secs(2);

/// What a reload has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The file that was read; `None`: there is none.
    pub file: Option<PathBuf>,
    /// Tables of the configuration that have changed since the start and take effect at the next one.
    pub restart: Vec<String>,
    /// By name.
    #[serde(default)]
    pub sinks: Changes,
    /// By name.
    #[serde(default)]
    pub rules: Changes,
    /// Keys that count for new deliveries.
    #[serde(default)]
    pub keys: KeyChanges,
    /// The certificate; `None` without TLS.
    #[serde(default)]
    pub certificate: Option<CertificateChange>,
    /// By sink that is not configured (any more), how many events other sinks gave up for it and it has not had.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stranded: BTreeMap<String, u64>,
}

/// What has become of things that have names, each in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Not there before.
    pub added: Vec<String>,
    /// Not there any more.
    pub removed: Vec<String>,
    /// There as before, and another.
    pub changed: Vec<String>,
    /// As before.
    pub unchanged: Vec<String>,
}

impl Changes {
    /// Compares what was with what is: names, each with whatever tells whether it is the same.
    pub fn between<T: PartialEq>(before: &[(String, T)], now: &[(String, T)]) -> Changes {
        let find = |list: &'_ [(String, T)], name: &str| list.iter().position(|(known, _)| known == name);
        let mut changes = Changes::default();
        for (name, value) in now {
            let list = match find(before, name) {
                None => &mut changes.added,
                Some(at) if before[at].1 == *value => &mut changes.unchanged,
                Some(_) => &mut changes.changed,
            };
            list.push(name.clone());
        }
        let is_gone = |name: &&String| find(now, name).is_none();
        let gone = before.iter().map(|(name, _)| name).filter(is_gone);
        changes.removed = gone.cloned().collect();
        changes
    }
}

/// What has become of the keys, which have no names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChanges {
    /// Not there before.
    pub added: u64,
    /// Not there any more.
    pub removed: u64,
    /// How many count now.
    pub live: u64,
}

/// What has become of the certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateChange {
    /// Whether it is another one.
    pub changed: bool,
    /// When the one in force expires; `None` where there is none yet.
    pub not_after: Option<Timestamp>,
    /// Why the new one can't be used; then the old one stays.
    pub error: Option<String>,
}

/// An order to the daemon to reload, with whoever waits for the outcome: what it has come to, or every fault.
pub type ReloadOrder = oneshot::Sender<Result<Reloaded, Vec<Fault>>>;

impl Reload {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Outcome>) -> Result<(), Refusal> {
        let (done, outcome) = oneshot::channel();
        let daemon = on.reload.as_ref().ok_or("no daemon is running")?;
        let stopping = "the daemon is stopping";
        let reloading = async {
            daemon.send(done).await.map_err(|_| stopping)?;
            outcome.await.map_err(|_| stopping)
        };
        let mut reloading = std::pin::pin!(reloading);
        let mut said = None;
        let outcome = loop {
            tokio::select! {
                outcome = &mut reloading => break outcome?,
                () = tokio::time::sleep(SAY_AFTER) => {
                    let waits = on.engine.stopping();
                    let waits = waits.unwrap_or_else(|| "another reload has still to end, or Close's side to take it over".to_owned());
                    if said.as_ref() != Some(&waits) {
                        out.say(&Outcome::Waits(waits.clone())).await?;
                        said = Some(waits);
                    }
                }
            }
        };
        let outcome = match outcome {
            Ok(reloaded) => Outcome::Reloaded(Box::new(reloaded)),
            Err(faults) => Outcome::Faults(faults),
        };
        out.say(&outcome).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_in_one_list() {
        let list = |text: &str| -> Vec<(String, char)> {
            let pairs = text.split_whitespace();
            pairs
                .map(|pair| (pair[..1].to_owned(), pair.chars().nth(1).unwrap()))
                .collect()
        };
        let changes = Changes::between(&list("a1 b1 c1"), &list("b2 d1 c1"));
        let names = |list: &[String]| list.join(",");
        assert_eq!(names(&changes.added), "d");
        assert_eq!(names(&changes.removed), "a");
        assert_eq!(names(&changes.changed), "b");
        assert_eq!(names(&changes.unchanged), "c");
        assert_eq!(Changes::between::<char>(&[], &[]), Changes::default());
    }
}
