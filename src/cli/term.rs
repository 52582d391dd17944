//! What people see of commands: tables, progress, questions (times: `when`). Questions and progress go to standard error, so that standard
//! output is the answer and nothing else.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressState, ProgressStyle};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::io::Interest;
use tokio::net::unix::pipe;

use super::{Failure, Outcome};
use crate::config::Span;
use crate::task;

/// So often a person is asked the same.
const TRIES_MAX: usize = 10;

/// Steps of a bar that shows a fraction.
const STEPS: u64 = 10_000;

/// A table for people: borders on no side, so that columns can be cut out of it too.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    if !io::stdout().is_terminal() {
        table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    }
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    table.add_rows(rows.into_iter().map(|row| row.into_iter().map(cut)));
    table.trim_fmt()
}

/// Longest cell, in characters: what Close names an event may be as long as a body.
const CELL_MAX: usize = 200;

fn cut(cell: String) -> String {
    match cell.char_indices().nth(CELL_MAX) {
        Some((at, _)) => format!("{}...", &cell[..at]),
        None => cell,
    }
}

/// Waits until whoever read standard output by a pipe has closed it: what has nothing to write would not notice. Where it is none, or that
/// can't be known, it waits for ever.
pub(super) async fn unread() {
    // Only watched, and never written to: it stays as blocking as it is.
    let out = io::stdout().as_fd().try_clone_to_owned();
    if let Ok(out) = out.and_then(pipe::Sender::from_owned_fd_unchecked)
        && out.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// How a bar shows how far something is.
fn bar(len: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(len);
    if let Ok(style) = ProgressStyle::with_template(template) {
        let style = style
            .with_key("of", |state: &ProgressState, out: &mut dyn fmt::Write| {
                write(out, &of(state, |count| count.to_string()));
            })
            .with_key("of_bytes", |state: &ProgressState, out: &mut dyn fmt::Write| {
                write(out, &of(state, |bytes| HumanBytes(bytes).to_string()));
            })
            .with_key("pace", |state: &ProgressState, out: &mut dyn fmt::Write| {
                write(out, &pace(state.pos(), state.per_sec(), state.eta(), rounded));
            })
            .with_key("pace_of_bytes", |state: &ProgressState, out: &mut dyn fmt::Write| {
                let rate = |per_second: f64| HumanBytes(whole(per_second)).to_string();
                write(out, &pace(state.pos(), state.per_sec(), state.eta(), rate));
            });
        bar.set_style(style);
    }
    bar
}

/// A terminal that does not take it is its owner's to mend.
fn write(out: &mut dyn fmt::Write, text: &str) {
    let _ = out.write_str(text);
}

/// How many there will be, once that is known.
fn of(state: &ProgressState, say: impl Fn(u64) -> String) -> String {
    let known = state.len().filter(|len| *len > 0);
    known.map_or_else(String::new, |len| format!("/{}", say(len)))
}

/// How fast it goes and how long it will take, as far as that is known: nothing is before the first of them is done.
fn pace(done: u64, per_second: f64, eta: Duration, say: impl Fn(f64) -> String) -> String {
    if done == 0 || !per_second.is_normal() {
        return String::new();
    }
    let pace = format!(" {}/s", say(per_second));
    match eta.as_secs() {
        0 => pace,
        seconds => format!("{pace} ETA {}", Span::secs(seconds)),
    }
}

/// A rate as people say it: of few a second one digit more.
fn rounded(per_second: f64) -> String {
    if per_second < 9.95 {
        format!("{per_second:.1}")
    } else {
        whole(per_second).to_string()
    }
}

#[expect(clippy::cast_sign_loss, reason = "a rate is not negative")]
fn whole(rate: f64) -> u64 {
    rate.round() as u64
}

/// For bytes; how many there will be can be set when it is known.
pub(super) fn bytes_bar() -> ProgressBar {
    bar(0, "{bar:40} {bytes}{of_bytes}{pace_of_bytes}")
}

/// For things that are counted, with room for a message.
pub(super) fn count_bar() -> ProgressBar {
    bar(0, "{bar:40} {pos}{of}{pace} {msg}")
}

/// For what is known as a fraction only; see [`advance`].
pub(super) fn fraction_bar() -> ProgressBar {
    bar(STEPS, "{bar:40} {percent}% {msg}")
}

/// Moves a [`fraction_bar`] to a fraction between 0 and 1.
pub(super) fn advance(bar: &ProgressBar, fraction: f64, message: String) {
    #[expect(clippy::cast_sign_loss, reason = "a fraction is not negative")]
    bar.set_position((fraction.clamp(0.0, 1.0) * STEPS as f64) as u64);
    bar.set_message(message);
}

/// A sign of life on a terminal; nothing elsewhere.
pub(super) fn spinner(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::default_spinner());
    bar.set_prefix(what);
    bar.set_message(what);
    bar
}

