//! When a tag is asked for again, what its answer may be, and for how long an old answer counts.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use breakwater_tests::cache::{Cache, End, PATIENCE};
use breakwater_tests::upstream::{Content, Fault, Image, On, Recorded, Upstream};

const REPOSITORY: &str = "library/app";
const BY_TAG: &str = "/v2/library/app/manifests/v1";

/// A complete image behind a cache that holds its tag to be old after a millisecond.
async fn warm(flags: &[(&str, &str)]) -> (Upstream, Cache, Image) {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(REPOSITORY, "v1", &image);
    let builder = Cache::of(&upstream).flag("--tag-ttl", "0s");
    let cache = flags.iter().fold(builder, |builder, (name, value)| builder.flag(name, value)).start().await;
    pull(&cache, &image).await;
    (upstream, cache, image)
}

async fn pull(cache: &Cache, image: &Image) {
    assert_eq!(cache.get(BY_TAG).await.body, image.manifest.bytes);
    for blob in image.blobs() {
        assert_eq!(cache.get(&blob.blob_path(REPOSITORY)).await.end, End::Complete);
        cache.await_kept(REPOSITORY, blob).await;
    }
}

fn asks_for_tag(request: &Recorded) -> bool {
    request.path == BY_TAG
}

#[tokio::test]
async fn an_old_tag_that_has_not_moved_costs_a_head_and_no_get() {
    let (upstream, cache, image) = warm(&[]).await;
    let mark = upstream.mark();
    for _ in 0..5 {
        assert_eq!(cache.get(BY_TAG).await.body, image.manifest.bytes);
    }
    let requests = upstream.content_requests_since(mark);
    assert!(requests.iter().any(asks_for_tag), "upstream was never asked");
    assert!(requests.iter().all(|request| request.method == "HEAD"), "{requests:?}");
}

