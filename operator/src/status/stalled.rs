//! When a mirror needs a hand: at once where its children met an obstacle, and where its cache does not come for long. Pure.

use super::{Obstacle, pod};
use breakwater_crds::RegistryMirrorStatus;
use breakwater_crds::conditions::{CACHE_READY, RECONCILING, STALLED, Status, Verdict, reason};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use std::sync::Arc;
use std::time::Duration;

/// A cache that does not serve is given so long to come by itself before the mirror counts as stalled.
const UNTIL_STALLED: Duration = Duration::from_secs(10 * 60);

/// What the verdict rests on.
pub(super) struct State<'a> {
    pub(super) cache: &'a Verdict,
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) obstacle: Option<&'a Obstacle>,
    pub(super) old: &'a RegistryMirrorStatus,
    pub(super) said_for: Option<Duration>,
    pub(super) generation: Option<i64>,
    pub(super) now: Timestamp,
}

/// Stalled, where it applies.
pub(super) fn verdict(state: &State<'_>) -> Option<Verdict> {
    let (reason, message) = match state.obstacle {
        Some(Obstacle { reason, message }) => (*reason, message),
        None => state.lasts().then_some((state.cache.reason, &state.cache.message))?,
    };
    Some(Verdict { kind: STALLED, status: Status::True, reason, message: message.clone() })
}

impl State<'_> {
    /// Whether the cache is not what it should be for so long, and for this one reason, that nothing but a hand will change it. Whatever is new
    /// begins the time anew: the spec, the reason, the Pod unless it fails like the one before it. That the cache is under way since then says
    /// Reconciling.
    fn lasts(&self) -> bool {
        // A time in the future was written before the clock was put right: so long ago that nobody knows.
        let long_ago = |time: Timestamp| self.now.duration_since(time).unsigned_abs() > UNTIL_STALLED;
        let held = |kind: &str| self.old.conditions.iter().find(|condition| condition.type_ == kind);
        let same = |said: &&Condition| said.reason == self.cache.reason && said.observed_generation == self.generation;
        let for_long = |said: &Condition| match self.cache.status {
            Status::False => {
                // Its time is that of the status, whatever the reasons: of these only memory knows.
                self.said_for.is_none_or(|time| time > UNTIL_STALLED)
                    && long_ago(said.last_transition_time.0)
                    && held(RECONCILING).is_none_or(|said| long_ago(said.last_transition_time.0))
            }
            // It serves, but a replica does not come.
            _ if self.cache.reason == reason::CACHE_STARTING => {
                let waits = || held(RECONCILING).is_some_and(|said| long_ago(said.last_transition_time.0));
                self.said_for.map_or_else(waits, |time| time > UNTIL_STALLED)
                    || held(STALLED).is_some_and(|it| same(&it))
            }
            _ => false,
        };
        held(CACHE_READY).filter(same).filter(|said| said.status == self.cache.status.as_str()).is_some_and(for_long)
            && (self.cache.reason == reason::POD_FAILING || pod::newest(self.pods).is_none_or(long_ago))
    }
}

#[cfg(test)]
mod tests {
    use super::super::of_children;
    use super::super::tests::{applied, cluster, find};
    use super::*;
    use crate::fixture::{now, parse};
    use crate::fleet::Report;
    use breakwater_crds::conditions::READY;
    use jiff::SignedDuration;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn an_obstacle_stalls_and_a_pod_that_fails_for_long_does_too() {
        let (valid, mut seen) = cluster("False", Report::default());
        let old = RegistryMirrorStatus::default();
        let obstacle = Obstacle { reason: reason::CHILD_REFUSED, message: "exceeded quota".to_owned() };
        let status = of_children(&valid, &seen, Err(&obstacle), &old, now());
        assert_eq!(find(&status, STALLED).message, "exceeded quota");
        assert_eq!(find(&status, READY).reason, reason::CHILD_REFUSED);
        assert!(status.conditions.iter().all(|condition| condition.type_ != RECONCILING), "never beside Stalled");

        seen.plain.pods = vec![Arc::new(parse(
            "{metadata: {name: cache-docker-io-0}, status: {containerStatuses: [{name: c, image: i, imageID: '', ready: false, \
             restartCount: 9, lastState: {terminated: {exitCode: 1}}}]}}",
        ))];
        let failing = of_children(&valid, &seen, Ok(&applied(1)), &old, now());
        assert!(failing.conditions.iter().all(|condition| condition.type_ != STALLED));
        let later = of_children(&valid, &seen, Ok(&applied(1)), &failing, now() + SignedDuration::from_mins(11));
        assert_eq!(find(&later, STALLED).reason, reason::POD_FAILING);
    }

