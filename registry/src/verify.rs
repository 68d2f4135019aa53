//! Blobs that nobody has hashed since the machine booted: one hash of each, whoever waits for it. Asks nobody.
//!
//! It is published like a download: a reader of a large one may begin before the hash is known, goes as far as that has
//! come, so that it is never kept waiting for long, and never gets its last byte unless all is right.

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
    /// part has no end to hold back, or if its size may be wrong, which stands in the header.
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
        let must_be_known = is_part || blob.is_disputed;
        let until = if must_be_known { wish.deadline } else { wish.deadline.min(Instant::now() + PATIENCE) };
        let known = progress.wait_for(|progress| matches!(progress, Progress::Done { .. } | Progress::Failed(_)));
        let known = tokio::time::timeout_at(until.into(), known).await.map(|known| known.map(|known| known.clone()));
        match known {
            Ok(Ok(Progress::Done { .. })) => Ok(Verdict::Right),
            Ok(Ok(Progress::Failed(Failure::WrongDigest))) => Ok(Verdict::Wrong),
            Ok(_) => Err(Failure::Stopping),
            Err(_) if must_be_known => Err(Failure::NotYet),
            Err(_) => Ok(Verdict::Open(progress)),
        }
    }

    fn join(&self, repository: &RepositoryName, digest: &Digest, blob: &StoredBlob) -> Seat {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seat) = running.get(digest) {
            return seat.clone();
        }
        let (publisher, seat) = progress::begin(repository.clone());
        publisher.grow(&blob.file, Some(blob.size), 0);
        running.insert(digest.clone(), seat.clone());
        let entry = Entry { digest: digest.clone(), running: Arc::clone(&self.running) };
        self.background.spawn(verify(Arc::clone(&self.store), entry, blob.clone(), publisher, self.background.clone()));
        seat
    }
}

async fn verify(store: Arc<Store>, entry: Entry, blob: StoredBlob, publisher: Publisher, background: Background) {
    let (digest, over) = (entry.digest.clone(), background.stopping());
    let hashing = blocking(move || {
        let mut hashed = 0;
        let is_right = store.blobs.verify(&digest, &blob, |read| {
            hashed += read;
            publisher.grow(&blob.file, Some(blob.size), hashed);
            over.is_cancelled()
        });
        (is_right, blob, publisher)
    });
    let hashed = hashing.await;
    // Whoever comes from now on looks for himself.
    drop(entry);
    match hashed {
        Some((Some(true), blob, publisher)) => publisher.done(blob.file, blob.size),
        Some((Some(false), _, publisher)) => publisher.fail(Failure::WrongDigest),
        Some((None, _, publisher)) => publisher.fail(Failure::Stopping),
        // Who waits learns by the publisher's end that no more will come.
        None => {}
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

#[cfg(test)]
mod tests {
    use std::{fs::File, path::Path, sync::mpsc, time::SystemTime};

    use super::*;
    use crate::digest::Algorithm;

    const BYTES: &[u8] = b"a blob";

    /// A blob of which nobody knows whether it is right, and a verifier.
    fn unverified(dir: &Path, digest: &Digest, change: impl FnOnce(&File)) -> (Verifier, StoredBlob) {
        let store = Store::open(dir.to_owned(), &"docker.io".parse().unwrap(), "1Gi".parse().unwrap()).unwrap();
        store.keep_small(digest, BYTES, true).unwrap();
        let path = dir.join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex());
        let file = File::options().write(true).open(path).unwrap();
        change(&file);
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let blob = store.blobs.open(digest).unwrap();
        (Verifier::new(Arc::new(store), Background::default()), blob)
    }

    #[test]
    fn a_size_that_is_disputed_stands_in_no_header() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (name, digest) = ("library/app".parse().unwrap(), Digest::of(Algorithm::Sha256, BYTES));
        let (verifier, mut blob) = unverified(dir.path(), &digest, |_| {});
        blob.is_verified = false;
        let (release, held) = mpsc::channel::<()>();
        runtime.spawn_blocking(move || held.recv());
        for is_disputed in [false, true] {
            blob.is_disputed = is_disputed;
            let deadline = Instant::now() + PATIENCE + Duration::from_millis(100);
            let wish = Wish { is_head: false, range: None, deadline };
            let verdict = runtime.block_on(verifier.judge(&name, &digest, &blob, wish));
            assert_eq!(verdict.err(), is_disputed.then_some(Failure::NotYet));
        }
        drop(release);
    }

    #[test]
    fn a_reader_waits_where_the_hash_has_not_begun() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::of(Algorithm::Sha256, BYTES);
        let (verifier, blob) = unverified(dir.path(), &digest, |_| {});
        runtime.block_on(async {
            let (release, held) = mpsc::channel::<()>();
            let waits = tokio::task::spawn_blocking(move || held.recv());
            let mut progress = verifier.join(&"library/app".parse().unwrap(), &digest, &blob).progress;
            assert!(matches!(*progress.borrow(), Progress::Growing { servable: 0, .. }), "{:?}", progress.borrow());
            drop(release);
            waits.await.unwrap().unwrap_err();
            let done = progress.wait_for(|progress| matches!(progress, Progress::Done { size: 6, .. }));
            tokio::time::timeout(Duration::from_secs(10), done).await.unwrap().unwrap();
        });
    }

    #[tokio::test]
    async fn a_reader_goes_on_while_the_hash_does() {
        const LONG: u64 = 1 << 29;
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::of(Algorithm::Sha256, BYTES);
        let (verifier, blob) = unverified(dir.path(), &digest, |file| file.set_len(LONG).unwrap());
        let mut progress = verifier.join(&"library/app".parse().unwrap(), &digest, &blob).progress;
        let mut reached = Vec::new();
        loop {
            tokio::time::timeout(Duration::from_secs(10), progress.changed()).await.unwrap().unwrap();
            match &*progress.borrow_and_update() {
                Progress::Growing { servable, .. } => reached.push(*servable),
                Progress::Failed(Failure::WrongDigest) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(reached.is_sorted());
        for part in [1..LONG / 2, LONG / 2..LONG] {
            assert!(reached.iter().any(|servable| part.contains(servable)), "{part:?} of {reached:?}");
        }
    }
}
