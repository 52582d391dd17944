//! What has been started, and how listeners and tasks are kept running.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
use crate::close::SETTLED_WITHIN;
use crate::config::{Config, Listen, Span};
use crate::control::{Facade, Window};
use crate::ingress::front::Front;
use crate::listener::abuse::Seat;
use crate::listener::certificates::Certificates;
use crate::listener::connections::{self, Limits};
use crate::listener::sockets::{Listener, Passed};
use crate::supervise;
use crate::task;

/// What is left of a stop's time for these when what comes before them takes all it can. They keep promises: a token is not lost, deliveries come
/// to their end and positions are saved, others may go on at once, the log ends in order.
pub(super) const FOR_SETTLING: Duration = SETTLED_WITHIN.saturating_add(Duration::from_secs(1));
pub(super) const FOR_SINKS: Duration = Duration::from_secs(20);
pub(super) const FOR_LEASES: Duration = Duration::from_secs(3);
pub(super) const FOR_LOG: Duration = Duration::from_secs(8);
pub(super) const FOR_ADMIN: Duration = Duration::from_secs(2);
/// Beyond the drain's time: connections on which nothing goes on are closed first.
pub(super) const FOR_LISTENER: Duration = Duration::from_secs(1);

/// Parts that run, each with what stops it; the one that was started last stops first.
#[derive(Default)]
pub(super) struct Started(Vec<Part>);

struct Part {
    name: &'static str,
    /// So much of a stop's time is not for those before it.
    reserved: Duration,
    stop: BoxFuture<'static, ()>,
}

impl Started {
    /// A part has been started; `stop` is carried out when its turn comes.
    pub fn push(&mut self, part: &'static str, stop: impl Future<Output = ()> + Send + 'static) {
        self.reserve(part, Duration::ZERO, stop);
    }

    /// The same for one that has at least so long for it.
    pub fn reserve(&mut self, part: &'static str, reserved: Duration, stop: impl Future<Output = ()> + Send + 'static) {
        self.0.push(Part {
            name: part,
            reserved,
            stop: Box::pin(stop),
        });
    }

    /// Others that were started after these.
    #[cfg(feature = "engine-jetstream")]
    pub fn extend(&mut self, others: Started) {
        self.0.extend(others.0);
    }

    /// Keeps a task running until its turn to stop comes, when it is dropped; the token it is given says the same.
    pub fn keep<F>(&mut self, task: &'static str, work: impl Fn(CancellationToken) -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let token = stop.clone();
        let kept = task::begin(async move { supervise::run(task, &token, || work(token.clone())).await });
        self.push(task, async move {
            stop.cancel();
            let _ = kept.await;
        });
    }

