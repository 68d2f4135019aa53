//! All watches: what they keep of the cluster for [`crate::observe`]. Client I/O.
//!
//! Every watch is filled before the first pass, so that a StatefulSet that is not here does not exist.

mod concerns;
mod keep;
mod paced;

use crate::fleet::{Common, Fleet, News, WatchedAgent, WatchedNode, WatchedReport};
use breakwater_crds::RegistryMirror;
use breakwater_crds::names::{CA_SECRET, CACHE, CACHE_PEER, LABEL_INSTANCE, LABEL_NAME};
use concerns::Concerns;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use keep::{Change, drop_containers, drop_nothing, drop_template, keep};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::Config;
use kube::{Api, Client, Resource, ResourceExt};
pub use paced::paced;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

/// Label value of the agents' Pods.
pub const AGENT: &str = "breakwater-node-agent";
const FILL_DEADLINE: Duration = Duration::from_secs(60);
/// Nodes and agents change in bursts; one look at all of them per burst is enough.
const FLEET_PAUSE: Duration = Duration::from_millis(200);
/// What a look costs grows with the nodes, and so does a storm: while every look finds news, two of them are further apart by so much for
/// each node. Statuses keep a slower pace anyway.
const FLEET_PAUSE_PER_NODE: Duration = Duration::from_micros(400);

/// The mirrors as they are watched: one that cannot be read does not stop the others.
pub type Mirrors = Store<DeserializeGuard<RegistryMirror>>;
/// One of them, shared with the watch: every pass looks at all mirrors, and copies none.
pub type Watched = Arc<DeserializeGuard<RegistryMirror>>;
/// Says that a mirror needs a pass.
pub type Trigger = mpsc::UnboundedSender<ObjectRef<DeserializeGuard<RegistryMirror>>>;

/// What is known of the cluster.
#[derive(Clone, Debug)]
pub struct Stores {
    mirrors: Mirrors,
    statefulsets: Store<StatefulSet>,
    services: Store<Service>,
    budgets: Store<PartialObjectMeta<PodDisruptionBudget>>,
    secrets: Store<PartialObjectMeta<Secret>>,
    config_maps: Store<ConfigMap>,
    claims: Store<PersistentVolumeClaim>,
    pods: Store<Pod>,
    fleet: watch::Receiver<Arc<Fleet>>,
    namespace: String,
}

/// The watches that [`Fleet`] joins.
struct FleetStores {
    nodes: Store<WatchedNode>,
    reports: Store<DeserializeGuard<WatchedReport>>,
    agents: Store<WatchedAgent>,
}

/// Where to watch.
#[derive(Clone, Copy, Debug)]
pub struct Namespaces<'a> {
    /// Of the caches.
    pub system: &'a str,
    /// Of the agents.
    pub nodes: &'a str,
}

/// A watch was not filled in time; the log says why.
#[derive(Debug, thiserror::Error)]
#[error("the watch of {0} was not filled within {secs}s; does the operator's role allow it?", secs = FILL_DEADLINE.as_secs())]
pub struct NotFilled(&'static str);

/// Starts all watches in `tasks`, where they run until it is dropped, and waits until they are filled. The client is a [`paced`] one.
/// `authority` is told when the authority's Secret changes.
///
/// # Errors
/// A watch was not filled in time.
pub async fn start(
    client: &Client,
    namespaces: Namespaces<'_>,
    mirrors: Mirrors,
    trigger: Trigger,
    authority: Arc<Notify>,
    tasks: &mut JoinSet<()>,
) -> Result<Stores, NotFilled> {
    let concerns = Concerns { mirrors: mirrors.clone(), trigger };
    let child = {
        let concerns = concerns.clone();
        move |change: Change<'_>| concerns.child(change)
    };
    let secret = {
        let concerns = concerns.clone();
        move |change: Change<'_>| {
            if change.is_about(CA_SECRET) {
                authority.notify_one();
            }
            concerns.secret(change);
        }
    };
    let config_map = {
        let concerns = concerns.clone();
        move |change: Change<'_>| concerns.config_map(change)
    };
    let (publish, fleet) = watch::channel(Arc::default());
    let caches = Config::default().labels(&format!("{LABEL_NAME}={CACHE}"));
    let services = Config::default().labels(&format!("{LABEL_NAME} in ({CACHE}, {CACHE_PEER})"));
    let stores = Stores {
        statefulsets: keep(system_api(client, namespaces), caches.clone(), drop_template, child.clone(), tasks),
        services: keep(system_api(client, namespaces), services, drop_nothing, child.clone(), tasks),
        budgets: keep(system_api(client, namespaces), caches.clone(), drop_nothing, child.clone(), tasks),
        secrets: keep(system_api(client, namespaces), Config::default(), drop_nothing, secret, tasks),
        config_maps: keep(system_api(client, namespaces), Config::default(), drop_nothing, config_map, tasks),
        claims: keep(system_api(client, namespaces), caches.clone(), drop_nothing, child.clone(), tasks),
        pods: keep(system_api(client, namespaces), caches, drop_containers, child, tasks),
        mirrors,
        fleet,
        namespace: namespaces.system.to_owned(),
    };
    let changed = Arc::new(Notify::new());
    let fleet_stores = watch_fleet(client, namespaces, &changed, tasks);
    stores.filled().await?;
    fleet_stores.filled().await?;
    publish.send_replace(Arc::new(fleet_stores.first_look()));
    tasks.spawn(keep_fleet(fleet_stores, changed, publish, concerns));
    Ok(stores)
}

