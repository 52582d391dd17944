//! Charts of the last hours, drawn here: a browser needs no script to show them.

use askama::Template;
use jiff::Timestamp;

use super::text;
use crate::control::history::Charts;

/// One chart: a bar for each point.
#[derive(Template)]
#[template(path = "chart.html")]
pub struct Chart {
    title: String,
    total: String,
    alt: String,
    tone: &'static str,
    width: usize,
    bars: Vec<Bar>,
    hits: Vec<(usize, String)>,
    /// Where nothing is known: from which point on, and for how many.
    unknown: Vec<(usize, usize)>,
    from: String,
    most: String,
}

struct Bar {
    x: String,
    y: String,
    width: &'static str,
    height: String,
}

/// What is drawn.
pub struct Series<'a> {
    /// What it is called.
    pub title: String,
    /// When each point begins.
    pub at: &'a [Timestamp],
    /// `None`: nothing is known.
    pub values: Vec<Option<f64>>,
    /// The class of its bars.
    pub tone: &'static str,
    /// How a value is written.
    pub say: fn(f64) -> String,
    /// What stands beside the title; `None`: the sum.
    pub total: Option<String>,
    /// A point is the most of its time, and not what it adds up to.
    pub is_most: bool,
}

impl<'a> Series<'a> {
    /// One of the last day's; beside its title stands the sum.
    pub fn of(
        history: &'a Charts,
        title: &str,
        values: Vec<Option<f64>>,
        tone: &'static str,
        say: fn(f64) -> String,
    ) -> Series<'a> {
        Series {
            title: title.to_owned(),
            at: &history.at,
            values,
            tone,
            say,
            total: None,
            is_most: false,
        }
    }

    /// The same of something that goes up and down, with what it is now beside the title; `None`: that is not known. Each point is the
    /// most of its time.
    pub fn at_most(mut self, now: Option<f64>) -> Series<'a> {
        let now = now.map_or_else(|| "not known".to_owned(), self.say);
        self.total = Some(format!("now {now}"));
        self.is_most = true;
        self
    }

    /// The chart of it.
    pub fn draw(self) -> Chart {
        let known = || self.values.iter().flatten().copied();
        let most = known().fold(0.0, f64::max);
        let total = self.total.unwrap_or_else(|| (self.say)(known().sum()));
        let said = (self.say)(most);
        let height = |value: f64| if most > 0.0 { value / most * 96.0 } else { 0.0 };
        let bars = self.values.iter().enumerate().filter_map(|(x, value)| {
            let value = (*value).filter(|value| *value > 0.0)?;
            // What is there at all can be seen.
            let height = height(value).max(2.0);
            Some(Bar {
                x: format!("{:.2}", x as f64 + 0.08),
                y: format!("{:.2}", 100.0 - height),
                width: "0.84",
                height: format!("{height:.2}"),
            })
        });
        let hits = self.at.iter().zip(&self.values).enumerate();
        let is_most = if self.is_most { "at most " } else { "" };
        let hits = hits.map(|(x, (at, value))| {
            let say = |value| format!("{is_most}{}", (self.say)(value));
            let value = value.map_or_else(|| "not known".to_owned(), say);
            (x, format!("{}: {value}", at.strftime("%H:%M")))
        });
        Chart {
            alt: format!(
                "{} over the last 24 hours: {total}, at most {said} at a time{}",
                self.title,
                if self.is_most {
                    "; each bar is the most of its time"
                } else {
                    ""
                }
            ),
            bars: bars.collect(),
            hits: hits.collect(),
            unknown: runs(&self.values),
            from: self.at.first().map_or_else(String::new, text::when),
            width: self.values.len().max(1),
            title: self.title,
            tone: self.tone,
            most: said,
            total,
        }
    }
}

/// Runs of points of which nothing is known.
fn runs(values: &[Option<f64>]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (x, _) in values.iter().enumerate().filter(|(_, value)| value.is_none()) {
        match runs.last_mut() {
            Some((from, len)) if *from + *len == x => *len += 1,
            _ => runs.push((x, 1)),
        }
    }
    runs
}

/// Counts as a series has them.
pub fn counts(values: &[Option<u64>]) -> Vec<Option<f64>> {
    values.iter().map(|value| value.map(|value| value as f64)).collect()
}

/// How a count is written.
#[expect(clippy::cast_sign_loss, reason = "a count is not negative")]
pub fn as_count(value: f64) -> String {
    text::count(&(value as u64))
}

/// How a length of time is written.
pub fn as_span(value: f64) -> String {
    text::span(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_shows_what_is_there_and_what_is_not_known() {
        let at: Vec<Timestamp> = (0..5)
            .map(|minute| Timestamp::from_second(minute * 900).unwrap())
            .collect();
        let series = Series {
            title: "Stored".into(),
            at: &at,
            values: vec![None, None, Some(0.0), Some(1.0), Some(1000.0)],
            tone: "accent",
            say: as_count,
            total: None,
            is_most: false,
        };
        let chart = series.draw();
        assert_eq!(chart.unknown, [(0, 2)]);
        assert_eq!((chart.bars.len(), chart.hits.len(), chart.width), (2, 5, 5));
        assert_eq!(chart.bars[0].height, "2.00", "one of a thousand is seen");
        assert_eq!(chart.total, "1,001");
        assert_eq!(chart.hits[4].1, "01:00: 1,000");
        let svg = chart.render().unwrap();
        assert!(!svg.contains("style="), "the policy lets no style through");
    }

    #[test]
    fn now_is_what_it_is_now_and_a_bar_is_the_most_of_its_time() {
        let at = [Timestamp::UNIX_EPOCH];
        let charts = Charts {
            at: at.to_vec(),
            ..Charts::default()
        };
        let lag = |now| {
            Series::of(&charts, "Lag", vec![Some(720.0)], "lag", as_span)
                .at_most(now)
                .draw()
        };
        let chart = lag(Some(3.0));
        assert_eq!(chart.total, format!("now {}", text::span(&3.0)));
        assert_eq!(chart.hits[0].1, format!("00:00: at most {}", text::span(&720.0)));
        assert!(chart.alt.contains("each bar is the most of its time"));
        assert_eq!(lag(None).total, "now not known");
    }

    #[test]
    fn nothing_at_all_is_drawn_too() {
        let series = Series {
            title: "Stored".into(),
            at: &[],
            values: Vec::new(),
            tone: "accent",
            say: as_count,
            total: None,
            is_most: false,
        };
        assert_eq!(series.draw().width, 1);
    }
}
