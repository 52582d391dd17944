//! Memory for request bodies: a budget for all, and a share of it for each address, reserved as bytes arrive.
//!
//! Who sends nothing takes nothing, and whoever sends a lot from one address (it may not even be able to sign) can take at
//! most half of the budget, so a good sender behind another address always finds room.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The budget. Shared by all requests.
#[derive(Debug)]
pub struct Budget {
    max: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(max: usize) -> Arc<Budget> {
        Arc::new(Budget {
            max,
            used: Mutex::default(),
        })
    }

    /// An empty share for a request from this address, or from what counts as the same.
    pub fn share(self: &Arc<Self>, address: IpAddr) -> Share {
        Share {
            budget: self.clone(),
            address: crate::listener::abuse::group(address),
            len: 0,
        }
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one request holds; given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    address: IpAddr,
    len: usize,
}

impl Share {
    /// Takes so many bytes more; `false` if there is no room.
    pub fn grow(&mut self, len: usize) -> bool {
        let mut used = self.budget.used();
        let total = used.total + len;
        let of_address = used.by_address.get(&self.address).copied().unwrap_or_default() + len;
        if total > self.budget.max || of_address > self.budget.max / 2 {
            return false;
        }
        used.total = total;
        used.by_address.insert(self.address, of_address);
        self.len += len;
        true
    }
}

impl crate::log::Ticket for Share {}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.budget.used();
        used.total -= self.len;
        if let Some(of_address) = used.by_address.get_mut(&self.address) {
            *of_address -= self.len;
            if *of_address == 0 {
                used.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_can_not_take_everything() {
        let budget = Budget::new(100);
        let (one, two) = (IpAddr::from([1, 1, 1, 1]), IpAddr::from([2, 2, 2, 2]));
        let mut greedy = budget.share(one);
        assert!(greedy.grow(30) && !greedy.grow(30));
        let mut more = budget.share(one);
        assert!(more.grow(20) && !more.grow(1));
        let mut other = budget.share(two);
        assert!(other.grow(50));
        drop((greedy, more, other));
        let used = budget.used();
        assert_eq!((used.total, used.by_address.len()), (0, 0));
    }
}
