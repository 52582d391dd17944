//! Cursors: opaque to clients, here a sealed note of where in which query a page began and when it was written.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::dice::Dice;
use super::events::{Place, Query, Start};
use super::moment::Moment;

/// What a cursor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Where its page begins.
    pub start: Start,
    /// The dates of the query it continues, which clients do not repeat.
    pub from: Option<Moment>,
    /// See `from`.
    pub to: Option<Moment>,
    /// When it was written, by the machine's clock.
    pub written: Moment,
    /// Which cursors were live then: a control call lets all of them expire.
    pub epoch: u32,
    filters: u64,
}

/// Why a cursor can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Never written here.
    #[error("This cursor is not valid.")]
    Invalid,
    /// The other filters are not those it was made with.
    #[error(
        "This cursor belongs to a query with other filters: supply the same filters again, except for date_updated."
    )]
    OtherQuery,
}

impl Cursor {
    /// For the continuation of a query.
    pub fn new(start: Start, query: &Query, written: Moment, epoch: u32) -> Cursor {
        Cursor {
            start,
            from: query.from,
            to: query.to,
            written,
            epoch,
            filters: filters(query),
        }
    }

    /// The text given to the client.
    pub fn seal(&self, seed: u64) -> String {
        let (kind, place) = match self.start {
            Start::Top => (0, None),
            Start::Older(place) => (1, Some(place)),
            Start::Newer(place) => (2, Some(place)),
        };
        let place = place.unwrap_or(Place {
            updated: Moment(0),
            event: 0,
            nth: 0,
        });
        let mut bytes = vec![kind, place.nth];
        bytes.extend(place.event.to_be_bytes());
        bytes.extend(self.epoch.to_be_bytes());
        bytes.extend(place.updated.0.to_be_bytes());
        bytes.extend(self.from.unwrap_or(Moment(i64::MIN)).0.to_be_bytes());
        bytes.extend(self.to.unwrap_or(Moment(i64::MAX)).0.to_be_bytes());
        bytes.extend(self.written.0.to_be_bytes());
        bytes.extend(self.filters.to_be_bytes());
        bytes.extend(checksum(seed, &bytes).to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a cursor and checks that it continues this query, whose dates it then brings along.
    pub fn open(text: &str, seed: u64, query: &Query) -> Result<Cursor, Refused> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Refused::Invalid)?;
        let (body, sum) = bytes.split_last_chunk::<8>().ok_or(Refused::Invalid)?;
        if u64::from_be_bytes(*sum) != checksum(seed, body) {
            return Err(Refused::Invalid);
        }
        let word = |at: usize| {
            body.get(at..at + 8)
                .and_then(|bytes| bytes.try_into().ok())
                .map(i64::from_be_bytes)
        };
        let half = |at: usize| {
            body.get(at..at + 4)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u32::from_be_bytes)
        };
        let read = || {
            let place = Place {
                updated: Moment(word(10)?),
                event: half(2)?,
                nth: *body.get(1)?,
            };
            Some(Cursor {
                start: match body.first()? {
                    1 => Start::Older(place),
                    2 => Start::Newer(place),
                    _ => Start::Top,
                },
                epoch: half(6)?,
                from: Some(Moment(word(18)?)).filter(|from| from.0 != i64::MIN),
                to: Some(Moment(word(26)?)).filter(|to| to.0 != i64::MAX),
                written: Moment(word(34)?),
                filters: word(42)?.cast_unsigned(),
            })
        };
        let cursor = read().ok_or(Refused::Invalid)?;
        if cursor.filters == filters(query) {
            Ok(cursor)
        } else {
            Err(Refused::OtherQuery)
        }
    }
}

fn checksum(seed: u64, bytes: &[u8]) -> u64 {
    let parts: Vec<u64> = std::iter::once(seed)
        .chain(bytes.iter().map(|byte| u64::from(*byte)))
        .collect();
    Dice::of(&parts).roll()
}

/// The filters a client must repeat.
fn filters(query: &Query) -> u64 {
    let fields = [
        &query.object_type,
        &query.object_id,
        &query.action,
        &query.lead_id,
        &query.user_id,
        &query.request_id,
    ];
    let text = format!("{fields:?}");
    checksum(0, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cursor_reads_back_and_fits_only_its_own_query(
            updated: i64, event: u32, nth: u8, newer: bool, from in proptest::option::of(0_i64..9), epoch: u32, flip in 0_usize..77,
        ) {
            let place = Place { updated: Moment(updated), event, nth };
            let start = if newer { Start::Newer(place) } else { Start::Older(place) };
            let query = Query { lead_id: Some("lead_1".into()), from: from.map(Moment), ..Query::default() };
            let cursor = Cursor::new(start, &query, Moment(5), epoch);
            let text = cursor.seal(7);
            let undated = Query { from: None, ..query.clone() };
            prop_assert_eq!(Cursor::open(&text, 7, &undated), Ok(cursor));
            let other = Query { action: Some("updated".into()), ..query };
            prop_assert_eq!(Cursor::open(&text, 7, &other), Err(Refused::OtherQuery));
            prop_assert_eq!(Cursor::open(&text, 8, &undated), Err(Refused::Invalid));
            let mut bent = text.clone().into_bytes();
            bent[flip] = if bent[flip] == b'A' { b'B' } else { b'A' };
            prop_assert_eq!(Cursor::open(&String::from_utf8(bent).unwrap(), 7, &undated), Err(Refused::Invalid));
        }

        #[test]
        fn nothing_panics_on_anything(text in "\\PC{0,100}") {
            prop_assert_eq!(Cursor::open(&text, 7, &Query::default()), Err(Refused::Invalid));
        }
    }
}
