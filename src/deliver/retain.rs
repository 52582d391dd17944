//! What retention asks of whoever reads the log, answered for all sinks together.

use std::sync::atomic::Ordering;

use async_trait::async_trait;

use super::Engine;
use super::letters::Letters;
use crate::event::Seq;
use crate::retention::{Floor, Readers};
use crate::sync::lock;

#[async_trait]
impl Readers for Engine {
    async fn floor(&self) -> Floor {
        Engine::floor(self).await
    }

    async fn holder(&self) -> Option<String> {
        Engine::holder(self).await
    }

    fn bury(&self, upto: Seq) {
        Engine::bury(self, upto);
    }

    fn allow_letters(&self, bytes: u64) {
        self.inner.letters_max.store(bytes, Ordering::Relaxed);
    }

    fn letters(&self) -> u64 {
        let letters = lock(&self.inner.letters);
        letters.values().map(Letters::live_bytes).sum()
    }

    async fn secure_letters(&self, before: Seq) -> Result<(), String> {
        Engine::secure_letters(self, before).await
    }
}
