//! What comes to the public listener, as people ask for it: what became of it in the last hour, when a delivery last came, and
//! whether this machine's clock agrees with Close's. The same facts go to the log and the metrics from here.
//!
//! A delivery whose signature is right and whose time is not is Close's all the same. Its sender gets the answer that everybody
//! gets who can't sign (401, one body for all), so that nobody learns anything by trying; whoever runs this machine learns that
//! one of the two clocks is wrong, and by how much.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use metrics::{Counter, Gauge, counter, gauge};
use serde::{Deserialize, Serialize};

use super::Sample;
use super::last_hour::LastHour;
use crate::age::Age;
use crate::sorted;

/// Every answer of the public listener.
pub const ANSWERS: [&str; 10] = [
    STORED,
    "duplicate",
    "quarantined",
    "unauthorized",
    "unavailable",
    "bad_request",
    "not_found",
    "method",
    "timeout",
    "too_large",
];

/// Every reason for a 401.
pub const REFUSALS: [&str; 6] = [
    "missing",
    "malformed",
    "bad_signature",
    "stale",
    "future",
    "wrong_subscription",
];

/// Every reason for a 503.
pub const UNAVAILABLE: [&str; 6] = ["full", "failing", "overloaded", "stopping", "no_room", "slow"];

const STORED: &str = "stored";

/// Counters of the last hour: answers, then refusals, then reasons for a 503.
const COUNTS: usize = ANSWERS.len() + REFUSALS.len() + UNAVAILABLE.len();

/// No delivery has come yet.
const NEVER: i64 = i64::MIN;

/// An authentic delivery that was refused for its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffTime {
    /// By this machine's clock.
    pub received_at: Timestamp,
    /// By Close's, to the second.
    pub signed_at: Timestamp,
}

impl OffTime {
    /// Our time less Close's, in whole seconds as Close's is: positive where the delivery looks old here, negative where it comes
    /// from later.
    pub fn offset(&self) -> SignedDuration {
        SignedDuration::from_secs(self.received_at.as_second() - self.signed_at.as_second())
    }
}

impl fmt::Display for OffTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offset = self.offset();
        write!(
            f,
            "Close signed it at {:.0}, and here it was {:.0}: ",
            self.signed_at, self.received_at
        )?;
        if offset.is_negative() {
            write!(f, "this machine's clock is at least {} behind", Coarse(offset))
        } else {
            write!(
                f,
                "this machine's clock is {} ahead, or it was that long on its way",
                Coarse(offset)
            )
        }
    }
}

/// A span in its two largest units, without a sign.
struct Coarse(SignedDuration);

impl fmt::Display for Coarse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.unsigned_abs().as_secs();
        let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{seconds} s"),
            (0, 0, minutes) => write!(f, "{minutes} min {} s", seconds % 60),
            (0, hours, minutes) => write!(f, "{hours} h {minutes} min"),
            (days, hours, _) => write!(f, "{days} d {hours} h"),
        }
    }
}

/// How this machine's clock and Close's agree, as far as deliveries show it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// Authentic deliveries since the start that were refused as too old.
    pub stale: u64,
    /// Authentic deliveries since the start that were refused because they come from later than `clock_skew` allows.
    pub early: u64,
    /// The latest of both; `None`: there was none.
    pub last: Option<OffTime>,
    /// How many seconds our time was past Close's at that one (negative: before it).
    pub last_offset_seconds: Option<i64>,
    /// The latest authentic delivery was one of them, and none has been taken since: something is wrong with a clock.
    pub is_doubted: bool,
    /// How old the youngest authentic delivery of the last hour was by our clock, in seconds: as far as our clock may be ahead
    /// (negative: it is behind). `None`: there was none.
    pub least_age_seconds: Option<i64>,
}

