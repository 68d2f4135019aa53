//! What hinders one Pod of a cache, and the mend: no node, no volume, a node that does not let it in, a container that fails. Pure; knows
//! no mirror.

use crate::text::one_line;
use breakwater_crds::conditions::reason;
use breakwater_crds::names::SYSTEM_NAMESPACE;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PersistentVolumeClaim, Pod, PodCondition};
use kube::ResourceExt;
use std::sync::Arc;

const MAX_DETAIL: usize = 200;
/// A reason is a word.
const MAX_REASON: usize = 40;

/// When the newest of these was made.
pub(super) fn newest(pods: &[Arc<Pod>]) -> Option<Timestamp> {
    pods.iter().filter_map(|pod| Some(pod.metadata.creation_timestamp.as_ref()?.0)).max()
}

/// Why no node takes it, if none does: reason and message.
pub(super) fn unscheduled(
    name: &str,
    pod: &Pod,
    claim: Option<&PersistentVolumeClaim>,
) -> Option<(&'static str, String)> {
    let scheduled = condition(pod, "PodScheduled")?;
    if scheduled.status == "True" {
        return None;
    }
    let detail = one_line(scheduled.message.as_deref().unwrap_or("the scheduler gives no cause"), MAX_DETAIL);
    let bound = |claim: &PersistentVolumeClaim| {
        claim.status.as_ref().and_then(|status| status.phase.as_deref()).is_some_and(|phase| phase == "Bound")
    };
    let class = |claim: &PersistentVolumeClaim| claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone());
    match claim.filter(|claim| !bound(claim)).map(|claim| (claim.name_any(), class(claim))) {
        // The default class is written into a claim when it is made or once there is one: none there means none in the cluster. A class
        // cannot be added to a mirror, because its claim keeps what it was made with.
        Some((claim, None)) => Some((
            reason::VOLUME_PENDING,
            format!(
                "{name} has no volume: no StorageClass is the default; make one the default, or delete the mirror and claim {claim} and \
                 create it anew with cache.storage.storageClassName"
            ),
        )),
        // It may be one that does not exist.
        Some((claim, Some(class))) if detail.to_lowercase().contains("persistentvolumeclaim") => Some((
            reason::VOLUME_PENDING,
            format!(
                "{name} has no volume of StorageClass {class}: {detail}; see kubectl -n {SYSTEM_NAMESPACE} describe pvc {claim}"
            ),
        )),
        _ => Some((
            reason::UNSCHEDULABLE,
            format!(
                "{name} finds no node: {detail}; make room on a node, or change cache.resources, cache.nodeSelector, \
                 cache.tolerations or cache.affinity"
            ),
        )),
    }
}

/// Why its node did not let it in or threw it out, if it did. Its StatefulSet replaces such a Pod at once, so what is there under its name may
/// be the next one already; the Events stay.
pub(super) fn rejected(name: &str, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref().filter(|status| status.phase.as_deref() == Some("Failed"))?;
    // One whose container ended has none.
    let reason = status.reason.as_deref().filter(|reason| !reason.is_empty())?;
    let (reason, detail) = (one_line(reason, MAX_REASON), status.message.as_deref().unwrap_or_default());
    let detail = if detail.is_empty() { String::new() } else { format!(": {}", one_line(detail, MAX_DETAIL)) };
    Some(format!(
        "{name} failed on its node ({reason}){detail}; see kubectl -n {SYSTEM_NAMESPACE} events --for pod/{name}"
    ))
}

