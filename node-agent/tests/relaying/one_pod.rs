//! The relay against faults of a cache: what reaches the runtime, and how fast.

use super::support::{Answer, Cache, End, Reply, Running, Step, get, read, token};
use aws_lc_rs::digest::{SHA256, digest};
use breakwater_node_agent::relay::Standing;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(digest(&SHA256, bytes)))
}

pub(crate) fn blob(name: &str) -> String {
    blob_of(name.as_bytes())
}

pub(crate) fn blob_of(content: &[u8]) -> String {
    format!("/v2/library/a/blobs/{}?ns=docker.io", digest_of(content))
}

pub(crate) fn manifest(reference: &str) -> String {
    format!("/v2/library/a/manifests/{reference}?ns=docker.io")
}

fn base(head: &str) -> Option<Reply> {
    head.starts_with("GET /v2/ ").then(|| Reply::new(200, "", b"{}"))
}

pub(crate) async fn cache(script: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Cache {
    Cache::start(move |head| base(head).unwrap_or_else(|| script(head))).await
}

#[tokio::test]
async fn an_answer_passes_unchanged_and_secrets_stay_on_their_side() {
    let cache = cache(|_| {
        Reply::new(
            200,
            "Cache-Status: breakwater; hit\r\nWWW-Authenticate: Basic\r\nX-Else: 1\r\nETag: \"e\"\r\n",
            b"\0bytes",
        )
    })
    .await;
    let relay = Running::before(&cache).await;
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: 127.0.0.1:429\r\nauthorization: Basic c2VjcmV0\r\ncookie: a=b\r\nrange: bytes=0-\r\n\
         accept: a/b\r\naccept: */*\r\naccept-encoding: gzip\r\nuser-agent: containerd/v2\r\nx-more: 1\r\nconnection: close\r\n\r\n",
        blob("\0bytes")
    );
    let answer = relay.ask(&request).await;
    assert_eq!((answer.status, answer.body.as_slice(), answer.end), (200, b"\0bytes".as_slice(), End::Fin));
    assert!(
        answer.head.contains("cache-status: breakwater; hit") && answer.head.contains("etag: \"e\""),
        "{}",
        answer.head
    );
    assert!(!answer.head.contains("www-authenticate") && !answer.head.contains("x-else"), "{}", answer.head);

    let seen = cache.requests().remove(0);
    assert!(seen.starts_with(&format!("GET {} HTTP/1.1\r\n", blob("\0bytes"))), "{seen}");
    for passed in ["range: bytes=0-", "accept: a/b", "accept: */*", "user-agent: containerd/v2"] {
        assert!(seen.contains(passed), "{passed} in {seen}");
    }
    assert!(seen.contains(&format!("authorization: Bearer {}\r\n", token())), "{seen}");
    assert!(seen.contains("host: cache-docker-io.breakwater-system.svc\r\n"), "{seen}");
    for kept in ["c2VjcmV0", "cookie", "accept-encoding", "x-more"] {
        assert!(!seen.contains(kept), "{kept} in {seen}");
    }
}

#[tokio::test]
async fn head_tells_the_length_and_a_connection_serves_many_requests() {
    let cache = cache(|head| {
        let mut reply = Reply::new(200, "", b"12345");
        if head.starts_with("HEAD") {
            reply.steps.clear();
        }
        reply
    })
    .await;
    let relay = Running::before(&cache).await;
    let answer = relay.ask(&get(&blob("12345")).replacen("GET", "HEAD", 1)).await;
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    assert!(answer.head.contains("content-length: 5"), "{}", answer.head);
    let mut stream = TcpStream::connect(relay.address).await.unwrap();
    for _ in 0..20 {
        stream.write_all(get(&blob("12345")).replace("connection: close\r\n", "").as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n12345") {
            head.push(stream.read_u8().await.unwrap());
        }
    }
    assert_eq!(cache.requests().len(), 21);
    assert!(cache.connections() < 10, "{} connections for 21 requests and a few probes", cache.connections());
}

