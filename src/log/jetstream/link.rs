//! The way to the servers: one session at a time, renewed when it ends, and questions on it whose answers come in any order.
//!
//! A session whose server says nothing at all while it is asked is given up: its server may be frozen, or cut off from the others, and the
//! next one in the configuration is tried. Nothing here waits longer than whoever asks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::net::nats::{Notice, Session, Way};
use crate::sync::lock;
use crate::task;

/// After a failure nobody connects again for so long.
const REST: Duration = Duration::from_millis(200);

/// A session on which nothing at all came for so long, although something was asked, is given up.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// Nobody listens there: the stream has no leader, or there is no such stream.
    Nobody,
    /// None came in time.
    Late,
    /// There is no session (any more); one sentence.
    Gone(String),
    /// This side may not ask or hear that.
    MayNot(String),
}

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unanswered::Nobody => f.write_str("the stream has no leader: too few of its servers are running"),
            Unanswered::Late => f.write_str("the servers did not answer in time"),
            Unanswered::Gone(why) => f.write_str(why),
            Unanswered::MayNot(subject) => write!(f, "the user may not use the subject {subject}: see its permissions"),
        }
    }
}

/// Who waits for an answer.
#[derive(Debug)]
enum Waiting {
    One(oneshot::Sender<Result<Message, Unanswered>>),
    Many(mpsc::UnboundedSender<Message>),
}

/// A session, and who waits for what on it.
#[derive(Debug)]
pub(super) struct Line {
    session: Session,
    /// What subjects for answers begin with.
    inbox: String,
    next: AtomicU64,
    /// `None`: it has ended.
    waiting: Mutex<Option<HashMap<u64, (String, Waiting)>>>,
    began: Instant,
    /// When something came last, in milliseconds since it began.
    heard: AtomicU64,
}

/// Takes back a question that nobody waits for any more.
struct Asked<'l> {
    line: &'l Line,
    number: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = lock(&self.line.waiting).as_mut() {
            waiting.remove(&self.number);
        }
    }
}

impl Line {
    async fn open(session: Session, announcements: String, heads: mpsc::Sender<Bytes>) -> Result<Arc<Line>, String> {
        let inbox = format!("{}.", session.client().new_inbox());
        let gone = |_| "the connection to the server was lost".to_owned();
        let answers = session.client().subscribe(format!("{inbox}*")).await.map_err(gone)?;
        let heard_heads = session.client().subscribe(announcements).await.map_err(gone)?;
        let line = Arc::new(Line {
            session,
            inbox,
            next: AtomicU64::new(0),
            waiting: Mutex::new(Some(HashMap::new())),
            began: Instant::now(),
            heard: AtomicU64::new(0),
        });
        task::begin(line.clone().listen(answers, heard_heads, heads));
        Ok(line)
    }

    /// Hands on what comes until the session ends.
    async fn listen(
        self: Arc<Line>,
        mut answers: async_nats::Subscriber,
        mut announced: async_nats::Subscriber,
        heads: mpsc::Sender<Bytes>,
    ) {
        let mut notices = self.session.notices();
        let mut may_hear_heads = true;
        let ended = self.session.ended();
        tokio::pin!(ended);
        loop {
            tokio::select! {
                biased;
                answer = answers.next() => match answer {
                    Some(answer) => self.hand_on(answer),
                    None => break,
                },
                head = announced.next(), if may_hear_heads => match head {
                    // Whoever is behind asks the servers once a second as well.
                    Some(head) => drop(heads.try_send(head.payload)),
                    None => may_hear_heads = false,
                },
                notice = notices.recv() => if let Ok(notice) = notice {
                    self.note(&notice);
                },
                _ = &mut ended => break,
            }
        }
        // Those who wait see that their answer can't come any more.
        lock(&self.waiting).take();
    }

    fn hand_on(&self, answer: Message) {
        self.heard
            .store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
        let number = answer
            .subject
            .strip_prefix(&self.inbox)
            .and_then(|number| number.parse().ok());
        let Some(number) = number else { return };
        let mut waiting = lock(&self.waiting);
        let Some(waiting) = waiting.as_mut() else { return };
        match waiting.get(&number) {
            Some((_, Waiting::Many(sender))) => drop(sender.send(answer)),
            Some((_, Waiting::One(_))) => {
                if let Some((_, Waiting::One(sender))) = waiting.remove(&number) {
                    let is_nobody = answer.status == Some(async_nats::StatusCode::NO_RESPONDERS);
                    let answer = if is_nobody { Err(Unanswered::Nobody) } else { Ok(answer) };
                    // Whoever has gone is told nothing.
                    let _ = sender.send(answer);
                }
            }
            None => {}
        }
    }

