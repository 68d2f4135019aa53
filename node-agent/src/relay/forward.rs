//! One request through a cache: what comes back is passed on unchanged or not at all. A 503 sends the runtime to the next
//! host, a 404 says that the upstream has no such thing; other failures make runtimes retry here or give up, so none goes out.

use super::ask::{Content, Kind};
use super::awake::Time;
use super::body::RelayBody;
use super::cache::{Cache, HEADERS, Unserved};
use super::fitness;
use super::hang::HangCheck;
use super::origin::{CACHE_STATUS, Origin};
use super::replica::Replica;
use super::resume::{Rest, Source};
use super::trial::Trial;
use super::verify;
use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body::Body;
use std::sync::Arc;
use std::time::Duration;

/// So much of the time is kept for the other Pods: they answer at once what they have.
const RESERVE: Duration = Duration::from_secs(2);

/// A cache gives its upstream so long, ...
const FETCHING: Duration = Duration::from_secs(4);
/// ... and Pods that together took longer than this hang over what they do not have.
const KEPT_WAITING: Duration = Duration::from_millis(4500);

pub(super) const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// What of the cache's headers reaches the runtime. No challenge, no redirect, nothing about the connection.
const RETURNED: [HeaderName; 14] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    header::ETAG,
    header::LAST_MODIFIED,
    header::CACHE_CONTROL,
    header::AGE,
    header::DATE,
    header::LINK,
    DOCKER_CONTENT_DIGEST,
    HeaderName::from_static("docker-distribution-api-version"),
    HeaderName::from_static("oci-filters-applied"),
    CACHE_STATUS,
];

/// Serves one request from the first Pod that can, all within one deadline.
pub(super) async fn forward(
    cache: &Arc<Cache>,
    method: &Method,
    content: &Arc<Content>,
    headers: &HeaderMap,
) -> Result<Response<RelayBody>, Unserved> {
    let mut time = Time::new(HEADERS);
    match try_all(cache, method, content, headers, &mut time).await {
        // Those who answered until a moment ago are gone, and one that went before them may be back.
        Err(fault) if fault.is_absence() && cache.readmit() => {
            try_all(cache, method, content, headers, &mut time).await
        }
        served => served,
    }
}

async fn try_all(
    cache: &Arc<Cache>,
    method: &Method,
    content: &Arc<Content>,
    headers: &HeaderMap,
    time: &mut Time,
) -> Result<Response<RelayBody>, Unserved> {
    let candidates = time.wait(Duration::ZERO, cache.candidates(content)).await.unwrap_or(Err(Unserved::Out))?;
    let mut check = HangCheck::new(&candidates, method, content);
    let mut left = candidates.len();
    let mut unserved = Unserved::Out;
    let mut late = Late::default();
    for replica in &candidates {
        left -= 1;
        // The first may have been found out while another was waited for.
        if replica.is_refused(Origin::Disk) || replica.withholds(content) {
            unserved = Unserved::Offended;
            continue;
        }
        let before = time.left();
        let reserve = if left > 0 { RESERVE.min(before / 2) } else { Duration::ZERO };
        let ask = Attempt { cache, replica, method, content, headers, time, reserve, check: &mut check };
        match ask.answer().await {
            Ok(response) if fitness::could_be_ours(response.status(), response.headers()) => {
                replica.talked_sense(content);
                return Ok(response);
            }
            Ok(response) => {
                unserved = Unserved::Nonsense(response.status());
                if left == 0 {
                    replica.talked_nonsense(&unserved, Trial::sense(asked(method, content), content));
                    return Ok(response);
                }
            }
            Err(fault) => unserved = fault,
        }
        let took = before.saturating_sub(time.left());
        if let Unserved::Late = unserved {
            late.add(replica, took, before.saturating_sub(reserve));
        } else {
            blame(replica, &unserved, took, asked(method, content), content);
        }
        if time.is_over() {
            break;
        }
    }
    if late.are_at_fault() {
        late.pods.into_iter().for_each(|replica| replica.kept_waiting(Trial::headers(asked(method, content), content)));
    }
    Err(unserved)
}

/// Pods whose headers did not come in time.
#[derive(Default)]
struct Late<'a> {
    pods: Vec<&'a Replica>,
    waited: Duration,
    /// So long they were to be waited for.
    offered: Duration,
}

impl<'a> Late<'a> {
    fn add(&mut self, pod: &'a Replica, waited: Duration, offered: Duration) {
        self.pods.push(pod);
        (self.waited, self.offered) = (self.waited + waited, self.offered + offered);
    }

