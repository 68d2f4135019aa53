//! The real operator before a real API server, killed between any two of its writes: what it makes is the same.
#![cfg(feature = "cluster")]

use anyhow::{Context, Result, ensure};
use breakwater_crds::names::CA_SECRET;
use breakwater_tests::api_proxy::{Act, Asked};
use breakwater_tests::api_scene::{SETTLE, Scene};
use breakwater_tests::cluster::until;
use breakwater_tests::operator::IMAGE;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams};
use std::cmp::Ordering;
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

/// Lets this write through without an answer, and none after it.
fn held_at(fatal: usize) -> impl FnMut(&Asked) -> Act + Send + 'static {
    let mut count = 0;
    move |asked| {
        count += usize::from(asked.is_write());
        match (asked.is_write(), count.cmp(&fatal)) {
            (true, Ordering::Equal) => Act::HoldAfter,
            // Passes run side by side: what comes later than the fatal one must not get through.
            (true, Ordering::Greater) => Act::HoldBefore,
            _ => Act::Pass,
        }
    }
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
        scene.door.treat(held_at(fatal));
        let doomed = scene.operator("one")?;
        let is_over = tokio::select! {
            () = scene.door.held() => false,
            settled = settled(&scene, &expected) => settled.map(|()| true).with_context(|| doomed.log())?,
        };
        doomed.kill().await?;
        if is_over {
            // How passes fall together differs, and so does the number of writes, a little.
            ensure!(fatal > 8, "done after {fatal} writes of {writes}");
            break;
        }
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

/// Changes a mirror to and fro between two sides, with the operator killed at the first write that a change leads to, then at the second,
/// until there is none left. The end state must be that which an operator left whom nobody killed. Says at how many writes it was.
async fn killed_at_each_write(
    scene: &Scene,
    images: [&str; 2],
    change: impl AsyncFn(usize) -> Result<&'static str>,
) -> Result<usize> {
    let (mut operator, mut expected) = (scene.operator_with_image("one", images[0])?, Vec::new());
    for (side, image) in images.into_iter().enumerate() {
        if images[0] != images[1] {
            operator.kill9().await?;
            operator = scene.operator_with_image("one", image)?;
        }
        let mirror = change(side).await?;
        scene.condition(mirror, "Ready", "False", "CacheStarting").await.with_context(|| operator.log())?;
        until(SETTLE, "the image", async || Ok(scene.state().await?.contains(image).then_some(()))).await?;
        expected.push(scene.state().await?);
    }
    ensure!(expected[0] != expected[1], "nothing changes");
    for round in 0.. {
        let (fatal, side) = (round / 2 + 1, round % 2);
        let before = secrets(scene).await?;
        scene.door.treat(held_at(fatal));
        if images[0] != images[1] {
            operator.kill9().await?;
            operator = scene.operator_with_image("one", images[side])?;
        }
        change(side).await?;
        let is_over = tokio::select! {
            () = scene.door.held() => false,
            settled = settled(scene, &expected[side]) => settled.map(|()| true)?,
        };
        operator.kill9().await?;
        scene.door.treat(|_| Act::Pass);
        if is_over {
            return Ok(fatal - 1);
        }
        operator = scene.operator_with_image("one", images[side])?;
        let settled = settled(scene, &expected[side]).await;
        settled.with_context(|| format!("side {side}, killed at write {fatal}\n{}", operator.log()))?;
        let now = secrets(scene).await?;
        for key in before.keys().filter(|key| key.starts_with(CA_SECRET)) {
            ensure!(now.get(key) == before.get(key), "killed at write {fatal}: {key} was made anew");
        }
    }
    Ok(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_write_of_a_change_it_ends_in_the_same_state() -> Result<()> {
    let scene = Scene::start().await?;
    // Replicas, which have Services of their own and a budget, come and go.
    let grown = "{registry: docker.io, alternates: [{url: 'https://mirror.example'}], cache: {replicas: 3}}";
    let change = async |side: usize| {
        scene.mirror("docker-io", ["{registry: docker.io}", grown][side]).await?;
        Ok("docker-io")
    };
    let writes = killed_at_each_write(&scene, [IMAGE; 2], change).await?;
    ensure!(writes >= 4, "a change of the spec took {writes} writes");
    let same = async |_| Ok("docker-io");
    let writes = killed_at_each_write(&scene, [IMAGE, "breakwater.test/breakwater:2"], same).await?;
    ensure!(writes >= 1, "a change of the image took {writes} writes");
    scene.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_write_after_a_deletion_the_next_mirror_takes_over() -> Result<()> {
    let scene = Scene::start().await?;
    const NAMES: [&str; 2] = ["one", "other"];
    scene.mirror(NAMES[1], SPEC).await?;
    let change = async |side: usize| {
        scene.mirror(NAMES[side], SPEC).await?;
        scene.mirrors().delete(NAMES[1 - side], &DeleteParams::default()).await.context("delete a mirror")?;
        Ok(NAMES[side])
    };
    let writes = tokio::select! {
        writes = killed_at_each_write(&scene, [IMAGE; 2], change) => writes?,
        ended = scene.collect_garbage() => return ended,
    };
    ensure!(writes >= 6, "a handover took {writes} writes");
    scene.cluster.remove().await
}
