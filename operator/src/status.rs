//! The pure half of step 5: from what was observed and applied to the status of a mirror.
//!
//! Ready is CacheReady and NodesReady. Neither the upstream's state nor what would survive its loss touches it: in an outage Breakwater does what it is for, and a
//! mirror that is not Ready would stop roll-outs just then. `UpstreamCredentialsAccepted` is there only with credentials; missing or
//! malformed Secrets show in it and not in CacheReady, because the cache serves all the same.

mod cache;
mod images;
mod nodes;
mod pod;
mod stalled;
mod successor;
mod upstream;

use crate::build::{Applied, Resources};
use crate::observe::Observed;
use crate::text::{one_line, quantity};
use crate::validate::{Refusal, Valid};
use breakwater_crds::conditions::{
    CACHE_READY, IMAGES_SURVIVABLE, NODES_READY, READY, RECONCILING, STALLED, Status, UPSTREAM_CREDENTIALS_ACCEPTED,
    UPSTREAM_REACHABLE, Verdict, reason, set,
};
use breakwater_crds::{CacheStatus, NodeCounts, RegistryMirrorStatus, Summary};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::ObjectMeta;

/// The order in which conditions are listed.
const ORDER: [&str; 8] = [
    READY,
    RECONCILING,
    STALLED,
    CACHE_READY,
    NODES_READY,
    UPSTREAM_REACHABLE,
    UPSTREAM_CREDENTIALS_ACCEPTED,
    IMAGES_SURVIVABLE,
];

/// A refusal by the API server may repeat all that it refuses; each agent reads the status.
const MAX_MESSAGE: usize = 1024;

/// Why the children are not as they should be, although the mirror is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// One of the reasons.
    pub reason: &'static str,
    /// What and the mend.
    pub message: String,
}

/// The status of a mirror that is not built.
#[must_use]
pub fn refused(
    metadata: &ObjectMeta,
    old: &RegistryMirrorStatus,
    refusal: &Refusal,
    now: Timestamp,
) -> RegistryMirrorStatus {
    let (reason, kind) = match refusal {
        Refusal::RegistryConflict { .. } => (reason::REGISTRY_CONFLICT, STALLED),
        Refusal::Handover { .. } => (reason::HANDOVER, RECONCILING),
        Refusal::Foreign { .. } => (reason::CHILD_REFUSED, STALLED),
        Refusal::InvalidSpec { .. } => (reason::INVALID_SPEC, STALLED),
    };
    let verdicts = vec![
        Verdict { kind: READY, status: Status::False, reason, message: refusal.to_string() },
        Verdict { kind, status: Status::True, reason, message: refusal.to_string() },
    ];
    RegistryMirrorStatus {
        observed_generation: metadata.generation,
        conditions: stamped(&old.conditions, verdicts, metadata.generation, now),
        ..RegistryMirrorStatus::default()
    }
}

/// The status of a mirror whose children were applied, or met an obstacle.
#[must_use]
pub fn of_children(
    valid: &Valid,
    observed: &Observed,
    children: Result<&Resources<Applied>, &Obstacle>,
    old: &RegistryMirrorStatus,
    now: Timestamp,
) -> RegistryMirrorStatus {
    let spec = &valid.mirror.spec;
    let there = observed.candidate(&valid.name);
    let report = observed.upstreams.get(&valid.name);
    let cache = cache::verdict(&cache::Facts {
        name: &valid.name,
        statefulset: children.map(|children| &children.statefulset).ok().or(there.statefulset.as_deref()),
        pods: &there.pods,
        replicas: spec.cache.replicas,
        claims: there.claim.iter().chain(&there.other_claims).map(AsRef::as_ref).collect(),
        fleet: &observed.fleet,
        obstacle: children.err(),
    });
    let generation = valid.mirror.metadata.generation;
    let cache = successor::verdict(cache, &successor::State { pods: &there.pods, old, generation, now });
    let settled = old.conditions.iter().any(|old| old.type_ == NODES_READY && old.status == Status::True.as_str());
    let (nodes, counts) =
        nodes::verdict(&nodes::Facts { spec, nodes: &valid.nodes, fleet: &observed.fleet, settled, now });
    let mut verdicts = vec![ready(&cache, &nodes, counts, &valid.name)];
    let obstacle = children.err();
    let said_for = observed.said_for;
    let state = stalled::State { cache: &cache, pods: &there.pods, obstacle, old, said_for, generation, now };
    // Never both: kstatus would take a stalled mirror for one that makes progress.
    verdicts.extend(stalled::verdict(&state).or_else(|| reconciling(&cache, &nodes)));
    verdicts.extend(upstream::credentials(spec, &observed.credentials, report));
    verdicts.extend([cache, nodes, upstream::reachable(spec, report, now)]);
    let images = images::said(&observed.images, old);
    verdicts.push(images.verdict);
    RegistryMirrorStatus {
        observed_generation: generation,
        conditions: stamped(&old.conditions, verdicts, generation, now),
        cache: Some(CacheStatus {
            service: valid.name.clone(),
            ready_replicas: i32::try_from(there.pods.iter().filter(|pod| crate::fleet::pod_is_ready(pod)).count())
                .unwrap_or(0),
            bytes: report.and_then(|report| report.cached_bytes).map(quantity),
        }),
        upstream: report.map(upstream::status),
        summary: Some(Summary { nodes: format!("{}/{}", counts.active, counts.desired), survivable: images.figures }),
        nodes: Some(counts),
        images: images.status,
    }
}

