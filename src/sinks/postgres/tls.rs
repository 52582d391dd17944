//! TLS to the server, as far as `sslmode` demands it.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::url::SslMode;

/// Reads the certificates and makes what the driver encrypts with. `ca`: only who has a certificate from there is the server;
/// without it the system's authorities count.
pub(super) fn connector(
    mode: SslMode,
    ca: Option<&Path>,
    identity: Option<(&Path, &Path)>,
) -> Result<MakeRustlsConnect, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Verifier::new(mode, ca, &provider)?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates(cert)?;
            let private = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| format!("the private key in {} can't be read: {error}", key.display()))?;
            builder
                .with_client_auth_cert(chain, private)
                .map_err(|error| format!("{} and {}: {error}", cert.display(), key.display()))?
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => Err(format!("{} holds no PEM certificates", path.display())),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("the certificates in {} can't be read: {error}", path.display())),
    }
}

/// Whom a server must prove to be.
#[derive(Debug)]
enum Trust {
    /// Nobody: the connection is only encrypted.
    Anybody,
    /// A holder of a certificate from an authority; with `name` that of the host.
    Authority {
        roots: Arc<RootCertStore>,
        /// The certificates in `ca` themselves: a server that has just this one is meant by whoever put it there, although no
        /// authority signed it.
        exact: Vec<CertificateDer<'static>>,
        name: bool,
    },
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(mode: SslMode, ca: Option<&Path>, provider: &Arc<CryptoProvider>) -> Result<Verifier, String> {
        let name = mode == SslMode::VerifyFull;
        // With a CA at hand libpq's `require` verifies it too.
        let verifies = name || mode == SslMode::VerifyCa || (mode == SslMode::Require && ca.is_some());
        let trust = if verifies {
            let (roots, exact) = match ca {
                Some(path) => {
                    let certificates = certificates(path)?;
                    let mut roots = RootCertStore::empty();
                    roots.add_parsable_certificates(certificates.iter().cloned());
                    (roots, certificates)
                }
                None => (system()?, Vec::new()),
            };
            Trust::Authority {
                roots: Arc::new(roots),
                exact,
                name,
            }
        } else {
            Trust::Anybody
        };
        Ok(Verifier {
            trust,
            provider: provider.clone(),
        })
    }
}

fn system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(
            "the system has no authorities to verify the server with: install ca-certificates, or set ca".into(),
        );
    }
    Ok(roots)
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
        let Trust::Authority { roots, exact, name } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if exact.iter().any(|known| known == end_entity) {
            if *name {
                verify_server_name(&parsed, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        if *name {
            let strict = WebPkiServerVerifier::builder_with_provider(roots.clone(), self.provider.clone())
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
            return strict.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        }
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
