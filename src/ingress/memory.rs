//! Memory for request bodies: a budget for all, a share of it for each address, reserved as bytes arrive.
//!
//! Who sends nothing takes nothing. Whoever announces a body, sends most of it and falls silent holds memory, so where that is
//! short somebody loses his:
//!
//! - a quarter of the budget is kept for addresses that are *proven*: something signed has come from there;
//! - one address has at most half of it. Beyond that its own oldest unfinished body goes, whoever's that is: who is honest is
//!   done within moments, and comes again if not;
//! - beyond the budget the oldest unfinished body of an address that is not proven goes, and where there is none, the oldest of
//!   all that has taken longer than a moment.
//!
//! What is complete is never taken away: it is being verified or stored, and both end by themselves. So whoever sends all of a
//! body at once always finds room, unless the budget is full of good deliveries that wait for the disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::listener::abuse::{Proven, group};

/// A body of a proven address that has taken longer than this may go when nothing else can.
const MOMENT: Duration = Duration::from_secs(2);

/// The budget. Shared by all requests.
#[derive(Debug)]
pub struct Budget {
    max: usize,
    /// For one address.
    address_max: usize,
    /// For all addresses together that are not proven.
    unproven_max: usize,
    proven: Proven,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    total: usize,
    unproven: usize,
    by_address: HashMap<IpAddr, usize>,
    /// Bodies that are being received, in the order in which they began.
    unfinished: BTreeMap<u64, Unfinished>,
    /// Those of them whose addresses are not proven.
    unfinished_unproven: BTreeSet<u64>,
    unfinished_of: HashMap<IpAddr, BTreeSet<u64>>,
    next: u64,
}

#[derive(Debug)]
struct Unfinished {
    address: IpAddr,
    is_proven: bool,
    began: Instant,
    len: usize,
    buffer: Arc<Buffer>,
}

/// What has arrived of a body; `None` when it was taken away.
#[derive(Debug)]
struct Buffer {
    body: Mutex<Option<BytesMut>>,
    taken_away: Notify,
}

impl Budget {
    /// A budget of so many bytes, for bodies of so many at most.
    pub fn new(max: usize, body_max: usize, proven: Proven) -> Arc<Budget> {
        Arc::new(Budget {
            max,
            // One body must always be possible.
            address_max: (max / 2).max(body_max),
            unproven_max: (max - max / 4).max(body_max),
            proven,
            used: Mutex::default(),
        })
    }

    /// An empty share for a request from this address, or from what counts as the same.
    pub fn share(self: &Arc<Self>, address: IpAddr) -> Share {
        Share {
            budget: self.clone(),
            address: group(address),
            is_proven: false,
            len: 0,
            body: Body::Empty,
        }
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for so many bytes of a request, at the cost of others if need be; `false`: there is none.
    fn make_room(&self, used: &mut Used, asks: Asks, len: usize) -> bool {
        loop {
            let of_address = used.by_address.get(&asks.address).copied().unwrap_or_default();
            let victim = if of_address + len > self.address_max {
                used.oldest_of(asks.address, asks.number)
            } else if !asks.is_proven && used.unproven + len > self.unproven_max {
                used.oldest_unproven(asks.number)
            } else if used.total + len > self.max {
                used.oldest_unproven(asks.number)
                    .or_else(|| used.oldest_slow(asks.number))
            } else {
                return true;
            };
            match victim {
                Some(victim) => used.take_away(victim),
                None => return false,
            }
        }
    }
}

/// Who asks for room.
#[derive(Debug, Clone, Copy)]
struct Asks {
    address: IpAddr,
    is_proven: bool,
    /// Its own unfinished body, which does not go for itself.
    number: Option<u64>,
}

impl Used {
    fn oldest_of(&self, address: IpAddr, except: Option<u64>) -> Option<u64> {
        let all = self.unfinished_of.get(&address)?;
        all.iter().copied().find(|number| Some(*number) != except)
    }

    fn oldest_unproven(&self, except: Option<u64>) -> Option<u64> {
        self.unfinished_unproven
            .iter()
            .copied()
            .find(|number| Some(*number) != except)
    }

    fn oldest_slow(&self, except: Option<u64>) -> Option<u64> {
        let (number, oldest) = self.unfinished.iter().find(|(number, _)| Some(**number) != except)?;
        (oldest.began.elapsed() > MOMENT).then_some(*number)
    }

    fn add(&mut self, address: IpAddr, is_proven: bool, len: usize) {
        self.total += len;
        self.unproven += if is_proven { 0 } else { len };
        *self.by_address.entry(address).or_default() += len;
    }

    fn sub(&mut self, address: IpAddr, is_proven: bool, len: usize) {
        self.total -= len;
        self.unproven -= if is_proven { 0 } else { len };
        if let Some(of_address) = self.by_address.get_mut(&address) {
            *of_address -= len;
            if *of_address == 0 {
                self.by_address.remove(&address);
            }
        }
    }