    /// Tells those who asked where this side may not.
    fn note(&self, notice: &Notice) {
        let mut waiting = lock(&self.waiting);
        let Some(waiting) = waiting.as_mut() else { return };
        let (denied, is_inbox) = match notice {
            Notice::MayNotPublish(subject) => (subject, false),
            Notice::MayNotListen(subject) => (subject, subject.starts_with(&self.inbox)),
        };
        let is_denied = |(_, (subject, _)): &(&u64, &(String, Waiting))| is_inbox || subject == denied;
        let numbers: Vec<u64> = waiting.iter().filter(is_denied).map(|(number, _)| *number).collect();
        for number in numbers {
            if let Some((_, Waiting::One(sender))) = waiting.remove(&number) {
                let _ = sender.send(Err(Unanswered::MayNot(denied.clone())));
            }
        }
    }

    fn register(&self, subject: &str, waiting: Waiting) -> Result<Asked<'_>, Unanswered> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        match lock(&self.waiting).as_mut() {
            Some(all) => all.insert(number, (subject.to_owned(), waiting)),
            None => return Err(self.gone()),
        };
        Ok(Asked { line: self, number })
    }

    fn gone(&self) -> Unanswered {
        let why = self.session.end();
        let why = why.unwrap_or_else(|| "the connection to the server was lost".into());
        Unanswered::Gone(format!("{}: {why}", self.session.place()))
    }

    async fn publish(&self, subject: &str, number: u64, headers: HeaderMap, payload: Bytes) -> Result<(), Unanswered> {
        let reply = format!("{}{number}", self.inbox);
        let client = self.session.client();
        let sent = if headers.is_empty() {
            client.publish_with_reply(subject.to_owned(), reply, payload).await
        } else {
            client
                .publish_with_reply_and_headers(subject.to_owned(), reply, headers, payload)
                .await
        };
        sent.map_err(|error| match error.kind() {
            async_nats::PublishErrorKind::Send => self.gone(),
            other => Unanswered::Gone(other.to_string()),
        })
    }

    /// Sends a message and waits for the one answer to it. Messages that one task sends without waiting are sent in that order.
    pub async fn ask(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
        until: Instant,
    ) -> Result<Message, Unanswered> {
        let (sender, answer) = oneshot::channel();
        let asked = self.register(subject, Waiting::One(sender))?;
        let asked_at = self.began.elapsed();
        let answered = async {
            self.publish(subject, asked.number, headers, payload).await?;
            answer.await.unwrap_or_else(|_| Err(self.gone()))
        };
        let Ok(answer) = tokio::time::timeout_at(until, answered).await else {
            self.give_up_if_silent(asked_at);
            return Err(Unanswered::Late);
        };
        answer
    }

    /// Sends a message that nobody answers.
    pub async fn tell(&self, subject: &str, headers: HeaderMap, payload: Bytes) -> Result<(), Unanswered> {
        let client = self.session.client();
        let sent = client.publish_with_headers(subject.to_owned(), headers, payload).await;
        sent.map_err(|_| self.gone())
    }

    /// Sends a question to which several messages come; each is given to `take`, which says whether it was the last. `bytes`: what may come.
    pub async fn ask_many(
        &self,
        subject: &str,
        question: Bytes,
        bytes: u64,
        until: Instant,
        take: &mut (dyn FnMut(Message) -> bool + Send),
    ) -> Result<(), Unanswered> {
        let (sender, mut answers) = mpsc::unbounded_channel();
        let asked = self.register(subject, Waiting::Many(sender))?;
        let asked_at = self.began.elapsed();
        self.session.expect(bytes);
        let answered = async {
            self.publish(subject, asked.number, HeaderMap::new(), question).await?;
            while let Some(answer) = answers.recv().await {
                if answer.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
                    return Err(Unanswered::Nobody);
                }
                if take(answer) {
                    return Ok(());
                }
            }
            Err(self.gone())
        };
        let Ok(answer) = tokio::time::timeout_at(until, answered).await else {
            self.give_up_if_silent(asked_at);
            return Err(Unanswered::Late);
        };
        answer
    }

    /// What subjects for answers of its own begin with, and what comes there: messages of a consumer keep their own subjects.
    pub async fn listen_apart(&self) -> Option<(String, async_nats::Subscriber)> {
        let inbox = self.session.client().new_inbox();
        let answers = self.session.client().subscribe(format!("{inbox}.*")).await.ok()?;
        Some((inbox, answers))
    }

    /// Asks a question that is answered at such a subject, with so many bytes.
    pub async fn ask_apart(&self, subject: &str, inbox: &str, question: Bytes, bytes: u64) -> Result<(), Unanswered> {
        self.session.expect(bytes + self.max_payload() as u64);
        let client = self.session.client();
        let sent = client
            .publish_with_reply(subject.to_owned(), inbox.to_owned(), question)
            .await;
        sent.map_err(|_| self.gone())
    }

    /// A server that said nothing since then is not asked again.
    fn give_up_if_silent(&self, since: Duration) {
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        if heard <= since && self.began.elapsed().saturating_sub(since) >= SILENCE_MAX {
            self.session.give_up("the server says nothing");
        }
    }

    /// The longest message that its server takes, headers included.
    pub fn max_payload(&self) -> usize {
        self.session.client().max_payload()
    }

    /// The version of its server.
    pub fn version(&self) -> String {
        self.session.client().server_info().version
    }

    pub fn is_open(&self) -> bool {
        lock(&self.waiting).is_some() && !self.session.is_leaving() && self.session.end().is_none()
    }

    fn give_up(&self, why: &str) {
        self.session.give_up(why);
    }
}

