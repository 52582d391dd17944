//! Delivering: a batch is one script, and what keeps it from being added is told apart from what keeps everything.

use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use ::redis::Value;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use jiff::Timestamp;
use rustls::ClientConfig;

use super::answer::Said;
use super::entry::Entry;
use super::script::{self, Adding, Answer};
use super::{
    Batch, Failed, Login, MOVES_MAX, Mark, Options, Outcome, Place, Reason, Session, Sink, Unavailable, silent, taken,
};
use crate::render::Template;
use crate::sync::lock;

/// Entries that are added by one script where there are more of them.
const PART: usize = 125;

/// Parts that are on their way: one that the server adds, and one behind it.
const SENT_MAX: usize = 2;

/// What `proto-max-bulk-len` is at the least; shorter texts every server takes.
const BULK_LEN_SURE: usize = 1 << 20;

/// What it is by default.
const BULK_LEN_MAX: usize = 512 << 20;

/// The way to the server, and how far this sink's mark is there.
pub(super) struct Open {
    /// Where it was found in the end.
    place: Place,
    login: Login,
    tls: Arc<ClientConfig>,
    session: Option<Session>,
    /// Drawn when the mark was claimed.
    claim: String,
    /// Commits since.
    count: u64,
    /// Longest text that the server takes; `None` while nobody needed to know.
    longest: Option<usize>,
}

impl Open {
    pub(super) fn new(place: Place, login: Login, tls: Arc<ClientConfig>) -> Open {
        Open {
            place,
            login,
            tls,
            session: None,
            claim: String::new(),
            count: 0,
            longest: None,
        }
    }

    /// The fence after so many commits.
    fn fence(&self, count: u64) -> String {
        format!("{}.{count}", self.claim)
    }

    /// The connection, or a new one where the server has closed that: nothing is on its way yet, so nothing can come twice.
    async fn session(&mut self) -> Result<&Session, Unavailable> {
        if self.session.as_ref().is_none_or(Session::is_over) {
            self.session = None;
            self.session = Some(Session::connect(&self.place, &self.login, self.tls.clone()).await?);
        }
        self.session
            .as_ref()
            .ok_or_else(|| Unavailable::new("there is no connection"))
    }

    async fn run(&mut self, command: &::redis::Cmd) -> Result<Value, Failed> {
        let session = self.session().await.map_err(Failed::Lost)?;
        session.run(command).await
    }

    /// The same, at whichever node of a cluster has the keys.
    async fn run_there(&mut self, command: &::redis::Cmd) -> Result<Value, Failed> {
        for _ in 0..MOVES_MAX {
            let said = match self.run(command).await {
                Err(Failed::Said(said)) => said,
                done => return done,
            };
            let Some(place) = said.moved_to().and_then(|address| self.place.moved(address)) else {
                return Err(Failed::Said(said));
            };
            self.place = place;
            self.session = None;
        }
        Err(Failed::Lost(Unavailable::new(
            "the nodes of the cluster send from one to the other: does each of them know the others?",
        )))
    }

