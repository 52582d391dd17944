//! What goes on beside appends and reads: following the head of the stream, looking whether its servers agree, and where it can be cut.

use std::sync::Arc;
use std::time::{Duration, Instant as Moment};

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::api::{self, Info};
use super::check;
use super::cuts;
use super::durability;
use super::erase;
use super::key;
use super::shared::{FULL_FOR, Shared};
use super::sweep;
use crate::event::Seq;
use crate::log::AppendError;
use crate::sync::{lock, read_lock};

/// How often the loop turns when nothing happens.
const TURN: Duration = Duration::from_millis(250);

/// What was stored in so short a time is said to the other nodes at once.
const GATHER: Duration = Duration::from_millis(3);

/// Between two questions because of what others say.
const LOOK_REST: Duration = Duration::from_millis(10);

/// How often the leader is asked how the stream stands.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// So long its answer may take.
const LOOK_WITHIN: Duration = Duration::from_secs(3);

/// A trouble is over when for so long nothing went wrong, and the servers agree.
const WELL_FOR: Duration = Duration::from_secs(2);

/// A stream that ends earlier than it did was set back when so many answers in a row say so, over so long.
const BEHIND_LOOKS: u32 = 4;
const BEHIND_FOR: Duration = Duration::from_secs(4);

/// How often it is looked where the log can be cut.
const CUTS_EVERY: Duration = Duration::from_secs(60);

/// How often the servers are asked whether they still sync each message.
const ASK_EVERY: Duration = Duration::from_secs(60);

/// How often it is looked for erasures that nobody finishes.
const FINISH_EVERY: Duration = Duration::from_secs(15);

/// How often pieces that belong to nothing are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// Says the head to the other nodes, and hears it from them.
pub(super) async fn follow(shared: Arc<Shared>, heads: Arc<tokio::sync::Mutex<mpsc::Receiver<Bytes>>>) {
    let mut heads = heads.lock().await;
    let mut head = shared.head.subscribe();
    // What the others know already.
    let mut known = *head.borrow_and_update();
    loop {
        shared.turned();
        tokio::select! {
            () = shared.closing.cancelled() => return,
            () = tokio::time::sleep(TURN) => {}
            said = heads.recv() => {
                let Some(said) = said else { return };
                let seq = std::str::from_utf8(&said).ok().and_then(|text| text.parse().ok());
                // Nobody can make this side believe in events that are not there: it is the leader that is asked then.
                if seq.map(Seq).is_some_and(|seq| seq > known) {
                    if let Ok(last) = look(&shared).await {
                        known = known.max(last);
                    }
                    // Under load every node says it again and again.
                    tokio::time::sleep(LOOK_REST).await;
                }
            }
            Ok(()) = head.changed() => {
                tokio::time::sleep(GATHER).await;
                let now = *head.borrow_and_update();
                if now > known {
                    known = now;
                    announce(&shared, now).await;
                }
            }
        }
    }
}

async fn announce(shared: &Shared, head: Seq) {
    let until = Instant::now() + TURN;
    if let Ok(line) = shared.link.line(until).await {
        let subject = key::head(shared.stream());
        let told = line.tell(&subject, HeaderMap::new(), head.to_string().into());
        // Whoever does not hear it asks within a second.
        let _ = tokio::time::timeout_at(until, told).await;
    }
}

/// Asks the leader how the stream stands; the last Seq.
pub(super) async fn look(shared: &Shared) -> Result<Seq, String> {
    // What is durable by now is in what the leader says.
    let known = *shared.head.borrow();
    let info = api::info(&shared.link, shared.stream(), None, Instant::now() + LOOK_WITHIN).await;
    let info = info.map_err(|failure| failure.to_string())?;
    match judged(shared, &info, known) {
        // A single answer, which may be an old one, does not tell.
        Judged::Behind => return Ok(known),
        Judged::Right => shared.set_wrong(None),
        Judged::Wrong { why, is_another } => {
            shared.set_wrong(Some((why.clone(), is_another)));
            // Of another log neither ends nor numbers are taken over.
            return Err(why);
        }
    }
    let (last, doubt) = (Seq(info.state.last_seq), doubt(&info));
    shared.note(info);
    match doubt {
        Some(doubt) => Err(doubt),
        None => Ok(last),
    }
}

/// What an answer of the leader says of the stream.
enum Judged {
    /// It is what was opened.
    Right,
    /// It lacks what was there, and it may be the answer that is old.
    Behind,
    /// It is not what was opened any more.
    Wrong {
        /// Why not, with what to do.
        why: String,
        /// Nothing of it is of this log.
        is_another: bool,
    },
}

fn judged(shared: &Shared, info: &Info, known: Seq) -> Judged {
    if let Some(why) = check::judge_again(&shared.options, info, &shared.id, &shared.epoch) {
        return Judged::Wrong { why, is_another: true };
    }
    let last = info.state.last_seq;
    let is_behind = last < known.0;
    let lasts = lasts(&mut lock(&shared.behind), is_behind, Moment::now());
    if is_behind && !lasts {
        return Judged::Behind;
    }
    if is_behind {
        let stream = shared.stream();
        let why = format!(
            "the stream {stream} ends at event {last}, and had come to {known}: it seems that it was set back to a copy. Stop all nodes, and start them again when everything is put back"
        );
        return Judged::Wrong { why, is_another: true };
    }
    let weak = check::weaknesses(&shared.options, info);
    if weak.is_empty() {
        return Judged::Right;
    }
    Judged::Wrong {
        why: weak.join("; "),
        is_another: false,
    }
}

