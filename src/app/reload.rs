//! Taking over what the configuration says now.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;

use super::keys::{self, verifier};
use crate::admin::auth::Auth;
use crate::close::Account;
use crate::config::{Config, Fault, Layers, Partial, Span};
use crate::control::configured::InForce;
use crate::control::reload::{CertificateChange, Changes, KeyChanges, Reloaded};
use crate::deliver::{self, Engine, SinkChanges};
use crate::ingress::verify::Verifier;
use crate::listener::certificates::Certificates;
use crate::listener::tls;
use crate::rules::RuleSet;
use crate::sync::lock;
use crate::task;

/// What a reload changes.
pub(super) struct Reload {
    pub layers: Layers,
    /// What only a start takes over, as it was at this one.
    pub started_with: [(&'static str, String); 4],
    /// The data directory this process has, whatever the configuration says since.
    pub dir: PathBuf,
    /// The rules in force, as [`rules_of`] has them.
    pub rules: Mutex<Vec<(String, String)>>,
    /// The certificate's file, as [`certificate_of`] had it when it was last taken over.
    pub certificate: Mutex<Option<Vec<u8>>>,
    pub engine: Engine,
    pub verifier: Arc<ArcSwap<Verifier>>,
    pub account: Arc<Account>,
    pub tls: Option<Certificates>,
    pub auth: Arc<Auth>,
    pub in_force: Arc<InForce>,
}

/// Tables of which some keys take effect at a start only, each with what it says there.
pub(super) fn fixed(config: &Config) -> [(&'static str, String); 4] {
    // Close's side takes the one over at once, and whatever verifies the others.
    let at_once = Span(Duration::ZERO);
    let server = crate::config::Server {
        public_url: None,
        signature_tolerance: at_once,
        clock_skew: at_once,
        ..config.server.clone()
    };
    [
        ("server", format!("{server:?}")),
        // Names and tokens are taken over at once.
        ("admin", config.admin.listen.to_string()),
        ("log", format!("{:?}", config.log)),
        ("node", format!("{:?}", config.node)),
    ]
}

/// A configuration as far as this process can take it over: its data directory stays, and so does what is kept there.
fn in_directory(config: Config, dir: &Path) -> Config {
    let log = crate::config::Log {
        dir: dir.to_owned(),
        ..config.log
    };
    Config { log, ..config }
}

/// The rules of a configuration, each with what tells whether it is another.
pub(super) fn rules_of(config: &Config) -> Vec<(String, String)> {
    let rules = config.rules.iter();
    rules.map(|rule| (rule.name.clone(), format!("{rule:?}"))).collect()
}

/// A fault that is about no place of its own.
pub(super) fn fault(message: impl std::fmt::Display) -> Fault {
    Fault {
        place: String::new(),
        message: message.to_string(),
    }
}

/// What tells a key from others, without telling it: whose it is, and what it makes of nothing.
type Fingerprint = (Option<String>, String);

fn fingerprints(verifier: &Verifier) -> Vec<Fingerprint> {
    let keys = verifier.live();
    keys.map(|key| (key.subscription_id.clone(), key.sign(Timestamp::UNIX_EPOCH, b"").hash))
        .collect()
}

fn changed_keys(before: &Verifier, now: &Verifier) -> KeyChanges {
    let (before, now) = (fingerprints(before), fingerprints(now));
    let only = |ones: &[Fingerprint], others: &[Fingerprint]| ones.iter().filter(|one| !others.contains(one)).count();
    KeyChanges {
        added: only(&now, &before) as u64,
        removed: only(&before, &now) as u64,
        live: now.len() as u64,
    }
}

fn changed_sinks(changes: SinkChanges) -> Changes {
    Changes {
        added: changes.added,
        removed: changes.removed,
        changed: changes.changed,
        unchanged: changes.unchanged,
    }
}

impl Reload {
    /// Has the certificate looked at again.
    fn renew(&self, certificates: &Certificates) -> CertificateChange {
        let error = match certificates {
            Certificates::Files(tls) => tls.reload().err(),
            // Somebody may have put right what kept the directory from issuing one.
            Certificates::Acme(keeper) => {
                keeper.try_now();
                None
            }
        };
        if let Some(error) = &error {
            tracing::error!(error, "the new certificate can't be used; the old one stays");
        }
        let now = certificate_of(Some(certificates)).filter(|_| error.is_none());
        let before = lock(&self.certificate).clone();
        let changed = now.is_some() && now != before;
        if changed {
            *lock(&self.certificate) = now;
        }
        CertificateChange {
            changed,
            not_after: certificates.not_after(),
            error,
        }
    }

    /// Takes over what the configuration says now; if anything in it is wrong, nothing changes.
    pub async fn run(&self) -> Result<Reloaded, Vec<Fault>> {
        let reloaded = self.try_reload().await;
        match &reloaded {
            Ok(reloaded) => {
                if !reloaded.restart.is_empty() {
                    let tables = reloaded.restart.join("], [");
                    tracing::warn!("changes in [{tables}] take effect at the next start");
                }
                tracing::info!("configuration reloaded");
            }
            Err(faults) => {
                for fault in faults {
                    tracing::error!("{fault}");
                }
                tracing::error!("the configuration was not reloaded; the old one stays in force");
            }
        }
        reloaded
    }

    async fn try_reload(&self) -> Result<Reloaded, Vec<Fault>> {
        let layers = self.layers.clone();
        let read = move || {
            let text = layers.text()?;
            Config::of_text(&layers, &text).map(|config| (config, text))
        };
        let read = task::begin_blocking(read).await;
        let (config, text) = read.map_err(|error| vec![fault(error)])??;
        let wanted = fixed(&config);
        let config = in_directory(config, &self.dir);
        let new_keys = verifier(&config, true)?;
        if let Some(tls) = &config.server.tls {
            tls::load(tls).map_err(|message| {
                vec![Fault {
                    place: "server.tls".into(),
                    message,
                }]
            })?;
        }
        let rules = Arc::new(RuleSet::of(&config)?);
        let who_may = self.auth.prepare(&config.admin)?;
        // Keys come first: stopping changed sinks takes its time, and no delivery must be refused meanwhile.
        let keys_before = self.verifier.load_full();
        take_keys(&self.verifier, &new_keys);
        self.account.expect(Some(&config));
        let sinks = match self.engine.reload(rules.clone(), &config.sinks).await {
            Ok(sinks) => sinks,
            Err(error) => {
                take_keys(&self.verifier, &keys_before);
                self.account.expect(None);
                return Err(vec![fault(error)]);
            }
        };
        keys::note(&config, &self.account).await;
        self.auth.take(who_may);
        self.in_force.take(&text);
        self.account.reconfigure(&config, &rules).await;
        Box::pin(release_partials(&config, &self.account, &self.engine)).await;
        let certificate = self.tls.as_ref().map(|tls| self.renew(tls));
        let restart = wanted
            .into_iter()
            .zip(&self.started_with)
            .filter(|(now, then)| now != *then)
            .map(|((table, _), _)| table.to_owned())
            .collect();
        let rules = rules_of(&config);
        let rules_before = std::mem::replace(&mut *lock(&self.rules), rules.clone());
        Ok(Reloaded {
            file: self.layers.file.clone(),
            restart,
            sinks: changed_sinks(sinks),
            rules: Changes::between(&rules_before, &rules),
            keys: changed_keys(&keys_before, &self.verifier.load()),
            certificate,
            stranded: self.engine.stranded(),
        })
    }
}

/// Takes over what the configuration says of keys. Those that `subscription apply` makes and retires, perhaps at this moment, are the
/// account's to change.
fn take_keys(verifier: &ArcSwap<Verifier>, keys: &Verifier) {
    verifier.rcu(|current| Verifier {
        kept: current.kept.clone(),
        retired: current.retired.clone(),
        unkept: current.unkept.clone(),
        ..keys.clone()
    });
}

/// The text of the certificate's file; `None` where there is none.
pub(super) fn certificate_of(certificates: Option<&Certificates>) -> Option<Vec<u8>> {
    let file = match certificates? {
        Certificates::Files(tls) => tls.certificate().0,
        Certificates::Acme(keeper) => keeper.file(),
    };
    crate::files::read(file).ok()
}

/// Events that were held because Close withheld their data go out once they are to be dispatched as they are. Each sink has them from
/// this replay as far as its own feed has passed over them; what that has not come to yet, it sends itself.
pub(super) async fn release_partials(config: &Config, account: &Account, engine: &Engine) {
    if config.close.partial != Partial::Dispatch {
        return;
    }
    let released = async {
        account.catch_up().await?;
        let Some((from, to)) = account.held_parts() else {
            return Ok(());
        };
        let spec = deliver::ReplaySpec::of_released(from, to);
        let (spec, planned) = engine.replay_plan(spec, &mut |_| ()).await?;
        // Other nodes have the same configuration, and this one may not have come to noting it the last time.
        let id = format!("rp_parts_{from}");
        let to = engine.replay_start_once(&id, spec, planned).await?;
        account.forget_held_parts(to).await?;
        tracing::info!("events {from} to {to} whose data Close withholds are dispatched as they are (replay {id})");
        anyhow::Ok(())
    };
    if let Err(error) = released.await {
        let error = crate::causes::said(&error);
        tracing::error!("events without their data can't be released: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::verify::Key;

    fn config() -> Config {
        Config::load(&Layers::new(&[], crate::rules::faults)).unwrap()
    }

    #[test]
    fn what_is_in_force_at_once_waits_for_no_start_and_the_rest_is_named() {
        let before = fixed(&config());
        let changed = |change: fn(&mut Config)| {
            let mut config = config();
            change(&mut config);
            let now = fixed(&config);
            let both = now.into_iter().zip(&before);
            both.filter(|(now, then)| now != *then)
                .map(|((table, _), _)| table)
                .collect::<Vec<_>>()
        };
        assert!(changed(|config| config.server.signature_tolerance = Span::secs(1)).is_empty());
        assert!(changed(|config| config.server.clock_skew = Span::secs(1)).is_empty());
        assert!(changed(|config| config.server.public_url = Some("https://a".into())).is_empty());
        assert_eq!(changed(|config| config.server.max_connections = 7), ["server"]);
        assert_eq!(changed(|config| config.log.dir = "/elsewhere".into()), ["log"]);
        assert_eq!(changed(|config| config.node.name = "another".into()), ["node"]);
        assert_eq!(changed(|config| config.node.roles.clear()), ["node"]);
    }

    /// What is said to take effect at the next start makes nothing before that.
    #[test]
    fn no_key_is_made_in_a_directory_that_is_not_this_ones() {
        let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut config = config();
        config.close.local_key = true;
        config.log.dir = other.path().to_owned();
        let keys = verifier(&in_directory(config, own.path()), true).unwrap();
        assert_eq!(keys.keys.len(), 1);
        assert!(own.path().join("signature_key").exists());
        assert!(std::fs::read_dir(other.path()).unwrap().next().is_none());
    }

    fn key(number: u8) -> Key {
        Key::from_hex(None, &format!("{number:02x}").repeat(32)).unwrap()
    }

    /// A4: a reload read the keys before `subscription apply` made another, and takes over what it read after that.
    #[test]
    fn a_key_that_is_made_while_the_configuration_is_read_stays() {
        let verifier = ArcSwap::from_pointee(Verifier::default());
        let read = Verifier {
            keys: vec![key(1)],
            ..Verifier::default()
        };
        verifier.rcu(|current| Verifier {
            kept: vec![key(2)],
            retired: vec![key(3)],
            ..Verifier::clone(current)
        });
        take_keys(&verifier, &read);
        let now = verifier.load();
        assert_eq!((now.keys.len(), now.kept.len(), now.retired.len()), (1, 1, 1));
    }

    /// A4: however the two meet, nothing that either has said is lost.
    #[test]
    fn reloads_and_new_keys_at_once_lose_nothing() {
        let verifier = Arc::new(ArcSwap::from_pointee(Verifier::default()));
        let made = verifier.clone();
        let apply = std::thread::spawn(move || {
            for number in 0..200 {
                made.rcu(|current| {
                    let mut next = Verifier::clone(current);
                    next.kept.push(key(number));
                    next
                });
            }
        });
        let read = Verifier {
            keys: vec![key(1)],
            ..Verifier::default()
        };
        while !apply.is_finished() {
            take_keys(&verifier, &read);
        }
        apply.join().unwrap();
        take_keys(&verifier, &read);
        let now = verifier.load();
        assert_eq!((now.keys.len(), now.kept.len()), (1, 200));
    }
}