    /// Reads the mark and makes it this opening's.
    pub(super) async fn claim(&mut self, keys: &[&str]) -> Result<Option<Mark>, Unavailable> {
        let mut drawn = [0; 16];
        getrandom::fill(&mut drawn).map_err(|error| Unavailable::new(format!("no random number: {error}")))?;
        (self.claim, self.count) = (hex::encode(drawn), 0);
        let command = script::claim(keys, &self.fence(0));
        let reply = self.run_there(&command).await;
        match Answer::read(&reply.map_err(Failed::unavailable)?)? {
            Answer::Claimed(mark) => Ok(mark),
            Answer::Others(others) => Err(taken(keys, &others)),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether the stream, the last of the keys, is there, and nothing keeps it from being written.
    pub(super) async fn look(&mut self, keys: &[&str]) -> Result<bool, Unavailable> {
        let reply = self.run_there(&script::look(keys)).await;
        match Answer::read(&reply.map_err(Failed::unavailable)?)? {
            Answer::Seen(is_there) => Ok(is_there),
            Answer::Others(others) => Err(taken(keys, &others)),
            other => Err(unexpected(&other)),
        }
    }

    /// What of the server's settings makes the promise worth less, as far as it says so.
    pub(super) async fn warnings(&mut self) -> String {
        let Ok(Value::BulkString(info)) = self.run(&::redis::cmd("INFO")).await else {
            return String::new();
        };
        let info = String::from_utf8_lossy(&info).into_owned();
        let is = |name: &str| {
            info.lines()
                .find_map(|line| line.trim().strip_prefix(name))
                .unwrap_or_default()
        };
        let mut said = String::new();
        if is("maxmemory_policy:").starts_with("allkeys") && is("maxmemory:") != "0" {
            said += "; but when its memory is full it throws away any key, streams and marks too: set maxmemory-policy noeviction there";
        }
        if is("aof_enabled:") == "0" {
            said += "; what it got since its last snapshot is lost where it is killed: set appendonly yes there";
        }
        said
    }

    /// How long a text may be.
    async fn longest(&mut self) -> Result<usize, Unavailable> {
        if let Some(longest) = self.longest {
            return Ok(longest);
        }
        let asked = ::redis::cmd("CONFIG").arg("GET").arg("proto-max-bulk-len").clone();
        let longest = match self.run(&asked).await {
            Ok(Value::Array(parts)) => match parts.last() {
                Some(Value::BulkString(text)) => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()),
                _ => None,
            },
            // Many let nobody ask.
            Ok(_) | Err(Failed::Said(_)) => None,
            Err(failed @ Failed::Lost(_)) => return Err(failed.unavailable()),
        };
        let longest = longest.unwrap_or(BULK_LEN_MAX);
        self.longest = Some(longest);
        Ok(longest)
    }
}

fn unexpected(answer: &Answer) -> Unavailable {
    Unavailable::new(format!("the script says {answer:?}, which was not asked"))
}

/// An opened sink.
pub(super) struct Redis {
    /// `None` once a call has failed or was dropped: what that left behind is settled by opening again.
    open: Mutex<Option<Open>>,
    mark_key: String,
    stream: Template,
    maxlen: Option<u64>,
    name: String,
    patience: Duration,
}

/// What came of adding entries.
enum Added {
    All,
    /// Some can't be: their numbers among those that were tried, and why. Nothing was added.
    Not(Vec<(usize, Reason)>),
}

impl Redis {
    pub(super) fn new(open: Open, mark_key: String, options: &Options, name: &str, patience: Duration) -> Redis {
        Redis {
            open: Mutex::new(Some(open)),
            name: name.to_owned(),
            mark_key,
            stream: options.stream.clone(),
            maxlen: options.maxlen,
            patience,
        }
    }

    async fn write(&self, open: &mut Open, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let mut made = Vec::with_capacity(batch.deliveries().len());
        let there = if batch.deliveries().len() > PART {
            self.write_in_parts(open, batch, &mut made).await?
        } else {
            0
        };
        let rest = &batch.deliveries()[made.len()..];
        made.extend(rest.iter().map(|delivery| Entry::of(delivery, &self.stream)));
        if there == made.len() {
            return Ok(made.iter().map(outcome).collect());
        }
        self.refuse_what_is_too_long(open, &mut made).await?;
        loop {
            let outcomes: Vec<Outcome> = made.iter().map(outcome).collect();
            let mark = batch.mark_after(&outcomes);
            let left = || made.iter().enumerate().skip(there);
            let numbers: Vec<usize> = left().filter_map(|(at, made)| made.is_ok().then_some(at)).collect();
            let entries: Vec<&Entry<'_>> = left().filter_map(|(_, made)| made.as_ref().ok()).collect();
            match self.add(open, &entries, &mark).await? {
                Added::All => return Ok(outcomes),
                Added::Not(refused) => {
                    for (number, reason) in refused {
                        if let Some(at) = numbers.get(number) {
                            made[*at] = Err(reason);
                        }
                    }
                }
            }
        }
    }

