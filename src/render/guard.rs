//! Looks after the child that renders: starts it, hands it work, and judges its end.
//!
//! A thread of its own owns the child, and starts one when there is something to do: the kernel ends a child with the thread that
//! started it, so that none outlives the daemon. Events go over in batches; answers come back in order. When the child dies, what it has
//! answered stands, and a new one gets the rest, one event at a time, until the one that kills it is found. That event is at fault if the
//! child died by its own doing, twice. A child that was ended from outside, or that neither answers nor uses the processor, says nothing
//! about any event: whoever waits is told that nothing can be rendered now.

mod running;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::wire::{self, Item, Reply};
use super::{Fault, NameBook, Program, Rendered, Template};
use crate::task;
use running::{End, Running};

/// Events that go over at a time, and bytes of them, roughly.
const BATCH_EVENTS: usize = 512;
const BATCH_BYTES: usize = 1 << 20;

/// Of more bytes than these, no more is made at a time: it is all in memory until it is delivered.
const MADE_MAX: usize = 32 << 20;

/// What is made within this goes out, and the rest is asked for again: a receiver need not wait for a slow program to be through with all.
const MADE_WITHIN: Duration = Duration::from_secs(5);

/// A child that has nothing to do for so long is let go.
const IDLE: Duration = Duration::from_secs(60);

/// One that only checked a program is let go sooner.
const IDLE_CHECK: Duration = Duration::from_secs(1);

/// So many children may end one after the other without a word about an event.
const VAIN_MAX: usize = 3;

/// Programs that a child holds at the most.
const PROGRAMS_MAX: usize = 1024;

/// Who has too many orders waits.
const ORDERS_MAX: usize = 1024;

/// An event, and what is to be made of it.
#[derive(Debug, Clone)]
pub struct Job {
    /// What makes the payload, if anything does.
    pub payload: Option<Program>,
    /// The keys that are templates, by name.
    pub texts: Arc<[(String, Template)]>,
    /// The event object, as JSON text.
    pub event: String,
    /// What else a template sees, as a JSON object.
    pub meta: String,
}

/// What was made of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// This.
    Rendered(Rendered),
    /// Its transform wants nothing delivered.
    Skipped,
    /// Nothing: there is something wrong with it, or with the program.
    Fault(Fault),
}

impl Made {
    /// About how much memory it takes.
    fn len(&self) -> usize {
        let texts = |texts: &std::collections::BTreeMap<String, String>| -> usize {
            texts.iter().map(|(name, text)| name.len() + text.len()).sum()
        };
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        match self {
            Made::Rendered(rendered) => {
                let payload = rendered.payload.as_ref().map_or(0, |payload| payload.bytes().len());
                let words = optional(&rendered.key) + optional(&rendered.subject);
                payload + texts(&rendered.headers) + texts(&rendered.texts) + words
            }
            Made::Skipped => 0,
            Made::Fault(fault) => fault.text.len() + optional(&fault.detail),
        }
    }
}

/// Nothing can be rendered now, whatever the event. One sentence for people, with what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Stuck(pub String);

enum Order {
    Render(Vec<Job>, oneshot::Sender<Result<Vec<Made>, Stuck>>),
    Check(Program, mpsc::Sender<Result<(), Fault>>),
}

/// Has events rendered. Nothing runs until the first one comes; all of it ends with the last clone.
#[derive(Debug, Clone)]
pub struct Guard {
    /// To the thread that owns the child, once there is one.
    orders: Arc<Mutex<Option<Arc<mpsc::SyncSender<Order>>>>>,
    names: Arc<NameBook>,
    /// What is started; `None`: this program anew.
    program: Option<PathBuf>,
}

impl Guard {
    /// One with a child of its own. `names` are those that its templates see, as they are when a batch begins.
    pub fn new(names: Arc<NameBook>) -> Guard {
        Guard {
            orders: Arc::default(),
            names,
            program: None,
        }
    }

    /// One whose child is another program than this one: closehook itself, for whoever is not.
    #[must_use]
    pub fn starting(mut self, program: PathBuf) -> Guard {
        self.program = Some(program);
        self
    }

