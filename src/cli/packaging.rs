//! `closehook completions` and `closehook man`, both made from the one definition of the command line.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::{Cli, Failure, Outcome, print_line};

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
        clap_complete::generate(self.shell, &mut Cli::command(), "closehook", &mut text);
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
            return clap_mangen::generate_to(Cli::command(), &dir)
                .map_err(|error| Failure::Work(format!("{} can't be written: {error}", dir.display())));
        }
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        print_line(String::from_utf8_lossy(&page).trim_end())
    }
}
