//! The real operator as a process beside a real API server, reached by an [`ApiProxy`] as its service account. No node runs anything, so
//! what the operator makes stays as it made it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use breakwater_crds::names::{NODES_NAMESPACE, SYSTEM_NAMESPACE};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api_proxy::ApiProxy;
use crate::binaries::OPERATOR;
use crate::cluster::{Cluster, until};
use crate::operator::Operator;
use crate::product;
use breakwater_crds::RegistryMirror;

/// How long anything may take to settle.
pub const SETTLE: Duration = Duration::from_secs(40);

/// An API server with Breakwater's definitions and roles, and a door to it for operators.
pub struct Scene {
    /// The API server.
    pub cluster: Cluster,
    /// The door.
    pub door: ApiProxy,
    kubeconfig: PathBuf,
}

impl Scene {
    /// Starts the API server and installs what `config/default` holds.
    ///
    /// # Errors
    /// Fails when a part does not come up.
    pub async fn start() -> Result<Self> {
        let cluster = product::api_server().await?;
        let door = ApiProxy::start(cluster.client(), SYSTEM_NAMESPACE, OPERATOR).await?;
        let kubeconfig = door.kubeconfig(cluster.state())?;
        Ok(Self { cluster, door, kubeconfig })
    }

    /// Starts an operator that calls itself `name`.
    ///
    /// # Errors
    /// Fails when it cannot be started.
    pub fn operator(&self, name: &str) -> Result<Operator> {
        Operator::start(name, &self.kubeconfig, &self.cluster.logs())
    }

    /// The same, whose caches run this image.
    ///
    /// # Errors
    /// As [`Self::operator`].
    pub fn operator_with_image(&self, name: &str, image: &str) -> Result<Operator> {
        Operator::with_image(image, name, &self.kubeconfig, &self.cluster.logs())
    }

    /// An interface to objects of the caches' namespace.
    #[must_use]
    pub fn system<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(&self) -> Api<K> {
        Api::namespaced(self.cluster.client(), SYSTEM_NAMESPACE)
    }

    /// The mirrors.
    #[must_use]
    pub fn mirrors(&self) -> Api<RegistryMirror> {
        Api::all(self.cluster.client())
    }

    /// Applies a mirror with this spec, in YAML.
    ///
    /// # Errors
    /// Fails when the API server refuses it.
    pub async fn mirror(&self, name: &str, spec: &str) -> Result<RegistryMirror> {
        let spec: Value = serde_saphyr::from_str(spec).with_context(|| format!("parse {spec}"))?;
        let kind = json!({"apiVersion": "breakwater.dev/v1alpha1", "kind": "RegistryMirror", "metadata": {"name": name}, "spec": spec});
        let params = PatchParams::apply("test").force();
        self.mirrors().patch(name, &params, &Patch::Apply(kind)).await.with_context(|| format!("apply {name}"))
    }

    /// Waits until a condition of a mirror, as of its present generation, has this status and reason.
    ///
    /// # Errors
    /// Fails after [`SETTLE`], with the conditions as they are.
    pub async fn condition(&self, mirror: &str, kind: &str, status: &str, reason: &str) -> Result<String> {
        let mut last = Vec::new();
        let reached = until(SETTLE, &format!("{kind}={status} {reason} of {mirror}"), async || {
            // An API server under load, or just back, may not answer in time.
            let Ok(mirror) = self.mirrors().get(mirror).await else { return Ok(None) };
            last = mirror.status.map(|status| status.conditions).unwrap_or_default();
            let holds = last.iter().find(|it| {
                it.type_ == kind
                    && it.status == status
                    && it.reason == reason
                    && it.observed_generation == mirror.metadata.generation
            });
            Ok(holds.map(|condition| condition.message.clone()))
        })
        .await;
        reached.with_context(|| format!("it has {last:?}"))
    }

    /// Whether a cache is to be started with this argument.
    ///
    /// # Errors
    /// Fails when it has no StatefulSet.
    pub async fn has_argument(&self, cache: &str, argument: &str) -> Result<bool> {
        let set = self.system::<StatefulSet>().get(cache).await.context("get the cache's StatefulSet")?;
        let pod = set.spec.template.spec.context("a template")?;
        Ok(pod.containers.iter().flat_map(|container| container.args.iter().flatten()).any(|given| given == argument))
    }

