//! The real operator before a real API server that refuses, hangs, is late with its definitions, or has two operators.
#![cfg(feature = "cluster")]

use anyhow::{Context, Result, ensure};
use breakwater_crds::names::CA_SECRET;
use breakwater_tests::api_proxy::{Act, Asked};
use breakwater_tests::api_scene::{SETTLE, Scene};
use breakwater_tests::cluster::until;
use breakwater_tests::product::definitions_hold;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::{Duration, Instant};

const CACHE: &str = "cache-docker-io";

/// A rule that refuses the first `times` requests to each path that changes something.
fn refusing(times: u32, code: u16, reason: &'static str) -> impl FnMut(&Asked) -> Act + Send + 'static {
    let mut seen: HashMap<String, u32> = HashMap::new();
    move |asked| {
        let refused = seen.entry(format!("{} {}", asked.method, asked.path)).or_default();
        if !asked.is_write() || *refused >= times {
            return Act::Pass;
        }
        *refused += 1;
        Act::Refuse(code, reason, "as the test wants it")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_that_pass_by_leave_no_trace() -> Result<()> {
    let scene = Scene::start().await?;
    scene.mirror("docker-io", "{registry: docker.io}").await?;
    let operator = scene.operator("one")?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await?;
    let expected = scene.state().await?;
    operator.kill().await?;
    for (code, reason) in
        [(429, "TooManyRequests"), (500, "InternalError"), (503, "ServiceUnavailable"), (409, "Conflict")]
    {
        scene.clear().await?;
        scene.mirror("docker-io", "{registry: docker.io}").await?;
        scene.door.treat(refusing(1, code, reason));
        let operator = scene.operator("one")?;
        let reached =
            until(SETTLE, "the same end state", async || Ok((scene.state().await? == expected).then_some(()))).await;
        reached.with_context(|| format!("after {code}s\n{}", operator.log()))?;
        let writes = scene.door.asked().iter().filter(|asked| asked.is_write()).count();
        ensure!(writes < 60, "{writes} writes to get over one {code} each");
        operator.kill().await?;
    }
    scene.cluster.remove().await
}

/// A quota as its controller would have set it, so that the API server's own admission refuses.
async fn quota(scene: &Scene) -> Result<()> {
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "tight", "namespace": "breakwater-system"},
                       "spec": {"hard": {"services": "0"}}, "status": {"hard": {"services": "0"}, "used": {"services": "0"}}});
    let file = scene.cluster.state().join("quota.json");
    std::fs::write(&file, quota.to_string()).context("write a quota")?;
    scene.cluster.kubectl(&["create", "-f", &file.to_string_lossy()]).await?;
    let status = r#"{"status":{"hard":{"services":"0"},"used":{"services":"0"}}}"#;
    let patch = [
        "-n",
        "breakwater-system",
        "patch",
        "resourcequota",
        "tight",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ];
    scene.cluster.kubectl(&patch).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_admission_refuses_is_said_and_tried_again() -> Result<()> {
    let scene = Scene::start().await?;
    quota(&scene).await?;
    scene.mirror("docker-io", "{registry: docker.io}").await?;
    let operator = scene.operator("one")?;
    let said = scene.condition("docker-io", "Ready", "False", "ChildRefused").await?;
    ensure!(said.contains("Service cache-docker-io") && said.contains("exceeded quota: tight"), "{said}");
    scene.condition("docker-io", "Stalled", "True", "ChildRefused").await?;
    ensure!(
        scene.system::<StatefulSet>().get_opt(CACHE).await.context("get")?.is_none(),
        "a cache without its Service"
    );
    // A quota is raised without a word to us.
    scene.cluster.kubectl(&["-n", "breakwater-system", "delete", "resourcequota", "tight"]).await?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await?;
    ensure!(
        scene
            .mirrors()
            .get("docker-io")
            .await
            .context("get")?
            .status
            .context("has a status")?
            .conditions
            .iter()
            .all(|it| it.type_ != "Stalled")
    );
    operator.kill().await?;
    scene.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_does_not_answer_is_named_and_waited_for() -> Result<()> {
    let scene = Scene::start().await?;
    let webhook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "dead"},
        "webhooks": [{
            "name": "dead.example.com", "clientConfig": {"url": "https://127.0.0.1:1/"}, "failurePolicy": "Fail",
            "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "rules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["statefulsets"], "operations": ["*"]}],
        }],
    });
    let file = scene.cluster.state().join("webhook.json");
    std::fs::write(&file, webhook.to_string()).context("write a webhook")?;
    scene.cluster.kubectl(&["apply", "-f", file.to_str().context("a path in UTF-8")?]).await?;
    scene.mirror("docker-io", "{registry: docker.io}").await?;
    let operator = scene.operator("one")?;
    let said = scene.condition("docker-io", "Stalled", "True", "ChildRefused").await?;
    ensure!(said.contains("StatefulSet cache-docker-io") && said.contains("dead.example.com"), "{said}");
    scene.cluster.kubectl(&["delete", "validatingwebhookconfiguration", "dead"]).await?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await?;
    operator.kill().await?;
    scene.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_definitions_that_come_after_it() -> Result<()> {
    let scene = Scene::start().await?;
    scene.cluster.kubectl(&["delete", "crd", "registrymirrors.breakwater.dev", "mirrornodes.breakwater.dev"]).await?;
    let operator = scene.operator("one")?;
    until(SETTLE, "the operator to ask", async || Ok((scene.door.asked().len() > 2).then_some(()))).await?;
    ensure!(
        scene.door.asked().iter().all(|asked| asked.path.contains("customresourcedefinitions")),
        "{:?}",
        scene.door.asked()
    );
    let crds = breakwater_tests::binaries::workspace().join("config/crd");
    scene.cluster.kubectl(&["apply", "-k", &crds.to_string_lossy()]).await?;
    definitions_hold(&scene.cluster).await?;
    scene.mirror("docker-io", "{registry: docker.io}").await?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await.with_context(|| operator.log())?;
    operator.kill().await?;
    scene.cluster.remove().await
}

