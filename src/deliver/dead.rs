//! Dead letters, as people ask for them, and as the log drops their events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::engine::Engine;
use super::letters::{Letters, asides, event_of, is_gone, listed};
use super::reading::{aside, at_length, detached, within};
use super::types::{DeadLetter, EngineError, Mode, OBEY_WITHIN, RetryProgress, Waiter, failed};
use super::worker::{Command, Handle, Reach};
use crate::config::Size;
use crate::event::{Event, Kind, Seq};
use crate::framefile::FrameError;
use crate::node;
use crate::sinks::Hider;
use crate::sorted;
use crate::sync::lock;

/// Events that are copied with one sync, and bytes of their bodies, roughly.
const COPY_EVENTS: usize = 1024;
const COPY_BYTES: usize = 1 << 20;

/// Of all sinks the letters have so long to be erased; what is left then is named, and erased with the next order.
const ERASED_WITHIN: Duration = Duration::from_secs(120);

impl Engine {
    /// A sink's letters, which it may have none of yet, and which may not be read yet.
    pub(super) fn letters_of(&self, sink: &str) -> Letters {
        let read_only = self.inner.mode == Mode::Look;
        let new = || match &self.inner.desk {
            Some(desk) => Letters::shared(desk, sink, read_only),
            None => Letters::new(&self.inner.dead_dir, sink, read_only),
        };
        let mut letters = lock(&self.inner.letters);
        letters.entry(sink.to_owned()).or_insert_with(new).clone()
    }

    /// The same, read.
    pub(super) async fn read_letters_of(&self, sink: &str) -> Result<Letters, EngineError> {
        let letters = self.letters_of(sink);
        let read = letters.clone();
        let read = aside(move || read.read()).await;
        read.map_err(EngineError)?.map_err(failed)?;
        Ok(letters)
    }

    /// Of sinks that are not configured, how many events other sinks gave up for them and they have not had. They are shown as their dead
    /// letters, and delivered when the sink comes back.
    pub fn stranded(&self) -> BTreeMap<String, u64> {
        let letters = lock(&self.inner.letters).clone();
        let removed = letters.into_iter().filter(|(sink, _)| !self.is_configured(sink));
        let counted = removed.map(|(sink, letters)| (sink, letters.given_len() as u64));
        sorted::map(counted.filter(|(_, count)| *count > 0))
    }

    /// The same, said to whoever reads the log.
    pub(super) fn tell_stranded(&self) {
        for (sink, count) in self.stranded() {
            tracing::warn!(
                sink,
                count,
                "other sinks gave events up for a sink that is not configured: `closehook dead list` shows them, and they go there when it is configured again"
            );
        }
    }

    pub(super) fn is_configured(&self, sink: &str) -> bool {
        lock(&self.inner.configured).contains(sink)
    }

    /// Whether there is a file of dead letters for the name.
    pub(super) fn has_letters(&self, sink: &str) -> bool {
        lock(&self.inner.letters).contains_key(sink)
    }

    /// Removes the letters of a removed sink with their file; gives how many there were.
    pub(super) async fn forget_letters(&self, sink: &str) -> Result<u64, EngineError> {
        if !self.has_letters(sink) {
            return Ok(0);
        }
        let letters = self.read_letters_of(sink).await?;
        let forget = move || letters.forget().map_err(failed);
        let gone = aside(forget).await.map_err(EngineError)??;
        lock(&self.inner.letters).remove(sink);
        Ok(gone)
    }

    /// Finds the letters that could not be found when the engine was started. Blocking.
    pub(super) fn find_letters(&self) -> Result<(), EngineError> {
        let sinks = if let Some(desk) = &self.inner.desk {
            let topics = desk.ask(|journal| async move { journal.topics().await });
            topics.map_err(cannot_look)?
        } else {
            let found = listed(&self.inner.dead_dir).map_err(cannot_look)?;
            found.into_iter().map(|(sink, _)| sink).collect()
        };
        for sink in sinks {
            self.letters_of(&sink);
        }
        Ok(())
    }

