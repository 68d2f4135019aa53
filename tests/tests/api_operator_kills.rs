//! The real operator before a real API server, killed between any two of its writes: what it makes is the same.
#![cfg(feature = "cluster")]

use anyhow::{Context, Result, ensure};
use breakwater_crds::names::CA_SECRET;
use breakwater_tests::api_proxy::{Act, Asked};
use breakwater_tests::api_scene::{SETTLE, Scene};
use breakwater_tests::cluster::until;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use std::collections::BTreeMap;

/// With two replicas every kind of child is there.
const SPEC: &str = "{registry: docker.io, cache: {replicas: 2}}";

/// What of the Secrets must never be made anew, by Secret and key.
async fn secrets(scene: &Scene) -> Result<BTreeMap<String, ByteString>> {
    let secrets = scene.system::<Secret>().list(&ListParams::default()).await.context("list the Secrets")?;
    let values = |secret: Secret| {
        let name = secret.metadata.name.unwrap_or_default();
        secret.data.unwrap_or_default().into_iter().map(move |(key, value)| (format!("{name}/{key}"), value))
    };
    Ok(secrets.items.into_iter().flat_map(values).collect())
}

/// Waits until what the operator made is `expected`.
async fn settled(scene: &Scene, expected: &str) -> Result<()> {
    let mut last = String::new();
    let reached = until(SETTLE, "the same end state", async || {
        last = scene.state().await?;
        Ok((last == expected).then_some(()))
    })
    .await;
    reached.with_context(|| {
        let differs = |(a, b): &(&str, &str)| a != b;
        let first = expected.lines().zip(last.lines()).find(differs);
        format!("expected, found: {first:?}; {} lines, {} lines", expected.lines().count(), last.lines().count())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_write_it_ends_in_the_same_state() -> Result<()> {
    let scene = Scene::start().await?;
    scene.door.treat(|_| Act::Pass);
    scene.mirror("docker-io", SPEC).await?;
    let operator = scene.operator("one")?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await?;
    let expected = scene.state().await?;
    operator.kill().await?;
    let writes = scene.door.asked().iter().filter(|asked| asked.is_write()).count();
    ensure!((8..40).contains(&writes), "{writes} writes: {:?}", scene.door.asked());

    for fatal in 1..=writes {
        scene.clear().await?;
        scene.mirror("docker-io", SPEC).await?;
        let mut count = 0;
        scene.door.treat(move |asked: &Asked| {
            count += usize::from(asked.is_write());
            match (asked.is_write(), count.cmp(&fatal)) {
                (true, std::cmp::Ordering::Equal) => Act::HoldAfter,
                // Passes run side by side: what comes later than the fatal one must not get through.
                (true, std::cmp::Ordering::Greater) => Act::HoldBefore,
                _ => Act::Pass,
            }
        });
        let doomed = scene.operator("one")?;
        tokio::time::timeout(SETTLE, scene.door.held())
            .await
            .with_context(|| format!("write {fatal} does not come"))?;
        doomed.kill().await?;
        let left = secrets(&scene).await?;
        scene.door.treat(|_| Act::Pass);
        let successor = scene.operator("one")?;
        settled(&scene, &expected)
            .await
            .with_context(|| format!("killed at write {fatal} of {writes}\n{}", successor.log()))?;
        let now = secrets(&scene).await?;
        for (key, value) in &left {
            ensure!(now.get(key) == Some(value), "killed at write {fatal}: {key} was made anew");
        }
        ensure!(now.keys().any(|key| key.starts_with(CA_SECRET)), "no authority");
        successor.kill().await?;
    }
    scene.cluster.remove().await
}
