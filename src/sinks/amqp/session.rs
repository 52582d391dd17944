//! A connection to the server with one channel, on which each message is confirmed.
//!
//! What is published is waited for here: a message is taken when the server has confirmed it and has not sent it back before. Which
//! one was sent back is known by its message id; confirmations carry the number of the message on the channel.
//!
//! Of what was not confirmed when a session ends nobody knows whether the server has it. The server may block a session (its memory or
//! disk is short): then it reads nothing more, and takes what it was sent once there is room again. So such a session is kept, and
//! nothing else is sent meanwhile.

mod run;

use std::sync::Arc;
use std::time::Duration;

use amq_protocol::frame::AMQPFrame;
use amq_protocol::protocol::{AMQPClass, basic, channel, confirm, connection, exchange, queue};
use amq_protocol::types::{AMQPValue, FieldTable, LongString, ShortString};
use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, timeout_at};

use self::run::Run;
use super::message::{CHANNEL, Message};
use super::wire::{FRAME_AROUND, Wire};

/// The server and we say something at least that often, or as often as it wants.
const BEAT: Duration = Duration::from_secs(20);

/// And no more often than this.
const BEAT_MIN: Duration = Duration::from_secs(4);

/// So much is put into the wire before it is looked what the server says.
const PUT_LEN: usize = 64 << 10;

/// What is read of a session that has nothing to do, at a time.
const TURNS_MAX: usize = 64;

/// Longer frames than this are of no use here.
const FRAME_LEN_WANTED: usize = 128 << 10;

/// Who we are.
pub(super) enum Login {
    /// With a name and a password.
    Plain { user: String, password: SecretString },
    /// As our certificate says.
    External,
}

/// Where the server is.
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) vhost: String,
    pub(super) login: Login,
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// What the connection is called in the server's lists.
    pub(super) name: String,
}

/// What the server said when it closed the channel or the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) code: u16,
    pub(super) text: String,
    /// Whether it was a message that it did not take.
    pub(super) by_publish: bool,
}

/// Why a session can't go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// It did not answer in time.
    Late,
    /// It reads nothing more, for this reason. The session is good again when it says so.
    Blocked(String),
    /// The channel is closed; the session is good.
    Channel(Closed),
    /// The connection is closed.
    Connection(Closed),
    /// The connection is gone: one sentence.
    Lost(String),
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The server has it.
    Taken,
    /// No queue wants it.
    Returned,
    /// The server has not taken it.
    Refused,
}

/// A message that is coming back.
struct Returning {
    id: Option<String>,
    /// Bytes of its body that are still to come; `None` until its head has come.
    left: Option<u64>,
}

/// An open connection.
pub(super) struct Session {
    wire: Wire,
    /// The number of the next message on the channel; `None` while there is no channel.
    next: Option<u64>,
    blocked: Option<String>,
    returning: Option<Returning>,
    beat: Duration,
}

type Method = AMQPClass;

fn on_connection(method: connection::AMQPMethod) -> AMQPFrame {
    AMQPFrame::Method(0, AMQPClass::Connection(method))
}

fn on_channel(class: AMQPClass) -> AMQPFrame {
    AMQPFrame::Method(CHANNEL, class)
}

impl Session {
    /// Connects, says who we are, and opens the channel.
    pub(super) async fn open(server: &Server, until: Instant) -> Result<Session, End> {
        let opened = timeout_at(until, Session::greet(server)).await;
        let mut session = opened.map_err(|_| End::Late)??;
        session.open_channel(until).await?;
        Ok(session)
    }

    async fn greet(server: &Server) -> Result<Session, End> {
        let wire = Wire::connect(&server.host, server.port, server.tls.clone()).await;
        let mut session = Session {
            wire: wire.map_err(End::Lost)?,
            next: None,
            blocked: None,
            returning: None,
            beat: BEAT,
        };
        session.wire.put(b"AMQP\x00\x00\x09\x01");
        let Method::Connection(connection::AMQPMethod::Start(start)) = session.answer().await? else {
            return Err(odd());
        };
        session.put(&on_connection(connection::AMQPMethod::StartOk(introduction(
            server, &start,
        )?)))?;
        let Method::Connection(connection::AMQPMethod::Tune(tune)) = session.answer().await? else {
            return Err(odd());
        };
        session.agree(&tune)?;
        let vhost = ShortString::try_new(server.vhost.as_str()).map_err(|error| End::Lost(error.to_string()))?;
        session.put(&on_connection(connection::AMQPMethod::Open(connection::Open {
            virtual_host: vhost,
        })))?;
        match session.answer().await? {
            Method::Connection(connection::AMQPMethod::OpenOk(_)) => Ok(session),
            _ => Err(odd()),
        }
    }

