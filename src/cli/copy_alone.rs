//! `closehook log copy` in a build that knows one engine only.

pub(super) use super::copy_args::{Copy, Reopen};
use super::{Failure, Global, Outcome};

const NONE: &str = "this closehook is built without JetStream (engine-jetstream)";

impl Copy {
    #[allow(clippy::unused_async, reason = "as where there are two")]
    pub(super) async fn run(&self, _global: &Global) -> Outcome {
        let _ = self.to;
        Err(Failure::Usage(NONE.into()))
    }
}

impl Reopen {
    #[allow(clippy::unused_async, reason = "as where there are two")]
    pub(super) async fn run(&self, _global: &Global) -> Outcome {
        let _ = self.yes;
        Err(Failure::Usage(NONE.into()))
    }
}
