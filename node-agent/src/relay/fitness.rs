//! Which answers of a cache are fit to be passed on, by all but their bodies: what sends a runtime onwards, and nothing that it would
//! retry, follow or give up over. Pure.

use super::ask::{Content, Kind};
use super::cache::Unserved;
use super::origin;
use http::response::Parts;
use http::{HeaderMap, Method, StatusCode, header};

/// Why an answer to such a request is not passed on.
pub(super) fn check(method: &Method, content: &Content, asked: &HeaderMap, answer: &Parts) -> Result<(), Unserved> {
    let is_manifest = matches!(content.kind, Kind::Manifest(_));
    let is_sending = method == Method::GET && answer.status.is_success();
    match answer.status {
        StatusCode::PARTIAL_CONTENT if is_manifest || !asked.contains_key(header::RANGE) => {
            Err(Unserved::Unfit("a part of what was asked for as a whole"))
        }
        // Nobody could tell its end from a break, or go on with it.
        _ if is_sending && content.blob().is_some() && !answer.headers.contains_key(header::CONTENT_LENGTH) => {
            Err(Unserved::Unfit("a blob without a length"))
        }
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(()),
        StatusCode::NOT_MODIFIED if asked.contains_key(header::IF_NONE_MATCH) => Ok(()),
        StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE => Ok(()),
        status if origin::is_ours(&answer.headers) => Err(Unserved::Status(status)),
        status => Err(Unserved::Nonsense(status)),
    }
}

/// Whether what is fit could be of a cache of ours. Another's 404 sends a runtime onwards as well, where no Pod is left to ask.
pub(super) fn could_be_ours(status: StatusCode, headers: &HeaderMap) -> bool {
    let is_absence = matches!(status, StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE);
    !is_absence || origin::is_ours(headers)
}
