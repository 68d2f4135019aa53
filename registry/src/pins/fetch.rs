//! Fetches what a pin needs, the way pulls do: tags by the resolver, manifests and blobs together with whoever pulls them.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{disk, kept::Sight, list::Pin, plan::Need};
use crate::{
    failure::Failure,
    pull::Pull,
    reference::{Reference, RepositoryName},
    store::{Store, blocking},
    tag::Freshness,
};

/// For a manifest to come.
const MANIFEST: Duration = Duration::from_secs(15);

/// Asks what the reference means and fetches the manifests; also says what went wrong, if anything did.
pub(super) async fn learn(pull: &Arc<Pull>, store: &Arc<Store>, pin: Arc<Pin>) -> (Sight, Option<Failure>) {
    let asked = match &pin.reference {
        Reference::Digest(_) => None,
        Reference::Tag(tag) => match pull.resolve(&pin.repository, tag).await.map(|resolved| resolved.freshness) {
            Ok(Freshness::Stale(failure)) | Err(failure) => Some(failure),
            Ok(_) => None,
        },
    };
    let mut fetched = HashSet::new();
    loop {
        let (of, look) = (Arc::clone(store), Arc::clone(&pin));
        let Some(sight) = blocking(move || disk::examine(&of, &look)).await else {
            return (Sight::default(), Some(Failure::Stopping));
        };
        let unread: Vec<_> = sight.plan.unread().map(|need| need.digest.clone()).collect();
        if unread.is_empty() {
            return (sight, asked);
        }
        for digest in unread {
            if !fetched.insert(digest.clone()) {
                // It came, but it is not on disk.
                return (sight, Some(Failure::Disk));
            }
            if let Err(failure) = pull.fetch_manifest(&pin.repository, &digest, Instant::now() + MANIFEST).await {
                return (sight, Some(failure));
            }
        }
    }
}

/// Brings a blob here, joining its download if there is one.
pub(super) async fn blob(
    pull: &Arc<Pull>,
    store: &Arc<Store>,
    repository: &RepositoryName,
    need: &Need,
) -> Result<(), Failure> {
    if is_here(store, need).await? {
        return Ok(());
    }
    loop {
        let seat = pull.join(repository, &need.digest).await?.seat;
        let is_guest = seat.repository != *repository;
        match seat.landed().await {
            // Another repository's download may be refused what this one may have.
            Err(failure) if is_guest && failure.is_absence() => {}
            Err(failure) => return Err(failure),
            Ok(()) => break,
        }
    }
    if is_here(store, need).await? { Ok(()) } else { Err(Failure::Disk) }
}

/// Right bytes of another size than the manifest says are of no use to any runtime, and no others will come.
async fn is_here(store: &Arc<Store>, need: &Need) -> Result<bool, Failure> {
    let (store, digest) = (Arc::clone(store), need.digest.clone());
    let held = blocking(move || store.blobs.open_verified(&digest).map(|blob| blob.size)).await;
    match (held.ok_or(Failure::Stopping)?, need.stated_size()) {
        (Some(held), Some(stated)) if held != stated => Err(Failure::InvalidResponse),
        (held, _) => Ok(held.is_some()),
    }
}
