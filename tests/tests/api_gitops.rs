//! Flux and Argo CD judge mirrors rightly, by their own code, at statuses that the operator wrote to a real API server.
#![cfg(feature = "cluster")]

use anyhow::{Context, Result, ensure};
use breakwater_tests::binaries::workspace;
use breakwater_tests::cluster::{Cluster, until};
use breakwater_tests::gitops::{Assessment, assess};
use breakwater_tests::operator::Operator;
use breakwater_tests::product::api_server;
use breakwater_tests::toolchain::Toolchain;
use serde_json::{Value, json};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

async fn apply(cluster: &Cluster, name: &str, registry: &str) -> Result<()> {
    let object = format!(
        "{{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, metadata: {{name: {name}}}, spec: {{registry: {registry}}}}}"
    );
    cluster.apply(&object).await.map(drop)
}

/// Waits until both tools say this of a mirror.
async fn judged(cluster: &Cluster, mirror: &str, flux: &str, argo: &str, message: &str) -> Result<()> {
    let mut last = None;
    let reached = until(LIMIT, &format!("{mirror} to be {flux} and {argo}"), async || {
        last = assess(cluster).await?.into_iter().find(|assessment| assessment.mirror == mirror);
        let same = |found: &Assessment| found.flux == flux && found.argo == argo && found.message.contains(message);
        Ok(last.as_ref().is_some_and(same).then_some(()))
    })
    .await;
    reached.with_context(|| format!("last: {last:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn both_tools_judge_what_the_operator_says() -> Result<()> {
    // First, because its first time takes minutes.
    tokio::task::spawn_blocking(Toolchain::assess).await.context("build assess")??;
    let cluster = api_server().await?;

    // Nobody has seen it yet: neither done nor failed.
    apply(&cluster, "older", "docker.io").await?;
    judged(&cluster, "older", "InProgress", "Progressing", "waiting for the operator").await?;

    let operator = Operator::start("test", &cluster.kubeconfig(), &cluster.logs())?;
    judged(&cluster, "older", "InProgress", "Progressing", "cache").await?;
    apply(&cluster, "younger", "docker.io").await?;
    judged(&cluster, "younger", "Failed", "Degraded", "older").await?;

    // A change that the operator has not seen is neither done nor failed, whatever was said of the object before.
    operator.kill().await?;
    let change = r#"{"spec":{"freshness":{"tagTTL":"5m"}}}"#;
    cluster.kubectl(&["patch", "rmir", "younger", "--type=merge", "-p", change]).await?;
    judged(&cluster, "younger", "InProgress", "Progressing", "waiting for the operator").await?;
    cluster.remove().await
}

/// A mirror of generation 3, its status, and what it is to Flux and to Argo CD.
const JUDGED: &[(&str, &str, &str)] = &[
    ("{observedGeneration: -1}", "InProgress", "Progressing"),
    ("{observedGeneration: 2, conditions: [{type: Ready, status: 'True'}]}", "InProgress", "Progressing"),
    ("{observedGeneration: 3, conditions: [{type: Ready, status: 'True', message: m}]}", "Current", "Healthy"),
    ("{observedGeneration: 3, conditions: [{type: Ready, status: 'False'}]}", "InProgress", "Progressing"),
    ("{observedGeneration: 3, conditions: [{type: Ready, status: Unknown}]}", "InProgress", "Progressing"),
    // One of several replicas serves, another starts.
    (
        "{observedGeneration: 3, conditions: [{type: Ready, status: 'True'}, {type: Reconciling, status: 'True', message: m}]}",
        "InProgress",
        "Progressing",
    ),
    (
        "{observedGeneration: 3, conditions: [{type: Ready, status: 'False', reason: RegistryConflict}, \
          {type: Stalled, status: 'True', reason: RegistryConflict, message: m}]}",
        "Failed",
        "Degraded",
    ),
    // A cache that serves, and a person that is needed all the same.
    (
        "{observedGeneration: 3, conditions: [{type: Ready, status: 'True'}, {type: Stalled, status: 'True', message: m}]}",
        "Failed",
        "Degraded",
    ),
];

#[test]
fn both_tools_say_the_same_of_every_kind_of_status() -> Result<()> {
    let object = |name: String, more: &str, status: &str| -> Result<Value> {
        let yaml = format!(
            "{{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, metadata: {{name: '{name}', generation: 3{more}}}, status: {status}}}"
        );
        serde_saphyr::from_str(&yaml).with_context(|| format!("parse {yaml}"))
    };
    let deleted = ", deletionTimestamp: '2026-01-01T00:00:00Z', finalizers: [foregroundDeletion]";
    let mut objects = Vec::new();
    for (at, (status, ..)) in JUDGED.iter().enumerate() {
        objects.push(object(at.to_string(), "", status)?);
        objects.push(object(format!("deleted-{at}"), deleted, status)?);
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    let judged = breakwater_tests::gitops::judge(&list)?;
    let of = |name: String| judged.iter().find(|it| it.mirror == name).context("was not judged");
    for (at, (status, flux, argo)) in JUDGED.iter().enumerate() {
        let found = of(at.to_string())?;
        ensure!((found.flux.as_str(), found.argo.as_str()) == (*flux, *argo), "{status}: {found:?}");
        let found = of(format!("deleted-{at}"))?;
        ensure!((found.flux.as_str(), found.argo.as_str()) == ("Terminating", "Progressing"), "{status}: {found:?}");
    }
    Ok(())
}

/// Values that could be written in another way.
const UNUSUAL: &str = "{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, metadata: {name: unusual}, spec: {registry: quay.io, \
    url: 'https://quay.io/', alternates: [], credentials: [], cache: {replicas: 1, storage: {size: 51200Mi, ephemeral: false}, \
      resources: {requests: {cpu: '0.5', memory: 1073741824}, limits: {}}, nodeSelector: {}, tolerations: [], affinity: {}}, \
    freshness: {tagTTL: 60s, maxStale: 167h60m, onError: {}}, nodes: {selector: {}}, images: {include: [], platforms: []}}}";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_applied_shows_no_difference_afterwards() -> Result<()> {
    let cluster = api_server().await?;
    let operator = Operator::start("test", &cluster.kubeconfig(), &cluster.logs())?;
    let mut files = vec![cluster.state().join("unusual.yaml")];
    std::fs::write(&files[0], UNUSUAL).context("write a mirror")?;
    for entry in std::fs::read_dir(workspace().join("config/samples")).context("list the samples")? {
        let path = entry.context("list the samples")?.path();
        files.extend(Some(path).filter(|path| !path.ends_with("kustomization.yaml")));
    }
    ensure!(files.len() > 2, "{files:?}");
    for file in files {
        let file = file.to_string_lossy();
        // As kubectl and Argo CD apply, and as Flux does.
        for how in [&["-f", &*file][..], &["--server-side", "--field-manager=flux", "-f", &file]] {
            cluster.kubectl(&[&["apply"], how].concat()).await?;
            let observed = ["wait", "--for=condition=Ready=False", "rmir", "--all", "--timeout=40s"];
            cluster.kubectl(&observed).await.with_context(|| operator.log())?;
            // It ends with 1 where there is a difference.
            cluster.kubectl(&[&["diff"], how].concat()).await?;
            cluster.kubectl(&["delete", "rmir", "--all"]).await?;
        }
    }
    let installed = workspace().join("config/default").to_string_lossy().into_owned();
    for how in [&["-k"][..], &["--server-side", "--force-conflicts", "--field-manager=flux", "-k"]] {
        let how = [how, &[&*installed]].concat();
        cluster.kubectl(&[&["apply"], &how[..]].concat()).await?;
        cluster.kubectl(&[&["diff"], &how[..]].concat()).await?;
    }
    operator.kill().await?;
    cluster.remove().await
}
