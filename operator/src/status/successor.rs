//! What is said of a cache while a Pod takes the place of one that failed. Pure.
//!
//! A Pod that its node rejects is replaced within a second or two, by one that is rejected as well. Without this the conditions would turn
//! with each look, and no such cache would ever count as stalled.

use super::pod;
use breakwater_crds::RegistryMirrorStatus;
use breakwater_crds::conditions::{CACHE_READY, Verdict, reason};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use std::sync::Arc;

/// So long a Pod may take to show that it is better than the one before it.
const FIRST_STEPS: SignedDuration = SignedDuration::from_secs(30);

/// What the verdict rests on.
pub(super) struct State<'a> {
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) old: &'a RegistryMirrorStatus,
    pub(super) generation: Option<i64>,
    pub(super) now: Timestamp,
}

/// The verdict on the cache as it is; or, while its newest Pod has only just begun to start, what was said of the one that failed.
pub(super) fn verdict(cache: Verdict, state: &State<'_>) -> Verdict {
    let stands = |said: &&Condition| {
        said.type_ == CACHE_READY
            && said.reason == reason::POD_FAILING
            && said.status == cache.status.as_str()
            && said.observed_generation == state.generation
    };
    match state.old.conditions.iter().find(stands) {
        Some(said) if cache.reason == reason::CACHE_STARTING && state.has_just_begun() => {
            Verdict { reason: reason::POD_FAILING, message: said.message.clone(), ..cache }
        }
        _ => cache,
    }
}

impl State<'_> {
    fn has_just_begun(&self) -> bool {
        pod::newest(self.pods).is_some_and(|newest| self.now.duration_since(newest).abs() < FIRST_STEPS)
    }
}

#[cfg(test)]
mod tests {
    use super::super::of_children;
    use super::super::tests::{applied, cluster, find};
    use super::*;
    use crate::fixture::{now, parse};
    use crate::fleet::Report;
    use breakwater_crds::conditions::{RECONCILING, STALLED};

    const REJECTED: &str = "{phase: Failed, reason: OutOfcpu, message: no room}";
    const PENDING: &str = "{phase: Pending, conditions: [{type: PodScheduled, status: 'True'}]}";

    /// The cache's Pod, made then, with this status.
    fn pod(made: Timestamp, status: &str) -> Vec<Arc<Pod>> {
        let metadata = format!("{{name: cache-docker-io-0, creationTimestamp: '{made}'}}");
        vec![Arc::new(parse(&format!("{{metadata: {metadata}, status: {status}}}")))]
    }

    #[test]
    fn a_cache_whose_pods_are_rejected_one_after_the_other_fails_and_stalls() {
        let (valid, mut seen) = cluster("False", Report::default());
        let mut status = RegistryMirrorStatus::default();
        let has = |status: &RegistryMirrorStatus, kind: &str| status.conditions.iter().any(|it| it.type_ == kind);
        for second in (0..=12 * 60).step_by(2) {
            let at = now() + SignedDuration::from_secs(second);
            for state in [PENDING, REJECTED] {
                seen.plain.pods = pod(at, state);
                status = of_children(&valid, &seen, Ok(&applied(1)), &status, at);
                let said = find(&status, CACHE_READY);
                if (second, state) != (0, PENDING) {
                    assert_eq!(said.reason, reason::POD_FAILING, "{second} s, {state}");
                    assert!(said.message.contains("(OutOfcpu): no room"), "{}", said.message);
                    assert!(!has(&status, RECONCILING), "{second} s: it makes no progress");
                    assert_eq!(has(&status, STALLED), second > 10 * 60, "{second} s, {state}");
                }
            }
        }
    }

    #[test]
    fn a_pod_that_lasts_is_judged_by_itself() {
        let (valid, mut seen) = cluster("False", Report::default());
        seen.plain.pods = pod(now(), REJECTED);
        let failed = of_children(&valid, &seen, Ok(&applied(1)), &RegistryMirrorStatus::default(), now());
        let mut at = |seconds, old: &RegistryMirrorStatus, state: &str| {
            seen.plain.pods = pod(now(), state);
            let time = now() + SignedDuration::from_secs(seconds);
            find(&of_children(&valid, &seen, Ok(&applied(1)), old, time), CACHE_READY).reason.clone()
        };
        assert_eq!(at(29, &failed, PENDING), reason::POD_FAILING);
        assert_eq!(at(30, &failed, PENDING), reason::CACHE_STARTING);
        assert_eq!(at(1, &failed, "{conditions: [{type: Ready, status: 'True'}]}"), reason::CACHE_SERVES);
        let mut other = failed.clone();
        other.conditions.iter_mut().for_each(|condition| condition.observed_generation = Some(2));
        assert_eq!(at(1, &other, PENDING), reason::CACHE_STARTING, "the spec may have been mended");
    }
}
