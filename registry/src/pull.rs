//! START HERE: the story of a pull, top to bottom.
//!
//! A runtime asks for a manifest by tag, then for manifests by digest, then for blobs. Each question is parsed once
//! (route.rs), looked up on disk (holdings.rs), and only if that fails asked of upstream: tags by one shared HEAD
//! (tag.rs), manifests as a whole, blobs as a flight that many readers share (flight.rs). What goes wrong before the
//! header is a status that sends the runtime on to upstream itself; after the header come right bytes or a cut.

mod only_if_cached;
mod told;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response};

use self::only_if_cached::OnlyIfCached;
use crate::{
    access::{self, Answered},
    background::Background,
    body::{self, Body, Source},
    digest::Digest,
    failure::Failure,
    flight::{Flights, Joined, Progress, Seat},
    holdings::{self, Holding},
    lists::ListKeeper,
    manifest::Manifest,
    metrics::Metrics,
    peer::News,
    question::Questions,
    reference::{Reference, RepositoryName, Tag},
    registry_host::RegistryHost,
    respond::{self, Described, Origin, Provenance, Sought},
    route::{self, List, Refused, Route},
    serve::{self, BLOB_TYPE, Wish},
    source::Sources,
    store::{Store, blocking},
    tag::{Freshness, Limits, Resolved, TagResolver},
    upstream::Upstream,
    verify::{Verdict, Verifier},
};

type Answer = Result<Response<Body>, Failure>;

/// No header takes longer, whatever it waits for: longer than any one question to upstream, and shorter than the relay's
/// patience.
const LONGEST: Duration = Duration::from_millis(4750);

/// Serves pulls of one registry.
pub struct Pull {
    registry: RegistryHost,
    store: Arc<Store>,
    upstream: Arc<Upstream>,
    metrics: Arc<Metrics>,
    tags: TagResolver,
    lists: ListKeeper,
    manifests: Questions<(RepositoryName, Digest), Manifest>,
    sizes: Questions<(RepositoryName, Digest), Option<u64>>,
    proofs: Questions<(RepositoryName, Digest), Option<u64>>,
    sources: Arc<Sources>,
    flights: Arc<Flights>,
    verifier: Verifier,
}

impl Pull {
    /// Puts the parts together; asks nobody.
    pub fn new(
        registry: RegistryHost,
        store: Arc<Store>,
        upstream: Arc<Upstream>,
        sources: Arc<Sources>,
        limits: Limits,
        metrics: Arc<Metrics>,
        background: &Background,
    ) -> Self {
        let flights = Flights::new(Arc::clone(&store), Arc::clone(&sources), Arc::clone(&metrics), background.clone());
        let peers = Arc::clone(sources.peers());
        let of = (Arc::clone(&store), Arc::clone(&upstream), Arc::clone(&peers));
        let lists = ListKeeper::new(of, limits, background);
        let tags = TagResolver::new(Arc::clone(&store), Arc::clone(&upstream), peers, limits, background);
        let manifests = Questions::of_content(&upstream, background, sources.has_others());
        let sizes = Questions::of_content(&upstream, background, sources.has_others());
        let proofs = Questions::of_content(&upstream, background, false);
        let verifier = Verifier::new(Arc::clone(&store), background.clone());
        Self { registry, store, upstream, metrics, tags, lists, manifests, sizes, proofs, sources, flights, verifier }
    }

