//! The nodes as the mirrors' status needs them: one plain picture of Nodes, their agents' Pods and MirrorNodes. Pure.

use breakwater_crds::{InactiveMirror, MirrorNode};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

/// All nodes, sorted by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fleet {
    /// Each node once.
    pub nodes: Vec<NodeView>,
}

/// One node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
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
    /// What its agent says; absent while the agent's Pod is not Ready, because what it said before may be long gone.
    pub report: Option<Report>,
}

/// What an agent says of its node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Registries that the node pulls through their cache.
    pub active: BTreeSet<String>,
    /// Mirrors that are not active there, and why.
    pub inactive: Vec<InactiveMirror>,
}

impl Fleet {
    /// Joins the three kinds of objects by the node's name.
    pub fn of<N, M, P>(nodes: &[N], mirror_nodes: &[M], agents: &[P]) -> Self
    where
        N: Borrow<Node>,
        M: Borrow<MirrorNode>,
        P: Borrow<Pod>,
    {
        let live: BTreeSet<&str> = agents
            .iter()
            .map(Borrow::borrow)
            .filter(|pod| pod_is_ready(pod))
            .filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref())
            .collect();
        let reports: BTreeMap<String, &MirrorNode> =
            mirror_nodes.iter().map(Borrow::borrow).map(|report| (report.name_any(), report)).collect();
        let mut nodes: Vec<_> = nodes
            .iter()
            .map(Borrow::borrow)
            .map(|node| {
                let name = node.name_any();
                let report = reports.get(&name).filter(|_| live.contains(name.as_str()));
                NodeView {
                    report: report.and_then(|report| report.status.as_ref()).map(|status| Report {
                        active: status.active.iter().cloned().collect(),
                        inactive: status.inactive.clone(),
                    }),
                    labels: node.labels().clone(),
                    created: node.metadata.creation_timestamp.as_ref().map(|time| time.0),
                    platform: node_platform(node),
                    ready: node_is_ready(node),
                    name,
                }
            })
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Self { nodes }
    }

    /// The node with this name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeView> {
        self.nodes.binary_search_by(|node| node.name.as_str().cmp(name)).ok().map(|index| &self.nodes[index])
    }
}

/// Whether a Pod is Ready and stays.
#[must_use]
pub fn pod_is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn node_platform(node: &Node) -> Option<String> {
    let info = node.status.as_ref()?.node_info.as_ref()?;
    let is_told = !info.operating_system.is_empty() && !info.architecture.is_empty();
    is_told.then(|| format!("{}/{}", info.operating_system, info.architecture))
}

fn node_is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn a_report_counts_only_while_the_agent_is_ready() {
        let node: Node =
            parse("{metadata: {name: n1, labels: {a: b}}, status: {conditions: [{type: Ready, status: 'True'}]}}");
        let lost: Node = parse("{metadata: {name: n0}, status: {conditions: [{type: Ready, status: Unknown}]}}");
        let report: MirrorNode = parse(
            "{apiVersion: breakwater.dev/v1alpha1, kind: MirrorNode, metadata: {name: n1}, status: {active: [docker.io]}}",
        );
        let agent = |ready: &str| -> Pod {
            parse(&format!(
                "{{metadata: {{name: p}}, spec: {{nodeName: n1, containers: []}}, \
                            status: {{conditions: [{{type: Ready, status: '{ready}'}}]}}}}"
            ))
        };
        let fleet = Fleet::of(&[node.clone(), lost], std::slice::from_ref(&report), &[agent("True")]);
        assert_eq!(
            fleet.nodes.iter().map(|n| (n.name.as_str(), n.ready)).collect::<Vec<_>>(),
            [("n0", false), ("n1", true)]
        );
        assert!(fleet.node("n1").unwrap().report.as_ref().unwrap().active.contains("docker.io"));
        assert_eq!(Fleet::of(&[node], &[report], &[agent("False")]).node("n1").unwrap().report, None);
    }
}
