//! The command line: one file per command, one way to reach the data (a running daemon, else the directory itself), one way to
//! report.
//!
//! Exit codes: 0 done; 1 the work failed or found something wrong; 2 bad usage or configuration; 141 standard output was closed before
//! all was said.

mod backfill;
mod backup;
mod check;
mod connect;
#[cfg_attr(not(feature = "engine-jetstream"), path = "copy_alone.rs")]
mod copy;
mod copy_args;
mod dead;
mod events;
mod filter;
mod handover;
mod help;
mod init;
mod interrupt;
mod introduced;
mod kinds;
mod left;
mod listen;
mod listing;
mod log;
mod output;
mod packaging;
mod paint;
mod pick;
mod privilege;
mod reload;
mod render;
mod replay;
mod report;
mod rules;
mod samples;
mod shown;
mod sink_types;
mod sinks;
mod status;
mod subscription;
mod term;
mod trigger;
mod when;

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgAction, Args, FromArgMatches, Parser, Subcommand};
use serde::Serialize;
use serde_json::Value;
pub(crate) use term::table;

use crate::config::{Config, Fault, Layers};
use crate::json;
use crate::listener::sockets::Inherited;
use crate::plain;
use crate::task;
use crate::telemetry::logging;

const DEFAULT_CONFIG: &str = "/etc/closehook/closehook.toml";

/// Names another one, unless it is empty.
const CONFIG_VARIABLE: &str = "CLOSEHOOK_CONFIG";

/// Receives Close CRM webhooks, keeps every event, and delivers each one by rules.
#[derive(Debug, Parser)]
#[command(
    name = "closehook",
    version,
    propagate_version = true,
    disable_help_flag = true,
    disable_version_flag = true,
    max_term_width = help::WIDTH,
    after_help = AFTER_HELP
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "Set it up on a server:
  closehook init

Try it, from a checkout:
  closehook -c config/quickstart.toml serve
  closehook -c config/quickstart.toml trigger unsubscribed_email.created
  closehook -c config/quickstart.toml events list

Exit codes: 0 done; 1 the work failed or found something wrong; 2 bad usage or configuration; 141 whoever read the output closed
it before its end (as head does).";

/// The heading of what every command takes.
const GLOBAL: &str = "Global options";

/// Flags every command has.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Configuration file; an empty variable counts as none
    #[arg(short, long, global = true, env = CONFIG_VARIABLE, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    #[arg(help_heading = GLOBAL, hide_env_values = true)]
    config: PathBuf,
    /// Machine-readable output: one JSON value, or JSON lines
    #[arg(long, global = true, help_heading = GLOBAL)]
    json: bool,
    /// How log lines look: for people, or as JSON; default: text, or json with --json
    #[arg(long, global = true, value_enum, value_name = "text|json")]
    #[arg(help_heading = GLOBAL, hide_possible_values = true)]
    log_format: Option<logging::Format>,
    /// Log more (twice: everything)
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = GLOBAL)]
    verbose: u8,
    /// Print help
    #[arg(short, long, global = true, action = ArgAction::Help, help_heading = GLOBAL)]
    help: Option<bool>,
    /// Print the version
    #[arg(short = 'V', long, global = true, action = ArgAction::Version, help_heading = GLOBAL)]
    version: Option<bool>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon until SIGTERM or SIGINT
    #[command(
        after_help = "SIGHUP reloads rules, sinks, keys and certificates; if the new configuration is bad, the old one stays.

Example:
  closehook serve -c config/quickstart.toml"
    )]
    Serve,
    Init(init::Init),
    Check(check::Check),
    Trigger(trigger::Trigger),
    Listen(listen::Listen),
    Filter(filter::Filter),
    #[command(subcommand)]
    Rules(rules::Rules),
    Render(render::Render),
    #[command(subcommand)]
    Events(events::Events),
    Replay(replay::Replay),
    #[command(subcommand)]
    Dead(dead::Dead),
    #[command(subcommand)]
    Sinks(sinks::Sinks),
    #[command(subcommand)]
    Log(log::Log),
    Backup(backup::Backup),
    Restore(backup::Restore),
    Status(status::Status),
    Reload(reload::Reload),
    #[command(subcommand)]
    Subscription(subscription::Subscription),
    Backfill(backfill::Backfill),
    Completions(packaging::Completions),
    Man(packaging::Man),
}

