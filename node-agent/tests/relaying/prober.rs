//! The relay's prober, with no request to help it: how soon it finds out, what it takes for a living cache, and what it costs one.

use super::one_pod::cache;
use super::support::{Cache, Reply, Running, Step};
use breakwater_node_agent::relay::Standing;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

/// Content is never asked for here: answers the n-th probe as told.
async fn probed(answer: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Cache {
    let asked = AtomicUsize::new(0);
    Cache::start(move |_| answer(asked.fetch_add(1, Ordering::SeqCst))).await
}

fn well() -> Reply {
    Reply::new(200, "", b"{}")
}

#[tokio::test]
async fn a_cache_that_hangs_or_is_killed_is_found_out_without_a_request() {
    for freeze in [true, false] {
        let mut cache = cache(|_| Reply::new(200, "", b"x")).await;
        let relay = Running::before(&cache).await;
        // Fresh connections have become rare.
        cache.until_probed(10).await;
        assert!(cache.connections() < 8, "{} connections", cache.connections());
        match freeze {
            true => cache.freeze(true),
            false => cache.die(),
        }
        let ill = Instant::now();
        relay.until(|view| view.standing == Standing::Out).await;
        // It is 1.8 s at most, and 0.5 s; more is this machine's.
        assert!(ill.elapsed() < Duration::from_secs(if freeze { 3 } else { 2 }), "{freeze} {:?}", ill.elapsed());
    }
}

#[tokio::test]
async fn a_busy_cache_stays_in_and_is_not_pressed() {
    let go_on = Arc::new(Notify::new());
    let (is_busy, waits) = (Arc::new(AtomicBool::new(false)), go_on.clone());
    let busy = is_busy.clone();
    let cache = probed(move |_| match busy.load(Ordering::SeqCst) {
        true => Reply { head: String::new(), steps: vec![Step::Wait(waits.clone()), Step::Send(OK.to_vec())] },
        false => well(),
    })
    .await;
    let relay = Running::before(&cache).await;
    cache.until_probed(3).await;
    is_busy.store(true, Ordering::SeqCst);
    let (before, mut late) = (cache.connections(), 0);
    while late < 6 {
        let probes = cache.probes();
        cache.until_probed(probes + 1).await;
        // Late enough for a hedge each time, if that did not learn.
        tokio::time::sleep(Duration::from_millis(450)).await;
        go_on.notify_waiters();
        late += 1;
    }
    assert_eq!((relay.view().standing, relay.view().trouble), (Standing::In, None));
    // The first late answer is hedged, and a fresh connection is due at most once.
    let fresh = cache.connections() - before;
    assert!(fresh <= 4, "{fresh} fresh connections for {late} late answers");
}

#[tokio::test]
async fn a_kept_connection_that_leads_nowhere_is_replaced() {
    let cache = probed(|asked| match asked {
        3 | 6 => Reply { head: String::new(), steps: vec![Step::Stall] },
        _ => well(),
    })
    .await;
    let relay = Running::before(&cache).await;
    cache.until_probed(10).await;
    assert_eq!((relay.view().standing, relay.view().trouble), (Standing::In, None));
}

#[tokio::test]
async fn a_cache_that_keeps_no_connection_is_not_asked_for_one_all_the_time() {
    let cache = probed(|_| {
        let mut reply = well();
        reply.head = reply.head.replacen("\r\n", "\r\nconnection: close\r\n", 1);
        reply.steps.push(Step::Close);
        reply
    })
    .await;
    let (began, relay) = (Instant::now(), Running::before(&cache).await);
    cache.until_probed(6).await;
    // Asked all the time it would be 1.2 s.
    assert!(began.elapsed() > Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!((relay.view().standing, relay.view().trouble), (Standing::In, None));
}

#[tokio::test]
async fn an_answer_without_an_end_is_one() {
    let cache = probed(|_| Reply::steps(9, vec![Step::Send(b"{".to_vec()), Step::Stall])).await;
    let relay = Running::before(&cache).await;
    cache.until_probed(4).await;
    assert_eq!((relay.view().standing, relay.view().trouble), (Standing::In, None));
}

#[tokio::test]
async fn what_changes_elsewhere_costs_a_cache_no_connection() {
    let (cache, other) = (cache(|_| Reply::new(200, "", b"x")).await, cache(|_| Reply::new(200, "", b"y")).await);
    let relay = Running::before(&cache).await;
    cache.until_probed(3).await;
    let before = cache.connections();
    for pods in [&[cache.address, other.address][..], &[cache.address]] {
        relay.route(pods, &cache.ca);
        cache.until_probed(cache.probes() + 2).await;
    }
    assert_eq!(cache.connections(), before);
    // Another CA is another matter.
    relay.route(&[cache.address], &other.ca);
    relay.until(|view| view.standing != Standing::In).await;
}
