//! What one address may do to the others: so many connections, and so many failed requests until its refusals come slowly.
//!
//! Nothing here refuses a validly signed delivery because of its address. Close may share an address with an attacker (a
//! proxy's, a carrier's), so
//!
//! - requests of an address that keeps failing are still read and verified; only their *refusals* wait, which ties the
//!   attacker's connections up while a signed delivery is answered at once;
//! - a new connection of an address that has as many as it may takes the place of its oldest one that has never delivered
//!   anything: of one that is idle first, of one with a request that is still being received only when that takes long.
//!   Until there is one it waits; only when it has waited long is it turned away;
//! - an address is *proven* when a signature is verified of what came from there. What is short is taken from others first.
//!
//! Addresses of this machine are not limited: they are a proxy's, and everybody is behind it. IPv6 addresses count by their
//! /64, of which every customer has one. Nothing is kept that an attacker could grow: failures are remembered for the
//! latest few thousand addresses, seats as long as the connections they belong to.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::sync::Notify;

use super::proxy::{Caller, UNKNOWN};
use super::standing::Standing;
use crate::config::Networks;
use crate::telemetry;

/// Failures that are answered at once, before the rate counts.
const BURST: f64 = 60.0;

/// The most that is held against an address: so it is soon forgiven.
const HELD_AGAINST_MAX: f64 = 2.0 * BURST;

/// How long the refusal of an address that keeps failing waits.
pub const PENALTY: Duration = Duration::from_secs(2);

/// Refusals of one address that wait at a time; beyond it the connection is closed without one.
const WAITING_MAX: u32 = 64;

/// Connections of one address that wait for a place, or as many as may have one, whichever is more.
const WAITING_FOR_SEATS_MAX: usize = 256;

/// Addresses that have delivered and are remembered.
const PROVEN_MAX: NonZeroUsize = NonZeroUsize::new(8192).unwrap();

/// Addresses whose failures are remembered.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(8192).unwrap();

/// What counts as one address: an IPv4 address, or the /64 of an IPv6 one.
pub fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// The limits, and what is going on under them.
#[derive(Debug)]
pub struct Guard {
    allow: Networks,
    /// `None`: no limit.
    connections_max: Option<usize>,
    failures_per_second: f64,
    seats: Mutex<HashMap<IpAddr, Seats>>,
    failing: Mutex<LruCache<IpAddr, Failing>>,
    proven: Proven,
}

/// The addresses from which something signed has come, as far as they are remembered. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Proven(Arc<Mutex<LruCache<IpAddr, ()>>>);

impl Default for Proven {
    fn default() -> Proven {
        Proven(Arc::new(Mutex::new(LruCache::new(PROVEN_MAX))))
    }
}

impl Proven {
    /// A signature was verified of what came from there. An address that nobody knows proves nothing.
    pub fn add(&self, address: IpAddr) {
        if address != UNKNOWN {
            lock(&self.0).put(group(address), ());
        }
    }

    /// Whether anything signed has come from there.
    pub fn contains(&self, address: IpAddr) -> bool {
        lock(&self.0).contains(&group(address))
    }
}

/// The connections of one address.
#[derive(Debug, Default)]
struct Seats {
    /// In the order in which they came.
    taken: Vec<Arc<Standing>>,
    /// How many more wait for a place.
    waiting: usize,
    freed: Arc<Notify>,
}

impl Seats {
    /// Takes a place, of somebody else if need be, where a request may take `patience` to be received. `Err`: there may be one
    /// after so long.
    fn take(&mut self, standing: &Arc<Standing>, max: usize, patience: Duration) -> Result<bool, Duration> {
        let mut displaced = false;
        if self.taken.len() >= max {
            let unproven = self
                .taken
                .iter()
                .enumerate()
                .filter(|(_, taken)| !taken.has_delivered());
            let ranked = unproven.map(|(index, taken)| (taken.rank(patience), index));
            // The readiest, and of those the oldest; where there is none, the one that will be first.
            let readiest = ranked.min_by(|(one, _), (other, _)| match (one, other) {
                (Ok(one), Ok(other)) => one.cmp(other),
                (Err(one), Err(other)) => one.cmp(other),
                (Ok(_), Err(_)) => std::cmp::Ordering::Less,
                (Err(_), Ok(_)) => std::cmp::Ordering::Greater,
            });
            match readiest {
                Some((Ok(_), index)) => displaced = self.taken.remove(index).tell(),
                Some((Err(wait), _)) => return Err(wait),
                None => return Err(Duration::MAX),
            }
        }
        self.taken.push(standing.clone());
        Ok(displaced)
    }
}

