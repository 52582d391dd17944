//! Whom a server must prove to be, and what to do when it does not.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{AlertDescription, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::pem::certificates;

/// Whom a server must prove to be.
#[derive(Debug)]
pub enum Trust {
    /// Nobody: the connection is only encrypted.
    Anybody,
    /// A holder of a certificate that is known, or comes from an authority.
    Known {
        /// The authorities.
        roots: Arc<RootCertStore>,
        /// Certificates that somebody named: a server that has just this one is meant by that, although perhaps no authority
        /// signed it.
        exact: Vec<CertificateDer<'static>>,
        /// Whether it must be that of the host, too.
        name: Name,
    },
}

/// Whether a certificate must be that of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// Whoever has one from the authority is the server.
    Any,
    /// Yes, unless it is exactly the one that somebody named: that one has no other use.
    UnlessExact,
    /// Yes.
    Always,
}

impl Trust {
    /// Trusts these authorities, and what is in a PEM file: authorities, or the server's own certificate. An error is one sentence.
    pub fn also(mut roots: RootCertStore, ca: Option<&Path>, name: Name) -> Result<Trust, String> {
        let exact = ca.map(certificates).transpose()?.unwrap_or_default();
        // What can't be an authority may still be the server's own.
        roots.add_parsable_certificates(exact.iter().cloned());
        Ok(Trust::Known {
            roots: Arc::new(roots),
            exact,
            name,
        })
    }

    /// Judges servers so.
    pub fn verifier(self, provider: Arc<CryptoProvider>) -> Arc<dyn ServerCertVerifier> {
        Arc::new(Verifier { trust: self, provider })
    }
}

/// The authorities that this system trusts; may be none.
pub fn of_system() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}

/// What to say where [`of_system`] has none and they are needed.
pub const NO_AUTHORITIES: &str =
    "the system has no authorities to verify the server with: install ca-certificates, or set ca";

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust::Known { roots, exact, name } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        if exact.iter().any(|known| known == end_entity) {
            if *name == Name::Always {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        if roots.is_empty() {
            return Err(rustls::Error::General(NO_AUTHORITIES.into()));
        }
        if *name != Name::Any {
            let strict = WebPkiServerVerifier::builder_with_provider(roots.clone(), self.provider.clone())
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
            return strict.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The error of TLS among the causes of another one; `None` where it was something else that failed.
pub fn failure<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An I/O error does not name what is in it as its cause, and there may be another one in it.
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = inner
            .map(|inner| inner as &(dyn Error + 'static))
            .or_else(|| cause.source());
    }
    None
}

/// What to do about an error of TLS, for whoever set the keys `ca`, `cert` and `key`: the end of a sentence.
pub fn advice(error: &rustls::Error) -> Option<&'static str> {
    use rustls::CertificateError as Certificate;
    match error {
        rustls::Error::InvalidCertificate(
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. },
        ) => Some("name the server as its certificate does, or set ca to that very certificate"),
        rustls::Error::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            Some("the server needs a new certificate")
        }
        rustls::Error::InvalidCertificate(Certificate::UnknownIssuer) => Some(SET_CA),
        // A certificate that may sign others, and signs nobody but itself.
        rustls::Error::InvalidCertificate(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => Some(SET_CA),
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            Some("the server demands a client's certificate: set cert and key")
        }
        rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied,
        ) => Some("the server does not take this client's certificate, or demands one: see cert and key"),
        _ => None,
    }
}

const SET_CA: &str = "set ca to the authority that signed the server's certificate, or to that very certificate";
