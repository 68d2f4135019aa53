//! Lists of tags and referrers: fresh as tags are, kept, and served while upstream fails.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use breakwater_tests::cache::{Answer, Cache};
use breakwater_tests::upstream::{Blob, Content, Fault, Image, On, Recorded, Upstream};
use serde_json::{Value, json};

const REPOSITORY: &str = "library/app";
const TAGS: &str = "/v2/library/app/tags/list";
/// What "at once" may take on a noisy machine; who waits for upstream again takes 1 s.
const AT_ONCE: Duration = Duration::from_millis(900);

/// A signature of an image: a manifest that names it as its subject.
fn signature(image: &Image) -> Blob {
    let manifest = json!({
        "schemaVersion": 2, "mediaType": image.manifest.media_type,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": image.config.digest, "size": 2},
        "layers": [],
        "subject": {"mediaType": image.manifest.media_type, "digest": image.manifest.digest, "size": image.manifest.len()},
    });
    Blob::new(&image.manifest.media_type, manifest.to_string())
}

fn referrers(image: &Image) -> String {
    format!("/v2/{REPOSITORY}/referrers/{}", image.manifest.digest)
}

async fn scene(flags: &[(&str, &str)]) -> (Upstream, Cache, Image) {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(REPOSITORY, "v1", &image);
    upstream.push(REPOSITORY, "v2", &image);
    upstream.put_manifest(REPOSITORY, &signature(&image));
    let cache = flags.iter().fold(Cache::of(&upstream), |builder, (name, value)| builder.flag(name, value));
    let cache = cache.start().await;
    assert_eq!(cache.get(&image.manifest.manifest_path(REPOSITORY)).await.status, 200);
    (upstream, cache, image)
}

fn names(answer: &Answer) -> Vec<String> {
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let tags = body["tags"].as_array().expect("tags");
    tags.iter().filter_map(|tag| Some(tag.as_str()?.to_owned())).collect()
}

fn lists(requests: &[Recorded]) -> usize {
    requests.iter().filter(|request| request.path.contains("/tags/") || request.path.contains("/referrers/")).count()
}

#[tokio::test]
async fn a_list_is_fresh_for_the_tags_time_to_live() {
    let (upstream, cache, image) = scene(&[]).await;
    let mark = upstream.mark();
    for path in [TAGS.to_owned(), referrers(&image)] {
        let first = cache.get(&path).await;
        assert_eq!((first.status, first.cache_status()), (200, "breakwater; fwd=miss"));
        let second = cache.get(&path).await;
        assert_eq!(second.cache_status(), "breakwater; hit");
        assert_eq!((&first.body, first.content_headers()), (&second.body, second.content_headers()));
        let head = cache.head(&path).await;
        assert_eq!(head.content_headers(), second.content_headers());
    }
    assert_eq!(lists(&upstream.requests_since(mark)), 2);
}

#[tokio::test]
async fn an_old_list_is_asked_for_again() {
    let (upstream, cache, image) = scene(&[("--tag-ttl", "0s")]).await;
    assert_eq!(names(&cache.get(TAGS).await), ["v1", "v2"]);
    upstream.push(REPOSITORY, "v3", &image);
    assert_eq!(names(&cache.get(TAGS).await), ["v1", "v2", "v3"]);
}

#[tokio::test]
async fn many_who_ask_at_once_are_one_question() {
    let (upstream, cache, _image) = scene(&[]).await;
    upstream.fault(On::Path(TAGS.to_owned()), Fault::StallAt(5)).await;
    let mark = upstream.mark();
    let asked = async {
        upstream.wait_for("the list asked for", |requests| lists(requests) > 0).await;
        upstream.heal().await;
    };
    let (answers, ()) = tokio::join!(futures::future::join_all((0..20).map(|_| cache.get(TAGS))), asked);
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(lists(&upstream.requests_since(mark)), 1);
}

