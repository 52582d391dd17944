//! What the daemon is told by signals, and what it tells systemd.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::STOP_MARGIN;
use crate::log::Log;

/// The commit loop turns twice a second; if it has not for so long, systemd may kill and restart the process.
const STUCK: Duration = Duration::from_secs(15);

/// The watchdog is fed at least this often.
const FEED_EVERY: Duration = Duration::from_secs(5);

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Stop,
    Reload,
}

/// What the daemon is told by signals.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Never waited for: whoever writes beyond a limit on the size of files (`ulimit -f`, `LimitFSIZE=`) is told so by the write, as
    /// with a full disk.
    _too_large: Signal,
}

impl Signals {
    /// From now on they are heard here, and end the process no more.
    pub fn handle() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            _too_large: signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
        }
    }
}

/// How often systemd's watchdog has to be fed; `None`: there is none.
pub(super) fn watchdog_every() -> Option<Duration> {
    watchdog_limit().map(|limit| (limit / 3).min(FEED_EVERY))
}

/// Feeds the watchdog until dropped.
pub(super) async fn feed_watchdog(log: Arc<dyn Log>, every: Duration) {
    loop {
        // Only the commit loop's life counts: a full disk or a dead sink is no reason to restart.
        if log.since_turned() < STUCK {
            notify(&[sd_notify::NotifyState::Watchdog]);
        }
        tokio::time::sleep(every).await;
    }
}

/// How often systemd wants to hear from this process, as `sd_watchdog_enabled(3)` reads it: without a process id it is meant
/// for whoever reads it.
fn watchdog_limit() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    if std::env::var_os("WATCHDOG_PID").is_some() && number("WATCHDOG_PID") != Some(std::process::id().into()) {
        return None;
    }
    number("WATCHDOG_USEC")
        .filter(|limit| *limit > 0)
        .map(Duration::from_micros)
}

/// Tells systemd that it stops, and how long it may take for it: more than the unit gives, if the configuration wants that.
pub(super) fn notify_stopping(within: Duration) {
    let asked = u32::try_from((within + STOP_MARGIN).as_micros()).unwrap_or(u32::MAX);
    notify(&[
        sd_notify::NotifyState::Stopping,
        sd_notify::NotifyState::ExtendTimeoutUsec(asked),
    ]);
}

/// Tells systemd, where it listens.
pub(super) fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::debug!(%error, "systemd could not be told");
    }
}
