//! The relay before several Pods of one cache: what one fails at, another does, and the runtime sees one whole answer.

use super::one_pod::{blob_of, cache, digest_of};
use super::support::{Cache, End, Reply, Running, Step, get};
use breakwater_node_agent::relay::Standing;
use futures::future::join;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Too large to be read before it is passed on.
const BODY: &[u8] = &pattern();

const fn pattern() -> [u8; 80_000] {
    let (mut bytes, mut at) = ([0; 80_000], 0);
    while at < bytes.len() {
        bytes[at] = (at % 251) as u8;
        at += 1;
    }
    bytes
}

fn blob() -> String {
    blob_of(BODY)
}

/// The blob, or the part of it that is asked for.
fn content(head: &str) -> Reply {
    let range =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let Some((start, end)) = range.as_deref().and_then(|range| range.split_once('-')) else {
        return Reply::new(200, "Cache-Status: breakwater; hit\r\n", BODY);
    };
    let start: usize = start.parse().unwrap();
    let end = end.parse().unwrap_or(BODY.len() - 1);
    let stated = format!("Cache-Status: breakwater; hit\r\nContent-Range: bytes {start}-{end}/{}\r\n", BODY.len());
    Reply::new(206, &stated, &BODY[start..=end])
}

/// Two Pods that play this, and a relay before them.
async fn two(script: impl Fn(&str) -> Reply + Send + Sync + 'static) -> (Cache, Cache, Running) {
    let one = cache(script).await;
    let other = one.replica().await;
    let relay = Running::bare().await;
    relay.route(&[one.address, other.address], &one.ca);
    relay.until_all_in().await;
    (one, other, relay)
}

/// The same; whichever is asked first fails as told, once.
async fn pair(first: impl Fn(&str) -> Reply + Send + Sync + 'static) -> (Cache, Cache, Running) {
    let failed = AtomicBool::new(false);
    two(move |head| match failed.swap(true, Ordering::SeqCst) {
        false => first(head),
        true => content(head),
    })
    .await
}

/// Five bytes, then this, of the blob or of the part asked for.
fn breaks_off(head: &str, end: Step) -> Reply {
    let mut reply = content(head);
    let Step::Send(bytes) = reply.steps.remove(0) else { unreachable!() };
    reply.steps = vec![Step::Send(bytes[..5].to_vec()), end];
    reply
}

/// The same, as of a cache that had to fetch it.
fn missed(mut reply: Reply) -> Reply {
    reply.head = reply.head.replace("hit", "fwd=miss");
    reply
}

