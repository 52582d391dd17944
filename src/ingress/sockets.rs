//! Listening sockets: bound here, or handed over by whoever started the process.
//!
//! systemd (or anything that speaks its protocol, `sd_listen_fds(3)`) may hold the sockets and pass them on at every start.
//! Then no connection is refused while the daemon restarts: what arrives meanwhile waits with the kernel. And a port below
//! 1024 needs no privilege of the daemon's own.

use std::io;
use std::net::SocketAddr;

use listenfd::ListenFd;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

/// The name by which a passed socket is the admin listener (`FileDescriptorName=admin`); the other one is the public listener.
const ADMIN_NAME: &str = "admin";

/// One accepted connection.
pub type Stream = Either<TcpStream, UnixStream>;

/// A socket that is listened on.
#[derive(Debug)]
pub enum Listener {
    /// Over IP.
    Tcp(TcpListener),
    /// On this machine.
    Unix(UnixListener),
}

impl Listener {
    /// The next connection, and where it comes from: no address for one over a Unix socket. May be cancelled at any time.
    pub async fn accept(&self) -> io::Result<(Stream, Option<SocketAddr>)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Answers are small and written at once; waiting for more would only delay them.
                let _ = stream.set_nodelay(true);
                Ok((Either::Left(stream), Some(peer)))
            }
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Either::Right(stream), None))
            }
        }
    }

    /// What is listened on, as a URL for people and for `trigger`.
    pub fn url(&self, scheme: &str, path: &str) -> io::Result<String> {
        Ok(match self {
            Listener::Tcp(listener) => format!("{scheme}://{}{path}", listener.local_addr()?),
            Listener::Unix(listener) => {
                let address = listener.local_addr()?;
                let socket = address.as_pathname().unwrap_or_else(|| "(unnamed)".as_ref());
                format!("unix:{}:{path}", socket.display())
            }
        })
    }
}

/// Sockets that were handed over at the start, not yet in use.
#[derive(Debug, Default)]
pub struct Inherited {
    /// For deliveries.
    pub public: Option<Passed>,
    /// For metrics and health.
    pub admin: Option<Passed>,
}

/// A socket that was handed over.
#[derive(Debug)]
pub enum Passed {
    /// Over IP.
    Tcp(std::net::TcpListener),
    /// On this machine.
    Unix(std::os::unix::net::UnixListener),
}

impl Inherited {
    /// Takes what the environment says was handed over, and clears those variables: to be called before there are threads.
    /// An error is one sentence.
    pub fn take() -> Result<Inherited, String> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut passed = ListenFd::from_env();
        let mut inherited = Inherited::default();
        for (index, role) in roles(&names, passed.len())?.into_iter().enumerate() {
            let socket = take(&mut passed, index).map_err(|error| {
                format!("socket {index} that was passed on can't be listened on ({error}): pass on a listening TCP or Unix stream socket")
            })?;
            match role {
                Role::Public => inherited.public = Some(socket),
                Role::Admin => inherited.admin = Some(socket),
            }
        }
        Ok(inherited)
    }
}

fn take(passed: &mut ListenFd, index: usize) -> io::Result<Passed> {
    let taken = || io::Error::other("it is taken already");
    match passed.take_tcp_listener(index) {
        Ok(listener) => Ok(Passed::Tcp(listener.ok_or_else(taken)?)),
        // Not over IP; the reason why it is no Unix socket either is the one to tell.
        Err(_) => Ok(Passed::Unix(passed.take_unix_listener(index)?.ok_or_else(taken)?)),
    }
}

impl Passed {
    /// Makes it usable; needs the runtime.
    pub fn listen(self) -> io::Result<Listener> {
        match self {
            Passed::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Listener::Tcp)
            }
            Passed::Unix(listener) => {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener).map(Listener::Unix)
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Public,
    Admin,
}

/// What each of the passed sockets is for: the one named `admin` is the admin listener, the other the public one.
fn roles(names: &str, count: usize) -> Result<Vec<Role>, String> {
    let mut names = names.split(':');
    let roles: Vec<Role> = (0..count)
        .map(|_| {
            if names.next() == Some(ADMIN_NAME) {
                Role::Admin
            } else {
                Role::Public
            }
        })
        .collect();
    for (role, what) in [(Role::Public, "public"), (Role::Admin, "admin")] {
        if roles.iter().filter(|found| **found == role).count() > 1 {
            return Err(format!(
                "more than one socket was passed on for the {what} listener: keep one ListenStream= (\"[::]:443\" serves IPv4 too), and name the admin listener's with FileDescriptorName={ADMIN_NAME}"
            ));
        }
    }
    Ok(roles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_sockets_are_known_by_their_names() {
        assert_eq!(roles("", 0), Ok(vec![]));
        assert_eq!(roles("", 1), Ok(vec![Role::Public]));
        assert_eq!(roles("closehook.socket", 1), Ok(vec![Role::Public]));
        assert_eq!(roles("admin:public", 2), Ok(vec![Role::Admin, Role::Public]));
        assert_eq!(roles("closehook.socket:admin", 2), Ok(vec![Role::Public, Role::Admin]));
        assert!(roles("a:b", 2).unwrap_err().contains("public listener"));
        assert!(roles("admin:admin", 2).unwrap_err().contains("admin listener"));
    }
}
