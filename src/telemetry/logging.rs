//! Logs: text for people and the journal, JSON on request. To standard error, so that the `stdout` sink has its own stream.

use std::io::IsTerminal;

use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::format::{FormatFields, debug_fn};
use tracing_subscriber::prelude::*;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people; without a time of its own when the journal adds one.
    Text,
    /// One JSON object a line.
    Json,
}

/// What fields of a line say, without what would move a terminal or end the line: some of it was sent by others.
fn plain_fields() -> impl for<'w> FormatFields<'w> + Send + Sync + 'static {
    debug_fn(|writer, field, value| {
        let text = format!("{value:?}");
        let text = crate::plain::line(&text);
        if field.name() == "message" {
            write!(writer, "{text}")
        } else {
            write!(writer, "{}={text}", field.name())
        }
    })
    .delimited(" ")
}

/// Starts logging. `verbosity` 0 logs what matters, 1 what closehook does, 2 everything; `RUST_LOG` overrides it
/// (`level,target=level,...`; not the filters on fields, which would cost half a megabyte of regular expressions).
pub fn install(format: Format, verbosity: u8, default_level: &str) {
    let level = match verbosity {
        0 => default_level.to_owned(),
        1 => "info,closehook=debug".to_owned(),
        _ => "debug,closehook=trace".to_owned(),
    };
    // sled logs its own surprises, which the event log reports in our terms; and whoever meets a certificate that is not
    // trusted, or a NATS server that is gone, says so itself.
    let filter: Targets = std::env::var("RUST_LOG")
        .ok()
        .and_then(|wanted| wanted.parse().ok())
        .or_else(|| {
            format!("{level},sled=off,rustls_platform_verifier=off,async_nats=off")
                .parse()
                .ok()
        })
        .unwrap_or_default();
    let registry = tracing_subscriber::registry().with(filter);
    let installed = match format {
        Format::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr))
            .try_init(),
        Format::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
            let layer = fmt::layer()
                .fmt_fields(plain_fields())
                .without_time()
                .with_ansi(false)
                .with_target(false)
                .with_writer(std::io::stderr);
            registry.with(layer).try_init()
        }
        Format::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let layer = fmt::layer()
                .fmt_fields(plain_fields())
                .with_ansi(colours)
                .with_target(false)
                .with_writer(std::io::stderr);
            registry.with(layer).try_init()
        }
    };
    // A second installation in one process (tests) keeps the first.
    drop(installed);
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        // Panics inside sled are expected on damaged files, are caught, and are reported by who caught them.
        if !place.contains("sled") {
            tracing::error!(place, "closehook has a defect here: please report it");
        }
    }));
}
