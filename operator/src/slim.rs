//! Objects as watches keep them: what identifies them, and the facts that somebody uses. The rest is skipped while it is parsed, so that a
//! page of large objects costs no more than its text. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::core::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::sync::Arc;

/// An object of kind `K` of which only `F` is kept.
pub struct Slim<K, F> {
    metadata: ObjectMeta,
    /// What is kept.
    pub facts: F,
    kind: PhantomData<fn() -> K>,
}

/// What is kept of objects of kind `K`.
pub trait Facts<K>: Sized {
    /// What is parsed of `spec`.
    type Spec: DeserializeOwned;
    /// What is parsed of `status`.
    type Status: DeserializeOwned;

    /// Keeps of it what is used.
    fn of(metadata: &mut Meta, spec: Option<Self::Spec>, status: Option<Self::Status>) -> Self;
}

/// What is parsed of `metadata`. Of these, only what identifies an object and its version is kept.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    pub(crate) name: Option<String>,
    pub(crate) namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) creation_timestamp: Option<Time>,
    pub(crate) deletion_timestamp: Option<Time>,
    pub(crate) owner_references: Option<Vec<Owner>>,
}

/// What is parsed of an owner reference.
#[derive(Debug, Deserialize)]
pub struct Owner {
    pub(crate) kind: Box<str>,
}

#[derive(Deserialize)]
#[serde(bound = "S: DeserializeOwned, T: DeserializeOwned")]
struct Raw<S, T> {
    metadata: Meta,
    spec: Option<S>,
    status: Option<T>,
}

impl<'de, K, F: Facts<K>> Deserialize<'de> for Slim<K, F> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Raw { mut metadata, spec, status } = Raw::<F::Spec, F::Status>::deserialize(from)?;
        let facts = F::of(&mut metadata, spec, status);
        let Meta { name, namespace, uid, resource_version, .. } = metadata;
        let metadata = ObjectMeta { name, namespace, uid, resource_version, ..ObjectMeta::default() };
        Ok(Self { metadata, facts, kind: PhantomData })
    }
}

impl<K: Resource<DynamicType = ()>, F> Resource for Slim<K, F> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

// Not derived: that would ask the same of `K`.
impl<K, F: Clone> Clone for Slim<K, F> {
    fn clone(&self) -> Self {
        Self { metadata: self.metadata.clone(), facts: self.facts.clone(), kind: PhantomData }
    }
}

impl<K, F: std::fmt::Debug> std::fmt::Debug for Slim<K, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slim").field("name", &self.metadata.name).field("facts", &self.facts).finish()
    }
}

/// Equal values, kept once: thousands of nodes say the same.
#[derive(Debug)]
pub struct Shared<T> {
    known: BTreeSet<Arc<T>>,
    swept: usize,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { known: BTreeSet::new(), swept: 0 }
    }
}

impl<T: Ord> Shared<T> {
    const FEW: usize = 64;

    /// Replaces a value by the one that is known already.
    pub fn share(&mut self, value: &mut Arc<T>) {
        if let Some(known) = self.known.get(value) {
            value.clone_from(known);
            return;
        }
        if self.known.len() >= 2 * self.swept.max(Self::FEW) {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.swept = self.known.len();
        }
        self.known.insert(value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_kept_once_and_forgotten_when_nobody_has_them() {
        let mut shared = Shared::default();
        let kept: Vec<Arc<u32>> = (0..1000)
            .map(|number| {
                let mut value = Arc::new(number % 10);
                shared.share(&mut value);
                value
            })
            .collect();
        assert_eq!(shared.known.len(), 10);
        assert!(Arc::ptr_eq(&kept[0], &kept[990]));
        for number in 100..10_000 {
            shared.share(&mut Arc::new(number));
        }
        assert!(shared.known.len() <= 10 + 2 * Shared::<u32>::FEW, "{}", shared.known.len());
        let mut again = Arc::new(7);
        shared.share(&mut again);
        assert!(Arc::ptr_eq(&again, &kept[7]), "what is used stays");
    }
}
