//! What the file sink promises.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::super::common::line::tests::delivery;
use super::open::tell_what_is_missing;
use super::rotation::rotated_files;
use super::*;
use crate::event::{Delivery, Seq};
use crate::sinks::tests::deliver;

fn options(path: &Path, rotate: &str) -> Options {
    let mut faults = Vec::new();
    let rotate: serde_json::Value = serde_json::from_str(rotate).unwrap();
    let value = serde_json::json!({"path": path, "rotate": rotate});
    assert!(definition::TYPE.options_of("sinks[0]", value, &mut faults).is_some());
    let size = rotate.get("size").map(|s| s.as_str().unwrap().parse().unwrap());
    let keep = rotate.get("keep").map(|k| k.as_u64().unwrap() as usize);
    Options {
        path: path.to_owned(),
        rotate: Rotate {
            size,
            age: None,
            keep,
            compress: rotate
                .get("compress")
                .is_none_or(|compress| compress.as_bool().unwrap()),
        },
    }
}

async fn build(options: &Options, position: Option<Position>) -> Box<dyn Sink> {
    build_in("one", options, position).await
}

async fn build_in(epoch: &str, options: &Options, position: Option<Position>) -> Box<dyn Sink> {
    build_on(epoch, options, position, None).await
}

/// `kept`: the oldest event that the log has, and the newest.
async fn build_on(
    epoch: &str,
    options: &Options,
    position: Option<Position>,
    kept: Option<(Seq, Seq)>,
) -> Box<dyn Sink> {
    let context = Context {
        name: "t".into(),
        timeout: Duration::from_secs(60),
        log_id: "log".into(),
        epoch: epoch.into(),
        position,
        answers: None,
        renderer: None,
        is_strict: false,
        kept,
    };
    options.open(context).await.unwrap().sink
}

#[test]
fn rotated_files_of_one_second_are_in_the_order_they_were_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let now = Timestamp::from_second(1_700_000_000).unwrap();
    let made: Vec<PathBuf> = (0..12)
        .map(|number| {
            let plain = rotated_name(&path, now);
            let file = if number % 2 == 0 {
                plain
            } else {
                framefile::beside(&plain, ".gz")
            };
            std::fs::write(&file, "").unwrap();
            file
        })
        .collect();
    std::fs::write(dir.path().join("events-20231114T221320Z-x.jsonl"), "").unwrap();
    assert_eq!(rotated(&path), made);
}

/// What there is of files that were moved away, oldest first.
fn rotated(path: &Path) -> Vec<PathBuf> {
    let files = rotated_files(path).unwrap().into_iter();
    files
        .filter_map(|rotated| rotated.compressed.or(rotated.plain))
        .collect()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// The names in a directory.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

async fn write(sink: &dyn Sink, seqs: std::ops::RangeInclusive<u64>) {
    let batch: Vec<Delivery> = seqs
        .map(|seq| delivery(seq, &format!(r#"{{"event":{{"id":"ev_{seq}"}}}}"#)))
        .collect();
    let outcomes = deliver(sink, &batch).await.unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Delivered));
}

fn seqs(path: &Path) -> Vec<u64> {
    seqs_in(&std::fs::read_to_string(path).unwrap())
}

fn seqs_in(text: &str) -> Vec<u64> {
    let seq = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_u64();
    text.lines().map(|line| seq(line).unwrap()).collect()
}

#[test]
fn a_file_of_two_names_is_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let named = |name: &str| Options {
        path: dir.path().join(name),
        rotate: Rotate {
            size: None,
            age: None,
            keep: None,
            compress: false,
        },
    };
    std::fs::write(dir.path().join("a"), "").unwrap();
    std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
    std::fs::write(dir.path().join("c"), "").unwrap();
    assert_eq!(named("a").exclusive(), named("b").exclusive());
    assert_ne!(named("a").exclusive(), named("c").exclusive());
}

#[tokio::test]
async fn what_was_not_saved_is_cut_off_and_comes_again_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/events.jsonl");
    let options = options(&path, "{}");
    let sink = build(&options, None).await;
    write(&*sink, 1..=3).await;
    let saved = sink.checkpoint().await.unwrap();
    write(&*sink, 4..=6).await;
    drop(sink);
    // Torn in the middle of a line, as a crash may leave it.
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 9).unwrap();
    let sink = build(&options, saved).await;
    assert_eq!(seqs(&path), [1, 2, 3]);
    write(&*sink, 4..=6).await;
    assert_eq!(seqs(&path), [1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn a_file_that_became_shorter_is_noticed_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let options = options(&path, "{}");
    let sink = build(&options, None).await;
    write(&*sink, 1..=3).await;
    let saved = sink.checkpoint().await.unwrap();
    drop(sink);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    assert_eq!(tell_what_is_missing(&file, &path, len).unwrap(), 0);
    file.set_len(len - 9).unwrap();
    assert_eq!(tell_what_is_missing(&file, &path, len).unwrap(), 9);
    let sink = build(&options, saved).await;
    write(&*sink, 4..=4).await;
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.lines().last().unwrap().starts_with("{\"seq\":4,"), "{text}");
}

