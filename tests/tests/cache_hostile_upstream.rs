//! Upstreams that mean no good: bodies and headers without end, answers that are no answers, places nobody should go to.
//! A client gets an error in time, memory stays flat, and nothing of it is kept.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use breakwater_tests::cache::{Answer, Cache, End, cold};
use breakwater_tests::upstream::{Blob, Content, Fault, On, Upstream};
use bytes::Bytes;
use serde_json::json;

const REPOSITORY: &str = "library/app";
const BY_TAG: &str = "/v2/library/app/manifests/v1";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const MIB: u64 = 1 << 20;

async fn started() -> (Upstream, Cache) {
    let (upstream, cache, _image) = cold::image(REPOSITORY, &[1000]).await;
    (upstream, cache)
}

fn refused(what: &str, answer: &Answer, detail: &str) {
    assert_eq!(answer.status, 503, "{what}: {}", answer.cache_status());
    assert!(answer.cache_status().ends_with(&format!("detail={detail}")), "{what}: {}", answer.cache_status());
    assert!(answer.took < Duration::from_secs(7), "{what}: {:?}", answer.took);
}

/// An answer that never ends: this head, and then this piece again and again.
fn endless(head: &str, piece: String) -> Fault {
    Fault::Endless(format!("HTTP/1.1 200 OK\r\nContent-Type: {MANIFEST}\r\n{head}").into(), piece.into())
}

fn chunk() -> String {
    format!("10000\r\n{}\r\n", " ".repeat(0x10000))
}

#[tokio::test]
async fn manifests_and_lists_beyond_their_limit_are_refused_by_its_name_and_cost_no_memory() {
    let (upstream, cache) = started().await;
    assert_eq!(cache.get(BY_TAG).await.status, 200);
    let before = cache.resident_memory();
    let digest = Content::blob(9, 10).digest;
    for head in ["Transfer-Encoding: chunked\r\n\r\n", "Content-Length: 104857600\r\n\r\n", "Connection: close\r\n\r\n"]
    {
        upstream.fault(On::Everything, endless(head, chunk())).await;
        let manifest = cache.get(&format!("/v2/{REPOSITORY}/manifests/{digest}")).await;
        refused(head, &manifest, "too_large");
        let message = String::from_utf8_lossy(&manifest.body).into_owned();
        assert!(message.contains("4 MiB"), "{message}");
        refused(head, &cache.get("/v2/library/app/tags/list").await, "too_large");
        upstream.heal().await;
    }
    let grown = cache.resident_memory().saturating_sub(before);
    assert!(grown < 48 * MIB, "grew by {} KiB", grown / 1024);
    assert!(upstream.bytes_sent(&digest) < 64 * MIB, "{} bytes were sent", upstream.bytes_sent(&digest));
}

#[tokio::test]
async fn headers_without_end_are_given_up() {
    let (upstream, cache) = started().await;
    let bombs = [
        ("many", "HTTP/1.1 200 OK\r\n", "X-Filler: y\r\n".repeat(1000)),
        ("one", "HTTP/1.1 200 OK\r\nX: ", "x".repeat(10_000)),
        ("no status", "", "x".repeat(10_000)),
    ];
    for (number, (what, head, piece)) in bombs.into_iter().enumerate() {
        upstream.fault(On::Manifests, Fault::Endless(head.into(), piece.into())).await;
        let answer = cache.get(&format!("/v2/library/r{number}/manifests/v1")).await;
        assert_eq!(answer.status, 503, "{what}: {}", answer.cache_status());
        assert!(answer.took < Duration::from_secs(7), "{what}: {:?}", answer.took);
        upstream.heal().await;
        cache.await_upstream_state("that upstream is well", |state| state["reachable"] == true).await;
    }
    assert!(cache.resident_memory() < 64 * MIB, "{} MiB", cache.resident_memory() / MIB);
    assert_eq!(cache.get(BY_TAG).await.status, 200);
}

#[tokio::test]
async fn interim_answers_without_end_are_given_up_in_time() {
    let (upstream, cache) = started().await;
    assert_eq!(cache.get(BY_TAG).await.status, 200);
    for (number, status) in ["103 Early Hints", "100 Continue"].into_iter().enumerate() {
        let flood = format!("HTTP/1.1 {status}\r\nLink: </x>\r\n\r\n").repeat(1000);
        upstream.fault(On::Everything, Fault::Endless(Bytes::new(), flood.into())).await;
        let missing = Content::blob(40 + number as u64, 10);
        let answers = [missing.blob_path(REPOSITORY), missing.manifest_path(REPOSITORY)];
        for path in answers {
            let answer = cache.get(&path).await;
            assert_eq!(answer.status, 503, "{status}: {}", answer.cache_status());
            assert!(answer.took < Duration::from_secs(7), "{status}: {:?}", answer.took);
        }
        // The connection is left at once: reading on would keep a processor busy.
        let sent = upstream.bytes_sent(&missing.digest);
        assert!(sent < 64 * MIB, "{status}: {sent} bytes were sent");
        assert_eq!(cache.get(BY_TAG).await.status, 200);
        upstream.heal().await;
        cache.await_upstream_state("that upstream is well", |state| state["reachable"] == true).await;
    }
}

