//! Bytes by digest come from an alternate when the registry fails; what tags mean never does, and logins open nothing
//! that the registry closes.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use breakwater_tests::cache::{Cache, End};
use breakwater_tests::upstream::{Account, Blob, Content, Fault, Image, On, Scheme, Upstream};

const REPOSITORY: &str = "library/app";
/// The same at the alternate.
const MIRRORED: &str = "docker/library/app";
const MIB: usize = 1 << 20;

/// A registry, an alternate with a prefix, and a cache of both.
async fn pair() -> (Upstream, Upstream, Cache) {
    let (main, alternate) = (Upstream::start().await, Upstream::start().await);
    let at = format!("{}=docker", alternate.url());
    let cache = Cache::of(&main).flag("--alternate", &at).start().await;
    (main, alternate, cache)
}

async fn pair_with_blob(size: usize) -> (Upstream, Upstream, Cache, Blob) {
    let (main, alternate, cache) = pair().await;
    let blob = Content::blob(1, size);
    main.put_blob(REPOSITORY, &blob);
    alternate.put_blob(MIRRORED, &blob);
    (main, alternate, cache, blob)
}

fn image_at_both(main: &Upstream, alternate: &Upstream) -> Image {
    let image = Content::image(1, &[1000]);
    main.push(REPOSITORY, "v1", &image);
    alternate.push(MIRRORED, "v1", &image);
    image
}

#[tokio::test]
async fn a_healthy_registry_is_asked_alone() {
    let (main, alternate, cache, blob) = pair_with_blob(MIB).await;
    assert!(cache.get(&blob.blob_path(REPOSITORY)).await.body == blob.bytes);
    assert_eq!(main.bytes_sent(&blob.digest), blob.len());
    assert!(alternate.requests().iter().all(|request| !request.asks_for_content()));
}

#[tokio::test]
async fn a_failing_registry_is_stood_in_for() {
    for fault in [Fault::Refuse, Fault::Status(503), Fault::TooManyRequests(Some(60)), Fault::Status(404), Fault::Html]
    {
        let (main, alternate, cache) = pair().await;
        let image = image_at_both(&main, &alternate);
        main.fault(On::Registry, fault.clone()).await;
        for blob in [&image.layers[0], &image.config] {
            let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
            assert_eq!((answer.status, answer.body == blob.bytes), (200, true), "{fault:?}");
        }
        let manifest = cache.get(&image.manifest.manifest_path(REPOSITORY)).await;
        assert_eq!((manifest.status, manifest.body == image.manifest.bytes), (200, true), "{fault:?}");
        let head = cache.head(&image.layers[0].blob_path(REPOSITORY)).await;
        assert_eq!((head.status, head.header("content-length")), (200, Some("1000")), "{fault:?}");
    }
}

#[tokio::test]
async fn a_silent_registry_costs_less_than_the_clients_patience() {
    let (main, _alternate, cache, blob) = pair_with_blob(MIB).await;
    main.fault(On::Registry, Fault::Silence).await;
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.body == blob.bytes), (200, true));
    assert!(answer.header_after < Duration::from_secs(4), "took {:?}", answer.header_after);
}

#[tokio::test]
async fn a_tag_is_never_asked_of_an_alternate() {
    let (main, alternate, cache) = pair().await;
    alternate.push(MIRRORED, "v1", &Content::image(1, &[10]));
    main.fault(On::Registry, Fault::Refuse).await;
    assert_eq!(cache.get("/v2/library/app/manifests/v1").await.status, 503);
    assert!(alternate.requests().iter().all(|request| !request.path.contains("manifests/v1")));
}

#[tokio::test]
async fn a_body_whose_registry_stays_dead_goes_on_from_an_alternate() {
    for fault in [Fault::TruncateAt(MIB as u64), Fault::ResetAt(MIB as u64), Fault::StallAt(MIB as u64)] {
        let (main, alternate, cache, blob) = pair_with_blob(4 * MIB).await;
        main.fault(On::Blobs, Fault::Status(503)).await;
        main.fault_times(1, On::Blobs, fault.clone()).await;
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true), "{fault:?}");
        let sent = alternate.bytes_sent(&blob.digest);
        // A reset also takes what had come but was not read yet.
        let most = if matches!(fault, Fault::ResetAt(_)) { blob.len() - 1 } else { 3 * MIB as u64 };
        assert!(sent <= most, "{fault:?}: {sent} bytes, though the beginning was here");
        let metrics = cache.admin("/metrics").await;
        let text = String::from_utf8_lossy(&metrics.body).into_owned();
        let counted = text.lines().find(|line| line.contains("source=\"alternate\""));
        assert!(counted.is_some_and(|line| !line.ends_with(" 0")), "{counted:?}");
    }
}

