//! What one address may do to the others: so many connections, and so many failed requests until its refusals come slowly.
//!
//! Nothing here refuses a validly signed delivery because of its address. Close may share an address with an attacker (a
//! proxy's, a carrier's), so
//!
//! - requests of an address that keeps failing are still read and verified; only their *refusals* wait, which ties the
//!   attacker's connections up while a signed delivery is answered at once;
//! - a new connection of an address that has as many as it may takes the place of its oldest one that has never delivered
//!   anything. Only where every one of them has is the new one turned away.
//!
//! Addresses of this machine are not limited: they are a proxy's, and everybody is behind it. IPv6 addresses count by their
//! /64, of which every customer has one. Nothing is kept that an attacker could grow: failures are remembered for the
//! latest few thousand addresses, seats as long as the connections they belong to.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::sync::Notify;

use super::proxy::Caller;
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
    seats: Mutex<HashMap<IpAddr, Vec<Arc<State>>>>,
    failing: Mutex<LruCache<IpAddr, Failing>>,
}

/// One connection's place among those of its address; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    /// Who has it.
    pub caller: Caller,
    guard: Arc<Guard>,
    /// `None` where connections are not limited.
    group: Option<IpAddr>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    has_delivered: AtomicBool,
    leave: Notify,
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
        })
    }

    /// Whether an address may send at all.
    pub fn allows(&self, address: IpAddr) -> bool {
        self.allow.is_empty() || self.allow.contains(address)
    }

    /// A place for a new connection; `None`: it must be closed. Who speaks for others has no limit and is not looked at here.
    pub fn seat(self: &Arc<Self>, caller: Caller) -> Option<Seat> {
        if !caller.is_proxy && !self.allows(caller.address) {
            telemetry::turned_away("network", caller.address);
            return None;
        }
        let is_limited = self.connections_max.is_some() && !caller.is_proxy && !caller.address.is_loopback();
        let group = is_limited.then(|| group(caller.address));
        let state = Arc::new(State::default());
        if let (Some(group), Some(max)) = (group, self.connections_max) {
            let mut seats = lock(&self.seats);
            let taken = seats.entry(group).or_default();
            if taken.len() >= max {
                // In the order in which they came.
                let unproven = taken
                    .iter()
                    .position(|seat| !seat.has_delivered.load(Ordering::Relaxed));
                let Some(oldest) = unproven else {
                    telemetry::turned_away("connections", caller.address);
                    return None;
                };
                taken.remove(oldest).leave.notify_one();
                telemetry::displaced(caller.address);
            }
            taken.push(state.clone());
        }
        Some(Seat {
            caller,
            guard: self.clone(),
            group,
            state,
        })
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
    /// A signed delivery has come over this connection: it keeps its place.
    pub fn has_delivered(&self) {
        // Looked at first: a store would move the line between processors at every delivery.
        if !self.state.has_delivered.load(Ordering::Relaxed) {
            self.state.has_delivered.store(true, Ordering::Relaxed);
        }
    }

    /// Closes the connection, unless something good has come over it or others may be behind it.
    pub fn close(&self) {
        if !self.caller.is_proxy && !self.state.has_delivered.load(Ordering::Relaxed) {
            self.state.leave.notify_one();
        }
    }

    /// Returns when the connection must be closed.
    pub async fn closed(&self) {
        self.state.leave.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(group) = self.group else { return };
        let mut seats = lock(&self.guard.seats);
        if let Some(taken) = seats.get_mut(&group) {
            taken.retain(|state| !Arc::ptr_eq(state, &self.state));
            if taken.is_empty() {
                seats.remove(&group);
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
        seat.closed().now_or_never().is_some()
    }

    #[test]
    fn a_new_connection_takes_the_place_of_the_oldest_that_never_delivered() {
        let guard = Guard::new(Networks::default(), 3, 1.0);
        let seat = |address| guard.seat(caller(address));
        let good = seat("198.51.100.1").unwrap();
        good.has_delivered();
        let idle = seat("198.51.100.1").unwrap();
        let later = seat("198.51.100.1").unwrap();
        let other = seat("198.51.100.2").unwrap();
        let new = seat("198.51.100.1").unwrap();
        assert!(is_told_to_leave(&idle));
        assert!(!is_told_to_leave(&good) && !is_told_to_leave(&later) && !is_told_to_leave(&other));

        later.has_delivered();
        new.has_delivered();
        assert!(seat("198.51.100.1").is_none(), "all of them are good ones");
        drop((idle, later));
        let last = seat("198.51.100.1").unwrap();
        drop((good, new, other, last));
        assert!(lock(&guard.seats).is_empty(), "nothing is left behind");
    }

    #[test]
    fn proxies_and_this_machine_have_no_limit() {
        let guard = Guard::new(Networks::default(), 1, 1.0);
        let proxy = Caller {
            is_proxy: true,
            ..caller("198.51.100.1")
        };
        let seats: Vec<_> = (0..10)
            .flat_map(|_| [guard.seat(proxy).unwrap(), guard.seat(caller("127.0.0.1")).unwrap()])
            .collect();
        assert!(seats.iter().all(|seat| !is_told_to_leave(seat)));
        let now = Instant::now();
        for _ in 0..1000 {
            assert!(matches!(guard.failed([127, 0, 0, 1].into(), now), Verdict::AtOnce));
        }
    }

    #[test]
    fn only_networks_that_are_allowed_get_in() {
        let guard = Guard::new("198.51.100.0/24".parse().unwrap(), 1, 1.0);
        assert!(guard.seat(caller("198.51.100.1")).is_some());
        assert!(guard.seat(caller("203.0.113.1")).is_none());
        assert!(guard.seat(caller("127.0.0.1")).is_none());
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
