//! The keys by which deliveries are told to be Close's: those of the configuration, those of subscriptions that were made here, and
//! one for trying out.

use jiff::SignedDuration;
use secrecy::ExposeSecret;

use crate::close::{self, Account};
use crate::config::{Config, Fault, Secret};
use crate::framefile;
use crate::ingress::verify::{Key, Verifier};

/// Resolves the signature keys; `make`: also makes the local key where it is wanted and missing. Every key that can't be used
/// is a fault.
pub fn verifier(config: &Config, make: bool) -> Result<Verifier, Vec<Fault>> {
    match readable_keys(config, make) {
        (verifier, faults) if faults.is_empty() => Ok(verifier),
        (_, faults) => Err(faults),
    }
}

/// Those of the keys that can be used, and a fault for each of the others, which the verifier knows of as well: of what they may have
/// signed nothing can be said.
pub fn readable_keys(config: &Config, make: bool) -> (Verifier, Vec<Fault>) {
    let (mut keys, mut faults) = (Vec::new(), Vec::new());
    let mut add = |place: String, key: Result<Key, String>| match key {
        Ok(key) => keys.push(key),
        Err(message) => faults.push(Fault { place, message }),
    };
    for subscription in &config.close.subscriptions {
        let text = subscription.signature_key.resolve();
        let key = text.and_then(|text| Key::from_hex(subscription.id.clone(), text.expose_secret()));
        add(format!("{}.signature_key", subscription.place), key);
    }
    if config.close.local_key
        && let Some(key) = local_key(config, make).transpose()
    {
        add("close.local_key".into(), key);
    }
    let signed = |span: crate::config::Span| SignedDuration::try_from(span.0).unwrap_or(SignedDuration::MAX);
    // Damage in the data directory must not keep the daemon from starting: Close sends again what is refused meanwhile.
    let (kept, retired, unkept) = match close::signature_keys(&config.log.dir) {
        Ok((kept, retired)) => (kept, retired, None),
        Err(error) => {
            tracing::error!("the keys of subscriptions made here are not known, their deliveries are refused: {error}");
            (Vec::new(), Vec::new(), Some(error))
        }
    };
    let verifier = Verifier {
        keys,
        kept,
        retired,
        unread: faults.iter().map(ToString::to_string).collect(),
        unkept,
        tolerance: signed(config.server.signature_tolerance),
        skew: signed(config.server.clock_skew),
    };
    (verifier, faults)
}

/// Notes the keys of the configuration in the data directory: when they have left it, what they signed can still be checked. But not those
/// that somebody keeps off the disk, as credentials or in the environment. That this can't be done now keeps nothing from being received.
pub(super) async fn note(config: &Config, account: &Account) {
    let mut keys = Vec::new();
    for subscription in &config.close.subscriptions {
        if matches!(subscription.signature_key, Secret::Credential(_) | Secret::Env(_)) {
            continue;
        }
        keys.extend(
            subscription
                .signature_key
                .resolve()
                .ok()
                .map(|text| (subscription.id.clone(), text)),
        );
    }
    if config.close.local_key {
        let text = Secret::File(local_key_path(config)).resolve();
        keys.extend(text.ok().map(|text| (None, text)));
    }
    if let Err(error) = account.note_keys(&keys).await {
        tracing::warn!(%error, "the configuration's signature keys can't be noted: when one has left it, what it signed can't be checked");
    }
}

fn local_key_path(config: &Config) -> std::path::PathBuf {
    config.log.dir.join("signature_key")
}

/// The key for trying out; `None` where it is not made yet.
fn local_key(config: &Config, make: bool) -> Result<Option<Key>, String> {
    let path = local_key_path(config);
    // One that can't be looked at may be there, and what is signed with it is on its way.
    let is_there = path.try_exists();
    let is_there = is_there.map_err(|error| format!("{} can't be looked at: {error}", path.display()))?;
    if make && !is_there {
        let fail = |error: &dyn std::fmt::Display| format!("{} can't be made: {error}", path.display());
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|error| fail(&error))?;
        framefile::make_dir(&config.log.dir).map_err(|error| fail(&error))?;
        framefile::replace_file(&path, hex::encode(random).as_bytes()).map_err(|error| fail(&error))?;
        tracing::info!("made a signature key for trying out: {}", path.display());
    }
    if !make && !is_there {
        return Ok(None);
    }
    let text = Secret::File(path.clone()).resolve()?;
    let key = Key::from_hex(None, text.expose_secret()).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Some(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SubscriptionKey;

    const KEY: &str = "058bfb6a3d8cfdc4da7c3be5901b16ae11da982b46a25fb2cd7016e97a140a1c";

    fn config(dir: &std::path::Path) -> Config {
        let mut config = Config::load(&crate::config::Layers::new(&[], crate::rules::faults)).unwrap();
        config.log.dir = dir.to_owned();
        config
    }

    fn key(id: &str, secret: Secret) -> SubscriptionKey {
        SubscriptionKey {
            place: "close.subscriptions[0]".to_owned(),
            id: Some(id.to_owned()),
            signature_key: secret,
        }
    }

    /// Who looks without the daemon's credentials still knows the keys that need none of them.
    #[test]
    fn one_key_that_can_not_be_read_leaves_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        let file = dir.path().join("key");
        std::fs::write(&file, KEY).unwrap();
        config.close.subscriptions = vec![
            key("whsub_1", Secret::File(dir.path().join("none"))),
            key("whsub_2", Secret::File(file)),
        ];
        std::fs::create_dir(dir.path().join("close")).unwrap();
        let stored = |id: &str, retired: &str| {
            format!(
                r#"{{"id":"{id}","url":"https://a","signature_key":"{KEY}","made_at":"2024-01-01T00:00:00Z","retired_at":{retired}}}"#
            )
        };
        let text = format!(
            r#"{{"version":1,"keys":[{},{}]}}"#,
            stored("whsub_3", "null"),
            stored("whsub_4", r#""2024-02-01T00:00:00Z""#)
        );
        let keys_file = dir.path().join("close").join("keys.json");
        std::fs::write(&keys_file, text).unwrap();
        let (verifier, faults) = readable_keys(&config, false);
        let ids = |keys: &[Key]| -> Vec<String> { keys.iter().filter_map(|key| key.subscription_id.clone()).collect() };
        assert_eq!(
            (ids(&verifier.keys), ids(&verifier.kept), ids(&verifier.retired)),
            (vec!["whsub_2".into()], vec!["whsub_3".into()], vec!["whsub_4".into()])
        );
        assert_eq!(faults.len(), 1);
        let unknown: Vec<&String> = verifier.unknown().collect();
        assert!(
            unknown[0].contains("close.subscriptions[0].signature_key"),
            "{unknown:?}"
        );
        assert!(
            super::verifier(&config, false).is_err(),
            "a daemon does not start without it"
        );
        // Nor is anything known to be forged where the file of those that were made here is damaged.
        std::fs::write(&keys_file, "{").unwrap();
        assert_eq!(readable_keys(&config, false).0.unknown().count(), 2);
    }
}
