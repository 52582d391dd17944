//! Ids that look like Close's and can be read back: the first eleven characters are the object's number, spread over all of
//! them, so that a million objects need no table from id to object.

use super::dice::{Dice, mix};

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Characters that 64 bits take in base 62.
const NUMBER_LEN: usize = 11;

const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
const GATHER: u64 = inverse(SPREAD);

/// The odd number whose product with `odd` is 1, modulo 2^64: each of Newton's steps doubles the bits that are right.
const fn inverse(odd: u64) -> u64 {
    let mut found = odd;
    let mut step = 0;
    while step < 6 {
        found = found.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(found)));
        step += 1;
    }
    found
}

/// Makes and reads the ids of one organization.
#[derive(Debug, Clone, Copy)]
pub struct Ids(pub u64);

impl Ids {
    /// The id of an object: `lead_` and 43 characters, as Close has it; event ids and the like are 22 long.
    pub fn id(self, prefix: &str, number: u64) -> String {
        let len = if matches!(prefix, "ev_" | "req_" | "whsub_" | "api_") {
            22
        } else {
            43
        };
        let mask = self.mask(prefix);
        let mut text = String::with_capacity(prefix.len() + len);
        text.push_str(prefix);
        push_digits(
            &mut text,
            number.wrapping_add(1).wrapping_mul(SPREAD) ^ mask,
            NUMBER_LEN,
        );
        let mut dice = Dice::of(&[mask, number]);
        while text.len() < prefix.len() + len {
            let left = prefix.len() + len - text.len();
            push_digits(&mut text, dice.roll(), left.min(10));
        }
        text
    }

    /// The number in an id; `None` where the id was not made here.
    pub fn number(self, prefix: &str, id: &str) -> Option<u64> {
        let digits = id.strip_prefix(prefix)?.get(..NUMBER_LEN)?;
        let mut value = 0_u64;
        for byte in digits.bytes() {
            let digit = DIGITS.iter().position(|digit| *digit == byte)? as u64;
            value = value.checked_mul(62)?.checked_add(digit)?;
        }
        let number = (value ^ self.mask(prefix)).wrapping_mul(GATHER).wrapping_sub(1);
        (self.id(prefix, number) == id).then_some(number)
    }

    fn mask(self, prefix: &str) -> u64 {
        prefix
            .bytes()
            .fold(mix(self.0), |mask, byte| mix(mask ^ u64::from(byte)))
    }
}

fn push_digits(out: &mut String, mut value: u64, len: usize) {
    let mut digits = [b'0'; NUMBER_LEN];
    for digit in digits[..len].iter_mut().rev() {
        *digit = DIGITS[(value % 62) as usize];
        value /= 62;
    }
    out.extend(digits[..len].iter().map(|digit| char::from(*digit)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ids_read_back_and_belong_to_one_organization(seed: u64, number: u64, other in 0_u64..100) {
            for prefix in ["ev_", "lead_"] {
                let id = Ids(seed).id(prefix, number);
                prop_assert_eq!(id.len(), prefix.len() + if prefix == "ev_" { 22 } else { 43 });
                prop_assert_eq!(Ids(seed).number(prefix, &id), Some(number));
                prop_assert_eq!(Ids(seed).number("cont_", &id), None);
                prop_assert_eq!(Ids(seed ^ (other + 1)).number(prefix, &id), None);
                prop_assert_eq!(Ids(seed).number(prefix, &id[..id.len() - 1]), None);
            }
        }

        #[test]
        fn nothing_panics_on_anything(text in "(ev_)?\\PC{0,30}") {
            let _ = Ids(7).number("ev_", &text);
        }
    }
}
