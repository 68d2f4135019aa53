//! Tells another replica what has come here from a registry, so that nothing is on one replica alone and its loss in an
//! outage costs no pull. It fetches it from here, or has it already (pull/told.rs). What came from a replica is told to
//! nobody, so that this ends. A tag is told once its image is here, or does not become complete: nodes do not ask for layers
//! that they have. It is taken over once as much of the image is there.
//!
//! Nothing here is in anyone's way: a bounded list for each replica, few requests at once, none while it is away. The list
//! is forgotten with the process; a tag that upstream is asked about for the first time since then is told again, and
//! where its image is not complete, everything of it.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tracing::debug;

use super::replica::{Replica, Told};
use crate::{
    background::Background,
    digest::Digest,
    holdings,
    manifest::{self, Named},
    metrics::Metrics,
    reference::{Reference, RepositoryName, Tag},
    route::List,
    store::{Store, blocking},
};

/// Requests to one replica.
const AT_ONCE: usize = 2;
/// Of each replica; then the oldest is dropped.
const MOST_WAITING: usize = 10_000;
/// Until it is asked again whether it has it all.
const POLL: Duration = Duration::from_millis(250);
/// What is refused is told again after as long as it has been refused for, within these bounds.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// A tag that is refused for longer may name what was never told.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// An image that is not complete after this long may stay so.
const BECOMES_COMPLETE: Duration = Duration::from_secs(5);
/// What is refused for so long is dropped.
const REFUSED_FOR: Duration = Duration::from_secs(3600);

/// What has come.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum News {
    /// A blob of a repository.
    Blob(RepositoryName, Digest),
    /// A manifest of a repository.
    Manifest(RepositoryName, Digest),
    /// What a tag means.
    Tag(RepositoryName, Tag, Digest),
    /// A list of a repository.
    List(RepositoryName, List),
}

impl News {
    fn path(&self) -> String {
        match self {
            Self::Blob(repository, digest) => format!("/v2/{repository}/blobs/{digest}"),
            Self::Manifest(repository, digest) => format!("/v2/{repository}/manifests/{digest}"),
            Self::Tag(repository, tag, _) => {
                format!("/v2/{repository}/manifests/{}", Reference::Tag(tag.clone()))
            }
            Self::List(repository, list) => super::list_path(repository, list),
        }
    }

    fn stage(&self, store: &Store) -> Stage {
        let is_ready = match self {
            Self::Blob(_, digest) | Self::Manifest(_, digest) => {
                return if store.blobs.has(digest, None) { Stage::Ready } else { Stage::Gone };
            }
            Self::Tag(repository, _, digest) => holdings::coverage(store, repository, digest).is_useful(),
            Self::List(..) => true,
        };
        if is_ready { Stage::Ready } else { Stage::Incomplete }
    }

    /// What a tag's image consists of, as far as it is here: what a manifest names goes before it.
    fn parts(&self, store: &Store) -> Vec<Self> {
        let Self::Tag(repository, _, digest) = self else { return Vec::new() };
        let names =
            |digest: &Digest| holdings::manifest(store, repository, digest).map(|(m, _)| manifest::names(&m.bytes));
        let blobs = |named: Vec<Named>| {
            let here = named.into_iter().filter(|named| store.blobs.has(&named.digest, None));
            here.map(|named| Self::Blob(repository.clone(), named.digest)).collect::<Vec<_>>()
        };
        let Some(of_all) = names(digest) else { return Vec::new() };
        let mut parts = blobs(of_all.blobs);
        for Named { digest, .. } in of_all.manifests {
            if let Some(of_one) = names(&digest) {
                parts.extend(blobs(of_one.blobs));
                parts.push(Self::Manifest(repository.clone(), digest));
            }
        }
        parts.push(Self::Manifest(repository.clone(), digest.clone()));
        parts
    }
}

/// Whether something can be told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Ready,
    /// The image of a tag is still being pulled.
    Incomplete,
    /// It has been evicted.
    Gone,
}

struct Entry {
    news: News,
    /// Since when it is refused.
    refused: Option<Instant>,
}

impl Entry {
    fn refused_for(&self) -> Duration {
        self.refused.map(|since| since.elapsed()).unwrap_or_default()
    }
}

/// By when they are due, and in which order they came.
#[derive(Default)]
struct Waiting {
    entries: BTreeMap<(Instant, u64), Entry>,
    known: HashSet<News>,
    came: u64,
}

/// What one replica has not been told yet.
pub(super) struct Backlog {
    replica: Arc<Replica>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    waiting: Mutex<Waiting>,
    more: Notify,
}

