//! What has been started, and how listeners and tasks are kept running.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow};
use futures::future::BoxFuture;
use hyper::Request;
use hyper::body::Incoming;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::roles::{build_listener, limits_of_admin};
use crate::admin::auth::Auth;
use crate::admin::health::Health;
use crate::admin::http;
use crate::admin::socket::{self, Socket};
use crate::admin::state::AdminState;
use crate::admin::viewer::Peer;
use crate::config::{Config, Listen};
use crate::control::{Facade, Window};
use crate::ingress::front::Front;
use crate::listener::abuse::Seat;
use crate::listener::certificates::Certificates;
use crate::listener::connections::{self, Limits};
use crate::listener::sockets::{Listener, Passed};
use crate::supervise;

/// Parts that run, each with what stops it; the one that was started last stops first.
#[derive(Default)]
pub(super) struct Started(Vec<(&'static str, BoxFuture<'static, ()>)>);

impl Started {
    /// A part has been started; `stop` is carried out when its turn comes.
    pub fn push(&mut self, part: &'static str, stop: impl Future<Output = ()> + Send + 'static) {
        self.0.push((part, Box::pin(stop)));
    }

    /// Keeps a task running until its turn to stop comes, when it is dropped; the token it is given says the same.
    pub fn keep<F>(&mut self, task: &'static str, work: impl Fn(CancellationToken) -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let token = stop.clone();
        let kept = tokio::spawn(async move { supervise::run(task, &token, || work(token.clone())).await });
        self.push(task, async move {
            stop.cancel();
            let _ = kept.await;
        });
    }

    /// Stops every part.
    pub async fn stop(mut self) {
        while let Some((part, stop)) = self.0.pop() {
            tracing::debug!("stopping: {part}");
            stop.await;
        }
    }
}

/// Serves the public listener, on its own threads. Where nobody else holds it, it is closed when that stops.
pub(super) fn keep_answering(
    started: &mut Started,
    on: &Handle,
    public: Arc<Listener>,
    certificates: Option<Certificates>,
    limits: Limits,
    front: Front,
) {
    let stop = CancellationToken::new();
    let serving = keep_serving("listener", public, stop.clone(), move |listener, stop| {
        let front = front.clone();
        let answer = move |request, seat| front.clone().answer(request, seat);
        connections::serve(listener, certificates.clone(), limits.clone(), answer, stop)
    });
    let serving = on.spawn(serving);
    started.push("the listener", async move {
        stop.cancel();
        let _ = serving.await;
    });
}

/// Keeps a listener serving until `stop`, and waits for what it still does then. Only the socket's closing is not waited for: who comes
/// after `stop` is turned away at once.
async fn keep_serving<F>(
    task: &'static str,
    listener: Arc<Listener>,
    stop: CancellationToken,
    serve: impl Fn(Arc<Listener>, CancellationToken) -> F,
) where
    F: Future<Output = ()>,
{
    let lent = Arc::downgrade(&listener);
    let serving = supervise::run_to_end(task, &stop, || {
        let serving = lent.upgrade().map(|listener| serve(listener, stop.clone()));
        async {
            if let Some(serving) = serving {
                serving.await;
            }
        }
    });
    let closing = async {
        stop.cancelled().await;
        drop(listener);
    };
    tokio::join!(serving, closing);
}

/// The public listener's socket.
pub(super) async fn public_listener(passed: Option<Passed>, config: &Config, on: &Handle) -> anyhow::Result<Listener> {
    let (address, mode) = (config.server.listen.clone(), config.server.listen_mode);
    on.spawn(async move { build_listener(passed, &address, mode, "server.listen").await })
        .await?
}

/// The ways to ask the daemon: the admin listener, and the socket in the data directory.
pub(super) struct Admin {
    listener: Arc<Listener>,
    commands: Arc<Mutex<Socket>>,
    socket: PathBuf,
    stop: CancellationToken,
    serving: TaskTracker,
}