#[tokio::test]
async fn what_was_not_saved_is_cut_off_in_a_file_that_was_moved_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let moved = dir.path().join("events.jsonl.1");
    let options = options(&path, "{}");
    let sink = build(&options, None).await;
    write(&*sink, 1..=3).await;
    let saved = sink.checkpoint().await.unwrap();
    std::fs::rename(&path, &moved).unwrap();
    write(&*sink, 4..=5).await;
    drop(sink);
    let sink = build(&options, saved).await;
    write(&*sink, 4..=5).await;
    assert_eq!((seqs(&moved), seqs(&path)), (vec![1, 2, 3], vec![4, 5]));
}

/// The data directory was put back from a copy: nobody else has these lines any more.
#[tokio::test]
async fn what_the_log_does_not_have_is_not_cut_off() {
    for (kept, left) in [
        ((1, 5), vec![1, 2, 3]),
        ((1, 4), vec![1, 2, 3, 4, 5]),
        ((5, 9), vec![1, 2, 3, 4, 5]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let options = options(&path, "{}");
        let sink = build(&options, None).await;
        write(&*sink, 1..=3).await;
        let saved = sink.checkpoint().await.unwrap();
        write(&*sink, 4..=5).await;
        drop(sink);
        drop(build_on("one", &options, saved, Some((Seq(kept.0), Seq(kept.1)))).await);
        assert_eq!(seqs(&path), left, "{kept:?}");
    }
}

/// An inode is given out again when its file is gone; the new file's lines are not ours to cut.
#[test]
fn a_later_file_with_the_same_inode_is_another_file() {
    let at = |second| Timestamp::from_second(second).ok();
    let id = |inode, born| FileId { inode, born };
    assert!(id(7, at(1)).is(id(7, at(1))) && id(7, at(1)).is(id(7, None)));
    assert!(!id(7, at(1)).is(id(7, at(2))) && !id(7, at(1)).is(id(8, at(1))));
}

#[tokio::test]
async fn zeros_that_a_power_cut_left_are_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let options = options(&path, "{}");
    let sink = build(&options, None).await;
    write(&*sink, 1..=3).await;
    let saved = sink.checkpoint().await.unwrap();
    write(&*sink, 4..=4).await;
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(&[&[0; 5000][..], b"end of a line\n", br#"{"seq":9"#, &[0; 10]].concat())
        .unwrap();
    drop(sink);
    let sink = build(&options, saved).await;
    write(&*sink, 4..=4).await;
    assert_eq!(seqs(&path), [1, 2, 3, 4]);
}

#[tokio::test]
async fn what_others_wrote_is_never_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    std::fs::write(&path, "no line end").unwrap();
    let options = options(&path, "{}");
    let sink = build(&options, None).await;
    write(&*sink, 1..=1).await;
    let saved = sink.checkpoint().await.unwrap();
    let mut other = OpenOptions::new().append(true).open(&path).unwrap();
    other.write_all(b"somebody was here\n").unwrap();
    drop(sink);
    let sink = build(&options, saved.clone()).await;
    write(&*sink, 2..=2).await;
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("no line end\n{\"seq\":1,"), "{text}");
    assert!(text.contains("somebody was here\n{\"seq\":2,"), "{text}");
    // Another epoch is another log: its Seqs mean nothing here.
    drop(sink);
    let before = std::fs::metadata(&path).unwrap().len();
    build_in("two", &options, saved).await;
    assert_eq!(std::fs::metadata(&path).unwrap().len(), before);
}

