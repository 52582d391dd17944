//! Locks whose poison is ignored: what they guard is only ever changed in one step, so a panicking holder leaves it whole; and work on a
//! thread of its own, one at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::task;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn read_lock<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write_lock<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// What is to be asked of a disk that may hang, from where nobody may wait for it: one at a time, for each that hangs keeps a thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct OneAtATime(Arc<tokio::sync::Mutex<()>>);

impl OneAtATime {
    /// Does it on a thread of its own when its turn has come. Who stops waiting does not stop it. An error: it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        let turn = self.0.clone().lock_owned().await;
        let work = move || {
            let _turn = turn;
            work()
        };
        task::begin_blocking(work).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_comes_while_one_hangs_takes_no_other_thread() {
        let (one, begun) = (OneAtATime::default(), Arc::new(Mutex::new(0)));
        let (go_on, hangs) = std::sync::mpsc::channel::<()>();
        let count = begun.clone();
        let first = one.run(move || {
            *lock(&count) += 1;
            hangs.recv().is_ok()
        });
        let mut first = Box::pin(first);
        assert!(futures::poll!(&mut first).is_pending());
        let count = begun.clone();
        let mut second = Box::pin(one.run(move || *lock(&count) += 1));
        assert!(futures::poll!(&mut second).is_pending());
        // Nobody waits for it any more, and it is its turn still.
        drop(first);
        assert!(futures::poll!(&mut second).is_pending());
        assert!(*lock(&begun) <= 1);
        go_on.send(()).unwrap();
        second.await.unwrap();
        assert_eq!(*lock(&begun), 2);
    }
}
