//! Where the Pods of a cache may run. Pure.

use crate::validate::Valid;
use k8s_openapi::api::core::v1::{PodSpec, Toleration};

/// Adds the places that the spec allows to a Pod's spec.
pub(super) fn place(pod: &mut PodSpec, valid: &Valid) {
    let cache = &valid.mirror.spec.cache;
    pod.topology_spread_constraints = super::replicas::spread(valid);
    pod.tolerations = Some(tolerations(&cache.tolerations));
    pod.node_selector = Some(cache.node_selector.clone()).filter(|labels| !labels.is_empty());
    pod.affinity = cache.affinity.clone();
    pod.priority_class_name = Some(cache.priority_class_name.clone());
}

/// Those of the spec after our own, which yield to any of the spec for the same taint: of several, the shortest time counts.
fn tolerations(wanted: &[Toleration]) -> Vec<Toleration> {
    let overruled = |ours: &Toleration| {
        wanted.iter().any(|theirs| {
            let same_key = theirs.key.as_deref().is_none_or(|key| key.is_empty() || Some(key) == ours.key.as_deref());
            same_key && theirs.effect.as_deref().is_none_or(|effect| effect.is_empty() || effect == "NoExecute")
        })
    };
    let ours = ["not-ready", "unreachable"].map(leaves_a_lost_node_soon);
    ours.into_iter().filter(|ours| !overruled(ours)).chain(wanted.iter().cloned()).collect()
}

fn leaves_a_lost_node_soon(taint: &str) -> Toleration {
    Toleration {
        key: Some(format!("node.kubernetes.io/{taint}")),
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        toleration_seconds: Some(30),
        value: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::parse;

    #[test]
    fn ours_yield_to_the_specs() {
        let check = |wanted: &str, expected: &str| {
            let shown = |it: &Toleration| {
                let key = it.key.as_deref().unwrap_or("*").trim_start_matches("node.kubernetes.io/");
                format!("{key}:{}", it.toleration_seconds.map_or("ever".to_owned(), |seconds| seconds.to_string()))
            };
            let wanted: Vec<Toleration> = parse(wanted);
            let all: Vec<_> = tolerations(&wanted).iter().map(shown).collect();
            assert_eq!(all.join(" "), expected);
        };
        check("[]", "not-ready:30 unreachable:30");
        check("[{key: pool, value: infra, effect: NoSchedule}]", "not-ready:30 unreachable:30 pool:ever");
        check(
            "[{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 300}]",
            "not-ready:30 unreachable:300",
        );
        check("[{operator: Exists}]", "*:ever");
        check("[{operator: Exists, effect: NoSchedule}]", "not-ready:30 unreachable:30 *:ever");
    }
}
