//! How help reads: commands in groups, what every command takes under a heading of its own, and nothing wider than [`WIDTH`].
//!
//! What a command says behind its options is written in paragraphs, and examples that are a line each. Where the lines of a
//! paragraph end is for the terminal to say: they are joined here, so that nothing is broken twice.

use std::fmt::Write as _;

use clap::builder::styling::Style;
use clap::{Command, CommandFactory};

use super::Cli;

/// Columns at the most; a narrower terminal gets less.
pub(super) const WIDTH: usize = 80;

/// What people look for, in the order in which they come to need it.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Set it up and run it", &["init", "check", "serve", "reload", "status"]),
    (
        "Try it and develop",
        &["trigger", "listen", "filter", "rules", "render"],
    ),
    ("Look at events", &["events"]),
    ("Look after deliveries", &["sinks", "replay", "dead"]),
    ("Look after Close's side", &["subscription", "backfill"]),
    ("Keep it and move it", &["log", "backup", "restore"]),
];

/// For what is in none of the others.
const MORE: &str = "More";

/// The command line as people see it: the one definition that help, manual pages and completions are made from.
pub(super) fn command() -> Command {
    let command = tidy(Cli::command());
    // As is usual: a variable that is empty says nothing.
    let is_empty = std::env::var_os(super::CONFIG_VARIABLE).is_some_and(|value| value.is_empty());
    let command = if is_empty {
        command.mut_arg("config", |config| config.env(None::<&str>))
    } else {
        command
    };
    let groups = groups(&command);
    command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{groups}{}\n{{options}}{{after-help}}",
        heading(&Cli::command(), super::GLOBAL)
    ))
}

fn heading(command: &Command, text: &str) -> String {
    let style = command.get_styles().get_header();
    format!("{style}{text}:{style:#}")
}

/// Every group with its commands, and a line or two of what each is for.
fn groups(command: &Command) -> String {
    let names = |named: &[&str]| -> Vec<String> {
        let is_there = |name: &&&str| command.find_subcommand(name).is_some();
        named.iter().filter(is_there).map(|name| (*name).to_owned()).collect()
    };
    let is_grouped = |name: &str| GROUPS.iter().any(|(_, grouped)| grouped.contains(&name));
    let mut rest: Vec<String> = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .filter(|name| !is_grouped(name))
        .collect();
    rest.push("help".into());
    let mut sections: Vec<(&str, Vec<String>)> = GROUPS.iter().map(|(group, named)| (*group, names(named))).collect();
    sections.push((MORE, rest));
    let all = sections.iter().flat_map(|(_, names)| names);
    let width = all.map(String::len).max().unwrap_or_default();
    let mut text = String::new();
    for (group, names) in sections.iter().filter(|(_, names)| !names.is_empty()) {
        let _ = writeln!(text, "{}", heading(command, group));
        for name in names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map_or_else(|| "Show the help of a command".to_owned(), ToString::to_string);
            text.push_str(&entry(command.get_styles().get_literal(), name, width, &about));
        }
        text.push('\n');
    }
    text
}

/// A name and what it is for, wrapped beside it.
fn entry(style: &Style, name: &str, width: usize, about: &str) -> String {
    let indent = width + 4;
    let mut text = format!("  {style}{name}{style:#}{:1$}  ", "", width - name.len());
    let mut column = indent;
    for (index, word) in about.split_whitespace().enumerate() {
        let len = word.chars().count();
        if index > 0 && column + 1 + len > WIDTH {
            let _ = write!(text, "\n{:indent$}", "");
            column = indent;
        } else if index > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += len;
    }
    text.push('\n');
    text
}

/// The same command, with the lines of each paragraph behind its options joined; so for all below it.
fn tidy(command: Command) -> Command {
    let joined = command.get_after_help().map(|text| joined(&text.to_string()));
    let command = match joined {
        Some(text) => command.after_help(text),
        None => command,
    };
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    names
        .into_iter()
        .fold(command, |command, name| command.mut_subcommand(name, tidy))
}

/// Joins lines that follow each other in one paragraph. What is indented is an example or a table, and stays.
fn joined(text: &str) -> String {
    let mut out = String::new();
    let mut goes_on = false;
    for line in text.lines() {
        let is_prose = !line.is_empty() && !line.starts_with(' ');
        if !out.is_empty() {
            out.push(if goes_on && is_prose { ' ' } else { '\n' });
        }
        out.push_str(line);
        goes_on = is_prose;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(command: &Command, found: &mut Vec<Command>) {
        found.push(command.clone());
        command.get_subcommands().for_each(|sub| all(sub, found));
    }

    #[test]
    fn every_command_is_in_one_group() {
        let command = Cli::command();
        for sub in command.get_subcommands().map(Command::get_name) {
            let count = GROUPS.iter().filter(|(_, names)| names.contains(&sub)).count();
            let is_for_packaging = ["completions", "man"].contains(&sub);
            assert_eq!(count, usize::from(!is_for_packaging), "{sub}");
        }
    }

    #[test]
    fn an_example_is_a_line_that_fits() {
        let mut commands = Vec::new();
        all(&command(), &mut commands);
        let mut wide = Vec::new();
        for command in &commands {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let is_wide = |line: &&str| line.starts_with(' ') && line.chars().count() > WIDTH;
            wide.extend(
                text.lines()
                    .filter(is_wide)
                    .map(|line| format!("{}: {line}", command.get_name())),
            );
        }
        assert!(wide.is_empty(), "{wide:#?}");
    }

    #[test]
    fn paragraphs_are_joined_and_examples_are_not() {
        assert_eq!(
            joined("One\nparagraph.\n\nAnother:\n  an example\n  and one\nThe end.\nReally."),
            "One paragraph.\n\nAnother:\n  an example\n  and one\nThe end. Really."
        );
    }
}
