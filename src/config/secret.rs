//! Values that must not be seen: given directly, in a file, in an environment variable or as a systemd credential.

use std::env::VarError;
use std::fmt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

/// Where a secret comes from. Resolved when it is first needed, so that commands that do not need it work without it.
#[derive(Debug, Clone)]
pub enum Secret {
    /// `x = "..."`
    Inline(SecretString),
    /// `x_file = "..."`; read whole, trailing line ends dropped.
    File(PathBuf),
    /// `x_file = "credential:NAME"`: systemd's `$CREDENTIALS_DIRECTORY/NAME`.
    Credential(String),
    /// `x_env = "NAME"`
    Env(String),
}

impl Secret {
    /// What `x_file` says.
    pub fn from_file_key(text: &str) -> Secret {
        match text.strip_prefix("credential:") {
            Some(name) => Secret::Credential(name.to_owned()),
            None => Secret::File(text.into()),
        }
    }

    /// Fetches the secret. An error is one sentence that never contains it. Nothing, or nothing behind the prefix that such
    /// secrets have, is an error: it would be known to everybody.
    pub fn resolve(&self) -> Result<SecretString, String> {
        let secret = self.fetch()?;
        if is_empty(secret.expose_secret()) {
            return Err(self.is_empty());
        }
        Ok(secret)
    }

    fn is_empty(&self) -> String {
        match self {
            Secret::Inline(_) => "it is empty: everybody would know it".into(),
            Secret::Env(name) => format!("the environment variable {name} is empty"),
            other => format!("{other} is empty"),
        }
    }

    /// What is wrong with it as far as it can be seen now, without side effects: that it is there, and empty. A secret that is
    /// not there may be there when it is needed.
    pub fn fault(&self) -> Option<String> {
        let found = self.as_it_is_now()?;
        is_empty(found.expose_secret()).then(|| self.is_empty())
    }

    /// The secret, where looking changes nothing; `None` where it is not there.
    fn as_it_is_now(&self) -> Option<SecretString> {
        let is_there = match self {
            Secret::Inline(_) | Secret::Env(_) => true,
            // What is no file may be gone when it has been read.
            Secret::File(path) => path.is_file(),
            Secret::Credential(name) => {
                std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|dir| Path::new(&dir).join(name).is_file())
            }
        };
        if is_there { self.fetch().ok() } else { None }
    }

    fn fetch(&self) -> Result<SecretString, String> {
        match self {
            Secret::Inline(text) => Ok(text.clone()),
            Secret::File(path) => read(path),
            Secret::Credential(name) => {
                let dir = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                    format!("the credential \"{name}\" can't be read: $CREDENTIALS_DIRECTORY is not set; is this run by systemd with LoadCredential?")
                })?;
                read(&Path::new(&dir).join(name))
            }
            Secret::Env(name) => match std::env::var(name) {
                Ok(text) => Ok(SecretString::from(text)),
                Err(VarError::NotPresent) => Err(format!("the environment variable {name} is not set")),
                Err(VarError::NotUnicode(_)) => Err(format!("the environment variable {name} is not UTF-8 text")),
            },
        }
    }

    /// Equal exactly if it comes from the same place and is, as far as can be seen now, the same, without showing it.
    pub fn fingerprint(&self) -> String {
        let digest = |secret: SecretString| <sha2::Sha256 as sha2::Digest>::digest(secret.expose_secret());
        format!(
            "{self} {}",
            self.as_it_is_now().map(digest).map(hex::encode).unwrap_or_default()
        )
    }
}

impl fmt::Display for Secret {
    /// Where it comes from, never what it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Secret::Inline(_) => f.write_str("(in the configuration)"),
            Secret::File(path) => write!(f, "{}", path.display()),
            Secret::Credential(name) => write!(f, "credential:{name}"),
            Secret::Env(name) => write!(f, "${name}"),
        }
    }
}

fn read(path: &Path) -> Result<SecretString, String> {
    let text = crate::files::read_text(path)
        .map_err(|error| format!("the secret in {} can't be read: {error}", path.display()))?;
    Ok(SecretString::from(text.trim_end_matches(['\n', '\r'])))
}

/// Whether a key is called like a secret, and not like the place of one.
pub fn names_a_secret(key: &str) -> bool {
    const WORDS: [&str; 10] = [
        "secret",
        "token",
        "password",
        "passwd",
        "api_key",
        "apikey",
        "signature_key",
        "private_key",
        "webhook_url",
        "credentials",
    ];
    let key = key.to_ascii_lowercase().replace('-', "_");
    let is_place = key.ends_with("_file") || key.ends_with("_env");
    !is_place && WORDS.iter().any(|word| key.contains(word))
}

/// Whether there is nothing secret in it.
fn is_empty(text: &str) -> bool {
    let text = text.trim();
    text.strip_prefix("whsec_").unwrap_or(text).trim().is_empty()
}