    fn orders(&self) -> Result<Arc<mpsc::SyncSender<Order>>, Stuck> {
        let mut known = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(orders) = &*known {
            return Ok(orders.clone());
        }
        let (sender, orders) = mpsc::sync_channel(ORDERS_MAX);
        let mut keeper = Keeper {
            names: self.names.clone(),
            program: self.program.clone(),
            child: None,
            vain: 0,
        };
        let work = move || keeper.work(&orders);
        task::begin_thread("render", work)
            .map_err(|error| Stuck(format!("nothing can be rendered: a thread can't be started: {error}")))?;
        Ok(known.insert(Arc::new(sender)).clone())
    }

    /// The thread behind these orders has ended, which only a panic makes it do: the next order begins another one.
    fn ended(&self, orders: &Arc<mpsc::SyncSender<Order>>) -> Stuck {
        let mut known = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_some_and(|known| Arc::ptr_eq(known, orders)) {
            tracing::error!(
                "the thread that has events rendered has ended; it is begun anew; this is a defect of closehook, please report it"
            );
            *known = None;
        }
        Stuck("nothing can be rendered: what does it has ended; it is begun anew".into())
    }

    /// What its templates know custom fields by.
    pub fn names(&self) -> &NameBook {
        &self.names
    }

    /// Renders these, in order; of many that come to much, only the first ones, but one at least.
    pub async fn render(&self, jobs: Vec<Job>) -> Result<Vec<Made>, Stuck> {
        let (answer, made) = oneshot::channel();
        let orders = self.orders()?;
        match orders.try_send(Order::Render(jobs, answer)) {
            Ok(()) => made.await.map_err(|_| self.ended(&orders))?,
            Err(mpsc::TrySendError::Disconnected(_)) => Err(self.ended(&orders)),
            Err(mpsc::TrySendError::Full(_)) => Err(Stuck("nothing can be rendered now: too much waits for it".into())),
        }
    }
}

/// Whether a program can be read. Blocks for as long as that takes, which is a child's start and little more.
pub(super) fn check(program: &Program) -> Result<(), Fault> {
    static CHECKING: Mutex<Option<Guard>> = Mutex::new(None);
    let guard = {
        let mut checking = CHECKING.lock().unwrap_or_else(PoisonError::into_inner);
        checking.get_or_insert_with(|| Guard::new(Arc::default())).clone()
    };
    let stuck = |stuck: Stuck| Fault {
        text: format!("it can't be checked: {stuck}"),
        ..Fault::default()
    };
    let (answer, checked) = mpsc::channel();
    let order = Order::Check(program.clone(), answer);
    let orders = guard.orders().map_err(stuck)?;
    let sent = orders.send(order);
    sent.map_err(|_| stuck(guard.ended(&orders)))?;
    checked.recv().map_err(|_| stuck(guard.ended(&orders)))?
}

/// Owns the child.
struct Keeper {
    names: Arc<NameBook>,
    program: Option<PathBuf>,
    child: Option<Running>,
    vain: usize,
}

