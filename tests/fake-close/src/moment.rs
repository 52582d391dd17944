//! A point of time, to the microsecond: what Close's dates can tell apart.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

/// Microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub i64);

impl Moment {
    /// The machine's clock now.
    pub fn wall() -> Moment {
        Timestamp::now().into()
    }

    /// Reads a date as Close writes it; no offset means UTC.
    pub fn parse(text: &str) -> Option<Moment> {
        let with_offset = text.parse::<Timestamp>().ok();
        let without = || Offset::UTC.to_timestamp(text.parse::<DateTime>().ok()?).ok();
        with_offset.or_else(without).map(Moment::from)
    }

    /// So much later.
    #[must_use]
    pub fn plus(self, span: Duration) -> Moment {
        Moment(self.0.saturating_add(micros(span)))
    }

    /// So much earlier.
    #[must_use]
    pub fn minus(self, span: Duration) -> Moment {
        Moment(self.0.saturating_sub(micros(span)))
    }

    /// How long ago `earlier` is; zero where it is later.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Without what is below a millisecond: the precision of event dates.
    #[must_use]
    pub fn to_millisecond(self) -> Moment {
        Moment(self.0 - self.0.rem_euclid(1000))
    }

    /// Whole seconds since the Unix epoch.
    pub fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// As in an event's own dates: no offset, and no fraction where it is zero.
    pub fn plain(self) -> String {
        let mut text = String::with_capacity(32);
        self.write(&mut text);
        text
    }

    /// As in the dates of objects: with `+00:00`.
    pub fn with_offset(self) -> String {
        let mut text = String::with_capacity(32);
        self.write(&mut text);
        text.push_str("+00:00");
        text
    }

    /// As in HTTP's `date`: to the second.
    pub fn http_date(self) -> String {
        // Only years beyond 9999 have none.
        jiff::fmt::rfc2822::DateTimePrinter::new()
            .timestamp_to_rfc9110_string(&self.into())
            .unwrap_or_default()
    }

    fn write(self, out: &mut String) {
        let civil = Offset::UTC.to_datetime(self.into());
        // Writing to a String can't fail.
        let _ = write!(
            out,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            civil.year(),
            civil.month(),
            civil.day(),
            civil.hour(),
            civil.minute(),
            civil.second()
        );
        let micros = self.0.rem_euclid(1_000_000);
        if micros != 0 {
            let _ = write!(out, ".{micros:06}");
        }
    }
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

impl From<Timestamp> for Moment {
    fn from(at: Timestamp) -> Moment {
        Moment(i64::try_from(at.as_nanosecond().div_euclid(1000)).unwrap_or(i64::MAX))
    }
}

impl From<Moment> for Timestamp {
    fn from(at: Moment) -> Timestamp {
        let nearest_end = if at.0 < 0 { Timestamp::MIN } else { Timestamp::MAX };
        Timestamp::from_microsecond(at.0).unwrap_or(nearest_end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dates_look_like_those_of_close() {
        let at = Moment::parse("2024-02-15T12:48:23.395000").unwrap();
        assert_eq!(at.plain(), "2024-02-15T12:48:23.395000");
        assert_eq!(at.with_offset(), "2024-02-15T12:48:23.395000+00:00");
        assert_eq!(
            Moment::parse("2024-02-15T12:48:23Z").unwrap().plain(),
            "2024-02-15T12:48:23"
        );
        assert_eq!(Moment::parse("2024-02-15T13:48:23.395+01:00"), Some(at));
        assert_eq!(Moment::parse("2024-02-15T12:48:23.395 00:00"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(micros in -1_000_000_000_000_000_i64..4_000_000_000_000_000) {
            let at = Moment(micros);
            prop_assert_eq!(Moment::parse(&at.plain()), Some(at));
            prop_assert_eq!(Moment::parse(&at.with_offset()), Some(at));
        }
    }
}
