//! One connection to the server.
//!
//! The library packs commands and reads replies; the connection itself is made here: TLS as everywhere, and no more is read than a server
//! has to say ([`Metered`]). The library would give up after half a second, here a call has the sink's time. It makes no connection anew
//! and sends nothing twice: what a lost connection means is settled by whoever asked.

use std::sync::Arc;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Cmd, ErrorKind, RedisConnectionInfo, Value};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::answer::Said;
use super::url::{At, Place};
use crate::net::http::root_cause;
use crate::net::meter::{Meter, Metered};
use crate::net::trust;
use crate::sinks::Unavailable;
use crate::task::{self, Task};

/// Who asks.
#[derive(Debug, Default, Clone)]
pub(super) struct Login {
    /// `None`: the default user.
    pub(super) username: Option<String>,
    /// `None`: the server asks nobody.
    pub(super) password: Option<SecretString>,
}

/// Why a command was not done, or nobody knows whether it was.
#[derive(Debug)]
pub(super) enum Failed {
    /// The server says so.
    Said(Said),
    /// The connection is of no use any more.
    Lost(Unavailable),
}

impl Failed {
    pub(super) fn unavailable(self) -> Unavailable {
        match self {
            Failed::Said(said) => said.unavailable(),
            Failed::Lost(unavailable) => unavailable,
        }
    }
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// An open connection. When it is dropped it is cut, whatever is on its way.
pub(super) struct Session {
    connection: MultiplexedConnection,
    driver: Task<()>,
    meter: Arc<Meter>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Session {
    /// Connects and logs in. Has no deadline of its own.
    pub(super) async fn connect(place: &Place, login: &Login, tls: Arc<ClientConfig>) -> Result<Session, Unavailable> {
        let (wire, meter) = wire(place, tls).await.map_err(|error| {
            let advice = trust::failure(&error)
                .and_then(advice)
                .map(|advice| format!(": {advice}"));
            Unavailable::new(format!(
                "the server {} can't be reached: {}{}",
                place.name(),
                root_cause(&error),
                advice.unwrap_or_default()
            ))
        })?;
        // Nothing is said to the server in this.
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let (connection, driver) = MultiplexedConnection::new_with_config(&info, wire, config)
            .await
            .map_err(|error| lost(&error))?;
        let session = Session {
            connection,
            driver: task::begin(driver),
            meter,
        };
        if let Some(password) = &login.password {
            let mut auth = ::redis::cmd("AUTH");
            if let Some(username) = &login.username {
                auth.arg(username);
            }
            auth.arg(password.expose_secret());
            session.run(&auth).await.map_err(Failed::unavailable)?;
        }
        if place.db != 0 {
            let select = ::redis::cmd("SELECT").arg(place.db).clone();
            session.run(&select).await.map_err(Failed::unavailable)?;
        }
        Ok(session)
    }

    /// Has the server do something, and gives its reply. Has no deadline of its own.
    pub(super) async fn run(&self, command: &Cmd) -> Result<Value, Failed> {
        let reply = self.connection.clone().send_packed_command(command).await;
        self.meter.answered();
        match reply {
            Ok(Value::ServerError(error)) => Err(Failed::Said(Said::new(
                error.code(),
                error.details().unwrap_or_default(),
            ))),
            Ok(value) => Ok(value),
            Err(error) => Err(Failed::Lost(lost(&error))),
        }
    }

    /// The server has closed it, or it broke.
    pub(super) fn is_over(&self) -> bool {
        self.driver.is_finished()
    }
}

fn lost(error: &::redis::RedisError) -> Unavailable {
    if error.kind() == ErrorKind::Parse {
        return Unavailable::new(
            "what answers there does not speak Redis's protocol: is it another server, or one that wants TLS (rediss://)?",
        );
    }
    // Where TLS 1.3 is spoken, a server says only now whom it does not let in.
    let wants_to_know = root_cause(error).contains("CertificateRequired");
    let advice = wants_to_know.then_some(": the server demands a client's certificate: set cert and key");
    Unavailable::new(format!(
        "the connection to the server was lost: {}{}",
        root_cause(error),
        advice.unwrap_or_default()
    ))
}

fn advice(error: &rustls::Error) -> Option<&'static str> {
    if matches!(error, rustls::Error::InvalidMessage(_)) {
        return Some("what answers there speaks no TLS: is redis:// meant?");
    }
    trust::advice(error)
}

async fn wire(place: &Place, tls: Arc<ClientConfig>) -> std::io::Result<(Box<dyn Wire>, Arc<Meter>)> {
    let (host, port, wants_tls) = match &place.at {
        At::Socket(path) => {
            let metered = Metered::new(UnixStream::connect(path).await?);
            let meter = metered.meter();
            return Ok((Box::new(metered), meter));
        }
        At::Host { host, port, tls } => (host, *port, *tls),
    };
    let tcp = TcpStream::connect((host.as_str(), port)).await?;
    // Each command is waited for.
    let _ = tcp.set_nodelay(true);
    let metered = Metered::new(tcp);
    let meter = metered.meter();
    if !wants_tls {
        return Ok((Box::new(metered), meter));
    }
    let name = ServerName::try_from(host.clone())
        .map_err(|_| std::io::Error::other("its name is none that a certificate could have"))?;
    Ok((Box::new(TlsConnector::from(tls).connect(name, metered).await?), meter))
}