/// The status of a mirror of which a call to the API server fails for long: what was said before stands.
#[must_use]
pub fn failing(
    metadata: &ObjectMeta,
    old: &RegistryMirrorStatus,
    message: &str,
    now: Timestamp,
) -> RegistryMirrorStatus {
    let verdict =
        |kind, status| Verdict { kind, status, reason: reason::API_SERVER_FAILS, message: message.to_owned() };
    let mut verdicts = vec![verdict(STALLED, Status::True)];
    let said = |condition: &&Condition| ![RECONCILING, STALLED].contains(&condition.type_.as_str());
    let before: Vec<_> = old.conditions.iter().filter(said).cloned().collect();
    if before.iter().all(|condition| condition.type_ != READY || condition.reason == reason::API_SERVER_FAILS) {
        verdicts.push(verdict(READY, Status::Unknown));
    }
    let said_anew = stamped(&old.conditions, verdicts, metadata.generation, now);
    let is_new = |condition: &Condition| said_anew.iter().any(|new| new.type_ == condition.type_);
    let mut conditions: Vec<_> = before.into_iter().filter(|condition| !is_new(condition)).collect();
    conditions.extend(said_anew);
    conditions.sort_by_key(|condition| ORDER.iter().position(|kind| *kind == condition.type_));
    RegistryMirrorStatus { observed_generation: metadata.generation, conditions, ..old.clone() }
}

fn ready(cache: &Verdict, nodes: &Verdict, counts: NodeCounts, name: &str) -> Verdict {
    let worst = [cache, nodes]
        .into_iter()
        .find(|verdict| verdict.status == Status::False)
        .or_else(|| [cache, nodes].into_iter().find(|verdict| verdict.status == Status::Unknown));
    match worst {
        Some(verdict) => Verdict { kind: READY, ..verdict.clone() },
        None => {
            let plural = if counts.active == 1 { "" } else { "s" };
            let message = format!("{name} serves {} node{plural}", counts.active);
            Verdict { kind: READY, status: Status::True, reason: reason::SERVING, message }
        }
    }
}

fn reconciling(cache: &Verdict, nodes: &Verdict) -> Option<Verdict> {
    let under_way = |verdict: &&Verdict| matches!(verdict.reason, reason::CACHE_STARTING | reason::NODES_PENDING);
    // Nodes that wait for a cache which finds no node itself are no progress.
    let nodes = (cache.status == Status::True).then_some(nodes);
    let verdict = [Some(cache), nodes].into_iter().flatten().find(under_way)?;
    Some(Verdict { kind: RECONCILING, status: Status::True, ..verdict.clone() })
}

/// Conditions with their times; those that no verdict speaks of are gone.
fn stamped(old: &[Condition], verdicts: Vec<Verdict>, generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    let mut conditions: Vec<_> =
        old.iter().filter(|old| verdicts.iter().any(|verdict| verdict.kind == old.type_)).cloned().collect();
    for verdict in verdicts {
        let message = one_line(&verdict.message, MAX_MESSAGE);
        set(&mut conditions, Verdict { message, ..verdict }, generation, &Time(whole_seconds(now)));
    }
    conditions.sort_by_key(|condition| ORDER.iter().position(|kind| *kind == condition.type_));
    conditions
}

