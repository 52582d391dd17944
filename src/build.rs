//! Asks the linker to keep one of several functions that are the same in machine code, where it knows how: a release build is a third of
//! a megabyte smaller for it. No linker but lld, gold and mold does, and which one is used is the toolchain's business; so it is tried.

use std::path::Path;
use std::process::{Command, Stdio};

/// GNU's own linker refuses what it does not know.
const FOLD: &str = "-Wl,--icf=all";

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if is_release && links() == Some(true) {
        println!("cargo::rustc-link-arg-bins={FOLD}");
    }
}

/// Whether a program can be linked so. `None`: it can't be tried.
fn links() -> Option<bool> {
    let [rustc, target, out] = ["RUSTC", "TARGET", "OUT_DIR"].map(std::env::var_os);
    let out = out?;
    let source = Path::new(&out).join("folds.rs");
    std::fs::write(&source, "fn main() {}\n").ok()?;
    let mut compiler = Command::new(rustc?);
    compiler
        .arg("--target")
        .arg(target?)
        .arg("-C")
        .arg(format!("link-arg={FOLD}"));
    if let Some(linker) = std::env::var_os("RUSTC_LINKER") {
        compiler
            .arg("-C")
            .arg(format!("linker={}", Path::new(&linker).display()));
    }
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    compiler.args(flags.split('\u{1f}').filter(|flag| !flag.is_empty()));
    compiler.arg("-o").arg(Path::new(&out).join("folds")).arg(&source);
    let tried = compiler.stdout(Stdio::null()).stderr(Stdio::null()).status();
    Some(tried.ok()?.success())
}