impl Command {
    /// The data directory that the command may change; `None`: it only looks, or the daemon is it.
    fn changes(&self, global: &Global) -> Result<Option<PathBuf>, Failure> {
        let changes = match self {
            Command::Restore(restore) => return restore.makes(global),
            Command::Check(check) => return Ok(check.changes(global)),
            Command::Serve | Command::Replay(_) | Command::Subscription(_) | Command::Backfill(_) => true,
            Command::Dead(dead) => dead.changes(),
            Command::Sinks(sinks) => sinks.changes(),
            Command::Log(log) => log.changes(),
            _ => false,
        };
        Ok(if changes { Some(global.load()?.log.dir) } else { None })
    }
}

/// How a command ended, where it did not simply succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Exit code 1, nothing more to say.
    Found,
    /// Exit code 1.
    Work(String),
    /// Exit code 2.
    Usage(String),
    /// Exit code 2, one line for each.
    Faults(Vec<Fault>),
    /// Exit code 1, one line for each: the configuration is bad, and what runs goes on with the old one.
    Unchanged(Vec<Fault>),
    /// Whoever read our output has closed it: exit code 141, as of a program that SIGPIPE ends, and nothing is said.
    Unread,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Work(crate::causes::said(&error))
    }
}

impl From<String> for Failure {
    fn from(error: String) -> Failure {
        Failure::Work(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Work(error.to_string())
    }
}

/// What is said where standard output does not take what is written to it. Whoever closed it has read enough; of any other pipe that
/// would be no reason to be quiet.
pub(crate) fn unwritten(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Unread,
        _ => output::cant(Path::new("standard output"), error),
    }
}

pub(crate) type Outcome = Result<(), Failure>;

impl Global {
    /// Whoever reads JSON on one stream reads it on the other.
    fn log_format(&self) -> logging::Format {
        self.log_format.unwrap_or(if self.json {
            logging::Format::Json
        } else {
            logging::Format::Text
        })
    }

    /// Where the configuration comes from.
    fn layers(&self) -> Layers {
        Layers {
            file: Some(self.config.clone()),
            environment: std::env::vars_os().collect(),
            ..Layers::new(crate::sinks::REGISTRY, crate::rules::faults)
        }
    }

    /// The same for a command that does without a configuration: the default file may be missing.
    fn layers_that_are_there(&self) -> Layers {
        let is_missing = self.config == Path::new(DEFAULT_CONFIG) && !self.config.exists();
        Layers {
            file: (!is_missing).then(|| self.config.clone()),
            ..self.layers()
        }
    }

    /// Reads the configuration, or ends the command with every fault in it.
    fn load(&self) -> Result<Config, Failure> {
        Config::load(&self.layers()).map_err(Failure::Faults)
    }

    /// Prints a value: as JSON with `--json`, else as `text` makes it.
    fn print<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Outcome {
        let line = if self.json { json_line(value)? } else { text(value) };
        print_line(&line)
    }
}

/// A value as a line of JSON. What is in it as somebody else wrote it may have line ends and tabs between its tokens.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<String, Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::Work(error.to_string()))?;
    if let Cow::Owned(line) = json::on_one_line(&text) {
        return Ok(line);
    }
    Ok(text)
}

/// What stands for a value in JSON, for people: the word of an enum, a number.
pub(crate) fn word<T: Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => plain::line(&text).into_owned(),
        Ok(Value::Null) | Err(_) => String::new(),
        Ok(other) => other.to_string(),
    }
}

/// Prints a line (or several of our own making); a closed pipe ends the command ([`Failure::Unread`]). What somebody else wrote into it moves no
/// terminal; JSON stays JSON that says the same.
pub(crate) fn print_line(line: &str) -> Outcome {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{}", plain::lines(line)).and_then(|()| out.flush());
    written.map_err(|error| unwritten(&error))
}

/// A text that others wrote, for people, on one line; `None` where it is no text.
pub(crate) fn said(value: &Value) -> Option<String> {
    value.as_str().map(|text| plain::line(text).into_owned())
}