/// One connection's place among those of its address; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    /// Who has it.
    pub caller: Caller,
    /// How its connection stands.
    pub standing: Arc<Standing>,
    guard: Arc<Guard>,
    /// `None` where connections are not limited.
    group: Option<IpAddr>,
}

/// How much is held against an address.
#[derive(Debug)]
struct Failing {
    /// Failures, less what has been forgiven since.
    held: f64,
    at: Instant,
    waiting: u32,
}

/// What becomes of a refusal.
#[derive(Debug)]
pub enum Verdict {
    /// It is sent at once.
    AtOnce,
    /// It is sent after [`PENALTY`]; the value is dropped then.
    Later(Waiting),
    /// Nothing is sent, and the connection is closed if nothing good has ever come over it.
    Never,
}

/// A refusal that waits; counted until dropped.
#[derive(Debug)]
pub struct Waiting {
    guard: Arc<Guard>,
    group: IpAddr,
}

impl Guard {
    /// A guard that lets networks in (all, where there are none), with limits for each address.
    pub fn new(allow: Networks, connections_max: usize, failures_per_second: f64) -> Arc<Guard> {
        Arc::new(Guard {
            allow,
            connections_max: Some(connections_max),
            failures_per_second,
            seats: Mutex::default(),
            failing: Mutex::new(LruCache::new(REMEMBERED_MAX)),
            proven: Proven::default(),
        })
    }

    /// A guard that lets everybody do everything.
    pub fn off() -> Arc<Guard> {
        Arc::new(Guard {
            allow: Networks::default(),
            connections_max: None,
            failures_per_second: f64::INFINITY,
            seats: Mutex::default(),
            failing: Mutex::new(LruCache::new(NonZeroUsize::MIN)),
            proven: Proven::default(),
        })
    }

    /// Whether an address may send at all. One that nobody knows may only where everybody may.
    pub fn allows(&self, address: IpAddr) -> bool {
        self.allow.is_empty() || (address != UNKNOWN && self.allow.contains(address))
    }

    /// The addresses that have delivered.
    pub fn proven(&self) -> &Proven {
        &self.proven
    }

    /// A place for a new connection, for which it may wait; `None`: it must be closed. Who speaks for others has no limit and is
    /// not looked at here.
    pub async fn seat(self: &Arc<Self>, caller: Caller, standing: &Arc<Standing>, patience: Duration) -> Option<Seat> {
        if !caller.is_proxy && !self.allows(caller.address) {
            telemetry::turned_away("network", caller.address);
            return None;
        }
        let is_limited = self.connections_max.is_some() && !caller.is_proxy && !caller.address.is_loopback();
        let group = is_limited.then(|| group(caller.address));
        if self.connections_max.is_some() && self.proven.contains(caller.address) {
            standing.is_known();
        }
        if let (Some(group), Some(max)) = (group, self.connections_max)
            && !self.taken(group, standing, max, patience).await
        {
            telemetry::turned_away("connections", caller.address);
            return None;
        }
        Some(Seat {
            caller,
            standing: standing.clone(),
            guard: self.clone(),
            group,
        })
    }

    /// Takes a place among those of an address; `false`: there was none in all that time, or too many wait for one.
    async fn taken(&self, group: IpAddr, standing: &Arc<Standing>, max: usize, patience: Duration) -> bool {
        let end = tokio::time::Instant::now() + patience;
        let mut waiting = None;
        loop {
            let (wait, freed) = {
                let mut all = lock(&self.seats);
                let seats = all.entry(group).or_default();
                let wait = match seats.take(standing, max, patience / 2) {
                    Ok(displaced) => {
                        if displaced {
                            telemetry::displaced(group);
                        }
                        return true;
                    }
                    Err(wait) => wait,
                };
                if waiting.is_none() {
                    if seats.waiting >= WAITING_FOR_SEATS_MAX.max(max) {
                        return false;
                    }
                    seats.waiting += 1;
                    waiting = Some(WaitingForSeat { guard: self, group });
                }
                (wait, seats.freed.clone().notified_owned())
            };
            let now = tokio::time::Instant::now();
            if now >= end {
                return false;
            }
            let until = now.checked_add(wait).unwrap_or(end).min(end);
            let _ = tokio::time::timeout_at(until, freed).await;
        }
    }

