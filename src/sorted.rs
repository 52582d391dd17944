//! What is short and to be in order. std's sorting, which its maps are collected with as well, is made for speed, and compiled anew for each
//! type: some 2,000 lines of code each time. What is here does for lists of some hundreds, where nobody waits for it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Sorts by this key; what is equal stays in its order.
pub(crate) fn sort_by_key<T, K: Ord>(list: &mut [T], key: impl Fn(&T) -> K) {
    sort_by(list, |one, other| key(one).cmp(&key(other)));
}

/// Sorts by this; what is equal stays in its order.
pub(crate) fn sort_by<T>(list: &mut [T], compare: impl Fn(&T, &T) -> Ordering) {
    let mut order = order(list.len(), &|one, other| compare(&list[one], &list[other]));
    for place in 0..list.len() {
        // What belongs here has made way for others since, each time to where they came from.
        let mut from = order[place];
        while from < place {
            from = order[from];
        }
        order[place] = from;
        list.swap(place, from);
    }
}

/// The places of a list of this length in the order of what is there.
fn order(len: usize, compare: &dyn Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    order.sort_by(|one, other| compare(*one, *other));
    order
}

/// A map of these; of those with equal keys the last.
pub(crate) fn map<K: Ord, V>(pairs: impl IntoIterator<Item = (K, V)>) -> BTreeMap<K, V> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        map.insert(key, value);
    }
    map
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lists_and_maps_are_as_those_of_std(keys in prop::collection::vec(0_u8..20, 0..60)) {
            let list: Vec<(u8, usize)> = keys.into_iter().zip(0..).collect();
            let (mut ours, mut theirs) = (list.clone(), list.clone());
            sort_by_key(&mut ours, |(key, _)| *key);
            theirs.sort_by_key(|(key, _)| *key);
            prop_assert_eq!(&ours, &theirs);
            sort_by(&mut ours, |one, other| other.cmp(one));
            theirs.sort_by(|one, other| other.cmp(one));
            prop_assert_eq!(&ours, &theirs);
            let theirs: BTreeMap<u8, usize> = list.iter().copied().collect();
            prop_assert_eq!(map(list), theirs);
        }
    }
}
