//! A service account of Google's: a key that signs a JWT (RS256), which is exchanged for a token that is good for an hour (RFC 7523;
//! Google's documentation, "Using OAuth 2.0 for Server to Server Applications").

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use reqwest::Url;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::json;

/// What the token may be used for.
const SCOPE: &str = "https://www.googleapis.com/auth/pubsub";

/// How long a JWT is good: as long as Google allows.
const JWT_SECONDS: i64 = 3600;

/// A service account, from the file that Google gives for a key.
pub(super) struct Account {
    email: String,
    key_id: String,
    key: RsaKeyPair,
    pub token_url: Url,
    /// The project it belongs to.
    pub project: Option<String>,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account")
            .field("email", &self.email)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct KeyFile {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    project_id: Option<String>,
    #[serde(default)]
    private_key_id: String,
    private_key: String,
    client_email: String,
    #[serde(default = "token_url")]
    token_uri: String,
}

fn token_url() -> String {
    "https://oauth2.googleapis.com/token".into()
}

impl Account {
    /// Reads the file's text. An error is one sentence and holds nothing of it.
    pub fn parse(text: &str) -> Result<Account, String> {
        const NOT_ONE: &str =
            "credentials is no service account's key: make one in the console (IAM, Service accounts, Keys, JSON)";
        let file: KeyFile = serde_json::from_slice(text.as_bytes()).map_err(|_| NOT_ONE)?;
        if file.kind != "service_account" {
            return Err(NOT_ONE.into());
        }
        let key = PrivatePkcs8KeyDer::from_pem_slice(file.private_key.as_bytes())
            .map_err(|_| "private_key in credentials is no PKCS #8 key in PEM")?;
        let key = RsaKeyPair::from_pkcs8(key.secret_pkcs8_der())
            .map_err(|_| "private_key in credentials is no RSA key of 2048 bits or more")?;
        let token_url = Url::parse(&file.token_uri)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"));
        Ok(Account {
            email: file.client_email,
            key_id: file.private_key_id,
            key,
            token_url: token_url.ok_or("token_uri in credentials is no URL")?,
            project: file.project_id,
        })
    }

    /// What proves to Google, at a moment, who asks.
    pub fn assertion(&self, now: Timestamp) -> Result<String, String> {
        let header = json!({ "alg": "RS256", "typ": "JWT", "kid": self.key_id });
        let claims = json!({
            "iss": self.email,
            "scope": SCOPE,
            "aud": self.token_url.as_str(),
            "iat": now.as_second(),
            "exp": now.as_second() + JWT_SECONDS,
        });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                signed.as_bytes(),
                &mut signature,
            )
            .map_err(|_| "the key in credentials can't sign")?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// What the token's server answers.
#[derive(Deserialize)]
pub(super) struct Granted {
    pub access_token: String,
    #[serde(default)]
    expires_in: u64,
}

impl Granted {
    /// How long it is used: not to its very end.
    pub fn used_for(&self) -> Duration {
        Duration::from_secs(self.expires_in.saturating_sub(60).max(1))
    }

    /// How long it is good beyond that, where the next one can't be had.
    pub fn good_beyond(&self) -> Duration {
        Duration::from_secs(self.expires_in.saturating_sub(2).min(50))
    }
}
