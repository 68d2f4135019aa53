//! The TLS listener and its tokens: who may call the cache in a cluster.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use breakwater_tests::cache::client::exchange_raw;
use breakwater_tests::cache::{Answer, Cache, Identity};
use breakwater_tests::upstream::{Content, Image, Upstream};

const BY_TAG: &str = "/v2/library/app/manifests/v1";
const TOKEN: &str = "5f6e1c";

async fn private() -> (Upstream, Cache, Image, tempfile::TempDir) {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[2_000_000]);
    upstream.push("library/app", "v1", &image);
    let (identity, folder) = Identity::with_token(TOKEN);
    let cache = Cache::of(&upstream).identity(identity).start().await;
    (upstream, cache, image, folder)
}

async fn get_with(cache: &Cache, authorization: &str) -> Answer {
    cache.request("GET", BY_TAG).header("Authorization", authorization).answer().await
}

#[tokio::test]
async fn a_caller_with_the_token_pulls() {
    let (_upstream, cache, image, _folder) = private().await;
    let answer = get_with(&cache, &format!("Bearer {TOKEN}")).await;
    assert_eq!((answer.status, answer.body), (200, image.manifest.bytes.to_vec()));
    let path = image.layers[0].blob_path("library/app");
    for _ in 0..2 {
        let blob = cache.request("GET", &path).header("Authorization", &format!("Bearer {TOKEN}")).answer().await;
        assert!(blob.body == image.layers[0].bytes);
    }
}

#[tokio::test]
async fn a_caller_without_it_is_refused_without_a_challenge() {
    let (upstream, cache, _image, _folder) = private().await;
    let missing = cache.get(BY_TAG).await;
    let wrong = get_with(&cache, "Bearer 5f6e1d").await;
    let other_scheme = get_with(&cache, "Basic NWY2ZTFjOg==").await;
    let empty = get_with(&cache, "Bearer ").await;
    for answer in [missing, wrong, other_scheme, empty] {
        assert_eq!(answer.status, 401);
        assert_eq!(answer.error_code(), "UNAUTHORIZED");
        assert_eq!(answer.header("www-authenticate"), None, "a challenge would draw the caller's passwords");
    }
    assert!(!upstream.requests().iter().any(|request| request.asks_for_content()));
}

#[tokio::test]
async fn the_callers_token_goes_no_further() {
    let (upstream, cache, _image, _folder) = private().await;
    assert_eq!(get_with(&cache, &format!("Bearer {TOKEN}")).await.status, 200);
    assert!(upstream.requests().iter().all(|request| request.header("authorization").is_none()));
    assert!(!cache.output().contains(TOKEN));
}

#[tokio::test]
async fn a_rotated_token_is_taken_up_and_the_old_one_ends() {
    let (_upstream, cache, _image, folder) = private().await;
    Identity::rotate_token(folder.path(), "77aa88");
    let rotated = async || {
        get_with(&cache, "Bearer 77aa88").await.status == 200
            && get_with(&cache, &format!("Bearer {TOKEN}")).await.status == 401
    };
    cache.until("the new token opens, the old one does not", rotated).await;
}

#[tokio::test]
async fn plain_http_to_the_tls_port_gets_nothing() {
    let (_upstream, cache, _image, _folder) = private().await;
    let request = format!("GET {BY_TAG} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    let answer = exchange_raw(cache.address(), request.as_bytes()).await;
    assert!(!answer.starts_with(b"HTTP/1.1 2"));
    assert_eq!(get_with(&cache, &format!("Bearer {TOKEN}")).await.status, 200);
}

async fn status_with(cache: &Cache, path: &str, token: &str) -> u16 {
    let answer = cache.request("GET", path).header("Authorization", &format!("Bearer {token}")).answer().await;
    if answer.status == 401 {
        assert_eq!((answer.header("www-authenticate"), answer.error_code().as_str()), (None, "UNAUTHORIZED"));
    }
    answer.status
}

async fn await_status(cache: &Cache, path: &str, token: &str, status: u16) {
    let met = async || status_with(cache, path, token).await == status;
    cache.until("the token is taken up or ends", met).await;
}

#[tokio::test]
async fn two_tokens_are_valid_while_one_rotates_and_one_that_is_removed_ends() {
    let (_upstream, cache, _image, folder) = private().await;
    Identity::add_token(folder.path(), "relay-next", "77aa88");
    await_status(&cache, BY_TAG, "77aa88", 200).await;
    assert_eq!(status_with(&cache, BY_TAG, TOKEN).await, 200);
    Identity::remove_token(folder.path(), "relay");
    await_status(&cache, BY_TAG, TOKEN, 401).await;
    assert_eq!(status_with(&cache, BY_TAG, "77aa88").await, 200);
}

#[tokio::test]
async fn pins_need_the_operators_token_which_opens_nothing_else() {
    let (_upstream, cache, _image, folder) = private().await;
    Identity::add_token(folder.path(), "operator", "0b5e7e");
    await_status(&cache, "/v1/pins", "0b5e7e", 200).await;
    assert_eq!(status_with(&cache, BY_TAG, "0b5e7e").await, 401);
    assert_eq!(status_with(&cache, "/v1/pins", TOKEN).await, 401);
    assert_eq!(cache.get("/v1/pins").await.status, 401);
    let put = cache.request("PUT", "/v1/pins").header("Authorization", "Bearer 0b5e7e");
    let put = put.body(r#"{"images":[{"image":"library/app:v1"}]}"#).answer().await;
    assert_eq!(put.status, 200);
    // Where tokens are asked for, no other listener takes pins.
    assert_eq!(cache.admin("/v1/pins").await.status, 404);
    Identity::add_token(folder.path(), "operator-next", "0b5e7f");
    await_status(&cache, "/v1/pins", "0b5e7f", 200).await;
    assert_eq!(status_with(&cache, "/v1/pins", "0b5e7e").await, 200);
    Identity::remove_token(folder.path(), "operator");
    await_status(&cache, "/v1/pins", "0b5e7e", 401).await;
    assert!(!cache.output().contains("0b5e7"), "tokens reach no log");
}
