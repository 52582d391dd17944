//! Durations, sizes and rates as people write them: `"30s"`, `"4 MiB"`, `"50/s"`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A length of time, written with its unit (`"90m"`, `"1h 30m"`); to the millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A number of bytes, written with its unit (`"4 MiB"`, `"20 GB"`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Events a second, written `"50/s"`, `"300/m"` or `"1000/h"`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate(pub f64);

const SPAN_UNITS: [(&str, u64); 6] = [
    ("w", 604_800_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
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
        let wrong = || {
            format!("\"{text}\" is no duration: write a number with its unit, like \"30s\", \"90m\", \"36h\" or \"7d\"")
        };
        let mut rest = text.trim();
        let mut total_ms = 0_u64;
        while !rest.is_empty() || total_ms == 0 && text.trim().is_empty() {
            let (number, after) = split_number(rest).ok_or_else(wrong)?;
            let unit_len = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let (unit, after) = after.split_at(unit_len);
            let (_, unit_ms) = SPAN_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            let part = number
                .parse::<u64>()
                .ok()
                .and_then(|n| n.checked_mul(*unit_ms))
                .ok_or_else(wrong)?;
            total_ms = total_ms.checked_add(part).ok_or_else(wrong)?;
            rest = after.trim_start();
        }
        Ok(Span(Duration::from_millis(total_ms)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0.as_millis() as u64;
        if left == 0 {
            return f.write_str("0s");
        }
        let mut space = "";
        // A retention of "30d" should not come back as "4w 2d".
        for (unit, unit_ms) in SPAN_UNITS.into_iter().skip(1) {
            if left >= unit_ms {
                write!(f, "{space}{}{unit}", left / unit_ms)?;
                left %= unit_ms;
                space = " ";
            }
        }
        Ok(())
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let wrong = || format!("\"{text}\" is no size: write a number with its unit, like \"4 MiB\" or \"20 GB\"");
        let (number, unit) = split_number(text.trim()).ok_or_else(wrong)?;
        let unit = unit.trim();
        let (_, unit_bytes) = SIZE_UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .ok_or_else(wrong)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole = whole
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(*unit_bytes))
            .ok_or_else(wrong)?;
        let part = format!("0.{fraction}0").parse::<f64>().map_err(|_| wrong())? * *unit_bytes as f64;
        #[expect(clippy::cast_sign_loss, reason = "a fraction of a size is not negative")]
        whole.checked_add(part as u64).map(Size).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    /// In the largest binary unit, with one decimal where it is not whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, bytes) = SIZE_UNITS[..4]
            .iter()
            .find(|(_, bytes)| self.0 >= *bytes)
            .copied()
            .unwrap_or(("B", 1));
        if self.0.is_multiple_of(bytes) {
            write!(f, "{} {unit}", self.0 / bytes)
        } else {
            write!(f, "{:.1} {unit}", self.0 as f64 / bytes as f64)
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let wrong = || {
            format!(
                "\"{text}\" is no rate: write a number of events and a unit of time, like \"50/s\", \"300/m\" or \"1000/h\""
            )
        };
        let (number, unit) = text.split_once('/').ok_or_else(wrong)?;
        let seconds = match unit.trim() {
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.trim().parse().map_err(|_| wrong())?;
        if number.is_finite() && number > 0.0 {
            Ok(Rate(number / seconds))
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

fn split_number(text: &str) -> Option<(&str, &str)> {
    let len = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    (len > 0).then(|| (&text[..len], text[len..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_read_as_people_write_them() {
        assert_eq!("1h 30m".parse(), Ok(Span::secs(5400)));
        assert_eq!("250ms".parse(), Ok(Span(Duration::from_millis(250))));
        assert_eq!("0s".parse(), Ok(Span::secs(0)));
        assert_eq!("4 MiB".parse(), Ok(Size(4 << 20)));
        assert_eq!("1.5GB".parse(), Ok(Size(1_500_000_000)));
        assert_eq!("300/m".parse(), Ok(Rate(5.0)));
        for bad in ["", "30", "s", "1x", "-1s", "1 s x", "99999999999999999999s", "1.5s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        for bad in ["", "30", "MiB", "1 XB", "-1 B", "1..5 MB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        for bad in ["", "5", "0/s", "-1/s", "x/s", "5/y", "inf/s"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
        assert_eq!(
            (Size(1536).to_string(), Span::secs(3690).to_string()),
            ("1.5 KiB".into(), "1h 1m 30s".into())
        );
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(ms in 0_u64..u64::MAX / 2) {
            let span = Span(Duration::from_millis(ms));
            prop_assert_eq!(span.to_string().parse::<Span>(), Ok(span));
        }
    }
}
