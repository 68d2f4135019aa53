//! The claims of a cache: the template that they are made from, how they grow, and how much of them the cache may fill. Pure.
//!
//! A StatefulSet never changes its claims, nor lets its template be changed. So the template keeps what it was made with, and
//! claims are grown one by one, those that a later replica gets from the old template too.

use super::{annotations, labels};
use crate::validate::Valid;
use breakwater_crds::names::{DATA_VOLUME, claim_name};
use breakwater_crds::quantity;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use std::collections::BTreeMap;

const STORAGE: &str = "storage";

/// A claim that is smaller than the spec says.
#[derive(Clone, Debug, PartialEq)]
pub struct Growth {
    /// The claim.
    pub claim: String,
    /// The size that it is to have.
    pub size: Quantity,
}

/// The claim carries the registry, so that a retained one is never given to a registry whose cache happens to have the same name.
pub(super) fn template(valid: &Valid) -> PersistentVolumeClaim {
    let storage = &valid.mirror.spec.cache.storage;
    let present = present_template(valid);
    let size = present.and_then(requested).unwrap_or(&storage.size).clone();
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(DATA_VOLUME.to_owned()),
            // An orphan's name the mirror that it was made for.
            labels: present.map_or_else(|| Some(labels(valid)), |present| present.metadata.labels.clone()),
            annotations: Some(annotations(valid)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([(STORAGE.to_owned(), size)])),
                limits: None,
            }),
            storage_class_name: storage.storage_class_name.clone(),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// What the StatefulSet was made with.
fn present_template(valid: &Valid) -> Option<&PersistentVolumeClaim> {
    let templates = valid.statefulset.as_ref()?.spec.volume_claim_templates.as_ref()?;
    templates.iter().find(|template| template.name_any() == DATA_VOLUME)
}

/// The claims that have to grow. One that is not bound yet cannot.
pub(super) fn growth(valid: &Valid) -> Vec<Growth> {
    let wanted = &valid.mirror.spec.cache.storage.size;
    let is_smaller = |claim: &&PersistentVolumeClaim| {
        is_bound(claim) && requested(claim).and_then(quantity::bytes) < quantity::bytes(wanted)
    };
    let grow = |claim: &PersistentVolumeClaim| Growth { claim: claim.name_any(), size: wanted.clone() };
    in_use(valid).filter(is_smaller).map(grow).collect()
}

/// What the cache may fill: the size of the spec, or of the smallest volume while that has not grown to it.
pub(super) fn usable(valid: &Valid) -> &Quantity {
    let wanted = &valid.mirror.spec.cache.storage.size;
    let capacities = in_use(valid)
        .filter(|claim| is_bound(claim))
        .filter_map(|claim| claim.status.as_ref()?.capacity.as_ref()?.get(STORAGE));
    // A size that cannot be read is no bound.
    let bytes = |size: &&Quantity| quantity::bytes(size).unwrap_or(u64::MAX);
    capacities.chain([wanted]).min_by_key(bytes).unwrap_or(wanted)
}

fn in_use(valid: &Valid) -> impl Iterator<Item = &PersistentVolumeClaim> {
    let cache = &valid.mirror.spec.cache;
    let names: Vec<_> = (0..cache.replicas).map(|ordinal| claim_name(&valid.name, ordinal)).collect();
    let claims = valid.claims.iter().filter(move |claim| names.contains(&claim.name_any()));
    claims.filter(|_| !cache.storage.ephemeral).map(AsRef::as_ref)
}

fn requested(claim: &PersistentVolumeClaim) -> Option<&Quantity> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get(STORAGE)
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{parse, valid};
    use std::sync::Arc;

    /// A claim of the replica with this phase, request and capacity.
    fn claim(ordinal: i32, phase: &str, requested: &str, capacity: &str) -> Arc<PersistentVolumeClaim> {
        Arc::new(parse(&format!(
            "{{metadata: {{name: data-cache-docker-io-{ordinal}}}, spec: {{resources: {{requests: {{storage: {requested}}}}}}}, \
             status: {{phase: {phase}, capacity: {{storage: {capacity}}}}}}}"
        )))
    }

    fn check(storage: &str, claims: &[Arc<PersistentVolumeClaim>], grown: &[i32], bound: &str) {
        let mut valid = valid(&format!("{{registry: docker.io, cache: {{replicas: 2, storage: {storage}}}}}"));
        valid.claims = claims.to_vec();
        let names: Vec<_> = growth(&valid).into_iter().map(|growth| growth.claim).collect();
        assert_eq!(names, grown.iter().map(|it| format!("data-cache-docker-io-{it}")).collect::<Vec<_>>());
        assert_eq!(usable(&valid).0, bound);
    }

    #[test]
    fn claims_grow_and_the_cache_follows_its_volumes() {
        check("{size: 10Gi}", &[], &[], "10Gi");
        check("{size: 10Gi}", &[claim(0, "Bound", "10Gi", "10Gi"), claim(1, "Bound", "10240Mi", "11Gi")], &[], "10Gi");
        check("{size: 10Gi}", &[claim(0, "Bound", "5Gi", "5Gi"), claim(1, "Bound", "6Gi", "6Gi")], &[0, 1], "5Gi");
        check("{size: 10Gi}", &[claim(0, "Bound", "10Gi", "5Gi"), claim(1, "Bound", "20Gi", "20Gi")], &[], "5Gi");
        check("{size: 10Gi}", &[claim(0, "Pending", "5Gi", "0"), claim(2, "Bound", "5Gi", "5Gi")], &[], "10Gi");
        check("{size: 10Gi, ephemeral: true}", &[claim(0, "Bound", "5Gi", "5Gi")], &[], "10Gi");
    }

    #[test]
    fn the_template_of_an_orphan_keeps_the_labels_of_its_former_mirror() {
        let mut valid = valid("{registry: docker.io}");
        let labels = "{breakwater.dev/mirror: former, a: b}";
        valid.statefulset = Some(Arc::new(parse(&format!(
            "{{spec: {{serviceName: x, selector: {{}}, template: {{}}, volumeClaimTemplates: \
              [{{metadata: {{name: data, labels: {labels}}}, spec: {{resources: {{requests: {{storage: 50Gi}}}}}}}}]}}}}"
        ))));
        assert_eq!(template(&valid).metadata.labels, Some(parse(labels)), "the API server refuses any other");
    }

    #[test]
    fn the_template_keeps_its_size() {
        let mut valid = valid("{registry: docker.io, cache: {storage: {size: 10Gi}}}");
        assert_eq!(requested(&template(&valid)).unwrap().0, "10Gi");
        valid.statefulset = Some(Arc::new(parse(
            "{spec: {serviceName: x, selector: {}, template: {}, volumeClaimTemplates: \
              [{metadata: {name: data}, spec: {resources: {requests: {storage: 5Gi}}}}]}}",
        )));
        assert_eq!(requested(&template(&valid)).unwrap().0, "5Gi");
    }
}
