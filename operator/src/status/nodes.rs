//! How many of the selected nodes pull through the cache, and what of the others. Pure.
//!
//! Desired are the Ready nodes that the mirror selects: a node whose kubelet is silent pulls nothing. Active is a node whose agent
//! is Ready and lists the registry.
//!
//! A node younger than 5 minutes that has not proven the mirror yet is forgiven, so that autoscaling does not make Ready flap, but
//! only while NodesReady is True: a mirror that is becoming ready waits for every node, or Ready would mean nothing in a cluster
//! that is itself younger than 5 minutes. A node whose agent fell silent is forgiven for a minute in the same way, so that an
//! update of the agents does not. A node that says that it fails or bypasses the cache is never forgiven: it has had its say.

use crate::fleet::{Fleet, NodeFacts, NodeView};
use crate::text::{clock, one_line};
use breakwater_crds::conditions::{NODES_READY, Status, Verdict, reason};
use breakwater_crds::{InactiveMirror, MirrorState, NodeCounts, RegistryMirrorSpec, Selector};
use jiff::{SignedDuration, Timestamp};

const YOUNG: SignedDuration = SignedDuration::from_mins(5);
/// An agent that is replaced is back in seconds, unless its image is new to the node.
const RESTART: SignedDuration = SignedDuration::from_mins(1);
const MAX_NAMES: usize = 3;

/// What the verdict rests on.
pub(super) struct Facts<'a> {
    pub(super) spec: &'a RegistryMirrorSpec,
    pub(super) nodes: &'a Selector,
    pub(super) fleet: &'a Fleet,
    /// Whether NodesReady was True until now.
    pub(super) settled: bool,
    pub(super) now: Timestamp,
}

/// The nodes by what they do.
#[derive(Default)]
struct Sorted<'a> {
    desired: usize,
    active: usize,
    bypassed: Vec<(&'a str, &'a InactiveMirror)>,
    failed: Vec<(&'a str, &'a InactiveMirror)>,
    pending: Vec<&'a str>,
    silent: Vec<&'a str>,
    young: usize,
    restarting: usize,
}

/// NodesReady and the counts.
pub(super) fn verdict(facts: &Facts<'_>) -> (Verdict, NodeCounts) {
    let sorted = sort(facts);
    let count = |amount: usize| i32::try_from(amount).unwrap_or(i32::MAX);
    let counts = NodeCounts {
        desired: count(sorted.desired),
        active: count(sorted.active),
        bypassed: count(sorted.bypassed.len()),
        failed: count(sorted.failed.len()),
    };
    let (status, reason, message) = judge(facts, &sorted);
    (Verdict { kind: NODES_READY, status, reason, message }, counts)
}

fn sort<'a>(facts: &Facts<'a>) -> Sorted<'a> {
    let registry = &facts.spec.registry;
    let mut sorted = Sorted::default();
    let is_desired = |view: &&NodeView| view.facts.ready && facts.nodes.matches(&view.facts.labels);
    for NodeView { facts: node, report, silent_since } in facts.fleet.nodes.iter().filter(is_desired) {
        sorted.desired += 1;
        let young = facts.settled && is_young(node, facts.now);
        let name = node.name.as_str();
        let Some(report) = report else {
            let restarts = silent_since.is_some_and(|since| facts.now.duration_since(since).abs() < RESTART);
            match (young, facts.settled && restarts) {
                (true, _) => sorted.young += 1,
                (false, true) => sorted.restarting += 1,
                (false, false) => sorted.silent.push(name),
            }
            continue;
        };
        if report.active.contains(registry) {
            sorted.active += 1;
            continue;
        }
        let inactive = report.inactive.iter().find(|inactive| inactive.registry == *registry);
        match inactive.map(|inactive| (inactive.state, inactive)) {
            Some((MirrorState::Bypassed, inactive)) => sorted.bypassed.push((name, inactive)),
            Some((MirrorState::Failed, inactive)) => sorted.failed.push((name, inactive)),
            Some((MirrorState::Pending, _)) | None if young => sorted.young += 1,
            Some((MirrorState::Pending, _)) | None => sorted.pending.push(name),
        }
    }
    sorted
}

