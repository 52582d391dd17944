//! Coming to an end: what runs may end, what is asked meanwhile is answered, and what was reached is saved.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Command, Worker};

/// What runs when the worker stops has so long to come to its end.
const STOP_WITHIN: Duration = Duration::from_secs(10);

impl Worker<'_> {
    /// Lets what runs come to its end, saves, and lets go. What does not come to its end is left behind. Gives who waits for that.
    pub(super) async fn stop(
        &mut self,
        commands: &mut mpsc::Receiver<Command>,
        mut waiting: Vec<oneshot::Sender<()>>,
    ) -> Vec<oneshot::Sender<()>> {
        self.stopping = true;
        self.publish();
        let end = Instant::now() + STOP_WITHIN;
        loop {
            tokio::select! {
                biased;
                Some(command) = commands.recv() => waiting.extend(self.obey_last(command)),
                done = tokio::time::timeout_at(end, self.tasks.join_next()) => match done {
                    Ok(Some(done)) => self.collect(done).await,
                    Ok(None) | Err(_) => break,
                },
            }
        }
        if self.running > 0 || self.progress.saving || self.chores.runs().is_some() {
            tracing::warn!(
                sink = self.kit.name(),
                "what the sink was doing did not come to its end; some deliveries may repeat"
            );
            self.tasks.shutdown().await;
            self.left_behind();
        }
        self.end_erasing();
        self.last_save().await;
        self.lanes.letters.leave_doubted();
        self.publish();
        // What came meanwhile meets nothing in memory any more, and what comes now is told that nobody is there.
        commands.close();
        while let Some(command) = commands.recv().await {
            waiting.extend(self.obey_last(command));
        }
        waiting
    }

    /// An order that came too late to be carried out, but for what concerns what is here. Gives who waits for the end.
    fn obey_last(&mut self, command: Command) -> Option<oneshot::Sender<()>> {
        match command {
            Command::Stop { quiet, stopped } => {
                // Nobody may be waiting any more.
                let _ = quiet.send(());
                return Some(stopped);
            }
            // The letters are still dead: whoever waits hears so.
            Command::RetryDead(asked) => {
                for (_, waiter) in asked {
                    waiter.settle(false, "the sink is stopping");
                }
            }
            // It is durable, and the next worker finds it.
            Command::Replay(_) | Command::Rules | Command::Save => {}
            command @ (Command::Pause(..) | Command::EventState(..) | Command::Erased(..)) => self.obey(command),
        }
        None
    }
}
