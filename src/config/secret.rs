//! Values that must not be seen: given directly, in a file, in an environment variable or as a systemd credential.

use std::path::PathBuf;

use secrecy::SecretString;

/// Where a secret comes from. Resolved when it is first needed, so that commands that do not need it work without it.
#[derive(Debug, Clone)]
pub enum Secret {
    /// `x = "..."`
    Inline(SecretString),
    /// `x_file = "..."`; read whole, one trailing line end dropped.
    File(PathBuf),
    /// `x_file = "credential:NAME"`: systemd's `$CREDENTIALS_DIRECTORY/NAME`.
    Credential(String),
    /// `x_env = "NAME"`
    Env(String),
}
