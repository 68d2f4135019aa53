//! The relay against a cache whose answers do not come, or hardly: what it costs once, and what later.

use super::misbehaviour::HIT;
use super::one_pod::{blob, blob_of, cache, digest_of, manifest};
use super::support::{Cache, Reply, Running, Step};
use super::trials::{PAUSE, skip, until_tried};
use breakwater_node_agent::relay::Standing;
use futures::future::join_all;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A refusal that gives no cause.
fn refusal() -> Step {
    Step::Send(b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n".to_vec())
}

/// Says at once that it has nothing, and nothing else ever.
async fn holding_back() -> Cache {
    cache(|head| match head.contains("only-if-cached") {
        true => Reply::new(504, "", b""),
        false => Reply { head: String::new(), steps: vec![Step::Stall] },
    })
    .await
}

#[tokio::test]
async fn headers_that_do_not_come_are_not_waited_for_long() {
    let cache = holding_back().await;
    let relay = Running::before(&cache).await;
    let asked = Instant::now();
    assert_eq!(relay.get(&blob("x")).await.status, 503);
    assert!((4900..6000).contains(&asked.elapsed().as_millis()), "{:?}", asked.elapsed());
    assert_eq!(relay.view().standing, Standing::In, "one slow answer is no dead cache");
    for name in ["x", "y"] {
        let asked = Instant::now();
        assert_eq!(relay.get(&blob(name)).await.status, 503);
        assert!(asked.elapsed() < Duration::from_millis(1000), "it is asked for what it has: {:?}", asked.elapsed());
    }
    let asked = Instant::now();
    assert_eq!(relay.get(&manifest("latest")).await.status, 503);
    assert!(asked.elapsed() < Duration::from_millis(1000), "so is a tag: {:?}", asked.elapsed());
    assert_eq!(relay.view().standing, Standing::In);
}

#[tokio::test]
async fn a_tag_that_a_late_cache_knows_is_served_once_it_has_tried_the_upstream_in_vain() {
    let (content, tried) = (b"{}", Arc::new(Notify::new()));
    let head = format!("content-type: application/x.y\r\ndocker-content-digest: {}\r\n", digest_of(content));
    let wait = tried.clone();
    let cache = cache(move |asked| {
        match (asked.contains("/manifests/known"), asked.contains("max-stale"), asked.contains("only-if-cached")) {
            (true, true, _) => {
                Reply { head: format!("HTTP/1.1 200 OK\r\n{head}content-length: 2\r\n\r\n"), steps: vec![] }
            }
            (true, false, false) => {
                let answer = format!("HTTP/1.1 200 OK\r\n{head}content-length: 2\r\n\r\n{{}}");
                Reply { head: String::new(), steps: vec![Step::Wait(wait.clone()), Step::Send(answer.into_bytes())] }
            }
            (_, _, true) => Reply::new(504, "", b""),
            _ => Reply { head: String::new(), steps: vec![Step::Stall] },
        }
    })
    .await;
    let relay = Running::before(&cache).await;
    assert_eq!(relay.get(&blob("x")).await.status, 503);
    let known = manifest("known");
    let (answer, ()) = tokio::join!(relay.get(&known), async {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        tried.notify_one();
    });
    assert_eq!((answer.status, answer.body.as_slice()), (200, content.as_slice()));
    let asked = Instant::now();
    assert_eq!(relay.get(&manifest("unknown")).await.status, 503);
    assert!(asked.elapsed() < Duration::from_millis(1000), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn who_fails_late_is_asked_for_what_he_has() {
    for end in [refusal, || Step::Close] {
        let late = move || vec![Step::Pause(Duration::from_millis(1200)), end()];
        let cache = cache(move |head| match head.contains("only-if-cached") {
            true => Reply::new(504, "", b""),
            false => Reply { head: String::new(), steps: late() },
        })
        .await;
        let relay = Running::before(&cache).await;
        for (name, bounds) in [("x", 1100..2000), ("y", 0..1000)] {
            let asked = Instant::now();
            assert_eq!(relay.get(&blob(name)).await.status, 503);
            assert!(bounds.contains(&asked.elapsed().as_millis()), "{name}: {:?}", asked.elapsed());
        }
    }
}

#[tokio::test]
async fn an_upstream_that_stalls_in_bodies_keeps_small_blobs_late_and_not_one_alone() {
    static LARGE: [u8; 100_000] = [7; 100_000];
    let cache = cache(|head| match (head.contains("only-if-cached"), head.contains(&digest_of(&LARGE))) {
        (true, _) => Reply::new(504, "", b""),
        // A cache has all of a small blob before it sends headers.
        (false, false) => Reply { head: String::new(), steps: vec![Step::Stall] },
        (false, true) => Reply::steps(LARGE.len(), vec![Step::Send(LARGE[..50_000].to_vec()), Step::Stall]),
    })
    .await;
    let relay = Running::before(&cache).await;
    for path in [blob("small"), blob_of(&LARGE)] {
        assert_eq!(relay.get(&path).await.status, 503);
    }
    let asked = cache.requests().len();
    skip(PAUSE).await;
    cache.until_requested(asked + 1).await;
    until_tried().await;
    relay.until(|view| view.standing == Standing::In).await;
    let began = Instant::now();
    for path in [blob("other"), blob_of(&LARGE)] {
        assert_eq!(relay.get(&path).await.status, 503);
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}, asked for {:?}", began.elapsed(), cache.requests());
}

#[tokio::test]
async fn who_fails_over_what_he_has_as_well_is_soon_asked_for_nothing() {
    let cases = [
        (1200, refusal as fn() -> Step, blob("x")),
        (1200, || Step::Close, blob("x")),
        (1200, refusal, manifest("latest")),
        (700, refusal, blob("x")),
    ];
    for (pause, end, path) in cases {
        let late = move || vec![Step::Pause(Duration::from_millis(pause)), end()];
        let cache = cache(move |_| Reply { head: String::new(), steps: late() }).await;
        let relay = Running::before(&cache).await;
        while relay.view().trouble.is_none() {
            assert_eq!(relay.get(&path).await.status, 503);
            assert!(cache.requests().len() <= 4, "{pause} ms: {path} is asked for again and again");
        }
        let asked = cache.requests().len();
        assert_eq!(relay.get(&path).await.status, 503);
        assert_eq!(cache.requests().len(), asked, "{pause} ms: {path}");
        assert!(relay.view().trouble.is_some_and(|said| said.contains("answers nothing")));
    }
}

#[tokio::test]
async fn what_a_cache_has_is_served_while_it_waits_for_the_upstream_without_end() {
    let held = blob("held");
    let cache = cache(move |head| match (head.contains(&held), head.contains("only-if-cached")) {
        (true, _) => Reply::new(200, "Cache-Status: breakwater; hit\r\n", b"held"),
        (false, true) => Reply::new(504, "", b""),
        (false, false) => Reply { head: String::new(), steps: vec![Step::Stall] },
    })
    .await;
    let relay = Running::before(&cache).await;
    assert_eq!(relay.get(&blob("x")).await.status, 503);
    assert_eq!(relay.get(&blob("held")).await.body, b"held");
    assert_eq!(relay.view().standing, Standing::In);
}

#[tokio::test]
async fn a_cache_that_answers_probes_and_nothing_else_is_found_out() {
    let cache = cache(|_| Reply { head: String::new(), steps: vec![Step::Stall] }).await;
    let relay = Running::before(&cache).await;
    let asked = Instant::now();
    assert_eq!(relay.get(&manifest("latest")).await.status, 503);
    assert!(asked.elapsed() < Duration::from_millis(3900), "{:?}", asked.elapsed());
    relay.until(|view| view.standing == Standing::Out).await;
    let asked = Instant::now();
    assert_eq!(relay.get(&blob("x")).await.status, 503);
    assert!(asked.elapsed() < Duration::from_millis(1000), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn two_pods_that_hold_everything_back_share_the_time_and_the_blame() {
    let cache = holding_back().await;
    let second = cache.replica().await;
    let relay = Running::bare().await;
    relay.route(&[cache.address, second.address], &cache.ca);
    relay.until_all_in().await;
    for bounds in [4900..6000, 0..1000] {
        let asked = Instant::now();
        assert_eq!(relay.get(&manifest("latest")).await.status, 503);
        assert!(bounds.contains(&asked.elapsed().as_millis()), "{:?}", asked.elapsed());
    }
}

#[tokio::test]
async fn all_pods_that_hang_are_found_out_by_one_request() {
    let cache = cache(|_| Reply { head: String::new(), steps: vec![Step::Stall] }).await;
    let (second, third) = (cache.replica().await, cache.replica().await);
    let relay = Running::bare().await;
    relay.route(&[cache.address, second.address, third.address], &cache.ca);
    relay.until_all_in().await;
    for bounds in [2000..4000, 0..1000] {
        let asked = Instant::now();
        assert_eq!(relay.get(&manifest("latest")).await.status, 503);
        assert!(bounds.contains(&asked.elapsed().as_millis()), "{:?}", asked.elapsed());
    }
    assert_eq!(relay.view().answering, 0);
}

#[tokio::test]
async fn all_pods_that_fail_late_over_everything_are_found_out_by_one_request() {
    let late = move || vec![Step::Pause(Duration::from_millis(1900)), refusal()];
    let cache = cache(move |_| Reply { head: String::new(), steps: late() }).await;
    let second = cache.replica().await;
    let relay = Running::bare().await;
    relay.route(&[cache.address, second.address], &cache.ca);
    relay.until_all_in().await;
    for bounds in [1900..3700, 0..1000] {
        let asked = Instant::now();
        assert_eq!(relay.get(&manifest("latest")).await.status, 503);
        assert!(bounds.contains(&asked.elapsed().as_millis()), "{:?}", asked.elapsed());
    }
    assert_eq!(relay.view().answering, 0);
}

#[tokio::test]
async fn a_manifest_that_hardly_comes_is_waited_for_once() {
    let content = [7; 4096];
    let digest = digest_of(&content);
    let head = format!("HTTP/1.1 200 OK\r\ndocker-content-digest: {digest}\r\ncontent-length: 4096\r\n\r\n");
    let cache = cache(move |_| Reply { head: head.clone(), steps: vec![Step::Drip] }).await;
    let relay = Running::before(&cache).await;
    for bounds in [2000..3500, 0..1000] {
        let asked = Instant::now();
        assert_eq!(relay.get(&manifest(&digest)).await.status, 503);
        assert!(bounds.contains(&asked.elapsed().as_millis()), "{:?}", asked.elapsed());
    }
}

#[tokio::test]
async fn who_waits_for_others_blames_nobody() {
    let unbounded = format!("docker-content-digest: {}\r\ntransfer-encoding: chunked\r\n\r\n", digest_of(b"large"));
    let head = format!("HTTP/1.1 200 OK\r\n{unbounded}");
    let stalling = cache(move |_| Reply { head: head.clone(), steps: vec![Step::Stall] }).await;
    let well = format!("content-type: application/x.y\r\ndocker-content-digest: {}\r\n", digest_of(b"{}"));
    let first = cache(move |_| Reply::new(200, &well, b"{}")).await;
    let second = first.replica().await;
    let relay = Running::bare().await;
    let pods = [first.address, second.address];
    relay.routes(&[("docker.io", &[stalling.address], &stalling.ca), ("ghcr.io", &pods, &first.ca)]);
    relay.until(|_| relay.relay.views().values().all(|view| view.answering == view.pods)).await;

    let (tag, there) = (manifest("latest"), |path: String| path.replace("docker.io", "ghcr.io"));
    assert_eq!(relay.get(&there(tag.clone())).await.status, 200);
    let (preferred, other) = if first.requests().len() == 1 { (&first, &second) } else { (&second, &first) };
    // As much as may be verified at once, and more time than a Pod is given that has another beside it.
    let crowd = join_all((0..4).map(|_| relay.get(&tag)));
    let (_, ()) = tokio::join!(crowd, async {
        while stalling.requests().len() < 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        let waited = Instant::now();
        relay.get(&there(tag.clone())).await;
        assert!(waited.elapsed() > Duration::from_secs(3), "{:?}: there was room", waited.elapsed());
    });
    let asked = |pod: &Cache| pod.requests().iter().filter(|head| !head.contains("only-if-cached")).count();
    assert_eq!((asked(preferred), asked(other)), (2, 1), "both were asked");
    assert_eq!(relay.get(&there(blob("{}"))).await.status, 200);
    assert_eq!((asked(preferred), asked(other)), (3, 1), "{:?}", other.requests());
}

#[tokio::test]
async fn connections_that_lead_nowhere_any_more_cost_a_second_once() {
    let cache = cache(|_| Reply::new(200, HIT, b"well")).await;
    let relay = Running::before(&cache).await;
    let (relay, path) = (&relay, blob("well"));
    let pull = async || {
        let began = Instant::now();
        let answers = join_all((0..3).map(|_| relay.get(&path))).await;
        assert!(answers.iter().all(|answer| answer.body == b"well"));
        began.elapsed()
    };
    pull().await;
    cache.lose_connections();
    let first = pull().await;
    cache.lose_connections();
    let later = pull().await;
    assert!(first < Duration::from_millis(1500) && later < Duration::from_millis(500), "{first:?}, {later:?}");
    assert_eq!(relay.view().standing, Standing::In);
}

#[tokio::test]
async fn an_upstream_that_takes_a_second_loses_no_connection() {
    let cold = blob("cold");
    for _ in 0..5 {
        let answers = Arc::new(Notify::new());
        let wait = answers.clone();
        let cache = cache(move |head| match head.contains(&digest_of(b"cold")) {
            true => {
                let Reply { head, mut steps } = Reply::new(200, "", b"cold");
                steps.splice(0..0, [Step::Wait(wait.clone()), Step::Send(head.into_bytes())]);
                Reply { head: String::new(), steps }
            }
            false => Reply::new(200, HIT, b"well"),
        })
        .await;
        let relay = Running::before(&cache).await;
        assert_eq!(relay.get(&blob("well")).await.status, 200);
        let asked = cache.requests().len();
        let (answer, ()) = tokio::join!(relay.get(&cold), async {
            cache.until_requested(asked + 2).await;
            // Both are on record before they wait.
            tokio::time::sleep(Duration::from_millis(100)).await;
            answers.notify_waiters();
        });
        assert_eq!(answer.body, b"cold");
        let connections = cache.connections();
        for _ in 0..5 {
            relay.get(&blob("well")).await;
        }
        assert!(cache.connections() - connections <= 2, "{} more", cache.connections() - connections);
    }
}

#[tokio::test]
async fn who_takes_a_little_too_long_each_time_is_asked_after_who_does_not() {
    static LAYER: [u8; 100_000] = [7; 100_000];
    let late_headers = || {
        let Reply { head, mut steps } = Reply::new(200, HIT, &LAYER);
        steps.splice(0..0, [Step::Pause(Duration::from_millis(450)), Step::Send(head.into_bytes())]);
        Reply { head: String::new(), steps }
    };
    let late_body = || {
        let pause = Step::Pause(Duration::from_millis(700));
        let steps = vec![Step::Send(LAYER[..99].to_vec()), pause, Step::Send(LAYER[99..].to_vec())];
        Reply::steps(LAYER.len(), steps).with(HIT)
    };
    let faults: [fn() -> Reply; 2] = [late_headers, late_body];
    for fault in faults {
        let gray = cache(move |_| fault()).await;
        let well = gray.beside(|_| Reply::new(200, HIT, &LAYER)).await;
        let relay = Running::bare().await;
        relay.route(&[gray.address, well.address], &gray.ca);
        relay.until_all_in().await;
        let pull = async || {
            for repository in "bcdefghijklmnopq".chars() {
                let path = blob_of(&LAYER).replace("library/a", &format!("library/{repository}"));
                assert_eq!(relay.get(&path).await.body, LAYER);
            }
        };
        pull().await;
        let asked = gray.requests().len();
        assert!((2..8).contains(&asked), "asked {asked} times");
        pull().await;
        assert_eq!(gray.requests().len(), asked);
    }
}
