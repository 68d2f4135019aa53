//! What a runtime asks of the relay, parsed once from method, path and query. Pure.
//! <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#endpoints>

use aws_lc_rs::digest;
use http::{Method, Uri};

/// A request that the relay may serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// The agent's own health.
    Health,
    /// Whether this is a registry.
    Base,
    /// Content of one registry.
    Content(Content),
}

/// Content of one registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// The registry as the runtime names it.
    pub(super) registry: String,
    /// The repository, by which replicas are ranked.
    pub(super) repository: String,
    /// What of it.
    pub(super) kind: Kind,
    /// Path and query for the cache.
    pub(super) target: String,
}

/// Which part of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A manifest, by digest or tag.
    Manifest(Option<Digest>),
    /// A blob.
    Blob(Digest),
    /// Referrers, lists of tags.
    Other,
}

impl Content {
    /// The blob that it is, if it is one.
    pub(super) fn blob(&self) -> Option<&Digest> {
        match &self.kind {
            Kind::Blob(digest) => Some(digest),
            Kind::Manifest(_) | Kind::Other => None,
        }
    }

    /// Whether how the one goes tells of the other: a cache may be well with manifests and ill with blobs.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.blob().is_some() == other.blob().is_some()
    }
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Only GET and HEAD are served.
    Method,
    /// No such path, or one that no registry has.
    Path,
}

/// A digest of an algorithm that the relay can verify.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Digest(String);

impl Digest {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (algorithm, hex) = text.split_once(':')?;
        let length = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return None,
        };
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (hex.len() == length && hex.bytes().all(lower_hex)).then(|| Self(text.to_owned()))
    }

    /// The algorithm and the first digits, for logs.
    pub(super) fn short(&self) -> &str {
        self.0.get(..19).unwrap_or(&self.0)
    }

    pub(super) fn verifies(&self, bytes: &[u8]) -> bool {
        self.is(digest::digest(self.algorithm(), bytes).as_ref())
    }

    /// Takes bytes whose digest this may be.
    pub(super) fn context(&self) -> digest::Context {
        digest::Context::new(self.algorithm())
    }

    /// Whether this is the digest that was found.
    pub(super) fn is(&self, found: &[u8]) -> bool {
        self.0.split_once(':').is_some_and(|(_, wanted)| hex::encode(found) == wanted)
    }

    fn algorithm(&self) -> &'static digest::Algorithm {
        if self.0.starts_with("sha512:") { &digest::SHA512 } else { &digest::SHA256 }
    }
}

impl Ask {
    /// Parses a request. With `?ns=` the whole path is the registry's; without, its first part names the registry, as CRI-O
    /// asks. There a port follows an underscore, which no host has, because a repository's path has no colon.
    pub(super) fn parse(method: &Method, uri: &Uri) -> Result<Self, Refusal> {
        if method != Method::GET && method != Method::HEAD {
            return Err(Refusal::Method);
        }
        match uri.path() {
            "/healthz" => return Ok(Self::Health),
            "/v2" | "/v2/" => return Ok(Self::Base),
            _ => {}
        }
        let path = uri.path().strip_prefix("/v2/").filter(|path| is_plain(path)).ok_or(Refusal::Path)?;
        let (registry, path) = match namespace(uri.query().unwrap_or_default())? {
            Some(registry) => (registry, path),
            None => {
                path.split_once('/').map(|(registry, rest)| (registry.replace('_', ":"), rest)).ok_or(Refusal::Path)?
            }
        };
        let (repository, kind) = parse_content(path).ok_or(Refusal::Path)?;
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let target = format!("/v2/{path}{query}");
        Ok(Self::Content(Content { registry, repository: repository.to_owned(), kind, target }))
    }
}

/// Names, tags and digests need no escapes, and nothing that climbs.
fn is_plain(path: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-:/".contains(&b);
    path.len() <= 1024 && path.bytes().all(fits) && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn parse_content(path: &str) -> Option<(&str, Kind)> {
    let (rest, last) = path.rsplit_once('/')?;
    let (repository, part) = rest.rsplit_once('/')?;
    let kind = match part {
        "manifests" => Kind::Manifest(if last.contains(':') { Some(Digest::parse(last)?) } else { None }),
        "blobs" => Kind::Blob(Digest::parse(last)?),
        "referrers" | "tags" => Kind::Other,
        _ => return None,
    };
    Some((repository, kind))
}

/// The value of `ns`; one that is given twice is nobody's.
fn namespace(query: &str) -> Result<Option<String>, Refusal> {
    let mut values = query.split('&').filter_map(|pair| pair.strip_prefix("ns="));
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => unescape(value).map(Some).ok_or(Refusal::Path),
        (Some(_), Some(_)) => Err(Refusal::Path),
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        (bytes, rest) = match (first, tail) {
            (b'%', [a, b, tail @ ..]) => (push(bytes, hex::decode([*a, *b]).ok()?[0]), tail),
            (b'%', _) => return None,
            (byte, tail) => (push(bytes, *byte), tail),
        };
    }
    String::from_utf8(bytes).ok()
}