    fn begin(&mut self, unfinished: Unfinished) -> u64 {
        let number = self.next;
        self.next += 1;
        if !unfinished.is_proven {
            self.unfinished_unproven.insert(number);
        }
        self.unfinished_of.entry(unfinished.address).or_default().insert(number);
        self.unfinished.insert(number, unfinished);
        number
    }

    /// It is unfinished no more; its bytes still count.
    fn end(&mut self, number: u64) -> Option<Unfinished> {
        let ended = self.unfinished.remove(&number)?;
        self.unfinished_unproven.remove(&number);
        if let Some(of_address) = self.unfinished_of.get_mut(&ended.address) {
            of_address.remove(&number);
            if of_address.is_empty() {
                self.unfinished_of.remove(&ended.address);
            }
        }
        Some(ended)
    }

    /// Takes a body's memory away, at once: whoever receives it learns it when he looks.
    fn take_away(&mut self, number: u64) {
        if let Some(gone) = self.end(number) {
            self.sub(gone.address, gone.is_proven, gone.len);
            drop(gone.buffer.lock().take());
            gone.buffer.taken_away.notify_one();
        }
    }
}

impl Buffer {
    fn lock(&self) -> MutexGuard<'_, Option<BytesMut>> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one request holds; given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    address: IpAddr,
    /// As it counts.
    is_proven: bool,
    /// Bytes that count and are not those of an unfinished body.
    len: usize,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Empty,
    /// It came all at once, as most do.
    Whole(Bytes),
    Unfinished(u64, Arc<Buffer>),
    /// It was handed out, or taken away.
    Gone,
}

impl Share {
    /// Adds bytes that have arrived, as a copy: a piece of the connection's buffer would keep all of that in memory for as long
    /// as the event is cached. `is_last`: nothing follows. `false`: there is no room, or it was taken away.
    pub fn add(&mut self, data: &[u8], is_last: bool) -> bool {
        if data.is_empty() {
            return true;
        }
        let budget = self.budget.clone();
        let mut used = budget.used();
        match &self.body {
            Body::Empty => {
                self.is_proven = budget.proven.contains(self.address);
                let asks = self.asks(None);
                if !budget.make_room(&mut used, asks, data.len()) {
                    return false;
                }
                used.add(self.address, self.is_proven, data.len());
                if is_last {
                    self.len = data.len();
                    drop(used);
                    self.body = Body::Whole(Bytes::copy_from_slice(data));
                    return true;
                }
                let buffer = Arc::new(Buffer {
                    body: Mutex::new(Some(BytesMut::from(data))),
                    taken_away: Notify::new(),
                });
                let number = used.begin(Unfinished {
                    address: self.address,
                    is_proven: self.is_proven,
                    began: Instant::now(),
                    len: data.len(),
                    buffer: buffer.clone(),
                });
                self.body = Body::Unfinished(number, buffer);
                true
            }
            Body::Unfinished(number, buffer) => {
                let asks = self.asks(Some(*number));
                if !used.unfinished.contains_key(number) || !budget.make_room(&mut used, asks, data.len()) {
                    return false;
                }
                if let Some(unfinished) = used.unfinished.get_mut(number) {
                    unfinished.len += data.len();
                }
                used.add(self.address, self.is_proven, data.len());
                drop(used);
                match &mut *buffer.lock() {
                    Some(body) => body.extend_from_slice(data),
                    None => return false,
                }
                true
            }
            Body::Whole(_) | Body::Gone => false,
        }
    }

    fn asks(&self, number: Option<u64>) -> Asks {
        Asks {
            address: self.address,
            is_proven: self.is_proven,
            number,
        }
    }

    /// Returns when the memory was taken away; never for a body of which nothing is here.
    pub async fn taken_away(&self) {
        match &self.body {
            Body::Unfinished(_, buffer) => buffer.taken_away.notified().await,
            _ => std::future::pending().await,
        }
    }

    /// All of it is here, and stays until this is dropped; `None`: it was taken away.
    pub fn finish(&mut self) -> Option<Bytes> {
        match std::mem::replace(&mut self.body, Body::Gone) {
            Body::Empty => Some(Bytes::new()),
            Body::Whole(body) => Some(body),
            Body::Unfinished(number, buffer) => {
                self.len = self.budget.used().end(number)?.len;
                buffer.lock().take().map(BytesMut::freeze)
            }
            Body::Gone => None,
        }
    }

