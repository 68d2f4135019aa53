//! How many requests upstream gets at once, and how long each waits for its turn. Does no I/O.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::failure::Failure;

/// Manifests, lists and questions for a header.
const MOST_SMALL: usize = 32;
/// Blobs on their way.
const MOST_BODIES: usize = 64;
/// A download waits so long for a place among them: longer than its readers do, as it goes on without them.
const QUEUE: Duration = Duration::from_secs(60);

/// Bodies of blobs have places of their own, so that slow ones keep no tag waiting.
pub(super) struct Places {
    small: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
}

/// One of the places, held until the body has been read.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    all: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        Self { small: Arc::new(Semaphore::new(MOST_SMALL)), bodies: Arc::new(Semaphore::new(MOST_BODIES)) }
    }
}

impl Places {
    /// For anything but a blob's body. Waiting for it counts as waiting for upstream.
    pub(super) async fn small(&self, deadline: Instant) -> Result<Place, Failure> {
        Place::among(&self.small, deadline).await.ok_or(Failure::HeaderTimeout)
    }

    /// For a blob's body.
    pub(super) async fn body(&self) -> Result<Place, Failure> {
        Place::among(&self.bodies, Instant::now() + QUEUE).await.ok_or(Failure::NotYet)
    }

    /// Whether all places for bodies are taken.
    pub(super) fn are_crowded(&self) -> bool {
        self.bodies.available_permits() == 0
    }
}

impl Place {
    async fn among(all: &Arc<Semaphore>, deadline: Instant) -> Option<Self> {
        let permit = tokio::time::timeout_at(deadline.into(), Arc::clone(all).acquire_owned()).await;
        Some(Self { _permit: permit.ok()?.ok()?, all: Arc::clone(all) })
    }

    /// Whether all like it are taken.
    pub(super) fn is_sought(&self) -> bool {
        self.all.available_permits() == 0
    }
}
