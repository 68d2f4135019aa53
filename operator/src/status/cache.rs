//! Whether the cache serves, and what is amiss with its Pods. Pure.

use super::{Obstacle, pod};
use crate::fleet::{Fleet, pod_is_ready};
use breakwater_crds::conditions::{CACHE_READY, Status, Verdict, reason};
use breakwater_crds::names::{SYSTEM_NAMESPACE, claim_name, pod_name};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use std::sync::Arc;

/// What the verdict rests on.
pub(super) struct Facts<'a> {
    pub(super) name: &'a str,
    pub(super) statefulset: Option<&'a StatefulSet>,
    pub(super) replicas: i32,
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) claims: Vec<&'a PersistentVolumeClaim>,
    pub(super) fleet: &'a Fleet,
    pub(super) obstacle: Option<&'a Obstacle>,
}

/// CacheReady. An obstacle outweighs what Pods say, where it explains that.
pub(super) fn verdict(facts: &Facts<'_>) -> Verdict {
    let by_pods = if facts.replicas > 1 { by_replicas(facts) } else { by_pod(facts, 0) };
    match facts.obstacle {
        Some(Obstacle { reason, message }) if explains(reason, &by_pods) => {
            Verdict { kind: CACHE_READY, status: Status::False, reason, message: message.clone() }
        }
        _ => by_pods,
    }
}

/// Whether an obstacle is why the cache does not serve. None takes anything from a cache that serves, which goes on as it was; of one that
/// does not, some explain at most why it is not there yet.
fn explains(obstacle: &str, by_pods: &Verdict) -> bool {
    by_pods.status != Status::True
        && match obstacle {
            reason::VOLUME_NOT_EXPANDABLE => false,
            reason::NO_AUTHORITY | reason::INVALID_REFERENCE => by_pods.reason == reason::CACHE_STARTING,
            _ => true,
        }
}

/// What several Pods say together: one is enough to serve. The reason is that of the first that is not as it should be.
fn by_replicas(facts: &Facts<'_>) -> Verdict {
    let verdicts: Vec<_> = (0..facts.replicas).map(|ordinal| by_pod(facts, ordinal)).collect();
    // A Pod that is about to be replaced serves until then.
    let serving = facts.pods.iter().filter(|pod| pod_is_ready(pod) && lost_node(facts.fleet, pod).is_none()).count();
    let mut amiss = verdicts.into_iter().filter(|verdict| verdict.status != Status::True);
    let first = amiss.next();
    // A roll-out waits for the replica that does not come, and the others wait with it: only that one says why.
    let waits = first.as_ref().is_some_and(|first| first.reason == reason::CACHE_STARTING);
    let cause = amiss.find(|other| waits && other.reason != reason::CACHE_STARTING);
    let first = first.map(|first| match cause {
        Some(cause) => Verdict { message: format!("{}; {}", cause.message, first.message), ..first },
        None => first,
    });
    match first {
        None => {
            let message = format!("all {} replicas of {} serve", facts.replicas, facts.name);
            Verdict { kind: CACHE_READY, status: Status::True, reason: reason::CACHE_SERVES, message }
        }
        Some(amiss) if serving > 0 => {
            let message = format!("{serving} of {} replicas serving; {}", facts.replicas, amiss.message);
            Verdict { status: Status::True, message, ..amiss }
        }
        Some(amiss) => amiss,
    }
}