    /// What came was signed: it counts among the proven ones.
    pub fn prove(&mut self) {
        if !self.is_proven {
            self.is_proven = true;
            self.budget.used().unproven -= self.len;
        }
    }
}

impl crate::log::Ticket for Share {}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.budget.used();
        if let Body::Unfinished(number, _) = &self.body {
            used.take_away(*number);
        }
        used.sub(self.address, self.is_proven, self.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use proptest::prelude::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const TWO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
    const GOOD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));

    fn add(share: &mut Share, len: usize) -> bool {
        share.add(&vec![b'x'; len], false)
    }

    fn is_taken_away(share: &Share) -> bool {
        share.taken_away().now_or_never().is_some()
    }

    fn budget(max: usize, body_max: usize) -> Arc<Budget> {
        let proven = Proven::default();
        proven.add(GOOD);
        Budget::new(max, body_max, proven)
    }

    #[test]
    fn an_address_beyond_its_half_loses_its_own_oldest_body() {
        let budget = budget(100, 10);
        let (mut first, mut second) = (budget.share(ONE), budget.share(ONE));
        assert!(add(&mut first, 30) && add(&mut second, 20));
        let mut third = budget.share(ONE);
        assert!(add(&mut third, 20));
        assert!(is_taken_away(&first) && !is_taken_away(&second));
        assert!(!add(&mut first, 1) && first.finish().is_none());
        assert_eq!(second.finish().unwrap().len(), 20);
        assert!(
            !add(&mut third, 20),
            "what is complete stays, and it does not go for itself"
        );
        drop((first, second, third));
        let used = budget.used();
        assert_eq!((used.total, used.unproven, used.by_address.len()), (0, 0, 0));
        assert!(used.unfinished.is_empty() && used.unfinished_unproven.is_empty() && used.unfinished_of.is_empty());
    }

    #[test]
    fn a_quarter_is_kept_for_who_has_delivered_and_the_oldest_of_the_others_goes() {
        let budget = budget(100, 10);
        let mut one: Vec<Share> = (0..4).map(|_| budget.share(ONE)).collect();
        let mut two: Vec<Share> = (0..4).map(|_| budget.share(TWO)).collect();
        for share in one.iter_mut().chain(&mut two) {
            assert!(add(share, 10));
        }
        assert!(is_taken_away(&one[0]), "eighty are five more than strangers may have");
        let mut good: Vec<Share> = (0..3).map(|_| budget.share(GOOD)).collect();
        assert!(good.iter_mut().all(|share| add(share, 10)));
        assert!(!is_taken_away(&one[1]), "there was room for these");
        let mut more = budget.share(GOOD);
        assert!(add(&mut more, 10));
        assert!(is_taken_away(&one[1]) && !is_taken_away(&good[0]));
    }

    #[test]
    fn what_is_complete_is_never_taken_away_and_what_is_signed_counts_as_proven() {
        let budget = budget(100, 10);
        let mut complete: Vec<Share> = [ONE, TWO]
            .iter()
            .flat_map(|address| (0..3).map(|_| budget.share(*address)))
            .collect();
        for share in &mut complete {
            assert!(share.add(&[b'x'; 12], true));
            assert_eq!(share.finish().unwrap().len(), 12);
        }
        let mut good: Vec<Share> = (0..3).map(|_| budget.share(GOOD)).collect();
        assert!(good[..2].iter_mut().all(|share| add(share, 14)));
        assert!(!add(&mut good[2], 1), "all of it is taken by what will end by itself");
        let mut stranger = budget.share("203.0.113.1".parse().unwrap());
        assert!(!add(&mut stranger, 4));
        drop(good);
        complete.iter_mut().for_each(Share::prove);
        assert!(add(&mut stranger, 4));
        assert_eq!(budget.used().unproven, 4);
    }

    #[test]
    fn one_body_of_the_largest_size_is_always_possible() {
        let budget = budget(100, 100);
        let mut share = budget.share(ONE);
        assert!(add(&mut share, 60) && add(&mut share, 40));
        assert_eq!(share.finish().unwrap().len(), 100);
    }

    proptest! {
        #[test]
        fn no_more_is_held_than_there_is_and_nothing_is_left_behind(
            steps in prop::collection::vec((0_usize..4, 0_usize..6, 1_usize..30, any::<bool>()), 0..200)
        ) {
            let budget = budget(100, 25);
            let addresses = [ONE, TWO, GOOD];
            let mut shares: Vec<Option<Share>> = (0..6).map(|_| None).collect();
            for (what, slot, len, is_last) in steps {
                let address = addresses[slot % addresses.len()];
                match (what, &mut shares[slot]) {
                    (0, slot) => *slot = Some(budget.share(address)),
                    (1, slot) => *slot = None,
                    (2, Some(share)) => drop(share.finish()),
                    (_, Some(share)) => drop(share.add(&vec![0; len], is_last)),
                    (_, None) => {}
                }
                let used = budget.used();
                prop_assert!(used.total <= 100 && used.unproven <= 75, "{used:?}");
                prop_assert!(used.by_address.values().all(|of_address| *of_address <= 50));
                let held: usize = used.unfinished.values().map(|one| one.buffer.lock().as_ref().map_or(0, BytesMut::len)).sum();
                let finished: usize = shares.iter().flatten().map(|share| share.len).sum();
                prop_assert_eq!(held + finished, used.total);
            }
            drop(shares);
            let used = budget.used();
            prop_assert_eq!((used.total, used.unproven, used.by_address.len(), used.unfinished.len()), (0, 0, 0, 0));
        }
    }
}
