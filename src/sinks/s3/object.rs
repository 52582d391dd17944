//! Objects that are being gathered: compressed as events come, so that they hold little.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::super::common::line;
use super::plan::{Content, Lane, Plan, State};
use crate::event::{Delivery, View};
use crate::sinks::Outcome;

/// Objects that are gathered at a time; each has a compressor. What a template of `prefix` spreads further makes smaller objects.
const OPEN_MAX: usize = 16;

/// So many objects are handed over, however little is in them: that a prefix is spread far must not make a checkpoint of thousands.
pub(super) const FULL: usize = 48;

/// Letters' objects that may be there and of which nothing came again, at the most. Those of other lanes end with what comes behind them.
const BOUND_MAX: usize = 64;

/// A key may have 1024 bytes; so much of it may be the prefix.
const PREFIX_LEN_MAX: usize = 800;

/// How objects are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Gzip,
    Zstd,
}

impl Format {
    pub(super) fn parse(text: &str) -> Option<Format> {
        match text {
            "jsonl.gz" => Some(Format::Gzip),
            "jsonl.zst" => Some(Format::Zstd),
            _ => None,
        }
    }

    /// Of an object, by its name: what was planned before the configuration changed keeps what it is called.
    pub(super) fn of(name: &str) -> Option<Format> {
        [Format::Gzip, Format::Zstd]
            .into_iter()
            .find(|format| name.ends_with(format.ending()))
    }

    fn ending(self) -> &'static str {
        match self {
            Format::Gzip => "jsonl.gz",
            Format::Zstd => "jsonl.zst",
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Format::Gzip => "application/gzip",
            Format::Zstd => "application/zstd",
        }
    }
}

enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    fn new(format: Format) -> io::Result<Encoder> {
        Ok(match format {
            Format::Gzip => Encoder::Gzip(GzEncoder::new(Vec::new(), Compression::default())),
            Format::Zstd => Encoder::Zstd(zstd::stream::write::Encoder::new(
                Vec::new(),
                zstd::DEFAULT_COMPRESSION_LEVEL,
            )?),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Encoder::Gzip(encoder) => encoder.write_all(bytes),
            Encoder::Zstd(encoder) => encoder.write_all(bytes),
        }
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Zstd(encoder) => encoder.finish(),
        }
    }
}

/// An object that is being gathered.
struct Open {
    lane: Lane,
    prefix: String,
    /// Of the first event.
    received_at: Timestamp,
    /// What may be there under the name that it has already.
    plan: Option<Plan>,
    events: Vec<(u64, [u8; 32])>,
    encoder: Encoder,
}

/// One that is whole.
pub(super) struct Sealed {
    /// Its newest content is what is here.
    pub plan: Plan,
    pub digest: String,
    pub count: usize,
    /// It was planned before the sink was opened: it may be there by an earlier try.
    pub is_again: bool,
    pub bytes: Bytes,
}

