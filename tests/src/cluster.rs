//! A real Kubernetes cluster on this machine without Docker: etcd, the control plane and several nodes, each a set of
//! Linux namespaces. It knows nothing of Breakwater.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use std::time::Duration;
//! use breakwater_tests::cluster::{Cluster, ClusterConfig};
//! use breakwater_tests::distribution::{Distribution, DistributionConfig};
//! use breakwater_tests::images::Image;
//!
//! let cluster = Cluster::start(ClusterConfig { nodes: 2, ..ClusterConfig::default() }).await?;
//! let upstream = Distribution::start(&cluster, DistributionConfig::at("registry-a.test")).await?;
//! let image = upstream.push(&Image::busybox_app("team/app", 1, &[4 << 20])?).await?;
//! let pod = cluster.run_pod("app", &image, Some("node-1")).await?;
//! let start = pod.running(Duration::from_secs(60)).await?;
//! println!("running after {:?}, pulled in {:?}", start.total, start.pull);
//! cluster.node("node-1")?.power_off().await?;
//! cluster.remove().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What it looks like
//! ```text
//! host process (harness) --loopback port, sockets made in the namespace--.
//! sandbox: PID, mount, network, UTS namespaces; init = tini              |
//!   br0 10.80.0.1/16: API server :6443 <---------------------------------'   name server :53
//!    |-- node-1 10.80.1.1: containerd, kubelet, kube-proxy; pods 10.244.1.0/24
//!    |-- node-2 10.80.1.2: ...
//!    '-- registry-a.test 10.80.2.1: an upstream registry
//! ```
//! Every cluster has the same addresses in namespaces of its own, so any number run side by side, and nothing of it can
//! be seen on the host: no interface, no mount, no route, and no way out to the Internet.
//!
//! Its init lives as long as a pipe that the harness holds. However the harness ends, the whole cluster ends with it,
//! and a small script that outlives both removes the state folder and the cgroups.
//!
//! Everything that talks to the cluster from this process needs the Tokio runtime it was started on to keep turning: in
//! tests use `#[tokio::test(flavor = "multi_thread")]`.

mod control_plane;
mod credentials;
pub(crate) mod dns;
mod helm;
mod host;
mod kubectl;
mod machine;
mod netns;
mod node;
mod pki;
mod pods;
mod process;
mod sandbox;
mod volumes;
mod wait;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use kube::Client;
use tokio::net::TcpListener;

pub use host::Host;
pub use machine::Machine;
pub use netns::Forward;
pub use node::{Container, Node};
pub use pods::{PodStart, TestPod};
pub use process::Part;
pub use wait::until;

use crate::images::Image;
use crate::toolchain::{Toolchain, cache_folder};
use control_plane::ControlPlane;
use credentials::User;
use dns::NameServer;
use machine::GATEWAY;
use netns::NetworkNamespace;
use node::Surroundings;
use pki::{Identity, Pki};
use sandbox::Sandbox;

const NODES_LIMIT: Duration = Duration::from_secs(90);
/// So many failures leave their logs.
const LOGS_KEPT: usize = 5;

/// What a cluster is to be like.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// How many nodes; they are called `node-1`, `node-2` and so on.
    pub nodes: u8,
    /// How many PersistentVolumes of the default StorageClass `standard` each node offers. One that was claimed once is
    /// not offered again.
    pub volumes_per_node: u8,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self { nodes: 1, volumes_per_node: 8 }
    }
}

/// A running cluster, which ends when this is dropped.
pub struct Cluster {
    config: ClusterConfig,
    toolchain: Toolchain,
    pki: Pki,
    plane: ControlPlane,
    names: NameServer,
    nodes: Vec<Node>,
    hosts: AtomicU8,
    // Last, because fields are dropped in order: it ends what the others are still connected to.
    sandbox: Sandbox,
}

