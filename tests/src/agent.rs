//! The node agent alone: the real binary against a real API server, for a node that nothing else runs on. Its files lie in a
//! folder of the test's, its listeners in the cluster's outermost network namespace. It knows no test.

pub mod remembering;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakwater_crds::{MirrorNode, MirrorNodeStatus, RelayKey, names, relay_token};
use kube::Api;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::binaries::{NODE_AGENT, binary};
use crate::cluster::{Cluster, Forward, until};
use crate::direct;
use crate::product;

/// The node that it is the agent of.
pub const NODE: &str = "lonely";
/// The key that the caches' tokens derive from is this 32 times.
const RELAY_KEY: &str = "0a";
const LOG_LIMIT: Duration = Duration::from_secs(30);

/// An API server with Breakwater's definitions and roles, a node, and folders for its agent.
pub struct Stage {
    /// Whose API server it is.
    pub cluster: Cluster,
    folder: TempDir,
    relay: Forward,
    admin: Forward,
    program: Option<PathBuf>,
}

/// A running agent, killed when this is dropped.
pub struct Agent {
    child: Child,
    log: PathBuf,
}

impl Stage {
    /// Starts the API server and applies config/default; nothing acts on it but an agent.
    ///
    /// # Errors
    /// Fails when the API server does not come up or refuses.
    pub async fn start() -> Result<Self> {
        let cluster = product::api_server().await?;
        cluster
            .apply(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: {NODE}, labels: {{zone: a}}}}}}"))
            .await?;
        let folder = TempDir::new().context("make a folder")?;
        for name in ["certs.d", "state"] {
            std::fs::create_dir(folder.path().join(name)).with_context(|| format!("make {name}"))?;
        }
        write_kubeconfig(&cluster, &folder.path().join("kubeconfig"))?;
        let relay = cluster.forward(Ipv4Addr::LOCALHOST, names::RELAY_PORT).await?;
        let admin = cluster.forward(Ipv4Addr::LOCALHOST, names::NODE_ADMIN_PORT).await?;
        Ok(Self { cluster, folder, relay, admin, program: None })
    }

    /// Starts this program in place of the agent as tests build it.
    #[must_use]
    pub fn running(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// Applies mirrors of these registries.
    ///
    /// # Errors
    /// Fails when the API server refuses them.
    pub async fn mirrors(&self, registries: &[&str]) -> Result<()> {
        let manifest = |registry: &&str| {
            let name = registry.replace([':', '_'], "-");
            format!(
                "---\napiVersion: breakwater.dev/v1alpha1\nkind: RegistryMirror\nmetadata: {{name: {name}}}\n\
                 spec: {{registry: '{registry}'}}\n"
            )
        };
        self.cluster.apply(&registries.iter().map(manifest).collect::<String>()).await.map(drop)
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// Fails when it cannot be started.
    pub fn agent(&self) -> Result<Agent> {
        self.agent_in("", &[])
    }

    /// Starts the agent with more flags in a mount namespace of its own, where this shell script ran before.
    ///
    /// # Errors
    /// Fails when it cannot be started.
    pub fn agent_in(&self, mounts: &str, flags: &[&str]) -> Result<Agent> {
        let without_socket: &[&str] = if flags.contains(&"--cri-socket") { &[] } else { &["--cri-socket", "none"] };
        let log = self.cluster.logs().join("agent.log");
        let output = std::fs::File::options().create(true).append(true).open(&log).context("make a log")?;
        let errors = output.try_clone().context("share a log")?;
        let child = self
            .shell(&format!("{mounts}\nexec \"$@\""))
            .arg(self.program.clone().unwrap_or_else(|| binary(NODE_AGENT)))
            .args(flags)
            .args(["--node-name", NODE])
            .args(without_socket)
            .arg("--certs-dir")
            .arg(self.certs_d())
            .arg("--state-dir")
            .arg(self.state())
            .env("KUBECONFIG", self.folder.path().join("kubeconfig"))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .context("start the agent")?;
        Ok(Agent { child, log })
    }

    /// Runs a shell script beside the agent, in a mount namespace of its own, and returns what it printed.
    ///
    /// # Errors
    /// Fails, with what it printed, when it does.
    pub async fn run(&self, script: &str) -> Result<String> {
        let output = self.shell(script).stdin(Stdio::null()).output().await.context("start a shell")?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{script}\n{printed}{}", String::from_utf8_lossy(&output.stderr));
        Ok(printed)
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.cluster.machine().init()))
            .args(["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh"])
            .kill_on_drop(true);
        direct::past_proxies(command.as_std_mut());
        command
    }

    /// The folder of everything here.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Makes an address of the cluster's network the only Pod of a mirror's cache.
    ///
    /// # Errors
    /// Fails when the API server refuses it.
    pub async fn cache_at(&self, mirror: &str, service: &str, address: Ipv4Addr) -> Result<()> {
        self.caches_at(mirror, service, &[address]).await
    }

    /// Makes addresses of the cluster's network the Pods of a mirror's cache.
    ///
    /// # Errors
    /// Fails when the API server refuses it.
    pub async fn caches_at(&self, mirror: &str, service: &str, addresses: &[Ipv4Addr]) -> Result<()> {
        let endpoint = |(address, ordinal): (&Ipv4Addr, i32)| {
            let pod = names::pod_name(service, ordinal);
            serde_json::json!({"addresses": [address], "targetRef": {"kind": "Pod", "name": pod}})
        };
        let endpoints: Vec<_> = addresses.iter().zip(0..).map(endpoint).collect();
        let slice = serde_json::json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": service, "namespace": names::SYSTEM_NAMESPACE, "labels": {
                names::LABEL_NAME: names::CACHE, names::LABEL_MIRROR: mirror, "kubernetes.io/service-name": service,
            }},
            "ports": [{"name": names::TLS_PORT_NAME, "port": names::TLS_PORT}],
            "endpoints": endpoints,
        });
        self.cluster.apply(&slice.to_string()).await.map(drop)
    }

    /// The node's certs.d.
    #[must_use]
    pub fn certs_d(&self) -> PathBuf {
        self.folder.path().join("certs.d")
    }

    /// The agent's state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The way to the relay.
    #[must_use]
    pub fn relay(&self) -> SocketAddr {
        self.relay.address()
    }

    /// The way to the admin listener.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin.address()
    }

    /// The `hosts.toml` of a registry.
    #[must_use]
    pub fn hosts_toml(&self, registry: &str) -> PathBuf {
        self.certs_d().join(registry).join("hosts.toml")
    }

    /// Waits until a registry's file is as the agent writes it.
    ///
    /// # Errors
    /// Fails after `limit`.
    pub async fn written(&self, registry: &str, limit: Duration) -> Result<()> {
        let (path, relay) = (self.hosts_toml(registry), format!("[host.\"http://127.0.0.1:{}\"]", names::RELAY_PORT));
        until(limit, &format!("{} to name the relay", path.display()), async || {
            Ok(std::fs::read_to_string(&path).is_ok_and(|text| text.contains(&relay)).then_some(()))
        })
        .await
    }

    /// Waits for what the node's MirrorNode says.
    ///
    /// # Errors
    /// Fails after `limit`, with what it said last.
    pub async fn says(
        &self,
        what: &str,
        limit: Duration,
        fits: impl Fn(&MirrorNodeStatus) -> bool,
    ) -> Result<MirrorNodeStatus> {
        let nodes: Api<MirrorNode> = Api::all(self.cluster.client());
        let mut last = None;
        let said = until(limit, &format!("the MirrorNode to say: {what}"), async || {
            // An API server under load may not answer in time.
            let Ok(node) = nodes.get_opt(NODE).await else { return Ok(None) };
            last = node.and_then(|node| node.status);
            Ok(last.clone().filter(|status| fits(status)))
        })
        .await;
        said.with_context(|| format!("it says {last:#?}"))
    }

    /// Waits until the MirrorNode says this of a registry that is not active.
    ///
    /// # Errors
    /// Fails after `limit`, with what it said last.
    pub async fn says_of(&self, registry: &str, reason: &str, message: &str, limit: Duration) -> Result<()> {
        let fits = |status: &MirrorNodeStatus| {
            let one = status.inactive.iter().find(|one| one.registry == registry);
            one.is_some_and(|one| one.reason == reason && one.message.contains(message))
        };
        self.says(&format!("{registry} {reason} {message}"), limit, fits).await.map(drop)
    }

    /// What the admin listener answers: the status and the text.
    ///
    /// # Errors
    /// Fails when it does not answer.
    pub async fn ask(&self, path: &str) -> Result<(u16, String)> {
        let url = format!("http://{}{path}", self.admin.address());
        let answer = direct::client()?.get(url).send().await.context("ask the agent")?;
        Ok((answer.status().as_u16(), answer.text().await.context("read the agent's answer")?))
    }

    /// Waits until its metrics hold this line.
    ///
    /// # Errors
    /// Fails after `limit`, with the metrics.
    pub async fn counts(&self, line: &str, limit: Duration) -> Result<()> {
        let mut last = String::new();
        let counted = until(limit, &format!("the metric {line}"), async || {
            // It may be starting.
            last = self.ask("/metrics").await.unwrap_or_default().1;
            Ok(last.lines().any(|told| told == line).then_some(()))
        })
        .await;
        counted.with_context(|| last.clone())
    }

    /// Gives the agent what it needs to trust a cache that has this CA's certificate.
    ///
    /// # Errors
    /// Fails when the API server refuses it.
    pub async fn trust(&self, ca: &str) -> Result<()> {
        let secret = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": names::RELAY_SECRET, "namespace": names::NODES_NAMESPACE},
            "stringData": {names::CA_CERTIFICATE_KEY: ca, names::RELAY_KEY: relay_key()},
        });
        self.cluster.apply(&secret.to_string()).await.map(drop)
    }
}

