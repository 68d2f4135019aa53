//! What the cache says of itself: metrics with their reference page, the access log, `Cache-Status` and `Age`.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use breakwater_tests::binaries::workspace;
use breakwater_tests::cache::{Answer, Cache, End, Identity, PATIENCE};
use breakwater_tests::upstream::{Content, Fault, On, Upstream};
use serde_json::Value;

const REPOSITORY: &str = "library/app";
const BY_TAG: &str = "/v2/library/app/manifests/v1";
const INTRODUCTION: &str = "\
# Metrics of the cache

`/metrics` of the admin listener, in the OpenMetrics text format. Every metric also carries `registry`, the registry that
the cache serves. No label holds a repository, a digest or a client.

| metric | type | labels | meaning |
|---|---|---|---|
";

async fn metrics(cache: &Cache) -> String {
    String::from_utf8(cache.admin("/metrics").await.body).expect("metrics are text")
}

/// The value of the only series whose labels contain all of these texts.
fn value(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    let found: Vec<_> = metrics
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .collect();
    let [line] = found[..] else { panic!("{name} {labels:?}: {found:?} in\n{metrics}") };
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

/// The table that a page of metrics describes.
fn reference(metrics: &str) -> String {
    let comment = |line: &str, kind: &str| {
        let (name, text) = line.strip_prefix(&format!("# {kind} "))?.split_once(' ')?;
        Some((name.to_owned(), text.to_owned()))
    };
    let help: BTreeMap<_, _> = metrics.lines().filter_map(|line| comment(line, "HELP")).collect();
    let mut table = INTRODUCTION.to_owned();
    for (name, kind) in metrics.lines().filter_map(|line| comment(line, "TYPE")) {
        let suffix = match kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let series = metrics.lines().filter(|line| {
            let rest = line.strip_prefix(name.as_str());
            rest.is_some_and(|rest| ["_total{", "_info{", "_bucket{", "{"].iter().any(|start| rest.starts_with(start)))
        });
        let labels: BTreeSet<_> = series
            .flat_map(|line| line.split(['{', ',']).filter_map(|part| part.split_once("=\"").map(|(label, _)| label)))
            .filter(|label| !["registry", "le"].contains(label))
            .map(|label| format!("`{label}`"))
            .collect();
        let labels = labels.into_iter().collect::<Vec<_>>().join(", ");
        let meaning = help.get(&name).map(String::as_str).unwrap_or_default();
        table += &format!("| `{name}{suffix}` | {kind} | {labels} | {meaning} |\n");
    }
    table
}

#[tokio::test]
async fn the_reference_page_lists_every_metric() {
    let upstream = Upstream::start().await;
    upstream.announce_rate_limit(50);
    upstream.push(REPOSITORY, "v1", &Content::image(1, &[1000]));
    let (identity, _folder) = Identity::with_token("open");
    let cache = Cache::of(&upstream).identity(identity).start().await;
    let answer = cache.request("GET", BY_TAG).header("Authorization", "Bearer open").answer().await;
    assert_eq!(answer.status, 200);
    let generated = reference(&metrics(&cache).await);
    let page = workspace().join("docs/metrics.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&page, &generated).expect("docs/metrics.md can be written");
    }
    let committed = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(
        committed == generated,
        "docs/metrics.md differs from /metrics; run: UPDATE=1 cargo test -p breakwater-tests --test cache_metrics\n{generated}"
    );
    // A metric without any series yet is on no page, so the source is held to it too.
    let source = std::fs::read_to_string(workspace().join("registry/src/metrics.rs")).expect("metrics.rs");
    let registered: Vec<_> =
        source.split(".register(").skip(1).filter_map(|call| call.trim_start().split('"').nth(1)).collect();
    assert!(registered.len() > 10, "found only {registered:?}");
    for name in registered {
        assert!(committed.contains(&format!("`breakwater_{name}")), "docs/metrics.md: must list breakwater_{name}");
    }
}

#[tokio::test]
async fn each_way_to_answer_is_counted_and_timed() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[100_000]);
    upstream.push(REPOSITORY, "v1", &image);
    let cache = Cache::of(&upstream).flag("--tag-ttl", "0s").start().await;
    let layer = image.layers[0].blob_path(REPOSITORY);
    cache.get(BY_TAG).await;
    cache.get(&layer).await;
    cache.await_kept(REPOSITORY, &image.layers[0]).await;
    cache.get(&layer).await;
    cache.get("/v2/library/app/manifests/none").await;
    cache.get("/etc/passwd").await;
    upstream.fault(On::Everything, Fault::Refuse).await;
    assert!(cache.get(BY_TAG).await.cache_status().contains("fwd=stale"));
    cache.get("/v2/library/other/manifests/v1").await;
    let metrics = metrics(&cache).await;
    let requests = |labels: &[&str]| value(&metrics, "breakwater_cache_requests_total", labels);
    let expected = [
        ("manifest", "miss"),
        ("blob", "miss"),
        ("blob", "hit"),
        ("manifest", "denied"),
        ("other", "denied"),
        ("manifest", "stale"),
        ("manifest", "error"),
    ];
    for (kind, result) in expected {
        let labels = [&*format!("kind=\"{kind}\""), &*format!("result=\"{result}\"")];
        assert!((requests(&labels) - 1.0).abs() < 0.1, "{kind} {result}:\n{metrics}");
    }
    assert!(value(&metrics, "breakwater_cache_first_byte_seconds_count", &["result=\"stale\""]) > 0.5);
    for phase in ["connect", "header", "body"] {
        let count = value(&metrics, "breakwater_upstream_phase_seconds_count", &[&format!("phase=\"{phase}\"")]);
        assert!(count > 0.5, "{phase}:\n{metrics}");
    }
    assert!((value(&metrics, "breakwater_upstream_breakers_open", &["host=\"registry\""]) - 1.0).abs() < 0.1);
    assert!(metrics.contains("revision="), "{metrics}");
    assert!(!metrics.contains("sha256:") && !metrics.contains(REPOSITORY), "labels without bound");
}

