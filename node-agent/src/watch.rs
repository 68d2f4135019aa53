//! Keeps [`Known`] current from the API server. With the server away, everything stays as it was last known.

use crate::known::{Endpoint, Known, Node, Slice, Trust, slim};
use crate::spread::spread;
use breakwater_crds::{RegistryMirror, RelayKey, names};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node as NodeObject, Secret};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Api, Client, ResourceExt};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::watch::Sender;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A kind that is not found for this long was removed; just after an API server starts it is merely not served yet.
const KIND_GONE: Duration = Duration::from_secs(60);
/// Watches are renewed after this time and some more: agents that lost the API server together would renew theirs together ever after.
const RENEW: Duration = Duration::from_secs(220);
const RENEW_SPREAD: Duration = Duration::from_secs(70);
/// Failures of one watch are logged this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Whose changes to follow.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Name of the agent's Node.
    pub node_name: String,
    /// Namespace of the caches.
    pub namespace: String,
    /// Namespace of the agents.
    pub agent_namespace: String,
}

/// Starts the watches; they end when the set is dropped.
pub fn start(client: &Client, sources: &Sources, known: &Sender<Known>) -> JoinSet<()> {
    let Sources { node_name, namespace, agent_namespace } = sources;
    let mut tasks = JoinSet::new();
    let renew = RENEW + spread(node_name, RENEW_SPREAD);
    let all = watcher::Config::default().timeout(u32::try_from(renew.as_secs()).unwrap_or(u32::MAX));
    let by_name = |name: &str| all.clone().fields(&format!("metadata.name={name}"));

    let mirrors = watch_objects(Api::<DeserializeGuard<RegistryMirror>>::all(client.clone()), all.clone());
    let to = known.clone();
    tasks.spawn(follow("RegistryMirrors", mirrors, move |change| note(&to, |known| take_mirror(known, change))));

    let caches = all.clone().labels(&format!("{}={}", names::LABEL_NAME, names::CACHE));
    let slices = watch_objects(Api::<EndpointSlice>::namespaced(client.clone(), namespace), caches);
    let to = known.clone();
    tasks.spawn(follow("EndpointSlices", slices, move |change| note(&to, |known| take_slice(known, change))));

    let secrets =
        watch_objects(Api::<Secret>::namespaced(client.clone(), agent_namespace), by_name(names::RELAY_SECRET));
    let to = known.clone();
    tasks.spawn(follow("Secrets", secrets, move |change| note(&to, |known| take_secret(known, change))));

    let metadata = watch_objects(Api::<PartialObjectMeta<NodeObject>>::all(client.clone()), by_name(node_name));
    let to = known.clone();
    tasks.spawn(follow("Nodes", metadata, move |change| note(&to, |known| take_node(known, change))));

    tasks.spawn(learn_runtime(Api::all(client.clone()), node_name.clone(), known.clone()));
    tasks
}

/// One complete list, or one object of it.
enum Change<K> {
    All(Vec<K>),
    Set(K),
    Gone(K),
}

/// Hands on each change, whatever happens to the connection. A list counts only once it is complete.
async fn follow<K>(
    kind: &'static str,
    events: impl Stream<Item = watcher::Result<Event<K>>>,
    mut take: impl FnMut(Change<K>),
) where
    K: Clone + Debug + Send + 'static,
{
    let mut events = pin!(events.default_backoff());
    let mut listed = Vec::new();
    let mut missing_since: Option<Instant> = None;
    let mut complained: Option<Instant> = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                missing_since = None;
                match event {
                    Event::Init => listed.clear(),
                    Event::InitApply(object) => listed.push(object),
                    Event::InitDone => take(Change::All(std::mem::take(&mut listed))),
                    Event::Apply(object) => take(Change::Set(object)),
                    Event::Delete(object) => take(Change::Gone(object)),
                }
            }
            Err(error) => {
                if complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
                    complained = Some(Instant::now());
                    tracing::warn!(kind, %error, "watch failed, going on with what was last known");
                }
                if !is_not_found(&error) {
                    missing_since = None;
                } else if missing_since.get_or_insert_with(Instant::now).elapsed() >= KIND_GONE {
                    take(Change::All(Vec::new()));
                }
            }
        }
    }
}

fn is_not_found(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.is_not_found())
}

fn note(known: &Sender<Known>, change: impl FnOnce(&mut Known)) {
    known.send_if_modified(|known| {
        let before = known.clone();
        change(known);
        *known != before
    });
}