fn watch_fleet(
    client: &Client,
    namespaces: Namespaces<'_>,
    changed: &Arc<Notify>,
    tasks: &mut JoinSet<()>,
) -> FleetStores {
    let changed = changed.clone();
    let notify = move |_: Change<'_>| changed.notify_one();
    let agents = Config::default().labels(&format!("{LABEL_NAME}={AGENT}"));
    let mut common = Common::default();
    let share = move |report: &mut DeserializeGuard<WatchedReport>| {
        if let Ok(report) = &mut report.0 {
            common.share(report);
        }
    };
    FleetStores {
        nodes: keep(Api::all(client.clone()), Config::default(), drop_nothing, notify.clone(), tasks),
        reports: keep(Api::all(client.clone()), Config::default(), share, notify.clone(), tasks),
        agents: keep(Api::namespaced(client.clone(), namespaces.nodes), agents, drop_nothing, notify, tasks),
    }
}

fn system_api<K>(client: &Client, namespaces: Namespaces<'_>) -> Api<K>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
{
    Api::namespaced(client.clone(), namespaces.system)
}

/// Publishes the fleet whenever something happened on a node, and asks for passes over the mirrors that it concerns.
async fn keep_fleet(stores: FleetStores, changed: Arc<Notify>, publish: watch::Sender<Arc<Fleet>>, concerns: Concerns) {
    let mut pause = FLEET_PAUSE;
    loop {
        changed.notified().await;
        tokio::time::sleep(pause).await;
        let fleet = stores.join().after(&publish.borrow(), Timestamp::now());
        let news = fleet.news_since(&publish.borrow());
        pause = pause_after(&news, fleet.nodes.len());
        // Also without news: the former one would hold on to what the watches have replaced.
        publish.send_replace(Arc::new(fleet));
        match news {
            News::Nodes => concerns.all(),
            News::Registries(registries) => concerns.registries(&registries),
        }
    }
}

fn pause_after(news: &News, nodes: usize) -> Duration {
    match news {
        News::Registries(registries) if registries.is_empty() => FLEET_PAUSE,
        _ => FLEET_PAUSE + FLEET_PAUSE_PER_NODE * u32::try_from(nodes).unwrap_or(u32::MAX),
    }
}

impl FleetStores {
    fn join(&self) -> Fleet {
        let reports = self.reports.state();
        Fleet::of(&self.nodes.state(), &readable_reports(&reports), &self.agents.state())
    }

    /// An upgrade replaces operator and agents at once: those that are away just now were heard by its last life.
    fn first_look(&self) -> Fleet {
        let reports = self.reports.state();
        let heard = Fleet::ever_heard(&self.nodes.state(), &readable_reports(&reports));
        self.join().after(&heard, Timestamp::now())
    }

    async fn filled(&self) -> Result<(), NotFilled> {
        let Self { nodes, reports, agents } = self;
        filled(nodes, "nodes").await?;
        filled(reports, "mirrornodes").await?;
        filled(agents, "the agents' pods").await
    }
}

impl Stores {
    async fn filled(&self) -> Result<(), NotFilled> {
        // Mirrors are the controller's, which waits for them itself.
        let Self {
            mirrors: _,
            statefulsets,
            services,
            budgets,
            secrets,
            config_maps,
            claims,
            pods,
            fleet: _,
            namespace: _,
        } = self;
        filled(statefulsets, "statefulsets").await?;
        filled(services, "services").await?;
        filled(budgets, "poddisruptionbudgets").await?;
        filled(secrets, "secrets").await?;
        filled(config_maps, "configmaps").await?;
        filled(claims, "persistentvolumeclaims").await?;
        filled(pods, "pods").await
    }

    /// All mirrors.
    #[must_use]
    pub fn mirrors(&self) -> Vec<Watched> {
        self.mirrors.state()
    }

    /// All nodes.
    #[must_use]
    pub fn fleet(&self) -> Arc<Fleet> {
        self.fleet.borrow().clone()
    }

    /// A cache's StatefulSet, of whose spec only the claim templates are kept.
    #[must_use]
    pub fn statefulset(&self, name: &str) -> Option<Arc<StatefulSet>> {
        self.statefulsets.get(&ObjectRef::new(name).within(&self.namespace))
    }

    /// A cache's Service, or that of one of its replicas.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<Arc<Service>> {
        self.services.get(&ObjectRef::new(name).within(&self.namespace))
    }

    /// A cache's PodDisruptionBudget, metadata only.
    #[must_use]
    pub fn budget(&self, name: &str) -> Option<Arc<PartialObjectMeta<PodDisruptionBudget>>> {
        self.budgets.get(&ObjectRef::new(name).within(&self.namespace))
    }

    /// A Secret, metadata only.
    #[must_use]
    pub fn secret(&self, name: &str) -> Option<Arc<PartialObjectMeta<Secret>>> {
        self.secrets.get(&ObjectRef::new(name).within(&self.namespace))
    }

    /// The version of a Secret.
    #[must_use]
    pub fn secret_version(&self, name: &str) -> Option<String> {
        self.secret(name).and_then(|secret| secret.resource_version())
    }

    /// A ConfigMap.
    #[must_use]
    pub fn config_map(&self, name: &str) -> Option<Arc<ConfigMap>> {
        self.config_maps.get(&ObjectRef::new(name).within(&self.namespace))
    }

    /// A cache's claim.
    #[must_use]
    pub fn claim(&self, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(&ObjectRef::new(name).within(&self.namespace))
    }

    /// The Pods of one cache.
    #[must_use]
    pub fn cache_pods(&self, cache: &str) -> Vec<Arc<Pod>> {
        self.pods.state_filter(|pod| pod.labels().get(LABEL_INSTANCE).is_some_and(|instance| instance == cache))
    }

    /// The Pods of all caches.
    #[must_use]
    pub fn all_cache_pods(&self) -> Vec<Arc<Pod>> {
        self.pods.state()
    }
}

/// Those that can be read.
pub fn readable(mirrors: &[Watched]) -> impl Iterator<Item = &RegistryMirror> {
    mirrors.iter().filter_map(|mirror| mirror.0.as_ref().ok())
}

/// One that cannot be read, as from a newer agent, counts as none.
fn readable_reports(reports: &[Arc<DeserializeGuard<WatchedReport>>]) -> Vec<&WatchedReport> {
    reports.iter().filter_map(|report| report.0.as_ref().ok()).collect()
}

async fn filled<K>(store: &Store<K>, what: &'static str) -> Result<(), NotFilled>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    match tokio::time::timeout(FILL_DEADLINE, store.wait_until_ready()).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(NotFilled(what)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_at_many_nodes_are_rarer_while_each_finds_news() {
        let none = News::Registries([].into());
        let some = News::Registries(["docker.io".to_owned()].into());
        let millis = |news, nodes| pause_after(news, nodes).as_millis();
        assert_eq!((millis(&none, 5000), millis(&some, 5000), millis(&News::Nodes, 5000)), (200, 2200, 2200));
        assert_eq!(millis(&some, 3), 201, "few nodes are no storm");
    }
}