fn is_young(node: &NodeFacts, now: Timestamp) -> bool {
    // By the API server's clock against ours: a node made far in the future is no young one.
    node.created.is_some_and(|created| now.duration_since(created).abs() < YOUNG)
}

fn judge(facts: &Facts<'_>, sorted: &Sorted<'_>) -> (Status, &'static str, String) {
    let (registry, desired) = (&facts.spec.registry, sorted.desired);
    if desired == 0 {
        return (
            Status::False,
            reason::NO_NODES,
            "nodes.selector selects no Ready node; correct it, or label nodes".to_owned(),
        );
    }
    if let Some(&(first, why)) = sorted.failed.first() {
        let names = listed(sorted.failed.iter().map(|(name, _)| *name));
        let message =
            format!("{names} cannot be configured for {registry}: {}; see kubectl describe mnode {first}", cause(why));
        return (Status::False, reason::NODES_FAILED, message);
    }
    if let Some(&(_, why)) = sorted.bypassed.first() {
        let names = listed(sorted.bypassed.iter().map(|(name, _)| *name));
        let verb = if sorted.bypassed.len() == 1 { "bypasses" } else { "bypass" };
        let since = clock(why.since.0, facts.now);
        // The agent says what becomes of pulls meanwhile.
        let message = format!("{names} {verb} {registry} since {since}: {}", cause(why));
        return (Status::False, reason::NODES_BYPASSED, message);
    }
    if !sorted.silent.is_empty() {
        let message = format!("no word from the agent of {}; look at its Pod", listed(sorted.silent.iter().copied()));
        return (Status::Unknown, reason::AGENT_SILENT, message);
    }
    if !sorted.pending.is_empty() {
        let message = format!("waiting for {} to pull through the cache", listed(sorted.pending.iter().copied()));
        return (Status::False, reason::NODES_PENDING, message);
    }
    let young = some(sorted.young, "younger than 5 minutes not yet");
    let restarting = some(sorted.restarting, "not while the agent restarts");
    let message = format!("{} of {desired} nodes pull through the cache{young}{restarting}", sorted.active);
    (Status::True, reason::NODES_ACTIVE, message)
}

fn some(amount: usize, what: &str) -> String {
    if amount == 0 { String::new() } else { format!("; {amount} {what}") }
}

/// What an agent gives as the cause.
fn cause(inactive: &InactiveMirror) -> String {
    let text = if inactive.message.is_empty() { &inactive.reason } else { &inactive.message };
    one_line(text, 200)
}

