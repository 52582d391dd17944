//! How one connection stands: whether anything good ever came over it, whether a request runs on it or its head is on its way, and
//! how readily it gives its place to somebody else.
//!
//! What wants a place and what has one meet in numbers only: nothing here knows who is at the other end.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};

/// A connection that has been idle for so long may lose its place to somebody who has something to say.
pub const MOMENT: Duration = Duration::from_secs(1);

/// No request's head is on its way.
const NONE: u64 = u64::MAX;

/// One connection, as those see it who need its place.
#[derive(Debug)]
pub struct Standing {
    opened: Instant,
    /// Requests running.
    running: AtomicUsize,
    /// Milliseconds after `opened` at which a request last began or ended.
    changed_ms: AtomicU64,
    /// Milliseconds after `opened` since when the head of a request is on its way, or [`NONE`]. The first one is awaited from the
    /// beginning, any other from its first byte: until then the connection is idle.
    head_since_ms: AtomicU64,
    /// Its requests share one stream of frames, of which nobody here can tell what begins a head.
    is_multiplexed: AtomicBool,
    /// Something that was signed has come over it.
    has_delivered: AtomicBool,
    /// Its address has delivered before, over whatever connection.
    is_known: AtomicBool,
    is_told: AtomicBool,
    leave: Notify,
}

/// How readily a connection gives its place; the first ones go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Nothing is going on, and nothing good ever came from there.
    Idle,
    /// A request is being received, long since, and nothing good ever came from there.
    Stalled,
    /// Nothing is going on just now.
    Quiet,
    /// A request is being received, long since, from an address that has delivered over other connections.
    StalledKnown,
}

/// A request runs until this is dropped.
#[derive(Debug)]
pub struct Running(Arc<Standing>);

impl Standing {
    /// Of a connection that was just accepted.
    pub fn new() -> Arc<Standing> {
        Arc::new(Standing {
            opened: Instant::now(),
            running: AtomicUsize::new(0),
            changed_ms: AtomicU64::new(0),
            head_since_ms: AtomicU64::new(0),
            is_multiplexed: AtomicBool::new(false),
            has_delivered: AtomicBool::new(false),
            is_known: AtomicBool::new(false),
            is_told: AtomicBool::new(false),
            leave: Notify::new(),
        })
    }

    /// A request begins: its head is here.
    pub fn begin(self: &Arc<Self>, is_multiplexed: bool) -> Running {
        self.change();
        self.head_since_ms.store(NONE, Ordering::SeqCst);
        if is_multiplexed {
            self.is_multiplexed.store(true, Ordering::SeqCst);
        }
        self.running.fetch_add(1, Ordering::SeqCst);
        Running(self.clone())
    }

    /// Bytes have come. Where no request runs they are the next one's.
    fn hear(&self) {
        if self.head_since_ms.load(Ordering::SeqCst) == NONE
            && self.running.load(Ordering::SeqCst) == 0
            && !self.is_multiplexed.load(Ordering::SeqCst)
        {
            self.head_since_ms.store(self.now_ms(), Ordering::SeqCst);
        }
    }

    fn now_ms(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64
    }

    fn change(&self) {
        self.changed_ms.store(self.now_ms(), Ordering::SeqCst);
    }

    /// A signature was verified of what came over it.
    pub fn deliver(&self) {
        // Looked at first: a store would move the line between processors at every delivery.
        if !self.has_delivered() {
            self.has_delivered.store(true, Ordering::Relaxed);
        }
    }

    /// Whether anything that came over it was signed.
    pub fn has_delivered(&self) -> bool {
        self.has_delivered.load(Ordering::Relaxed)
    }

    /// Its address has delivered before.
    pub fn is_known(&self) {
        self.is_known.store(true, Ordering::Relaxed);
    }

    fn unchanged(&self) -> Duration {
        let changed = self.opened + Duration::from_millis(self.changed_ms.load(Ordering::SeqCst));
        changed.elapsed()
    }

    /// How readily it gives its place, where a request may take `patience` to be received; `Err`: not before so long, as far
    /// as is known now.
    pub fn rank(&self, patience: Duration) -> Result<Rank, Duration> {
        let unchanged = self.unchanged();
        let after = |limit: Duration, rank: Rank| {
            if unchanged >= limit {
                Ok(rank)
            } else {
                Err(limit.saturating_sub(unchanged))
            }
        };
        let is_running = self.running.load(Ordering::SeqCst) > 0;
        let is_known = self.is_known.load(Ordering::Relaxed);
        match (self.has_delivered(), is_known, is_running) {
            // It was verified, and is being stored.
            (true, _, true) => Err(MOMENT),
            (false, false, true) => after(patience, Rank::Stalled),
            (false, true, true) => after(patience, Rank::StalledKnown),
            (false, false, false) => after(MOMENT, Rank::Idle),
            (_, _, false) => after(MOMENT, Rank::Quiet),
        }
    }

    /// Tells the connection to close; `false`: it was told before.
    pub fn tell(&self) -> bool {
        let is_first = !self.is_told.swap(true, Ordering::SeqCst);
        if is_first {
            self.leave.notify_one();
        }
        is_first
    }

