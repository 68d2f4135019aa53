//! The relay against a cache that answers and then stalls, drips or sends something else: what it costs, and what is refused then.

use super::one_pod::{blob, cache, digest_of};
use super::support::{Cache, End, Reply, Running, Step};
use breakwater_node_agent::relay::Standing;
use std::time::{Duration, Instant};

const HIT: &str = "Cache-Status: breakwater; hit\r\n";

/// Stalls or drips where the name says so, for bodies of this length; other content is at hand, or has to be fetched.
async fn slow_cache(length: usize, step: Step) -> Cache {
    cache(move |head| match (head.contains(&blob("slow")), head.contains(&blob("fetched"))) {
        (true, _) => Reply::steps(length, vec![Step::Send(b"half".to_vec()), step.clone()]),
        (_, fetched) => Reply::new(200, if fetched { "" } else { HIT }, b"well"),
    })
    .await
}

/// After this many seconds the body is cut; from then on, content has to be at hand.
async fn check_slow(relay: &Running, seconds: u64) {
    let asked = Instant::now();
    let answer = relay.get(&blob("slow")).await;
    assert!((seconds..seconds + 3).contains(&asked.elapsed().as_secs()), "{:?}", asked.elapsed());
    let is_cut = answer.status == 200 && answer.end == End::Fin && answer.body.starts_with(b"half");
    assert!(is_cut || answer.status == 503, "{answer:?}");
    let asked = Instant::now();
    assert_eq!(relay.get(&blob("fetched")).await.status, 503, "the next may be as slow");
    assert_eq!(relay.get(&blob("well")).await.status, 200, "an upstream that stalls keeps nobody from what is cached");
    assert_eq!(relay.get(&blob("slow")).await.status, 503, "the runtime resumes from the upstream");
    assert!(asked.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_body_that_stalls_is_cut_after_fifteen_seconds_and_a_small_one_after_five() {
    for (length, seconds) in [(1 << 20, 15), (8, 5)] {
        let cache = slow_cache(length, Step::Stall).await;
        check_slow(&Running::before(&cache).await, seconds).await;
    }
}

#[tokio::test]
async fn a_body_that_drips_is_cut_as_one_that_stalls() {
    let cache = slow_cache(1 << 20, Step::Drip).await;
    check_slow(&Running::before(&cache).await, 15).await;
}

#[tokio::test]
async fn a_cache_that_sends_wrong_blobs_is_found_out() {
    let large = vec![7; 1 << 20];
    let path = format!("/v2/library/a/blobs/{}?ns=docker.io", digest_of(&large));
    let wrong = [&large[1..], &[8]].concat();
    for (path, body, status) in [(blob("config"), b"other".to_vec(), 503), (path, wrong, 200)] {
        let cache = cache(move |_| Reply::new(200, "", &body)).await;
        let relay = Running::before(&cache).await;
        assert_eq!(relay.get(&path).await.status, status, "what is small does not go out");
        relay.until(|view| view.standing == Standing::Out).await;
        assert_eq!(relay.get(&path).await.status, 503);
    }
}
