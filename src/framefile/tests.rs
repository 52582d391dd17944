//! What goes into a file of frames comes back out of it, whatever happens to the file.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::scan::scan_file;
use super::*;

const FORMAT: Format = Format {
    magic: *b"CLHKTEST",
    version: 1,
};

fn filled(dir: &Path, payloads: &[Vec<u8>]) -> (PathBuf, Vec<u64>) {
    let path = dir.join("frames");
    let mut file = FrameFile::create(&path, FORMAT).unwrap();
    let offsets = payloads
        .iter()
        .map(|payload| file.append(7, &[payload]).unwrap())
        .collect();
    file.sync().unwrap();
    (path, offsets)
}

fn frames(path: &Path) -> (Vec<Vec<u8>>, Scan) {
    let mut found = Vec::new();
    let scan = scan(path, FORMAT, |frame| found.push(frame.payload.to_vec())).unwrap();
    (found, scan)
}

#[test]
fn frames_come_back_in_order_with_their_offsets() {
    let dir = tempfile::tempdir().unwrap();
    let payloads = vec![b"one".to_vec(), Vec::new(), vec![9; 300_000]];
    let (path, offsets) = filled(dir.path(), &payloads);
    let (found, scan) = frames(&path);
    assert_eq!(found, payloads);
    assert_eq!((scan.torn, scan.damage.len()), (0, 0));
    let reader = FrameReader::open(&path).unwrap();
    assert_eq!(reader.read(offsets[2]).unwrap(), (7, payloads[2].clone()));
    assert!(matches!(reader.read(offsets[2] + 1), Err(FrameError::Damaged { .. })));
}

#[test]
fn a_newer_or_foreign_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = filled(dir.path(), &[]);
    let newer = Format { version: 0, ..FORMAT };
    assert!(matches!(
        scan(&path, newer, |_| ()),
        Err(FrameError::Newer { found: 1, known: 0, .. })
    ));
    let alien = Format {
        magic: *b"CLHKELSE",
        version: 1,
    };
    assert!(matches!(scan(&path, alien, |_| ()), Err(FrameError::Alien(_))));
    std::fs::write(&path, b"CLHK").unwrap();
    assert!(matches!(scan(&path, FORMAT, |_| ()), Err(FrameError::Alien(_))));
}

/// Every frame of a stream, and what ended it.
fn streamed(bytes: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, FrameError> {
    let mut reader = StreamReader::new(bytes, Path::new("stream"), FORMAT)?;
    let mut found = Vec::new();
    while let Some((tag, payload)) = reader.next_frame()? {
        found.push((tag, payload.to_vec()));
    }
    Ok(found)
}

proptest! {
    #[test]
    fn a_stream_comes_back_whole_or_not_at_all(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..6),
        place in any::<prop::sample::Index>(),
    ) {
        let mut writer = StreamWriter::new(Vec::new(), FORMAT).unwrap();
        for payload in &payloads {
            let (one, two) = payload.split_at(payload.len() / 2);
            writer.append(3, &[one, two]).unwrap();
        }
        let bytes = writer.finish().unwrap();
        let all: Vec<(u32, Vec<u8>)> = payloads.iter().map(|payload| (3, payload.clone())).collect();
        prop_assert_eq!(&streamed(&bytes).unwrap(), &all);

        let at = place.index(bytes.len());
        // Cut off, it gives what is whole and nothing else.
        match streamed(&bytes[..at]) {
            Ok(found) => prop_assert!(found.len() < all.len() && all.starts_with(&found)),
            Err(error) => prop_assert!(at < HEADER_LEN as usize, "{error}"),
        }
        // With a flipped bit it never gives anything that was not written.
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        match streamed(&flipped) {
            Ok(found) => prop_assert!(found.len() < all.len() && all.starts_with(&found)),
            Err(FrameError::Damaged { offset, .. }) => prop_assert!(offset <= at as u64),
            Err(_) => prop_assert!(at < HEADER_LEN as usize),
        }
    }
}