    /// Whether they took longer than a cache may. Where others took most of the time, that does not show.
    fn are_at_fault(&self) -> bool {
        self.waited >= KEPT_WAITING.min(self.offered.max(FETCHING))
    }
}

/// Holds against a Pod what it failed over, after so long.
fn blame(replica: &Replica, fault: &Unserved, after: Duration, asked: &Method, content: &Arc<Content>) {
    match fault {
        // Nobody is there, which is the prober's affair: who comes back is asked for everything.
        fault if fault.is_absence() => {}
        // It was others who took their time, or this one is being tried.
        Unserved::Busy | Unserved::Doubted => {}
        Unserved::Nonsense(_) | Unserved::Unfit(_) | Unserved::Connect(_) => {
            replica.failed(after, Trial::headers(asked, content));
            replica.talked_nonsense(fault, Trial::sense(asked, content));
        }
        Unserved::Cut(_) => {
            replica.failed(after, Trial::headers(asked, content));
            replica.talked_nonsense(fault, Trial::whole(content, Origin::Disk));
        }
        _ => replica.failed(after, Trial::headers(asked, content)),
    }
}

/// One Pod asked for one content.
struct Attempt<'a, 'd> {
    cache: &'a Arc<Cache>,
    replica: &'a Arc<Replica>,
    method: &'a Method,
    content: &'a Arc<Content>,
    headers: &'a HeaderMap,
    time: &'a mut Time,
    /// Of the time, what is left to others.
    reserve: Duration,
    check: &'a mut HangCheck<'d>,
}

impl Attempt<'_, '_> {
    async fn answer(self) -> Result<Response<RelayBody>, Unserved> {
        let Self { cache, replica, method, content, headers, time, reserve, check } = self;
        let asked = asked(method, content);
        let (response, connection) = replica.ask(asked, content, headers, time, reserve, check).await?;
        let (mut parts, body) = response.into_parts();
        let origin = Origin::of(&parts.headers);
        let source = Source { body, replica: replica.clone(), origin, connection: Some(connection) };
        let is_sending = asked == Method::GET && parts.status.is_success();
        if is_sending && replica.is_refused(origin) {
            replica.wanted(content);
            return Err(Unserved::Offended);
        }
        fitness::check(asked, content, headers, &parts)?;
        parts.headers = returned(&parts.headers);
        let length = source.size_hint().exact().unwrap_or(u64::MAX);
        let rest = if is_sending { Rest::of(content, &parts) } else { None };
        match &content.kind {
            Kind::Manifest(_) if parts.status == StatusCode::OK => {
                let digest = verify::manifest_digest(content, &parts.headers)?;
                let bytes = cache.verifying.verified(source, content, &digest, time, reserve).await?;
                verify::check_media_type(&parts.headers, &bytes)?;
                return Ok(whole(cache, parts, bytes, method));
            }
            Kind::Blob(digest) if rest.as_ref().is_some_and(Rest::is_whole) && verify::is_small(&source) => {
                let bytes = cache.verifying.verified(source, content, digest, time, reserve).await?;
                return Ok(whole(cache, parts, bytes, method));
            }
            Kind::Blob(_) if is_sending && !replica.is_trusted_with(content, origin, length, time, reserve).await => {
                replica.wanted(content);
                return Err(Unserved::Doubted);
            }
            Kind::Manifest(_) | Kind::Blob(_) | Kind::Other => {}
        }
        Ok(Response::from_parts(parts, RelayBody::streamed(source, cache.clone(), content.clone(), rest)))
    }
}

/// What a header says of a manifest the runtime believes, so it is verified as well: by asking for all of it.
fn asked<'a>(method: &'a Method, content: &Content) -> &'a Method {
    if matches!(content.kind, Kind::Manifest(_)) { &Method::GET } else { method }
}

/// Of content that is here already: all of it, or what GET would say to HEAD.
fn whole(cache: &Cache, mut parts: Parts, bytes: Bytes, method: &Method) -> Response<RelayBody> {
    if method == Method::GET {
        cache.counters.bytes.add(bytes.len() as u64);
    }
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    Response::from_parts(parts, RelayBody::whole(bytes))
}

fn returned(from: &HeaderMap) -> HeaderMap {
    let mut to = HeaderMap::new();
    for name in &RETURNED {
        for value in from.get_all(name) {
            to.append(name, value.clone());
        }
    }
    to
}