    /// Stops every part, within this in all. Gives, and says, what was given up on.
    pub async fn stop(mut self, within: Duration) -> Vec<&'static str> {
        let given_up = self.end(within).await;
        if !given_up.is_empty() {
            tracing::error!(
                "some parts did not come to their end in the {} that the stop has, and were given up on: {}",
                Span::secs(within.as_secs()),
                given_up.join(", ")
            );
        }
        given_up
    }

    /// The same without a word. Each has what is left but for what is reserved for those behind it. Where this is broken off, what has not
    /// stopped is still among the parts.
    pub async fn end(&mut self, within: Duration) -> Vec<&'static str> {
        let until = tokio::time::Instant::now() + within;
        let mut given_up = Vec::new();
        while let Some((Part { name, stop, .. }, behind)) = self.0.split_last_mut() {
            tracing::debug!("stopping: {name}");
            let reserved: Duration = behind.iter().map(|part| part.reserved).sum();
            let end = until.checked_sub(reserved).unwrap_or(until);
            // What has nothing to wait for ends also where no time is left.
            if tokio::time::timeout_at(end, stop).await.is_err() {
                given_up.push(*name);
            }
            self.0.pop();
        }
        given_up
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
    let reserved = limits.drain_timeout + FOR_LISTENER;
    let serving = keep_serving("listener", public, stop.clone(), move |listener, stop| {
        let front = front.clone();
        let answer = move |request, seat| front.clone().answer(request, seat);
        connections::serve(listener, certificates.clone(), limits.clone(), answer, stop)
    });
    let serving = task::begin_on(on, serving);
    started.reserve("the listener", reserved, async move {
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
    serve: impl Fn(Arc<Listener>, CancellationToken) -> F + Send + Sync,
) where
    F: Future<Output = ()> + Send,
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
    let built = async move { build_listener(passed, &address, mode, "server.listen").await };
    task::begin_on(on, built).await?
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
            // The disk may not answer.
            let _ = task::begin_blocking(move || std::fs::remove_file(socket)).await;
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
        task::begin(tasks.track_future(self.serving.track_future(serving)));
        let (commands, facade, stopping) = (self.commands.clone(), facade.clone(), stop.clone());
        let listening = async move {
            let serve = || socket::serve(&commands, facade.clone(), socket::LOOK_EVERY, stopping.clone());
            supervise::run("socket", &stopping, serve).await;
        };
        task::begin(tasks.track_future(self.serving.track_future(listening)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::STOP_REST;
    use crate::sync::lock;

    #[test]
    fn everything_that_is_reserved_fits_into_a_stop() {
        let reserved = [FOR_SETTLING, FOR_SINKS, FOR_LEASES, FOR_LOG, FOR_ADMIN, FOR_LISTENER];
        assert!(reserved.into_iter().sum::<Duration>() <= STOP_REST);
        assert!(
            crate::close::SETTLED_WITHIN < FOR_SETTLING,
            "it says what became of tokens"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn parts_that_hang_leave_the_others_their_time_and_are_named() {
        let seconds = Duration::from_secs;
        let less_a_second = |time: Duration| time.saturating_sub(seconds(1));
        let ended: Arc<std::sync::Mutex<Vec<&str>>> = Arc::default();
        let works = |name: &'static str, takes: Duration| {
            let ended = ended.clone();
            async move {
                tokio::time::sleep(takes).await;
                lock(&ended).push(name);
            }
        };
        let mut started = Started::default();
        started.push("at once", works("at once", Duration::ZERO));
        started.reserve("the log", FOR_LOG, works("the log", less_a_second(FOR_LOG)));
        started.push("hangs, too", std::future::pending());
        started.reserve("the sinks", FOR_SINKS, works("the sinks", less_a_second(FOR_SINKS)));
        started.push("hangs", std::future::pending());
        started.push("is quick", works("is quick", Duration::ZERO));
        let began = tokio::time::Instant::now();
        let given_up = started.stop(seconds(60)).await;
        assert_eq!(given_up, ["hangs", "hangs, too"]);
        assert_eq!(*lock(&ended), ["is quick", "the sinks", "the log", "at once"]);
        assert!(began.elapsed() <= seconds(60), "{:?}", began.elapsed());
    }

    /// As where a start that ends what answered meanwhile is told to stop.
    #[tokio::test(start_paused = true)]
    async fn what_had_not_ended_when_a_stop_was_broken_off_ends_with_the_next() {
        let seconds = Duration::from_secs;
        let ended: Arc<std::sync::Mutex<Vec<&str>>> = Arc::default();
        let mut started = Started::default();
        for (name, takes) in [("at once", 0), ("takes long", 10)] {
            let ended = ended.clone();
            started.push(name, async move {
                tokio::time::sleep(seconds(takes)).await;
                lock(&ended).push(name);
            });
        }
        let broken_off = tokio::time::timeout(seconds(5), started.end(seconds(60))).await;
        assert!(broken_off.is_err() && lock(&ended).is_empty());
        assert!(started.stop(seconds(60)).await.is_empty());
        assert_eq!(*lock(&ended), ["takes long", "at once"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_in_which_everything_hangs_ends() {
        let mut started = Started::default();
        for _ in 0..9 {
            started.reserve("a part", Duration::from_secs(20), std::future::pending());
        }
        let began = tokio::time::Instant::now();
        assert_eq!(started.stop(Duration::from_secs(60)).await.len(), 9);
        assert!(began.elapsed() <= Duration::from_secs(61));
    }
}
