//! A node: a machine with containerd, kubelet and kube-proxy, whose disks outlive a power cut.

mod cgroup;
mod config;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::control_plane::{api_url, route_pods};
use super::credentials::User;
use super::machine::{GATEWAY, Machine};
use super::process::Part;
use super::wait::until;

const CONTAINERD_LIMIT: Duration = Duration::from_secs(20);
/// Where a node keeps the folders of its PersistentVolumes, as pods' host paths see it.
pub(super) const VOLUMES: &str = "/var/lib/volumes";

/// Boots with the node's own /etc, /var and /run, so that everything sits at its default path and nothing of the host
/// is written. A running node's containers and volumes are bind mounts because overlayfs cannot lie on overlayfs.
const SETUP: &str = r#"
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$DISK/etc,workdir=$DISK/etc-work" /etc
mount -t overlay overlay -o "lowerdir=/var,upperdir=$DISK/var,workdir=$DISK/var-work" /var
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /etc/containerd /etc/cni/net.d /var/lib/containerd /var/lib/kubelet /var/lib/volumes
mount --bind "$DISK/containerd-config" /etc/containerd
mount --bind "$DISK/containerd" /var/lib/containerd
mount --bind "$DISK/kubelet" /var/lib/kubelet
mount --bind "$DISK/volumes" /var/lib/volumes
mount --make-rshared /
rm -f /etc/resolv.conf
cp "$DISK/resolv.conf" /etc/resolv.conf
rm -f /etc/cni/net.d/*
cp "$DISK/cni.conflist" /etc/cni/net.d/10-pods.conflist
echo 1 >/proc/sys/net/ipv4/ip_forward
"#;

/// What a node needs to know of its cluster.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    pub(super) outer: Machine,
    pub(super) cluster: String,
    pub(super) ca_file: PathBuf,
    pub(super) kubelet: User,
    pub(super) proxy: User,
    pub(super) pause_image: String,
    pub(super) pause_archive: PathBuf,
    pub(super) logs: PathBuf,
}

/// A node of a cluster.
#[derive(Debug)]
pub struct Node {
    name: String,
    address: Ipv4Addr,
    pod_subnet: String,
    disk: PathBuf,
    surroundings: Surroundings,
    machine: RwLock<Option<Machine>>,
    parts: tokio::sync::Mutex<Vec<Part>>,
}

/// A container that runs on a node, as containerd knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// The image it was made from.
    pub image: String,
}

impl Node {
    /// Makes the disks of node number `number`, which is then off.
    pub(super) fn create(number: u8, disk: &Path, surroundings: Surroundings) -> Result<Self> {
        let node = Self {
            name: node_name(number),
            address: node_address(number),
            pod_subnet: format!("10.244.{number}.0/24"),
            disk: disk.to_owned(),
            surroundings,
            machine: RwLock::new(None),
            parts: tokio::sync::Mutex::default(),
        };
        for folder in
            ["etc", "etc-work", "var", "var-work", "containerd-config/certs.d", "containerd", "kubelet", "volumes"]
        {
            fs::create_dir_all(disk.join(folder)).with_context(|| format!("make {folder} of {}", node.name))?;
        }
        node.write("containerd-config/config.toml", &config::containerd(&node.surroundings.pause_image))?;
        node.write("resolv.conf", &format!("nameserver {GATEWAY}\n"))?;
        node.write("cni.conflist", &config::cni(&node.name, &node.pod_subnet))?;
        let kubelet = config::kubelet(&node.cgroup(), &node.surroundings.ca_file);
        node.write("kubelet.json", &kubelet)?;
        let (ca_file, api) = (&node.surroundings.ca_file, api_url());
        node.surroundings.kubelet.write_kubeconfig(&disk.join("kubelet.kubeconfig"), &api, ca_file)?;
        node.surroundings.proxy.write_kubeconfig(&disk.join("kube-proxy.kubeconfig"), &api, ca_file)?;
        Ok(node)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.disk.join(file), text).with_context(|| format!("write {file} of {}", self.name))
    }

    /// Its path in every cgroup hierarchy; it carries the cluster's name, by which the cluster's end finds it.
    fn cgroup(&self) -> String {
        format!("/{}/{}", self.surroundings.cluster, self.name)
    }

    fn log(&self, part: &str) -> PathBuf {
        self.surroundings.logs.join(format!("{}-{part}.log", self.name))
    }

    /// Its name, which is its host name as well.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, which nothing but a power cut takes away.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The node's /etc/containerd/certs.d as the host sees it.
    #[must_use]
    pub fn certs_d(&self) -> PathBuf {
        self.disk.join("containerd-config/certs.d")
    }

    /// The node's /etc/containerd/config.toml as the host sees it.
    #[must_use]
    pub fn containerd_config(&self) -> PathBuf {
        self.disk.join("containerd-config/config.toml")
    }

    /// The machine it is, to run programs on.
    ///
    /// # Errors
    /// Fails while its power is off.
    pub fn machine(&self) -> Result<Machine> {
        let machine = self.machine.read().unwrap_or_else(PoisonError::into_inner);
        machine.clone().with_context(|| format!("{} is off", self.name))
    }

    /// Runs a program on it and returns what it printed.
    ///
    /// # Errors
    /// Fails, with what it printed, when it fails or takes longer than a minute.
    pub async fn exec(&self, arguments: &[&str]) -> Result<String> {
        self.machine()?.exec(arguments).await
    }

    /// Runs containerd's `ctr` in Kubernetes' namespace.
    ///
    /// # Errors
    /// As [`Node::exec`].
    pub async fn ctr(&self, arguments: &[&str]) -> Result<String> {
        self.exec(&[&["ctr", "--namespace", "k8s.io"], arguments].concat()).await
    }

    /// Puts the image of an OCI or Docker archive into the node's store.
    ///
    /// # Errors
    /// Fails when containerd refuses it.
    pub async fn import_image(&self, archive: &Path) -> Result<()> {
        let path = archive.to_str().context("an archive's path that is no text")?;
        self.ctr(&["images", "import", path]).await.map(drop)
    }

    /// Takes an image with all its names out of the node's store, so that the next pod has to pull it.
    ///
    /// # Errors
    /// Fails when the node has no such image, or containerd does.
    pub async fn remove_image(&self, reference: &str) -> Result<()> {
        let listing = self.ctr(&["images", "ls"]).await?;
        let images: Vec<(&str, &str)> = listing.lines().skip(1).filter_map(name_and_digest).collect();
        let digest = images.iter().find(|(name, _)| *name == reference).map(|(_, digest)| *digest);
        let digest = digest.with_context(|| format!("{} has no image {reference}", self.name))?;
        // The CRI also names an image by its digest and by its config's: as long as one name is left its layers stay.
        let names = images.iter().filter(|(_, of)| *of == digest).map(|(name, _)| *name);
        let arguments: Vec<&str> = ["images", "rm", "--sync"].into_iter().chain(names).collect();
        self.ctr(&arguments).await.map(drop)
    }

    /// The containers there are, sandboxes included.
    ///
    /// # Errors
    /// Fails when containerd does not answer.
    pub async fn containers(&self) -> Result<Vec<Container>> {
        let listing = self.ctr(&["containers", "ls"]).await?;
        let container = |line: &str| {
            let mut fields = line.split_whitespace();
            Some(Container { id: fields.next()?.to_owned(), image: fields.next()?.to_owned() })
        };
        Ok(listing.lines().skip(1).filter_map(container).collect())
    }

    /// Boots it and starts its parts; the kubelet then registers by itself.
    ///
    /// # Errors
    /// Fails when it is on already, and with the end of a log when a part does not start.
    pub async fn power_on(&self) -> Result<()> {
        if self.machine().is_ok() {
            bail!("{} is on already", self.name);
        }
        cgroup::make(&self.cgroup())?;
        let setup = format!("DISK={}\n{SETUP}", self.disk.display());
        let outer = &self.surroundings.outer;
        let machine = Machine::boot(outer, &self.name, self.address, &setup, &self.log("boot")).await?;
        *self.machine.write().unwrap_or_else(PoisonError::into_inner) = Some(machine.clone());
        route_pods(outer, &self.pod_subnet, self.address).await?;
        let mut parts = self.parts.lock().await;
        let containerd = self.start_containerd(&machine).await?;
        let kubelet = self.start_kubelet(&machine).await?;
        let proxy = self.start_proxy(&machine).await?;
        *parts = vec![containerd, kubelet, proxy];
        Ok(())
    }

    /// Cuts its power: everything on it is gone at once, only its disks remain.
    ///
    /// # Errors
    /// Fails when it is off already.
    pub async fn power_off(&self) -> Result<()> {
        let machine = self.machine()?;
        machine.power_off().await?;
        *self.machine.write().unwrap_or_else(PoisonError::into_inner) = None;
        self.parts.lock().await.clear();
        cgroup::remove(&self.cgroup()).await.with_context(|| format!("clear the memory of {}", self.name))
    }

    /// The ends of its parts' logs.
    pub async fn tails(&self) -> String {
        self.parts.lock().await.iter().map(Part::tail).collect::<Vec<_>>().join("\n")
    }

    async fn start_containerd(&self, machine: &Machine) -> Result<Part> {
        let log = self.log("containerd");
        // Registries of the tests have certificates of the cluster's authority.
        let roots = self.surroundings.ca_file.display().to_string();
        let mut part = machine.spawn("containerd", &["containerd"], &[("SSL_CERT_FILE", &roots)], &log).await?;
        let answers = until(CONTAINERD_LIMIT, "containerd", async || {
            part.check()?;
            Ok(self.ctr(&["version"]).await.ok())
        })
        .await;
        answers.with_context(|| part.tail())?;
        self.import_image(&self.surroundings.pause_archive).await?;
        Ok(part)
    }

    async fn start_kubelet(&self, machine: &Machine) -> Result<Part> {
        let kubeconfig = format!("--kubeconfig={}", self.disk.join("kubelet.kubeconfig").display());
        let config = format!("--config={}", self.disk.join("kubelet.json").display());
        let address = format!("--node-ip={}", self.address);
        machine.spawn("kubelet", &["kubelet", &kubeconfig, &config, &address], &[], &self.log("kubelet")).await
    }

    async fn start_proxy(&self, machine: &Machine) -> Result<Part> {
        let kubeconfig = format!("--kubeconfig={}", self.disk.join("kube-proxy.kubeconfig").display());
        let arguments = [
            "kube-proxy",
            &kubeconfig,
            "--proxy-mode=nftables",
            // These are the host's to set, not a namespace's.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ];
        machine.spawn("kube-proxy", &arguments, &[], &self.log("kube-proxy")).await
    }
}

/// The name of node number `number`, counted from 1.
pub(super) fn node_name(number: u8) -> String {
    format!("node-{number}")
}

/// `REF TYPE DIGEST ...`, as `ctr images ls` prints it.
fn name_and_digest(line: &str) -> Option<(&str, &str)> {
    let mut fields = line.split_whitespace();
    Some((fields.next()?, fields.nth(1)?))
}

fn node_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 80, 1, number)
}
