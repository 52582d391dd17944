//! The log as the API shows it.

use super::*;
use proptest::prelude::*;

const HOUR: Duration = Duration::from_secs(3600);
const NOW: Moment = Moment(1_700_000_000_000_000);

fn filled(count: u64, span: Duration) -> Events {
    let mut events = Events::new(7);
    let start = NOW.minus(span);
    let step = span / count as u32;
    let dates: Vec<Moment> = (0..count).map(|n| start.plus(step * n as u32)).collect();
    events.make(&Settings::default(), dates.into_iter()).unwrap();
    events
}

/// All of it, page by page.
fn walk(events: &Events, query: &Query, limit: usize) -> Vec<Place> {
    let mut all = Vec::new();
    let mut start = Start::Top;
    loop {
        let page = events.page(NOW, query, start, limit);
        assert!(page.places.len() <= limit);
        assert_eq!(page.newer, !all.is_empty(), "only the first page has nothing newer");
        all.extend(&page.places);
        match page.places.last() {
            Some(last) if page.older => start = Start::Older(*last),
            _ => return all,
        }
    }
}

#[test]
fn a_walk_shows_the_latest_visible_revision_of_each_event_newest_first() {
    let events = filled(3000, HOUR * 48);
    let all = walk(&events, &Query::default(), 50);
    assert!(all.windows(2).all(|pair| pair[0] > pair[1]));
    let mut expected: HashMap<u32, Place> = HashMap::new();
    for (place, visible, _) in events.all() {
        if visible <= NOW {
            let latest = expected.entry(place.event).or_insert(place);
            *latest = (*latest).max(place);
        }
    }
    assert!(events.revisions() > events.count());
    let mut expected: Vec<Place> = expected.into_values().collect();
    expected.sort();
    expected.reverse();
    assert_eq!(all, expected);
    for place in &all {
        assert_eq!(events.shown(&events.id(*place), NOW), Some(*place));
    }
}

#[test]
fn what_is_older_than_thirty_days_or_not_yet_visible_is_not_shown() {
    let mut events = Events::new(7);
    let calm = Settings::calm();
    let dates = [NOW.minus(HISTORY).minus(HOUR), NOW.minus(HOUR), NOW.plus(HOUR)];
    events.make(&calm, dates.into_iter()).unwrap();
    let place = events
        .give("ev_late", r#"{"id":"ev_late"}"#.into(), NOW.minus(HOUR), NOW.plus(HOUR))
        .unwrap();
    let shown = walk(&events, &Query::default(), 50);
    assert_eq!(shown.iter().map(|place| place.event).collect::<Vec<_>>(), [1]);
    assert_eq!(events.shown("ev_late", NOW), None);
    // Visible an hour later, it stands below what was seen before it.
    let later = events.page(NOW.plus(HOUR * 2), &Query::default(), Start::Top, 50);
    assert_eq!(later.places.iter().filter(|shown| **shown == place).count(), 1);
    assert_ne!(later.places[0], place);
}

#[test]
fn consolidation_moves_an_event_to_the_top_while_somebody_pages() {
    let mut events = filled(200, HOUR * 10);
    let first = events.page(NOW, &Query::default(), Start::Top, 50);
    let below = events.page(NOW, &Query::default(), Start::Older(first.places[49]), 50);
    let moved = below.places[10];
    let again = events.consolidate(&events.id(moved), NOW, NOW).unwrap();
    let after = events.page(NOW, &Query::default(), Start::Older(first.places[49]), 50);
    assert!(!after.places.iter().any(|place| place.event == moved.event));
    assert_eq!(events.page(NOW, &Query::default(), Start::Top, 1).places, [again]);
    assert_eq!(events.id(again), events.id(moved));
    assert!(
        events.consolidate(&events.id(moved), NOW, NOW).is_err(),
        "a later revision has a later date"
    );
}

#[test]
fn withheld_data_is_absent_or_null_and_the_rest_as_written() {
    let text = r#"{"id": "ev_1", "data": {"a": 1.0}, "n": 1e2, "previous_data": {}}"#;
    assert_eq!(withheld(text, Withheld::Absent), r#"{"id": "ev_1", "n": 1e2}"#);
    assert_eq!(
        withheld(text, Withheld::Null),
        r#"{"id": "ev_1", "data": null, "n": 1e2, "previous_data": null}"#
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_filtered_walk_is_the_filtered_log_and_goes_back_the_way_it_came(
        pick in 0_u32..400, limit in 1_usize..50, which in 0_u8..6, from in 0_u64..40, to in 0_u64..40,
    ) {
        let events = filled(400, HOUR * 40);
        let place = events.all().nth(pick as usize).map(|(place, ..)| place).unwrap();
        let value: serde_json::Value = serde_json::from_str(&events.text(place)).unwrap();
        let field = |name: &str| value[name].as_str().map(ToOwned::to_owned);
        let mut query = Query { from: Some(NOW.minus(HOUR * from as u32)), to: Some(NOW.minus(HOUR * to as u32)), ..Query::default() };
        let names: &[&str] = match which {
            0 => { query.lead_id = field("lead_id"); &["lead_id"] }
            1 => { query.user_id = field("user_id"); &["user_id"] }
            2 => { query.request_id = field("request_id"); &["request_id"] }
            3 => { query.object_id = field("object_id"); query.object_type = field("object_type"); &["object_id", "object_type"] }
            4 => { query.action = field("action"); query.object_type = field("object_type"); &["action", "object_type"] }
            _ => &[],
        };
        let everything = Query { from: query.from, to: query.to, ..Query::default() };
        let expected: Vec<Place> = walk(&events, &everything, 50)
            .into_iter()
            .filter(|place| {
                let other: serde_json::Value = serde_json::from_str(&events.text(*place)).unwrap();
                names.iter().all(|name| value[*name].is_null() || other[*name] == value[*name])
            })
            .collect();
        prop_assert_eq!(&walk(&events, &query, limit), &expected);
        if let Some(oldest) = expected.last() {
            let mut back = vec![*oldest];
            loop {
                let page = events.page(NOW, &query, Start::Newer(back[0]), limit);
                back.splice(0..0, page.places.iter().copied());
                if !page.newer {
                    break;
                }
            }
            prop_assert_eq!(back, expected);
        }
    }
}
