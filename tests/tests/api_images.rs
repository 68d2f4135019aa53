//! The operator has a cache hold the images in use: a real operator with its role's rights, a real API server, a real cache.
#![cfg(feature = "cluster")]

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakwater_tests::api_stage::{Stage, condition};
use breakwater_tests::cache::Cache;
use breakwater_tests::cluster::until;
use breakwater_tests::operator::Operator;
use breakwater_tests::upstream::{Account, Content, Scheme, Upstream};
use serde_json::Value;

const MIRROR: &str = "hub";
const LIMIT: Duration = Duration::from_secs(30);

/// The images that the cache is told to hold.
async fn pinned(stage: &Stage, upstream: &Upstream, cache: &Cache) -> Result<BTreeSet<String>> {
    let token = format!("Bearer {}", stage.pins_token(upstream)?);
    let answer = cache.request("GET", "/v1/pins").header("Authorization", &token).answer().await;
    ensure!(answer.status == 200, "/v1/pins answers {}", answer.status);
    let body: Value = serde_json::from_slice(&answer.body).context("parse the pins")?;
    let images = body["images"].as_array().context("no list of images")?;
    Ok(images.iter().filter_map(|image| Some(image["image"].as_str()?.to_owned())).collect())
}

fn workload(kind: &str, name: &str, pod: &str) -> String {
    let api = if kind.ends_with("Job") { "batch/v1" } else { "apps/v1" };
    let template = format!("template: {{metadata: {{labels: {{app: {name}}}}}, spec: {pod}}}");
    let spec = match kind {
        "CronJob" => format!("{{schedule: '@yearly', jobTemplate: {{spec: {{{template}}}}}}}"),
        "Job" => format!("{{{template}}}"),
        _ => format!("{{selector: {{matchLabels: {{app: {name}}}}}, {template}}}"),
    };
    format!("---\n{{apiVersion: {api}, kind: {kind}, metadata: {{name: {name}, namespace: default}}, spec: {spec}}}\n")
}

fn container(image: &str) -> String {
    format!("{{restartPolicy: Never, containers: [{{name: app, image: '{image}'}}]}}")
}

/// Deployments restart always.
fn server(image: &str) -> String {
    container(image).replace("restartPolicy: Never, ", "")
}

struct Scene {
    stage: Stage,
    upstream: Upstream,
    operator: Operator,
    cache: Cache,
    data: tempfile::TempDir,
}

/// A mirror with its cache, whose registry has `app-1` to `app-9`.
async fn scene(spec: &str) -> Result<Scene> {
    scene_with_room(spec, "40Gi").await
}

/// The same with a cache of this size.
async fn scene_with_room(spec: &str, size: &str) -> Result<Scene> {
    let (stage, upstream) = (Stage::start().await?, Upstream::start().await);
    for seed in 1..=9 {
        upstream.push(&format!("team/app-{seed}"), "v1", &Content::image(seed, &[4096, 100]));
    }
    let operator = stage.operator()?;
    let mirror = format!(
        "{{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, metadata: {{name: {MIRROR}}}, \
         spec: {{registry: '{}', url: '{}', freshness: {{tagTTL: 1s}}, {spec}}}}}",
        upstream.host(),
        upstream.url()
    );
    stage.cluster.apply(&mirror).await?;
    let data = tempfile::tempdir().context("make a folder")?;
    let cache = match stage.cache_of_size(&upstream, &data.path().join("data"), size).await {
        Ok(cache) => cache,
        Err(error) => return Err(error.context(operator.log())),
    };
    Ok(Scene { stage, upstream, operator, cache, data })
}

impl Scene {
    async fn survivable(&self, figures: &str) -> Result<breakwater_crds::RegistryMirrorStatus> {
        let is_so = |status: &breakwater_crds::RegistryMirrorStatus| {
            status.summary.as_ref().is_some_and(|summary| summary.survivable == figures)
        };
        let reached = self.stage.status(MIRROR, &format!("{figures} images to be survivable"), is_so).await;
        reached.with_context(|| format!("{}\n{}", self.operator.log(), self.cache.output()))
    }

    async fn pinned(&self) -> Result<BTreeSet<String>> {
        pinned(&self.stage, &self.upstream, &self.cache).await
    }

    fn image(&self, number: u8) -> String {
        format!("{}/team/app-{number}:v1", self.upstream.host())
    }
}

