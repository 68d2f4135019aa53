//! What the installed policies let through, tried on a real API server: Pod Security, NetworkPolicies, MirrorNodes of other nodes.
#![cfg(feature = "cluster")]

use anyhow::{Context, Result, ensure};
use breakwater_crds::names::{ADMIN_PORT, CACHE, LABEL_NAME, SYSTEM_NAMESPACE, TLS_PORT};
use breakwater_tests::api_scene::{SETTLE, Scene};
use breakwater_tests::cluster::until;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, ServiceAccount};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyIngressRule};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

/// Fields that shape a Pod; without a claim, which a Pod alone has not.
const SPEC: &str = "{registry: docker.io, credentials: [{secretRef: {name: hub}}], \
    proxy: {url: 'http://proxy', secretRef: {name: login}}, cache: {replicas: 2, storage: {ephemeral: true}, tolerations: [{operator: Exists}]}}";

/// Asks the API server for a Pod from a template without having it made; with `change` made to it.
async fn admitted(
    scene: &Scene,
    template: &PodTemplateSpec,
    change: fn(&mut Value),
) -> Result<std::result::Result<(), String>> {
    let mut pod = json!({"metadata": template.metadata, "spec": template.spec});
    pod["metadata"]["name"] = json!("tried");
    change(&mut pod);
    let pod: Pod = serde_json::from_value(pod).context("make a Pod")?;
    let params = PostParams { dry_run: true, ..PostParams::default() };
    Ok(scene.system::<Pod>().create(&params, &pod).await.map(drop).map_err(|error| error.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_and_caches_are_admitted_by_the_restricted_standard() -> Result<()> {
    let scene = Scene::start().await?;
    // Its controller does not run here.
    let account: ServiceAccount =
        serde_json::from_value(json!({"metadata": {"name": "default"}})).context("make an account")?;
    scene.system::<ServiceAccount>().create(&PostParams::default(), &account).await.context("create an account")?;
    let login = json!({"metadata": {"name": "login"}, "data": {"username": "YQ==", "password": "Yg=="}});
    let login = serde_json::from_value(login).context("make a Secret")?;
    scene
        .system::<k8s_openapi::api::core::v1::Secret>()
        .create(&PostParams::default(), &login)
        .await
        .context("create a Secret")?;
    scene.mirror("docker-io", SPEC).await?;
    let operator = scene.operator("one")?;
    scene.condition("docker-io", "Ready", "False", "CacheStarting").await.with_context(|| operator.log())?;
    let cache = scene.system::<StatefulSet>().get("cache-docker-io").await.context("get")?.spec.template;
    let own = scene.system::<Deployment>().get("breakwater-operator").await.context("get")?.spec.template;
    for template in [&cache, &own] {
        let answer = admitted(&scene, template, |_| ()).await?;
        ensure!(answer.is_ok(), "{answer:?}");
        let answer = admitted(&scene, template, |pod| pod["spec"]["hostNetwork"] = json!(true)).await?;
        ensure!(
            answer.as_ref().is_err_and(|refusal| refusal.contains("restricted")),
            "the standard is not enforced: {answer:?}"
        );
    }
    operator.kill().await?;
    scene.cluster.remove().await
}

fn ports(rule: &NetworkPolicyIngressRule) -> Vec<i32> {
    let number = |port: &IntOrString| match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(_) => -1,
    };
    rule.ports.iter().flatten().filter_map(|port| port.port.as_ref().map(number)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_reach_the_tls_port_and_nobody_but_operator_and_monitoring_the_others() -> Result<()> {
    let scene = Scene::start().await?;
    let policies: Api<NetworkPolicy> = scene.system();
    let caches = policies.get("breakwater-cache").await.context("get")?.spec.context("has a spec")?;
    let selected = caches.pod_selector.and_then(|selector| selector.match_labels).unwrap_or_default();
    ensure!(selected.iter().eq([(&LABEL_NAME.to_owned(), &CACHE.to_owned())]), "{selected:?}");
    let [tls, admin] = &caches.ingress.context("has rules")?[..] else { anyhow::bail!("has other rules") };
    ensure!(ports(tls) == [i32::from(TLS_PORT)] && tls.from.is_none(), "{tls:?}");
    ensure!(ports(admin) == [i32::from(ADMIN_PORT)], "{admin:?}");
    let from = serde_json::to_value(&admin.from).context("write JSON")?;
    let monitoring = [
        json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}),
        json!({"namespaceSelector": {"matchLabels": {"metrics": "enabled"}}}),
    ];
    let operator = json!({"podSelector": {"matchLabels": {LABEL_NAME: "breakwater-operator"}}});
    ensure!(from == json!([operator, monitoring[0], monitoring[1]]), "{from}");

    let own = policies.get("breakwater-operator").await.context("get")?.spec.context("has a spec")?;
    let deployment = scene.system::<Deployment>().get("breakwater-operator").await.context("get")?.spec;
    let labels = deployment.template.metadata.and_then(|metadata| metadata.labels).unwrap_or_default();
    let selected = own.pod_selector.and_then(|selector| selector.match_labels).unwrap_or_default();
    ensure!(!selected.is_empty() && selected.iter().all(|(key, value)| labels.get(key) == Some(value)), "{selected:?}");
    let rules = own.ingress.context("has rules")?;
    ensure!(rules.len() == 1 && ports(&rules[0]) == [8080], "{rules:?}");
    ensure!(serde_json::to_value(&rules[0].from).context("write JSON")? == json!(monitoring), "{rules:?}");
    // What they open themselves is nobody's business.
    ensure!(caches.policy_types == own.policy_types && own.policy_types == Some(vec!["Ingress".to_owned()]));
    scene.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_touches_no_mirror_node_but_its_own() -> Result<()> {
    const AGENT: &str = "system:serviceaccount:breakwater-nodes:breakwater-node-agent";
    let scene = Scene::start().await?;
    let node = |name: &str| {
        json!({"apiVersion": "breakwater.dev/v1alpha1", "kind": "MirrorNode", "metadata": {"name": name}}).to_string()
    };
    let report = |name: &str| node(name).replace("}}", r#"},"status":{"summary":"1/1"}}"#);
    for name in ["mine", "other"] {
        scene.cluster.apply(&node(name)).await?;
    }
    let act = async |verb: &[&str], name: &str, bound_to: Option<&str>| {
        let extra = bound_to.map(|node| format!("authentication.kubernetes.io/node-name={node}"));
        let file = scene.cluster.state().join(format!("{name}.json")).to_string_lossy().into_owned();
        std::fs::write(&file, report(name)).map_err(|error| error.to_string())?;
        let target = if verb[0] == "apply" { ["-f", &file] } else { ["mirrornode", name] };
        let mut arguments = [verb, &target, &["--as", AGENT]].concat();
        arguments.extend(extra.iter().flat_map(|extra| ["--as-user-extra", extra]));
        scene.cluster.kubectl(&arguments).await.map_err(|error| format!("{error:#}"))
    };
    const REFUSAL: &str = "must be the MirrorNode of the node that the agent runs on";
    let refused = |answer: std::result::Result<String, String>| match answer {
        Err(refusal) if refusal.contains(REFUSAL) => None,
        other => Some(other),
    };
    let annotate = ["patch", "--type=merge", "-p", r#"{"metadata":{"annotations":{"a":"b"}}}"#];
    let status = ["apply", "--server-side", "--subresource=status"];
    // A new policy takes effect a moment after it is stored.
    until(SETTLE, "the policy to hold", async || {
        Ok(refused(act(&annotate, "other", Some("mine")).await).is_none().then_some(()))
    })
    .await?;
    for verb in [&annotate[..], &status, &["delete"]] {
        let answer = refused(act(verb, "other", Some("mine")).await);
        ensure!(answer.is_none(), "{verb:?} of another node's: {answer:?}");
        let answer = refused(act(verb, "mine", None).await);
        ensure!(answer.is_none(), "{verb:?} by a token that no node is bound to: {answer:?}");
        act(verb, "mine", Some("mine"))
            .await
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("{verb:?} of its own"))?;
    }
    let namespace =
        scene.cluster.kubectl(&["get", "namespace", SYSTEM_NAMESPACE, "-o", "jsonpath={.metadata.labels}"]).await?;
    ensure!(namespace.contains(r#""pod-security.kubernetes.io/enforce":"restricted""#), "{namespace}");
    scene.cluster.remove().await
}
