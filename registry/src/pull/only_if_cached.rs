//! `Cache-Control: only-if-cached` (RFC 9111): the answer from here or 504, upstream is not asked. So ask the other
//! replicas (peer.rs), and they get more than what has landed: a download that upstream feeds is read along as it grows.
//!
//! Two replicas that begin at the same time each find the other looking, too. The one that goes first for this digest
//! goes on to upstream at once; the other waits a moment for it. Only a download that no replica feeds is shared, so
//! no ring of replicas can wait for itself.

use std::time::Duration;

use http::{Request, Response, header::CACHE_CONTROL};

use super::{Answer, Pull};
use crate::{
    body::Body,
    digest::Digest,
    flight::{Progress, Seat},
    holdings::{self, Holding},
    peer::{ACCESS, PEER, PUBLIC},
    progress::Feed,
    reference::{Reference, RepositoryName},
    respond::{self, Provenance, Sought},
    route::Route,
    serve::{self, Wish},
    store::blocking,
    verify::Verdict,
};

/// Shorter than a replica's patience, so that who does not answer in time is known to be dead.
const WAIT: Duration = Duration::from_millis(800);

/// What a request says that upstream must not be asked for.
pub(super) struct OnlyIfCached {
    /// An answer may be older than `tag-ttl` allows.
    may_be_stale: bool,
    /// The replica that asks.
    peer: Option<String>,
}

impl OnlyIfCached {
    /// `None`: upstream may be asked.
    pub(super) fn of<B>(request: &Request<B>) -> Option<Self> {
        let directives = request.headers().get(CACHE_CONTROL)?.to_str().ok()?;
        let says = |wanted: &str| {
            let mut names = directives.split(',').filter_map(|directive| directive.split('=').next());
            names.any(|name| name.trim().eq_ignore_ascii_case(wanted))
        };
        let peer = || Some(request.headers().get(PEER)?.to_str().ok()?.to_owned());
        says("only-if-cached").then(|| Self { may_be_stale: says("max-stale"), peer: peer() })
    }
}

impl Pull {
    /// The answer from here, or 504.
    pub(super) async fn without_upstream(&self, route: &Route, wish: Wish, asked: &OnlyIfCached) -> Response<Body> {
        let answer = match route {
            Route::Base => return respond::base(),
            Route::Manifest { repository, reference } => self.manifest_here(repository, reference, wish, asked).await,
            Route::Blob { repository, digest } => self.blob_here(repository, digest, wish, asked).await,
            Route::List { .. } => None,
        };
        match answer {
            None => respond::not_cached(),
            Some(answer) => answer.unwrap_or_else(|failure| respond::failure(failure, Sought::Blob)),
        }
    }

    async fn manifest_here(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        wish: Wish,
        asked: &OnlyIfCached,
    ) -> Option<Answer> {
        let (digest, tag) = match reference {
            Reference::Digest(digest) => (digest.clone(), None),
            Reference::Tag(tag) => {
                let resolved = self.tags.at_hand(repository, tag, asked.may_be_stale).await?;
                // What a tag means is known even where its manifest is not here any more.
                if wish.is_head {
                    return Some(Ok(serve::head(&resolved.target, Provenance::of_tag(&resolved))));
                }
                (resolved.target.digest.clone(), Some(resolved))
            }
        };
        let (store, name) = (self.store.clone(), repository.clone());
        let (manifest, blob) = blocking(move || holdings::manifest(&store, &name, &digest)).await??;
        let provenance = tag.map_or_else(|| Provenance::hit(blob.stored), |tag| Provenance::of_tag(&tag));
        Some(Ok(said(blob.is_public, serve::manifest(manifest, provenance, wish))))
    }

    async fn blob_here(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        wish: Wish,
        asked: &OnlyIfCached,
    ) -> Option<Answer> {
        let (store, name, wanted) = (self.store.clone(), repository.clone(), digest.clone());
        match blocking(move || holdings::blob(&store, &name, &wanted)).await? {
            Holding::Hit(blob) => {
                let response = match self.verifier.judge(repository, digest, &blob, wish).await.ok()? {
                    Verdict::Right => serve::stored_blob(digest, &blob, wish, &self.metrics),
                    Verdict::Open(known) => serve::unverified_blob(digest, &blob, known, wish, &self.metrics),
                    Verdict::Wrong => return None,
                };
                Some(Ok(said(blob.is_public, response)))
            }
            Holding::IsManifest | Holding::Unproven(_) => None,
            Holding::Absent { is_linked } => {
                let seat = self.flights.find(digest)?;
                let is_known = is_linked || seat.repository == *repository;
                self.flight_here(seat, is_known, digest, wish, asked).await
            }
        }
    }

    /// Reads a download along that upstream feeds.
    async fn flight_here(
        &self,
        mut seat: Seat,
        is_known: bool,
        digest: &Digest,
        wish: Wish,
        asked: &OnlyIfCached,
    ) -> Option<Answer> {
        let is_looking = seat.feed() == Feed::None && matches!(*seat.progress.borrow(), Progress::Asking);
        let goes_first = |peer: &String| self.sources.peers().goes_before(peer, digest);
        if is_looking && !asked.peer.as_ref().is_some_and(goes_first) {
            return None;
        }
        let begun = tokio::time::timeout(WAIT, seat.begin(wish.range)).await.ok()?;
        let is_upstreams = matches!(begun, Progress::Done { .. }) || seat.feed() != Feed::Peer;
        if matches!(begun, Progress::Failed(_)) || !is_upstreams || !(is_known || seat.is_public()) {
            return None;
        }
        let is_public = seat.is_public();
        let answer = self.along(seat, &begun, digest, respond::Origin::Collapsed, wish);
        Some(answer.map(|response| said(is_public, response)))
    }
}

/// Tells another replica whether anyone may have this.
fn said(is_public: bool, mut response: Response<Body>) -> Response<Body> {
    if is_public {
        response.headers_mut().insert(ACCESS, PUBLIC);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &'static str) -> Option<bool> {
        let request = Request::builder().header(CACHE_CONTROL, value).body(()).unwrap();
        OnlyIfCached::of(&request).map(|asked| asked.may_be_stale)
    }

    #[test]
    fn directives() {
        assert_eq!(parse("only-if-cached"), Some(false));
        assert_eq!(parse("Only-If-Cached, MAX-STALE=600"), Some(true));
        assert_eq!(parse("no-cache"), None);
        assert_eq!(parse("xonly-if-cached"), None);
        assert!(OnlyIfCached::of(&Request::new(())).is_none());
    }
}
