//! A backup on its way to whoever asked for it.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Answers, Out, Refusal, text};
use crate::backup::{self, Summary};
use crate::task;

/// Bytes of a backup in one answer; many answers may be on their way at a time.
const PART_LEN: usize = 48 << 10;

/// The whole data directory, as `closehook backup` keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Backup {}

/// A backup that nobody reads from for so long has come to its end: it holds up whatever makes room.
const READ_WITHIN: Duration = Duration::from_secs(60);

/// A part of the answer, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// About how many bytes there will be.
    Estimate(u64),
    /// Bytes of it, in Base64.
    Data(String),
    /// What is in it.
    Summary(Summary),
}

impl Part {
    /// The bytes of a part that is data.
    pub fn bytes(data: &str) -> Result<Vec<u8>, Refusal> {
        STANDARD
            .decode(data)
            .map_err(|_| "the daemon's answer is not understood: is it another version?".into())
    }
}

impl Backup {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Part>) -> Result<(), Refusal> {
        let log = on.log.local().cloned();
        let log = log.ok_or("a backup is made where the log is kept on this machine's disk, and this one is not")?;
        out.say(&Part::Estimate(backup::estimate(&log))).await?;
        // Letters, marks and events are one picture only while nothing goes.
        let _held = match &on.retention {
            Some(retention) => Some(retention.hold().await),
            None => None,
        };
        let (dir, engine) = (on.facts.dir.clone(), on.engine.clone());
        let parts = std::io::BufWriter::with_capacity(PART_LEN, Parts::new(out.detached(), READ_WITHIN));
        let written = task::begin_blocking(move || backup::write(&dir, &log, &engine, parts));
        let summary = written.await.map_err(text)?.map_err(text)?;
        out.say(&Part::Summary(summary)).await
    }
}

/// A backup's bytes as answers.
struct Parts {
    to: Answers,
    /// Nothing goes from the log while somebody does not read: so long.
    within: Duration,
    /// It has come to its end.
    is_over: bool,
}

impl Parts {
    fn new(to: Answers, within: Duration) -> Parts {
        Parts {
            to,
            within,
            is_over: false,
        }
    }

    fn ended(&self, error: io::Error) -> io::Error {
        if error.kind() != io::ErrorKind::TimedOut {
            return error;
        }
        let why = format!(
            "nobody has read the backup for {} s, and nothing goes from the log meanwhile: it was ended",
            self.within.as_secs()
        );
        io::Error::new(error.kind(), why)
    }
}

impl io::Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_over {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // One large frame comes past the buffer in front.
        for part in bytes.chunks(PART_LEN) {
            let said = self.to.of().say_within(&Part::Data(STANDARD.encode(part)), self.within);
            said.map_err(|error| {
                // Whoever writes tries once more at its end.
                self.is_over = true;
                self.ended(error)
            })?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_backup_that_nobody_reads_comes_to_its_end() {
        let (to, mut unread) = tokio::sync::mpsc::channel(1);
        let parts = Parts::new(Answers::new(to), Duration::from_millis(20));
        let written = tokio::task::spawn_blocking(move || {
            let mut parts = io::BufWriter::with_capacity(4, parts);
            let first = parts.write_all(b"first").and_then(|()| parts.write_all(b"second"));
            let again = parts.write_all(b"third");
            (first, again)
        });
        let (first, again) = written.await.unwrap();
        let why = first.unwrap_err();
        assert!(
            why.kind() == io::ErrorKind::TimedOut && why.to_string().contains("nobody has read"),
            "{why}"
        );
        assert_eq!(
            again.unwrap_err().kind(),
            io::ErrorKind::BrokenPipe,
            "it is not waited for once more"
        );
        assert!(unread.recv().await.is_some() && unread.recv().await.is_none());
    }
}
