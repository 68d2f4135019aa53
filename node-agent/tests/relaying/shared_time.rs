//! The relay before Pods that share the time of one request: who is given none is asked all the same where there is some, and is
//! blamed for nothing.

use super::misbehaviour::HIT;
use super::one_pod::{blob, blob_of, cache, digest_of};
use super::support::{Cache, Reply, Running, Step};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MISS: &str = "Cache-Status: breakwater; fwd=miss\r\n";

fn silence() -> Reply {
    Reply { head: String::new(), steps: vec![Step::Stall] }
}

/// Waits for an upstream that is gone, and says at once what it has not.
fn holds_back(head: &str) -> Reply {
    if head.contains("only-if-cached") { Reply::new(504, MISS, b"") } else { silence() }
}

/// Makes the other Pods known one by one. As the ones before them are late by then, each that is new is asked last.
async fn one_by_one(relay: &Running, pods: &[&Cache]) {
    let addresses: Vec<_> = pods.iter().map(|pod| pod.address).collect();
    for known in 1..=addresses.len() {
        relay.route(&addresses[..known], &pods[0].ca);
        relay.until_all_in().await;
        assert_eq!(relay.get(&blob("cold")).await.status, 503);
    }
}

#[tokio::test]
async fn what_the_second_of_three_has_is_served_though_the_first_says_nothing() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let script = |pod: usize| {
        let order = order.clone();
        move |head: &str| {
            if head.starts_with("GET /v2/ ") {
                return Reply::new(200, "", b"{}");
            }
            let mut order = order.lock().unwrap();
            if head.contains(&digest_of(b"who is asked when")) {
                order.push(pod);
                return Reply::new(504, MISS, b"");
            }
            match order.iter().position(|asked| *asked == pod) {
                Some(0) => holds_back(head),
                Some(1) => Reply::new(200, HIT, b"held"),
                _ => Reply::new(504, MISS, b""),
            }
        }
    };
    let one = Cache::start(script(1)).await;
    let (two, three) = (one.beside(script(2)).await, one.beside(script(3)).await);
    let relay = Running::bare().await;
    relay.route(&[one.address, two.address, three.address], &one.ca);
    relay.until_all_in().await;
    assert_eq!(relay.get(&blob("who is asked when")).await.status, 503);
    assert_eq!(order.lock().unwrap().len(), 3);
    assert_eq!(relay.get(&blob("held")).await.body, b"held");
}

#[tokio::test]
async fn who_is_given_no_time_is_not_refused() {
    let one = cache(holds_back).await;
    let (two, three) = (one.replica().await, one.replica().await);
    let relay = Running::bare().await;
    one_by_one(&relay, &[&one, &two, &three]).await;
    assert_eq!(relay.view().answering, 3, "{:?}", relay.view());
}

#[tokio::test]
async fn who_is_given_no_time_is_not_refused_where_a_body_goes_on() {
    static LARGE: [u8; 1 << 20] = [7; 1 << 20];
    let times = AtomicUsize::new(0);
    let one = cache(move |head| {
        let is_first = head.contains(&digest_of(&LARGE))
            && !head.contains("only-if-cached")
            && times.fetch_add(1, Ordering::SeqCst) == 0;
        match is_first {
            true => Reply::steps(LARGE.len(), vec![Step::Send(LARGE[..100_000].to_vec()), Step::Close]),
            false => holds_back(head),
        }
    })
    .await;
    let (two, three) = (one.replica().await, one.replica().await);
    let relay = Running::bare().await;
    one_by_one(&relay, &[&one]).await;
    relay.route(&[one.address, two.address, three.address], &one.ca);
    relay.until_all_in().await;
    assert_eq!(relay.get(&blob_of(&LARGE)).await.status, 200);
    assert_eq!(relay.view().answering, 3, "{:?}", relay.view());
}

#[tokio::test]
async fn who_fetches_in_a_caches_time_is_not_late_because_another_died() {
    let one = cache(|head| match (head.contains("only-if-cached"), head.contains(&digest_of(b"slow"))) {
        (true, _) => Reply::new(504, MISS, b""),
        (false, true) => {
            let Reply { head, mut steps } = Reply::new(200, "", b"slow");
            steps.splice(0..0, [Step::Pause(Duration::from_millis(3600)), Step::Send(head.into_bytes())]);
            Reply { head: String::new(), steps }
        }
        (false, false) => Reply::new(200, "", b"well"),
    })
    .await;
    let two = one.replica().await;
    let relay = Running::bare().await;
    relay.route(&[one.address, two.address], &one.ca);
    relay.until_all_in().await;
    assert_eq!(relay.get(&blob("well")).await.status, 200);
    let first = if one.requests().is_empty() { &two } else { &one };
    first.freeze(true);
    relay.get(&blob("slow")).await;
    relay.until(|view| view.answering == 1).await;
    assert_eq!(relay.get(&blob("well")).await.status, 200);
}
