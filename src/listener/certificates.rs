//! Where the listener's certificate comes from: files that others renew, or a directory that issues it.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use super::acme;
use super::tls::Reloader;

/// Where the certificate comes from.
#[derive(Debug, Clone)]
pub enum Certificates {
    /// From files.
    Files(Arc<Reloader>),
    /// By itself.
    Acme(Arc<acme::Keeper>),
}

impl Certificates {
    /// For the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        match self {
            Certificates::Files(reloader) => reloader.acceptor(),
            Certificates::Acme(keeper) => keeper.acceptor(),
        }
    }

    /// Does a connection's handshake.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> std::io::Result<TlsStream<S>> {
        let keeper = match self {
            Certificates::Acme(keeper) if keeper.is_shared() => keeper,
            _ => return self.acceptor().accept(stream).await,
        };
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let looks_for = {
            let hello = start.client_hello();
            let is_directory = rustls_acme::is_tls_alpn_challenge(&hello);
            hello.server_name().filter(|_| is_directory).map(str::to_owned)
        };
        if let Some(name) = looks_for {
            keeper.is_looked_at(&name).await;
        }
        start.into_stream(keeper.config()).await
    }

    /// When the certificate in force expires; `None`: there is none, or it does not say so readably.
    pub fn not_after(&self) -> Option<Timestamp> {
        match self {
            Certificates::Files(reloader) => reloader.certificate().1,
            Certificates::Acme(keeper) => keeper.progress().not_after,
        }
    }

    /// When the next one is ordered; `None` for files, which others renew.
    pub fn next_renewal(&self) -> Option<Timestamp> {
        match self {
            Certificates::Files(_) => None,
            Certificates::Acme(keeper) => Some(keeper.progress().next_order_at),
        }
    }

    /// Keeps it up to date, until dropped.
    pub async fn keep(self) {
        match self {
            Certificates::Files(reloader) => reloader.watch().await,
            Certificates::Acme(keeper) => keeper.run().await,
        }
    }
}
