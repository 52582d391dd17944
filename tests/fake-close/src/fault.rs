//! Faults that a test orders: how the next requests to the API go wrong.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Faults ordered at a time.
const FAULTS_MAX: usize = 1000;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The request waits for `delay_ms` first; other faults may follow.
    Latency,
    /// It is done, and the answer waits for `delay_ms`.
    Late,
    /// It is answered with `status` and nothing is done.
    Status,
    /// A proxy answers with HTML and `status` (502) and nothing is done.
    Html,
    /// It is answered 429 although there was budget left; `reset_ms` until it is good again.
    RateLimited,
    /// The connection is closed without an answer, and nothing is done.
    Reset,
    /// It is done, and the connection is closed without an answer.
    DropAnswer,
    /// It is done, and the answer's JSON stops in the middle, though HTTP is in order.
    Truncated,
    /// It is done, and the connection breaks in the middle of the answer.
    Cut,
}

/// An ordered fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What goes wrong.
    pub kind: Kind,
    /// Which requests: a method, a start of a path, or both (`POST /api/v1/webhook/`). Default all.
    #[serde(default)]
    pub on: String,
    /// How many of them. Default 1.
    #[serde(default = "one")]
    pub times: u32,
    /// So many of them are let through first. Default none.
    #[serde(default)]
    pub skip: u32,
    /// For `latency` and `late`.
    #[serde(default)]
    pub delay_ms: u64,
    /// For `status` and `html`. Default 503 and 502.
    #[serde(default)]
    pub status: Option<u16>,
    /// For `rate_limited`. Default 1000.
    #[serde(default = "second")]
    pub reset_ms: u64,
}

fn one() -> u32 {
    1
}

fn second() -> u64 {
    1000
}

impl Fault {
    /// Once, for all requests.
    pub fn new(kind: Kind) -> Fault {
        Fault {
            kind,
            on: String::new(),
            times: 1,
            skip: 0,
            delay_ms: 0,
            status: None,
            reset_ms: second(),
        }
    }

    /// Only for these requests.
    #[must_use]
    pub fn on(mut self, on: &str) -> Fault {
        on.clone_into(&mut self.on);
        self
    }

    /// So many times.
    #[must_use]
    pub fn times(mut self, times: u32) -> Fault {
        self.times = times;
        self
    }

    /// After so many that are let through.
    #[must_use]
    pub fn after(mut self, skip: u32) -> Fault {
        self.skip = skip;
        self
    }

    /// With so long a delay.
    #[must_use]
    pub fn delayed(mut self, delay: Duration) -> Fault {
        self.delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// With this status.
    #[must_use]
    pub fn status(mut self, status: u16) -> Fault {
        self.status = Some(status);
        self
    }

    fn concerns(&self, method: &str, path: &str) -> bool {
        let (wanted_method, wanted_path) = match self.on.split_once(' ') {
            Some((method, path)) => (method, path),
            None if self.on.starts_with('/') => ("", self.on.as_str()),
            None => (self.on.as_str(), ""),
        };
        (wanted_method.is_empty() || wanted_method == method) && path.starts_with(wanted_path)
    }
}

/// The faults that are still to come, in order.
#[derive(Debug, Default)]
pub struct Faults {
    ordered: Vec<Fault>,
}

impl Faults {
    /// One more.
    pub fn order(&mut self, fault: Fault) -> Result<(), String> {
        if self.ordered.len() >= FAULTS_MAX {
            return Err(format!("at most {FAULTS_MAX} faults can be ordered"));
        }
        if fault.status.is_some_and(|status| !(400..=599).contains(&status)) {
            return Err("status is from 400 to 599".into());
        }
        self.ordered.push(fault);
        Ok(())
    }

    /// No more.
    pub fn clear(&mut self) {
        self.ordered.clear();
    }

    /// What is still to come.
    pub fn list(&self) -> &[Fault] {
        &self.ordered
    }

    /// How long a request waits, and what else befalls it.
    pub fn befall(&mut self, method: &str, path: &str) -> (Duration, Option<Fault>) {
        let mut delay = Duration::ZERO;
        let mut other = None;
        for fault in &mut self.ordered {
            if fault.times == 0 || !fault.concerns(method, path) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            if fault.kind == Kind::Latency {
                delay += Duration::from_millis(fault.delay_ms);
            } else if other.is_none() {
                other = Some(fault.clone());
            } else {
                continue;
            }
            fault.times -= 1;
        }
        self.ordered.retain(|fault| fault.times > 0);
        (delay, other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_befalls_the_requests_it_is_for_as_often_as_ordered() {
        let mut faults = Faults::default();
        let latency = Fault {
            delay_ms: 5,
            ..Fault::new(Kind::Latency)
        };
        faults
            .order(Fault::new(Kind::Html).on("POST /api/v1/webhook/").times(2))
            .unwrap();
        faults.order(latency).unwrap();
        faults.order(Fault::new(Kind::Reset).on("GET").after(1)).unwrap();
        assert!(faults.order(Fault::new(Kind::Status).status(200)).is_err());
        let mut kinds = |method, path| {
            let (delay, fault) = faults.befall(method, path);
            (delay.as_millis(), fault.map(|fault| fault.kind))
        };
        assert_eq!(kinds("POST", "/api/v1/webhook/"), (5, Some(Kind::Html)));
        assert_eq!(kinds("PUT", "/api/v1/webhook/1/"), (0, None));
        assert_eq!(kinds("GET", "/api/v1/event/"), (0, None), "one is let through");
        assert_eq!(kinds("GET", "/api/v1/event/"), (0, Some(Kind::Reset)));
        assert_eq!(kinds("GET", "/api/v1/event/"), (0, None));
        assert_eq!(kinds("POST", "/api/v1/webhook/"), (0, Some(Kind::Html)));
        assert!(faults.list().is_empty());
    }
}
