//! etcd and the Kubernetes control plane, in the outermost machine at the bridge's address.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

use super::credentials::User;
use super::machine::{GATEWAY, Machine};
use super::netns::{Forward, NetworkNamespace};
use super::pki::{self, Pki};
use super::process::Part;
use super::sandbox::Sandbox;
use super::wait::until;

const API_PORT: u16 = 6443;
const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The first address of the range belongs to the Service `kubernetes`.
const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Where programs inside the cluster find the API server.
pub(super) fn api_url() -> String {
    format!("https://{GATEWAY}:{API_PORT}")
}

/// The running control plane, or its part that serves the API.
pub(super) struct ControlPlane {
    etcd: Part,
    api_server: Part,
    controllers: Vec<Part>,
    /// As the API server was started.
    flags: Vec<String>,
    /// What the client goes through; it closes when dropped.
    _forward: Forward,
    pub(super) client: Client,
}

impl ControlPlane {
    /// Starts etcd and the API server, which knows `users`, and waits until it serves.
    pub(super) async fn start(sandbox: &Sandbox, pki: &Pki, admin: &User, users: &[User]) -> Result<Self> {
        let namespace = NetworkNamespace::of_process(sandbox.machine().init())?;
        let etcd = start_etcd(sandbox).await?;
        let tokens = sandbox.state().join("tokens.csv");
        let lines: String = users.iter().chain([admin]).map(User::token_line).collect();
        fs::write(&tokens, lines).context("write the users' tokens")?;
        let flags = api_server_flags(sandbox, pki, &tokens)?;
        let api_server = start_api_server(sandbox, &flags).await?;
        let forward = Forward::start(namespace, SocketAddrV4::new(GATEWAY, API_PORT)).await?;
        let kubeconfig = sandbox.state().join("kubeconfig");
        admin.write_kubeconfig(&kubeconfig, &format!("https://{}", forward.address()), &pki.ca_file())?;
        let client = client(&kubeconfig).await?;
        let controllers = Vec::new();
        let mut plane = Self { etcd, api_server, controllers, flags, _forward: forward, client };
        plane.wait_until_serving().await?;
        Ok(plane)
    }

    async fn wait_until_serving(&mut self) -> Result<()> {
        let Self { etcd, api_server, client, .. } = self;
        let served = until(READY_LIMIT, "the API server", async || {
            etcd.check()?;
            api_server.check()?;
            let request = http::Request::get("/readyz").body(Vec::new()).context("make a request")?;
            Ok(client.request_text(request).await.ok())
        })
        .await;
        served.map(drop).with_context(|| self.tails())
    }

    /// Starts the controllers and the scheduler.
    pub(super) async fn start_controllers(
        &mut self,
        sandbox: &Sandbox,
        pki: &Pki,
        manager: &User,
        scheduler: &User,
    ) -> Result<()> {
        let state = sandbox.state();
        let config = manager.write_kubeconfig(&state.join("controller-manager"), &api_url(), &pki.ca_file())?;
        let kubeconfig = format!("--kubeconfig={}", config.display());
        let root = format!("--root-ca-file={}", pki.ca_file().display());
        let key = format!("--service-account-private-key-file={}", service_account_key(state).display());
        let arguments = [
            "kube-controller-manager",
            &kubeconfig,
            &root,
            &key,
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            "--bind-address=127.0.0.1",
        ];
        self.controllers.push(spawn(sandbox, &arguments).await?);

        let config = scheduler.write_kubeconfig(&state.join("scheduler"), &api_url(), &pki.ca_file())?;
        let kubeconfig = format!("--kubeconfig={}", config.display());
        let arguments = ["kube-scheduler", &kubeconfig, "--leader-elect=false", "--bind-address=127.0.0.1"];
        self.controllers.push(spawn(sandbox, &arguments).await?);
        Ok(())
    }

