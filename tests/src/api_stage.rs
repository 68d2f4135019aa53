//! The operator and real caches beside a real API server where nothing else acts. Where the operator wants a cache, the test starts the real
//! one on a loopback address and says in its name that a Pod of it runs there.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use breakwater_crds::names::{self, SYSTEM_NAMESPACE};
use breakwater_crds::{RegistryMirror, RegistryMirrorStatus};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, Secret, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use tempfile::TempDir;

use crate::cache::{Cache, Identity};
use crate::cluster::{Cluster, until};
use crate::operator::Operator;
use crate::product;
use crate::upstream::Upstream;

const SERVICE_ACCOUNT: &str = "system:serviceaccount:breakwater-system:breakwater-operator";
const LIMIT: Duration = Duration::from_secs(30);

/// An API server with Breakwater's definitions and roles, and a node for Linux on amd64.
pub struct Stage {
    /// Whose API server it is.
    pub cluster: Cluster,
    folder: TempDir,
}

impl Stage {
    /// Starts the API server and applies config/default.
    ///
    /// # Errors
    /// Fails when the API server does not come up or refuses.
    pub async fn start() -> Result<Self> {
        let cluster = product::api_server().await?;
        let account = |namespace| {
            format!(
                "---\n{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: default, namespace: {namespace}}}}}\n"
            )
        };
        cluster.apply(&format!("{}{}", account("default"), account(SYSTEM_NAMESPACE))).await?;
        let folder = TempDir::new().context("make a folder")?;
        write_kubeconfig(&cluster, &folder.path().join("kubeconfig"))?;
        let stage = Self { cluster, folder };
        stage.node("node-1", "amd64").await?;
        Ok(stage)
    }

