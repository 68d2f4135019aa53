//! Keeps [`Known`] current from the API server. With the server away, everything stays as it was last known.

mod contact;
mod paced;

use crate::known::{Endpoint, Known, Node, Slice, Trust, slim};
use crate::relay::trust_only;
use crate::spread::{random_part, spread};
use breakwater_crds::{RegistryMirror, RelayKey, names};
use contact::Contact;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node as NodeObject, Secret};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher as watch_objects;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use paced::paced;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch::Sender;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// A kind that is not found for this long was removed; just after an API server starts it is merely not served yet.
const KIND_GONE: Duration = Duration::from_secs(60);
/// Watches are renewed after this time and some more: agents that lost the API server together would renew theirs together ever after.
const RENEW: Duration = Duration::from_secs(220);
const RENEW_SPREAD: Duration = Duration::from_secs(70);
/// After a failure a watch pauses this long at first, then longer and longer, up to this and as much again.
const PAUSE: Duration = Duration::from_millis(800);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The one request that is no watch.
const REQUEST: Duration = Duration::from_secs(10);
/// Without the runtime's socket an upgrade of the runtime is learned of after this time, or twice that.
const UPGRADED: Duration = Duration::from_secs(1800);

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
    let watching = &paced(client);
    let (mut tasks, contact) = (JoinSet::new(), Arc::new(Contact::default()));
    let renew = RENEW + spread(node_name, RENEW_SPREAD);
    let all = watcher::Config::default().timeout(u32::try_from(renew.as_secs()).unwrap_or(u32::MAX));
    let by_name = |name: &str| all.clone().fields(&format!("metadata.name={name}"));

    let mirrors = watch_objects(Api::<DeserializeGuard<RegistryMirror>>::all(watching.clone()), all.clone());
    tasks.spawn(follow("RegistryMirrors", contact.clone(), mirrors, noting(known, take_mirror)));

    let caches = all.clone().labels(&format!("{}={}", names::LABEL_NAME, names::CACHE));
    let slices = watch_objects(Api::<EndpointSlice>::namespaced(watching.clone(), namespace), caches);
    tasks.spawn(follow("EndpointSlices", contact.clone(), slices, noting(known, take_slice)));

    let secrets =
        watch_objects(Api::<Secret>::namespaced(watching.clone(), agent_namespace), by_name(names::RELAY_SECRET));
    tasks.spawn(follow("Secrets", contact.clone(), secrets, noting(known, take_secret)));

    let metadata = watch_objects(Api::<PartialObjectMeta<NodeObject>>::all(watching.clone()), by_name(node_name));
    tasks.spawn(follow("Nodes", contact, metadata, noting(known, take_node)));

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
    contact: Arc<Contact>,
    events: impl Stream<Item = watcher::Result<Event<K>>>,
    mut take: impl FnMut(Change<K>),
) where
    K: Clone + Debug + Send + 'static,
{
    let mut events = pin!(events);
    let mut listed = Vec::new();
    let mut missing_since: Option<Instant> = None;
    let mut pause = PAUSE;
    while let Some(event) = events.next().await {
        // The watcher says Init before it asks: no sign of life.
        if !matches!(event, Err(_) | Ok(Event::Init)) {
            (missing_since, pause) = (None, PAUSE);
            if contact.found(kind) {
                tracing::info!("the API server answers again");
            }
        }
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => listed.push(object),
            Ok(Event::InitDone) => take(Change::All(std::mem::take(&mut listed))),
            Ok(Event::Apply(object)) => take(Change::Set(object)),
            Ok(Event::Delete(object)) => take(Change::Gone(object)),
            Err(error) => {
                if contact.lost(kind, &error.to_string()) {
                    tracing::warn!(kind, %error, "watch failed, going on with what was last known");
                }
                if !is_not_found(&error) {
                    missing_since = None;
                } else if missing_since.get_or_insert_with(Instant::now).elapsed() >= KIND_GONE {
                    take(Change::All(Vec::new()));
                }
                sleep(pause + random_part(pause)).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

fn is_not_found(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.is_not_found())
}

fn noting<K>(known: &Sender<Known>, take: fn(&mut Known, Change<K>)) -> impl FnMut(Change<K>) + use<K> {
    let known = known.clone();
    move |change| note(&known, |known| take(known, change))
}

fn note(known: &Sender<Known>, change: impl FnOnce(&mut Known)) {
    known.send_if_modified(|known| {
        let before = known.clone();
        change(known);
        *known != before
    });
}

/// A mirror that cannot be read, as one whose newer fields an older agent does not know, stays as it was.
fn take_mirror(known: &mut Known, change: Change<DeserializeGuard<RegistryMirror>>) {
    let mut before = known.mirrors.take().unwrap_or_default();
    let parse = |before: &mut BTreeMap<_, _>, DeserializeGuard(object): DeserializeGuard<RegistryMirror>| match object {
        Ok(mirror) => Some((mirror.name_any(), slim(mirror))),
        Err(invalid) => {
            let mirror = invalid.metadata.name.unwrap_or_default();
            tracing::warn!(mirror, error = invalid.error, "mirror cannot be read and stays as it was");
            before.remove_entry(&mirror)
        }
    };
    known.mirrors = Some(match change {
        Change::All(objects) => objects.into_iter().filter_map(|object| parse(&mut before, object)).collect(),
        Change::Set(object) => {
            let mirror = parse(&mut before, object);
            before.extend(mirror);
            before
        }
        Change::Gone(object) => {
            before.remove(&object.name_any());
            before
        }
    });
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
                    "secret lacks a usable key, keeping the last good one"
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
    let ca = text(names::CA_CERTIFICATE_KEY)?;
    trust_only(&ca).map_err(|_| names::CA_CERTIFICATE_KEY)?;
    Ok(Trust { ca, key })
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

/// The runtime may be upgraded while the agent runs.
async fn learn_runtime(nodes: Api<NodeObject>, name: String, known: Sender<Known>) {
    let mut pause = Duration::from_secs(1);
    loop {
        let version = match timeout(REQUEST, nodes.get(&name)).await {
            Ok(Ok(node)) => node.status.and_then(|status| status.node_info).map(|info| info.container_runtime_version),
            Ok(Err(error)) => {
                tracing::debug!(node = name, %error, "node cannot be read yet");
                None
            }
            Err(_) => None,
        };
        if let Some(version) = version.filter(|version| !version.is_empty()) {
            note(&known, |known| known.runtime_version = Some(version));
            sleep(UPGRADED + random_part(UPGRADED)).await;
            pause = Duration::from_secs(1);
            continue;
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(30));
    }
}

#[cfg(test)]
mod tests;
