//! How long it is waited between two tries.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long it is waited before a broker is asked again, at first and at the most.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Waits a little longer each time.
pub(super) struct Pause(Duration);

impl Pause {
    pub fn new() -> Pause {
        Pause(PAUSE)
    }

    /// `false`: there is no time left.
    pub async fn pass(&mut self, until: Instant) -> bool {
        let end = Instant::now() + self.0;
        self.0 = (self.0 * 2).min(PAUSE_MAX);
        if end >= until {
            return false;
        }
        sleep(end - Instant::now()).await;
        true
    }
}