/// Whether something has been so in every answer for a while: a server that was cut off, and believes itself the leader still, says what was.
fn lasts(since: &mut Option<(Moment, u32)>, is_so: bool, now: Moment) -> bool {
    if !is_so {
        *since = None;
        return false;
    }
    let (began, count) = since.get_or_insert((now, 0));
    *count += 1;
    *count >= BEHIND_LOOKS && now.duration_since(*began) >= BEHIND_FOR
}

/// Why the stream can't take anything although it has a leader.
fn doubt(info: &Info) -> Option<String> {
    let peers = info.cluster.as_ref()?;
    let all = peers.replicas.len() + 1;
    let alive = all - peers.away().len();
    (alive * 2 <= all).then(|| format!("only {alive} of the {all} servers of the stream are running"))
}

/// Looks after the stream once a second.
pub(super) async fn watch(shared: Arc<Shared>) {
    let (mut cut_at, mut sweep_at) = (Moment::now(), Moment::now() + SWEEP_EVERY);
    let mut sweeper = sweep::Sweeper::default();
    // Whoever opened the log has just asked.
    let (mut ask_at, mut lazy) = (Moment::now() + ASK_EVERY, Vec::new());
    let mut was_away = away(&shared);
    loop {
        tokio::select! {
            () = shared.closing.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        match look(&shared).await {
            Ok(_) => {
                sweep::look_at_parts(&shared).await;
                let away = away(&shared);
                if Moment::now() >= ask_at || !lazy.is_empty() || away < was_away {
                    ask_at = Moment::now() + ASK_EVERY;
                    // Where nothing can be seen now it stays what it was.
                    if let Some(seen) = durability::lazy_servers(&shared.link, &shared.options).await {
                        lazy = seen;
                    }
                }
                was_away = away;
                if lazy.is_empty() {
                    relieve(&shared);
                } else {
                    shared.set_trouble(Some(AppendError::Failing(lazy.join("; "))));
                    continue;
                }
            }
            Err(why) => {
                shared.set_trouble(Some(AppendError::Failing(why)));
                continue;
            }
        }
        if Moment::now() >= cut_at {
            cut_at = Moment::now() + CUTS_EVERY;
            cuts::find(&shared).await;
        }
        if Moment::now() >= sweep_at {
            sweep_at = Moment::now() + SWEEP_EVERY;
            sweeper.sweep(&shared).await;
        }
    }
}

/// Finishes what a node began to erase that has died in between: this one in an earlier life, or another one.
pub(super) async fn finish_erasures(shared: Arc<Shared>) {
    let mut finisher = erase::Finisher::default();
    while !shared.is_closing() {
        if shared.is_another().is_none()
            && let Err(error) = finisher.finish(&shared).await
        {
            tracing::warn!(%error, "an erasure that was cut off could not be finished; it is tried again");
        }
        tokio::select! {
            () = shared.closing.cancelled() => return,
            () = tokio::time::sleep(FINISH_EVERY) => {}
        }
    }
}

/// How many servers of the stream are not running.
fn away(shared: &Shared) -> usize {
    read_lock(&shared.info)
        .cluster
        .as_ref()
        .map_or(0, |peers| peers.away().len())
}

/// Takes back what is over.
fn relieve(shared: &Shared) {
    if let Some(why) = over_room(shared) {
        return shared.set_trouble(Some(why));
    }
    let is_over = |(why, since): &(AppendError, Moment)| match why {
        AppendError::Full(_) => since.elapsed() >= FULL_FOR,
        _ => since.elapsed() >= WELL_FOR,
    };
    if shared.trouble().as_ref().is_some_and(is_over) {
        shared.set_trouble(None);
    }
}

/// What is said when the log takes up more than it may.
pub(super) fn over_room(shared: &Shared) -> Option<AppendError> {
    let room = shared.room.load(std::sync::atomic::Ordering::Relaxed);
    let bytes = shared.bytes();
    (bytes > room).then(|| {
        AppendError::Full(format!(
            "the log takes up {bytes} bytes on its servers, and log.max_size leaves it {room}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_taken_for_set_back_when_every_answer_for_a_while_says_so_and_not_by_a_single_one() {
        let (mut since, begin) = (None, Moment::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert!(!lasts(&mut since, true, at(0)));
        assert!(!lasts(&mut since, true, at(60)), "two answers, however far apart");
        assert!(!lasts(&mut since, false, at(61)));
        for _ in 0..100 {
            assert!(!lasts(&mut since, true, at(62)), "many at once are one");
        }
        assert!(lasts(&mut since, true, at(66)));
        assert!(!lasts(&mut since, false, at(67)));
        assert_eq!(since, None);
    }
}
