//! What is said of a file of letters that has lost its beginning.

use super::*;
use crate::framefile::HEADER_LEN;

/// Nothing that is there is damaged.
#[test]
fn a_header_that_is_missing_is_said_to_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(1..=3)).unwrap();
    drop(store);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[HEADER_LEN as usize..]).unwrap();
    for read_only in [true, false] {
        let store = Letters::open(dir.path(), "a", read_only).unwrap();
        assert_eq!(store.len(), 3);
        let told = store.trouble().unwrap();
        assert!(
            told.contains("its beginning is missing") && !told.contains(" bytes of "),
            "{told}"
        );
    }
}

/// The second letter is where the first one was, right behind what a header takes up.
#[test]
fn a_first_letter_that_is_missing_is_no_damaged_header() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let store = Letters::open(dir.path(), "a", false).unwrap();
    store.add(&letters(1..=3)).unwrap();
    drop(store);
    let mut places = Vec::new();
    crate::framefile::scan(&path, FORMAT, |frame| places.push(frame.offset as usize)).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let left = &bytes[places[1] - places[0]..];
    std::fs::write(&path, left).unwrap();
    for read_only in [true, false] {
        let store = Letters::open(dir.path(), "a", read_only).unwrap();
        assert_eq!(store.seqs(Seq(1), 9), [2, 3].map(Seq));
        assert!(store.is_damaged(), "looked at only: {read_only}");
        let told = store.trouble().unwrap();
        assert!(told.contains("its beginning is missing"), "{told}");
    }
    assert_eq!(std::fs::read(dir.path().join(".a.damaged")).unwrap(), left);
}
