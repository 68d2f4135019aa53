//! The download behind a flight: asks for what is missing, copies what comes (copy.rs), resumes what breaks off,
//! verifies, commits. Knows nothing of readers but the progress it publishes.
//!
//! What an earlier process left on disk is continued unseen: it is hashed while the rest comes, and only the hash of
//! everything decides. If that is wrong, the download starts over from zero once, unless a reader has bytes already.

mod at_once;
mod copy;
mod land;

use std::{sync::Arc, time::Duration};

use tracing::{debug, warn};

use self::copy::Copied;
use crate::{
    digest::Digest,
    failure::Failure,
    metrics::Metrics,
    progress::{Feed, Publisher},
    reference::RepositoryName,
    source::{Source, Sources},
    store::{Store, blobs::StoredBlob, blocking, links::Link, partial::Partial},
    upstream::BlobStream,
};

/// Fewer bytes than this between two breaks are no progress.
const PROGRESS: u64 = 64 * 1024;
/// A smaller download is written before its readers have a header.
const RESERVE_FROM: u64 = 256 * 1024;
/// Waits before each attempt to resume; progress starts the list anew.
const RESUME_AFTER: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// What stands on disk when a download begins.
enum Begun {
    /// It landed between the look into the store and the start of this download.
    Landed(StoredBlob),
    /// As much as the blob is long, left by a process that was killed before it could commit.
    Whole(Partial),
    /// A part, maybe nothing.
    Part(Partial),
}

/// How far a download has come when nothing is missing.
enum Filled {
    /// All bytes are here, none of them trusted yet.
    Whole(Partial),
    /// It came in one go, and is with its readers already.
    Landed,
    /// It came in one go, and was wrong.
    Wrong,
}

/// One download.
pub(crate) struct Download {
    store: Arc<Store>,
    sources: Arc<Sources>,
    metrics: Arc<Metrics>,
    /// On whose behalf the content is asked for.
    repository: RepositoryName,
    digest: Digest,
    publisher: Publisher,
    /// Who is asked last: they broke off, stalled or sent wrong bytes.
    avoid: Vec<Source>,
    /// Whose bytes these are.
    used: Vec<Source>,
    /// The size, once it has been said.
    total: Option<u64>,
    /// The size that its link says.
    linked_size: Option<u64>,
    /// Whether a header has come.
    has_header: bool,
    /// Whether it continues what an earlier process left.
    is_continued: bool,
}

impl Download {
    pub(crate) fn new(
        (store, sources, metrics): (Arc<Store>, Arc<Sources>, Arc<Metrics>),
        repository: RepositoryName,
        digest: Digest,
        publisher: Publisher,
        avoid: Vec<Source>,
    ) -> Self {
        Self {
            store,
            sources,
            metrics,
            repository,
            digest,
            publisher,
            avoid,
            used: Vec::new(),
            total: None,
            linked_size: None,
            has_header: false,
            is_continued: false,
        }
    }

    /// What it brings, and on whose behalf.
    pub(crate) fn name(&self) -> (&RepositoryName, &Digest) {
        (&self.repository, &self.digest)
    }

    /// Where its progress is published.
    pub(crate) fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Whose bytes it holds.
    pub(crate) fn used(&self) -> &[Source] {
        &self.used
    }

    /// Whether a wrong digest may be the fault of what an earlier process left.
    pub(crate) fn was_spoilt_on_disk(&self) -> bool {
        self.is_continued
    }

    /// Whether it is for this replica to tell the others: one that sent it all has it, and tells the rest itself.
    pub(crate) fn is_news(&self) -> bool {
        let is_left_from_earlier = self.is_continued && self.used.is_empty();
        is_left_from_earlier || self.used.iter().any(|source| !source.is_replica())
    }

    /// Ends with `Done` published; otherwise the caller publishes the failure.
    pub(crate) async fn run(&mut self) -> Result<(), Failure> {
        let filled = match self.begun().await? {
            Begun::Landed(blob) => {
                self.publisher.set_public(blob.is_public);
                self.publisher.done(blob.file, blob.size);
                return Ok(());
            }
            Begun::Whole(partial) => Filled::Whole(partial),
            Begun::Part(partial) => self.fill(partial).await?,
        };
        if self.has_landed(filled).await? {
            return Ok(());
        }
        // Where several sources have sent a part, one of them may be right.
        let has_another_chance = self.is_continued || self.used.len() > 1 || self.sources.has_more(&self.used);
        if !has_another_chance || !self.publisher.start_over() {
            return Err(Failure::WrongDigest);
        }
        if !self.is_continued {
            self.sources.lied(&self.used);
            self.avoid.extend_from_slice(&self.used);
        }
        let nothing = self.nothing().await?;
        let filled = self.fill(nothing).await?;
        if self.has_landed(filled).await? { Ok(()) } else { Err(Failure::WrongDigest) }
    }

    async fn begun(&mut self) -> Result<Begun, Failure> {
        let (store, digest, repository) = (Arc::clone(&self.store), self.digest.clone(), self.repository.clone());
        let begun = self.on_disk(move || {
            if let Some(blob) = store.blobs.open_verified(&digest) {
                return Ok(Begun::Landed(blob));
            }
            let mut partial = store.partials.open(&digest)?;
            if partial.length() == 0 {
                return Ok(Begun::Part(partial));
            }
            // Without a link the repository may not have it: then a source is asked, whatever is here.
            let is_whole = match store.links.get(&repository, &digest) {
                Some(Link { size: Some(size), .. }) => size == partial.length(),
                Some(Link { size: None, .. }) => partial.is_whole()?,
                None => false,
            };
            Ok(if is_whole { Begun::Whole(partial) } else { Begun::Part(partial) })
        });
        let begun = begun.await?;
        if let Begun::Whole(partial) | Begun::Part(partial) = &begun {
            self.is_continued = partial.length() > 0;
            self.publisher.set_public(partial.is_public());
        }
        Ok(begun)
    }

