//! Where a redirect leads, and whether it may be followed. Pure; addresses are checked when connecting.

use http::{HeaderMap, StatusCode, header::LOCATION};
use reqwest::Url;

use crate::failure::Failure;

/// Registries need one or two; more is a loop.
pub(super) const MOST_HOPS: usize = 5;

/// The next URL, or `None` if the answer is no redirect.
pub fn next(status: StatusCode, headers: &HeaderMap, current: &Url) -> Result<Option<Url>, Failure> {
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok()).ok_or(Failure::InvalidResponse)?;
    let url = current.join(location).map_err(|_| Failure::InvalidResponse)?;
    let is_downgrade = current.scheme() == "https" && url.scheme() != "https";
    let speaks_http = matches!(url.scheme(), "http" | "https") && url.host().is_some();
    let has_user = !url.username().is_empty() || url.password().is_some();
    if is_downgrade || !speaks_http || has_user {
        return Err(Failure::ForbiddenAddress);
    }
    Ok(Some(url))
}

/// Whether two URLs have the same scheme, host and port: only then may credentials go along.
pub fn is_same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(from: &str, location: &str, expected: Result<Option<&str>, Failure>) {
        let headers = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
        let found = next(StatusCode::TEMPORARY_REDIRECT, &headers, &from.parse().unwrap());
        assert_eq!(found, expected.map(|url| url.map(|url| url.parse().unwrap())), "{location}");
    }

    #[test]
    fn table() {
        check("https://a/v2/x", "/y?z=1", Ok(Some("https://a/y?z=1")));
        check("https://a/v2/x", "https://cdn/y", Ok(Some("https://cdn/y")));
        check("http://a/v2/x", "http://cdn/y", Ok(Some("http://cdn/y")));
        check("https://a/v2/x", "http://cdn/y", Err(Failure::ForbiddenAddress));
        check("https://a/v2/x", "file:///etc/passwd", Err(Failure::ForbiddenAddress));
        check("https://a/v2/x", "https://user:pass@cdn/", Err(Failure::ForbiddenAddress));
        check("https://a/v2/x", "https://", Err(Failure::InvalidResponse));
        let ok = next(StatusCode::OK, &HeaderMap::new(), &"https://a/".parse().unwrap());
        assert_eq!(ok, Ok(None));
    }

    #[test]
    fn origins() {
        let same = |a: &str, b: &str| is_same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://a/x", "https://a:443/y"));
        assert!(
            !same("https://a/", "https://a:444/")
                && !same("https://a/", "http://a/")
                && !same("https://a/", "https://b/")
        );
    }
}