#[tokio::test]
async fn rotation_loses_and_repeats_nothing_whichever_step_it_dies_at() {
    for dies_after in ["checkpoint", "committed", "save"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let options = options(&path, r#"{"size": "1 B"}"#);
        let sink = build(&options, None).await;
        write(&*sink, 1..=3).await;
        let mut saved = sink.checkpoint().await.unwrap();
        if dies_after != "checkpoint" {
            let moved = sink.committed().await.unwrap();
            assert!(moved.is_some());
            if dies_after == "save" {
                saved = moved;
                write(&*sink, 4..=5).await;
            }
        }
        drop(sink);
        let sink = build(&options, saved).await;
        write(&*sink, 4..=5).await;
        // What is being compressed beside this would be gone between its being named and read.
        assert!(tidy(&path, &options.rotate).is_empty());
        let mut all = Vec::new();
        for file in rotated(&path) {
            if file.to_string_lossy().ends_with(".gz") {
                let mut text = String::new();
                let mut decoder = flate2::read::GzDecoder::new(File::open(&file).unwrap());
                decoder.read_to_string(&mut text).unwrap();
                all.extend(seqs_in(&text));
            } else {
                all.extend(seqs(&file));
            }
        }
        all.extend(seqs(&path));
        assert_eq!(all, [1, 2, 3, 4, 5], "died after {dies_after}");
    }
}

#[tokio::test]
async fn a_file_moved_away_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let options = options(&path, "{}");
    let sink = build(&options, None).await;
    write(&*sink, 1..=1).await;
    std::fs::rename(&path, dir.path().join("moved")).unwrap();
    write(&*sink, 2..=2).await;
    assert!(sink.committed().await.unwrap().is_some());
    write(&*sink, 3..=3).await;
    assert_eq!((seqs(&dir.path().join("moved")), seqs(&path)), (vec![1, 2], vec![3]));
}

#[test]
fn old_files_are_compressed_and_limited() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let options = options(&path, r#"{"keep": 1}"#);
    for name in [
        "events.jsonl",
        "moved",
        "events-20200101T000000Z.jsonl",
        "events-20200102T000000Z.jsonl",
        "events-other.jsonl",
        "events-20200103T000000Z.jsonl.gz.tmp",
    ] {
        std::fs::write(dir.path().join(name), "x\n").unwrap();
    }
    assert!(tidy(&path, &options.rotate).is_empty());
    assert_eq!(
        names(dir.path()),
        [
            "events-20200102T000000Z.jsonl.gz",
            "events-other.jsonl",
            "events.jsonl",
            "moved"
        ]
    );
}

/// D1
#[test]
fn what_is_too_much_goes_before_anything_is_compressed_and_one_file_stops_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let options = options(&path, r#"{"keep": 3}"#);
    for day in 1..=5 {
        std::fs::write(dir.path().join(format!("events-2020010{day}T000000Z.jsonl")), "x\n").unwrap();
    }
    // The compressed file can't take its place, so this fails when all the room for it is taken.
    let in_the_way = dir.path().join("events-20200103T000000Z.jsonl.gz");
    std::fs::create_dir(&in_the_way).unwrap();
    let troubles = tidy(&path, &options.rotate);
    assert_eq!(
        names(dir.path()),
        [
            "events-20200103T000000Z.jsonl",
            "events-20200103T000000Z.jsonl.gz",
            "events-20200104T000000Z.jsonl.gz",
            "events-20200105T000000Z.jsonl.gz",
        ]
    );
    let named: Vec<&Path> = troubles.iter().map(|trouble| &*trouble.path).collect();
    assert_eq!(named, [dir.path().join("events-20200103T000000Z.jsonl")]);
}

