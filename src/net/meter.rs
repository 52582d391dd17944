//! How much a server may send: a connection brings so much, and so much more for each answer; the rest comes slowly.
//!
//! A server that sends without end (interim answers, frames of HTTP/2, records of TLS that hold nothing) would have a thread work on it
//! alone, and nothing it sends is an answer that could be judged. So its connection is read piece by piece with a turn for others in
//! between, only as far as it has credit, and what waits for the answer ends at its own time limit. This stands below TLS, HTTP and
//! proxies: what of theirs is endless does not matter.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::sync::lock;

/// What a connection brings by itself: the handshake with its certificates, and the first head, which may be 1 MiB over HTTP/2.
const OF_A_CONNECTION: usize = 1280 << 10;

/// What comes with each answer: a body as they are, the window of HTTP/2 beyond, and the head of the next one. What a long body has more
/// than that comes out of what the connection has left, and then slowly.
const OF_AN_ANSWER: usize = 256 << 10;

/// Answers come faster than they are read.
const CREDIT_MAX: usize = 16 << 20;

/// What there is always, in bytes a second.
const RATE: usize = 64 << 10;

/// Others have their turn after so much.
const PIECE: usize = 16 << 10;

/// Less is not worth a wake-up.
const CREDIT_MIN: usize = 4 << 10;

/// Interim answers of HTTP/1.1 to one request. Real servers send one or two.
const INTERIM_MAX: usize = 100;

/// The credit of a connection.
#[derive(Debug)]
pub(crate) struct Meter(Mutex<Credit>);

#[derive(Debug)]
struct Credit {
    left: usize,
    /// When it was filled up.
    at: Instant,
    /// Since the last answer.
    interim: usize,
    /// There was none left since the last answer.
    is_spent: bool,
    /// Nobody has waited for an answer since.
    is_given_up: bool,
    /// The connection ends.
    is_cut: bool,
    reader: Option<Waker>,
}

impl Meter {
    fn new() -> Meter {
        Meter(Mutex::new(Credit {
            left: OF_A_CONNECTION,
            at: Instant::now(),
            interim: 0,
            is_spent: false,
            is_given_up: false,
            is_cut: false,
            reader: None,
        }))
    }

    /// An answer has come: more may.
    pub(crate) fn answered(&self) {
        let mut credit = lock(&self.0);
        credit.left = (credit.left + OF_AN_ANSWER).min(CREDIT_MAX);
        credit.interim = 0;
        credit.is_given_up = false;
        if std::mem::take(&mut credit.is_spent) {
            credit.wake();
        }
    }

    /// An interim answer has come.
    pub(super) fn interim(&self) {
        let mut credit = lock(&self.0);
        credit.interim += 1;
        if credit.interim > INTERIM_MAX {
            credit.cut();
        }
    }

    /// Somebody waits no longer for an answer on it: the connection ends if what came instead was more than an answer can be, or, before
    /// there is one to somebody else, as soon as more comes than belongs to one. `true`: it was.
    pub(super) fn gave_up(&self) -> bool {
        let mut credit = lock(&self.0);
        credit.is_given_up = true;
        credit.left = credit.left.min(OF_AN_ANSWER);
        if credit.is_spent {
            credit.cut();
        }
        credit.is_spent
    }

    /// How much may be read now; or when to look again.
    fn allows(&self, now: Instant, reader: &Waker) -> io::Result<Result<usize, Instant>> {
        let mut credit = lock(&self.0);
        if credit.is_cut {
            return Err(io::Error::other(TOO_MUCH));
        }
        let grown = now.saturating_duration_since(credit.at).as_millis() as usize * RATE / 1000;
        if grown > 0 {
            credit.left = credit.left.max((credit.left + grown).min(OF_A_CONNECTION));
            credit.at = now;
        }
        // Who cuts it has to be heard whatever is waited for.
        if !credit.reader.as_ref().is_some_and(|known| known.will_wake(reader)) {
            credit.reader = Some(reader.clone());
        }
        if credit.left >= CREDIT_MIN {
            return Ok(Ok(credit.left.min(PIECE)));
        }
        credit.is_spent = true;
        if credit.is_given_up {
            credit.is_cut = true;
            return Err(io::Error::other(TOO_MUCH));
        }
        let lacking = (CREDIT_MIN - credit.left) as u64 * 1000 / RATE as u64;
        Ok(Err(now + Duration::from_millis(lacking + 1)))
    }

    fn took(&self, len: usize) {
        let mut credit = lock(&self.0);
        credit.left = credit.left.saturating_sub(len);
    }
}