fn push(mut bytes: Vec<u8>, byte: u8) -> Vec<u8> {
    bytes.push(byte);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(uri: &str) -> Result<Ask, Refusal> {
        Ask::parse(&Method::GET, &uri.parse().map_err(|_| Refusal::Path)?)
    }

    fn check(uri: &str, registry: &str, repository: &str, target: &str) {
        let Ok(Ask::Content(content)) = parse(uri) else { panic!("{uri}") };
        assert_eq!(
            (content.registry.as_str(), content.repository.as_str(), content.target.as_str()),
            (registry, repository, target)
        );
    }

    #[test]
    fn a_registry_is_named_by_query_or_path() {
        let tag = "/v2/library/nginx/manifests/latest";
        check(&format!("{tag}?ns=docker.io"), "docker.io", "library/nginx", &format!("{tag}?ns=docker.io"));
        check(
            &format!("{tag}?ns=r.example%3A5000"),
            "r.example:5000",
            "library/nginx",
            &format!("{tag}?ns=r.example%3A5000"),
        );
        check("/v2/docker.io/library/nginx/manifests/latest", "docker.io", "library/nginx", tag);
        for registry in ["r.example:5000", "r.example_5000"] {
            let blob = format!("/v2/{registry}/a/blobs/{HEX}");
            check(&blob, "r.example:5000", "a", &format!("/v2/a/blobs/{HEX}"));
        }
        check(
            &format!("/v2/a/referrers/{HEX}?ns=x&artifactType=y"),
            "x",
            "a",
            &format!("/v2/a/referrers/{HEX}?ns=x&artifactType=y"),
        );
    }

    #[test]
    fn kinds() {
        let kind = |path: &str| match parse(&format!("/v2/{path}?ns=x")) {
            Ok(Ask::Content(content)) => Some(content.kind),
            _ => None,
        };
        let digest = Digest::parse(HEX).unwrap();
        assert_eq!(kind(&format!("a/manifests/{HEX}")), Some(Kind::Manifest(Some(digest.clone()))));
        assert_eq!(kind("a/manifests/v1"), Some(Kind::Manifest(None)));
        assert_eq!(kind(&format!("blobs/blobs/blobs/{HEX}")), Some(Kind::Blob(digest)));
        assert_eq!(kind("a/tags/list"), Some(Kind::Other));
        assert_eq!(kind("a/blobs/uploads"), None);
        assert_eq!(kind("a/manifests/md5:00"), None);
    }

    #[test]
    fn nothing_else_is_served() {
        assert_eq!(parse("/healthz"), Ok(Ask::Health));
        assert_eq!(parse("/v2/"), Ok(Ask::Base));
        for bad in [
            "/",
            "/metrics",
            "/v2/a",
            "/v2//manifests/x?ns=a",
            "/v2/../manifests/x?ns=a",
            "/v2/a/manifests/%2e%2e?ns=a",
            "/v2/a/manifests/x?ns=a&ns=b",
            "/v2/a/manifests/x?ns=%zz",
            "/v2/a/manifests/x?ns=%4",
            "/v2/a/manifests/x?ns=%ff",
        ] {
            assert_eq!(parse(bad), Err(Refusal::Path), "{bad}");
        }
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            assert_eq!(Ask::parse(&method, &"/v2/".parse().unwrap()), Err(Refusal::Method));
        }
    }

    #[test]
    fn a_digest_verifies_its_bytes_alone() {
        let digest = Digest::parse(HEX).unwrap();
        assert!(digest.verifies(b""));
        assert!(!digest.verifies(b"x"));
        assert_eq!(digest.short(), "sha256:e3b0c44298fc");
        assert_eq!(Digest::parse(&HEX.to_uppercase()), None);
    }

    proptest! {
        #[test]
        fn no_path_climbs(path in "[a-zA-Z0-9._:/%-]{0,40}", query in "[a-z=&%0-9.]{0,20}") {
            if let Ok(uri) = format!("/v2/{path}?{query}").parse::<Uri>()
                && let Ok(Ask::Content(content)) = Ask::parse(&Method::GET, &uri) {
                prop_assert!(content.target.starts_with("/v2/"));
                prop_assert!(!content.target.contains("/../") && !content.target.contains("//"));
            }
        }
    }
}