/// What one Pod says. Causes are tried from the one that explains most to the one that explains least.
fn by_pod(facts: &Facts<'_>, ordinal: i32) -> Verdict {
    let not = |reason, message| Verdict { kind: CACHE_READY, status: Status::False, reason, message };
    let name = pod_name(facts.name, ordinal);
    let Some(pod) = facts.pods.iter().find(|pod| pod.name_any() == name) else {
        // Why it is not created stands in an Event alone, which nobody watches.
        let message = format!(
            "waiting for {name} to be created; kubectl -n {SYSTEM_NAMESPACE} describe statefulset {} says what hinders it, such as \
             a quota, an admission policy or a PriorityClass that does not exist",
            facts.name
        );
        return not(reason::CACHE_STARTING, message);
    };
    if let Some(node) = lost_node(facts.fleet, pod) {
        let message = format!(
            "{name} is on node {node}, which is lost; bring the node back, or delete its Node object if it is gone for good"
        );
        return not(reason::NODE_LOST, message);
    }
    let is_current = rolled_out(facts.statefulset, pod);
    if let Some(message) = pod::rejected(&name, pod).filter(|_| is_current) {
        return not(reason::POD_FAILING, message);
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return not(reason::CACHE_STARTING, format!("{name} is being replaced"));
    }
    if !is_current {
        // A Pod of the former template that fails is replaced at once, so its faults do not matter any more.
        return not(reason::CACHE_STARTING, format!("{name} is about to be replaced, because the spec changed"));
    }
    if pod_is_ready(pod) {
        let message = format!("{name} serves");
        return Verdict { kind: CACHE_READY, status: Status::True, reason: reason::CACHE_SERVES, message };
    }
    let claim_name = claim_name(facts.name, ordinal);
    let claim = facts.claims.iter().copied().find(|claim| claim.name_any() == claim_name);
    if let Some((reason, message)) = pod::unscheduled(&name, pod, claim) {
        return not(reason, message);
    }
    if let Some(message) = pod::failing(&name, pod) {
        return not(reason::POD_FAILING, message);
    }
    not(reason::CACHE_STARTING, pod::starting(&name, pod))
}

/// The Pod's node if it does not answer any more. A Pod on it stays until its Node object goes.
fn lost_node<'a>(fleet: &'a Fleet, pod: &'a Pod) -> Option<&'a str> {
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    match fleet.node(node) {
        Some(view) if view.facts.ready => None,
        Some(_) => Some(node),
        // A node may be in the Pod's watch before it is in the nodes': only an unready Pod makes it a lost one.
        None => (!pod_is_ready(pod)).then_some(node),
    }
}

