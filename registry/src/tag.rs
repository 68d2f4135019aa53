//! What a tag means now: fresh from the record, asked of upstream, or stale while upstream fails.

use std::{sync::Arc, time::Duration};

use tracing::{debug, warn};

use crate::{
    access,
    background::Background,
    coalesce::Coalesce,
    failure::Failure,
    holdings,
    reference::{Reference, RepositoryName, Tag},
    store::{
        Store, blocking,
        tags::{TagRecord, Target},
    },
    upstream::{ManifestHead, Upstream},
};

/// How long upstream may be in the way of an answer that is at hand.
const BUDGET: Duration = Duration::from_millis(1500);
/// The same after a recent failure.
const BUDGET_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Without an answer at hand: as long as the client waits.
const PATIENCE: Duration = Duration::from_millis(4500);

/// How current an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Upstream said so less than `tag-ttl` ago.
    Fresh,
    /// Upstream has just said so again.
    Revalidated,
    /// Upstream has just said so for the first time.
    Asked,
    /// Upstream fails; this is what it last said.
    Stale(Failure),
}

/// What a tag means.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The manifest.
    pub target: Target,
    /// How current that is.
    pub freshness: Freshness,
    /// Time since upstream said so.
    pub age: Duration,
}

/// How long answers are good.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A tag is served without asking for this long.
    pub tag_ttl: Duration,
    /// In an outage tags are served for this long after upstream's last good answer.
    pub max_stale: Duration,
}

/// Resolves tags.
pub struct TagResolver {
    store: Arc<Store>,
    upstream: Arc<Upstream>,
    limits: Limits,
    asking: Coalesce<(RepositoryName, Tag), Result<TagRecord, Failure>>,
}

impl TagResolver {
    /// Questions to upstream go on in the `background`.
    pub fn new(store: Arc<Store>, upstream: Arc<Upstream>, limits: Limits, background: Background) -> Self {
        Self { store, upstream, limits, asking: Coalesce::new(background) }
    }

    /// What `tag` means now.
    pub async fn resolve(&self, repository: &RepositoryName, tag: &Tag) -> Result<Resolved, Failure> {
        let (store, name) = (Arc::clone(&self.store), (repository.clone(), tag.clone()));
        let record = blocking(move || store.tags.get(&name.0, &name.1)).await.flatten();
        let usable = record.as_ref().filter(|record| !record.is_gone);
        if let Some(record) = usable
            && let Some(age) = record.age().filter(|age| *age < self.limits.tag_ttl)
        {
            return Ok(Resolved { target: record.current.clone(), freshness: Freshness::Fresh, age });
        }
        match (self.ask(repository, tag, record.as_ref()).await, record) {
            (Ok(asked), known) => {
                let freshness = if known.is_some() { Freshness::Revalidated } else { Freshness::Asked };
                Ok(Resolved { target: asked.current, freshness, age: Duration::ZERO })
            }
            (Err(Failure::NotFound), _) | (Err(_), Some(TagRecord { is_gone: true, .. })) => Err(Failure::NotFound),
            (Err(failure), None) => Err(failure),
            (Err(failure), Some(known)) => self.stale(repository, known, failure).await,
        }
    }

    /// Asks upstream, for no longer than the answer at hand allows; the question goes on behind.
    async fn ask(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        known: Option<&TagRecord>,
    ) -> Result<TagRecord, Failure> {
        let has_answer = known.is_some_and(|record| !record.is_gone);
        if let Some(failure) = self.upstream.is_away() {
            return Err(failure);
        }
        let patience = match (has_answer, self.upstream.failed_recently()) {
            (false, _) => PATIENCE,
            (true, false) => BUDGET,
            (true, true) => BUDGET_AFTER_FAILURE,
        };
        let (store, upstream) = (Arc::clone(&self.store), Arc::clone(&self.upstream));
        let (name, known) = ((repository.clone(), tag.clone()), known.cloned());
        let question = name.clone();
        let waiter = self.asking.join(name, || async move { revalidate(store, upstream, question, known).await });
        match access::for_upstream(tokio::time::timeout(patience, waiter.result())).await {
            Ok(result) => result.unwrap_or(Err(Failure::Stopping)),
            Err(_) => Err(Failure::HeaderTimeout),
        }
    }

    /// In an outage an incomplete newcomer yields to the complete elder.
    async fn stale(
        &self,
        repository: &RepositoryName,
        known: TagRecord,
        failure: Failure,
    ) -> Result<Resolved, Failure> {
        if self.upstream.contact().silence() > self.limits.max_stale {
            debug!(%repository, reason = failure.category(), "tag is older than max-stale allows");
            return Err(Failure::TooStale);
        }
        let (store, repository) = (Arc::clone(&self.store), repository.clone());
        let age = known.age().unwrap_or_default();
        let chosen = blocking(move || choose(&store, &repository, known)).await.ok_or(Failure::Stopping)?;
        Ok(Resolved { target: chosen, freshness: Freshness::Stale(failure), age })
    }
}

fn choose(store: &Store, repository: &RepositoryName, known: TagRecord) -> Target {
    let Some(elder) = known.last_complete else { return known.current };
    let has = |target: &Target| holdings::coverage(store, repository, &target.digest);
    let (newcomer, old) = (has(&known.current), has(&elder));
    if old.is_useful() && !newcomer.covers(&old) { elder } else { known.current }
}

/// Asks upstream what the tag means, and keeps the answer.
async fn revalidate(
    store: Arc<Store>,
    upstream: Arc<Upstream>,
    (repository, tag): (RepositoryName, Tag),
    known: Option<TagRecord>,
) -> Result<TagRecord, Failure> {
    let reference = Reference::Tag(tag.clone());
    let head = match upstream.head_manifest(&repository, &reference).await {
        // Some registries answer HEAD without the digest, or not at all.
        Err(Failure::InvalidResponse) => get_instead(&store, &upstream, &repository, &reference).await,
        answer => answer,
    };
    let answer = match head {
        Ok(head) => Ok(head),
        Err(Failure::NotFound) => Err(Failure::NotFound),
        Err(failure) => return Err(failure),
    };
    blocking(move || {
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
    })
    .await
    .unwrap_or(Err(Failure::Stopping))
}

async fn get_instead(
    store: &Arc<Store>,
    upstream: &Upstream,
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
    let (store, repository) = (Arc::clone(store), repository.clone());
    match blocking(move || holdings::keep_manifest(&store, &repository, &fetched)).await {
        Some(Ok(())) => Ok(head),
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
    let last_complete = known.and_then(|known| {
        let has_moved = known.current.digest != current.digest;
        let is_complete = || holdings::coverage(store, repository, &known.current.digest).is_useful();
        if has_moved && is_complete() { Some(known.current) } else { known.last_complete }
    });
    TagRecord { current, last_complete, validated_at: TagRecord::now(), etag, is_gone: false }
}
