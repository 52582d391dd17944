//! Times for people: to the second, with how long ago that is. JSON keeps RFC 3339.

use jiff::Timestamp;
use serde_json::Value;

/// `12:03:44Z, 3 min ago`; with the date where that was another day.
pub(in crate::cli) fn when(at: Timestamp) -> String {
    seen_from(at, Timestamp::now())
}

/// The same where it may be that nothing is known.
pub(in crate::cli) fn when_known(at: Option<Timestamp>) -> Option<String> {
    at.map(when)
}

/// The same for a time in an answer; `None` where there is none.
pub(in crate::cli) fn when_said(at: &Value) -> Option<String> {
    when_known(at.as_str()?.parse().ok())
}

fn seen_from(at: Timestamp, now: Timestamp) -> String {
    let day = |time: Timestamp| time.strftime("%Y-%m-%d").to_string();
    let format = if day(at) == day(now) {
        "%H:%M:%SZ"
    } else {
        "%Y-%m-%d %H:%M:%SZ"
    };
    format!("{}, {}", at.strftime(format), age(now.duration_since(at).as_secs()))
}

/// How long ago, in the largest unit of which there are at least two.
fn age(seconds: i64) -> String {
    const UNITS: [(u64, &str); 3] = [(86_400, "days"), (3_600, "h"), (60, "min")];
    let length = seconds.unsigned_abs();
    let (count, unit) = UNITS
        .into_iter()
        .find(|(unit, _)| length >= 2 * unit || (*unit == 60 && length >= 60))
        .map_or((length, "s"), |(unit, name)| (length / unit, name));
    match seconds {
        0 => "just now".to_owned(),
        1.. => format!("{count} {unit} ago"),
        _ => format!("in {count} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_told_to_the_second_and_by_its_age() {
        let now: Timestamp = "2024-02-15T12:06:44.9Z".parse().unwrap();
        let told = |text: &str| seen_from(text.parse().unwrap(), now);
        assert_eq!(told("2024-02-15T12:03:44.395000Z"), "12:03:44Z, 3 min ago");
        assert_eq!(told("2024-02-15T12:06:44.8Z"), "12:06:44Z, just now");
        assert_eq!(told("2024-02-15T12:06:00.9Z"), "12:06:00Z, 44 s ago");
        assert_eq!(told("2024-02-15T12:05:00Z"), "12:05:00Z, 1 min ago");
        assert_eq!(told("2024-02-15T10:36:44Z"), "10:36:44Z, 90 min ago");
        assert_eq!(told("2024-02-15T04:00:00Z"), "04:00:00Z, 8 h ago");
        assert_eq!(told("2024-02-14T12:00:00Z"), "2024-02-14 12:00:00Z, 24 h ago");
        assert_eq!(told("2024-01-15T12:00:00Z"), "2024-01-15 12:00:00Z, 31 days ago");
        assert_eq!(told("2024-02-15T12:10:00Z"), "12:10:00Z, in 3 min");
        assert_eq!(told("2024-03-15T00:00:00Z"), "2024-03-15 00:00:00Z, in 28 days");
    }
}