async fn holder(scene: &Scene) -> Result<Option<String>> {
    let lease = scene.system::<Lease>().get_opt("breakwater-operator").await.context("get the lease")?;
    Ok(lease.and_then(|lease| lease.spec?.holder_identity))
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_one_leads_and_one_that_hung_ends_when_it_wakes() -> Result<()> {
    let scene = Scene::start().await?;
    scene.mirror("docker-io", "{registry: docker.io}").await?;
    let mut first = scene.operator("first")?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await?;
    let second = scene.operator("second")?;
    until(SETTLE, "the second to stand by", async || Ok(second.log().contains("standing by").then_some(()))).await?;
    ensure!(holder(&scene).await?.as_deref() == Some("first"));
    ensure!(!second.log().contains("leading"), "{}", second.log());

    first.signal("STOP").await?;
    until(SETTLE, "the second to take over", async || {
        Ok((holder(&scene).await?.as_deref() == Some("second")).then_some(()))
    })
    .await?;
    scene.mirror("docker-io", "{registry: docker.io, freshness: {tagTTL: 7m}}").await?;
    until(SETTLE, "the second to apply the change", async || Ok(scene.has_argument(CACHE, "7m").await?.then_some(())))
        .await?;
    first.signal("CONT").await?;
    let ended = first.ended().await?;
    ensure!(ended.code() == Some(1) && first.log().contains("lease"), "{ended}: {}", first.log());
    ensure!(scene.has_argument(CACHE, "7m").await?, "what woke up wrote over its successor");

    // One that stops in good order leaves its lease behind for the next.
    let third = scene.operator("third")?;
    second.signal("TERM").await?;
    until(SETTLE, "the third to take over", async || {
        Ok((holder(&scene).await?.as_deref() == Some("third")).then_some(()))
    })
    .await?;
    third.kill().await?;
    scene.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_told_to_stop_while_it_waits_for_its_authority_gives_its_lease_back() -> Result<()> {
    let scene = Scene::start().await?;
    scene.door.treat(|asked| if asked.path.ends_with(CA_SECRET) { Act::HoldBefore } else { Act::Pass });
    let mut operator = scene.operator("one")?;
    tokio::time::timeout(SETTLE, scene.door.held()).await.context("it does not ask for its authority")?;
    let told = Instant::now();
    operator.signal("TERM").await?;
    let ended = operator.ended().await?;
    // Its Pod has 10 s to stop.
    ensure!(ended.success() && told.elapsed() < Duration::from_secs(5), "{ended} after {:?}", told.elapsed());
    ensure!(holder(&scene).await?.is_none(), "its successor has to wait until the lease runs out");
    scene.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_of_our_fields_are_put_back_and_those_of_others_stay() -> Result<()> {
    let scene = Scene::start().await?;
    scene.mirror("docker-io", "{registry: docker.io}").await?;
    let operator = scene.operator("one")?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await?;
    let edit = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "someone", "team": "a"}, "annotations": {"note": "b"}}});
    let spec = json!({"spec": {"replicas": 0, "template": {"spec": {"dnsPolicy": "ClusterFirst"}}}});
    let service = json!({"spec": {"publishNotReadyAddresses": false}});
    let (edit, spec, service) = (Patch::Merge(edit), Patch::Merge(spec), Patch::Merge(service));
    let params = PatchParams { field_manager: Some("kubectl-edit".to_owned()), ..PatchParams::default() };
    let (sets, services) = (scene.system::<StatefulSet>(), scene.system::<Service>());
    sets.patch(CACHE, &params, &edit).await.context("edit")?;
    sets.patch(CACHE, &params, &spec).await.context("edit")?;
    services.patch(CACHE, &params, &edit).await.context("edit")?;
    services.patch(CACHE, &params, &service).await.context("edit")?;
    until(SETTLE, "our fields to be put back", async || {
        let (set, service) = (sets.get(CACHE).await?, services.get(CACHE).await?);
        let ours = |labels: Option<&std::collections::BTreeMap<String, String>>| {
            labels.is_some_and(|labels| labels["app.kubernetes.io/managed-by"] == "breakwater" && labels["team"] == "a")
        };
        let pod = set.spec.template.spec.as_ref().and_then(|pod| pod.dns_policy.as_deref());
        let is_back = set.spec.replicas == Some(1)
            && pod == Some("Default")
            && service.spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
        Ok((is_back && ours(set.metadata.labels.as_ref()) && ours(service.metadata.labels.as_ref())).then_some(()))
    })
    .await?;
    let note = sets.get(CACHE).await.context("get")?.metadata.annotations.context("has annotations")?;
    ensure!(note.get("note").map(String::as_str) == Some("b"), "{note:?}");
    // What is deleted comes back.
    services.delete(CACHE, &DeleteParams::default()).await.context("delete")?;
    until(SETTLE, "the Service to come back", async || Ok(services.get_opt(CACHE).await?)).await?;
    operator.kill().await?;
    scene.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_that_is_missing_is_named_and_used_once_it_is_there() -> Result<()> {
    let scene = Scene::start().await?;
    let operator = scene.operator("one")?;
    scene.mirror("docker-io", "{registry: docker.io, caBundle: {configMapRef: {name: corp-ca}}}").await?;
    let said = scene.condition("docker-io", "Ready", "False", "InvalidReference").await?;
    ensure!(said.contains("ConfigMap corp-ca does not exist"), "{said}");
    scene.condition("docker-io", "Stalled", "True", "InvalidReference").await?;
    let map = |data: Value| -> Result<ConfigMap> {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "corp-ca"}, "data": data});
        serde_json::from_value(map).context("make a ConfigMap")
    };
    let maps = scene.system::<ConfigMap>();
    maps.create(&PostParams::default(), &map(json!({"bundle.pem": "x", "other": "y"}))?).await.context("create")?;
    until(SETTLE, "its keys to be named", async || {
        let said = scene.condition("docker-io", "Ready", "False", "InvalidReference").await?;
        Ok(said.contains("no key ca.crt; it has bundle.pem, other").then_some(()))
    })
    .await?;
    let params = PatchParams::default();
    let certificates = scene.cluster.ca_pem();
    let good = Patch::Merge(json!({"data": {"ca.crt": certificates}}));
    maps.patch("corp-ca", &params, &good).await.context("mend")?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await?;
    let hash = async || -> Result<Option<String>> {
        let set = scene.system::<StatefulSet>().get(CACHE).await.context("get")?;
        let annotations = set.spec.template.metadata.context("has metadata")?.annotations.unwrap_or_default();
        Ok(annotations.get("breakwater.dev/ca-bundle-sha256").cloned())
    };
    let first = hash().await?.context("the template says which certificates")?;
    // Other certificates roll out; wrong ones and none leave the cache as it is.
    maps.patch(
        "corp-ca",
        &params,
        &Patch::Merge(json!({"data": {"ca.crt": format!("{certificates}\n{certificates}")}})),
    )
    .await
    .context("change")?;
    until(SETTLE, "the cache to restart", async || Ok((hash().await?.as_ref() != Some(&first)).then_some(()))).await?;
    let second = hash().await?;
    maps.delete("corp-ca", &DeleteParams::default()).await.context("delete")?;
    scene.condition("docker-io", "Stalled", "True", "InvalidReference").await?;
    ensure!(hash().await? == second, "a cache was changed to one that cannot start");
    // Its own certificate is renewed all the same, and its copy of the others' stays.
    let (secrets, name) = (scene.system::<Secret>(), "cache-docker-io-tls");
    let before = secrets.get(name).await.context("get")?.data.context("has data")?;
    secrets.patch(name, &params, &Patch::Merge(json!({"stringData": {"tls.crt": "x"}}))).await.context("damage it")?;
    let after = until(SETTLE, "a certificate", async || {
        let data = secrets.get(name).await?.data.unwrap_or_default();
        Ok(data.get("tls.crt").is_some_and(|text| text.0.starts_with(b"-----BEGIN")).then_some(data))
    })
    .await?;
    ensure!(after.get("upstream-ca.crt") == before.get("upstream-ca.crt") && after.len() == before.len());
    operator.kill().await?;
    scene.cluster.remove().await
}

