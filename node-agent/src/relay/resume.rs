//! Going on with a blob where it broke off: the next Pod that answers, the same bytes, by Range. Knows nothing of frames.

use super::ask::{Content, Kind};
use super::awake::Time;
use super::cache::{Cache, HEADERS};
use super::connect::Connection;
use super::hang::HangCheck;
use super::origin::Origin;
use super::replica::Replica;
use super::trial::Trial;
use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// So many bytes since the last break make up for it; ...
const AMENDS: u64 = 1024 * 1024;
/// ... without them, so many breaks in a row are gone over.
const BREAKS: usize = 3;

/// Where an answer comes from.
pub(super) struct Source {
    pub(super) body: Incoming,
    pub(super) replica: Arc<Replica>,
    pub(super) origin: Origin,
    /// Goes back to the pool at the end; dropped with the body otherwise, which closes it.
    pub(super) connection: Option<Connection>,
}

impl Body for Source {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { body, connection, .. } = &mut *self;
        match connection {
            Some(connection) => connection.poll_frame(body, cx),
            None => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What is still to come of a blob.
#[derive(Clone, Debug)]
pub(super) struct Rest {
    content: Arc<Content>,
    next: u64,
    end: u64,
    is_all: bool,
    broke: Vec<SocketAddr>,
    since_break: u64,
}

impl Rest {
    /// All of an answer; None where going on is impossible, because it is no blob or of unknown length.
    pub(super) fn of(content: &Arc<Content>, parts: &Parts) -> Option<Self> {
        if !matches!(content.kind, Kind::Blob(_)) {
            return None;
        }
        let number = |name| parts.headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
        let length = number(header::CONTENT_LENGTH)?;
        let (next, is_all) = match parts.status {
            StatusCode::OK => (0, true),
            StatusCode::PARTIAL_CONTENT => {
                let (start, total) = content_range(&parts.headers)?;
                (start, start == 0 && total == Some(length))
            }
            _ => return None,
        };
        let end = next.checked_add(length)?;
        Some(Self { content: content.clone(), next, end, is_all, broke: Vec::new(), since_break: 0 })
    }

    /// Whether it is all of the blob.
    pub(super) fn is_whole(&self) -> bool {
        self.next == 0 && self.is_all
    }

    /// So many bytes more have come.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.next += bytes;
        self.since_break += bytes;
        if self.since_break >= AMENDS {
            self.broke.clear();
        }
    }

    /// How it can be told that who broke off does so no more.
    pub(super) fn trial(&self, origin: Origin) -> Trial {
        Trial::beyond(self.next, &self.content, origin)
    }

    /// Whether this Pod broke off more than once: that is no restart.
    pub(super) fn was_broken_again_by(&self, address: SocketAddr) -> bool {
        self.broke.iter().filter(|broke| **broke == address).count() > 1
    }

    /// Asks the other Pods for the rest, and at last, with `again`, those that broke off.
    pub(super) async fn go_on(&mut self, cache: &Cache, broken: &Replica, again: bool) -> Option<Source> {
        self.broke.push(broken.address);
        self.since_break = 0;
        if self.next >= self.end || self.broke.len() > BREAKS {
            return None;
        }
        let mut time = Time::new(HEADERS);
        match self.ask_all(cache, again, &mut time).await {
            None if cache.readmit() => self.ask_all(cache, again, &mut time).await,
            source => source,
        }
    }

    async fn ask_all(&mut self, cache: &Cache, again: bool, time: &mut Time) -> Option<Source> {
        let mut candidates = cache.standing_in(&self.content.repository);
        candidates.retain(|replica| !replica.withholds(&self.content));
        candidates.retain(|replica| again || !self.broke.contains(&replica.address));
        candidates.sort_by_key(|replica| self.broke.contains(&replica.address));
        let mut check = HangCheck::new(&candidates, &Method::GET, &self.content);
        for replica in &candidates {
            let headers = self.headers();
            let asked = replica.ask(&Method::GET, &self.content, &headers, time, Duration::ZERO, &mut check).await;
            let Ok((response, connection)) = asked else { continue };
            if !self.continues(response.status(), response.headers()) {
                if response.status().is_success() {
                    // It sends something, and not what is missing: as good as another break.
                    self.broke.push(replica.address);
                }
                continue;
            }
            let (origin, length) = (Origin::of(response.headers()), self.end - self.next);
            if replica.is_trusted_with(&self.content, origin, length, time, Duration::ZERO).await {
                let (body, connection) = (response.into_body(), Some(connection));
                return Some(Source { body, replica: replica.clone(), origin, connection });
            }
        }
        None
    }

    fn headers(&self) -> HeaderMap {
        let range = HeaderValue::try_from(format!("bytes={}-{}", self.next, self.end.saturating_sub(1)));
        range.map(|range| HeaderMap::from_iter([(header::RANGE, range)])).unwrap_or_default()
    }

    /// Whether an answer is exactly what is missing.
    fn continues(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        status == StatusCode::PARTIAL_CONTENT
            && content_range(headers).is_some_and(|(start, _)| start == self.next)
            && length == Some(self.end - self.next)
    }
}

/// `bytes 5-9/10` begins at 5 and is of 10 in all, where that is said.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = range.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::ask::Digest;
    use http::Response;

