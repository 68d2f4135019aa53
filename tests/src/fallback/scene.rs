//! One containerd, the agent, a cache of one or two replicas and its registry, and one fault after the other between them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aws_lc_rs::digest::{SHA256, digest};
use breakwater_crds::names::{TLS_PORT, pod_name};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::front::{Front, Way};
use super::kubelet::Kubelet;
use super::network;
use super::runtime::Containerd;
use super::{Cell, Fault, Pull, Replicas};
use crate::accept;
use crate::agent::{Stage, token};
use crate::cache::replicas::ports;
use crate::cache::{Cache, Identity};
use crate::images::Layer;
use crate::toolchain::Runtime;
use crate::upstream::{Blob, Content, Image, Upstream};

/// The registry of all images.
const REGISTRY: &str = "mirrored.test";
/// Another name for it, of which Breakwater knows nothing.
const DIRECT: &str = "direct.test";
const SERVICE: &str = "cache-test";
/// Where the registry is found within the scene.
const UPSTREAM: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 80, 0, 1), 5000);
const CACHES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 80, 3, 1), Ipv4Addr::new(10, 80, 3, 2)];
const API_PORT: u16 = 6443;
const LAYERS: usize = 4;
const LAYER_SIZE: usize = 1 << 20;
/// So many of the layers the cache has before the pull.
const WARM: usize = 2;
const PULL_LIMIT: Duration = Duration::from_secs(120);
const READY_LIMIT: Duration = Duration::from_secs(30);
/// The kubelet tries a pull that failed again and again.
const TRIES: usize = 3;

/// Everything that stands.
pub(super) struct Scene {
    stage: Arc<Stage>,
    kubelet: Kubelet,
    containerd: Containerd,
    upstream: Upstream,
    caches: Vec<Cache>,
    fronts: Vec<Front>,
    images: u64,
    _folder: TempDir,
    _ways: JoinSet<()>,
}

impl Scene {
    pub(super) async fn set(runtime: &Runtime) -> Result<Self> {
        let stage = Arc::new(Stage::start().await?);
        let machine = stage.cluster.machine();
        for address in CACHES {
            machine.sh(&format!("ip address add {address}/32 dev br0")).await?;
        }
        let upstream = Upstream::start().await;
        let mut ways = JoinSet::new();
        ways.spawn(lead(stage.cluster.listen(UPSTREAM.0, UPSTREAM.1).await?, upstream.address()));
        let (identity, folder) = Identity::with_token(&token(SERVICE)?);
        let (mut caches, mut fronts) = (Vec::new(), Vec::new());
        let ports = ports::<{ CACHES.len() }>();
        for (address, port) in CACHES.into_iter().zip(ports) {
            let mut cache = Cache::of(&upstream).registry(REGISTRY).identity(identity.again()).port(port);
            for port in ports {
                cache = cache.flag("--peer", &format!("127.0.0.1:{port}"));
            }
            let cache = cache.start().await;
            let listener = stage.cluster.listen(address, TLS_PORT).await?;
            fronts.push(Front::start(listener, cache.address(), identity.again()));
            caches.push(cache);
        }
        stage.trust(&identity.authority()).await?;
        let url = format!("http://{}:{}", UPSTREAM.0, UPSTREAM.1);
        let mirror = json!({
            "apiVersion": "breakwater.dev/v1alpha1", "kind": "RegistryMirror", "metadata": {"name": "mirrored"},
            "spec": {"registry": REGISTRY, "url": url},
        });
        stage.cluster.apply(&mirror.to_string()).await?;
        let direct = stage.hosts_toml(DIRECT);
        std::fs::create_dir_all(direct.parent().context("a file without a folder")?)
            .and_then(|()| {
                std::fs::write(&direct, format!("[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"))
            })
            .context("write the way past Breakwater")?;
        let folder_of_runtime = stage.cluster.state().join("containerd");
        let containerd = Containerd::start(machine, runtime, &folder_of_runtime, &stage.certs_d()).await?;
        let flags = ["--cri-socket".to_owned(), containerd.socket().display().to_string()];
        let kubelet = Kubelet::new(stage.clone(), flags.to_vec());
        let mut scene =
            Self { stage, kubelet, containerd, upstream, caches, fronts, images: 0, _folder: folder, _ways: ways };
        scene.heal(Replicas::One).await?;
        let what = "breakwater_node_runtime_proven 1";
        scene.stage.counts(what, READY_LIMIT).await.context("containerd is to read what the agent wrote")?;
        // Whatever is done once is done here.
        scene.pull(DIRECT, "warm-up").await;
        Ok(scene)
    }

    pub(super) async fn remove(mut self) -> Result<()> {
        self.kubelet.kill().await?;
        drop((self.kubelet, self.containerd));
        let stage = Arc::try_unwrap(self.stage).ok().context("the stage is still in use")?;
        stage.cluster.remove().await
    }

    /// One fault, from a scene that is in order.
    pub(super) async fn play(&mut self, fault: Fault, replicas: Replicas) -> Result<Cell> {
        self.heal(replicas).await?;
        let repository = first_asked(0);
        let (direct, failed) = self.pull(DIRECT, &repository).await;
        anyhow::ensure!(failed.is_none(), "a pull without Breakwater failed: {failed:?}");
        let (image, tag) = self.push(&repository).await;
        self.warm(&repository, &image).await?;
        self.inject(fault, replicas).await?;
        let pulled = |(took, failed): (Duration, _)| Pull { extra: took.saturating_sub(direct), failed };
        let first = pulled(self.pull_tag(REGISTRY, &repository, &tag).await);
        let mut again = None;
        for _ in 0..TRIES {
            if again.as_ref().unwrap_or(&first).failed.is_none() {
                break;
            }
            again = Some(pulled(self.pull_tag(REGISTRY, &repository, &tag).await));
        }
        self.noticed(fault, replicas).await?;
        let (image, tag) = self.push(&repository).await;
        self.warm(&repository, &image).await?;
        let later = pulled(self.pull_tag(REGISTRY, &repository, &tag).await);
        Ok(Cell { fault, replicas, first, again, later })
    }

