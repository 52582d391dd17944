//! Commands that have something to take away when they are told to stop: a killed process removes nothing, so the signal must not kill
//! it.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;

/// What tells a command to stop: Ctrl-C, SIGTERM, a terminal that is gone.
pub(super) struct Stop {
    /// `None`: whoever has begun this process wants it to outlive its terminal.
    hangup: Option<Signal>,
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    /// From now on they are heard here, and end the process no more.
    pub fn listen() -> std::io::Result<Stop> {
        let hangup = SignalKind::hangup();
        let hangup = if is_ignored(hangup) {
            None
        } else {
            Some(signal(hangup)?)
        };
        Ok(Stop {
            hangup,
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
            () = came(&mut self.hangup) => false,
            _ = self.interrupt.recv() => true,
            _ = self.terminate.recv() => false,
        }
    }
}

/// Waits until a signal comes that is heard.
async fn came(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Whether this process was begun so that it ignores a signal, as `nohup` has it ignore a hangup, and still does.
fn is_ignored(signal: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status");
    // Where nothing says so it is not.
    status.is_ok_and(|status| is_among_ignored(&status, signal.as_raw_value()))
}

/// `status`: what the kernel says of a process.
fn is_among_ignored(status: &str, signal: i32) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // The first signal has the number 1.
    ignored.is_some_and(|mask| (mask >> (signal - 1)) & 1 == 1)
}

/// Does the work unless it is told to stop: then the work is dropped, with what it had begun.
pub(super) async fn unless_told_to_stop<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut stop = Stop::listen()?;
    tokio::select! {
        done = work => done,
        () = stop.told() => Err(Failure::Work("interrupted: nothing was written".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_a_process_ignores_is_known_by_its_number() {
        let (hangup, pipe) = (SignalKind::hangup().as_raw_value(), SignalKind::pipe().as_raw_value());
        for (status, is_hangup, is_pipe) in [
            (
                "Name:\tclosehook\nSigBlk:\tffff\nSigIgn:\t0000000000001001\nSigCgt:\t0\n",
                true,
                true,
            ),
            ("SigIgn:\t0000000000001000\nSigCgt:\t0000000000000001\n", false, true),
            ("SigIgn:\tx\n", false, false),
            ("", false, false),
        ] {
            let found = (is_among_ignored(status, hangup), is_among_ignored(status, pipe));
            assert_eq!(found, (is_hangup, is_pipe), "{status}");
        }
    }
}