/// Whether there is somebody to ask.
pub(super) fn is_attended() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a person whether to go on; the command ends with the reason where the answer is no, or where there is nobody to ask.
pub(super) fn confirm(question: &str) -> Outcome {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(format!(
            "{question} There is nobody to ask: say --yes if that is meant"
        )));
    }
    let line = read_line(&format!("{question} [y/N] "))?;
    if is_yes(&line, false) == Some(true) {
        Ok(())
    } else {
        Err(Failure::Work("nothing was done".into()))
    }
}

/// What a person answered; nothing is the default.
fn is_yes(answer: &str, default: bool) -> Option<bool> {
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Some(true),
        "n" | "no" => Some(false),
        "" => Some(default),
        _ => None,
    }
}

/// Asks for a yes or a no, until it is one of them.
pub(super) async fn yes_or_no(question: &str, default: bool) -> Result<bool, Failure> {
    let hint = if default { "Y/n" } else { "y/N" };
    let read = |answer: &str| {
        let answer = if answer == hint { "" } else { answer };
        is_yes(answer, default).ok_or_else(|| "yes or no?".to_owned())
    };
    ask(question, Some(hint), read).await
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

/// Asks for something that must not be seen.
pub(super) async fn secret(question: &str) -> Result<String, Failure> {
    // Held here and not by the thread that reads: an interruption must give the terminal its echo back.
    let silence = Silence::begin();
    let answer = line(&format!("{question} (not shown): ")).await;
    drop(silence);
    eprintln!();
    Ok(answer?.trim().to_owned())
}

/// The same from a task, which may be dropped meanwhile.
async fn line(prompt: &str) -> Result<String, Failure> {
    let prompt = prompt.to_owned();
    let read = task::begin_blocking(move || read_line(&prompt)).await;
    let line = read.map_err(|error| Failure::Work(error.to_string()))??;
    if line.is_empty() {
        eprintln!();
        return Err(Failure::Work(
            "the input ended before every question was answered".into(),
        ));
    }
    Ok(line)
}

/// A line with its end; empty at the end of the input.
fn read_line(prompt: &str) -> io::Result<String> {
    eprint!("{prompt}");
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_what_is_known_and_rounds_it() {
        let said = |done, per_second, seconds| pace(done, per_second, Duration::from_secs(seconds), rounded);
        assert_eq!(said(0, 0.0, 0), "");
        assert_eq!(said(0, 19.4613, 3), "");
        assert_eq!(said(1, 0.0, 0), "");
        assert_eq!(said(1, f64::INFINITY, 0), "");
        assert_eq!(said(2, 19.4613, 0), " 19/s");
        assert_eq!(
            said(2, 0.25, 90),
            " 0.2/s ETA 90s".replace("90s", &Span::secs(90).to_string())
        );
        assert_eq!(said(2, 9.96, 5), " 10/s ETA 5s");
    }

    #[test]
    fn yes_is_what_says_so() {
        for (answer, default, wanted) in [
            ("y\n", false, Some(true)),
            ("YES\n", false, Some(true)),
            ("\n", false, Some(false)),
            ("\n", true, Some(true)),
            ("no\n", true, Some(false)),
            ("perhaps\n", true, None),
        ] {
            assert_eq!(is_yes(answer, default), wanted, "{answer:?}");
        }
    }
}
