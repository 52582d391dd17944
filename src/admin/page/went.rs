//! Where events went, as it stands in a row of theirs.

use std::collections::BTreeMap;

use super::{event, text};
use crate::control::browse::Page;
use crate::sorted;

/// What became of an event at some sinks.
pub struct WentCell {
    pub state: String,
    pub sinks: String,
    /// Each by name, where `sinks` only counts them.
    pub names: Option<String>,
    pub tone: &'static str,
}

/// Where each event of a page went that was asked for with that.
pub fn of(page: &Page) -> Vec<Vec<WentCell>> {
    page.went.iter().flatten().map(cells).collect()
}

/// So many sinks are named where an event went; more are counted, and named on demand.
const NAMES_MAX: usize = 3;

/// Where an event went, what needs somebody first: the sinks by what became of it there.
fn cells(went: &BTreeMap<String, String>) -> Vec<WentCell> {
    let mut by_state: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (sink, state) in went {
        by_state.entry(state).or_default().push(sink);
    }
    let cell = |(state, sinks): (&str, Vec<&str>)| WentCell {
        tone: event::tone(state),
        state: state.replace('-', " "),
        names: (sinks.len() > NAMES_MAX).then(|| sinks.join(", ")),
        sinks: if sinks.len() > NAMES_MAX {
            text::many(&sinks, "sink")
        } else {
            sinks.join(", ")
        },
    };
    let mut cells: Vec<WentCell> = by_state.into_iter().map(cell).collect();
    let rank = |cell: &WentCell| {
        ["bad", "warn", "accent", "", "ok"]
            .iter()
            .position(|tone| *tone == cell.tone)
    };
    sorted::sort_by_key(&mut cells, rank);
    cells
}

/// Where events went that came just now: nobody looks again for them.
pub fn just_came(count: usize) -> Vec<Vec<WentCell>> {
    let cell = |_| {
        vec![WentCell {
            state: "just came".to_owned(),
            sinks: String::new(),
            names: None,
            tone: "",
        }]
    };
    (0..count).map(cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_an_event_went_is_said_by_what_became_of_it_the_worst_first() {
        let went = [
            ("a", "delivered"),
            ("b", "dead"),
            ("c", "delivered"),
            ("d", "in-flight"),
        ];
        let went = went.map(|(sink, state)| (sink.to_owned(), state.to_owned()));
        let cells = cells(&BTreeMap::from(went));
        let said: Vec<String> = cells
            .iter()
            .map(|cell| format!("{}: {}", cell.state, cell.sinks))
            .collect();
        assert_eq!(said, ["dead: b", "in flight: d", "delivered: a, c"]);
        let many = (0..16).map(|sink| (format!("s{sink:02}"), "delivered".to_owned()));
        let cells = super::cells(&many.collect());
        assert_eq!((cells.len(), cells[0].sinks.as_str()), (1, "16 sinks"));
        assert!(cells[0].names.as_ref().unwrap().starts_with("s00, s01, "));
    }
}
