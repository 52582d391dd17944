//! Whoever webhooks are sent to.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a condition holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < PATIENCE, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub type Received = Arc<Mutex<Vec<(axum::http::HeaderMap, String)>>>;

/// An HTTP server of one's own: answers with the status in the cell, and keeps what it was sent when that is 2xx.
pub struct Receiver {
    pub url: String,
    pub received: Received,
    status: Arc<Mutex<u16>>,
}

impl Receiver {
    pub async fn start(status: u16) -> Receiver {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Receiver {
            url: format!("http://{}/hook", listener.local_addr().unwrap()),
            received: Received::default(),
            status: Arc::new(Mutex::new(status)),
        };
        let (received, status) = (receiver.received.clone(), receiver.status.clone());
        let answer = move |headers: axum::http::HeaderMap, body: String| async move {
            let status = *status.lock().unwrap();
            if (200..300).contains(&status) {
                received.lock().unwrap().push((headers, body));
            }
            axum::http::StatusCode::from_u16(status).unwrap()
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        receiver
    }

    pub fn answer_with(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    pub fn count(&self) -> usize {
        self.received.lock().unwrap().len()
    }
}
