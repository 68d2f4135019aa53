//! Who holds a registry when several mirrors claim it. Operator and agents must agree, so both call this.

use crate::RegistryMirror;
use kube::ResourceExt;
use std::collections::BTreeMap;

/// The mirror that holds each claimed registry: the oldest, then the first by name.
pub fn claims<'a>(mirrors: impl IntoIterator<Item = &'a RegistryMirror>) -> BTreeMap<&'a str, &'a RegistryMirror> {
    let mut holders: BTreeMap<&str, &RegistryMirror> = BTreeMap::new();
    for mirror in mirrors {
        let holder = holders.entry(&mirror.spec.registry).or_insert(mirror);
        if is_older(mirror, holder) {
            *holder = mirror;
        }
    }
    holders
}

/// The mirror that holds `registry`, if any claims it.
pub fn holder<'a>(mirrors: impl IntoIterator<Item = &'a RegistryMirror>, registry: &str) -> Option<&'a RegistryMirror> {
    mirrors.into_iter().filter(|mirror| mirror.spec.registry == registry).min_by_key(|mirror| seniority(mirror))
}

/// Whether the first of two mirrors is the older one.
#[must_use]
pub fn is_older(one: &RegistryMirror, other: &RegistryMirror) -> bool {
    seniority(one) < seniority(other)
}

/// Smaller is older. An object without a timestamp was never stored and counts as the youngest.
fn seniority(mirror: &RegistryMirror) -> (i64, String) {
    let created = mirror.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second());
    (created, mirror.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(name: &str, registry: &str, created: &str) -> RegistryMirror {
        serde_saphyr::from_str(&format!(
            "{{metadata: {{name: {name}, creationTimestamp: '{created}'}}, apiVersion: breakwater.dev/v1alpha1, \
             kind: RegistryMirror, spec: {{registry: {registry}}}}}"
        ))
        .unwrap()
    }

    #[test]
    fn the_oldest_holds_the_registry_and_names_break_ties() {
        let young = mirror("a", "docker.io", "2026-01-02T00:00:00Z");
        let old = mirror("z", "docker.io", "2026-01-01T00:00:00Z");
        let twin = mirror("y", "docker.io", "2026-01-01T00:00:00Z");
        let other = mirror("b", "ghcr.io", "2026-01-03T00:00:00Z");
        let all = [young, old, twin, other];
        assert_eq!(holder(&all, "docker.io").unwrap().name_any(), "y");
        assert_eq!(holder(&all, "quay.io"), None);
        let names: Vec<_> = claims(&all).into_iter().map(|(registry, m)| (registry, m.name_any())).collect();
        assert_eq!(names, [("docker.io", "y".to_owned()), ("ghcr.io", "b".to_owned())]);
    }
}
