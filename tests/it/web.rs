//! A web server of a test's own, which answers what the test says, or cuts the connection. Keeps what it was asked.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub at: std::time::Instant,
}

impl Asked {
    /// The value of a header, by its name in lower case; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Answer {
    #[allow(
        clippy::unnecessary_wraps,
        reason = "what a test says to a request may be nothing at all"
    )]
    pub fn new(status: u16, body: impl Into<String>) -> Option<Answer> {
        Some(Answer {
            status,
            headers: Vec::new(),
            body: body.into(),
        })
    }
}

type Says = dyn Fn(&Asked) -> Option<Answer> + Send + Sync;

/// See the module's head.
pub struct Web {
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Web {
    /// Answers so; `None` cuts the connection.
    pub async fn start(says: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static) -> Web {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = Web {
            url: format!("http://{}", listener.local_addr().unwrap()),
            asked: Arc::default(),
        };
        let asked = web.asked.clone();
        let says: Arc<Says> = Arc::new(says);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, asked.clone(), says.clone()));
            }
        });
        web
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

async fn serve(mut stream: TcpStream, asked: Arc<Mutex<Vec<Asked>>>, says: Arc<Says>) {
    let mut unread = Vec::new();
    while let Some(request) = read(&mut stream, &mut unread).await {
        let answer = says(&request);
        asked.lock().unwrap().push(request);
        let Some(answer) = answer else { return };
        let headers: String = answer
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let head = format!(
            "HTTP/1.1 {} X\r\ncontent-length: {}\r\n{headers}\r\n",
            answer.status,
            answer.body.len()
        );
        if stream.write_all((head + &answer.body).as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(stream: &mut TcpStream, unread: &mut Vec<u8>) -> Option<Asked> {
    loop {
        if let Some(end) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&unread[..end]).into_owned();
            let mut lines = head.split("\r\n");
            let mut first = lines.next()?.split(' ');
            let headers: Vec<(String, String)> = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            let len = headers.iter().find(|(name, _)| name == "content-length");
            let len: usize = len.map_or(0, |(_, len)| len.parse().unwrap());
            if unread.len() >= end + 4 + len {
                let rest = unread.split_off(end + 4 + len);
                let body = std::mem::replace(unread, rest).split_off(end + 4);
                return Some(Asked {
                    method: first.next()?.to_owned(),
                    path: first.next()?.to_owned(),
                    headers,
                    body,
                    at: std::time::Instant::now(),
                });
            }
        }
        if stream.read_buf(unread).await.ok()? == 0 {
            return None;
        }
    }
}
