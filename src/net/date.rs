//! Dates as HTTP has them.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// A date as HTTP has it, in each of its three forms (RFC 9110, 5.6.7):
/// `Sun, 06 Nov 1994 08:49:37 GMT`, `Sunday, 06-Nov-94 08:49:37 GMT`, `Sun Nov  6 08:49:37 1994`.
pub fn http_date(text: &str, now: Timestamp) -> Option<Timestamp> {
    let words: Vec<&str> = text.split([' ', ',', '-']).filter(|word| !word.is_empty()).collect();
    // The name of the day says nothing that the date does not.
    let (day, month, year, time) = match *words.as_slice() {
        [_, day, month, year, time, zone] if is_utc(zone) => (day, month, year, time),
        [_, month, day, time, year] => (day, month, year, time),
        _ => return None,
    };
    let mut clock = time.split(':').map(number);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if clock.next().is_some() {
        return None;
    }
    let year = match (year.len(), number(year)?) {
        (2, short) => full_year(short, now),
        (4, year) => year,
        _ => return None,
    };
    let narrow = |number: i16| i8::try_from(number).ok();
    let (month, day) = (month_of(month)?, narrow(number(day)?)?);
    // A second that is left in is counted as the one before.
    let (hour, minute, second) = (narrow(hour)?, narrow(minute)?, narrow(second.min(59))?);
    let at = DateTime::new(year, month, day, hour, minute, second, 0).ok()?;
    Some(at.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

fn is_utc(zone: &str) -> bool {
    ["GMT", "UTC", "UT", "Z"]
        .iter()
        .any(|name| zone.eq_ignore_ascii_case(name))
}

fn number(text: &str) -> Option<i16> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

fn month_of(name: &str) -> Option<i8> {
    const MONTHS: [&str; 12] = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    let index = MONTHS.iter().position(|month| month.eq_ignore_ascii_case(name))?;
    i8::try_from(index + 1).ok()
}

/// A year of two digits is the latest one that is not more than 50 years ahead.
fn full_year(short: i16, now: Timestamp) -> i16 {
    let this = now.to_zoned(TimeZone::UTC).year();
    let year = this - this % 100 + short;
    if year > this + 50 {
        year - 100
    } else if year <= this - 50 {
        year + 100
    } else {
        year
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_read_in_each_of_its_three_forms_and_nothing_else_is() {
        let now: Timestamp = "1994-11-06T00:00:00Z".parse().unwrap();
        let read = |text: &str| http_date(text, now).map(|at| at.to_string());
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "sun, 6 nov 1994 08:49:37 gmt",
            "Mon, 06 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(read(text).as_deref(), Some("1994-11-06T08:49:37Z"), "{text}");
        }
        assert_eq!(
            read("Thu Dec 31 23:59:60 1998").as_deref(),
            Some("1998-12-31T23:59:59Z")
        );
        for text in [
            "",
            "soon",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49:37 PST",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 Nov 1994 08:49:37:00 GMT",
            "Sun, 06 Nov 194 08:49:37 GMT",
            "Sun, 06 Nox 1994 08:49:37 GMT",
            "Sun, +6 Nov 1994 08:49:37 GMT",
            "1994-11-06T08:49:37Z",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_year_of_two_digits_is_at_most_fifty_years_ahead() {
        let year = |now: &str, short| full_year(short, now.parse().unwrap());
        assert_eq!(year("2026-11-26T00:00:00Z", 94), 1994);
        assert_eq!(year("2026-11-26T00:00:00Z", 26), 2026);
        assert_eq!(year("2026-11-26T00:00:00Z", 76), 2076);
        assert_eq!(year("2026-11-26T00:00:00Z", 77), 1977);
        assert_eq!(year("2099-11-26T00:00:00Z", 1), 2101);
    }
}
