//! Flights: one download per digest, any number of readers.
//!
//! The first who misses a digest starts a flight; whoever comes later joins it. Its download (download.rs) is a task of
//! its own that writes to `partial/<hex>` and publishes its progress (progress.rs, which has the states); readers read
//! the file up to what is published (body.rs). Readers leaving do not stop it.
//!
//! A flight is on the list from `join` until its task has ended: by then its content is committed, or its failure is
//! remembered. So whoever finds none on the list finds the blob on disk, the reason why not, or starts the next one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;
use tracing::debug;

pub use crate::progress::{Progress, Seat};
use crate::{
    background::Background,
    digest::Digest,
    download::Download,
    failure::Failure,
    metrics::{Held, Metrics},
    progress::{self, Publisher},
    reference::RepositoryName,
    store::Store,
    upstream::Upstream,
};

/// A failure answers for this long, so that a client that comes back at once goes on to upstream.
const REMEMBER_FAILURE: Duration = Duration::from_secs(5);
const MOST_FAILURES: usize = 10_000;
/// Downloads that run at once; each holds a connection and two files.
const MOST_RUNNING: usize = 256;
/// Flights that run or wait to run. More are refused, as nobody would wait for them.
const MOST_FLIGHTS: usize = 4096;

/// All flights.
pub struct Flights {
    store: Arc<Store>,
    upstream: Arc<Upstream>,
    metrics: Arc<Metrics>,
    background: Background,
    slots: Arc<Semaphore>,
    flying: Mutex<HashMap<Digest, Seat>>,
    failed: Mutex<HashMap<(RepositoryName, Digest), (Instant, Failure)>>,
}

impl Flights {
    /// With none in the air.
    pub fn new(store: Arc<Store>, upstream: Arc<Upstream>, metrics: Arc<Metrics>, background: Background) -> Arc<Self> {
        let slots = Arc::new(Semaphore::new(MOST_RUNNING));
        Arc::new(Self {
            store,
            upstream,
            metrics,
            background,
            slots,
            flying: Mutex::default(),
            failed: Mutex::default(),
        })
    }

    /// Joins the flight of `digest`, or starts one on behalf of `repository`.
    pub fn join(self: &Arc<Self>, repository: &RepositoryName, digest: &Digest) -> Result<Seat, Failure> {
        let mut flying = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has failed takes nobody on: it may have failed on behalf of another repository.
        if let Some(seat) = flying.get(digest).filter(|seat| !seat.has_failed()) {
            return Ok(seat.clone());
        }
        self.recent_failure(repository, digest)?;
        if flying.len() >= MOST_FLIGHTS {
            return Err(Failure::NotYet);
        }
        let (publisher, seat) = progress::begin(repository.clone());
        flying.insert(digest.clone(), seat.clone());
        drop(flying);
        let held = self.metrics.flight();
        let landing = Landing { flights: Arc::clone(self), digest: digest.clone(), seat: seat.clone(), _held: held };
        self.background.spawn(Arc::clone(self).fly(publisher, landing));
        Ok(seat)
    }

    async fn fly(self: Arc<Self>, publisher: Publisher, landing: Landing) {
        let Ok(_slot) = self.slots.acquire().await else { return };
        let (repository, digest) = (landing.seat.repository.clone(), landing.digest.clone());
        let name = (repository.clone(), digest.clone());
        let parts = (Arc::clone(&self.store), Arc::clone(&self.upstream), Arc::clone(&self.metrics));
        let mut download = Download::new(parts, repository, digest, publisher);
        if let Err(failure) = download.run().await {
            debug!(repository = %name.0, digest = name.1.short(), reason = failure.category(), "download failed");
            // What an earlier process left on disk says nothing of upstream: the next request may start at once. And an open
            // breaker fails as fast as our memory does, but forgets as soon as upstream is back.
            if !download.was_spoilt_on_disk() && !self.upstream.is_cut_off() {
                self.remember(name, failure);
            }
            download.publisher().fail(failure);
        }
        drop(landing);
    }

    fn remember(&self, name: (RepositoryName, Digest), failure: Failure) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.len() >= MOST_FAILURES {
            failed.retain(|_, (at, _)| at.elapsed() < REMEMBER_FAILURE);
            if failed.len() >= MOST_FAILURES {
                failed.clear();
            }
        }
        failed.insert(name, (Instant::now(), failure));
    }

    fn recent_failure(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), Failure> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (repository.clone(), digest.clone());
        match failed.get(&name) {
            Some((at, failure)) if at.elapsed() < REMEMBER_FAILURE => Err(*failure),
            Some(_) => {
                failed.remove(&name);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Takes a flight off the list, also when its task is cancelled.
struct Landing {
    flights: Arc<Flights>,
    digest: Digest,
    seat: Seat,
    _held: Held,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flying = self.flights.flying.lock().unwrap_or_else(PoisonError::into_inner);
        // A failed one may have been followed by the next already.
        if flying.get(&self.digest).is_some_and(|seat| seat.is_beside(&self.seat)) {
            flying.remove(&self.digest);
        }
    }
}
