//! Flights: one download per digest, any number of readers.
//!
//! The first who misses a digest starts a flight; whoever comes later joins it. Its download (download.rs) is a task of
//! its own that writes to `partial/<hex>` and publishes its `Progress`; readers read the file up to what is published (body.rs).
//! Readers leaving do not stop it.
//!
//! ```text
//! Asking --header--> Growing --hash right--> Done   (committed behind the readers' backs)
//!    \                  \--hash wrong, upstream gone for good, disk full--> Failed
//!     \--refused, not found, no answer--> Failed
//! ```
//!
//! The last byte is published only by `Done`: nothing of full length goes out unverified.

use std::{
    collections::HashMap,
    fs::File,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tracing::debug;

use crate::{
    background::Background,
    digest::Digest,
    download::Download,
    failure::Failure,
    metrics::{Held, Metrics},
    reference::RepositoryName,
    store::Store,
    upstream::Upstream,
};

/// A failure answers for this long, so that a client that comes back at once goes on to upstream.
const REMEMBER_FAILURE: Duration = Duration::from_secs(5);

/// What readers see of a flight.
#[derive(Clone, Debug)]
pub enum Progress {
    /// Upstream has not answered yet.
    Asking,
    /// Bytes are coming.
    Growing {
        /// Where they are.
        file: Arc<File>,
        /// How many there will be, if upstream says so.
        total: Option<u64>,
        /// How many may be served; never all of them.
        servable: u64,
    },
    /// Everything is here and right.
    Done {
        /// Where.
        file: Arc<File>,
        /// How many bytes.
        size: u64,
    },
    /// No more will come.
    Failed(Failure),
}

/// A place in a flight.
pub struct Seat {
    /// What is seen from it.
    pub progress: watch::Receiver<Progress>,
    /// On whose behalf upstream is asked.
    pub repository: RepositoryName,
}

/// All flights.
pub struct Flights {
    store: Arc<Store>,
    upstream: Arc<Upstream>,
    metrics: Arc<Metrics>,
    background: Background,
    running: Mutex<HashMap<Digest, Seat>>,
    failed: Mutex<HashMap<(RepositoryName, Digest), (Instant, Failure)>>,
}

impl Flights {
    /// With none in the air.
    pub fn new(store: Arc<Store>, upstream: Arc<Upstream>, metrics: Arc<Metrics>, background: Background) -> Arc<Self> {
        Arc::new(Self { store, upstream, metrics, background, running: Mutex::default(), failed: Mutex::default() })
    }

    /// Joins the flight of `digest`, or starts one on behalf of `repository`.
    pub fn join(self: &Arc<Self>, repository: &RepositoryName, digest: &Digest) -> Result<Seat, Failure> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Seat { progress, repository }) = running.get(digest) {
            return Ok(Seat { progress: progress.clone(), repository: repository.clone() });
        }
        self.recent_failure(repository, digest)?;
        let (sender, progress) = watch::channel(Progress::Asking);
        let seat = || Seat { progress: progress.clone(), repository: repository.clone() };
        running.insert(digest.clone(), seat());
        let landing = Landing { flights: Arc::clone(self), digest: digest.clone(), _held: self.metrics.flight() };
        let download = Download {
            store: Arc::clone(&self.store),
            upstream: Arc::clone(&self.upstream),
            metrics: Arc::clone(&self.metrics),
            repository: repository.clone(),
            digest: digest.clone(),
            progress: sender.clone(),
            total: None,
        };
        let flights = Arc::clone(self);
        let name = (repository.clone(), digest.clone());
        self.background.spawn(async move {
            if let Err(failure) = download.run().await {
                flights.remember(name, failure);
                sender.send_replace(Progress::Failed(failure));
            }
            drop(landing);
        });
        Ok(seat())
    }

    fn remember(&self, name: (RepositoryName, Digest), failure: Failure) {
        debug!(repository = %name.0, digest = name.1.short(), reason = failure.category(), "download failed");
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, (at, _)| at.elapsed() < REMEMBER_FAILURE);
        failed.insert(name, (Instant::now(), failure));
    }

    fn recent_failure(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), Failure> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match failed.get(&(repository.clone(), digest.clone())) {
            Some((at, failure)) if at.elapsed() < REMEMBER_FAILURE => Err(*failure),
            _ => Ok(()),
        }
    }
}

/// Takes a flight off the list, also when its task is cancelled.
struct Landing {
    flights: Arc<Flights>,
    digest: Digest,
    _held: Held,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.flights.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.digest);
    }
}
