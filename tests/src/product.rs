//! Breakwater on a test cluster: installed as users install it, and watched from outside. It knows no fault and no story.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use breakwater_crds::names::{ADMIN_PORT, LABEL_MIRROR, SYSTEM_NAMESPACE};
use breakwater_crds::{MirrorNode, RegistryMirror};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::api::ListParams;

use crate::binaries::workspace;
use crate::cluster::{Cluster, until};
use crate::direct;
use crate::distribution::Distribution;
use crate::release;

/// The cache's program, as a node sees its process.
pub const CACHE_PROGRAM: &str = "breakwater-registry";
/// The operator's.
pub const OPERATOR_PROGRAM: &str = "breakwater-operator";
/// The agent's.
pub const AGENT_PROGRAM: &str = "breakwater-node-agent";

const INSTALL_LIMIT: Duration = Duration::from_secs(90);
const DEFINED_LIMIT: Duration = Duration::from_secs(30);

/// An API server with what config/default holds, where nothing acts on it.
///
/// # Errors
/// Fails when it does not come up or refuses.
pub async fn api_server() -> Result<Cluster> {
    let cluster = Cluster::control_plane_only().await?;
    apply_default(&cluster).await?;
    definitions_hold(&cluster).await?;
    Ok(cluster)
}

/// Waits until what was just defined can be used. Definitions settle a moment after they are created, and the API server serves them
/// another moment later; users' kubectl waits for nothing.
///
/// # Errors
/// Fails when that does not come.
pub async fn definitions_hold(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"]).await?;
    let served = async || Ok(cluster.kubectl(&["get", "rmir,mirrornodes"]).await.ok().map(drop));
    until(DEFINED_LIMIT, "the new kinds to be served", served).await
}

async fn apply_default(cluster: &Cluster) -> Result<()> {
    let config = workspace().join("config/default");
    cluster.kubectl(&["apply", "-k", &config.to_string_lossy()]).await.map(drop)
}

/// Breakwater in a cluster.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    cluster: &'a Cluster,
}

impl<'a> Product<'a> {
    /// Breakwater as somebody else installs it.
    #[must_use]
    pub fn installed(cluster: &'a Cluster) -> Self {
        Self { cluster }
    }

    /// Builds the image and installs it.
    ///
    /// # Errors
    /// Fails when cargo does, and as [`Product::install_archive`].
    pub async fn install(cluster: &'a Cluster) -> Result<Self> {
        let archive = tokio::task::spawn_blocking(release::image_archive).await.context("build the image")??;
        Self::install_archive(cluster, &archive).await
    }

    /// Imports the image on every node, applies config/default and waits until operator and agents are ready.
    ///
    /// # Errors
    /// Fails when a part does not become ready, with what its Pods say.
    pub async fn install_archive(cluster: &'a Cluster, archive: &Path) -> Result<Self> {
        for node in cluster.nodes() {
            node.import_image(archive).await?;
        }
        let product = Self { cluster };
        apply_default(cluster).await?;
        let limit = format!("--timeout={}s", INSTALL_LIMIT.as_secs());
        for (namespace, workload) in [
            ("breakwater-system", "deployment/breakwater-operator"),
            ("breakwater-nodes", "daemonset/breakwater-node-agent"),
        ] {
            if let Err(error) = cluster.kubectl(&["-n", namespace, "rollout", "status", workload, &limit]).await {
                return Err(error.context(product.complaints().await));
            }
        }
        Ok(product)
    }

    /// Applies a mirror of a test registry: the cache asks its plain listener, and so do nodes that fall back.
    ///
    /// # Errors
    /// Fails when the API server refuses it.
    pub async fn mirror(&self, name: &str, upstream: &Distribution) -> Result<()> {
        let manifest = format!(
            "apiVersion: breakwater.dev/v1alpha1\nkind: RegistryMirror\nmetadata: {{name: {name}}}\n\
             spec: {{registry: '{}', url: '{}', freshness: {{tagTTL: 1s}}}}\n",
            upstream.registry(),
            upstream.plain_url()
        );
        self.cluster.apply(&manifest).await.map(drop)
    }

