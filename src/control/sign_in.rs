//! Links to the operator's page. Whoever has the data directory may do all that the page can do, so a link gives a session that may act.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Out, Refusal};

/// A link that signs in once, within a minute.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Link {}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linked {
    /// What to open in a browser.
    pub url: String,
    /// When it is of no use any more.
    pub expires_at: Timestamp,
}

/// Who makes links.
pub trait Links: std::fmt::Debug + Send + Sync {
    /// Makes one.
    fn link(&self) -> Result<Linked, Refusal>;
}

impl Link {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Linked>) -> Result<(), Refusal> {
        let links = on
            .links
            .as_ref()
            .ok_or("no daemon is running: there is no page to open")?;
        out.say(&links.link()?).await
    }
}
