//! Commands that have something to take away when they are told to stop: a killed process removes nothing, so the signal must not kill
//! it.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;

/// What tells a command to stop: Ctrl-C, SIGTERM, a terminal that is gone.
pub(super) struct Stop {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    /// From now on they are heard here, and end the process no more.
    pub fn listen() -> std::io::Result<Stop> {
        Ok(Stop {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits until one comes.
    pub async fn told(&mut self) {
        self.told_by_hand().await;
    }

    /// The same. Whether it is Ctrl-C: then a person is there, who wants it.
    pub async fn told_by_hand(&mut self) -> bool {
        tokio::select! {
            _ = self.hangup.recv() => false,
            _ = self.interrupt.recv() => true,
            _ = self.terminate.recv() => false,
        }
    }
}

/// Does the work unless it is told to stop: then the work is dropped, with what it had begun.
pub(super) async fn unless_told_to_stop<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut stop = Stop::listen()?;
    tokio::select! {
        done = work => done,
        () = stop.told() => Err(Failure::Work("interrupted: nothing was written".into())),
    }
}
