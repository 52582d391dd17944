//! One connection to a server.
//!
//! The library reconnects by itself and for ever, keeps what was published meanwhile, and sends it when nobody waits for it any more. So a
//! session has a thread and a runtime of its own, on which all of the library's tasks run: when the connection is lost, or the session is
//! dropped, that runtime ends, and with it whatever the library would still have done. A server that sends without end holds up nobody else,
//! and is cut off.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, HeaderMap, Message, Request, RequestErrorKind, ServerError};
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::Server;
use super::why;
use crate::sync::lock;
use crate::task;

/// What is not read in time is lost: whoever waits for an answer has a deadline, too.
const NOTICES_MAX: usize = 1024;

/// How often it is looked what has come in.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// So much may come in between two looks, and so much more for each message that went out: answers are short.
const INCOMING_MAX: u64 = 4 << 20;
const ANSWER_LEN_MAX: u64 = 4 << 10;

/// A connection on which nothing comes is asked for a sign of life so often; the third that gets none ends it.
const PING_EVERY: Duration = Duration::from_secs(20);

/// The library never sees the end of such a wait: its runtime ends before.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// What the server says of a subject, beside answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Nothing may be published there.
    MayNotPublish(String),
    /// Nothing may be heard there.
    MayNotListen(String),
}

impl Notice {
    /// `Permissions Violation for Publish to "a.b"`, as nats-server says it.
    pub(super) fn parse(said: &str) -> Option<Notice> {
        let (what, quoted) = said.strip_prefix("Permissions Violation for ")?.split_once(" to \"")?;
        let mut subject = String::new();
        let mut chars = quoted.chars();
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => subject.push(chars.next()?),
                c => subject.push(c),
            }
        }
        match what {
            "Publish" => Some(Notice::MayNotPublish(subject)),
            "Subscription" => Some(Notice::MayNotListen(subject)),
            _ => None,
        }
    }
}

/// A thread with a runtime, until this is dropped or its token is cancelled.
struct Life {
    handle: Handle,
    end: CancellationToken,
}

