use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::*;

/// What a test sets: the counters, the wall clock and the steady one.
#[derive(Default)]
struct World {
    reading: Mutex<Reading>,
    wall: AtomicI64,
    steady: AtomicU64,
}

impl World {
    fn new() -> Arc<World> {
        let world = World::default();
        world.wall.store(1_700_000_040, Ordering::SeqCst);
        Arc::new(world)
    }

    fn open(self: &Arc<World>, dir: &Path) -> History {
        let (counted, wall, steady) = (self.clone(), self.clone(), self.clone());
        let clock = Clock {
            wall: Box::new(move || Timestamp::from_second(wall.wall.load(Ordering::SeqCst)).unwrap()),
            steady: Box::new(move || Duration::from_secs(steady.steady.load(Ordering::SeqCst))),
        };
        History::open(dir, Box::new(move || lock(&counted.reading).clone()), clock)
    }

    fn pass(&self, seconds: u64) {
        self.wall.fetch_add(seconds as i64, Ordering::SeqCst);
        self.steady.fetch_add(seconds, Ordering::SeqCst);
    }

    fn store(&self, events: u64) {
        lock(&self.reading).counts.stored += events;
    }
}

fn stored(history: &History) -> Vec<(i64, u64)> {
    let first = 1_700_000_040 / 60;
    let minutes = history.minutes().into_iter();
    minutes
        .map(|minute| (minute.number - first, minute.counts.stored))
        .collect()
}

#[test]
fn a_minute_has_what_came_in_it_and_a_restart_forgets_none() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    let history = world.open(dir.path());
    world.store(5);
    assert_eq!(stored(&history), [(0, 5)], "the one that runs is there as well");
    world.pass(60);
    history.turn();
    world.store(7);
    world.pass(60);
    history.turn();
    // It ends in the middle of a minute.
    world.store(1);
    world.pass(20);
    history.turn();
    assert_eq!(stored(&history), [(0, 5), (1, 7), (2, 1), (2, 0)]);
    drop(history);
    *lock(&world.reading) = Reading::default();
    world.pass(120);
    let history = world.open(dir.path());
    world.store(3);
    assert_eq!(stored(&history), [(0, 5), (1, 7), (2, 1), (4, 3)]);
    assert_eq!(stored(&History::look(dir.path())), [(0, 5), (1, 7), (2, 1)]);
}

/// A disk that does not answer keeps nobody from seeing that.
#[test]
fn whoever_asks_does_not_wait_for_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    let history = world.open(dir.path());
    let (writes, asked) = (lock(&history.written), std::sync::mpsc::channel());
    std::thread::scope(|scope| {
        scope.spawn(|| asked.0.send((history.minutes().len(), history.delivered_in(15))));
        let answer = asked.1.recv_timeout(Duration::from_secs(60));
        drop(writes);
        assert_eq!(answer.unwrap().0, 1);
    });
}

#[test]
fn what_a_sink_was_delivered_lately_is_of_those_minutes_alone() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    let deliver = |count| {
        lock(&world.reading).sinks.entry("crm".into()).or_default().delivered += count;
    };
    let history = world.open(dir.path());
    for _ in 0..20 {
        deliver(1);
        world.pass(60);
        history.turn();
    }
    let lately = |history: &History| history.delivered_in(15).get("crm").copied();
    assert_eq!(lately(&history), Some(14), "the one that runs has brought nothing yet");
    deliver(7);
    assert_eq!(lately(&history), Some(21));
    assert_eq!(
        lately(&History::look(dir.path())),
        None,
        "by the machine's clock it was long ago"
    );
    world.pass(15 * 60);
    assert_eq!(lately(&history), Some(7), "they are in the minute that runs");
    history.turn();
    world.pass(15 * 60);
    assert_eq!(lately(&history), None);
}

#[test]
fn a_clock_that_jumps_loses_no_count_and_no_minute() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    let history = world.open(dir.path());
    for jump in [0, -3600, 86_400 * 400, -86_400 * 400, 3600] {
        world.store(2);
        world.wall.fetch_add(jump, Ordering::SeqCst);
        world.pass(60);
        history.turn();
    }
    let found = stored(&history);
    assert_eq!(found.iter().map(|(_, stored)| stored).sum::<u64>(), 10);
    assert_eq!(found.len(), 6);
}

#[test]
fn neither_memory_nor_the_file_grows_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    let history = world.open(dir.path());
    for number in 0..MINUTES_MAX as i64 + 5 {
        let counts = Counts::default();
        let sinks = Vec::new();
        lock(&history.state).keep(Minute { number, counts, sinks });
    }
    for _ in 0..5 {
        world.store(1);
        world.pass(60);
        history.turn();
    }
    assert_eq!(lock(&history.state).minutes.len(), MINUTES_MAX);
    lock(&history.written).frames = FRAMES_MAX;
    let before = std::fs::metadata(dir.path().join(FILE)).unwrap().len();
    world.pass(60);
    history.turn();
    let after = std::fs::metadata(dir.path().join(FILE)).unwrap().len();
    assert!(after < before, "{before} {after}");
    assert_eq!(History::look(dir.path()).minutes().len(), MINUTES_MAX);
}

#[test]
fn what_can_not_be_read_is_begun_anew_and_what_is_newer_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    std::fs::write(dir.path().join(FILE), "rubbish").unwrap();
    let history = world.open(dir.path());
    world.store(4);
    world.pass(60);
    history.turn();
    assert_eq!(stored(&History::look(dir.path())), [(0, 4)]);
    let newer = Format { version: 2, ..FORMAT };
    std::fs::remove_file(dir.path().join(FILE)).unwrap();
    drop(FrameFile::create(&dir.path().join(FILE), newer).unwrap());
    let before = std::fs::read(dir.path().join(FILE)).unwrap();
    let history = world.open(dir.path());
    world.store(4);
    world.pass(60);
    history.turn();
    assert_eq!(std::fs::read(dir.path().join(FILE)).unwrap(), before);
    assert_eq!(stored(&history).len(), 2, "in memory there is one");
}
