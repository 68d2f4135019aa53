//! Step 4, client I/O: server-side apply of what was built, with one field manager.
//!
//! What the API server already has as we last wrote it is not sent again, so a pass without news makes no call. Whatever else wrote
//! to a child shows in its metadata and is put right.

use crate::build::{Applied, Built, Growth, Material, Resources, introduce};
use crate::memory::Memory;
use crate::pki::SecretData;
use crate::validate::Valid;
use crate::watches::Stores;
use breakwater_crds::names::{MANAGER, tls_secret, tokens_secret};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::core::Status;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::hash_map::DefaultHasher;
use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::time::Duration;

const CALL_DEADLINE: Duration = Duration::from_secs(15);

/// Why a child could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyFailed {
    /// The API server refuses the object: quota, admission or a webhook for it that does not answer, an immutable field.
    #[error("{kind} {name}: {message}")]
    Refused {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
        /// What the API server says.
        message: String,
    },
    /// The API server does not let a claim grow: its StorageClass, or a quota.
    #[error("{claim} cannot grow to {size}: {message}; the cache goes on within what it has")]
    NotExpandable {
        /// The claim.
        claim: String,
        /// The size that it was to have.
        size: String,
        /// What the API server says.
        message: String,
    },
    /// Somebody changed it at the same time.
    #[error("{kind} {name} was changed at the same time")]
    Conflict {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The call failed for now.
    #[error("cannot apply {kind} {name}")]
    Call {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: kube::Error,
    },
    /// No answer in time.
    #[error("cannot apply {kind} {name}: no answer within {}s", CALL_DEADLINE.as_secs())]
    Timeout {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
    },
}

/// What is known of a child's state without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// Of a child as the API server has it. A generation moves with the spec alone; kinds without one have only their version.
    #[must_use]
    pub fn of(metadata: &ObjectMeta) -> Self {
        let mut hasher = DefaultHasher::new();
        metadata.uid.hash(&mut hasher);
        match metadata.generation {
            Some(generation) => generation.hash(&mut hasher),
            None => metadata.resource_version.hash(&mut hasher),
        }
        metadata.labels.hash(&mut hasher);
        metadata.annotations.hash(&mut hasher);
        for owner in metadata.owner_references.iter().flatten() {
            (&owner.uid, owner.controller).hash(&mut hasher);
        }
        metadata.deletion_timestamp.is_some().hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// Applies all children of a mirror, Secrets before the Pod that mounts them, and returns them as the API server has them.
///
/// # Errors
/// The first child that could not be applied.
pub async fn apply(
    mirror: &str,
    resources: Resources<Built>,
    client: &Client,
    namespace: &str,
    stores: &Stores,
    memory: &Memory,
) -> Result<Resources<Applied>, ApplyFailed> {
    // Without `..`: a new child cannot be forgotten here.
    let Resources { tls, tokens, service, peers, former_peers, budget, mut statefulset, growth, stage: _ } = resources;
    let applier = Applier { mirror, client, namespace, memory };
    let secret = |name: &str| stores.secret(name).map(|found| found.metadata.clone());
    let [seen_tls, seen_tokens] = [secret(&tls.name_any()), secret(&tokens.name_any())];
    let tls = applier.one(tls, seen_tls.as_ref()).await?;
    let tokens = applier.one(tokens, seen_tokens.as_ref()).await?;
    let service = applier.service(service, stores).await?;
    let mut applied_peers = Vec::new();
    for peer in peers {
        applied_peers.push(applier.service(peer, stores).await?);
    }
    introduce(&mut statefulset, &applied_peers);
    let seen_budget = stores.budget(&budget.name_any()).map(|found| found.metadata.clone());
    let budget = applier.one(budget, seen_budget.as_ref()).await?;
    let found = stores.statefulset(&statefulset.name_any());
    let mut statefulset = applier.one(statefulset, found.as_ref().map(|found| &found.metadata)).await?;
    // What was not sent again is in the watch, with its status.
    if let (None, Some(found)) = (&statefulset.status, found) {
        statefulset.metadata = found.metadata.clone();
        statefulset.status = found.status.clone();
    }
    // Last, when no replica is told of them any more.
    for name in former_peers.iter().filter(|name| stores.service(name).is_some()) {
        applier.remove_service(name).await?;
    }
    for growth in &growth {
        applier.grow(growth).await?;
    }
    let peers = applied_peers;
    Ok(Resources { tls, tokens, service, peers, former_peers, budget, statefulset, growth, stage: PhantomData })
}

/// Writes a cache's certificate and tokens and nothing else, those that differ from what is stored; returns the versions that they have then.
/// Not by server-side apply, which would take the certificates of `caBundle` from the first.
///
/// # Errors
/// The first Secret that could not be written.
pub async fn renew(
    valid: &Valid,
    material: &Material,
    client: &Client,
    namespace: &str,
) -> Result<[Option<String>; 2], ApplyFailed> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let write = async |is_stored: bool, name: String, data: SecretData| {
        if is_stored {
            return Ok(None);
        }
        let patch = Patch::Merge(json!({"data": data}));
        let secret = answered("Secret", &name, api.patch(&name, &params, &patch)).await?;
        Ok(secret.metadata.resource_version)
    };
    let Material { leaf, tokens } = material;
    let tls = write(valid.leaf.as_ref() == Some(leaf), tls_secret(&valid.name), leaf.data()).await?;
    let tokens = write(valid.tokens.as_ref() == Some(tokens), tokens_secret(&valid.name), tokens.data()).await?;
    Ok([tls, tokens])
}

