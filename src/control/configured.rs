//! The configuration in force, for people to read: its file's text as it was taken over, with every secret masked.

use std::path::PathBuf;
use std::sync::Mutex;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Out, Refusal, text};
use crate::config::{Layers, mask};
use crate::sync::lock;
use crate::task;

/// What is in force?
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Show {}

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The file; `None`: there is none.
    pub file: Option<PathBuf>,
    /// Its text as it was when it was taken over, with `(secret)` for every secret.
    pub text: String,
    /// When that was.
    pub taken_at: Timestamp,
    /// The file says something else now, which a reload would take over; `None` where it can't be read.
    pub has_changed: Option<bool>,
    /// Variables of the environment that win over the file, by name.
    pub variables: Vec<String>,
}

/// What is in force, as the daemon keeps it.
#[derive(Debug)]
pub struct InForce {
    layers: Layers,
    taken: Mutex<Taken>,
}

#[derive(Debug)]
struct Taken {
    /// Masked, so that nothing secret is kept here.
    text: String,
    digest: Vec<u8>,
    at: Timestamp,
}

impl Taken {
    fn now(text: &str) -> Taken {
        Taken {
            text: mask::text(text),
            digest: digest(text),
            at: Timestamp::now(),
        }
    }
}

fn digest(text: &str) -> Vec<u8> {
    <sha2::Sha256 as sha2::Digest>::digest(text).to_vec()
}

impl InForce {
    /// At the start.
    pub fn new(layers: &Layers) -> InForce {
        InForce {
            taken: Mutex::new(Taken::now(&layers.text().unwrap_or_default())),
            layers: layers.clone(),
        }
    }

    /// Another text was taken over.
    pub fn take(&self, text: &str) {
        *lock(&self.taken) = Taken::now(text);
    }

    fn shown(&self) -> Shown {
        let now = self.layers.text().ok();
        let taken = lock(&self.taken);
        Shown {
            file: self.layers.file.clone(),
            text: taken.text.clone(),
            taken_at: taken.at,
            has_changed: now.map(|now| digest(&now) != taken.digest),
            variables: self.layers.variables(),
        }
    }
}

impl Show {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Shown>) -> Result<(), Refusal> {
        let in_force = on
            .configured
            .clone()
            .ok_or("no daemon is running: nothing is in force")?;
        let shown = task::begin_blocking(move || in_force.shown()).await;
        out.say(&shown.map_err(text)?).await
    }
}
