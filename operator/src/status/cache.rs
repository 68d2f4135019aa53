//! Whether the cache serves, and what is amiss with its Pods. Pure.

use super::Obstacle;
use crate::fleet::{Fleet, pod_is_ready};
use crate::text::one_line;
use breakwater_crds::conditions::{CACHE_READY, Status, Verdict, reason};
use breakwater_crds::names::{SYSTEM_NAMESPACE, claim_name, pod_name};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ContainerStatus, PersistentVolumeClaim, Pod, PodCondition};
use kube::ResourceExt;
use std::sync::Arc;

const MAX_DETAIL: usize = 200;

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

/// Whether an obstacle is why the cache does not serve. Some take nothing from a cache that serves, and of one that does not they explain
/// at most why it is not there yet.
fn explains(obstacle: &str, by_pods: &Verdict) -> bool {
    match obstacle {
        reason::VOLUME_NOT_EXPANDABLE => false,
        reason::NO_AUTHORITY | reason::INVALID_REFERENCE => {
            by_pods.status != Status::True && by_pods.reason == reason::CACHE_STARTING
        }
        _ => true,
    }
}

/// What several Pods say together: one is enough to serve. The reason is that of the first that is not as it should be.
fn by_replicas(facts: &Facts<'_>) -> Verdict {
    let verdicts: Vec<_> = (0..facts.replicas).map(|ordinal| by_pod(facts, ordinal)).collect();
    // A Pod that is about to be replaced serves until then.
    let serving = facts.pods.iter().filter(|pod| pod_is_ready(pod) && lost_node(facts.fleet, pod).is_none()).count();
    let amiss = verdicts.into_iter().find(|verdict| verdict.status != Status::True);
    match amiss {
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
        // Why it is not created stands in an Event alone, which nobody watches: a PriorityClass that does not exist, a quota.
        let message = format!(
            "waiting for {name} to be created; kubectl -n {SYSTEM_NAMESPACE} describe statefulset {} says what hinders it",
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
    if pod.metadata.deletion_timestamp.is_some() {
        return not(reason::CACHE_STARTING, format!("{name} is being replaced"));
    }
    if !rolled_out(facts.statefulset, pod) {
        // A Pod of the former template that fails is replaced at once, so its faults do not matter any more.
        return not(reason::CACHE_STARTING, format!("{name} is about to be replaced, because the spec changed"));
    }
    if pod_is_ready(pod) {
        let message = format!("{name} serves");
        return Verdict { kind: CACHE_READY, status: Status::True, reason: reason::CACHE_SERVES, message };
    }
    let claim_name = claim_name(facts.name, ordinal);
    let claim = facts.claims.iter().copied().find(|claim| claim.name_any() == claim_name);
    if let Some((reason, message)) = unscheduled(&name, pod, claim) {
        return not(reason, message);
    }
    if let Some(message) = failing(&name, pod) {
        return not(reason::POD_FAILING, message);
    }
    not(reason::CACHE_STARTING, format!("waiting for {name} to be ready"))
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

fn unscheduled(name: &str, pod: &Pod, claim: Option<&PersistentVolumeClaim>) -> Option<(&'static str, String)> {
    let scheduled = condition(pod, "PodScheduled")?;
    if scheduled.status == "True" {
        return None;
    }
    let detail = one_line(scheduled.message.as_deref().unwrap_or("the scheduler gives no cause"), MAX_DETAIL);
    let bound = |claim: &PersistentVolumeClaim| {
        claim.status.as_ref().and_then(|status| status.phase.as_deref()).is_some_and(|phase| phase == "Bound")
    };
    let class = |claim: &PersistentVolumeClaim| claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone());
    match claim.filter(|claim| !bound(claim)).map(class) {
        // The default class is written into a claim when it is made or once there is one: none there means none in the cluster.
        Some(None) => Some((
            reason::VOLUME_PENDING,
            format!("{name} has no volume: no StorageClass is the default; set cache.storage.storageClassName"),
        )),
        // It may be one that does not exist.
        Some(Some(class)) if detail.to_lowercase().contains("persistentvolumeclaim") => Some((
            reason::VOLUME_PENDING,
            format!("{name} has no volume of StorageClass {class}: {detail}; look at its claim"),
        )),
        _ => Some((reason::UNSCHEDULABLE, format!("{name} finds no node: {detail}"))),
    }
}

fn failing(name: &str, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    status.container_statuses.iter().flatten().find_map(|container| container_failure(name, container))
}

fn container_failure(name: &str, container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref();
    let waiting = state.and_then(|state| state.waiting.as_ref());
    if let Some(waiting) = waiting {
        let why = waiting.reason.as_deref().unwrap_or_default();
        let harmless = ["", "ContainerCreating", "PodInitializing", "CrashLoopBackOff"];
        if !harmless.contains(&why) {
            let detail = one_line(waiting.message.as_deref().unwrap_or_default(), MAX_DETAIL);
            return Some(format!("{name} cannot start ({why}): {detail}"));
        }
    }
    let ended = state
        .and_then(|state| state.terminated.as_ref())
        .or_else(|| container.last_state.as_ref().and_then(|state| state.terminated.as_ref()));
    let ended = ended.filter(|ended| ended.exit_code != 0)?;
    // Of a log's end the last line says why.
    let said = ended.message.as_deref().and_then(|text| text.trim().lines().last()).unwrap_or_default();
    let detail = match (said, ended.reason.as_deref()) {
        ("", Some("Error") | None) => String::new(),
        ("", Some(reason)) => format!(": {reason}"),
        (said, _) => format!(": {}", one_line(said, MAX_DETAIL)),
    };
    Some(format!(
        "{name} restarts (exit {}{detail}); see kubectl -n {SYSTEM_NAMESPACE} logs -p {name}",
        ended.exit_code
    ))
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{WatchedAgent, WatchedNode, WatchedReport};

    fn parse<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
        serde_saphyr::from_str(yaml).unwrap()
    }

    const LIVE_NODE: &str = "{metadata: {name: n1}, status: {conditions: [{type: Ready, status: 'True'}]}}";
    const LOST_NODE: &str = "{metadata: {name: n1}, status: {conditions: [{type: Ready, status: Unknown}]}}";
    const CURRENT: &str =
        "{metadata: {generation: 2}, status: {replicas: 1, observedGeneration: 2, updateRevision: r2}}";

    /// `cache-a-0` of revision r2 with this status.
    fn check_on(node: &str, status: &str, claim: Option<&str>, expected: &str) {
        let pod: Pod = parse(&format!(
            "{{metadata: {{name: cache-a-0, labels: {{controller-revision-hash: r2}}}}, \
              spec: {{nodeName: n1, containers: []}}, status: {status}}}"
        ));
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

    fn check(status: &str, expected: &str) {
        check_on(LIVE_NODE, status, None, expected);
    }

    #[test]
    fn a_ready_pod_serves() {
        check("{conditions: [{type: Ready, status: 'True'}]}", "True CacheServes: cache-a-0 serves");
        check(
            "{conditions: [{type: Ready, status: 'False'}]}",
            "False CacheStarting: waiting for cache-a-0 to be ready",
        );
    }

    #[test]
    fn a_lost_node_comes_first() {
        let lost = "False NodeLost: cache-a-0 is on node n1, which is lost; bring the node back, or delete its Node object if \
                    it is gone for good";
        check_on(LOST_NODE, "{conditions: [{type: Ready, status: 'True'}]}", None, lost);
    }

    #[test]
    fn a_pod_without_a_node_says_whether_it_lacks_a_volume() {
        let waiting =
            |message: &str| format!("{{conditions: [{{type: PodScheduled, status: 'False', message: '{message}'}}]}}");
        let unbound = waiting("0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims");
        check_on(
            LIVE_NODE,
            &unbound,
            Some("{spec: {}, status: {phase: Pending}}"),
            "False VolumePending: cache-a-0 has no volume: no StorageClass is the default; set cache.storage.storageClassName",
        );
        check_on(
            LIVE_NODE,
            &unbound,
            Some("{spec: {storageClassName: fast}, status: {phase: Pending}}"),
            "False VolumePending: cache-a-0 has no volume of StorageClass fast: 0/3 nodes are available: pod has unbound immediate \
             PersistentVolumeClaims; look at its claim",
        );
        check_on(
            LIVE_NODE,
            &waiting("0/3 nodes are available: 3 Insufficient cpu"),
            Some("{spec: {storageClassName: fast}, status: {phase: Pending}}"),
            "False Unschedulable: cache-a-0 finds no node: 0/3 nodes are available: 3 Insufficient cpu",
        );
        check(&waiting("no"), "False Unschedulable: cache-a-0 finds no node: no");
    }

    #[test]
    fn a_failing_pod_says_what_it_said() {
        let container = |state: &str| {
            format!(
                "{{containerStatuses: [{{name: c, image: i, imageID: '', ready: false, restartCount: 1, {state}}}]}}"
            )
        };
        check(
            &container(
                r#"state: {waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {exitCode: 1, reason: Error, message: "x\nerror: held by another process\n"}}"#,
            ),
            "False PodFailing: cache-a-0 restarts (exit 1: error: held by another process); see kubectl -n breakwater-system logs -p cache-a-0",
        );
        check(
            &container("state: {running: {}}, lastState: {terminated: {exitCode: 137, reason: OOMKilled}}"),
            "False PodFailing: cache-a-0 restarts (exit 137: OOMKilled); see kubectl -n breakwater-system logs -p cache-a-0",
        );
        check(
            &container("state: {waiting: {reason: ImagePullBackOff, message: back-off}}"),
            "False PodFailing: cache-a-0 cannot start (ImagePullBackOff): back-off",
        );
        check(
            &container("state: {waiting: {reason: ContainerCreating}}"),
            "False CacheStarting: waiting for cache-a-0 to be ready",
        );
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
        assert_eq!(told("{conditions: [{type: Ready, status: 'True'}]}", reason::NO_AUTHORITY), reason::CACHE_SERVES);
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
             kubectl -n breakwater-system describe statefulset cache-a says what hinders it"
        );
        assert_eq!(
            told(&[serving, pod(1, "n2", "True")]),
            "True NodeLost: 1 of 2 replicas serving; cache-a-1 is on node n2, which is lost; bring the node back, or delete \
             its Node object if it is gone for good"
        );
        assert_eq!(
            told(&[pod(0, "n1", "False"), pod(1, "n1", "False")]),
            "False CacheStarting: waiting for cache-a-0 to be ready"
        );
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
