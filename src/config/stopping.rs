//! How long a stop of the daemon may take, all of it together. What stops it has to give it as much: else it is killed before it has saved how
//! far sinks are.

use std::time::Duration;

use super::{Config, Span};

/// Everything but the requests that are still open, which have `server.drain_timeout`, comes to its end within this.
pub const STOP_REST: Duration = Duration::from_secs(60);

/// What the units in deploy/ give it (`TimeoutStopSec=`).
const UNIT_GIVES: Duration = Duration::from_secs(90);

/// Between the end of a stop and that of the process, and what whoever stops it gives.
pub const STOP_MARGIN: Duration = Duration::from_secs(5);

impl Config {
    /// How long a stop takes at the most; what is not at its end by then is given up on.
    pub fn stop_within(&self) -> Duration {
        self.server.drain_timeout.0 + STOP_REST
    }

    /// What is to be said of a stop that may take longer than the units give it.
    pub(super) fn doubtful_stop(&self) -> Option<String> {
        let within = self.stop_within();
        if within + STOP_MARGIN <= UNIT_GIVES {
            return None;
        }
        Some(format!(
            "server.drain_timeout = \"{}\" lets a stop take {}, and the units of closehook give it {} (TimeoutStopSec=): closehook asks systemd \
             for as much when it stops; whatever else may stop it (a container's runtime, a shutdown of the machine) has to be told, or kills \
             it before that",
            self.server.drain_timeout,
            Span::secs(within.as_secs()),
            Span::secs(UNIT_GIVES.as_secs()),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;

    #[test]
    fn the_units_give_a_stop_what_is_said_of_them() {
        for unit in [
            include_str!("../../deploy/closehook.service"),
            include_str!("../../deploy/closehook@.service"),
        ] {
            let given = format!("TimeoutStopSec={}s", UNIT_GIVES.as_secs());
            assert!(unit.lines().any(|line| line == given), "{given}");
        }
    }

    #[test]
    fn a_stop_that_may_take_longer_than_the_units_give_it_is_worth_a_word() {
        let mut config = Config::load(&Layers::new(&[], crate::rules::faults)).unwrap();
        assert_eq!(config.doubtful_stop(), None);
        for (drain, is_doubtful) in [(0, false), (25, false), (26, true), (600, true)] {
            config.server.drain_timeout = Span::secs(drain);
            let warnings = config.warnings(true);
            let warned = warnings.iter().any(|warning| warning.contains("TimeoutStopSec="));
            assert_eq!(warned, is_doubtful, "{drain}: {warnings:?}");
        }
        assert_eq!(config.stop_within(), Duration::from_secs(660));
    }
}