impl Cluster {
    /// Starts a cluster and waits until its nodes are ready: about ten seconds, once the toolchain is built.
    ///
    /// # Errors
    /// Fails when a part does not come up, with the end of its log.
    pub async fn start(config: ClusterConfig) -> Result<Self> {
        let admin = User::new("admin", "system:masters")?;
        let manager = User::new("system:kube-controller-manager", "system:authenticated")?;
        let scheduler = User::new("system:kube-scheduler", "system:authenticated")?;
        let proxy = User::new("system:kube-proxy", "system:node-proxier")?;
        let kubelets = (1..=config.nodes)
            .map(|number| User::new(&format!("system:node:{}", node::node_name(number)), "system:nodes"))
            .collect::<Result<Vec<_>>>()?;
        let users = [&[manager.clone(), scheduler.clone(), proxy.clone()], kubelets.as_slice()].concat();

        let mut cluster = Self::serve_api(config, &admin, &users).await?;
        let Self { plane, sandbox, pki, .. } = &mut cluster;
        plane.start_controllers(sandbox, pki, &manager, &scheduler).await?;
        volumes::create(&cluster.client(), &cluster.config).await?;
        cluster.create_nodes(kubelets, &proxy)?;
        futures::future::try_join_all(cluster.nodes.iter().map(Node::power_on)).await?;
        for node in &cluster.nodes {
            volumes::make_folders(node, &cluster.config).await?;
        }
        cluster.wait_until_usable().await?;
        Ok(cluster)
    }

