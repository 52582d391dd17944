//! How fast tokens may be tried: so that guessing one takes for ever, and that who has a right one gets in all the same.
//!
//! - An address has some tries at once and then one every few seconds, and all addresses together have a pace too. A try is taken back
//!   where it was right, and what is refused for being too fast is not looked at and costs nothing: nobody is locked out for longer than
//!   one try takes to come back.
//! - A wrong token that is presented again is known to be wrong: a program that was left with an old one costs nobody a try.
//! - Where somebody has signed in before, the pace of all others does not count: attackers from everywhere don't keep them out.
//! - Sessions and links are 256 random bits, and are under no pace at all.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::tokens::Digest;
use crate::listener::abuse::group;

/// Tries that an address, or a network of IPv6 (/64), has at once.
const OF_ADDRESS: f64 = 10.0;
/// How long one of them takes to come back.
const ADDRESS_EVERY: Duration = Duration::from_secs(5);
/// Tries that all addresses have at once.
const OF_ALL: f64 = 100.0;
/// How long one of them takes to come back.
const ALL_EVERY: Duration = Duration::from_millis(500);
/// Addresses that are remembered: of more, all together can't have tried since the first has all its tries back.
const ADDRESSES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);
/// Addresses from which somebody has signed in, that are remembered.
const PROVEN: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);
/// Wrong tokens that are remembered.
const WRONG: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);

/// Tries that are left.
#[derive(Debug, Clone, Copy)]
struct Tries {
    left: f64,
    at: Instant,
}

impl Tries {
    fn full(most: f64, now: Instant) -> Tries {
        Tries { left: most, at: now }
    }

    /// Counts what has come back since; how long the next one takes where none is left.
    fn next(&mut self, most: f64, every: Duration, now: Instant) -> Result<(), Duration> {
        let back = now.saturating_duration_since(self.at).as_secs_f64() / every.as_secs_f64();
        *self = Tries::full((self.left + back).min(most), now);
        if self.left >= 1.0 {
            return Ok(());
        }
        Err(every.mul_f64(1.0 - self.left))
    }
}

/// The pace of tries.
#[derive(Debug)]
pub struct Pace {
    addresses: LruCache<IpAddr, Tries>,
    all: Tries,
    proven: LruCache<IpAddr, ()>,
    wrong: LruCache<Digest, ()>,
    /// What was right, from where: whoever shares that address with somebody who guesses is held up by none of it.
    right: LruCache<(IpAddr, Digest), ()>,
}

/// What becomes of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Try {
    /// It is looked at.
    Now,
    /// It is known to be wrong.
    Wrong,
    /// It is too early.
    After(Duration),
}

impl Pace {
    /// Nobody has tried yet.
    pub fn new(now: Instant) -> Pace {
        Pace {
            addresses: LruCache::new(ADDRESSES),
            all: Tries::full(OF_ALL, now),
            proven: LruCache::new(PROVEN),
            wrong: LruCache::new(WRONG),
            right: LruCache::new(PROVEN),
        }
    }

    /// Somebody presents something.
    pub fn try_one(&mut self, who: IpAddr, what: &Digest, now: Instant) -> Try {
        if self.wrong.get(what).is_some() {
            return Try::Wrong;
        }
        let who = group(who);
        if self.right.get(&(who, *what)).is_some() {
            return Try::Now;
        }
        let is_proven = self.proven.contains(&who);
        let tries = self.addresses.get_or_insert_mut(who, || Tries::full(OF_ADDRESS, now));
        if let Err(after) = tries.next(OF_ADDRESS, ADDRESS_EVERY, now) {
            return Try::After(after);
        }
        if !is_proven {
            if let Err(after) = self.all.next(OF_ALL, ALL_EVERY, now) {
                return Try::After(after);
            }
            self.all.left -= 1.0;
        }
        tries.left -= 1.0;
        Try::Now
    }

    /// It was right: the try is given back.
    pub fn was_right(&mut self, who: IpAddr, what: Digest) {
        let who = group(who);
        if self.right.put((who, what), ()).is_some() {
            return;
        }
        if let Some(tries) = self.addresses.get_mut(&who) {
            tries.left = (tries.left + 1.0).min(OF_ADDRESS);
        }
        if self.proven.put(who, ()).is_none() {
            self.all.left = (self.all.left + 1.0).min(OF_ALL);
        }
    }

    /// It was wrong.
    pub fn was_wrong(&mut self, what: Digest) {
        self.wrong.put(what, ());
    }

