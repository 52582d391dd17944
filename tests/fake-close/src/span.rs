//! Spans of time as people write them: `90m`, `1h 30m`, `4d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// A span of time that is read and shown as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// From the longest to the shortest, in milliseconds.
const UNITS: [(&str, u64); 6] = [
    ("w", 604_800_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

impl Span {
    /// So many seconds.
    pub const fn secs(seconds: u64) -> Span {
        Span(Duration::from_secs(seconds))
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let read = || {
            let mut total_ms = 0_u64;
            let mut rest = text.trim();
            while !rest.is_empty() {
                let number_len = rest.find(|c: char| !c.is_ascii_digit())?;
                let (number, after) = rest.split_at(number_len);
                let unit_len = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
                let (unit, after) = after.split_at(unit_len);
                let (_, unit_ms) = UNITS.iter().find(|(name, _)| *name == unit)?;
                let part = number.parse::<u64>().ok()?.checked_mul(*unit_ms)?;
                total_ms = total_ms.checked_add(part)?;
                rest = after.trim_start();
            }
            (!text.trim().is_empty()).then_some(Span(Duration::from_millis(total_ms)))
        };
        read().ok_or_else(|| {
            format!("\"{text}\" is no span: write a number with its unit, like \"90m\", \"36h\" or \"4d\"")
        })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left_ms = self.0.as_millis() as u64;
        if left_ms == 0 {
            return f.write_str("0s");
        }
        let mut gap = "";
        // In weeks nobody thinks of "30d".
        for (unit, unit_ms) in UNITS.into_iter().skip(1) {
            if left_ms >= unit_ms {
                write!(f, "{gap}{}{unit}", left_ms / unit_ms)?;
                left_ms %= unit_ms;
                gap = " ";
            }
        }
        Ok(())
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'d> Deserialize<'d> for Span {
    fn deserialize<D: Deserializer<'d>>(from: D) -> Result<Span, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_back_and_nonsense_is_refused() {
        for (text, seconds, shown) in [("90m", 5400, "1h 30m"), ("1d 12h", 129_600, "1d 12h"), ("0s", 0, "0s")] {
            let span: Span = text.parse().unwrap();
            assert_eq!(
                (span.0, span.to_string().as_str()),
                (Duration::from_secs(seconds), shown)
            );
        }
        for bad in ["", "5", "m", "-5m", "1.5h", "1y", "99999999999999999999s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
