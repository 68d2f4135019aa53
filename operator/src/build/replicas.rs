//! What several replicas of a cache need beyond one: a Service for each, by which the others find it, and the budget that keeps
//! drains from taking all at once. Pure.
//!
//! Replicas find each other by the cluster addresses of these Services. Names would need the cluster's DNS, which caches do
//! without: it may itself be waiting for an image. Pods' addresses change whenever one is replaced.

use super::{labels, metadata, port, selector, selector_labels};
use crate::validate::Valid;
use breakwater_crds::names::{CACHE_PEER, LABEL_NAME, MOST_REPLICAS, TLS_PORT, TLS_PORT_NAME, peer_service, pod_name};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Service, ServiceSpec, TopologySpreadConstraint};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The label that a StatefulSet gives each of its Pods.
const LABEL_POD: &str = "statefulset.kubernetes.io/pod-name";

/// One Service for each replica; none for a single one, which has nobody to ask.
pub(super) fn peers(valid: &Valid) -> Vec<Service> {
    let replicas = valid.mirror.spec.cache.replicas;
    if replicas < 2 { Vec::new() } else { (0..replicas).map(|ordinal| peer(valid, ordinal)).collect() }
}

/// Names of the Services that a former number of replicas may have left.
pub(super) fn former_peers(valid: &Valid) -> Vec<String> {
    let replicas = valid.mirror.spec.cache.replicas;
    let first = if replicas < 2 { 0 } else { replicas };
    (first..MOST_REPLICAS).map(|ordinal| peer_service(&valid.name, ordinal)).collect()
}

fn peer(valid: &Valid, ordinal: i32) -> Service {
    let mut selector = selector_labels(valid);
    selector.insert(LABEL_POD.to_owned(), pod_name(&valid.name, ordinal));
    let spec = ServiceSpec {
        // A replica judges the others by their answers.
        publish_not_ready_addresses: Some(true),
        selector: Some(selector),
        ports: Some(vec![port(TLS_PORT_NAME, TLS_PORT)]),
        ..ServiceSpec::default()
    };
    let mut metadata = metadata(valid, peer_service(&valid.name, ordinal));
    let mut labels = labels(valid);
    labels.insert(LABEL_NAME.to_owned(), CACHE_PEER.to_owned());
    metadata.labels = Some(labels);
    Service { metadata, spec: Some(spec), status: None }
}

/// Lets drains take one Pod at a time, also where there is only one: nodes pull from upstream meanwhile.
pub(super) fn budget(valid: &Valid) -> PodDisruptionBudget {
    let spec = PodDisruptionBudgetSpec {
        max_unavailable: Some(IntOrString::Int(1)),
        selector: Some(selector(valid)),
        // A Pod that does not serve must not keep its node from being drained.
        unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
        ..PodDisruptionBudgetSpec::default()
    };
    PodDisruptionBudget { metadata: metadata(valid, valid.name.clone()), spec: Some(spec), status: None }
}

/// Prefers a node of its own for each replica, and a zone; one that finds none is better than none.
pub(super) fn spread(valid: &Valid) -> Option<Vec<TopologySpreadConstraint>> {
    let constraint = |topology: &str| TopologySpreadConstraint {
        max_skew: 1,
        topology_key: topology.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(selector(valid)),
        ..TopologySpreadConstraint::default()
    };
    let has_several = valid.mirror.spec.cache.replicas > 1;
    has_several.then(|| ["kubernetes.io/hostname", "topology.kubernetes.io/zone"].map(constraint).to_vec())
}

/// Tells the replicas of each other, by the addresses that their Services were given. Each gets the same list and finds itself in it.
pub(crate) fn introduce(statefulset: &mut StatefulSet, peers: &[Service]) {
    let containers = statefulset.spec.template.spec.iter_mut().flat_map(|spec| &mut spec.containers);
    for container in containers {
        for address in peers.iter().filter_map(address) {
            container.args.get_or_insert_default().extend(["--peer".to_owned(), address]);
        }
    }
}

/// `HOST:PORT`; an IPv6 address in brackets.
fn address(peer: &Service) -> Option<String> {
    let address = peer.spec.as_ref()?.cluster_ip.as_deref()?.parse().ok()?;
    Some(std::net::SocketAddr::new(address, TLS_PORT).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::valid;
    use kube::ResourceExt;

    #[test]
    fn one_replica_has_no_peers_and_leaves_none() {
        let one = valid("{registry: docker.io}");
        assert_eq!(peers(&one).len(), 0);
        assert_eq!(former_peers(&one).len(), 3);
        assert_eq!(spread(&one), None);
    }

    #[test]
    fn each_replica_has_a_service_that_selects_it_alone() {
        let two = valid("{registry: docker.io, cache: {replicas: 2}}");
        let found: Vec<_> = peers(&two)
            .iter()
            .map(|peer| {
                format!("{} {}", peer.name_any(), peer.spec.as_ref().unwrap().selector.as_ref().unwrap()[LABEL_POD])
            })
            .collect();
        assert_eq!(found, ["cache-docker-io-peer-0 cache-docker-io-0", "cache-docker-io-peer-1 cache-docker-io-1"]);
        assert_eq!(former_peers(&two), ["cache-docker-io-peer-2"]);
    }

    #[test]
    fn replicas_are_told_the_addresses_that_their_services_got() {
        let two = valid("{registry: docker.io, cache: {replicas: 2}}");
        let mut services = peers(&two);
        for (service, ip) in services.iter_mut().zip(["10.96.0.7", "fd00::7"]) {
            service.spec.as_mut().unwrap().cluster_ip = Some(ip.to_owned());
        }
        let settings = super::super::Settings {
            namespace: "n".to_owned(),
            image: "i".to_owned(),
            image_pull_secrets: Default::default(),
        };
        let mut statefulset = super::super::statefulset(&two, &settings);
        assert_eq!(statefulset.spec.replicas, Some(2));
        introduce(&mut statefulset, &services);
        let args = statefulset.spec.template.spec.unwrap().containers[0].args.clone().unwrap();
        assert!(
            args.ends_with(&["--peer", "10.96.0.7:5000", "--peer", "[fd00::7]:5000"].map(str::to_owned)),
            "{args:?}"
        );
    }
}
