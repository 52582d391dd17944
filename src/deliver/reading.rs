//! Reading single events and letters: within a limit, whatever a disk does, and holding no more than what was asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::event::{Event, Seq};
use crate::log::{Log, ReadError};
use crate::task;

/// The log, or a file, has so long to answer.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// Reads of files that are under way at the most: those that hang with a disk leave threads to everybody else.
static HANDS: Semaphore = Semaphore::const_new(64);

const SILENT: &str = "it does not answer";

/// What a read of the log comes to; one that does not end is an error.
pub(super) async fn within<T>(read: impl Future<Output = Result<T, ReadError>>) -> Result<T, ReadError> {
    let read = tokio::time::timeout(READ_WITHIN, read).await;
    read.unwrap_or_else(|_| Err(ReadError(SILENT.into())))
}

/// One past the newest that the log has, as its servers say.
pub(super) async fn end_of(log: &dyn Log) -> Result<Seq, ReadError> {
    let asked = within(log.seq_at(Timestamp::MAX)).await?;
    Ok(asked.max(log.head().borrow().next()))
}

/// A read of a file, or a change that is made again where it is not known to be done, on a thread of its own: a disk that hangs takes none from those who do other work.
pub(super) async fn aside<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let reading = async {
        let hand = HANDS.acquire().await;
        let read = task::begin_blocking(move || {
            let _hand = hand;
            read()
        });
        read.await.map_err(|panicked| panicked.to_string())
    };
    let read = tokio::time::timeout(READ_WITHIN, reading).await;
    read.unwrap_or_else(|_| Err(SILENT.into()))
}

/// The same for what may take long: it is waited for as long as it gets on, and it calls what it is given each time that it does.
pub(super) async fn at_length<T: Send + 'static>(
    work: impl FnOnce(&dyn Fn()) -> T + Send + 'static,
) -> Result<T, String> {
    let turns = Arc::new(AtomicU64::new(0));
    let turned = turns.clone();
    let working = async {
        let hand = HANDS.acquire().await;
        let work = task::begin_blocking(move || {
            let _hand = hand;
            work(&|| {
                turned.fetch_add(1, Ordering::Relaxed);
            })
        });
        work.await.map_err(|panicked| panicked.to_string())
    };
    let (mut working, mut seen) = (std::pin::pin!(working), 0);
    loop {
        if let Ok(done) = tokio::time::timeout(READ_WITHIN, &mut working).await {
            return done;
        }
        let now = turns.load(Ordering::Relaxed);
        if now == seen {
            return Err(SILENT.into());
        }
        seen = now;
    }
}

/// A body that is longer is kept as it was read, with the block of the log that it lies in; a shorter one is copied out of it.
const COPY_MAX: usize = 64 << 10;

/// Whether a body is copied out of its block.
pub(super) fn is_copied(event: &Event) -> bool {
    event.body.len() <= COPY_MAX
}

/// The event on its own: a body in a block of the log keeps all of the block in memory.
pub(super) fn detached(event: Arc<Event>) -> Arc<Event> {
    let event = if is_copied(&event) {
        Arc::new(event.detached())
    } else {
        event
    };
    // Every sink asks for its fields: found here, while the sink is at work, they keep no delivery waiting.
    let _ = event.view();
    event
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::event::{Kind, Seq, Source};

    #[test]
    fn a_small_body_lets_go_of_the_block_it_was_read_in() {
        let block = Bytes::from(vec![b'x'; 1 << 20]);
        let event = |body: Bytes| {
            Arc::new(Event::new(
                Seq(1),
                jiff::Timestamp::UNIX_EPOCH,
                Source::Webhook,
                Kind::Event,
                None,
                body,
            ))
        };
        let small = detached(event(block.slice(10..600)));
        let large = detached(event(block.slice(0..=COPY_MAX)));
        assert!(!block.as_ptr_range().contains(&small.body.as_ptr()));
        assert!(block.as_ptr_range().contains(&large.body.as_ptr()));
        assert_eq!(small.body, block.slice(10..600));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_answer_is_an_error_and_is_waited_for_no_longer() {
        let log = within(std::future::pending::<Result<(), ReadError>>()).await;
        assert!(log.unwrap_err().to_string().contains(SILENT));
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let file = aside(move || gate.recv().is_ok());
        let (file, ()) = tokio::join!(file, tokio::time::advance(READ_WITHIN));
        assert_eq!(file, Err(SILENT.to_owned()));
        drop(open);
    }

    #[tokio::test(start_paused = true)]
    async fn what_gets_on_is_waited_for_however_long_it_takes() {
        const TURNS: u32 = 5;
        let (order, orders) = std::sync::mpsc::channel::<()>();
        let (obey, mut obeyed) = tokio::sync::mpsc::unbounded_channel();
        let work = at_length(move |turn| {
            let mut turns = 0;
            while orders.recv().is_ok() {
                turn();
                turns += 1;
                obey.send(()).unwrap();
            }
            turns
        });
        let time = async {
            for _ in 0..TURNS {
                order.send(()).unwrap();
                obeyed.recv().await.unwrap();
                tokio::time::advance(READ_WITHIN).await;
            }
            drop(order);
        };
        let (done, ()) = tokio::join!(work, time);
        assert_eq!(done, Ok(TURNS));

        let (open, gate) = std::sync::mpsc::channel::<()>();
        let hangs = at_length(move |turn| {
            turn();
            gate.recv().is_ok()
        });
        let time = async {
            for _ in 0..2 {
                tokio::time::advance(READ_WITHIN).await;
                tokio::task::yield_now().await;
            }
        };
        let (hangs, ()) = tokio::join!(hangs, time);
        assert_eq!(hangs, Err(SILENT.to_owned()));
        drop(open);
    }
}
