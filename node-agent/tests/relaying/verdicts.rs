//! The relay after a trial: what it shows of a Pod, by what there is to compare with.

use super::misbehaviour::HIT;
use super::one_pod::{blob, blob_of, cache, digest_of, manifest};
use super::support::{Cache, Reply, Running, Step};
use super::trials::{BREATH, LONG, PAUSE, skip, until_tried};
use breakwater_node_agent::relay::Standing;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const GONE: &str = "Cache-Status: breakwater; fwd=miss\r\n";
static BAD: [u8; 1 << 20] = [8; 1 << 20];
static OTHER: [u8; 1 << 20] = [5; 1 << 20];

/// A Pod that plays `ill` until it is mended, and `well` from then on.
async fn until_mended(
    ill: impl Fn(&str) -> Reply + Send + Sync + 'static,
    well: impl Fn(&str) -> Reply + Send + Sync + 'static,
) -> (Cache, Running, Arc<AtomicBool>) {
    let is_mended = Arc::new(AtomicBool::new(false));
    let mended = is_mended.clone();
    let cache = cache(move |head| if mended.load(Ordering::SeqCst) { well(head) } else { ill(head) }).await;
    let relay = Running::before(&cache).await;
    (cache, relay, is_mended)
}

/// Lets pauses go by until this is served.
async fn until_served(cache: &Cache, relay: &Running, path: &str) {
    let began = Instant::now();
    while relay.get(path).await.status != 200 {
        assert!(began.elapsed() < LONG, "{:?}, asked for {:?}", relay.view(), cache.requests().len());
        skip(PAUSE).await;
        tokio::time::sleep(BREATH).await;
    }
}

#[tokio::test]
async fn what_stalled_and_is_gone_keeps_nobody_from_other_content() {
    let fetches = |head: &str| match head.contains("only-if-cached") {
        true => Reply::new(504, GONE, b""),
        false => Reply::new(200, GONE, b"cold"),
    };
    let stalls = move |head: &str| match head.contains(&digest_of(&BAD)) {
        true => Reply::steps(BAD.len(), vec![Step::Send(BAD[..100_000].to_vec()), Step::Stall]).with(HIT),
        false => fetches(head),
    };
    let is_gone = move |head: &str| match head.contains(&digest_of(&BAD)) {
        true => Reply::new(404, GONE, b""),
        false => fetches(head),
    };
    let (cache, relay, is_mended) = until_mended(stalls, is_gone).await;
    relay.get(&blob_of(&BAD)).await;
    relay.until(|view| view.standing == Standing::Out).await;
    is_mended.store(true, Ordering::SeqCst);
    until_served(&cache, &relay, &blob("cold")).await;
}

#[tokio::test]
async fn who_has_a_lie_no_more_is_trusted_once_other_content_comes_right() {
    let lies = |_: &str| Reply::new(200, HIT, &OTHER);
    let is_gone = |head: &str| match head.contains(&digest_of(&BAD)) {
        true => Reply::new(404, GONE, b""),
        false => Reply::new(200, HIT, &OTHER),
    };
    let (cache, relay, is_mended) = until_mended(lies, is_gone).await;
    relay.get(&blob_of(&BAD)).await;
    relay.until(|view| view.standing == Standing::Out).await;
    is_mended.store(true, Ordering::SeqCst);
    let asked = cache.requests().len();
    skip(PAUSE).await;
    cache.until_requested(asked + 1).await;
    until_tried().await;
    assert_eq!(relay.view().standing, Standing::Out, "nothing right came yet");
    until_served(&cache, &relay, &blob_of(&OTHER)).await;
}

#[tokio::test]
async fn a_manifest_that_came_well_is_something_to_compare_with() {
    let [good, bad] = [b"{}".as_slice(), b"{ }"].map(digest_of);
    let stated = |digest: &str| format!("{HIT}content-type: application/x.y\r\ndocker-content-digest: {digest}\r\n");
    let (of_good, of_bad, is_bad) = (stated(&good), stated(&bad), bad.clone());
    let cache = cache(move |head| match head.contains(&is_bad) {
        true => Reply::steps(3, vec![Step::Send(b"{".to_vec()), Step::Stall]).with(&of_bad),
        false => Reply::new(200, &of_good, b"{}"),
    })
    .await;
    let relay = Running::before(&cache).await;
    assert_eq!(relay.get(&manifest(&good)).await.status, 200);
    assert_eq!(relay.get(&manifest(&bad)).await.status, 503);
    relay.until(|view| view.standing == Standing::Out).await;
    let asked = cache.requests().len();
    skip(PAUSE).await;
    cache.until_requested(asked + 1).await;
    until_tried().await;
    relay.until(|view| view.standing == Standing::In).await;
    assert_eq!(relay.get(&manifest(&good)).await.status, 200);
}
