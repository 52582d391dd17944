//! What signs.

use jiff::Timestamp;
use secrecy::SecretString;

/// What a request is signed with.
#[derive(Clone)]
pub(in crate::sinks) struct Keys {
    pub id: String,
    pub secret: SecretString,
    /// Of keys that are lent.
    pub token: Option<SecretString>,
    /// `None`: they do not end by themselves.
    pub expires: Option<Timestamp>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.id)
    }
}
