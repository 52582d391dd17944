//! `exec`: runs a program for each event, with the event object, or what a template or transform made of it, on its standard input.
//!
//! The program gets a cleared environment: `PATH`, the `CLOSEHOOK_*` variables, and what `env` in the sink lists. It runs in
//! a process group of its own, and the whole group is killed at `timeout` or when the delivery is given up, so nothing it
//! started is left behind. Exit status 0 is delivered, 75 (`EX_TEMPFAIL`) is tried again, anything else is a dead letter, which keeps
//! the end of what the program wrote to standard error.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::error::Elapsed;

use super::common::said;
use super::common::secrets::Secrets;
use super::{
    Batch, Commit, Context, Drive, Fingerprint, Hider, Limits, Opened, Outcome, Preview, Reason, Sink, SinkKind,
    Unavailable,
};
use crate::config::{Key, SinkOptions, SinkType, Table};
use crate::event::Delivery;

/// What a program finds in `PATH`, unless `env` says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The kernel takes no variable of 128 KiB or more (`MAX_ARG_STRLEN`), and all of them together only so much. A longer value is left
/// out: the program finds it in the event on its standard input.
const VARIABLE_LEN_MAX: usize = 32 << 10;

/// "Temporary failure, try again" of sysexits.h.
const EX_TEMPFAIL: i32 = 75;

pub(super) static TYPE: SinkType = SinkType {
    name: "exec",
    feature: None,
    about: "a program with the event object on standard input and CLOSEHOOK_* variables",
    promise: "At least once: the key is in CLOSEHOOK_IDEMPOTENCY_KEY",
    notes: "\
The variables are SINK, SEQ, ATTEMPT, RECEIVED_AT, SOURCE, RULES, EVENT_ID, IDEMPOTENCY_KEY, EVENT_TYPE, OBJECT_TYPE, ACTION, \
LEAD_ID, SUBSCRIPTION_ID, and of what another sink gave up (its dead_to) DEAD_SINK, DEAD_REASON, DEAD_ATTEMPTS. One of more than 32 KiB is left out: the event has it. Exit status 0 is delivered, 75 is tried again, \
anything else a dead letter, which keeps the last 2 KiB of standard error, with \"(secret)\" for the values of `env`.",
    setup: "The program must be one that the daemon's user can run; it gets nothing of the daemon's environment.",
    example: r#"[[sinks]]
name = "notify"
type = "exec"
command = ["/usr/local/bin/on-event", "--quiet"]
"#,
    keys: &[
        Key::required(
            "command",
            "[\"/usr/local/bin/on-event\", \"--quiet\"]",
            "The program, then its arguments; no shell reads them",
        ),
        Key::optional("env", "{ LANG = \"C.UTF-8\" }", "Further variables"),
        Key::optional("cwd", "\"/\"", "Where it is started; default: the daemon's directory"),
    ],
    parse: Some(parse),
};

#[derive(Debug, Clone)]
struct Options {
    command: Vec<String>,
    env: BTreeMap<String, String>,
    cwd: Option<PathBuf>,
}

fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let command: Vec<String> = table.needed("command")?;
    let env = table.or("env", BTreeMap::new());
    let cwd = table.optional("cwd");
    if command.first().is_none_or(String::is_empty) {
        table.fault("command", "must name a program, then its arguments");
        return None;
    }
    if command
        .iter()
        .chain(env.keys())
        .chain(env.values())
        .any(|text| text.contains('\0'))
    {
        table.fault("command", "can't contain NUL");
        return None;
    }
    Some(Arc::new(Options { command, env, cwd }))
}

impl Options {
    /// What the program is given: the event object as a line, or what was made of it, byte for byte.
    fn input(delivery: &Delivery) -> Bytes {
        match delivery.payload() {
            Some(payload) => payload.bytes().clone(),
            None => format!("{}\n", delivery.event.object().raw()).into(),
        }
    }

    /// What must not be kept of what a program says.
    fn secrets(&self) -> Secrets {
        let mut secrets = Secrets::default();
        for (name, value) in &self.env {
            secrets.add_variable(name, value);
        }
        secrets.add_arguments(&self.command[1..]);
        secrets
    }
}

