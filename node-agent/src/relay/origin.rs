//! Where an answer comes from, by what a cache says of itself in `Cache-Status` (RFC 9211). Knows nothing of Pods.

use http::{HeaderMap, HeaderName, HeaderValue};

pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// How a cache of ours names itself, ...
const OURS: &[u8] = b"breakwater";
/// ... and how it says that it has something on its disk.
const FROM_DISK: [&[u8]; 2] = [b"breakwater; hit", b"breakwater; fwd=stale"];

/// Where the bytes of a body come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The cache's disk.
    Disk,
    /// The upstream, through the cache; or the cache does not say.
    Upstream,
}

impl Origin {
    /// Of an answer.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let status = status(headers);
        if FROM_DISK.iter().any(|said| status.starts_with(said)) { Self::Disk } else { Self::Upstream }
    }
}

/// Whether an answer is one of a cache of ours.
pub(super) fn is_ours(headers: &HeaderMap) -> bool {
    status(headers).starts_with(OURS)
}

fn status(headers: &HeaderMap) -> &[u8] {
    headers.get(CACHE_STATUS).map(HeaderValue::as_bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_of_ours_says_where_an_answer_comes_from() {
        let said = |status| {
            let headers = HeaderMap::from_iter([(CACHE_STATUS, HeaderValue::from_static(status))]);
            (is_ours(&headers), Origin::of(&headers))
        };
        assert_eq!(said("breakwater; hit"), (true, Origin::Disk));
        assert_eq!(said("breakwater; fwd=stale; fwd-status=504"), (true, Origin::Disk));
        assert_eq!(said("breakwater; fwd=miss"), (true, Origin::Upstream));
        assert_eq!(said("another; hit"), (false, Origin::Upstream));
        assert_eq!((is_ours(&HeaderMap::new()), Origin::of(&HeaderMap::new())), (false, Origin::Upstream));
    }
}