    /// Where what is stored is frozen and thawed.
    pub(super) fn etcd(&self) -> &Part {
        &self.etcd
    }

    /// Ends the API server as a crash would.
    pub(super) async fn stop_api_server(&mut self) -> Result<()> {
        self.api_server.kill().await
    }

    /// Starts it again as it was, at the same address, and waits until it serves.
    pub(super) async fn restart_api_server(&mut self, sandbox: &Sandbox) -> Result<()> {
        self.api_server = start_api_server(sandbox, &self.flags).await?;
        self.wait_until_serving().await
    }

    /// The ends of all its logs.
    pub(super) fn tails(&self) -> String {
        [&self.etcd, &self.api_server]
            .into_iter()
            .chain(&self.controllers)
            .map(Part::tail)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

async fn spawn(sandbox: &Sandbox, arguments: &[&str]) -> Result<Part> {
    let name = arguments[0];
    sandbox.machine().spawn(name, arguments, &[], &sandbox.log(name)).await
}

async fn start_etcd(sandbox: &Sandbox) -> Result<Part> {
    let data = format!("--data-dir={}", sandbox.state().join("etcd").display());
    let arguments = [
        "etcd",
        &data,
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
    ];
    spawn(sandbox, &arguments).await
}

async fn start_api_server(sandbox: &Sandbox, flags: &[String]) -> Result<Part> {
    let arguments: Vec<&str> = std::iter::once("kube-apiserver").chain(flags.iter().map(String::as_str)).collect();
    spawn(sandbox, &arguments).await
}

fn api_server_flags(sandbox: &Sandbox, pki: &Pki, tokens: &Path) -> Result<Vec<String>> {
    let names = pki::names(
        &["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"],
        &[IpAddr::V4(GATEWAY), IpAddr::V4(API_SERVICE), IpAddr::V4(Ipv4Addr::LOCALHOST)],
    );
    let server = pki.server("api-server", &names)?;
    let to_kubelets = pki.client("to-kubelets", "kube-apiserver")?;
    pki.key_pair("service-accounts")?;
    let key = service_account_key(sandbox.state());
    let flags = [
        ("etcd-servers", "http://127.0.0.1:2379".to_owned()),
        ("secure-port", API_PORT.to_string()),
        ("advertise-address", GATEWAY.to_string()),
        ("service-cluster-ip-range", SERVICE_RANGE.to_owned()),
        ("tls-cert-file", server.certificate.display().to_string()),
        ("tls-private-key-file", server.key.display().to_string()),
        ("kubelet-client-certificate", to_kubelets.certificate.display().to_string()),
        ("kubelet-client-key", to_kubelets.key.display().to_string()),
        ("kubelet-preferred-address-types", "InternalIP".to_owned()),
        ("token-auth-file", tokens.display().to_string()),
        ("authorization-mode", "Node,RBAC".to_owned()),
        ("enable-admission-plugins", "NodeRestriction".to_owned()),
        ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
        ("service-account-key-file", key.with_extension("pub").display().to_string()),
        ("service-account-signing-key-file", key.display().to_string()),
        ("allow-privileged", "true".to_owned()),
    ];
    Ok(flags.map(|(name, value)| format!("--{name}={value}")).into())
}

fn service_account_key(state: &Path) -> std::path::PathBuf {
    super::pki_folder(state).join("service-accounts.key")
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let parsed = Kubeconfig::read_from(kubeconfig).context("read the administrator's kubeconfig")?;
    let mut config = kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
        .await
        .context("take the administrator's kubeconfig")?;
    // It is on this machine, whatever proxy its user has.
    config.proxy_url = None;
    Client::try_from(config).context("make a Kubernetes client")
}

/// The way from a node's pods back to it, and between nodes.
pub(super) async fn route_pods(machine: &Machine, subnet: &str, node: Ipv4Addr) -> Result<()> {
    machine.sh(&format!("ip route replace {subnet} via {node}")).await.map(drop)
}
