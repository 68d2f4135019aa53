//! The end of a download: its hash against its digest, the last byte to the readers, the commit, and the link that says
//! from where it was served.

use std::sync::Arc;

use tracing::warn;

use super::{Download, Filled};
use crate::{
    failure::Failure,
    holdings,
    store::{blocking, partial::Verified},
};

impl Download {
    /// The digest was served from this repository.
    pub(super) async fn link(&mut self, size: Option<u64>) {
        let (store, name) = (Arc::clone(&self.store), (self.repository.clone(), self.digest.clone()));
        let added = blocking(move || holdings::link_blob(&store, &name.0, &name.1, size)).await;
        match added {
            Some(Ok(size)) => self.linked_size = size,
            Some(Err(error)) => {
                warn!(repository = %self.repository, digest = self.digest.short(), %error, "link not kept");
            }
            None => {}
        }
    }

    /// Verifies what is here and, if it is right, lets the readers have the last byte. False if it is wrong.
    pub(super) async fn has_landed(&self, filled: Filled) -> Result<bool, Failure> {
        let partial = match filled {
            Filled::Whole(partial) => partial,
            Filled::Landed => return Ok(true),
            Filled::Wrong => return Ok(false),
        };
        let Some(verified) = self.on_disk(move || partial.verify()).await? else {
            self.tell_wrong();
            return Ok(false);
        };
        self.land(verified).await;
        Ok(true)
    }

    pub(super) fn tell_wrong(&self) {
        let (repository, digest) = (&self.repository, self.digest.short());
        warn!(%repository, digest, is_continued = self.is_continued, "content does not match its digest");
    }

    /// Lets the readers have the last byte, and commits. What a header or a manifest said of the size was no more than a
    /// claim until now.
    async fn land(&self, verified: Verified) {
        self.publisher.done(Arc::clone(verified.file()), verified.length());
        let (store, name) = (Arc::clone(&self.store), (self.repository.clone(), self.digest.clone()));
        let (length, linked_size) = (verified.length(), self.linked_size);
        let keep = move || {
            store.keep(verified)?;
            if linked_size == Some(length) { Ok(()) } else { store.links.set_size(&name.0, &name.1, length) }
        };
        if let Some(Err(error)) = blocking(keep).await {
            warn!(digest = self.digest.short(), %error, "download served but not kept");
        }
    }
}
