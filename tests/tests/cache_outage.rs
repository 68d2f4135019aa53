//! The outage matrix: whatever way upstream fails, what was pulled before is served, the rest is refused soon, a restart in
//! between changes nothing, and after upstream's return the next pull works.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use breakwater_tests::cache::{Answer, Cache, End, PATIENCE};
use breakwater_tests::upstream::{Blob, Content, Fault, Image, On, Recorded, Scheme, Upstream};

const REPOSITORY: &str = "library/app";
const BY_TAG: &str = "/v2/library/app/manifests/v1";
/// Promised: 1.5 s in the way of a warm tag; the rest is for the machine's noise.
const STALE_SOON: Duration = Duration::from_secs(3);
/// What "at once" may take on a noisy machine; who waits for upstream again takes 1 s.
const AT_ONCE: Duration = Duration::from_millis(900);
/// Promised: 4 s for upstream's headers, connect included; the rest is for the machine's noise.
const REFUSED_SOON: Duration = Duration::from_secs(7);
/// Promised: a probe within 2 s of the return, then one pull.
const BACK_SOON: Duration = Duration::from_secs(8);
/// Promised: 1 s. Who asks upstream before it takes requests waits for its headers, 4 s.
const READY_SOON: Duration = Duration::from_millis(3500);

/// A cache with a complete image, whose tag is past its time to live, and content upstream that it has not seen.
struct Scene {
    upstream: Upstream,
    cache: Cache,
    warm: Image,
    unseen: Image,
}

async fn outage(on: On, fault: Fault) {
    let mut scene = Scene::warm().await;
    // Tokens at hand would hide that the token service is gone.
    scene.upstream.revoke_tokens();
    scene.upstream.fault(on, fault).await;
    scene.warm_tag_is_served_stale().await;
    scene.warm_content_needs_no_upstream().await;
    scene.misses_are_refused_soon().await;
    scene.a_restart_changes_nothing().await;
    scene.upstream.heal().await;
    scene.new_content_is_pulled_soon().await;
}

impl Scene {
    async fn warm() -> Self {
        let upstream = Upstream::start().await;
        upstream.require(Scheme::Bearer, &[]);
        let (warm, unseen) = (Content::image(1, &[100_000]), Content::image(2, &[100_000]));
        upstream.push(REPOSITORY, "v1", &warm);
        upstream.push(REPOSITORY, "unseen", &unseen);
        let cache = Cache::of(&upstream).flag("--tag-ttl", "0s").start().await;
        assert_eq!(cache.get(BY_TAG).await.status, 200);
        for blob in warm.blobs() {
            assert_eq!(cache.get(&blob.blob_path(REPOSITORY)).await.end, End::Complete);
            cache.await_kept(REPOSITORY, blob).await;
        }
        Self { upstream, cache, warm, unseen }
    }

    fn assert_warm(&self, answer: &Answer, expected: &Blob) {
        assert_eq!((answer.status, answer.end), (200, End::Complete), "{}", answer.cache_status());
        assert!(answer.body == expected.bytes);
    }

    async fn warm_tag_is_served_stale(&self) {
        let first = self.cache.get(BY_TAG).await;
        self.assert_warm(&first, &self.warm.manifest);
        assert!(first.took < STALE_SOON, "the first took {:?}", first.took);
        assert!(first.cache_status().contains("fwd=stale"), "{:?}", first.cache_status());
        // With the failure known, waiting ends.
        let deadline = Instant::now() + PATIENCE;
        let mut quick = 0;
        while quick < 3 {
            let next = self.cache.get(BY_TAG).await;
            self.assert_warm(&next, &self.warm.manifest);
            assert!(next.took < STALE_SOON, "a later one took {:?}", next.took);
            quick = if next.took < AT_ONCE { quick + 1 } else { 0 };
            assert!(Instant::now() < deadline, "it goes on to wait for upstream");
        }
    }