    #[test]
    fn a_cache_that_does_not_come_stalls_for_whatever_reason() {
        let (valid, mut seen) = cluster("False", Report::default());
        let unschedulable =
            "{metadata: {name: cache-docker-io-0}, status: {conditions: [{type: PodScheduled, status: 'False'}]}}";
        let starting =
            "{metadata: {name: cache-docker-io-0}, status: {conditions: [{type: PodScheduled, status: 'True'}]}}";
        for (pod, reason) in [
            (None, reason::CACHE_STARTING),
            (Some(starting), reason::CACHE_STARTING),
            (Some(unschedulable), reason::UNSCHEDULABLE),
        ] {
            seen.plain.pods = pod.into_iter().map(|pod| Arc::new(parse(pod))).collect();
            let at = |old: &_, minutes| {
                of_children(&valid, &seen, Ok(&applied(1)), old, now() + SignedDuration::from_mins(minutes))
            };
            let first = at(&RegistryMirrorStatus::default(), 0);
            let waiting = at(&first, 9);
            assert_eq!(waiting, first, "{reason}: a second look is no news");
            let stalled = at(&waiting, 11);
            let (said, why) = (find(&stalled, STALLED), find(&stalled, CACHE_READY));
            assert_eq!((said.reason.as_str(), &said.message), (reason, &why.message));
            assert!(stalled.conditions.iter().all(|condition| condition.type_ != RECONCILING), "never beside Stalled");
            assert_eq!(at(&stalled, 12), stalled, "{reason}: it stays stalled");
        }
    }

    #[test]
    fn whatever_is_new_gives_a_stalled_cache_its_time_anew() {
        let (valid, mut seen) = cluster("False", Report::default());
        let long = now() + SignedDuration::from_mins(11);
        let has = |status: &RegistryMirrorStatus, kind: &str| status.conditions.iter().any(|it| it.type_ == kind);
        seen.plain.pods = Vec::new();
        let missing = of_children(&valid, &seen, Ok(&applied(1)), &RegistryMirrorStatus::default(), now());
        let stalled = of_children(&valid, &seen, Ok(&applied(1)), &missing, long);
        assert!(has(&stalled, STALLED));

        let mut former = stalled.clone();
        former.conditions.iter_mut().for_each(|condition| condition.observed_generation = Some(2));
        let changed = of_children(&valid, &seen, Ok(&applied(0)), &former, long);
        assert!(has(&changed, RECONCILING) && !has(&changed, STALLED), "the spec may have been mended");
        let seconds = SignedDuration::from_secs(5);
        assert!(has(&of_children(&valid, &seen, Ok(&applied(1)), &changed, long + seconds), RECONCILING));

        let created = |at: Timestamp| -> Vec<Arc<Pod>> {
            vec![Arc::new(parse(&format!("{{metadata: {{name: cache-docker-io-0, creationTimestamp: '{at}'}}}}")))]
        };
        seen.plain.pods = created(long);
        let begun = of_children(&valid, &seen, Ok(&applied(1)), &stalled, long + seconds);
        assert!(has(&begun, RECONCILING) && !has(&begun, STALLED), "its Pod is there at last");

        let mut pod: Pod = parse(
            "{metadata: {name: cache-docker-io-0}, status: {conditions: [{type: PodScheduled, status: 'False'}]}}",
        );
        pod.metadata.creation_timestamp = Some(Time(now()));
        seen.plain.pods = vec![Arc::new(pod)];
        let homeless = of_children(&valid, &seen, Ok(&applied(1)), &RegistryMirrorStatus::default(), now());
        assert!(has(&of_children(&valid, &seen, Ok(&applied(1)), &homeless, long), STALLED));
        seen.plain.pods = created(now());
        let placed = of_children(&valid, &seen, Ok(&applied(1)), &homeless, long);
        assert!(has(&placed, RECONCILING) && !has(&placed, STALLED), "it found a node");
    }