struct Applier<'a> {
    mirror: &'a str,
    client: &'a Client,
    namespace: &'a str,
    memory: &'a Memory,
}

impl Applier<'_> {
    /// Applies a Service and returns it with the address that it has.
    async fn service(&self, service: Service, stores: &Stores) -> Result<Service, ApplyFailed> {
        let found = stores.service(&service.name_any());
        let applied = self.one(service, found.as_ref().map(|found| &found.metadata)).await?;
        let is_as_sent = applied.metadata.uid.is_none();
        Ok(found.filter(|_| is_as_sent).map_or(applied, |found| (*found).clone()))
    }

    async fn remove_service(&self, name: &str) -> Result<(), ApplyFailed> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), self.namespace);
        let gone = async {
            match api.delete(name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                deleted => deleted.map(drop),
            }
        };
        answered("Service", name, gone).await
    }

    /// Asks for a larger claim. What else is in it is the StatefulSet's, so it is not applied but patched.
    async fn grow(&self, Growth { claim, size }: &Growth) -> Result<(), ApplyFailed> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), self.namespace);
        let patch = Patch::Merge(json!({"spec": {"resources": {"requests": {"storage": size}}}}));
        let grown = answered("PersistentVolumeClaim", claim, api.patch(claim, &PatchParams::default(), &patch)).await;
        grown.map_err(|failure| match failure {
            ApplyFailed::Refused { name: claim, message, .. } => {
                ApplyFailed::NotExpandable { claim, size: size.0.clone(), message }
            }
            other => other,
        })?;
        tracing::info!(%claim, size = %size.0, "claim grows");
        Ok(())
    }

    /// Applies one child unless the API server has it as it was last applied; `seen` is its metadata in the watch.
    async fn one<K>(&self, object: K, seen: Option<&ObjectMeta>) -> Result<K, ApplyFailed>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        let (kind, name) = (K::kind(&()).into_owned(), object.name_any());
        let key = format!("{kind}/{name}");
        let wanted = hash_of(&object);
        let seen = seen.map(Fingerprint::of);
        if seen.is_some() && self.memory.applied(self.mirror, &key) == seen.map(|seen| (wanted, seen)) {
            return Ok(object);
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), self.namespace);
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&object);
        let applied = answered(&kind, &name, api.patch(&name, &params, &patch)).await?;
        tracing::debug!(%kind, %name, "applied");
        self.memory.set_applied(self.mirror, key, (wanted, Fingerprint::of(applied.meta())));
        Ok(applied)
    }
}

/// Waits for the answer to a call about one child.
async fn answered<T>(kind: &str, name: &str, call: impl Future<Output = kube::Result<T>>) -> Result<T, ApplyFailed> {
    match tokio::time::timeout(CALL_DEADLINE, call).await {
        Err(_) => Err(ApplyFailed::Timeout { kind: kind.to_owned(), name: name.to_owned() }),
        Ok(answer) => answer.map_err(|error| classified(kind.to_owned(), name.to_owned(), error)),
    }
}