#[tokio::test]
async fn answers_that_no_registry_gives_are_no_content() {
    let (upstream, cache) = started().await;
    let blob = Content::blob(3, 1000);
    let raw = |head: &str| {
        let head = format!("HTTP/1.1 {head}\r\nDocker-Content-Digest: {}\r\nConnection: close\r\n\r\n", blob.digest);
        [head.as_bytes(), &blob.bytes[..]].concat()
    };
    let answers = [
        (
            "part of another place",
            raw("206 Partial Content\r\nContent-Length: 1000\r\nContent-Range: bytes 5-1004/2000"),
        ),
        ("part without place", raw("206 Partial Content\r\nContent-Length: 1000")),
        ("nothing", raw("204 No Content")),
        ("not modified", raw("304 Not Modified")),
        ("teapot", raw("418 I'm a teapot\r\nContent-Length: 1000")),
        ("no HTTP", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
    ];
    for (number, (what, answer)) in answers.into_iter().enumerate() {
        upstream.fault(On::Blobs, Fault::Raw(answer.into())).await;
        let answer = cache.get(&blob.blob_path(&format!("library/r{number}"))).await;
        assert_eq!(answer.status, 503, "{what}: {}", answer.cache_status());
        upstream.heal().await;
        cache.await_upstream_state("that upstream is well", |state| state["reachable"] == true).await;
    }
    assert!(cache.committed(&blob).is_none());
    upstream.put_blob(REPOSITORY, &blob);
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.end, &answer.body[..]), (200, End::Complete, &blob.bytes[..]));
}

#[tokio::test]
async fn a_manifest_is_kept_under_the_digest_of_its_bytes_alone() {
    let (upstream, cache) = started().await;
    let (real, claimed) = (Content::image(7, &[10]).manifest, Content::blob(8, 10));
    let raw = |media_type: &str| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nContent-Length: {}", real.len());
        let head = format!("{head}\r\nConnection: close\r\nDocker-Content-Digest: {}\r\n\r\n", claimed.digest);
        Fault::Raw([head.as_bytes(), &real.bytes[..]].concat().into())
    };
    upstream.fault(On::Manifests, raw(MANIFEST)).await;
    refused("another digest", &cache.get("/v2/library/other/manifests/v1").await, "wrong_digest");
    assert!(cache.committed(&claimed).is_none());
    upstream.heal().await;
    upstream.fault(On::Manifests, raw(&format!("a/{}", "b".repeat(10_000)))).await;
    refused("a media type of 10 kB", &cache.get(&real.manifest_path("library/third")).await, "invalid_response");
}

/// An answer to HEAD and GET alike, with this status line.
fn answer(status: &str, media_type: &str, headers: &str, body: &str) -> Fault {
    let length = body.len();
    Fault::Raw(
        format!("HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}")
            .into(),
    )
}

#[tokio::test]
async fn what_a_tag_names_is_taken_from_no_error_and_no_damaged_body() {
    let (upstream, cache) = started().await;
    assert_eq!(cache.get("/v2/library/app/tags/list").await.status, 200);
    let real = Content::image(7, &[10]).manifest;
    let text = String::from_utf8_lossy(&real.bytes).into_owned();
    let stated = format!("Docker-Content-Digest: {}\r\n", real.digest);
    let denied = r#"{"errors":[{"code":"DENIED"}]}"#;
    let answers = [
        ("an error under a 200", answer("200 OK", "application/json", "", denied), "invalid_response"),
        ("a range that nobody asked for", answer("416 X", MANIFEST, "", &text), "invalid_response"),
        ("a part that nobody asked for", answer("206 Partial Content", MANIFEST, &stated, &text), "invalid_response"),
        ("other bytes than it says", answer("200 OK", MANIFEST, &stated, &format!("{text}\n")), "wrong_digest"),
        ("no bytes", answer("200 OK", MANIFEST, &stated, ""), "wrong_digest"),
    ];
    for (number, (what, fault, detail)) in answers.into_iter().enumerate() {
        upstream.fault(On::Manifests, fault).await;
        let path = format!("/v2/library/r{number}/manifests/v1");
        refused(what, &cache.get(&path).await, detail);
        if !["other bytes than it says"].contains(&what) {
            assert_ne!(cache.head(&path).await.status, 200, "{what}");
        }
        upstream.heal().await;
    }
    for body in [denied, "", "{\"name\": \"library/app\", \"ta"] {
        upstream.fault(On::Path("tags/list".to_owned()), answer("200 OK", "application/json", "", body)).await;
        refused(body, &cache.get("/v2/library/other/tags/list").await, "invalid_response");
        upstream.heal().await;
    }
}

