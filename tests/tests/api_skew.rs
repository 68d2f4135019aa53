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