    /// Starts etcd and the API server only, in a few seconds: objects can be made, but nothing acts on them.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn control_plane_only() -> Result<Self> {
        let admin = User::new("admin", "system:masters")?;
        let config = ClusterConfig { nodes: 0, volumes_per_node: 0 };
        Self::serve_api(config, &admin, &[]).await
    }

    async fn serve_api(config: ClusterConfig, admin: &User, users: &[User]) -> Result<Self> {
        // Idempotent; a test may have chosen it before.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let toolchain = Toolchain::ready().await?;
        let sandbox = Sandbox::start(&toolchain, GATEWAY).await?;
        sandbox.machine().make_bridge().await.context("make the cluster's bridge")?;
        let namespace = NetworkNamespace::of_process(sandbox.machine().init())?;
        let names = NameServer::start(&namespace, GATEWAY).await?;
        let pki = Pki::create(&pki_folder(sandbox.state()))?;
        let plane = ControlPlane::start(&sandbox, &pki, admin, users).await?;
        Ok(Self { config, toolchain, pki, plane, names, nodes: Vec::new(), hosts: AtomicU8::new(0), sandbox })
    }

    fn create_nodes(&mut self, kubelets: Vec<User>, proxy: &User) -> Result<()> {
        let pause = Image::pause()?;
        let pause_archive = self.state().join("pause.tar");
        pause.write_archive(&pause_archive)?;
        for (number, kubelet) in (1..).zip(kubelets) {
            let surroundings = Surroundings {
                outer: self.sandbox.machine().clone(),
                cluster: self.sandbox.name().to_owned(),
                ca_file: self.pki.ca_file(),
                kubelet,
                proxy: proxy.clone(),
                pause_image: pause.reference(),
                pause_archive: pause_archive.clone(),
                logs: self.logs(),
            };
            let disk = self.state().join(node::node_name(number));
            self.nodes.push(Node::create(number, &disk, surroundings)?);
        }
        Ok(())
    }

    async fn wait_until_usable(&self) -> Result<()> {
        if let Err(error) = pods::wait_until_usable(&self.client(), self.nodes.len(), NODES_LIMIT).await {
            let mut tails = self.plane.tails();
            for node in &self.nodes {
                tails = format!("{tails}\n{}", node.tails().await);
            }
            return Err(error.context(tails));
        }
        Ok(())
    }

    /// A client with an administrator's rights, which works from this process.
    #[must_use]
    pub fn client(&self) -> Client {
        self.plane.client.clone()
    }

    /// Where everything is stored, to be frozen and thawed.
    #[must_use]
    pub fn etcd(&self) -> &Part {
        self.plane.etcd()
    }

    /// Ends the API server as a crash would.
    ///
    /// # Errors
    /// Fails when its end does not come.
    pub async fn stop_api_server(&mut self) -> Result<()> {
        self.plane.stop_api_server().await
    }

    /// Starts it again, at the same address, and waits until it serves.
    ///
    /// # Errors
    /// Fails when it does not come up, with the end of its log.
    pub async fn restart_api_server(&mut self) -> Result<()> {
        self.plane.restart_api_server(&self.sandbox).await
    }

    /// An administrator's kubeconfig, which works anywhere on this machine while the cluster lives.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.state().join("kubeconfig")
    }

    /// The folder of everything that it stores, gone with the cluster. Nodes and hosts see it under the same path.
    #[must_use]
    pub fn state(&self) -> &Path {
        self.sandbox.state()
    }

    /// The folder of everybody's logs: a test that fails leaves it behind.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.sandbox.logs()
    }

    /// Its name, which its state folder and its cgroups carry; no other cluster has it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.sandbox.name()
    }

    /// What it was made like.
    #[must_use]
    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// All nodes, whether on or off.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that name.
    ///
    /// # Errors
    /// Fails when there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| format!("there is no node {name}"))
    }

    /// The outermost machine, where the control plane runs.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        self.sandbox.machine()
    }

    /// Adds a machine that is no node, such as an upstream registry's, which everyone in the cluster finds by its name.
    ///
    /// # Errors
    /// Fails when its namespaces cannot be made.
    pub async fn add_host(&self, name: &str) -> Result<Host> {
        let number = self.hosts.fetch_add(1, Ordering::Relaxed) + 1;
        let address = Ipv4Addr::new(10, 80, 2, number);
        let host = Host::boot(&self.sandbox, name, address).await?;
        self.names.set(name, address);
        Ok(host)
    }

    /// Lets a name resolve to an address on every node, and in pods that use the node's resolver.
    pub fn set_name(&self, name: &str, address: Ipv4Addr) {
        self.names.set(name, address);
    }

    /// Opens a port on the host's loopback that leads to an address in the cluster's network: a pod's, a node's, a host's.
    ///
    /// # Errors
    /// Fails when the host has no free port.
    pub async fn forward(&self, address: Ipv4Addr, port: u16) -> Result<Forward> {
        let namespace = NetworkNamespace::of_process(self.sandbox.machine().init())?;
        Forward::start(namespace, SocketAddrV4::new(address, port)).await
    }

    /// Listens, from this process, at an address of the outermost machine: its own or its loopback's.
    ///
    /// # Errors
    /// Fails when the port is taken.
    pub async fn listen(&self, address: Ipv4Addr, port: u16) -> Result<TcpListener> {
        let namespace = NetworkNamespace::of_process(self.sandbox.machine().init())?;
        namespace.listen(SocketAddrV4::new(address, port)).await
    }

    /// Whether something listens there.
    pub(crate) async fn accepts_connections(&self, address: Ipv4Addr, port: u16) -> Result<bool> {
        let namespace = NetworkNamespace::of_process(self.sandbox.machine().init())?;
        Ok(namespace.connect(SocketAddrV4::new(address, port)).await.is_ok())
    }

    /// A server certificate for a name, by the authority that every node trusts.
    pub(crate) fn certificate(&self, name: &str) -> Result<Identity> {
        self.pki.server(name, &[name.to_owned()])
    }

    /// The certificate, in PEM form, of the authority that every node trusts.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        self.pki.ca_pem()
    }

    /// Ends the cluster and waits until no process, mount, namespace, cgroup or file of it is left.
    ///
    /// # Errors
    /// Fails when something is left after a minute.
    pub async fn remove(self) -> Result<()> {
        tokio::task::spawn_blocking(move || {
            let mut cluster = self;
            cluster.sandbox.end()
        })
        .await
        .context("the cluster's removal ended early")?
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("name", &self.name()).field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The logs are the only witnesses of a failed test, which returns or panics before it removes its cluster.
        if self.sandbox.is_running()
            && let Ok(cache) = cache_folder()
        {
            let kept = cache.join("logs").join(self.name());
            match copy_logs(&self.logs(), &kept) {
                Ok(()) => eprintln!("the cluster's logs are kept in {}", kept.display()),
                Err(error) => eprintln!("cannot keep the cluster's logs: {error:#}"),
            }
        }
    }
}

fn copy_logs(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).context("make a folder for logs")?;
    for entry in std::fs::read_dir(from).context("list the logs")?.flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).context("copy a log")?;
    }
    to.parent().map_or(Ok(()), keep_latest)
}

fn keep_latest(logs: &Path) -> Result<()> {
    let folders = std::fs::read_dir(logs).context("list the logs of failures")?.flatten();
    let mut folders: Vec<_> =
        folders.filter_map(|folder| Some((folder.metadata().ok()?.modified().ok()?, folder.path()))).collect();
    folders.sort_unstable_by(|one, other| other.cmp(one));
    for (_, old) in folders.into_iter().skip(LOGS_KEPT) {
        // Another test that fails may be removing it too.
        let _ = std::fs::remove_dir_all(old);
    }
    Ok(())
}

fn pki_folder(state: &Path) -> PathBuf {
    state.join("pki")
}

fn random_hex(bytes: usize) -> Result<String> {
    let mut buffer = vec![0; bytes];
    aws_lc_rs::rand::fill(&mut buffer).context("draw a random number")?;
    Ok(hex::encode(buffer))
}
