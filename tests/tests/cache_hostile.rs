//! Clients that mean no good: junk, floods, bombs, requests that are two, connections that only take a place.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::{Duration, Instant};

use breakwater_tests::cache::client::exchange_raw;
use breakwater_tests::cache::{Cache, End, PATIENCE, cold};
use breakwater_tests::upstream::{Content, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const REPOSITORY: &str = "library/app";
const BY_TAG: &str = "/v2/library/app/manifests/v1";
const MIB: u64 = 1 << 20;

async fn started() -> (Upstream, Cache) {
    let (upstream, cache, _image) = cold::image(REPOSITORY, &[1000]).await;
    (upstream, cache)
}

/// The status of the first answer to raw bytes; 0 where the connection is closed without one.
async fn status_of(cache: &Cache, request: &[u8]) -> u16 {
    let answer = exchange_raw(cache.address(), request).await;
    let line = String::from_utf8_lossy(&answer);
    line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
}

fn files_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files_below(&path)),
            path => found.push(path.display().to_string()),
        }
    }
    found
}

/// What pulls leave on disk.
fn kept(cache: &Cache) -> Vec<String> {
    ["blobs", "partial", "repositories"].iter().flat_map(|folder| files_below(&cache.data().join(folder))).collect()
}

#[tokio::test]
async fn requests_that_no_client_sends_are_refused_and_the_next_one_is_served() {
    let (upstream, cache) = started().await;
    let mark = upstream.mark();
    let long = "a/".repeat(5000);
    let names = [
        "/v2/library/%2e%2e/manifests/v1",
        "/v2/library/../../etc/manifests/passwd",
        "/v2/library/app/manifests/%00",
        "/v2/library/app%2f..%2f..%2fLOCK/manifests/v1",
        "/v2/LIBRARY/app/manifests/v1",
        "/v2/library/app/blobs/sha256:..%2f..%2fLOCK",
        "/v2/library/app/manifests/v1?ns=other.example.com",
        "/v2/library/app/manifests/v1?ns=",
        "/v2/library/app/manifests/v1?ns=127.0.0.1&ns=other.example.com",
        "/v2//manifests/v1",
        "//v2/library/app/manifests/v1",
        &format!("/v2/{long}x/manifests/v1"),
    ];
    for path in names {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert_eq!(status_of(&cache, request.as_bytes()).await, 404, "{path}");
    }
    let junk: [(&[u8], &[u16]); 9] = [
        (b"GET /v2/library/app/manifests/v1\r\n\r\n", &[400]),
        (b"GET /v2/a\0b/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n", &[400]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0, 400]),
        (b"GET /v2/ HTTP/1.1\r\nHost: x\r\nBroken header\r\n\r\n", &[400]),
        (b"GET /v2/ HTTP/1.1\r\nHost : x\r\n\r\n", &[400]),
        (b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", &[400]),
        (b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", &[400]),
        (b"CONNECT other.example.com:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", &[405]),
        (b"TRACE /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", &[405]),
    ];
    for (request, expected) in junk {
        let status = status_of(&cache, request).await;
        assert!(expected.contains(&status), "{status}: {}", String::from_utf8_lossy(request));
    }
    assert_eq!(upstream.content_requests_since(mark).len(), 0);
    let absolute = format!("GET http://other.example.com{BY_TAG} HTTP/1.0\r\n\r\n");
    assert_eq!(status_of(&cache, absolute.as_bytes()).await, 200);
    let named = format!("{BY_TAG}?ns={0}&ns={0}", upstream.host().to_uppercase());
    assert_eq!(cache.get(&named).await.status, 200);
}

#[tokio::test]
async fn odd_ranges_get_the_whole_the_part_or_416() {
    let (upstream, cache) = started().await;
    let blob = Content::blob(2, 50_000);
    upstream.put_blob(REPOSITORY, &blob);
    let path = blob.blob_path(REPOSITORY);
    assert_eq!(cache.get(&path).await.status, 200);
    cache.await_kept(REPOSITORY, &blob).await;
    let many = (0..1000).map(|first| format!("{first}-{first}")).collect::<Vec<_>>().join(",");
    let huge = "99999999999999999999999";
    for (range, status, from, to) in [
        (many.as_str(), 200, 0, 50_000),
        ("5-1", 200, 0, 50_000),
        ("x", 200, 0, 50_000),
        (&format!("{huge}-"), 416, 0, 0),
        (&format!("49999-{huge}"), 206, 49_999, 50_000),
        (&format!("-{huge}"), 206, 0, 50_000),
        ("-0", 416, 0, 0),
        ("50000-", 416, 0, 0),
    ] {
        let answer = cache.request("GET", &path).range(range).answer().await;
        let shown = range.get(..30).unwrap_or(range);
        assert_eq!((answer.status, answer.end), (status, End::Complete), "{shown}");
        assert!(status == 416 || answer.body == blob.bytes[from..to], "{shown}");
    }
}

#[tokio::test]
async fn whatever_is_sent_besides_a_request_is_neither_read_nor_taken_for_another() {
    let (_upstream, cache) = started().await;
    let smuggled = "GET /v2/smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    for head in [
        format!(
            "POST {BY_TAG} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        format!("GET {BY_TAG} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("GET {BY_TAG} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", smuggled.len()),
    ] {
        let answer = exchange_raw(cache.address(), format!("{head}{smuggled}").as_bytes()).await;
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{head}{answer}");
    }
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let head = format!("{method} {BY_TAG} HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n");
        let began = Instant::now();
        let body = vec![b'x'; 300_000];
        let answer = exchange_raw(cache.address(), &[head.as_bytes(), &body].concat()).await;
        assert!(answer.starts_with(b"HTTP/1.1 405"), "{method}: {:?}", String::from_utf8_lossy(&answer));
        assert!(began.elapsed() < Duration::from_secs(5), "{method}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let (_upstream, cache) = started().await;
    let ask = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n");
    let three = [ask(BY_TAG, ""), ask("/v2/none", ""), ask("/v2/", "Connection: close\r\n")].concat();
    let answers = exchange_raw(cache.address(), three.as_bytes()).await;
    let text = String::from_utf8_lossy(&answers);
    let statuses: Vec<_> = text.match_indices("HTTP/1.1 ").map(|(at, _)| &text[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "404", "200"]);
}

#[tokio::test]
async fn bombs_of_headers_are_431_and_the_connection_is_closed() {
    let (_upstream, cache) = started().await;
    let many = (0..5000).map(|count| format!("X-{count}: y\r\n")).collect::<String>();
    let huge = format!("X: {}\r\n", "x".repeat(4 << 20));
    for headers in [many, huge] {
        let bomb = format!("GET {BY_TAG} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        assert_eq!(status_of(&cache, bomb.as_bytes()).await, 431);
    }
    assert_eq!(cache.get(BY_TAG).await.status, 200);
}

/// Sends requests down one connection without waiting, and gives the number of answers.
async fn flood(cache: std::net::SocketAddr, requests: Vec<String>) -> usize {
    let stream = TcpStream::connect(cache).await.expect("a connection");
    let (mut answers, mut asks) = stream.into_split();
    let count = requests.len();
    let asking = async move {
        for batch in requests.chunks(50) {
            asks.write_all(batch.concat().as_bytes()).await.expect("requests are taken");
        }
        asks
    };
    let answering = async move {
        let (mut seen, mut tail, mut part) = (0, Vec::new(), vec![0; 64 * 1024]);
        while seen < count {
            let read = answers.read(&mut part).await.expect("answers");
            assert!(read > 0, "closed after {seen} of {count}");
            tail.extend_from_slice(&part[..read]);
            seen += tail.windows(9).filter(|window| window == b"HTTP/1.1 ").count();
            tail.drain(..tail.len().saturating_sub(8));
        }
        seen
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(asking, answering).1 }).await.expect("answers in time")
}

#[tokio::test]
async fn a_hundred_thousand_junk_requests_leave_no_trace() {
    let (upstream, cache) = started().await;
    flood(cache.address(), vec!["GET /v2/x HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(); 1000]).await;
    let before = cache.resident_memory();
    let mark = upstream.mark();
    let mut floods = JoinSet::new();
    for worker in 0..10 {
        let junk = (0..10_000).map(|count| {
            let path = match count % 4 {
                0 => format!("/{worker}/{count}"),
                1 => format!("/v2/%2e%2e/r{worker}x{count}/manifests/v1"),
                2 => format!("/v2/r{worker}x{count}/manifests/v{count}?ns=other.example.com"),
                _ => format!("/v2/library/app/blobs/sha256:{worker}{count}"),
            };
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Filler: {}\r\n\r\n", "x".repeat(count % 100))
        });
        floods.spawn(flood(cache.address(), junk.collect()));
    }
    assert_eq!(floods.join_all().await.into_iter().sum::<usize>(), 100_000);
    assert_eq!(upstream.content_requests_since(mark).len(), 0);
    // Names that only upstream can refuse.
    let unknown = (0..1000).map(|count| format!("GET /v2/r{count}/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert_eq!(flood(cache.address(), unknown.collect()).await, 1000);
    let grown = cache.resident_memory().saturating_sub(before);
    assert!(grown < 16 * MIB, "grew by {} KiB", grown / 1024);
    assert_eq!(kept(&cache), Vec::<String>::new());
    assert_eq!(cache.get(BY_TAG).await.status, 200);
}

#[tokio::test]
async fn who_takes_a_place_and_asks_nothing_makes_room_for_who_asks() {
    let upstream = Upstream::start().await;
    upstream.push(REPOSITORY, "v1", &Content::image(1, &[1000]));
    let cache = Cache::of(&upstream).most_files(300).start().await;
    assert_eq!(cache.get(BY_TAG).await.status, 200);
    let mut places = Vec::new();
    for count in 0..150 {
        let mut stream = TcpStream::connect(cache.address()).await.expect("a connection");
        let begun: &[u8] = match count % 3 {
            0 => b"GET /v2/ HTTP/1.1\r\nHo",
            1 => b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
            _ => b"G",
        };
        stream.write_all(begun).await.expect("the kernel takes it");
        places.push(stream);
    }
    let answer = cache.get(BY_TAG).await;
    assert_eq!(answer.status, 200);
    assert!(answer.took < Duration::from_secs(8), "{:?}", answer.took);
}

#[tokio::test]
async fn a_client_that_says_nothing_is_closed() {
    let (_upstream, cache) = started().await;
    let mut silent = TcpStream::connect(cache.address()).await.expect("a connection");
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(15), silent.read_to_end(&mut answer)).await;
    assert!(closed.is_ok_and(|read| read.is_ok()) && answer.is_empty());
}