    /// Other tokens count: what was wrong may be right now, and the other way round. What is still right is remembered.
    pub fn forget_wrong(&mut self, is_right: impl Fn(&Digest) -> bool) {
        let right = self.right.iter().map(|(known, ())| *known);
        let gone: Vec<_> = right.filter(|(_, what)| !is_right(what)).collect();
        for known in gone {
            self.right.pop(&known);
        }
        self.wrong.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    fn wrong(pace: &mut Pace, who: IpAddr, number: u32, now: Instant) -> Try {
        let mut what = [0; 32];
        what[..4].copy_from_slice(&number.to_be_bytes());
        let tried = pace.try_one(who, &what, now);
        if tried == Try::Now {
            pace.was_wrong(what);
        }
        tried
    }

    /// How many of so many tries, all of them wrong and another each time, are looked at within a time.
    fn looked_at(pace: &mut Pace, who: impl Fn(u32) -> IpAddr, from: Instant, steps: u32, every: Duration) -> u32 {
        let tries = (0..steps).map(|step| wrong(pace, who(step), step, from + every * step));
        tries.filter(|tried| *tried == Try::Now).count() as u32
    }

    #[test]
    fn an_address_has_some_tries_and_then_one_every_few_seconds() {
        let (now, one) = (Instant::now(), |_| address(7));
        let mut pace = Pace::new(now);
        let hour = looked_at(&mut pace, one, now, 36_000, Duration::from_millis(100));
        let hour = f64::from(hour);
        assert!((OF_ADDRESS..=OF_ADDRESS + 721.0).contains(&hour), "{hour}");
        // Another one is not held up by it.
        let later = now + Duration::from_secs(3600);
        assert_eq!(wrong(&mut pace, address(8), 1 << 20, later), Try::Now);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let host = |step: u32| IpAddr::V6((0x2001_0db8_u128 << 96 | u128::from(step)).into());
        let tries = f64::from(looked_at(&mut pace, host, now, 100, Duration::ZERO));
        assert!((tries - OF_ADDRESS).abs() < 0.5, "{tries}");
    }

    #[test]
    fn all_addresses_together_have_a_pace() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let tries = f64::from(looked_at(&mut pace, address, now, 5000, Duration::ZERO));
        assert!((tries - OF_ALL).abs() < 0.5, "{tries}");
        assert!(pace.addresses.len() <= ADDRESSES.get() && pace.wrong.len() <= WRONG.get());
    }

    #[test]
    fn who_has_signed_in_before_gets_in_whatever_others_try() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let (home, right) = (address(1), [0xff; 32]);
        assert_eq!(pace.try_one(home, &right, now), Try::Now);
        pace.was_right(home, right);
        looked_at(&mut pace, |step| address(step + 100), now, 5000, Duration::ZERO);
        for _ in 0..1000 {
            assert_eq!(pace.try_one(home, &right, now), Try::Now);
            pace.was_right(home, right);
        }
    }

    #[test]
    fn what_was_right_from_an_address_is_looked_at_whatever_is_tried_from_there() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let (home, right) = (address(1), [0xff; 32]);
        assert_eq!(pace.try_one(home, &right, now), Try::Now);
        pace.was_right(home, right);
        looked_at(&mut pace, |_| home, now, 1000, Duration::ZERO);
        assert_eq!(pace.try_one(home, &right, now), Try::Now);
        assert_ne!(wrong(&mut pace, home, 5000, now), Try::Now, "another one waits");
        pace.forget_wrong(|what| *what == right);
        assert_eq!(pace.try_one(home, &right, now), Try::Now, "it counts as before");
        pace.forget_wrong(|_| false);
        assert_ne!(pace.try_one(home, &right, now), Try::Now, "other tokens count");
    }

    #[test]
    fn a_right_token_is_refused_for_no_longer_than_a_try_takes_to_come_back() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        looked_at(&mut pace, |_| address(1), now, 1000, Duration::ZERO);
        let right = [0xff; 32];
        let Try::After(after) = pace.try_one(address(1), &right, now) else {
            panic!("it was not slowed");
        };
        assert!(after <= ADDRESS_EVERY);
        assert_eq!(pace.try_one(address(1), &right, now + after), Try::Now);
    }

    #[test]
    fn a_program_with_an_old_token_costs_nobody_a_try() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(wrong(&mut pace, address(1), 5, now), Try::Now);
        for _ in 0..1000 {
            assert_eq!(wrong(&mut pace, address(1), 5, now), Try::Wrong);
        }
        assert_eq!(pace.try_one(address(1), &[0xff; 32], now), Try::Now);
        pace.forget_wrong(|_| true);
        assert_eq!(wrong(&mut pace, address(1), 5, now), Try::Now);
    }
}
