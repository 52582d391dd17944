//! A way to a listener that wants the PROXY protocol: `trigger` speaks HTTP over a socket of its own, and what takes that on says the
//! protocol's line first, for itself (`UNKNOWN`: nobody stands behind it).

use std::io;
use std::path::PathBuf;

use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpStream, UnixListener, UnixStream};

use crate::config::{Config, Listen, Networks};
use crate::task::{self, WhileHeld};

/// What a proxy says that speaks for itself (`HAProxy`'s `proxy-protocol.txt`, version 1).
const LINE: &[u8] = b"PROXY UNKNOWN\r\n";

/// Where a listener is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A host's name or address, and a port.
    Tcp(String, u16),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// Anything that bytes come and go through.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The way, which ends when it is dropped.
#[derive(Debug)]
pub(super) struct Introduced {
    /// In a directory that only its owner can enter.
    socket: PathBuf,
    _carries: WhileHeld,
    _dir: TempDir,
}

/// Whether the configured listener wants to be told who comes, as far as can be known here; and whom it believes. `is_named`: the URL
/// was said by a person, and may well be another listener's.
pub(super) fn believes(config: &Config, target: &Target, is_named: bool) -> Option<Networks> {
    let server = &config.server;
    let is_it = match (&server.listen, target) {
        (Listen::Tcp(address), Target::Tcp(_, port)) => address.port() == *port,
        (Listen::Unix(path), Target::Unix(socket)) => path == socket,
        _ => false,
    };
    (server.proxy_protocol && (is_it || !is_named)).then(|| server.trusted_proxies.clone())
}

impl Introduced {
    /// Opens it. An error is that of the first connection.
    pub(super) async fn open(target: Target, believed: Networks) -> io::Result<Introduced> {
        let first = connect(&target, &believed).await?;
        let dir = tempfile::Builder::new().prefix("closehook-trigger-").tempdir()?;
        let socket = dir.path().join("way");
        let listener = UnixListener::bind(&socket)?;
        let carries = task::begin(async move {
            let mut first = Some(first);
            while let Ok((mut near, _)) = listener.accept().await {
                let far = match first.take() {
                    Some(far) => Ok(far),
                    None => connect(&target, &believed).await,
                };
                // Whoever asked sees that it is closed.
                let Ok(mut far) = far else { continue };
                task::begin(async move { copy_bidirectional(&mut near, &mut far).await });
            }
        });
        Ok(Introduced {
            socket,
            _carries: WhileHeld::of(&carries),
            _dir: dir,
        })
    }

    /// Where HTTP is spoken.
    pub(super) fn socket(&self) -> &std::path::Path {
        &self.socket
    }
}

/// A connection whose beginning is said. The listener reads it only of whom it believes: through a socket in the file system, or by
/// the address that a connection comes from, which here is this machine's own.
async fn connect(target: &Target, believed: &Networks) -> io::Result<Box<dyn Stream>> {
    let (mut stream, is_believed): (Box<dyn Stream>, bool) = match target {
        Target::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            let from = stream.local_addr()?.ip().to_canonical();
            (Box::new(stream), believed.contains(from))
        }
        Target::Unix(path) => (Box::new(UnixStream::connect(path).await?), true),
    };
    if is_believed {
        stream.write_all(LINE).await?;
    }
    Ok(stream)
}
