//! Whose events these are: a data directory belongs to one organization of Close's.
//!
//! The first one that credentials prove to be for is remembered, in `close/organization.json`. Credentials for another one are
//! refused before anything is asked, changed or fetched with them: two customers' events would be in one log, and the keys of
//! subscriptions that the other organization does not have would be retired. Where `/me/` does not say whose credentials are, what
//! is listed with them does: each subscription and each event of Close's names its organization.
//!
//! A delivery is not refused for its organization: it is signed with a key that was made here, where this holds, or with one that
//! a person has put into the configuration for it.

use std::sync::Arc;

use super::api::client::Client;
use super::api::error::Error;
use super::api::identity::{Identity, Organization};
use super::store::CloseStore;

/// Asks whose the credentials are, and refuses those of another organization than this directory's. What is found is remembered
/// where nothing was yet.
pub(super) async fn prove(client: &Client, store: &Arc<CloseStore>) -> Result<Identity, Error> {
    let identity = examine(client, store).await?;
    if let Some(organization) = identity.organization() {
        store.remember_organization(organization.clone()).await?;
    }
    client.set_proved();
    Ok(identity)
}

/// The same, for whoever only looks: nothing is remembered, so the next one who changes something still proves it.
pub(super) async fn examine(client: &Client, store: &CloseStore) -> Result<Identity, Error> {
    let identity = match client.identity().await {
        Ok(identity) => identity,
        // Who they are for is not told to everybody; what else they may do is found out by doing it.
        Err(Error::Forbidden(_) | Error::NotFound(_) | Error::NotClose { status: 404, .. }) => Identity::default(),
        Err(error) => return Err(error),
    };
    judge(&identity, store)?;
    Ok(identity)
}

fn judge(identity: &Identity, store: &CloseStore) -> Result<(), Error> {
    let Some(ours) = store.organization()? else {
        return Ok(());
    };
    let is_ours = |one: &Organization| one.id == ours.id;
    if identity.organizations.is_empty() || identity.organizations.iter().any(is_ours) {
        return Ok(());
    }
    let found: Vec<String> = identity.organizations.iter().map(ToString::to_string).collect();
    Err(refusal(store, &ours, &found.join(", ")))
}

/// Refuses what Close says to be of another organization than this directory's. `id`: as it stands there.
pub(super) fn vouch(store: &CloseStore, id: Option<&str>) -> Result<(), Error> {
    match (store.organization()?, id) {
        (Some(ours), Some(id)) if ours.id != id => Err(refusal(store, &ours, id)),
        _ => Ok(()),
    }
}

fn refusal(store: &CloseStore, ours: &Organization, found: &str) -> Error {
    Error::OtherOrganization {
        found: found.to_owned(),
        ours: ours.to_string(),
        file: store.organization_path().display().to_string(),
    }
}
