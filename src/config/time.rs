//! Times in the configuration and on the command line: RFC 3339, a date, or a span back from now.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::Span;

/// Reads `2024-02-15T12:00:00Z`, `2024-02-15` (midnight UTC), or `90m`, `36h`, `7d` back from now.
pub fn parse(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(date) = text.parse::<Date>()
        && text.len() == 10
        && let Ok(zoned) = date.to_zoned(TimeZone::UTC)
    {
        return Ok(zoned.timestamp());
    }
    let back = text
        .parse::<Span>()
        .ok()
        .and_then(|span| SignedDuration::try_from(span.0).ok());
    back.and_then(|back| now.checked_sub(back).ok()).ok_or_else(|| {
        format!(
            "\"{text}\" is no time: write 2024-02-15T12:00:00Z, 2024-02-15, or a span back from now like 90m, 36h or 7d"
        )
    })
}

/// The same as of now, for clap.
pub fn argument(text: &str) -> Result<Timestamp, String> {
    parse(text, Timestamp::now())
}

/// The same for serde, where it may be left out.
pub fn optional<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| argument(&text).map_err(D::Error::custom)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_forms_are_understood() {
        let now: Timestamp = "2024-03-01T00:00:00Z".parse().unwrap();
        let read = |text: &str| parse(text, now).map(|time| time.to_string());
        assert_eq!(read("2024-02-15T12:00:00+02:00").unwrap(), "2024-02-15T10:00:00Z");
        assert_eq!(read("2024-02-15").unwrap(), "2024-02-15T00:00:00Z");
        assert_eq!(read("36h").unwrap(), "2024-02-28T12:00:00Z");
        assert_eq!(read("1d 12h").unwrap(), "2024-02-28T12:00:00Z");
        for bad in ["", "yesterday", "2024-13-01", "-5m", "5"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
