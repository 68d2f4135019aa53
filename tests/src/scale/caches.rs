//! The caches' part: what the controller of StatefulSets and a kubelet would do with what the operator makes, and caches that hold
//! whatever they are told to hold. All of them live in this process.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use breakwater_crds::names::{self, SYSTEM_NAMESPACE};
use futures::TryStreamExt;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

const UPSTREAM: &str = r#"{"reachable":true,"cachedBytes":1073741824}"#;

/// What one cache was told to hold, as it answers.
type Pins = Arc<Mutex<Vec<u8>>>;

/// Follows the operator's StatefulSets until it is dropped.
pub(super) async fn play(client: Client) -> Result<()> {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let mut running = BTreeMap::new();
    let mut events =
        std::pin::pin!(watcher(sets.clone(), watcher::Config::default()).default_backoff().applied_objects());
    while let Some(set) = events.try_next().await.context("watch the StatefulSets")? {
        let name = set.name_any();
        if !running.contains_key(&name) {
            let address = Ipv4Addr::new(127, 80, 0, u8::try_from(running.len() + 1).context("too many caches")?);
            running.insert(name.clone(), serve(&client, &name, address).await?);
            create_pod(&client, &set, address).await?;
        }
        let status = set.status.as_ref();
        if status.and_then(|status| status.observed_generation) != set.metadata.generation {
            let status = json!({"status": {"observedGeneration": set.metadata.generation, "replicas": 1, "readyReplicas": 1, "updatedReplicas": 1}});
            let patched = sets.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await;
            patched.with_context(|| format!("write the status of {name}"))?;
        }
    }
    Ok(())
}

async fn create_pod(client: &Client, set: &StatefulSet, address: Ipv4Addr) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let template = set.spec.template.clone();
    let mut metadata = template.metadata.context("the template has no metadata")?;
    let name = names::pod_name(&set.name_any(), 0);
    metadata.name = Some(name.clone());
    let mut spec = template.spec.context("the template has no spec")?;
    // Of the volumes only the claim's is not in the template.
    spec.volumes
        .get_or_insert_default()
        .push(serde_json::from_value(json!({"name": "data", "emptyDir": {}})).context("make a volume")?);
    pods.create(&PostParams::default(), &Pod { metadata, spec: Some(spec), status: None })
        .await
        .context("create a cache's Pod")?;
    let address = address.to_string();
    let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [{"type": "Ready", "status": "True"}]}});
    pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.context("write a Pod's status")?;
    Ok(())
}

/// A cache on an address of its own, because a cache's ports are fixed.
async fn serve(client: &Client, cache: &str, address: Ipv4Addr) -> Result<JoinSet<()>> {
    let acceptor = acceptor(client, cache).await?;
    let pins = Pins::new(Mutex::new(br#"{"images":[]}"#.to_vec()));
    let tls = TcpListener::bind((address, names::TLS_PORT)).await.context("take a cache's port")?;
    let admin = TcpListener::bind((address, names::ADMIN_PORT)).await.context("take a cache's port")?;
    let mut tasks = JoinSet::new();
    let told = Arc::clone(&pins);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = tls.accept().await {
            let (acceptor, pins) = (acceptor.clone(), Arc::clone(&told));
            connections.spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    answer(stream, pins).await;
                }
            });
            while connections.try_join_next().is_some() {}
        }
    });
    tasks.spawn(async move {
        while let Ok((stream, _)) = admin.accept().await {
            answer(stream, Arc::clone(&pins)).await;
        }
    });
    Ok(tasks)
}

async fn acceptor(client: &Client, cache: &str) -> Result<TlsAcceptor> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let name = names::tls_secret(cache);
    let secret = secrets.get(&name).await.context("get a Secret")?;
    let data = secret.data.unwrap_or_default();
    let part = |key: &str| data.get(key).with_context(|| format!("{name} has no {key}"));
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&part("tls.crt")?.0).collect::<Result<_, _>>().context("read a certificate")?;
    let key = PrivateKeyDer::from_pem_slice(&part("tls.key")?.0).context("read a key")?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key);
    Ok(TlsAcceptor::from(Arc::new(config.context("use a certificate")?)))
}

/// One connection, until the operator closes it.
async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, pins: Pins) {
    let service = service_fn(|request: Request<Incoming>| {
        let pins = Arc::clone(&pins);
        async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(reply(request, &pins).await)))) }
    });
    drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

async fn reply(request: Request<Incoming>, pins: &Mutex<Vec<u8>>) -> Vec<u8> {
    if request.uri().path() != "/v1/pins" {
        return UPSTREAM.as_bytes().to_vec();
    }
    if request.method() == Method::PUT
        && let Ok(body) = request.into_body().collect().await
        && let Ok(mut list) = serde_json::from_slice::<Value>(&body.to_bytes())
    {
        for image in list["images"].as_array_mut().into_iter().flatten() {
            image["state"] = "complete".into();
        }
        *pins.lock().unwrap_or_else(PoisonError::into_inner) = list.to_string().into_bytes();
    }
    pins.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
