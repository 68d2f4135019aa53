//! A Pod or a workload as the watches keep it: the images it names, and little else. Pure.

use crate::slim::{Facts, Meta, Slim};
use k8s_openapi::api::core::v1::Pod;
use kube::Resource;
use serde::Deserialize;

/// Pods of this namespace and this priority belong to the node itself, if they use its network.
const NODE_CRITICAL: &str = "system-node-critical";
const KUBE_SYSTEM: &str = "kube-system";

/// An object of kind `K`: a Pod, or something that has a template for Pods.
pub(super) type Workload<K> = Slim<K, Named>;

/// The images that an object names.
#[derive(Clone, Debug)]
pub(super) struct Named {
    /// What its containers and image volumes name, once each and sorted; nothing once it has finished.
    pub(super) images: Vec<Box<str>>,
    /// Whether a new node needs it before it can pull through Breakwater.
    pub(super) is_node_bootstrap: bool,
}

impl<K: Resource<DynamicType = ()>> Facts<K> for Named {
    type Spec = Spec;
    type Status = Status;

    fn of(metadata: &mut Meta, spec: Option<Spec>, status: Option<Status>) -> Self {
        let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
        let is_pod = K::kind(&()) == Pod::kind(&());
        let is_of_each_node = if is_pod {
            metadata.owner_references.iter().flatten().any(|owner| matches!(&*owner.kind, "DaemonSet" | "Node"))
        } else {
            K::kind(&()) == "DaemonSet"
        };
        let pod = spec.pod();
        let is_critical = metadata.namespace.as_deref() == Some(KUBE_SYSTEM)
            || pod.priority_class_name.as_deref() == Some(NODE_CRITICAL);
        let is_node_bootstrap = is_of_each_node && is_critical && pod.host_network.unwrap_or_default();
        let images = if status.is_finished() { Vec::new() } else { spec.into_images() };
        Self { images, is_node_bootstrap }
    }
}

/// A Pod's spec, or that of what has a template for one.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    init_containers: Option<Vec<Container>>,
    containers: Option<Vec<Container>>,
    ephemeral_containers: Option<Vec<Container>>,
    volumes: Option<Vec<Volume>>,
    host_network: Option<bool>,
    priority_class_name: Option<String>,
    template: Option<Box<Template>>,
    job_template: Option<Box<Template>>,
}

#[derive(Deserialize)]
struct Template {
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
struct Container {
    image: Option<Box<str>>,
}

#[derive(Deserialize)]
struct Volume {
    image: Option<ImageVolume>,
}

#[derive(Deserialize)]
struct ImageVolume {
    reference: Option<Box<str>>,
}

/// A Pod's phase, or a Job's conditions.
#[derive(Default, Deserialize)]
pub(super) struct Status {
    phase: Option<String>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
struct Condition {
    r#type: Option<String>,
    status: Option<String>,
}

impl Spec {
    fn pod(&self) -> &Self {
        match self.job_template.as_ref().or(self.template.as_ref()) {
            Some(template) => template.spec.pod(),
            None => self,
        }
    }

    fn into_images(self) -> Vec<Box<str>> {
        if let Some(template) = self.job_template.or(self.template) {
            return template.spec.into_images();
        }
        let containers = [self.init_containers, self.containers, self.ephemeral_containers];
        let images = containers.into_iter().flatten().flatten().filter_map(|container| container.image);
        let volumes = self.volumes.into_iter().flatten().filter_map(|volume| volume.image?.reference);
        let mut images: Vec<_> = images.chain(volumes).filter(|image| !image.is_empty()).collect();
        images.sort();
        images.dedup();
        images
    }
}

impl Status {
    /// A Pod or Job that has ended pulls nothing any more. Conditions of these names exist on Jobs alone.
    fn is_finished(&self) -> bool {
        let ended = |condition: &Condition| {
            matches!(condition.r#type.as_deref(), Some("Complete" | "Failed"))
                && condition.status.as_deref() == Some("True")
        };
        matches!(self.phase.as_deref(), Some("Succeeded" | "Failed")) || self.conditions.iter().flatten().any(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::parse;
    use k8s_openapi::NamespaceResourceScope;
    use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
    use k8s_openapi::api::batch::v1::{CronJob, Job};

    fn images<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(yaml: &str) -> String {
        parse::<Workload<K>>(yaml).facts.images.join(" ")
    }

    #[test]
    fn every_image_of_a_pod_counts_until_it_has_ended() {
        let pod = "{metadata: {name: p, uid: u, managedFields: [{fieldsV1: {'f:spec': {}}}]}, spec: {nodeName: n, \
            initContainers: [{name: i, image: init}], containers: [{name: a, image: b}, {name: b, image: a}, {name: c, image: a}], \
            ephemeralContainers: [{name: e, image: debug}], volumes: [{name: v, emptyDir: {}}, {name: m, image: {reference: model}}]}";
        assert_eq!(images::<Pod>(&format!("{pod}, status: {{phase: Running}}}}")), "a b debug init model");
        assert_eq!(images::<Pod>(&format!("{pod}, status: {{phase: Succeeded}}}}")), "");
        assert_eq!(images::<Pod>(&format!("{pod}}}")), "a b debug init model");
    }

    #[test]
    fn templates_count_and_finished_jobs_do_not() {
        let template =
            "template: {metadata: {labels: {a: b}}, spec: {containers: [{name: a, image: a}, {name: later}]}}";
        let meta = "metadata: {name: x, uid: u}";
        assert_eq!(images::<Deployment>(&format!("{{{meta}, spec: {{replicas: 0, {template}}}}}")), "a");
        assert_eq!(images::<CronJob>(&format!("{{{meta}, spec: {{jobTemplate: {{spec: {{{template}}}}}}}}}")), "a");
        let job = |status: &str| images::<Job>(&format!("{{{meta}, spec: {{{template}}}, status: {status}}}"));
        assert_eq!(job("{conditions: [{type: Suspended, status: 'True'}, {type: Failed, status: 'False'}]}"), "a");
        assert_eq!(job("{conditions: [{type: Complete, status: 'True'}]}"), "");
    }

    #[test]
    fn what_a_node_needs_before_its_relay_is_told_by_network_and_priority() {
        let daemon_set = |namespace: &str, pod: &str| {
            let yaml = format!("{{metadata: {{namespace: {namespace}}}, spec: {{template: {{spec: {pod}}}}}}}");
            parse::<Workload<DaemonSet>>(&yaml).facts.is_node_bootstrap
        };
        assert!(daemon_set("kube-system", "{hostNetwork: true}"));
        assert!(daemon_set("calico-system", "{hostNetwork: true, priorityClassName: system-node-critical}"));
        assert!(!daemon_set("monitoring", "{hostNetwork: true}"));
        assert!(!daemon_set("kube-system", "{}"));
        let pod = |owner: &str| {
            let yaml = format!(
                "{{metadata: {{namespace: kube-system, ownerReferences: [{{kind: {owner}}}]}}, spec: {{hostNetwork: true}}}}"
            );
            parse::<Workload<Pod>>(&yaml).facts.is_node_bootstrap
        };
        assert!(pod("DaemonSet") && pod("Node") && !pod("ReplicaSet"));
    }
}