/// A file of which both are there is one, and what somebody else calls alike is nobody's here.
#[test]
fn a_file_counts_once_and_links_and_directories_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let options = options(&path, r#"{"keep": 2}"#);
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("elsewhere"), "x\n").unwrap();
    symlink("elsewhere", at("events-20200101T000000Z.jsonl")).unwrap();
    std::fs::create_dir(at("events-20200101T000001Z.jsonl")).unwrap();
    for name in [
        "events-20200102T000000Z.jsonl",
        "events-20200102T000000Z.jsonl.gz",
        "events-20200103T000000Z.jsonl",
    ] {
        std::fs::write(at(name), "x\n").unwrap();
    }
    assert!(tidy(&path, &options.rotate).is_empty());
    assert_eq!(
        names(dir.path()),
        [
            "elsewhere",
            "events-20200101T000000Z.jsonl",
            "events-20200101T000001Z.jsonl",
            "events-20200102T000000Z.jsonl.gz",
            "events-20200103T000000Z.jsonl.gz",
        ]
    );
}

/// D2
#[tokio::test]
async fn a_link_stays_and_what_it_leads_to_is_rotated_beside_itself() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    let (link, real) = (dir.path().join("events.jsonl"), dir.path().join("data/real.log"));
    symlink("data/real.log", &link).unwrap();
    let options = options(&link, r#"{"size": "1 B"}"#);
    let sink = build(&options, None).await;
    write(&*sink, 1..=2).await;
    sink.checkpoint().await.unwrap();
    let saved = sink.committed().await.unwrap();
    write(&*sink, 3..=3).await;
    drop(sink);
    let sink = build(&options, saved).await;
    assert_eq!(seqs(&real), [0; 0], "what was not saved is cut off behind a link too");
    write(&*sink, 3..=3).await;
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!((seqs(&link), seqs(&real)), (vec![3], vec![3]));
    assert_eq!(names(dir.path()), ["data", "events.jsonl"]);
    assert_eq!(rotated(&real).len(), 1, "{:?}", names(&dir.path().join("data")));
    assert_eq!(options.exclusive(), super::tests::options(&real, "{}").exclusive());
}

/// Somebody who turns a link to another file has the lines there from then on.
#[tokio::test]
async fn a_link_that_was_turned_is_followed_and_nothing_stands_twice() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["one", "two"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    symlink("one/events", at("events")).unwrap();
    let options = options(&at("events"), "{}");
    let sink = build(&options, None).await;
    write(&*sink, 1..=1).await;
    let saved = sink.checkpoint().await.unwrap();
    write(&*sink, 2..=2).await;
    std::fs::remove_file(at("events")).unwrap();
    symlink("two/events", at("events")).unwrap();
    drop(sink);
    let sink = build(&options, saved).await;
    write(&*sink, 2..=2).await;
    assert_eq!((seqs(&at("one/events")), seqs(&at("two/events"))), (vec![1], vec![2]));
}

/// D3
#[tokio::test]
async fn mode_owner_and_group_go_along_to_the_new_file_and_the_compressed_one() {
    use std::os::unix::fs::{MetadataExt, chown};
    let owned = |path: &Path| {
        std::fs::metadata(path)
            .map(|metadata| (metadata.uid(), metadata.gid()))
            .unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let mut options = options(&path, r#"{"size": "1 B", "compress": false}"#);
    std::fs::write(&path, "").unwrap();
    // Where this is not root's to do, at least the mode is seen to go along.
    let _ = chown(&path, Some(1), Some(4));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o664)).unwrap();
    let before = owned(&path);
    let sink = build(&options, None).await;
    write(&*sink, 1..=1).await;
    let saved = sink.checkpoint().await.unwrap();
    sink.committed().await.unwrap();
    assert_eq!((mode(&path), owned(&path)), (0o664, before));
    // The same where the process ended between moving the old one away and making the new one.
    std::fs::remove_file(&path).unwrap();
    drop(sink);
    drop(build(&options, saved).await);
    assert_eq!((mode(&path), owned(&path)), (0o664, before));
    options.rotate.compress = true;
    assert!(tidy(&path, &options.rotate).is_empty());
    let old = rotated(&path).remove(0);
    assert_eq!((mode(&old), owned(&old)), (0o664, before), "{}", old.display());
}
