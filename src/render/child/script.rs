//! Transforms: `QuickJS`, within its own limits of memory, time and stack.
//!
//! No state goes from one event to the next. What all of them share (the global object, and everything that can be reached from it) is
//! frozen, and what could make a program out of text there is gone. The program itself is wrapped into a function that is called for
//! each event, so that its variables begin anew; what it exports by default is that function's result. For this the words `export
//! default` are written over: which of those in the text are the real ones is not guessed, for any other that is written over leaves the
//! real ones in place, and with them nothing can be wrapped. Anything it leaves behind to be done later, any fault, and any limit it
//! passes throws the whole world away.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use rquickjs::context::EvalOptions;
use rquickjs::function::This;
use rquickjs::{Array, Context, Ctx, Exception, Function, Module, Persistent, Runtime, Value};
use rustix::time::ClockId;

use super::rewrite::factory_of;
use super::used;
use crate::render::wire::Reply;
use crate::render::{Fault, MEMORY_MAX, Payload, Rendered, TIME_MAX, Transform};

/// What prepares a world and runs transforms in it.
const DRIVER: &str = include_str!("transform.js");

/// What a program's own file is called in what is said of it.
const FILE: &str = "transform.js";

/// In a module these are three operators.
const SCRIPT_COMMENT: &str = "<!--";

/// For recursion.
const STACK_MAX: usize = 1 << 20;

/// Garbage that may lie about before it is collected.
const GARBAGE_MAX: usize = 2 << 20;

/// To read a program may take longer than to run it.
const READ_WITHIN: Duration = Duration::from_secs(2);

/// When the program that runs has to end, and whether it was told to.
#[derive(Debug, Default)]
struct Alarm {
    at: Cell<Duration>,
    rang: Cell<bool>,
}

/// Where transforms run: made anew whenever something may have been left behind.
struct World {
    run: Persistent<Function<'static>>,
    explain: Persistent<Function<'static>>,
    /// By the programs' numbers.
    factories: Vec<Option<Persistent<Function<'static>>>>,
    context: Context,
    runtime: Runtime,
    /// What it takes before any event.
    at_rest: usize,
}

/// The transforms of a child, by number.
#[derive(Default)]
pub(super) struct Scripts {
    sources: Vec<Option<String>>,
    world: Option<World>,
    alarm: Rc<Alarm>,
}

impl Scripts {
    /// Reads a program. Nothing of it is run.
    pub fn add(&mut self, number: usize, transform: &Transform) -> Result<(), Fault> {
        let source = transform.source();
        self.parse_module(source)?;
        let factory = self.factory(source)?;
        if self.sources.len() <= number {
            self.sources.resize(number + 1, None);
        }
        self.sources[number] = Some(factory);
        // The new one begins with all of them.
        self.world = None;
        Ok(())
    }

    fn runtime(&self) -> Result<Runtime, Fault> {
        let runtime = Runtime::new().map_err(|_| broken("it can't be started"))?;
        runtime.set_max_stack_size(STACK_MAX);
        let alarm = self.alarm.clone();
        runtime.set_interrupt_handler(Some(Box::new(move || {
            let is_over = used(ClockId::ThreadCPUTime) >= alarm.at.get();
            alarm.rang.set(alarm.rang.get() || is_over);
            is_over
        })));
        Ok(runtime)
    }

    fn set_alarm(&self, within: Duration) {
        self.alarm.at.set(used(ClockId::ThreadCPUTime) + within);
        self.alarm.rang.set(false);
    }

    /// Whether it is a module at all: the one check whose faults have the places of the text as it is written.
    fn parse_module(&self, source: &str) -> Result<(), Fault> {
        let runtime = self.runtime()?;
        runtime.set_memory_limit(4 * MEMORY_MAX);
        let context = Context::full(&runtime).map_err(|_| broken("it can't be started"))?;
        self.set_alarm(READ_WITHIN);
        context.with(|ctx| {
            let declare = |text: &str| {
                let declared = Module::declare(ctx.clone(), FILE, text).map(drop);
                declared.map_err(|error| self.unread(&ctx, &error))
            };
            declare(source)?;
            // It is run as a script, which takes this for the beginning of a comment. What is put in its place is as good as it in texts
            // and comments, and can't be read anywhere else.
            if !source.contains(SCRIPT_COMMENT) {
                return Ok(());
            }
            declare(&source.replace(SCRIPT_COMMENT, "<!-@")).map_err(|fault| Fault {
                text: format!("{SCRIPT_COMMENT} means a comment to some and something else to others: write < ! --"),
                ..fault
            })
        })
    }

