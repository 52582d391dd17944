//! Beginning work beside what goes on. Here and nowhere else it is handed to the runtime, in boxes, so that all of it is of one type
//! there: what tokio makes for each other type of task, and for each kind of runtime, was a tenth of all the code.
#![allow(clippy::disallowed_methods, reason = "everybody else begins work by what is here")]

use std::any::Any;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinError, JoinHandle, JoinSet};

/// What a task gives, of whatever type.
type Output = Box<dyn Any + Send>;

/// Work that has begun; awaited, it gives what the work gives, or that it panicked or was aborted. Dropped, the work goes on.
#[derive(Debug)]
pub(crate) struct Task<T> {
    handle: JoinHandle<Output>,
    of: PhantomData<fn() -> T>,
}

impl<T> Task<T> {
    fn new(handle: JoinHandle<Output>) -> Task<T> {
        Task {
            handle,
            of: PhantomData,
        }
    }

    /// Drops a task where it is. Work that blocks goes on once it has begun.
    pub fn abort(&self) {
        self.handle.abort();
    }

    /// What aborts it, for somebody else.
    pub fn abort_handle(&self) -> AbortHandle {
        self.handle.abort_handle()
    }

    /// Whether it has come to its end, whichever.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl<T: 'static> Future for Task<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T, JoinError>> {
        let ended = ready!(Pin::new(&mut self.handle).poll(context));
        Poll::Ready(ended.map(|output| match output.downcast() {
            Ok(output) => *output,
            Err(_) => unreachable!("a task gives what its work gives"),
        }))
    }
}

/// A task that is aborted when nobody has this any more.
#[derive(Debug)]
pub(crate) struct WhileHeld(AbortHandle);

impl WhileHeld {
    pub fn of<T>(task: &Task<T>) -> WhileHeld {
        WhileHeld(task.abort_handle())
    }
}

impl Drop for WhileHeld {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Begins a task in the runtime that this is called in.
pub(crate) fn begin<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Task<T> {
    Task::new(tokio::spawn(boxed(work)))
}

/// Begins a task in that runtime.
pub(crate) fn begin_on<T: Send + 'static>(on: &Handle, work: impl Future<Output = T> + Send + 'static) -> Task<T> {
    Task::new(on.spawn(boxed(work)))
}

/// Begins a task among others that are waited for together.
pub(crate) fn begin_among<T: Send + 'static>(set: &mut JoinSet<T>, work: impl Future<Output = T> + Send + 'static) {
    let work: BoxFuture<'static, T> = Box::pin(work);
    set.spawn(work);
}

/// Begins work that may block, on a thread that the runtime which this is called in has for that.
pub(crate) fn begin_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Task<T> {
    Task::new(tokio::task::spawn_blocking(boxed_blocking(work)))
}

/// The same in that runtime.
pub(crate) fn begin_blocking_on<T: Send + 'static>(on: &Handle, work: impl FnOnce() -> T + Send + 'static) -> Task<T> {
    Task::new(on.spawn_blocking(boxed_blocking(work)))
}

/// Begins a thread of its own.
pub(crate) fn begin_thread(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<std::thread::JoinHandle<()>> {
    let work: Box<dyn FnOnce() + Send> = Box::new(work);
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

fn boxed<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> BoxFuture<'static, Output> {
    // No `async` block: it would have room for the work twice.
    Box::pin(work.map(any))
}

fn boxed_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Box<dyn FnOnce() -> Output + Send> {
    Box::new(|| any(work()))
}

fn any<T: Send + 'static>(output: T) -> Output {
    Box::new(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_give_what_their_work_gives() {
        assert_eq!(begin(async { "done".to_owned() }).await.unwrap(), "done");
        assert_eq!(begin_on(&Handle::current(), async { 7 }).await.unwrap(), 7);
        assert_eq!(begin_blocking(|| Some(1.5)).await.unwrap(), Some(1.5));
        begin_blocking_on(&Handle::current(), || ()).await.unwrap();
        // Not what a task's output is kept as.
        assert!(begin(async { any(7) }).await.unwrap().downcast::<i32>().is_ok());
        let mut set = JoinSet::new();
        begin_among(&mut set, async { 1 });
        begin_among(&mut set, std::future::ready(2));
        assert_eq!(set.join_all().await.iter().sum::<i32>(), 3);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_says_itself() {
        let panics: [Task<()>; 2] = [
            begin(async { panic!("in a task") }),
            begin_blocking(|| panic!("on a thread")),
        ];
        for (task, words) in panics.into_iter().zip(["in a task", "on a thread"]) {
            let error = task.await.unwrap_err();
            assert!(error.is_panic() && error.to_string().contains(words), "{error}");
        }
    }

    #[tokio::test]
    async fn only_what_is_aborted_ends_before_its_end() {
        let (go_on, told) = tokio::sync::oneshot::channel::<()>();
        let (ended, has_ended) = tokio::sync::oneshot::channel();
        drop(begin(async move {
            let _ = told.await;
            let _ = ended.send(());
        }));
        go_on.send(()).unwrap();
        has_ended.await.unwrap();

        let aborted: Task<()> = begin(std::future::pending());
        assert!(!aborted.is_finished());
        aborted.abort();
        assert!(aborted.await.unwrap_err().is_cancelled());

        let held: Task<()> = begin(std::future::pending());
        drop(WhileHeld::of(&held));
        assert!(held.await.unwrap_err().is_cancelled());
    }
}