    /// Answers one request.
    pub async fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let began = Instant::now();
        let route = route::parse(request.method(), request.uri(), &self.registry);
        let (response, upstream) = access::measured(self.route(request, route.as_ref(), began)).await;
        let answered = Answered { began, upstream, route: route.as_ref().ok() };
        access::record(&answered, request, response, &self.metrics)
    }

    /// Refuses a request that shows no token; counted and logged as one that is answered.
    pub fn refuse<B>(&self, request: &Request<B>) -> Response<Body> {
        let route = route::parse(request.method(), request.uri(), &self.registry).ok();
        let answered = Answered { began: Instant::now(), upstream: Duration::ZERO, route: route.as_ref() };
        access::record(&answered, request, respond::unauthorized(), &self.metrics)
    }

    async fn route<B>(&self, request: &Request<B>, route: Result<&Route, &Refused>, began: Instant) -> Response<Body> {
        let wish = Wish::of(request, began);
        if let (Ok(route), Some(asked)) = (route, OnlyIfCached::of(request)) {
            return self.without_upstream(route, wish, &asked).await;
        }
        let latest = began + LONGEST;
        let (sought, answer) = match route {
            Err(refused) => return respond::refused(*refused),
            Ok(Route::Base) => return respond::base(),
            Ok(Route::Manifest { repository, reference }) => {
                (Sought::Manifest, in_time(latest, self.manifest(repository, reference, wish)).await)
            }
            Ok(Route::Blob { repository, digest }) => {
                (Sought::Blob, in_time(latest, self.blob(repository, digest, wish)).await)
            }
            Ok(Route::List { repository, list }) => (Sought::List, in_time(latest, self.list(repository, list)).await),
        };
        answer.flatten().unwrap_or_else(|failure| respond::failure(failure, sought))
    }

    async fn list(&self, repository: &RepositoryName, list: &List) -> Answer {
        self.lists.get(repository, list).await.map(|(page, provenance)| respond::list(page, provenance))
    }

    /// A tag is first turned into a digest; then both are the same.
    async fn manifest(&self, repository: &RepositoryName, reference: &Reference, wish: Wish) -> Answer {
        match reference {
            Reference::Digest(digest) => self.manifest_by_digest(repository, digest, None, wish).await,
            Reference::Tag(tag) => {
                let resolved = self.tags.resolve(repository, tag).await?;
                let is_stale = matches!(resolved.freshness, Freshness::Stale(_));
                let digest = resolved.target.digest.clone();
                match self.manifest_by_digest(repository, &digest, Some(resolved), wish).await {
                    // Upstream failed between naming the manifest and sending it.
                    Err(failure) if !is_stale => {
                        let elder = self.tags.instead(repository, tag, failure).await?;
                        let digest = elder.target.digest.clone();
                        self.manifest_by_digest(repository, &digest, Some(elder), wish).await
                    }
                    answer => answer,
                }
            }
        }
    }

    async fn manifest_by_digest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        tag: Option<Resolved>,
        wish: Wish,
    ) -> Answer {
        if let Some((manifest, stored)) = self.kept_manifest(repository, digest).await {
            let provenance = tag.map_or_else(|| Provenance::hit(stored), |tag| Provenance::of_tag(&tag));
            return Ok(serve::manifest(manifest, provenance, wish));
        }
        let provenance = Provenance { origin: Origin::Miss, age: Duration::ZERO };
        match tag {
            // Upstream fails and what the tag last meant is not here, but maybe elsewhere; a small budget is for misses.
            Some(stale @ Resolved { freshness: Freshness::Stale(failure), .. }) => {
                if !self.sources.has_others() && failure != Failure::TooManyRequests {
                    return Err(failure);
                }
                let fetched = self.fetch_manifest(repository, digest, wish.deadline).await.map_err(|_| failure)?;
                return Ok(serve::manifest(fetched, Provenance::of_tag(&stale), wish));
            }
            Some(Resolved { target, .. }) if wish.is_head => return Ok(serve::head(&target, provenance)),
            _ => {}
        }
        Ok(serve::manifest(self.fetch_manifest(repository, digest, wish.deadline).await?, provenance, wish))
    }

    async fn kept_manifest(&self, repository: &RepositoryName, digest: &Digest) -> Option<(Manifest, SystemTime)> {
        if let Some(found) = holdings::recent_manifest(&self.store, repository, digest) {
            return Some(found);
        }
        let (store, name, wanted) = (Arc::clone(&self.store), repository.clone(), digest.clone());
        let found = blocking(move || holdings::manifest(&store, &name, &wanted)).await.flatten();
        found.map(|(manifest, blob)| (manifest, blob.stored))
    }

    /// Fetches, verifies and keeps a manifest: once for all who ask meanwhile, also when none of them can wait so long.
    pub async fn fetch_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Manifest, Failure> {
        let (store, sources) = (Arc::clone(&self.store), Arc::clone(&self.sources));
        let (name, wanted) = (repository.clone(), digest.clone());
        let asked = self.manifests.ask((repository.clone(), digest.clone()), false, || async move {
            // It may have come since it was missed.
            let (look_in, of, at) = (Arc::clone(&store), name.clone(), wanted.clone());
            if let Some(Some((manifest, _))) = blocking(move || holdings::manifest(&look_in, &of, &at)).await {
                return Ok(manifest);
            }
            let (source, fetched) = sources.manifest(&name, &wanted).await?;
            let manifest = fetched.manifest.clone();
            let kept_for = name.clone();
            match blocking(move || holdings::keep_manifest(&store, &kept_for, &fetched)).await {
                Some(Ok(())) if !source.is_replica() => sources.peers().tell(&News::Manifest(name, wanted)),
                // It is whole and right all the same.
                Some(Err(error)) => tracing::warn!(%error, "manifest served but not kept"),
                _ => {}
            }
            Ok(manifest)
        });
        in_time(deadline, asked).await?
    }

    /// What a tag means now.
    pub async fn resolve(&self, repository: &RepositoryName, tag: &Tag) -> Result<Resolved, Failure> {
        self.tags.resolve(repository, tag).await
    }

    /// Joins the download of a blob, or starts it.
    pub async fn join(&self, repository: &RepositoryName, digest: &Digest) -> Result<Joined, Failure> {
        let (flights, name, wanted) = (Arc::clone(&self.flights), repository.clone(), digest.clone());
        blocking(move || flights.join(&name, &wanted)).await.ok_or(Failure::Stopping)?
    }

    /// From disk if the repository may have it, else from a flight.
    async fn blob(&self, repository: &RepositoryName, digest: &Digest, wish: Wish) -> Answer {
        let (holding, joined) = self.held_or_coming(repository, digest, wish).await?;
        let (here, is_linked) = match holding {
            Holding::Hit(blob) => (Some(blob), true),
            Holding::IsManifest => return Err(Failure::NotFound),
            Holding::Unproven(blob) => {
                self.prove(repository, digest).await?;
                (Some(blob), true)
            }
            Holding::Absent { is_linked } => (None, is_linked),
        };
        if let Some(blob) = here {
            match self.verifier.judge(repository, digest, &blob, wish).await? {
                Verdict::Right => return Ok(serve::stored_blob(digest, &blob, wish, &self.metrics)),
                Verdict::Open(known) => {
                    return Ok(serve::unverified_blob(digest, &blob, known, wish, &self.metrics));
                }
                Verdict::Wrong => {}
            }
        }
        if wish.is_head {
            let size = in_time(wish.deadline, self.size(repository, digest)).await??;
            let provenance = Provenance { origin: Origin::Miss, age: Duration::ZERO };
            let described = Described { digest, media_type: BLOB_TYPE, size, span: None, provenance };
            return Ok(respond::content(&described, body::whole(Bytes::new())));
        }
        let joined = match joined {
            Some(joined) => joined?,
            None => in_time(wish.deadline, self.join(repository, digest)).await??,
        };
        let flight = joined.seat.clone();
        let traveller = (repository, is_linked);
        match self.fly(joined, digest, traveller, wish).await {
            // Another repository's flight may be refused what this one may have.
            Err(failure) if flight.repository != *repository && failure.is_absence() && flight.has_failed() => {
                self.fly(in_time(wish.deadline, self.join(repository, digest)).await??, digest, traveller, wish).await
            }
            answer => answer,
        }
    }

    /// Looks for a blob, and joins its flight at once where it is not here.
    async fn held_or_coming(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        wish: Wish,
    ) -> Result<(Holding, Option<Result<Joined, Failure>>), Failure> {
        let (store, flights) = (Arc::clone(&self.store), Arc::clone(&self.flights));
        let (name, wanted) = (repository.clone(), digest.clone());
        let looked = blocking(move || {
            let holding = holdings::blob(&store, &name, &wanted);
            let is_wanted = !wish.is_head && matches!(holding, Holding::Absent { .. });
            let joined = is_wanted.then(|| flights.join(&name, &wanted));
            (holding, joined)
        });
        in_time(wish.deadline, looked).await?.ok_or(Failure::Stopping)
    }

    /// How large a blob that is not here is: asked once for all who ask meanwhile; `None` if nobody says.
    async fn size(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<u64>, Failure> {
        let (sources, name, wanted) = (Arc::clone(&self.sources), repository.clone(), digest.clone());
        let work = || async move { sources.blob_size(&name, &wanted).await };
        self.sizes.ask((repository.clone(), digest.clone()), false, work).await
    }

    /// Private content that came by way of another repository: has upstream it in this one too?
    async fn prove(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), Failure> {
        let (upstream, name, wanted) = (Arc::clone(&self.upstream), repository.clone(), digest.clone());
        let work = || async move { upstream.head_blob(&name, &wanted).await };
        let size = self.proofs.ask((repository.clone(), digest.clone()), false, work).await?;
        let (store, name, digest) = (Arc::clone(&self.store), repository.clone(), digest.clone());
        // A link that cannot be written is asked for again.
        let _ = blocking(move || holdings::link_blob(&store, &name, &digest, size)).await;
        Ok(())
    }

    /// Waits until the flight has the first byte that is wanted, and streams from there.
    async fn fly(
        &self,
        Joined { mut seat, stood }: Joined,
        digest: &Digest,
        (repository, is_linked): (&RepositoryName, bool),
        wish: Wish,
    ) -> Answer {
        let begun = in_time(wish.deadline, access::for_upstream(seat.begin(wish.range))).await?;
        if let Progress::Failed(failure) = begun {
            return Err(failure);
        }
        if seat.repository != *repository && !is_linked && !seat.is_public() {
            self.prove(repository, digest).await?;
        }
        let origin = match stood {
            Progress::Done { .. } => Origin::Hit,
            Progress::Asking => Origin::Miss,
            Progress::Growing { .. } | Progress::Failed(_) => Origin::Collapsed,
        };
        self.along(seat, &begun, digest, origin, wish)
    }

    /// Streams what a flight has and what will come.
    fn along(&self, seat: Seat, begun: &Progress, digest: &Digest, origin: Origin, wish: Wish) -> Answer {
        let size = match begun {
            Progress::Failed(failure) => return Err(*failure),
            Progress::Growing { total, .. } => *total,
            Progress::Done { size, .. } => Some(*size),
            Progress::Asking => None,
        };
        let provenance = Provenance { origin, age: Duration::ZERO };
        let span = match (wish.range, size) {
            (Some(range), Some(size)) => match range.within(size) {
                None => return Ok(respond::no_such_range(size, provenance)),
                span => span,
            },
            // Without a size there is no Content-Range; a server may ignore Range.
            _ => None,
        };
        let described = Described { digest, media_type: BLOB_TYPE, size, span, provenance };
        if wish.is_head {
            return Ok(respond::content(&described, body::whole(Bytes::new())));
        }
        let (start, end) = span.map_or((0, size), |span| (span.start, Some(span.end)));
        Ok(respond::content(&described, self.body(Source::Flight(seat.progress), start, end)))
    }

    fn body(&self, source: Source, start: u64, end: Option<u64>) -> Body {
        body::part(source, start, end, Arc::clone(&self.metrics))
    }
}

