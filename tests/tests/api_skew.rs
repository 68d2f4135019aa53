//! The operator beside agents of the version before and the one after: what they write to a real API server counts.
#![cfg(feature = "cluster")]

use anyhow::{Context, Result, ensure};
use breakwater_tests::api_scene::{SETTLE, Scene};
use breakwater_tests::cluster::until;
use serde_json::json;

/// A Ready node whose agent is Ready and wrote this status.
async fn node(scene: &Scene, name: &str, report: &str) -> Result<()> {
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "breakwater-nodes", "labels": {"app.kubernetes.io/name": "breakwater-node-agent"}},
        "spec": {"nodeName": name, "serviceAccountName": "breakwater-node-agent", "automountServiceAccountToken": false,
                 "containers": [{"name": "agent", "image": "breakwater.test/breakwater:1"}]}});
    let kinds = [
        format!("{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}}}"),
        pod.to_string(),
        format!("{{apiVersion: breakwater.dev/v1alpha1, kind: MirrorNode, metadata: {{name: {name}}}}}"),
    ];
    for object in &kinds {
        scene.cluster.apply(object).await?;
    }
    let ready = r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#;
    for (kind, namespace, status) in
        [("node", "default", ready), ("pod", "breakwater-nodes", ready), ("mirrornode", "default", report)]
    {
        let patch = ["-n", namespace, "patch", kind, name, "--subresource=status", "--type=merge", "-p", status];
        scene.cluster.kubectl(&patch).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_other_versions_count() -> Result<()> {
    let scene = Scene::start().await?;
    scene.mirror("docker-io", "{registry: docker.io}").await?;
    let operator = scene.operator("one")?;
    // An agent that knows no field but the first there was, one that writes more than the definitions have, and one that says nothing yet.
    node(&scene, "older", r#"{"status":{"active":["docker.io"]}}"#).await?;
    let newer = r#"{"status":{"active":[],"aNewField":{"x":[1]},"runtime":{"version":"v","configPath":"/c","aNewField":1},
        "inactive":[{"registry":"docker.io","state":"Bypassed","reason":"ANewReason","since":"2026-11-21T10:00:00Z","aNewField":1}]}}"#;
    node(&scene, "newer", newer).await?;
    node(&scene, "silent", r#"{"status":{}}"#).await?;
    let mut last = None;
    let reached = until(SETTLE, "every node to be counted", async || {
        let mirror = scene.mirrors().get("docker-io").await.context("get the mirror")?;
        last = mirror.status.and_then(|status| status.nodes);
        Ok(last.filter(|nodes| (nodes.desired, nodes.active, nodes.bypassed, nodes.failed) == (3, 1, 1, 0)))
    });
    reached.await.with_context(|| format!("they are {last:?}\n{}", operator.log()))?;
    let said = scene.condition("docker-io", "NodesReady", "False", "NodesBypassed").await?;
    ensure!(said.contains("newer") && said.contains("ANewReason"), "{said}");
    operator.kill().await?;
    scene.cluster.remove().await
}

/// Takes fields out of a definition's schema, as one of an older version does not have them.
async fn take_out(scene: &Scene, definition: &str, fields: &[&str]) -> Result<()> {
    let patch: Vec<_> = fields
        .iter()
        .map(|field| {
            let path = field.replace('.', "/properties/");
            json!({"op": "remove", "path": format!("/spec/versions/0/schema/openAPIV3Schema/properties/{path}")})
        })
        .collect();
    let patch = serde_json::to_string(&patch).context("write a patch")?;
    scene.cluster.kubectl(&["patch", "crd", definition, "--type=json", "-p", &patch]).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn older_definitions_are_named_and_all_that_they_hold_is_written() -> Result<()> {
    let scene = Scene::start().await?;
    let missing = ["spec.images.nodeBootstrap", "status.summary", "status.upstream.rateLimitRemaining"];
    take_out(&scene, "registrymirrors.breakwater.dev", &missing).await?;
    scene.mirror("docker-io", "{registry: docker.io}").await?;
    let mut operator = scene.operator("one")?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await.with_context(|| operator.log())?;
    ensure!(operator.log().contains(&missing.join(", ")), "{}", operator.log());
    let lacks = |count| {
        format!(r#"breakwater_definition_fields_lacking{{definition="registrymirrors.breakwater.dev"}} {count}"#)
    };
    ensure!(operator.metrics().await?.contains(&lacks(3)), "{}", operator.metrics().await?);
    ensure!(!operator.log().contains("pass failed"), "{}", operator.log());
    node(&scene, "node-1", r#"{"status":{"active":["docker.io"]}}"#).await?;
    let counted = async || {
        let status = scene.mirrors().get("docker-io").await.context("get the mirror")?.status.unwrap_or_default();
        ensure!(status.summary.is_none(), "{status:?}");
        Ok(status.nodes.filter(|nodes| nodes.active == 1))
    };
    until(SETTLE, "the other fields to be written", counted).await?;

    let definitions = breakwater_tests::binaries::workspace().join("config/crd");
    scene.cluster.kubectl(&["apply", "-k", &definitions.to_string_lossy()]).await?;
    let whole = async || Ok(operator.metrics().await?.contains(&lacks(0)).then_some(()));
    until(SETTLE, "the operator to notice", whole).await?;
    scene.mirror("docker-io", "{registry: docker.io, freshness: {tagTTL: 7m}}").await?;
    let summed = async || {
        let status = scene.mirrors().get("docker-io").await.context("get the mirror")?.status.unwrap_or_default();
        Ok(status.summary.filter(|summary| summary.nodes == "1/1"))
    };
    until(SETTLE, "the field to be written", summed).await?;
    operator.still_runs()?;
    operator.kill().await?;
    scene.cluster.remove().await
}
