//! What the receiving side tells of itself to whoever asks.

use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;

use crate::control::{Certificate, Receiving, Signer};
use crate::event::SignatureHeaders;
use crate::ingress::verify::Verifier;
use crate::listener::certificates::Certificates;
use crate::telemetry::door::{Door, Received};

/// The live keys and the certificate in force.
#[derive(Debug)]
pub(super) struct Live {
    pub verifier: Arc<ArcSwap<Verifier>>,
    /// `None` without TLS and without a daemon.
    pub tls: Option<Certificates>,
    /// `None` without a daemon.
    pub door: Option<Arc<Door>>,
}

impl Receiving for Live {
    fn keys(&self) -> usize {
        self.verifier.load().live().count()
    }

    fn is_signed(&self, headers: &SignatureHeaders, body: &[u8]) -> bool {
        self.verifier.load().signed(headers, body)
    }

    fn signed_by(&self, headers: &SignatureHeaders, body: &[u8]) -> Option<Signer> {
        let verifier = self.verifier.load_full();
        let (key, is_retired) = verifier.signed_by(headers, body)?;
        Some(Signer {
            subscription: key.subscription_id.clone(),
            is_retired,
        })
    }

    fn unknown_keys(&self) -> Vec<String> {
        self.verifier.load().unknown().cloned().collect()
    }

    fn sign(&self, subscription: Option<&str>, body: &[u8]) -> Option<(Option<String>, SignatureHeaders)> {
        let verifier = self.verifier.load_full();
        let mut keys = verifier.live();
        let key = match subscription {
            // A key without an id counts for every subscription.
            Some(id) => keys
                .clone()
                .find(|key| key.subscription_id.as_deref() == Some(id))
                .or_else(|| keys.find(|key| key.subscription_id.is_none())),
            None => keys.next(),
        }?;
        Some((key.subscription_id.clone(), key.sign(Timestamp::now(), body)))
    }

    fn received(&self) -> Option<Received> {
        self.door.as_ref().map(|door| door.received())
    }

    fn certificate(&self) -> Option<Certificate> {
        Some(match self.tls.as_ref()? {
            Certificates::Files(reloader) => {
                let (file, not_after) = reloader.certificate();
                Certificate {
                    file: file.to_owned(),
                    domains: Vec::new(),
                    not_after,
                    next_renewal: None,
                    last_error: reloader.last_error(),
                }
            }
            Certificates::Acme(keeper) => {
                let progress = keeper.progress();
                Certificate {
                    file: keeper.file().to_owned(),
                    domains: keeper.domains().to_vec(),
                    not_after: progress.not_after,
                    next_renewal: Some(progress.next_order_at),
                    last_error: progress.last_error.clone(),
                }
            }
        })
    }
}