#[test]
fn appending_goes_on_behind_a_cut_tail() {
    let dir = tempfile::tempdir().unwrap();
    let (path, offsets) = filled(dir.path(), &[b"kept".to_vec(), b"torn".to_vec()]);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(offsets[1] + FRAME_OVERHEAD + 2).unwrap();
    let (mut file, scan) = FrameFile::open(&path, FORMAT, |_| ()).unwrap();
    assert_eq!(scan.torn, FRAME_OVERHEAD + 2);
    file.append(7, &[b"ne", b"xt"]).unwrap();
    file.sync().unwrap();
    assert_eq!(frames(&path).0, vec![b"kept".to_vec(), b"next".to_vec()]);
}

/// A file on a disk that has lost some of it.
struct Worn {
    file: File,
    bad: Range<u64>,
    failures: std::cell::Cell<u32>,
}

impl FileExt for Worn {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let end = at + buffer.len() as u64;
        if at < self.bad.end && end > self.bad.start {
            self.failures.set(self.failures.get() + 1);
            return Err(rustix::io::Errno::IO.into());
        }
        self.file.read_at(buffer, at)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// What a scan finds of a file of which these bytes can't be read, and how often reading was tried in vain.
fn worn_frames(path: &Path, bad: Range<u64>) -> (Vec<Vec<u8>>, Scan, u32) {
    let file = File::open(path).unwrap();
    let end = file.metadata().unwrap().len();
    let worn = Worn {
        file,
        bad,
        failures: std::cell::Cell::default(),
    };
    let mut found = Vec::new();
    let scan = scan_file(&worn, end, path, FORMAT, |frame| found.push(frame.payload.to_vec())).unwrap();
    (found, scan, worn.failures.get())
}

#[test]
fn what_the_disk_does_not_give_back_is_stepped_over() {
    let dir = tempfile::tempdir().unwrap();
    let payloads: Vec<Vec<u8>> = (0..100_u8).map(|number| vec![number + 1; 1000]).collect();
    let (path, offsets) = filled(dir.path(), &payloads);
    let end = std::fs::metadata(&path).unwrap().len();

    // In the middle: what lies in the page, or partly in it.
    let (found, scan, _) = worn_frames(&path, 40_960..45_056);
    let hit = |index: &usize| offsets[*index] < 45_056 && offsets[*index] + FRAME_OVERHEAD + 1000 > 40_960;
    let expected: Vec<_> = (0..100)
        .filter(|index| !hit(index))
        .map(|index| payloads[index].clone())
        .collect();
    assert_eq!(found, expected);
    assert_eq!(
        (scan.damage.len(), scan.good_len, scan.ends_unreadable()),
        (1, end, false)
    );

    // At the end: nobody knows what was there, so nothing is cut off.
    let (found, scan, _) = worn_frames(&path, end - 10..end);
    assert!(payloads.starts_with(&found) && found.len() >= 95);
    assert_eq!((scan.good_len, scan.torn, scan.ends_unreadable()), (end, 0, true));

    // Its beginning says what a file is.
    let worn = Worn {
        file: File::open(&path).unwrap(),
        bad: 0..1,
        failures: std::cell::Cell::default(),
    };
    let scanned = scan_file(&worn, end, &path, FORMAT, |_| ());
    assert!(matches!(scanned, Err(FrameError::Alien(_))), "{scanned:?}");
}

#[test]
fn a_disk_that_gives_nothing_back_is_soon_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = filled(dir.path(), &[]);
    let len = 256 << 20;
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(len)
        .unwrap();
    let (found, scan, failures) = worn_frames(&path, 4096..len);
    assert!(found.is_empty() && scan.ends_unreadable());
    assert!(failures < 50, "{failures} reads failed");
}

#[test]
fn zeros_behind_the_last_frame_are_cut_off_without_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = filled(dir.path(), &[b"kept".to_vec()]);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let good = file.metadata().unwrap().len();
    file.set_len(good + 100_000).unwrap();
    let (found, scan) = frames(&path);
    assert_eq!((found.len(), scan.good_len, scan.torn), (1, good, 0));
    FrameFile::open(&path, FORMAT, |_| ()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), good);
}

