//! What was done on the page and over its API, and by whom: logged (target `audit`), and the last of it kept to be looked at.

use std::collections::VecDeque;
use std::sync::Mutex;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::control::Order;
use crate::sync::lock;

/// So many are kept.
const ACTS_MAX: usize = 256;

/// Of an order so many bytes are kept and logged: a list of ids may be long.
const ORDER_LEN_MAX: usize = 2048;

/// One thing that was done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Act {
    /// Its number, from 1 on since the start.
    pub number: u64,
    /// When it was begun.
    pub at: Timestamp,
    /// By whom: what their token is called, or `link`.
    pub who: String,
    /// What was ordered, as commands send it; `null` where it is too long to be kept.
    pub order: Box<RawValue>,
    /// How it ended; `None`: it runs.
    #[serde(default)]
    pub ended: Option<Ended>,
}

/// How an act ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When.
    pub at: Timestamp,
    /// Why it failed; `None`: it was done.
    #[serde(default)]
    pub error: Option<String>,
}

/// The last of them.
#[derive(Debug, Default)]
pub struct Acts(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    last: VecDeque<Act>,
    begun: u64,
}

impl Acts {
    /// Somebody orders something. Gives its number.
    pub fn begin(&self, who: &str, order: &Order) -> u64 {
        let text = serde_json::to_string(order).unwrap_or_default();
        let shown = cut(&text);
        let mut kept = lock(&self.0);
        kept.begun += 1;
        let number = kept.begun;
        tracing::info!(target: "audit", who, act = number, order = shown, "ordered");
        if kept.last.len() >= ACTS_MAX {
            kept.last.pop_front();
        }
        let order = if shown.len() == text.len() {
            RawValue::from_string(text).ok()
        } else {
            None
        };
        if let Some(order) = order.or_else(|| to_raw_value(&()).ok()) {
            kept.last.push_back(Act {
                number,
                at: Timestamp::now(),
                who: who.to_owned(),
                order,
                ended: None,
            });
        }
        number
    }

    /// It has ended.
    pub fn end(&self, number: u64, error: Option<&str>) {
        match error {
            None => tracing::info!(target: "audit", act = number, "done"),
            Some(error) => tracing::warn!(target: "audit", act = number, error, "failed"),
        }
        let mut kept = lock(&self.0);
        if let Some(act) = kept.last.iter_mut().find(|act| act.number == number) {
            act.ended = Some(Ended {
                at: Timestamp::now(),
                error: error.map(ToOwned::to_owned),
            });
        }
    }

    /// The newest first.
    pub fn last(&self) -> Vec<Act> {
        lock(&self.0).last.iter().rev().cloned().collect()
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(ORDER_LEN_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::sinks::Pause;

    fn pause(sink: &str) -> Order {
        Order::from(Pause {
            sink: sink.to_owned(),
            paused: true,
        })
    }

    #[test]
    fn the_last_acts_are_kept_with_how_they_ended() {
        let acts = Acts::default();
        for _ in 0..ACTS_MAX + 10 {
            acts.begin("on-call", &pause("audit"));
        }
        let last = acts.last();
        assert_eq!((last.len(), last[0].number), (ACTS_MAX, ACTS_MAX as u64 + 10));
        assert_eq!(last[0].order.get(), r#"{"order":"pause","sink":"audit","paused":true}"#);
        assert!(last[0].ended.is_none());
        acts.end(last[0].number, Some("there is no sink \"audit\""));
        // One that is not kept any more ends all the same.
        acts.end(1, None);
        assert!(acts.last()[0].ended.as_ref().unwrap().error.is_some());
    }

    #[test]
    fn an_order_of_any_length_takes_little() {
        let acts = Acts::default();
        acts.begin("on-call", &pause(&"ä".repeat(1 << 20)));
        assert_eq!(acts.last()[0].order.get(), "null");
    }
}
