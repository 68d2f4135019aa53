//! What replicas say to each other, in headers:
//!
//! ```text
//! Cache-Control: only-if-cached[, max-stale]     of the question (RFC 9111); 504 means no
//! Breakwater-Peer: <id>                          of the question: who asks, new with each process; without only-if-cached
//!                                                it tells what is to be had: fetch it from a replica, or 504
//! Retry-After: 0                                 of a 504: it is being looked for here, ask again
//! Cache-Status: breakwater; detail=elsewhere     of a 504: another replica sends it here, ask all once more
//! Breakwater-Access: public                      of content: upstream serves this to anyone; without it, it does not
//! ```

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{ACCEPT_ENCODING, AGE, CACHE_CONTROL, CONTENT_TYPE},
};
use reqwest::{Response, Url};

use crate::{
    reference::RepositoryName,
    route::List,
    store::tags::{TagRecord, Target},
    upstream::stated_length,
};

/// Says who asks.
pub const PEER: HeaderName = HeaderName::from_static("breakwater-peer");
/// Says whether anyone may have the content.
pub const ACCESS: HeaderName = HeaderName::from_static("breakwater-access");
/// The value of `ACCESS` for content that anyone may have.
pub const PUBLIC: HeaderValue = HeaderValue::from_static("public");

/// Of each question.
pub(super) fn headers(id: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.extend(HeaderValue::try_from(id).ok().map(|id| (PEER, id)));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("only-if-cached"));
    headers
}

pub(super) fn list_path(repository: &RepositoryName, list: &List) -> String {
    let (path, query) = match list {
        List::Tags { query } => (format!("/v2/{repository}/tags/list"), query),
        List::Referrers { digest, query } => (format!("/v2/{repository}/referrers/{digest}"), query),
    };
    if query.is_empty() {
        return path;
    }
    // For its encoding alone.
    let url = Url::parse_with_params("http://replica", query).ok();
    format!("{path}?{}", url.as_ref().and_then(Url::query).unwrap_or_default())
}

pub(super) fn tag_record(response: &Response) -> Option<TagRecord> {
    let digest = text(response, &HeaderName::from_static("docker-content-digest"))?.parse().ok()?;
    let current = Target { digest, media_type: text(response, &CONTENT_TYPE)?, size: stated_length(response)? };
    // Ages need no common clock. They are in whole seconds, and a tag must not get younger on its way to and fro.
    let age = text(response, &AGE)?.parse::<u64>().ok()?.saturating_add(1);
    let validated_at = TagRecord::now().saturating_sub(age.saturating_mul(1000));
    Some(TagRecord { current, previous: None, last_complete: None, validated_at, etag: None, is_gone: false })
}

pub(super) fn is_private(response: &Response) -> bool {
    response.headers().get(ACCESS) != Some(&PUBLIC)
}

pub(super) fn text(response: &Response, name: &HeaderName) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}
