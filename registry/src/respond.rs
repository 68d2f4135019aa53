//! Responses: the same headers for HEAD and GET, `Cache-Status` (RFC 9211) and the distribution spec's errors. Pure.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{self, HeaderName},
};

use crate::{
    body::{self, Body},
    digest::Digest,
    failure::Failure,
    list_page::ListPage,
    range::Span,
    route::Refused,
};

/// RFC 9211.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Says which filters upstream applied to a list.
pub const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From here.
    Hit,
    /// From here, after upstream has said that it still holds.
    Revalidated,
    /// From upstream.
    Miss,
    /// From upstream, by a download that another request started.
    Collapsed,
    /// From here although it should be asked for again: upstream fails.
    Stale(Failure),
}

impl Origin {
    fn cache_status(self) -> String {
        match self {
            Self::Hit => "breakwater; hit".to_owned(),
            Self::Revalidated => "breakwater; hit; detail=revalidated".to_owned(),
            Self::Miss => "breakwater; fwd=miss".to_owned(),
            Self::Collapsed => "breakwater; fwd=miss; collapsed".to_owned(),
            Self::Stale(failure) => format!("breakwater; fwd=stale; detail={}", failure.category()),
        }
    }
}

/// An answer's origin and the time since upstream vouched for it.
#[derive(Clone, Copy, Debug)]
pub struct Provenance {
    /// Where it came from.
    pub origin: Origin,
    /// Its age.
    pub age: Duration,
}

/// What a client is told of a content before its bytes.
#[derive(Clone, Debug)]
pub struct Described<'a> {
    /// Its digest.
    pub digest: &'a Digest,
    /// Its media type.
    pub media_type: &'a str,
    /// Its whole size, if known.
    pub size: Option<u64>,
    /// The part that follows, if not all.
    pub span: Option<Span>,
    /// Where it came from.
    pub provenance: Provenance,
}

/// 200 or 206 with content.
pub fn content(described: &Described<'_>, body: Body) -> Response<Body> {
    let Described { digest, media_type, size, span, provenance } = described;
    let mut headers = provenance_headers(*provenance);
    set(&mut headers, header::CONTENT_TYPE, media_type);
    set(&mut headers, CONTENT_DIGEST, &digest.to_string());
    set(&mut headers, header::ETAG, &format!("\"{digest}\""));
    set(&mut headers, header::ACCEPT_RANGES, "bytes");
    if let Some(length) = span.map(Span::length).or(*size) {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let mut status = StatusCode::OK;
    if let (Some(span), Some(size)) = (span, size) {
        status = StatusCode::PARTIAL_CONTENT;
        set(&mut headers, header::CONTENT_RANGE, &span.content_range(*size));
    }
    response(status, headers, body)
}

/// 416: the content has no such part.
pub fn no_such_range(size: u64, provenance: Provenance) -> Response<Body> {
    let mut headers = provenance_headers(provenance);
    set(&mut headers, header::CONTENT_RANGE, &format!("bytes */{size}"));
    let text = error_body("SIZE_INVALID", "the content has no such range");
    set(&mut headers, header::CONTENT_TYPE, "application/json");
    headers.insert(header::CONTENT_LENGTH, text.len().into());
    response(StatusCode::RANGE_NOT_SATISFIABLE, headers, body::whole(text))
}

/// `/v2/`: yes, this is a registry.
pub fn base() -> Response<Body> {
    let mut headers = provenance_headers(Provenance { origin: Origin::Hit, age: Duration::ZERO });
    set(&mut headers, API_VERSION, "registry/2.0");
    set(&mut headers, header::CONTENT_TYPE, "application/json");
    headers.insert(header::CONTENT_LENGTH, 2.into());
    response(StatusCode::OK, headers, body::whole(Bytes::from_static(b"{}")))
}

/// A list of upstream's.
pub fn list(page: ListPage, provenance: Provenance) -> Response<Body> {
    let ListPage { media_type, link, filters, body } = page;
    let mut headers = provenance_headers(provenance);
    set(&mut headers, header::CONTENT_TYPE, &media_type);
    headers.insert(header::CONTENT_LENGTH, body.len().into());
    for (name, value) in [(header::LINK, link), (FILTERS_APPLIED, filters)] {
        if let Some(value) = value {
            set(&mut headers, name, &value);
        }
    }
    response(StatusCode::OK, headers, body::whole(body))
}

/// What was looked for in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sought {
    /// A manifest.
    Manifest,
    /// A blob.
    Blob,
    /// A list of a repository.
    List,
}

/// 404 or 503: the runtime goes on to the next host at once. No other status has that effect in all of them.
pub fn failure(failure: Failure, sought: Sought) -> Response<Body> {
    let status = match failure {
        Failure::NotFound => "; fwd-status=404",
        Failure::TooManyRequests => "; fwd-status=429",
        // Others are no answer, or one of several statuses.
        _ => "",
    };
    let headers = own_headers(&format!("breakwater; fwd=miss{status}; detail={}", failure.category()));
    let (status, code) = match (failure.is_absence(), sought) {
        (true, Sought::Manifest) => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
        (true, Sought::Blob) => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
        (true, Sought::List) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
    };
    error(status, code, &failure.to_string(), headers)
}

