//! A replica tells what has come to it from a registry (peer/replicate.rs). It is fetched from the replicas or not at all,
//! so that what is told costs upstream nothing. Who tells has it already and is never waited for by whom it tells.

use std::time::Duration;

use super::Pull;
use crate::{
    digest::Digest,
    holdings::{self, Holding},
    reference::{Reference, RepositoryName},
    route::Route,
    store::blocking,
};

/// Who tells waits so long for an answer, and then asks again.
const LANDS: Duration = Duration::from_secs(2);

/// What has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is here.
    Here,
    /// It is on its way.
    NotYet,
    /// No replica has it, or it could not be kept.
    No,
}

impl From<bool> for Taken {
    fn from(is_here: bool) -> Self {
        if is_here { Self::Here } else { Self::No }
    }
}

impl Pull {
    /// Fetches from the other replicas what is not here.
    pub(super) async fn fill(&self, route: &Route) -> Taken {
        match route {
            Route::Base => Taken::Here,
            Route::Manifest { repository, reference: Reference::Tag(tag) } => {
                self.tags.take_over(repository, tag).await.into()
            }
            Route::Manifest { repository, reference: Reference::Digest(digest) } => {
                self.fill_manifest(repository, digest).await.into()
            }
            Route::Blob { repository, digest } => self.fill_blob(repository, digest).await,
            Route::List { repository, list } => self.lists.take_over(repository, list).await.is_some().into(),
        }
    }

    async fn fill_manifest(&self, repository: &RepositoryName, digest: &Digest) -> bool {
        if self.kept_manifest(repository, digest).await.is_some() {
            return true;
        }
        let Some((_, fetched)) = self.sources.peers().manifest(repository, digest).await else { return false };
        let (store, name) = (self.store.clone(), repository.clone());
        matches!(blocking(move || holdings::keep_manifest(&store, &name, &fetched)).await, Some(Ok(())))
    }

    async fn fill_blob(&self, repository: &RepositoryName, digest: &Digest) -> Taken {
        if self.has_blob(repository, digest).await {
            return Taken::Here;
        }
        let seat = match self.flights.find(digest) {
            Some(seat) => seat,
            None => {
                // A download goes on to upstream where no replica has it.
                if self.sources.peers().blob_size(repository, digest).await.is_none() {
                    return Taken::No;
                }
                let Ok(joined) = self.join(repository, digest).await else { return Taken::No };
                joined.seat
            }
        };
        match tokio::time::timeout(LANDS, seat.landed()).await {
            Err(_) => Taken::NotYet,
            Ok(Err(_)) => Taken::No,
            Ok(Ok(())) => self.has_blob(repository, digest).await.into(),
        }
    }

    /// Whether it is here and the repository has it, as far as is known here or at another replica.
    async fn has_blob(&self, repository: &RepositoryName, digest: &Digest) -> bool {
        let (store, name, wanted) = (self.store.clone(), repository.clone(), digest.clone());
        match blocking(move || holdings::blob(&store, &name, &wanted)).await {
            Some(Holding::Hit(_)) => true,
            Some(Holding::Unproven(_)) => {
                let Some(size) = self.sources.peers().blob_size(repository, digest).await else { return false };
                let (store, name, digest) = (self.store.clone(), repository.clone(), digest.clone());
                let linked = blocking(move || holdings::link_blob(&store, &name, &digest, Some(size))).await;
                matches!(linked, Some(Ok(_)))
            }
            Some(Holding::IsManifest | Holding::Absent { .. }) | None => false,
        }
    }
}