    /// The program wrapped into a function.
    pub(super) fn factory(&self, source: &str) -> Result<String, Fault> {
        let runtime = self.runtime()?;
        runtime.set_memory_limit(4 * MEMORY_MAX);
        let context = Context::full(&runtime).map_err(|_| broken("it can't be started"))?;
        self.set_alarm(READ_WITHIN);
        // Before anything could have been put in its place.
        let text_of = context.with(|ctx| {
            let text_of: Function<'_> = ctx.eval("Function.prototype.toString")?;
            Ok(Persistent::save(&ctx, text_of))
        });
        let text_of = text_of.map_err(|_: rquickjs::Error| broken("it can't be started"))?;
        let is_whole = |candidate: &str| {
            context.with(|ctx| {
                let text_of_it = || -> rquickjs::Result<String> {
                    let wrapped: Function<'_> = ctx.eval_with_options(candidate, options())?;
                    text_of.clone().restore(&ctx)?.call((This(wrapped),))
                };
                let whole = text_of_it();
                if whole.is_err() {
                    // It has to be taken, or it stays.
                    let _ = ctx.catch();
                }
                // From its first character to its last it is one function, in which all that is the program's begins anew.
                whole.is_ok_and(|whole| {
                    candidate.strip_prefix('(').and_then(|text| text.strip_suffix(')')) == Some(&*whole)
                })
            })
        };
        factory_of(source, is_whole).map_err(|text| Fault {
            text: text.to_owned(),
            ..Fault::default()
        })
    }

    /// Why a text is no program.
    fn unread(&self, ctx: &Ctx<'_>, error: &rquickjs::Error) -> Fault {
        if !error.is_exception() {
            return broken("it holds a NUL");
        }
        let thrown = ctx.catch();
        let exception = thrown.as_exception();
        let text = exception.and_then(Exception::message);
        let stack = exception.and_then(Exception::stack).unwrap_or_default();
        Fault {
            place: place(&stack, 0),
            text: if self.alarm.rang.get() {
                "it takes too long to read".to_owned()
            } else if text
                .as_deref()
                .is_some_and(|text| text.starts_with("could not load module"))
            {
                "it is to import nothing".to_owned()
            } else {
                text.unwrap_or_else(|| "it can't be read".to_owned())
            },
            ..Fault::default()
        }
    }

    /// Whether the next one runs at once.
    pub fn are_ready(&self) -> bool {
        self.world.is_some()
    }

    /// Reads all programs anew, which no event is to pay for.
    pub fn make_ready(&mut self) -> Result<(), Fault> {
        self.world().map(drop)
    }

    fn world(&mut self) -> Result<&mut World, Fault> {
        if self.world.is_none() {
            let runtime = self.runtime()?;
            let context = Context::full(&runtime).map_err(|_| broken("it can't be started"))?;
            self.set_alarm(READ_WITHIN);
            let made = context.with(|ctx| {
                let driver: Array<'_> = ctx.eval_with_options(DRIVER, EvalOptions::default()).ok()?;
                let save = |function| Persistent::save(&ctx, function);
                let factory = |source: &Option<String>| {
                    let source = source.as_deref()?;
                    ctx.eval_with_options::<Function<'_>, _>(source, options())
                        .ok()
                        .map(save)
                };
                // They were read before and are functions, of which nothing runs here: however long it takes, it ends.
                self.alarm.at.set(Duration::MAX);
                let factories = self.sources.iter().map(factory).collect();
                Some((save(driver.get(0).ok()?), save(driver.get(1).ok()?), factories))
            });
            let Some((run, explain, factories)) = made else {
                return Err(broken("its world can't be made"));
            };
            let at_rest = usize::try_from(runtime.memory_usage().malloc_size).unwrap_or_default();
            runtime.set_memory_limit(at_rest + MEMORY_MAX + GARBAGE_MAX);
            self.world = Some(World {
                run,
                explain,
                factories,
                context,
                runtime,
                at_rest,
            });
        }
        self.world.as_mut().ok_or_else(|| broken("its world can't be made"))
    }

    /// Runs a program on an event.
    pub fn run(&mut self, number: usize, event: &str, meta: &str, until: Duration) -> Reply {
        let alarm = self.alarm.clone();
        let world = match self.world() {
            Ok(world) => world,
            Err(fault) => return Reply::Fault(fault),
        };
        alarm.at.set(until);
        alarm.rang.set(false);
        world.runtime.set_gc_threshold(world.at_rest + GARBAGE_MAX);
        let reply = world.context.with(|ctx| world.call(&ctx, number, event, meta, &alarm));
        let is_clean = matches!(reply, Reply::Done(..) | Reply::Skipped) && !world.runtime.is_job_pending();
        if !is_clean {
            self.world = None;
        }
        reply
    }
}