    /// As if nothing had been: the agent starts anew, so that no verdict is left.
    async fn heal(&mut self, replicas: Replicas) -> Result<()> {
        self.kubelet.kill().await?;
        network::heal(self.stage.cluster.machine()).await?;
        self.fronts.iter().for_each(|front| front.go(Way::Through));
        let pods = if replicas == Replicas::One { 1 } else { 2 };
        self.stage.caches_at("mirrored", SERVICE, &CACHES[..pods]).await?;
        self.kubelet.start().await?;
        self.stage.written(REGISTRY, READY_LIMIT).await?;
        self.answering(pods, READY_LIMIT).await
    }

    async fn answering(&self, pods: usize, limit: Duration) -> Result<()> {
        let line = format!(r#"breakwater_relay_cache_pods{{registry="{REGISTRY}",state="answering"}} {pods}"#);
        self.stage.counts(&line, limit).await
    }

    async fn inject(&mut self, fault: Fault, replicas: Replicas) -> Result<()> {
        let faulty = if replicas == Replicas::BothOfTwo { 2 } else { 1 };
        let machine = self.stage.cluster.machine();
        match fault {
            Fault::None => {}
            Fault::AgentKilled => self.kubelet.kill().await?,
            Fault::AgentStopped => self.kubelet.freeze().await?,
            Fault::NoApiServer => {
                network::refuse(machine, UPSTREAM.0, API_PORT).await?;
                self.kubelet.start().await?;
                self.answering(if replicas == Replicas::One { 1 } else { 2 }, READY_LIMIT).await?;
            }
            Fault::Refused | Fault::BlackHoled => {
                for address in &CACHES[..faulty] {
                    match fault {
                        Fault::Refused => network::refuse(machine, *address, TLS_PORT).await?,
                        _ => network::drop_packets_to(machine, *address).await?,
                    }
                }
            }
            _ => self.fronts[..faulty].iter().for_each(|front| front.go(fault.way())),
        }
        Ok(())
    }

    /// Waits until the agent has found out what it finds out by itself.
    async fn noticed(&self, fault: Fault, replicas: Replicas) -> Result<()> {
        let left = usize::from(replicas == Replicas::FirstOfTwo);
        if fault.shows_in_probes() {
            self.answering(left, READY_LIMIT).await?;
        }
        if fault == Fault::AgentStopped {
            self.answering(if replicas == Replicas::One { 1 } else { 2 }, READY_LIMIT).await?;
        }
        Ok(())
    }

    /// Pulls a new image; says how long it took, and what the runtime said where it failed.
    async fn pull(&mut self, registry: &str, repository: &str) -> (Duration, Option<String>) {
        let (_, tag) = self.push(repository).await;
        self.pull_tag(registry, repository, &tag).await
    }

    async fn pull_tag(&self, registry: &str, repository: &str, tag: &str) -> (Duration, Option<String>) {
        let begun = Instant::now();
        let pulled = self.containerd.cri.pull(&format!("{registry}/{repository}:{tag}"), PULL_LIMIT).await;
        (begun.elapsed(), pulled.err().map(|error| format!("{error:#}")))
    }

    /// Puts an image into the registry that nobody has seen.
    async fn push(&mut self, repository: &str) -> (Image, String) {
        self.images += 1;
        let (image, tag) = (image(self.images), format!("v{}", self.images));
        self.upstream.push(repository, &tag, &image);
        (image, tag)
    }

    /// Has the caches fetch some of the image's layers.
    async fn warm(&self, repository: &str, image: &Image) -> Result<()> {
        let shown = format!("Bearer {}", token(SERVICE)?);
        for cache in &self.caches {
            for layer in &image.layers[..WARM] {
                cache.request("GET", &layer.blob_path(repository)).header("Authorization", &shown).answer().await;
                cache.await_kept(repository, layer).await;
            }
        }
        Ok(())
    }
}

/// Leads whoever connects to an address of this machine.
async fn lead(listener: TcpListener, to: std::net::SocketAddr) {
    let through = move |mut near| async move {
        if let Ok(mut far) = TcpStream::connect(to).await {
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        }
    };
    accept::each(listener, through).await;
}

/// A repository for which every relay asks this replica before the other.
fn first_asked(ordinal: i32) -> String {
    let score = |repository: &str, ordinal| {
        let pod = pod_name(SERVICE, ordinal);
        digest(&SHA256, format!("{repository}\0{pod}").as_bytes()).as_ref().to_vec()
    };
    let mut names = (0..).map(|number| format!("team/app-{number}"));
    names.find(|name| score(name, ordinal) < score(name, 1 - ordinal)).unwrap_or_default()
}

/// An image of layers that a runtime can unpack.
fn image(seed: u64) -> Image {
    let layer = |number: usize| {
        let mut layer = Layer::new();
        let bytes = Content::blob(seed * 100 + number as u64, LAYER_SIZE).bytes;
        // Writing to memory cannot fail.
        let _ = layer.file(&format!("data/{number}"), &bytes, 0o644);
        Blob::new("application/vnd.oci.image.layer.v1.tar", layer.into_bytes())
    };
    Image::of(seed, (0..LAYERS).map(layer).collect())
}
