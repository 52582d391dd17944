//! The one way to leave a test out: loudly, and where `CLOSEHOOK_TEST_NO_SKIP` is set (CI) not at all, but for what CI's kernel
//! itself may not let anybody do.

use std::io::Write;

/// What a kernel, or what a container lets through of it, may not have at all; why, is in `tests/README.md`. The reason of a skip
/// begins with the name and a colon.
pub const EXCEPTIONS: [&str; 5] = ["container", "core dump", "loop device", "namespace", "open files"];

/// Says that a test can't be done on this machine, past the test runner, which would keep it for itself.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
    let is_excused = why.split_once(": ").is_some_and(|(name, _)| EXCEPTIONS.contains(&name));
    assert!(
        is_excused || std::env::var_os("CLOSEHOOK_TEST_NO_SKIP").is_none(),
        "no test may be skipped here (CLOSEHOOK_TEST_NO_SKIP): {why}"
    );
}
