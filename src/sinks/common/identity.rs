//! A client's certificate, as a sink's table names it.

use std::path::PathBuf;

use crate::config::Table;
use crate::net::tls::Identity;

/// Who this side is, as the keys `cert` and `key` of a sink over HTTP say.
pub(in crate::sinks) fn read(table: &mut Table<'_>) -> Option<Identity> {
    let (cert, key) = (table.optional("cert"), table.optional("key"));
    of(table, cert, key)
}

/// Who this side is, from `cert` and `key`; one without the other is a fault.
pub(in crate::sinks) fn of(table: &mut Table<'_>, cert: Option<PathBuf>, key: Option<PathBuf>) -> Option<Identity> {
    match (cert, key) {
        (Some(cert), Some(key)) => Some(Identity { cert, key }),
        (None, None) => None,
        (cert, _) => {
            let missing = if cert.is_some() { "key" } else { "cert" };
            table.fault(missing, "is missing: a client's certificate is cert and key");
            None
        }
    }
}