#[test]
fn room_is_neither_damage_nor_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let mut file = FrameFile::create(&path, FORMAT).unwrap().with_room(200_000);
    let payloads: Vec<Vec<u8>> = (0..40_u8).map(|number| vec![number; 9_000]).collect();
    for payload in &payloads {
        file.append(7, &[payload]).unwrap();
        file.sync().unwrap();
    }
    let len = file.len();
    let on_disk = || std::fs::metadata(&path).unwrap().len();
    assert!(on_disk() > len && on_disk() <= len + 200_000);
    let mut found = Vec::new();
    let seen = scan(&path, FORMAT, |frame| found.push(frame.payload.to_vec())).unwrap();
    assert_eq!((seen.good_len, seen.torn, seen.damage.len()), (len, 0, 0));
    assert_eq!(found, payloads);
    // A write that was under way goes into the room; only what it wrote counts as torn.
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(b"half", len + 3)
        .unwrap();
    let (reopened, seen) = FrameFile::open(&path, FORMAT, |_| ()).unwrap();
    assert_eq!((reopened.len(), seen.torn, on_disk()), (len, 7, len));
}

#[test]
fn room_is_topped_up_before_it_is_used_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let mut file = FrameFile::create(&path, FORMAT).unwrap().with_room(200_000);
    let on_disk = || std::fs::metadata(&path).unwrap().len();
    file.top_up().unwrap();
    assert_eq!(on_disk(), HEADER_LEN, "a file that nothing is appended to needs none");
    let append = |file: &mut FrameFile| {
        file.append(7, &[&[1; 9_000]]).unwrap();
        file.sync().unwrap();
    };
    append(&mut file);
    for _ in 0..100 {
        let before = on_disk();
        append(&mut file);
        assert_eq!(on_disk(), before, "an append finds room");
        file.top_up().unwrap();
        assert!(on_disk() >= file.len() + 100_000);
    }
    assert!(on_disk() < file.len() + 200_000);
    let seen = scan(&path, FORMAT, |_| ()).unwrap();
    assert_eq!((seen.good_len, seen.torn, seen.damage.len()), (file.len(), 0, 0));

    let path = dir.path().join("small");
    let mut file = FrameFile::create(&path, FORMAT).unwrap().with_room(1024);
    for _ in 0..100 {
        file.append(7, &[&[1; 30]]).unwrap();
        file.top_up().unwrap();
        let room = std::fs::metadata(&path).unwrap().len() - file.len();
        assert!((512..=1024).contains(&room), "{room} bytes where 1024 were asked for");
    }
}

proptest! {
    /// Whatever single byte is damaged, at most the frame it lies in is lost, and never a wrong payload comes back.
    #[test]
    fn one_flipped_byte_costs_at_most_its_frame(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..12),
        position in any::<prop::sample::Index>(),
        flip in 1_u8..,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (path, offsets) = filled(dir.path(), &payloads);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = HEADER_LEN as usize + position.index(bytes.len() - HEADER_LEN as usize);
        bytes[at] ^= flip;
        std::fs::write(&path, &bytes).unwrap();
        let hit = offsets.iter().rposition(|offset| *offset as usize <= at).unwrap();
        let mut expected = payloads.clone();
        expected.remove(hit);
        let (found, scan) = frames(&path);
        prop_assert_eq!(found, expected);
        // Damage is reported in the middle, cut at the end.
        prop_assert_eq!(scan.damage.is_empty(), hit == payloads.len() - 1);
    }

    /// Cutting the file anywhere keeps exactly the frames that lie before the cut.
    #[test]
    fn a_cut_anywhere_keeps_every_whole_frame(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..12),
        position in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (path, offsets) = filled(dir.path(), &payloads);
        let len = std::fs::metadata(&path).unwrap().len();
        let cut = HEADER_LEN + position.index((len - HEADER_LEN) as usize) as u64;
        OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
        let whole = offsets.iter().skip(1).chain([&len]).filter(|end| **end <= cut).count();
        prop_assert_eq!(frames(&path).0, payloads[..whole].to_vec());
    }
}

#[test]
fn a_file_that_can_not_be_replaced_leaves_nothing_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("place");
    // Nothing takes the name of a directory.
    std::fs::create_dir(&path).unwrap();
    for _ in 0..2 {
        assert!(replace_file(&path, b"content").is_err());
        let names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["place"]);
    }
    std::fs::remove_dir(&path).unwrap();
    replace_file(&path, b"content").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"content");
}