    /// Returns when the connection must be closed.
    pub async fn told(&self) {
        self.leave.notified().await;
    }

    /// How much is left of the time for a head that is on its way, or for being idle; `None`: a request runs.
    fn left(&self, head: Duration, idle: Duration) -> Option<Duration> {
        if self.running.load(Ordering::SeqCst) > 0 {
            return None;
        }
        let left_idle = idle.saturating_sub(self.unchanged());
        Some(match self.head_since_ms.load(Ordering::SeqCst) {
            NONE => left_idle,
            since => {
                let began = self.opened + Duration::from_millis(since);
                left_idle.min(head.saturating_sub(began.elapsed()))
            }
        })
    }

    /// Returns when a head has been on its way for longer than it may, or when nothing has gone on for too long. To be polled by
    /// the task that reads from the connection, after it has read: so it sees each head that begins, and needs no timer of its
    /// own for those that come at once.
    pub async fn is_overdue(&self, head: Duration, idle: Duration) {
        let mut timer = std::pin::pin!(sleep(head.min(idle)));
        std::future::poll_fn(|context| {
            loop {
                // While a request runs there is nothing to wait for but its end, with which the time for being idle begins anew.
                let left = self.left(head, idle).unwrap_or(idle);
                if left.is_zero() {
                    return Poll::Ready(());
                }
                let end = Instant::now() + left;
                // A later end is seen when the timer is over: putting it off at every request would cost more.
                if timer.is_elapsed() || end < timer.deadline() {
                    timer.as_mut().reset(end);
                }
                if timer.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await;
    }
}

/// A connection's stream that tells its standing when bytes come.
#[derive(Debug)]
pub struct Heard<S> {
    stream: S,
    standing: Arc<Standing>,
}

impl<S> Heard<S> {
    /// Of this connection.
    pub fn new(stream: S, standing: Arc<Standing>) -> Heard<S> {
        Heard { stream, standing }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if into.filled().len() > before {
            self.standing.hear();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.change();
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The places of all connections of a listener. When they are short, those that give theirs most readily are told to go: a few
/// are kept free, so that who has something to say meets no closed door.
#[derive(Debug)]
pub struct Crowd {
    free: Arc<Semaphore>,
    /// How many are told to go at a time, and kept free.
    batch: usize,
    /// How long a request may take to be received where places are short.
    patience: Duration,
    /// In the order in which they came.
    all: Mutex<std::collections::BTreeMap<u64, Arc<Standing>>>,
    next: AtomicU64,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub struct Place {
    crowd: Arc<Crowd>,
    number: Option<u64>,
    _permit: OwnedSemaphorePermit,
}

impl Crowd {
    /// With so many places.
    pub fn new(places: usize, patience: Duration) -> Arc<Crowd> {
        Arc::new(Crowd {
            free: Arc::new(Semaphore::new(places)),
            batch: places / 64 + 1,
            patience,
            all: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    /// A place, as soon as there is one; others are asked for theirs until then. `None`: there are none any more.
    pub async fn place(self: &Arc<Self>) -> Option<Place> {
        loop {
            let free = self.free.available_permits();
            if free < self.batch {
                self.ask(self.batch - free);
            }
            if let Ok(permit) = tokio::time::timeout(MOMENT / 4, self.free.clone().acquire_owned()).await {
                return Some(Place {
                    crowd: self.clone(),
                    number: None,
                    _permit: permit.ok()?,
                });
            }
        }
    }

    /// Tells so many of the most ready ones to go.
    fn ask(&self, count: usize) {
        let all = self.lock();
        let mut ready: Vec<(Rank, u64)> = all
            .iter()
            .filter_map(|(number, standing)| Some((standing.rank(self.patience).ok()?, *number)))
            .collect();
        let count = count.min(ready.len());
        if count < ready.len() {
            ready.select_nth_unstable(count);
        }
        for (_, number) in &ready[..count] {
            all[number].tell();
        }
    }

    /// Returns when all places have been given back.
    pub async fn is_empty(&self, places: usize) {
        let _ = self.free.acquire_many(places.try_into().unwrap_or(u32::MAX)).await;
    }

    fn lock(&self) -> MutexGuard<'_, std::collections::BTreeMap<u64, Arc<Standing>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Says who has it.
    pub fn take(&mut self, standing: &Arc<Standing>) {
        let number = self.crowd.next.fetch_add(1, Ordering::Relaxed);
        self.crowd.lock().insert(number, standing.clone());
        self.number = Some(number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.crowd.lock().remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aged(standing: Arc<Standing>, age: Duration) -> Arc<Standing> {
        let mut standing = Arc::into_inner(standing).unwrap();
        standing.opened = standing.opened.checked_sub(age).unwrap();
        Arc::new(standing)
    }

    #[test]
    fn who_is_at_work_goes_last_and_who_was_verified_never() {
        const PATIENCE: Duration = Duration::from_secs(5);
        let rank = |standing: &Standing| standing.rank(PATIENCE).ok();
        let hour = Duration::from_secs(3600);
        assert_eq!(rank(&Standing::new()), None, "it has only just come");
        let idle = aged(Standing::new(), hour);
        let known = aged(Standing::new(), hour);
        known.is_known();
        let good = aged(Standing::new(), hour);
        good.deliver();
        assert_eq!(rank(&idle), Some(Rank::Idle));
        assert_eq!([rank(&known), rank(&good)], [Some(Rank::Quiet); 2]);
        // A request that has only just begun is given its time.
        let requests = [idle.begin(false), known.begin(false), good.begin(true)];
        assert_eq!([rank(&idle), rank(&known), rank(&good)], [None; 3]);
        for standing in [&idle, &known, &good] {
            standing.changed_ms.store(0, Ordering::SeqCst);
        }
        assert_eq!(rank(&idle), Some(Rank::Stalled));
        assert_eq!(rank(&known), Some(Rank::StalledKnown));
        assert_eq!(rank(&good), None, "what is signed is being stored");
        drop(requests);
        assert_eq!(rank(&good), None, "its next request may be on its way");
    }

    /// Seconds until a connection is over that may take ten for a head and seventy-five between requests. At each of these seconds
    /// it is sent something: `x` is some of a head, `R` its end, `B` the end of one whose request runs a hundred seconds.
    async fn over_after(is_multiplexed: bool, sent: &[(u64, &[u8])]) -> u64 {
        let (client, server) = tokio::io::duplex(64);
        let standing = Standing::new();
        let began = Instant::now();
        let mut heard = Heard::new(server, standing.clone());
        let serving = async {
            let (mut byte, mut running) = ([0], None);
            loop {
                let reading = tokio::io::AsyncReadExt::read_exact(&mut heard, &mut byte);
                tokio::select! {
                    read = reading => drop(read.unwrap()),
                    () = sleep(Duration::from_secs(100)), if running.is_some() => {
                        running = None;
                        continue;
                    }
                }
                match byte[0] {
                    b'R' => drop(standing.begin(is_multiplexed)),
                    b'B' => running = Some(standing.begin(is_multiplexed)),
                    _ => {}
                }
            }
        };
        let sending = async {
            let mut client = client;
            for (at, bytes) in sent {
                tokio::time::sleep_until(began + Duration::from_secs(*at)).await;
                tokio::io::AsyncWriteExt::write_all(&mut client, bytes).await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let connection = async {
            tokio::select! {
                biased;
                () = serving => {}
                () = standing.is_overdue(Duration::from_secs(10), Duration::from_secs(75)) => {}
            }
        };
        tokio::select! {
            biased;
            () = sending => {}
            () = connection => {}
        }
        (began.elapsed() + Duration::from_millis(500)).as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_from_its_first_byte_and_an_idle_connection_has_its_own() {
        assert_eq!(
            over_after(false, &[]).await,
            10,
            "the first head is awaited from the beginning"
        );
        assert_eq!(over_after(false, &[(4, b"x"), (9, b"x")]).await, 10, "byte by byte");
        assert_eq!(over_after(false, &[(9, b"R")]).await, 9 + 75, "idle between requests");
        assert_eq!(over_after(false, &[(0, b"R"), (70, b"R"), (140, b"R")]).await, 140 + 75);
        let slow: Vec<(u64, &[u8])> = (20..40).map(|at| (at, &b"x"[..])).collect();
        let slow = [&[(0, &b"R"[..])], &slow[..]].concat();
        assert_eq!(over_after(false, &slow).await, 20 + 10, "a later head, byte by byte");
        assert_eq!(over_after(false, &[(0, b"R"), (20, b"x"), (29, b"R")]).await, 29 + 75);
        assert_eq!(
            over_after(false, &[(0, b"R"), (70, b"x")]).await,
            75,
            "idle all the same"
        );
        assert_eq!(
            over_after(false, &[(0, b"B")]).await,
            100 + 75,
            "while a request runs nothing is over"
        );
        assert_eq!(
            over_after(true, &[(0, b"R"), (20, b"x")]).await,
            75,
            "frames are no heads"
        );
    }

    #[tokio::test]
    async fn the_oldest_of_the_readiest_are_told_and_a_place_is_kept_free() {
        let crowd = Crowd::new(3, Duration::from_secs(5));
        let hour = Duration::from_secs(3600);
        let all: Vec<Arc<Standing>> = (0..3).map(|_| aged(Standing::new(), hour)).collect();
        all[0].deliver();
        let mut places = Vec::new();
        for standing in &all {
            let mut place = crowd.place().await.unwrap();
            place.take(standing);
            places.push(place);
        }
        assert!(!all[0].is_told.load(Ordering::SeqCst));
        let ((), came) = tokio::join!(
            async {
                all[1].told().await;
                drop(places.remove(1));
            },
            async {
                crowd.ask(1);
                crowd.place().await
            },
        );
        assert!(came.is_some() && !all[0].is_told.load(Ordering::SeqCst));
    }
}