/// Each exposed image and why.
fn reasons(status: &breakwater_crds::RegistryMirrorStatus) -> Vec<String> {
    let exposed = status.images.iter().flat_map(|images| &images.exposed);
    exposed.map(|it| format!("{} {}", it.image.rsplit('/').next().unwrap_or_default(), it.reason)).collect()
}

fn names(numbers: &[u8]) -> BTreeSet<String> {
    numbers.iter().map(|number| format!("team/app-{number}:v1")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_names_an_image_has_the_cache_hold_it() -> Result<()> {
    let scene = scene("images: {include: ['team/app-9:v1']}").await?;
    scene.survivable("1/1").await?;
    // What no cache takes for a platform is in nobody's way.
    scene.stage.node("odd", "amd 64").await?;
    let image = |number| scene.image(number);
    let many = format!(
        "{{restartPolicy: Never, initContainers: [{{name: init, image: '{}'}}], containers: [{{name: app, image: '{}'}}]}}",
        image(6),
        image(7)
    );
    let pod =
        format!("---\n{{apiVersion: v1, kind: Pod, metadata: {{name: bare, namespace: default}}, spec: {many}}}\n");
    let manifests = [
        workload("Deployment", "deployment", &server(&image(1))),
        workload("StatefulSet", "statefulset", &server(&image(2))),
        workload("DaemonSet", "daemonset", &server(&image(3))),
        workload("Job", "job", &container(&image(4))),
        workload("CronJob", "cronjob", &container(&image(5))),
        // Neither a name that is no image, nor one of another registry, is in the way of the others.
        workload("Deployment", "odd", &server("Not An Image")),
        workload("Deployment", "elsewhere", &server("elsewhere.test/app:v1")),
        pod,
    ];
    scene.stage.cluster.apply(&manifests.concat()).await?;
    let status = scene.survivable("8/8").await?;
    assert_eq!(scene.pinned().await?, names(&[1, 2, 3, 4, 5, 6, 7, 9]));
    let survivable = condition(&status, "ImagesSurvivable").context("no condition")?;
    assert_eq!((survivable.status.as_str(), survivable.reason.as_str()), ("True", "AllSurvivable"));
    let row = scene.stage.cluster.kubectl(&["get", "rmir", MIRROR]).await?;
    assert!(row.contains(" 8/8 "), "{row}");

    let metrics = scene.operator.metrics().await?;
    for line in [
        r#"breakwater_images_in_use{name="hub"} 8"#,
        r#"breakwater_images_survivable{name="hub"} 8"#,
        // The operator's own, the agent's and the cache's image are one; elsewhere.test has the other.
        r#"breakwater_images_exposed{name="",reason="NotMirrored"}"#,
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    scene.stage.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_held_is_named_with_its_reason_and_ready_does_not_care() -> Result<()> {
    let scene = scene("images: {platforms: [linux/amd64]}").await?;
    let absent = format!("{}/team/none:v1", scene.upstream.host());
    let foreign = Content::index(&[("linux/s390x", &Content::image(20, &[100]))]);
    scene.upstream.push_index("team/foreign", "v1", &foreign, &[&Content::image(20, &[100])]);
    let elsewhere = format!("{}/team/foreign:v1", scene.upstream.host());
    let bootstrap = format!(
        "{{hostNetwork: true, priorityClassName: system-node-critical, containers: [{{name: cni, image: '{}'}}]}}",
        scene.image(2)
    );
    let manifests = [
        workload("Deployment", "good", &server(&scene.image(1))),
        workload("Deployment", "absent", &server(&absent)),
        workload("Deployment", "foreign", &server(&elsewhere)),
        workload("DaemonSet", "cni", &bootstrap),
    ];
    scene.stage.cluster.apply(&manifests.concat()).await?;
    let expected = ["app-2:v1 NodeBootstrap", "foreign:v1 NoSuchPlatform", "none:v1 NotFound"];
    let status = scene.stage.status(MIRROR, "three images to be exposed", |status| reasons(status) == expected).await?;
    let survivable = condition(&status, "ImagesSurvivable").context("no condition")?;
    assert_eq!((survivable.status.as_str(), survivable.reason.as_str()), ("False", "ImagesExposed"));
    let ready = condition(&status, "Ready").context("no condition")?;
    assert_ne!(ready.reason, "ImagesExposed", "{ready:?}");

    let declared = r#"{"spec":{"images":{"nodeBootstrap":"Provided"}}}"#;
    scene.stage.cluster.kubectl(&["patch", "rmir", MIRROR, "--type=merge", "-p", declared]).await?;
    scene.survivable("2/4").await?;
    scene.stage.cluster.kubectl(&["delete", "deployment", "absent", "foreign"]).await?;
    scene.survivable("2/2").await?;
    let kept: BTreeSet<_> = ["team/none:v1", "team/foreign:v1"].map(str::to_owned).into();
    assert!(scene.pinned().await?.is_superset(&kept), "images outlive their last user for a while");
    scene.stage.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_room_and_what_the_registry_refuses_is_exposed_until_that_is_mended() -> Result<()> {
    let scene = scene_with_room("images: {}", "3500Ki").await?;
    scene.upstream.push("team/big", "v1", &Content::image(30, &[2 << 20, 2 << 20]));
    let big = format!("{}/team/big:v1", scene.upstream.host());
    let both =
        [workload("Deployment", "small", &server(&scene.image(1))), workload("Deployment", "big", &server(&big))];
    scene.stage.cluster.apply(&both.concat()).await?;
    let expected = ["big:v1 NoSpace"];
    scene.stage.status(MIRROR, "an image to have no room", |status| reasons(status) == expected).await?;
    scene.stage.cluster.kubectl(&["delete", "deployment", "big"]).await?;
    scene.survivable("1/1").await?;

    // From now on nobody reads anonymously. What is here already is not lost by that.
    scene.upstream.require(Scheme::Bearer, &[Account::new("", "someone", "secret")]);
    scene.stage.cluster.apply(&workload("Deployment", "private", &server(&scene.image(2)))).await?;
    let expected = ["app-2:v1 NoCredential"];
    let status = scene.stage.status(MIRROR, "an image to be refused", |status| reasons(status) == expected).await?;
    assert_eq!(status.summary.as_ref().map(|summary| summary.survivable.as_str()), Some("1/2"));
    let metrics = scene.operator.metrics().await?;
    let line = r#"breakwater_images_exposed{name="hub",reason="NoCredential"} 1"#;
    assert!(metrics.contains(line), "{line} in {metrics}");
    scene.stage.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_new_operator_nor_an_empty_cache_forgets_an_image() -> Result<()> {
    let mut scene = scene("images: {}").await?;
    let both =
        [workload("Deployment", "a", &server(&scene.image(1))), workload("Deployment", "b", &server(&scene.image(2)))];
    scene.stage.cluster.apply(&both.concat()).await?;
    scene.survivable("2/2").await?;
    scene.stage.cluster.kubectl(&["delete", "deployment", "b"]).await?;
    scene.survivable("1/1").await?;

    // The list may only grow when an operator begins anew: what was in use a moment ago is known to the cache alone.
    scene.operator.kill9().await?;
    scene.operator = scene.stage.operator()?;
    scene.stage.cluster.apply(&workload("Deployment", "c", &server(&scene.image(3)))).await?;
    until(LIMIT, "the new operator to have told its list", async || {
        let pinned = scene.pinned().await?;
        ensure!(pinned.is_superset(&names(&[1, 2])), "the list shrank to {pinned:?}");
        Ok(pinned.contains("team/app-3:v1").then_some(()))
    })
    .await?;
    assert_eq!(scene.pinned().await?, names(&[1, 2, 3]));
    scene.survivable("2/2").await?;

    // A cache that comes back with an empty volume is told again and fills again.
    scene.cache.kill9().await;
    drop(scene.cache);
    until(LIMIT, "the operator to know what is in use, and not how it fares", async || {
        let metrics = scene.operator.metrics().await?;
        ensure!(metrics.contains(r#"breakwater_images_in_use{name="hub"} 2"#), "not in use any more: {metrics}");
        Ok((!metrics.contains("breakwater_images_survivable{")).then_some(()))
    })
    .await?;
    let empty = scene.data.path().join("empty");
    let cache = scene.stage.cache(&scene.upstream, &empty).await?;
    let is_told = async || Ok((pinned(&scene.stage, &scene.upstream, &cache).await?.len() >= 2).then_some(()));
    until(LIMIT, "the empty cache to be told", is_told).await?;
    scene.stage.cluster.remove().await
}
