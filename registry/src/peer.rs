//! The other replicas of this cache: a miss asks them before upstream, with `Cache-Control: only-if-cached`, so that none
//! of them ever asks anyone on another's behalf. All are asked at once and the first who has it serves it.
//!
//! ```text
//! Cache-Control: only-if-cached[, max-stale]     of the question (RFC 9111); 504 means no
//! Breakwater-Peer: <id>                          of the question: who asks, new with each process
//! Breakwater-Access: public                      of the answer: upstream serves this to anyone; without it, it does not
//! ```
//!
//! A replica that does not answer is left alone for a while, so a dead one costs one short wait and then nothing.

mod trust;

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{ACCEPT_ENCODING, AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, RANGE},
};
use reqwest::{Request, Response, Url};
use tracing::debug;

pub use self::trust::{PeersInvalid, Trust};
use crate::{
    background::Background,
    coalesce::Coalesce,
    digest::{Algorithm, Digest},
    manifest::{self, Manifest},
    reference::{Reference, RepositoryName, Tag},
    store::tags::{TagRecord, Target},
    upstream::{BlobStream, FetchedManifest, stated_length},
};

/// Says who asks.
pub const PEER: HeaderName = HeaderName::from_static("breakwater-peer");
/// Says whether anyone may have the content.
pub const ACCESS: HeaderName = HeaderName::from_static("breakwater-access");
/// The value of `ACCESS` for content that anyone may have.
pub const PUBLIC: HeaderValue = HeaderValue::from_static("public");

/// For the header of an answer with content.
const HEADER: Duration = Duration::from_secs(1);
/// For what a tag means: an answer may be at hand already.
const TAG: Duration = Duration::from_millis(300);
/// For the whole of a manifest.
const MANIFEST: Duration = Duration::from_secs(2);
/// So long is a replica left alone that did not answer.
const QUIET: Duration = Duration::from_secs(5);

/// Where another replica is: `cache-1.cache:5000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress(String);

/// Why a text is no peer's address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be HOST:PORT of another replica, such as cache-1.cache:5000")]
pub struct AddressInvalid;

impl FromStr for PeerAddress {
    type Err = AddressInvalid;

