//! `Cache-Control: only-if-cached` (RFC 9111): the answer from here or 504, upstream is not asked. So ask the other
//! replicas (peer.rs), and they get more than what has landed: a download that upstream feeds is read along as it grows.
//!
//! Two replicas that begin at the same time each find the other looking, too. The one that goes first for this digest
//! goes on to upstream; the other waits for it. Nobody waits for a replica that may wait for others in turn, and only what
//! upstream itself feeds is shared, so no ring of replicas can wait for itself.
//!
//! A replica that tells what it has got is answered in the same way, once it has been fetched from there (told.rs).

use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response, header::CACHE_CONTROL};

use super::{Answer, Pull, told::Taken};
use crate::{
    body::Body,
    digest::Digest,
    failure::Failure,
    flight::{Progress, Seat},
    holdings::{self, Holding},
    peer::{ACCESS, PEER, PUBLIC},
    progress::Feed,
    reference::{Reference, RepositoryName, Tag},
    respond::{self, Provenance, Sought},
    route::Route,
    serve::{self, Wish},
    store::blocking,
    verify::Verdict,
};

/// Much shorter than a replica's patience, so that who does not answer in time is known to be dead.
const WAIT: Duration = Duration::from_millis(500);

/// Content that is here and waits for what others have begun.
const BEING_HASHED: HeaderValue = HeaderValue::from_static("breakwater; hit; collapsed");

/// What a request says that upstream must not be asked for.
pub(super) struct OnlyIfCached {
    /// An answer may be older than `tag-ttl` allows.
    may_be_stale: bool,
    /// Another replica has it, and it is to be here too.
    is_told: bool,
    /// The replica that asks.
    peer: Option<String>,
}

impl OnlyIfCached {
    /// `None`: upstream may be asked.
    pub(super) fn of<B>(request: &Request<B>) -> Option<Self> {
        let directives = request.headers().get(CACHE_CONTROL).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let says = |wanted: &str| {
            let mut names = directives.split(',').filter_map(|directive| directive.split('=').next());
            names.any(|name| name.trim().eq_ignore_ascii_case(wanted))
        };
        let peer = request.headers().get(PEER).and_then(|peer| Some(peer.to_str().ok()?.to_owned()));
        let is_told = peer.is_some() && !says("only-if-cached");
        let may_be_stale = is_told || says("max-stale");
        (is_told || says("only-if-cached")).then_some(Self { may_be_stale, is_told, peer })
    }
}

/// What there is for a replica that asks.
enum Here {
    Answer(Answer),
    /// It may be here soon.
    NotYet,
    /// Another replica sends it here.
    Elsewhere,
    No,
}

impl From<Option<Answer>> for Here {
    fn from(answer: Option<Answer>) -> Self {
        answer.map_or(Self::No, Self::Answer)
    }
}

impl Pull {
    /// The answer from here, or 504.
    pub(super) async fn without_upstream(&self, route: &Route, wish: Wish, asked: &OnlyIfCached) -> Response<Body> {
        if asked.peer.as_ref().is_some_and(|peer| self.sources.peers().is_itself(peer)) {
            return respond::asks_itself();
        }
        if asked.is_told {
            match self.fill(route).await {
                Taken::Here => {}
                Taken::NotYet => return respond::not_cached_yet(),
                Taken::No => return respond::not_cached(),
            }
        }
        let (sought, here) = match route {
            Route::Base => return respond::base(),
            Route::Manifest { repository, reference: Reference::Tag(tag) } => {
                (Sought::Manifest, self.tag_here(repository, tag, wish, asked).await.into())
            }
            Route::Manifest { repository, reference: Reference::Digest(digest) } => {
                (Sought::Manifest, self.manifest_here(repository, digest, wish, asked).await)
            }
            Route::Blob { repository, digest } => (Sought::Blob, self.blob_here(repository, digest, wish, asked).await),
            Route::List { repository, list } => {
                let found = self.lists.at_hand(repository, list, asked.may_be_stale).await;
                (Sought::List, found.map(|(page, provenance)| Ok(respond::list(page, provenance))).into())
            }
        };
        match here {
            Here::Answer(answer) => answer.unwrap_or_else(|failure| respond::failure(failure, sought)),
            Here::NotYet => respond::not_cached_yet(),
            Here::Elsewhere => respond::cached_elsewhere(),
            Here::No => {
                if let (Some(_), Some(digest)) = (&asked.peer, route.digest()) {
                    self.sources.peers().send_on(digest);
                }
                respond::not_cached()
            }
        }
    }

    async fn tag_here(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        wish: Wish,
        asked: &OnlyIfCached,
    ) -> Option<Answer> {
        let resolved = self.tags.at_hand(repository, tag, asked.may_be_stale).await?;
        // What a tag means is known even where its manifest is not here any more.
        if wish.is_head {
            return Some(Ok(serve::head(&resolved.target, Provenance::of_tag(&resolved))));
        }
        let (store, name, digest) = (self.store.clone(), repository.clone(), resolved.target.digest.clone());
        let (manifest, blob) = blocking(move || holdings::manifest(&store, &name, &digest)).await??;
        Some(Ok(said(blob.is_public, serve::manifest(manifest, Provenance::of_tag(&resolved), wish))))
    }