#[tokio::test]
async fn a_registry_that_sends_hardly_anything_is_left_for_an_alternate() {
    let (main, alternate, cache, blob) = pair_with_blob(4 * MIB).await;
    main.fault(On::Blobs, Fault::Drip(2048)).await;
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
    assert!(answer.took < Duration::from_secs(9), "{:?}", answer.took);
    assert!(alternate.bytes_sent(&blob.digest) < blob.len(), "what had come is kept");
}

#[tokio::test]
async fn where_all_send_hardly_anything_the_download_goes_on() {
    let (main, alternate, cache, blob) = pair_with_blob(80 * 1024).await;
    main.fault(On::Blobs, Fault::Drip(10 * 1024)).await;
    alternate.fault(On::Blobs, Fault::Drip(12 * 1024)).await;
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
}

#[tokio::test]
async fn after_wrong_bytes_the_next_client_is_served_from_another_source_at_once() {
    let (main, alternate, cache, blob) = pair_with_blob(MIB).await;
    main.fault(On::Blobs, Fault::WrongBytes).await;
    assert_eq!(cache.get(&blob.blob_path(REPOSITORY)).await.end, End::CutByFin);
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
    assert_eq!(alternate.bytes_sent(&blob.digest), blob.len());
}

#[tokio::test]
async fn where_all_lie_nobody_is_asked_again_for_some_seconds() {
    let (main, alternate, cache, blob) = pair_with_blob(MIB).await;
    main.fault(On::Blobs, Fault::WrongBytes).await;
    alternate.fault(On::Blobs, Fault::WrongBytes).await;
    let path = blob.blob_path(REPOSITORY);
    for _ in 0..2 {
        assert_eq!(cache.get(&path).await.end, End::CutByFin);
    }
    let answer = cache.get(&path).await;
    assert_eq!(answer.status, 503);
    assert!(answer.cache_status().contains("wrong_digest"), "{}", answer.cache_status());
    assert_eq!((main.bytes_sent(&blob.digest), alternate.bytes_sent(&blob.digest)), (blob.len(), blob.len()));
}

#[tokio::test]
async fn where_nobody_has_read_yet_wrong_bytes_are_replaced_unseen() {
    let (main, _alternate, cache, blob) = pair_with_blob(MIB).await;
    main.fault(On::Blobs, Fault::WrongBytes).await;
    let last = MIB - 1;
    let answer = cache.request("GET", &blob.blob_path(REPOSITORY)).range(&format!("{last}-")).answer().await;
    assert_eq!((answer.status, &answer.body[..]), (206, &blob.bytes[last..]));
    let path = cache.await_kept(REPOSITORY, &blob).await;
    assert!(std::fs::read(path).expect("the blob") == blob.bytes);
}

#[tokio::test]
async fn a_part_from_before_a_restart_goes_on_from_an_alternate() {
    let (main, alternate, mut cache, blob) = pair_with_blob(4 * MIB).await;
    main.fault(On::Blobs, Fault::StallAt(MIB as u64)).await;
    let mut reading = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    reading.read(MIB - 1).await;
    cache.kill9().await;
    main.fault(On::Everything, Fault::Refuse).await;
    cache.restart().await;
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.end, answer.body == blob.bytes), (200, End::Complete, true));
    assert_eq!(alternate.bytes_sent(&blob.digest), 3 * MIB as u64, "what was here was not fetched again");
}

