//! The upstream registry: what can be asked of it, in the types of this crate. Knows nothing of the store or of clients.
//!
//! `ask` (exchange.rs) does one request with permit and redirects; `transport` one hop; `breaker` makes outages cheap;
//! `probe` keeps the state true while nobody asks.

pub mod address;
mod auth;
mod blob;
pub mod breaker;
mod budget;
pub mod challenge;
mod client;
mod connector;
pub mod credentials;
mod exchange;
mod places;
mod probe;
mod proxy;
pub mod redirect;
mod refusals;
mod resolver;
mod transport;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{
    Method,
    header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, LINK},
};
use reqwest::Response;

pub(crate) use self::resolver::LookUps;
use self::{
    auth::Auth,
    breaker::HostKey,
    budget::Budget,
    credentials::CredentialStore,
    exchange::{Answer, Ask},
    places::{Place, Places},
    refusals::Refusals,
    transport::Transport,
};
pub use self::{
    blob::{BlobStream, Broken, stated_length},
    budget::RateLimit,
    probe::UpstreamState,
    proxy::{ProxyInvalid, ProxyUrl},
    transport::{Outlet, TransportInvalid},
};
use crate::{
    background::Background,
    digest::{Algorithm, Digest},
    failure::Failure,
    list_page::{self, ListPage},
    manifest::{self, Manifest},
    metrics::{self, HostRole, Metrics, Phase},
    reference::{Reference, RepositoryName},
    registry_host::RegistryHost,
    route::List,
    store::contact::LastContact,
};

/// For a whole manifest or list.
const SMALL_BODY: Duration = Duration::from_secs(10);
/// Without a byte of it: short enough for a second try while the client waits.
const SMALL_IDLE: Duration = Duration::from_secs(3);
/// A source that sends less than this in a second is left where it only keeps others waiting ...
pub const CROWDED_DRIP: u64 = 2 * 1024;
/// ... a manifest or list after so long.
const DRIPS: Duration = Duration::from_secs(1);
/// RFC 6838 allows 127 on either side of the slash; parameters are short.
const MOST_MEDIA_TYPE: usize = 512;
/// The longest page of a list.
pub const MOST_LIST_BYTES: usize = 8 * 1024 * 1024;
/// The outcome of a failure of this age still says how upstream is now.
const RECENT: Duration = Duration::from_secs(30);

/// What upstream says of a manifest without sending it.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size.
    pub size: u64,
    /// Upstream's validator.
    pub etag: Option<String>,
}

/// A manifest that upstream sent; its digest is that of the bytes.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    /// The manifest.
    pub manifest: Manifest,
    /// Whether a login was needed.
    pub is_private: bool,
    /// Upstream's validator.
    pub etag: Option<String>,
}

/// The way to one registry.
pub struct Upstream {
    registry: RegistryHost,
    /// As what its content counts.
    counted: metrics::Source,
    transport: Arc<Transport>,
    auth: Auth,
    credentials: Arc<CredentialStore>,
    refusals: Refusals,
    budget: Budget,
    places: Places,
    contact: Arc<LastContact>,
    metrics: Arc<Metrics>,
    probe: probe::Findings,
}

impl Upstream {
    /// Does no I/O to upstream.
    pub fn new(
        counted: metrics::Source,
        registry: RegistryHost,
        outlet: Outlet,
        credentials: CredentialStore,
        contact: Arc<LastContact>,
        metrics: Arc<Metrics>,
        background: &Background,
    ) -> Result<Arc<Self>, TransportInvalid> {
        let credentials = Arc::new(credentials);
        Ok(Arc::new(Self {
            counted,
            registry,
            transport: Arc::new(Transport::new(outlet, Arc::clone(&metrics), background.clone())?),
            auth: Auth::new(Arc::clone(&credentials), background.clone()),
            credentials,
            refusals: Refusals::default(),
            budget: Budget::default(),
            places: Places::default(),
            contact,
            metrics,
            probe: probe::Findings::default(),
        }))
    }

    /// Whether what `repository` holds is fetched with a login.
    pub fn is_private(&self, repository: &RepositoryName) -> bool {
        self.auth.is_private(repository)
    }

    /// Whether requests fail at once, and why.
    pub fn is_away(&self) -> Option<Failure> {
        self.transport.breakers.admit(&HostKey::of(self.transport.origin())).err()
    }

    /// When upstream, or a host that it sends us to, was last found to be back.
    pub fn last_return(&self) -> Option<Instant> {
        self.transport.breakers.last_return()
    }

    /// Whether upstream has failed of late without a good answer since.
    pub fn failed_recently(&self) -> bool {
        let state = self.transport.breakers.state(&HostKey::of(self.transport.origin()));
        state.is_some_and(|state| state.failed_within(RECENT))
    }

    /// Whether upstream may be asked again for what is at hand, or would that use up what misses need.
    pub fn may_revalidate(&self) -> bool {
        self.budget.allows_revalidation()
    }

    /// How many pulls upstream still allows.
    pub fn rate_limit(&self) -> RateLimit {
        self.budget.state()
    }

    /// How many hosts fail, by the part they play.
    pub fn open_breakers(&self) -> [(HostRole, usize); 3] {
        let registry = HostKey::of(self.transport.origin());
        let realm = self.auth.realm().map(|realm| HostKey::of(&realm));
        let mut counts = [(HostRole::registry, 0), (HostRole::token, 0), (HostRole::redirect, 0)];
        for host in self.transport.breakers.open() {
            let role = match host {
                host if host == registry => 0,
                host if Some(&host) == realm.as_ref() => 1,
                _ => 2,
            };
            counts[role].1 += 1;
        }
        counts
    }

