//! The keys by which deliveries are told to be Close's: those of the configuration, those of subscriptions that were made here, and
//! one for trying out.

use jiff::SignedDuration;
use secrecy::ExposeSecret;

use crate::close;
use crate::config::{Config, Fault};
use crate::framefile;
use crate::ingress::verify::{Key, Verifier};

/// Resolves the signature keys; `make`: also makes the local key where it is wanted and missing. Every key that can't be used
/// is a fault.
pub fn verifier(config: &Config, make: bool) -> Result<Verifier, Vec<Fault>> {
    let (mut keys, mut faults) = (Vec::new(), Vec::new());
    let mut add = |place: String, key: Result<Key, String>| match key {
        Ok(key) => keys.push(key),
        Err(message) => faults.push(Fault { place, message }),
    };
    for (index, subscription) in config.close.subscriptions.iter().enumerate() {
        let text = subscription.signature_key.resolve();
        let key = text.and_then(|text| Key::from_hex(subscription.id.clone(), text.expose_secret()));
        add(format!("close.subscriptions[{index}].signature_key"), key);
    }
    if config.close.local_key
        && let Some(key) = local_key(config, make).transpose()
    {
        add("close.local_key".into(), key);
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let signed = |span: crate::config::Span| SignedDuration::try_from(span.0).unwrap_or(SignedDuration::MAX);
    // Damage in the data directory must not keep the daemon from starting: Close sends again what is refused meanwhile.
    let (kept, retired) = close::signature_keys(&config.log.dir).unwrap_or_else(|error| {
        tracing::error!("the keys of subscriptions made here are not known, their deliveries are refused: {error}");
        (Vec::new(), Vec::new())
    });
    Ok(Verifier {
        keys,
        kept,
        retired,
        tolerance: signed(config.server.signature_tolerance),
        skew: signed(config.server.clock_skew),
    })
}

/// The key for trying out; `None` where it is not made yet.
fn local_key(config: &Config, make: bool) -> Result<Option<Key>, String> {
    let path = config.log.dir.join("signature_key");
    if make && !path.exists() {
        let fail = |error: &dyn std::fmt::Display| format!("{} can't be made: {error}", path.display());
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|error| fail(&error))?;
        framefile::make_dir(&config.log.dir).map_err(|error| fail(&error))?;
        framefile::replace_file(&path, hex::encode(random).as_bytes()).map_err(|error| fail(&error))?;
        tracing::info!("made a signature key for trying out: {}", path.display());
    }
    if !path.exists() {
        return Ok(None);
    }
    let text = crate::config::Secret::File(path.clone()).resolve()?;
    let key = Key::from_hex(None, text.expose_secret()).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Some(key))
}
