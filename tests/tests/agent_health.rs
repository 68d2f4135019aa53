//! What the agent's MirrorNode and its metrics tell: a cache that stops answering, one that comes back, and a definition that is too old.
#![cfg(feature = "cluster")]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use breakwater_crds::MirrorState;
use breakwater_crds::names::TLS_PORT;
use breakwater_tests::agent::Stage;
use breakwater_tests::cluster::until;
use breakwater_tests::direct;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

const LIMIT: Duration = Duration::from_secs(30);
/// What the agent knows is told within a second; the rest is for a machine with other work. It looks at everything again after 30 s.
const TOLD: Duration = Duration::from_secs(10);
/// It is 2 s; the rest is for a machine with other work. Without a connection that is kept, a hung cache would take 4 to 6 s.
const FOUND_OUT: Duration = Duration::from_millis(3500);
const SERVICE: &str = "cache-docker-io";
const UP: &str = r#"breakwater_relay_cache_up{registry="docker.io"} 1"#;
const DOWN: &str = r#"breakwater_relay_cache_up{registry="docker.io"} 0"#;

/// A cache that has nothing.
struct Stub {
    /// Whether it hangs: connections are taken, nothing is answered.
    hangs: watch::Sender<bool>,
    /// Closes the port and every connection.
    _serving: JoinSet<()>,
}

impl Stub {
    fn serve(listener: TcpListener, acceptor: TlsAcceptor) -> Self {
        let (hangs, is_hung) = watch::channel(false);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(answer(stream, acceptor.clone(), is_hung.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { hangs, _serving: serving }
    }
}

async fn answer(stream: TcpStream, acceptor: TlsAcceptor, mut is_hung: watch::Receiver<bool>) {
    let mut request = [0; 4096];
    drop(is_hung.wait_for(|hangs| !hangs).await);
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
        drop(is_hung.wait_for(|hangs| !hangs).await);
        let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

fn identity() -> Result<(TlsAcceptor, String)> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate()?;
    let ca = authority.self_signed(&authority_key)?;
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(vec![format!("{SERVICE}.breakwater-system.svc")])?;
    let leaf = leaf.signed_by(&key, &Issuer::new(authority, authority_key))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key)?;
    Ok((TlsAcceptor::from(Arc::new(config)), ca.pem()))
}

fn pull(stage: &Stage) -> String {
    format!("http://{}/v2/library/nginx/manifests/1?ns=docker.io", stage.relay())
}

/// Waits until the metric and the MirrorNode say that the cache is out, and that pulls are not held up then.
async fn is_told_out(stage: &Stage, ill: Instant) -> Result<()> {
    stage.counts(DOWN, LIMIT).await?;
    let metric = ill.elapsed();
    ensure!(metric < FOUND_OUT, "{metric:?}");
    let bypassed = |state| state == MirrorState::Bypassed;
    stage.says("it is bypassed", TOLD, |status| status.inactive.iter().any(|one| bypassed(one.state))).await?;
    println!("in the metric after {metric:.1?}, in the MirrorNode after {:.1?}", ill.elapsed());
    let client = direct::client()?;
    let asked = Instant::now();
    let pulled = client.get(pull(stage)).send().await?;
    // Without the verdict it takes 2 s and more.
    ensure!(pulled.status() == 503 && asked.elapsed() < Duration::from_millis(1500), "{:?}", asked.elapsed());
    Ok(())
}

async fn is_told_in(stage: &Stage) -> Result<()> {
    stage.counts(UP, LIMIT).await?;
    stage.says("docker.io is active", TOLD, |status| status.active == ["docker.io"]).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_killed_or_hangs_is_told_within_two_seconds_and_so_is_its_return() -> Result<()> {
    let stage = Stage::start().await?;
    let (acceptor, ca) = identity()?;
    let address = stage.cluster.machine().address();
    let stub = Stub::serve(stage.cluster.listen(address, TLS_PORT).await?, acceptor.clone());
    stage.trust(&ca).await?;
    stage.mirrors(&["docker.io"]).await?;
    stage.cache_at("docker.io", SERVICE, address).await?;
    let agent = stage.agent()?;
    stage.counts(UP, LIMIT).await?;
    // Without a socket, the first pull proves that the runtime reads the file.
    let pulled = direct::client()?.get(pull(&stage)).send().await?;
    ensure!(pulled.status() == 404);
    is_told_in(&stage).await?;
    stage.counts(r#"breakwater_relay_requests_total{registry="docker.io",outcome="absent"} 1"#, TOLD).await?;
    stage.counts(r#"breakwater_node_mirrors{state="active"} 1"#, TOLD).await?;

    drop(stub);
    is_told_out(&stage, Instant::now()).await?;
    let listener =
        until(LIMIT, "the port to be free", async || Ok(stage.cluster.listen(address, TLS_PORT).await.ok())).await?;
    let stub = Stub::serve(listener, acceptor);
    is_told_in(&stage).await?;

    stub.hangs.send_replace(true);
    is_told_out(&stage, Instant::now()).await?;
    stub.hangs.send_replace(false);
    is_told_in(&stage).await?;
    drop(agent);
    stage.cluster.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_beside_an_older_definition_reports_what_that_holds() -> Result<()> {
    let stage = Stage::start().await?;
    let definition = "mirrornodes.breakwater.dev";
    let field = |name: &str| {
        let path = format!("/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/{name}");
        serde_json::json!({"op": "remove", "path": path})
    };
    let older = serde_json::json!([field("summary"), field("observed")]).to_string();
    stage.cluster.kubectl(&["patch", "crd", definition, "--type=json", "-p", &older]).await?;
    stage.mirrors(&["docker.io"]).await?;
    let agent = stage.agent()?;
    let said = stage.says("docker.io is not active", LIMIT, |status| status.inactive.len() == 1).await?;
    ensure!(said.summary.is_empty() && !said.conditions.is_empty(), "{said:?}");
    agent.logged("status.observed, status.summary").await?;
    stage.counts("breakwater_node_definition_fields_lacking 2", TOLD).await?;
    drop(agent);
    stage.cluster.remove().await
}
