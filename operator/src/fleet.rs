//! The nodes as the mirrors' status needs them: one plain picture of Nodes, their agents' Pods and MirrorNodes. Pure.
//!
//! Nodes are many and something changes on one of them all the time, so the picture shares what the watches keep, and says what of it is news.

mod watched;

use breakwater_crds::InactiveMirror;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Resource;
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
pub use watched::{AgentFacts, Common, WatchedAgent, WatchedNode, WatchedReport};

/// All nodes, sorted by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fleet {
    /// Each node once.
    pub nodes: Vec<NodeView>,
}

/// One node and what its agent says.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    /// The node.
    pub facts: Arc<NodeFacts>,
    /// What its agent says; absent while the agent's Pod is not Ready, because what it said before may be long gone.
    pub report: Option<Arc<Report>>,
    /// Since when it says nothing; absent while it does, and where it was never heard.
    pub silent_since: Option<Timestamp>,
}

/// What is used of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it joined.
    pub created: Option<Timestamp>,
    /// What it runs, as `os/architecture`; absent until its kubelet has said so.
    pub platform: Option<String>,
    /// Whether its kubelet says that it works.
    pub ready: bool,
}

/// What an agent says of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Registries that the node pulls through their cache.
    pub active: Arc<BTreeSet<String>>,
    /// Mirrors that are not active there, and why.
    pub inactive: Vec<Arc<InactiveMirror>>,
}

/// What is other than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Nodes, or whether their agents are there.
    Nodes,
    /// Only what agents say of these registries; it may be none.
    Registries(BTreeSet<String>),
}

impl Fleet {
    /// Joins the three kinds of objects by the node's name.
    pub fn of<N, M, P>(nodes: &[N], reports: &[M], agents: &[P]) -> Self
    where
        N: Borrow<WatchedNode>,
        M: Borrow<WatchedReport>,
        P: Borrow<WatchedAgent>,
    {
        let agents = agents.iter().map(|agent| &agent.borrow().facts).filter(|agent| agent.ready);
        let live: HashSet<&str> = agents.filter_map(|agent| agent.node.as_deref()).collect();
        Self::joined(nodes, reports, |node| live.contains(node))
    }

    /// All that agents ever said, whether they are there or not: who looks for the first time takes it for what came before.
    pub fn ever_heard<N: Borrow<WatchedNode>, M: Borrow<WatchedReport>>(nodes: &[N], reports: &[M]) -> Self {
        Self::joined(nodes, reports, |_| true)
    }

    fn joined<N, M>(nodes: &[N], reports: &[M], is_live: impl Fn(&str) -> bool) -> Self
    where
        N: Borrow<WatchedNode>,
        M: Borrow<WatchedReport>,
    {
        let reports = reports.iter().map(Borrow::borrow);
        let reports: HashMap<&str, &Arc<Report>> =
            reports.filter_map(|report| Some((report.meta().name.as_deref()?, report.facts.as_ref()?))).collect();
        let view = |node: &N| {
            let facts = node.borrow().facts.clone();
            let report = reports.get(&*facts.name).filter(|_| is_live(&facts.name));
            NodeView { report: report.map(|report| Arc::clone(report)), facts, silent_since: None }
        };
        let mut nodes: Vec<_> = nodes.iter().map(view).collect();
        nodes.sort_by(|a, b| a.facts.name.cmp(&b.facts.name));
        Self { nodes }
    }

    /// The same, with the time since when those are silent who said something in `before`.
    #[must_use]
    pub fn after(mut self, before: &Self, now: Timestamp) -> Self {
        for view in self.nodes.iter_mut().filter(|view| view.report.is_none()) {
            let was = before.node(&view.facts.name);
            view.silent_since = was.and_then(|was| was.report.as_ref().map(|_| now).or(was.silent_since));
        }
        self
    }