/// The key that the agent is given.
#[must_use]
pub fn relay_key() -> String {
    RELAY_KEY.repeat(32)
}

/// The token by which a cache of this Service knows the agent.
///
/// # Errors
/// None in practice: the key is well formed.
pub fn token(service: &str) -> Result<String> {
    Ok(relay_token(&RelayKey::parse(&relay_key()).context("parse the relay's key")?, service))
}

impl Agent {
    /// Asks it to stop and waits until it has, in good order.
    ///
    /// # Errors
    /// Fails when it does not within a minute, with its log.
    pub async fn stop(mut self) -> Result<()> {
        let id = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("the agent ended by itself")?;
        kill_process(id, Signal::TERM).context("signal the agent")?;
        let status = self.ended(Duration::from_secs(60)).await.with_context(|| self.log())?;
        ensure!(status.success(), "the agent ended with {status}\n{}", self.log());
        Ok(())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// Fails when it does not in time.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let ended = tokio::time::timeout(limit, self.child.wait()).await.context("the agent did not end in time")?;
        ended.context("wait for the agent")
    }

    /// Ends it as the kernel would for want of memory.
    ///
    /// # Errors
    /// Fails when it cannot be ended.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("kill the agent")
    }

    /// Stops it in its tracks: its ports still take connections, nothing is answered.
    ///
    /// # Errors
    /// Fails when it has ended.
    pub fn freeze(&self) -> Result<()> {
        let id = self.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("the agent ended by itself")?;
        kill_process(id, Signal::STOP).context("freeze the agent")
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// The most memory that it has held, in KiB.
    ///
    /// # Errors
    /// Fails when it has ended.
    pub fn memory(&self) -> Result<u64> {
        let id = self.child.id().context("the agent ended by itself")?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).context("look at the agent")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("find its memory")?;
        peak.trim().trim_end_matches(" kB").parse().context("read its memory")
    }

    /// A path as the agent sees it, behind its own mounts.
    ///
    /// # Errors
    /// Fails when it has ended.
    pub fn sees(&self, path: &Path) -> Result<PathBuf> {
        let id = self.child.id().context("the agent ended by itself")?;
        ensure!(path.is_absolute(), "{} is not absolute", path.display());
        Ok(PathBuf::from(format!("/proc/{id}/root{}", path.display())))
    }

    /// Waits until it has logged this.
    ///
    /// # Errors
    /// Fails after half a minute, with its log.
    pub async fn logged(&self, text: &str) -> Result<()> {
        let holds = async || Ok(self.log().contains(text).then_some(()));
        let logged = until(LOG_LIMIT, &format!("{text:?} in the log"), holds).await;
        logged.with_context(|| self.log())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// As an administrator's, but for who is within the cluster's network.
fn write_kubeconfig(cluster: &Cluster, to: &Path) -> Result<()> {
    let text = std::fs::read(cluster.kubeconfig()).context("read the kubeconfig")?;
    let mut config: serde_json::Value = serde_json::from_slice(&text).context("parse the kubeconfig")?;
    config["clusters"][0]["cluster"]["server"] = format!("https://{}:6443", cluster.machine().address()).into();
    std::fs::write(to, config.to_string()).context("write a kubeconfig")
}
