//! `closehook completions` and `closehook man`, both made from the one definition of the command line.

use std::path::{Path, PathBuf};

use clap::Args;

use super::output::{self, Mode};
use super::{Failure, Outcome, help, print_line};

/// Completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  closehook completions bash > /usr/share/bash-completion/completions/closehook")]
pub(super) struct Completions {
    /// Which shell
    shell: clap_complete::Shell,
}

impl Completions {
    pub(super) fn run(self) -> Outcome {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut help::command(), "closehook", &mut text);
        print_line(String::from_utf8_lossy(&text).trim_end())
    }
}

/// The manual page, or one page per command
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  closehook man | man -l -\n  closehook man --dir /usr/share/man/man1")]
pub(super) struct Man {
    /// Write closehook.1 and a page per command here
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(self) -> Outcome {
        if let Some(dir) = self.dir {
            let mut root = help::command().disable_help_subcommand(true);
            // Names of their own (closehook-replay), and the global options on every page.
            root.build();
            return write_pages(&root, &dir);
        }
        print_line(page(&clap_mangen::Man::new(help::command()))?.trim_end())
    }
}

fn page(man: &clap_mangen::Man) -> Result<String, Failure> {
    let mut page = Vec::new();
    man.render(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// A page for a command, and one for each below it. Pages are made anew at each build, so older ones are replaced.
fn write_pages(command: &clap::Command, dir: &Path) -> Outcome {
    let man = clap_mangen::Man::new(command.clone());
    let file = dir.join(man.get_filename());
    output::write(&file, page(&man)?.as_bytes(), Mode::Public, true)?;
    command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set())
        .try_for_each(|sub| write_pages(sub, dir))
}
