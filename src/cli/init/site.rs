//! How things are before anything is done, and how they are to be.

use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde_json::Value;

use super::answers::Answers;
use super::edit::{self, Changes};
use super::files::{self, KeyPlace, Owner};
use super::service::{self, Unit};
use super::{daemon, document};
use crate::cli::{Failure, Global, check};
use crate::config::{Config, Credentials, Layers, Secret};

/// The same configuration with this API key.
pub(super) fn with_key(config: &Config, key: &SecretString) -> Config {
    let mut config = config.clone();
    config.close.credentials = Some(Credentials::ApiKey(Secret::Inline(key.clone())));
    config
}

/// Where a key comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The configuration names it.
    Configured,
    /// It is where it would be kept, and the configuration does not name it: an earlier run was interrupted.
    Beside,
    /// Somebody has just given it.
    New,
}

/// How Close knows us.
#[derive(Debug)]
pub(super) enum Account {
    Key(Key),
    /// The daemon alone may use the chain of tokens.
    OAuth,
}

#[derive(Debug)]
pub(super) struct Key {
    pub secret: SecretString,
    pub place: KeyPlace,
    pub origin: Origin,
    /// What Close says to it.
    pub says: String,
    /// Close knows it; otherwise Close could not be asked.
    pub is_tried: bool,
}

/// How things are before anything is done.
#[derive(Debug)]
pub(super) struct Site {
    /// The configuration, absolute.
    pub file: PathBuf,
    /// What is in it, or what a new one begins with.
    pub text: String,
    pub is_new: bool,
    pub layers: Layers,
    pub config: Config,
    pub unit: Option<Unit>,
    /// Who runs the daemon; `None`: whoever runs this.
    pub owner: Option<Owner>,
    /// What a running daemon says of itself.
    pub status: Option<Value>,
}

/// How the configuration is to be.
#[derive(Debug)]
pub(super) struct Draft {
    pub text: String,
    pub config: Config,
    /// Places that change.
    pub places: Vec<String>,
    /// `[[close.subscriptions]]` that are taken out.
    pub dead_keys: usize,
}

impl Site {
    pub async fn find(global: &Global) -> Result<Site, Failure> {
        let file = std::path::absolute(&global.config)?;
        let (text, is_new) = match crate::files::read_text(&file) {
            Ok(text) => (text, false),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (edit::new_text()?, true),
            Err(error) => {
                let remedy = match error.kind() {
                    std::io::ErrorKind::PermissionDenied => ": run this as root",
                    _ => "",
                };
                return Err(Failure::Work(format!(
                    "{} can't be read ({error}){remedy}",
                    file.display()
                )));
            }
        };
        let unit = service::find(&file).await;
        let mut layers = Layers {
            file: Some(file.clone()),
            ..global.layers()
        };
        for (name, value) in unit.iter().flat_map(|unit| &unit.environment) {
            let variable = layers.environment.entry(name.into());
            variable.or_insert_with(|| value.into());
        }
        let config = Config::of_text(&layers, &text).map_err(Failure::Faults)?;
        let status = daemon::status(&config).await?;
        let user = unit.as_ref().and_then(|unit| unit.user.as_deref());
        let owner = match user {
            Some(user) => std::fs::read_to_string("/etc/passwd")
                .ok()
                .and_then(|passwd| files::user_in(&passwd, user)),
            None => files::owner(&config.log.dir),
        };
        Ok(Site {
            file,
            text,
            is_new,
            layers,
            config,
            unit,
            owner,
            status,
        })
    }

    /// The key that is there already.
    pub fn kept_key(&self, place: &KeyPlace) -> Option<(SecretString, Origin)> {
        let configured = match &self.config.close.credentials {
            Some(Credentials::ApiKey(secret)) => secret.resolve().ok(),
            _ => None,
        };
        let beside = || Secret::File(place.path.clone()).resolve().ok();
        match configured {
            Some(key) => Some((key, Origin::Configured)),
            // What systemd hands to the daemon only is where it hands it from.
            None if place.say.is_none() => Some((beside()?, Origin::Configured)),
            None => Some((beside()?, Origin::Beside)),
        }
    }

    /// `[[close.subscriptions]]` whose keys do not exist: with them no daemon starts, and one that runs has them.
    fn dead_keys(&self) -> Vec<usize> {
        if self.status.is_some() {
            return Vec::new();
        }
        let is_gone = |path: &Path| path.try_exists().is_ok_and(|exists| !exists);
        let is_dead = |secret: &Secret| match secret {
            Secret::File(path) => is_gone(path),
            Secret::Credential(name) => {
                let place = KeyPlace::named(name, &self.file);
                secret.resolve().is_err() && is_gone(&place)
            }
            Secret::Inline(_) | Secret::Env(_) => false,
        };
        let keys = self.config.close.subscriptions.iter().enumerate();
        keys.filter(|(_, key)| is_dead(&key.signature_key))
            .map(|(index, _)| index)
            .collect()
    }

    /// The configuration with the answers in it, checked as `closehook check` does: it may be no worse than before.
    pub fn draft(&self, answers: &Answers, account: &Account) -> Result<Draft, Failure> {
        let changes = Changes {
            api_key_file: match account {
                Account::Key(key) if key.origin != Origin::Configured => key.place.say.clone(),
                _ => None,
            },
            dead_keys: self.dead_keys(),
        };
        let text = edit::edit(&self.text, &self.config, answers, &changes)?;
        let config = Config::of_text(&self.layers, &text).map_err(Failure::Faults)?;
        let known = check::faults(&self.config);
        let new: Vec<_> = check::faults(&config)
            .into_iter()
            .filter(|fault| !known.contains(fault))
            .collect();
        if !new.is_empty() {
            return Err(Failure::Faults(new));
        }
        let (before, after) = (document::values(&self.text)?, document::values(&text)?);
        let differs = |name: &&String| before.get(*name) != after.get(*name);
        let mut places: Vec<String> = before.keys().chain(after.keys()).filter(differs).cloned().collect();
        places.sort();
        places.dedup();
        Ok(Draft {
            text,
            config,
            places,
            dead_keys: changes.dead_keys.len(),
        })
    }
}
