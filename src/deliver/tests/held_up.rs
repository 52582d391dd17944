//! What is slow, or can't be reached, keeps nobody waiting but whoever needs it.

use bytes::Bytes;

use super::diverting::{bench_of, status_of};
use super::*;
use crate::deliver::letters::{Desk, Letters};
use crate::deliver::types::dead_letter;
use crate::node::Alone;
use crate::state::journal::{Content, Journal, JournalError, Kept, Page, Record};

/// One topic of a journal, that can't be read any more when it is cut; a single record comes when it speaks again.
#[derive(Debug, Default)]
struct Silent {
    records: Mutex<Vec<Record>>,
    is_cut: AtomicBool,
    /// The record at this place can't be read any more.
    damaged: AtomicU64,
    /// Records that were asked for since.
    asked: AtomicU64,
    speaks: tokio::sync::Notify,
}

impl Silent {
    fn kept(&self) -> Vec<Kept> {
        let records = lock(&self.records);
        let damaged = self.damaged.load(Ordering::SeqCst);
        let kept = |(at, record): (usize, &Record)| Kept {
            place: at as u64 + 1,
            len: 1,
            tag: record.tag,
            content: if at as u64 + 1 == damaged {
                Content::Damaged
            } else {
                Content::Whole(Bytes::clone(&record.payload))
            },
        };
        records.iter().enumerate().map(kept).collect()
    }

    fn cut(&self) -> Result<(), JournalError> {
        if self.is_cut.load(Ordering::SeqCst) {
            return Err(JournalError::Failing("it can't be reached".into()));
        }
        Ok(())
    }
}

#[async_trait]
impl Journal for Silent {
    fn name(&self) -> String {
        "the journal".into()
    }

    async fn read(&self, _topic: &str, behind: u64) -> Result<Page, JournalError> {
        self.cut()?;
        let records = self.kept();
        let end = records.len() as u64;
        let records = records.into_iter().skip(behind as usize).collect();
        Ok(Page { records, end })
    }

    async fn get(&self, _topic: &str, place: u64) -> Result<Option<Kept>, JournalError> {
        if self.is_cut.load(Ordering::SeqCst) {
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.speaks.notified().await;
        }
        Ok(self.kept().into_iter().find(|kept| kept.place == place))
    }

    async fn append(&self, _topic: &str, records: &[Record], end: u64) -> Result<Vec<(u64, u32)>, JournalError> {
        self.cut()?;
        let mut all = lock(&self.records);
        if all.len() as u64 != end {
            return Err(JournalError::Behind);
        }
        all.extend_from_slice(records);
        Ok((end + 1..=all.len() as u64).map(|place| (place, 1)).collect())
    }

    async fn remove(&self, _place: u64, _len: u32) -> Result<(), JournalError> {
        self.cut()
    }

    async fn forget(&self, _topic: &str) -> Result<(), JournalError> {
        self.cut()
    }

    async fn topics(&self) -> Result<Vec<String>, JournalError> {
        self.cut()?;
        Ok(vec!["a".into()])
    }
}

/// An engine on a node that has its log for itself, and its letters in a journal.
async fn begin(bench: &Bench, journal: &Arc<Silent>) -> Engine {
    let options = Options {
        log: Arc::new(bench.log.clone()),
        store: crate::deliver::open_store(bench.dir.path(), Mode::Follow)
            .await
            .unwrap(),
        dir: bench.dir.path().to_owned(),
        rules: bench.rules.clone(),
        sinks: bench.sinks.clone(),
        mode: Mode::Follow,
        names: Arc::default(),
        clock: crate::age::Clock::new(jiff::Timestamp::now),
    };
    let begun = Engine::start_among(options, Arc::new(Alone::default()), Some(journal.clone()));
    begun.await.unwrap()
}

/// On one thread, which whoever waits on it takes from everybody: the journal speaks again only if that goes on.
#[tokio::test]
async fn whoever_asks_about_a_dead_letter_that_comes_late_takes_no_thread_from_others() {
    let receiver = Receiver::new();
    let bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.store(1..=3).await;
    let journal = Arc::new(Silent::default());
    let letters = Letters::shared(&Desk::new(journal.clone()).unwrap(), "a", false);
    letters.read().unwrap();
    // The newest is read as the engine begins, and at hand from then on.
    for seq in [1, 2] {
        let event = bench.log.get(Seq(seq)).unwrap().unwrap();
        letters.add(&[dead_letter("a", &event, "no".into(), 1, None)]).unwrap();
    }
    drop(letters);
    let engine = begin(&bench, &journal).await;
    caught_up(&engine, 3).await;
    assert_eq!(receiver.seqs(), [3]);
    journal.is_cut.store(true, Ordering::SeqCst);
    let late = journal.clone();
    let speaker = tokio::spawn(async move {
        while late.asked.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        late.speaks.notify_one();
    });
    let said = state(&bench, &engine, 1).await;
    assert!(
        matches!(&said, EventState::Dead { reason, .. } if reason == "no"),
        "{said:?}"
    );
    speaker.await.unwrap();
    engine.shutdown().await;
}