#[async_trait]
impl SinkKind for Options {
    fn drive(&self) -> Drive {
        Drive {
            batch: Limits {
                events: 1,
                bytes: usize::MAX,
                wait: std::time::Duration::ZERO,
            },
            concurrency: 2,
            commit: Commit::Acknowledge,
        }
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        let input = Options::input(delivery);
        match delivery.payload() {
            Some(_) => input,
            None => input.slice(..input.len() - 1),
        }
    }

    fn preview(&self, sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        let secrets = self.secrets();
        let own = self.env.iter();
        let own = own.map(|(name, value)| (name.clone(), secrets.hidden_in(value)));
        let path = std::iter::once(("PATH".to_owned(), PATH.to_owned()));
        Ok(Preview::new(
            path.chain(variables(sink, delivery)).chain(own),
            Options::input(delivery),
        ))
    }

    fn fingerprint(&self) -> Fingerprint {
        let digest = <sha2::Sha256 as sha2::Digest>::digest(format!("{self:?}"));
        Fingerprint(hex::encode(digest))
    }

    fn hider(&self) -> Option<Hider> {
        let secrets = self.secrets();
        Some(Box::new(move |said| secrets.hidden_in(said)))
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let sink: Box<dyn Sink> = Box::new(Exec {
            name: context.name,
            timeout: context.timeout,
            secrets: self.secrets(),
            options: self.clone(),
        });
        Ok(sink.into())
    }

    async fn probe(&self, _context: Context) -> Result<String, Unavailable> {
        let program = &self.command[0];
        let path = self.env.get("PATH").map_or(PATH, String::as_str);
        let candidates: Vec<PathBuf> = if program.contains('/') {
            vec![self.cwd.clone().unwrap_or_default().join(program)]
        } else {
            path.split(':').map(|dir| PathBuf::from(dir).join(program)).collect()
        };
        let executable = |path: &PathBuf| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::metadata(path)
                .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
        };
        match candidates.iter().find(|path| executable(path)) {
            Some(found) => Ok(format!("{} can be run", found.display())),
            None => Err(Unavailable::new(format!(
                "{program} is not an executable file in {path}"
            ))),
        }
    }
}

/// What a program is told of its event.
fn variables(sink: &str, delivery: &Delivery) -> impl Iterator<Item = (String, String)> {
    let event = &delivery.event;
    let view = event.view();
    let text = |field: fn(&crate::event::View) -> Option<String>| view.and_then(field).unwrap_or_default();
    let variables = [
        ("SINK", sink.to_owned()),
        ("SEQ", event.seq.to_string()),
        ("ATTEMPT", delivery.attempt.to_string()),
        ("RECEIVED_AT", format!("{:.6}", event.received_at)),
        ("SOURCE", event.source.to_string()),
        ("RULES", delivery.rules.join(",")),
        ("EVENT_ID", text(|view| Some(view.id.clone()))),
        ("IDEMPOTENCY_KEY", text(|view| Some(view.idempotency_key()))),
        ("EVENT_TYPE", text(crate::event::View::type_action)),
        ("OBJECT_TYPE", text(|view| view.object_type.clone())),
        ("ACTION", text(|view| view.action.clone())),
        ("LEAD_ID", text(|view| view.lead_id.clone())),
        ("SUBSCRIPTION_ID", text(|view| view.subscription_id.clone())),
    ];
    let dead = delivery.dead().into_iter().flat_map(|dead| {
        [
            ("DEAD_SINK", dead.sink.clone()),
            ("DEAD_REASON", dead.reason.clone()),
            ("DEAD_ATTEMPTS", dead.attempts.to_string()),
        ]
    });
    let all = variables.into_iter().chain(dead);
    let fit = all.filter(|(_, value)| value.len() <= VARIABLE_LEN_MAX);
    // An id may hold anything; the kernel takes no NUL.
    fit.map(|(name, value)| (format!("CLOSEHOOK_{name}"), value.replace('\0', "")))
}

struct Exec {
    name: String,
    timeout: std::time::Duration,
    secrets: Secrets,
    options: Options,
}

