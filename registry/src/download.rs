//! The download behind a flight: asks upstream, writes and hashes what comes, resumes what breaks off, verifies, commits.
//! Knows nothing of readers but the `Progress` it publishes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::{
    digest::Digest,
    failure::Failure,
    flight::Progress,
    metrics::Metrics,
    reference::RepositoryName,
    serve::BLOB_TYPE,
    store::{
        Store,
        blobs::StoredBlob,
        blocking,
        links::{Kind, Link},
        partial::Partial,
    },
    upstream::{BlobStream, Upstream},
};

/// Bytes written and hashed at once.
const BATCH: usize = 256 * 1024;
/// Fewer bytes than this between two breaks are no progress.
const PROGRESS: u64 = 64 * 1024;
/// Waits before each attempt to resume; progress starts the list anew.
const RESUME_AFTER: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// How a copy from upstream ended.
enum Copied {
    /// Upstream's body ended as it should.
    ToTheEnd,
    /// It broke off; what came is kept.
    BrokenOff,
}

/// What stands on disk when a download begins.
enum Begun {
    /// It landed between the look into the store and the start of this download.
    Landed(StoredBlob),
    /// All of it, left by a process that was killed before it could commit.
    Whole(Partial),
    /// A part, maybe nothing.
    Part(Partial),
}

/// One download.
pub(crate) struct Download {
    pub(crate) store: Arc<Store>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) metrics: Arc<Metrics>,
    /// On whose behalf upstream is asked.
    pub(crate) repository: RepositoryName,
    pub(crate) digest: Digest,
    pub(crate) progress: watch::Sender<Progress>,
    /// The size, once upstream has said it.
    pub(crate) total: Option<u64>,
}

impl Download {
    /// Ends with `Done` published; otherwise the caller publishes the failure.
    pub(crate) async fn run(mut self) -> Result<(), Failure> {
        let partial = match self.begun().await? {
            Begun::Landed(blob) => {
                self.progress.send_replace(Progress::Done { file: blob.file, size: blob.size });
                return Ok(());
            }
            Begun::Whole(partial) => {
                self.prove().await?;
                partial
            }
            Begun::Part(partial) => self.download(partial).await?,
        };
        self.land(partial).await
    }

    async fn begun(&self) -> Result<Begun, Failure> {
        let (store, digest) = (Arc::clone(&self.store), self.digest.clone());
        let begun = blocking(move || match store.blobs.open(&digest) {
            Some(blob) => Ok(Begun::Landed(blob)),
            None => store.partials.open(&digest).map(|partial| {
                if partial.length() > 0 && partial.is_whole() { Begun::Whole(partial) } else { Begun::Part(partial) }
            }),
        });
        begun.await.ok_or(Failure::Stopping)?.map_err(|error| {
            warn!(digest = self.digest.short(), %error, "download cannot be written");
            Failure::Disk
        })
    }

    /// Content that came without asking on this repository's behalf: it may not have it.
    async fn prove(&self) -> Result<(), Failure> {
        let (store, name) = (Arc::clone(&self.store), (self.repository.clone(), self.digest.clone()));
        let link = blocking(move || store.links.get(&name.0, &name.1)).await.flatten();
        if link.is_none() {
            let size = self.upstream.head_blob(&self.repository, &self.digest).await?;
            self.link(size).await;
        }
        Ok(())
    }

    /// Upstream has served the digest from this repository.
    async fn link(&self, size: Option<u64>) {
        let (store, name) = (Arc::clone(&self.store), (self.repository.clone(), self.digest.clone()));
        let link = Link { kind: Kind::Blob, media_type: BLOB_TYPE.to_owned(), size };
        let added = blocking(move || store.links.add(&name.0, &name.1, &link)).await;
        if let Some(Err(error)) = added {
            warn!(repository = %self.repository, digest = self.digest.short(), %error, "link not kept");
        }
    }

    /// Asks upstream for what is missing until everything is here, resuming where a body breaks off.
    async fn download(&mut self, mut partial: Partial) -> Result<Partial, Failure> {
        let mut attempt = 0;
        loop {
            let before = partial.length();
            let answer = self.upstream.get_blob(&self.repository, &self.digest, before).await;
            let failure = match answer {
                // What an earlier process left is longer than the blob.
                Ok(None) if before > 0 && !self.is_seen() => {
                    partial = self.start_over(partial).await?;
                    continue;
                }
                Ok(None) => Failure::InvalidResponse,
                Ok(Some(stream)) => {
                    self.begin(&stream, &partial).await?;
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
            attempt = if partial.length() - before >= PROGRESS { 1 } else { attempt + 1 };
            let Some(wait) = RESUME_AFTER.get(attempt - 1) else { return Err(failure) };
            debug!(
                digest = self.digest.short(),
                at = partial.length(),
                reason = failure.category(),
                "download resumes"
            );
            tokio::time::sleep(*wait).await;
        }
    }

    /// Whether readers have been told a size and may have read.
    fn is_seen(&self) -> bool {
        !matches!(*self.progress.borrow(), Progress::Asking)
    }

    async fn start_over(&self, partial: Partial) -> Result<Partial, Failure> {
        let (store, digest) = (Arc::clone(&self.store), self.digest.clone());
        let fresh = blocking(move || {
            partial.discard();
            store.partials.open(&digest)
        });
        fresh.await.ok_or(Failure::Stopping)?.map_err(|_| Failure::Disk)
    }

    /// Upstream's header is here: readers may begin.
    async fn begin(&mut self, stream: &BlobStream, partial: &Partial) -> Result<(), Failure> {
        if self.is_seen() {
            // A body of another size is another body.
            let is_same = stream.total.is_none_or(|total| self.total.is_none_or(|known| known == total));
            return if is_same { Ok(()) } else { Err(Failure::InvalidResponse) };
        }
        if !stream.is_private
            && let Err(error) = partial.mark_public()
        {
            // It stays private, which only costs a question more.
            debug!(digest = self.digest.short(), %error, "cannot mark download as public");
        }
        self.link(stream.total).await;
        self.total = stream.total;
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
                self.metrics.received(received);
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
        self.progress.send_replace(Progress::Done { file, size });
        let store = Arc::clone(&self.store);
        if let Some(Err(error)) = blocking(move || store.blobs.commit(&verified)).await {
            warn!(digest = self.digest.short(), %error, "download served but not kept");
        }
        Ok(())
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