impl World {
    fn call(&self, ctx: &Ctx<'_>, number: usize, event: &str, meta: &str, alarm: &Alarm) -> Reply {
        let called = || -> rquickjs::Result<Option<Reply>> {
            let Some(factory) = self.factories.get(number).and_then(Option::as_ref) else {
                return Ok(None);
            };
            let factory = factory.clone().restore(ctx)?;
            let run = self.run.clone().restore(ctx)?;
            let (event, meta) = (ctx.json_parse(event)?, ctx.json_parse(meta)?);
            let made: Array<'_> = run.call((factory, event, meta))?;
            read(&made).map(Some)
        };
        match called() {
            Ok(Some(reply)) => reply,
            Ok(None) => Reply::Fault(broken("it is not there")),
            Err(error) => self.why(ctx, &error, alarm),
        }
    }

    /// What was thrown, as a fault.
    fn why(&self, ctx: &Ctx<'_>, error: &rquickjs::Error, alarm: &Alarm) -> Reply {
        if !error.is_exception() {
            return Reply::Fault(broken("what it returned can't be read"));
        }
        let thrown = ctx.catch();
        if alarm.rang.get() {
            let stack = thrown.as_exception().and_then(Exception::stack);
            return Reply::Overtime(Fault {
                place: place(&stack.unwrap_or_default(), 1),
                text: format!("it took more than {} ms of the processor", TIME_MAX.as_millis()),
                ..Fault::default()
            });
        }
        let (message, stack, wanted) = self.explained(ctx, thrown).unwrap_or_default();
        if !wanted.is_empty() {
            return Reply::Fault(broken(&wanted));
        }
        if message.contains("out of memory") || message.is_empty() {
            // Its neighbours may have left it less than there is.
            return Reply::Overtime(Fault {
                place: place(&stack, 1),
                text: "it needs more than 16 MiB, or threw something that can't be shown".to_owned(),
                detail: Some(message).filter(|message| !message.is_empty()),
                ..Fault::default()
            });
        }
        let text = if message.contains("stack") && message.contains("call stack size exceeded")
            || message.contains("stack overflow")
        {
            "it went too deep: its stack is full".to_owned()
        } else {
            "it threw an error".to_owned()
        };
        Reply::Fault(Fault {
            // What is wrapped around it has a line of its own.
            place: place(&stack, 1),
            text,
            detail: Some(message).filter(|message| !message.is_empty()),
            ..Fault::default()
        })
    }

    fn explained<'js>(&self, ctx: &Ctx<'js>, thrown: Value<'js>) -> Option<(String, String, String)> {
        let explain = self.explain.clone().restore(ctx).ok()?;
        let parts: rquickjs::Result<Array<'_>> = explain.call((thrown,));
        if parts.is_err() {
            let _ = ctx.catch();
        }
        let parts = parts.ok()?;
        Some((parts.get(0).ok()?, parts.get(1).ok()?, parts.get(2).ok()?))
    }
}

fn read(made: &Array<'_>) -> rquickjs::Result<Reply> {
    let what: i32 = made.get(0)?;
    if what == 0 {
        return Ok(Reply::Skipped);
    }
    let payload: String = made.get(1)?;
    let payload = payload.into();
    let words: Array<'_> = made.get(2)?;
    let mut rendered = Rendered {
        payload: Some(if what == 1 {
            Payload::Text(payload)
        } else {
            Payload::Json(payload)
        }),
        key: made.get(3)?,
        subject: made.get(4)?,
        ..Rendered::default()
    };
    for index in (0..words.len()).step_by(2) {
        rendered.headers.insert(words.get(index)?, words.get(index + 1)?);
    }
    Ok(Reply::Done(rendered, Vec::new()))
}

fn options() -> EvalOptions {
    let mut options = EvalOptions::default();
    options.filename = Some(FILE.to_owned());
    options
}

/// Line and column of the first place in the program that a stack names, its lines counted from one after `before`.
fn place(stack: &str, before: usize) -> Option<(usize, usize)> {
    let name = format!("{FILE}:");
    let (_, rest) = stack.split_once(&name)?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(str::parse::<usize>);
    let line = numbers.next()?.ok()?.checked_sub(before).filter(|line| *line > 0)?;
    Some((line, numbers.next().and_then(Result::ok).unwrap_or(1)))
}

fn broken(text: &str) -> Fault {
    Fault {
        text: text.to_owned(),
        ..Fault::default()
    }
}
