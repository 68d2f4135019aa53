//! What a tag means now: fresh from the record, asked of upstream (ask.rs), or stale while upstream fails.

mod ask;

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use tracing::debug;

use crate::{
    background::Background,
    digest::Digest,
    failure::Failure,
    holdings,
    on_error::OnError,
    peer::Peers,
    question::Questions,
    reference::{RepositoryName, Tag},
    store::{
        Store, blocking,
        tags::{TagRecord, Target},
    },
    upstream::Upstream,
};

/// Replicas are asked for so many blobs of an image that is not complete.
const MOST_MISSING: usize = 64;

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
    /// In which outages.
    pub on_error: OnError,
}

impl Limits {
    /// Whether an older answer may be served in place of `failure`, upstream having been silent for so long.
    pub fn allow_stale(&self, failure: Failure, silence: Duration) -> Result<(), Failure> {
        match (self.on_error.serves_stale(failure), silence <= self.max_stale) {
            (false, _) => Err(failure),
            (true, false) => Err(Failure::TooStale),
            (true, true) => Ok(()),
        }
    }
}

/// Resolves tags.
pub struct TagResolver {
    store: Arc<Store>,
    upstream: Arc<Upstream>,
    peers: Arc<Peers>,
    limits: Limits,
    questions: Questions<(RepositoryName, Tag), TagRecord>,
}

impl TagResolver {
    /// Questions to upstream go on in the `background`.
    pub fn new(
        store: Arc<Store>,
        upstream: Arc<Upstream>,
        peers: Arc<Peers>,
        limits: Limits,
        background: &Background,
    ) -> Self {
        let questions = Questions::of_names(&upstream, background, !peers.is_empty());
        Self { store, upstream, peers, limits, questions }
    }

    /// What `tag` means now.
    pub async fn resolve(&self, repository: &RepositoryName, tag: &Tag) -> Result<Resolved, Failure> {
        let known = self.record(repository, tag).await;
        if let Some(fresh) = known.as_ref().and_then(|record| self.fresh(record)) {
            return match (self.upstream.is_away(), known) {
                // What it names may not have come before upstream went.
                (Some(_), Some(known)) => self.chosen(repository, known, fresh.freshness).await,
                _ => Ok(fresh),
            };
        }
        let has_answer = known.as_ref().is_some_and(|record| self.may_serve(record));
        let was_known = known.is_some();
        let asked =
            self.questions.ask((repository.clone(), tag.clone()), has_answer, || self.question(repository, tag, known));
        match asked.await {
            Ok(asked) => {
                let freshness = if was_known { Freshness::Revalidated } else { Freshness::Asked };
                let age = asked.age().unwrap_or_default();
                Ok(Resolved { target: asked.current, freshness, age })
            }
            Err(failure) => self.instead(repository, tag, failure).await,
        }
    }

    /// Asks the other replicas, and upstream unless one of them has heard from it within `tag-ttl`.
    fn question(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        known: Option<TagRecord>,
    ) -> impl Future<Output = Result<TagRecord, Failure>> + Send + use<> {
        let (store, upstream, peers) = (Arc::clone(&self.store), Arc::clone(&self.upstream), Arc::clone(&self.peers));
        let (name, tag_ttl) = ((repository.clone(), tag.clone()), self.limits.tag_ttl);
        async move {
            // Someone else's question may have ended since the record was read.
            let heard = store.tags.get_recent(&name.0, &name.1).filter(|heard| heard.is_within(tag_ttl));
            if let Some(heard) = heard.filter(|heard| known.as_ref() != Some(heard)) {
                return Ok(heard);
            }
            let known = match ask::newer(&store, &peers, &name, known.as_ref()).await {
                Some(newer) if newer.is_within(tag_ttl) => return Ok(newer),
                Some(newer) => Some(newer),
                None => known,
            };
            ask::revalidate(store, upstream, &peers, name, known).await
        }
    }

    /// What `tag` means without asking anyone: within `tag-ttl`, or for as long as it may be served in an outage.
    pub async fn at_hand(&self, repository: &RepositoryName, tag: &Tag, may_be_stale: bool) -> Option<Resolved> {
        let known = self.record(repository, tag).await?;
        if let Some(fresh) = self.fresh(&known) {
            return Some(fresh);
        }
        let is_allowed = may_be_stale && !known.is_gone && self.upstream.contact().silence() <= self.limits.max_stale;
        // Without an age nobody could tell how old it is.
        let age = known.age().filter(|_| is_allowed)?;
        let (store, name) = (Arc::clone(&self.store), repository.clone());
        let target = blocking(move || choose(&store, &name, known)).await?;
        Some(Resolved { target, freshness: Freshness::Fresh, age })
    }

