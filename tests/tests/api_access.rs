//! What the service accounts may and must not do, tried on a real API server with the installed roles and policy.
#![cfg(feature = "cluster")]

use anyhow::{Context, Result};
use breakwater_tests::cluster::{Cluster, until};
use breakwater_tests::product::api_server;
use std::time::Duration;

const OPERATOR: &str = "system:serviceaccount:breakwater-system:breakwater-operator";
const AGENT: &str = "system:serviceaccount:breakwater-nodes:breakwater-node-agent";

/// The verb and resource as `kubectl auth can-i` takes them, and the namespace; none for the whole cluster.
type Attempt = (&'static str, &'static str, &'static str);

const OPERATOR_MAY: &[Attempt] = &[
    ("watch", "registrymirrors.breakwater.dev", ""),
    ("patch", "registrymirrors.breakwater.dev/status", ""),
    ("watch", "mirrornodes.breakwater.dev", ""),
    ("watch", "nodes", ""),
    ("list", "pods", ""),
    ("watch", "deployments.apps", ""),
    ("watch", "statefulsets.apps", ""),
    ("watch", "daemonsets.apps", ""),
    ("watch", "jobs.batch", ""),
    ("watch", "cronjobs.batch", ""),
    ("create", "secrets", "breakwater-system"),
    ("patch", "statefulsets.apps", "breakwater-system"),
    ("watch", "configmaps", "breakwater-system"),
    ("patch", "persistentvolumeclaims", "breakwater-system"),
    ("patch", "secrets/breakwater-relay", "breakwater-nodes"),
    ("create", "events.events.k8s.io", "default"),
];

const OPERATOR_MUST_NOT: &[Attempt] = &[
    ("get", "secrets", ""),
    ("get", "secrets", "default"),
    ("list", "secrets", "breakwater-nodes"),
    ("get", "secrets/other", "breakwater-nodes"),
    ("create", "registrymirrors.breakwater.dev", ""),
    ("patch", "registrymirrors.breakwater.dev", ""),
    ("patch", "mirrornodes.breakwater.dev/status", ""),
    // Nothing that holds content or keys is its to delete, and ConfigMaps are their owners'.
    ("delete", "statefulsets.apps", "breakwater-system"),
    ("delete", "persistentvolumeclaims", "breakwater-system"),
    ("delete", "secrets", "breakwater-system"),
    ("patch", "configmaps", "breakwater-system"),
    ("get", "configmaps", "kube-system"),
    ("patch", "persistentvolumeclaims", "default"),
    ("patch", "networkpolicies.networking.k8s.io", "breakwater-system"),
    ("impersonate", "serviceaccounts", ""),
    ("create", "serviceaccounts/token", "breakwater-system"),
    ("create", "pods", "breakwater-system"),
    ("patch", "deployments.apps", ""),
    ("patch", "statefulsets.apps", "default"),
    ("watch", "configmaps", ""),
    ("patch", "nodes", ""),
    ("create", "clusterrolebindings.rbac.authorization.k8s.io", ""),
];

const AGENT_MAY: &[Attempt] = &[
    ("watch", "registrymirrors.breakwater.dev", ""),
    ("watch", "nodes", ""),
    ("watch", "endpointslices.discovery.k8s.io", "breakwater-system"),
    ("watch", "secrets/breakwater-relay", "breakwater-nodes"),
    ("get", "daemonsets.apps/breakwater-node-agent", "breakwater-nodes"),
    ("get", "namespaces/breakwater-nodes", "breakwater-nodes"),
    ("patch", "mirrornodes.breakwater.dev/status", ""),
];

const AGENT_MUST_NOT: &[Attempt] = &[
    ("get", "secrets", ""),
    ("list", "secrets", "breakwater-system"),
    ("list", "secrets", "breakwater-nodes"),
    ("get", "secrets/other", "breakwater-nodes"),
    ("patch", "secrets/breakwater-relay", "breakwater-nodes"),
    ("patch", "registrymirrors.breakwater.dev", ""),
    ("patch", "registrymirrors.breakwater.dev/status", ""),
    ("get", "pods", ""),
    ("list", "configmaps", "breakwater-system"),
    ("patch", "statefulsets.apps", "breakwater-system"),
    ("create", "serviceaccounts/token", "breakwater-nodes"),
    ("patch", "nodes", ""),
    ("patch", "daemonsets.apps/breakwater-node-agent", "breakwater-nodes"),
];

/// A cache mounts no token; were one stolen, it would open nothing.
const CACHE: &str = "system:serviceaccount:breakwater-system:default";

const CACHE_MUST_NOT: &[Attempt] = &[
    ("get", "secrets", "breakwater-system"),
    ("list", "configmaps", "breakwater-system"),
    ("get", "pods", "breakwater-system"),
    ("get", "registrymirrors.breakwater.dev", ""),
    ("get", "nodes", ""),
];

async fn can(cluster: &Cluster, who: &str, (verb, resource, namespace): Attempt) -> Result<bool> {
    let scope: Vec<&str> = if namespace.is_empty() { vec!["--all-namespaces"] } else { vec!["--namespace", namespace] };
    // `secrets/name` is one object to kubectl, but a subresource has a flag of its own.
    let split = resource.rsplit_once('/').filter(|(_, end)| ["status", "token"].contains(end));
    let (resource, subresource) = split.unwrap_or((resource, ""));
    let mut arguments = vec!["auth", "can-i", verb, resource, "--subresource", subresource, "--as", who];
    arguments.extend(scope);
    match cluster.kubectl(&arguments).await {
        Ok(_) => Ok(true),
        Err(error) if format!("{error:#}").contains("exit status: 1: no") => Ok(false),
        Err(error) => Err(error),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_service_account_may_do_its_work_and_no_more() -> Result<()> {
    let cluster = api_server().await?;
    for (who, expected, attempts) in [
        (OPERATOR, true, OPERATOR_MAY),
        (OPERATOR, false, OPERATOR_MUST_NOT),
        (AGENT, true, AGENT_MAY),
        (AGENT, false, AGENT_MUST_NOT),
        (CACHE, false, CACHE_MUST_NOT),
    ] {
        for attempt in attempts {
            assert_eq!(can(&cluster, who, *attempt).await?, expected, "{who}: {attempt:?}");
        }
    }
    cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_writes_the_mirror_node_of_its_own_node_alone() -> Result<()> {
    let cluster = api_server().await?;
    let create = async |node: &str, bound_to: &str| {
        let extra = format!("authentication.kubernetes.io/node-name={bound_to}");
        let object =
            format!(r#"{{"apiVersion":"breakwater.dev/v1alpha1","kind":"MirrorNode","metadata":{{"name":"{node}"}}}}"#);
        let file = cluster.state().join(format!("{node}-{bound_to}.json"));
        std::fs::write(&file, object).context("write an object")?;
        let path = file.to_string_lossy().into_owned();
        cluster.kubectl(&["create", "-f", &path, "--as", AGENT, "--as-user-extra", &extra]).await
    };
    // A new policy takes effect a moment after it is stored.
    until(Duration::from_secs(20), "the policy to hold", async || match create("other", "mine").await {
        Ok(_) => {
            cluster.kubectl(&["delete", "mirrornode", "other"]).await?;
            Ok(None)
        }
        Err(error) if format!("{error:#}").contains("must be the MirrorNode of the node that the agent runs on") => {
            Ok(Some(()))
        }
        Err(error) => Err(error),
    })
    .await?;
    create("mine", "mine").await?;
    cluster.remove().await
}
