//! The access log: one line per request once its body has ended, and the request's place in the metrics.
//!
//! A plain hit is told at `debug`, so that a cache at full speed does not pay for its log; whatever needed upstream or
//! failed is told at `info`. A line holds no credential and no query.

use std::{
    cell::Cell,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tracing::{Level, enabled, event};

use crate::{
    body::{Body, BodyBroken},
    metrics::{Kind, Metrics, Outcome},
    route::{List, Route},
    server,
};

/// Texts of the client's are cut here.
const MOST_TEXT: usize = 200;

tokio::task_local! {
    static WAITED: Cell<Duration>;
}

/// Runs the work for one request, and tells how long it waited for upstream.
pub async fn measured<T>(work: impl Future<Output = T>) -> (T, Duration) {
    WAITED.scope(Cell::default(), async { (work.await, WAITED.with(Cell::get)) }).await
}

/// Waits for something of upstream's: the time counts as upstream's.
pub async fn for_upstream<T>(wait: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let outcome = wait.await;
    // Outside of a request nobody asks.
    let _ = WAITED.try_with(|waited| waited.set(waited.get() + began.elapsed()));
    outcome
}

/// What is known of a request when its header goes out.
pub struct Answered<'a> {
    /// When it came.
    pub began: Instant,
    /// How long it waited for upstream.
    pub upstream: Duration,
    /// Where it goes; `None` if nowhere.
    pub route: Option<&'a Route>,
}

/// Counts the answer, and logs it when its body ends if anybody wants to know.
pub fn record<B>(
    answered: &Answered<'_>,
    request: &Request<B>,
    response: Response<Body>,
    metrics: &Metrics,
) -> Response<Body> {
    let Answered { began, upstream, route } = answered;
    let first_byte = began.elapsed();
    let result = outcome(*route, &response);
    metrics.answered(kind(*route), result, first_byte);
    let is_for_replica = matches!(response.status(), StatusCode::GATEWAY_TIMEOUT | StatusCode::LOOP_DETECTED);
    // A node whose token is not the right one any more pulls past the cache: somebody should see why.
    let is_nowhere = route.is_none() && response.status() != StatusCode::UNAUTHORIZED;
    let is_quiet = result == Outcome::hit || is_nowhere || is_for_replica;
    let is_wanted =
        if is_quiet { enabled!(target: "access", Level::DEBUG) } else { enabled!(target: "access", Level::INFO) };
    if !is_wanted {
        return response;
    }
    let text = |headers: &HeaderMap, name| {
        let text = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        shortened(text).to_owned()
    };
    let length = response.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let (repository, reference) = what(*route, request.uri().path());
    let line = Line {
        is_quiet,
        client: server::client(),
        method: shortened(request.method().as_str()).to_owned(),
        kind: kind(*route),
        repository,
        reference,
        status: response.status(),
        cache_status: text(response.headers(), header::HeaderName::from_static("cache-status")),
        range: text(request.headers(), header::RANGE),
        user_agent: text(request.headers(), header::USER_AGENT),
        began: *began,
        first_byte,
        upstream: *upstream,
        length: length.filter(|_| request.method() != http::Method::HEAD),
        sent: 0,
        is_broken: false,
    };
    response.map(|body| Logged { body, line }.boxed_unsync())
}

fn kind(route: Option<&Route>) -> Kind {
    match route {
        Some(Route::Manifest { .. }) => Kind::manifest,
        Some(Route::Blob { .. }) => Kind::blob,
        Some(Route::List { .. }) => Kind::list,
        Some(Route::Base) | None => Kind::other,
    }
}

fn outcome(route: Option<&Route>, response: &Response<Body>) -> Outcome {
    let cache_status = response.headers().get("cache-status").map(http::HeaderValue::as_bytes).unwrap_or_default();
    match response.status() {
        _ if route.is_none() => Outcome::denied,
        StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE => Outcome::denied,
        // The request itself forbids to ask upstream.
        StatusCode::GATEWAY_TIMEOUT | StatusCode::LOOP_DETECTED => Outcome::denied,
        status if !status.is_success() => Outcome::error,
        _ if cache_status.starts_with(b"breakwater; hit") => Outcome::hit,
        _ if cache_status.starts_with(b"breakwater; fwd=stale") => Outcome::stale,
        _ => Outcome::miss,
    }
}

fn what(route: Option<&Route>, path: &str) -> (String, String) {
    match route {
        Some(Route::Manifest { repository, reference }) => (repository.to_string(), reference.to_string()),
        Some(Route::Blob { repository, digest }) => (repository.to_string(), digest.to_string()),
        Some(Route::List { repository, list: List::Tags { .. } }) => (repository.to_string(), "tags".to_owned()),
        Some(Route::List { repository, list: List::Referrers { digest, .. } }) => {
            (repository.to_string(), format!("referrers of {digest}"))
        }
        Some(Route::Base) | None => (String::new(), shortened(path).to_owned()),
    }
}

/// What clients send is ASCII by now; a cut elsewhere would break a character.
fn shortened(text: &str) -> &str {
    text.get(..MOST_TEXT).unwrap_or(text)
}

/// A request's line in the log.
struct Line {
    is_quiet: bool,
    client: Option<SocketAddr>,
    method: String,
    kind: Kind,
    repository: String,
    reference: String,
    status: StatusCode,
    cache_status: String,
    range: String,
    user_agent: String,
    began: Instant,
    first_byte: Duration,
    upstream: Duration,
    length: Option<u64>,
    sent: u64,
    is_broken: bool,
}

impl Line {
    fn write(&self) {
        macro_rules! write_at {
            ($level:expr) => {
                event!(
                    target: "access",
                    $level,
                    client = self.client.map(tracing::field::display),
                    method = self.method,
                    kind = ?self.kind,
                    repository = self.repository,
                    reference = self.reference,
                    status = self.status.as_u16(),
                    cache_status = self.cache_status,
                    bytes = self.sent,
                    cut = self.is_broken || self.length.is_some_and(|length| self.sent < length),
                    seconds = self.began.elapsed().as_secs_f64(),
                    first_byte_seconds = self.first_byte.as_secs_f64(),
                    upstream_seconds = self.upstream.as_secs_f64(),
                    range = self.range,
                    user_agent = self.user_agent,
                    "answered"
                )
            };
        }
        if self.is_quiet {
            write_at!(Level::DEBUG);
        } else {
            write_at!(Level::INFO);
        }
    }
}

/// A body that is logged when it is over, however it ends.
struct Logged {
    body: Body,
    line: Line,
}

impl http_body::Body for Logged {
    type Data = Bytes;
    type Error = BodyBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyBroken>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.line.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            Poll::Ready(Some(Err(_))) => self.line.is_broken = true,
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        self.line.write();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(shortened("abc"), "abc");
        assert_eq!(shortened(&"x".repeat(5000)).len(), MOST_TEXT);
    }

    #[tokio::test]
    async fn time_spent_waiting_for_upstream_adds_up() {
        let nap = || tokio::time::sleep(Duration::from_millis(5));
        let (answer, waited) = measured(async {
            for_upstream(nap()).await;
            nap().await;
            for_upstream(async { 7 }).await
        })
        .await;
        assert_eq!(answer, 7);
        assert!(waited >= Duration::from_millis(5), "{waited:?}");
    }
}
