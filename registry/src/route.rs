//! What a request line means: parsed once, into types. Pure; the grammar is the distribution spec's, plus containerd's
//! `ns` query, which names the registry that the image belongs to.

use http::{Method, Uri};

use crate::{
    digest::Digest,
    reference::{Reference, RepositoryName},
    registry_host::RegistryHost,
};

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`: is this a registry?
    Base,
    /// `/v2/<name>/manifests/<reference>`
    Manifest {
        /// Of this repository.
        repository: RepositoryName,
        /// By tag or digest.
        reference: Reference,
    },
    /// `/v2/<name>/blobs/<digest>`
    Blob {
        /// Of this repository.
        repository: RepositoryName,
        /// The content.
        digest: Digest,
    },
    /// `/v2/<name>/tags/list` or `/v2/<name>/referrers/<digest>`: lists that only upstream knows.
    List {
        /// Of this repository.
        repository: RepositoryName,
        /// The path below the repository and the query that upstream is to see.
        list: List,
    },
}

impl Route {
    /// The content it leads to, where its digest says all.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Blob { digest, .. } | Self::Manifest { reference: Reference::Digest(digest), .. } => Some(digest),
            Self::Base | Self::Manifest { .. } | Self::List { .. } => None,
        }
    }
}

/// A list of upstream's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum List {
    /// Names of tags.
    Tags {
        /// `n` and `last`, as the client wrote them.
        query: Vec<(String, String)>,
    },
    /// Manifests whose subject is this digest.
    Referrers {
        /// The subject.
        digest: Digest,
        /// `artifactType`, as the client wrote it.
        query: Vec<(String, String)>,
    },
}

/// Why a request leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Only GET and HEAD: this is a cache, not a place to push to.
    #[error("only GET and HEAD are served")]
    Method,
    /// `ns` names another registry.
    #[error("this cache serves another registry")]
    OtherRegistry,
    /// No such path.
    #[error("no such path")]
    Path,
    /// The repository's name breaks the grammar.
    #[error("invalid repository name")]
    Name,
    /// The digest breaks the grammar or has an unknown algorithm.
    #[error("invalid digest")]
    Digest,
    /// The tag breaks the grammar.
    #[error("invalid tag")]
    Tag,
}

impl Refused {
    /// The name for `Cache-Status`.
    pub fn category(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::OtherRegistry => "other_registry",
            Self::Path => "path",
            Self::Name => "name",
            Self::Digest => "digest",
            Self::Tag => "tag",
        }
    }
}

/// Finds the route of a request to the cache of `registry`.
pub fn parse(method: &Method, uri: &Uri, registry: &RegistryHost) -> Result<Route, Refused> {
    if method != Method::GET && method != Method::HEAD {
        return Err(Refused::Method);
    }
    let query = parse_query(uri.query().unwrap_or_default());
    if query.iter().any(|(key, value)| key == "ns" && !registry.is_also_called(value)) {
        return Err(Refused::OtherRegistry);
    }
    let path = percent_decode(uri.path()).ok_or(Refused::Path)?;
    let rest = match path.strip_prefix("/v2") {
        Some("" | "/") => return Ok(Route::Base),
        Some(rest) => rest.strip_prefix('/').ok_or(Refused::Path)?,
        None => return Err(Refused::Path),
    };
    // The name may hold slashes and even a component called `blobs`, so the path is read from its end.
    let (head, last) = rest.rsplit_once('/').ok_or(Refused::Path)?;
    let (name, kind) = head.rsplit_once('/').ok_or(Refused::Path)?;
    let named = || name.parse::<RepositoryName>().map_err(|_| Refused::Name);
    match (kind, last) {
        ("manifests", reference) => {
            Ok(Route::Manifest { repository: named()?, reference: parse_reference(reference)? })
        }
        ("blobs", digest) => {
            Ok(Route::Blob { repository: named()?, digest: digest.parse().map_err(|_| Refused::Digest)? })
        }
        ("tags", "list") => {
            Ok(Route::List { repository: named()?, list: List::Tags { query: keep(query, &["n", "last"]) } })
        }
        ("referrers", digest) => {
            let digest = digest.parse().map_err(|_| Refused::Digest)?;
            let list = List::Referrers { digest, query: keep(query, &["artifactType"]) };
            Ok(Route::List { repository: named()?, list })
        }
        _ => Err(Refused::Path),
    }
}

fn parse_reference(text: &str) -> Result<Reference, Refused> {
    if text.contains(':') {
        text.parse().map(Reference::Digest).map_err(|_| Refused::Digest)
    } else {
        text.parse().map(Reference::Tag).map_err(|_| Refused::Tag)
    }
}

fn keep(query: Vec<(String, String)>, keys: &[&str]) -> Vec<(String, String)> {
    query.into_iter().filter(|(key, _)| keys.contains(&key.as_str())).collect()
}

fn parse_query(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| percent_decode(&text.replace('+', " ")).unwrap_or_default();
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

/// Decodes `%XX`; `None` if that is no UTF-8 or an escape is broken. What comes out still has to pass a grammar.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let pair = [bytes.next()?, bytes.next()?];
            out.extend(hex::decode(pair).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn docker_hub() -> RegistryHost {
        "docker.io".parse().unwrap()
    }

    fn uri(path: &str) -> Uri {
        path.parse().unwrap()
    }

    fn route(path: &str) -> Result<Route, Refused> {
        parse(&Method::GET, &uri(path), &docker_hub())
    }

    #[test]
    fn table() {
        let repository = || "library/nginx".parse::<RepositoryName>().unwrap();
        let digest = || format!("sha256:{HEX}").parse::<Digest>().unwrap();
        assert_eq!(route("/v2/"), Ok(Route::Base));
        assert_eq!(route("/v2"), Ok(Route::Base));
        let blob = Ok(Route::Blob { repository: repository(), digest: digest() });
        assert_eq!(route(&format!("/v2/library/nginx/blobs/sha256:{HEX}")), blob);
        assert_eq!(route(&format!("/v2/library/nginx/blobs/sha256%3a{HEX}?ns=docker.io")), blob);
        let reference = Reference::Tag("1.27".parse().unwrap());
        let tag = Ok(Route::Manifest { repository: repository(), reference });
        assert_eq!(route("/v2/library/nginx/manifests/1.27?ns=docker.io"), tag);
        assert_eq!(route("/v2/library/nginx/manifests/1.27?ns=index.docker.io"), tag);
        let query = vec![("n".to_owned(), "2".to_owned())];
        let tags = Route::List { repository: repository(), list: List::Tags { query } };
        assert_eq!(route("/v2/library/nginx/tags/list?n=2&ns=docker.io"), Ok(tags));
    }

    #[test]
    fn refusals() {
        assert_eq!(route("/v2/a/manifests/x?ns=ghcr.io"), Err(Refused::OtherRegistry));
        assert_eq!(route("/v2/?ns=ghcr.io"), Err(Refused::OtherRegistry));
        for path in ["/", "/v1/", "/v2x", "/v2/_catalog", "/v2/a", "/v2/a/tags/other", "/v2/manifests/x"] {
            assert_eq!(route(path), Err(Refused::Path), "{path}");
        }
        assert_eq!(route("/v2/a/../b/manifests/x"), Err(Refused::Name));
        assert_eq!(route("/v2/%2e%2e/%2e%2e/manifests/x"), Err(Refused::Name));
        assert_eq!(route("/v2/a/blobs/sha256:..%2f..%2fLOCK"), Err(Refused::Path));
        assert_eq!(route("/v2/a/blobs/md5:00"), Err(Refused::Digest));
        assert_eq!(route("/v2/a/manifests/.."), Err(Refused::Tag));
        let posted = parse(&Method::POST, &"/v2/".parse().unwrap(), &"docker.io".parse().unwrap());
        assert_eq!(posted, Err(Refused::Method));
    }

    proptest! {
        #[test]
        fn never_panics(path in "/[ -~&&[^#<>\"\\\\^`{}| ]]{0,60}") {
            if let Ok(uri) = path.parse() {
                let _ = parse(&Method::GET, &uri, &"docker.io".parse().unwrap());
            }
        }

        #[test]
        fn what_is_built_is_found(name in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,3}", tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}") {
            let expected = Route::Manifest { repository: name.parse().unwrap(), reference: Reference::Tag(tag.parse().unwrap()) };
            prop_assert_eq!(route(&format!("/v2/{name}/manifests/{tag}")), Ok(expected));
        }
    }
}
