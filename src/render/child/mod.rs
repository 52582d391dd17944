//! The child: renders what it is handed, and can do nothing else.
//!
//! Before it reads the first byte it has given up what it does not need ([`limits`]): descriptors, files, processes, privileges. Nothing
//! of the daemon's came along but its end of a pair of sockets: no environment, no open file. Then one thread renders and the other
//! watches what it uses of the processor; an event that uses more than its share ends the child, whatever it is busy with. Memory is
//! limited by the kernel, anew for each batch, to what the child holds at rest and [`crate::render::MEMORY_MAX`] beside the batch itself.
//!
//! | file | what it does |
//! |---|---|
//! | `limits` | what the child gives up |
//! | `jinja`, `value`, `filters`, `named` | templates, what they see, and what they can do with it |
//! | `exact`, `compare`, `order`, `reckon` | numbers as Close wrote them: compared, ordered and calculated with |
//! | `script`, `rewrite`, `transform.js` | transforms |

mod compare;
mod exact;
mod faults;
mod filters;
mod jinja;
mod limits;
mod named;
mod order;
mod reckon;
mod rewrite;
mod script;
mod value;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use minijinja::value::Value;
use rustix::time::{ClockId, clock_gettime};

use self::jinja::Jinja;
use self::limits::Room;
use self::script::Scripts;
use self::value::Scope;
use super::wire::{self, Item, Reader, Reply};
use super::{Fault, Payload, Program, Rendered, TIME_MAX};

/// The argument that makes a child of the program.
pub(super) const ARGUMENT: &str = "--closehook-render-child";

/// Answers are gathered so long, or up to so many bytes.
const GATHER: Duration = Duration::from_millis(20);
const GATHER_BYTES: usize = 64 << 10;

/// How often it is looked what is used of the processor, while anything is rendered.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Above what a program that looks at the clock itself may use: that one says it with its place.
const TOLERANCE: Duration = Duration::from_millis(30);

/// The thread that renders needs a stack for the deepest that is allowed.
const STACK: usize = 8 << 20;

/// Whether this process was started to be a child.
pub fn is_child() -> bool {
    std::env::args_os().nth(1).is_some_and(|argument| argument == ARGUMENT)
}

/// What the thread that watches is told.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Up to when the event in work may use the processor, in nanoseconds of this process; [`NO_EVENT`] between two, 0 where nothing is
    /// to be done.
    until: AtomicU64,
    is_over: AtomicBool,
    watcher: OnceLock<Thread>,
}

const NO_EVENT: u64 = u64::MAX;

