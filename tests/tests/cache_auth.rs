//! Credentials towards upstream: which are shown, to whom, and what a client sees when they are not good enough.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use breakwater_tests::cache::{Cache, End, PATIENCE};
use breakwater_tests::upstream::{Account, Content, Fault, Image, On, Recorded, Role, Scheme, Upstream};
use serde_json::json;

const REPOSITORY: &str = "team/app";
const BY_TAG: &str = "/v2/team/app/manifests/v1";
const PASSWORD: &str = "correct-horse-battery";

async fn upstream_with_image(scheme: Scheme, accounts: &[Account]) -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[50_000]);
    upstream.push(REPOSITORY, "v1", &image);
    upstream.require(scheme, accounts);
    (upstream, image)
}

fn everyone(password: &str) -> Account {
    Account::new("", "robot", password)
}

/// Writes a Secret as the kubelet mounts it: a folder with one `.dockerconfigjson`, replaced in one step.
fn write_credentials(folder: &Path, secret: &str, logins: &[(String, Account)]) {
    let entry = |account: &Account| {
        let auth = BASE64_STANDARD.encode(format!("{}:{}", account.username, account.password));
        json!({"username": account.username, "password": account.password, "auth": auth})
    };
    let auths: serde_json::Map<_, _> = logins.iter().map(|(key, account)| (key.clone(), entry(account))).collect();
    let secret = folder.join(secret);
    std::fs::create_dir_all(&secret).expect("a folder for the secret");
    let fresh = secret.join("..fresh");
    std::fs::write(&fresh, json!({"auths": auths}).to_string()).expect("credentials");
    std::fs::rename(fresh, secret.join(".dockerconfigjson")).expect("credentials");
}

async fn cache_with_credentials(upstream: &Upstream, logins: &[(String, Account)]) -> (Cache, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder for credentials");
    write_credentials(folder.path(), "hub", logins);
    let path = folder.path().display().to_string();
    (Cache::of(upstream).flag("--credentials-dir", &path).start().await, folder)
}

async fn assert_pulls(cache: &Cache, repository: &str, image: &Image) {
    let manifest = cache.get(&format!("/v2/{repository}/manifests/v1")).await;
    assert_eq!((manifest.status, manifest.body), (200, image.manifest.bytes.to_vec()));
    for blob in image.blobs() {
        let answer = cache.get(&blob.blob_path(repository)).await;
        assert_eq!((answer.status, answer.end), (200, End::Complete));
        assert!(answer.body == blob.bytes);
    }
}

