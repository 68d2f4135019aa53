//! One watch: a store that follows it, pruned to the fields in use. Client I/O; knows nothing of mirrors.

use futures::StreamExt;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::Pod;
use kube::core::ObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{Store, store};
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::hash::Hash;
use std::pin::pin;
use tokio::task::JoinSet;

/// What happened in a watch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change<'a> {
    /// An object appeared, changed or vanished.
    Touched(&'a ObjectMeta),
    /// The watch began anew; anything may have vanished meanwhile.
    Relisted,
}

impl Change<'_> {
    /// Whether it may concern the object with this name.
    pub(super) fn is_about(&self, name: &str) -> bool {
        match self {
            Self::Touched(metadata) => metadata.name.as_deref() == Some(name),
            Self::Relisted => true,
        }
    }
}

/// Watches in a task of `tasks`, without end: a watch that fails is begun again, at the pace of the API's client.
pub(super) fn keep<K>(
    api: Api<K>,
    config: Config,
    mut prune: impl FnMut(&mut K) + Send + 'static,
    changed: impl Fn(Change<'_>) + Send + 'static,
    tasks: &mut JoinSet<()>,
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    let (reader, mut writer) = store();
    tasks.spawn(async move {
        let prune = move |object: &mut K| {
            object.meta_mut().managed_fields = None;
            prune(object);
        };
        let mut events = pin!(watcher(api, config).modify(prune));
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    let kind = K::kind(&());
                    tracing::warn!(%kind, error = %crate::error_chain(&error), "watch interrupted, beginning again");
                    continue;
                }
            };
            writer.apply_watcher_event(&event);
            match &event {
                Event::Apply(object) | Event::Delete(object) => changed(Change::Touched(object.meta())),
                Event::InitDone => changed(Change::Relisted),
                Event::Init | Event::InitApply(_) => {}
            }
        }
    });
    reader
}

pub(super) fn drop_nothing<K>(_: &mut K) {}

pub(super) fn drop_template(statefulset: &mut StatefulSet) {
    let volume_claim_templates = statefulset.spec.volume_claim_templates.take();
    statefulset.spec = StatefulSetSpec { volume_claim_templates, ..StatefulSetSpec::default() };
}

/// Of a Pod's spec only its node is used.
pub(super) fn drop_containers(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        *spec = k8s_openapi::api::core::v1::PodSpec { node_name: spec.node_name.take(), ..Default::default() };
    }
}
