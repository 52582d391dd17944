//! What is configured, as it may be shown: what the file, the environment and flags say, without any secret.

use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Out, Refusal};
use crate::config;

/// What is in force?
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Show {}

/// What was read when it was last taken over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The file; `None`: there is none.
    pub file: Option<String>,
    /// When it was taken over: at the start, or by the last reload that went well.
    pub taken_at: Timestamp,
    /// Its text, line for line, with each secret masked. What it does not name has its default.
    pub text: String,
    /// Keys that the environment or flags set beside it, each as `key = value` with secrets masked.
    pub overridden: Vec<String>,
}

/// The configuration in force, which a reload replaces.
#[derive(Debug)]
pub struct Configuration(ArcSwap<(Timestamp, Arc<config::Written>)>);

impl Configuration {
    /// As it is at the start.
    pub fn new(written: Arc<config::Written>) -> Configuration {
        Configuration(ArcSwap::from_pointee((Timestamp::now(), written)))
    }

    /// Another one is in force.
    pub fn take_over(&self, written: Arc<config::Written>) {
        self.0.store(Arc::new((Timestamp::now(), written)));
    }
}

impl Show {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Written>) -> Result<(), Refusal> {
        let in_force = on.configuration.0.load_full();
        let (taken_at, written) = &*in_force;
        out.say(&Written {
            file: written.file.as_ref().map(|file| file.display().to_string()),
            taken_at: *taken_at,
            text: written.text.clone(),
            overridden: written.overridden.clone(),
        })
        .await
    }
}