/// Whether a prefix would lead somewhere else as a part of a URL's path.
pub(super) fn has_dot_segment(prefix: &str) -> bool {
    prefix.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// Whether objects can be called so, or why not.
pub(super) fn check_prefix(prefix: &str) -> Result<(), String> {
    if prefix.len() > PREFIX_LEN_MAX {
        return Err(format!("its prefix is longer than {PREFIX_LEN_MAX} bytes"));
    }
    if has_dot_segment(prefix) {
        return Err("its prefix has \".\" or \"..\" between slashes, which no path can have".into());
    }
    Ok(())
}

/// What the name of an object begins with whose first event was received then.
pub(super) fn place(prefix: &str, received_at: Timestamp) -> String {
    let day = received_at.strftime("%Y-%m-%d");
    let prefix = prefix.trim_matches('/');
    let slash = if prefix.is_empty() { "" } else { "/" };
    format!("{prefix}{slash}dt={day}/")
}

/// Everything that is gathered, and what is known of objects that may be there.
pub(super) struct Gathered {
    epoch: String,
    format: Format,
    /// As the newest durable mark has it.
    durable: State,
    /// What of `done` did not come again yet, now.
    now: State,
    open: Vec<Open>,
    pub sealed: Vec<Sealed>,
    /// Handed over since the newest durable mark, which is before them.
    pub settled: Vec<Plan>,
}

impl Gathered {
    pub(super) fn new(epoch: String, format: Format, state: State) -> Gathered {
        Gathered {
            epoch,
            format,
            durable: state.clone(),
            now: state,
            open: Vec::new(),
            sealed: Vec::new(),
            settled: Vec::new(),
        }
    }

    /// Takes events; an error leaves something half-written, and the sink can't be used any more.
    pub(super) fn take(&mut self, deliveries: &[(Delivery, String)]) -> io::Result<Vec<Outcome>> {
        let mut text = String::new();
        deliveries
            .iter()
            .map(|(delivery, prefix)| self.take_one(delivery, prefix, &mut text))
            .collect()
    }

    fn take_one(&mut self, delivery: &Delivery, prefix: &str, text: &mut String) -> io::Result<Outcome> {
        let (lane, seq) = (Lane::of(&delivery.origin), delivery.event.seq.0);
        if let Err(why) = check_prefix(prefix) {
            return Ok(why.into());
        }
        self.forget_behind(&lane, seq);
        if self.now.done.get_mut(&lane).is_some_and(|done| done.remove(seq)) {
            return Ok(Outcome::Delivered);
        }
        let index = self.object_for(&lane, seq, prefix, delivery.event.received_at)?;
        let object = &mut self.open[index];
        text.clear();
        line::append(text, delivery);
        object.encoder.write(text.as_bytes())?;
        let key = delivery.event.view().map(View::idempotency_key).unwrap_or_default();
        object.events.push((seq, Sha256::digest(key).into()));
        Ok(Outcome::Delivered)
    }

    /// What comes in order has come up to here: what of it did not come is not wanted any more.
    fn forget_behind(&mut self, lane: &Lane, seq: u64) {
        if lane.rises() {
            self.now.plans.retain(|plan| plan.lane != *lane || plan.last() >= seq);
            self.now.done.retain(|of, done| of != lane || done.last() >= seq);
        }
        self.now.done.retain(|_, done| !done.is_empty());
        // Letters come in no order, so nothing says that one of their objects is past.
        let letters = self.now.plans.iter().filter(|plan| !plan.lane.rises()).count();
        let mut surplus = letters.saturating_sub(BOUND_MAX);
        self.now.plans.retain(|plan| {
            let goes = surplus > 0 && !plan.lane.rises();
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// The object that an event belongs to: the one that it was planned for, or that of its lane and prefix.
    fn object_for(&mut self, lane: &Lane, seq: u64, prefix: &str, received_at: Timestamp) -> io::Result<usize> {
        let is_planned = |open: &Open| open.plan.as_ref().is_some_and(|plan| plan.contains(seq));
        if let Some(index) = self.open.iter().position(|open| open.lane == *lane && is_planned(open)) {
            return Ok(index);
        }
        let planned = self
            .now
            .plans
            .iter()
            .position(|plan| plan.lane == *lane && plan.contains(seq));
        let plan = planned.map(|index| self.now.plans.remove(index));
        if plan.is_none() {
            let same = |open: &Open| open.plan.is_none() && open.lane == *lane && open.prefix == prefix;
            if let Some(index) = self.open.iter().position(same) {
                return Ok(index);
            }
        }
        if self.open.len() >= OPEN_MAX {
            // The fullest, or each event of a prefix that is spread far would be an object.
            let sizes = self.open.iter().map(|open| open.events.len()).enumerate();
            let fullest = sizes.max_by_key(|(_, len)| *len).map_or(0, |(index, _)| index);
            let fullest = self.open.swap_remove(fullest);
            self.seal(fullest)?;
        }
        let format = plan.as_ref().and_then(|plan| Format::of(&plan.name));
        self.open.push(Open {
            lane: lane.clone(),
            prefix: prefix.to_owned(),
            received_at,
            plan,
            events: Vec::new(),
            encoder: Encoder::new(format.unwrap_or(self.format))?,
        });
        Ok(self.open.len() - 1)
    }

    fn seal(&mut self, open: Open) -> io::Result<()> {
        let count = open.events.len();
        let content = Content::of(open.events);
        let digest = content.digest.clone();
        let is_again = open.plan.is_some();
        let mut plan = open.plan.unwrap_or_else(|| Plan {
            name: self.name(&open.lane, &open.prefix, open.received_at, &content),
            lane: open.lane,
            tried: Vec::new(),
        });
        plan.add(content);
        self.sealed.push(Sealed {
            plan,
            digest,
            count,
            is_again,
            bytes: open.encoder.finish()?.into(),
        });
        Ok(())
    }

    fn name(&self, lane: &Lane, prefix: &str, received_at: Timestamp, content: &Content) -> String {
        let (job, epoch) = (lane.job(Timestamp::now()), &self.epoch);
        let (first, last) = (content.seqs.first(), content.seqs.last());
        let base = format!("{}{epoch}-{job}{first}-{last}", place(prefix, received_at));
        let ending = self.format.ending();
        let mut name = format!("{base}.{ending}");
        let mut number = 1;
        while self.is_in_use(&name) {
            number += 1;
            name = format!("{base}-{number}.{ending}");
        }
        name
    }

    fn is_in_use(&self, name: &String) -> bool {
        let sealed = self.sealed.iter().map(|sealed| &sealed.plan);
        // Those of the durable mark may still arrive, whether or not anything of them came again.
        let known = self.now.plans.iter().chain(&self.durable.plans);
        let mut plans = self.settled.iter().chain(sealed).chain(known);
        self.durable.taken.contains(name) || plans.any(|plan| plan.name == *name)
    }

    /// Objects that the next checkpoint hands over, as it is now.
    pub(super) fn owed(&self) -> usize {
        self.open.len() + self.sealed.len()
    }

    /// Makes whole what is gathered, and says what is about to be there; `None`: nothing is.
    pub(super) fn plan(&mut self) -> io::Result<Option<State>> {
        for open in std::mem::take(&mut self.open) {
            self.seal(open)?;
        }
        if self.sealed.is_empty() {
            return Ok(None);
        }
        // The mark that this is saved with is the one before all of it: what that one knows holds as long.
        let sealed = self.sealed.iter().map(|sealed| &sealed.plan);
        let mut plans: Vec<Plan> = self.settled.iter().chain(sealed).cloned().collect();
        for plan in &self.durable.plans {
            if !plans.iter().any(|other| other.name == plan.name) {
                plans.push(plan.clone());
            }
        }
        Ok(Some(State {
            plans,
            ..self.durable.clone()
        }))
    }

    /// What holds with the mark that is behind everything that was handed over.
    pub(super) fn after(&mut self) -> State {
        if !self.settled.is_empty() {
            self.now.taken.clear();
        }
        self.now.clone()
    }

    /// That mark is durable.
    pub(super) fn committed(&mut self) {
        self.durable = self.now.clone();
        self.settled.clear();
    }
}
