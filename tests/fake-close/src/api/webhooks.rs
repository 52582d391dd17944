//! `/webhook/`

use super::{Reply, Request, is_json, parameters, unsupported_media_type};
use crate::access::Caller;
use crate::subscription::{Because, Change, Invalid, Subscription};
use crate::world::World;

impl World {
    pub(super) fn list_subscriptions(&self, request: &Request<'_>) -> Reply {
        let parameters = match parameters(request.query) {
            Ok(parameters) => parameters,
            Err(invalid) => return invalid.into(),
        };
        let number = |name: &str, default: usize| match parameters.get(name) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| Invalid::field(name, "This must be a whole number.")),
        };
        let (limit, skip) = match (
            number("_limit", self.settings().subscriptions_page_max),
            number("_skip", 0),
        ) {
            (Ok(limit), Ok(skip)) => (limit, skip),
            (Err(invalid), _) | (_, Err(invalid)) => return invalid.into(),
        };
        let limit = limit.min(self.settings().subscriptions_page_max);
        let organization = self.organization();
        let all = self.subscriptions().count();
        let shown: Vec<String> = self
            .subscriptions()
            .skip(skip)
            .take(limit)
            .map(|subscription| subscription.show(&organization, false))
            .collect();
        let has_more = skip.saturating_add(limit) < all;
        Reply::json(
            200,
            format!("{{\"has_more\": {has_more}, \"data\": [{}]}}", shown.join(", ")),
        )
    }

    pub(super) fn create_subscription(&mut self, request: &Request<'_>, caller: &Caller) -> Reply {
        if !is_json(request) {
            return unsupported_media_type();
        }
        let organization = self.organization();
        let created = Change::parse(request.body, true, self.settings())
            .and_then(|change| self.subscribe(change, &caller.user_id, caller.api_key_id.clone()));
        match created {
            // The documentation says 201; this is what was seen.
            Ok(subscription) => Reply::json(200, subscription.show(&organization, true)),
            Err(invalid) => invalid.into(),
        }
    }

    pub(super) fn update_subscription(&mut self, request: &Request<'_>, id: &str, caller: &Caller) -> Reply {
        if self.subscription(id).is_none() {
            return Reply::error(404, "Not found.");
        }
        if !is_json(request) {
            return unsupported_media_type();
        }
        let organization = self.organization();
        let show = |subscription: &Subscription| Reply::json(200, subscription.show(&organization, false));
        let change = match Change::parse(request.body, false, self.settings()) {
            Ok(change) => change,
            Err(invalid) => return invalid.into(),
        };
        let is_revoked =
            |before: &Subscription| !before.active && before.paused_because == Some(Because::PermissionRevoked);
        if change.active == Some(true) && self.subscription(id).is_some_and(is_revoked) {
            return Reply::error(403, "You don't have permission to do this.");
        }
        match self.change(id, change, &caller.user_id) {
            Ok(Some(subscription)) => show(subscription),
            Ok(None) => Reply::error(404, "Not found."),
            Err(invalid) => invalid.into(),
        }
    }
}