    async fn warm_content_needs_no_upstream(&self) {
        let mark = self.upstream.mark();
        let manifest = self.cache.get(&self.warm.manifest.manifest_path(REPOSITORY)).await;
        self.assert_warm(&manifest, &self.warm.manifest);
        assert!(manifest.took < AT_ONCE, "the manifest took {:?}", manifest.took);
        for blob in self.warm.blobs() {
            let answer = self.cache.get(&blob.blob_path(REPOSITORY)).await;
            self.assert_warm(&answer, blob);
            assert!(answer.took < AT_ONCE, "the blob took {:?}", answer.took);
        }
        let by_digest = |request: &&Recorded| request.path.contains("sha256:");
        assert_eq!(self.upstream.requests_since(mark).iter().filter(by_digest).count(), 0);
    }

    async fn misses_are_refused_soon(&self) {
        let (tag, manifest, blob) = (
            "/v2/library/app/manifests/unseen".to_owned(),
            self.unseen.manifest.manifest_path(REPOSITORY),
            self.unseen.layers[0].blob_path(REPOSITORY),
        );
        let answers = tokio::join!(self.cache.get(&tag), self.cache.get(&manifest), self.cache.get(&blob));
        for answer in [answers.0, answers.1, answers.2] {
            assert!([404, 503].contains(&answer.status), "{}", answer.status);
            assert!(answer.took < REFUSED_SOON, "it took {:?}", answer.took);
            assert_ne!(answer.error_code(), "");
        }
    }

    async fn a_restart_changes_nothing(&mut self) {
        let ready = self.cache.restart().await;
        assert!(ready < READY_SOON, "it took {ready:?}");
        self.warm_tag_is_served_stale().await;
        self.warm_content_needs_no_upstream().await;
    }

    async fn new_content_is_pulled_soon(&self) {
        let returned = Instant::now();
        let fresh = Content::image(3, &[100_000]);
        self.upstream.push("library/fresh", "v1", &fresh);
        let path = "/v2/library/fresh/manifests/v1";
        let pulled = async || self.cache.get(path).await.body == fresh.manifest.bytes;
        self.cache.until("new content is pulled", pulled).await;
        assert!(returned.elapsed() < BACK_SOON, "it took {:?}", returned.elapsed());
        self.assert_warm(&self.cache.get(&fresh.layers[0].blob_path("library/fresh")).await, &fresh.layers[0]);
    }
}

#[tokio::test]
async fn upstream_refuses_connections() {
    outage(On::Registry, Fault::Refuse).await;
}

#[tokio::test]
async fn everything_refuses_connections() {
    outage(On::Everything, Fault::Refuse).await;
}

#[tokio::test]
async fn packets_to_upstream_vanish() {
    outage(On::Registry, Fault::BlackHole).await;
}

#[tokio::test]
async fn packets_to_everything_vanish() {
    outage(On::Everything, Fault::BlackHole).await;
}

#[tokio::test]
async fn upstream_accepts_and_says_nothing() {
    outage(On::Registry, Fault::Silence).await;
}

#[tokio::test]
async fn upstream_sends_its_headers_byte_by_byte() {
    outage(On::Registry, Fault::SlowHeader(Duration::from_millis(500))).await;
}

#[tokio::test]
async fn upstream_answers_500() {
    outage(On::Registry, Fault::Status(500)).await;
}

#[tokio::test]
async fn upstream_answers_503() {
    outage(On::Registry, Fault::Status(503)).await;
}

#[tokio::test]
async fn upstream_answers_429_without_a_hint() {
    outage(On::Registry, Fault::TooManyRequests(None)).await;
}

#[tokio::test]
async fn upstream_answers_429_and_says_when() {
    outage(On::Registry, Fault::TooManyRequests(Some(2))).await;
}

#[tokio::test]
async fn upstream_answers_401_to_every_token() {
    outage(On::Registry, Fault::Status(401)).await;
}

#[tokio::test]
async fn upstream_answers_403() {
    outage(On::Registry, Fault::Status(403)).await;
}

#[tokio::test]
async fn upstream_answers_with_a_page_of_html() {
    outage(On::Registry, Fault::Html).await;
}

