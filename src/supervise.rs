//! Tasks that must not end while the process runs: one that panics, or ends all the same, is said, counted
//! (`closehook_restarts_total`) and begun anew after a pause. What it owned has to come from outside of it, so that the next
//! one finds it whole.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::telemetry;

/// How long to wait before a task is begun anew.
#[derive(Debug, Clone, Copy)]
struct Pauses {
    /// After the first time; each further one waits twice as long.
    first: Duration,
    /// The longest.
    max: Duration,
    /// One that has run for so long is as good as one that never failed.
    forgiven_after: Duration,
}

const PAUSES: Pauses = Pauses {
    first: Duration::from_secs(1),
    max: Duration::from_secs(60),
    forgiven_after: Duration::from_secs(600),
};

/// Keeps `work` running until `stop`, and drops it then, wherever it is. `task` is its name for people and metrics.
pub async fn run<'w, F>(task: &str, stop: &CancellationToken, mut work: impl FnMut() -> F + Send)
where
    F: Future<Output = ()> + Send + 'w,
{
    let mut work = || work().boxed();
    stop.run_until_cancelled(again_and_again(task, stop, PAUSES, &mut work))
        .await;
}

/// Keeps `work` running until `stop`, which it has to heed by itself: it is waited for.
pub async fn run_to_end<'w, F>(task: &str, stop: &CancellationToken, mut work: impl FnMut() -> F + Send)
where
    F: Future<Output = ()> + Send + 'w,
{
    again_and_again(task, stop, PAUSES, &mut || work().boxed()).await;
}

/// Compiled once, and not for each kind of work.
async fn again_and_again<'w>(
    task: &str,
    stop: &CancellationToken,
    pauses: Pauses,
    work: &mut (dyn FnMut() -> BoxFuture<'w, ()> + Send),
) {
    telemetry::supervised(task);
    let mut pause = pauses.first;
    loop {
        let began = Instant::now();
        // Making the work may panic as well as doing it.
        let ended = AssertUnwindSafe(async { work().await }).catch_unwind().await;
        let reason = match ended {
            Ok(()) if stop.is_cancelled() => return,
            Ok(()) => "it ended by itself".to_owned(),
            Err(panic) => format!("it panicked: {}", message(&*panic)),
        };
        if began.elapsed() >= pauses.forgiven_after {
            pause = pauses.first;
        }
        telemetry::restarted(task, &reason, pause);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(pauses.max);
    }
}

/// What a panic says of itself.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const AT_ONCE: Pauses = Pauses {
        first: Duration::ZERO,
        max: Duration::ZERO,
        forgiven_after: Duration::MAX,
    };

    #[tokio::test]
    async fn what_panics_or_ends_is_begun_anew_until_the_end_is_wanted() {
        let stop = CancellationToken::new();
        let begun = AtomicU32::new(0);
        let work = || {
            let nth = begun.fetch_add(1, Ordering::SeqCst);
            let stop = stop.clone();
            assert!(nth != 0, "before there is a future");
            async move {
                tokio::task::yield_now().await;
                match nth {
                    1 => panic!("in the {}", "middle"),
                    2 => {}
                    _ => stop.cancel(),
                }
            }
        };
        again_and_again("test", &stop, AT_ONCE, &mut || work().boxed()).await;
        assert_eq!(begun.load(Ordering::SeqCst), 4);
    }

    #[tokio::test]
    async fn work_that_never_ends_is_dropped_at_the_end_and_work_that_listens_is_waited_for() {
        struct Dropped<'a>(&'a Mutex<Vec<&'static str>>);
        impl Drop for Dropped<'_> {
            fn drop(&mut self) {
                self.0.lock().unwrap().push("dropped");
            }
        }
        let said = Mutex::default();
        let stop = CancellationToken::new();
        let endless = run("endless", &stop, || async {
            let _dropped = Dropped(&said);
            std::future::pending::<()>().await;
        });
        let listens = run_to_end("listens", &stop, || async {
            stop.cancelled().await;
            tokio::task::yield_now().await;
            said.lock().unwrap().push("ended");
        });
        let end = async {
            tokio::task::yield_now().await;
            assert!(said.lock().unwrap().is_empty());
            stop.cancel();
        };
        tokio::join!(endless, listens, end);
        let mut said = said.into_inner().unwrap();
        said.sort_unstable();
        assert_eq!(said, ["dropped", "ended"]);
    }

    #[test]
    fn a_panic_is_told_in_its_own_words() {
        let told = |work: fn()| {
            let panic = std::panic::catch_unwind(work).unwrap_err();
            message(&*panic).to_owned()
        };
        assert_eq!(told(|| panic!("plain")), "plain");
        assert_eq!(told(|| panic!("{} {}", "put", "together")), "put together");
        assert_eq!(told(|| std::panic::panic_any(7)), "without a message");
    }
}