impl Backlog {
    /// Empty; the `background` tells what is added.
    pub(super) fn keep(
        replica: Arc<Replica>,
        store: Arc<Store>,
        metrics: Arc<Metrics>,
        background: &Background,
    ) -> Arc<Self> {
        let (waiting, more) = Default::default();
        let backlog = Arc::new(Self { replica, store, metrics, waiting, more });
        for _ in 0..AT_ONCE {
            let this = Arc::clone(&backlog);
            background.spawn(async move {
                loop {
                    let entry = this.next().await;
                    this.tell(entry).await;
                    // Until now it counted: what is put back at once has never been off the list.
                    this.metrics.replication.queued.dec();
                }
            });
        }
        backlog
    }

    pub(super) fn add(&self, news: News) {
        self.put(Instant::now(), Entry { news, refused: None });
    }

    fn put(&self, due: Instant, entry: Entry) {
        if self.replica.is_itself() {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.put(due, entry) {
            Put::More => drop(self.metrics.replication.queued.inc()),
            Put::ForTheOldest => drop(self.metrics.replication.dropped.inc()),
            Put::Known => return,
        }
        drop(waiting);
        self.more.notify_one();
    }

    /// The next that is due, once the replica is there.
    async fn next(&self) -> Entry {
        loop {
            self.replica.is_back().await;
            let due = match self.due() {
                Ok(entry) => return entry,
                Err(due) => due,
            };
            match due {
                Some(due) => drop(tokio::time::timeout_at(due.into(), self.more.notified()).await),
                None => self.more.notified().await,
            }
        }
    }

    /// What is due, or when something will be.
    fn due(&self) -> Result<Entry, Option<Instant>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let due = waiting.entries.first_key_value().map(|((due, _), _)| *due);
        if due.is_none_or(|due| due > Instant::now()) {
            return Err(due);
        }
        waiting.take_first().ok_or(None)
    }

    async fn tell(&self, entry: Entry) {
        let (store, news) = (Arc::clone(&self.store), entry.news.clone());
        match blocking(move || news.stage(&store)).await {
            Some(Stage::Incomplete) if entry.refused_for() < BECOMES_COMPLETE => return self.again(entry),
            Some(Stage::Ready | Stage::Incomplete) => {}
            Some(Stage::Gone) | None => return,
        }
        match self.replica.tell(&entry.news.path()).await {
            Told::Has => drop(self.metrics.replication.replicated.inc()),
            Told::Away => self.put(Instant::now(), entry),
            Told::NotYet => self.put(Instant::now() + POLL, entry),
            Told::No => {
                // At first, the rest of an image may still be on its way there.
                if entry.refused_for() > UNDER_WAY {
                    let (store, news) = (Arc::clone(&self.store), entry.news.clone());
                    let parts = blocking(move || news.parts(&store)).await.unwrap_or_default();
                    parts.into_iter().for_each(|part| self.add(part));
                }
                self.again(entry);
            }
        }
    }

    fn again(&self, mut entry: Entry) {
        let refused_for = entry.refused.get_or_insert_with(Instant::now).elapsed();
        if refused_for > REFUSED_FOR {
            debug!(news = entry.news.path(), "a replica has not been told of it");
            self.metrics.replication.dropped.inc();
            return;
        }
        self.put(Instant::now() + refused_for.clamp(PAUSE.0, PAUSE.1), entry);
    }
}

/// What became of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Put {
    /// It has one more.
    More,
    /// It was full, and the oldest is dropped.
    ForTheOldest,
    /// It has that already.
    Known,
}

impl Waiting {
    fn put(&mut self, due: Instant, entry: Entry) -> Put {
        if !self.known.insert(entry.news.clone()) {
            return Put::Known;
        }
        self.came += 1;
        self.entries.insert((due, self.came), entry);
        if self.entries.len() <= MOST_WAITING {
            return Put::More;
        }
        self.take_first();
        Put::ForTheOldest
    }

    fn take_first(&mut self) -> Option<Entry> {
        let (_, entry) = self.entries.pop_first()?;
        self.known.remove(&entry.news);
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn the_list_is_bounded_and_holds_each_once() {
        let repository: RepositoryName = "library/app".parse().unwrap();
        let blob = |n: usize| News::Blob(repository.clone(), Digest::of(Algorithm::Sha256, &n.to_le_bytes()));
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        let mut put = |n| waiting.put(now, Entry { news: blob(n), refused: None });
        for n in 0..MOST_WAITING {
            assert_eq!(put(n), Put::More);
            assert_eq!(put(n), Put::Known);
        }
        assert_eq!(put(MOST_WAITING), Put::ForTheOldest);
        assert_eq!((waiting.entries.len(), waiting.known.len()), (MOST_WAITING, MOST_WAITING));
        assert!(waiting.take_first().is_some_and(|entry| entry.news == blob(1)), "in the order in which they came");
        assert_eq!(
            waiting.put(now, Entry { news: blob(0), refused: None }),
            Put::More,
            "what was dropped may come again"
        );
    }
}
