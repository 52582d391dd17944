//! A fake, somebody who asks it over HTTP, and whoever it delivers to.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::time::Duration;

use fake_close::{Fake, Options, Settings};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};

pub const HOUR: Duration = Duration::from_secs(3600);
pub const DAY: Duration = Duration::from_secs(86_400);

/// A fake and somebody who asks it.
pub struct Asker {
    pub fake: Fake,
    pub client: Client,
}

/// An answer.
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Asker {
    pub async fn start(settings: Settings) -> Asker {
        let options = Options {
            settings,
            ..Options::default()
        };
        Asker {
            fake: Fake::start(options).await.unwrap(),
            client: Client::builder().no_proxy().build().unwrap(),
        }
    }

    /// With limits that never matter.
    pub async fn calm() -> Asker {
        Asker::start(Settings {
            rate_limit: 1_000_000,
            ..Settings::calm()
        })
        .await
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.fake.base_url());
        let key = self.fake.api_key();
        self.client.request(method, url).basic_auth(key, Some(""))
    }

    pub async fn ask(&self, request: RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default();
        Answer { status, headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(self.request(Method::GET, path)).await
    }

    pub async fn send(&self, method: Method, path: &str, body: &Value) -> Answer {
        let request = self.request(method, path).header("content-type", "application/json");
        self.ask(request.body(body.to_string())).await
    }

    pub async fn control(&self, method: Method, path: &str, body: &Value) -> Answer {
        let url = format!("{}/fake/{path}", self.fake.root_url());
        self.ask(self.client.request(method, url).body(body.to_string())).await
    }

    /// Subscribes a URL to some kinds of events.
    pub async fn subscribe(&self, url: &str, events: &[(&str, &str)]) -> Value {
        let events: Vec<Value> = events
            .iter()
            .map(|(object_type, action)| json!({ "object_type": object_type, "action": action }))
            .collect();
        let answer = self
            .send(Method::POST, "/webhook/", &json!({ "url": url, "events": events }))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }
}

pub fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}"))
}
