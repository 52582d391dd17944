//! `/webhook/`

use super::{Reply, Request, is_json, parameters, unsupported_media_type};
use crate::access::Caller;
use crate::subscription::{Change, Invalid, Subscription};
use crate::world::World;

impl World {
    pub(super) fn list_subscriptions(&self, request: &Request<'_>) -> Reply {
        let parameters = match parameters(request.query, &["_limit", "_skip"]) {
            Ok(parameters) => parameters,
            Err(invalid) => return invalid.into(),
        };
        let number = |name: &str, default: usize| match parameters.iter().find(|(key, _)| key == name) {
            None => Ok(default),
            Some((_, text)) => text
                .parse()
                .map_err(|_| Invalid::field(name, "This must be a whole number.")),
        };
        let (limit, skip) = match (number("_limit", 100), number("_skip", 0)) {
            (Ok(limit), Ok(skip)) => (limit, skip),
            (Err(invalid), _) | (_, Err(invalid)) => return invalid.into(),
        };
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
            Ok(subscription) => Reply::json(201, subscription.show(&organization, true)),
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
        match Change::parse(request.body, false, self.settings()) {
            Ok(change) => match self.change(id, change, &caller.user_id) {
                Some(subscription) => show(subscription),
                None => Reply::error(404, "Not found."),
            },
            Err(invalid) => invalid.into(),
        }
    }
}
