//! The admin listener: health, metrics and the state of upstream. Serves no content.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde::Serialize;

use crate::{
    body::{self, Body},
    metrics::{Metrics, Now},
    registry_host::RegistryHost,
    store::Store,
    telemetry,
    upstream::{RateLimit, Upstream, UpstreamState},
};

/// What the admin listener tells about.
pub struct Admin {
    /// Whose cache this is.
    pub registry: RegistryHost,
    /// Its folder.
    pub store: Arc<Store>,
    /// Its upstream.
    pub upstream: Arc<Upstream>,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
}

/// `/v1/upstream`, read by the operator.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct UpstreamAnswer<'a> {
    registry: &'a str,
    reachable: Option<bool>,
    since: String,
    message: String,
    credentials_accepted: Option<bool>,
    rate_limit: Option<u64>,
    rate_limit_remaining: Option<u64>,
    rate_limit_reset_seconds: Option<u64>,
    cached_bytes: u64,
}

impl Admin {
    /// Answers one request. Neither health nor readiness depends on upstream: an outage is when the cache is needed.
    pub fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are served\n".into());
        }
        match request.uri().path() {
            "/healthz" | "/readyz" => text(StatusCode::OK, "ok\n".into()),
            "/metrics" => self.metrics(),
            "/v1/upstream" => self.upstream(),
            _ => text(StatusCode::NOT_FOUND, "there are /healthz, /readyz, /metrics and /v1/upstream\n".into()),
        }
    }

    fn metrics(&self) -> Response<Body> {
        let now = Now {
            used: self.store.blobs.used(),
            is_reachable: self.upstream.state().reachable == Some(true),
            open_breakers: self.upstream.open_breakers(),
            log_lines_lost: telemetry::lines_lost(),
            rate_limit: self.upstream.rate_limit(),
        };
        self.metrics.disk.set(&self.store);
        match self.metrics.text(&now) {
            Ok(metrics) => {
                typed(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", metrics.into())
            }
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written\n".into()),
        }
    }

    fn upstream(&self) -> Response<Body> {
        let UpstreamState { reachable, since, message, credentials_accepted } = self.upstream.state();
        let RateLimit { limit, remaining, reset } = self.upstream.rate_limit();
        let answer = UpstreamAnswer {
            registry: self.registry.as_str(),
            reachable,
            since: since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            message,
            credentials_accepted,
            rate_limit: limit,
            rate_limit_remaining: remaining,
            rate_limit_reset_seconds: reset.map(|left| left.as_secs()),
            cached_bytes: self.store.blobs.used(),
        };
        match serde_json::to_vec(&answer) {
            Ok(json) => typed(StatusCode::OK, "application/json", json.into()),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "state cannot be written\n".into()),
        }
    }
}

fn text(status: StatusCode, words: Bytes) -> Response<Body> {
    typed(status, "text/plain; charset=utf-8", words)
}

fn typed(status: StatusCode, media_type: &'static str, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(body::whole(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