#[tokio::test]
async fn the_token_service_refuses_connections() {
    outage(On::Tokens, Fault::Refuse).await;
}

#[tokio::test]
async fn the_token_service_says_nothing() {
    outage(On::Tokens, Fault::Silence).await;
}

#[tokio::test]
async fn the_token_service_answers_500() {
    outage(On::Tokens, Fault::Status(500)).await;
}

#[tokio::test]
async fn the_token_service_hands_out_a_huge_token() {
    outage(On::Tokens, Fault::HugeToken(1 << 20)).await;
}

#[tokio::test]
async fn what_failed_while_upstream_was_away_is_asked_for_again_once_it_is_back() {
    for fault in [Fault::Refuse, Fault::BlackHole] {
        let Scene { upstream, cache, unseen, .. } = Scene::warm().await;
        let (manifest, blob) = (unseen.manifest.manifest_path(REPOSITORY), unseen.layers[0].blob_path(REPOSITORY));
        let questions = [("HEAD", &manifest), ("GET", &manifest), ("HEAD", &blob), ("GET", &blob)];
        let statuses = || {
            let answers = questions.map(|(method, path)| cache.request(method, path).answer());
            async { futures::future::join_all(answers).await.iter().map(|answer| answer.status).collect::<Vec<_>>() }
        };
        upstream.fault(On::Everything, fault.clone()).await;
        assert_eq!(statuses().await, [503; 4], "{fault:?}");
        upstream.heal().await;
        cache.await_upstream_state("the recovery", |state| state["reachable"] == true).await;
        assert_eq!(statuses().await, [200; 4], "{fault:?}");
    }
}

#[tokio::test]
async fn what_failed_while_the_place_of_blobs_was_away_is_asked_for_again_once_it_is_back() {
    for fault in [Fault::Refuse, Fault::BlackHole] {
        let Scene { upstream, cache, unseen, .. } = Scene::warm().await;
        upstream.redirect_blobs();
        let path = unseen.layers[0].blob_path(REPOSITORY);
        upstream.fault(On::Cdn, fault.clone()).await;
        assert_eq!(cache.get(&path).await.status, 503, "{fault:?}");
        await_open_breakers(&cache, 1).await;
        assert_eq!(cache.get(&path).await.status, 503, "{fault:?}");
        upstream.heal().await;
        await_open_breakers(&cache, 0).await;
        assert_eq!(cache.get(&path).await.status, 200, "{fault:?}");
    }
}

#[tokio::test]
async fn broken_repositories_keep_no_other_from_its_upstream() {
    for (on, refused) in [("library/broken", false), ("/v2/", true)] {
        let upstream = Upstream::start().await;
        let cache = Cache::start(&upstream).await;
        upstream.fault(On::Path(on.to_owned()), Fault::Status(500)).await;
        let opened = || cache.output().contains("requests to it fail at once");
        for round in 0..20 {
            for broken in 0..3 {
                let blob = Content::blob(1000 + 3 * round + broken, 100);
                assert_eq!(cache.get(&blob.blob_path(&format!("library/broken{broken}"))).await.status, 503);
            }
            let blob = Content::blob(round, 100);
            upstream.put_blob(REPOSITORY, &blob);
            assert_eq!(cache.get(&blob.blob_path(REPOSITORY)).await.status, if refused { 503 } else { 200 }, "{on}");
        }
        if refused {
            cache.until("it is known to be away", async || opened()).await;
        } else {
            assert!(!opened());
        }
    }
}

/// Waits until so many hosts that upstream redirects to are known to be away.
async fn await_open_breakers(cache: &Cache, count: usize) {
    let end = format!(" {count}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = String::from_utf8(cache.admin("/metrics").await.body).expect("text");
        let mut lines = metrics.lines().filter(|line| line.starts_with("breakwater_upstream_breakers_open{"));
        if lines.any(|line| line.contains("host=\"redirect\"") && line.ends_with(&end)) {
            return;
        }
        assert!(Instant::now() < deadline, "never {count} hosts away in\n{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