/// How `cached_elsewhere` is known.
pub const ELSEWHERE: &str = "breakwater; detail=elsewhere";

/// 504 (RFC 9111): the request allows no question to upstream, and the content is not here.
pub fn not_cached() -> Response<Body> {
    let headers = own_headers("breakwater; detail=not_cached");
    error(StatusCode::GATEWAY_TIMEOUT, "UNAVAILABLE", "not in this cache", headers)
}

/// 504, but it is on its way here.
pub fn not_cached_yet() -> Response<Body> {
    let mut headers = own_headers("breakwater; detail=not_yet");
    headers.insert(header::RETRY_AFTER, 0.into());
    error(StatusCode::GATEWAY_TIMEOUT, "UNAVAILABLE", "not in this cache yet", headers)
}

/// 504, but another replica sends it here and now, and may send it to others as well.
pub fn cached_elsewhere() -> Response<Body> {
    error(StatusCode::GATEWAY_TIMEOUT, "UNAVAILABLE", "another replica has it", own_headers(ELSEWHERE))
}

/// 508: who asks the other replicas is this one.
pub fn asks_itself() -> Response<Body> {
    error(StatusCode::LOOP_DETECTED, "UNSUPPORTED", "this is the replica that asks", own_headers("breakwater"))
}

/// A request that leads nowhere.
pub fn refused(refused: Refused) -> Response<Body> {
    let mut headers = own_headers(&format!("breakwater; detail={}", refused.category()));
    let (status, code) = match refused {
        Refused::Method => {
            set(&mut headers, header::ALLOW, "GET, HEAD");
            (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED")
        }
        Refused::OtherRegistry => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
        Refused::Path => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
        Refused::Name => (StatusCode::NOT_FOUND, "NAME_INVALID"),
        Refused::Digest => (StatusCode::NOT_FOUND, "DIGEST_INVALID"),
        Refused::Tag => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
    };
    error(status, code, &refused.to_string(), headers)
}

/// 401 without a challenge: a runtime that saw one would send its user's password.
pub fn unauthorized() -> Response<Body> {
    let headers = own_headers("breakwater; detail=token_needed");
    error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "a token of this cache is needed", headers)
}

/// The distribution spec's error envelope.
pub fn error(status: StatusCode, code: &'static str, message: &str, mut headers: HeaderMap) -> Response<Body> {
    let text = error_body(code, message);
    set(&mut headers, header::CONTENT_TYPE, "application/json");
    headers.insert(header::CONTENT_LENGTH, text.len().into());
    response(status, headers, body::whole(text))
}

fn error_body(code: &str, message: &str) -> Bytes {
    serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string().into()
}

/// Of an answer that is no content.
fn own_headers(cache_status: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    set(&mut headers, CACHE_STATUS, cache_status);
    headers.insert(header::AGE, 0.into());
    headers
}

fn provenance_headers(provenance: Provenance) -> HeaderMap {
    let mut headers = HeaderMap::new();
    set(&mut headers, CACHE_STATUS, &provenance.origin.cache_status());
    headers.insert(header::AGE, provenance.age.as_secs().into());
    headers
}

fn response(status: StatusCode, headers: HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Upstream's texts may hold what no header can; such a header is left out.
fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use http_body_util::BodyExt;

    use super::*;

    async fn check(response: Response<Body>, expected: Expect) {
        let (parts, body) = response.into_parts();
        let mut text = format!("{}\n", parts.status);
        for (name, value) in &parts.headers {
            text += &format!("{name}: {}\n", value.to_str().unwrap());
        }
        text += std::str::from_utf8(&body.collect().await.unwrap().to_bytes()).unwrap();
        expected.assert_eq(&text);
    }

    #[tokio::test]
    async fn failures() {
        check(
            failure(Failure::Refused, Sought::Blob),
            expect![[r#"
                404 Not Found
                cache-status: breakwater; fwd=miss; detail=unauthorized
                age: 0
                content-type: application/json
                content-length: 72
                {"errors":[{"code":"BLOB_UNKNOWN","message":"upstream refuses access"}]}"#]],
        )
        .await;
        check(
            failure(Failure::ConnectTimeout, Sought::Manifest),
            expect![[r#"
            503 Service Unavailable
            cache-status: breakwater; fwd=miss; detail=connect_timeout
            age: 0
            content-type: application/json
            content-length: 63
            {"errors":[{"code":"UNAVAILABLE","message":"connect timeout"}]}"#]],
        )
        .await;
    }

    #[tokio::test]
    async fn a_part() {
        let digest = Digest::of(crate::digest::Algorithm::Sha256, b"");
        let provenance = Provenance { origin: Origin::Stale(Failure::ServerError), age: Duration::from_secs(7) };
        let span = Some(Span { start: 2, end: 4 });
        let described = Described { digest: &digest, media_type: "a/b", size: Some(10), span, provenance };
        check(
            content(&described, body::whole(Bytes::from_static(b"xy"))),
            expect![[r#"
            206 Partial Content
            cache-status: breakwater; fwd=stale; detail=server_error
            age: 7
            content-type: a/b
            docker-content-digest: sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
            etag: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
            accept-ranges: bytes
            content-length: 2
            content-range: bytes 2-3/10
            xy"#]],
        )
        .await;
    }
}
