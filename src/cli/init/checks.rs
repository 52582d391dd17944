//! What must be there before a change makes sense: the name leads somewhere, and the port can be had.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use super::answers::{Answers, PublicUrl};
use super::service::Unit;
use crate::config::Listen;

/// Looks the public name up. Gives a sentence either way.
pub(super) async fn name(url: &PublicUrl) -> Result<String, String> {
    let host = url.host();
    let found = tokio::net::lookup_host((host, url.port())).await;
    let mut addresses: Vec<IpAddr> = match found {
        Ok(found) => found.map(|address| address.ip()).collect(),
        Err(error) => {
            return Err(format!(
                "{host} leads nowhere ({error}): give it an A or AAAA record with this machine's public address, wait until it is known, and try again"
            ));
        }
    };
    addresses.sort_unstable();
    addresses.dedup();
    let is_here = addresses.iter().any(|address| is_own(*address));
    let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let elsewhere = if is_here {
        ""
    } else {
        ", none an address of this machine itself (as it is behind a router, a balancer or a proxy elsewhere)"
    };
    Ok(format!("{host} is {}{elsewhere}", shown.join(", ")))
}

/// Whether this machine has the address: only then a socket can have it.
fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Who is to listen.
#[derive(Debug)]
pub(super) struct Listening<'l> {
    pub answers: &'l Answers,
    /// The URL at which a running daemon listens.
    pub running: Option<&'l str>,
    /// The unit that will run it; `None`: whoever runs this command.
    pub unit: Option<&'l Unit>,
    pub is_root: bool,
}

impl Listening<'_> {
    /// Whether systemd's socket unit is to hold the port.
    pub fn by_socket(&self) -> bool {
        let Listen::Tcp(address) = self.answers.listen else {
            return false;
        };
        let Some(unit) = self.unit else { return false };
        let needs = self.answers.low_port().is_some() && !unit.may_take_low_ports && unit.user.is_some();
        let socket = unit.socket.as_ref().filter(|socket| socket.has_port(address.port()));
        socket.is_some_and(|socket| socket.is_active || needs)
    }

    /// Whether the port can be had. Gives a sentence either way.
    pub fn check(&self) -> Result<String, String> {
        let address = match &self.answers.listen {
            Listen::Tcp(address) => *address,
            Listen::Unix(path) => return socket_file(path),
        };
        let port = address.port();
        if let Some(url) = self.running
            && url.contains(&format!(":{port}/"))
        {
            return Ok(format!("closehook listens on {address}"));
        }
        let socket = self.unit.and_then(|unit| unit.socket.as_ref());
        if let Some(socket) = socket.filter(|socket| socket.is_active && socket.has_port(port)) {
            return Ok(format!("{} holds port {port}", socket.name));
        }
        bind(address, self.is_root)?;
        let Some(unit) = self.unit.filter(|_| self.answers.low_port().is_some()) else {
            return Ok(format!("{address} is free"));
        };
        match (&unit.user, self.by_socket()) {
            (None, _) => Ok(format!("{address} is free")),
            (_, true) => Ok(format!("{address} is free, and systemd will hold it")),
            (_, false) if unit.may_take_low_ports => Ok(format!("{address} is free")),
            (Some(user), false) => Err(format!(
                "{} runs as {user}, which may not take port {port}: let systemd hold it, with {} and ListenStream={address} in it (deploy/closehook.socket is the example), then run this again",
                unit.name,
                unit.name.replace(".service", ".socket"),
            )),
        }
    }
}

/// Whether the listener for metrics and health can have its port.
pub(super) fn admin(address: SocketAddr) -> Result<(), String> {
    TcpListener::bind(address).map(drop).map_err(|error| {
        format!("admin.listen, {address}, can't be had ({error}): choose another address with listen in [admin]")
    })
}

fn bind(address: SocketAddr, is_root: bool) -> Result<(), String> {
    let Err(error) = TcpListener::bind(address) else {
        return Ok(());
    };
    let port = address.port();
    Err(match error.kind() {
        ErrorKind::AddrInUse => format!(
            "something else listens on {address}: `ss -ltnp sport = :{port}` shows what; stop it, or choose another address with --listen"
        ),
        ErrorKind::PermissionDenied if !is_root => format!(
            "port {port} is only for root and for whom root allows it: run this as root, where systemd holds the port for closehook"
        ),
        ErrorKind::AddrNotAvailable => {
            format!("{address} is no address of this machine: choose another one with --listen")
        }
        _ => format!("{address} can't be listened on ({error}): choose another address with --listen"),
    })
}

fn socket_file(path: &Path) -> Result<String, String> {
    let dir = path.parent().unwrap_or(path);
    if dir.is_dir() {
        Ok(format!("{} is there for the socket", dir.display()))
    } else {
        Err(format!(
            "there is no directory {} for the socket: make it, writable by whoever runs closehook, or choose another place with --listen",
            dir.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::answers::Https;
    use super::super::service::Socket;
    use super::*;
    use crate::config::Tls;

    fn answers(listen: &str) -> Answers {
        Answers {
            url: PublicUrl::parse("hooks.example.com", "/x").unwrap(),
            https: Https::Files(Tls {
                cert: "c".into(),
                key: "k".into(),
            }),
            listen: listen.parse().unwrap(),
            data: None,
        }
    }

    fn unit() -> Unit {
        Unit {
            name: "closehook.service".into(),
            user: Some("closehook".into()),
            socket: Some(Socket {
                name: "closehook.socket".into(),
                listens: "[::]:443 (Stream)".into(),
                ..Socket::default()
            }),
            ..Unit::default()
        }
    }

    #[test]
    fn systemd_holds_the_port_where_the_daemon_may_not_take_it() {
        let by_socket = |listen: &str, unit: &Unit| {
            let answers = answers(listen);
            Listening {
                answers: &answers,
                running: None,
                unit: Some(unit),
                is_root: true,
            }
            .by_socket()
        };
        assert!(by_socket("[::]:443", &unit()));
        assert!(!by_socket("[::]:8443", &unit()) && !by_socket("unix:/run/x", &unit()));
        let capable = Unit {
            may_take_low_ports: true,
            ..unit()
        };
        assert!(!by_socket("[::]:443", &capable));
        let mut elsewhere = unit();
        elsewhere.socket.as_mut().unwrap().listens = "[::]:8443 (Stream)".into();
        assert!(!by_socket("[::]:443", &elsewhere));
        // Held already, whatever for.
        elsewhere.socket.as_mut().unwrap().is_active = true;
        assert!(by_socket("127.0.0.1:8443", &elsewhere));
    }

    #[test]
    fn a_port_that_is_taken_is_said() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let answers = answers(&address.to_string());
        let check = |running: Option<&str>| {
            Listening {
                answers: &answers,
                running,
                unit: None,
                is_root: true,
            }
            .check()
        };
        assert!(check(None).unwrap_err().contains("something else listens"));
        assert!(check(Some(&format!("http://{address}/x"))).is_ok());
        drop(taken);
        assert!(check(None).unwrap().contains("is free"));
    }
}
