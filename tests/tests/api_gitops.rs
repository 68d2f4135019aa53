//! Flux and Argo CD judge mirrors rightly, by their own code, at statuses that the operator wrote to a real API server.
#![cfg(feature = "cluster")]

use anyhow::{Context, Result};
use breakwater_tests::cluster::{Cluster, until};
use breakwater_tests::gitops::{Assessment, assess};
use breakwater_tests::operator::Operator;
use breakwater_tests::product::api_server;
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
    let cluster = api_server().await?;

    // Nobody has seen it yet: neither done nor failed.
    apply(&cluster, "older", "docker.io").await?;
    judged(&cluster, "older", "InProgress", "Progressing", "waiting for the operator").await?;

    let operator = Operator::start("test", &cluster.kubeconfig(), cluster.state())?;
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
