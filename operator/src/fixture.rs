//! Test fixtures: mirrors from minimal YAML, through the real validate. Named unlike the product, to catch swapped labels.

use crate::fleet::Fleet;
use crate::observe::{Candidate, Images, Observed};
use crate::pki::Authority;
use crate::validate::{Valid, validate};
use breakwater_crds::RegistryMirror;
use breakwater_crds::names::{cache_name, hashed_cache_name};
use jiff::Timestamp;
use kube::core::DeserializeGuard;
use serde::de::DeserializeOwned;
use std::sync::Arc;

pub(crate) fn parse<T: DeserializeOwned>(yaml: &str) -> T {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"))
}

pub(crate) fn now() -> Timestamp {
    "2026-11-21T10:00:00Z".parse().unwrap()
}

/// A mirror whose uid is `uid-NAME` and whose age is the day given.
pub(crate) fn mirror(name: &str, day: u8, spec: &str) -> Arc<RegistryMirror> {
    Arc::new(parse(&format!(
        "{{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, metadata: {{name: {name}, uid: uid-{name}, generation: 3, \
         creationTimestamp: '2026-10-{day:02}T00:00:00Z'}}, spec: {spec}}}"
    )))
}

/// The mirror as seen in a cluster where nothing else is but `others`.
pub(crate) fn observed(mirror: Arc<RegistryMirror>, others: &[Arc<RegistryMirror>]) -> Observed {
    let named = |name| Candidate { name, ..Candidate::default() };
    let mirrors = others.iter().chain([&mirror]).map(|mirror| Arc::new(DeserializeGuard(Ok((**mirror).clone()))));
    Observed {
        plain: named(cache_name(&mirror.spec.registry)),
        hashed: named(hashed_cache_name(&mirror.spec.registry)),
        mirrors: mirrors.collect(),
        mirror,
        credentials: Vec::new(),
        references: Default::default(),
        fleet: Arc::new(Fleet::default()),
        upstreams: Arc::default(),
        images: Images::Unknown,
        said_for: None,
    }
}

/// A mirror called `harbour` with this spec, validated.
pub(crate) fn valid(spec: &str) -> Valid {
    validate(&observed(mirror("harbour", 1, spec), &[])).unwrap()
}

pub(crate) fn authority() -> Authority {
    Authority::parse(&Authority::create(now()).unwrap(), now()).unwrap()
}