/// An open line, or when and why there was none last.
type Current = Result<Arc<Line>, Option<(Instant, String)>>;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Link {
    way: Way,
    announcements: String,
    heads: mpsc::Sender<Bytes>,
    line: tokio::sync::Mutex<Current>,
    /// The server that is tried first.
    first: AtomicUsize,
}

impl Link {
    /// `heads` gets what is said at `announcements`.
    pub fn new(way: Way, announcements: String, heads: mpsc::Sender<Bytes>) -> Link {
        Link {
            way,
            announcements,
            heads,
            line: tokio::sync::Mutex::new(Err(None)),
            first: AtomicUsize::new(0),
        }
    }

    /// An open line. An error is one sentence.
    pub async fn line(&self, until: Instant) -> Result<Arc<Line>, Unanswered> {
        let opened = tokio::time::timeout_at(until, self.open_line(until)).await;
        opened.unwrap_or(Err(Unanswered::Late))
    }

    async fn open_line(&self, until: Instant) -> Result<Arc<Line>, Unanswered> {
        let mut current = self.line.lock().await;
        match &*current {
            Ok(line) if line.is_open() => return Ok(line.clone()),
            Ok(line) => {
                self.first.store(line.session.number() + 1, Ordering::Relaxed);
                *current = Err(None);
            }
            Err(Some((failed, why))) if failed.elapsed() < REST => return Err(Unanswered::Gone(why.clone())),
            Err(_) => {}
        }
        let first = self.first.load(Ordering::Relaxed) % self.way.servers.len().max(1);
        let opened = match self.way.connect(first, until).await {
            Ok(session) => Line::open(session, self.announcements.clone(), self.heads.clone()).await,
            Err(why) => Err(why),
        };
        match opened {
            Ok(line) => {
                *current = Ok(line.clone());
                Ok(line)
            }
            Err(why) => {
                *current = Err(Some((Instant::now(), why.clone())));
                Err(Unanswered::Gone(why))
            }
        }
    }

    /// Asks on an open line.
    pub async fn ask(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
        until: Instant,
    ) -> Result<Message, Unanswered> {
        self.line(until).await?.ask(subject, headers, payload, until).await
    }

    /// Another server is tried next: this one can't reach the stream.
    pub async fn turn(&self, line: &Arc<Line>) {
        let current = self.line.lock().await;
        if let Ok(current) = &*current
            && Arc::ptr_eq(current, line)
        {
            line.give_up("another server is tried");
        }
    }

    /// Ends what is open.
    pub async fn close(&self) {
        let mut current = self.line.lock().await;
        if let Ok(line) = &*current {
            line.give_up("closed");
        }
        *current = Err(None);
    }
}