/// Kills the whole process group when dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Exec {
    fn command(&self, delivery: &Delivery) -> Command {
        let mut command = Command::new(&self.options.command[0]);
        command.args(&self.options.command[1..]).env_clear().env("PATH", PATH);
        command.envs(variables(&self.name, delivery));
        command.envs(&self.options.env);
        if let Some(cwd) = &self.options.cwd {
            command.current_dir(cwd);
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        command
    }

    async fn run(&self, delivery: &Delivery) -> Result<Outcome, Unavailable> {
        let program = &self.options.command[0];
        let (mut child, _ours) = match crate::reap::spawn(&mut self.command(delivery)) {
            Ok(started) => started,
            Err(error) => {
                let reason = format!("{program} can't be started: {error}");
                if is_about_the_machine(&error) {
                    return Err(Unavailable::new(reason));
                }
                // What is too long for the kernel today is too long tomorrow.
                let reason = reason.into();
                return Ok(if error.kind() == std::io::ErrorKind::ArgumentListTooLong {
                    Outcome::Reject { reason }
                } else {
                    Outcome::Retry { reason, after: None }
                });
            }
        };
        let _group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
        let input = Options::input(delivery);
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A program that does not want to read it need not.
                let _ = stdin.write_all(&input).await;
                let _ = stdin.shutdown().await;
            }
        };
        let mut said = Tail {
            bytes: Vec::new(),
            len_max: said::wanted_len(&self.secrets),
        };
        let drain = async {
            if let Some(mut stderr) = stderr {
                // Read to its end so that the program never blocks on it.
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
                    said.push(&buffer[..read]);
                }
            }
        };
        // A grandchild that inherited standard error must not hold up the answer.
        let exited = async {
            let talked = std::pin::pin!(async { tokio::join!(feed, drain) });
            let waited = std::pin::pin!(child.wait());
            match futures::future::select(talked, waited).await {
                futures::future::Either::Left((_, waited)) => waited.await,
                futures::future::Either::Right((status, talked)) => {
                    // What the program itself wrote is there already.
                    let _ = tokio::time::timeout(std::time::Duration::from_millis(50), talked).await;
                    status
                }
            }
        };
        let ended = tokio::time::timeout(self.timeout, exited).await;
        Ok(self.outcome(ended, &said))
    }

    /// What it means how a program ended.
    fn outcome(&self, ended: Result<std::io::Result<ExitStatus>, Elapsed>, said: &Tail) -> Outcome {
        let program = &self.options.command[0];
        let reason = |text: String| Reason {
            text,
            answer: said::cleaned(&said.bytes, said::Part::End, &self.secrets),
        };
        let retry = |text: String| Outcome::Retry {
            reason: reason(text),
            after: None,
        };
        match ended {
            Err(_) => retry(format!(
                "{program} was killed after {}",
                crate::config::Span(self.timeout)
            )),
            Ok(Err(error)) => retry(format!("{program} could not be waited for: {error}")),
            Ok(Ok(status)) => match status.code() {
                Some(0) => Outcome::Delivered,
                Some(EX_TEMPFAIL) => retry(format!("{program} asked to be run again (exit status 75)")),
                Some(code) => Outcome::Reject {
                    reason: reason(format!("{program} ended with exit status {code}")),
                },
                None => {
                    use std::os::unix::process::ExitStatusExt;
                    let signal = status.signal().unwrap_or_default();
                    Outcome::Reject {
                        reason: reason(format!("{program} was ended by signal {signal}")),
                    }
                }
            },
        }
    }
}

/// The end of what was written.
#[derive(Debug)]
struct Tail {
    bytes: Vec<u8>,
    len_max: usize,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes
            .extend_from_slice(&bytes[bytes.len().saturating_sub(self.len_max)..]);
        let too_many = self.bytes.len().saturating_sub(self.len_max);
        self.bytes.drain(..too_many);
    }
}

#[async_trait]
impl Sink for Exec {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let mut outcomes = Vec::with_capacity(batch.deliveries().len());
        for delivery in batch.deliveries() {
            outcomes.push(self.run(delivery).await?);
        }
        Ok(outcomes)
    }
}

/// No room for another process, or for a descriptor: that says nothing about the event.
fn is_about_the_machine(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let of = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    of(Errno::MFILE) || of(Errno::NFILE) || of(Errno::AGAIN) || of(Errno::NOMEM)
}

#[cfg(test)]
mod tests {
    use super::super::common::line::tests::delivery;
    use super::*;

    fn exec(script: &str, timeout_ms: u64) -> Exec {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let options = Options {
            command,
            env: [("MINE".to_owned(), "yes".to_owned())].into(),
            cwd: None,
        };
        Exec {
            name: "x".into(),
            timeout: std::time::Duration::from_millis(timeout_ms),
            secrets: options.secrets(),
            options,
        }
    }

