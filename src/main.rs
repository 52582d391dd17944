//! The `closehook` program: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    if closehook::render::is_child() {
        return closehook::render::serve();
    }
    closehook::cli::main()
}
