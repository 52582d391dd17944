//! Values that must not be seen: given directly, in a file, in an environment variable or as a systemd credential.

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

    /// Fetches the secret. An error is one sentence that never contains it.
    pub fn resolve(&self) -> Result<SecretString, String> {
        match self {
            Secret::Inline(text) => Ok(text.clone()),
            Secret::File(path) => read(path),
            Secret::Credential(name) => {
                let dir = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                    format!("the credential \"{name}\" can't be read: $CREDENTIALS_DIRECTORY is not set; is this run by systemd with LoadCredential?")
                })?;
                read(&Path::new(&dir).join(name))
            }
            Secret::Env(name) => std::env::var(name)
                .map(SecretString::from)
                .map_err(|_| format!("the environment variable {name} is not set")),
        }
    }

    /// Equal exactly if it comes from the same place (for an inline secret: is the same), without showing it.
    pub fn fingerprint(&self) -> String {
        match self {
            Secret::Inline(text) => hex::encode(<sha2::Sha256 as sha2::Digest>::digest(text.expose_secret())),
            other => other.to_string(),
        }
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
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("the secret in {} can't be read: {error}", path.display()))?;
    let text = text.trim_end_matches(['\n', '\r']);
    if text.is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    Ok(SecretString::from(text))
}
