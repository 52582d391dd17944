//! The way to a mail server: TLS from the beginning (`smtps`), or after STARTTLS (`smtp`), which is demanded unless the configuration
//! says that it is not.
//!
//! STARTTLS is spoken here, before the library has the connection: certificates are judged as everywhere in closehook (`ca` may be the
//! server's own certificate), and nothing that was said before TLS counts after it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use lettre::transport::smtp::client::{AsyncSmtpConnection, AsyncTokioStream};
use lettre::transport::smtp::extension::ClientId;
use reqwest::Url;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::answer::{Said, said_by};
use crate::net::trust;

/// More is no answer of a mail server.
const REPLY_LEN_MAX: usize = 64 << 10;

const TOO_LONG: &str = "the server's answer has no end: it does not speak SMTP";

/// When TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tls {
    /// With the connection.
    AtOnce,
    /// After STARTTLS, without which nothing is sent.
    Demanded,
    /// After STARTTLS where the server offers it; whoever it is.
    IfOffered,
}

/// Where mail is handed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub host: String,
    pub port: u16,
    pub tls: Tls,
}

impl Server {
    /// Reads the keys `server` and `insecure`. An error is one sentence that holds nothing of the text, which may have a password in it.
    pub fn parse(text: &str, insecure: bool) -> Result<Server, String> {
        const EXAMPLE: &str = "must be a URL like \"smtp://mail.example.com:587\" or \"smtps://mail.example.com:465\"";
        let url = Url::parse(text).map_err(|_| EXAMPLE)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("holds a user: set username, and password_file or password_env, instead".into());
        }
        let rest = [Some(url.path().trim_matches('/')), url.query(), url.fragment()];
        let host = url.host_str().filter(|host| !host.is_empty());
        let (Some(host), true) = (host, rest.into_iter().flatten().all(str::is_empty)) else {
            return Err(EXAMPLE.into());
        };
        let (tls, port) = match url.scheme() {
            "smtp" if insecure => (Tls::IfOffered, 587),
            "smtp" => (Tls::Demanded, 587),
            "smtps" if insecure => return Err("is smtps://: insecure is for smtp:// only, leave it out".into()),
            "smtps" => (Tls::AtOnce, 465),
            _ => return Err(EXAMPLE.into()),
        };
        Ok(Server {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(port),
            tls,
        })
    }

    /// Connects and greets. An error is one sentence, and what the server said.
    pub async fn connect(&self, config: Arc<ClientConfig>) -> Result<AsyncSmtpConnection, Failed> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| {
                Failed::from(format!(
                    "the server {}:{} can't be reached: {error}",
                    self.host, self.port
                ))
            })?;
        // Answers are short, and each is waited for.
        let _ = tcp.set_nodelay(true);
        let address = tcp.peer_addr().map_err(|error| Failed::from(error.to_string()))?;
        let hello = hello(&tcp);
        let stream: Box<dyn AsyncTokioStream> = match self.tls {
            Tls::AtOnce => Box::new(Carried::new(self.encrypt(tcp, config).await?, address, false)),
            Tls::Demanded | Tls::IfOffered => {
                let mut plain = Plain {
                    tcp,
                    unread: Vec::new(),
                };
                if plain.start_tls(&hello, self.tls).await? {
                    Box::new(Carried::new(self.encrypt(plain.tcp, config).await?, address, true))
                } else {
                    Box::new(Carried::new(plain.tcp, address, true))
                }
            }
        };
        AsyncSmtpConnection::connect_with_transport(stream, &hello)
            .await
            .map_err(|error| Failed::said("the server turned the connection away", said_by(&error)))
    }

    async fn encrypt(
        &self,
        tcp: TcpStream,
        config: Arc<ClientConfig>,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Failed> {
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| Failed::from("the server's name is none that a certificate could have".to_owned()))?;
        TlsConnector::from(config).connect(name, tcp).await.map_err(|error| {
            let failure = trust::failure(&error);
            let cause = failure.map_or_else(|| error.to_string(), ToString::to_string);
            let advice = failure.and_then(trust::advice).map(|advice| format!(": {advice}"));
            format!("no TLS with the server: {cause}{}", advice.unwrap_or_default()).into()
        })
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) struct Failed {
    /// One sentence.
    pub what: String,
    /// What the server said, if it was that.
    pub said: Option<Said>,
}

impl Failed {
    fn said(what: &str, said: Option<Said>) -> Failed {
        Failed {
            what: what.to_owned(),
            said,
        }
    }
}

impl From<String> for Failed {
    fn from(what: String) -> Failed {
        Failed { what, said: None }
    }
}