    /// Waits until every mirror is Ready in its current generation.
    ///
    /// # Errors
    /// Fails after `limit`, with what mirrors, nodes and Pods say.
    pub async fn ready(&self, limit: Duration) -> Result<()> {
        let mirrors: Api<RegistryMirror> = Api::all(self.cluster.client());
        let ready = until(limit, "every mirror to be Ready", async || {
            let list = mirrors.list(&ListParams::default()).await.context("list the mirrors")?;
            Ok(list.items.iter().all(is_ready).then_some(()))
        })
        .await;
        match ready {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.complaints().await)),
        }
    }

    /// Waits until a mirror's condition has this status.
    ///
    /// # Errors
    /// Fails after `limit`, with the condition as it is.
    pub async fn condition(&self, mirror: &str, kind: &str, status: &str, limit: Duration) -> Result<Condition> {
        let mirrors: Api<RegistryMirror> = Api::all(self.cluster.client());
        let mut last = None;
        let reached = until(limit, &format!("{kind}={status} of {mirror}"), async || {
            // An API server under load may not answer in time.
            let Ok(mirror) = mirrors.get(mirror).await else { return Ok(None) };
            last = mirror.status.and_then(|s| s.conditions.into_iter().find(|c| c.type_ == kind));
            Ok(last.clone().filter(|condition| condition.status == status))
        })
        .await;
        reached.with_context(|| format!("{kind} is {last:?}"))
    }

    /// Waits until no node has a file of ours.
    ///
    /// # Errors
    /// Fails after `limit`.
    pub async fn given_back(&self, limit: Duration) -> Result<()> {
        let nodes: Api<MirrorNode> = Api::all(self.cluster.client());
        until(limit, "every node to have given its files back", async || {
            let list = nodes.list(&ListParams::default()).await.context("list the MirrorNodes")?;
            let none_left = |node: &MirrorNode| node.status.as_ref().is_some_and(|status| status.observed.mirrors == 0);
            Ok((!list.items.is_empty() && list.items.iter().all(none_left)).then_some(()))
        })
        .await
    }

    /// The first Pod of a mirror's cache.
    ///
    /// # Errors
    /// Fails when there is none that runs.
    pub async fn cache_pod(&self, mirror: &str) -> Result<CachePod> {
        self.cache_pods(mirror).await?.into_iter().next().with_context(|| format!("{mirror} has no cache Pod"))
    }

    /// The Pods of a mirror's cache.
    ///
    /// # Errors
    /// Fails when one has no address.
    pub async fn cache_pods(&self, mirror: &str) -> Result<Vec<CachePod>> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client(), SYSTEM_NAMESPACE);
        let ours = ListParams::default().labels(&format!("{LABEL_MIRROR}={mirror}"));
        let pods = pods.list(&ours).await.context("list the cache's Pods")?.items;
        pods.into_iter().map(CachePod::of).collect()
    }

    /// The sum of a metric of a mirror's cache over all label sets that contain `label`.
    ///
    /// # Errors
    /// Fails when the cache's admin listener does not answer, or knows no such metric.
    pub async fn cache_metric(&self, mirror: &str, metric: &str, label: &str) -> Result<f64> {
        let pod = self.cache_pod(mirror).await?;
        self.pod_metric(&pod, metric, label).await
    }

    /// The same of one Pod.
    ///
    /// # Errors
    /// Fails when its admin listener does not answer.
    pub async fn pod_metric(&self, pod: &CachePod, metric: &str, label: &str) -> Result<f64> {
        let forward = self.cluster.forward(pod.address, ADMIN_PORT).await?;
        let url = format!("http://{}/metrics", forward.address());
        let answer = direct::client()?.get(&url).send().await.context("ask for metrics")?;
        let text = answer.text().await.context("read the metrics")?;
        ensure!(text.lines().any(|line| line.starts_with(metric)), "the cache has no metric {metric}");
        Ok(text
            .lines()
            .filter(|line| line.starts_with(metric) && line.contains(label))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum())
    }

    /// Sends a signal (`KILL`, `STOP`, `CONT`) to a program of ours on every node that runs it.
    ///
    /// # Errors
    /// Fails when no node runs it.
    pub async fn signal(&self, program: &str, signal: &str) -> Result<()> {
        let mut found = false;
        for node in self.cluster.nodes() {
            // A node without the program makes killall fail.
            found |= node.exec(&["busybox", "killall", &format!("-{signal}"), program]).await.is_ok();
        }
        if found { Ok(()) } else { bail!("no node runs {program}") }
    }

    /// What mirrors, nodes and Pods say, for the message of a failure.
    pub async fn complaints(&self) -> String {
        let mut text = String::new();
        for arguments in [
            &["get", "rmir,mirrornodes", "-o", "wide"][..],
            &["get", "pods", "-A", "-o", "wide"],
            &[
                "get",
                "events",
                "-A",
                "--field-selector=type=Warning",
                "-o",
                "custom-columns=O:.involvedObject.name,M:.message",
            ],
            &["-n", "breakwater-system", "logs", "deployment/breakwater-operator", "--tail=20"],
            &["-n", "breakwater-nodes", "logs", "daemonset/breakwater-node-agent", "--tail=20"],
            &["-n", "breakwater-system", "logs", "-l", "app.kubernetes.io/name=breakwater-cache", "--tail=20"],
        ] {
            let said = self.cluster.kubectl(arguments).await.unwrap_or_else(|error| format!("{error:#}"));
            text = format!("{text}--- kubectl {}\n{said}\n", arguments.join(" "));
        }
        text
    }
}

