//! The last 24 hours minute by minute, for charts: kept by the daemon itself, from the same counters as `/metrics`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The charts of the last hours.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Show {
    /// Back from now, 24 h at the most; `None`: 24 h.
    #[serde(default)]
    pub hours: Option<u32>,
    /// Minutes in one point; `None`: 1.
    #[serde(default)]
    pub step_minutes: Option<u32>,
}

/// Series of equal length; a `None` is a time of which nothing is known: the daemon did not run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Charts {
    /// Seconds between two points.
    pub step_seconds: u64,
    /// When each point begins, oldest first. The last one is still running.
    pub at: Vec<Timestamp>,
    /// Requests that came to the public listener with a delivery, whatever was answered.
    pub received: Vec<Option<u64>>,
    /// Events that were stored.
    pub stored: Vec<Option<u64>>,
    /// Deliveries that repeated what is stored.
    pub duplicates: Vec<Option<u64>>,
    /// Requests that were refused or could not be answered well.
    pub refused: Vec<Option<u64>>,
    /// By sink.
    pub sinks: BTreeMap<String, SinkCharts>,
}

/// Series of one sink, each as long as the others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SinkCharts {
    /// Delivered in that time.
    pub delivered: Vec<Option<u64>>,
    /// Given up in that time.
    pub dead: Vec<Option<u64>>,
    /// Events behind at the end of it; the most of a point's minutes.
    pub lag_events: Vec<Option<u64>>,
    /// Age in seconds of the oldest event that was not finished; the most of a point's minutes.
    pub lag_seconds: Vec<Option<f64>>,
}