impl Watch {
    fn set(&self, until: u64) {
        if self.until.swap(until, Ordering::Relaxed) == 0 || until == 0 {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(watcher) = self.watcher.get() {
            watcher.unpark();
        }
    }

    /// Ends the process when an event has passed its time. Returns when the other thread has ended.
    fn watch(&self) {
        while !self.is_over.load(Ordering::Acquire) {
            let until = self.until.load(Ordering::Relaxed);
            if until == 0 {
                std::thread::park();
                continue;
            }
            let limit = Duration::from_nanos(until).saturating_add(TOLERANCE);
            // Looked at once more: it may have been another event's time.
            if used(ClockId::ProcessCPUTime) >= limit && self.until.load(Ordering::Relaxed) == until {
                limits::end_for_time();
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// However the thread ends, the other one learns of it.
struct Ending(Arc<Watch>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
        self.0.wake();
    }
}

/// The whole life of a child: standard input is the daemon.
pub fn serve() -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let Ok(stream) = rustix::io::dup(std::io::stdin()) else {
        return ExitCode::FAILURE;
    };
    let watch = Arc::new(Watch::default());
    let _ = watch.watcher.set(std::thread::current());
    let (rooms, room) = std::sync::mpsc::channel::<Room>();
    let ending = Ending(watch.clone());
    let work = move || {
        // Nothing is done before the other thread has closed the doors.
        if let Ok(room) = room.recv() {
            converse(&mut UnixStream::from(stream), &ending.0, &room);
        }
    };
    if std::thread::Builder::new().stack_size(STACK).spawn(work).is_err() {
        return ExitCode::FAILURE;
    }
    match limits::close_doors() {
        Ok(room) => drop(rooms.send(room)),
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    }
    watch.watch();
    ExitCode::SUCCESS
}

/// What this process, or this thread, has used of the processor.
fn used(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// A program as it can be run.
enum Ready {
    Template(String),
    Transform,
    Broken(Fault),
}

/// Everything that is rendered with.
struct Workshop {
    jinja: Jinja,
    scripts: Scripts,
    programs: Vec<Ready>,
}

/// Answers until the other side has gone.
pub(super) fn converse(stream: &mut UnixStream, watch: &Watch, room: &Room) {
    let mut workshop = Workshop {
        jinja: Jinja::new(),
        scripts: Scripts::default(),
        programs: Vec::new(),
    };
    let Ok(mut from) = stream.try_clone() else { return };
    let mut next = || {
        room.open_wide();
        wire::read_frame(&mut from)
    };
    while let Ok(Some(frame)) = next() {
        let mut reader = Reader(&frame);
        let answered = match reader.byte() {
            Some(wire::PROGRAMS) => {
                let programs = wire::read_programs(&mut reader).unwrap_or_default();
                for program in &programs {
                    workshop.add(program);
                }
                stream.write_all(&wire::ready(None))
            }
            Some(wire::CHECK) => {
                let programs = wire::read_programs(&mut reader).unwrap_or_default();
                let wrong = programs.iter().find_map(|program| check(program).err());
                stream.write_all(&wire::ready(wrong.as_ref()))
            }
            Some(wire::NAMES) => {
                workshop
                    .jinja
                    .set_names(wire::read_names(&mut reader).unwrap_or_default());
                stream.write_all(&wire::ready(None))
            }
            Some(wire::WORK) => {
                let items = wire::read_work(&mut reader).unwrap_or_default();
                room.close_to(frame.len());
                workshop.work(&items, stream, watch, &|is_open| {
                    if is_open {
                        room.open_wide();
                    } else {
                        room.close_to(frame.len());
                    }
                })
            }
            _ => return,
        };
        watch.set(0);
        if answered.is_err() {
            return;
        }
    }
}

/// Whether a program can be read. It is forgotten at once.
fn check(program: &Program) -> Result<(), Fault> {
    caught(|| match program {
        Program::Template(template) => Jinja::new().add(0, template).map(drop),
        Program::Transform(transform) => Scripts::default().add(0, transform),
    })
    .unwrap_or_else(Err)
}

/// A panic is a fault like any other.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Fault> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panicked| {
        let said = panicked.downcast_ref::<&str>().map(ToString::to_string);
        let said = said.or_else(|| panicked.downcast_ref::<String>().cloned());
        Fault {
            text: "it made the renderer panic; this is a defect of closehook, please report it".into(),
            detail: said,
            ..Fault::default()
        }
    })
}

impl Workshop {
    fn add(&mut self, program: &Program) {
        let number = self.programs.len();
        let added = caught(|| match program {
            Program::Template(template) => self.jinja.add(number, template).map(Ready::Template),
            Program::Transform(transform) => self.scripts.add(number, transform).map(|()| Ready::Transform),
        });
        let added = added.unwrap_or_else(Err);
        self.programs.push(added.unwrap_or_else(Ready::Broken));
    }