    /// The node with this name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeView> {
        self.nodes.binary_search_by(|node| node.facts.name.as_str().cmp(name)).ok().map(|index| &self.nodes[index])
    }

    /// What is other than in `before`.
    #[must_use]
    pub fn news_since(&self, before: &Self) -> News {
        let mut registries = BTreeSet::new();
        if self.nodes.len() != before.nodes.len() {
            return News::Nodes;
        }
        for (new, old) in self.nodes.iter().zip(&before.nodes) {
            if !Arc::ptr_eq(&new.facts, &old.facts) && new.facts != old.facts {
                return News::Nodes;
            }
            match (&new.report, &old.report) {
                (Some(new), Some(old)) if Arc::ptr_eq(new, old) => {}
                (Some(new), Some(old)) => registries.extend(new.others_than(old).map(str::to_owned)),
                (None, None) => {}
                _ => return News::Nodes,
            }
        }
        News::Registries(registries)
    }
}

impl Report {
    /// The registries of which the two do not say the same.
    fn others_than<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        let is_same = Arc::ptr_eq(&self.active, &other.active);
        let active = (!is_same).then(|| self.active.symmetric_difference(&other.active));
        let only_in = |ours: &'a [Arc<InactiveMirror>], theirs: &'a [Arc<InactiveMirror>]| {
            ours.iter().filter(move |one| !theirs.contains(one)).map(|one| one.registry.as_str())
        };
        let inactive = only_in(&self.inactive, &other.inactive).chain(only_in(&other.inactive, &self.inactive));
        active.into_iter().flatten().map(String::as_str).chain(inactive)
    }
}

