//! The bytes between here and the server: TCP, TLS, and frames.
//!
//! Nothing is sent or read unless somebody turns the wire, and no more is kept than one frame that comes, and what its user has put in
//! to go. Who drops it cuts the connection at once.

use std::io;
use std::sync::Arc;

use amq_protocol::frame::{AMQPFrame, gen_frame, parse_frame};
use bytes::{Buf, BytesMut};
use futures::FutureExt as _;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::net::trust;

/// What a frame has around its payload: type, channel, length, and the mark of its end.
pub(super) const FRAME_AROUND: usize = 8;

/// Until both sides have agreed on another length, a frame is this long at the most. RabbitMQ's greeting is far below it.
pub(super) const FRAME_LEN_AT_FIRST: usize = 64 << 10;

/// Read at once.
const READ_LEN: usize = 16 << 10;

/// The first byte of a record that says what is wrong with TLS.
const TLS_ALERT: u8 = 0x15;

pub(super) trait Io: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Io for T {}

/// A connection.
pub(super) struct Wire {
    reader: ReadHalf<Box<dyn Io>>,
    writer: WriteHalf<Box<dyn Io>>,
    inbox: BytesMut,
    /// What is to be sent.
    outbox: BytesMut,
    /// TLS may hold bytes back until it is told that there are no more.
    is_unflushed: bool,
    /// A frame with all that is around it is no longer than this.
    pub(super) frame_len_max: usize,
    /// When something came.
    pub(super) read_at: Instant,
    /// When something went.
    pub(super) written_at: Instant,
}

impl Wire {
    /// Connects, with TLS where there is a configuration for it. An error is one sentence.
    pub(super) async fn connect(host: &str, port: u16, tls: Option<Arc<ClientConfig>>) -> Result<Wire, String> {
        let tcp = TcpStream::connect((host, port))
            .await
            .map_err(|error| format!("the server {host}:{port} can't be reached: {error}"))?;
        // What is sent is gathered here already.
        let _ = tcp.set_nodelay(true);
        let stream: Box<dyn Io> = match tls {
            None => Box::new(tcp),
            Some(config) => Box::new(encrypted(host, tcp, config).await?),
        };
        Ok(Wire::over(stream))
    }

    /// A connection that is there.
    pub(super) fn over(stream: Box<dyn Io>) -> Wire {
        let (reader, writer) = tokio::io::split(stream);
        let now = Instant::now();
        Wire {
            reader,
            writer,
            inbox: BytesMut::new(),
            outbox: BytesMut::new(),
            is_unflushed: false,
            frame_len_max: FRAME_LEN_AT_FIRST,
            read_at: now,
            written_at: now,
        }
    }

    /// Bytes that have not gone yet.
    pub(super) fn unsent(&self) -> usize {
        self.outbox.len()
    }

    /// Puts bytes in to go.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.outbox.extend_from_slice(bytes);
    }

    /// Puts a frame in to go.
    pub(super) fn put_frame(&mut self, frame: &AMQPFrame) -> Result<(), String> {
        let bytes = encoded(frame)?;
        self.put(&bytes);
        Ok(())
    }

    /// Waits until some bytes came or went. Where it is dropped before, none did. An error is one sentence, and the end of the
    /// connection.
    pub(super) async fn turn(&mut self) -> Result<(), String> {
        self.inbox.reserve(READ_LEN);
        let (writer, outbox) = (&mut self.writer, &self.outbox);
        let sends = !outbox.is_empty();
        let going = async {
            if sends {
                writer.write(outbox).await.map(Some)
            } else {
                writer.flush().await.map(|()| None)
            }
        };
        tokio::select! {
            read = self.reader.read_buf(&mut self.inbox) => {
                if read.map_err(|error| broken(&error))? == 0 {
                    return Err("the server closed the connection".into());
                }
                self.read_at = Instant::now();
            }
            gone = going, if sends || self.is_unflushed => match gone.map_err(|error| broken(&error))? {
                Some(len) => {
                    self.outbox.advance(len);
                    self.written_at = Instant::now();
                    self.is_unflushed = true;
                }
                None => self.is_unflushed = false,
            },
        }
        Ok(())
    }

    /// The same, as far as nobody has to be waited for; `false`: nothing came, nothing went.
    pub(super) fn turn_now(&mut self) -> Result<bool, String> {
        self.turn().now_or_never().transpose().map(|turned| turned.is_some())
    }

    /// A frame that has come as a whole.
    pub(super) fn frame(&mut self) -> Result<Option<AMQPFrame>, String> {
        let Some(kind) = self.inbox.first() else {
            return Ok(None);
        };
        if !(1..=8).contains(kind) {
            return Err(match *kind {
                b'A' => "the server speaks another version of AMQP: 0-9-1 is needed",
                TLS_ALERT => "the server expects TLS: use amqps://",
                _ => "the server does not speak AMQP",
            }
            .into());
        }
        let Some(len) = self.inbox.get(3..7).and_then(|len| len.try_into().ok()) else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(len) as usize + FRAME_AROUND;
        if len > self.frame_len_max {
            return Err("the server sends frames that are longer than was agreed: it does not speak AMQP".into());
        }
        if self.inbox.len() < len {
            return Ok(None);
        }
        let bytes = self.inbox.split_to(len);
        match parse_frame(&bytes[..]) {
            Ok((_, frame)) => Ok(Some(frame)),
            Err(_) => Err("the server sent a frame that can't be read: it does not speak AMQP 0-9-1".into()),
        }
    }
}

/// A frame as bytes.
pub(super) fn encoded(frame: &AMQPFrame) -> Result<Vec<u8>, String> {
    gen_frame(frame)(Vec::new().into())
        .map(|written| written.into_inner().0)
        .map_err(|error| format!("it can't be said in AMQP: {error}"))
}

async fn encrypted(
    host: &str,
    tcp: TcpStream,
    config: Arc<ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| "the server's name is none that a certificate could have".to_owned())?;
    TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(|error| format!("no TLS with the server: {}", why_broken(&error)))
}

fn broken(error: &io::Error) -> String {
    format!("the connection broke: {}", why_broken(error))
}

/// The cause, with what to do where it is one of TLS.
fn why_broken(error: &io::Error) -> String {
    let failure = trust::failure(error);
    let cause = failure.map_or_else(|| error.to_string(), ToString::to_string);
    let advice = match failure {
        Some(rustls::Error::InvalidMessage(_)) => Some("is that its port for TLS? Without it, use amqp://"),
        failure => failure.and_then(trust::advice),
    };
    match advice {
        Some(advice) => format!("{cause}: {advice}"),
        None => cause,
    }
}
