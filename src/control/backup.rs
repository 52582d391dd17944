//! A backup on its way to whoever asked for it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Answers, Out, Refusal, text};
use crate::backup::{self, Summary};

/// Bytes of a backup in one answer; many answers may be on their way at a time.
const PART_LEN: usize = 48 << 10;

/// The whole data directory, as `closehook backup` keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Backup {}

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
        let parts = std::io::BufWriter::with_capacity(PART_LEN, Parts(out.detached()));
        let written = tokio::task::spawn_blocking(move || backup::write(&dir, &log, &engine, parts));
        let summary = written.await.map_err(text)?.map_err(text)?;
        out.say(&Part::Summary(summary)).await
    }
}

/// A backup's bytes as answers.
struct Parts(Answers);

impl std::io::Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // One large frame comes past the buffer in front.
        for part in bytes.chunks(PART_LEN) {
            self.0.of().say_blocking(&Part::Data(STANDARD.encode(part)))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
