//! A log that is taken along.

use super::*;
use crate::framefile::make_dir;

/// Puts what a log holds into a new directory, with its files of known keys or without; gives what was taken.
fn transfer(log: &LocalLog, from: &Path, to: &Path, with_keys: bool, next: u64) -> Taken {
    let mut restorer = Restorer::new(to).unwrap();
    if with_keys {
        make_dir(&to.join("keys")).unwrap();
        for file in log.key_files().unwrap().paths() {
            make_dir(to.join(file).parent().unwrap()).unwrap();
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }
    let mut each = |piece: Piece<'_>| match piece {
        Piece::Segment { first, sealed } => restorer.segment(first, sealed),
        Piece::Block(block) => restorer.block(block),
    };
    let head = *log.head().borrow();
    let taken = log.take(head, &mut each).unwrap();
    assert_eq!(
        (restorer.taken().events, restorer.taken().last),
        (taken.events, taken.last)
    );
    assert!(
        matches!(LocalLog::open(options(to)), Err(OpenError::Locked { .. })),
        "nobody opens it half-way"
    );
    restorer.lacks(&taken.damaged, &taken.expired);
    assert_eq!(restorer.finish(head, log.gaps()).unwrap(), Seq(next));
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_put_elsewhere_is_the_same_and_goes_on_beyond_a_jump() {
    for with_keys in [true, false] {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let log = open(dir.path());
        for range in [1..=10, 11..=20] {
            store(&log, range).await;
            seal(&log).await;
        }
        store(&log, 21..=25).await;
        let gone = erase(&log, |event| event.seq == Seq(7)).await;
        assert_eq!(gone, [Seq(7)]);
        log.go_round().await.unwrap();
        assert_eq!(log.stats().unsealed, 1);
        let without_data = log.append(partial(body(26, 0))).await.unwrap();
        assert_eq!(without_data, Appended::Stored(Seq(26)));
        seal(&log).await;
        store(&log, 27..=30).await;
        let taken = transfer(&log, dir.path(), other.path(), with_keys, 1_000_000_001);
        assert_eq!((taken.events, taken.first, taken.last), (30, Seq(1), Seq(30)));
        let begins = || gaps::Gaps::open(other.path(), false, false).unwrap().begins();
        assert_eq!(begins(), Some(Seq(1)), "it knows where it begins before it is opened");
        let copy = open(other.path());
        assert_ne!(copy.epoch(), log.epoch());
        for seq in 1..=30 {
            let (one, two) = (
                log.get(Seq(seq)).unwrap().unwrap(),
                copy.get(Seq(seq)).unwrap().unwrap(),
            );
            assert_eq!(
                (&one.body, one.received_at, one.kind),
                (&two.body, two.received_at, two.kind)
            );
            assert_eq!(one.signature, two.signature);
            let again = if seq == 26 { partial } else { incoming };
            let known = copy.append(again(body(seq, 0))).await.unwrap();
            // Of an erased event only the file of keys knows.
            if with_keys || seq != 7 {
                assert_eq!(known, Appended::Duplicate(Seq(seq)), "{with_keys}");
            }
        }
        let appended = copy.append(incoming(body(31, 0))).await.unwrap();
        let first_new = 1_000_000_001 + u64::from(!with_keys);
        assert_eq!(appended, Appended::Stored(Seq(first_new)));
        let batch = copy.read(Seq(31), 10, 1 << 20).unwrap();
        assert_eq!(batch.lost, [], "what was never given out is not lost");
        assert_eq!(batch.events.last().unwrap().seq, Seq(first_new));
        assert_eq!(copy.last_before(Seq(1_000_000_001)), Some(Seq(30)));
        seal(&copy).await;
        copy.close();
        let again = open(other.path());
        assert_eq!((again.stats().gaps, again.verify(&mut |_, _| ())), (vec![], vec![]));
        // A copy of the copy jumps once more.
        let third = tempfile::tempdir().unwrap();
        transfer(&again, other.path(), third.path(), with_keys, 2_000_000_001);
        let third = open(third.path());
        assert_eq!(third.stats().gaps, vec![]);
        assert_eq!(third.read(Seq(31), 10, 1 << 20).unwrap().lost, []);
        for log in [log, again, third] {
            log.close();
        }
    }
}

/// What retention drops before it was read leaves Seqs out, and nobody misses them.
#[tokio::test(flavor = "multi_thread")]
async fn what_expires_while_the_log_is_taken_along_is_not_lost() {
    // In the middle of it, and before it.
    for at in [11, 1] {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let log = two_sealed(dir.path()).await;
        store(&log, 21..=25).await;
        let mut restorer = Restorer::new(other.path()).unwrap();
        let mut each = |piece: Piece<'_>| match piece {
            Piece::Segment { first, sealed } => {
                if first == Seq(at) {
                    let dropping = log.drop_before(Seq(21));
                    let dropped = || tokio::runtime::Handle::current().block_on(dropping);
                    assert_eq!(tokio::task::block_in_place(dropped), Ok(Seq(21)));
                }
                restorer.segment(first, sealed)
            }
            Piece::Block(block) => restorer.block(block),
        };
        let head = *log.head().borrow();
        let taken = log.take(head, &mut each).unwrap();
        let expired: Vec<Seq> = taken.expired.iter().map(|(_, to)| *to).collect();
        assert_eq!((expired.last(), taken.damaged.len()), (Some(&Seq(20)), 0), "{at}");
        restorer.lacks(&taken.damaged, &taken.expired);
        restorer.finish(head, log.gaps()).unwrap();
        drop(restorer);
        log.close();
        let copy = open(other.path());
        let kept: Vec<u64> = (1..at).chain(21..=25).collect();
        assert_eq!((ids(&copy), copy.stats().gaps), ((kept, vec![]), vec![]), "{at}");
        copy.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_damage_has_taken_of_the_beginning_is_lost_where_the_log_goes() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    two_sealed(dir.path()).await.close();
    std::fs::write(segment(dir.path(), 1).join("sled/db"), b"").unwrap();
    let log = LocalLog::open(Options {
        read_only: true,
        ..options(dir.path())
    })
    .unwrap();
    let taken = transfer(&log, dir.path(), other.path(), true, 1_000_000_001);
    assert_eq!((taken.first, taken.damaged), (Seq(11), vec![(Seq(1), Seq(10))]));
    let copy = open(other.path());
    let gaps: Vec<_> = copy.stats().gaps.iter().map(|gap| (gap.from, gap.to)).collect();
    assert_eq!(gaps, [(Seq(1), Seq(10))]);
    copy.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_damage_has_taken_is_named_when_the_log_is_taken_along() {
    for read_only in [false, true] {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let log = open(dir.path());
        for range in [1..=10, 11..=20, 21..=30] {
            store(&log, range).await;
            seal(&log).await;
        }
        log.close();
        std::fs::write(dir.path().join("log").join(format!("{:020}", 11)).join("sled/db"), b"").unwrap();
        let log = LocalLog::open(Options {
            read_only,
            ..options(dir.path())
        })
        .unwrap();
        let taken = transfer(&log, dir.path(), other.path(), true, 1_000_000_001);
        log.close();
        // The keeper may have found it first: then it is a gap already.
        let gaps: Vec<_> = log.stats().gaps.iter().map(|gap| (gap.from, gap.to)).collect();
        let named = if taken.damaged.is_empty() {
            &gaps
        } else {
            &taken.damaged
        };
        assert_eq!(named, &[(Seq(11), Seq(20))]);
        assert_eq!(taken.events, 20);
        let copy = open(other.path());
        let (found, lost) = ids(&copy);
        assert_eq!((found.len(), lost), (20, vec![(11, 20)]));
        assert_eq!(copy.stats().gaps.len(), 1, "on record in the copy, too");
        copy.close();
    }
}