/// Holds a sink's dead letters, as a disk that hangs does, until it is told to let go.
fn hold(letters: Letters) -> (std::sync::mpsc::Sender<()>, std::thread::JoinHandle<()>) {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (holding, holds) = std::sync::mpsc::channel();
    let holder = std::thread::spawn(move || {
        let disk = letters.hold();
        holding.send(()).unwrap();
        let _ = held.recv();
        drop(disk);
    });
    holds.recv().unwrap();
    (release, holder)
}

/// The disk hangs while an event is being given to the other sink; and the worker has to begin again from a record that somebody changed.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_just_being_given_to_another_sink_is_not_delivered_by_the_next_worker_as_well() {
    let (first, second) = (Receiver::new(), Receiver::new());
    let tried = AtomicU64::new(0);
    first.says(move |delivery| {
        Ok(match (delivery.event.seq.0, tried.fetch_add(1, Ordering::SeqCst)) {
            (1, 0) => Outcome::Reject { reason: "no".into() },
            _ => Outcome::Delivered,
        })
    });
    let bench = bench_of(&first, &second, Commit::Acknowledge);
    let store = crate::deliver::open_store(bench.dir.path(), Mode::Follow)
        .await
        .unwrap();
    let engine = bench
        .engine_with(Arc::new(bench.log.clone()), Some(store.clone()))
        .await;
    until("it is open", async || status_of(&engine, "a").waits_for.is_none()).await;
    let (release, holder) = hold(engine.read_letters_of("b").await.unwrap());
    bench.store(1..=1).await;
    until("it was refused", async || first.calls.load(Ordering::SeqCst) == 1).await;
    // Somebody changes its record, again and again, until the worker has come upon that.
    until("the next worker waits, or has it", async || {
        let entry = store.get("sink/a").await.unwrap().unwrap();
        let touched = store
            .put("sink/a", entry.value.to_vec(), Expected::Revision(entry.revision))
            .await;
        drop(touched);
        let waits_for = status_of(&engine, "a").waits_for.unwrap_or_default();
        !first.seqs().is_empty() || waits_for.contains("has not come to its end")
    })
    .await;
    assert_eq!(first.seqs(), [0; 0], "it is the other sink's");
    release.send(()).unwrap();
    holder.join().unwrap();
    until("the second has it", async || second.seqs() == [1]).await;
    bench.store(2..=2).await;
    until("the first goes on", async || status_of(&engine, "a").cursor == Seq(2)).await;
    assert_eq!(first.seqs(), [2]);
    engine.shutdown().await;
}

/// Which event the letter was of nobody knows; what is delivered from then on surely is.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_nodes_share_and_that_is_damaged_leaves_later_deliveries_delivered() {
    let receiver = Receiver::new();
    let mut bench = Bench::new(vec![sink_on(&receiver, Commit::Acknowledge)]);
    bench.sinks[0].breaker.refusals = 10_000;
    let journal = Arc::new(Silent::default());
    refuse(&receiver);
    bench.store(1..=3).await;
    let engine = begin(&bench, &journal).await;
    until("all are dead", async || status(&engine).dead == 3).await;
    durable(&engine, 3).await;
    engine.shutdown().await;
    let at = lock(&journal.records).iter().position(|record| record.name == "2");
    journal.damaged.store(at.unwrap() as u64 + 1, Ordering::SeqCst);
    receiver.says(|_| Ok(Outcome::Delivered));
    for upto in [4, 5] {
        let engine = begin(&bench, &journal).await;
        bench.store(upto..=upto).await;
        durable(&engine, upto).await;
        let lost = state(&bench, &engine, 2).await;
        assert!(
            matches!(&lost, EventState::Unknown { reason } if reason.contains("lost to damage")),
            "{lost:?}"
        );
        for seq in 4..=upto {
            assert_eq!(state(&bench, &engine, seq).await, EventState::Delivered, "{seq}");
        }
        assert!(status(&engine).dead_trouble.is_some());
        engine.shutdown().await;
    }
    // Once somebody has seen it that goes for good, although what is damaged stays in the journal.
    let engine = begin(&bench, &journal).await;
    until("it is open", async || status(&engine).waits_for.is_none()).await;
    engine.pause("a", false).await.unwrap();
    assert_eq!(status(&engine).dead_trouble, None);
    until("nobody is asked for", async || !status(&engine).needs_person).await;
    engine.shutdown().await;
    let engine = begin(&bench, &journal).await;
    bench.store(6..=6).await;
    durable(&engine, 6).await;
    assert_eq!(
        (status(&engine).dead_trouble, status(&engine).needs_person),
        (None, false)
    );
    assert!(matches!(state(&bench, &engine, 2).await, EventState::Unknown { .. }));
    engine.shutdown().await;
}