    fn chosen(&self, sink: Option<&str>) -> Result<Vec<(String, Letters)>, EngineError> {
        let all = lock(&self.inner.letters).clone();
        match sink {
            None => Ok(all.into_iter().collect()),
            Some(sink) => match all.get(sink) {
                Some(letters) => Ok(vec![(sink.to_owned(), letters.clone())]),
                // It has none, or its name is wrong.
                None => self.worker(sink).map(|_| Vec::new()),
            },
        }
    }

    /// The letters of one sink, read; `None`: it has none. What reads holds no engine, so it keeps no log open that is closed.
    async fn read_letters(&self, sink: &str) -> Result<Option<Letters>, EngineError> {
        let Some((sink, letters)) = self.chosen(Some(sink))?.pop() else {
            return Ok(None);
        };
        let reading = letters.clone();
        let read = aside(move || reading.read().map_err(|error| error.to_string())).await;
        read.flatten().map_err(|error| EngineError(unreadable(&sink, &error)))?;
        Ok(Some(letters))
    }

    /// Dead letters of one sink or of all, from a Seq on; at most `max` of each. An error: not all of them can be read. Blocking.
    pub fn dead_list(&self, sink: Option<&str>, from: Seq, max: usize) -> Result<Vec<DeadLetter>, EngineError> {
        let (found, mut left) = self.dead_readable(sink, from, max)?;
        if left.is_empty() {
            return Ok(found);
        }
        Err(EngineError(left.swap_remove(0)))
    }

    /// The same as far as they can be read now, with a sentence for each sink whose letters can't be. Blocking.
    pub fn dead_readable(
        &self,
        sink: Option<&str>,
        from: Seq,
        max: usize,
    ) -> Result<(Vec<DeadLetter>, Vec<String>), EngineError> {
        let (mut found, mut left) = (Vec::new(), Vec::new());
        if sink.is_none()
            && let Err(error) = self.find_letters()
        {
            left.push(error.to_string());
        }
        for (sink, letters) in self.chosen(sink)? {
            let listed = listed_in(&sink, &letters, from, max, !self.is_configured(&sink));
            let listed = listed.map(|letters| found.extend(self.without_secrets(&sink, letters)));
            left.extend(listed.err().map(|error| unreadable(&sink, &error)));
        }
        Ok((found, left))
    }

    /// The sinks that may have letters: one, or all. Blocking.
    pub fn dead_sinks(&self, sink: Option<&str>) -> Result<Vec<String>, EngineError> {
        Ok(self.chosen(sink)?.into_iter().map(|(sink, _)| sink).collect())
    }

    /// The sinks that are configured no more and may have letters, with how many there are, those included that other sinks gave up for
    /// them; in order of name. Blocking.
    pub fn dead_removed(&self) -> Result<Vec<(String, u64)>, EngineError> {
        self.find_letters()?;
        let removed = self.chosen(None)?.into_iter();
        let removed = removed.filter(|(sink, _)| !self.is_configured(sink));
        let counted = removed.map(|(sink, letters)| match letters.read() {
            Ok(()) => Ok((sink, (letters.len() + letters.given_len()) as u64)),
            Err(error) => Err(EngineError(unreadable(&sink, &error))),
        });
        counted.collect()
    }

    /// Letters of a sink from a Seq on, of at most `max` places, and where the next ones begin if there may be any. `with_given`: also
    /// those that other sinks gave up, and that are to be delivered here; of a sink that is not configured these always, since they go
    /// nowhere. Blocking.
    pub fn dead_page(
        &self,
        sink: &str,
        from: Seq,
        max: usize,
        with_given: bool,
    ) -> Result<(Vec<DeadLetter>, Option<Seq>), EngineError> {
        let Some((sink, letters)) = self.chosen(Some(sink))?.pop() else {
            return Ok((Vec::new(), None));
        };
        let unreadable = |error: FrameError| EngineError(unreadable(&sink, &error));
        letters.read().map_err(unreadable)?;
        let places = places(&letters, from, max, with_given || !self.is_configured(&sink));
        // Of these letters some may go meanwhile: where the next ones begin, their places say.
        let next = places.last().filter(|_| places.len() == max).map(|last| last.next());
        let listed = listed_at(&sink, &letters, &places).map_err(unreadable)?;
        Ok((self.without_secrets(&sink, listed), next))
    }