/// Whether a Pod is Ready and stays.
#[must_use]
pub fn pod_is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::parse;

    const READY: &str = "status: {conditions: [{type: Ready, status: 'True'}]}";

    fn report(yaml: &str) -> WatchedReport {
        parse(&format!("{{metadata: {{name: n1}}, status: {{{yaml}}}}}"))
    }

    #[test]
    fn a_report_counts_only_while_the_agent_is_ready() {
        let node: WatchedNode = parse(&format!("{{metadata: {{name: n1, labels: {{a: b}}}}, {READY}}}"));
        let lost: WatchedNode = parse("{metadata: {name: n0}, status: {conditions: [{type: Ready, status: Unknown}]}}");
        let report = report("active: [docker.io]");
        let agent = |more: &str| -> WatchedAgent {
            parse(&format!("{{metadata: {{name: p{more}}}, spec: {{nodeName: n1, containers: []}}, {READY}}}"))
        };
        let fleet = Fleet::of(&[node.clone(), lost], std::slice::from_ref(&report), &[agent("")]);
        let names: Vec<_> = fleet.nodes.iter().map(|node| (node.facts.name.as_str(), node.facts.ready)).collect();
        assert_eq!(names, [("n0", false), ("n1", true)]);
        assert_eq!(fleet.node("n1").unwrap().facts.labels["a"], "b");
        assert!(fleet.node("n1").unwrap().report.as_ref().unwrap().active.contains("docker.io"));
        let leaving = agent(", deletionTimestamp: '2026-11-21T10:00:00Z'");
        let without = Fleet::of(&[node], &[report], &[leaving]);
        assert_eq!(without.node("n1").unwrap().report, None);
        assert_eq!(without.news_since(&fleet), News::Nodes);
    }

    #[test]
    fn a_node_has_a_platform_if_a_cache_would_take_it() {
        let platform = |architecture: &str| {
            let info = format!("{{operatingSystem: linux, architecture: '{architecture}'}}");
            parse::<WatchedNode>(&format!("{{metadata: {{name: n1}}, status: {{nodeInfo: {info}}}}}"))
                .facts
                .platform
                .clone()
        };
        assert_eq!(platform("arm64").as_deref(), Some("linux/arm64"));
        for none in ["", "amd 64", "amd64/v1/x", "ä", &"x".repeat(61)] {
            assert_eq!(platform(none), None, "{none}");
        }
    }

    #[test]
    fn the_silence_of_who_was_heard_has_a_beginning() {
        let at = |minute: i64| Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_mins(minute);
        let fleet = |report: Option<Report>| {
            let facts = Arc::new(NodeFacts { name: "n1".to_owned(), ..NodeFacts::default() });
            Fleet { nodes: vec![NodeView { facts, report: report.map(Arc::new), silent_since: None }] }
        };
        let silent_since = |fleet: &Fleet| fleet.nodes[0].silent_since;
        let never = fleet(None).after(&Fleet::default(), at(0)).after(&fleet(None), at(1));
        assert_eq!(silent_since(&never), None);
        let silent = fleet(None).after(&fleet(Some(Report::default())), at(2));
        assert_eq!(silent_since(&fleet(None).after(&silent, at(3))), Some(at(2)));
        assert_eq!(silent_since(&fleet(Some(Report::default())).after(&silent, at(3))), None);
    }

    #[test]
    fn to_a_new_operator_an_agent_that_is_away_fell_silent_just_now() {
        let nodes: [WatchedNode; 2] =
            ["n1", "n2"].map(|name| parse(&format!("{{metadata: {{name: {name}}}, {READY}}}")));
        let reports = [report("active: [docker.io]")];
        let fleet = Fleet::of(&nodes, &reports, &[] as &[WatchedAgent]);
        let first = fleet.after(&Fleet::ever_heard(&nodes, &reports), Timestamp::UNIX_EPOCH);
        let silent: Vec<_> = first.nodes.iter().map(|view| (view.report.is_some(), view.silent_since)).collect();
        assert_eq!(silent, [(false, Some(Timestamp::UNIX_EPOCH)), (false, None)], "the second never said anything");
    }

    #[test]
    fn news_names_the_registries_that_nodes_speak_of_otherwise() {
        let fleet = |label: &str, yaml: &str| {
            let node: WatchedNode = parse(&format!("{{metadata: {{name: n1, labels: {{a: {label}}}}}, {READY}}}"));
            let agent: WatchedAgent = parse(&format!("{{metadata: {{name: p}}, spec: {{nodeName: n1}}, {READY}}}"));
            Fleet::of(&[node], &[report(yaml)], &[agent])
        };
        let news = |before: &str, after: &str| match fleet("b", after).news_since(&fleet("b", before)) {
            News::Nodes => panic!("the node is the same"),
            News::Registries(registries) => registries.into_iter().collect::<Vec<_>>().join(" "),
        };
        let bypassed = |message: &str| {
            format!(
                "active: [a, b], inactive: [{{registry: c, state: Bypassed, reason: R, message: {message}, since: '2026-11-21T10:00:00Z'}}]"
            )
        };
        assert_eq!(news("active: [a, b, c]", "active: [a, b, c]"), "");
        assert_eq!(news("active: [a, b, c]", "active: [a, d]"), "b c d");
        assert_eq!(news("active: [a, b, c]", &bypassed("x")), "c");
        assert_eq!(news(&bypassed("x"), &bypassed("x")), "");
        assert_eq!(news(&bypassed("x"), &bypassed("y")), "c");
        assert_eq!(fleet("other", "").news_since(&fleet("b", "")), News::Nodes);
    }

    #[test]
    fn reports_of_older_and_newer_agents_count() {
        let said = |yaml: &str| report(yaml).facts.unwrap();
        assert_eq!(*said(""), Report::default());
        assert!(said("active: [a]").active.contains("a"), "what a later agent adds is not there");
        let newer = "aNewField: {x: [1]}, active: [a], \
                     inactive: [{registry: b, state: Pending, reason: R, since: '2026-11-21T10:00:00Z', aNewField: 1}]";
        assert_eq!((said(newer).active.len(), said(newer).inactive.len()), (1, 1));
    }

    #[test]
    fn reports_share_what_they_have_in_common() {
        let mut common = Common::default();
        let mut shared = |yaml: &str| {
            let mut report = report(yaml);
            common.share(&mut report);
            report.facts.unwrap()
        };
        let inactive = "inactive: [{registry: c, state: Failed, reason: R, since: '2026-11-21T10:00:00Z'}]";
        let (one, two) = (shared(&format!("active: [a], {inactive}")), shared(&format!("active: [a], {inactive}")));
        assert!(Arc::ptr_eq(&one.active, &two.active) && Arc::ptr_eq(&one.inactive[0], &two.inactive[0]));
        assert!(!Arc::ptr_eq(&one.active, &shared("active: [b]").active));
    }
}
