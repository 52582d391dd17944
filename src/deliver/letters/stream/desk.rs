//! Where a journal is asked.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use crate::framefile::FrameError;
use crate::state::journal::{Journal, JournalError};
use crate::task;

/// A question that is not answered by then is given up; the journal itself is more patient than no one.
const ANSWER_WITHIN: Duration = Duration::from_secs(40);

/// The journal, and a thread of its own on which it is asked: whoever waits for an answer keeps nobody from giving it.
#[derive(Debug)]
pub(in crate::deliver) struct Desk {
    pub(super) journal: Arc<dyn Journal>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Desk {
    /// An error: no thread can be made.
    pub fn new(journal: Arc<dyn Journal>) -> std::io::Result<Arc<Desk>> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("letters")
            .enable_all()
            .build()?;
        Ok(Arc::new(Desk {
            journal,
            runtime: Some(runtime),
        }))
    }

    /// Asks, and waits for the answer. Blocking.
    pub fn ask<T: Send + 'static, F>(&self, question: impl FnOnce(Arc<dyn Journal>) -> F) -> Result<T, JournalError>
    where
        F: Future<Output = Result<T, JournalError>> + Send + 'static,
    {
        let (done, answer) = mpsc::sync_channel(1);
        let work = question(self.journal.clone());
        if let Some(runtime) = &self.runtime {
            // Nobody may be waiting any more.
            task::begin_on(runtime.handle(), async move { drop(done.send(work.await)) });
        }
        let late = |_| JournalError::Unsure(format!("{} does not answer", self.journal.name()));
        answer
            .recv_timeout(ANSWER_WITHIN)
            .unwrap_or_else(|error| Err(late(error)))
    }

    /// The sinks that have letters in it, or of which something is noted. Blocking.
    pub fn topics(&self) -> Result<Vec<String>, String> {
        let topics = self.ask(|journal| async move { journal.topics().await });
        topics.map_err(|error| format!("{}: {error}", self.journal.name()))
    }

    pub fn io(&self, why: &JournalError) -> FrameError {
        failed(&*self.journal, why)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // What is under way is not waited for: the last handle may go on a thread that must not wait.
            runtime.shutdown_background();
        }
    }
}

/// A journal's error as that of a file: the journal stands for it.
fn failed(journal: &dyn Journal, why: &JournalError) -> FrameError {
    FrameError::Io {
        path: PathBuf::from(journal.name()),
        source: std::io::Error::other(why.to_string()),
    }
}