impl Admin {
    /// Takes their addresses; who comes waits until [`Admin::serve`]. Only for the holder of the data directory.
    pub async fn bind(passed: Option<Passed>, config: &Config) -> anyhow::Result<Admin> {
        let listener = build_listener(passed, &Listen::Tcp(config.admin.listen), 0, "admin.listen").await?;
        let socket = socket::path(&config.log.dir);
        let commands = Socket::bind(&config.log.dir).with_context(|| format!("{} can't be made", socket.display()))?;
        Ok(Admin {
            listener: Arc::new(listener),
            commands: Arc::new(Mutex::new(commands)),
            socket,
            stop: CancellationToken::new(),
            serving: TaskTracker::new(),
        })
    }

    /// Who may look at the page and act on it. What is wrong with tokens is said, and keeps nobody from starting.
    pub fn auth(&self, config: &Config) -> anyhow::Result<Arc<Auth>> {
        let listen = match &*self.listener {
            Listener::Tcp(listener) => listener.local_addr()?,
            // A socket in the file system has no port; who may connect to it is at home here.
            Listener::Unix { .. } => config.admin.listen,
        };
        let (auth, faults) =
            Auth::new(&config.admin, listen, Arc::new(Instant::now)).map_err(|error| anyhow!(error))?;
        for fault in faults {
            tracing::error!(
                "{fault}: nobody can sign in with it until it is put right and `closehook reload` takes it over"
            );
        }
        Ok(Arc::new(auth))
    }

    /// Where the admin listener is.
    pub fn url(&self) -> std::io::Result<String> {
        self.listener.url("http", "")
    }

    /// What stops them, whether they serve by then or not.
    pub fn stop(&self) -> impl Future<Output = ()> + use<> {
        let (stop, serving, socket) = (self.stop.clone(), self.serving.clone(), self.socket.clone());
        async move {
            stop.cancel();
            serving.close();
            serving.wait().await;
            let _ = std::fs::remove_file(socket);
        }
    }

    /// Answers from this facade from now on, until what is given is stopped, or all is.
    pub fn serve(&self, facade: &Arc<Facade>, auth: &Arc<Auth>, metrics: PrometheusHandle, public: &Limits) -> Serving {
        let health = Health {
            facade: facade.clone(),
            metrics,
        };
        let (stop, tasks) = (self.stop.child_token(), TaskTracker::new());
        let state = AdminState::new(Window::new(facade.clone()), auth.clone(), stop.clone());
        let (routes, limits) = (http::router(health, state), limits_of_admin(public));
        let serve = move |listener, stop| {
            let (routes, proxies) = (routes.clone(), limits.proxies.clone());
            let answer = move |mut request: Request<Incoming>, seat: Arc<Seat>| {
                let client = proxies.client(seat.caller, request.headers());
                request.extensions_mut().insert(Peer(client));
                request.extensions_mut().insert(seat.standing.clone());
                routes.clone().oneshot(request)
            };
            connections::serve(listener, None, limits.clone(), answer, stop)
        };
        let serving = keep_serving("admin listener", self.listener.clone(), stop.clone(), serve);
        tasks.spawn(self.serving.track_future(serving));
        let (commands, facade, stopping) = (self.commands.clone(), facade.clone(), stop.clone());
        let listening = async move {
            let serve = || socket::serve(&commands, facade.clone(), socket::LOOK_EVERY, stopping.clone());
            supervise::run("socket", &stopping, serve).await;
        };
        tasks.spawn(self.serving.track_future(listening));
        Serving { stop, tasks }
    }
}

/// What answers for the admin listener and the socket; dropped, it goes on until all stops.
#[cfg_attr(
    not(feature = "engine-jetstream"),
    allow(dead_code, reason = "what is waited for is the servers of several nodes")
)]
pub(super) struct Serving {
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
}
