//! Asking a person. Questions go to standard error, so that standard output is the steps and nothing else.

use std::io::{self, IsTerminal, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::cli::Failure;

/// So often a person is asked the same.
const TRIES_MAX: usize = 10;

/// Whether there is somebody to ask.
pub(super) fn is_attended() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks until the answer can be `read`; an empty one is the default, where there is one.
pub(super) async fn ask<T>(
    question: &str,
    default: Option<&str>,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<T, Failure> {
    let hint = default.map_or_else(String::new, |default| format!(" [{default}]"));
    for _ in 0..TRIES_MAX {
        let line = line(&format!("{question}{hint}: ")).await?;
        let answer = match (line.trim(), default) {
            ("", Some(default)) => default,
            (answer, _) => answer,
        };
        match read(answer) {
            Ok(answer) => return Ok(answer),
            Err(fault) => eprintln!("  {fault}"),
        }
    }
    Err(Failure::Work(format!("no answer to \"{question}\": nothing was done")))
}

/// Asks for a yes or a no.
pub(super) async fn confirm(question: &str, default: bool) -> Result<bool, Failure> {
    let hint = if default { "Y/n" } else { "y/N" };
    let read = |answer: &str| match answer.to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(true),
        "n" | "no" => Ok(false),
        "y/n" => Ok(default),
        _ => Err("yes or no?".to_owned()),
    };
    ask(question, Some(hint), read).await
}

/// Asks for something that must not be seen.
pub(super) async fn secret(question: &str) -> Result<String, Failure> {
    // Held here and not by the thread that reads: an interruption must give the terminal its echo back.
    let silence = Silence::begin();
    let answer = line(&format!("{question} (not shown): ")).await;
    drop(silence);
    eprintln!();
    Ok(answer?.trim().to_owned())
}

async fn line(prompt: &str) -> Result<String, Failure> {
    eprint!("{prompt}");
    io::stderr().flush()?;
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|len| (len, line))
    });
    let (len, line) = read.await.map_err(|error| Failure::Work(error.to_string()))??;
    if len == 0 {
        eprintln!();
        return Err(Failure::Work(
            "the input ended before every question was answered".into(),
        ));
    }
    Ok(line)
}

/// The terminal shows nothing of what is typed until this is dropped.
struct Silence(Option<Termios>);

impl Silence {
    fn begin() -> Silence {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).ok();
        if let Some(before) = &before {
            let mut silent = before.clone();
            silent.local_modes.remove(LocalModes::ECHO);
            // A terminal that can't do this shows what is typed; it is still the person's own.
            let _ = tcsetattr(&stdin, OptionalActions::Now, &silent);
        }
        Silence(before)
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