#[tokio::test]
async fn readers_flights_and_connections_are_counted_while_they_last() {
    let upstream = Upstream::start().await;
    let blob = Content::blob(3, 300_000);
    upstream.put_blob(REPOSITORY, &blob);
    upstream.fault(On::Blobs, Fault::StallAt(100_000)).await;
    let cache = Cache::start(&upstream).await;
    let mut reader = cache.request("GET", &blob.blob_path(REPOSITORY)).send().await;
    reader.read(1000).await;
    let during = metrics(&cache).await;
    for (name, labels) in [
        ("breakwater_cache_readers", &[][..]),
        ("breakwater_cache_flights", &[]),
        ("breakwater_cache_connections", &["listener=\"plain\""]),
    ] {
        assert!((value(&during, name, labels) - 1.0).abs() < 0.1, "{name}:\n{during}");
    }
    upstream.heal().await;
    assert_eq!(reader.rest_equals(&blob.bytes).await, End::Complete);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let after = metrics(&cache).await;
        if ["breakwater_cache_readers", "breakwater_cache_flights"].iter().all(|name| value(&after, name, &[]) < 0.5) {
            break;
        }
        assert!(Instant::now() < deadline, "still counted:\n{after}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The lines of the access log once there are so many.
async fn access_log(cache: &Cache, count: usize) -> Vec<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = cache.output();
        let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines: Vec<_> = lines.filter(|line| line["target"] == "access").collect();
        if lines.len() >= count {
            return lines;
        }
        assert!(Instant::now() < deadline, "only {} lines of {count}:\n{output}", lines.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The line of the only request of this kind with this status: two that follow each other may be logged the other way round.
fn line<'a>(lines: &'a [Value], kind: &str, status: u16) -> &'a Value {
    let found: Vec<_> = lines.iter().filter(|line| line["kind"] == kind && line["status"] == status).collect();
    let [line] = found[..] else { panic!("{kind} {status}: {found:?} in {lines:?}") };
    line
}

#[tokio::test]
async fn each_request_is_one_line_of_the_access_log_without_secrets() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[100_000]);
    upstream.push(REPOSITORY, "v1", &image);
    let cache =
        Cache::of(&upstream).flag("--log-format", "json").environment("RUST_LOG", "info,access=debug").start().await;
    let layer = image.layers[0].blob_path(REPOSITORY);
    let secretive = |path: &str| {
        let request = cache.request("GET", &format!("{path}?ns={}&token=hunter2", upstream.host()));
        request.header("Authorization", "Bearer hunter2").header("User-Agent", "containerd/2.1")
    };
    assert_eq!(secretive(BY_TAG).answer().await.status, 200);
    assert_eq!(secretive(&layer).answer().await.status, 200);
    cache.await_kept(REPOSITORY, &image.layers[0]).await;
    assert_eq!(secretive(&layer).range("10-19").answer().await.status, 206);
    assert_eq!(secretive("/etc/../hunter3").answer().await.status, 404);
    let lines = access_log(&cache, 4).await;
    let [manifest, miss, hit, refused] = [("manifest", 200), ("blob", 200), ("blob", 206), ("other", 404)]
        .map(|(kind, status)| line(&lines, kind, status));
    assert_eq!((&manifest["method"], &manifest["kind"]), (&"GET".into(), &"manifest".into()));
    assert_eq!((&manifest["repository"], &manifest["reference"]), (&REPOSITORY.into(), &"v1".into()));
    assert!(manifest["upstream_seconds"].as_f64().is_some_and(|waited| waited > 0.0), "{manifest}");
    assert_eq!(miss["level"], "INFO");
    assert_eq!((&miss["status"], &miss["bytes"], &miss["cut"]), (&200.into(), &100_000.into(), &false.into()));
    assert!(miss["cache_status"].as_str().is_some_and(|status| status.contains("fwd=miss")), "{miss}");
    assert_eq!((&hit["level"], &hit["bytes"], &hit["range"]), (&"DEBUG".into(), &10.into(), &"bytes=10-19".into()));
    assert_eq!(hit["upstream_seconds"], 0.0);
    assert_eq!((&refused["method"], &refused["repository"]), (&"GET".into(), &"".into()));
    for line in &lines {
        let client = line["client"].as_str().and_then(|client| client.parse::<SocketAddr>().ok());
        assert!(client.is_some_and(|client| client.ip().is_loopback() && client.ip().is_ipv4()), "{line}");
    }
    let output = cache.output();
    assert!(!output.contains("hunter2") && !output.contains('\u{1b}'), "{output}");
}

