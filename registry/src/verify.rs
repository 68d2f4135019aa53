//! Blobs that nobody has hashed since the machine booted: one hash of each, whoever waits for it. Asks nobody.
//!
//! It is published like a download: a reader of a large one may begin before the hash is known, and never gets its last
//! byte unless that is right.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    background::Background,
    digest::Digest,
    failure::Failure,
    progress::{self, Progress, Publisher, Seat},
    reference::RepositoryName,
    serve::Wish,
    store::{Store, blobs::StoredBlob, blocking},
};

/// For so long a header waits for the hash.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is known of a blob when a header is due.
pub enum Verdict {
    /// It is right.
    Right,
    /// It was wrong, and is no longer here.
    Wrong,
    /// It is long: this tells when it is known.
    Open(watch::Receiver<Progress>),
}

/// All verifications under way.
pub struct Verifier {
    store: Arc<Store>,
    background: Background,
    running: Arc<Mutex<HashMap<Digest, Seat>>>,
}

impl Verifier {
    /// With none under way.
    pub fn new(store: Arc<Store>, background: Background) -> Self {
        Self { store, background, running: Arc::default() }
    }

    /// Waits for the hash of a blob: not for long if it is asked for as a whole, and until the end if it is not, as a
    /// part has no end to hold back.
    pub async fn judge(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        blob: &StoredBlob,
        wish: Wish,
    ) -> Result<Verdict, Failure> {
        if blob.is_verified {
            return Ok(Verdict::Right);
        }
        let mut progress = self.join(repository, digest, blob).progress;
        let is_part = wish.range.is_some_and(|range| range.within(blob.size).is_some());
        let until = if is_part { wish.deadline } else { wish.deadline.min(Instant::now() + PATIENCE) };
        let known = progress.wait_for(|progress| matches!(progress, Progress::Done { .. } | Progress::Failed(_)));
        let known = tokio::time::timeout_at(until.into(), known).await.map(|known| known.map(|known| known.clone()));
        match known {
            Ok(Ok(Progress::Done { .. })) => Ok(Verdict::Right),
            Ok(Ok(Progress::Failed(Failure::WrongDigest))) => Ok(Verdict::Wrong),
            Ok(_) => Err(Failure::Stopping),
            Err(_) if is_part => Err(Failure::NotYet),
            Err(_) => Ok(Verdict::Open(progress)),
        }
    }

    fn join(&self, repository: &RepositoryName, digest: &Digest, blob: &StoredBlob) -> Seat {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seat) = running.get(digest) {
            return seat.clone();
        }
        let (publisher, seat) = progress::begin(repository.clone());
        publisher.grow(&blob.file, Some(blob.size), blob.size);
        running.insert(digest.clone(), seat.clone());
        let entry = Entry { digest: digest.clone(), running: Arc::clone(&self.running) };
        self.background.spawn(verify(Arc::clone(&self.store), entry, blob.clone(), publisher, self.background.clone()));
        seat
    }
}

async fn verify(store: Arc<Store>, entry: Entry, blob: StoredBlob, publisher: Publisher, background: Background) {
    let (digest, hashed, over) = (entry.digest.clone(), blob.clone(), background.stopping());
    let is_right = blocking(move || store.blobs.verify(&digest, &hashed, || over.is_cancelled())).await.flatten();
    // Whoever comes from now on looks for himself.
    drop(entry);
    match is_right {
        Some(true) => publisher.done(blob.file, blob.size),
        Some(false) => publisher.fail(Failure::WrongDigest),
        None => publisher.fail(Failure::Stopping),
    }
}

/// Takes a verification off the list, also when its task is cancelled.
struct Entry {
    digest: Digest,
    running: Arc<Mutex<HashMap<Digest, Seat>>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.digest);
    }
}