    /// Takes what the server proposes, within what we want.
    fn agree(&mut self, tune: &connection::Tune) -> Result<(), End> {
        let proposed = match tune.frame_max {
            0 => usize::MAX,
            len => len as usize,
        };
        let len = proposed.clamp(4096, FRAME_LEN_WANTED);
        self.wire.frame_len_max = len;
        let seconds = match u64::from(tune.heartbeat) {
            0 => BEAT.as_secs(),
            seconds => seconds.clamp(BEAT_MIN.as_secs(), BEAT.as_secs()),
        };
        self.beat = Duration::from_secs(seconds);
        self.put(&on_connection(connection::AMQPMethod::TuneOk(connection::TuneOk {
            channel_max: tune.channel_max,
            frame_max: len as u32,
            heartbeat: seconds as u16,
        })))
    }

    /// Opens the channel where there is none (any more).
    pub(super) async fn open_channel(&mut self, until: Instant) -> Result<(), End> {
        if self.next.is_some() {
            return Ok(());
        }
        let opened = timeout_at(until, async {
            self.put(&on_channel(AMQPClass::Channel(channel::AMQPMethod::Open(
                channel::Open {},
            ))))?;
            let Method::Channel(channel::AMQPMethod::OpenOk(_)) = self.answer().await? else {
                return Err(odd());
            };
            let select = confirm::AMQPMethod::Select(confirm::Select { nowait: false });
            self.put(&on_channel(AMQPClass::Confirm(select)))?;
            match self.answer().await? {
                Method::Confirm(confirm::AMQPMethod::SelectOk(_)) => Ok(()),
                _ => Err(odd()),
            }
        });
        opened.await.map_err(|_| End::Late)??;
        self.next = Some(1);
        Ok(())
    }

    /// Whether there is such an exchange. Makes none.
    pub(super) async fn look_for_exchange(&mut self, name: &str, until: Instant) -> Result<(), End> {
        let name = ShortString::try_new(name).map_err(|error| End::Lost(error.to_string()))?;
        let declare = exchange::AMQPMethod::Declare(exchange::Declare {
            exchange: name,
            kind: "direct".into(),
            passive: true,
            durable: false,
            auto_delete: false,
            internal: false,
            nowait: false,
            arguments: FieldTable::default(),
        });
        self.look(AMQPClass::Exchange(declare), until).await
    }

    /// Whether there is such a queue. Makes none.
    pub(super) async fn look_for_queue(&mut self, name: &str, until: Instant) -> Result<(), End> {
        let name = ShortString::try_new(name).map_err(|error| End::Lost(error.to_string()))?;
        let declare = queue::AMQPMethod::Declare(queue::Declare {
            queue: name,
            passive: true,
            durable: false,
            exclusive: false,
            auto_delete: false,
            nowait: false,
            arguments: FieldTable::default(),
        });
        self.look(AMQPClass::Queue(declare), until).await
    }

    async fn look(&mut self, declare: AMQPClass, until: Instant) -> Result<(), End> {
        self.put(&on_channel(declare))?;
        match timeout_at(until, self.answer()).await.map_err(|_| End::Late)?? {
            Method::Exchange(exchange::AMQPMethod::DeclareOk(_)) | Method::Queue(queue::AMQPMethod::DeclareOk(_)) => {
                Ok(())
            }
            _ => Err(odd()),
        }
    }

    /// Publishes messages in their order, and waits for what becomes of each. What had its fate before an end has it all the same.
    pub(super) async fn publish(
        &mut self,
        messages: &[Message],
        until: Instant,
    ) -> (Vec<Option<Fate>>, Result<(), End>) {
        let mut run = Run::new(messages);
        let ended = match self.open_channel(until).await {
            Ok(()) => self.publish_all(&mut run, until).await,
            Err(end) => Err(end),
        };
        (run.fates, ended)
    }

    async fn publish_all(&mut self, run: &mut Run<'_>, until: Instant) -> Result<(), End> {
        run.first = self.next.unwrap_or(1);
        loop {
            while let Some(frame) = self.wire.frame().map_err(End::Lost)? {
                self.take(frame, Some(run))?;
            }
            if run.settled == run.messages.len() {
                return Ok(());
            }
            self.put_more(run);
            if self.turn_until(until).await? {
                continue;
            }
            return Err(match &self.blocked {
                Some(reason) => End::Blocked(reason.clone()),
                None => End::Late,
            });
        }
    }