    async fn manifest_here(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        wish: Wish,
        asked: &OnlyIfCached,
    ) -> Here {
        let look = || {
            let (store, name, digest) = (self.store.clone(), repository.clone(), digest.clone());
            async move { blocking(move || holdings::manifest(&store, &name, &digest)).await.flatten() }
        };
        let asking = || self.manifests.asking(&(repository.clone(), digest.clone()));
        // Before the look too: what comes meanwhile must not be missed by both.
        let asked_before = asking();
        let mut found = look().await;
        if found.is_none()
            && let Some(asking) = asked_before.or_else(asking)
        {
            if !self.may_be_waited_for(asked, digest) || tokio::time::timeout(WAIT, asking).await.is_err() {
                return Here::NotYet;
            }
            found = look().await;
        }
        let Some((manifest, blob)) = found else { return Here::No };
        Here::Answer(Ok(said(blob.is_public, serve::manifest(manifest, Provenance::hit(blob.stored), wish))))
    }

    async fn blob_here(&self, repository: &RepositoryName, digest: &Digest, wish: Wish, asked: &OnlyIfCached) -> Here {
        let (store, name, wanted) = (self.store.clone(), repository.clone(), digest.clone());
        // Before the look too: what lands meanwhile must not be missed by both.
        let seat = self.flights.find(digest);
        // Its hash may take longer than who asks waits for a sign of life.
        let wish = Wish { deadline: wish.deadline.min(Instant::now() + WAIT), ..wish };
        match blocking(move || holdings::blob(&store, &name, &wanted)).await {
            Some(Holding::Hit(blob)) => match self.verifier.judge(repository, digest, &blob, wish).await {
                Ok(Verdict::Right) => {
                    let response = serve::stored_blob(digest, &blob, wish, &self.metrics);
                    Here::Answer(Ok(said(blob.is_public, response)))
                }
                Ok(Verdict::Open(known)) => {
                    let mut response = serve::unverified_blob(digest, &blob, known, wish, &self.metrics);
                    // Its end comes with the hash: that it is waited for is no stall.
                    response.headers_mut().insert(respond::CACHE_STATUS, BEING_HASHED);
                    Here::Answer(Ok(said(blob.is_public, response)))
                }
                Err(Failure::NotYet) => Here::NotYet,
                Ok(Verdict::Wrong) | Err(_) => Here::No,
            },
            Some(Holding::Absent { is_linked }) => {
                let Some(seat) = seat.or_else(|| self.flights.find(digest)) else { return Here::No };
                let is_known = is_linked || seat.repository == *repository;
                self.flight_here(seat, is_known, digest, wish, asked).await
            }
            Some(Holding::IsManifest | Holding::Unproven(_)) | None => Here::No,
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
    ) -> Here {
        if seat.feed() == Feed::None && !self.may_be_waited_for(asked, digest) {
            return Here::NotYet;
        }
        let begins = |progress: &Progress| progress.can_begin(wish.range);
        let can_begin = tokio::time::timeout(WAIT, seat.progress.wait_for(begins)).await.is_ok();
        if !can_begin {
            return if seat.feed() == Feed::Peer { Here::Elsewhere } else { Here::NotYet };
        }
        let is_done = matches!(*seat.progress.borrow(), Progress::Done { .. });
        match seat.feed() {
            Feed::Peer if !is_done => return Here::Elsewhere,
            Feed::None if !is_done => return Here::No,
            _ if !(is_known || seat.is_public()) => return Here::No,
            _ => {}
        }
        let begun = seat.begin(wish.range).await;
        if let Progress::Failed(_) = begun {
            return Here::No;
        }
        let is_public = seat.is_public();
        let answer = self.along(seat, &begun, digest, respond::Origin::Collapsed, wish);
        Here::Answer(answer.map(|response| said(is_public, response)))
    }

    /// Whether the replica that asks may wait for this one: it goes first, or waits for nobody any more.
    fn may_be_waited_for(&self, asked: &OnlyIfCached, digest: &Digest) -> bool {
        let goes_first = |peer: &String| self.sources.peers().goes_before(peer, digest);
        asked.peer.as_ref().is_some_and(|peer| self.sources.is_outward(digest) || goes_first(peer))
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
        let told = Request::builder().header(PEER, "id").body(()).unwrap();
        assert!(OnlyIfCached::of(&told).is_some_and(|asked| asked.is_told));
        let asked = Request::builder().header(PEER, "id").header(CACHE_CONTROL, "only-if-cached").body(()).unwrap();
        assert!(OnlyIfCached::of(&asked).is_some_and(|asked| !asked.is_told));
    }
}
