//! Listening sockets: bound here, or handed over by whoever started the process.
//!
//! systemd (or anything that speaks its protocol, `sd_listen_fds(3)`) may hold the sockets and pass them on at every start.
//! Then no connection is refused while the daemon restarts: what arrives meanwhile waits with the kernel. And a port below
//! 1024 needs no privilege of the daemon's own.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use crate::config::Listen;

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
    Unix {
        /// The socket.
        listener: UnixListener,
        /// Its file, if it was made here.
        file: Option<SocketFile>,
    },
}

/// A socket's name in the file system; removed when dropped, unless somebody else has put another one there.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.device_and_inode)
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// Listens anew. `mode` is for a socket in the file system, where one that nobody serves any more is replaced.
    pub async fn bind(listen: &Listen, mode: u32) -> io::Result<Listener> {
        match listen {
            Listen::Tcp(address) => TcpListener::bind(address).await.map(Listener::Tcp),
            Listen::Unix(path) => bind_unix(path, mode),
        }
    }

    /// The next connection, and where it comes from: no address for one over a Unix socket. May be cancelled at any time.
    pub async fn accept(&self) -> io::Result<(Stream, Option<SocketAddr>)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Answers are small and written at once; waiting for more would only delay them.
                let _ = stream.set_nodelay(true);
                Ok((Either::Left(stream), Some(peer)))
            }
            Listener::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok((Either::Right(stream), None))
            }
        }
    }

    /// What is listened on, as a URL for people and for `trigger`.
    pub fn url(&self, scheme: &str, path: &str) -> io::Result<String> {
        Ok(match self {
            Listener::Tcp(listener) => format!("{scheme}://{}{path}", listener.local_addr()?),
            Listener::Unix { listener, file } => {
                let address = listener.local_addr()?;
                let made_here = file.as_ref().map(|file| file.path.as_path());
                let socket = made_here.or(address.as_pathname()).unwrap_or("(unnamed)".as_ref());
                format!("unix:{}:{path}", socket.display())
            }
        })
    }
}

fn bind_unix(path: &Path, mode: u32) -> io::Result<Listener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::other("there is a file that is no socket"));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        _ => {}
    }
    // Under another name until its mode is right: nobody connects who may not, and the old one is there until the new one is.
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode))?;
    let metadata = std::fs::symlink_metadata(&new)?;
    std::fs::rename(&new, path)?;
    Ok(Listener::Unix {
        listener,
        file: Some(SocketFile {
            path: path.to_owned(),
            device_and_inode: (metadata.dev(), metadata.ino()),
        }),
    })
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
                let listener = UnixListener::from_std(listener)?;
                Ok(Listener::Unix { listener, file: None })
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

    #[tokio::test]
    async fn a_stale_socket_is_replaced_a_live_one_is_not_and_none_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("public.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = bind_unix(&path, 0o640).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(
            listener.url("http", "/hook").unwrap(),
            format!("unix:{}:/hook", path.display())
        );
        assert_eq!(bind_unix(&path, 0o640).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        std::fs::write(&path, "precious").unwrap();
        assert!(bind_unix(&path, 0o640).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

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
