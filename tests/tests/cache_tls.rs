//! The TLS listener: versions, protocols, and certificates that change under it.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use breakwater_tests::cache::client::exchange_raw;
use breakwater_tests::cache::{Cache, Identity, PATIENCE};
use breakwater_tests::upstream::{Content, Upstream};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion, version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const SERVICE: &str = "cache-test";

async fn started(folder: &Path, identity: Identity) -> (Upstream, Cache) {
    mount(folder, "..first", folder);
    let upstream = Upstream::start().await;
    let cache = Cache::of(&upstream).identity(identity).start().await;
    (upstream, cache)
}

/// Puts the pair of another identity's folder in place as the kubelet does: a folder per version, swapped by one symlink.
fn mount(folder: &Path, version: &str, from: &Path) {
    let (tls, data) = (folder.join("tls"), folder.join("tls").join(version));
    std::fs::create_dir_all(&data).expect("a folder for a version");
    for name in ["tls.crt", "tls.key"] {
        std::fs::write(data.join(name), std::fs::read(from.join("tls").join(name)).expect("a pair")).expect("a pair");
    }
    symlink(version, tls.join("..data_tmp")).expect("a link");
    std::fs::rename(tls.join("..data_tmp"), tls.join("..data")).expect("a swap");
    for name in ["tls.crt", "tls.key"] {
        if !tls.join(name).is_symlink() {
            std::fs::remove_file(tls.join(name)).expect("a plain file");
            symlink(Path::new("..data").join(name), tls.join(name)).expect("a link");
        }
    }
}

/// Connects as a client that trusts these folders' authorities.
async fn connect(
    cache: &Cache,
    folders: &[&Path],
    versions: &[&'static SupportedProtocolVersion],
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for folder in folders {
        let authority = CertificateDer::from_pem_file(folder.join("tls/ca.crt")).expect("an authority");
        roots.add(authority).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).expect("versions");
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let tcp = TcpStream::connect(cache.address()).await?;
    let name = ServerName::try_from(SERVICE).expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

/// The status of one request on a connection that stays open.
async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer open\r\n\r\n").await.expect("a request");
    let mut answer = Vec::new();
    while !answer.ends_with(b"{}") {
        let read = timeout(PATIENCE, stream.read_buf(&mut answer)).await.expect("an answer in time");
        assert!(read.expect("an answer") > 0);
    }
    String::from_utf8_lossy(&answer)[9..12].to_owned()
}

fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).expect("a certificate").to_vec()
}

async fn metric(cache: &Cache, name: &str) -> f64 {
    let page = String::from_utf8(cache.admin("/metrics").await.body).expect("text");
    let line = page.lines().find(|line| line.starts_with(&format!("breakwater_cache_tls_certificate_{name}{{")));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(f64::NAN)
}

