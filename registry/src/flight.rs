//! Flights: one download per digest, any number of readers.
//!
//! The first who misses a digest starts a flight; whoever comes later joins it. Its download (download.rs) is a task of
//! its own that writes to `partial/<hex>` and publishes its progress (progress.rs, which has the states); readers read
//! the file up to what is published (body.rs). Readers leaving do not stop it.
//!
//! `join` looks on disk itself, on the thread that has just found the blob missing: for a small blob a change of threads
//! costs more than the look.
//!
//! A flight is on the list from `join` until its task has ended: by then its content is committed, or its failure is
//! remembered. So whoever finds none on the list finds the blob on disk, the reason why not, or starts the next one.

mod memory;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tracing::debug;

use self::memory::Memory;
pub use crate::progress::{Progress, Seat};
use crate::{
    background::Background,
    digest::Digest,
    download::{Begun, Download},
    failure::Failure,
    metrics::{Held, Metrics},
    peer::News,
    progress::{self, Publisher},
    reference::RepositoryName,
    source::Sources,
    store::Store,
};

/// More are refused: upstream is asked for a few at a time, so nobody would wait for them.
const MOST_FLIGHTS: usize = 4096;

/// All flights.
pub struct Flights {
    store: Arc<Store>,
    sources: Arc<Sources>,
    metrics: Arc<Metrics>,
    background: Background,
    flying: Mutex<HashMap<Digest, Seat>>,
    memory: Memory,
}

impl Flights {
    /// With none in the air.
    pub fn new(store: Arc<Store>, sources: Arc<Sources>, metrics: Arc<Metrics>, background: Background) -> Arc<Self> {
        let (flying, memory) = Default::default();
        Arc::new(Self { store, sources, metrics, background, flying, memory })
    }

    /// The flight of `digest`, if there is one.
    pub fn find(&self, digest: &Digest) -> Option<Seat> {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    /// Joins the flight of `digest`, or starts one on behalf of `repository`. Reads the disk: for `blocking` alone.
    pub fn join(self: &Arc<Self>, repository: &RepositoryName, digest: &Digest) -> Result<Joined, Failure> {
        let (publisher, landing) = match self.board(repository, digest)? {
            Boarded::Under(seat) => {
                let stood = seat.progress.borrow().clone();
                return Ok(Joined { seat, stood });
            }
            Boarded::First(publisher, landing) => (publisher, landing),
        };
        let seat = landing.seat.clone();
        let parts = (Arc::clone(&self.store), Arc::clone(&self.sources), Arc::clone(&self.metrics));
        let liars = self.memory.liars(digest);
        let mut download = Download::new(parts, repository.clone(), digest.clone(), publisher, liars);
        let begun = download.begin_on_disk();
        self.background.spawn(Arc::clone(self).fly(download, begun, landing));
        Ok(Joined { seat, stood: Progress::Asking })
    }

    fn board(self: &Arc<Self>, repository: &RepositoryName, digest: &Digest) -> Result<Boarded, Failure> {
        let mut flying = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has failed takes nobody on: it may have failed on behalf of another repository.
        if let Some(seat) = flying.get(digest).filter(|seat| !seat.has_failed()) {
            return Ok(Boarded::Under(seat.clone()));
        }
        if let Some(failure) = self.memory.failure(repository, digest, self.sources.last_return()) {
            return Err(failure);
        }
        if flying.len() >= MOST_FLIGHTS {
            return Err(Failure::NotYet);
        }
        let (publisher, seat) = progress::begin(repository.clone());
        flying.insert(digest.clone(), seat.clone());
        drop(flying);
        let held = self.metrics.flight();
        let landing = Landing { flights: Arc::clone(self), digest: digest.clone(), seat, _held: held };
        Ok(Boarded::First(publisher, landing))
    }

    async fn fly(self: Arc<Self>, mut download: Download, begun: Result<Begun, Failure>, landing: Landing) {
        let (repository, digest) = (landing.seat.repository.clone(), landing.digest.clone());
        let began = Instant::now();
        match download.run(begun).await {
            Ok(()) if download.is_news() => self.sources.peers().tell(&News::Blob(repository, digest)),
            Ok(()) => {}
            Err(failure) => {
                debug!(%repository, digest = digest.short(), reason = failure.category(), "download failed");
                self.remember(&download, began, failure);
                download.publisher().fail(failure);
            }
        }
        drop(landing);
    }

    /// What the next request is to know of a failure, if it says anything of how that one will fare.
    fn remember(&self, download: &Download, began: Instant, failure: Failure) {
        let (repository, digest) = download.name();
        if failure == Failure::WrongDigest && !download.was_spoilt_on_disk() {
            self.sources.lied(download.used());
            let liars = [self.memory.liars(digest), download.used().to_vec()].concat();
            let has_honest_ones = self.sources.has_more(&liars);
            self.memory.lied(digest.clone(), liars);
            if has_honest_ones {
                return;
            }
        }
        // What an earlier process left on disk says nothing of the sources: the next request may start at once. And an open
        // breaker fails as fast as our memory does, but lets replicas be asked that may be back.
        if !download.was_spoilt_on_disk() && !self.sources.is_cut_off() {
            self.memory.failed(repository.clone(), digest.clone(), began, failure);
        }
    }
}

/// A place in a flight.
pub struct Joined {
    /// The place.
    pub seat: Seat,
    /// How the flight stood when the place was taken.
    pub stood: Progress,
}

enum Boarded {
    Under(Seat),
    First(Publisher, Landing),
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