    fn put_more(&mut self, run: &mut Run<'_>) {
        while self.blocked.is_none() && self.wire.unsent() < PUT_LEN {
            let Some(message) = run.messages.get(run.sent) else {
                return;
            };
            self.wire.put(&message.head);
            for part in message.body.chunks(self.wire.frame_len_max - FRAME_AROUND) {
                let [one, other] = CHANNEL.to_be_bytes();
                self.wire.put(&[3, one, other]);
                self.wire.put(&(part.len() as u32).to_be_bytes());
                self.wire.put(part);
                self.wire.put(&[0xce]);
            }
            run.sent += 1;
            self.next = self.next.map(|next| next + 1);
        }
    }

    /// Turns the wire once; `false`: the time is over. The server hears of us meanwhile, and is lost if it is silent for too long.
    async fn turn_until(&mut self, until: Instant) -> Result<bool, End> {
        self.beat()?;
        let now = Instant::now();
        if now >= until {
            return Ok(false);
        }
        let turned = timeout_at(until.min(now + self.beat / 4), self.wire.turn()).await;
        if let Ok(turned) = turned {
            turned.map_err(End::Lost)?;
        }
        Ok(true)
    }

    /// Says something where nothing was said for a while.
    fn beat(&mut self) -> Result<(), End> {
        if self.wire.read_at.elapsed() > self.beat * 2 {
            return Err(End::Lost("the server is silent: the connection is given up".into()));
        }
        if self.wire.unsent() == 0 && self.wire.written_at.elapsed() > self.beat / 2 {
            self.put(&AMQPFrame::Heartbeat)?;
        }
        Ok(())
    }

    /// Looks after a session that has nothing to do, without waiting for anybody; `false`: it is gone.
    pub(super) fn tend(&mut self) -> bool {
        for _ in 0..TURNS_MAX {
            match self.wire.turn_now() {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => return false,
            }
            loop {
                match self.wire.frame() {
                    Ok(Some(frame)) => match self.take(frame, None) {
                        // The next channel is opened when there is something to publish.
                        Ok(_) | Err(End::Channel(_)) => {}
                        Err(_) => return false,
                    },
                    Ok(None) => break,
                    Err(_) => return false,
                }
            }
        }
        self.beat().is_ok() && self.wire.turn_now().is_ok()
    }

    /// Why the server reads nothing now.
    pub(super) fn blocked(&self) -> Option<&str> {
        self.blocked.as_deref()
    }

    /// How long a frame may be.
    pub(super) fn frame_len_max(&self) -> usize {
        self.wire.frame_len_max
    }

    /// Says goodbye, without waiting for anybody.
    pub(super) fn close(mut self) {
        let close = connection::AMQPMethod::Close(connection::Close {
            reply_code: 200,
            reply_text: "bye".into(),
            class_id: 0,
            method_id: 0,
        });
        if self.put(&on_connection(close)).is_ok() {
            // Written, and then flushed.
            let _ = self.wire.turn_now().and_then(|_| self.wire.turn_now());
        }
    }

    fn put(&mut self, frame: &AMQPFrame) -> Result<(), End> {
        self.wire.put_frame(frame).map_err(End::Lost)
    }

    /// The next method that is an answer.
    async fn answer(&mut self) -> Result<Method, End> {
        loop {
            while let Some(frame) = self.wire.frame().map_err(End::Lost)? {
                if let Some(method) = self.take(frame, None)? {
                    return Ok(method);
                }
            }
            self.beat()?;
            self.wire.turn().await.map_err(End::Lost)?;
        }
    }

    /// Takes a frame for what it means; gives methods that answer something.
    fn take(&mut self, frame: AMQPFrame, run: Option<&mut Run<'_>>) -> Result<Option<Method>, End> {
        match frame {
            AMQPFrame::Method(0, AMQPClass::Connection(method)) => return self.take_of_connection(method),
            AMQPFrame::Method(CHANNEL, method) => return self.take_of_channel(method, run),
            AMQPFrame::Header(CHANNEL, header) => {
                if let Some(returning) = &mut self.returning {
                    returning.id = header.properties.message_id().as_ref().map(ToString::to_string);
                    returning.left = Some(header.body_size);
                }
                self.take_returned(run);
            }
            AMQPFrame::Body(CHANNEL, part) => {
                if let Some(left) = self.returning.as_mut().and_then(|returning| returning.left.as_mut()) {
                    *left = left.saturating_sub(part.len() as u64);
                }
                self.take_returned(run);
            }
            AMQPFrame::Heartbeat => {}
            _ => return Err(odd()),
        }
        Ok(None)
    }

