//! The scripted upstream keeps its word: a fault that the cache is tested with is the fault that its name says.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use breakwater_tests::cache::client::Request;
use breakwater_tests::cache::{Answer, End};
use breakwater_tests::upstream::{Account, Content, Fault, Image, On, Scheme, Upstream};

const REPOSITORY: &str = "library/app";

async fn started() -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1 << 20]);
    upstream.push(REPOSITORY, "v1", &image);
    (upstream, image)
}

async fn get(upstream: &Upstream, path: &str) -> Answer {
    Request::get(upstream.address(), path).answer().await
}

#[tokio::test]
async fn content_is_served_counted_and_recorded() {
    let (upstream, image) = started().await;
    let path = image.layers[0].blob_path(REPOSITORY);
    assert_eq!(get(&upstream, &path).await.body, image.layers[0].bytes);
    let part = Request::get(upstream.address(), &path).range("10-19").answer().await;
    assert_eq!((part.status, &part.body[..]), (206, &image.layers[0].bytes[10..20]));
    assert_eq!(upstream.bytes_sent(&image.layers[0].digest), (1 << 20) + 10);
    let requests = upstream.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].header("range"), Some("bytes=10-19"));
    assert_ne!(requests[0].connection, requests[1].connection);
}

#[tokio::test]
async fn bodies_are_cut_where_and_as_told() {
    let (upstream, image) = started().await;
    let layer = &image.layers[0];
    let path = layer.blob_path(REPOSITORY);
    upstream.fault(On::Blobs, Fault::TruncateAt(1000)).await;
    let cut = get(&upstream, &path).await;
    assert_eq!((cut.end, &cut.body[..]), (End::CutByFin, &layer.bytes[..1000]));
    upstream.fault_times(1, On::Blobs, Fault::ResetAt(500_000)).await;
    assert_eq!(get(&upstream, &path).await.end, End::CutByReset);
    assert_eq!(get(&upstream, &path).await.end, End::CutByFin, "the bounded fault is over");
    upstream.heal().await;
    upstream.fault(On::Blobs, Fault::WrongBytes).await;
    let wrong = get(&upstream, &path).await;
    assert_eq!(wrong.body.iter().zip(&layer.bytes[..]).filter(|(sent, held)| sent != held).count(), 1);
}

#[tokio::test]
async fn a_stalled_body_goes_on_when_healed() {
    let (upstream, image) = started().await;
    upstream.fault(On::Blobs, Fault::StallAt(1000)).await;
    let mut reading = Request::get(upstream.address(), &image.layers[0].blob_path(REPOSITORY)).send().await;
    assert_eq!(reading.read(1000).await, &image.layers[0].bytes[..1000]);
    assert_eq!(upstream.bytes_sent(&image.layers[0].digest), 1000);
    upstream.heal().await;
    assert_eq!(reading.rest_equals(&image.layers[0].bytes).await, End::Complete);
}

#[tokio::test]
async fn a_refusing_port_comes_back_on_the_same_number() {
    let (upstream, _image) = started().await;
    let mut held = Request::get(upstream.address(), "/v2/").send().await;
    for _ in 0..3 {
        upstream.fault(On::Registry, Fault::Refuse).await;
        assert!(Request::get(upstream.address(), "/v2/").try_answer().await.is_none());
        upstream.heal().await;
        assert_eq!(get(&upstream, "/v2/").await.status, 200);
    }
    assert_eq!(held.read(2).await, b"{}", "what was sent before stays sent");
}

#[tokio::test]
async fn what_silence_swallowed_is_never_answered() {
    let (upstream, _image) = started().await;
    upstream.fault(On::Registry, Fault::Silence).await;
    let swallowed = tokio::spawn(Request::get(upstream.address(), "/v2/swallowed").try_answer());
    upstream.wait_for("the request", |requests| !requests.is_empty()).await;
    upstream.heal().await;
    assert_eq!(get(&upstream, "/v2/").await.status, 200);
    assert!(!swallowed.is_finished());
    swallowed.abort();
}

#[tokio::test]
async fn a_slow_header_comes_byte_by_byte() {
    let (upstream, _image) = started().await;
    upstream.fault(On::Registry, Fault::SlowHeader(Duration::from_millis(2))).await;
    let slow = get(&upstream, "/v2/").await;
    assert!(slow.header_after > Duration::from_millis(100), "{:?}", slow.header_after);
}

#[tokio::test]
async fn the_cdn_takes_no_credentials() {
    let (upstream, image) = started().await;
    upstream.redirect_blobs();
    let redirect = get(&upstream, &image.config.blob_path(REPOSITORY)).await;
    let location = redirect.header("location").expect("a redirect").to_owned();
    let (host, path) = location.trim_start_matches("http://").split_once('/').expect("a URL");
    let signed = || Request::get(host.parse().expect("an address"), &format!("/{path}"));
    assert_eq!(signed().answer().await.body, image.config.bytes);
    assert_eq!(signed().header("Authorization", "Bearer x").answer().await.status, 400);
}

#[tokio::test]
async fn a_token_opens_its_own_repository_until_it_is_revoked() {
    let (upstream, image) = started().await;
    let account = Account::new("library/", "user", "word");
    upstream.require(Scheme::Bearer, std::slice::from_ref(&account));
    let path = image.manifest.manifest_path(REPOSITORY);
    let challenge = get(&upstream, &path).await;
    assert_eq!(challenge.status, 401);
    let challenge = challenge.header("www-authenticate").expect("a challenge").to_owned();
    let realm = challenge.split('"').nth(1).expect("a realm").trim_start_matches("http://").to_owned();
    let (host, _) = realm.split_once('/').expect("a path");
    let ask = || Request::get(host.parse().expect("an address"), "/token?scope=repository:library/app:pull");
    assert_eq!(ask().answer().await.status, 401);
    let token = ask().header("Authorization", &account.basic()).answer().await;
    let token: serde_json::Value = serde_json::from_slice(&token.body).expect("JSON");
    let bearer = format!("Bearer {}", token["token"].as_str().expect("a token"));
    let with_token = || Request::get(upstream.address(), &path).header("Authorization", &bearer);
    assert_eq!(with_token().answer().await.status, 200);
    upstream.revoke_tokens();
    assert_eq!(with_token().answer().await.status, 401);
}