#[tokio::test]
async fn an_alternate_that_is_dead_costs_nothing_after_the_first_time() {
    for fault in [Fault::Refuse, Fault::BlackHole, Fault::Silence] {
        let [main, dead, alternate] = [Upstream::start().await, Upstream::start().await, Upstream::start().await];
        let cache =
            Cache::of(&main).flag("--alternate", &dead.url()).flag("--alternate", &alternate.url()).start().await;
        main.fault(On::Everything, Fault::Refuse).await;
        dead.fault(On::Everything, fault.clone()).await;
        let mut took = Vec::new();
        for seed in 1..=6 {
            let blob = Content::blob(seed, 1000);
            alternate.put_blob(REPOSITORY, &blob);
            let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
            assert_eq!((answer.status, answer.body == blob.bytes), (200, true), "{fault:?}");
            took.push(answer.took);
            tokio::time::sleep(Duration::from_millis(800)).await;
        }
        assert!(took[0] < Duration::from_secs(4), "{fault:?}: {took:?}");
        took.drain(..3);
        took.sort_unstable();
        assert!(took[1] < Duration::from_millis(700), "{fault:?}: {took:?}");
    }
}

#[tokio::test]
async fn each_registry_has_its_own_token_service_and_its_own_logins() {
    let (main, alternate) = (Upstream::start().await, Upstream::start().await);
    let blob = Content::blob(1, 1000);
    alternate.put_blob(MIRRORED, &blob);
    main.require(Scheme::Bearer, &[Account::new(REPOSITORY, "ours", "hunter1")]);
    alternate.require(Scheme::Bearer, &[Account::new(MIRRORED, "theirs", "hunter2")]);
    let logins = tempfile::tempdir().expect("a folder");
    let auths = serde_json::json!({"auths": {
        main.host(): {"username": "ours", "password": "hunter1"},
        alternate.host(): {"username": "theirs", "password": "hunter2"},
    }});
    std::fs::write(logins.path().join(".dockerconfigjson"), auths.to_string()).expect("logins");
    let cache = Cache::of(&main).flag("--alternate", &format!("{}=docker", alternate.url()));
    let cache = cache.flag("--credentials-dir", &logins.path().display().to_string()).start().await;
    main.fault(On::Blobs, Fault::Status(503)).await;
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.body == blob.bytes), (200, true));
    let shown = |registry: &Upstream| {
        let requests = registry.requests();
        let basic = requests.iter().filter_map(|request| request.header("authorization")?.strip_prefix("Basic "));
        basic.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let login = |text: &str| BTreeSet::from([BASE64_STANDARD.encode(text)]);
    assert_eq!((shown(&main), shown(&alternate)), (login("ours:hunter1"), login("theirs:hunter2")));
}

#[tokio::test]
async fn where_both_fail_the_registrys_word_counts() {
    let (main, alternate, cache) = pair().await;
    let blob = Content::blob(1, 10);
    let path = blob.blob_path(REPOSITORY);
    assert_eq!(cache.get(&path).await.status, 404, "both say no");
    main.fault(On::Blobs, Fault::Status(502)).await;
    let other = Content::blob(2, 10);
    let answer = cache.get(&other.blob_path(REPOSITORY)).await;
    assert_eq!(answer.status, 503, "an alternate does not know what the registry has");
    assert!(answer.cache_status().contains("server_error"), "{}", answer.cache_status());
    drop(alternate);
}

#[tokio::test]
async fn an_alternates_login_opens_nothing_that_the_registry_closes() {
    let (main, alternate) = (Upstream::start().await, Upstream::start().await);
    let secret = Content::blob(1, 1000);
    alternate.put_blob(MIRRORED, &secret);
    alternate.require(Scheme::Basic, &[Account::new(MIRRORED, "robot", "hunter2")]);
    let logins = tempfile::tempdir().expect("a folder");
    let auths = serde_json::json!({"auths": {alternate.host(): {"username": "robot", "password": "hunter2"}}});
    std::fs::write(logins.path().join(".dockerconfigjson"), auths.to_string()).expect("logins");
    let at = format!("{}=docker", alternate.url());
    let cache = Cache::of(&main).flag("--alternate", &at);
    let cache = cache.flag("--credentials-dir", &logins.path().display().to_string()).start().await;
    assert_eq!(cache.get(&secret.blob_path(REPOSITORY)).await.status, 404, "the registry has no such thing");
    assert!(main.requests().iter().all(|request| request.header("authorization").is_none()), "another host's login");
    main.fault(On::Registry, Fault::Refuse).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let answer = cache.get(&secret.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.body == secret.bytes), (200, true), "the registry is away: it stands in");
    main.heal().await;
    let stranger = cache.get(&secret.blob_path("library/stranger")).await;
    assert_ne!(stranger.status, 200, "what came with a login is not public");
}
