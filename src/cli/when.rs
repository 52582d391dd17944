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

/// A sentence of the daemon's, in which its own times (`at 2024-02-15T12:03:44Z`) are told like the others.
pub(in crate::cli) fn told(sentence: &str) -> String {
    told_from(sentence, Timestamp::now())
}

fn told_from(sentence: &str, now: Timestamp) -> String {
    let words: Vec<&str> = sentence.split(' ').collect();
    let told = words.iter().enumerate().map(|(index, word)| {
        let before = index.checked_sub(1).map_or("", |before| words[before]);
        // What one is to type (`--since 2024-02-15T12:03:44Z`) stays as it is.
        if !matches!(before.trim_start_matches('('), "at" | "since") {
            return (*word).to_owned();
        }
        let time = word.trim_end_matches([')', ',', ';', '.', ':']);
        let Ok(at) = time.parse::<Timestamp>() else {
            return (*word).to_owned();
        };
        let after = &word[time.len()..];
        // Its age is told next, in its own words.
        if after == "," && words.get(index + 1) == Some(&"for") {
            return format!("{}{after}", clock(at, now));
        }
        format!("{}{after}", seen_from(at, now))
    });
    told.collect::<Vec<String>>().join(" ")
}

fn seen_from(at: Timestamp, now: Timestamp) -> String {
    format!("{}, {}", clock(at, now), age(now.duration_since(at).as_secs()))
}

fn clock(at: Timestamp, now: Timestamp) -> String {
    let day = |time: Timestamp| time.strftime("%Y-%m-%d").to_string();
    let format = if day(at) == day(now) {
        "%H:%M:%SZ"
    } else {
        "%Y-%m-%d %H:%M:%SZ"
    };
    at.strftime(format).to_string()
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

    #[test]
    fn the_times_in_a_sentence_are_told_so_and_what_one_types_stays() {
        let now: Timestamp = "2024-02-15T12:06:44Z".parse().unwrap();
        for (said, told) in [
            (
                "it answered 503; it is tried again at 2024-02-15T12:07:00Z",
                "it answered 503; it is tried again at 12:07:00Z, in 16 s",
            ),
            (
                "it answered 503 (at 2024-02-15T12:03:44Z); nobody is there",
                "it answered 503 (at 12:03:44Z, 3 min ago); nobody is there",
            ),
            (
                "its checkpoint is waiting since 2024-02-15T12:06:00Z, for 44 s",
                "its checkpoint is waiting since 12:06:00Z, for 44 s",
            ),
            (
                "Close has delivered nothing since 2024-02-14T12:06:00Z, although there was an event at 2024-02-15T12:06:00Z",
                "Close has delivered nothing since 2024-02-14 12:06:00Z, 24 h ago, although there was an event at 12:06:00Z, 44 s ago",
            ),
            (
                "`closehook replay --since 2024-02-15T12:07:00Z` sends them at 7,  or \"2024-02-15T12:07:00Z\"",
                "`closehook replay --since 2024-02-15T12:07:00Z` sends them at 7,  or \"2024-02-15T12:07:00Z\"",
            ),
        ] {
            assert_eq!(told_from(said, now), told);
        }
    }
}