    /// The last good answer to anything.
    pub fn contact(&self) -> &LastContact {
        &self.contact
    }

    /// Asks for a manifest's digest, media type and size.
    pub async fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestHead, Failure> {
        let ask = Ask::new(Method::HEAD, repository, format!("manifests/{reference}")).accept(manifest::ACCEPT);
        let answer = self.ask(ask).await?;
        let digest = match reference {
            Reference::Digest(digest) => digest.clone(),
            Reference::Tag(_) => stated_digest(&answer.response).ok_or(Failure::InvalidResponse)?,
        };
        let media_type = media_type(&answer.response).ok_or(Failure::InvalidResponse)?;
        let size = answer.response.headers().get(CONTENT_LENGTH).and_then(|size| size.to_str().ok()?.parse().ok());
        let size = match size.unwrap_or_default() {
            0 => return Err(Failure::InvalidResponse),
            size if size > manifest::MOST_BYTES as u64 => return Err(Failure::TooLarge),
            size => size,
        };
        Ok(ManifestHead { digest, media_type, size, etag: etag(&answer.response) })
    }

    /// Fetches a manifest. Anything else than the content of the digest that was asked for, or that upstream itself names,
    /// is an error.
    pub async fn get_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FetchedManifest, Failure> {
        match self.get_manifest_once(repository, reference).await {
            Err(Failure::BrokenBody) => self.get_manifest_once(repository, reference).await,
            answer => answer,
        }
    }

    async fn get_manifest_once(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FetchedManifest, Failure> {
        let ask = Ask::new(Method::GET, repository, format!("manifests/{reference}")).accept(manifest::ACCEPT);
        let answer = self.ask(ask).await?;
        let (stated_type, etag) = (media_type(&answer.response), etag(&answer.response));
        if stated_type.is_none() && answer.response.headers().contains_key(CONTENT_TYPE) {
            return Err(Failure::InvalidResponse);
        }
        let wanted = match reference {
            Reference::Digest(digest) => Some(digest.clone()),
            Reference::Tag(_) => stated_digest(&answer.response),
        };
        let bytes = self.read_small(answer.response, answer.place, manifest::MOST_BYTES).await?;
        let digest = Digest::of(wanted.as_ref().map_or(Algorithm::Sha256, Digest::algorithm), &bytes);
        if wanted.as_ref().is_some_and(|wanted| *wanted != digest) {
            return Err(Failure::WrongDigest);
        }
        let is_named = stated_type.as_deref().is_some_and(|stated| stated.starts_with("application/vnd."));
        let shape = if is_named { None } else { manifest::recognise(&bytes) };
        if wanted.is_none() && !is_named && shape.is_none() {
            // An error under a 200, for example.
            return Err(Failure::InvalidResponse);
        }
        let media_type = stated_type.or(shape).ok_or(Failure::InvalidResponse)?;
        let manifest = Manifest { digest, media_type, bytes };
        Ok(FetchedManifest { manifest, is_private: answer.is_private, etag })
    }

    /// Fetches a page of a list.
    pub async fn get_list(&self, repository: &RepositoryName, list: &List) -> Result<ListPage, Failure> {
        let ask = match list {
            List::Tags { query } => Ask::new(Method::GET, repository, "tags/list".to_owned()).query(query),
            List::Referrers { digest, query } => {
                let accept = "application/vnd.oci.image.index.v1+json, application/json, */*";
                Ask::new(Method::GET, repository, format!("referrers/{digest}")).query(query).accept(accept)
            }
        };
        let Answer { response, place, .. } = self.ask(ask).await?;
        let text = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let link = text(LINK.as_str()).and_then(|link| exchange::relative_link(&link));
        let filters = text("oci-filters-applied");
        let media_type = media_type(&response).unwrap_or_else(|| "application/json".to_owned());
        let body = self.read_small(response, place, MOST_LIST_BYTES).await?;
        if !list_page::is_list(&body) {
            return Err(Failure::InvalidResponse);
        }
        Ok(ListPage { media_type, link, filters, body })
    }

    async fn read_small(&self, mut response: Response, place: Place, most: usize) -> Result<Bytes, Failure> {
        let _timer = self.metrics.timer(Phase::body);
        let began = tokio::time::Instant::now();
        let expected = response.content_length();
        if expected.is_some_and(|length| length > most as u64) {
            return Err(Failure::TooLarge);
        }
        let mut body = BytesMut::new();
        loop {
            let idle = tokio::time::Instant::now() + SMALL_IDLE;
            match tokio::time::timeout_at(idle.min(began + SMALL_BODY), response.chunk()).await {
                Ok(Ok(Some(_))) if place.is_sought() && drips(body.len(), began.elapsed()) => {
                    return Err(Failure::BrokenBody);
                }
                Ok(Ok(Some(piece))) if body.len() + piece.len() <= most => body.extend_from_slice(&piece),
                Ok(Ok(Some(_))) => return Err(Failure::TooLarge),
                Ok(Ok(None)) => break,
                Ok(Err(_)) | Err(_) => return Err(Failure::BrokenBody),
            }
        }
        self.metrics.content(self.counted, body.len() as u64);
        Ok(body.freeze())
    }
}

/// Whether so little has come in so long that others should have the place.
fn drips(received: usize, took: Duration) -> bool {
    took > DRIPS && (received as u64) < CROWDED_DRIP * took.as_secs()
}

fn media_type(response: &Response) -> Option<String> {
    let text = response.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    (1..=MOST_MEDIA_TYPE).contains(&text.len()).then(|| text.to_owned())
}

fn stated_digest(response: &Response) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

fn etag(response: &Response) -> Option<String> {
    Some(response.headers().get(ETAG)?.to_str().ok()?.to_owned())
}
