//! Reading `[close]`: keys, credentials, and what is done at Close.

use serde_json::Value;

use super::table::Table;
use super::{Close, CloseHealth, Credentials, Fault, OAuth, Partial, Reconcile, Span, SubscriptionKey};

/// Close's API.
const CLOSE_API: &str = "https://api.close.com/api/v1/";

pub(super) fn read_close(table: &mut Table<'_>) -> Close {
    let api_key = table.secret("api_key");
    let has_oauth = table.has("oauth");
    let oauth = if has_oauth {
        table.table("oauth", read_oauth)
    } else {
        None
    };
    if api_key.is_some() && has_oauth {
        table.fault("oauth", "is given beside api_key: keep one of them");
    }
    Close {
        subscriptions: table
            .list("subscriptions")
            .into_iter()
            .filter_map(|(place, value)| read_subscription(place, value, table.faults()))
            .collect(),
        local_key: table.or("local_key", false),
        credentials: oauth.map(Credentials::OAuth).or(api_key.map(Credentials::ApiKey)),
        base_url: read_base_url(table),
        push_down: table.or("push_down", true),
        auto_resume: table.or("auto_resume", true),
        partial: table.or("partial", Partial::Hold),
        health: table.table("health", |table| CloseHealth {
            interval: table.within("interval", Span::secs(300), Span::secs(1), Span::secs(86_400)),
        }),
        reconcile: table.table("reconcile", |table| Reconcile {
            interval: table.within("interval", Span::secs(900), Span::secs(1), Span::secs(86_400)),
            // Close recommends to scan the last five minutes again: events can become visible out of order.
            overlap: table.within("overlap", Span::secs(600), Span::secs(300), Span::secs(86_400)),
        }),
    }
}

fn read_oauth(table: &mut Table<'_>) -> Option<OAuth> {
    let client_id = table.required("client_id", "\"oa2client_...\"");
    let mut secret = |key: &str| {
        let secret = table.secret(key);
        if secret.is_none() {
            table.fault(key, format!("is missing: set {key}_file (or {key}_env, or {key})"));
        }
        secret
    };
    let (client_secret, refresh_token) = (secret("client_secret"), secret("refresh_token"));
    Some(OAuth {
        client_id: client_id?,
        client_secret: client_secret?,
        refresh_token: refresh_token?,
    })
}

fn read_base_url(table: &mut Table<'_>) -> reqwest::Url {
    let text: Option<String> = table.optional("base_url");
    // Requests are relative to it, so it has to end with a slash.
    let text = text.map_or_else(
        || CLOSE_API.to_owned(),
        |text| format!("{}/", text.trim_end_matches('/')),
    );
    let parsed = reqwest::Url::parse(&text).ok().filter(reqwest::Url::has_host);
    let url = parsed.unwrap_or_else(|| {
        table.fault("base_url", format!("must be a URL like \"{CLOSE_API}\""));
        fallback_url()
    });
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback) {
        table.fault("base_url", "must be https: the API key travels with every request");
    }
    url
}

/// Stands in for a URL whose fault is reported.
fn fallback_url() -> reqwest::Url {
    #[expect(clippy::expect_used, reason = "a constant that a test reads")]
    reqwest::Url::parse(CLOSE_API).expect("Close's own URL is one")
}

fn read_subscription(place: String, value: Value, faults: &mut Vec<Fault>) -> Option<SubscriptionKey> {
    let mut table = Table::new(&place, value, faults);
    let id: Option<String> = table.optional("id");
    if let Some(id) = id
        .as_deref()
        .filter(|id| id.is_empty() || id.contains(char::is_whitespace))
    {
        table.fault(
            "id",
            format!("\"{id}\" is no subscription's id, like \"whsub_...\": every delivery would be refused; leave it out to take the key for any"),
        );
    }
    let key = table.secret("signature_key");
    if key.is_none() {
        table.fault(
            "signature_key",
            "is missing: set signature_key_file (or signature_key_env, or signature_key)",
        );
    }
    table.finish();
    Some(SubscriptionKey {
        place,
        id,
        signature_key: key?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_id_that_no_subscription_has_is_a_fault() {
        let faults_of = |table: Value| {
            let mut faults = Vec::new();
            read_subscription("close.subscriptions[0]".into(), table, &mut faults);
            faults.into_iter().map(|fault| fault.place).collect::<Vec<_>>()
        };
        for id in ["", " ", "whsub_1 ", "whsub_1\n", "whsub 1"] {
            assert_eq!(
                faults_of(json!({ "id": id, "signature_key": "ab" })),
                ["close.subscriptions[0].id"],
                "{id:?}"
            );
        }
        assert!(faults_of(json!({ "id": "whsub_1", "signature_key": "ab" })).is_empty());
        assert!(faults_of(json!({ "signature_key": "ab" })).is_empty());
    }
}