    /// Counts a failed request, and says what becomes of its refusal.
    pub fn failed(self: &Arc<Self>, address: IpAddr, now: Instant) -> Verdict {
        if self.connections_max.is_none() || address.is_loopback() {
            return Verdict::AtOnce;
        }
        let group = group(address);
        let mut failing = lock(&self.failing);
        let entry = failing.get_or_insert_mut(group, || Failing {
            held: 0.0,
            at: now,
            waiting: 0,
        });
        let forgiven = now.saturating_duration_since(entry.at).as_secs_f64() * self.failures_per_second;
        entry.held = ((entry.held - forgiven).max(0.0) + 1.0).min(HELD_AGAINST_MAX);
        entry.at = now;
        if entry.held <= BURST {
            return Verdict::AtOnce;
        }
        telemetry::slowed(address);
        if entry.waiting >= WAITING_MAX {
            return Verdict::Never;
        }
        entry.waiting += 1;
        Verdict::Later(Waiting {
            guard: self.clone(),
            group,
        })
    }
}

impl Seat {
    /// A signature was verified of what a client sent over this connection: it keeps its place, and the client is known.
    pub fn verified(&self, client: IpAddr) {
        self.standing.deliver();
        self.guard.proven.add(client);
    }

    /// Closes the connection, unless something good has come over it or others may be behind it.
    pub fn close(&self) {
        if !self.caller.is_proxy && !self.standing.has_delivered() {
            self.standing.tell();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(group) = self.group else { return };
        let mut seats = lock(&self.guard.seats);
        if let Some(of_group) = seats.get_mut(&group) {
            of_group.taken.retain(|taken| !Arc::ptr_eq(taken, &self.standing));
            of_group.freed.notify_one();
            if of_group.taken.is_empty() && of_group.waiting == 0 {
                seats.remove(&group);
            }
        }
    }
}

/// A connection that waits for a place among those of its address, counted until dropped.
struct WaitingForSeat<'g> {
    guard: &'g Guard,
    group: IpAddr,
}

