//! What the holder of a service account's token tries who means harm, on a real API server with the installed roles and policies: real
//! tokens, real requests, each refused with the reason that docs/security.md rests on.
#![cfg(feature = "cluster")]

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use breakwater_crds::MirrorNode;
use breakwater_tests::api_scene::SETTLE;
use breakwater_tests::cluster::{Cluster, until};
use breakwater_tests::product::api_server;
use kube::{Api, ResourceExt};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    /// The agent of the node `mine`.
    Agent,
    /// An agent whose Pod has no node yet.
    Unplaced,
    /// A token that no Pod is bound to.
    Unbound,
    Operator,
    /// What a cache would be, had it a token.
    Cache,
}
use Who::{Agent, Cache, Operator, Unbound, Unplaced};

const ROLE: &str = "is forbidden: User";
const NOT_OWN: &str = "must be the MirrorNode of the node that the agent runs on";
const OWNER: &str = "must have no owner but its Node";
const RELAY: &str = "must be the Secret breakwater-relay";
const TYPE: &str = "must be a Secret of type Opaque or kubernetes.io/tls";
const SERVICE: &str = "must be a Service of type ClusterIP with no externalIPs";

/// Who tries what; the object for `-f`, if it takes one; and how it is refused.
type Attempt = (Who, &'static str, &'static str, &'static str);

const OTHERS_MIRROR_NODE: &[Attempt] = &[
    (Agent, "create -f", "MirrorNode {name: third}", NOT_OWN),
    (Agent, "create -f", "MirrorNode {generateName: mine}", NOT_OWN),
    (Agent, "apply --server-side --force-conflicts -f", "MirrorNode {name: other, labels: {a: b}}", NOT_OWN),
    (Agent, "apply --server-side --subresource=status -f", "MirrorNode {name: other}", NOT_OWN),
    (Agent, "annotate mirrornode other a=b", "", NOT_OWN),
    (
        Agent,
        r#"patch mirrornode mine --type=merge -p {"metadata":{"name":"other"}}"#,
        "",
        "does not match the name on the URL",
    ),
    (Agent, "delete mirrornode other", "", NOT_OWN),
    (Agent, "delete mirrornode other --cascade=orphan", "", NOT_OWN),
    (Agent, "delete mirrornode --all", "", ROLE),
    (Agent, "delete --raw /apis/breakwater.dev/v1alpha1/mirrornodes", "", ROLE),
    (Agent, "replace -f", "MirrorNode {name: mine}", ROLE),
    (Agent, "get mirrornodes", "", ROLE),
    (Unplaced, "apply --server-side -f", "MirrorNode {name: mine}", NOT_OWN),
    (Unbound, "apply --server-side -f", "MirrorNode {name: mine}", NOT_OWN),
    (Operator, "apply --server-side -f", "MirrorNode {name: mine}", ROLE),
    (Operator, "delete mirrornode mine", "", ROLE),
    // Of its own, but at the cost of others: a definition that cannot be removed, a Node that cannot be deleted.
    (
        Agent,
        r#"patch mirrornode mine --type=merge -p {"metadata":{"finalizers":["a.example/b"]}}"#,
        "",
        "must have no finalizers",
    ),
    (
        Agent,
        "apply --server-side -f",
        "MirrorNode {name: mine, ownerReferences: [{apiVersion: v1, kind: Node, name: other, uid: u}]}",
        OWNER,
    ),
    (
        Agent,
        "apply --server-side -f",
        "MirrorNode {name: mine, ownerReferences: [{apiVersion: v1, kind: Node, name: mine, uid: u, blockOwnerDeletion: true}]}",
        OWNER,
    ),
];

const SECRETS: &[Attempt] = &[
    (Agent, "get secrets -n breakwater-system", "", ROLE),
    (Agent, "get secret hub -n breakwater-system", "", ROLE),
    (Agent, "get secrets -n breakwater-nodes", "", ROLE),
    (Agent, "get secrets -n breakwater-nodes --field-selector=metadata.name=other", "", ROLE),
    (Agent, "get secrets -A", "", ROLE),
    (Agent, "apply --server-side -n breakwater-nodes -f", "Secret {name: breakwater-relay}", ROLE),
    (Operator, "get secrets -A", "", ROLE),
    (Operator, "get secrets -n breakwater-nodes", "", ROLE),
    (Operator, "get secret other -n breakwater-nodes", "", ROLE),
    (Operator, "delete secret hub -n breakwater-system", "", ROLE),
    (Operator, "delete secrets --all -n breakwater-system", "", ROLE),
    (Operator, "create -n default -f", "Secret {name: other}", ROLE),
    (Operator, "create -n breakwater-nodes -f", "Secret {name: other}", RELAY),
    (Operator, "create -n breakwater-nodes -f", "Secret {generateName: breakwater-relay}", RELAY),
    (Cache, "get secrets -n breakwater-system", "", ROLE),
    (Cache, "get secret hub -n breakwater-system", "", ROLE),
];

const TOKENS_AND_PODS: &[Attempt] = &[
    (Agent, "create token breakwater-node-agent -n breakwater-nodes", "", ROLE),
    (Agent, "create token breakwater-operator -n breakwater-system", "", ROLE),
    (Operator, "create token breakwater-operator -n breakwater-system", "", ROLE),
    (Operator, "create token breakwater-node-agent -n breakwater-nodes", "", ROLE),
    // The older way to a token, which never ends.
    (
        Operator,
        "create -n breakwater-system -f",
        "Secret {name: token, annotations: {kubernetes.io/service-account.name: default}} type: kubernetes.io/service-account-token",
        TYPE,
    ),
    (
        Operator,
        "create -n breakwater-nodes -f",
        "Secret {name: breakwater-relay, annotations: {kubernetes.io/service-account.name: breakwater-node-agent}} \
         type: kubernetes.io/service-account-token",
        TYPE,
    ),
    (Agent, "get nodes --as=admin --as-group=system:masters", "", "impersonate"),
    (Operator, "get nodes --as=admin --as-group=system:masters", "", "impersonate"),
    (
        Agent,
        "delete mirrornode other --as=system:serviceaccount:breakwater-nodes:breakwater-node-agent \
         --as-user-extra=authentication.kubernetes.io/node-name=other",
        "",
        "impersonate",
    ),
    (Agent, "get pods -n breakwater-nodes", "", ROLE),
    (Agent, "exec -n breakwater-nodes agent-other -- id", "", ROLE),
    (
        Agent,
        "create --raw /api/v1/namespaces/breakwater-nodes/pods/agent-other/exec?command=id -f",
        "Pod {name: x}",
        ROLE,
    ),
    (
        Operator,
        "create --raw /api/v1/namespaces/breakwater-nodes/pods/agent-other/exec?command=id -f",
        "Pod {name: x}",
        ROLE,
    ),
    (Operator, "create --raw /api/v1/nodes/mine/proxy/run -f", "Pod {name: x}", ROLE),
    (Agent, "get --raw /api/v1/nodes/other/proxy/pods", "", ROLE),
    (Operator, "create -n breakwater-system -f", "Pod {name: x} spec: {containers: [{name: a, image: a}]}", ROLE),
    (Operator, "delete pod agent-other -n breakwater-nodes", "", ROLE),
];

const WORKLOADS_AND_RULES: &[Attempt] = &[
    (Agent, "annotate daemonset breakwater-node-agent -n breakwater-nodes a=b", "", ROLE),
    (Agent, "scale statefulset x --replicas=0 -n breakwater-system", "", ROLE),
    (Operator, "annotate daemonset breakwater-node-agent -n breakwater-nodes a=b", "", ROLE),
    (Operator, "annotate deployment breakwater-operator -n breakwater-system a=b", "", ROLE),
    (Operator, "delete statefulset x -n breakwater-system", "", ROLE),
    (Operator, "apply --server-side -n default -f", "StatefulSet {name: x}", ROLE),
    (
        Operator,
        "apply --server-side -n breakwater-system -f",
        "Service {name: x} spec: {selector: {a: b}, ports: [{port: 53}], externalIPs: [192.0.2.1]}",
        SERVICE,
    ),
    (
        Operator,
        "apply --server-side -n breakwater-system -f",
        "Service {name: x} spec: {type: LoadBalancer, ports: [{port: 53}]}",
        SERVICE,
    ),
    (Operator, "annotate networkpolicy breakwater-cache -n breakwater-system a=b", "", ROLE),
    (Operator, "label namespace breakwater-system a=b", "", ROLE),
    (Agent, "label node other a=b", "", ROLE),
    (Operator, "label node other a=b", "", ROLE),
    (Agent, "delete validatingadmissionpolicybinding breakwater-mirrornodes", "", ROLE),
    (Operator, "delete validatingadmissionpolicybinding breakwater-operator", "", ROLE),
    (Operator, "annotate clusterrole breakwater-operator a=b", "", ROLE),
    (Operator, "create clusterrolebinding x --clusterrole=cluster-admin --user=x", "", ROLE),
    (Operator, "create rolebinding x --clusterrole=admin --user=x -n breakwater-system", "", ROLE),
    (Agent, "annotate crd mirrornodes.breakwater.dev a=b", "", ROLE),
    (Operator, "delete crd mirrornodes.breakwater.dev", "", ROLE),
    (Agent, "create -f", "RegistryMirror {name: x} spec: {registry: a.b}", ROLE),
    (Operator, "create -f", "RegistryMirror {name: x} spec: {registry: a.b}", ROLE),
    (Operator, "delete rmir stored", "", ROLE),
    (Operator, r#"patch rmir stored --type=merge -p {"spec":{"url":"https://evil.example"}}"#, "", ROLE),
    (Agent, "apply --server-side --subresource=status -f", "RegistryMirror {name: stored}", ROLE),
    (Cache, "get rmir", "", ROLE),
    (Cache, "get pods -n breakwater-system", "", ROLE),
];

/// `Kind {metadata} rest` as JSON.
fn object(text: &str) -> Result<String> {
    let (kind, rest) = text.split_once(' ').context("a kind and metadata")?;
    let version = match kind {
        "MirrorNode" | "RegistryMirror" => "breakwater.dev/v1alpha1",
        "StatefulSet" => "apps/v1",
        _ => "v1",
    };
    let end = rest.match_indices('}').map(|(at, _)| at + 1).find(|end| {
        let open = |c: char| rest[..*end].matches(c).count();
        open('{') == open('}')
    });
    let (metadata, rest) = rest.split_at(end.context("metadata has no end")?);
    let yaml = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {metadata}\n{}\n", rest.trim());
    let value: serde_json::Value = serde_saphyr::from_str(&yaml).with_context(|| format!("parse {yaml}"))?;
    Ok(value.to_string())
}

/// Two nodes with an agent each, one agent that has no node yet, and something of everything to be taken.
async fn stage(cluster: &Cluster) -> Result<BTreeMap<Who, String>> {
    for node in ["mine", "other"] {
        cluster.apply(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: {node}}}}}")).await?;
        cluster.apply(&object(&format!("MirrorNode {{name: {node}}}"))?).await?;
    }
    for (name, place) in
        [("agent-mine", "nodeName: mine, "), ("agent-other", "nodeName: other, "), ("agent-unplaced", "")]
    {
        let spec = format!("{{{place}serviceAccountName: breakwater-node-agent, containers: [{{name: a, image: a}}]}}");
        cluster.apply(&object(&format!("Pod {{name: {name}, namespace: breakwater-nodes}} spec: {spec}"))?).await?;
    }
    for namespace in ["breakwater-system", "breakwater-nodes"] {
        for name in ["hub", "other"] {
            cluster.apply(&object(&format!("Secret {{name: {name}, namespace: {namespace}}}"))?).await?;
        }
    }
    cluster.apply(&object("ServiceAccount {name: default, namespace: breakwater-system}")?).await?;
    cluster.apply(&object("RegistryMirror {name: stored} spec: {registry: docker.io}")?).await?;
    let bound = async |pod: &str| {
        let uid =
            cluster.kubectl(&["get", "pod", pod, "-n", "breakwater-nodes", "-o", "jsonpath={.metadata.uid}"]).await?;
        let bound = format!("--bound-object-kind=Pod --bound-object-name={pod} --bound-object-uid={uid}");
        token(cluster, "breakwater-nodes breakwater-node-agent", &bound).await
    };
    Ok(BTreeMap::from([
        (Agent, bound("agent-mine").await?),
        (Unplaced, bound("agent-unplaced").await?),
        (Unbound, token(cluster, "breakwater-nodes breakwater-node-agent", "").await?),
        (Operator, token(cluster, "breakwater-system breakwater-operator", "").await?),
        (Cache, token(cluster, "breakwater-system default", "").await?),
    ]))
}

