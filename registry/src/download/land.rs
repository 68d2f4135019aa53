//! The end of a download: its hash against its digest, the last byte to the readers, the commit, and the link that says
//! from where it was served.

use std::sync::Arc;

use tracing::warn;

use super::Download;
use crate::{
    failure::Failure,
    serve::BLOB_TYPE,
    store::{
        blocking,
        links::{Kind, Link},
        partial::{Partial, Verified},
    },
};

impl Download {
    /// The digest was served from this repository.
    pub(super) async fn link(&mut self, size: Option<u64>) {
        let (store, name) = (Arc::clone(&self.store), (self.repository.clone(), self.digest.clone()));
        let link = Link { kind: Kind::Blob, media_type: BLOB_TYPE.to_owned(), size };
        let added = blocking(move || store.links.add(&name.0, &name.1, &link)).await;
        match added {
            Some(Ok(size)) => self.linked_size = size,
            Some(Err(error)) => {
                warn!(repository = %self.repository, digest = self.digest.short(), %error, "link not kept");
            }
            None => {}
        }
    }

    pub(super) async fn verify(&self, partial: Partial) -> Result<Option<Verified>, Failure> {
        let verified = self.on_disk(move || partial.verify()).await?;
        if verified.is_none() {
            let (repository, digest) = (&self.repository, self.digest.short());
            warn!(%repository, digest, is_continued = self.is_continued, "content does not match its digest");
        }
        Ok(verified)
    }

    /// Lets the readers have the last byte, and commits. What a header or a manifest said of the size was no more than a
    /// claim until now.
    pub(super) async fn land(&self, verified: Verified) -> Result<(), Failure> {
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
        Ok(())
    }
}
