//! Where the listener's certificate comes from: files that others renew, or a directory that issues it.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

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

    /// What `status` shows.
    pub fn status(&self) -> Value {
        match self {
            Certificates::Files(reloader) => {
                let (file, not_after) = reloader.certificate();
                json!({ "file": file, "not_after": not_after })
            }
            Certificates::Acme(keeper) => {
                let progress = keeper.progress();
                json!({
                    "file": keeper.file(), "domains": keeper.domains(), "not_after": progress.not_after,
                    "next_renewal": progress.next_order_at, "last_error": progress.last_error,
                })
            }
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
