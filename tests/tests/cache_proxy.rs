//! `--proxy-url`: everything upstream goes through it, nothing else is trusted because of it, its login shows nowhere.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use breakwater_tests::cache::{Cache, End};
use breakwater_tests::proxy::Proxy;
use breakwater_tests::upstream::{Content, Fault, Front, On, Role, Scheme, Upstream};

const REPOSITORY: &str = "library/app";
const BY_TAG: &str = "/v2/library/app/manifests/v1";

#[tokio::test]
async fn registry_tokens_and_redirects_go_through_the_proxy() {
    let upstream = Upstream::start().await;
    upstream.require(Scheme::Bearer, &[]);
    upstream.redirect_blobs();
    let image = Content::image(1, &[100_000]);
    upstream.push(REPOSITORY, "v1", &image);
    let proxy = Proxy::start(Some("someone:pass word"), &[]).await;
    let url = format!("http://someone:pass%20word@{}", proxy.address());
    let mut cache = Cache::of(&upstream).environment("BREAKWATER_PROXY_URL", &url).start().await;
    assert_eq!(cache.get(BY_TAG).await.body, image.manifest.bytes);
    for blob in image.blobs() {
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        assert_eq!((answer.end, answer.body == blob.bytes), (End::Complete, true));
    }
    let requests = upstream.requests();
    for role in [Role::Registry, Role::Tokens, Role::Cdn] {
        assert!(requests.iter().any(|request| request.role == role), "{role:?}");
    }
    // A probe may be between the two.
    let all_through = async || proxy.asked().len() == upstream.requests().len();
    cache.until("each request went through the proxy", all_through).await;
    assert!(requests.iter().all(|request| request.header("proxy-authorization").is_none()));
    assert!(!cache.output().contains("someone") && !cache.output().contains("pass"), "{}", cache.output());
    cache.restart().await;
    assert_eq!(cache.get(BY_TAG).await.status, 200);
}

#[tokio::test]
async fn tls_is_tunnelled() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[100_000]);
    upstream.push(REPOSITORY, "v1", &image);
    let front = Front::start(upstream.address()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let authority = folder.path().join("ca.crt");
    std::fs::write(&authority, front.authority()).expect("a file");
    let proxy = Proxy::start(Some("a:b"), &[]).await;
    let cache = Cache::of(&upstream)
        .url(&front.url())
        .flag("--ca-file", &authority.display().to_string())
        .flag("--proxy-url", &format!("http://a:b@{}", proxy.address()))
        .start()
        .await;
    assert_eq!(cache.get(BY_TAG).await.body, image.manifest.bytes);
    assert_eq!(cache.get(&image.layers[0].blob_path(REPOSITORY)).await.body, image.layers[0].bytes);
    assert!(upstream.requests().iter().all(|request| request.header("proxy-authorization").is_none()));
    assert!(proxy.asked().iter().all(|host| front.url().ends_with(host.as_str())), "{:?}", proxy.asked());
}

#[tokio::test]
async fn a_login_in_files_is_used_and_read_again() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(REPOSITORY, "v1", &image);
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("a file");
    write("username", "someone");
    write("password", "before\n");
    let proxy = Proxy::start(Some("someone:s3cond"), &[]).await;
    let cache = Cache::of(&upstream)
        .flag("--proxy-url", &format!("http://{}", proxy.address()))
        .flag("--proxy-credentials-dir", &folder.path().display().to_string())
        .start()
        .await;
    assert_ne!(cache.get(BY_TAG).await.status, 200);
    write("password", "s3cond\n");
    cache.until("the new login is used", async || cache.get(BY_TAG).await.status == 200).await;
    assert!(!cache.output().contains("someone") && !cache.output().contains("s3cond"), "{}", cache.output());
}

#[tokio::test]
async fn behind_a_proxy_a_literal_address_nearer_than_upstream_is_never_asked_for() {
    let upstream = Upstream::start().await;
    let blob = Content::blob(1, 1000);
    upstream.put_blob(REPOSITORY, &blob);
    let proxy = Proxy::start(None, &[("registry.proxy.test", upstream.address())]).await;
    let cache = Cache::of(&upstream)
        .url("http://registry.proxy.test")
        .flag("--proxy-url", &format!("http://{}", proxy.address()))
        .start()
        .await;
    for place in ["127.0.0.1:1", "10.0.0.1", "169.254.169.254", "[::1]:1"] {
        let blob = Content::blob(u64::from(place.len() as u8), 10);
        let target = format!("http://{place}/x");
        upstream.fault_times(1, On::Path(blob.digest.clone()), Fault::RedirectTo(target)).await;
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        assert_eq!(answer.status, 503, "{place}");
        assert!(answer.cache_status().contains("forbidden_address"), "{place}: {}", answer.cache_status());
    }
    assert_eq!(cache.get(&blob.blob_path(REPOSITORY)).await.body, blob.bytes);
    assert!(proxy.asked().iter().all(|host| host.starts_with("registry.proxy.test")), "{:?}", proxy.asked());
}

#[tokio::test]
async fn a_dead_proxy_is_an_outage_like_any_other() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(REPOSITORY, "v1", &image);
    let proxy = Proxy::start(None, &[]).await;
    let url = format!("http://{}", proxy.address());
    let mut cache = Cache::of(&upstream).flag("--tag-ttl", "0s").flag("--proxy-url", &url).start().await;
    assert_eq!(cache.get(BY_TAG).await.status, 200);
    drop(proxy);
    for _ in 0..2 {
        let answer = cache.get(BY_TAG).await;
        assert_eq!((answer.status, answer.body), (200, image.manifest.bytes.to_vec()));
        assert!(answer.took < Duration::from_secs(3), "{:?}", answer.took);
        assert_eq!(cache.get("/v2/library/app/manifests/unseen").await.status, 503);
        cache.restart().await;
    }
}

#[tokio::test]
async fn a_wrong_url_is_refused_without_showing_it() {
    let upstream = Upstream::start().await;
    for bad in ["socks5://someone:secret@proxy", "someone:secret", "http://someone:secret@proxy/path"] {
        let (code, last) = Cache::of(&upstream).flag("--proxy-url", bad).start_refused().await;
        assert_eq!(code, Some(1), "{last}");
        assert!(last.contains("--proxy-url") && !last.contains("secret"), "{last}");
    }
}
