//! Lists of upstream's: tags of a repository, referrers of a digest. Each page is to be asked for as a tag is: fresh for
//! `tag-ttl`, then asked for again, served stale while upstream fails as `on-error` allows.
//!
//! A registry without the referrers API answers 404, and clients then look for the tag that the spec names instead. That
//! answer is kept as well: in an outage a 503 would keep them from it. Then the other replicas are asked too, and what
//! upstream sends here they are told of.

use std::{sync::Arc, time::Duration};

use tracing::warn;

use crate::{
    background::Background,
    failure::Failure,
    list_page::{KnownList, ListPage},
    peer::{News, Peers},
    question::Questions,
    reference::RepositoryName,
    respond::{Origin, Provenance},
    route::List,
    store::{Store, blocking, tags::TagRecord},
    tag::Limits,
    upstream::Upstream,
};

/// Asks for lists and keeps them.
pub struct ListKeeper {
    store: Arc<Store>,
    upstream: Arc<Upstream>,
    peers: Arc<Peers>,
    limits: Limits,
    questions: Questions<String, ListPage>,
}

impl ListKeeper {
    /// Questions to upstream go on in the `background`.
    pub fn new(
        (store, upstream, peers): (Arc<Store>, Arc<Upstream>, Arc<Peers>),
        limits: Limits,
        background: &Background,
    ) -> Self {
        let questions = Questions::of_names(&upstream, background, false);
        Self { store, upstream, peers, limits, questions }
    }

    /// The page, and where it came from.
    pub async fn get(&self, repository: &RepositoryName, list: &List) -> Result<(ListPage, Provenance), Failure> {
        let name = name(repository, list);
        let known = self.known(&name).await;
        if let Some((KnownList::Page(page), Some(age))) = &known
            && *age < self.limits.tag_ttl
        {
            return Ok((page.clone(), Provenance { origin: Origin::Hit, age: *age }));
        }
        let has_answer = known.is_some();
        let asked = self.questions.ask(name.clone(), has_answer, || self.question(repository, list, name)).await;
        match (asked, known) {
            (Ok(page), _) => Ok((page, Provenance { origin: Origin::Miss, age: Duration::ZERO })),
            (Err(_), Some((KnownList::Absent, _))) => Err(Failure::NotFound),
            (Err(failure), Some((KnownList::Page(page), age))) => {
                self.limits.allow_stale(failure, self.upstream.contact().silence())?;
                Ok((page, Provenance { origin: Origin::Stale(failure), age: age.unwrap_or_default() }))
            }
            (Err(failure), None) if failure.is_absence() => Err(failure),
            (Err(failure), None) => {
                self.limits.allow_stale(failure, self.upstream.contact().silence()).map_err(|_| failure)?;
                let (page, age) = self.take_over(repository, list).await.ok_or(failure)?;
                Ok((page, Provenance { origin: Origin::Stale(failure), age }))
            }
        }
    }

    async fn known(&self, name: &str) -> Option<(KnownList, Option<Duration>)> {
        read(Arc::clone(&self.store), name.to_owned()).await
    }

    /// The page without asking anyone: within `tag-ttl`, or for as long as it may be served in an outage.
    pub async fn at_hand(
        &self,
        repository: &RepositoryName,
        list: &List,
        may_be_stale: bool,
    ) -> Option<(ListPage, Provenance)> {
        let Some((KnownList::Page(page), Some(age))) = self.known(&name(repository, list)).await else { return None };
        let is_allowed = may_be_stale && self.upstream.contact().silence() <= self.limits.max_stale;
        (age < self.limits.tag_ttl || is_allowed).then_some((page, Provenance { origin: Origin::Hit, age }))
    }

    /// Takes over the page that another replica has, unless the one here is younger.
    pub async fn take_over(&self, repository: &RepositoryName, list: &List) -> Option<(ListPage, Duration)> {
        let (page, age) = self.peers.list(repository, list).await?;
        let (store, name, theirs) = (Arc::clone(&self.store), name(repository, list), page.clone());
        let kept = blocking(move || {
            let is_younger = store.lists.get(&name).and_then(|(_, age)| age).is_some_and(|here| here <= age);
            if is_younger { Ok(()) } else { store.lists.put_aged(&name, &KnownList::Page(theirs).encode()?, age) }
        });
        if let Some(Err(error)) = kept.await {
            warn!(%error, "list of another replica not kept");
        }
        Some((page, age))
    }

    /// Asks upstream and keeps what it says.
    fn question(
        &self,
        repository: &RepositoryName,
        list: &List,
        name: String,
    ) -> impl Future<Output = Result<ListPage, Failure>> + Send + use<> {
        let (store, upstream, peers) = (Arc::clone(&self.store), Arc::clone(&self.upstream), Arc::clone(&self.peers));
        let believes_deletion = !self.limits.on_error.serves_stale(Failure::NotFound);
        let (repository, list, tag_ttl) = (repository.clone(), list.clone(), self.limits.tag_ttl);
        async move {
            // Someone else's question may have ended since the record was read.
            let (stored, wanted) = (Arc::clone(&store), name.clone());
            if let Some((KnownList::Page(page), Some(age))) = read(stored, wanted).await
                && age < tag_ttl
            {
                return Ok(page);
            }
            let answer = upstream.get_list(&repository, &list).await;
            let said = answer.clone();
            let kept = blocking(move || match said {
                Ok(page) => {
                    let (before, page) = (store.lists.get(&name), KnownList::Page(page));
                    keep(&store, &name, &page)?;
                    if is_news(&peers, before, &page) {
                        peers.tell(&News::List(repository, list));
                    }
                    Ok(())
                }
                Err(Failure::NotFound) if is_worth_keeping(&store, &repository, &list) => {
                    let had_page = store.lists.get(&name).is_some();
                    if believes_deletion || !had_page { keep(&store, &name, &KnownList::Absent) } else { Ok(()) }
                }
                Err(Failure::NotFound) if believes_deletion => {
                    store.lists.remove(&name);
                    Ok(())
                }
                Err(_) => Ok(()),
            });
            if let Some(Err(error)) = kept.await {
                warn!(%error, "list served but not kept");
            }
            answer
        }
    }
}

/// Whether the other replicas may not know a page: it is another than before, or one of them was away since.
fn is_news(peers: &Peers, before: Option<(Vec<u8>, Option<Duration>)>, page: &KnownList) -> bool {
    let Some((bytes, Some(age))) = before else { return true };
    let written = TagRecord::now().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    KnownList::decode(bytes).as_ref() != Some(page) || peers.may_have_missed(written)
}

async fn read(store: Arc<Store>, name: String) -> Option<(KnownList, Option<Duration>)> {
    let (bytes, age) = blocking(move || store.lists.get(&name)).await.flatten()?;
    Some((KnownList::decode(bytes)?, age))
}

fn keep(store: &Store, name: &str, known: &KnownList) -> std::io::Result<()> {
    store.lists.put(name, &known.encode()?)
}

/// Absences of what is here, so that nonsense leaves no trace.
fn is_worth_keeping(store: &Store, repository: &RepositoryName, list: &List) -> bool {
    matches!(list, List::Referrers { digest, .. } if store.links.get(repository, digest).is_some())
}

/// Each page has a record of its own.
fn name(repository: &RepositoryName, list: &List) -> String {
    let (kind, query) = match list {
        List::Tags { query } => ("tags".to_owned(), query),
        List::Referrers { digest, query } => (digest.to_string(), query),
    };
    // A debug text has its strings quoted, so no two queries look alike.
    format!("{repository} {kind} {query:?}")
}