    fn rest(status: u16, headers: &[(&str, &str)]) -> Option<Rest> {
        let digest = Digest::parse(&format!("sha256:{}", "0".repeat(64)))?;
        let content = Content {
            registry: "docker.io".into(),
            repository: "a".into(),
            kind: Kind::Blob(digest),
            target: "/v2/a".into(),
        };
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        Rest::of(&Arc::new(content), &response.body(()).ok()?.into_parts().0)
    }

    #[test]
    fn only_what_is_missing_continues_an_answer() {
        let mut rest = rest(206, &[("content-range", "bytes 10-19/100"), ("content-length", "10")]).unwrap();
        rest.advance(4);
        assert_eq!(rest.headers()[header::RANGE], "bytes=14-19");
        let fits = |status: u16, range: &str, length: &str| {
            let headers = [(header::CONTENT_RANGE, range), (header::CONTENT_LENGTH, length)];
            let headers = headers.map(|(name, value)| (name, HeaderValue::from_str(value).unwrap()));
            rest.continues(StatusCode::from_u16(status).unwrap(), &headers.into_iter().collect())
        };
        assert!(fits(206, "bytes 14-19/100", "6"));
        assert!(!fits(200, "bytes 14-19/100", "6"));
        assert!(!fits(206, "bytes 13-19/100", "7"));
        assert!(!fits(206, "bytes 14-18/100", "5"));
    }

    #[test]
    fn a_part_may_be_all_of_it() {
        let whole = |status, range, length| {
            let headers = [("content-range", range), ("content-length", length)];
            rest(status, &headers).is_some_and(|rest| rest.is_whole())
        };
        assert!(whole(200, "", "10") && whole(206, "bytes 0-9/10", "10"));
        assert!(
            !whole(206, "bytes 0-8/10", "9") && !whole(206, "bytes 1-9/10", "9") && !whole(206, "bytes 0-9/*", "10")
        );
    }

    #[test]
    fn a_restart_is_no_break_again_and_is_made_up_for() {
        let [one, other] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let mut rest = rest(200, &[("content-length", "50000000")]).unwrap();
        rest.broke = vec![one, other, one];
        rest.advance(AMENDS - 1);
        assert!(rest.was_broken_again_by(one) && !rest.was_broken_again_by(other));
        rest.advance(1);
        assert!(!rest.was_broken_again_by(one));
    }

    #[test]
    fn without_a_length_there_is_no_going_on() {
        assert!(rest(200, &[]).is_none());
        assert!(rest(206, &[("content-length", "5")]).is_none());
        assert!(rest(404, &[("content-length", "5")]).is_none());
        let beyond = format!("bytes {}-{}/*", u64::MAX, u64::MAX);
        assert!(rest(206, &[("content-range", &beyond), ("content-length", "1")]).is_none());
        assert!(rest(200, &[("content-length", "5")]).is_some());
    }
}