/// How its container fails, if it does.
pub(super) fn failing(name: &str, pod: &Pod) -> Option<String> {
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
            return Some(format!(
                "{name} cannot start ({why}): {detail}; see kubectl -n {SYSTEM_NAMESPACE} describe pod {name}"
            ));
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

/// What a Pod waits for that has a node and does not fail. Causes stand in its Events alone.
pub(super) fn starting(name: &str, pod: &Pod) -> String {
    let set_up = condition(pod, "PodReadyToStartContainers").is_none_or(|condition| condition.status == "True");
    let what = if set_up { "be ready" } else { "get its volumes and network" };
    format!("waiting for {name} to {what}; kubectl -n {SYSTEM_NAMESPACE} describe pod {name} says what hinders it")
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

#[cfg(test)]
mod tests {
    use super::super::cache::tests::{LIVE_NODE, check, check_leaving, check_on};

    #[test]
    fn a_pod_without_a_node_says_whether_it_lacks_a_volume() {
        let waiting =
            |message: &str| format!("{{conditions: [{{type: PodScheduled, status: 'False', message: '{message}'}}]}}");
        let unbound = waiting("0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims");
        check_on(
            LIVE_NODE,
            &unbound,
            Some("{spec: {}, status: {phase: Pending}}"),
            "False VolumePending: cache-a-0 has no volume: no StorageClass is the default; make one the default, or delete the mirror \
             and claim data-cache-a-0 and create it anew with cache.storage.storageClassName",
        );
        check_on(
            LIVE_NODE,
            &unbound,
            Some("{spec: {storageClassName: fast}, status: {phase: Pending}}"),
            "False VolumePending: cache-a-0 has no volume of StorageClass fast: 0/3 nodes are available: pod has unbound immediate \
             PersistentVolumeClaims; see kubectl -n breakwater-system describe pvc data-cache-a-0",
        );
        check_on(
            LIVE_NODE,
            &waiting("0/3 nodes are available: 3 Insufficient cpu"),
            Some("{spec: {storageClassName: fast}, status: {phase: Pending}}"),
            "False Unschedulable: cache-a-0 finds no node: 0/3 nodes are available: 3 Insufficient cpu; make room on a node, or \
             change cache.resources, cache.nodeSelector, cache.tolerations or cache.affinity",
        );
        check(
            &waiting("no"),
            "False Unschedulable: cache-a-0 finds no node: no; make room on a node, or change cache.resources, \
             cache.nodeSelector, cache.tolerations or cache.affinity",
        );
    }

    #[test]
    fn a_pod_that_its_node_rejects_says_why_while_it_goes_as_well() {
        let status =
            "{phase: Failed, reason: OutOfcpu, message: 'Pod was rejected: Node did not have enough resource: cpu'}";
        let expected = "False PodFailing: cache-a-0 failed on its node (OutOfcpu): Pod was rejected: Node did not have enough resource: cpu; \
                        see kubectl -n breakwater-system events --for pod/cache-a-0";
        check(status, expected);
        check_leaving(status, expected);
        check(
            "{phase: Failed, reason: Evicted}",
            "False PodFailing: cache-a-0 failed on its node (Evicted); see kubectl -n breakwater-system events --for pod/cache-a-0",
        );
        check_leaving("{phase: Failed}", "False CacheStarting: cache-a-0 is being replaced");
        check_leaving("{phase: Running, reason: NodeLost}", "False CacheStarting: cache-a-0 is being replaced");
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
            "False PodFailing: cache-a-0 cannot start (ImagePullBackOff): back-off; see kubectl -n breakwater-system describe pod cache-a-0",
        );
        check(
            &container("state: {waiting: {reason: ContainerCreating}}"),
            "False CacheStarting: waiting for cache-a-0 to be ready; kubectl -n breakwater-system describe pod cache-a-0 says what hinders it",
        );
    }

    #[test]
    fn a_pod_that_does_not_get_its_sandbox_says_so_and_where_its_cause_stands() {
        let status = |set_up: &str| {
            format!(
                "{{conditions: [{{type: PodScheduled, status: 'True'}}, {{type: PodReadyToStartContainers, status: '{set_up}'}}], \
                  containerStatuses: [{{name: c, image: i, imageID: '', ready: false, restartCount: 0, \
                  state: {{waiting: {{reason: ContainerCreating}}}}}}]}}"
            )
        };
        check(
            &status("False"),
            "False CacheStarting: waiting for cache-a-0 to get its volumes and network; kubectl -n breakwater-system describe \
             pod cache-a-0 says what hinders it",
        );
        check(
            &status("True"),
            "False CacheStarting: waiting for cache-a-0 to be ready; kubectl -n breakwater-system describe pod cache-a-0 says \
             what hinders it",
        );
    }
}