    /// Asks for what is missing until everything is here, resuming where a body breaks off.
    async fn fill(&mut self, mut partial: Partial) -> Result<Filled, Failure> {
        let mut attempt = 0;
        loop {
            let before = partial.length();
            self.publisher.set_feed(Feed::None);
            let failure = match self.sources.blob(&self.repository, &self.digest, before, &self.avoid).await {
                Ok((_, None)) => {
                    let (left, is_whole) = self.at_the_end(partial).await?;
                    if is_whole {
                        return Ok(Filled::Whole(left));
                    }
                    partial = left;
                    Failure::InvalidResponse
                }
                Ok((source, Some(mut stream))) => {
                    if let Some(pieces) = self.small(&mut stream, &partial).await {
                        return self.land_at_once(source, &stream, partial, pieces).await;
                    }
                    let (kept, is_ours) = self.begin(source, &stream, partial).await?;
                    partial = kept;
                    if is_ours {
                        let (grown, copied) = self.copy(source, stream, partial).await?;
                        partial = grown;
                        if copied == Copied::ToTheEnd && self.total.is_none_or(|total| partial.length() >= total) {
                            return Ok(Filled::Whole(partial));
                        }
                        self.judge(source, copied, partial.length().saturating_sub(before));
                        Failure::BrokenBody
                    } else {
                        self.avoid.push(source);
                        Failure::InvalidResponse
                    }
                }
                Err(failure) if !self.has_header => return Err(failure),
                Err(failure) => failure,
            };
            attempt = if partial.length().saturating_sub(before) >= PROGRESS { 1 } else { attempt + 1 };
            let Some(wait) = RESUME_AFTER.get(attempt - 1) else { return Err(failure) };
            let (digest, at) = (self.digest.short(), partial.length());
            debug!(digest, at, reason = failure.category(), "download resumes");
            tokio::time::sleep(*wait).await;
        }
    }

    /// Who stalls, or breaks off without having sent much, is asked last from now on; so is a replica whatever it does, as
    /// it may be fed by the same registry.
    fn judge(&mut self, source: Source, copied: Copied, received: u64) {
        if copied == Copied::Stalled || received < PROGRESS || matches!(source, Source::Replica(_)) {
            self.avoid.push(source);
        }
    }

    /// The source has nothing after what is here: that is everything, or more than there is.
    async fn at_the_end(&mut self, mut partial: Partial) -> Result<(Partial, bool), Failure> {
        let (partial, is_whole) = self
            .on_disk(move || {
                let is_whole = partial.is_whole()?;
                Ok((partial, is_whole))
            })
            .await?;
        if is_whole {
            self.link(Some(partial.length())).await;
            return Ok((partial, true));
        }
        if !self.publisher.start_over() {
            return Err(Failure::InvalidResponse);
        }
        partial.discard();
        Ok((self.nothing().await?, false))
    }

    /// A header is here: readers may begin. False if it speaks of another body than the one that is being read.
    async fn begin(
        &mut self,
        source: Source,
        stream: &BlobStream,
        mut partial: Partial,
    ) -> Result<(Partial, bool), Failure> {
        let is_other = stream.total.is_some_and(|total| self.total.is_some_and(|known| known != total))
            || stream.total.is_some_and(|total| total < partial.length());
        if is_other {
            if !self.publisher.start_over() {
                return Ok((partial, false));
            }
            partial.discard();
            partial = self.nothing().await?;
            if stream.start > 0 {
                return Ok((partial, false));
            }
        }
        if !stream.is_private
            && let Err(error) = partial.mark_public()
        {
            // It stays private, which only costs a question more.
            debug!(digest = self.digest.short(), %error, "cannot mark download as public");
        }
        self.publisher.set_public(partial.is_public());
        self.total = stream.total.or(self.total);
        if !self.has_header {
            partial = self.reserve(partial).await?;
            self.link(stream.total).await;
        }
        self.has_header = true;
        self.is_fed_by(source);
        self.publisher.grow(partial.file(), self.total, partial.length());
        Ok((partial, true))
    }

    fn is_fed_by(&mut self, source: Source) {
        self.publisher.set_feed(match source {
            Source::Replica(_) => Feed::Peer,
            Source::Registry(_) => Feed::Registry,
        });
        if !self.used.contains(&source) {
            self.used.push(source);
        }
    }

    /// Takes the room for what will come, so that a full disk is known before readers have a header.
    async fn reserve(&self, mut partial: Partial) -> Result<Partial, Failure> {
        let Some(total) = self.total.filter(|total| *total >= RESERVE_FROM) else { return Ok(partial) };
        let store = Arc::clone(&self.store);
        self.on_disk(move || match store.reserve(&mut partial, total) {
            Ok(()) => Ok(partial),
            Err(error) => {
                partial.discard();
                Err(error)
            }
        })
        .await
    }

    /// An empty download in place of the one that was discarded.
    async fn nothing(&mut self) -> Result<Partial, Failure> {
        (self.is_continued, self.total) = (false, None);
        self.used.clear();
        let (store, digest) = (Arc::clone(&self.store), self.digest.clone());
        self.on_disk(move || store.partials.open(&digest)).await
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        blocking(work).await.ok_or(Failure::Stopping)?.map_err(|error| {
            warn!(digest = self.digest.short(), %error, "download cannot be written or read again");
            Failure::Disk
        })
    }
}