    /// What hides a sink's present secrets in what was said back. Blocking.
    pub(super) fn hider(&self, sink: &str) -> Option<Hider> {
        let options = self
            .workers()
            .by_sink
            .get(sink)
            .map(|worker| worker.config.options.clone());
        options?.hider()
    }

    /// Letters as they may be shown: what the receiver said back is kept as it was cleaned then, by a closehook that hid no secrets
    /// perhaps, or when what is a secret now was none. Blocking.
    fn without_secrets(&self, sink: &str, letters: impl IntoIterator<Item = DeadLetter>) -> Vec<DeadLetter> {
        let mut letters: Vec<DeadLetter> = letters.into_iter().collect();
        let hider = if letters.is_empty() { None } else { self.hider(sink) };
        if let Some(hide) = hider {
            for letter in &mut letters {
                letter.reason = hide(&letter.reason);
                letter.answer = letter.answer.as_deref().map(&hide);
            }
        }
        letters
    }

    /// One dead letter with its event; without it where that is not kept any more.
    pub async fn dead_get(
        &self,
        sink: &str,
        seq: Seq,
    ) -> Result<Option<(DeadLetter, Option<Arc<Event>>)>, EngineError> {
        let Some(letters) = self.read_letters(sink).await? else {
            return Ok(None);
        };
        let (engine, name, reading) = (self.clone(), sink.to_owned(), letters.clone());
        let read = move || reading.get(seq).map(|letter| engine.without_secrets(&name, letter));
        let letter = aside(read).await;
        let Some(letter) = letter.map_err(EngineError)?.map_err(failed)?.pop() else {
            return Ok(None);
        };
        let event = event_of(&letters, &*self.inner.log, seq, &letter.id).await;
        let event = event.map_err(EngineError)?;
        Ok(Some((letter, event)))
    }

    /// Delivers dead letters again, once each; those that are delivered are removed. What can't be tried now ends as still dead, with
    /// the reason.
    pub async fn dead_retry(&self, sink: &str, seqs: Vec<Seq>) -> Result<Arc<RetryProgress>, EngineError> {
        let handle = self.worker(sink).map_err(|unknown| self.why_no_worker(sink, unknown))?;
        if lock(&handle.view).status.paused {
            return Err(EngineError(format!(
                "\"{sink}\" is paused: `closehook sinks resume {sink}` first"
            )));
        }
        if self.is_afar(sink) {
            let (leases, what) = (&self.inner.leases, node::of_sink(sink));
            // A daemon has the patience to wait until one does.
            if self.inner.mode == Mode::Outside && leases.holder_now(&what).await.map_err(EngineError)?.is_none() {
                return Err(EngineError(format!(
                    "\"{sink}\": no node drives it now, and nothing was tried; it takes a node that runs (`closehook serve`), and a moment after its start"
                )));
            }
            return Ok(self.retry_afar(sink, seqs));
        }
        self.retry_here(sink, seqs).await
    }

    /// Why there is nobody to try the letters of a sink that has some.
    fn why_no_worker(&self, sink: &str, unknown: EngineError) -> EngineError {
        if self.is_configured(sink) {
            return EngineError(format!("\"{sink}\" is being started anew: try again in a moment"));
        }
        if !self.has_letters(sink) {
            return unknown;
        }
        EngineError(format!(
            "\"{sink}\" is not configured any more: put it back to have its dead letters delivered, or let them go with `closehook dead drop --sink {sink} --all`"
        ))
    }