    /// Adds a node that says to be for Linux on this architecture.
    ///
    /// # Errors
    /// Fails when the API server refuses.
    pub async fn node(&self, name: &str, architecture: &str) -> Result<()> {
        self.cluster.apply(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}}}")).await?;
        let info =
            "bootID machineID systemUUID kernelVersion osImage containerRuntimeVersion kubeletVersion kubeProxyVersion";
        let mut info: serde_json::Map<_, _> = info.split(' ').map(|key| (key.to_owned(), "x".into())).collect();
        info.extend([("operatingSystem".to_owned(), "linux".into()), ("architecture".to_owned(), architecture.into())]);
        let status = serde_json::json!({"status": {"nodeInfo": info}}).to_string();
        let patch = ["patch", "node", name, "--subresource=status", "--type=merge", "-p", &status];
        self.cluster.kubectl(&patch).await.map(drop)
    }

    /// Starts the operator with the rights of its service account.
    ///
    /// # Errors
    /// Fails when it cannot be started.
    pub fn operator(&self) -> Result<Operator> {
        Operator::start("operator-0", &self.folder.path().join("kubeconfig"), &self.cluster.logs())
    }

    /// Starts the real cache of a registry as its Pod would, with what the operator has put into its Secrets, and says in the API that a Pod
    /// runs at that address.
    ///
    /// # Errors
    /// Fails when the operator makes no Secrets, or the API server refuses.
    pub async fn cache(&self, upstream: &Upstream, data: &Path) -> Result<Cache> {
        self.cache_of_size(upstream, data, "40Gi").await
    }

    /// The same, with no more room than this.
    ///
    /// # Errors
    /// As [`Self::cache`].
    pub async fn cache_of_size(&self, upstream: &Upstream, data: &Path, size: &str) -> Result<Cache> {
        let name = names::cache_name(&upstream.host());
        let folder = self.folder.path().join(&name);
        for (part, secret) in [("tls", names::tls_secret(&name)), ("tokens", names::tokens_secret(&name))] {
            self.mount(&secret, &folder.join(part)).await?;
        }
        let address = own_loopback_address();
        let identity = Identity::given(&folder, address, names::cache_server_name(&name));
        let cache = Cache::of(upstream).identity(identity).port(names::TLS_PORT).data(data);
        let cache = cache.flag("--cache-size", size).start().await;
        let pod = names::pod_name(&name, 0);
        self.create_pod(&name, &pod).await?;
        let status = format!(
            r#"{{"status":{{"podIP":"{address}","podIPs":[{{"ip":"{address}"}}],"conditions":[{{"type":"Ready","status":"True"}}]}}}}"#
        );
        let patch =
            ["-n", SYSTEM_NAMESPACE, "patch", "pod", &pod, "--subresource=status", "--type=merge", "-p", &status];
        self.cluster.kubectl(&patch).await?;
        Ok(cache)
    }

    /// As the StatefulSet's controller does, from the template that the operator has made.
    async fn create_pod(&self, cache: &str, pod: &str) -> Result<()> {
        let sets: Api<StatefulSet> = Api::namespaced(self.cluster.client(), SYSTEM_NAMESPACE);
        let set =
            until(LIMIT, "the StatefulSet", async || sets.get_opt(cache).await.context("get a StatefulSet")).await?;
        let template = set.spec.template;
        let mut spec = template.spec.context("the template has no spec")?;
        let claim = PersistentVolumeClaimVolumeSource { claim_name: format!("data-{pod}"), read_only: None };
        let volume = Volume { name: "data".to_owned(), persistent_volume_claim: Some(claim), ..Volume::default() };
        spec.volumes.get_or_insert_default().push(volume);
        let mut metadata = template.metadata.context("the template has no metadata")?;
        (metadata.name, metadata.namespace) = (Some(pod.to_owned()), Some(SYSTEM_NAMESPACE.to_owned()));
        let object = Pod { metadata, spec: Some(spec), status: None };
        self.cluster
            .apply(&format!("{{apiVersion: v1, kind: Pod, {}", &serde_json::to_string(&object)?[1..]))
            .await
            .map(drop)
    }

    /// As the kubelet mounts a Secret.
    async fn mount(&self, secret: &str, folder: &Path) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.cluster.client(), SYSTEM_NAMESPACE);
        let what = format!("Secret {secret}");
        let found = until(LIMIT, &what, async || secrets.get_opt(secret).await.context("get a Secret")).await?;
        std::fs::create_dir_all(folder).context("make a folder for a Secret")?;
        for (key, value) in found.data.unwrap_or_default() {
            std::fs::write(folder.join(key), value.0).context("write a Secret's file")?;
        }
        Ok(())
    }

    /// The token that opens the pins of a mirror's cache.
    ///
    /// # Errors
    /// Fails when it has not been mounted.
    pub fn pins_token(&self, upstream: &Upstream) -> Result<String> {
        let folder = self.folder.path().join(names::cache_name(&upstream.host()));
        std::fs::read_to_string(folder.join("tokens/operator")).context("read the operator's token")
    }

    /// Waits until the mirror's status satisfies the condition.
    ///
    /// # Errors
    /// Fails after 30 seconds, with the status as it is.
    pub async fn status(
        &self,
        mirror: &str,
        what: &str,
        holds: impl Fn(&RegistryMirrorStatus) -> bool,
    ) -> Result<RegistryMirrorStatus> {
        let mirrors: Api<RegistryMirror> = Api::all(self.cluster.client());
        let mut last = None;
        let reached = until(LIMIT, what, async || {
            // An API server under load may not answer in time.
            let Ok(found) = mirrors.get(mirror).await else { return Ok(None) };
            last = found.status;
            Ok(last.clone().filter(&holds))
        })
        .await;
        reached.with_context(|| format!("the status is {last:#?}"))
    }
}

/// The condition of this type.
#[must_use]
pub fn condition<'a>(status: &'a RegistryMirrorStatus, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == kind)
}

/// An address that nobody else has, because a cache's port is fixed.
fn own_loopback_address() -> Ipv4Addr {
    static TAKEN: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, TAKEN.fetch_add(1, Ordering::Relaxed), high, low.clamp(1, 254))
}

/// Writes a kubeconfig with the rights of the operator's service account.
pub(crate) fn write_kubeconfig(cluster: &Cluster, to: &Path) -> Result<()> {
    let text = std::fs::read(cluster.kubeconfig()).context("read the kubeconfig")?;
    let mut config: serde_json::Value = serde_json::from_slice(&text).context("parse the kubeconfig")?;
    config["users"][0]["user"]["as"] = SERVICE_ACCOUNT.into();
    std::fs::write(to, config.to_string()).context("write a kubeconfig")
}
