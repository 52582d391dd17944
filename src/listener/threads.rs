//! Threads of its own for the way to an answer, so that nothing else the process does (a sink that computes, a command that
//! counts) can hold one up: invariant I7.

use std::io;
use std::num::NonZero;

use tokio::runtime::{Builder, Handle, Runtime};

/// The threads that connections are served on and commits are answered from.
#[derive(Debug)]
pub struct Threads {
    handle: Handle,
    /// Taken when it is dropped.
    runtime: Option<Runtime>,
}

impl Threads {
    /// Starts them: one fewer than there are cores, and at least one. The core left over is for the commit loop, which all of
    /// them wait for; where they are as many as the cores, they and it get into each other's way. Measured on two cores, 64
    /// connections: one thread stores 1.3 times what two do.
    pub fn start() -> io::Result<Threads> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let runtime = Builder::new_multi_thread()
            .worker_threads(cores.saturating_sub(1).max(1))
            .thread_name("ingress")
            .enable_all()
            .build()?;
        Ok(Threads {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    /// Where to spawn.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Waiting for it is not allowed where tasks run; whatever should end in order has been waited for already.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