#[tokio::test]
async fn tls_1_2_and_1_3_with_http_1_1_and_nothing_older_or_else() {
    let (identity, folder) = Identity::with_token("open");
    let (_upstream, cache) = started(folder.path(), identity).await;
    let trusted = [folder.path()];
    for (offered, spoken) in [(&version::TLS12, ProtocolVersion::TLSv1_2), (&version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        let mut stream = connect(&cache, &trusted, &[offered], &["h2", "http/1.1"]).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.protocol_version(), Some(spoken));
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(ask(&mut stream).await, "200");
    }
    assert!(connect(&cache, &trusted, &[&version::TLS13], &["h2"]).await.is_err());
    for old in [0x01, 0x02] {
        // A ClientHello of TLS 1.0 or 1.1 with one cipher suite and no extensions.
        let mut hello = vec![0x16, 0x03, 0x01, 0x00, 0x2d, 0x01, 0x00, 0x00, 0x29, 0x03, old];
        hello.extend([7; 32]);
        hello.extend([0x00, 0x00, 0x02, 0x00, 0x2f, 0x01, 0x00]);
        let answer = exchange_raw(cache.address(), &hello).await;
        assert_eq!(answer.first(), Some(&0x15), "an alert, not {answer:?}");
    }
    let began = Instant::now();
    let answer = exchange_raw(cache.address(), b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(!answer.starts_with(b"HTTP/") && began.elapsed() < Duration::from_secs(5));
    assert_eq!(ask(&mut connect(&cache, &trusted, &[&version::TLS13], &[]).await.expect("a handshake")).await, "200");
}

#[tokio::test]
async fn readers_that_pause_cost_little_memory() {
    const READERS: u64 = 200;
    let (identity, folder) = Identity::with_token("open");
    let (upstream, cache) = started(folder.path(), identity).await;
    let blob = Content::blob(1, 32 << 20);
    upstream.put_blob("library/app", &blob);
    let path = blob.blob_path("library/app");
    let answer = cache.request("GET", &path).header("Authorization", "Bearer open").answer().await;
    assert_eq!((answer.status, answer.body == blob.bytes), (200, true));
    let before = cache.resident_memory();
    let mut paused = Vec::new();
    for _ in 0..READERS {
        let mut stream = connect(&cache, &[folder.path()], &[&version::TLS13], &[]).await.expect("a handshake");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer open\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut start = [0; 1000];
        stream.read_exact(&mut start).await.expect("an answer");
        paused.push(stream);
    }
    let each = cache.resident_memory().saturating_sub(before) / READERS;
    assert!(each < 128 * 1024, "each paused reader costs {} KiB", each / 1024);
    assert_eq!(
        ask(&mut connect(&cache, &[folder.path()], &[&version::TLS13], &[]).await.expect("one more")).await,
        "200"
    );
}

#[tokio::test]
async fn a_new_pair_is_shown_without_a_break_and_a_broken_one_is_not() {
    let (identity, folder) = Identity::with_token("open");
    let (_other, next) = Identity::with_token("open");
    let (_upstream, cache) = started(folder.path(), identity).await;
    let trusted = [folder.path(), next.path()];
    let mut before = connect(&cache, &trusted, &[&version::TLS13], &[]).await.expect("a handshake");
    let first = shown(&before);
    assert_eq!(ask(&mut before).await, "200");

    mount(folder.path(), "..second", next.path());
    cache
        .until("the new certificate", async || {
            shown(&connect(&cache, &trusted, &[&version::TLS13], &[]).await.expect("a handshake")) != first
        })
        .await;
    assert_eq!(ask(&mut before).await, "200");
    assert!(metric(&cache, "errors_total").await < 0.5);

    let second = shown(&connect(&cache, &trusted, &[&version::TLS13], &[]).await.expect("a handshake"));
    std::fs::write(next.path().join("tls/tls.key"), "no key").expect("a broken key");
    mount(folder.path(), "..third", next.path());
    cache.until("the error", async || metric(&cache, "errors_total").await > 0.5).await;
    cache.until("what is wrong is told", async || cache.output().contains("certificate not renewed")).await;
    let stream = connect(&cache, &trusted, &[&version::TLS13], &[]).await.expect("a handshake");
    assert_eq!(shown(&stream), second);
}

#[tokio::test]
async fn an_expired_certificate_is_shown_and_told_of() {
    let (identity, folder) = Identity::with_token("open");
    let mut parameters = CertificateParams::new(vec![SERVICE.to_owned()]).expect("names");
    parameters.not_before = date_time_ymd(2020, 1, 1);
    parameters.not_after = date_time_ymd(2021, 1, 1);
    let key = KeyPair::generate().expect("a key");
    let certificate = parameters.self_signed(&key).expect("a certificate");
    std::fs::write(folder.path().join("tls/tls.crt"), certificate.pem()).expect("a pair");
    std::fs::write(folder.path().join("tls/tls.key"), key.serialize_pem()).expect("a pair");
    let (_upstream, cache) = started(folder.path(), identity).await;
    assert!((metric(&cache, "expiry_timestamp_seconds").await - 1_609_459_200.0).abs() < 1.0);
    cache.until("what it says of it", async || cache.output().contains("has expired")).await;
    let refused = connect(&cache, &[folder.path()], &[&version::TLS13], &[]).await.expect_err("a client that decides");
    assert!(refused.to_string().contains("certificate"), "{refused}");
}
