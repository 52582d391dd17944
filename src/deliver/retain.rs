//! What retention asks of whoever reads the log, answered for all sinks together.

use async_trait::async_trait;

use super::Engine;
use crate::event::Seq;
use crate::retention::{Floor, Readers};

#[async_trait]
impl Readers for Engine {
    async fn floor(&self) -> Floor {
        Engine::floor(self).await
    }

    fn bury(&self, upto: Seq) {
        Engine::bury(self, upto);
    }

    async fn secure_letters(&self, before: Seq) -> Result<(), String> {
        Engine::secure_letters(self, before).await
    }
}
