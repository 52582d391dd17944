//! "Complete up to" as a picture: 30 days as a line, and what is on it.

use askama::Template;
use jiff::Timestamp;

use super::text;
use crate::control::picture::{Picture, Stretch, What};

/// How wide the drawing is, in units of its own.
const WIDTH: u32 = 1000;

/// Between two lanes.
const LANE: usize = 24;

/// What is never narrower on the drawing: a point can be seen, and hit.
const MARK_MIN: f64 = 4.0;

/// The drawing and the list beside it.
#[derive(Template)]
#[template(path = "picture.html")]
pub struct Drawing {
    width: usize,
    height: usize,
    alt: String,
    lanes: Vec<Lane>,
    days: Vec<(String, String, bool)>,
    from: String,
    rows: Vec<Row>,
    is_cut: bool,
}

struct Lane {
    name: &'static str,
    class: &'static str,
    y: usize,
    marks: Vec<Mark>,
}

struct Mark {
    x: String,
    width: String,
    href: String,
    text: String,
}

struct Row {
    name: &'static str,
    class: &'static str,
    from: String,
    to: String,
    text: String,
    href: Option<String>,
}

/// Which lane a stretch is on, and how it is called and drawn.
fn named(what: What) -> (usize, &'static str, &'static str) {
    match what {
        What::Complete => (0, "Complete", "complete"),
        What::Unclaimed => (0, "Nothing claimed", "unclaimed"),
        What::Paused => (1, "Subscription not active", "paused"),
        What::Backfill => (2, "Backfill", "backfill"),
        What::Held => (3, "Without their data", "held"),
        What::Lost => (4, "Lost", "lost"),
    }
}

/// In this order, from the top.
const ALL: [What; 6] = [
    What::Complete,
    What::Unclaimed,
    What::Paused,
    What::Backfill,
    What::Held,
    What::Lost,
];

/// Where the events of a stretch are; `None`: that is not known.
fn href(stretch: &Stretch) -> Option<String> {
    let (first, last) = (stretch.first?, stretch.last?);
    let only = match stretch.kind {
        What::Held => "partial=only&",
        _ => "",
    };
    Some(format!("/events?{only}from={first}&to={last}"))
}

impl Drawing {
    /// Draws it.
    pub fn of(picture: &Picture) -> Drawing {
        let whole = picture.to.duration_since(picture.from).as_secs_f64().max(1.0);
        let wide = f64::from(WIDTH);
        let x = |at: Timestamp| (at.duration_since(picture.from).as_secs_f64() / whole * wide).clamp(0.0, wide);
        // One lane has what is claimed and what is not.
        let has = |lane: usize| lane == 0 || picture.stretches.iter().any(|stretch| named(stretch.kind).0 == lane);
        let shown: Vec<usize> = (0..=4).filter(|lane| has(*lane)).collect();
        let mut lanes = Vec::new();
        for what in ALL {
            let (lane, name, class) = named(what);
            let of = || picture.stretches.iter().filter(move |stretch| stretch.kind == what);
            let Some(place) = shown.iter().position(|shown| *shown == lane) else {
                continue;
            };
            if of().next().is_none() {
                continue;
            }
            let mark = |stretch: &Stretch| {
                let (from, to) = (x(stretch.from), x(stretch.to));
                let width = (to - from).max(MARK_MIN);
                Mark {
                    x: format!("{:.1}", from.min(wide - width)),
                    width: format!("{width:.1}"),
                    href: href(stretch).unwrap_or_else(|| "#stretches".to_owned()),
                    text: format!("{name}, {}: {}", text::range(&stretch.from, &stretch.to), stretch.text),
                }
            };
            lanes.push(Lane {
                name,
                class,
                y: place * LANE + 3,
                marks: of().map(mark).collect(),
            });
        }
        Drawing {
            width: WIDTH as usize,
            height: shown.len() * LANE,
            alt: format!("From {} to now: {}", text::when(&picture.from), words(picture)),
            lanes,
            days: days(picture, x),
            from: text::day(&picture.from),
            rows: picture
                .stretches
                .iter()
                .rev()
                .map(|stretch| Row::of(stretch, picture.to))
                .collect(),
            is_cut: picture.is_cut,
        }
    }
}

