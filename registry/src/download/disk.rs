//! What stands on disk before a download and while it grows. Knows nothing of where the rest comes from.

use std::{io, sync::Arc};

use tracing::warn;

use super::Download;
use crate::{
    failure::Failure,
    store::{blobs::StoredBlob, blocking, links::Link, partial::Partial},
};

/// A smaller download is written before its readers have a header.
const RESERVE_FROM: u64 = 256 * 1024;

/// What stands on disk when a download begins.
pub(crate) enum Begun {
    /// It landed between the look into the store and the start of this download.
    Landed(StoredBlob),
    /// As much as the blob is long, left by a process that was killed before it could commit.
    Whole(Partial),
    /// A part, maybe nothing.
    Part(Partial),
}

impl Download {
    /// Looks once more: the blob may have landed since it was missed. Reads the disk.
    pub(crate) fn begin_on_disk(&mut self) -> Result<Begun, Failure> {
        let begun = self.look().map_err(|error| self.disk_failure(&error))?;
        if let Begun::Whole(partial) | Begun::Part(partial) = &begun {
            self.is_continued = partial.length() > 0;
            self.publisher.set_public(partial.is_public());
        }
        Ok(begun)
    }

    fn look(&self) -> io::Result<Begun> {
        if let Some(blob) = self.store.blobs.open_verified(&self.digest) {
            return Ok(Begun::Landed(blob));
        }
        let mut partial = self.store.partials.open(&self.digest)?;
        if partial.length() == 0 {
            return Ok(Begun::Part(partial));
        }
        // Without a link the repository may not have it: then a source is asked, whatever is here.
        let is_whole = match self.store.links.get(&self.repository, &self.digest) {
            Some(Link { size: Some(size), .. }) => size == partial.length(),
            Some(Link { size: None, .. }) => partial.is_whole()?,
            None => false,
        };
        Ok(if is_whole { Begun::Whole(partial) } else { Begun::Part(partial) })
    }

    /// The source has nothing after what is here: that is everything, or more than there is.
    pub(super) async fn at_the_end(&mut self, mut partial: Partial) -> Result<(Partial, bool), Failure> {
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

    /// Takes the room for what will come, so that a full disk is known before readers have a header.
    pub(super) async fn reserve(&self, mut partial: Partial) -> Result<Partial, Failure> {
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
    pub(super) async fn nothing(&mut self) -> Result<Partial, Failure> {
        (self.is_continued, self.total) = (false, None);
        self.used.clear();
        let (store, digest) = (Arc::clone(&self.store), self.digest.clone());
        self.on_disk(move || store.partials.open(&digest)).await
    }

    pub(super) async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        blocking(work).await.ok_or(Failure::Stopping)?.map_err(|error| self.disk_failure(&error))
    }

    fn disk_failure(&self, error: &io::Error) -> Failure {
        warn!(digest = self.digest.short(), %error, "download cannot be written or read again");
        Failure::Disk
    }
}