#[tokio::test]
async fn only_statuses_that_send_a_runtime_onwards_go_out() {
    let cache = cache(|head| {
        let status = head.split("/blobs/").next().and_then(|path| path.rsplit('/').next()).unwrap().parse().unwrap();
        Reply::new(status, "", b"x")
    })
    .await;
    let relay = Running::before(&cache).await;
    for (from, to) in [
        (200, 200),
        (206, 206),
        (404, 404),
        (416, 416),
        (204, 503),
        (301, 503),
        (304, 503),
        (307, 503),
        (400, 503),
        (401, 503),
        (403, 503),
        (405, 503),
        (408, 503),
        (429, 503),
        (500, 503),
        (502, 503),
        (503, 503),
        (504, 503),
    ] {
        let path = blob("x").replace("library/a", &from.to_string());
        let request = get(&path).replacen("\r\n", "\r\nrange: bytes=0-\r\n", 1);
        let answer = relay.ask(&request).await;
        assert_eq!(answer.status, to, "for {from}: {answer:?}");
        assert!(!answer.head.contains("www-authenticate") && !answer.head.contains("location"));
    }
    assert_eq!(relay.view().standing, Standing::In, "an answer, whatever its status, is a living cache");
}

#[tokio::test]
async fn what_is_not_a_pull_of_a_mirror_is_refused() {
    let cache = cache(|_| Reply::new(200, "", b"x")).await;
    let relay = Running::before(&cache).await;
    let status = async |request: String| relay.ask(&request).await.status;
    assert_eq!(status(get(&blob("x").replace("docker.io", "ghcr.io"))).await, 404);
    assert_eq!(status(get("/metrics")).await, 404);
    assert_eq!(status(get("/v2/../healthz?ns=docker.io")).await, 404);
    assert_eq!(status(get(&blob("x")).replacen("GET", "POST", 1)).await, 405);
    assert_eq!(status(get("/v2/")).await, 200);
    assert_eq!(status(get("/healthz")).await, 200);
    assert_eq!(status(get(&blob("x").replace("/v2/", "/v2/docker.io/").replace("?ns=docker.io", ""))).await, 200);
    assert_eq!(cache.requests().len(), 1);
}

#[tokio::test]
async fn a_tls_hello_gets_an_http_answer() {
    let relay = Running::bare().await;
    let mut stream = TcpStream::connect(relay.address).await.unwrap();
    // The beginning of a record that carries a ClientHello, as containerd 2.0.7 to 2.0.11 sends before it tries plain HTTP.
    let mut hello = vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];
    hello.resize(517, 0x2a);
    stream.write_all(&hello).await.unwrap();
    let answer = read(&mut stream).await;
    assert!(answer.head.starts_with("http/1.1 400 "), "{answer:?}");
    assert_eq!(answer.end, End::Fin);
}

/// The lines of a head without `Date`, which differs between two answers where a second ends between them.
fn undated(head: &str) -> Vec<&str> {
    head.lines().filter(|line| !line.starts_with("date:")).collect()
}

#[tokio::test]
async fn a_manifest_is_right_or_does_not_go_out() {
    const RIGHT: &[u8] = b"{\"schemaVersion\":2}";
    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
    let large = vec![b' '; 4 * 1024 * 1024 + 1];
    let (right, large_digest) = (digest_of(RIGHT), digest_of(&large));
    let cache = cache({
        let right = right.clone();
        move |head| {
            let stated = format!("docker-content-digest: {right}\r\n");
            let path = head.split(' ').nth(1).unwrap();
            match path.rsplit('/').next().unwrap().split('?').next().unwrap() {
                "wrong" => Reply::new(200, &stated, b"{\"schemaVersion\":3}"),
                "unstated" => Reply::new(200, "", RIGHT),
                "untyped" => Reply::new(200, &stated, RIGHT),
                "short" => {
                    let mut reply = Reply::new(200, &stated, RIGHT);
                    reply.steps = vec![Step::Send(RIGHT[..4].to_vec()), Step::Close];
                    reply
                }
                reference if reference == digest_of(b"other") => Reply::new(200, &stated, RIGHT),
                reference if reference == digest_of(&large) => {
                    Reply::new(200, &format!("docker-content-digest: {reference}\r\n"), &large)
                }
                _ => Reply::new(200, &format!("{stated}content-type: {OCI}\r\n"), RIGHT),
            }
        }
    })
    .await;
    let relay = Running::before(&cache).await;
    for reference in ["latest", right.as_str()] {
        let request = get(&manifest(reference)).replacen("\r\n", "\r\nrange: bytes=0-\r\n", 1);
        let answer = relay.ask(&request).await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, RIGHT));
        assert!(answer.head.contains(OCI) && answer.head.contains(&right), "{}", answer.head);
        let head = relay.ask(&get(&manifest(reference)).replacen("GET", "HEAD", 1)).await;
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(undated(&head.head), undated(&answer.head), "as GET says");
    }
    assert!(cache.requests().iter().all(|head| !head.contains("range")), "a part could not be verified");
    for reference in ["unstated", "untyped", "short", &digest_of(b"other"), &large_digest] {
        assert_eq!(relay.get(&manifest(reference)).await.status, 503, "{reference}");
        let head = get(&manifest(reference)).replacen("GET", "HEAD", 1);
        assert_eq!(relay.ask(&head).await.status, 503, "a header alone proves nothing: {reference}");
    }
    assert_eq!(relay.get(&manifest("latest")).await.status, 200);
    assert_eq!(relay.get(&manifest("wrong")).await.status, 503);
    assert_eq!(relay.get(&manifest("latest")).await.status, 503, "who lies is not asked for a while");
    assert_eq!(relay.view().standing, Standing::Out);
    // A probe that was late on a busy machine is told of in place of this until the next one is answered.
    cache.until_probed(cache.probes() + 2).await;
    assert!(relay.view().trouble.unwrap().contains("something else"));
}

