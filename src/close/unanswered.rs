//! What nodes share, where something that is asked is never answered: for tests.

use std::sync::mpsc;

use async_trait::async_trait;

use crate::state::{Entry, Expected, Revision, Store, StoreError};

/// It answers to everything but changes of one value.
#[derive(Debug)]
pub struct Unanswered {
    key: &'static str,
    also_to_readers: bool,
    asked: Option<mpsc::Sender<()>>,
}

impl Unanswered {
    pub fn new(key: &'static str) -> Unanswered {
        Unanswered {
            key,
            also_to_readers: false,
            asked: None,
        }
    }

    /// Whoever reads the value is not answered either.
    pub fn also_to_readers(mut self) -> Unanswered {
        self.also_to_readers = true;
        self
    }

    /// Says when a change is asked for that is not answered.
    pub fn telling(mut self, asked: mpsc::Sender<()>) -> Unanswered {
        self.asked = Some(asked);
        self
    }
}

#[async_trait]
impl Store for Unanswered {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        if key == self.key && self.also_to_readers {
            std::future::pending::<()>().await;
        }
        Ok(None)
    }

    async fn put(&self, key: &str, _value: Vec<u8>, _expected: Expected) -> Result<Revision, StoreError> {
        if key == self.key {
            if let Some(asked) = &self.asked {
                asked.send(()).unwrap();
            }
            std::future::pending::<()>().await;
        }
        Ok(Revision(1))
    }

    async fn remove(&self, _key: &str, _expected: Expected) -> Result<(), StoreError> {
        Ok(())
    }

    async fn keys(&self, _prefix: &str) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    fn is_damaged(&self) -> bool {
        false
    }

    async fn mended(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn close(&self) {}
}