impl Credit {
    fn cut(&mut self) {
        self.is_cut = true;
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// Why a connection was cut.
pub(super) const TOO_MUCH: &str = "the receiver sends without end, and no answer";

/// A connection that is read within its credit.
#[derive(Debug)]
pub(crate) struct Metered<T> {
    inner: T,
    meter: Arc<Meter>,
    /// Since others had their turn.
    read: usize,
    waits: Option<Pin<Box<Sleep>>>,
}

impl<T> Metered<T> {
    pub(crate) fn new(inner: T) -> Metered<T> {
        Metered {
            inner,
            meter: Arc::new(Meter::new()),
            read: 0,
            waits: None,
        }
    }

    pub(crate) fn meter(&self) -> Arc<Meter> {
        self.meter.clone()
    }

    /// How much may be read now.
    fn poll_allowed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            let until = match self.meter.allows(Instant::now(), cx.waker())? {
                Ok(allowed) => {
                    self.waits = None;
                    return Poll::Ready(Ok(allowed));
                }
                Err(until) => until,
            };
            let waits = self
                .waits
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            waits.as_mut().reset(until);
            ready!(waits.as_mut().poll(cx));
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.read >= PIECE {
            this.read = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let allowed = ready!(this.poll_allowed(cx))?;
        let len = allowed.min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(len));
        let polled = Pin::new(&mut this.inner).poll_read(cx, &mut part);
        let len = part.filled().len();
        match polled {
            Poll::Ready(Ok(())) => {
                buf.advance(len);
                this.read += len;
                this.meter.took(len);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                this.read = 0;
                Poll::Pending
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Always has more.
    struct Endless;

    impl AsyncRead for Endless {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let len = buf.remaining();
            buf.initialize_unfilled();
            buf.advance(len);
            Poll::Ready(Ok(()))
        }
    }

    async fn read_within(metered: &mut Metered<Endless>, within: Duration) -> usize {
        let (mut read, mut buffer) = (0, vec![0; 1 << 20]);
        let reading = async {
            loop {
                read += metered.read(&mut buffer).await.unwrap();
            }
        };
        let _ = tokio::time::timeout(within, reading).await;
        read
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_brings_so_much_and_then_slowly_more_until_there_is_an_answer() {
        let mut metered = Metered::new(Endless);
        let meter = metered.meter();
        let at_once = read_within(&mut metered, Duration::from_millis(1)).await;
        assert!(
            at_once <= OF_A_CONNECTION && at_once > OF_A_CONNECTION - PIECE,
            "{at_once}"
        );
        let later = read_within(&mut metered, Duration::from_secs(10)).await;
        assert!((9 * RATE..=11 * RATE).contains(&later), "{later}");
        meter.answered();
        let answered = read_within(&mut metered, Duration::from_millis(1)).await;
        assert!(answered.abs_diff(OF_AN_ANSWER) < PIECE, "{answered}");
        // What is not read is not saved up without end.
        tokio::time::advance(Duration::from_secs(3600)).await;
        let saved = read_within(&mut metered, Duration::from_millis(1)).await;
        assert!(saved <= OF_A_CONNECTION, "{saved}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nobody_waits_is_cut_as_soon_as_it_sends_more_than_an_answer() {
        let read_on = async |metered: &mut Metered<Endless>, buffer: &mut [u8]| {
            let mut read = 0;
            loop {
                match metered.read(buffer).await {
                    Ok(len) => read += len,
                    Err(error) => return (read, error.to_string()),
                }
            }
        };
        let mut buffer = vec![0; 1 << 20];
        let mut metered = Metered::new(Endless);
        assert!(!metered.meter().gave_up(), "it has not sent much yet");
        let soon = Duration::from_secs(1);
        let (read, why) = tokio::time::timeout(soon, read_on(&mut metered, &mut buffer))
            .await
            .unwrap();
        assert!(read <= OF_AN_ANSWER && why == TOO_MUCH, "{read}: {why}");
        // Where somebody else is answered, it is one that works.
        let mut shared = Metered::new(Endless);
        shared.meter().gave_up();
        shared.meter().answered();
        let reading = tokio::time::timeout(soon, read_on(&mut shared, &mut buffer)).await;
        assert!(reading.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn others_have_their_turn_after_each_piece() {
        let mut metered = Metered::new(Endless);
        let mut buffer = vec![0; 1 << 20];
        let turn = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = turn.clone();
        tokio::spawn(async move {
            loop {
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        for _ in 0..20 {
            assert!(metered.read(&mut buffer).await.unwrap() <= PIECE);
        }
        assert!(turn.load(std::sync::atomic::Ordering::Relaxed) >= 19);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_connection_that_sent_too_much_is_cut_and_that_at_once() {
        assert!(!Metered::new(Endless).meter().gave_up(), "it was just slow");
        let mut metered = Metered::new(Endless);
        let meter = metered.meter();
        read_within(&mut metered, Duration::from_secs(1)).await;
        assert!(meter.gave_up());
        assert_eq!(metered.read(&mut [0; 9]).await.unwrap_err().to_string(), TOO_MUCH);
        let mut other = Metered::new(Endless);
        for _ in 0..=INTERIM_MAX {
            other.read_exact(&mut [0; 9]).await.unwrap();
            other.meter().interim();
        }
        assert!(other.read(&mut [0; 9]).await.is_err());
    }
}