/// The runtime got a part, saw the connection closed by FIN, and finds the digest refused when it resumes.
async fn check_cut(relay: &Running, path: &str, answer: &Answer) {
    assert_eq!((answer.status, answer.body.as_slice(), &answer.end), (200, b"half".as_slice(), &End::Fin));
    let resumed = get(path).replacen("\r\n", "\r\nrange: bytes=4-\r\n", 1);
    let asked = Instant::now();
    assert_eq!(relay.ask(&resumed).await.status, 503);
    assert!(asked.elapsed() < Duration::from_secs(1));
    assert_eq!(relay.get(&blob("well")).await.status, 200, "other digests are served");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_cut_by_fin_and_resumed_elsewhere() {
    for end in [Step::Close, Step::Reset] {
        let broken = blob("broken");
        let arrived = Arc::new(Notify::new());
        let (path, until) = (broken.clone(), arrived.clone());
        let cache = cache(move |head| match (head.contains(&path), head.contains("range:")) {
            (true, false) => {
                Reply::steps(1 << 20, vec![Step::Send(b"half".to_vec()), Step::Wait(until.clone()), end.clone()])
            }
            (true, true) => Reply::new(503, "", b""),
            (false, _) => Reply::new(200, "", b"well"),
        })
        .await;
        let relay = Running::before(&cache).await;
        let mut stream = TcpStream::connect(relay.address).await.unwrap();
        stream.write_all(get(&broken).as_bytes()).await.unwrap();
        let mut peeked = vec![0; 4096];
        while !peeked.windows(4).any(|four| four == b"half") {
            stream.readable().await.unwrap();
            stream.peek(&mut peeked).await.unwrap();
        }
        arrived.notify_one();
        let answer = read(&mut stream).await;
        check_cut(&relay, &broken, &answer).await;
    }
}

#[tokio::test]
async fn a_runtime_that_takes_its_time_is_not_cut_and_holds_the_cache_back() {
    let cache = cache(|_| Reply::steps(256 << 20, vec![Step::Flood(256)])).await;
    let relay = Running::before(&cache).await;
    let mut stream = TcpStream::connect(relay.address).await.unwrap();
    stream.write_all(get(&blob("x")).as_bytes()).await.unwrap();
    // Longer than the cache may stall: the pause is the runtime's.
    tokio::time::sleep(Duration::from_secs(17)).await;
    assert!(cache.sent() < 32 << 20, "{} bytes wait for a runtime that reads none", cache.sent());
    let answer = read(&mut stream).await;
    assert_eq!((answer.status, answer.body.len()), (200, 256 << 20));
    assert!(answer.body.iter().all(|byte| *byte == 7));
}

#[tokio::test]
async fn a_dead_cache_is_refused_at_once_and_comes_back_with_hysteresis() {
    let mut cache = cache(|_| Reply::new(200, "", b"x")).await;
    let relay = Running::before(&cache).await;
    cache.die();
    let died = Instant::now();
    assert_eq!(relay.get(&blob("x")).await.status, 503);
    relay.until(|view| view.standing == Standing::Out).await;
    let out = Instant::now();
    assert!(died.elapsed() < Duration::from_secs(6), "{:?}", died.elapsed());
    assert!(relay.view().trouble.unwrap().contains("connect"));
    assert_eq!(relay.get(&blob("x")).await.status, 503);
    assert!(out.elapsed() < Duration::from_millis(1000), "{:?}", out.elapsed());

    cache.revive().await;
    relay.until(|view| view.standing == Standing::In).await;
    assert!((9900..14000).contains(&out.elapsed().as_millis()), "{:?}", out.elapsed());
    assert_eq!(relay.get(&blob("x")).await.status, 200);
}

#[tokio::test]
async fn a_pod_that_was_replaced_is_in_with_its_first_answer() {
    let mut first = cache(|_| Reply::new(200, "", b"x")).await;
    let relay = Running::before(&first).await;
    first.die();
    relay.until(|view| view.standing == Standing::Out).await;
    let next = first.replica().await;
    relay.route(&[next.address], &next.ca);
    let replaced = Instant::now();
    relay.until(|view| view.standing == Standing::In).await;
    assert!(replaced.elapsed() < Duration::from_secs(3), "{:?}", replaced.elapsed());
}

#[tokio::test]
async fn a_frozen_cache_holds_nobody_up_for_long() {
    let cache = cache(|_| Reply::new(200, "", b"x")).await;
    let relay = Running::before(&cache).await;
    assert_eq!(relay.get(&blob("x")).await.status, 200);
    cache.freeze(true);
    let asked = Instant::now();
    let answer = relay.get(&blob("x")).await;
    assert_eq!(answer.status, 503);
    assert!(asked.elapsed() < Duration::from_millis(5500), "{:?}", asked.elapsed());
    relay.until(|view| view.standing == Standing::Out).await;
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    let again = Instant::now();
    assert_eq!(relay.get(&blob("x")).await.status, 503);
    assert!(again.elapsed() < Duration::from_millis(1000), "{:?}", again.elapsed());
}

#[tokio::test]
async fn an_impostor_and_a_cache_that_refuses_the_token_are_never_asked() {
    let impostor = cache(|_| Reply::new(200, "", b"x")).await;
    let other = cache(|_| Reply::new(200, "", b"x")).await;
    let relay = Running::bare().await;
    relay.route(&[impostor.address], &other.ca);
    relay.until(|view| view.standing == Standing::Unproven).await;
    assert!(relay.view().trouble.unwrap().contains("TLS handshake"), "{:?}", relay.view());
    assert_eq!(relay.get(&blob("x")).await.status, 503);
    assert!(impostor.requests().is_empty());

    let strict = Cache::start(|_| Reply::new(401, "", b"")).await;
    let relay = Running::bare().await;
    relay.route(&[strict.address], &strict.ca);
    relay.until(|view| view.standing == Standing::Unproven).await;
    assert!(relay.view().trouble.unwrap().contains("refuses this node's token"));
}

#[tokio::test]
async fn of_several_pods_a_dead_one_is_passed_over() {
    let mut dead = cache(|_| Reply::new(200, "", b"x")).await;
    dead.die();
    let alive = cache(|_| Reply::new(200, "", b"x")).await;
    let relay = Running::bare().await;
    relay.route(&[dead.address, alive.address], &alive.ca);
    relay.until(|view| view.standing == Standing::In).await;
    for repository in ["a", "b", "c", "d", "e", "f"] {
        assert_eq!(relay.get(&blob("x").replace("library/a", repository)).await.status, 200);
    }
}

#[tokio::test]
async fn the_first_request_waits_for_the_first_verdict() {
    let cache = cache(|_| Reply::new(200, "", b"x")).await;
    let relay = Running::bare().await;
    relay.route(&[cache.address], &cache.ca);
    assert_eq!(relay.get(&blob("x")).await.status, 200);
}

#[tokio::test]
async fn a_stop_refuses_at_once_and_lets_a_running_download_finish() {
    let cache = cache(|_| Reply::steps(64 << 20, vec![Step::Flood(64)])).await;
    let mut relay = Running::before(&cache).await;
    let mut stream = TcpStream::connect(relay.address).await.unwrap();
    stream.write_all(get(&blob("x")).as_bytes()).await.unwrap();
    let mut first = [0; 1];
    stream.read_exact(&mut first).await.unwrap();
    relay.stop.cancel();
    let refuses = async {
        while TcpStream::connect(relay.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), refuses).await.expect("it takes connections for ever");
    let answer = read(&mut stream).await;
    assert_eq!((answer.body.len(), answer.end), (64 << 20, End::Fin));
    (&mut relay.task).await.unwrap();
}
