//! When an order is due, by what is written down of those before it. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// The first try after a failure; each further one waits four times as long. Let's Encrypt allows five failed validations of a
/// name an hour, which this stays within.
const RETRY_FIRST: Duration = Duration::from_secs(15);

/// The longest wait between tries.
pub(super) const RETRY_MAX: Duration = Duration::from_secs(4 * 3600);

/// Between one certificate and the order of the next one at least; for those that live less than three times that, a third of
/// their lives.
const PACE: Duration = Duration::from_secs(3600);

/// Begins the line before a kept certificate that says when it was ordered. PEM lets text stand between its blocks.
pub(super) const ORDERED_AT: &str = "closehook ordered this at ";

/// When to renew: when two thirds of a certificate's life are over, or up to a twentieth of it earlier, so that not all that
/// were made together come together. `share` is from 0 to 1.
pub(super) fn renewal_at(not_before: Timestamp, not_after: Timestamp, share: f64) -> Timestamp {
    let life = not_before.duration_until(not_after).as_secs_f64().max(0.0);
    let age = SignedDuration::try_from_secs_f64(life * (2.0 / 3.0 - share / 20.0)).unwrap_or_default();
    not_before.saturating_add(age).unwrap_or(not_after)
}

/// When a kept certificate was ordered, where that is written down.
pub(super) fn ordered_at(pem: &[u8]) -> Option<Timestamp> {
    let first = pem.split(|byte| *byte == b'\n').next()?;
    std::str::from_utf8(first).ok()?.strip_prefix(ORDERED_AT)?.parse().ok()
}

/// What is written down of an order: how many came to nothing, the last of them when and why.
pub(super) fn attempt(note: &str) -> Option<(u32, Timestamp, String)> {
    let (first, why) = note.split_once('\n')?;
    let (failures, at) = first.split_once(' ')?;
    Some((failures.parse().ok()?, at.parse().ok()?, why.to_owned()))
}

/// How much is left of the time between two orders. A certificate that was ordered in the future was ordered now: the clock has
/// been set back, and nobody knows how long ago it was.
pub(super) fn pace_left(
    not_before: Timestamp,
    not_after: Timestamp,
    ordered_at: Option<Timestamp>,
    now: Timestamp,
) -> Duration {
    let Some(ordered_at) = ordered_at else {
        return Duration::ZERO;
    };
    let life = not_before.duration_until(not_after);
    let pace = PACE.min(Duration::try_from(life).unwrap_or_default() / 3);
    let since = Duration::try_from(ordered_at.duration_until(now)).unwrap_or_default();
    pace.saturating_sub(since)
}

/// How long to wait after so many failures in a row: up to a quarter less than the full time, by `share` from 0 to 1.
pub(super) fn retry_after(failures: u32, share: f64) -> Duration {
    let factor = 4_u32.saturating_pow(failures.saturating_sub(1));
    RETRY_FIRST
        .saturating_mul(factor)
        .min(RETRY_MAX)
        .mul_f64(1.0 - share / 4.0)
}

pub(super) fn random_share() -> f64 {
    // Without randomness there is only less jitter.
    f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX)
}
