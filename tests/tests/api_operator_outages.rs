//! The real operator while its API server is away, while etcd hangs, and after its watches have missed what happened.
#![cfg(feature = "cluster")]

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakwater_tests::api_proxy::{Act, Asked};
use breakwater_tests::api_scene::{SETTLE, Scene};
use breakwater_tests::cluster::until;
use breakwater_tests::direct;
use breakwater_tests::operator::Operator;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use std::collections::BTreeMap;

const CACHE: &str = "cache-docker-io";
/// Longer than a leader goes on without having renewed its lease.
const OUTAGE: Duration = Duration::from_secs(13);
/// What an operator may ask for in a second while nobody answers: its lease, and its dozen watches with growing pauses.
const REQUESTS_PER_SECOND: usize = 10;

/// What must be the same after any outage: the authority, the certificates and the tokens.
async fn secrets(scene: &Scene) -> Result<Vec<(Option<String>, Option<String>)>> {
    let secrets = scene.system::<Secret>().list(&ListParams::default()).await.context("list the Secrets")?;
    Ok(secrets.items.into_iter().map(|secret| (secret.metadata.name, secret.metadata.resource_version)).collect())
}

async fn leads(operator: &Operator) -> Result<bool> {
    Ok(operator.metrics().await?.lines().any(|line| line == "breakwater_leader 1"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_was_away_finds_the_operator_again() -> Result<()> {
    let mut scene = Scene::start().await?;
    scene.mirror("docker-io", "{registry: docker.io}").await?;
    let mut operator = scene.operator("one")?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await?;
    let (expected, secrets_before) = (scene.state().await?, secrets(&scene).await?);

    scene.door.treat(|_| Act::Pass);
    scene.cluster.stop_api_server().await?;
    tokio::time::sleep(OUTAGE).await;
    let asked = scene.door.asked().len();
    ensure!(asked > 0, "the operator asked for nothing in an outage");
    ensure!(asked < REQUESTS_PER_SECOND * 13, "{asked} requests in {OUTAGE:?}");
    until(SETTLE, "the operator to say that it leads no more", async || Ok((!leads(&operator).await?).then_some(())))
        .await?;
    let silent = operator.metrics().await?;
    ensure!(!silent.contains("breakwater_mirror_condition{"), "it tells of mirrors that it cannot see:\n{silent}");
    scene.cluster.restart_api_server().await?;

    until(SETTLE, "the operator to lead again", async || Ok(leads(&operator).await?.then_some(()))).await?;
    until(SETTLE, "the same state", async || Ok((scene.state().await? == expected).then_some(()))).await?;
    scene.mirror("docker-io", "{registry: docker.io, freshness: {tagTTL: 7m}}").await?;
    until(SETTLE, "a change to take effect", async || Ok(scene.has_argument(CACHE, "7m").await?.then_some(()))).await?;
    ensure!(secrets(&scene).await? == secrets_before, "Secrets were written: {:?}", secrets(&scene).await?);
    operator.still_runs()?;
    operator.kill().await?;
    scene.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_etcd_hangs_nothing_is_lost_and_one_leads_afterwards() -> Result<()> {
    let scene = Scene::start().await?;
    scene.mirror("docker-io", "{registry: docker.io, cache: {replicas: 2}}").await?;
    let mut operators = [scene.operator("first")?, scene.operator("second")?];
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await?;
    let (expected, secrets_before) = (scene.state().await?, secrets(&scene).await?);

    scene.door.treat(|_| Act::Pass);
    scene.cluster.etcd().freeze()?;
    tokio::time::sleep(OUTAGE + Duration::from_secs(5)).await;
    let asked = scene.door.asked().len();
    scene.cluster.etcd().thaw()?;
    ensure!(asked < 2 * REQUESTS_PER_SECOND * 18, "{asked} requests while etcd hung");

    until(SETTLE, "one to lead", async || {
        let leading = [leads(&operators[0]).await?, leads(&operators[1]).await?];
        Ok((leading[0] != leading[1]).then_some(()))
    })
    .await?;
    // Just after etcd's return a list may still time out.
    let settled = async || Ok(scene.state().await.is_ok_and(|state| state == expected).then_some(()));
    until(SETTLE, "the same end state", settled).await?;
    ensure!(secrets(&scene).await? == secrets_before, "Secrets were written: {:?}", secrets(&scene).await?);
    scene.mirror("docker-io", "{registry: docker.io, cache: {replicas: 2}, freshness: {tagTTL: 7m}}").await?;
    until(SETTLE, "a change to take effect", async || Ok(scene.has_argument(CACHE, "7m").await?.then_some(()))).await?;
    for operator in &mut operators {
        operator.still_runs()?;
    }
    scene.cluster.remove().await
}

/// Lets etcd forget every revision but the present one, so that a watch cannot go on from an earlier one.
async fn compact(scene: &Scene) -> Result<()> {
    let etcd = scene.cluster.forward(Ipv4Addr::LOCALHOST, 2379).await?;
    let ask = async |path: &str, body: serde_json::Value| -> Result<serde_json::Value> {
        let url = format!("http://{}/v3/kv/{path}", etcd.address());
        let request = direct::client()?.post(url).body(body.to_string());
        let answer = request.send().await.context("ask etcd")?.error_for_status().context("etcd refuses")?;
        let text = answer.text().await.context("read etcd's answer")?;
        serde_json::from_str(&text).with_context(|| format!("parse {text}"))
    };
    let range = ask("range", json!({"key": "AA==", "count_only": true})).await?;
    ask("compaction", json!({"revision": range["header"]["revision"], "physical": true})).await.map(drop)
}

/// Takes a cache of a deleted mirror away, as the garbage collector does, which does not run here: also one that was made anew before the
/// operator knew. Says so once another mirror has it.
async fn collected(scene: &Scene, cache: &str, deleted: &str) -> Result<Option<()>> {
    let sets = scene.system::<StatefulSet>();
    let Some(set) = sets.get_opt(cache).await.context("get a StatefulSet")? else { return Ok(None) };
    if set.owner_references().iter().all(|owner| owner.name != deleted) {
        return Ok(Some(()));
    }
    sets.delete(cache, &DeleteParams::default()).await.context("delete a StatefulSet")?;
    Ok(None)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_watches_missed_is_listed_again() -> Result<()> {
    let mut scene = Scene::start().await?;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "corp-ca", "namespace": "breakwater-system"},
                     "data": {"ca.crt": scene.cluster.ca_pem()}});
    scene.cluster.apply(&map.to_string()).await?;
    scene.mirror("docker-io", "{registry: docker.io, caBundle: {configMapRef: {name: corp-ca}}}").await?;
    scene.mirror("ghcr", "{registry: ghcr.io}").await?;
    scene.mirror("elder", "{registry: quay.io}").await?;
    scene.mirror("younger", "{registry: quay.io}").await?;
    let mut operator = scene.operator("one")?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await?;
    scene.condition("ghcr", "Ready", "False", "CacheStarting").await?;
    scene.condition("younger", "Ready", "False", "RegistryConflict").await?;

    // Every watch ends and cannot begin again; the lease is renewed all the while.
    let no_watches = |asked: &Asked| match asked.watches {
        true => Act::Refuse(500, "InternalError", "as the test wants it"),
        false => Act::Pass,
    };
    scene.door.treat(no_watches);
    scene.door.cut();
    scene.system::<ConfigMap>().delete("corp-ca", &DeleteParams::default()).await.context("delete a ConfigMap")?;
    scene.system::<Service>().delete("cache-ghcr-io", &DeleteParams::default()).await.context("delete a Service")?;
    let drift = Patch::Merge(json!({"spec": {"replicas": 0}}));
    scene.system::<StatefulSet>().patch("cache-ghcr-io", &PatchParams::default(), &drift).await.context("edit")?;
    scene.mirrors().delete("elder", &DeleteParams::default()).await.context("delete a mirror")?;
    // An API server that has just started remembers no earlier change, and etcd none at all.
    compact(&scene).await?;
    scene.cluster.stop_api_server().await?;
    scene.cluster.restart_api_server().await?;
    scene.door.treat(|_| Act::Pass);

    scene.condition("docker-io", "Stalled", "True", "InvalidReference").await?;
    until(SETTLE, "the younger to take over", async || collected(&scene, "cache-quay-io", "elder").await).await?;
    scene.condition("younger", "Ready", "False", "CacheStarting").await?;
    until(SETTLE, "the Service and the replicas to come back", async || {
        let service = scene.system::<Service>().get_opt("cache-ghcr-io").await.context("get the Service")?;
        let set = scene.system::<StatefulSet>().get("cache-ghcr-io").await.context("get the StatefulSet")?;
        Ok((service.is_some() && set.spec.replicas == Some(1)).then_some(()))
    })
    .await?;
    let metrics = operator.metrics().await?;
    ensure!(!metrics.contains(r#"name="elder""#), "a deleted mirror is still told of:\n{metrics}");
    // Either the watches were told that they are too old, or the leader had begun anew.
    let log = operator.log();
    ensure!(log.contains("too old resource version") || log.contains("standing by"), "{log}");
    operator.still_runs()?;
    operator.kill().await?;
    scene.cluster.remove().await
}

/// How long an API server struggles, and how often a list or a watch may begin meanwhile: between two are at least 1, 2, 4 and 5 s.
const STRUGGLE: Duration = Duration::from_secs(12);
const BEGINNINGS: usize = 5;
/// Watches that an operator fills before it looks at any mirror: the caches' children, nodes, and what is of the agents.
const WATCHES_AT_FIRST: usize = 10;
/// With the mirrors and the six kinds that run Pods.
const WATCHES: usize = 17;

/// Lets the API server struggle by this rule, and counts how often each collection is listed and watched meanwhile.
async fn struggle(scene: &Scene, watches: usize, mut rule: impl FnMut(&Asked) -> Act + Send + 'static) -> Result<()> {
    let is_of_a_watch = |asked: &Asked| {
        asked.method == "GET" && !asked.path.contains("/leases") && !asked.path.contains("resourcedefinitions")
    };
    scene.door.treat(move |asked| if is_of_a_watch(asked) { rule(asked) } else { Act::Pass });
    scene.door.cut();
    tokio::time::sleep(STRUGGLE).await;
    let mut counts: BTreeMap<(String, bool), usize> = BTreeMap::new();
    for asked in scene.door.asked().into_iter().filter(is_of_a_watch) {
        *counts.entry((asked.path, asked.watches)).or_default() += 1;
    }
    scene.door.treat(|_| Act::Pass);
    ensure!(counts.len() >= watches, "these alone were tried: {counts:?}");
    ensure!(counts.values().all(|count| *count <= BEGINNINGS), "in {STRUGGLE:?}: {counts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_struggles_is_not_pressed() -> Result<()> {
    let scene = Scene::start().await?;
    scene.mirror("docker-io", "{registry: docker.io}").await?;
    let mut operator = scene.operator("one")?;
    let refused = |asked: &Asked| match asked.path.len() % 3 {
        0 => Act::Refuse(429, "TooManyRequests", "as the test wants it"),
        1 => Act::Refuse(503, "ServiceUnavailable", "as the test wants it"),
        _ => Act::Refuse(403, "Forbidden", "as the test wants it"),
    };
    struggle(&scene, WATCHES_AT_FIRST, refused).await.context("every list is refused")?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await?;

    for (minutes, what) in [("7m", "refused"), ("8m", "ended at once")] {
        let ends = what != "refused";
        let rule = move |asked: &Asked| match asked.watches {
            true if ends => Act::End,
            true => refused(asked),
            false => Act::Pass,
        };
        struggle(&scene, WATCHES, rule).await.with_context(|| format!("every watch is {what}"))?;
        scene.mirror("docker-io", &format!("{{registry: docker.io, freshness: {{tagTTL: {minutes}}}}}")).await?;
        let applied = async || Ok(scene.has_argument(CACHE, minutes).await?.then_some(()));
        until(SETTLE, "a change to take effect", applied).await?;
    }
    operator.still_runs()?;
    operator.kill().await?;
    scene.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_api_server_that_last_are_told() -> Result<()> {
    let scene = Scene::start().await?;
    let login =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login", "namespace": "breakwater-system"}});
    scene.cluster.apply(&login.to_string()).await?;
    // As where the key is lost that some Secrets were encrypted with.
    scene.door.treat(|asked| {
        let lost = ["/secrets/cache-docker-io-tls", "/secrets/login"].iter().any(|secret| asked.path.ends_with(secret));
        if lost { Act::Refuse(500, "InternalError", "no key to decrypt it") } else { Act::Pass }
    });
    scene.mirror("docker-io", "{registry: docker.io}").await?;
    scene.mirror("ghcr-io", "{registry: ghcr.io, credentials: [{secretRef: {name: login}}]}").await?;
    let operator = scene.operator("one")?;
    // It tries for a minute before it says so.
    for mirror in ["docker-io", "ghcr-io"] {
        let told = async || {
            let status = scene.mirrors().get(mirror).await?.status.unwrap_or_default();
            let stalled = status.conditions.into_iter().find(|condition| condition.type_ == "Stalled");
            Ok(stalled.map(|condition| (condition.reason, condition.message)))
        };
        let (reason, message) = until(2 * SETTLE, "the mirror to tell", told).await.with_context(|| operator.log())?;
        ensure!(reason == "ApiServerFails" && message.contains("no key to decrypt it"), "{reason}: {message}");
    }
    scene.door.treat(|_| Act::Pass);
    // The pause between two tries has grown to a minute.
    let mended = async || {
        let mirrors = scene.mirrors().list(&ListParams::default()).await?.items;
        let starts = |it: &breakwater_crds::RegistryMirror| {
            let conditions = it.status.iter().flat_map(|status| &status.conditions);
            conditions.into_iter().any(|it| it.type_ == "Ready" && it.reason == "CacheStarting")
        };
        Ok(mirrors.iter().all(starts).then_some(()))
    };
    until(3 * SETTLE, "the mirrors to go on", mended).await.with_context(|| operator.log())?;
    operator.kill().await?;
    scene.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_made_anew_is_not_told_what_was_found_of_the_former() -> Result<()> {
    let scene = Scene::start().await?;
    scene.mirror("docker-io", "{registry: docker.io}").await?;
    let operator = scene.operator("one")?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await?;
    // From here on the operator sees the former mirror alone.
    let is_mirrors = |path: &str| path.ends_with("/registrymirrors");
    scene.door.treat(move |asked| if is_mirrors(&asked.path) { Act::HoldBefore } else { Act::Pass });
    scene.door.cut();
    scene.door.held().await;
    scene.mirrors().delete("docker-io", &DeleteParams::default()).await.context("delete")?;
    let anew = scene.mirror("docker-io", "{registry: docker.io}").await?;
    let labels = json!({"app.kubernetes.io/name": "breakwater-cache", "app.kubernetes.io/instance": CACHE, "breakwater.dev/mirror": "docker-io"});
    let safe = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true,
                      "seccompProfile": {"type": "RuntimeDefault"}});
    let container = json!({"name": "registry", "image": "x", "securityContext": safe});
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "cache-docker-io-0", "namespace": "breakwater-system", "labels": labels},
        "spec": {"serviceAccountName": "breakwater-operator", "containers": [container]}});
    scene.cluster.apply(&pod.to_string()).await?;
    // The second time it knows what came of the first.
    until(SETTLE, "the operator to write what it found", async || {
        let write = |asked: &&Asked| asked.is_write() && asked.path.ends_with("/registrymirrors/docker-io/status");
        Ok((scene.door.asked().iter().filter(write).count() > 1).then_some(()))
    })
    .await?;
    let told = async || -> Result<_> { scene.mirrors().get("docker-io").await.context("get") };
    let found = told().await?;
    ensure!(found.metadata.uid == anew.metadata.uid);
    let status = found.status.context("has a status")?;
    ensure!(status.observed_generation == Some(-1) && status.conditions.is_empty(), "{status:?}");
    scene.door.treat(|_| Act::Pass);
    scene.door.cut();
    until(SETTLE, "the operator to see the mirror", async || {
        Ok((told().await?.status.is_some_and(|status| status.observed_generation == Some(1))).then_some(()))
    })
    .await
    .with_context(|| operator.log())?;
    operator.kill().await?;
    scene.cluster.remove().await
}