async fn token(cluster: &Cluster, account: &str, more: &str) -> Result<String> {
    let (namespace, name) = account.split_once(' ').context("a namespace and a name")?;
    let mut arguments = vec!["create", "token", name, "-n", namespace];
    arguments.extend(more.split_whitespace());
    Ok(cluster.kubectl(&arguments).await?.trim().to_owned())
}

async fn attempt(cluster: &Cluster, token: &str, command: &str, given: &str) -> Result<Result<String, String>> {
    let token = format!("--token={token}");
    let mut arguments: Vec<&str> = command.split_whitespace().collect();
    let file = cluster.state().join("attempt.json").to_string_lossy().into_owned();
    if !given.is_empty() {
        std::fs::write(&file, object(given)?).context("write an object")?;
        arguments.push(&file);
    }
    // Before any `--`, behind which all is the command's.
    arguments.insert(0, &token);
    Ok(cluster.kubectl(&arguments).await.map_err(|error| format!("{error:#}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_a_token_gains_nothing_that_the_page_on_security_denies() -> Result<()> {
    let cluster = api_server().await?;
    let tokens = stage(&cluster).await?;
    // New policies take effect a moment after they are stored.
    for (who, command, given, refusal) in [
        (Agent, "annotate mirrornode other a=b --overwrite", "", NOT_OWN),
        (Operator, "create -n breakwater-nodes -f", "Secret {generateName: a}", RELAY),
    ] {
        until(SETTLE, "the policies to hold", async || {
            let said = attempt(&cluster, &tokens[&who], command, given).await?.err();
            Ok(said.filter(|said| said.contains(refusal)))
        })
        .await?;
    }
    let mut wrong = Vec::new();
    for (who, command, given, refusal) in [OTHERS_MIRROR_NODE, SECRETS, TOKENS_AND_PODS, WORKLOADS_AND_RULES].concat() {
        match attempt(&cluster, &tokens[&who], command, given).await? {
            Err(said) if said.contains(refusal) => {}
            other => wrong.push(format!("{who:?} {command} {given}: must be refused with {refusal:?}: {other:?}")),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));

    // What is theirs to do is done all the same, and what rides along with a status has no effect.
    let own = "MirrorNode {name: mine, ownerReferences: [{apiVersion: v1, kind: Node, name: mine, uid: u, blockOwnerDeletion: false}]}";
    for (who, command, given) in [
        (Agent, "apply --server-side -f", own),
        (Agent, "apply --server-side --subresource=status -f", "MirrorNode {name: mine, finalizers: [a.example/b]}"),
        (Agent, "get secrets -n breakwater-nodes --field-selector=metadata.name=breakwater-relay", ""),
        (Operator, "create -n breakwater-nodes -f", "Secret {name: breakwater-relay}"),
        (
            Operator,
            "apply --server-side -n breakwater-system -f",
            "Service {name: x} spec: {clusterIP: None, ports: [{port: 53}]}",
        ),
        (
            Operator,
            "apply --server-side -n breakwater-system -f",
            "Secret {name: x} type: kubernetes.io/tls\nstringData: {tls.crt: '', tls.key: ''}",
        ),
    ] {
        let answer = attempt(&cluster, &tokens[&who], command, given).await?;
        ensure!(answer.is_ok(), "{who:?} {command} {given}: {answer:?}");
    }
    let nodes: Api<MirrorNode> = Api::all(cluster.client());
    ensure!(nodes.get("mine").await.context("get")?.finalizers().is_empty());
    ensure!(attempt(&cluster, &tokens[&Agent], "delete mirrornode mine", "").await?.is_ok());
    cluster.remove().await
}
