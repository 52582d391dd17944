//! A log that can't be read for a while, and a store that takes its time.

use super::*;

/// A log that can't be read for a while.
#[derive(Debug)]
pub struct Faulty {
    pub log: LocalLog,
    pub broken: AtomicBool,
    /// It does not say which Seq a time has.
    pub silent: AtomicBool,
    /// It can't go on behind what was seen.
    pub stuck: AtomicBool,
    /// Nothing is stored before it has gone on behind this.
    pub held: AtomicU64,
    /// Read as lost.
    pub gone: Mutex<Vec<u64>>,
    /// How often it was to be read.
    pub asked: AtomicU64,
    /// How much of it this node has heard of, where it is shared; `None`: all.
    pub heard: Option<tokio::sync::watch::Receiver<Seq>>,
}

#[async_trait]
impl crate::passing::PassingLog for Faulty {
    fn behind(&self) -> &dyn Log {
        &self.log
    }

    async fn append(&self, incoming: Incoming) -> Result<Appended, crate::log::AppendError> {
        Log::ready(self)?;
        self.log.append(incoming).await
    }

    fn ready(&self) -> Result<(), crate::log::AppendError> {
        if self.log.head().borrow().0 < self.held.load(Ordering::SeqCst) {
            return Err(crate::log::AppendError::Failing("it has to go on first".into()));
        }
        self.log.ready()
    }

    fn head(&self) -> tokio::sync::watch::Receiver<Seq> {
        self.heard.clone().unwrap_or_else(|| self.log.head())
    }

    async fn read(&self, from: Seq, take: crate::log::Take<'_>) -> Result<crate::log::Batch, crate::log::ReadError> {
        self.fail()?;
        let head = Log::head(self).borrow().0;
        if from.0 > head {
            return Ok(crate::log::Batch {
                next: from,
                ..crate::log::Batch::default()
            });
        }
        let take = crate::log::Take {
            events: take.events.min((head + 1 - from.0) as usize),
            ..take
        };
        let mut batch = Log::read(&self.log, from, take).await?;
        for gone in lock(&self.gone).iter().copied().map(Seq) {
            if batch.events.iter().any(|event| event.seq == gone) {
                batch.events.retain(|event| event.seq != gone);
                batch.lost.push((gone, gone));
            }
        }
        Ok(batch)
    }

    async fn get(&self, seq: Seq) -> Result<Option<Arc<crate::event::Event>>, crate::log::ReadError> {
        self.fail()?;
        Log::get(&self.log, seq).await
    }

    async fn seq_at(&self, time: jiff::Timestamp) -> Result<Seq, crate::log::ReadError> {
        self.fail()?;
        if self.silent.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        Log::seq_at(&self.log, time).await
    }

    fn hold_until_past(&self, seen: Seq) {
        self.held.fetch_max(seen.0, Ordering::SeqCst);
    }

    async fn skip_past(&self, seen: Seq) -> Result<(), crate::log::AppendError> {
        if self.fail().is_err() || self.stuck.load(Ordering::SeqCst) {
            return Err(crate::log::AppendError::Full("no room".into()));
        }
        Log::skip_past(&self.log, seen).await
    }
}

impl Faulty {
    pub fn on(log: &LocalLog) -> Faulty {
        Faulty {
            log: log.clone(),
            broken: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            held: AtomicU64::new(0),
            gone: Mutex::default(),
            asked: AtomicU64::new(0),
            heard: None,
        }
    }

    fn fail(&self) -> Result<(), crate::log::ReadError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            return Err(crate::log::ReadError("too many open files".into()));
        }
        Ok(())
    }
}

/// A store whose changes wait at a gate.
#[derive(Debug)]
pub struct Slow {
    pub inner: Arc<dyn Store>,
    pub open: tokio::sync::watch::Sender<bool>,
    /// Changes that have come to the gate.
    pub asked: AtomicU64,
}

#[async_trait]
impl crate::passing::PassingStore for Slow {
    fn behind(&self) -> &dyn Store {
        &*self.inner
    }

    async fn put(&self, key: &str, value: Vec<u8>, expected: Expected) -> Result<Revision, StoreError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        self.inner.put(key, value, expected).await
    }
}