#[tokio::test]
async fn who_shows_no_token_is_logged_and_counted() {
    let upstream = Upstream::start().await;
    let (identity, _folder) = Identity::with_token("open");
    let cache = Cache::of(&upstream).identity(identity).flag("--log-format", "json").start().await;
    assert_eq!(cache.get(BY_TAG).await.status, 401);
    let pins = cache.request("GET", "/v1/pins").header("Authorization", "Bearer hunter2").answer().await;
    assert_eq!(pins.status, 401);
    let lines = access_log(&cache, 2).await;
    let [pull, pins] = ["manifest", "other"].map(|kind| line(&lines, kind, 401));
    assert_eq!(pull["level"], "INFO");
    assert_eq!((&pull["repository"], &pull["reference"]), (&REPOSITORY.into(), &"v1".into()));
    assert!(pull["client"].as_str().is_some_and(|client| client.starts_with("127.0.0.1:")), "{pull}");
    assert_eq!(pins["reference"], "/v1/pins");
    assert!(!cache.output().contains("hunter2"));
    let metrics = metrics(&cache).await;
    let denied = |kind| value(&metrics, "breakwater_cache_requests_total", &[kind, "result=\"denied\""]);
    assert!((denied("kind=\"manifest\"") - 1.0).abs() < 0.1 && (denied("kind=\"other\"") - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn a_cut_body_is_logged_with_what_went_out() {
    let upstream = Upstream::start().await;
    let blob = Content::blob(4, 400_000);
    upstream.put_blob(REPOSITORY, &blob);
    upstream.fault(On::Blobs, Fault::WrongBytes).await;
    let cache = Cache::of(&upstream).flag("--log-format", "json").start().await;
    assert_eq!(cache.get(&blob.blob_path(REPOSITORY)).await.end, End::CutByFin);
    let lines = access_log(&cache, 1).await;
    assert_eq!((&lines[0]["cut"], &lines[0]["kind"]), (&true.into(), &"blob".into()));
    assert!(lines[0]["bytes"].as_u64().is_some_and(|bytes| bytes < blob.len()), "{}", lines[0]);
}

/// RFC 9211 for one cache: its name, then parameters; `hit` and `fwd` exclude each other, `fwd-status` needs `fwd`.
fn check_cache_status(what: &str, answer: &Answer) {
    let status = answer.cache_status();
    let mut parts = status.split("; ");
    assert_eq!(parts.next(), Some("breakwater"), "{what}: {status}");
    let mut keys = Vec::new();
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let is_token = |text: &str| {
            text.starts_with(|letter: char| letter.is_ascii_alphabetic())
                && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-".contains(letter))
        };
        let is_right = match key {
            "hit" | "stored" | "collapsed" => value.is_empty(),
            "fwd" => ["miss", "stale"].contains(&value),
            "fwd-status" => value.len() == 3 && value.bytes().all(|digit| digit.is_ascii_digit()),
            "detail" => is_token(value),
            _ => false,
        };
        assert!(is_right, "{what}: {part} in {status}");
        keys.push(key);
    }
    let has = |key| keys.contains(&key);
    assert!(!(has("hit") && has("fwd")), "{what}: {status}");
    assert!(has("fwd") || !(has("fwd-status") || has("stored") || has("collapsed")), "{what}: {status}");
    let age = answer.header("age").and_then(|age| age.parse::<u64>().ok());
    assert!(age.is_some_and(|age| age < 60), "{what}: age {age:?}");
}

#[tokio::test]
async fn every_answer_has_a_cache_status_and_an_age() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[100_000]);
    upstream.push(REPOSITORY, "v1", &image);
    let cache = Cache::of(&upstream).flag("--tag-ttl", "0s").start().await;
    let layer = image.layers[0].blob_path(REPOSITORY);
    let get = |path: &str| cache.request("GET", path);
    check_cache_status("base", &cache.get("/v2/").await);
    check_cache_status("miss by tag", &cache.get(BY_TAG).await);
    check_cache_status("revalidated", &cache.get(BY_TAG).await);
    check_cache_status("head miss", &cache.head(&layer).await);
    check_cache_status("blob miss", &cache.get(&layer).await);
    cache.await_kept(REPOSITORY, &image.layers[0]).await;
    let hit = cache.get(&layer).await;
    assert_eq!(hit.cache_status(), "breakwater; hit");
    check_cache_status("blob hit", &hit);
    check_cache_status("206", &get(&layer).range("0-9").answer().await);
    check_cache_status("416", &get(&layer).range("100000-").answer().await);
    check_cache_status("not found", &cache.get("/v2/library/app/manifests/none").await);
    check_cache_status("list", &cache.get("/v2/library/app/tags/list").await);
    check_cache_status("no path", &cache.get("/v3/").await);
    check_cache_status("no name", &cache.get("/v2/UPPER/manifests/v1").await);
    check_cache_status("other registry", &cache.get("/v2/a/manifests/v1?ns=other.example.com").await);
    check_cache_status("method", &cache.request("DELETE", BY_TAG).answer().await);
    upstream.fault(On::Everything, Fault::Status(503)).await;
    check_cache_status("stale after 503", &cache.get(BY_TAG).await);
    upstream.fault(On::Everything, Fault::Refuse).await;
    check_cache_status("stale", &cache.get(BY_TAG).await);
    check_cache_status("error", &cache.get("/v2/library/other/manifests/v1").await);
}
