//! Which subscriptions have delivered something that was in the log already.
//!
//! While a subscription is replaced, both deliver every event. The log keeps what comes first and may never see an event of
//! the new one, so its duplicates count too.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// So many ids are remembered: those that deliver here, of which there are few at a time.
const IDS_MAX: usize = 64;

/// Subscriptions by whose keys a duplicate was signed, since the daemon started.
#[derive(Debug, Default)]
pub struct Heard(Mutex<BTreeSet<String>>);

impl Heard {
    /// A signed delivery of the subscription was a duplicate.
    pub fn note(&self, id: &str) {
        let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.contains(id) {
            return;
        }
        if ids.len() == IDS_MAX {
            // Long gone, most of them; the others will be heard again.
            ids.clear();
        }
        ids.insert(id.to_owned());
    }

    /// Whether it has.
    pub fn has(&self, id: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_is_known_and_bounded() {
        let heard = Heard::default();
        for number in 0..1000 {
            let id = format!("whsub_{number}");
            assert!(!heard.has(&id));
            heard.note(&id);
            heard.note(&id);
            assert!(heard.has(&id));
            assert!(heard.0.lock().unwrap().len() <= IDS_MAX);
        }
    }
}