/// The API keeps whole seconds; a fraction would make what we wrote differ from what we read.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{mirror, now, observed, parse};
    use crate::fleet::{Fleet, NodeFacts, NodeView, Report};
    use crate::images::ImagesReport;
    use crate::observe::Images;
    use crate::upstream::UpstreamReport;
    use crate::validate::validate;
    use expect_test::expect;
    use std::marker::PhantomData;
    use std::sync::Arc;

    pub(super) fn find<'a>(status: &'a RegistryMirrorStatus, kind: &str) -> &'a Condition {
        status.conditions.iter().find(|condition| condition.type_ == kind).unwrap()
    }

    fn shown(status: &RegistryMirrorStatus) -> String {
        let line = |condition: &Condition| {
            assert_eq!(condition.observed_generation, Some(3));
            let Condition { type_, status, reason, message, .. } = condition;
            format!("{type_}={status} {reason}: {message}\n")
        };
        status.conditions.iter().map(line).collect()
    }

    /// A cluster with one node, where the cache's Pod is `ready` and the agent says `report`.
    pub(super) fn cluster(ready: &str, report: Report) -> (Valid, Observed) {
        let mut seen = observed(mirror("harbour", 1, "{registry: docker.io}"), &[]);
        let valid = validate(&seen).unwrap();
        seen.plain.pods = vec![Arc::new(parse(&format!(
            "{{metadata: {{name: cache-docker-io-0}}, status: {{conditions: [{{type: Ready, status: '{ready}'}}]}}}}"
        )))];
        let facts = NodeFacts { name: "n1".to_owned(), created: Some(now()), ready: true, ..NodeFacts::default() };
        let node = NodeView { facts: Arc::new(facts), report: Some(Arc::new(report)), silent_since: None };
        seen.fleet = Arc::new(Fleet { nodes: vec![node] });
        (valid, seen)
    }

    pub(super) fn applied(observed_generation: i64) -> Resources<Applied> {
        Resources {
            tls: Default::default(),
            tokens: Default::default(),
            service: Default::default(),
            peers: Vec::new(),
            former_peers: Vec::new(),
            budget: Default::default(),
            statefulset: parse(&format!(
                "{{metadata: {{generation: 1}}, status: {{replicas: 1, observedGeneration: {observed_generation}}}}}"
            )),
            growth: Vec::new(),
            stage: PhantomData,
        }
    }

    #[test]
    fn a_mirror_becomes_ready_and_its_upstream_does_not_matter() {
        let active = Report { active: Arc::new(["docker.io".to_owned()].into()), inactive: vec![] };
        let old = RegistryMirrorStatus::default();
        let (valid, seen) = cluster("False", Report::default());
        let starting = of_children(&valid, &seen, Ok(&applied(1)), &old, now());
        expect![[r#"
            Ready=False CacheStarting: waiting for cache-docker-io-0 to be ready; kubectl -n breakwater-system describe pod cache-docker-io-0 says what hinders it
            Reconciling=True CacheStarting: waiting for cache-docker-io-0 to be ready; kubectl -n breakwater-system describe pod cache-docker-io-0 says what hinders it
            CacheReady=False CacheStarting: waiting for cache-docker-io-0 to be ready; kubectl -n breakwater-system describe pod cache-docker-io-0 says what hinders it
            NodesReady=False NodesPending: waiting for n1 to pull through the cache
            UpstreamReachable=Unknown Unknown: the cache does not say
            ImagesSurvivable=Unknown Unknown: not known yet: no replica of the cache tells, no node has a platform, or the operator is still listing Pods
        "#]]
        .assert_eq(&shown(&starting));
        let (valid, mut seen) = cluster("True", active);
        let down = UpstreamReport { reachable: Some(false), cached_bytes: Some(5 << 30), ..UpstreamReport::default() };
        seen.upstreams = Arc::new([("cache-docker-io".to_owned(), down)].into());
        seen.images = Images::Known(Arc::new(ImagesReport { in_use: 7, ..ImagesReport::default() }));
        let ready = of_children(&valid, &seen, Ok(&applied(1)), &starting, now());
        expect![[r#"
            Ready=True Serving: cache-docker-io serves 1 node
            CacheReady=True CacheServes: cache-docker-io-0 serves
            NodesReady=True NodesActive: 1 of 1 nodes pull through the cache
            UpstreamReachable=False UpstreamUnreachable: docker.io: no answer; cached tags are served up to 168h past their TTL (freshness.maxStale)
            ImagesSurvivable=True AllSurvivable: 7 images in use would survive the loss of the registry
        "#]]
        .assert_eq(&shown(&ready));
        let summary = ready.summary.as_ref().unwrap();
        assert_eq!((summary.nodes.as_str(), summary.survivable.as_str()), ("1/1", "7/7"));
        assert_eq!(ready.cache.as_ref().unwrap().bytes.as_deref(), Some("5.0Gi"));
        assert_eq!(of_children(&valid, &seen, Ok(&applied(1)), &ready, now()), ready, "a second look is no news");
        let changed = of_children(&valid, &seen, Ok(&applied(0)), &ready, now());
        assert_eq!(find(&changed, READY).reason, reason::CACHE_STARTING, "a change of the spec is rolled out first");
    }

    #[test]
    fn a_refusal_of_any_length_makes_a_message_that_agents_can_bear() {
        let (valid, seen) = cluster("False", Report::default());
        let obstacle = Obstacle { reason: reason::CHILD_REFUSED, message: "é".repeat(50_000) };
        let status = of_children(&valid, &seen, Err(&obstacle), &RegistryMirrorStatus::default(), now());
        let message = &find(&status, STALLED).message;
        assert!(message.chars().count() == MAX_MESSAGE && message.ends_with('…'), "{message}");
        assert!(status.conditions.iter().all(|condition| condition.message.chars().count() <= MAX_MESSAGE));
    }

    #[test]
    fn nodes_that_wait_for_a_cache_without_a_node_are_no_progress() {
        let (valid, mut seen) = cluster("False", Report::default());
        let reconciling = |seen: &Observed| {
            let status = of_children(&valid, seen, Ok(&applied(1)), &RegistryMirrorStatus::default(), now());
            status.conditions.into_iter().find(|condition| condition.type_ == RECONCILING).map(|found| found.reason)
        };
        assert_eq!(reconciling(&seen).as_deref(), Some(reason::CACHE_STARTING));
        seen.plain.pods = vec![Arc::new(parse(
            "{metadata: {name: cache-docker-io-0}, status: {conditions: [{type: PodScheduled, status: 'False'}]}}",
        ))];
        assert_eq!(reconciling(&seen), None);
        let (_, seen) = cluster("True", Report::default());
        assert_eq!(reconciling(&seen).as_deref(), Some(reason::NODES_PENDING));
    }

    #[test]
    fn a_lost_authority_stalls_a_mirror_that_goes_on_serving() {
        let active = Report { active: Arc::new(["docker.io".to_owned()].into()), inactive: vec![] };
        let lost = Obstacle { reason: reason::NO_AUTHORITY, message: "damaged".to_owned() };
        let old = RegistryMirrorStatus::default();
        let (valid, seen) = cluster("True", active.clone());
        let status = of_children(&valid, &seen, Err(&lost), &old, now());
        assert_eq!(
            (find(&status, READY).status.as_str(), find(&status, STALLED).message.as_str()),
            ("True", "damaged")
        );
        let (valid, seen) = cluster("False", active);
        let status = of_children(&valid, &seen, Err(&lost), &old, now());
        assert_eq!(find(&status, READY).reason, reason::NO_AUTHORITY);
    }

    #[test]
    fn what_fails_for_long_is_said_beside_what_was_said_before() {
        let active = Report { active: Arc::new(["docker.io".to_owned()].into()), inactive: vec![] };
        let (valid, seen) = cluster("True", active);
        let fails = |old: &RegistryMirrorStatus| failing(&valid.mirror.metadata, old, "no key", now());
        let new = fails(&RegistryMirrorStatus::default());
        expect![[r#"
            Ready=Unknown ApiServerFails: no key
            Stalled=True ApiServerFails: no key
        "#]]
        .assert_eq(&shown(&new));
        assert_eq!(fails(&new), new, "a second look is no news");
        let ready = of_children(&valid, &seen, Ok(&applied(1)), &RegistryMirrorStatus::default(), now());
        let told = fails(&ready);
        assert_eq!(find(&told, STALLED).message, "no key");
        let rest = told.conditions.iter().filter(|condition| condition.type_ != STALLED).cloned().collect();
        assert_eq!(RegistryMirrorStatus { conditions: rest, ..told }, ready);
    }

    #[test]
    fn a_refused_mirror_says_only_that() {
        let elder = mirror("elder", 1, "{registry: docker.io}");
        let younger = mirror("younger", 2, "{registry: docker.io}");
        let refusal = validate(&observed(younger.clone(), &[elder])).unwrap_err();
        let status = refused(&younger.metadata, &RegistryMirrorStatus::default(), &refusal, now());
        expect![[r#"
            Ready=False RegistryConflict: docker.io belongs to RegistryMirror/elder, which is older; delete one of the two
            Stalled=True RegistryConflict: docker.io belongs to RegistryMirror/elder, which is older; delete one of the two
        "#]]
        .assert_eq(&shown(&status));
        let refusal = Refusal::Handover { name: "s".to_owned(), former: "m".to_owned() };
        let status = refused(&younger.metadata, &status, &refusal, now());
        assert_eq!(find(&status, RECONCILING).reason, reason::HANDOVER);
        assert!(status.conditions.iter().all(|condition| condition.type_ != STALLED));
    }
}