impl Keeper {
    fn work(&mut self, orders: &mpsc::Receiver<Order>) {
        let mut idle = IDLE;
        loop {
            match orders.recv_timeout(idle) {
                Ok(Order::Render(jobs, answer)) => {
                    idle = IDLE;
                    let made = self.render(&jobs, || answer.is_closed());
                    let _ = answer.send(made);
                }
                Ok(Order::Check(program, answer)) => {
                    idle = IDLE_CHECK;
                    let _ = answer.send(self.check(&program));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => self.child = None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// A child that has these programs and the names of now.
    fn child(&mut self, programs: &[&Program]) -> Result<&mut Running, End> {
        // Nearly always even all of them would have room.
        let is_full = |child: &Running| {
            let has_room = |more: usize| child.programs.len() + more <= PROGRAMS_MAX;
            !has_room(programs.len()) && !has_room(child.lacking(programs).len())
        };
        if self.child.as_ref().is_some_and(is_full) {
            self.child = None;
        }
        if self.child.is_none() {
            let started = self.program.as_deref().map_or_else(Running::start, Running::of_program);
            self.child = Some(started.map_err(|error| End::FromOutside(format!("it can't be started: {error}")))?);
        }
        let names = self.names.now();
        let prepared = self
            .child
            .as_mut()
            .map_or(Ok(()), |child| child.prepare(programs, &names));
        prepared.map_err(|error| match self.ended(&error) {
            // No event was in work.
            End::ByItself(why) => End::FromOutside(format!("with its programs it {why}")),
            end => end,
        })?;
        self.child.as_mut().ok_or(End::Stalled)
    }

    /// The conversation broke off: how the child ended, and that there is none any more.
    fn ended(&mut self, error: &io::Error) -> End {
        let is_late = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        match self.child.take() {
            Some(_) if is_late => End::Stalled,
            Some(child) => child.end(),
            None => End::FromOutside("there is none".to_owned()),
        }
    }

    /// Nobody's fault: again, but not for ever.
    fn in_vain(&mut self, end: End) -> Result<(), Stuck> {
        let (why, wait) = match end {
            End::ByItself(why) => (format!("it ended before any event: {why}"), false),
            End::FromOutside(why) => (why, false),
            End::Stalled => (
                "it does not answer: the machine stands still, or is far too busy".to_owned(),
                true,
            ),
        };
        self.vain += 1;
        if wait || self.vain >= VAIN_MAX {
            self.vain = 0;
            let advice = "see that /proc is there and that the service may start processes and use 64 MiB more memory";
            return Err(Stuck(format!(
                "nothing can be rendered now, the process that does it fails: {why}; {advice}"
            )));
        }
        Ok(())
    }

    fn check(&mut self, program: &Program) -> Result<(), Fault> {
        let mut died = false;
        loop {
            let asked = match self.child(&[]) {
                Ok(child) => {
                    let asked = child.ask(&wire::programs(wire::CHECK, &[program]));
                    asked.map_err(|error| self.ended(&error))
                }
                Err(end) => Err(end),
            };
            let fault = |text: String| Fault {
                text,
                ..Fault::default()
            };
            match asked {
                Ok(checked) => return checked,
                Err(End::ByItself(why)) if died => return Err(fault(format!("to read it {why}"))),
                Err(End::ByItself(_)) => died = true,
                Err(end) => self.in_vain(end).map_err(|stuck| fault(stuck.0))?,
            }
        }
    }

    /// Of the first jobs, as many as are asked for at a time, what is made of them. `is_left`: nobody waits for it any more.
    fn render(&mut self, jobs: &[Job], is_left: impl Fn() -> bool) -> Result<Vec<Made>, Stuck> {
        let mut made: Vec<Option<Made>> = vec![None; jobs.len()];
        // Those whose time was over once, or which were alone or among others with a child that died.
        let mut suspected = vec![false; jobs.len()];
        let mut open: VecDeque<usize> = (0..jobs.len()).collect();
        let mut len = 0;
        let began = Instant::now();
        let goes_on = |len: usize| len < MADE_MAX && began.elapsed() < MADE_WITHIN;
        let mut waits_for_names = None;
        // The first one is done in any case, else nothing ever would be.
        while let Some(first) = open.front().copied()
            && (first == 0 || goes_on(len))
            && waits_for_names.is_none()
        {
            if is_left() {
                return Err(Stuck("nobody waits for it".into()));
            }
            let batch = batch(jobs, &open, &suspected);
            let (mut answered, mut unnamed) = (0, None::<Vec<String>>);
            let names = self.names.now();
            let end = self.converse(jobs, &batch, |reply| {
                let index = batch[answered];
                answered += 1;
                made[index] = made_of(reply, &jobs[index], &mut suspected[index], &mut unnamed);
                len += made[index].as_ref().map_or(0, Made::len);
                goes_on(len) && !is_left()
            });
            if answered > 0 {
                self.vain = 0;
            }
            match end {
                Ok(()) => {}
                Err(End::ByItself(why)) if answered < batch.len() => {
                    if batch.len() == 1 && suspected[first] {
                        made[first] = Some(Made::Fault(Fault {
                            program: self.culprit(&jobs[first]),
                            text: format!("it {why}"),
                            ..Fault::default()
                        }));
                    }
                    batch[answered..].iter().for_each(|index| suspected[*index] = true);
                }
                Err(end) => self.in_vain(end)?,
            }
            open.retain(|index| made[*index].is_none());
            if let Some(ids) = unnamed {
                self.names.ask(ids);
                // Where others have come meanwhile, these may be among them.
                waits_for_names = Arc::ptr_eq(&names, &self.names.now()).then(|| names.waiting());
            }
        }
        let made: Vec<Made> = made.into_iter().map_while(|made| made).collect();
        match waits_for_names {
            // What is in front of it goes.
            Some(why) if made.is_empty() => Err(Stuck(why)),
            _ => Ok(made),
        }
    }

    /// Which of an event's programs it is that a child dies of; `None`: all of them together, or none this time.
    fn culprit(&mut self, job: &Job) -> Option<usize> {
        let alone = |payload: Option<Program>, texts: &[(String, Template)]| Job {
            payload,
            texts: texts.into(),
            ..job.clone()
        };
        let payload = job.payload.iter().map(|program| (0, alone(Some(program.clone()), &[])));
        let texts = job.texts.chunks(1).enumerate();
        let texts = texts.map(|(index, text)| (index + 1, alone(None, text)));
        let mut parts: Vec<(usize, Job)> = payload.chain(texts).collect();
        if parts.len() == 1 {
            return parts.pop().map(|(number, _)| number);
        }
        for (number, part) in parts {
            match self.converse(&[part], &[0], |_| true) {
                Ok(()) => {}
                Err(End::ByItself(_)) => return Some(number),
                Err(_) => return None,
            }
        }
        None
    }

    /// Hands over a batch, and hears what comes back, as long as more of it is wanted.
    fn converse(&mut self, jobs: &[Job], batch: &[usize], mut hear: impl FnMut(Reply) -> bool) -> Result<(), End> {
        let of = |index: &usize| {
            let job = &jobs[*index];
            job.payload
                .iter()
                .cloned()
                .chain(job.texts.iter().map(|(_, text)| Program::Template(text.clone())))
        };
        let programs: Vec<Program> = batch.iter().flat_map(of).collect();
        let wanted: Vec<&Program> = programs.iter().collect();
        let child = self.child(&wanted)?;
        let mut numbers = wanted.iter().map(|program| child.number(program));
        let items: Vec<Item<'_>> = batch
            .iter()
            .map(|index| {
                let job = &jobs[*index];
                Item {
                    payload: job.payload.as_ref().and_then(|_| numbers.next().flatten()),
                    texts: job
                        .texts
                        .iter()
                        .map(|_| numbers.next().flatten().unwrap_or(usize::MAX))
                        .collect(),
                    event: &job.event,
                    meta: &job.meta,
                }
            })
            .collect();
        drop(numbers);
        let mut talk = || {
            child.stream.write_all(&wire::work(&items))?;
            for heard in 1..=items.len() {
                let frame = wire::read_frame(&mut child.answers)?.ok_or(io::ErrorKind::UnexpectedEof)?;
                if !hear(Reply::read(&frame).ok_or(io::ErrorKind::InvalidData)?) {
                    return Ok(heard == items.len());
                }
            }
            Ok(true)
        };
        let is_whole = talk().map_err(|error: io::Error| self.ended(&error))?;
        if !is_whole {
            // It would go on, and say things that nobody wants to hear.
            self.child = None;
        }
        Ok(())
    }
}

/// What goes over next: one that is suspected goes alone.
fn batch(jobs: &[Job], open: &VecDeque<usize>, suspected: &[bool]) -> Vec<usize> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    for index in open.iter().copied().take(BATCH_EVENTS) {
        if !batch.is_empty() && (suspected[index] || bytes >= BATCH_BYTES) {
            break;
        }
        bytes += jobs[index].event.len() + jobs[index].meta.len();
        batch.push(index);
        if suspected[index] {
            break;
        }
    }
    batch
}

/// What an answer says was made of a job; `None`: it is asked for again.
fn made_of(reply: Reply, job: &Job, is_suspected: &mut bool, unnamed: &mut Option<Vec<String>>) -> Option<Made> {
    match reply {
        Reply::Overtime(_) if !*is_suspected => {
            *is_suspected = true;
            None
        }
        Reply::Unnamed(ids) => {
            unnamed.get_or_insert_with(Vec::new).extend(ids);
            None
        }
        Reply::Overtime(fault) | Reply::Fault(fault) => Some(Made::Fault(fault)),
        Reply::Skipped => Some(Made::Skipped),
        Reply::Done(rendered, texts) => Some(Made::Rendered(with_texts(rendered, texts, job))),
    }
}

fn with_texts(mut rendered: Rendered, texts: Vec<String>, job: &Job) -> Rendered {
    let names = job.texts.iter().map(|(name, _)| name.clone());
    rendered.texts = names.zip(texts).collect();
    rendered
}

#[cfg(test)]
mod tests;
