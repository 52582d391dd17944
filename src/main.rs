//! The `closehook` program: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    closehook::cli::main()
}
