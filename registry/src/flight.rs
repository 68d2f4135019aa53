//! Flights: one download per digest, any number of readers.
//!
//! The first who misses a digest starts a flight; whoever comes later joins it. A flight is a task of its own: it
//! writes to `partial/<hex>` and publishes its `Progress`; readers read the file up to what is published (body.rs).
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

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::{
    background::Background,
    digest::Digest,
    failure::Failure,
    metrics::Metrics,
    reference::RepositoryName,
    store::{
        Store, blocking,
        links::{Kind, Link},
        partial::Partial,
    },
    upstream::{BlobStream, Upstream},
};

/// Bytes written and hashed at once.
const BATCH: usize = 256 * 1024;
/// Waits before each attempt to resume; bytes that arrive start the list anew.
const RESUME_AFTER: [Duration; 5] =
    [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(400), Duration::from_secs(1), Duration::from_secs(2)];
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
        let landing = Landing { flights: Arc::clone(self), digest: digest.clone() };
        let mut flight = Flight {
            flights: Arc::clone(self),
            repository: repository.clone(),
            digest: digest.clone(),
            progress: sender,
            total: None,
            is_public: false,
        };
        self.background.spawn(async move {
            let outcome = flight.run().await;
            if let Err(failure) = outcome {
                flight.fail(failure);
            }
            drop(landing);
        });
        Ok(seat())
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
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.flights.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.digest);
    }
}

/// How a copy from upstream ended.
enum Copied {
    /// Upstream's body ended as it should.
    ToTheEnd,
    /// It broke off; what came is kept.
    BrokenOff,
}

struct Flight {
    flights: Arc<Flights>,
    repository: RepositoryName,
    digest: Digest,
    progress: watch::Sender<Progress>,
    total: Option<u64>,
    is_public: bool,
}

impl Flight {
    async fn run(&mut self) -> Result<(), Failure> {
        let (store, digest) = (Arc::clone(&self.flights.store), self.digest.clone());
        let begun = blocking(move || match store.blobs.open(&digest) {
            // It landed between the look into the store and the start of this flight.
            Some(blob) => Ok(Err(blob)),
            None => store.partials.open(&digest).map(Ok),
        });
        let partial = match begun.await.ok_or(Failure::Stopping)? {
            Ok(Ok(partial)) => partial,
            Ok(Err(blob)) => {
                self.progress.send_replace(Progress::Done { file: blob.file, size: blob.size });
                return Ok(());
            }
            Err(error) => {
                warn!(digest = self.digest.short(), %error, "download cannot be written");
                return Err(Failure::Disk);
            }
        };
        let partial = if partial.length() > 0 && partial.is_whole() { partial } else { self.download(partial).await? };
        self.land(partial).await
    }

    /// Asks upstream for what is missing until everything is here, resuming where a body breaks off.
    async fn download(&mut self, mut partial: Partial) -> Result<Partial, Failure> {
        let mut attempt = 0;
        loop {
            let before = partial.length();
            let answer = self.flights.upstream.get_blob(&self.repository, &self.digest, before).await;
            let failure = match answer {
                // What an earlier process left is longer than the blob.
                Ok(None) if before > 0 && !self.is_seen() => {
                    partial = self.start_over(partial).await?;
                    continue;
                }
                Ok(None) => Failure::InvalidResponse,
                Ok(Some(stream)) => {
                    self.begin(&stream, &partial)?;
                    let (grown, copied) = self.copy(stream, partial).await?;
                    partial = grown;
                    if matches!(copied, Copied::ToTheEnd) && self.total.is_none_or(|total| partial.length() >= total) {
                        return Ok(partial);
                    }
                    Failure::BrokenBody
                }
                Err(failure) if !self.is_seen() => return Err(failure),
                Err(failure) => failure,
            };
            attempt = if partial.length() > before { 1 } else { attempt + 1 };
            let Some(wait) = RESUME_AFTER.get(attempt - 1) else { return Err(failure) };
            debug!(digest = self.digest.short(), at = partial.length(), reason = failure.category(), "download resumes");
            tokio::time::sleep(*wait).await;
        }
    }

    /// Whether readers have been told a size and may have read.
    fn is_seen(&self) -> bool {
        !matches!(*self.progress.borrow(), Progress::Asking)
    }

    async fn start_over(&self, partial: Partial) -> Result<Partial, Failure> {
        let (store, digest) = (Arc::clone(&self.flights.store), self.digest.clone());
        let fresh = blocking(move || {
            partial.discard();
            store.partials.open(&digest)
        });
        fresh.await.ok_or(Failure::Stopping)?.map_err(|_| Failure::Disk)
    }

