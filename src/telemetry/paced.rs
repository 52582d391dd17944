//! What would be said again and again: once, and once more every so often while it stays as it is.

use std::time::{Duration, Instant};

/// What stays as it is is said again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(600);

/// What was said last of one thing.
#[derive(Debug, Default)]
pub struct Paced(Option<(String, Instant)>);

impl Paced {
    /// Whether this is to be said now; then it counts as said.
    pub fn is_news(&mut self, what: &str) -> bool {
        self.is_news_at(what, Instant::now())
    }

    /// It is over: when it comes again it is news.
    pub fn over(&mut self) {
        self.0 = None;
    }

    fn is_news_at(&mut self, what: &str, now: Instant) -> bool {
        let is_old = |(before, at): &(String, Instant)| before == what && now.duration_since(*at) < AGAIN_AFTER;
        if self.0.as_ref().is_some_and(is_old) {
            return false;
        }
        self.0 = Some((what.to_owned(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_as_it_is_is_said_once_in_a_while() {
        let mut paced = Paced::default();
        let began = Instant::now();
        let mut at = |seconds, what| paced.is_news_at(what, began + Duration::from_secs(seconds));
        assert!(at(0, "full"));
        assert!(!at(1, "full") && !at(599, "full"));
        assert!(at(600, "full"));
        assert!(at(601, "broken") && at(602, "full"), "what is another thing is news");
        assert!(!at(603, "full"));
        paced.over();
        assert!(paced.is_news_at("full", began + Duration::from_secs(604)));
    }
}
