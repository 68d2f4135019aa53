//! What the cache is asked: the runtime's request with our token in place of its credentials. Pure.

use super::ask::{Content, Kind};
use super::route::Route;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, header};
use http_body_util::Empty;

/// What of the runtime's headers reaches the cache; its credentials are for the upstream, not for us.
const FORWARDED: [header::HeaderName; 8] = [
    header::ACCEPT,
    header::RANGE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::USER_AGENT,
];

/// The request as a Pod gets it.
pub(super) fn build(route: &Route, method: &Method, content: &Content, headers: &HeaderMap) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = method.clone();
    // Parsed from a valid URI and of plain characters, so it is one again.
    *request.uri_mut() = content.target.parse().unwrap_or_default();
    // A manifest is verified as a whole before a byte goes out, so it is asked for as a whole.
    let whole = matches!(content.kind, Kind::Manifest(_));
    let to = request.headers_mut();
    for name in FORWARDED.into_iter().filter(|name| !(whole && (name == header::RANGE || name == header::IF_RANGE))) {
        for value in headers.get_all(&name) {
            to.append(&name, value.clone());
        }
    }
    to.insert(header::HOST, route.host.clone());
    to.insert(header::AUTHORIZATION, route.authorization.clone());
    request
}

/// The same, for what a Pod has: the upstream is not to be asked.
pub(super) fn only_if_cached(mut request: Request<Empty<Bytes>>) -> Request<Empty<Bytes>> {
    request.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("only-if-cached"));
    request
}

/// The same, however old it is.
pub(super) fn of_any_age(mut request: Request<Empty<Bytes>>) -> Request<Empty<Bytes>> {
    request.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("only-if-cached, max-stale"));
    request
}
