//! The download behind a flight: sees what is here (disk.rs), asks for what is missing, copies what comes (copy.rs; at_once.rs
//! if it is small), resumes what breaks off, verifies and commits (land.rs). Knows nothing of readers but the progress it
//! publishes.
//!
//! What an earlier process left on disk is continued unseen: it is hashed while the rest comes, and only the hash of
//! everything decides. If that is wrong, the download starts over from zero once, unless a reader has bytes already.

mod at_once;
mod copy;
mod disk;
mod land;

use std::{sync::Arc, time::Duration};

use tracing::debug;

use self::copy::Copied;
pub(crate) use self::disk::Begun;
use crate::{
    digest::Digest,
    failure::Failure,
    metrics::Metrics,
    progress::{Feed, Publisher},
    reference::RepositoryName,
    source::{Source, Sources},
    store::{Store, partial::Partial},
    upstream::BlobStream,
};

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

/// How far a download has come when nothing is missing.
enum Filled {
    /// All bytes are here, none of them trusted yet.
    Whole(Partial),
    /// It came in one go, and is with its readers already.
    Landed,
    /// It came in one go, and was wrong.
    Wrong,
}

/// What came of asking one source.
enum Asked {
    /// Nothing is missing any more.
    Filled(Filled),
    /// This is here so far, and this is why it is not more.
    Lacks(Partial, Failure),
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
    pub(crate) async fn run(&mut self, begun: Result<Begun, Failure>) -> Result<(), Failure> {
        let filled = match begun? {
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

    /// Asks for what is missing until everything is here, resuming where a body breaks off.
    async fn fill(&mut self, mut partial: Partial) -> Result<Filled, Failure> {
        let mut attempt = 0;
        loop {
            let before = partial.length();
            let (left, failure) = match self.ask(partial).await? {
                Asked::Filled(filled) => return Ok(filled),
                Asked::Lacks(left, failure) => (left, failure),
            };
            partial = left;
            attempt = if partial.length().saturating_sub(before) >= PROGRESS { 1 } else { attempt + 1 };
            let Some(wait) = RESUME_AFTER.get(attempt - 1) else { return Err(failure) };
            let (digest, at) = (self.digest.short(), partial.length());
            debug!(digest, at, reason = failure.category(), "download resumes");
            tokio::time::sleep(*wait).await;
        }
    }

    /// Asks one source for the rest. Once readers have a header, only the last failure counts.
    async fn ask(&mut self, partial: Partial) -> Result<Asked, Failure> {
        self.publisher.set_feed(Feed::None);
        match self.sources.blob(&self.repository, &self.digest, partial.length(), &self.avoid).await {
            Ok((source, Some(stream))) => self.take(source, stream, partial).await,
            Ok((_, None)) => {
                let (left, is_whole) = self.at_the_end(partial).await?;
                let lacks = |left| Asked::Lacks(left, Failure::InvalidResponse);
                Ok(if is_whole { Asked::Filled(Filled::Whole(left)) } else { lacks(left) })
            }
            Err(failure) if !self.has_header => Err(failure),
            Err(failure) => Ok(Asked::Lacks(partial, failure)),
        }
    }

    /// Takes what a source sends.
    async fn take(&mut self, source: Source, mut stream: BlobStream, partial: Partial) -> Result<Asked, Failure> {
        if let Some(pieces) = self.small(&mut stream, &partial).await {
            return self.land_at_once(source, &stream, partial, pieces).await.map(Asked::Filled);
        }
        let before = partial.length();
        let (partial, is_ours) = self.begin(source, &stream, partial).await?;
        if !is_ours {
            self.avoid.push(source);
            return Ok(Asked::Lacks(partial, Failure::InvalidResponse));
        }
        let (partial, copied) = self.copy(source, stream, partial).await?;
        if copied == Copied::ToTheEnd && self.total.is_none_or(|total| partial.length() >= total) {
            return Ok(Asked::Filled(Filled::Whole(partial)));
        }
        self.judge(source, copied, partial.length().saturating_sub(before));
        Ok(Asked::Lacks(partial, Failure::BrokenBody))
    }

    /// Who stalls, or breaks off without having sent much, is asked last from now on; so is a replica whatever it does, as
    /// it may be fed by the same registry.
    fn judge(&mut self, source: Source, copied: Copied, received: u64) {
        if copied == Copied::Stalled || received < PROGRESS || matches!(source, Source::Replica(_)) {
            self.avoid.push(source);
        }
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
}