fn take_mirror(known: &mut Known, change: Change<DeserializeGuard<RegistryMirror>>) {
    let parse = |DeserializeGuard(object): DeserializeGuard<RegistryMirror>| match object {
        Ok(mirror) => Some((mirror.name_any(), slim(mirror))),
        Err(invalid) => {
            let mirror = invalid.metadata.name.as_deref().unwrap_or_default();
            tracing::warn!(mirror, error = invalid.error, "mirror is malformed and counts as absent");
            None
        }
    };
    match change {
        Change::All(objects) => known.mirrors = Some(objects.into_iter().filter_map(parse).collect()),
        Change::Set(object) => {
            let name = object.name_any();
            let mirrors = known.mirrors.get_or_insert_default();
            mirrors.remove(&name);
            mirrors.extend(parse(object));
        }
        Change::Gone(object) => {
            known.mirrors.get_or_insert_default().remove(&object.name_any());
        }
    }
}

fn take_slice(known: &mut Known, change: Change<EndpointSlice>) {
    match change {
        Change::All(slices) => {
            known.slices = slices.iter().filter_map(|slice| Some((slice.name_any(), parse_slice(slice)?))).collect();
        }
        Change::Set(slice) => match parse_slice(&slice) {
            Some(parsed) => drop(known.slices.insert(slice.name_any(), parsed)),
            None => drop(known.slices.remove(&slice.name_any())),
        },
        Change::Gone(slice) => drop(known.slices.remove(&slice.name_any())),
    }
}

/// A slice of a mirror's Service. Readiness is not asked: whether a cache serves is for the relay to find out.
fn parse_slice(slice: &EndpointSlice) -> Option<Slice> {
    let label = |key: &str| slice.labels().get(key).filter(|value| !value.is_empty()).cloned();
    let (mirror, service) = (label(names::LABEL_MIRROR)?, label("kubernetes.io/service-name")?);
    let ports = slice.ports.as_deref().unwrap_or_default();
    let port = ports.iter().find(|port| port.name.as_deref() == Some(names::TLS_PORT_NAME))?.port?;
    let port = u16::try_from(port).ok()?;
    let endpoints = slice.endpoints.iter().flatten().flat_map(|endpoint| {
        let pod = endpoint.target_ref.as_ref().and_then(|target| target.name.clone()).unwrap_or_default();
        let terminating =
            endpoint.conditions.as_ref().and_then(|conditions| conditions.terminating).unwrap_or_default();
        endpoint.addresses.iter().filter_map(move |address| {
            let address = SocketAddr::new(address.parse::<IpAddr>().ok()?, port);
            Some(Endpoint { terminating, pod: pod.clone(), address })
        })
    });
    Some(Slice { mirror, service, endpoints: endpoints.collect() })
}

/// A Secret that vanishes takes nothing with it: what it held is good until something better arrives.
fn take_secret(known: &mut Known, change: Change<Secret>) {
    let secrets = match change {
        Change::All(secrets) => secrets,
        Change::Set(secret) => vec![secret],
        Change::Gone(_) => Vec::new(),
    };
    for secret in secrets {
        match parse_trust(&secret) {
            Ok(trust) => known.trust = Some(trust),
            Err(missing) => {
                tracing::warn!(
                    secret = names::RELAY_SECRET,
                    missing,
                    "secret is incomplete, keeping the last good one"
                );
            }
        }
    }
}

fn parse_trust(secret: &Secret) -> Result<Trust, &'static str> {
    let text = |key: &'static str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key)).ok_or(key)?;
        String::from_utf8(bytes.0.clone()).map_err(|_| key)
    };
    let key = RelayKey::parse(&text(names::RELAY_KEY)?).map_err(|_| names::RELAY_KEY)?;
    Ok(Trust { ca: text(names::CA_CERTIFICATE_KEY)?, key })
}

fn take_node(known: &mut Known, change: Change<PartialObjectMeta<NodeObject>>) {
    let node = match change {
        Change::All(mut nodes) => nodes.pop(),
        Change::Set(node) => Some(node),
        // The Node object may go before its agent does; what is on the node stays until the agent is asked to stop.
        Change::Gone(_) => None,
    };
    if let Some(node) = node {
        let labels: BTreeMap<_, _> = node.labels().clone();
        known.node = Some(Node { uid: node.uid().unwrap_or_default(), labels });
    }
}

async fn learn_runtime(nodes: Api<NodeObject>, name: String, known: Sender<Known>) {
    let mut pause = Duration::from_secs(1);
    loop {
        let version = match nodes.get(&name).await {
            Ok(node) => node.status.and_then(|status| status.node_info).map(|info| info.container_runtime_version),
            Err(error) => {
                tracing::debug!(node = name, %error, "node cannot be read yet");
                None
            }
        };
        if let Some(version) = version.filter(|version| !version.is_empty()) {
            return note(&known, |known| known.runtime_version = Some(version));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(30));
    }
}

#[cfg(test)]
mod tests;