#[tokio::test]
async fn an_old_tag_asked_for_by_many_at_once_is_one_question() {
    let (upstream, cache, _image) = warm(&[]).await;
    upstream.fault(On::Manifests, Fault::Silence).await;
    let mark = upstream.mark();
    let answers = futures::future::join_all((0..20).map(|_| cache.get(BY_TAG))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    let asked = upstream.requests_since(mark).into_iter().filter(asks_for_tag).count();
    assert!((1..=2).contains(&asked), "{asked} questions");
}

#[tokio::test]
async fn a_moved_tag_is_seen_by_the_first_request_past_its_ttl() {
    let (upstream, cache, _image) = warm(&[]).await;
    let newer = Content::image(2, &[1000]);
    upstream.push(REPOSITORY, "v1", &newer);
    let answer = cache.get(BY_TAG).await;
    assert_eq!(answer.body, newer.manifest.bytes);
    assert_eq!(answer.header("docker-content-digest"), Some(newer.manifest.digest.as_str()));
}

#[tokio::test]
async fn a_tag_that_upstream_no_longer_has_is_denied_and_its_digest_is_not() {
    let (upstream, cache, image) = warm(&[]).await;
    upstream.untag(REPOSITORY, "v1");
    assert_eq!(cache.get(BY_TAG).await.status, 404);
    assert_eq!(cache.get(&image.manifest.manifest_path(REPOSITORY)).await.status, 200);
}

#[tokio::test]
async fn a_tag_pushed_after_a_404_is_found() {
    let (upstream, cache, image) = warm(&[]).await;
    let path = "/v2/library/app/manifests/later";
    assert_eq!(cache.get(path).await.status, 404);
    upstream.push(REPOSITORY, "later", &image);
    let deadline = Instant::now() + Duration::from_secs(65);
    while cache.get(path).await.status != 200 {
        assert!(Instant::now() < deadline, "promised to be remembered for 60 s at most");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

#[tokio::test]
async fn a_complete_newcomer_is_served_in_an_outage() {
    let (upstream, cache, _image) = warm(&[]).await;
    let newer = Content::image(2, &[1000]);
    upstream.push(REPOSITORY, "v1", &newer);
    pull(&cache, &newer).await;
    upstream.fault(On::Registry, Fault::Refuse).await;
    assert_eq!(cache.get(BY_TAG).await.body, newer.manifest.bytes);
}

#[tokio::test]
async fn an_incomplete_newcomer_yields_to_the_complete_elder_in_an_outage() {
    let (upstream, mut cache, elder) = warm(&[]).await;
    let newer = Content::image(2, &[1000]);
    upstream.push(REPOSITORY, "v1", &newer);
    assert_eq!(cache.get(BY_TAG).await.body, newer.manifest.bytes, "its layer is never pulled");
    upstream.fault(On::Registry, Fault::Refuse).await;
    assert_eq!(cache.get(BY_TAG).await.body, elder.manifest.bytes);
    cache.restart().await;
    assert_eq!(cache.get(BY_TAG).await.body, elder.manifest.bytes, "after a restart too");
    upstream.heal().await;
    let back = async { while cache.get(BY_TAG).await.body != newer.manifest.bytes {} };
    tokio::time::timeout(PATIENCE, back).await.expect("the newcomer is back with upstream");
}

#[tokio::test]
async fn an_incomplete_newcomer_yields_within_its_time_to_live_too() {
    let ttl = Duration::from_secs(8);
    let upstream = Upstream::start().await;
    let (elder, newer) = (Content::image(1, &[1000]), Content::image(2, &[1000]));
    upstream.push(REPOSITORY, "v1", &elder);
    let cache = Cache::of(&upstream).flag("--tag-ttl", "8s").start().await;
    pull(&cache, &elder).await;
    upstream.push(REPOSITORY, "v1", &newer);
    let served = async |image: &Image| cache.get(BY_TAG).await.body == image.manifest.bytes;
    cache.until("the newcomer is served", async || served(&newer).await).await;
    let seen = Instant::now();
    upstream.fault(On::Registry, Fault::Refuse).await;
    // What another pull finds out is known to all.
    assert_eq!(cache.get("/v2/library/other/manifests/v1").await.status, 503);
    cache.until("the elder is served", async || served(&elder).await).await;
    assert!(seen.elapsed() < ttl / 2, "after {:?}", seen.elapsed());
}

#[tokio::test]
async fn a_tag_that_moves_with_its_images_last_byte_keeps_its_elder() {
    let (upstream, cache, _image) = warm(&[]).await;
    for round in 0..10 {
        let (repository, tag) = (format!("library/race{round}"), format!("/v2/library/race{round}/manifests/v1"));
        let (elder, newer) = (Content::image(100 + round, &[200_000]), Content::image(200 + round, &[1000]));
        upstream.push(&repository, "v1", &elder);
        assert_eq!(cache.get(&tag).await.body, elder.manifest.bytes);
        assert_eq!(cache.get(&elder.config.blob_path(&repository)).await.end, End::Complete);
        // Moved while its last layer is on its way, and asked for the moment that has arrived.
        let layer = cache.request("GET", &elder.layers[0].blob_path(&repository)).send().await;
        upstream.push(&repository, "v1", &newer);
        assert_eq!(layer.rest().await.end, End::Complete);
        assert_eq!(cache.get(&tag).await.body, newer.manifest.bytes);
        cache.await_kept(&repository, &elder.layers[0]).await;
        upstream.fault(On::Registry, Fault::Refuse).await;
        assert_eq!(cache.get(&tag).await.body, elder.manifest.bytes, "round {round}");
        upstream.heal().await;
        let healthy = |state: &serde_json::Value| state["reachable"] == true;
        cache.await_upstream_state("upstream back", healthy).await;
    }
}

#[tokio::test]
async fn an_old_answer_counts_no_longer_than_max_stale() {
    let (upstream, cache, image) = warm(&[("--max-stale", "2s")]).await;
    let last_contact = Instant::now();
    assert_eq!(cache.get(BY_TAG).await.status, 200);
    upstream.fault(On::Registry, Fault::Refuse).await;
    let refused = loop {
        let answer = cache.get(BY_TAG).await;
        if answer.status != 200 {
            break answer;
        }
        assert!(last_contact.elapsed() < PATIENCE, "it is served stale for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(refused.status, 503);
    assert!(last_contact.elapsed() > Duration::from_millis(1500), "after {:?} already", last_contact.elapsed());
    assert_eq!(cache.get(&image.manifest.manifest_path(REPOSITORY)).await.status, 200, "digests do not age");
}

#[tokio::test]
async fn max_stale_counts_from_the_last_good_answer_over_a_restart_too() {
    let (upstream, mut cache, image) = warm(&[("--max-stale", "8s")]).await;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(9) {
        assert_eq!(cache.get(BY_TAG).await.status, 200);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    upstream.fault(On::Registry, Fault::Refuse).await;
    cache.restart().await;
    let answer = cache.get(BY_TAG).await;
    assert_eq!((answer.status, answer.body), (200, image.manifest.bytes.to_vec()));
}

#[tokio::test]
async fn an_outage_answer_tells_its_age_and_that_it_is_stale() {
    let (upstream, cache, _image) = warm(&[]).await;
    upstream.fault(On::Registry, Fault::Refuse).await;
    let answer = cache.get(BY_TAG).await;
    assert!(answer.cache_status().starts_with("breakwater; fwd=stale"), "{:?}", answer.cache_status());
    let age = answer.header("age").and_then(|age| age.parse::<u64>().ok());
    assert!(age.is_some_and(|age| age < 60), "{age:?}");
}

#[tokio::test]
async fn one_bad_repository_does_not_close_the_registry() {
    let (upstream, cache, _image) = warm(&[]).await;
    let good = Content::image(4, &[1000]);
    upstream.push("library/good", "v1", &good);
    upstream.fault(On::Path("/library/bad/".to_owned()), Fault::Status(503)).await;
    for seed in 10..20 {
        assert_eq!(cache.get(&Content::blob(seed, 10).blob_path("library/bad")).await.status, 503);
    }
    assert_eq!(cache.get("/v2/library/good/manifests/v1").await.body, good.manifest.bytes);
}

#[tokio::test]
async fn a_missed_tag_is_pulled_soon_after_upstream_swallowed_the_first_request() {
    let (upstream, cache, image) = warm(&[]).await;
    upstream.push("library/late", "v1", &image);
    upstream.fault(On::Registry, Fault::Silence).await;
    let path = "/v2/library/late/manifests/v1";
    assert_eq!(cache.get(path).await.status, 503);
    upstream.heal().await;
    let healed = Instant::now();
    while cache.get(path).await.status != 200 {
        // A failure is remembered for 5 s, a probe needs 2 s at most.
        assert!(healed.elapsed() < Duration::from_secs(14), "what was swallowed still blocks");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_repository_that_stalls_keeps_the_others_fresh() {
    let (upstream, cache, _image) = warm(&[]).await;
    upstream.fault(On::Path("/library/bad/".to_owned()), Fault::Silence).await;
    let stalled = tokio::spawn(cache.request("GET", &Content::blob(9, 10).blob_path("library/bad")).answer());
    while !stalled.is_finished() {
        let answer = cache.get(BY_TAG).await;
        assert!(answer.cache_status().contains("revalidated"), "{}", answer.cache_status());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(stalled.await.expect("an answer").status, 503);
    // And while nobody else asks: one repository's silence is not the host's.
    assert_eq!(cache.get(&Content::blob(10, 10).blob_path("library/bad")).await.status, 503);
    let answer = cache.get(BY_TAG).await;
    assert!(answer.cache_status().contains("revalidated"), "{}", answer.cache_status());
}

#[tokio::test]
async fn a_tag_that_stalls_is_in_the_way_once_and_not_each_time() {
    let (upstream, cache, image) = warm(&[]).await;
    upstream.fault(On::Manifests, Fault::Silence).await;
    let began = Instant::now();
    let mut slow = 0;
    while began.elapsed() < Duration::from_secs(9) {
        let answer = cache.get(BY_TAG).await;
        assert_eq!(answer.body, image.manifest.bytes);
        assert!(answer.took < Duration::from_secs(3), "{:?}", answer.took);
        slow += u32::from(answer.took > Duration::from_millis(900));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Two questions of 4 s each fit, of which the first is in the way for 1.5 s and the next for 1 s.
    assert!((1..=3).contains(&slow), "{slow} answers were slow");
}