/// At most three names: `a, b, c and 4 more`.
fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(MAX_NAMES);
    let shown = names.take(MAX_NAMES).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Report;
    use std::sync::Arc;

    const NOW: &str = "2026-11-21T10:00:00Z";

    fn node(name: &str, age_minutes: i64, report: Option<&str>) -> NodeView {
        let now: Timestamp = NOW.parse().unwrap();
        let report = report.map(|state| match state {
            "active" => Report { active: Arc::new(["docker.io".to_owned()].into()), inactive: vec![] },
            "unheard" => Report::default(),
            state => Report {
                active: Default::default(),
                inactive: vec![Arc::new(serde_saphyr::from_str(&format!(
                    "{{registry: docker.io, state: {state}, reason: R, message: cache refused, since: '2026-11-21T09:41:00Z'}}"
                )).unwrap())],
            },
        });
        let created = Some(now - SignedDuration::from_mins(age_minutes));
        let facts = NodeFacts { name: name.to_owned(), created, ready: true, ..NodeFacts::default() };
        NodeView { facts: Arc::new(facts), report: report.map(Arc::new), silent_since: None }
    }

    fn check(nodes: Vec<NodeView>, settled: bool, expected: &str) {
        let spec: RegistryMirrorSpec = serde_saphyr::from_str("registry: docker.io").unwrap();
        let (nodes, fleet) = (Selector::default(), Fleet { nodes });
        let (verdict, counts) =
            verdict(&Facts { spec: &spec, nodes: &nodes, fleet: &fleet, settled, now: NOW.parse().unwrap() });
        let NodeCounts { desired, active, .. } = counts;
        assert_eq!(
            format!("{active}/{desired} {} {}: {}", verdict.status.as_str(), verdict.reason, verdict.message),
            expected
        );
    }

    #[test]
    fn every_node_must_be_active() {
        check(vec![], false, "0/0 False NoNodes: nodes.selector selects no Ready node; correct it, or label nodes");
        check(vec![node("a", 9, Some("active"))], false, "1/1 True NodesActive: 1 of 1 nodes pull through the cache");
        check(
            vec![node("a", 9, Some("active")), node("b", 9, Some("Pending"))],
            true,
            "1/2 False NodesPending: waiting for b to pull through the cache",
        );
        check(
            vec![node("a", 9, Some("unheard"))],
            true,
            "0/1 False NodesPending: waiting for a to pull through the cache",
        );
        check(vec![node("a", 9, None)], true, "0/1 Unknown AgentSilent: no word from the agent of a; look at its Pod");
    }

    #[test]
    fn a_node_that_is_not_ready_is_not_desired() {
        let mut lost = node("b", 9, None);
        Arc::make_mut(&mut lost.facts).ready = false;
        check(
            vec![node("a", 9, Some("active")), lost],
            false,
            "1/1 True NodesActive: 1 of 1 nodes pull through the cache",
        );
    }

    #[test]
    fn young_nodes_are_waited_for_first_and_forgiven_later() {
        let nodes = || vec![node("a", 9, Some("active")), node("b", 4, Some("Pending")), node("c", 4, None)];
        check(nodes(), false, "1/3 Unknown AgentSilent: no word from the agent of c; look at its Pod");
        check(
            nodes(),
            true,
            "1/3 True NodesActive: 1 of 3 nodes pull through the cache; 2 younger than 5 minutes not yet",
        );
        check(
            vec![node("a", 1, Some("Pending"))],
            false,
            "0/1 False NodesPending: waiting for a to pull through the cache",
        );
    }

    #[test]
    fn an_agent_may_restart() {
        let nodes = |seconds: i64| {
            let mut silent = node("b", 9, None);
            silent.silent_since = Some(NOW.parse::<Timestamp>().unwrap() - SignedDuration::from_secs(seconds));
            vec![node("a", 9, Some("active")), silent]
        };
        let silent = "1/2 Unknown AgentSilent: no word from the agent of b; look at its Pod";
        let forgiven = "1/2 True NodesActive: 1 of 2 nodes pull through the cache; 1 not while the agent restarts";
        check(nodes(59), true, forgiven);
        check(nodes(60), true, silent);
        check(nodes(1), false, silent);
    }

    #[test]
    fn a_node_is_young_by_any_clock_that_is_about_right() {
        for (age, expected) in [(4, true), (-1, true), (6, false), (-2 * 60, false), (400 * 24 * 60, false)] {
            assert_eq!(is_young(&node("a", age, None).facts, NOW.parse().unwrap()), expected, "{age} minutes");
        }
    }

    #[test]
    fn nodes_that_bypass_or_fail_are_never_forgiven() {
        check(
            vec![node("a", 1, Some("Bypassed"))],
            true,
            "0/1 False NodesBypassed: a bypasses docker.io since 09:41Z: cache refused",
        );
        let many = ["a", "b", "c", "d", "e"].map(|name| node(name, 9, Some("Bypassed"))).to_vec();
        check(many, true, "0/5 False NodesBypassed: a, b, c and 2 more bypass docker.io since 09:41Z: cache refused");
        check(
            vec![node("a", 1, Some("Failed"))],
            true,
            "0/1 False NodesFailed: a cannot be configured for docker.io: cache refused; see kubectl describe mnode a",
        );
    }
}