/// A field of an answer as text for people, on one line; nothing where it is missing or null.
pub(crate) fn field(value: &Value, name: &str) -> String {
    match &value[name] {
        Value::Null => String::new(),
        Value::String(text) => plain::line(text).into_owned(),
        other => other.to_string(),
    }
}

/// Parses, runs, and says how it ended.
pub fn main() -> ExitCode {
    let parsed = help::command().try_get_matches();
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    let serving = matches!(cli.command, Command::Serve);
    // Started anew, it would be called after the file it was started from. Without it everything works.
    let _ = rustix::thread::set_name(c"closehook");
    if serving {
        // The first of these may start the program anew.
        crate::allocator::fix_limit();
        keep_memory_private();
    }
    logging::install(
        cli.global.log_format(),
        cli.global.verbose,
        if serving { "info" } else { "warn" },
    );
    let json = cli.global.json;
    run(cli).map_or_else(|failure| ended(failure, json), |()| ExitCode::SUCCESS)
}

/// Says why a command has not simply succeeded; gives its exit code.
fn ended(failure: Failure, json: bool) -> ExitCode {
    let (code, text) = report::told(failure, json);
    report::say(&text);
    ExitCode::from(code)
}

/// Says what is wrong with the arguments, or what was asked for: help is no fault.
fn misused(error: &clap::Error) -> ExitCode {
    if let Some(line) = report::usage(error, report::wants_json()) {
        report::say(&line);
        return ExitCode::from(2);
    }
    let text = error.render().to_string();
    // An argument may have been copied from anywhere, and stands in what is said of it.
    let plain = plain::lines(&text);
    if matches!(plain, Cow::Borrowed(_)) {
        if error.use_stderr() {
            error.exit();
        }
        // What was asked for, and is on its way to whoever reads it like any other answer.
        let written = error.print().and_then(|()| io::stdout().flush());
        return written.map_or_else(
            |error| ended(unwritten(&error), report::wants_json()),
            |()| ExitCode::SUCCESS,
        );
    }
    let _ = io::stderr().lock().write_all(plain.as_bytes());
    ExitCode::from(2)
}

/// Keys and bodies are in the daemon's memory: the kernel must not write it to disk when the daemon crashes, nor show it to
/// other processes of its user.
fn keep_memory_private() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    // Without it the daemon still works.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

fn run(cli: Cli) -> Outcome {
    let global = cli.global;
    match cli.command {
        Command::Completions(command) => return command.run(),
        Command::Man(command) => return command.run(),
        Command::Filter(command) => return command.run(&global),
        _ => {}
    }
    // Before there are threads: it changes the environment.
    let inherited = match cli.command {
        Command::Serve => Inherited::take().map_err(Failure::Usage)?,
        _ => Inherited::default(),
    };
    if let Some(dir) = cli.command.changes(&global)? {
        privilege::become_owner_of(&dir)?;
    }
    // Before anything is opened: a log is many files.
    crate::log::raise_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Work(format!("the runtime can't be started: {error}")))?;
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Serve => {
                let config = check::valid(&global.layers()).map_err(Failure::Faults)?;
                let faults = check::startup_faults(&config);
                if !faults.is_empty() {
                    return Err(Failure::Faults(faults));
                }
                task::begin(crate::reap::run());
                Ok(Box::pin(crate::app::run(global.layers(), config, inherited)).await?)
            }
            Command::Init(command) => command.run(&global).await,
            Command::Check(command) => command.run(&global).await,
            Command::Trigger(command) => command.run(&global).await,
            Command::Listen(command) => command.run(&global).await,
            Command::Rules(command) => command.run(&global).await,
            Command::Render(command) => command.run(&global).await,
            Command::Events(command) => command.run(&global).await,
            Command::Replay(command) => command.run(&global).await,
            Command::Dead(command) => command.run(&global).await,
            Command::Sinks(command) => command.run(&global).await,
            Command::Log(command) => command.run(&global).await,
            Command::Backup(command) => command.run(&global).await,
            Command::Restore(command) => command.run(&global).await,
            Command::Status(command) => command.run(&global).await,
            Command::Reload(command) => command.run(&global).await,
            Command::Subscription(command) => command.run(&global).await,
            Command::Backfill(command) => command.run(&global).await,
            Command::Completions(_) | Command::Man(_) | Command::Filter(_) => Ok(()),
        }
    });
    // A thread that still copies or waits must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}
