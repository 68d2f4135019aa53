//! Nodes, MirrorNodes and the agents' Pods as they are watched. Pure.

use super::{NodeFacts, Report};
use crate::slim::{Facts, Meta, Shared, Slim};
use breakwater_crds::{InactiveMirror, MirrorNode, MirrorNodeStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Two of them and a slash are as much as a cache takes for a platform, and more than any has.
const MOST_OF_WORD: usize = 60;

/// A Node.
pub type WatchedNode = Slim<Node, Arc<NodeFacts>>;
/// A MirrorNode; nothing while its agent has said nothing.
pub type WatchedReport = Slim<MirrorNode, Option<Arc<Report>>>;
/// An agent's Pod.
pub type WatchedAgent = Slim<Pod, AgentFacts>;

/// What is used of an agent's Pod.
#[derive(Clone, Debug)]
pub struct AgentFacts {
    /// Where it runs.
    pub(super) node: Option<Box<str>>,
    /// Whether it is Ready and stays.
    pub(super) ready: bool,
}

/// What reports of many nodes have in common, kept once.
#[derive(Debug, Default)]
pub struct Common {
    active: Shared<BTreeSet<String>>,
    inactive: Shared<InactiveMirror>,
}

impl Common {
    /// Has a report that was just parsed share what others say too.
    pub fn share(&mut self, report: &mut WatchedReport) {
        if let Some(report) = report.facts.as_mut().and_then(Arc::get_mut) {
            self.active.share(&mut report.active);
            report.inactive.iter_mut().for_each(|inactive| self.inactive.share(inactive));
        }
    }
}

impl Facts<Node> for Arc<NodeFacts> {
    type Spec = IgnoredAny;
    type Status = NodeStatus;

    fn of(metadata: &mut Meta, _: Option<IgnoredAny>, status: Option<NodeStatus>) -> Self {
        let NodeStatus { conditions, node_info } = status.unwrap_or_default();
        let is_told = |info: &NodeInfo| is_word(&info.operating_system) && is_word(&info.architecture);
        Self::new(NodeFacts {
            name: metadata.name.clone().unwrap_or_default(),
            labels: metadata.labels.take().unwrap_or_default(),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            platform: node_info.filter(is_told).map(|info| format!("{}/{}", info.operating_system, info.architecture)),
            ready: is_ready(conditions),
        })
    }
}

impl Facts<MirrorNode> for Option<Arc<Report>> {
    type Spec = IgnoredAny;
    type Status = MirrorNodeStatus;

    fn of(_: &mut Meta, _: Option<IgnoredAny>, status: Option<MirrorNodeStatus>) -> Self {
        status.map(|MirrorNodeStatus { active, inactive, .. }| {
            let active = Arc::new(active.into_iter().collect());
            Arc::new(Report { active, inactive: inactive.into_iter().map(Arc::new).collect() })
        })
    }
}

impl Facts<Pod> for AgentFacts {
    type Spec = PodSpec;
    type Status = PodStatus;

    fn of(metadata: &mut Meta, spec: Option<PodSpec>, status: Option<PodStatus>) -> Self {
        let ready = metadata.deletion_timestamp.is_none() && is_ready(status.and_then(|status| status.conditions));
        Self { node: spec.and_then(|spec| spec.node_name), ready }
    }
}

/// Whether a cache takes it for a part of a platform. A node says what it likes, and one word that is none would have every cache refuse the
/// pins of all images.
fn is_word(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MOST_OF_WORD).contains(&text.len()) && text.bytes().all(is_plain)
}

fn is_ready(conditions: Option<Vec<Condition>>) -> bool {
    conditions.into_iter().flatten().any(|condition| condition.r#type == "Ready" && condition.status == "True")
}

/// What is parsed of a Node's status.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    conditions: Option<Vec<Condition>>,
    node_info: Option<NodeInfo>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeInfo {
    #[serde(default)]
    operating_system: String,
    #[serde(default)]
    architecture: String,
}

/// What is parsed of a Pod's spec.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    node_name: Option<Box<str>>,
}

/// What is parsed of a Pod's status.
#[derive(Deserialize)]
pub struct PodStatus {
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
struct Condition {
    r#type: String,
    status: String,
}