/// What a request waits for no longer than its client does: a disk may hang.
async fn in_time<T>(deadline: Instant, work: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::time::timeout_at(deadline.into(), work).await.map_err(|_| Failure::NotYet)
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::mpsc};

    use http::StatusCode;
    use rustls::RootCertStore;

    use super::*;
    use crate::{
        metrics,
        on_error::OnError,
        peer::{Peers, Trust},
        upstream::{Outlet, credentials::CredentialStore},
    };

    fn pull(data: &Path, background: &Background) -> Pull {
        let registry: RegistryHost = "docker.io".parse().unwrap();
        let metrics = Arc::new(Metrics::new(&registry));
        let store = Arc::new(Store::open(data.to_owned(), &registry, "1Gi".parse().unwrap()).unwrap());
        let peers = Peers::new(Vec::new(), Trust::plain(background.clone()).unwrap(), (&store, &metrics), background);
        let outlet = Outlet { url: "http://127.0.0.1:1".parse().unwrap(), roots: RootCertStore::empty(), proxy: None };
        let credentials = CredentialStore::open(None, registry.clone());
        let parts = (Arc::clone(&store.contact), Arc::clone(&metrics));
        let counted = metrics::Source::upstream;
        let upstream =
            Upstream::new(counted, registry.clone(), outlet, credentials, parts.0, parts.1, background).unwrap();
        let sources = Sources::new(Arc::clone(&upstream), Vec::new(), peers, background.clone());
        let limits = Limits { tag_ttl: Duration::ZERO, max_stale: Duration::MAX, on_error: OnError::of(&[]) };
        Pull::new(registry, store, upstream, sources, limits, metrics, background)
    }

    #[test]
    fn where_the_disk_hangs_every_request_is_answered_in_time() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
        let (data, background) = (tempfile::tempdir().unwrap(), Background::default());
        let pull = pull(data.path(), &background);
        let (release, hung) = mpsc::channel::<()>();
        runtime.spawn_blocking(move || hung.recv());
        let digest = Digest::of(crate::digest::Algorithm::Sha256, b"");
        let began = Instant::now() - LONGEST + Duration::from_millis(50);
        for path in [
            "manifests/v1".to_owned(),
            format!("manifests/{digest}"),
            format!("blobs/{digest}"),
            "tags/list".to_owned(),
        ] {
            let request = Request::get(format!("/v2/library/app/{path}")).body(()).unwrap();
            let route = route::parse(request.method(), request.uri(), &pull.registry);
            let answer = pull.route(&request, route.as_ref(), began);
            let answer = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(2), answer).await });
            assert_eq!(answer.map(|answer| answer.status()).ok(), Some(StatusCode::SERVICE_UNAVAILABLE), "{path}");
        }
        drop(release);
    }
}