    /// The same at a sink that is driven here.
    pub(super) async fn retry_here(&self, sink: &str, seqs: Vec<Seq>) -> Result<Arc<RetryProgress>, EngineError> {
        if self.inner.desk.is_some() {
            // What another node has just dropped is not tried.
            self.read_letters_of(sink).await?;
        }
        let progress = Arc::new(RetryProgress::new(seqs.len() as u64));
        let order = Command::RetryDead(Waiter::each(seqs, &progress));
        self.order(sink, order).await?;
        Ok(progress)
    }

    /// Drops dead letters for good, with one sync; gives how many there were. Their events are dead, and stay so. Blocking.
    pub fn dead_drop(&self, sink: &str, seqs: &[Seq]) -> Result<u64, EngineError> {
        let mut dropped = 0;
        for (_, letters) in self.chosen(Some(sink))? {
            dropped += letters.drop_for_good(seqs).map_err(failed)?;
        }
        Ok(dropped)
    }

    /// Removes letters for good, of these events at any sink, removed ones included, and leaves nothing of them in the files, nor of any
    /// letter that went before. `named`: those that say whose they are, whether or not the log still had their events; `of_log`: what the
    /// log has erased, `None` where it could not, and so may still have them. Gives how many there were, and a sentence for each place that
    /// may still hold some of it. Of those that go without the log having erased their events it stays known that they went.
    pub async fn dead_erase(&self, named: BTreeSet<Seq>, of_log: Option<Vec<Seq>>) -> (u64, Vec<String>) {
        // What the log could not erase is for others to deliver: of that the letters go alone.
        let reach = if of_log.is_some() {
            Reach::Everything
        } else {
            Reach::Letters
        };
        let erased: BTreeSet<Seq> = of_log.into_iter().flatten().collect();
        let seqs: Arc<[Seq]> = named.union(&erased).copied().collect();
        let dropped: Arc<[Seq]> = named.difference(&erased).copied().collect();
        let erased: Arc<[Seq]> = erased.into_iter().collect();
        let mut left = self.let_go(&seqs, reach).await;
        let (count, left_in_files) = self.erase_letters(&erased, &dropped).await;
        if left.is_empty() {
            // What one sink gave another meanwhile may have been read there before it went.
            left = self.let_go(&seqs, reach).await;
        }
        left.extend(left_in_files);
        (count, left)
    }

    /// Makes every sink forget what it has in memory of these events, but for what is being delivered; also one that is stopping. A
    /// sentence for each that did not answer.
    async fn let_go(&self, seqs: &Arc<[Seq]>, reach: Reach) -> Vec<String> {
        if seqs.is_empty() || !self.inner.mode.drives() {
            return Vec::new();
        }
        let workers: Vec<_> = self.workers().by_sink.clone().into_iter().collect();
        let ask = async |(sink, worker): &(String, Handle)| {
            let (done, answer) = oneshot::channel();
            let told = async {
                // One that has ended, or is started again, has nothing in memory any more.
                let order = Command::Erased(seqs.clone(), reach, done);
                if worker.commands.send(order).await.is_ok() {
                    let _ = answer.await;
                }
            };
            let told = tokio::time::timeout(OBEY_WITHIN, told).await;
            told.is_err()
                .then(|| format!("what a sink has in memory may still be delivered: \"{sink}\" does not answer"))
        };
        let asked = futures::future::join_all(workers.iter().map(ask)).await;
        asked.into_iter().flatten().collect()
    }

