//! One order at a directory: from the account's key to a certificate, with the proof in between left to whoever can give it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ClientConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls_acme::acme::{
    Account, Auth, AuthStatus, Challenge, ChallengeType, Directory, Identifier, Order, OrderStatus,
};
use sha2::{Digest, Sha256};

use crate::config::Acme;

/// A directory that is not done yet is asked again after so long, and then after longer and longer.
const ASK_AGAIN_FIRST: Duration = Duration::from_millis(500);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(10);

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Waits between two questions.
struct Pace(Duration);

impl Pace {
    async fn rest(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(ASK_AGAIN_MAX);
    }
}

/// Makes sure that whoever asks for a name by the challenge's protocol is shown what proves it ([`proof`]).
#[async_trait]
pub(super) trait Prove: Sync {
    /// When this returns it is shown, wherever the directory may look.
    async fn prove(&self, domain: &str, authorization: &str) -> Result<(), String>;
}

/// Key and chain as PEM text. The directory looks for a name only after it was proven. An error is one sentence.
pub(super) async fn certificate(
    settings: &Acme,
    client: &Arc<ClientConfig>,
    account_key: &[u8],
    prover: &dyn Prove,
) -> Result<Vec<u8>, String> {
    let contact: Vec<String> = settings.email.iter().map(|email| format!("mailto:{email}")).collect();
    let directory = Directory::discover(client, &settings.directory).await.map_err(text)?;
    let account = Account::create_with_keypair(client, directory, &contact, account_key)
        .await
        .map_err(text)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(text)?;
    let mut wanted = CertificateParams::new(settings.domains.clone()).map_err(text)?;
    wanted.distinguished_name = DistinguishedName::new();
    let request = wanted.serialize_request(&key).map_err(text)?;

    let made = account.new_order(client, settings.domains.clone()).await;
    let (url, mut order) = made.map_err(text)?;
    for authorization in &order.authorizations {
        authorize(client, &account, authorization, prover).await?;
    }
    let mut pace = Pace(ASK_AGAIN_FIRST);
    let mut is_asked_for = false;
    loop {
        match &order.status {
            OrderStatus::Valid { certificate } => {
                let chain = account.certificate(client, certificate).await.map_err(text)?;
                return Ok([key.serialize_pem(), "\n".into(), chain].concat().into_bytes());
            }
            OrderStatus::Invalid => return Err(refused_order(&order)),
            OrderStatus::Ready if !is_asked_for => {
                is_asked_for = true;
                let asked = account.finalize(client, &order.finalize, request.der()).await;
                order = asked.map_err(text)?;
                continue;
            }
            // With every name proven it is about to be ready, or to be valid.
            OrderStatus::Pending | OrderStatus::Ready | OrderStatus::Processing => pace.rest().await,
        }
        order = account.order(client, &url).await.map_err(text)?;
    }
}

/// Proves one name.
async fn authorize(client: &Arc<ClientConfig>, account: &Account, url: &str, prover: &dyn Prove) -> Result<(), String> {
    let mut found = account.auth(client, url).await.map_err(text)?;
    if matches!(found.status, AuthStatus::Pending) {
        let Identifier::Dns(domain) = &found.identifier;
        let challenge = found.challenges.iter().find(|one| one.typ == ChallengeType::TlsAlpn01);
        let challenge =
            challenge.ok_or_else(|| format!("the directory does not prove {domain} over TLS (tls-alpn-01)"))?;
        // What is proven with is the same for every kind of challenge; the library says it of this one.
        let alike = [Challenge {
            typ: ChallengeType::Http01,
            url: challenge.url.clone(),
            token: challenge.token.clone(),
            error: None,
        }];
        let (_, authorization) = account.http_01(&alike).map_err(text)?;
        prover.prove(domain, &authorization).await?;
        account.challenge(client, &challenge.url).await.map_err(text)?;
    }
    let mut pace = Pace(ASK_AGAIN_FIRST);
    loop {
        match found.status {
            AuthStatus::Valid => return Ok(()),
            AuthStatus::Pending => pace.rest().await,
            _ => return Err(unproven(&found)),
        }
        found = account.auth(client, url).await.map_err(text)?;
    }
}

fn unproven(found: &Auth) -> String {
    let Identifier::Dns(domain) = &found.identifier;
    let details = found
        .challenges
        .iter()
        .filter_map(|challenge| challenge.error.as_ref()?.detail.as_deref());
    let why = details.collect::<Vec<_>>().join("; ");
    format!("the directory could not see that {domain} is here ({why}): its port 443 must reach server.listen")
}

fn refused_order(order: &Order) -> String {
    let why = order.error.as_ref().and_then(|problem| problem.detail.as_deref());
    let why = why.unwrap_or("it does not say why");
    format!("the directory refused the order: {why}")
}

/// What is shown to a directory that looks whether a name is here (RFC 8737).
pub(super) fn proof(domain: &str, authorization: &str) -> Result<CertifiedKey, String> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(text)?;
    let mut params = CertificateParams::new(vec![domain.to_owned()]).map_err(text)?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(&Sha256::digest(authorization))];
    let made = params.self_signed(&key).map_err(text)?;
    let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signs = rustls::crypto::ring::sign::any_ecdsa_type(&der).map_err(text)?;
    // That the two fit can't be looked at: what proves the name in it is a critical extension that nobody else knows.
    Ok(CertifiedKey::new(vec![made.der().clone()], signs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_directory_is_asked_again_after_longer_and_longer() {
        let mut pace = Pace(ASK_AGAIN_FIRST);
        let mut waited = Vec::new();
        for _ in 0..7 {
            let began = tokio::time::Instant::now();
            pace.rest().await;
            waited.push(began.elapsed().as_millis());
        }
        assert_eq!(waited, [500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
    }
}
