//! The relay against a cache that answers and then stalls, drips or sends something else: what it costs, and what is refused then.

use super::one_pod::{blob, blob_of, cache};
use super::support::{Cache, End, Reply, Running, Step, get, read};
use breakwater_node_agent::relay::Standing;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

pub(crate) const HIT: &str = "Cache-Status: breakwater; hit\r\n";

/// Stalls or drips where the name says so, for bodies of this length, after this much; other content is at hand, or has to be
/// fetched.
async fn slow_cache(length: usize, first: usize, step: Step) -> Cache {
    cache(move |head| match (head.contains(&blob("slow")), head.contains(&blob("fetched"))) {
        (true, _) => Reply::steps(length, vec![Step::Send(vec![7; first]), step.clone()]),
        _ if head.contains(&blob("drips")) => Reply::steps(length, vec![step.clone()]).with(HIT),
        (_, fetched) => Reply::new(200, if fetched { "" } else { HIT }, b"well"),
    })
    .await
}

/// After this many seconds the body is cut; from then on, content has to be at hand.
async fn check_slow(relay: &Running, seconds: u64) {
    let asked = Instant::now();
    let answer = relay.get(&blob("slow")).await;
    assert!((seconds..seconds + 3).contains(&asked.elapsed().as_secs()), "{:?}", asked.elapsed());
    let is_cut = answer.status == 200 && answer.end == End::Fin && !answer.body.is_empty();
    assert!(is_cut || answer.status == 503, "{answer:?}");
    let asked = Instant::now();
    assert_eq!(relay.get(&blob("fetched")).await.status, 503, "the next may be as slow");
    assert_eq!(relay.get(&blob("well")).await.status, 200, "an upstream that stalls keeps nobody from what is cached");
    assert_eq!(relay.get(&blob("slow")).await.status, 503, "the runtime resumes from the upstream");
    assert!(asked.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_body_that_stalls_is_cut_after_fifteen_seconds_and_a_small_one_after_two() {
    for (length, first, seconds) in [(1 << 20, 100_000, 15), (8, 4, 2)] {
        let cache = slow_cache(length, first, Step::Stall).await;
        check_slow(&Running::before(&cache).await, seconds).await;
    }
}

#[tokio::test]
async fn where_there_is_no_other_way_nothing_is_refused() {
    static LARGE: [u8; 100_000] = [6; 100_000];
    let cache = cache(|head| match ["slow", "drips", "fetched"].into_iter().find(|name| head.contains(&blob(name))) {
        Some("fetched") => Reply::new(200, "", b"fetched"),
        Some(name) => Reply::steps(8, vec![Step::Stall]).with(if name == "slow" { "" } else { HIT }),
        None if head.contains(&blob_of(&LARGE)) => Reply::new(200, HIT, &LARGE),
        None => Reply::new(200, HIT, b"well"),
    })
    .await;
    let relay = Running::bare().await;
    relay.route_only_way(&[cache.address], &cache.ca);
    relay.until_all_in().await;
    for name in ["slow", "drips", "slow", "drips"] {
        let asked = cache.requests().len();
        assert_eq!(relay.get(&blob(name)).await.status, 503);
        assert_eq!(cache.requests().len(), asked + 1, "it may be well by now");
        for name in ["fetched", "well"] {
            assert_eq!(relay.get(&blob(name)).await.status, 200, "{name}");
        }
    }
    relay.until(|view| view.uselessness.is_some() && view.standing == Standing::In).await;
    assert_eq!(relay.get(&blob_of(&LARGE)).await.body, LARGE);
    relay.until(|view| view.uselessness.is_none()).await;
}

#[tokio::test]
async fn a_body_is_not_waited_for_from_a_pod_that_is_gone() {
    for is_removed in [false, true] {
        let cache = slow_cache(1 << 20, 100_000, Step::Stall).await;
        let relay = Running::before(&cache).await;
        let asked = Instant::now();
        let mut stream = TcpStream::connect(relay.address).await.unwrap();
        stream.write_all(get(&blob("slow")).as_bytes()).await.unwrap();
        // A Pod that goes before its headers came is no Pod whose body is waited for.
        stream.readable().await.unwrap();
        let mut successor = cache.replica().await;
        successor.die();
        if is_removed {
            relay.route(&[successor.address], &cache.ca);
        } else {
            cache.freeze(true);
        }
        let answer = read(&mut stream).await;
        assert_eq!((answer.status, answer.end), (200, End::Fin), "the runtime resumes");
        assert!(asked.elapsed() < Duration::from_secs(9), "{:?}, removed: {is_removed}", asked.elapsed());
    }
}

#[tokio::test]
async fn a_machine_that_stands_still_is_not_the_caches_fault() {
    let body = vec![7; 1 << 20];
    let (path, go_on) = (blob_of(&body), Arc::new(Notify::new()));
    let (first, rest) = body.split_at(100_000);
    let steps = vec![Step::Send(first.to_vec()), Step::Wait(go_on.clone()), Step::Send(rest.to_vec())];
    let reply = Reply::steps(body.len(), steps).with(HIT);
    let cache = cache(move |_| reply.clone()).await;
    let relay = Running::before(&cache).await;
    let mut stream = TcpStream::connect(relay.address).await.unwrap();
    stream.write_all(get(&path).as_bytes()).await.unwrap();
    stream.readable().await.unwrap();
    // The cache, the relay and the runtime are all on this thread: longer than any limit nobody gets to run.
    std::thread::sleep(Duration::from_secs(17));
    tokio::time::sleep(Duration::from_millis(100)).await;
    go_on.notify_one();
    let answer = read(&mut stream).await;
    assert_eq!((answer.status, answer.body.len()), (200, body.len()));
}

#[tokio::test]
async fn a_body_that_drips_is_cut_after_ten_seconds() {
    let cache = slow_cache(1 << 20, 4, Step::Drip).await;
    check_slow(&Running::before(&cache).await, 10).await;
}

#[tokio::test]
async fn a_body_that_drips_from_every_pod_costs_no_more_than_a_stall() {
    let one = slow_cache(1 << 20, 4, Step::Drip).await;
    let other = one.replica().await;
    let relay = Running::bare().await;
    relay.route(&[one.address, other.address], &one.ca);
    relay.until_all_in().await;
    // What the caches have on their disks drips as well, so that neither is asked for anything else meanwhile.
    let (fetched, hit) = (blob("slow"), blob("drips"));
    let asked = Instant::now();
    tokio::join!(relay.get(&fetched), relay.get(&hit));
    assert!(asked.elapsed() < Duration::from_secs(14), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_cache_whose_bodies_end_too_early_is_found_out() {
    for end in [Step::Close, Step::Reset] {
        let body = vec![7; 1 << 20];
        let path = blob_of(&body);
        let cache = cache(move |head| half(head, body.len(), end.clone())).await;
        let relay = Running::before(&cache).await;
        let answer = relay.get(&path).await;
        assert_eq!((answer.status, answer.end), (200, End::Fin));
        assert!(cache.requests().len() <= 5, "{}", cache.requests().len());
        assert_eq!(relay.get(&blob("another")).await.status, 503);
        relay.until(|view| view.standing == Standing::Out).await;
    }
}

#[tokio::test]
async fn a_cache_that_breaks_off_and_does_not_go_on_where_it_was_is_found_out() {
    for pods in [1, 2] {
        let one = cache(|_| half("", 1 << 20, Step::Close)).await;
        let other = one.replica().await;
        let relay = Running::bare().await;
        relay.route(&[one.address, other.address][..pods], &one.ca);
        relay.until_all_in().await;
        for (pulls, name) in ["a", "b"].into_iter().enumerate().take(pods) {
            assert_eq!(relay.get(&blob(name)).await.end, End::Fin);
            relay.until(|view| view.answering < view.pods - pulls).await;
        }
        relay.until(|view| view.standing == Standing::Out).await;
    }
}

/// The first half of what is asked for.
pub(crate) fn half(head: &str, length: usize, end: Step) -> Reply {
    let head = head.to_ascii_lowercase();
    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.split_once('-'));
    let start: usize = range.map_or(0, |(start, _)| start.parse().unwrap());
    let mut reply = Reply::steps(length - start, vec![Step::Send(vec![7; (length - start) / 2]), end]).with(HIT);
    if range.is_some() {
        let stated = format!("\r\ncontent-range: bytes {start}-{}/{length}\r\n", length - 1);
        reply.head = reply.head.replacen("200 OK\r\n", &format!("206 Partial Content{stated}"), 1);
    }
    reply
}

#[tokio::test]
async fn a_cache_that_sends_wrong_blobs_is_found_out() {
    let large = vec![7; 1 << 20];
    let path = blob_of(&large);
    let wrong = [&large[1..], &[8]].concat();
    for (path, body, status) in [(blob("config"), b"other".to_vec(), 503), (path, wrong, 200)] {
        let cache = cache(move |_| Reply::new(200, "", &body)).await;
        let relay = Running::before(&cache).await;
        assert_eq!(relay.get(&path).await.status, status, "what is small does not go out");
        relay.until(|view| view.standing == Standing::Out).await;
        assert_eq!(relay.get(&path).await.status, 503);
    }
}

#[tokio::test]
async fn a_cache_that_breaks_off_and_goes_on_with_other_bytes_is_found_out() {
    let body = vec![7; 1 << 20];
    let path = blob_of(&body);
    let cache = cache(move |head| {
        let mut reply = half(head, body.len(), Step::Close);
        if reply.head.contains("206") {
            reply.steps = vec![Step::Send(vec![8; body.len() / 2])];
        }
        reply
    })
    .await;
    let relay = Running::before(&cache).await;
    assert_eq!(relay.get(&path).await.body.len(), 1 << 20);
    relay.until(|view| view.standing == Standing::Out).await;
    assert_eq!(relay.get(&path).await.status, 503);
}

#[tokio::test]
async fn a_blob_without_a_length_is_left_to_the_upstream() {
    for (headers, body) in
        [("transfer-encoding: chunked\r\n", "4\r\nwell\r\n0\r\n\r\n"), ("connection: close\r\n", "well")]
    {
        let head = format!("HTTP/1.1 200 OK\r\n{HIT}{headers}\r\n");
        let steps = vec![Step::Send(body.as_bytes().to_vec()), Step::Close];
        let cache = cache(move |_| Reply { head: head.clone(), steps: steps.clone() }).await;
        let relay = Running::before(&cache).await;
        assert_eq!(relay.get(&blob("well")).await.status, 503, "its end would look like a break: {headers}");
    }
}