    /// Adds a large batch part by part, each with the mark after it: while the server adds one, the next one is made and sent. A part
    /// needs the fence that the one before leaves, so where one is not added none behind it is. Gives how many entries, from the first
    /// on, are there; what there is to say of the others is found out by who adds them one script after the other.
    async fn write_in_parts<'b>(
        &'b self,
        open: &mut Open,
        batch: &'b Batch<'b>,
        made: &mut Vec<Result<Entry<'b>, Reason>>,
    ) -> Result<usize, Unavailable> {
        let (deliveries, count) = (batch.deliveries(), open.count);
        let fences: Vec<String> = (0..=deliveries.len().div_ceil(PART) as u64)
            .map(|part| open.fence(count + part))
            .collect();
        let later = Outcome::Retry {
            reason: "it is in a later part".into(),
            after: None,
        };
        let mut outcomes = vec![later; deliveries.len()];
        let session = open.session().await?;
        let mut sent = FuturesOrdered::new();
        let mut added = 0;
        for (part, deliveries) in deliveries.chunks(PART).enumerate() {
            let begin = made.len();
            made.extend(deliveries.iter().map(|delivery| Entry::of(delivery, &self.stream)));
            let entries: Vec<&Entry<'_>> = made[begin..].iter().filter_map(|made| made.as_ref().ok()).collect();
            if entries.len() < deliveries.len() || entries.iter().any(|entry| entry.longest() > BULK_LEN_SURE) {
                break;
            }
            outcomes[begin..made.len()].fill(Outcome::Delivered);
            let adding = Adding {
                mark_key: &self.mark_key,
                fence: &fences[part],
                next: &fences[part + 1],
                mark: &batch.mark_after(&outcomes),
                moment: &Timestamp::now().to_string(),
                maxlen: self.maxlen,
                entries: &entries,
            };
            let command = adding.command(true);
            sent.push_back(async move { session.run(&command).await });
            // It is sent when it is asked for the first time.
            let mut reply = match futures::poll!(sent.next()) {
                Poll::Ready(reply) => reply,
                Poll::Pending => None,
            };
            if reply.is_none() && sent.len() >= SENT_MAX {
                reply = sent.next().await;
            }
            let Some(reply) = reply else { continue };
            if !is_added(reply)? {
                break;
            }
            added += 1;
        }
        // Behind one that was not added there is none that was.
        while let Some(reply) = sent.next().await {
            added += u64::from(is_added(reply)?);
        }
        drop(sent);
        open.count = count + added;
        Ok(made.len().min(added as usize * PART))
    }

