//! Who has signed in: in memory only, so that nobody has when the daemon starts; by a digest of what the browser has, so that nobody who
//! sees this memory can sign in with it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::tokens::Digest;
use super::viewer::Viewer;
use crate::config::May;

/// A session is over after so long, whatever goes on in it.
pub const SESSION_LEN: Duration = Duration::from_secs(12 * 3600);

/// So many sessions of one name at a time: the oldest ends for the newest, and nobody's for another's.
const SESSIONS_PER_NAME: usize = 32;

/// A link is over after so long.
pub const LINK_LEN: Duration = Duration::from_secs(60);

/// So many links may be unused: the oldest ends for the newest.
const LINKS_MAX: usize = 32;

/// What a browser or a link has: 256 random bits as hexadecimal digits. An error is one sentence.
pub fn draw() -> Result<String, String> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| format!("no random number: {error}"))?;
    Ok(hex::encode(random))
}

/// One of them.
#[derive(Debug)]
struct Session {
    name: String,
    may: May,
    began: Instant,
    number: u64,
    over: CancellationToken,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Sessions {
    by_digest: HashMap<Digest, Session>,
    begun: u64,
}

impl Sessions {
    /// Begins one. It ends at the latest when `under` is cancelled: with the token it was begun with.
    pub fn begin(&mut self, digest: Digest, name: &str, may: May, under: &CancellationToken, now: Instant) {
        self.sweep(now);
        let of_name = || self.by_digest.iter().filter(|(_, session)| session.name == name);
        if of_name().count() >= SESSIONS_PER_NAME
            && let Some((oldest, _)) = of_name().min_by_key(|(_, session)| session.number)
        {
            let oldest = *oldest;
            self.end(&oldest);
        }
        self.begun += 1;
        let session = Session {
            name: name.to_owned(),
            may,
            began: now,
            number: self.begun,
            over: under.child_token(),
        };
        self.by_digest.insert(digest, session);
    }

    /// Whose it is, while it lasts.
    pub fn find(&mut self, digest: &Digest, now: Instant) -> Option<Viewer> {
        let session = self.by_digest.get(digest)?;
        if session.is_over(now) {
            self.end(digest);
            return None;
        }
        let until = Some(session.began + SESSION_LEN);
        Some(Viewer::new(&session.name, session.may, session.over.clone(), until))
    }

    /// Ends one.
    pub fn end(&mut self, digest: &Digest) {
        if let Some(session) = self.by_digest.remove(digest) {
            session.over.cancel();
        }
    }

    /// Forgets those that are over.
    pub fn sweep(&mut self, now: Instant) {
        self.by_digest.retain(|_, session| {
            let is_over = session.is_over(now);
            if is_over {
                session.over.cancel();
            }
            !is_over
        });
    }

    /// How many there are.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.by_digest.len()
    }
}

impl Session {
    fn is_over(&self, now: Instant) -> bool {
        self.over.is_cancelled() || now.saturating_duration_since(self.began) >= SESSION_LEN
    }
}

/// Links that nobody has used yet.
#[derive(Debug, Default)]
pub struct Links(std::collections::VecDeque<(Digest, Instant)>);

impl Links {
    /// Takes one in.
    pub fn add(&mut self, digest: Digest, now: Instant) {
        self.sweep(now);
        if self.0.len() >= LINKS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((digest, now));
    }

    /// Uses one up; `false`: it is none, was used, or is over.
    pub fn take(&mut self, digest: &Digest, now: Instant) -> bool {
        self.sweep(now);
        let before = self.0.len();
        self.0.retain(|(link, _)| !super::tokens::is_equal(link, digest));
        self.0.len() < before
    }

    fn sweep(&mut self, now: Instant) {
        self.0
            .retain(|(_, made)| now.saturating_duration_since(*made) < LINK_LEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tokens::Digester;

    fn digests() -> impl FnMut() -> Digest {
        let digester = Digester::new().unwrap();
        move || digester.of(draw().unwrap().as_bytes())
    }

    #[test]
    fn a_session_ends_after_twelve_hours_whatever_goes_on_in_it() {
        let (mut sessions, began) = (Sessions::default(), Instant::now());
        let digest = digests()();
        sessions.begin(digest, "on-call", May::Act, &CancellationToken::new(), began);
        let last = (began + SESSION_LEN).checked_sub(Duration::from_secs(1)).unwrap();
        let viewer = sessions.find(&digest, last).unwrap();
        assert_eq!((viewer.name.as_str(), viewer.may), ("on-call", May::Act));
        assert!(!viewer.over.is_cancelled());
        assert!(sessions.find(&digest, began + SESSION_LEN).is_none());
        assert!(viewer.over.is_cancelled(), "what it still looks at ends too");
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn of_one_name_the_oldest_session_ends_for_the_newest_and_nobody_elses() {
        let (mut sessions, now, mut digest) = (Sessions::default(), Instant::now(), digests());
        let under = CancellationToken::new();
        let other = digest();
        sessions.begin(other, "other", May::Read, &under, now);
        let own: Vec<Digest> = (0..=SESSIONS_PER_NAME).map(|_| digest()).collect();
        for digest in &own {
            sessions.begin(*digest, "own", May::Read, &under, now);
        }
        assert_eq!(sessions.count(), SESSIONS_PER_NAME + 1);
        assert!(sessions.find(&own[0], now).is_none());
        assert!(own[1..].iter().all(|digest| sessions.find(digest, now).is_some()));
        assert!(sessions.find(&other, now).is_some());
    }

    #[test]
    fn sessions_end_with_the_token_they_were_begun_with() {
        let (mut sessions, now, mut digest) = (Sessions::default(), Instant::now(), digests());
        let (gone, stays) = (CancellationToken::new(), CancellationToken::new());
        let (one, other) = (digest(), digest());
        sessions.begin(one, "one", May::Act, &gone, now);
        sessions.begin(other, "other", May::Act, &stays, now);
        gone.cancel();
        assert!(sessions.find(&one, now).is_none());
        assert!(sessions.find(&other, now).is_some());
    }

    #[test]
    fn a_link_works_once_within_a_minute_and_the_oldest_goes_for_the_newest() {
        let (mut links, made, mut digest) = (Links::default(), Instant::now(), digests());
        let link = digest();
        links.add(link, made);
        assert!(!links.take(&digest(), made));
        assert!(links.take(&link, (made + LINK_LEN).checked_sub(Duration::from_millis(1)).unwrap()));
        assert!(!links.take(&link, made), "once");
        links.add(link, made);
        assert!(!links.take(&link, made + LINK_LEN), "a minute");
        let all: Vec<Digest> = (0..=LINKS_MAX).map(|_| digest()).collect();
        for link in &all {
            links.add(*link, made);
        }
        assert!(!links.take(&all[0], made) && links.take(&all[1], made) && links.take(&all[LINKS_MAX], made));
    }
}