impl Life {
    fn begin() -> std::io::Result<Life> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let life = Life {
            handle: runtime.handle().clone(),
            end: CancellationToken::new(),
        };
        let end = life.end.clone();
        task::begin_thread("nats", move || {
            runtime.block_on(end.cancelled());
            // A name that is being resolved is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(life)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// What is heard on a connection.
struct Heard {
    notices: broadcast::Sender<Notice>,
    /// Why it has ended; `None` while it has not.
    end: watch::Sender<Option<String>>,
    /// What the server said last, that was not about a subject.
    said: Mutex<Option<String>>,
    is_leaving: AtomicBool,
    /// What was asked for, and may come beside short answers, in bytes.
    asked_for: AtomicU64,
    /// Ends the library's tasks.
    token: CancellationToken,
}

impl Heard {
    fn hear(&self, event: Event) {
        match event {
            Event::ServerError(error) => {
                let said = match error {
                    ServerError::Other(said) => said,
                    ServerError::AuthorizationViolation => "Authorization Violation".into(),
                    ServerError::SlowConsumer(_) => "Slow Consumer".into(),
                };
                match Notice::parse(&said) {
                    // Nobody may be waiting.
                    Some(notice) => drop(self.notices.send(notice)),
                    None => *lock(&self.said) = Some(said),
                }
            }
            Event::LameDuckMode => self.is_leaving.store(true, Ordering::Relaxed),
            Event::Disconnected | Event::Closed => {
                let said = lock(&self.said).take();
                self.end(why::ended(said.as_deref()));
            }
            _ => {}
        }
    }

    /// The first reason is the one.
    fn end(&self, why: String) {
        self.end.send_if_modified(|end| {
            let is_first = end.is_none();
            if is_first {
                *end = Some(why);
            }
            is_first
        });
        self.token.cancel();
    }
}

/// An open connection. When it is dropped it is cut, whatever is on its way.
pub struct Session {
    client: Client,
    heard: Arc<Heard>,
    number: usize,
    place: String,
    _life: Life,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Session").field(&self.place).finish()
    }
}

impl Session {
    pub(super) async fn connect(
        server: &Server,
        number: usize,
        options: ConnectOptions,
        within: Duration,
    ) -> Result<Session, String> {
        let life = Life::begin().map_err(|error| format!("no thread can be started: {error}"))?;
        let heard = Arc::new(Heard {
            notices: broadcast::channel(NOTICES_MAX).0,
            end: watch::channel(None).0,
            said: Mutex::default(),
            is_leaving: AtomicBool::new(false),
            asked_for: AtomicU64::new(0),
            token: life.end.clone(),
        });
        let (ears, is_up) = (heard.clone(), Arc::new(AtomicBool::new(false)));
        let was_up = is_up.clone();
        let options = options
            .connection_timeout(within)
            .request_timeout(None)
            .ping_interval(PING_EVERY)
            .reconnect_delay_callback(move |_| {
                if was_up.load(Ordering::Relaxed) {
                    NEVER
                } else {
                    Duration::ZERO
                }
            })
            .event_callback(move |event| {
                ears.hear(event);
                std::future::ready(())
            });
        let address = server.address().clone();
        let connecting = task::begin_on(&life.handle, async move {
            let client = options.connect(address).await;
            is_up.store(true, Ordering::Relaxed);
            client
        });
        let client = match tokio::time::timeout(within, connecting).await {
            Ok(Ok(Ok(client))) => client,
            Ok(Ok(Err(error))) => return Err(why::unconnected(&error)),
            Ok(Err(_)) => return Err("the connection was given up".into()),
            Err(_) => return Err(why::SILENT.into()),
        };
        task::begin_on(&life.handle, watch_incoming(client.clone(), heard.clone()));
        Ok(Session {
            client,
            heard,
            number,
            place: server.place(),
            _life: life,
        })
    }

    /// The library's handle. It works as long as the session is kept.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The server's number in the configuration.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Host and port.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What the server says of subjects from now on.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.heard.notices.subscribe()
    }

    /// The server has said that it is about to stop (lame duck mode).
    pub fn is_leaving(&self) -> bool {
        self.heard.is_leaving.load(Ordering::Relaxed)
    }

    /// Why it has ended, one sentence; `None` while it is open.
    pub fn end(&self) -> Option<String> {
        let end = self.heard.end.borrow().clone();
        // Of many things that are heard at once the library leaves some out.
        end.or_else(|| (self.client.connection_state() != State::Connected).then(|| why::ended(None)))
    }

    /// Waits until it has ended; why.
    pub async fn ended(&self) -> String {
        let mut end = self.heard.end.subscribe();
        loop {
            if let Some(why) = self.end() {
                return why;
            }
            // Whichever comes first; the sender lives as long as this.
            let _ = tokio::time::timeout(LOOK_EVERY, end.changed()).await;
        }
    }

    /// Ends it: whatever is on its way is nobody's any more.
    pub fn give_up(&self, why: &str) {
        self.heard.end(why.to_owned());
    }

    /// Answers of so many bytes are about to be asked for: whoever sends them does not send without end.
    pub fn expect(&self, bytes: u64) {
        self.heard.asked_for.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Asks a question that has one answer (`$JS.API...`).
    pub async fn ask(&self, subject: &str, question: Bytes, within: Duration) -> Result<Message, Unanswered> {
        self.ask_with(subject, HeaderMap::new(), question, within).await
    }

    /// The same with headers: what is published to a stream has one answer, too.
    pub async fn ask_with(
        &self,
        subject: &str,
        headers: HeaderMap,
        question: Bytes,
        within: Duration,
    ) -> Result<Message, Unanswered> {
        let mut notices = self.notices();
        // With an inbox of its own nothing is left behind in the library where no answer comes.
        let inbox = self.client.new_inbox();
        let request = Request::new()
            .payload(question)
            .inbox(inbox.clone())
            .timeout(Some(within));
        let request = if headers.is_empty() {
            request
        } else {
            request.headers(headers)
        };
        let asked = self.client.send_request(subject.to_owned(), request);
        tokio::pin!(asked);
        loop {
            tokio::select! {
                answer = &mut asked => return answer.map_err(|error| match error.kind() {
                    RequestErrorKind::NoResponders => Unanswered::Nobody,
                    _ => Unanswered::Late,
                }),
                notice = notices.recv() => match notice {
                    Ok(Notice::MayNotPublish(denied)) if denied == subject => return Err(Unanswered::MayNotAsk),
                    Ok(Notice::MayNotListen(denied)) if denied == inbox => return Err(Unanswered::MayNotHear(denied)),
                    Err(broadcast::error::RecvError::Closed) => return Err(Unanswered::Late),
                    _ => {}
                },
                _ = self.ended() => return Err(Unanswered::Late),
            }
        }
    }
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unanswered {
    /// Nobody listens there.
    Nobody,
    /// This side may not ask.
    MayNotAsk,
    /// This side may not hear the answer, at this subject.
    MayNotHear(String),
    /// None came in time.
    Late,
}

/// Cuts off a server that sends without end.
async fn watch_incoming(client: Client, heard: Arc<Heard>) {
    let statistics = client.statistics();
    // What holds a handle keeps the library's task alive.
    drop(client);
    let seen = || {
        let came = statistics.in_bytes.load(Ordering::Relaxed);
        (came, statistics.out_messages.load(Ordering::Relaxed))
    };
    let mut before = seen();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = seen();
        let came = now.0.saturating_sub(before.0);
        let answers = now.1.saturating_sub(before.1).saturating_mul(ANSWER_LEN_MAX);
        let may_come = (INCOMING_MAX + answers).saturating_add(heard.asked_for.swap(0, Ordering::Relaxed));
        if came > may_come {
            heard.end("the server sends without end, and was cut off".into());
            return;
        }
        before = now;
    }
}