    /// `erased`: of these the log has erased the events; `dropped`: of these it has not.
    async fn erase_letters(&self, erased: &Arc<[Seq]>, dropped: &Arc<[Seq]>) -> (u64, Vec<String>) {
        let engine = self.clone();
        let mut left = match aside(move || engine.places_left()).await {
            Ok(left) => left,
            Err(error) => vec![format!("{}: {error}", self.inner.dead_dir.display())],
        };
        let (mut count, mut silent) = (0, Duration::ZERO);
        let all = lock(&self.inner.letters).clone();
        for (sink, letters) in all {
            let place = if letters.is_shared() {
                format!("dead letters of sink \"{sink}\"")
            } else {
                self.inner.dead_dir.join(&sink).display().to_string()
            };
            if silent >= ERASED_WITHIN {
                left.push(format!(
                    "{place}: others, which do not answer, have taken all the time there is"
                ));
                continue;
            }
            let (erased, dropped) = (erased.clone(), dropped.clone());
            let began = Instant::now();
            let scrubbed = at_length(move |turn| {
                let mut gone = 0;
                let mut let_go = || -> Result<(), FrameError> {
                    gone += letters.erase(&erased, turn)?;
                    gone += letters.erase_alone(&dropped, turn)?;
                    turn();
                    letters.scrub(turn)
                };
                let done = let_go();
                (gone, done)
            });
            let error = match scrubbed.await {
                Ok((gone, done)) => {
                    count += gone;
                    done.err().map(|error| error.to_string())
                }
                Err(error) => {
                    silent += began.elapsed();
                    Some(error)
                }
            };
            left.extend(error.map(|error| format!("{place}: {error}")));
        }
        (count, left)
    }

    /// Letters that can't be erased from here, a sentence for each place. Blocking.
    fn places_left(&self) -> Vec<String> {
        let (mut left, dir) = (Vec::new(), &self.inner.dead_dir);
        match asides(dir) {
            Ok(asides) => left.extend(
                asides
                    .into_iter()
                    .map(|path| format!("{}: dead letters that were damaged and set aside", path.display())),
            ),
            Err(error) => left.push(format!("{}: {error}", dir.display())),
        }
        if let Err(error) = self.find_letters() {
            left.push(error.to_string());
        }
        if self.inner.desk.is_some() {
            let found = listed(dir).unwrap_or_default();
            left.extend(found.into_iter().map(|(_, path)| {
                format!(
                    "{}: dead letters that were not taken over into the stream yet: start `closehook serve` here, which does that",
                    path.display()
                )
            }));
        }
        left
    }

    /// Copies the event of every dead letter before `before`, of all sinks, removed ones included, so that the log can drop it.
    /// Returns when the copies are durable. An error says why the log must not drop anything now; one sink's letters that can't be read
    /// keep those of no other from being copied.
    pub async fn secure_letters(&self, before: Seq) -> Result<(), String> {
        let engine = self.clone();
        let found = aside(move || engine.find_letters().map_err(|error| error.to_string())).await;
        found.flatten()?;
        let sinks: BTreeSet<String> = lock(&self.inner.letters).keys().cloned().collect();
        let mut left = Vec::new();
        // What goes from one sink to another meanwhile is copied at the one before, and goes along, or at the other afterwards.
        for sink in self.givers_first(sinks) {
            let letters = match self.read_letters_of(&sink).await {
                Ok(letters) => letters,
                Err(error) => {
                    left.push(unreadable(&sink, &error));
                    continue;
                }
            };
            if let Err(error) = self.secure_letters_of(&sink, &letters, before).await {
                left.push(format!("dead letters of sink \"{sink}\" can't be copied: {error}"));
            }
        }
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    }

    /// Sinks in an order in which each is before its `dead_to`.
    pub(super) fn givers_first(&self, sinks: impl IntoIterator<Item = String>) -> Vec<String> {
        let to: BTreeMap<String, String> = {
            let workers = self.workers();
            let to = |(name, handle): (&String, &Handle)| Some((name.clone(), handle.config.dead_to.clone()?));
            workers.by_sink.iter().filter_map(to).collect()
        };
        // There is no circle among them.
        let behind = |sink: &String| {
            std::iter::successors(to.get(sink), |next| to.get(*next))
                .take(to.len())
                .count()
        };
        let mut sinks: Vec<String> = sinks.into_iter().collect();
        sorted::sort_by_key(&mut sinks, |sink| std::cmp::Reverse(behind(sink)));
        sinks
    }

