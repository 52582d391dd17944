//! How one connection stands: whether anything good ever came over it, whether a request runs on it, and how readily it gives
//! its place to somebody else.
//!
//! What wants a place and what has one meet in numbers only: nothing here knows who is at the other end.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// A connection that has been idle for so long may lose its place to somebody who has something to say.
pub const MOMENT: Duration = Duration::from_secs(1);

/// One connection, as those see it who need its place.
#[derive(Debug)]
pub struct Standing {
    opened: Instant,
    /// Requests running.
    running: AtomicUsize,
    /// Milliseconds after `opened` at which a request last began or ended.
    changed_ms: AtomicU64,
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
            has_delivered: AtomicBool::new(false),
            is_known: AtomicBool::new(false),
            is_told: AtomicBool::new(false),
            leave: Notify::new(),
        })
    }

    /// A request begins.
    pub fn begin(self: &Arc<Self>) -> Running {
        self.change();
        self.running.fetch_add(1, Ordering::SeqCst);
        Running(self.clone())
    }

    fn change(&self) {
        let changed_ms = self.opened.elapsed().as_millis() as u64;
        self.changed_ms.store(changed_ms, Ordering::SeqCst);
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

    /// How long no request has run.
    pub fn idle(&self) -> Duration {
        if self.running.load(Ordering::SeqCst) == 0 {
            self.unchanged()
        } else {
            Duration::ZERO
        }
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

    /// Returns when no request has run for so long.
    pub async fn idle_for(&self, limit: Duration) {
        loop {
            let left = limit.saturating_sub(self.idle());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
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
        let requests = [idle.begin(), known.begin(), good.begin()];
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