/// What came to the public listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// How many seconds the counts cover: an hour and the minute that runs, or as long as the daemon has run.
    pub seconds: u64,
    /// Events stored.
    pub stored: u64,
    /// Deliveries of what was stored already, or is in quarantine.
    pub duplicate: u64,
    /// Authentic bodies that can't be read as a delivery, and are new in quarantine.
    pub quarantined: u64,
    /// Refused with 401, by reason; what did not happen is left out.
    pub refused: BTreeMap<String, u64>,
    /// Answered 503, by reason; what did not happen is left out.
    pub unavailable: BTreeMap<String, u64>,
    /// What was no delivery by its form (`bad_request`, `not_found`, `method`, `timeout`, `too_large`); what did not happen is left
    /// out.
    pub unfit: BTreeMap<String, u64>,
    /// When a delivery was last taken, since the daemon's start, by this machine's clock; `None`: none was.
    pub last_delivery_at: Option<Timestamp>,
    /// How the clocks agree.
    pub clocks: Clocks,
}

/// Sees what comes to the public listener. One function per fact; each counts for the last hour and for ever, and says in the log
/// what people should know.
pub struct Door {
    /// Is told of the time when Close has signed it.
    age: Arc<Age>,
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    began: Instant,
    hour: LastHour<COUNTS>,
    /// Milliseconds since the Unix epoch, or [`NEVER`].
    last_delivery_ms: AtomicI64,
    stale: AtomicU64,
    early: AtomicU64,
    last_off: Mutex<Option<OffTime>>,
    is_doubted: AtomicBool,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("received", &self.received()).finish()
    }
}

impl Door {
    /// Nothing has come yet; `age` is told of the time when Close has signed it.
    pub fn new(age: Arc<Age>) -> Arc<Door> {
        Door::with_clock(age, Instant::now)
    }

    /// The same with a clock of one's own.
    pub fn with_clock(age: Arc<Age>, clock: impl Fn() -> Instant + Send + Sync + 'static) -> Arc<Door> {
        Arc::new(Door {
            age,
            began: clock(),
            clock: Box::new(clock),
            hour: LastHour::new(),
            last_delivery_ms: AtomicI64::new(NEVER),
            stale: AtomicU64::new(0),
            early: AtomicU64::new(0),
            last_off: Mutex::new(None),
            is_doubted: AtomicBool::new(false),
        })
    }

    fn now(&self) -> Duration {
        (self.clock)().saturating_duration_since(self.began)
    }