/// Whether the Pod is of the StatefulSet's present template.
fn rolled_out(statefulset: Option<&StatefulSet>, pod: &Pod) -> bool {
    let Some(statefulset) = statefulset else { return true };
    let Some(status) = &statefulset.status else { return false };
    let current = status.observed_generation >= statefulset.metadata.generation;
    let revision = pod.labels().get("controller-revision-hash");
    current && (status.update_revision.is_none() || revision.is_none() || revision == status.update_revision.as_ref())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::fleet::{WatchedAgent, WatchedNode, WatchedReport};

    fn parse<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
        serde_saphyr::from_str(yaml).unwrap()
    }

    pub(in super::super) const LIVE_NODE: &str =
        "{metadata: {name: n1}, status: {conditions: [{type: Ready, status: 'True'}]}}";
    const LOST_NODE: &str = "{metadata: {name: n1}, status: {conditions: [{type: Ready, status: Unknown}]}}";
    const CURRENT: &str =
        "{metadata: {generation: 2}, status: {replicas: 1, observedGeneration: 2, updateRevision: r2}}";

    /// `cache-a-0` of revision r2 with this status.
    fn pod(status: &str) -> Pod {
        parse(&format!(
            "{{metadata: {{name: cache-a-0, labels: {{controller-revision-hash: r2}}}}, \
              spec: {{nodeName: n1, containers: []}}, status: {status}}}"
        ))
    }

    pub(in super::super) fn check_on(node: &str, status: &str, claim: Option<&str>, expected: &str) {
        check_pod(pod(status), node, claim, expected);
    }

    /// The same while the Pod is being deleted.
    pub(in super::super) fn check_leaving(status: &str, expected: &str) {
        let mut pod = pod(status);
        pod.metadata.deletion_timestamp = Some(parse("'2026-11-21T10:00:00Z'"));
        check_pod(pod, LIVE_NODE, None, expected);
    }

    fn check_pod(pod: Pod, node: &str, claim: Option<&str>, expected: &str) {
        let fleet = Fleet::of(&[parse::<WatchedNode>(node)], &[] as &[WatchedReport], &[] as &[WatchedAgent]);
        let mut claim: Option<PersistentVolumeClaim> = claim.map(parse);
        if let Some(claim) = &mut claim {
            claim.metadata.name = Some("data-cache-a-0".to_owned());
        }
        let statefulset: StatefulSet = parse(CURRENT);
        let verdict = verdict(&Facts {
            name: "cache-a",
            statefulset: Some(&statefulset),
            replicas: 1,
            pods: &[Arc::new(pod)],
            claims: claim.iter().collect(),
            fleet: &fleet,
            obstacle: None,
        });
        assert_eq!(format!("{} {}: {}", verdict.status.as_str(), verdict.reason, verdict.message), expected);
    }

    pub(in super::super) fn check(status: &str, expected: &str) {
        check_on(LIVE_NODE, status, None, expected);
    }

    #[test]
    fn a_ready_pod_serves() {
        check("{conditions: [{type: Ready, status: 'True'}]}", "True CacheServes: cache-a-0 serves");
        check(
            "{conditions: [{type: Ready, status: 'False'}]}",
            "False CacheStarting: waiting for cache-a-0 to be ready; kubectl -n breakwater-system describe pod cache-a-0 says what hinders it",
        );
    }

    #[test]
    fn a_lost_node_comes_first() {
        let lost = "False NodeLost: cache-a-0 is on node n1, which is lost; bring the node back, or delete its Node object if \
                    it is gone for good";
        check_on(LOST_NODE, "{conditions: [{type: Ready, status: 'True'}]}", None, lost);
    }

    #[test]
    fn an_obstacle_outweighs_what_it_explains() {
        let image = "{containerStatuses: [{name: c, image: i, imageID: '', ready: false, restartCount: 0, \
                      state: {waiting: {reason: ErrImagePull, message: not found}}}]}";
        let starting = "{conditions: [{type: Ready, status: 'False'}]}";
        let told = |status: &str, reason| {
            let pods = [Arc::new(parse(&format!(
                "{{metadata: {{name: cache-a-0}}, spec: {{nodeName: n1, containers: []}}, status: {status}}}"
            )))];
            let obstacle = Obstacle { reason, message: "m".to_owned() };
            let (obstacle, claims) = (Some(&obstacle), Vec::new());
            let fleet = Fleet::of(&[parse::<WatchedNode>(LIVE_NODE)], &[] as &[WatchedReport], &[] as &[WatchedAgent]);
            let facts =
                Facts { name: "cache-a", statefulset: None, replicas: 1, pods: &pods, claims, fleet: &fleet, obstacle };
            verdict(&facts).reason
        };
        assert_eq!(told(image, reason::VOLUME_NOT_EXPANDABLE), reason::POD_FAILING);
        assert_eq!(told(starting, reason::VOLUME_NOT_EXPANDABLE), reason::CACHE_STARTING);
        assert_eq!(told(image, reason::INVALID_REFERENCE), reason::POD_FAILING);
        assert_eq!(told(starting, reason::INVALID_REFERENCE), reason::INVALID_REFERENCE);
        for obstacle in [reason::NO_AUTHORITY, reason::CHILD_REFUSED] {
            assert_eq!(told("{conditions: [{type: Ready, status: 'True'}]}", obstacle), reason::CACHE_SERVES);
        }
        assert_eq!(told(image, reason::CHILD_REFUSED), reason::CHILD_REFUSED);
    }

    #[test]
    fn one_of_several_replicas_is_enough_to_serve() {
        let pod = |ordinal: i32, node: &str, ready: &str| -> Arc<Pod> {
            Arc::new(parse(&format!(
                "{{metadata: {{name: cache-a-{ordinal}, labels: {{controller-revision-hash: r2}}}}, \
                  spec: {{nodeName: {node}, containers: []}}, status: {{conditions: [{{type: Ready, status: '{ready}'}}]}}}}"
            )))
        };
        let nodes: [WatchedNode; 2] = [parse(LIVE_NODE), parse(&LOST_NODE.replace("name: n1", "name: n2"))];
        let fleet = Fleet::of(&nodes, &[] as &[WatchedReport], &[] as &[WatchedAgent]);
        let statefulset: StatefulSet = parse(CURRENT);
        let told = |pods: &[Arc<Pod>]| {
            let (statefulset, claims, obstacle) = (Some(&statefulset), Vec::new(), None);
            let facts = Facts { name: "cache-a", statefulset, replicas: 2, pods, claims, fleet: &fleet, obstacle };
            let verdict = verdict(&facts);
            format!("{} {}: {}", verdict.status.as_str(), verdict.reason, verdict.message)
        };
        let serving = pod(0, "n1", "True");
        assert_eq!(told(&[serving.clone(), pod(1, "n1", "True")]), "True CacheServes: all 2 replicas of cache-a serve");
        assert_eq!(
            told(std::slice::from_ref(&serving)),
            "True CacheStarting: 1 of 2 replicas serving; waiting for cache-a-1 to be created; \
             kubectl -n breakwater-system describe statefulset cache-a says what hinders it, such as a quota, an \
             admission policy or a PriorityClass that does not exist"
        );
        assert_eq!(
            told(&[serving, pod(1, "n2", "True")]),
            "True NodeLost: 1 of 2 replicas serving; cache-a-1 is on node n2, which is lost; bring the node back, or delete \
             its Node object if it is gone for good"
        );
        assert_eq!(
            told(&[pod(0, "n1", "False"), pod(1, "n1", "False")]),
            "False CacheStarting: waiting for cache-a-0 to be ready; kubectl -n breakwater-system describe pod cache-a-0 says what hinders it"
        );
    }

    #[test]
    fn a_roll_out_that_stops_says_at_what() {
        let pod = |ordinal: i32, revision: &str, condition: &str| -> Arc<Pod> {
            Arc::new(parse(&format!(
                "{{metadata: {{name: cache-a-{ordinal}, labels: {{controller-revision-hash: {revision}}}}}, \
                  status: {{conditions: [{condition}]}}}}"
            )))
        };
        let statefulset: StatefulSet = parse(CURRENT);
        let homeless = pod(1, "r2", "{type: PodScheduled, status: 'False', message: 0/3 nodes are available}");
        let pods = [pod(0, "r1", "{type: Ready, status: 'True'}"), homeless];
        let verdict = verdict(&Facts {
            name: "cache-a",
            statefulset: Some(&statefulset),
            replicas: 2,
            pods: &pods,
            claims: Vec::new(),
            fleet: &Fleet::default(),
            obstacle: None,
        });
        assert_eq!((verdict.status, verdict.reason), (Status::True, reason::CACHE_STARTING), "it is under way");
        let said = &verdict.message;
        assert!(
            said.starts_with("1 of 2 replicas serving; cache-a-1 finds no node: 0/3 nodes are available"),
            "{said}"
        );
        assert!(said.ends_with("; cache-a-0 is about to be replaced, because the spec changed"), "{said}");
    }

    #[test]
    fn a_pod_of_the_former_template_is_not_ready_for_the_present_one() {
        let pod: Pod = parse(
            "{metadata: {name: cache-a-0, labels: {controller-revision-hash: r1}}, \
              status: {conditions: [{type: Ready, status: 'True'}]}}",
        );
        let facts = |statefulset: Option<&str>| {
            let statefulset: Option<StatefulSet> = statefulset.map(parse);
            let pods = [Arc::new(pod.clone())];
            let facts = Facts {
                name: "cache-a",
                statefulset: statefulset.as_ref(),
                replicas: 1,
                pods: &pods,
                claims: Vec::new(),
                fleet: &Fleet::default(),
                obstacle: None,
            };
            verdict(&facts).reason
        };
        assert_eq!(facts(Some(CURRENT)), reason::CACHE_STARTING);
        assert_eq!(
            facts(Some(
                "{metadata: {generation: 3}, status: {replicas: 1, observedGeneration: 2, updateRevision: r1}}"
            )),
            reason::CACHE_STARTING
        );
        assert_eq!(
            facts(Some(
                "{metadata: {generation: 2}, status: {replicas: 1, observedGeneration: 2, updateRevision: r1}}"
            )),
            reason::CACHE_SERVES
        );
    }
}