    fn take_of_connection(&mut self, method: connection::AMQPMethod) -> Result<Option<Method>, End> {
        match method {
            connection::AMQPMethod::Close(close) => {
                let ok = on_connection(connection::AMQPMethod::CloseOk(connection::CloseOk {}));
                if self.put(&ok).is_ok() {
                    let _ = self.wire.turn_now();
                }
                Err(End::Connection(Closed {
                    code: close.reply_code,
                    text: close.reply_text.to_string(),
                    by_publish: (close.class_id, close.method_id) == (60, 40),
                }))
            }
            connection::AMQPMethod::Blocked(blocked) => {
                self.blocked = Some(blocked.reason.to_string());
                Ok(None)
            }
            connection::AMQPMethod::Unblocked(_) => {
                self.blocked = None;
                Ok(None)
            }
            other => Ok(Some(AMQPClass::Connection(other))),
        }
    }

    fn take_of_channel(&mut self, method: AMQPClass, run: Option<&mut Run<'_>>) -> Result<Option<Method>, End> {
        match method {
            AMQPClass::Channel(channel::AMQPMethod::Close(close)) => {
                self.next = None;
                self.returning = None;
                self.put(&on_channel(AMQPClass::Channel(channel::AMQPMethod::CloseOk(
                    channel::CloseOk {},
                ))))?;
                Err(End::Channel(Closed {
                    code: close.reply_code,
                    text: close.reply_text.to_string(),
                    by_publish: (close.class_id, close.method_id) == (60, 40),
                }))
            }
            AMQPClass::Channel(channel::AMQPMethod::Flow(flow)) => {
                // RabbitMQ slows a sender down by not reading; others say it. There is no more on its way than one batch.
                let ok = channel::AMQPMethod::FlowOk(channel::FlowOk { active: flow.active });
                self.put(&on_channel(AMQPClass::Channel(ok)))?;
                Ok(None)
            }
            AMQPClass::Basic(basic::AMQPMethod::Ack(ack)) => {
                self.settle(ack.delivery_tag, ack.multiple, false, run)?;
                Ok(None)
            }
            AMQPClass::Basic(basic::AMQPMethod::Nack(nack)) => {
                self.settle(nack.delivery_tag, nack.multiple, true, run)?;
                Ok(None)
            }
            AMQPClass::Basic(basic::AMQPMethod::Return(_)) => {
                self.returning = Some(Returning { id: None, left: None });
                Ok(None)
            }
            other => Ok(Some(other)),
        }
    }

    /// A message has come back as a whole.
    fn take_returned(&mut self, run: Option<&mut Run<'_>>) {
        let is_whole = |returning: &mut Returning| returning.left == Some(0);
        if let Some(returning) = self.returning.take_if(is_whole)
            && let Some(run) = run
        {
            run.came_back(returning.id.as_deref());
        }
    }

    fn settle(&self, tag: u64, multiple: bool, is_refused: bool, run: Option<&mut Run<'_>>) -> Result<(), End> {
        if self.next.is_none_or(|next| tag >= next) {
            return Err(End::Lost(
                "the server confirmed what was not sent: the connection is given up".into(),
            ));
        }
        if let Some(run) = run {
            run.settle(tag, multiple, is_refused);
        }
        Ok(())
    }
}

fn odd() -> End {
    End::Lost("the server answers what nobody asked: it does not speak AMQP 0-9-1".into())
}

/// Who we are and what we understand.
fn introduction(server: &Server, start: &connection::Start) -> Result<connection::StartOk, End> {
    let (mechanism, response) = match &server.login {
        Login::External => ("EXTERNAL", String::new()),
        Login::Plain { user, password } => ("PLAIN", format!("\0{user}\0{}", password.expose_secret())),
    };
    let offered = start.mechanisms.to_string();
    if !offered.split_whitespace().any(|offered| offered == mechanism) {
        let advice = match server.login {
            Login::External => {
                ": set username and password, or turn its plugin rabbitmq_auth_mechanism_ssl and EXTERNAL on there"
            }
            Login::Plain { .. } => ": set cert and key, and no username, where it takes EXTERNAL",
        };
        let offered: String = crate::plain::line(&offered).chars().take(100).collect();
        return Err(End::Lost(format!(
            "the server takes no {mechanism}, but {offered}{advice}"
        )));
    }
    let mut capabilities = FieldTable::default();
    for capability in [
        "publisher_confirms",
        "basic.nack",
        "connection.blocked",
        "authentication_failure_close",
    ] {
        capabilities.insert(capability.into(), AMQPValue::Boolean(true));
    }
    let mut properties = FieldTable::default();
    for (name, value) in [
        ("product", "closehook"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("connection_name", &server.name),
    ] {
        properties.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
    }
    properties.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
    Ok(connection::StartOk {
        client_properties: properties,
        mechanism: mechanism.into(),
        response: response.into(),
        locale: "en_US".into(),
    })
}

#[cfg(test)]
pub(super) mod tests;
