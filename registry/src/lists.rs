//! Lists of upstream's: tags of a repository, referrers of a digest. Each page is to be asked for as a tag is: fresh for
//! `tag-ttl`, then asked for again, served stale while upstream fails as `on-error` allows.
//!
//! A registry without the referrers API answers 404, and clients then look for the tag that the spec names instead. That
//! answer is kept as well: in an outage a 503 would keep them from it.

use std::{sync::Arc, time::Duration};

use tracing::warn;

use crate::{
    background::Background,
    failure::Failure,
    list_page::{KnownList, ListPage},
    question::Questions,
    reference::RepositoryName,
    respond::{Origin, Provenance},
    route::List,
    store::{Store, blocking},
    tag::Limits,
    upstream::Upstream,
};

/// Asks for lists and keeps them.
pub struct ListKeeper {
    store: Arc<Store>,
    upstream: Arc<Upstream>,
    limits: Limits,
    questions: Questions<String, ListPage>,
}

impl ListKeeper {
    /// Questions to upstream go on in the `background`.
    pub fn new(store: Arc<Store>, upstream: Arc<Upstream>, limits: Limits, background: Background) -> Self {
        let questions = Questions::new(Arc::clone(&upstream), background, Duration::ZERO);
        Self { store, upstream, limits, questions }
    }

    /// The page, and where it came from.
    pub async fn get(&self, repository: &RepositoryName, list: &List) -> Result<(ListPage, Provenance), Failure> {
        let name = name(repository, list);
        let (store, wanted) = (Arc::clone(&self.store), name.clone());
        let known = blocking(move || store.lists.get(&wanted)).await.flatten();
        let known = known.and_then(|(bytes, age)| Some((KnownList::decode(bytes)?, age)));
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
            (Err(failure), None) => Err(failure),
        }
    }

    /// Asks upstream and keeps what it says.
    fn question(
        &self,
        repository: &RepositoryName,
        list: &List,
        name: String,
    ) -> impl Future<Output = Result<ListPage, Failure>> + Send + use<> {
        let (store, upstream) = (Arc::clone(&self.store), Arc::clone(&self.upstream));
        let believes_deletion = !self.limits.on_error.serves_stale(Failure::NotFound);
        let (repository, list) = (repository.clone(), list.clone());
        async move {
            let answer = upstream.get_list(&repository, &list).await;
            let said = answer.clone();
            let kept = blocking(move || match said {
                Ok(page) => keep(&store, &name, &KnownList::Page(page)),
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