fn tokens_asked_for(upstream: &Upstream) -> usize {
    upstream.requests().iter().filter(|request| request.role == Role::Tokens).count()
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once_and_used_for_all_of_a_repository() {
    let (upstream, image) = upstream_with_image(Scheme::Bearer, &[]).await;
    let cache = Cache::start(&upstream).await;
    assert_pulls(&cache, REPOSITORY, &image).await;
    let for_repository = |request: &&Recorded| request.role == Role::Tokens && request.query.contains("team");
    assert_eq!(upstream.requests().iter().filter(for_repository).count(), 1);
}

#[tokio::test]
async fn credentials_buy_a_token_and_are_shown_to_the_token_service_alone() {
    let account = everyone(PASSWORD);
    let (upstream, image) = upstream_with_image(Scheme::Bearer, std::slice::from_ref(&account)).await;
    let (cache, _folder) = cache_with_credentials(&upstream, &[(upstream.host(), account.clone())]).await;
    assert_pulls(&cache, REPOSITORY, &image).await;
    let shown_to_registry = |request: &Recorded| {
        request.role == Role::Registry && request.header("authorization").is_some_and(|it| it.starts_with("Basic"))
    };
    assert!(!upstream.requests().iter().any(shown_to_registry));
    assert!(!cache.output().contains(PASSWORD) && !cache.output().contains(&account.basic()[6..]));
}

#[tokio::test]
async fn a_token_is_asked_for_the_repository_and_not_for_one_whose_name_ends_in_its_own() {
    let [team, others] = [Account::new("team/", "team", PASSWORD), Account::new("", "others", PASSWORD)];
    let (upstream, image) = upstream_with_image(Scheme::Bearer, &[team.clone(), others.clone()]).await;
    upstream.push("app", "v1", &image);
    let logins = [(format!("{}/team", upstream.host()), team), (upstream.host(), others)];
    let (cache, _folder) = cache_with_credentials(&upstream, &logins).await;
    for repository in [REPOSITORY, "app"] {
        assert_pulls(&cache, repository, &image).await;
    }
}

#[tokio::test]
async fn basic_credentials_open_a_registry_without_token_service() {
    let account = everyone(PASSWORD);
    let (upstream, image) = upstream_with_image(Scheme::Basic, std::slice::from_ref(&account)).await;
    let (cache, _folder) = cache_with_credentials(&upstream, &[(upstream.host(), account)]).await;
    assert_pulls(&cache, REPOSITORY, &image).await;
    assert_eq!(cache.upstream_state().await["credentialsAccepted"], true);
}

#[tokio::test]
async fn a_token_is_renewed_when_it_expires() {
    let (upstream, _image) = upstream_with_image(Scheme::Bearer, &[]).await;
    upstream.token_lifetime(Duration::from_secs(1));
    let cache = Cache::start(&upstream).await;
    let deadline = Instant::now() + PATIENCE;
    for seed in 100.. {
        let blob = Content::blob(seed, 10);
        upstream.put_blob(REPOSITORY, &blob);
        assert_eq!(cache.get(&blob.blob_path(REPOSITORY)).await.status, 200);
        if tokens_asked_for(&upstream) >= 3 {
            break;
        }
        assert!(Instant::now() < deadline, "the first token is used for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_token_revoked_before_its_time_is_replaced_in_the_same_request() {
    let (upstream, image) = upstream_with_image(Scheme::Bearer, &[]).await;
    let cache = Cache::start(&upstream).await;
    assert_eq!(cache.get(BY_TAG).await.status, 200);
    upstream.revoke_tokens();
    assert_eq!(cache.get(&image.layers[0].blob_path(REPOSITORY)).await.status, 200);
}

#[tokio::test]
async fn a_redirect_to_the_cdn_carries_no_credentials() {
    for scheme in [Scheme::Basic, Scheme::Bearer] {
        let account = everyone(PASSWORD);
        let (upstream, image) = upstream_with_image(scheme, std::slice::from_ref(&account)).await;
        upstream.redirect_blobs();
        let (cache, _folder) = cache_with_credentials(&upstream, &[(upstream.host(), account)]).await;
        assert_pulls(&cache, REPOSITORY, &image).await;
        let requests = upstream.requests();
        let mut at_cdn = requests.iter().filter(|request| request.role == Role::Cdn).peekable();
        assert!(at_cdn.peek().is_some(), "{scheme:?}: the redirect was not followed");
        assert!(at_cdn.all(|request| request.header("authorization").is_none()), "{scheme:?}");
    }
}

#[tokio::test]
async fn credentials_changed_on_disk_are_used_without_a_restart() {
    let account = everyone(PASSWORD);
    let (upstream, image) = upstream_with_image(Scheme::Basic, std::slice::from_ref(&account)).await;
    let wrong = (upstream.host(), everyone("wrong"));
    let (cache, folder) = cache_with_credentials(&upstream, &[wrong]).await;
    assert_eq!(cache.get(BY_TAG).await.status, 404);
    write_credentials(folder.path(), "hub", &[(upstream.host(), account)]);
    let pulled = async {
        while cache.get(BY_TAG).await.body != image.manifest.bytes {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, pulled).await.expect("the new credentials are used");
}

#[tokio::test]
async fn credentials_for_the_longer_path_win() {
    let (general, team) = (everyone("general"), Account::new("team/", "team-robot", "special"));
    let (upstream, image) = upstream_with_image(Scheme::Basic, &[general.clone(), team.clone()]).await;
    upstream.push("library/app", "v1", &image);
    let logins = [(upstream.host(), general), (format!("{}/team", upstream.host()), team)];
    let (cache, _folder) = cache_with_credentials(&upstream, &logins).await;
    assert_pulls(&cache, REPOSITORY, &image).await;
    assert_pulls(&cache, "library/app", &image).await;
}

#[tokio::test]
async fn credentials_for_another_host_are_never_shown() {
    let account = everyone(PASSWORD);
    let (upstream, _image) = upstream_with_image(Scheme::Basic, std::slice::from_ref(&account)).await;
    let logins = [("registry.example.com".to_owned(), account)];
    let (cache, _folder) = cache_with_credentials(&upstream, &logins).await;
    assert_eq!(cache.get(BY_TAG).await.status, 404);
    assert!(upstream.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn where_upstream_refuses_us_the_client_sees_404() {
    let account = everyone(PASSWORD);
    for scheme in [Scheme::Basic, Scheme::Bearer] {
        let (upstream, image) = upstream_with_image(scheme, std::slice::from_ref(&account)).await;
        let cache = Cache::start(&upstream).await;
        for path in [BY_TAG.to_owned(), image.layers[0].blob_path(REPOSITORY)] {
            let answer = cache.get(&path).await;
            assert_eq!(answer.status, 404, "{scheme:?} {path}");
            assert_eq!(answer.header("www-authenticate"), None, "{scheme:?} {path}");
        }
    }
}

#[tokio::test]
async fn what_upstream_denies_closes_nothing_beside_it_and_is_not_asked_for_again() {
    let (upstream, image) = upstream_with_image(Scheme::Open, &[]).await;
    // As where a scanner withholds a single image.
    upstream.fault(On::Path("/manifests/withheld".to_owned()), Fault::Status(403)).await;
    let cache = Cache::start(&upstream).await;
    let withheld = format!("/v2/{REPOSITORY}/manifests/withheld");
    for _ in 0..20 {
        assert_eq!(cache.get(&withheld).await.status, 404);
    }
    let asked = upstream.requests().iter().filter(|request| request.path.contains("withheld")).count();
    assert_eq!(asked, 1, "a refusal is remembered");
    assert_pulls(&cache, REPOSITORY, &image).await;
}

#[tokio::test]
async fn what_one_repository_asks_for_closes_no_other() {
    for challenge in ["Basic realm=\"portal\"", "Bearer realm=\"http://127.0.0.1:1/token\",service=\"x\""] {
        let (upstream, image) = upstream_with_image(Scheme::Open, &[]).await;
        let cache = Cache::start(&upstream).await;
        let end = "Content-Length: 0\r\nConnection: close\r\n\r\n";
        let refusal = format!("HTTP/1.1 401 X\r\nWWW-Authenticate: {challenge}\r\n{end}");
        upstream.fault(On::Path("/private/".to_owned()), Fault::Raw(refusal.into())).await;
        let closed = cache.get("/v2/private/app/manifests/v1").await;
        assert!([404, 503].contains(&closed.status), "{challenge}: {}", closed.status);
        assert_pulls(&cache, REPOSITORY, &image).await;
        let state = cache.upstream_state().await;
        assert_eq!(state["reachable"], true, "{challenge}: {state}");
    }
}

#[tokio::test]
async fn without_its_token_service_what_strangers_are_told_is_not_believed() {
    let (upstream, image) = upstream_with_image(Scheme::Bearer, &[]).await;
    upstream.token_lifetime(Duration::from_secs(1));
    let cache = Cache::of(&upstream).flag("--tag-ttl", "0s").start().await;
    assert_pulls(&cache, REPOSITORY, &image).await;
    upstream.fault(On::Tokens, Fault::Status(500)).await;
    let expired = async { while !cache.get(BY_TAG).await.cache_status().contains("token_service") {} };
    tokio::time::timeout(PATIENCE, expired).await.expect("the token expires");
    // As registries hide from strangers what is private.
    upstream.fault(On::Manifests, Fault::Status(404)).await;
    for _ in 0..3 {
        let answer = cache.get(BY_TAG).await;
        assert_eq!((answer.status, answer.body), (200, image.manifest.bytes.to_vec()));
    }
}

#[tokio::test]
async fn a_refused_login_is_not_tried_again_and_again() {
    let (upstream, image) = upstream_with_image(Scheme::Basic, &[everyone(PASSWORD)]).await;
    let (cache, _folder) = cache_with_credentials(&upstream, &[(upstream.host(), everyone("wrong"))]).await;
    for _ in 0..20 {
        assert_eq!(cache.get(BY_TAG).await.status, 404);
        assert_eq!(cache.get(&image.manifest.manifest_path(REPOSITORY)).await.status, 404);
    }
    let shown = |request: &&Recorded| request.header("authorization").is_some();
    let tries = upstream.requests().iter().filter(shown).count();
    assert!(tries <= 6, "{tries} tries lock an account");
    assert_eq!(cache.upstream_state().await["credentialsAccepted"], false);
}

#[tokio::test]
async fn a_redirect_to_a_link_local_address_is_not_followed() {
    let (upstream, image) = upstream_with_image(Scheme::Open, &[]).await;
    for location in ["http://169.254.169.254/latest/meta-data/", "http://[fe80::1]/x", "file:///etc/passwd"] {
        upstream.heal().await;
        upstream.fault(On::Blobs, Fault::RedirectTo(location.to_owned())).await;
        let cache = Cache::start(&upstream).await;
        let answer = cache.get(&image.layers[0].blob_path(REPOSITORY)).await;
        assert_eq!(answer.status, 503, "{location}");
        assert!(answer.took < Duration::from_secs(1), "{location}: it was dialled for {:?}", answer.took);
    }
}
