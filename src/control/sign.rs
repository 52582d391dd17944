//! Signing as Close would, with a key that is known here: for trying out.

use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Out, Refusal};

/// Signs a body with the first live key, or with that of a subscription.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sign {
    /// What is signed; an empty one only tells where deliveries go.
    pub body: String,
    /// Whose key.
    #[serde(default)]
    pub subscription: Option<String>,
}

/// A signature, and where a delivery with it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// Where deliveries go; `None` without a daemon.
    pub url: Option<String>,
    /// Whose key it is; `None`: it counts for every subscription.
    pub subscription_id: Option<String>,
    /// For `close-sig-timestamp`.
    pub timestamp: String,
    /// For `close-sig-hash`.
    pub hash: String,
}

impl Sign {
    /// With the first live key.
    pub fn first(body: impl Into<String>) -> Sign {
        Sign {
            body: body.into(),
            subscription: None,
        }
    }

    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Signed>) -> Result<(), Refusal> {
        let signed = on.receiving.sign(self.subscription.as_deref(), self.body.as_bytes());
        let (subscription_id, headers) =
            signed.ok_or("there is no signature key: `closehook subscription apply`, or [[close.subscriptions]]")?;
        let signed = Signed {
            url: on.facts.url.clone(),
            subscription_id,
            timestamp: headers.timestamp,
            hash: headers.hash,
        };
        out.say(&signed).await
    }
}