    /// Renders one event after the other. What is done goes out before anything new takes long.
    /// `open`: memory is to be as wide as it gets, or as narrow as an event has it.
    fn work(
        &mut self,
        items: &[Item<'_>],
        stream: &mut UnixStream,
        watch: &Watch,
        open: &dyn Fn(bool),
    ) -> std::io::Result<()> {
        let mut gathered = Vec::new();
        let mut sent_at = Instant::now();
        for item in items {
            if self.has_to_be_read(item) {
                stream.write_all(&std::mem::take(&mut gathered))?;
                // Neither its time nor its memory is this event's.
                watch.set(NO_EVENT);
                open(true);
                let read = caught(|| self.scripts.make_ready()).and_then(|made| made);
                open(false);
                if let Err(fault) = read {
                    stream.write_all(&Reply::Fault(of_program(0, fault)).frame())?;
                    continue;
                }
                sent_at = Instant::now();
            }
            let until = used(ClockId::ProcessCPUTime) + TIME_MAX;
            watch.set(u64::try_from(until.as_nanos()).unwrap_or(NO_EVENT));
            let until = used(ClockId::ThreadCPUTime) + TIME_MAX;
            let mut reply = caught(|| self.render(item, until)).unwrap_or_else(Reply::Fault);
            watch.set(NO_EVENT);
            if let Some(ids) = self.jinja.take_unnamed() {
                reply = Reply::Unnamed(ids);
            }
            gathered.append(&mut reply.frame());
            if gathered.len() >= GATHER_BYTES || sent_at.elapsed() >= GATHER {
                stream.write_all(&gathered)?;
                gathered = Vec::new();
                sent_at = Instant::now();
            }
        }
        stream.write_all(&gathered)
    }

    fn has_to_be_read(&self, item: &Item<'_>) -> bool {
        let program = item.payload.and_then(|program| self.programs.get(program));
        matches!(program, Some(Ready::Transform)) && !self.scripts.are_ready()
    }

    fn render(&mut self, item: &Item<'_>, until: Duration) -> Reply {
        let scope = std::cell::LazyCell::new(|| Value::from_object(Scope::of(item.event, item.meta)));
        let mut rendered = Rendered::default();
        if let Some(program) = item.payload {
            match self.programs.get(program) {
                Some(Ready::Template(name)) => match self.jinja.render(name, &scope) {
                    Ok(text) => rendered.payload = Some(Payload::Text(text.into())),
                    Err(fault) => return Reply::Fault(of_program(0, fault)),
                },
                Some(Ready::Transform) => match self.scripts.run(program, item.event, item.meta, until) {
                    Reply::Done(made, _) => rendered = made,
                    Reply::Fault(fault) => return Reply::Fault(of_program(0, fault)),
                    Reply::Overtime(fault) => return Reply::Overtime(of_program(0, fault)),
                    Reply::Skipped => return Reply::Skipped,
                    Reply::Unnamed(ids) => return Reply::Unnamed(ids),
                },
                Some(Ready::Broken(fault)) => return Reply::Fault(of_program(0, fault.clone())),
                None => return Reply::Fault(Fault::default()),
            }
        }
        let mut texts = Vec::with_capacity(item.texts.len());
        for (index, program) in item.texts.iter().enumerate() {
            let made = match self.programs.get(*program) {
                Some(Ready::Template(name)) => self.jinja.render(name, &scope),
                Some(Ready::Broken(fault)) => Err(fault.clone()),
                Some(Ready::Transform) | None => Err(Fault::default()),
            };
            match made {
                Ok(text) => texts.push(text),
                Err(fault) => return Reply::Fault(of_program(index + 1, fault)),
            }
        }
        Reply::Done(rendered, texts)
    }
}

fn of_program(number: usize, fault: Fault) -> Fault {
    Fault {
        program: Some(number),
        ..fault
    }
}

/// The room of a child that is a thread of a test.
#[cfg(test)]
pub(super) fn unlimited() -> Room {
    Room::unlimited()
}

/// Reads what the child says until it has gone; for whoever waits for that.
pub(super) fn last_words(from: &mut impl Read) -> String {
    let mut said = vec![0; 4096];
    let len = from.read(&mut said).unwrap_or_default();
    String::from_utf8_lossy(&said[..len]).into_owned()
}

#[cfg(test)]
mod tests;