    /// Removes every mirror and all that was made for one, the authority too.
    ///
    /// # Errors
    /// Fails when the API server refuses.
    pub async fn clear(&self) -> Result<()> {
        let all = ListParams::default();
        self.mirrors().delete_collection(&DeleteParams::default(), &all).await.context("delete the mirrors")?;
        self.delete::<StatefulSet>().await?;
        self.delete::<Service>().await?;
        self.delete::<PodDisruptionBudget>().await?;
        self.delete::<PersistentVolumeClaim>().await?;
        self.delete::<Secret>().await?;
        self.delete::<ConfigMap>().await?;
        self.delete::<Lease>().await?;
        let nodes: Api<Secret> = Api::namespaced(self.cluster.client(), NODES_NAMESPACE);
        nodes.delete_collection(&DeleteParams::default(), &all).await.map(drop).context("delete the agents' Secret")
    }

    async fn delete<K>(&self) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let deleted = self.system::<K>().delete_collection(&DeleteParams::background(), &ListParams::default()).await;
        deleted.map(drop).with_context(|| format!("delete every {}", K::kind(&())))
    }

    /// Does without end what the garbage collector does, which does not run here: removes what was made for mirrors that are gone.
    ///
    /// # Errors
    /// Fails when the API server refuses.
    pub async fn collect_garbage(&self) -> Result<()> {
        loop {
            self.collect::<StatefulSet>().await?;
            self.collect::<Service>().await?;
            self.collect::<PodDisruptionBudget>().await?;
            self.collect::<Secret>().await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn collect<K>(&self) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        // The children first: an owner that is made between the two lists must not look like one that is gone.
        let children = self.system::<K>().list(&ListParams::default()).await.context("list children")?;
        let mirrors = self.mirrors().list(&ListParams::default()).await.context("list the mirrors")?;
        let is_gone = |uid: &str| mirrors.iter().all(|mirror| mirror.metadata.uid.as_deref() != Some(uid));
        for child in children.iter().filter(|child| child.owner_references().iter().any(|owner| is_gone(&owner.uid))) {
            let exactly = Preconditions { uid: child.uid(), ..Preconditions::default() };
            let params = DeleteParams::background().preconditions(exactly);
            match self.system::<K>().delete(&child.name_any(), &params).await {
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
                deleted => drop(deleted.context("delete a child")?),
            }
        }
        Ok(())
    }

    /// All that an operator makes, without what differs from one time to the next, as text to be compared.
    ///
    /// # Errors
    /// Fails when the API server does not answer.
    pub async fn state(&self) -> Result<String> {
        let mut found = Vec::new();
        found.extend(self.kind::<StatefulSet>().await?);
        let services = self.kind::<Service>().await?;
        found.extend(services.clone());
        found.extend(self.kind::<PodDisruptionBudget>().await?);
        found.extend(self.kind::<Secret>().await?);
        for mirror in self.mirrors().list(&ListParams::default()).await.context("list the mirrors")? {
            let (status, generation) = (mirror.status.unwrap_or_default(), mirror.metadata.generation);
            let is_current = status.observed_generation == generation;
            found.push(json!({"isCurrent": is_current, "conditions": conditions(&status.conditions, generation)}));
        }
        let mut text = serde_json::to_string_pretty(&found).context("write JSON")?;
        for service in &services {
            let name = service["metadata"]["name"].as_str().unwrap_or_default();
            if let Some(address) = service["spec"]["clusterIP"].as_str().filter(|address| *address != "None") {
                text = text.replace(address, name);
            }
        }
        Ok(text)
    }

    async fn kind<K>(&self) -> Result<Vec<Value>>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Serialize
            + std::fmt::Debug,
    {
        let list = self.system::<K>().list(&ListParams::default()).await;
        let list = list.with_context(|| format!("list every {}", K::kind(&())))?;
        list.items.iter().map(|object| Ok(comparable(serde_json::to_value(object).context("write JSON")?))).collect()
    }
}

/// Each, and whether it speaks of this generation.
fn conditions(conditions: &[Condition], generation: Option<i64>) -> Value {
    let said =
        |it: &Condition| json!([it.type_, it.status, it.reason, it.message, it.observed_generation == generation]);
    conditions.iter().map(said).collect()
}

/// Without what the API server gives, and without the content of Secrets.
fn comparable(mut object: Value) -> Value {
    for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields", "generation"] {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove(field);
        }
    }
    for owner in object["metadata"]["ownerReferences"].as_array_mut().into_iter().flatten() {
        owner["uid"] = Value::Null;
    }
    for value in object["data"].as_object_mut().into_iter().flat_map(|data| data.values_mut()) {
        *value = json!("...");
    }
    object
}