    async fn secure_letters_of(&self, sink: &str, letters: &Letters, before: Seq) -> Result<(), String> {
        let mut from = Seq::ZERO;
        loop {
            let bare = letters.without_copy(from, before, COPY_EVENTS);
            let Some(last) = bare.last() else { break };
            from = last.next();
            self.copy_events(letters, &bare).await?;
            // After each batch, so that the file never holds much more than it may.
            self.keep_within(sink, letters).await?;
        }
        self.keep_within(sink, letters).await
    }

    /// Drops the oldest letters of a sink that take up more than it may keep.
    async fn keep_within(&self, sink: &str, letters: &Letters) -> Result<(), String> {
        // A file is written anew when half of it is garbage, so it takes up twice what is in it.
        let sinks = lock(&self.inner.letters).len().max(1) as u64;
        let share = self.inner.letters_max.load(Ordering::Relaxed) / 2 / sinks;
        let own = self.worker(sink).map_or(u64::MAX, |worker| worker.config.dead_max.0);
        let max = Size(own.min(share));
        let letters = letters.clone();
        let drop_some = move || letters.drop_for_good(&letters.beyond(max.0));
        let dropped = aside(move || drop_some().map_err(|error| error.to_string())).await;
        let dropped = dropped.flatten()?;
        if dropped > 0 {
            crate::telemetry::letters_dropped(sink, dropped, max);
        }
        Ok(())
    }

    /// Reads these events and keeps copies of them. What the log does not have any more has none.
    async fn copy_events(&self, letters: &Letters, seqs: &[Seq]) -> Result<(), String> {
        let (mut events, mut bytes) = (Vec::new(), 0);
        for seq in seqs {
            let event = within(self.inner.log.get(*seq)).await;
            let event = event.map_err(|error| error.to_string())?;
            // Of an erased one nothing is kept.
            let Some(event) = event.filter(|event| event.kind != Kind::Erased) else {
                continue;
            };
            bytes += event.body.len();
            events.push(detached(event));
            if bytes >= COPY_BYTES {
                keep(letters, std::mem::take(&mut events)).await?;
                bytes = 0;
            }
        }
        keep(letters, events).await
    }
}

fn cannot_look(error: impl std::fmt::Display) -> EngineError {
    EngineError(format!("the dead letters can't be looked at: {error}"))
}

fn unreadable(sink: &str, error: &dyn std::fmt::Display) -> String {
    format!("the dead letters of sink \"{sink}\" can't be read: {error}")
}

/// A sink's letters from a Seq on, at most so many. One that is damaged is said and left out.
fn listed_in(
    sink: &str,
    letters: &Letters,
    from: Seq,
    max: usize,
    with_given: bool,
) -> Result<Vec<DeadLetter>, FrameError> {
    letters.read()?;
    listed_at(sink, letters, &places(letters, from, max, with_given))
}

fn places(letters: &Letters, from: Seq, max: usize, with_given: bool) -> Vec<Seq> {
    if with_given {
        letters.all_seqs(from, max)
    } else {
        letters.seqs(from, max)
    }
}

fn listed_at(sink: &str, letters: &Letters, places: &[Seq]) -> Result<Vec<DeadLetter>, FrameError> {
    let mut found = Vec::new();
    for seq in places {
        match letters.get(*seq) {
            Ok(letter) => found.extend(letter),
            Err(error) if is_gone(&error) => tracing::error!(sink, %error, "a dead letter can't be read any more"),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

async fn keep(letters: &Letters, events: Vec<Arc<Event>>) -> Result<(), String> {
    if events.is_empty() {
        return Ok(());
    }
    let letters = letters.clone();
    let kept = aside(move || letters.keep_copies(&events).map_err(|error| error.to_string())).await;
    kept.flatten()
}