/// A claim as its controllers would leave it: of this class, bound to a volume of this size.
async fn claim(scene: &Scene, class: &str, size: &str) -> Result<()> {
    let claims = scene.system::<PersistentVolumeClaim>();
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"name": "data-cache-docker-io-0", "labels": {"app.kubernetes.io/name": "breakwater-cache",
            "app.kubernetes.io/instance": CACHE, "breakwater.dev/mirror": "docker-io"}, "annotations": {"breakwater.dev/registry": "docker.io"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class, "volumeName": "v", "resources": {"requests": {"storage": size}}},
    }))
    .context("make a claim")?;
    claims.create(&PostParams::default(), &claim).await.context("create a claim")?;
    let status = Patch::Merge(
        json!({"status": {"phase": "Bound", "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]}}),
    );
    claims.patch_status("data-cache-docker-io-0", &PatchParams::default(), &status).await.map(drop).context("bind it")
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_grow_where_their_class_lets_them() -> Result<()> {
    let scene = Scene::start().await?;
    for (name, grows) in [("grows", true), ("stays", false)] {
        let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
                           "provisioner": "example.test/none", "allowVolumeExpansion": grows});
        scene.cluster.apply(&class.to_string()).await?;
    }
    let arguments = async || -> Result<String> {
        let set = scene.system::<StatefulSet>().get(CACHE).await.context("get")?;
        let template = &set.spec.volume_claim_templates.context("has templates")?[0];
        let size = template.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
        ensure!(size.is_some_and(|size| size.0 == "10Gi"), "the template has {size:?}");
        Ok(set.spec.template.spec.context("has a spec")?.containers[0].args.clone().unwrap_or_default().join(" "))
    };
    let size = |gibibytes: u64| format!("--cache-size {}", (gibibytes << 30) - (gibibytes << 30) / 10);
    let operator = scene.operator("one")?;
    for class in ["grows", "stays"] {
        let mirror = |size: &str| {
            format!("{{registry: docker.io, cache: {{storage: {{size: {size}, storageClassName: {class}}}}}}}")
        };
        claim(&scene, class, "10Gi").await?;
        scene.mirror("docker-io", &mirror("10Gi")).await?;
        scene.condition("docker-io", "Ready", "False", "CacheStarting").await?;
        scene.mirror("docker-io", &mirror("20Gi")).await?;
        let claims = scene.system::<PersistentVolumeClaim>();
        if class == "stays" {
            let said = scene.condition("docker-io", "Stalled", "True", "VolumeNotExpandable").await?;
            ensure!(said.contains("data-cache-docker-io-0 cannot grow to 20Gi") && said.contains("resize"), "{said}");
            ensure!(arguments().await?.contains(&size(10)), "{}", arguments().await?);
            break;
        }
        until(SETTLE, "the claim to grow", async || {
            let claim = claims.get("data-cache-docker-io-0").await?;
            let requests = claim.spec.and_then(|spec| spec.resources?.requests).unwrap_or_default();
            Ok((requests.get("storage").is_some_and(|size| size.0 == "20Gi")).then_some(()))
        })
        .await?;
        ensure!(arguments().await?.contains(&size(10)), "the volume has not grown yet: {}", arguments().await?);
        let grown = Patch::Merge(json!({"status": {"capacity": {"storage": "20Gi"}}}));
        claims
            .patch_status("data-cache-docker-io-0", &PatchParams::default(), &grown)
            .await
            .context("grow the volume")?;
        until(SETTLE, "the cache to use it", async || Ok(arguments().await?.contains(&size(20)).then_some(()))).await?;
        scene.mirrors().delete("docker-io", &DeleteParams::default()).await.context("delete")?;
        // Before that it would make the StatefulSet anew, with the class that claims had.
        let forgets = async || Ok((!operator.metrics().await?.contains(r#"name="docker-io""#)).then_some(()));
        until(SETTLE, "the operator to forget the mirror", forgets).await?;
        scene.system::<StatefulSet>().delete(CACHE, &DeleteParams::background()).await.context("delete")?;
        // The protection's controller does not run here.
        let unprotected = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        claims.patch("data-cache-docker-io-0", &PatchParams::default(), &unprotected).await.context("unprotect")?;
        claims.delete("data-cache-docker-io-0", &DeleteParams::default()).await.context("delete")?;
    }
    operator.kill().await?;
    scene.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_its_mirror_left_behind_goes_on_under_the_next() -> Result<()> {
    let scene = Scene::start().await?;
    scene.mirror("former", "{registry: docker.io}").await?;
    let operator = scene.operator("one")?;
    scene.condition("former", "Ready", "False", "CacheStarting").await?;
    let sets = scene.system::<StatefulSet>();
    let left = sets.get(CACHE).await.context("get")?;
    // As `kubectl delete --cascade=orphan` leaves it, once the garbage collector has been there.
    scene.mirrors().delete("former", &DeleteParams::orphan()).await.context("delete")?;
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    scene.mirrors().patch("former", &PatchParams::default(), &free).await.context("let it go")?;
    let orphan = Patch::Merge(json!({"metadata": {"ownerReferences": null}}));
    sets.patch(CACHE, &PatchParams::default(), &orphan).await.context("orphan")?;
    scene.mirror("next", "{registry: docker.io, cache: {replicas: 2}}").await?;
    scene.condition("next", "Ready", "False", "CacheStarting").await?;
    let adopted = sets.get(CACHE).await.context("get")?;
    ensure!(adopted.metadata.uid == left.metadata.uid && adopted.spec.replicas == Some(2), "{adopted:?}");
    operator.kill().await?;
    scene.cluster.remove().await
}
