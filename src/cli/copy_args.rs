//! What `closehook log copy` and `closehook log reopen` take.

use clap::{Args, ValueEnum};

/// What a log is copied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum To {
    /// The stream of [log.jetstream]
    Jetstream,
    /// The data directory, log.dir
    Local,
}

/// Move the log to the other engine, with every position; the daemon must not run
///
/// Each event keeps its Seq; positions, retries, replays, dead letters, keys and what is known of Close's side go along, so that each sink
/// goes on at the same event. All of it is read back and compared. Then the old log is noted as moved and is not served any more, and only
/// after that the new one can be served.
#[derive(Debug, Args)]
#[command(
    after_help = "When it was ended in between, run it again: it goes on where it was, and until it is done nobody can serve the copy.
It needs [log.jetstream] in the configuration, whichever engine that names; set log.engine afterwards.

Example:
  closehook log copy --to jetstream"
)]
pub(crate) struct Copy {
    /// Where to
    #[arg(long, value_enum, value_name = "jetstream|local", hide_possible_values = true)]
    pub to: To,
}

/// Have a log served again that was copied to the other engine
///
/// It becomes another life of the log, with an epoch of its own: what the other one delivers, this one delivers as well.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  closehook log reopen")]
pub(crate) struct Reopen {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}
