//! A child that renders while it runs: what it holds, what it is asked, and how it ended.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::super::wire;
use super::super::{Fault, MEMORY_MAX, Names, Program, TIME_MAX, child};
use crate::reap;

/// By the clock on the wall a child may take so long for what takes a tenth of a second of the processor. Beyond, the machine stands
/// still.
const PATIENCE: Duration = Duration::from_secs(30);

/// A child that has broken off the conversation ends within so long, or is ended.
const ENDING: Duration = Duration::from_secs(5);

/// How a conversation with a child came to its end.
pub(super) enum End {
    /// By what it was doing. With what it passed.
    ByItself(String),
    /// By something else.
    FromOutside(String),
    /// It stands still.
    Stalled,
}

/// A child that runs.
pub(super) struct Running {
    process: Option<(Child, reap::Ours)>,
    stderr: Option<ChildStderr>,
    pub stream: UnixStream,
    pub answers: io::BufReader<UnixStream>,
    /// Those that it holds, in order.
    pub programs: Vec<Program>,
    names: Arc<Names>,
}

impl Running {
    #[cfg(not(test))]
    pub fn start() -> io::Result<Running> {
        Running::of_program(Path::new("/proc/self/exe"))
    }

    /// In this module's own tests there is no program that could be started anew: a thread without limits stands in.
    #[cfg(test)]
    pub fn start() -> io::Result<Running> {
        let (ours, mut theirs) = UnixStream::pair()?;
        let work = move || child::converse(&mut theirs, &child::Watch::default(), &child::unlimited());
        std::thread::Builder::new().stack_size(8 << 20).spawn(work)?;
        Running::over(ours, None, None)
    }

    pub fn of_program(program: &Path) -> io::Result<Running> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(program);
        // It is called so in a list of processes too.
        std::os::unix::process::CommandExt::arg0(&mut command, "closehook");
        command.arg(child::ARGUMENT).env_clear().current_dir("/");
        // Large blocks are given back at once, so that what one event took is there for the next; and there is one heap.
        command
            .env("MALLOC_MMAP_THRESHOLD_", "131072")
            .env("MALLOC_ARENA_MAX", "1");
        command
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // What a terminal sends to the daemon is not for the child.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let (mut process, known) = reap::spawn_std(&mut command)?;
        let stderr = process.stderr.take();
        Running::over(ours, Some((process, known)), stderr)
    }

    fn over(
        stream: UnixStream,
        process: Option<(Child, reap::Ours)>,
        stderr: Option<ChildStderr>,
    ) -> io::Result<Running> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let answers = io::BufReader::with_capacity(64 << 10, stream.try_clone()?);
        Ok(Running {
            process,
            stderr,
            stream,
            answers,
            programs: Vec::new(),
            names: Arc::default(),
        })
    }

    /// By what the child knows a program. Another one of the same text is as good: rules may be alike.
    pub fn number(&self, program: &Program) -> Option<usize> {
        let mut known = self.programs.iter();
        let same = known.position(|known| known.address() == program.address() && known == program);
        same.or_else(|| self.programs.iter().position(|known| known == program))
    }

    /// Those of these that it does not hold, each once.
    pub fn lacking<'p>(&self, programs: &[&'p Program]) -> Vec<&'p Program> {
        let mut lacking: Vec<&Program> = Vec::new();
        for program in programs {
            if self.number(program).is_none() && !lacking.contains(program) {
                lacking.push(program);
            }
        }
        lacking
    }

    /// Gives the child what it lacks.
    pub fn prepare(&mut self, programs: &[&Program], names: &Arc<Names>) -> io::Result<()> {
        let new = self.lacking(programs);
        if !new.is_empty() {
            // What is wrong with one of them shows when it is rendered.
            let _ = self.ask(&wire::programs(wire::PROGRAMS, &new))?;
            self.programs.extend(new.into_iter().cloned());
        }
        if !Arc::ptr_eq(&self.names, names) && self.names != *names {
            let _ = self.ask(&wire::names(names))?;
        }
        self.names = names.clone();
        Ok(())
    }

    pub fn ask(&mut self, frame: &[u8]) -> io::Result<Result<(), Fault>> {
        self.stream.write_all(frame)?;
        let frame = wire::read_frame(&mut self.answers)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        wire::read_ready(&frame).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// It has broken off the conversation: how it ended.
    pub fn end(mut self) -> End {
        let Some((process, _)) = &mut self.process else {
            return End::FromOutside("it has gone".to_owned());
        };
        // It is ending, or has said nonsense and goes on.
        let until = Instant::now() + ENDING;
        while process.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = process.kill();
        match process.wait() {
            Ok(status) => {
                let said = self.stderr.as_mut().map(child::last_words);
                judge(status, said.unwrap_or_default().trim())
            }
            Err(error) => End::FromOutside(error.to_string()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some((process, _)) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// What it means how a child ended.
fn judge(status: ExitStatus, said: &str) -> End {
    let is = |signal: Signal| status.signal() == Some(signal.as_raw());
    if is(Signal::XCPU) {
        return End::ByItself(format!("took more than {} ms of the processor", TIME_MAX.as_millis()));
    }
    if is(Signal::ABORT) && said.contains("memory allocation") {
        return End::ByItself(format!("needed more than {} MiB", MEMORY_MAX >> 20));
    }
    if is(Signal::ABORT) && said.contains("overflowed its stack") {
        return End::ByItself("went too deep: its stack was full".to_owned());
    }
    if [Signal::ABORT, Signal::SEGV, Signal::BUS, Signal::ILL, Signal::FPE]
        .into_iter()
        .any(is)
    {
        return End::ByItself(format!("made the process crash that renders ({status})"));
    }
    End::FromOutside(if said.is_empty() {
        format!("it ended from outside, or by itself ({status})")
    } else {
        format!("{} ({status})", crate::plain::line(said))
    })
}