/// Who this side says it is: its name if it has a whole one, else its address.
fn hello(tcp: &TcpStream) -> ClientId {
    let name = rustix::system::uname()
        .nodename()
        .to_str()
        .unwrap_or_default()
        .to_owned();
    let is_whole = name.contains('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte));
    match tcp.local_addr() {
        _ if is_whole => ClientId::Domain(name),
        Ok(SocketAddr::V4(address)) => ClientId::Ipv4(*address.ip()),
        Ok(SocketAddr::V6(address)) => ClientId::Ipv6(*address.ip()),
        Err(_) => ClientId::Domain("localhost".into()),
    }
}

/// A connection before TLS.
struct Plain {
    tcp: TcpStream,
    unread: Vec<u8>,
}

impl Plain {
    /// Up to the moment at which TLS begins; `false`: the server offers none, and that is allowed.
    async fn start_tls(&mut self, hello: &ClientId, tls: Tls) -> Result<bool, Failed> {
        self.expect(220, "the server turned the connection away").await?;
        self.say(&format!("EHLO {hello}\r\n")).await?;
        let offers = self.expect(250, "the server refused the greeting").await?;
        let offers_tls = offers.iter().any(|line| line.trim().eq_ignore_ascii_case("STARTTLS"));
        match (offers_tls, tls) {
            (false, Tls::IfOffered) => return Ok(false),
            (false, _) => {
                return Err("the server offers no STARTTLS, so nothing was sent: use smtps://, or set insecure = true if the way there is safe"
                    .to_owned()
                    .into());
            }
            (true, _) => {}
        }
        self.say("STARTTLS\r\n").await?;
        self.expect(220, "the server refused STARTTLS").await?;
        if !self.unread.is_empty() {
            return Err(
                "the server went on in plain text after STARTTLS: somebody may be in between"
                    .to_owned()
                    .into(),
            );
        }
        Ok(true)
    }

    async fn say(&mut self, line: &str) -> Result<(), Failed> {
        self.tcp
            .write_all(line.as_bytes())
            .await
            .map_err(|error| broken(&error))
    }

    /// An answer of this code: its lines, without the code. Reads no byte further.
    async fn expect(&mut self, code: u16, otherwise: &str) -> Result<Vec<String>, Failed> {
        let mut lines = Vec::new();
        let mut len = 0;
        loop {
            let line = self.line().await?;
            len += line.len() + 2;
            if len > REPLY_LEN_MAX {
                return Err(TOO_LONG.to_owned().into());
            }
            let (number, text) = (line.get(..3).unwrap_or_default(), line.get(4..).unwrap_or_default());
            let Ok(number) = number.parse::<u16>() else {
                return Err("the server does not speak SMTP".to_owned().into());
            };
            lines.push(text.to_owned());
            if line.as_bytes().get(3) == Some(&b'-') {
                continue;
            }
            if number != code {
                return Err(Failed::said(otherwise, Some(Said::new(number, lines.join(" ")))));
            }
            return Ok(lines);
        }
    }

    async fn line(&mut self) -> Result<String, Failed> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if self.unread.len() > REPLY_LEN_MAX {
                return Err("the server does not speak SMTP".to_owned().into());
            }
            let read = self
                .tcp
                .read_buf(&mut self.unread)
                .await
                .map_err(|error| broken(&error))?;
            if read == 0 {
                return Err("the server closed the connection".to_owned().into());
            }
        }
    }
}

fn broken(error: &io::Error) -> Failed {
    format!("the connection broke: {error}").into()
}

/// A stream on its way to the library. Where the server has greeted already, a greeting stands in front of what it says.
struct Carried<S> {
    stream: S,
    address: SocketAddr,
    greeting: &'static [u8],
    /// Bytes that came since something was said: the library reads an answer to its end, whatever its length.
    answered: usize,
}

impl<S> Carried<S> {
    fn new(stream: S, address: SocketAddr, was_greeted: bool) -> Carried<S> {
        Carried {
            stream,
            address,
            greeting: if was_greeted { b"220 greeted\r\n" } else { b"" },
            answered: 0,
        }
    }
}

impl<S> fmt::Debug for Carried<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carried")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> AsyncTokioStream for Carried<S> {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Carried<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.greeting.is_empty() {
            let before = into.filled().len();
            let polled = Pin::new(&mut self.stream).poll_read(context, into);
            self.answered += into.filled().len() - before;
            if self.answered > REPLY_LEN_MAX {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, TOO_LONG)));
            }
            return polled;
        }
        let (now, later) = self.greeting.split_at(self.greeting.len().min(into.remaining()));
        into.put_slice(now);
        self.greeting = later;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Carried<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.answered = 0;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
