//! Close's REST API: requests within its rate limit, what answers mean, and who we are there.

pub(super) mod answer;
pub(super) mod budget;
pub(super) mod client;
pub(super) mod error;
pub(super) mod fields;
pub(super) mod identity;
pub(super) mod oauth;
pub(super) mod patience;
pub(super) mod setbacks;
pub(super) mod subscriptions;