    #[test]
    fn the_time_of_one_reason_is_not_that_of_another() {
        let (valid, mut seen) = cluster("False", Report::default());
        let homeless =
            "{metadata: {name: cache-docker-io-0}, status: {conditions: [{type: PodScheduled, status: 'False'}]}}";
        let failing = "{metadata: {name: cache-docker-io-0}, status: {containerStatuses: [{name: c, image: i, imageID: '', ready: false, \
             restartCount: 0, state: {waiting: {reason: ErrImagePull}}}]}}";
        let mut at = |pod: &str, minutes: i64, said_for: u64, old: &RegistryMirrorStatus| {
            seen.plain.pods = vec![Arc::new(parse(pod))];
            seen.said_for = Some(Duration::from_secs(60 * said_for));
            of_children(&valid, &seen, Ok(&applied(1)), old, now() + SignedDuration::from_mins(minutes))
        };
        let stalled = |status: &RegistryMirrorStatus| status.conditions.iter().any(|it| it.type_ == STALLED);
        let first = at(homeless, 0, 0, &RegistryMirrorStatus::default());
        let before = at(homeless, 9, 9, &first);
        let turned = at(failing, 9, 9, &before);
        assert!(!stalled(&turned));
        assert!(!stalled(&at(failing, 11, 2, &turned)), "it fails for two minutes");
        assert!(stalled(&at(failing, 20, 11, &turned)));
    }

    #[test]
    fn a_replica_that_never_comes_stalls_a_mirror_that_serves() {
        let (_, mut seen) =
            cluster("True", Report { active: Arc::new(["docker.io".to_owned()].into()), inactive: vec![] });
        seen.mirror = crate::fixture::mirror("harbour", 1, "{registry: docker.io, cache: {replicas: 2}}");
        let valid = crate::validate::validate(&seen).unwrap();
        let mut at = |said_for: Option<u64>, old: &RegistryMirrorStatus| {
            seen.said_for = said_for.map(|minutes| Duration::from_secs(60 * minutes));
            of_children(&valid, &seen, Ok(&applied(1)), old, now())
        };
        let has = |status: &RegistryMirrorStatus, kind: &str| status.conditions.iter().any(|it| it.type_ == kind);
        let begun = at(None, &RegistryMirrorStatus::default());
        assert_eq!((find(&begun, READY).status.as_str(), has(&begun, RECONCILING)), ("True", true));
        assert!(has(&at(Some(9), &begun), RECONCILING));
        let stalled = at(Some(11), &begun);
        assert!(has(&stalled, STALLED) && !has(&stalled, RECONCILING), "no tool waits for it without end");
        assert!(find(&stalled, STALLED).message.contains("waiting for cache-docker-io-1 to be created"));
        assert_eq!(find(&stalled, READY).status, "True");
        assert_eq!(at(None, &stalled), stalled, "an operator that has just begun knows no better");
    }

    #[test]
    fn a_clock_that_jumps_is_no_news_and_keeps_no_mirror_from_stalling() {
        let active = Report { active: Arc::new(["docker.io".to_owned()].into()), inactive: vec![] };
        let (valid, seen) = cluster("True", active);
        let ready = of_children(&valid, &seen, Ok(&applied(1)), &RegistryMirrorStatus::default(), now());
        for hours in [2, -2, 400 * 24, -400 * 24] {
            let jumped = now() + SignedDuration::from_hours(hours);
            assert_eq!(of_children(&valid, &seen, Ok(&applied(1)), &ready, jumped), ready, "{hours}");
            let (valid, mut seen) = cluster("False", Report::default());
            seen.plain.pods = vec![Arc::new(parse(
                "{metadata: {name: cache-docker-io-0}, status: {containerStatuses: [{name: c, image: i, imageID: '', ready: false, \
                 restartCount: 9, state: {waiting: {reason: ErrImagePull}}}]}}",
            ))];
            let failing = of_children(&valid, &seen, Ok(&applied(1)), &RegistryMirrorStatus::default(), jumped);
            let corrected = of_children(&valid, &seen, Ok(&applied(1)), &failing, now());
            assert_eq!(find(&corrected, STALLED).reason, reason::POD_FAILING, "{hours}");
        }
    }
}
