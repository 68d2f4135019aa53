//! Asks what a tag means: the other replicas, and upstream by HEAD; keeps the answer. Decides nothing about what is served.

use std::sync::Arc;

use tracing::warn;

use crate::{
    failure::Failure,
    holdings,
    peer::{News, Peers},
    reference::{Reference, RepositoryName, Tag},
    store::{
        Store, blocking,
        tags::{TagRecord, Target},
    },
    upstream::{ManifestHead, Upstream},
};

/// What another replica has heard from upstream since then; kept.
pub(super) async fn newer(
    store: &Arc<Store>,
    peers: &Peers,
    (repository, tag): &(RepositoryName, Tag),
    known: Option<&TagRecord>,
) -> Option<TagRecord> {
    let theirs = peers.tag(repository, tag).await?;
    if known.is_some_and(|known| known.validated_at >= theirs.validated_at) {
        return None;
    }
    let (store, repository, tag, known) = (Arc::clone(store), repository.clone(), tag.clone(), known.cloned());
    blocking(move || keep_theirs(&store, (&repository, &tag), theirs, known)).await
}

/// Keeps what another replica has heard, as if it had been heard here.
pub(super) fn keep_theirs(
    store: &Store,
    (repository, tag): (&RepositoryName, &Tag),
    theirs: TagRecord,
    known: Option<TagRecord>,
) -> TagRecord {
    let TagRecord { current: Target { digest, media_type, size }, validated_at, etag, .. } = theirs;
    let head = ManifestHead { digest, media_type, size, etag };
    let record = TagRecord { validated_at, ..updated(store, repository, head, known) };
    if let Err(error) = store.tags.put(repository, tag, &record) {
        warn!(%repository, %error, "tag not kept");
    }
    record
}

/// Asks upstream what the tag means, and keeps the answer.
pub(super) async fn revalidate(
    store: Arc<Store>,
    upstream: Arc<Upstream>,
    peers: &Peers,
    (repository, tag): (RepositoryName, Tag),
    known: Option<TagRecord>,
) -> Result<TagRecord, Failure> {
    let reference = Reference::Tag(tag.clone());
    let head = match upstream.head_manifest(&repository, &reference).await {
        // Some registries answer HEAD without the digest, or not at all.
        Err(Failure::InvalidResponse) => get_instead(&store, &upstream, peers, &repository, &reference).await,
        answer => answer,
    };
    let answer = match head {
        Ok(head) => Ok(head),
        Err(Failure::NotFound) => Err(Failure::NotFound),
        Err(failure) => return Err(failure),
    };
    let was = known.as_ref().map(|known| (known.current.digest.clone(), known.validated_at));
    let name = (repository.clone(), tag.clone());
    let said = blocking(move || {
        let record = match (answer, known) {
            (Ok(head), known) => Ok(updated(&store, &repository, head, known)),
            (Err(failure), None) => return Err(failure),
            (Err(failure), Some(known)) => Err((failure, TagRecord { is_gone: true, ..known })),
        };
        let kept = match &record {
            Ok(record) | Err((_, record)) => store.tags.put(&repository, &tag, record),
        };
        if let Err(error) = kept {
            warn!(%repository, %error, "tag not kept");
        }
        record.map_err(|(failure, _)| failure)
    });
    let record = said.await.unwrap_or(Err(Failure::Stopping))?;
    let digest = &record.current.digest;
    if was.is_none_or(|(was, validated_at)| was != *digest || peers.may_have_missed(validated_at)) {
        peers.tell(&News::Tag(name.0, name.1, digest.clone()));
    }
    Ok(record)
}

async fn get_instead(
    store: &Arc<Store>,
    upstream: &Upstream,
    peers: &Peers,
    repository: &RepositoryName,
    reference: &Reference,
) -> Result<ManifestHead, Failure> {
    let fetched = upstream.get_manifest(repository, reference).await?;
    let head = ManifestHead {
        digest: fetched.manifest.digest.clone(),
        media_type: fetched.manifest.media_type.clone(),
        size: fetched.manifest.bytes.len() as u64,
        etag: fetched.etag.clone(),
    };
    let (store, name) = (Arc::clone(store), repository.clone());
    match blocking(move || holdings::keep_manifest(&store, &name, &fetched)).await {
        Some(Ok(())) => {
            peers.tell(&News::Manifest(repository.clone(), head.digest.clone()));
            Ok(head)
        }
        Some(Err(error)) => {
            warn!(%error, "manifest not kept");
            Err(Failure::Disk)
        }
        None => Err(Failure::Stopping),
    }
}

fn updated(store: &Store, repository: &RepositoryName, head: ManifestHead, known: Option<TagRecord>) -> TagRecord {
    let ManifestHead { digest, media_type, size, etag } = head;
    let current = Target { digest, media_type, size };
    let (previous, last_complete) = match known {
        None => (None, None),
        Some(known) if known.current.digest == current.digest => (known.previous, known.last_complete),
        Some(known) => {
            let is_complete = |target: &Target| holdings::coverage(store, repository, &target.digest).is_useful();
            (Some(known.current), known.previous.filter(is_complete).or(known.last_complete))
        }
    };
    TagRecord { current, previous, last_complete, validated_at: TagRecord::now(), etag, is_gone: false }
}
