//! Taking over what the configuration says now.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::keys::verifier;
use super::roles::{compile, sentences};
use crate::admin::query::Reloaded;
use crate::close::Account;
use crate::config::{Config, Fault, Layers, Partial};
use crate::deliver::{self, Engine};
use crate::ingress::verify::Verifier;
use crate::listener::certificates::Certificates;
use crate::listener::tls;

/// What a reload changes.
pub(super) struct Reload {
    pub layers: Layers,
    /// What only a start takes over, as it was at this one.
    pub started_with: [(&'static str, String); 3],
    pub engine: Engine,
    pub verifier: Arc<ArcSwap<Verifier>>,
    pub account: Arc<Account>,
    pub tls: Option<Certificates>,
}

/// Tables of which some keys take effect at a start only, each with what it says there.
pub(super) fn fixed(config: &Config) -> [(&'static str, String); 3] {
    // Close's side takes it over at once.
    let server = crate::config::Server {
        public_url: None,
        ..config.server.clone()
    };
    [
        ("server", format!("{server:?}")),
        ("admin", format!("{:?}", config.admin)),
        ("log", format!("{:?}", config.log)),
    ]
}

impl Reload {
    /// Takes over what the configuration says now; if anything in it is wrong, nothing changes.
    pub async fn run(&self) -> Result<Reloaded, Vec<String>> {
        let reloaded = self.try_reload().await;
        match &reloaded {
            Ok(reloaded) => {
                if !reloaded.restart.is_empty() {
                    tracing::warn!("changes in [server], [admin] and [log] take effect at the next start");
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

    async fn try_reload(&self) -> Result<Reloaded, Vec<String>> {
        let strings = |faults: Vec<Fault>| sentences(&faults);
        let layers = self.layers.clone();
        let config = tokio::task::spawn_blocking(move || Config::load(&layers)).await;
        let config = config.map_err(|error| vec![error.to_string()])?.map_err(strings)?;
        let new_keys = verifier(&config, true).map_err(strings)?;
        if let Some(tls) = &config.server.tls {
            tls::load(tls).map_err(|error| vec![error])?;
        }
        let rules = compile(&config).map_err(strings)?;
        let rules = Arc::new(rules);
        // Keys come first: stopping changed sinks takes its time, and no delivery must be refused meanwhile.
        let keys_before = self.verifier.load_full();
        take_keys(&self.verifier, &new_keys);
        if let Err(error) = self.engine.reload(rules.clone(), &config.sinks).await {
            take_keys(&self.verifier, &keys_before);
            return Err(vec![error.to_string()]);
        }
        self.account.reconfigure(&config, &rules);
        release_partials(&config, &self.account, &self.engine).await;
        match &self.tls {
            Some(Certificates::Files(tls)) => {
                if let Err(error) = tls.reload() {
                    tracing::error!(error, "the new certificate can't be used; the old one stays");
                }
            }
            // Somebody may have put right what kept the directory from issuing one.
            Some(Certificates::Acme(keeper)) => keeper.try_now(),
            None => {}
        }
        let changed = fixed(&config)
            .into_iter()
            .zip(&self.started_with)
            .filter(|(now, then)| now != *then)
            .map(|((table, _), _)| table.to_owned());
        Ok(Reloaded {
            file: self.layers.file.clone(),
            restart: changed.collect(),
        })
    }
}

/// Takes over what the configuration says of keys. Those that `subscription apply` makes and retires, perhaps at this moment, are the
/// account's to change.
fn take_keys(verifier: &ArcSwap<Verifier>, keys: &Verifier) {
    verifier.rcu(|current| Verifier {
        kept: current.kept.clone(),
        retired: current.retired.clone(),
        ..keys.clone()
    });
}

/// Events that were held because Close withheld their data go out once they are to be dispatched as they are.
pub(super) async fn release_partials(config: &Config, account: &Account, engine: &Engine) {
    if config.close.partial != Partial::Dispatch {
        return;
    }
    let released = async {
        let Some((from, to)) = account.held_parts() else {
            return Ok(());
        };
        let spec = deliver::ReplaySpec::of_partials(from, to);
        let (spec, planned) = engine.replay_plan(spec, &mut |_| ()).await?;
        let id = engine.replay_start(spec, planned).await?;
        account.forget_held_parts().await?;
        tracing::info!("events {from} to {to} whose data Close withholds are dispatched as they are (replay {id})");
        anyhow::Ok(())
    };
    if let Err(error) = released.await {
        tracing::error!("events without their data can't be released: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::verify::Key;

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
