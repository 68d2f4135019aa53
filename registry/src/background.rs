//! Owner of every task that outlives a request: downloads, revalidations, probes. Knows nothing of what they do.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Spawns tasks, and ends them all when the process stops.
#[derive(Clone, Default)]
pub struct Background {
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Background {
    /// Runs `task` until it is done or the process stops.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.stopping.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Resolves when the process is to stop.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Ends all tasks and waits for them, at most `patience`.
    pub async fn stop(&self, patience: Duration) {
        self.stopping.cancel();
        self.tasks.close();
        // A task that does not end in time is ended by the end of the runtime.
        let _ = tokio::time::timeout(patience, self.tasks.wait()).await;
    }
}