/// What the API server says where an admission webhook does not answer and its `failurePolicy` is Fail, and where no address is left for a
/// Service. It gives neither a reason of its own.
const LASTING: [&str; 2] = ["failed calling webhook", "range is full"];
/// And where a webhook says no, with whatever code that gives.
const DENIED: &str = "denied the request";

/// Whether a person must act, or time will do.
fn classified(kind: String, name: String, error: kube::Error) -> ApplyFailed {
    match error {
        kube::Error::Api(status) if is_refusal(&status) => {
            ApplyFailed::Refused { kind, name, message: status.message.clone() }
        }
        kube::Error::Api(status) if status.is_conflict() => ApplyFailed::Conflict { kind, name },
        source => ApplyFailed::Call { kind, name, source },
    }
}

/// Whether time alone will not mend it.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code, 400 | 403 | 422)
        || status.code == 500 && LASTING.iter().any(|said| status.message.contains(said))
        || status.message.contains(DENIED)
}

/// Of the object as it is sent. Serialisation is deterministic: all maps are sorted.
fn hash_of(object: &impl Serialize) -> u64 {
    let mut hasher = DefaultHasher::new();
    serde_json::to_vec(object).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_need_a_person_and_the_rest_needs_time() {
        let said = |code: u16, reason: &str, message: &str| {
            let status = Status::failure(message, reason).with_code(code);
            classified("Pod".to_owned(), "p".to_owned(), kube::Error::Api(status.boxed()))
        };
        let classify = |code, reason| said(code, reason, "exceeded quota");
        assert!(matches!(classify(403, "Forbidden"), ApplyFailed::Refused { .. }));
        assert!(matches!(classify(422, "Invalid"), ApplyFailed::Refused { .. }));
        assert!(matches!(classify(409, "Conflict"), ApplyFailed::Conflict { .. }));
        assert!(matches!(classify(500, "InternalError"), ApplyFailed::Call { .. }));
        assert!(matches!(classify(429, "TooManyRequests"), ApplyFailed::Call { .. }));
        let webhook =
            "Internal error occurred: failed calling webhook \"a.example.com\": failed to call webhook: no endpoints";
        assert!(
            matches!(said(500, "InternalError", webhook), ApplyFailed::Refused { .. }),
            "nobody tells of it otherwise"
        );
        let full = "Internal error occurred: failed to allocate a serviceIP for Service \"p\": range is full";
        assert!(matches!(said(500, "InternalError", full), ApplyFailed::Refused { .. }), "nor of this");
        // The code is the webhook's own: frameworks give 500 for its inner errors.
        for (code, reason) in [(500, "InternalError"), (409, "Conflict"), (404, "NotFound"), (429, "TooManyRequests")] {
            let denied = said(code, reason, "admission webhook \"a.example.com\" denied the request: not today");
            assert!(matches!(denied, ApplyFailed::Refused { .. }), "{code}: {denied}");
        }
    }

    #[test]
    fn a_child_changed_by_others_has_another_fingerprint() {
        let metadata = |text: &str| -> ObjectMeta { serde_saphyr::from_str(text).unwrap() };
        let base = metadata("{uid: u, generation: 1, resourceVersion: '1', labels: {a: b}}");
        let of = |text: &str| Fingerprint::of(&metadata(text));
        assert_eq!(of("{uid: u, generation: 1, resourceVersion: '2', labels: {a: b}}"), Fingerprint::of(&base));
        for other in [
            "{uid: v, generation: 1, labels: {a: b}}",
            "{uid: u, generation: 2, labels: {a: b}}",
            "{uid: u, generation: 1, labels: {a: c}}",
            "{uid: u, generation: 1, labels: {a: b}, ownerReferences: [{apiVersion: v1, kind: K, name: n, uid: o}]}",
        ] {
            assert_ne!(of(other), Fingerprint::of(&base), "{other}");
        }
        assert_ne!(of("{uid: u, resourceVersion: '1'}"), of("{uid: u, resourceVersion: '2'}"));
    }
}