    async fn run(script: &str) -> Outcome {
        exec(script, 20_000)
            .run(&delivery(
                5,
                r#"{"event":{"id":"ev_1","object_type":"lead","action":"created"}}"#,
            ))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn exit_statuses_mean_what_is_documented() {
        assert_eq!(run("exit 0").await, Outcome::Delivered);
        assert!(matches!(run("exit 75").await, Outcome::Retry { .. }));
        assert!(matches!(run("exit 1").await, Outcome::Reject { .. }));
        assert!(matches!(run("kill -9 $$").await, Outcome::Reject { .. }));
        let missing = Exec {
            options: Options {
                command: vec!["/does/not/exist".into()],
                env: BTreeMap::new(),
                cwd: None,
            },
            ..exec("", 1000)
        };
        assert!(matches!(
            missing.run(&delivery(1, "{}")).await,
            Ok(Outcome::Retry { .. })
        ));
    }

    #[tokio::test]
    async fn the_end_of_what_it_wrote_to_standard_error_is_kept() {
        let answer = |outcome: Outcome| match outcome {
            Outcome::Retry { reason, .. } | Outcome::Untried { reason } | Outcome::Reject { reason } => reason.answer,
            Outcome::Delivered | Outcome::Skipped | Outcome::Waits(_) => None,
        };
        let said = answer(run("echo no such lead >&2; printf '\\033[2J' >&2; exit 1").await).unwrap();
        assert_eq!(said, "no such lead\n\\u001b[2J");
        assert_eq!(answer(run("echo oh >&2; exit 75").await).as_deref(), Some("oh"));
        assert_eq!(answer(run("exit 1").await), None);
        let said = answer(run("seq 10000 >&2; exit 1").await).unwrap();
        assert!(said.len() <= said::LEN_MAX && said.ends_with("9999\n10000"), "{said}");
        let mut secret = exec("seq -s $SALT 1 999 >&2; echo $API_TOKEN >&2; exit 1", 20_000);
        let named = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        secret.options.env = [named("API_TOKEN", "hunter22"), named("SALT", "zebra-quokka")].into();
        secret.secrets = secret.options.secrets();
        let said = answer(secret.run(&delivery(1, "{}")).await.unwrap()).unwrap();
        let left: String = said.replace("(secret)", "").split_whitespace().collect();
        assert!(said.ends_with("998(secret)999\n(secret)"), "{said}");
        assert!(left.bytes().all(|byte| byte.is_ascii_digit()), "{said}");
        // A grandchild that keeps standard error open does not keep the answer.
        assert_eq!(
            answer(run("echo mine >&2; sleep 1000 & exit 1").await).as_deref(),
            Some("mine")
        );
    }

    #[tokio::test]
    async fn the_program_gets_the_event_and_a_clean_environment() {
        let script = r#"test "$(cat)" = '{"id":"ev_1","object_type":"lead","action":"created"}' &&
            test "$CLOSEHOOK_SEQ$CLOSEHOOK_EVENT_TYPE$MINE" = 5lead.createdyes && test -z "$CARGO_MANIFEST_DIR""#;
        assert_eq!(run(script).await, Outcome::Delivered);
    }

    #[tokio::test]
    async fn what_was_made_of_an_event_is_the_programs_input() {
        let mut made = delivery(5, r#"{"event":{"id":"ev_1"}}"#);
        made.rendered = Some(Arc::new(crate::render::Rendered {
            payload: Some(crate::render::Payload::Text("one\ntwo".into())),
            ..crate::render::Rendered::default()
        }));
        let script = r#"test "$(cat; echo .)" = "$(printf 'one\ntwo.')""#;
        assert_eq!(exec(script, 20_000).run(&made).await.unwrap(), Outcome::Delivered);
        assert_eq!(exec("", 1).options.payload(&made), "one\ntwo");
    }

    #[tokio::test]
    async fn nothing_it_started_outlives_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
        let sink = exec(&script, 300);
        assert!(matches!(sink.run(&delivery(1, "{}")).await, Ok(Outcome::Retry { .. })));
        let pid: u32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        let started = std::time::Instant::now();
        let alive = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"));
        while alive() {
            assert!(started.elapsed().as_secs() < 20, "the grandchild lives on");
            tokio::task::yield_now().await;
        }
    }
}