impl Drop for WaitingForSeat<'_> {
    fn drop(&mut self) {
        let mut seats = lock(&self.guard.seats);
        if let Some(of_group) = seats.get_mut(&self.group) {
            of_group.waiting -= 1;
            // What it may have been told and did not use is for the next one.
            of_group.freed.notify_one();
            if of_group.taken.is_empty() && of_group.waiting == 0 {
                seats.remove(&self.group);
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It may have been forgotten, and even be known anew.
        if let Some(entry) = lock(&self.guard.failing).peek_mut(&self.group) {
            entry.waiting = entry.waiting.saturating_sub(1);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn caller(address: &str) -> Caller {
        Caller {
            address: address.parse().unwrap(),
            is_proxy: false,
        }
    }

    fn is_told_to_leave(seat: &Seat) -> bool {
        use futures::FutureExt;
        seat.standing.told().now_or_never().is_some()
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn seat(guard: &Arc<Guard>, address: &str) -> Option<Seat> {
        guard.seat(caller(address), &Standing::new(), PATIENCE).await
    }

    fn delivers(seat: &Seat) {
        seat.verified(seat.caller.address);
    }

    #[tokio::test]
    async fn a_new_connection_takes_the_place_of_the_oldest_that_never_delivered() {
        let guard = Guard::new(Networks::default(), 3, 1.0);
        let good = seat(&guard, "198.51.100.1").await.unwrap();
        delivers(&good);
        let idle = seat(&guard, "198.51.100.1").await.unwrap();
        let later = seat(&guard, "198.51.100.1").await.unwrap();
        let other = seat(&guard, "198.51.100.2").await.unwrap();
        let new = seat(&guard, "198.51.100.1").await.unwrap();
        assert!(is_told_to_leave(&idle));
        assert!(!is_told_to_leave(&good) && !is_told_to_leave(&later) && !is_told_to_leave(&other));
        drop((idle, good, later, other, new));
        assert!(lock(&guard.seats).is_empty(), "nothing is left behind");
    }

    #[tokio::test]
    async fn who_is_at_work_is_waited_for_and_who_waits_gets_the_place() {
        use futures::FutureExt;
        let guard = Guard::new(Networks::default(), 2, 1.0);
        let (one, two) = (seat(&guard, "198.51.100.1").await, seat(&guard, "198.51.100.1").await);
        let (one, two) = (one.unwrap(), two.unwrap());
        let requests = [one.standing.begin(false), two.standing.begin(false)];
        let mut waiting = std::pin::pin!(seat(&guard, "198.51.100.1"));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(!is_told_to_leave(&one) && !is_told_to_leave(&two));
        // Verified, and so never displaced.
        delivers(&one);
        drop((requests, two));
        let three = waiting.await.unwrap();
        delivers(&three);
        // No more may wait than that.
        lock(&guard.seats).entry(one.caller.address).or_default().waiting = WAITING_FOR_SEATS_MAX;
        assert!(seat(&guard, "198.51.100.1").await.is_none());
    }

    #[tokio::test]
    async fn where_all_are_good_ones_the_new_one_is_turned_away_in_the_end() {
        let guard = Guard::new(Networks::default(), 1, 1.0);
        let good = seat(&guard, "198.51.100.1").await.unwrap();
        delivers(&good);
        let short = Duration::from_millis(20);
        let late = guard.seat(caller("198.51.100.1"), &Standing::new(), short).await;
        assert!(late.is_none() && !is_told_to_leave(&good));
        assert_eq!(lock(&guard.seats)[&good.caller.address].waiting, 0);
    }

    #[tokio::test]
    async fn proxies_and_this_machine_have_no_limit() {
        let guard = Guard::new(Networks::default(), 1, 1.0);
        let proxy = Caller {
            is_proxy: true,
            ..caller("198.51.100.1")
        };
        let mut seats = Vec::new();
        for _ in 0..10 {
            seats.push(guard.seat(proxy, &Standing::new(), PATIENCE).await.unwrap());
            seats.push(seat(&guard, "127.0.0.1").await.unwrap());
        }
        assert!(seats.iter().all(|seat| !is_told_to_leave(seat)));
        let now = Instant::now();
        for _ in 0..1000 {
            assert!(matches!(guard.failed([127, 0, 0, 1].into(), now), Verdict::AtOnce));
        }
    }

    #[tokio::test]
    async fn only_networks_that_are_allowed_get_in() {
        let guard = Guard::new("198.51.100.0/24".parse().unwrap(), 1, 1.0);
        assert!(seat(&guard, "198.51.100.1").await.is_some());
        assert!(seat(&guard, "203.0.113.1").await.is_none());
        assert!(seat(&guard, "127.0.0.1").await.is_none());
        let everybody = Guard::new("0.0.0.0/0, ::/0".parse().unwrap(), 1, 1.0);
        assert!(everybody.allows("203.0.113.1".parse().unwrap()) && !everybody.allows(UNKNOWN));
    }

    #[test]
    fn refusals_wait_after_a_burst_and_are_dropped_when_too_many_wait() {
        let guard = Guard::new(Networks::default(), 8, 1.0);
        let (address, now) = ("2001:db8::1".parse().unwrap(), Instant::now());
        for _ in 0..60 {
            assert!(matches!(guard.failed(address, now), Verdict::AtOnce));
        }
        // The rest of its /64 is the same sender, and another network is not.
        let neighbour = "2001:db8::ffff:1".parse().unwrap();
        let mut waiting = vec![guard.failed(neighbour, now)];
        assert!(matches!(
            guard.failed("2001:db8:0:1::1".parse().unwrap(), now),
            Verdict::AtOnce
        ));
        waiting.extend((1..WAITING_MAX).map(|_| guard.failed(address, now)));
        assert!(waiting.iter().all(|verdict| matches!(verdict, Verdict::Later(_))));
        assert!(matches!(guard.failed(address, now), Verdict::Never));
        drop(waiting);
        assert!(matches!(guard.failed(address, now), Verdict::Later(_)));
        // Forgiven with time, soon even after the worst.
        assert!(matches!(
            guard.failed(address, now + Duration::from_secs(70)),
            Verdict::AtOnce
        ));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let guard = Guard::new(Networks::default(), 8, 1.0);
        let now = Instant::now();
        for n in 0..20_000_u32 {
            guard.failed(IpAddr::from((0x0a00_0000 + n).to_be_bytes()), now);
        }
        assert_eq!(lock(&guard.failing).len(), REMEMBERED_MAX.get());
        for n in 0..20_000_u32 {
            guard.proven().add(IpAddr::from((0x0a00_0000 + n).to_be_bytes()));
        }
        assert_eq!(lock(&guard.proven.0).len(), PROVEN_MAX.get());
        assert!(guard.proven().contains("10.0.78.31".parse().unwrap()), "the latest are");
        guard.proven().add(UNKNOWN);
        assert!(!guard.proven().contains(UNKNOWN), "what nobody knows proves nothing");
    }

    proptest! {
        #[test]
        fn an_address_counts_with_its_64_and_no_other(bits in any::<u128>(), low in any::<u64>(), flip in 64_u32..128) {
            prop_assume!(bits >> 32 != 0xffff);
            let address = |bits| IpAddr::from(Ipv6Addr::from_bits(bits));
            prop_assume!((bits ^ (1 << flip)) >> 32 != 0xffff && bits >> 64 != 0 && (bits ^ (1 << flip)) >> 64 != 0);
            prop_assert_eq!(group(address(bits)), group(address(bits >> 64 << 64 | u128::from(low))));
            prop_assert_ne!(group(address(bits)), group(address(bits ^ (1 << flip))));
        }
    }
}
