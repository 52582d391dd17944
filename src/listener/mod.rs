//! What stands between the network and a request, for the public and for the admin listener: sockets, TLS and its
//! certificates, who is at the other end, what one address may do, and the threads all of it runs on.
//!
//! Knows nothing of deliveries: whoever answers is handed in.

pub mod abuse;
pub mod acme;
pub mod certificates;
pub mod connections;
pub mod proxy;
pub mod sockets;
pub mod standing;
pub mod threads;
pub mod tls;
pub mod unreadable;
