//! Where content of a digest comes from: the other replicas, the registry itself, its alternates. Content is named by
//! its digest, so any source is as good as the other; what tags mean is the registry's word alone.
//!
//! The replicas are asked first, as they are near and cost nothing (peer.rs). Then the registry. An alternate is asked as
//! soon as the registry fails, and while it is late. Whoever answers first sends; the failure that counts is the registry's.
//!
//! Who may have what comes from an alternate? Content is public if its source asks no login of anyone. That is believed
//! of the registry; of an alternate only where no login is configured for the repository at the registry, as it may be
//! another cache that shows a login of its own. And where the registry says that it has not or refuses, what an alternate
//! gives counts only if it would give it to anyone: its logins open nothing that the registry closes.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tracing::debug;

use crate::{
    background::Background,
    digest::Digest,
    failure::Failure,
    peer::{Peers, Resort},
    reference::{Reference, RepositoryName},
    upstream::{BlobStream, FetchedManifest, Upstream},
};

/// The next source is asked when one is late by so much; it may still come first.
const LATE: Duration = Duration::from_millis(1500);

/// One source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Another replica.
    Replica(usize),
    /// The registry, 0, or one of its alternates.
    Registry(usize),
}

impl Source {
    /// Whether it is another replica.
    pub fn is_replica(self) -> bool {
        matches!(self, Self::Replica(_))
    }
}

/// Another registry with the same content under other names.
pub struct Alternate {
    /// The way to it.
    pub upstream: Arc<Upstream>,
    /// What its repositories' names begin with.
    pub prefix: Option<RepositoryName>,
}

impl Alternate {
    /// `library/x` -> `docker/library/x`; `None` if that is too long for a name.
    fn name_of(&self, repository: &RepositoryName) -> Option<RepositoryName> {
        match &self.prefix {
            None => Some(repository.clone()),
            Some(prefix) => format!("{prefix}/{repository}").parse().ok(),
        }
    }
}

/// All sources.
pub struct Sources {
    registry: Arc<Upstream>,
    alternates: Vec<Alternate>,
    peers: Arc<Peers>,
    /// What a registry is being asked for, no replica having it.
    outward: Mutex<Vec<Digest>>,
    background: Background,
}

/// Counts a digest as asked for outward for as long as it is held.
struct Outward<'a>(&'a Sources, &'a Digest);

impl Drop for Outward<'_> {
    fn drop(&mut self) {
        let mut outward = self.0.outward.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = outward.iter().position(|digest| digest == self.1) {
            outward.swap_remove(at);
        }
    }
}

/// An answer, and whether a login stands behind it.
struct Answered<T> {
    value: T,
    is_private: bool,
}

type Asking<T> = BoxFuture<'static, (usize, Result<Answered<T>, Failure>)>;

impl Sources {
    /// Asks nobody yet.
    pub fn new(
        registry: Arc<Upstream>,
        alternates: Vec<Alternate>,
        peers: Arc<Peers>,
        background: Background,
    ) -> Arc<Self> {
        Arc::new(Self { registry, alternates, peers, outward: Mutex::default(), background })
    }

    /// The other replicas.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// Whether a registry is being asked for `digest`. Who does that waits for no replica.
    pub fn is_outward(&self, digest: &Digest) -> bool {
        self.outward.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }

    fn outward<'a>(&'a self, digest: &'a Digest) -> Outward<'a> {
        self.outward.lock().unwrap_or_else(PoisonError::into_inner).push(digest.clone());
        Outward(self, digest)
    }

    /// Whether content may come although the registry is away.
    pub fn has_others(&self) -> bool {
        !self.alternates.is_empty() || !self.peers.is_empty()
    }

    /// Whether the registry's breaker is open.
    pub fn is_cut_off(&self) -> bool {
        self.registry.is_cut_off()
    }

    /// When a registry, or a host that it sends us to, was last found to be back.
    pub fn last_return(&self) -> Option<Instant> {
        let alternates = self.alternates.iter().map(|alternate| &alternate.upstream);
        [&self.registry].into_iter().chain(alternates).filter_map(|registry| registry.last_return()).max()
    }

    /// Whether other downloads wait for this one's place at its source.
    pub fn is_crowded(&self, source: Source) -> bool {
        match source {
            Source::Replica(_) => false,
            Source::Registry(0) => self.registry.is_crowded(),
            Source::Registry(index) => {
                self.alternates.get(index - 1).is_some_and(|alternate| alternate.upstream.is_crowded())
            }
        }
    }

    /// These sent wrong bytes. Who was alone in that is not asked again soon if it is a replica, as it has been spoilt.
    pub fn lied(&self, sources: &[Source]) {
        if let [Source::Replica(replica)] = sources {
            self.peers.lied(*replica);
        }
    }

    /// Whether there is a registry beyond those that have been `tried`.
    pub fn has_more(&self, tried: &[Source]) -> bool {
        (0..=self.alternates.len()).any(|registry| !tried.contains(&Source::Registry(registry)))
    }