    fn count(&self, first: usize, labels: &[&'static str], label: &'static str) {
        let place = labels.iter().position(|known| *known == label);
        debug_assert!(place.is_some(), "{label} is not among {labels:?}");
        if let Some(place) = place {
            self.hour.count(first + place, self.now());
        }
    }

    /// A request was answered.
    pub fn answered(&self, answer: &'static str) {
        // Looking a counter up takes a sizeable part of the time that an answer takes, and in a flood nearly all are this one.
        static OF_STORED: LazyLock<Counter> =
            LazyLock::new(|| counter!("closehook_requests_total", "answer" => STORED));
        self.count(0, &ANSWERS, answer);
        if answer == STORED {
            OF_STORED.increment(1);
        } else {
            counter!("closehook_requests_total", "answer" => answer).increment(1);
        }
    }

    /// A request was refused with 401.
    pub fn refused(&self, reason: &'static str, peer: IpAddr) {
        static SAMPLE: Sample = Sample::new();
        self.count_refusal(reason);
        if SAMPLE.passes() {
            tracing::warn!(reason, %peer, "refused a request that is not signed as Close signs");
        }
    }

    /// An authentic delivery was refused with 401 for its time.
    pub fn off_time(&self, reason: &'static str, off: OffTime, peer: IpAddr) {
        // Others' lies must not keep this from being said, and it is said of the clock, not of each delivery.
        static STALE: Sample = Sample::new();
        static EARLY: Sample = Sample::new();
        let is_early = off.offset().is_negative();
        let (counter, sample) = if is_early {
            (&self.early, &EARLY)
        } else {
            (&self.stale, &STALE)
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.count_refusal(reason);
        *self.last_off.lock().unwrap_or_else(PoisonError::into_inner) = Some(off);
        self.is_doubted.store(true, Ordering::Relaxed);
        self.compare(&off);
        if sample.passes_in(MINUTE_SECONDS) {
            tracing::warn!(
                reason, %peer, offset_seconds = off.offset().as_secs(),
                "refused a delivery that Close did sign: {off}; look whether the time here is right (`timedatectl`)"
            );
        }
    }

    /// An authentic delivery whose time is right: whatever becomes of it now, Close reaches us, and the clocks agree.
    pub fn taken(&self, received_at: Timestamp, signed_at: Timestamp) {
        self.last_delivery_ms
            .store(received_at.as_millisecond(), Ordering::Relaxed);
        // Looked at first: a store would move the line between processors at every delivery.
        if self.is_doubted.load(Ordering::Relaxed) {
            self.is_doubted.store(false, Ordering::Relaxed);
        }
        self.compare(&OffTime { received_at, signed_at });
    }

    fn compare(&self, times: &OffTime) {
        static OFFSET: LazyLock<Gauge> = LazyLock::new(|| gauge!("closehook_clock_offset_seconds"));
        let seconds = times.offset().as_secs();
        self.hour.measure(seconds, self.now());
        OFFSET.set(seconds as f64);
    }

    /// Close has signed that this time is past.
    pub fn told(&self, signed_at: Timestamp) {
        self.age.told(signed_at);
    }

    fn count_refusal(&self, reason: &'static str) {
        self.count(ANSWERS.len(), &REFUSALS, reason);
        counter!("closehook_refused_total", "reason" => reason).increment(1);
    }

    /// A request was answered 503.
    pub fn unavailable(&self, reason: &'static str) {
        self.count(ANSWERS.len() + REFUSALS.len(), &UNAVAILABLE, reason);
        counter!("closehook_unavailable_total", "reason" => reason).increment(1);
    }

    /// All of it.
    pub fn received(&self) -> Received {
        let now = self.now();
        let sums = self.hour.sums(now);
        let (answers, reasons) = sums.split_at(ANSWERS.len());
        let (refusals, unavailable) = reasons.split_at(REFUSALS.len());
        let last_off = *self.last_off.lock().unwrap_or_else(PoisonError::into_inner);
        let last_delivery_ms = Some(self.last_delivery_ms.load(Ordering::Relaxed)).filter(|ms| *ms != NEVER);
        Received {
            seconds: now.as_secs().min(3600 + now.as_secs() % 60),
            stored: answers[0],
            duplicate: answers[1],
            quarantined: answers[2],
            refused: happened(&REFUSALS, refusals),
            unavailable: happened(&UNAVAILABLE, unavailable),
            unfit: happened(&ANSWERS[5..], &answers[5..]),
            last_delivery_at: last_delivery_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
            clocks: Clocks {
                stale: self.stale.load(Ordering::Relaxed),
                early: self.early.load(Ordering::Relaxed),
                last: last_off,
                last_offset_seconds: last_off.map(|off| off.offset().as_secs()),
                is_doubted: self.is_doubted.load(Ordering::Relaxed),
                least_age_seconds: self.hour.least(now),
            },
        }
    }
}

const MINUTE_SECONDS: i64 = 60;

/// Each label with its count, without those that did not happen.
fn happened(labels: &[&str], counts: &[u64]) -> BTreeMap<String, u64> {
    let counted = labels.iter().zip(counts).filter(|(_, count)| **count > 0);
    sorted::map(counted.map(|(label, count)| ((*label).to_owned(), *count)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    /// A door, and a clock that stands still until it is moved by so many seconds.
    fn door() -> (Arc<Door>, impl Fn(u64)) {
        let (began, moved) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let clock = moved.clone();
        let door = Door::with_clock(Arc::default(), move || {
            began + Duration::from_secs(clock.load(Ordering::SeqCst))
        });
        (door, move |seconds| {
            moved.fetch_add(seconds, Ordering::SeqCst);
        })
    }

    #[test]
    fn the_last_hour_is_counted_by_what_became_of_each_request() {
        let (door, wait) = door();
        for answer in ANSWERS {
            door.answered(answer);
        }
        for reason in REFUSALS {
            door.refused(reason, PEER);
        }
        for reason in UNAVAILABLE {
            door.unavailable(reason);
        }
        door.answered("stored");
        wait(90);
        door.unavailable("full");
        let received = door.received();
        let each = |labels: &[&str]| -> BTreeMap<String, u64> {
            labels.iter().map(|label| ((*label).to_owned(), 1)).collect()
        };
        assert_eq!((received.stored, received.duplicate, received.quarantined), (2, 1, 1));
        assert_eq!((received.seconds, &received.refused), (90, &each(&REFUSALS)));
        let mut unavailable = each(&UNAVAILABLE);
        unavailable.insert("full".into(), 2);
        assert_eq!(received.unavailable, unavailable);
        assert_eq!(
            received.unfit,
            each(&["bad_request", "not_found", "method", "timeout", "too_large"])
        );
        wait(3600);
        let later = door.received();
        assert_eq!((later.seconds, later.stored, later.refused.len()), (3630, 0, 0));
        assert_eq!(later.unavailable, BTreeMap::from([("full".to_owned(), 1)]));
        wait(3600);
        assert_eq!(door.received().unavailable, BTreeMap::new());
    }

    #[test]
    fn clocks_that_do_not_agree_are_doubted_until_a_delivery_is_taken() {
        let (door, wait) = door();
        assert_eq!(door.received().clocks, Clocks::default());
        let early = OffTime {
            received_at: at(0),
            signed_at: at(1200),
        };
        door.off_time("future", early, PEER);
        let clocks = door.received().clocks;
        assert!(clocks.is_doubted);
        assert_eq!((clocks.stale, clocks.early, clocks.last), (0, 1, Some(early)));
        assert_eq!(
            (clocks.last_offset_seconds, clocks.least_age_seconds),
            (Some(-1200), Some(-1200))
        );
        assert_eq!(door.received().last_delivery_at, None, "it was not taken");
        let stale = OffTime {
            received_at: at(4 * 86_400),
            signed_at: at(0),
        };
        door.off_time("stale", stale, PEER);
        let clocks = door.received().clocks;
        assert_eq!((clocks.stale, clocks.early, clocks.last), (1, 1, Some(stale)));
        assert_eq!(door.received().refused["future"], 1);
        assert_eq!(door.received().refused["stale"], 1);
        // Somebody has set the clock.
        door.taken(at(2), at(1));
        let received = door.received();
        assert!(!received.clocks.is_doubted);
        assert_eq!(received.last_delivery_at, Some(at(2)));
        assert_eq!((received.clocks.stale, received.clocks.early), (1, 1));
        wait(2 * 3600);
        door.taken(at(8000), at(7400));
        assert_eq!(door.received().clocks.least_age_seconds, Some(600));
    }

    #[test]
    fn what_is_off_is_said_with_both_times_and_how_far() {
        let off = |received, signed| {
            OffTime {
                received_at: at(received),
                signed_at: at(signed),
            }
            .to_string()
        };
        assert_eq!(
            off(0, 1200),
            "Close signed it at 2023-11-14T22:33:20Z, and here it was 2023-11-14T22:13:20Z: this machine's clock is at least 20 min 0 s behind"
        );
        assert_eq!(
            off(4 * 86_400 + 7200, 0),
            "Close signed it at 2023-11-14T22:13:20Z, and here it was 2023-11-19T00:13:20Z: this machine's clock is 4 d 2 h ahead, or it was that long on its way"
        );
        assert!(off(0, 59).ends_with("at least 59 s behind"));
        assert!(off(0, 3 * 3600 + 60).ends_with("at least 3 h 1 min behind"));
    }
}
