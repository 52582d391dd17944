//! Connections of the HTTP client: to a receiver, or by way of a proxy; metered, and within TLS where the URL says so.

use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::Uri;
use hyper::header::HeaderValue;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tower::Service;

use super::address;
use super::heard::Listener;
use super::meter::{Meter, Metered};

type BoxError = Box<dyn Error + Send + Sync>;
type BoxFuture<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// What resolves names: to any address, or to public ones only.
#[derive(Debug, Clone)]
struct Resolver {
    public_only: bool,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = BoxFuture<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let public_only = self.public_only;
        Box::pin(async move {
            let addresses = if public_only {
                address::public(name.as_str()).await?
            } else {
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect()
            };
            Ok(addresses.into_iter())
        })
    }
}

/// A proxy, and how it knows us.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    pub uri: Uri,
    /// `proxy-authorization`
    pub auth: Option<HeaderValue>,
}

/// Makes connections.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector<Resolver>,
    tls: TlsConnector,
    /// A proxy is spoken to in HTTP/1.1.
    tls_to_proxy: TlsConnector,
    proxy: Option<Arc<Proxy>>,
    within: Duration,
}

impl Connector {
    /// `within`: a connection that is not ready by then, with TLS and all, is none. `public_only` is about receivers, not proxies.
    pub fn new(tls: ClientConfig, proxy: Option<Proxy>, public_only: bool, within: Duration) -> Connector {
        let mut tcp = HttpConnector::new_with_resolver(Resolver {
            public_only: public_only && proxy.is_none(),
        });
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(within));
        let mut tls_to_proxy = tls.clone();
        tls_to_proxy.alpn_protocols = vec![b"http/1.1".to_vec()];
        Connector {
            tcp,
            tls: Arc::new(tls).into(),
            tls_to_proxy: Arc::new(tls_to_proxy).into(),
            proxy: proxy.map(Arc::new),
            within,
        }
    }

    async fn connect(self, to: Uri) -> Result<TokioIo<Wire>, BoxError> {
        let is_https = to.scheme_str() == Some("https");
        let wire = match self.proxy.clone() {
            None => self.reach(to.clone()).await?,
            Some(proxy) if is_https => {
                let mut tunnel = Tunnel::new(proxy.uri.clone(), ToProxy(self.clone()));
                if let Some(auth) = &proxy.auth {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                tunnel.call(to.clone()).await?.into_inner()
            }
            Some(proxy) => Wire {
                is_proxied: true,
                ..self.reach_proxy(proxy.uri.clone()).await?
            },
        };
        let mut wire = if is_https {
            wire.secured(&self.tls, &to).await?
        } else {
            wire
        };
        // What a proxy said on the way here is no answer of the receiver's.
        wire.listener = (!wire.is_h2).then(Listener::default);
        Ok(TokioIo::new(wire))
    }

    async fn reach(&self, to: Uri) -> Result<Wire, BoxError> {
        let stream = self.tcp.clone().call(to).await?.into_inner();
        let metered = Metered::new(stream);
        Ok(Wire {
            meter: metered.meter(),
            io: Box::new(metered),
            is_h2: false,
            is_proxied: false,
            listener: None,
        })
    }

    async fn reach_proxy(&self, proxy: Uri) -> Result<Wire, BoxError> {
        let wire = self.reach(proxy.clone()).await?;
        if proxy.scheme_str() == Some("https") {
            return wire.secured(&self.tls_to_proxy, &proxy).await;
        }
        Ok(wire)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = BoxError;
    type Future = BoxFuture<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let within = connector.within;
            match tokio::time::timeout(within, connector.connect(to)).await {
                Ok(connected) => connected,
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time").into()),
            }
        })
    }
}

/// What a tunnel goes through.
#[derive(Clone)]
struct ToProxy(Connector);

impl Service<Uri> for ToProxy {
    type Response = TokioIo<Wire>;
    type Error = BoxError;
    type Future = BoxFuture<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, proxy: Uri) -> Self::Future {
        let connector = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(connector.reach_proxy(proxy).await?)) })
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, whatever it is made of.
pub(super) struct Wire {
    io: Box<dyn Io>,
    /// Of the bytes as they come from the network.
    meter: Arc<Meter>,
    is_h2: bool,
    /// The proxy is asked for whole URLs.
    is_proxied: bool,
    /// Hears the status of each answer over HTTP/1.1.
    listener: Option<Listener>,
}

impl Wire {
    async fn secured(self, tls: &TlsConnector, to: &Uri) -> Result<Wire, BoxError> {
        let host = to.host().unwrap_or_default().trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned())?;
        let stream = tls.connect(name, self.io).await?;
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Wire {
            io: Box::new(stream),
            is_h2,
            ..self
        })
    }
}

impl Wire {
    /// Something is sent, or tried to be.
    fn sending(&mut self) {
        if let Some(listener) = &mut self.listener {
            listener.sent();
        }
    }
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.is_proxied).extra(self.meter.clone());
        let connected = match &self.listener {
            Some(listener) => connected.extra(listener.heard()),
            None => connected,
        };
        if self.is_h2 {
            connected.negotiated_h2()
        } else {
            connected
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if let Some(listener) = &mut self.listener {
            listener.came(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.sending();
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.sending();
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
