//! Chance that is the same each time: everything the fake makes up follows from its seed, on every machine and in every version,
//! so it can be made again from an index instead of being kept.

use std::time::Duration;

/// Spreads 64 bits over 64 bits, one to one (the finalizer of splitmix64).
pub fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A row of numbers that follows from what it was made of.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Different parts, different rows.
    pub fn of(parts: &[u64]) -> Dice {
        Dice(
            parts
                .iter()
                .fold(0x9e37_79b9_7f4a_7c15, |state, part| mix(state ^ mix(*part))),
        )
    }

    /// The next 64 bits.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`; zero where that is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll().checked_rem(bound).unwrap_or(0)
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        (self.roll() >> 11) as f64 / ((1_u64 << 53) as f64) < probability
    }

    /// A time below `longest`, to the millisecond.
    pub fn span(&mut self, longest: Duration) -> Duration {
        Duration::from_millis(self.below(u64::try_from(longest.as_millis()).unwrap_or(u64::MAX)))
    }

    /// One of these.
    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len() as u64) as usize]
    }
}