    async fn refuse_what_is_too_long(
        &self,
        open: &mut Open,
        made: &mut [Result<Entry<'_>, Reason>],
    ) -> Result<(), Unavailable> {
        let is_longer =
            |made: &Result<Entry<'_>, Reason>, len: usize| made.as_ref().is_ok_and(|entry| entry.longest() > len);
        if !made.iter().any(|made| is_longer(made, BULK_LEN_SURE)) {
            return Ok(());
        }
        let longest = open.longest().await?;
        for made in made.iter_mut().filter(|made| is_longer(made, longest)) {
            *made = Err(too_long(longest));
        }
        Ok(())
    }

    /// Adds entries and moves the mark.
    async fn add(&self, open: &mut Open, entries: &[&Entry<'_>], mark: &Mark) -> Result<Added, Unavailable> {
        let (fence, next) = (open.fence(open.count), open.fence(open.count + 1));
        let moment = Timestamp::now().to_string();
        let adding = Adding {
            mark_key: &self.mark_key,
            fence: &fence,
            next: &next,
            mark,
            moment: &moment,
            maxlen: self.maxlen,
            entries,
        };
        let reply = match open.run(&adding.command(true)).await {
            // It was restarted, or has forgotten it.
            Err(Failed::Said(said)) if said.code == "NOSCRIPT" => open.run(&adding.command(false)).await,
            reply => reply,
        };
        let answer = match reply {
            Ok(reply) => Answer::read(&reply)?,
            Err(Failed::Said(said)) => return self.not_added(open, &adding, &said).await,
            Err(Failed::Lost(unavailable)) => return Err(unavailable),
        };
        match answer {
            Answer::Added => {
                open.count += 1;
                Ok(Added::All)
            }
            Answer::Refused(number, said) => match entries.get(number) {
                // A right, or whatever else it may be, is missing for all of them.
                Some(entry) if said.is_about_an_entry() && (entry.stream_varies || !said.is_about_the_stream()) => {
                    Ok(Added::Not(vec![(number, refused("can't add it", &said))]))
                }
                _ => Err(said.unavailable()),
            },
            Answer::Others(others) => self.others(&adding, &others),
            Answer::Moved(fence) => Err(self.moved(&fence)),
            other => Err(unexpected(&other)),
        }
    }

    /// Keys that are no streams: what the event has chosen is its own fault.
    fn others(&self, adding: &Adding<'_>, others: &[(usize, String)]) -> Result<Added, Unavailable> {
        let (streams, of) = adding.streams();
        let mut refused = Vec::new();
        for (number, entry) in adding.entries.iter().enumerate() {
            let other = others.iter().find(|(key, _)| *key == of[number] + 1);
            if let Some((_, kind)) = other.filter(|_| entry.stream_varies) {
                refused.push((
                    number,
                    format!("the key of its stream holds a {kind} there, which is no stream").into(),
                ));
            }
        }
        if refused.is_empty() {
            let keys: Vec<&str> = std::iter::once(self.mark_key.as_str()).chain(streams).collect();
            return Err(taken(&keys, others));
        }
        Ok(Added::Not(refused))
    }

    /// The server did not run the script, or stopped it before it had written anything.
    async fn not_added(&self, open: &mut Open, adding: &Adding<'_>, said: &Said) -> Result<Added, Unavailable> {
        if said.is_about_length() {
            // It closes the connection; the longest is too long, whichever else is.
            let lengths = adding.entries.iter().map(|entry| entry.longest());
            let Some((number, len)) = lengths.enumerate().max_by_key(|(_, len)| *len) else {
                return Err(said.unavailable());
            };
            open.session = None;
            open.longest = Some(len.saturating_sub(1).max(BULK_LEN_SURE));
            return Ok(Added::Not(vec![(number, refused("can't read it", said))]));
        }
        if !said.may_be_about_a_key() || !adding.entries.iter().any(|entry| entry.stream_varies) {
            return Err(said.unavailable());
        }
        // The mark's own key is nobody's choice.
        let looked = open.run(&script::look(&[&self.mark_key])).await;
        looked.map_err(Failed::unavailable)?;
        let (streams, of) = adding.streams();
        let mut not_there = Vec::new();
        for stream in streams {
            let looked = open.run(&script::look(&[&self.mark_key, stream])).await;
            not_there.push(match looked {
                Err(Failed::Said(said)) if said.may_be_about_a_key() => Some(said),
                Err(failed) => return Err(failed.unavailable()),
                Ok(_) => None,
            });
        }
        let refusal = |(number, entry): (usize, &&Entry<'_>)| {
            let said = not_there[of[number]].as_ref().filter(|_| entry.stream_varies)?;
            Some((number, refused("does not let its stream be written", said)))
        };
        let refused: Vec<_> = adding.entries.iter().enumerate().filter_map(refusal).collect();
        if refused.is_empty() {
            return Err(said.unavailable());
        }
        Ok(Added::Not(refused))
    }

    fn moved(&self, fence: &str) -> Unavailable {
        if fence.is_empty() {
            return Unavailable::new(format!(
                "the mark of the sink \"{}\" is gone: was the server emptied, or did it evict the key {}?",
                self.name, self.mark_key
            ));
        }
        Unavailable::new(format!(
            "somebody else moved the mark of the sink \"{}\": does another closehook with a copy of this data directory write there, or was \
             the server put back to an earlier state?",
            self.name
        ))
    }
}

/// Whether a part was added; an error where there is no reply.
fn is_added(reply: Result<Value, Failed>) -> Result<bool, Unavailable> {
    match reply {
        Ok(reply) => Ok(matches!(Answer::read(&reply)?, Answer::Added)),
        Err(Failed::Said(_)) => Ok(false),
        Err(Failed::Lost(unavailable)) => Err(unavailable),
    }
}

fn outcome(made: &Result<Entry<'_>, Reason>) -> Outcome {
    match made {
        Ok(_) => Outcome::Delivered,
        Err(reason) => Outcome::Reject { reason: reason.clone() },
    }
}

fn too_long(longest: usize) -> Reason {
    format!("it is longer than the server takes (proto-max-bulk-len {longest})").into()
}

fn refused(what: &str, said: &Said) -> Reason {
    Reason {
        text: format!("the server {what}: {}", said.code),
        answer: Some(said.to_string()),
    }
}

#[async_trait]
impl Sink for Redis {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        // It goes back only after a commit: a call that fails or is dropped cuts the connection.
        let Some(mut open) = lock(&self.open).take() else {
            return Err(Unavailable::new(
                "the connection was given up: the sink has to be opened again",
            ));
        };
        let written = tokio::time::timeout(self.patience, self.write(&mut open, batch)).await;
        let outcomes = written.map_err(|_| silent(self.patience))??;
        *lock(&self.open) = Some(open);
        Ok(outcomes)
    }
}
