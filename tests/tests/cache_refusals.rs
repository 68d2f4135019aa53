//! What the cache does not do: other registries, other methods, hostile paths. Each refusal is an OCI error, and nothing is
//! asked of upstream for it.

use breakwater_tests::cache::client::exchange_raw;
use breakwater_tests::cache::cold;
use breakwater_tests::cache::{Cache, End};
use breakwater_tests::upstream::{Content, Image, Upstream};

const REPOSITORY: &str = "library/app";
const BY_TAG: &str = "/v2/library/app/manifests/v1";

async fn cold() -> (Upstream, Cache, Image) {
    cold::image(REPOSITORY, &[1000]).await
}

#[tokio::test]
async fn the_base_path_says_that_this_is_a_registry() {
    let (_upstream, cache, _image) = cold().await;
    assert_eq!(cache.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn a_namespace_that_names_this_registry_is_served() {
    let (upstream, cache, image) = cold().await;
    let namespace = upstream.host().replace(':', "%3A");
    let answer = cache.get(&format!("{BY_TAG}?ns={namespace}")).await;
    assert_eq!((answer.status, answer.body), (200, image.manifest.bytes.to_vec()));
}

#[tokio::test]
async fn a_namespace_of_another_registry_is_404_and_never_dialled() {
    let (_upstream, cache, image) = cold().await;
    let other = Upstream::start().await;
    other.push(REPOSITORY, "v1", &image);
    let namespace = other.host().replace(':', "%3A");
    for path in [BY_TAG.to_owned(), image.config.blob_path(REPOSITORY), "/v2/".to_owned()] {
        let answer = cache.get(&format!("{path}?ns={namespace}")).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_ne!(answer.error_code(), "", "{path}");
    }
    assert_eq!(other.requests().len(), 0);
}

#[tokio::test]
async fn a_namespace_of_another_registry_is_404_even_for_what_is_here() {
    let (_upstream, cache, _image) = cold().await;
    assert_eq!(cache.get(BY_TAG).await.status, 200);
    assert_eq!(cache.get(&format!("{BY_TAG}?ns=ghcr.io")).await.status, 404);
}

#[tokio::test]
async fn only_get_and_head_are_allowed() {
    let (upstream, cache, image) = cold().await;
    let mark = upstream.mark();
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        for path in [BY_TAG.to_owned(), image.config.blob_path(REPOSITORY)] {
            let answer = cache.request(method, &path).answer().await;
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.error_code(), "UNSUPPORTED", "{method} {path}");
        }
    }
    assert_eq!(upstream.content_requests_since(mark).len(), 0);
}

#[tokio::test]
async fn hostile_paths_are_refused_and_reach_nobody() {
    let (upstream, cache, image) = cold().await;
    let hex = image.config.hex().to_owned();
    let mark = upstream.mark();
    for path in [
        "/v2/../../../etc/passwd/manifests/v1".to_owned(),
        "/v2/library/%2e%2e/%2e%2e/manifests/v1".to_owned(),
        "/v2/library/app/manifests/..".to_owned(),
        "/v2/library/app/manifests/%2e%2e%2fv1".to_owned(),
        "/v2/library/app/manifests/v1%00".to_owned(),
        format!("/v2/library/app/blobs/sha256:../{hex}"),
        "/v2/library/app/blobs/sha256:..%2f..%2fLOCK".to_owned(),
        format!("/v2/library/app/blobs/sha256:{}", hex.to_uppercase()),
        format!("/v2/library/app/blobs/sha256:{}", &hex[1..]),
        format!("/v2/library/app/blobs/md5:{}", &hex[..32]),
        "/v2/Library/App/manifests/v1".to_owned(),
        "/v2//app/manifests/v1".to_owned(),
        "/v2/library/_tags/manifests/v1".to_owned(),
        format!("/v2/library/app/manifests/{}", "t".repeat(129)),
        format!("/v2/{}/manifests/v1", "n".repeat(300)),
        format!("/v2/library/app/manifests/{}", "t".repeat(5000)),
    ] {
        let answer = cache.get(&path).await;
        assert!([400, 404, 414].contains(&answer.status), "{path}: {}", answer.status);
        assert_eq!(answer.end, End::Complete, "{path}");
    }
    assert_eq!(upstream.content_requests_since(mark).len(), 0);
}

#[tokio::test]
async fn nonsense_on_the_wire_ends_only_its_own_connection() {
    let (_upstream, cache, image) = cold().await;
    let nonsense: [&[u8]; 4] = [
        b"\0\xff\xfe\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET http://169.254.169.254/ HTTP/9.9\r\n\r\n",
        b"GET /v2/\xff\xfe/manifests/x HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    for bytes in nonsense {
        let answer = String::from_utf8_lossy(&exchange_raw_closing(&cache, bytes).await).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(cache.get(BY_TAG).await.body, image.manifest.bytes);
}

/// Nonsense that the server might take for the start of more is ended by `Connection: close` of a second request.
async fn exchange_raw_closing(cache: &Cache, bytes: &[u8]) -> Vec<u8> {
    let closing = b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    exchange_raw(cache.address(), &[bytes, closing].concat()).await
}

#[tokio::test]
async fn what_upstream_does_not_have_is_an_oci_404() {
    let (_upstream, cache, _image) = cold().await;
    let nothing = Content::blob(9, 10);
    for (path, code) in [
        ("/v2/library/app/manifests/nothing".to_owned(), "MANIFEST_UNKNOWN"),
        (nothing.manifest_path(REPOSITORY), "MANIFEST_UNKNOWN"),
        (nothing.blob_path(REPOSITORY), "BLOB_UNKNOWN"),
        ("/v2/no/such/manifests/v1".to_owned(), "MANIFEST_UNKNOWN"),
    ] {
        let answer = cache.get(&path).await;
        assert_eq!(answer.status, 404, "{path}");
        let codes = [code, "NAME_UNKNOWN"];
        assert!(codes.contains(&answer.error_code().as_str()), "{path}: {}", answer.error_code());
        assert_eq!(answer.header("content-type"), Some("application/json"), "{path}");
    }
}

#[tokio::test]
async fn the_digest_of_a_manifest_is_no_blob() {
    let (_upstream, cache, image) = cold().await;
    let as_blob = image.manifest.blob_path(REPOSITORY);
    assert_eq!(cache.get(&as_blob).await.status, 404, "before the manifest is here");
    assert_eq!(cache.get(BY_TAG).await.status, 200);
    assert_eq!(cache.get(&as_blob).await.status, 404, "when the manifest is here");
    assert_eq!(cache.head(&as_blob).await.status, 404);
}
