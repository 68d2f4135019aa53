//! The certificate authority's succession by the real operator, by the clock of a real API server.
#![cfg(feature = "cluster")]

use anyhow::{Context, Result, ensure};
use breakwater_crds::names::{CA_SECRET, NODES_NAMESPACE, RELAY_SECRET};
use breakwater_tests::api_scene::{SETTLE, Scene};
use breakwater_tests::cluster::until;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// An authority as an operator made it long ago, with so much time left.
fn authority(left: Duration) -> Result<Secret> {
    let key = KeyPair::generate().context("make a key")?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("tell the time")?;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    (params.not_before, params.not_after) = (epoch + (now - 9 * YEAR), epoch + now + left);
    let certificate = params.self_signed(&key).context("make a certificate")?.pem();
    let data = json!({"ca.crt": certificate, "ca.key": key.serialize_pem(), "relay.key": "ab".repeat(32)});
    serde_json::from_value(json!({"metadata": {"name": CA_SECRET}, "stringData": data})).context("make a Secret")
}

async fn texts(api: &Api<Secret>, name: &str) -> Result<BTreeMap<String, String>> {
    let data = api.get_opt(name).await.context("get a Secret")?.and_then(|secret| secret.data).unwrap_or_default();
    Ok(data.into_iter().map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect())
}

fn count(texts: &BTreeMap<String, String>) -> usize {
    texts.get("ca.crt").map_or(0, |bundle| bundle.matches("BEGIN CERTIFICATE").count())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_near_its_end_is_followed_and_one_past_it_is_replaced() -> Result<()> {
    let scene = Scene::start().await?;
    let (secrets, agents) = (scene.system::<Secret>(), Api::namespaced(scene.cluster.client(), NODES_NAMESPACE));
    scene.mirror("docker-io", "{registry: docker.io}").await?;
    // What has run out is trusted a moment longer than it signs.
    for (left, signs, trusted) in [(YEAR, "the elder", 2), (Duration::ZERO, "the successor", 1)] {
        let old = authority(left)?;
        let given = old.string_data.clone().unwrap_or_default();
        secrets.create(&PostParams::default(), &old).await.context("create a Secret")?;
        let operator = scene.operator("one")?;
        until(SETTLE, "agents to trust whom they are to trust", async || {
            Ok((count(&texts(&agents, RELAY_SECRET).await?) == trusted).then_some(()))
        })
        .await
        .with_context(|| operator.log())?;
        let now = texts(&secrets, CA_SECRET).await?;
        let is_trusted = now["ca.crt"].starts_with(given["ca.crt"].trim_end());
        ensure!(is_trusted == (signs == "the elder"), "the elder is trusted: {is_trusted}");
        ensure!((now["ca.key"] == given["ca.key"]) == (signs == "the elder"), "{signs} must sign");
        ensure!(now.contains_key("next.key") == (signs == "the elder"), "{:?}", now.keys());
        ensure!(now["relay.key"] == given["relay.key"], "relay tokens must stay");
        scene.condition("docker-io", "Ready", "False", "CacheStarting").await.with_context(|| operator.log())?;
        // What an earlier authority left there is not enough.
        let bundle = async || anyhow::Ok(texts(&secrets, "cache-docker-io-tls").await?.remove("ca.crt"));
        let follows = async || Ok((bundle().await?.as_ref() == now.get("ca.crt")).then_some(()));
        until(SETTLE, "the replicas of a cache to trust the same", follows).await.with_context(|| operator.log())?;
        operator.kill().await?;
        secrets.delete(CA_SECRET, &DeleteParams::default()).await.context("delete")?;
        agents.delete(RELAY_SECRET, &DeleteParams::default()).await.context("delete")?;
    }
    scene.cluster.remove().await
}
