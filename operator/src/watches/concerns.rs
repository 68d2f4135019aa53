//! Which mirrors a change concerns. No I/O beyond a channel.

use super::keep::Change;
use super::{Mirrors, Trigger};
use breakwater_crds::RegistryMirror;
use breakwater_crds::names::{ANNOTATION_REGISTRY, CA_SECRET, LABEL_MIRROR};
use kube::ResourceExt;
use kube::core::ObjectMeta;
use kube::runtime::reflector::ObjectRef;
use std::collections::BTreeSet;

/// Turns changes into passes.
#[derive(Clone)]
pub(super) struct Concerns {
    pub(super) mirrors: Mirrors,
    pub(super) trigger: Trigger,
}

impl Concerns {
    /// A child, or a Pod or claim of a child: its mirror, and who waits to take over its registry.
    pub(super) fn child(&self, change: Change<'_>) {
        self.matching(change, is_child);
    }

    /// A ConfigMap: of certificates to trust.
    pub(super) fn config_map(&self, change: Change<'_>) {
        self.matching(change, |mirror, config_map| {
            mirror
                .spec
                .ca_bundle
                .as_ref()
                .is_some_and(|bundle| Some(&bundle.config_map_ref.name) == config_map.name.as_ref())
        });
    }

    /// A Secret: of a cache, of credentials or a proxy, or the authority, which concerns all.
    pub(super) fn secret(&self, change: Change<'_>) {
        self.matching(change, |mirror, secret| {
            let name = secret.name.as_deref();
            let mut credentials = mirror.spec.credentials.iter().map(|source| source.secret_ref.name.as_str());
            let proxy = mirror.spec.proxy.as_ref().and_then(|proxy| proxy.secret_ref.as_ref());
            name == Some(CA_SECRET)
                || is_child(mirror, secret)
                || credentials.any(|used| Some(used) == name)
                || proxy.is_some_and(|used| Some(used.name.as_str()) == name)
        });
    }

    /// Every mirror.
    pub(super) fn all(&self) {
        for mirror in self.mirrors.state() {
            self.send(&mirror.name_any());
        }
    }

    /// The mirrors of these registries.
    pub(super) fn registries(&self, registries: &BTreeSet<String>) {
        for mirror in self.mirrors.state() {
            if mirror.0.as_ref().is_ok_and(|mirror| registries.contains(&mirror.spec.registry)) {
                self.send(&mirror.name_any());
            }
        }
    }

    fn matching(&self, change: Change<'_>, concerns: impl Fn(&RegistryMirror, &ObjectMeta) -> bool) {
        let Change::Touched(metadata) = change else { return self.all() };
        for mirror in self.mirrors.state() {
            if mirror.0.as_ref().is_ok_and(|mirror| concerns(mirror, metadata)) {
                self.send(&mirror.name_any());
            }
        }
    }

    fn send(&self, name: &str) {
        // Nobody listens any more only while the operator stops.
        let _ = self.trigger.send(ObjectRef::new(name));
    }
}

fn is_child(mirror: &RegistryMirror, child: &ObjectMeta) -> bool {
    let label = child.labels.as_ref().and_then(|labels| labels.get(LABEL_MIRROR));
    let registry = child.annotations.as_ref().and_then(|annotations| annotations.get(ANNOTATION_REGISTRY));
    label.is_some_and(|label| *label == mirror.name_any()) || registry.is_some_and(|it| *it == mirror.spec.registry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::DeserializeGuard;
    use kube::runtime::{reflector, watcher};
    use tokio::sync::mpsc;

    #[test]
    fn a_change_reaches_the_mirrors_it_concerns() {
        let (mirrors, mut writer) = reflector::store();
        for (name, registry, secret) in
            [("a", "docker.io", "hub"), ("b", "docker.io", "other"), ("c", "ghcr.io", "hub")]
        {
            let mirror: RegistryMirror = serde_saphyr::from_str(&format!(
                "{{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, metadata: {{name: {name}}}, \
                 spec: {{registry: {registry}, credentials: [{{secretRef: {{name: {secret}}}}}], \
                 caBundle: {{configMapRef: {{name: ca-{name}}}}}, proxy: {{url: 'http://p', secretRef: {{name: p-{name}}}}}}}}}"
            ))
            .unwrap();
            writer.apply_watcher_event(&watcher::Event::Apply(DeserializeGuard(Ok(mirror))));
        }
        let (trigger, mut triggered) = mpsc::unbounded_channel();
        let concerns = Concerns { mirrors, trigger };
        let mut names = || {
            let mut names: Vec<_> = std::iter::from_fn(|| triggered.try_recv().ok()).map(|it| it.name).collect();
            names.sort();
            names.join(" ")
        };
        let metadata = |yaml: &str| -> ObjectMeta { serde_saphyr::from_str(yaml).unwrap() };
        concerns.child(Change::Touched(&metadata("{name: x, labels: {breakwater.dev/mirror: c}}")));
        assert_eq!(names(), "c");
        concerns.child(Change::Touched(&metadata("{name: x, annotations: {breakwater.dev/registry: docker.io}}")));
        assert_eq!(names(), "a b");
        concerns.secret(Change::Touched(&metadata("{name: hub}")));
        assert_eq!(names(), "a c");
        concerns.secret(Change::Touched(&metadata("{name: breakwater-ca}")));
        assert_eq!(names(), "a b c");
        concerns.secret(Change::Touched(&metadata("{name: unrelated}")));
        assert_eq!(names(), "");
        concerns.secret(Change::Touched(&metadata("{name: p-b}")));
        assert_eq!(names(), "b");
        concerns.config_map(Change::Touched(&metadata("{name: ca-c}")));
        assert_eq!(names(), "c");
        concerns.config_map(Change::Touched(&metadata("{name: kube-root-ca.crt}")));
        assert_eq!(names(), "");
        concerns.registries(&BTreeSet::from(["docker.io".to_owned(), "quay.io".to_owned()]));
        assert_eq!(names(), "a b");
        concerns.registries(&BTreeSet::new());
        assert_eq!(names(), "");
        concerns.child(Change::Relisted);
        assert_eq!(names(), "a b c");
    }
}