    fn from_str(text: &str) -> Result<Self, AddressInvalid> {
        let authority: http::uri::Authority = text.parse().map_err(|_| AddressInvalid)?;
        let is_plain = authority.port_u16().is_some() && !authority.host().is_empty() && !text.contains('@');
        is_plain.then(|| Self(text.to_owned())).ok_or(AddressInvalid)
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

struct Peer {
    address: PeerAddress,
    quiet_until: Mutex<Option<Instant>>,
}

/// The other replicas. The list may hold this one too: it has nothing that it does not have.
pub struct Peers {
    peers: Vec<Peer>,
    trust: Trust,
    id: String,
    tags: Coalesce<(RepositoryName, Tag), Option<TagRecord>>,
}

impl Peers {
    /// Asks nobody yet.
    pub fn new(addresses: Vec<PeerAddress>, trust: Trust, background: Background) -> Arc<Self> {
        let peers = addresses.into_iter().map(|address| Peer { address, quiet_until: Mutex::default() }).collect();
        Arc::new(Self { peers, trust, id: fresh_id(), tags: Coalesce::new(background) })
    }

    /// Whether this is the only replica.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Whether this replica goes first where both begin to look for `digest`: the same answer at both, and for each
    /// digest another one.
    pub fn goes_before(&self, other: &str, digest: &Digest) -> bool {
        let rank = |id: &str| Digest::of(Algorithm::Sha256, format!("{id} {digest}").as_bytes());
        rank(&self.id).hex() > rank(other).hex()
    }

    /// Begins to fetch a blob from a replica that has it, or that is fetching it from upstream.
    pub async fn blob(&self, repository: &RepositoryName, digest: &Digest, offset: u64) -> Option<BlobStream> {
        let mut headers = HeaderMap::new();
        if offset > 0 {
            headers.insert(RANGE, HeaderValue::try_from(format!("bytes={offset}-")).ok()?);
        }
        let path = format!("/v2/{repository}/blobs/{digest}");
        let response = self.ask(Method::GET, &path, headers, HEADER).await?;
        let is_private = is_private(&response);
        BlobStream::of(response, offset, is_private).ok().flatten()
    }

    /// Asks for a blob's size.
    pub async fn blob_size(&self, repository: &RepositoryName, digest: &Digest) -> Option<u64> {
        let path = format!("/v2/{repository}/blobs/{digest}");
        stated_length(&self.ask(Method::HEAD, &path, HeaderMap::new(), HEADER).await?)
    }

    /// Fetches a manifest; anything else than that content is none.
    pub async fn manifest(&self, repository: &RepositoryName, digest: &Digest) -> Option<FetchedManifest> {
        let path = format!("/v2/{repository}/manifests/{digest}");
        let response = self.ask(Method::GET, &path, HeaderMap::new(), HEADER).await?;
        let is_private = is_private(&response);
        let media_type = text(&response, &CONTENT_TYPE)?;
        if stated_length(&response).is_none_or(|length| length > manifest::MOST_BYTES as u64) {
            return None;
        }
        let bytes = tokio::time::timeout(MANIFEST, response.bytes()).await.ok()?.ok()?;
        if Digest::of(digest.algorithm(), &bytes) != *digest {
            return None;
        }
        let manifest = Manifest { digest: digest.clone(), media_type, bytes };
        Some(FetchedManifest { manifest, is_private, etag: None })
    }

    /// What a tag means to the replica that answers first, and when upstream last said so.
    pub async fn tag(self: &Arc<Self>, repository: &RepositoryName, tag: &Tag) -> Option<TagRecord> {
        if self.is_empty() {
            return None;
        }
        let (this, name) = (Arc::clone(self), (repository.clone(), tag.clone()));
        let waiter = self.tags.join(name.clone(), || async move { this.ask_for_tag(&name.0, name.1).await });
        waiter.result().await.flatten()
    }

    async fn ask_for_tag(&self, repository: &RepositoryName, tag: Tag) -> Option<TagRecord> {
        let path = format!("/v2/{repository}/manifests/{}", Reference::Tag(tag));
        let headers = HeaderMap::from_iter([(CACHE_CONTROL, HeaderValue::from_static("only-if-cached, max-stale"))]);
        let response = self.ask(Method::HEAD, &path, headers, TAG).await?;
        let digest = text(&response, &HeaderName::from_static("docker-content-digest"))?.parse().ok()?;
        let current = Target { digest, media_type: text(&response, &CONTENT_TYPE)?, size: stated_length(&response)? };
        // Ages need no common clock.
        let age: u64 = text(&response, &AGE)?.parse().ok()?;
        let validated_at = TagRecord::now().saturating_sub(age.saturating_mul(1000));
        Some(TagRecord { current, previous: None, last_complete: None, validated_at, etag: None, is_gone: false })
    }

    /// The first answer that is none of refusal, of any replica that is not left alone.
    async fn ask(&self, method: Method, path: &str, mut headers: HeaderMap, patience: Duration) -> Option<Response> {
        if self.peers.is_empty() {
            return None;
        }
        headers.insert(PEER, HeaderValue::try_from(&self.id).ok()?);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("only-if-cached"));
        headers.extend(self.trust.permit().map(|permit| (AUTHORIZATION, permit)));
        let willing = self.peers.iter().filter(|peer| !peer.is_left_alone());
        let mut asking: FuturesUnordered<_> =
            willing.map(|peer| self.ask_one(peer, &method, path, &headers, patience)).collect();
        while let Some(answer) = asking.next().await {
            if answer.is_some() {
                return answer;
            }
        }
        None
    }

    async fn ask_one(
        &self,
        peer: &Peer,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        patience: Duration,
    ) -> Option<Response> {
        let url: Url = format!("{}://{}{path}", self.trust.scheme(), peer.address).parse().ok()?;
        let mut request = Request::new(method.clone(), url);
        *request.headers_mut() = headers.clone();
        match tokio::time::timeout(patience, self.trust.client().execute(request)).await {
            Ok(Ok(response)) => {
                matches!(response.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT).then_some(response)
            }
            Ok(Err(error)) => {
                debug!(peer = %peer.address, error = &error.without_url() as &dyn std::error::Error, "no answer");
                peer.leave_alone();
                None
            }
            Err(_) => {
                debug!(peer = %peer.address, "no answer in time");
                peer.leave_alone();
                None
            }
        }
    }
}

impl Peer {
    fn is_left_alone(&self) -> bool {
        let quiet_until = self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner);
        quiet_until.is_some_and(|until| until > Instant::now())
    }

    fn leave_alone(&self) {
        *self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + QUIET);
    }
}

/// Differs between replicas and between runs: process ids do not, in containers.
fn fresh_id() -> String {
    let mut bytes = [0; 16];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => hex::encode(bytes),
        Err(_) => format!("{:x}-{:x}", std::process::id(), TagRecord::now()),
    }
}

fn is_private(response: &Response) -> bool {
    response.headers().get(ACCESS) != Some(&PUBLIC)
}

fn text(response: &Response, name: &HeaderName) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["cache-1.cache:5000", "10.0.0.1:5000", "[::1]:5000"] {
            assert_eq!(good.parse::<PeerAddress>().unwrap().to_string(), good);
        }
        for bad in ["", "cache-1", ":5000", "http://a:1", "a:1/x", "user@a:1", "a:99999"] {
            assert_eq!(bad.parse::<PeerAddress>(), Err(AddressInvalid), "{bad}");
        }
    }

    #[test]
    fn of_two_replicas_exactly_one_goes_first() {
        let peers = |n: u8| {
            let trust = Trust::plain(Background::default()).unwrap();
            let peers = Peers::new(Vec::new(), trust, Background::default());
            assert_eq!(peers.id.len(), 32, "{n}");
            peers
        };
        let (one, other) = (peers(1), peers(2));
        let mut firsts = 0;
        for n in 0..64_u8 {
            let digest = Digest::of(Algorithm::Sha256, &[n]);
            assert_ne!(one.goes_before(&other.id, &digest), other.goes_before(&one.id, &digest));
            assert!(!one.goes_before(&one.id, &digest), "nobody waits for itself");
            firsts += u32::from(one.goes_before(&other.id, &digest));
        }
        assert!((8..56).contains(&firsts), "the load is shared: {firsts}");
    }
}