    /// Upstream's header is here: readers may begin.
    fn begin(&mut self, stream: &BlobStream, partial: &Partial) -> Result<(), Failure> {
        if self.is_seen() {
            // A body of another size is another body.
            let is_same = stream.total.is_none_or(|total| self.total.is_none_or(|known| known == total));
            return if is_same { Ok(()) } else { Err(Failure::InvalidResponse) };
        }
        self.total = stream.total;
        self.is_public = !stream.is_private;
        self.publish(partial);
        Ok(())
    }

    fn publish(&self, partial: &Partial) {
        let most = self.total.unwrap_or(partial.length()).saturating_sub(1);
        let servable = partial.length().min(most);
        let file = Arc::clone(partial.file());
        self.progress.send_replace(Progress::Growing { file, total: self.total, servable });
    }

    async fn copy(&self, mut stream: BlobStream, mut partial: Partial) -> Result<(Partial, Copied), Failure> {
        // Upstream may ignore ranges and begin anew; what is here already is skipped.
        let mut skip = partial.length() - stream.start;
        loop {
            let (batch, end) = next_batch(&mut stream, &mut skip).await;
            let received = batch.iter().map(|piece| piece.len() as u64).sum::<u64>();
            if received > 0 {
                self.flights.metrics.received(received);
                if self.total.is_some_and(|total| partial.length() + received > total) {
                    return Err(Failure::InvalidResponse);
                }
                partial = self.write(partial, batch).await?;
                self.publish(&partial);
            }
            if let Some(copied) = end {
                return Ok((partial, copied));
            }
        }
    }

    async fn write(&self, mut partial: Partial, batch: Vec<Bytes>) -> Result<Partial, Failure> {
        let written = blocking(move || match partial.append(&batch) {
            Ok(()) => Ok(partial),
            Err(error) => {
                // Gives the space back if it was the disk's end that was met.
                partial.discard();
                Err(error)
            }
        });
        written.await.ok_or(Failure::Stopping)?.map_err(|error| {
            warn!(digest = self.digest.short(), %error, "download cannot be written");
            Failure::Disk
        })
    }

    /// Verifies, lets the readers have the last byte, and commits.
    async fn land(&self, partial: Partial) -> Result<(), Failure> {
        let verified = blocking(move || partial.verify()).await.ok_or(Failure::Stopping)?;
        let Some(verified) = verified else {
            warn!(repository = %self.repository, digest = self.digest.short(), "upstream's content does not match its digest");
            return Err(Failure::WrongDigest);
        };
        let (file, size) = (Arc::clone(verified.file()), verified.length());
        let (store, repository, digest) = (Arc::clone(&self.flights.store), self.repository.clone(), self.digest.clone());
        self.progress.send_replace(Progress::Done { file, size });
        let is_public = self.is_public;
        let committed = blocking(move || {
            store.blobs.commit(&verified, is_public)?;
            let media_type = "application/octet-stream".to_owned();
            store.links.add(&repository, &digest, &Link { kind: Kind::Blob, media_type, size: Some(size) })
        });
        if let Err(error) = committed.await.unwrap_or(Ok(())) {
            warn!(digest = self.digest.short(), %error, "download served but not kept");
        }
        Ok(())
    }

    fn fail(&self, failure: Failure) {
        debug!(repository = %self.repository, digest = self.digest.short(), reason = failure.category(), "download failed");
        let mut failed = self.flights.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, (at, _)| at.elapsed() < REMEMBER_FAILURE);
        failed.insert((self.repository.clone(), self.digest.clone()), (Instant::now(), failure));
        drop(failed);
        self.progress.send_replace(Progress::Failed(failure));
    }
}

/// Waits for one piece and takes what else is here already; also says whether that was the end.
async fn next_batch(stream: &mut BlobStream, skip: &mut u64) -> (Vec<Bytes>, Option<Copied>) {
    let mut batch = Vec::new();
    let mut size = 0;
    let mut next = stream.next().await;
    loop {
        match next {
            Ok(None) => return (batch, Some(Copied::ToTheEnd)),
            Err(_) => return (batch, Some(Copied::BrokenOff)),
            Ok(Some(mut piece)) => {
                let skipped = piece.len().min(usize::try_from(*skip).unwrap_or(usize::MAX));
                *skip -= skipped as u64;
                let piece = piece.split_off(skipped);
                size += piece.len();
                batch.push(piece);
            }
        }
        if size >= BATCH {
            return (batch, None);
        }
        match stream.next().now_or_never() {
            Some(ready) => next = ready,
            None => return (batch, None),
        }
    }
}