#[tokio::test]
async fn each_page_is_kept_by_itself_and_leads_to_the_next_one_here() {
    let (upstream, mut cache, _image) = scene(&[("--tag-ttl", "0s")]).await;
    let first = cache.get(&format!("{TAGS}?n=1")).await;
    let next = format!("{TAGS}?n=1&last=v1");
    assert_eq!(first.header("link"), Some(format!(r#"<{next}>; rel="next""#).as_str()));
    assert_eq!((names(&first), names(&cache.get(&next).await)), (vec!["v1".to_owned()], vec!["v2".to_owned()]));
    upstream.fault(On::Everything, Fault::Refuse).await;
    cache.restart().await;
    let stale = cache.get(&format!("{TAGS}?n=1")).await;
    assert_eq!((names(&stale), stale.header("link")), (names(&first), first.header("link")));
    assert_eq!(names(&cache.get(&next).await), ["v2"]);
    assert_eq!(cache.get(TAGS).await.status, 503, "a page that nobody has seen");
}

async fn survives(fault: Fault, detail: &str) {
    let (upstream, mut cache, image) = scene(&[("--tag-ttl", "0s")]).await;
    let paths = [TAGS.to_owned(), referrers(&image)];
    let warm = [cache.get(&paths[0]).await, cache.get(&paths[1]).await];
    upstream.fault(On::Registry, fault).await;
    for _ in 0..2 {
        for (path, warm) in paths.iter().zip(&warm) {
            let answer = cache.get(path).await;
            assert_eq!((answer.status, &answer.body), (200, &warm.body), "{detail}: {}", answer.cache_status());
            assert!(answer.cache_status().starts_with("breakwater; fwd=stale; detail="), "{}", answer.cache_status());
            assert!(answer.header("age").is_some());
            assert!(answer.took < Duration::from_secs(3), "{detail}: {:?}", answer.took);
        }
        let again = cache.get(TAGS).await;
        assert!(again.took < AT_ONCE, "{detail}: {:?}", again.took);
        cache.restart().await;
    }
}

#[tokio::test]
async fn lists_survive_a_refusing_upstream() {
    survives(Fault::Refuse, "refuse").await;
}

#[tokio::test]
async fn lists_survive_a_silent_upstream() {
    survives(Fault::Silence, "silence").await;
}

#[tokio::test]
async fn lists_survive_a_failing_upstream() {
    survives(Fault::Status(500), "500").await;
}

#[tokio::test]
async fn lists_survive_a_login_page() {
    survives(Fault::Html, "html").await;
}

#[tokio::test]
async fn a_denied_class_holds_for_lists_too() {
    let (upstream, cache, _image) = scene(&[("--tag-ttl", "0s"), ("--on-error", "server-error=deny")]).await;
    assert_eq!(cache.get(TAGS).await.status, 200);
    upstream.fault(On::Registry, Fault::Status(500)).await;
    assert_eq!(cache.get(TAGS).await.status, 503);
}

#[tokio::test]
async fn a_deleted_repository_has_no_list_unless_deletions_are_not_believed() {
    for (rule, status) in [("not-found=deny", 404), ("not-found=serve-stale", 200)] {
        let (upstream, cache, _image) = scene(&[("--tag-ttl", "0s"), ("--on-error", rule)]).await;
        assert_eq!(cache.get(TAGS).await.status, 200);
        upstream.fault(On::Path(TAGS.to_owned()), Fault::Status(404)).await;
        for _ in 0..2 {
            assert_eq!(cache.get(TAGS).await.status, status, "{rule}");
        }
    }
}

#[tokio::test]
async fn a_registry_without_referrers_sends_clients_to_the_tag_also_in_an_outage() {
    let (upstream, mut cache, image) = scene(&[("--tag-ttl", "0s")]).await;
    upstream.lack_referrers();
    assert_eq!(cache.get(&referrers(&image)).await.status, 404);
    let by_tag = format!("/v2/{REPOSITORY}/manifests/{}.sig", image.manifest.digest.replace(':', "-"));
    let signature = signature(&image);
    upstream.tag(REPOSITORY, by_tag.rsplit('/').next().expect("a tag"), &signature);
    assert_eq!(cache.get(&by_tag).await.body, signature.bytes);
    upstream.fault(On::Everything, Fault::Refuse).await;
    for _ in 0..2 {
        assert_eq!(cache.get(&referrers(&image)).await.status, 404);
        assert_eq!(cache.get(&by_tag).await.body, signature.bytes);
        cache.restart().await;
    }
}

#[tokio::test]
async fn a_cut_or_emptied_record_is_none() {
    let (upstream, cache, _image) = scene(&[]).await;
    let first = cache.get(TAGS).await;
    for length in [0, 10] {
        for entry in std::fs::read_dir(cache.data().join("lists")).expect("lists").flatten() {
            let file = std::fs::OpenOptions::new().write(true).open(entry.path()).expect("a record");
            file.set_len(length).expect("cut");
        }
        let answer = cache.get(TAGS).await;
        assert_eq!((answer.status, &answer.body), (200, &first.body));
        assert_eq!(answer.cache_status(), "breakwater; fwd=miss");
    }
    drop(upstream);
}

#[tokio::test]
async fn nonsense_leaves_no_trace() {
    let (_upstream, cache, _image) = scene(&[]).await;
    for number in 0..20 {
        assert_eq!(cache.get(&format!("/v2/junk/{number}/tags/list")).await.status, 404);
        let digest = Content::blob(number, 10).digest;
        assert_eq!(cache.get(&format!("/v2/junk/{number}/referrers/{digest}")).await.status, 404);
    }
    assert_eq!(std::fs::read_dir(cache.data().join("lists")).expect("lists").count(), 0);
}