async fn check(relay: &Running, request: &str, expected: &[u8], within: Duration) {
    let asked = Instant::now();
    let answer = relay.ask(request).await;
    assert_eq!((answer.status < 300, answer.body.len(), answer.end), (true, expected.len(), End::Fin));
    assert!(answer.body == expected);
    assert!(asked.elapsed() < within, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_body_that_breaks_off_goes_on_from_another_pod() {
    for end in [Step::Close, Step::Reset] {
        let (one, other, relay) = pair(move |head| breaks_off(head, end.clone())).await;
        check(&relay, &get(&blob()), BODY, Duration::from_secs(3)).await;
        let mut requests = [one.requests(), other.requests()].concat();
        requests.retain(|head| head.to_ascii_lowercase().contains("range: bytes="));
        // A reset may take the header with it, and then the whole is asked for.
        assert!(requests.len() <= 1, "the rest was asked for once: {requests:?}");
        assert_eq!(relay.get(&blob()).await.status, 200, "what went on is not suspended");
    }
}

#[tokio::test]
async fn a_part_goes_on_where_it_broke_off() {
    let (_one, _other, relay) = pair(|head| breaks_off(head, Step::Close)).await;
    let request = get(&blob()).replacen("\r\n", "\r\nrange: bytes=3-14\r\n", 1);
    check(&relay, &request, &BODY[3..=14], Duration::from_secs(3)).await;
}

#[tokio::test]
async fn a_body_that_stalls_goes_on_from_another_pod() {
    // Upstream may be slow for a miss, so each of the two gets half of fifteen seconds.
    let (_one, _other, relay) = pair(|head| missed(breaks_off(head, Step::Stall))).await;
    check(&relay, &get(&blob()), BODY, Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_slow_hit_goes_on_from_another_pod() {
    let (_one, _other, relay) = pair(|head| breaks_off(head, Step::Stall)).await;
    check(&relay, &get(&blob()), BODY, Duration::from_secs(7)).await;
}

#[tokio::test]
async fn a_slow_hit_without_another_pod_is_cut_by_fin() {
    let cache = Cache::start(|head| match head.starts_with("GET /v2/ ") {
        true => Reply::new(200, "", b"{}"),
        false => breaks_off(head, Step::Stall),
    })
    .await;
    let relay = Running::before(&cache).await;
    let asked = Instant::now();
    let answer = relay.get(&blob()).await;
    assert_eq!((answer.status, answer.body.as_slice(), answer.end), (200, &BODY[..5], End::Fin));
    assert!((4900..7000).contains(&asked.elapsed().as_millis()), "{:?}", asked.elapsed());
    assert_eq!(relay.get(&blob()).await.status, 503, "the runtime resumes from the upstream");
}

#[tokio::test]
async fn the_pod_that_broke_off_is_asked_again_when_there_is_no_other() {
    let failed = Arc::new(AtomicBool::new(false));
    let cache = Cache::start(move |head| match head.starts_with("GET /v2/ ") {
        true => Reply::new(200, "", b"{}"),
        false if !failed.swap(true, Ordering::SeqCst) => breaks_off(head, Step::Close),
        false => content(head),
    })
    .await;
    let relay = Running::before(&cache).await;
    check(&relay, &get(&blob()), BODY, Duration::from_secs(3)).await;
}

/// The blob, but for its last byte.
fn wrong(_: &str) -> Reply {
    let mut body = BODY.to_vec();
    body[BODY.len() - 1] ^= 1;
    Reply::new(200, "Cache-Status: breakwater; hit\r\n", &body)
}

#[tokio::test]
async fn where_one_pod_lies_the_other_is_tried_before_it_is_asked() {
    let (one, other, relay) = pair(wrong).await;
    assert!(relay.get(&blob()).await.body != BODY);
    relay.until(|view| view.answering == 1).await;
    check(&relay, &get("/v2/library/a/tags/list?ns=docker.io"), BODY, Duration::from_secs(1)).await;
    let asked = Instant::now();
    while relay.get(&blob()).await.body != BODY {
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", relay.view());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!([one.requests(), other.requests()].concat().iter().any(|head| head.contains("only-if-cached")));
}

#[tokio::test]
async fn a_pull_waits_until_the_other_is_trusted_but_not_for_long() {
    static OTHER: [u8; 80_000] = [1; 80_000];
    for trial_takes in [Duration::from_millis(300), Duration::from_secs(60)] {
        let has_lied = AtomicBool::new(false);
        let (_one, _other, relay) = two(move |head| match has_lied.swap(true, Ordering::SeqCst) {
            false => wrong(head),
            true if head.contains(&digest_of(&OTHER)) => Reply::new(200, "Cache-Status: breakwater; hit\r\n", &OTHER),
            true => breaks_off(head, Step::Pause(trial_takes)),
        })
        .await;
        assert!(relay.get(&blob()).await.body != BODY);
        relay.until(|view| view.answering == 1).await;
        check(&relay, &get(&blob_of(&OTHER)), &OTHER, Duration::from_secs(3)).await;
    }
}

#[tokio::test]
async fn of_two_pods_that_lie_one_is_believed_once() {
    let (one, other, relay) = two(wrong).await;
    assert_eq!(relay.get(&blob()).await.status, 200);
    for other in ["b", "c", "d"] {
        let other = blob().replace(&digest_of(BODY), &digest_of(other.as_bytes()));
        assert_eq!(relay.get(&other).await.status, 503);
    }
    join(one.until_requested(1), other.until_requested(1)).await;
    relay.until(|view| view.standing == Standing::Out).await;
}

#[tokio::test]
async fn what_breaks_off_does_not_go_on_from_a_pod_whose_upstream_stalls() {
    let times = AtomicUsize::new(0);
    let (one, other, relay) = two(move |head| {
        missed(match times.fetch_add(1, Ordering::SeqCst) {
            0 => breaks_off(head, Step::Stall),
            2 => breaks_off(head, Step::Close),
            _ => content(head),
        })
    })
    .await;
    let asked = || [one.requests().len(), other.requests().len()];
    check(&relay, &get(&blob()), BODY, Duration::from_secs(10)).await;
    assert_eq!(asked(), [1, 1], "one stalled, and the other went on");
    check(&relay, &get(&blob()), BODY, Duration::from_secs(3)).await;
    let (most, least) = (asked().into_iter().max(), asked().into_iter().min());
    assert_eq!(
        (most, least),
        (Some(3), Some(2)),
        "who broke off is asked again, and what who stalled answers is not taken"
    );
}

#[tokio::test]
async fn an_answer_that_is_no_answer_is_asked_of_another_pod() {
    for status in [500, 503, 429, 401, 302, 206, 404] {
        let (_one, _other, relay) = pair(move |_| Reply::new(status, "", b"")).await;
        check(&relay, &get(&blob()), BODY, Duration::from_secs(2)).await;
    }
    let (one, other, relay) = pair(|_| Reply::new(404, "Cache-Status: breakwater; fwd=miss\r\n", b"")).await;
    assert_eq!(relay.get(&blob()).await.status, 404, "the cache has asked the upstream");
    assert_eq!(one.requests().len() + other.requests().len(), 1);
}

#[tokio::test]
async fn who_answers_nothing_of_use_is_asked_after_who_does() {
    for is_of_use in [true, false] {
        let useless = cache(|_| Reply::new(404, "", b"")).await;
        let other = useless.beside(move |head| if is_of_use { content(head) } else { Reply::new(404, "", b"") }).await;
        let relay = Running::bare().await;
        relay.route(&[useless.address, other.address], &useless.ca);
        relay.until_all_in().await;
        let pull = async || {
            for repository in "bcdefghijklmnopq".chars() {
                let path = blob().replace("library/a", &format!("library/{repository}"));
                assert_eq!(relay.get(&path).await.status, if is_of_use { 200 } else { 404 });
            }
        };
        pull().await;
        let asked = useless.requests().len();
        assert!(asked == 5 || !is_of_use, "asked {asked} times");
        pull().await;
        assert!(useless.requests().len() == asked || !is_of_use);
        assert_eq!(relay.view().uselessness.is_none(), is_of_use, "{:?}", relay.view());
    }
}

#[tokio::test]
async fn what_a_pod_has_and_tells_late_is_asked_of_another_from_then_on() {
    let late = |head: &str| {
        let mut reply = content(head);
        let head = std::mem::take(&mut reply.head).into_bytes();
        reply.steps.splice(0..0, [Step::Pause(Duration::from_millis(1200)), Step::Send(head)]);
        reply
    };
    let (one, other, relay) = pair(late).await;
    check(&relay, &get(&blob()), BODY, Duration::from_secs(3)).await;
    let asked =
        || [&one, &other].map(|pod| pod.requests().iter().filter(|head| !head.contains("only-if-cached")).count());
    assert_eq!(asked().iter().sum::<usize>(), 1);
    check(&relay, &get(&blob()), BODY, Duration::from_secs(1)).await;
    assert_eq!(asked(), [1, 1]);
}

#[tokio::test]
async fn headers_that_do_not_come_are_asked_of_another_pod() {
    let (_one, _other, relay) = pair(|_| Reply { head: String::new(), steps: vec![Step::Stall] }).await;
    check(&relay, &get(&blob()), BODY, Duration::from_secs(4)).await;
}

#[tokio::test]
async fn a_lie_about_a_manifest_is_not_passed_on_and_another_pod_asked() {
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let stated = format!("docker-content-digest: {}\r\ncontent-type: {media_type}\r\n", digest_of(BODY));
    let (truth, lie) = (stated.clone(), stated);
    let failed = AtomicBool::new(false);
    let one = Cache::start(move |head| match head.starts_with("GET /v2/ ") {
        true => Reply::new(200, "", b"{}"),
        false if !failed.swap(true, Ordering::SeqCst) => Reply::new(200, &lie, b"lie"),
        false => Reply::new(200, &truth, BODY),
    })
    .await;
    let other = one.replica().await;
    let relay = Running::bare().await;
    relay.route(&[one.address, other.address], &one.ca);
    relay.until_all_in().await;
    let manifest = format!("/v2/library/a/manifests/{}?ns=docker.io", digest_of(BODY));
    check(&relay, &get(&manifest), BODY, Duration::from_secs(2)).await;
}

#[tokio::test]
async fn a_frozen_pod_is_passed_over_and_later_not_even_asked() {
    let (one, other, relay) = pair(content).await;
    one.freeze(true);
    for _ in 0..3 {
        check(&relay, &get(&blob()), BODY, Duration::from_secs(5)).await;
    }
    relay.until(|view| view.answering == 1).await;
    assert_eq!(relay.view().standing, Standing::In);
    for repository in ["a", "b", "c", "d", "e", "f"] {
        check(&relay, &get(&blob().replace("library/a", repository)), BODY, Duration::from_millis(1000)).await;
    }
    drop(other);
}

/// The first of two Pods was out, and answers again since a moment ago.
async fn with_one_just_back(script: impl Fn(&str) -> Reply + Send + Sync + 'static) -> (Cache, Cache, Running) {
    let (mut first, other, relay) = two(script).await;
    first.die();
    relay.until(|view| view.answering == 1).await;
    first.revive().await;
    // Once the second is asked, the first was answered.
    first.until_probed(first.probes() + 2).await;
    (first, other, relay)
}

#[tokio::test]
async fn a_pod_that_is_just_back_is_asked_where_the_other_dies() {
    for is_known in [false, true] {
        let (_first, mut other, relay) = with_one_just_back(content).await;
        other.die();
        if is_known {
            relay.until(|view| view.answering == 0).await;
        }
        check(&relay, &get(&blob()), BODY, Duration::from_secs(2)).await;
        relay.until(|view| view.answering == 1).await;
    }
}

#[tokio::test]
async fn a_pod_that_is_just_back_goes_on_where_the_other_dies() {
    let (first, mut other, relay) = with_one_just_back(|head| match head.contains("range:") {
        true => content(head),
        false => breaks_off(head, Step::Stall),
    })
    .await;
    let (request, dies) = (get(&blob()), async {
        other.until_requested(1).await;
        other.die();
    });
    join(check(&relay, &request, BODY, Duration::from_secs(3)), dies).await;
    assert_eq!(first.requests().len(), 1);
}
