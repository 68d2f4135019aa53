//! Small blobs: what comes in one go is written, verified, linked and committed in one go. For a blob of some KiB each
//! change of threads costs more than the work on either side of it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tracing::warn;

use super::{Download, Filled, copy::counter};
use crate::{failure::Failure, holdings, source::Source, store::partial::Partial, upstream::BlobStream};

/// A larger one is served while it comes.
const SMALL: u64 = 64 * 1024;
/// So long its readers wait for the rest of it, unseen beside the time that the header took.
const PATIENCE: Duration = Duration::from_millis(2);

impl Download {
    /// All of a small blob of which nothing is here, if it comes with its header.
    pub(super) async fn small(&self, stream: &mut BlobStream, partial: &Partial) -> Option<Vec<Bytes>> {
        let is_small = stream.total.is_some_and(|total| total <= SMALL);
        let is_first = !self.has_header && partial.length() == 0;
        if is_small && is_first { stream.at_once(PATIENCE).await } else { None }
    }

    /// From the bytes to the committed blob; its readers get it whole.
    pub(super) async fn land_at_once(
        &mut self,
        source: Source,
        stream: &BlobStream,
        mut partial: Partial,
        pieces: Vec<Bytes>,
    ) -> Result<Filled, Failure> {
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        self.metrics.content(counter(source), length);
        self.is_fed_by(source);
        let (store, name, digest) = (Arc::clone(&self.store), self.repository.clone(), self.digest.clone());
        let is_public = !stream.is_private;
        let landed = self.on_disk(move || {
            if is_public {
                // It stays private otherwise, which only costs a question more.
                let _ = partial.mark_public();
            }
            if let Err(error) = store.append(&mut partial, &pieces) {
                partial.discard();
                return Err(error);
            }
            let Some(verified) = partial.verify()? else { return Ok(None) };
            let file = Arc::clone(verified.file());
            let linked = holdings::link_blob(&store, &name, &digest, Some(length)).and_then(|size| match size {
                Some(size) if size == length => Ok(()),
                _ => store.links.set_size(&name, &digest, length),
            });
            let kept = store.keep(verified);
            Ok(Some((file, linked.and(kept))))
        });
        let Some((file, kept)) = landed.await? else {
            self.tell_wrong();
            return Ok(Filled::Wrong);
        };
        if let Err(error) = kept {
            warn!(digest = self.digest.short(), %error, "download served but not kept");
        }
        self.publisher.set_public(is_public);
        self.publisher.done(file, length);
        Ok(Filled::Landed)
    }
}
