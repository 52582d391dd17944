//! Any configuration text: faults are reported, never a panic, and what is accepted compiles to rules.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use closehook::config::{Config, Layers};
use closehook::rules::RuleSet;
use libfuzzer_sys::fuzz_target;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| tempfile::tempdir().unwrap().keep().join("closehook.toml"));

fuzz_target!(|data: &[u8]| {
    std::fs::write(&*FILE, data).unwrap();
    let layers = Layers {
        file: Some(FILE.clone()),
        ..Layers::new(closehook::sinks::REGISTRY, closehook::rules::faults)
    };
    match Config::load(&layers) {
        Ok(config) => {
            let sinks: Vec<&str> = config.sinks.iter().map(|sink| sink.name.as_str()).collect();
            RuleSet::compile(&config.rules, &sinks).expect("a configuration that loads has rules that compile");
        }
        Err(faults) => assert!(!faults.is_empty()),
    }
});