/// The Pod of a cache.
#[derive(Debug, Clone)]
pub struct CachePod {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub node: String,
    /// Its address in the cluster's network.
    pub address: Ipv4Addr,
}

impl CachePod {
    fn of(pod: Pod) -> Result<Self> {
        let address = pod.status.and_then(|status| status.pod_ip).context("the cache's Pod has no address")?;
        Ok(Self {
            name: pod.metadata.name.unwrap_or_default(),
            node: pod.spec.and_then(|spec| spec.node_name).unwrap_or_default(),
            address: address.parse().with_context(|| format!("take {address} for an address"))?,
        })
    }
}

fn is_ready(mirror: &RegistryMirror) -> bool {
    let ready = |condition: &Condition| {
        condition.type_ == "Ready"
            && condition.status == "True"
            && condition.observed_generation == mirror.metadata.generation
    };
    mirror.status.as_ref().is_some_and(|status| status.conditions.iter().any(ready))
}

/// Every file and folder below a folder: mode, and bytes of a file.
pub type Snapshot = BTreeMap<PathBuf, (u32, Option<Vec<u8>>)>;

/// Looks at everything below a folder, to be compared with a later look.
///
/// # Errors
/// Fails when something cannot be read.
pub fn snapshot(folder: &Path) -> Result<Snapshot> {
    use std::os::unix::fs::PermissionsExt;
    let mut found = BTreeMap::new();
    if !folder.exists() {
        return Ok(found);
    }
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).with_context(|| format!("list {}", next.display()))? {
            let entry = entry.with_context(|| format!("list {}", next.display()))?;
            let (path, kind) = (entry.path(), entry.file_type().context("look at a file")?);
            let mode = entry.metadata().context("look at a file")?.permissions().mode();
            let bytes = if kind.is_file() { Some(std::fs::read(&path).context("read a file")?) } else { None };
            if kind.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path, (mode, bytes));
        }
    }
    Ok(found)
}
