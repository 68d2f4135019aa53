//! Where upstream may send the cache: redirects and token realms to places nearer than upstream are never dialled, and
//! nothing goes on in the clear that began with TLS.
//!
//! Upstream has to be far away for that, so the first test runs once more in a network of its own, where this machine has
//! all the addresses that matter.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use breakwater_tests::cache::Cache;
use breakwater_tests::upstream::{Account, Content, Fault, Front, On, Role, Scheme, Upstream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const REPOSITORY: &str = "library/app";
const BY_TAG: &str = "/v2/library/app/manifests/v1";
/// Set in the network of its own.
const INSIDE: &str = "BREAKWATER_TEST_INSIDE";
/// Of a block for documentation: as public as any.
const UPSTREAM: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// Private, shared (RFC 6598), link-local as of metadata services, loopback; the private one again behind NAT64.
const NEARER: [&str; 7] =
    ["10.9.9.9", "100.64.9.9", "169.254.169.254", "127.0.0.1", "::1", "fd00::9", "64:ff9b::a09:909"];
/// The same as hosts of URLs, in every way of writing them; names are in `HOSTS`.
const PLACES: [&str; 15] = [
    "10.9.9.9",
    "100.64.9.9",
    "169.254.169.254",
    "127.0.0.1",
    "2130706433",
    "0x0a090909",
    "[::1]",
    "[fd00::9]",
    "[64:ff9b::a09:909]",
    "[::ffff:10.9.9.9]",
    "[::ffff:7f00:1]",
    "private.test",
    "metadata.test",
    "nat64.test",
    "localhost",
];
const HOSTS: &str = "127.0.0.1 localhost\n10.9.9.9 private.test\n169.254.169.254 metadata.test\n\
                     64:ff9b::a09:909 nat64.test\n203.0.113.10 public.test\n";
const NETWORK: &str = "set -e; mount --bind \"$1\" /etc/hosts; ip link set lo up
for address in 203.0.113.10 10.9.9.9 100.64.9.9 169.254.169.254; do ip address add $address/32 dev lo; done
for address in fd00::9 64:ff9b::a09:909; do ip address add $address/128 dev lo nodad; done
exec \"$0\" --exact \"$2\" --nocapture";

#[tokio::test]
async fn nothing_nearer_than_upstream_is_dialled() {
    if std::env::var_os(INSIDE).is_some() {
        return in_a_network_of_its_own().await;
    }
    let hosts = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(hosts.path(), HOSTS).expect("a file");
    let status = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", NETWORK])
        .arg(std::env::current_exe().expect("this test"))
        .arg(hosts.path())
        .arg("nothing_nearer_than_upstream_is_dialled")
        .env(INSIDE, "1")
        .status();
    assert!(status.expect("unshare comes with util-linux and needs root").success(), "see above");
}

async fn in_a_network_of_its_own() {
    let upstream = Upstream::start_at(UPSTREAM).await;
    let image = Content::image(1, &[1000]);
    upstream.push(REPOSITORY, "v1", &image);
    let port = upstream.token_service().port();
    let dialled = Arc::new(AtomicUsize::new(0));
    let mut listeners = JoinSet::new();
    for address in NEARER {
        let address: IpAddr = address.parse().expect("an address");
        let (listener, dialled) = (TcpListener::bind((address, port)).await.expect("a port"), Arc::clone(&dialled));
        listeners.spawn(async move {
            while listener.accept().await.is_ok() {
                dialled.fetch_add(1, Ordering::SeqCst);
            }
        });
        TcpStream::connect((address, port)).await.expect("whoever tries gets there");
    }
    while dialled.load(Ordering::SeqCst) < NEARER.len() {
        tokio::task::yield_now().await;
    }

    let mut cache = Cache::start(&upstream).await;
    assert_eq!(cache.get(BY_TAG).await.status, 200);
    for (number, place) in PLACES.into_iter().enumerate() {
        let blob = Content::blob(100 + number as u64, 10);
        let target = Fault::RedirectTo(format!("http://{place}:{port}/x"));
        upstream.fault_times(1, On::Path(blob.digest.clone()), target).await;
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        assert_eq!(answer.status, 503, "{place}: {}", answer.cache_status());
        assert!(answer.cache_status().contains("forbidden_address"), "{place}: {}", answer.cache_status());
    }
    upstream.redirect_blobs();
    assert_eq!(cache.get(&image.layers[0].blob_path(REPOSITORY)).await.body, image.layers[0].bytes);

    upstream.require(Scheme::Bearer, &[]);
    for (number, place) in PLACES.into_iter().enumerate() {
        upstream.name_token_service(place);
        // It would stay with the realm that it knows.
        cache.restart().await;
        let answer = cache.get(&format!("/v2/library/r{number}/manifests/v1")).await;
        assert_eq!(answer.status, 503, "{place}: {}", answer.cache_status());
        assert!(answer.cache_status().contains("forbidden_address"), "{place}: {}", answer.cache_status());
    }
    assert_eq!(dialled.load(Ordering::SeqCst), NEARER.len(), "only by this test itself");
    upstream.name_token_service("public.test");
    cache.restart().await;
    assert_eq!(cache.get(&image.config.blob_path(REPOSITORY)).await.body, image.config.bytes);
}

#[tokio::test]
async fn neither_redirect_nor_login_leaves_tls() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(REPOSITORY, "v1", &image);
    upstream.redirect_blobs();
    let front = Front::start(upstream.address()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let authority = folder.path().join("ca.crt");
    std::fs::write(&authority, front.authority()).expect("a file");
    let account = Account::new("", "someone", "secret");
    let logins = folder.path().join("logins/one");
    std::fs::create_dir_all(&logins).expect("a folder");
    let host = front.url().trim_start_matches("https://").to_owned();
    let config = serde_json::json!({"auths": {&host: {"username": account.username, "password": account.password}}});
    std::fs::write(logins.join(".dockerconfigjson"), config.to_string()).expect("a login");
    let cache = Cache::of(&upstream)
        .registry(&host)
        .url(&front.url())
        .flag("--ca-file", &authority.display().to_string())
        .flag("--credentials-dir", &folder.path().join("logins").display().to_string())
        .start()
        .await;
    assert_eq!(cache.get(BY_TAG).await.status, 200);
    let redirected = cache.get(&image.layers[0].blob_path(REPOSITORY)).await;
    assert_eq!(redirected.status, 503);
    assert!(redirected.cache_status().contains("forbidden_address"), "{}", redirected.cache_status());

    // The token service is named by http.
    upstream.require(Scheme::Bearer, &[account]);
    let refused = cache.get("/v2/library/other/manifests/v1").await;
    assert_eq!(refused.status, 503);
    assert!(refused.cache_status().contains("forbidden_address"), "{}", refused.cache_status());
    let elsewhere = |role| upstream.requests().iter().filter(|request| request.role == role).count();
    assert_eq!((elsewhere(Role::Cdn), elsewhere(Role::Tokens)), (0, 0));
}