impl Row {
    /// What goes on goes on until now only where it has come so far: a claim ends where it was last compared, a backfill where it is to.
    fn of(stretch: &Stretch, now: Timestamp) -> Row {
        let (_, name, class) = named(stretch.kind);
        let (from, to) = text::both(&stretch.from, &stretch.to);
        Row {
            name,
            class,
            from,
            to: if stretch.is_open && stretch.to >= now {
                "now".to_owned()
            } else {
                to
            },
            text: stretch.text.clone(),
            href: href(stretch),
        }
    }
}

/// How many there are of each.
fn words(picture: &Picture) -> String {
    let count = |what: What| picture.stretches.iter().filter(|stretch| stretch.kind == what).count();
    let said: Vec<String> = ALL
        .into_iter()
        .filter(|what| count(*what) > 0)
        .map(|what| format!("{} {}", count(what), named(what).1.to_lowercase()))
        .collect();
    if said.is_empty() {
        "nothing is known".to_owned()
    } else {
        said.join(", ")
    }
}

/// Midnights: where each is, what it is called, and whether it is named.
fn days(picture: &Picture, x: impl Fn(Timestamp) -> f64) -> Vec<(String, String, bool)> {
    const DAY: i64 = 86_400;
    let first = picture.from.as_second().div_euclid(DAY) + 1;
    let last = picture.to.as_second().div_euclid(DAY);
    let at = |day: i64| Timestamp::from_second(day * DAY).ok();
    let days = (first..=last).filter_map(at).enumerate();
    days.map(|(index, at)| (format!("{:.1}", x(at)), text::day(&at), index % 7 == 6))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Seq;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + day * 86_400).unwrap()
    }

    fn stretch(kind: What, from: i64, to: i64) -> Stretch {
        Stretch {
            kind,
            from: at(from),
            to: at(to),
            is_open: false,
            first: Some(Seq(5)),
            last: Some(Seq(9)),
            events: Some(5),
            text: "it is <so>".into(),
            ran: None,
        }
    }

    #[test]
    fn what_goes_on_is_said_to_reach_as_far_as_it_does() {
        let to = |kind, to, is_open| {
            let stretch = Stretch {
                is_open,
                ..stretch(kind, 1, to)
            };
            Row::of(&stretch, at(30)).to
        };
        assert_eq!(to(What::Paused, 30, true), "now");
        // It was last compared a day ago, and the backfill is to fetch what is older than ten days.
        assert_eq!(to(What::Complete, 29, true), text::when(&at(29)));
        assert_eq!(to(What::Backfill, 20, true), text::when(&at(20)));
        assert_eq!(to(What::Complete, 29, false), text::when(&at(29)));
    }

    #[test]
    fn each_stretch_is_where_it_belongs_and_leads_to_its_events() {
        let picture = Picture {
            from: at(0),
            to: at(30),
            configured: true,
            stretches: vec![
                stretch(What::Unclaimed, 0, 3),
                stretch(What::Complete, 3, 30),
                stretch(What::Paused, 10, 10),
            ],
            is_cut: false,
        };
        let drawing = Drawing::of(&picture);
        let lanes: Vec<(&str, usize)> = drawing.lanes.iter().map(|lane| (lane.class, lane.y)).collect();
        assert_eq!(lanes, [("complete", 3), ("unclaimed", 3), ("paused", 27)]);
        assert_eq!(drawing.height, 48);
        let mark = &drawing.lanes[0].marks[0];
        assert_eq!(
            (mark.x.as_str(), mark.width.as_str(), mark.href.as_str()),
            ("100.0", "900.0", "/events?from=5&to=9")
        );
        assert_eq!(drawing.lanes[2].marks[0].width, "4.0", "a moment can be seen");
        assert_eq!(drawing.days.len(), 30);
        let held = href(&stretch(What::Held, 0, 1));
        assert_eq!(held.as_deref(), Some("/events?partial=only&from=5&to=9"));
        let svg = drawing.render().unwrap();
        assert!(!svg.contains("<so>") && !svg.contains("style="));
    }
}
