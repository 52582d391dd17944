//! A thread of its own for what may block for ever: a pipe that nobody reads, a mount whose server is gone.
//!
//! Whoever waits for the work has a deadline and goes on without it; the thread stays behind and ends when the work comes back.
//! It is no thread of the runtime's, so it keeps neither other work nor the end of the process waiting.

use std::collections::BTreeSet;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::task;

type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

/// A value that lives on a thread of its own, and the way to work on it. The thread ends when this is dropped and what it was
/// doing is over.
pub(in crate::sinks) struct OwnThread<T> {
    jobs: Mutex<Sender<Job<T>>>,
}

/// Work did not come back in time, or its thread has panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sinks) struct Stuck;

impl<T: Send + 'static> OwnThread<T> {
    /// Starts the thread; it holds `claim` until it ends.
    pub fn start(name: &str, mut value: T, claim: Claim) -> std::io::Result<OwnThread<T>> {
        let (jobs, waiting) = channel::<Job<T>>();
        task::begin_thread(name, move || {
            let _claim = claim;
            while let Ok(job) = waiting.recv() {
                job(&mut value);
            }
        })?;
        Ok(OwnThread { jobs: Mutex::new(jobs) })
    }

    /// Has work done, in the order of the calls, and waits for it at most so long.
    pub async fn run<R: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> Result<R, Stuck> {
        let (done, answer) = oneshot::channel();
        // Work that was not begun when whoever waits gives it up is never done, and what it holds is let go at once: behind work that
        // is stuck, each try would leave its own.
        let waiting = Waiting(Arc::new(Mutex::new(Some(work))));
        let held = waiting.0.clone();
        let job: Job<T> = Box::new(move |value| {
            let work = held.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(work) = work {
                // Nobody may be waiting any more.
                let _ = done.send(work(value));
            }
        });
        let sent = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).send(job);
        sent.map_err(|_| Stuck)?;
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) | Err(_) => Err(Stuck),
        }
    }
}

/// Work that is done only while this is held.
struct Waiting<W>(Arc<Mutex<Option<W>>>);

impl<W> Drop for Waiting<W> {
    fn drop(&mut self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Names of what threads work on.
static CLAIMED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Nobody else in this process works on what has this name, until this is dropped.
#[derive(Debug)]
pub(in crate::sinks) struct Claim(String);

impl Claim {
    /// Waits until whoever had it lets go, at most so long.
    pub async fn wait(name: &str, limit: Duration) -> Result<Claim, Stuck> {
        let until = Instant::now() + limit;
        loop {
            if CLAIMED
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(name.to_owned())
            {
                return Ok(Claim(name.to_owned()));
            }
            if Instant::now() >= until {
                return Err(Stuck);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn work_that_does_not_come_back_is_left_behind_and_its_claim_is_free_when_it_does() {
        let name = "left behind";
        let claim = Claim::wait(name, LONG).await.unwrap();
        let thread = OwnThread::start("test", 1_u32, claim).unwrap();
        assert_eq!(thread.run(LONG, |value| *value + 1).await, Ok(2));
        let (go_on, wait) = channel::<()>();
        assert_eq!(thread.run(SOON, move |_| wait.recv().is_ok()).await, Err(Stuck));
        drop(thread);
        assert_eq!(Claim::wait(name, SOON).await.unwrap_err(), Stuck);
        go_on.send(()).unwrap();
        Claim::wait(name, LONG).await.unwrap();
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_any_more_is_not_begun() {
        let claim = Claim::wait("not begun", LONG).await.unwrap();
        let thread = OwnThread::start("test", 0_u32, claim).unwrap();
        let (go_on, wait) = channel::<()>();
        assert_eq!(thread.run(SOON, move |_| wait.recv().is_ok()).await, Err(Stuck));
        let held = std::sync::Arc::new(());
        for _ in 0..5 {
            let held = held.clone();
            let late = thread.run(SOON, move |value| {
                *value += 1;
                drop(held);
            });
            assert_eq!(late.await, Err(Stuck));
        }
        assert_eq!(std::sync::Arc::strong_count(&held), 1, "and what it holds is let go");
        go_on.send(()).unwrap();
        assert_eq!(thread.run(LONG, |value| *value).await, Ok(0));
    }

    #[tokio::test]
    async fn a_panic_is_no_wait() {
        let claim = Claim::wait("panic", LONG).await.unwrap();
        let thread = OwnThread::start("test", (), claim).unwrap();
        assert_eq!(thread.run(LONG, |()| panic!("on purpose")).await, Err(Stuck));
        Claim::wait("panic", LONG).await.unwrap();
    }
}