    /// Begins to fetch a blob from `offset` on. Those to `avoid` are asked last. `None` for a stream: there is nothing at
    /// `offset`.
    pub async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
        avoid: &[Source],
    ) -> Result<(Source, Option<BlobStream>), Failure> {
        let is_avoided = |replica| avoid.contains(&Source::Replica(replica));
        if let Some((replica, stream)) =
            self.peers.blob(repository, digest, offset, |replica| !is_avoided(replica), Resort::First).await
        {
            return Ok((Source::Replica(replica), Some(stream)));
        }
        let outward = self.outward(digest);
        let asked = self.first(repository, avoid, |upstream, repository| {
            let digest = digest.clone();
            async move {
                let stream = upstream.get_blob(&repository, &digest, offset).await?;
                let is_private = stream.as_ref().is_some_and(|stream| stream.is_private);
                Ok(Answered { value: stream, is_private })
            }
        });
        let asked = asked.await;
        drop(outward);
        match asked {
            Ok((registry, Answered { mut value, is_private })) => {
                if let Some(stream) = &mut value {
                    stream.is_private = is_private;
                }
                Ok((Source::Registry(registry), value))
            }
            Err(failure) => {
                let last = self.peers.blob(repository, digest, offset, |_| true, Resort::Last).await;
                last.map(|(replica, stream)| (Source::Replica(replica), Some(stream))).ok_or(failure)
            }
        }
    }

    /// Asks for a blob's size; `None` if it is there but nobody says.
    pub async fn blob_size(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<u64>, Failure> {
        if let Some(size) = self.peers.blob_size(repository, digest).await {
            return Ok(Some(size));
        }
        let (_, size) = self
            .first(repository, &[], |upstream, repository| {
                let digest = digest.clone();
                async move {
                    let value = upstream.head_blob(&repository, &digest).await?;
                    Ok(Answered { value, is_private: upstream.is_private(&repository) })
                }
            })
            .await?;
        Ok(size.value)
    }

    /// Fetches a manifest.
    pub async fn manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(Source, FetchedManifest), Failure> {
        if let Some((replica, fetched)) = self.peers.manifest(repository, digest).await {
            return Ok((Source::Replica(replica), fetched));
        }
        let _outward = self.outward(digest);
        let (registry, fetched) = self
            .first(repository, &[], |upstream, repository| {
                let reference = Reference::Digest(digest.clone());
                async move {
                    let value = upstream.get_manifest(&repository, &reference).await?;
                    let is_private = value.is_private;
                    Ok(Answered { value, is_private })
                }
            })
            .await?;
        Ok((Source::Registry(registry), FetchedManifest { is_private: fetched.is_private, ..fetched.value }))
    }

    /// The first good answer of a registry. Each is asked as soon as the one before has failed or is late.
    async fn first<T, F>(
        &self,
        repository: &RepositoryName,
        avoid: &[Source],
        ask: impl Fn(Arc<Upstream>, RepositoryName) -> F + Send + Sync,
    ) -> Result<(usize, Answered<T>), Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<Answered<T>, Failure>> + Send + 'static,
    {
        let start = |index: usize| -> Option<Asking<T>> {
            let (upstream, name) = match index.checked_sub(1) {
                None => (&self.registry, repository.clone()),
                Some(alternate) => {
                    let alternate = self.alternates.get(alternate)?;
                    (&alternate.upstream, alternate.name_of(repository)?)
                }
            };
            let asking = ask(Arc::clone(upstream), name);
            Some(Box::pin(async move { (index, asking.await) }))
        };
        let all = 0..=self.alternates.len();
        let (last, first): (Vec<_>, Vec<_>) = all.partition(|index| avoid.contains(&Source::Registry(*index)));
        let mut waiting = first.into_iter().chain(last).filter_map(start);
        let mut running: FuturesUnordered<Asking<T>> = waiting.next().into_iter().collect();
        // Who is avoided has served this digest already: no need to hear the registry again.
        let has_spoken = avoid.contains(&Source::Registry(0));
        let mut verdict = None;
        let mut held_back = Vec::new();
        let mut other = Failure::Stopping;
        loop {
            let ended = match tokio::time::timeout(LATE, running.next()).await {
                Ok(ended) => ended,
                Err(_) => {
                    running.extend(waiting.next());
                    continue;
                }
            };
            match ended {
                Some((0, Ok(answer))) => return Ok((0, self.leave(running, answer))),
                Some((index, Ok(answer))) => held_back.push((index, answer)),
                Some((0, Err(failure))) => verdict = Some(failure),
                Some((_, Err(failure))) => other = failure,
                None => return Err(verdict.unwrap_or(other)),
            }
            // What the registry refuses, an alternate's login does not open.
            held_back.retain(|(_, answer)| !(answer.is_private && verdict.is_some_and(Failure::is_absence)));
            let is_settled = |answer: &Answered<T>| !answer.is_private || has_spoken || verdict.is_some();
            if let Some(at) = held_back.iter().position(|(_, answer)| is_settled(answer)) {
                let (index, answer) = held_back.swap_remove(at);
                let is_private = answer.is_private || self.registry.is_private(repository);
                debug!(%repository, alternate = index, "an alternate answers");
                return Ok((index, self.leave(running, Answered { is_private, ..answer })));
            }
            running.extend(waiting.next());
        }
    }

    /// Lets those who are late end by themselves: what becomes of them tells the breakers of an outage.
    fn leave<T: Send + 'static, V>(&self, mut late: FuturesUnordered<Asking<T>>, answer: V) -> V {
        if !late.is_empty() {
            self.background.spawn(async move { while late.next().await.is_some() {} });
        }
        answer
    }
}
