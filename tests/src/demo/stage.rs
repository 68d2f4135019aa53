//! The demo's stage: two nodes, two registries with images, a foreign mirror file, and Breakwater installed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::{Cluster, ClusterConfig, Node, PodStart};
use crate::distribution::{Distribution, DistributionConfig};
use crate::images::Image;
use crate::product::{Product, Snapshot, snapshot};
use crate::release;
use anyhow::{Context, Result};

use super::report::Report;

/// Long enough for a loaded machine; the table shows how long it really took.
pub(super) const POD_LIMIT: Duration = Duration::from_secs(60);
const READY_LIMIT: Duration = Duration::from_secs(90);
/// Each image is a shell and two layers of random bytes.
const LAYERS: [usize; 2] = [4 << 20, 1 << 20];

/// A file that was on the nodes before Breakwater, with a comment and a mirror of its own.
const FOREIGN: &str = "# Written by hand, long before Breakwater.\n\
server = \"http://registry-b.test:5001\"\n\n\
[host.\"http://registry-b.test:5001\"]   # the rack's own\n  capabilities = [\"pull\", \"resolve\"]\n";

/// A cluster, two registries, and what the nodes looked like before Breakwater.
pub(super) struct Stage {
    // The registries before the cluster, because fields are dropped in order: the parent of a process that somebody stopped
    // is stopped as well, and would hold up the cluster's end.
    /// `registry-a.test`.
    pub(super) a: Distribution,
    /// `registry-b.test:5000`, a name with a port.
    pub(super) b: Distribution,
    pub(super) cluster: Cluster,
    /// Breakwater's image.
    archive: PathBuf,
    /// Images by what the story uses them for.
    images: BTreeMap<&'static str, String>,
    /// certs.d of each node before Breakwater, by the node's name.
    pub(super) before: BTreeMap<String, Snapshot>,
}

impl Stage {
    /// Sets everything up: builds what is missing, starts the cluster and the registries, pushes images.
    pub(super) async fn set() -> Result<Self> {
        Report::chapter("Setting the stage: a two-node cluster and two registries");
        // First, so that a compiler's error comes before minutes of other work.
        let archive = tokio::task::spawn_blocking(release::image_archive).await.context("build the image")??;
        let cluster = Cluster::start(ClusterConfig { nodes: 2, ..ClusterConfig::default() }).await?;
        let a = Distribution::start(&cluster, DistributionConfig::at("registry-a.test")).await?;
        let b = Distribution::start(&cluster, DistributionConfig::at("registry-b.test:5000")).await?;
        let mut images = BTreeMap::new();
        for (seed, name) in (1..).zip(["app", "direct", "frozen-first", "frozen-next", "gone"]) {
            images.insert(name, a.push(&Image::busybox_app(&format!("team/{name}"), seed, &LAYERS)?).await?);
        }
        images.insert("job", b.push(&Image::busybox_app("tools/job", 100, &LAYERS)?).await?);
        let mut before = BTreeMap::new();
        for node in cluster.nodes() {
            let folder = node.certs_d().join(b.registry());
            std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
            std::fs::write(folder.join("hosts.toml"), FOREIGN).context("write a hosts.toml by hand")?;
            before.insert(node.name().to_owned(), snapshot(&node.certs_d())?);
        }
        Ok(Self { a, b, cluster, archive, images, before })
    }

    /// Installs Breakwater as the README says, and applies a mirror for each registry.
    pub(super) async fn install(&self) -> Result<Product<'_>> {
        let product = Product::install_archive(&self.cluster, &self.archive).await?;
        product.mirror("registry-a", &self.a).await?;
        product.mirror("registry-b", &self.b).await?;
        product.ready(READY_LIMIT).await?;
        Ok(product)
    }

    /// A reference by what the story uses the image for.
    pub(super) fn image(&self, name: &str) -> Result<&str> {
        self.images.get(name).map(String::as_str).with_context(|| format!("no image {name} was pushed"))
    }

    /// Starts a Pod of an image on a node and waits until it runs.
    pub(super) async fn start(&self, pod: &str, image: &str, node: &Node) -> Result<PodStart> {
        self.cluster.run_pod(pod, self.image(image)?, Some(node.name())).await?.running(POD_LIMIT).await
    }

    /// Stops both registries: connections are refused.
    pub(super) async fn stop_upstreams(&self) -> Result<()> {
        self.a.stop().await?;
        self.b.stop().await
    }

    /// Starts both again.
    pub(super) async fn resume_upstreams(&self) -> Result<()> {
        self.a.resume(&self.cluster).await?;
        self.b.resume(&self.cluster).await
    }

    /// Keeps the stage with Breakwater and both mirrors until Ctrl-C.
    pub(super) async fn linger(&self) -> Result<()> {
        self.install().await?;
        let kubectl = format!("kubectl --kubeconfig {}", self.cluster.kubeconfig().display());
        println!("\nThe playground is up; Ctrl-C removes it. In another terminal:\n");
        println!("  {kubectl} get rmir,mirrornodes");
        println!("  {kubectl} run app --image={} --command -- /bin/busybox sleep 1d", self.image("app")?);
        println!("  cat {}", self.cluster.nodes()[0].certs_d().join("registry-a.test/hosts.toml").display());
        println!("\nImages:");
        for image in self.images.values() {
            println!("  {image}");
        }
        for (registry, init) in [(&self.a, self.a.host().machine().init()), (&self.b, self.b.host().machine().init())] {
            println!("\nStop {}:   nsenter -t {init} -p -m busybox killall -STOP registry", registry.registry());
            println!("Go on again: nsenter -t {init} -p -m busybox killall -CONT registry");
        }
        // Ctrl-C ends the wait from outside.
        std::future::pending().await
    }

    /// Removes everything.
    pub(super) async fn strike(self) -> Result<()> {
        let Self { a, b, cluster, archive: _, images: _, before: _ } = self;
        drop((a, b));
        cluster.remove().await
    }
}
