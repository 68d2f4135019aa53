//! A cache that stops answering, and one that comes back, as the agent's MirrorNode and its metrics tell it.
#![cfg(feature = "cluster")]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use breakwater_crds::MirrorState;
use breakwater_crds::names::TLS_PORT;
use breakwater_tests::agent::Stage;
use breakwater_tests::cluster::until;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

const LIMIT: Duration = Duration::from_secs(30);
/// What the agent knows is told within this time.
const TOLD: Duration = Duration::from_secs(2);
const SERVICE: &str = "cache-docker-io";
const UP: &str = r#"breakwater_relay_cache_up{registry="docker.io"} 1"#;
const DOWN: &str = r#"breakwater_relay_cache_up{registry="docker.io"} 0"#;

/// Whoever asks gets an answer over TLS, until this is aborted.
fn serve(listener: TcpListener, acceptor: TlsAcceptor) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            // Ends with the connection, which the agent closes after each probe.
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
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

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_stops_and_comes_back_is_told_within_two_seconds() -> Result<()> {
    let stage = Stage::start().await?;
    let (acceptor, ca) = identity()?;
    let address = stage.cluster.machine().address();
    let serving = serve(stage.cluster.listen(address, TLS_PORT).await?, acceptor.clone());
    stage.trust(&ca).await?;
    stage.mirrors(&["docker.io"]).await?;
    stage.cache_at("docker.io", SERVICE, address).await?;
    let agent = stage.agent()?;
    stage.counts(UP, LIMIT).await?;
    // Without a socket, the first pull proves that the runtime reads the file.
    let pulled = reqwest::get(format!("http://{}/v2/library/nginx/manifests/1?ns=docker.io", stage.relay())).await?;
    ensure!(pulled.status() == 404);
    stage.says("docker.io is active", TOLD, |status| status.active == ["docker.io"]).await?;
    stage.counts(r#"breakwater_relay_requests_total{registry="docker.io",outcome="absent"} 1"#, TOLD).await?;
    stage.counts(r#"breakwater_node_mirrors{state="active"} 1"#, TOLD).await?;

    serving.abort();
    stage.counts(DOWN, LIMIT).await?;
    let out = Instant::now();
    let bypassed = |state| state == MirrorState::Bypassed;
    stage.says("it is bypassed", TOLD, |status| status.inactive.iter().any(|one| bypassed(one.state))).await?;
    println!("told {:.1?} after the metric", out.elapsed());
    let asked = Instant::now();
    let pulled = reqwest::get(format!("http://{}/v2/library/nginx/manifests/1?ns=docker.io", stage.relay())).await?;
    ensure!(pulled.status() == 503 && asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());

    let listener =
        until(LIMIT, "the port to be free", async || Ok(stage.cluster.listen(address, TLS_PORT).await.ok())).await?;
    let _serving = serve(listener, acceptor);
    stage.counts(UP, LIMIT).await?;
    stage.says("docker.io is active again", TOLD, |status| status.active == ["docker.io"]).await?;
    drop(agent);
    stage.cluster.remove().await
}