#[tokio::test]
async fn a_manifest_that_stalls_or_breaks_off_is_asked_for_once_more_while_its_client_waits() {
    let (upstream, cache) = started().await;
    for (number, fault) in [Fault::StallAt(100), Fault::TruncateAt(100), Fault::ResetAt(0)].into_iter().enumerate() {
        let image = Content::image(20 + number as u64, &[10]);
        upstream.push(REPOSITORY, "other", &image);
        let path = image.manifest.manifest_path(REPOSITORY);
        upstream.fault_times(1, On::Path(image.manifest.digest.clone()), fault.clone()).await;
        let answer = cache.get(&path).await;
        assert_eq!((answer.status, &answer.body[..]), (200, &image.manifest.bytes[..]), "{fault:?}");
    }
}

#[tokio::test]
async fn content_that_is_not_to_be_had_leaves_nothing_in_the_data_folder() {
    let (upstream, cache) = started().await;
    let partials = || std::fs::read_dir(cache.data().join("partial")).expect("the folder of downloads").count();
    for (seed, fault) in [(50, None), (51, Some(Fault::Status(502))), (52, Some(Fault::TruncateAt(0)))] {
        if let Some(fault) = fault {
            upstream.fault(On::Blobs, fault).await;
        }
        let answer = cache.get(&Content::blob(seed, 100_000).blob_path(REPOSITORY)).await;
        assert!([404, 503].contains(&answer.status), "{}", answer.status);
        assert_eq!(partials(), 0, "{}", answer.cache_status());
    }
}

#[tokio::test]
async fn a_manifest_that_names_forty_thousand_layers_is_served_and_costs_few_files() {
    let (upstream, cache) = started().await;
    let layer = |count: u32| json!({"digest": format!("sha256:{count:064x}"), "size": 1});
    let document = json!({"schemaVersion": 2, "layers": (0..40_000).map(layer).collect::<Vec<_>>()});
    let manifest = Blob::new(MANIFEST, document.to_string());
    assert!(manifest.len() < 4 * MIB);
    upstream.tag(REPOSITORY, "many", &manifest);
    let answer = cache.get("/v2/library/app/manifests/many").await;
    assert_eq!((answer.status, answer.end), (200, End::Complete));
    assert!(answer.body == manifest.bytes);
    let links = std::fs::read_dir(cache.data().join("repositories").join(REPOSITORY).join("_links"));
    assert!(links.is_ok_and(|links| links.count() < 5000));
}

#[tokio::test]
async fn redirects_in_circles_and_to_nowhere_end_in_an_error() {
    let (upstream, cache) = started().await;
    let circle = format!("{}/v2/library/loop/manifests/v1", upstream.url());
    for (number, location) in
        [circle.as_str(), "http://[::1", "//", "http://:99999/x", "gopher://x/", "http://u:p@127.0.0.1/"]
            .into_iter()
            .enumerate()
    {
        upstream.fault(On::Manifests, Fault::RedirectTo(location.to_owned())).await;
        let mark = upstream.mark();
        let answer = cache.get(&format!("/v2/library/r{number}/manifests/v1")).await;
        assert_eq!(answer.status, 503, "{location}: {}", answer.cache_status());
        assert!(upstream.content_requests_since(mark).len() <= 20, "{location}");
        upstream.heal().await;
    }
    assert_eq!(cache.get(BY_TAG).await.status, 200);
}

#[tokio::test]
async fn the_next_page_of_a_list_is_asked_of_us() {
    let (upstream, cache) = started().await;
    let link = r#"<https://other.example.com/v2/library/app/tags/list?last=b&n=1>; rel="next""#;
    let page = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nLink: {link}\r\nConnection: close\r\n\r\n{{}}"
    );
    upstream.fault(On::Path("tags/list".to_owned()), Fault::Raw(page.into())).await;
    let answer = cache.get("/v2/library/app/tags/list?n=1").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("link"), Some(r#"</v2/library/app/tags/list?last=b&n=1>; rel="next""#));
}