    /// Takes over what another replica has heard from upstream since then, if its image is here, or as much of it as any
    /// replica has: nodes do not ask for layers that they have. False if more is to come, or if no replica knows the tag.
    pub async fn take_over(&self, repository: &RepositoryName, tag: &Tag) -> bool {
        let known = self.record(repository, tag).await;
        let Some(theirs) = self.peers.tag(repository, tag).await else { return false };
        if known.as_ref().is_some_and(|known| known.validated_at >= theirs.validated_at) {
            return true;
        }
        if !self.has_what_is_to_be_had(repository, known.as_ref(), &theirs).await {
            return false;
        }
        let (store, repository, tag) = (Arc::clone(&self.store), repository.clone(), tag.clone());
        blocking(move || ask::keep_theirs(&store, (&repository, &tag), theirs, known)).await.is_some()
    }

    /// A complete elder is not given up for an image that is not.
    async fn has_what_is_to_be_had(
        &self,
        repository: &RepositoryName,
        known: Option<&TagRecord>,
        theirs: &TagRecord,
    ) -> bool {
        let (store, name) = (Arc::clone(&self.store), repository.clone());
        let (elder, newer) = (known.map(|known| known.current.digest.clone()), theirs.current.digest.clone());
        let missing = blocking(move || {
            let is_useful = |digest: &Digest| holdings::coverage(&store, &name, digest).is_useful();
            match (is_useful(&newer), elder.is_some_and(|elder| elder != newer && is_useful(&elder))) {
                (true, _) => Some(Vec::new()),
                (false, true) => None,
                (false, false) => holdings::missing(&store, &name, &newer),
            }
        });
        let Some(missing) = missing.await.flatten() else { return false };
        let is_to_be_had = async |digest: &Digest| self.peers.blob_size(repository, digest).await.is_some();
        missing.len() <= MOST_MISSING
            && futures::stream::iter(&missing).all(async |digest| !is_to_be_had(digest).await).await
    }

    fn fresh(&self, record: &TagRecord) -> Option<Resolved> {
        let age = record.age().filter(|_| record.is_within(self.limits.tag_ttl))?;
        Some(Resolved { target: record.current.clone(), freshness: Freshness::Fresh, age })
    }

    /// What `tag` may mean instead when upstream said so just now but `failure` keeps its manifest from coming.
    pub async fn instead(&self, repository: &RepositoryName, tag: &Tag, failure: Failure) -> Result<Resolved, Failure> {
        match self.record(repository, tag).await {
            Some(known) => self.stale(repository, known, failure).await,
            None => Err(failure),
        }
    }

    async fn record(&self, repository: &RepositoryName, tag: &Tag) -> Option<TagRecord> {
        if let Some(record) = self.store.tags.get_recent(repository, tag) {
            return Some(record);
        }
        let (store, repository, tag) = (Arc::clone(&self.store), repository.clone(), tag.clone());
        blocking(move || store.tags.get(&repository, &tag)).await.flatten()
    }

    /// What upstream has deleted is an answer only where deletions are not believed.
    fn may_serve(&self, record: &TagRecord) -> bool {
        !record.is_gone || self.limits.on_error.serves_stale(Failure::NotFound)
    }

    /// What is served in place of `failure`, if anything.
    async fn stale(
        &self,
        repository: &RepositoryName,
        known: TagRecord,
        failure: Failure,
    ) -> Result<Resolved, Failure> {
        if !self.may_serve(&known) {
            return Err(Failure::NotFound);
        }
        if let Err(refusal) = self.limits.allow_stale(failure, self.upstream.contact().silence()) {
            debug!(%repository, reason = failure.category(), refusal = refusal.category(), "no stale answer");
            return Err(refusal);
        }
        self.chosen(repository, known, Freshness::Stale(failure)).await
    }

    async fn chosen(
        &self,
        repository: &RepositoryName,
        known: TagRecord,
        freshness: Freshness,
    ) -> Result<Resolved, Failure> {
        let (store, repository) = (Arc::clone(&self.store), repository.clone());
        let age = known.age().unwrap_or_default();
        let target = blocking(move || choose(&store, &repository, known)).await.ok_or(Failure::Stopping)?;
        Ok(Resolved { target, freshness, age })
    }
}

/// In an outage an incomplete newcomer yields to its complete elders. Judged only now: when the tag moved, the last bytes
/// of the elder may still have been on their way to the disk.
fn choose(store: &Store, repository: &RepositoryName, known: TagRecord) -> Target {
    if known.previous.is_none() && known.last_complete.is_none() {
        return known.current;
    }
    let has = |target: &Target| holdings::coverage(store, repository, &target.digest);
    let coverage = has(&known.current);
    let elders = [known.previous, known.last_complete].into_iter().flatten();
    let (chosen, _) = elders.fold((known.current, coverage), |(chosen, coverage), elder| {
        let older = has(&elder);
        if older.is_useful() && !coverage.covers(&older) { (elder, older) } else { (chosen, coverage) }
    });
    chosen
}
