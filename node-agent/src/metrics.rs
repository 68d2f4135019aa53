//! What the agent tells Prometheus, rendered anew for each scrape: a mirror that is gone leaves no series behind. Labels are
//! registries that this node mirrors and closed sets, never a repository or a digest. `docs/node-metrics.md` lists all of it.

use crate::relay::{Standing, Traffic, View};
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

/// What the agent did and found, as of its last turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Where the relay listens; None: its port is taken.
    pub listening: Option<SocketAddr>,
    /// Whether the runtime was seen to read every file that is in place.
    pub proven: bool,
    /// Mirrors by state, as the `MirrorNode` says.
    pub mirrors: BTreeMap<&'static str, usize>,
    /// Registries by how their `hosts.toml` stands.
    pub files: BTreeMap<&'static str, usize>,
    /// Times that a `hosts.toml` was written.
    pub written: u64,
    /// Times that one was given back.
    pub given_back: u64,
    /// Times that one was found otherwise than left.
    pub mended: u64,
    /// Fields of the status that the API server's definition lacks.
    pub lacking: usize,
}

/// What is true now.
#[derive(Debug)]
pub struct Now<'a> {
    /// The last turn.
    pub tally: &'a Tally,
    /// How each cache stands.
    pub views: &'a BTreeMap<String, View>,
    /// What each was asked for.
    pub traffic: &'a BTreeMap<String, Traffic>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Of {
    registry: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfWith {
    registry: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct In {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Did {
    action: &'static str,
}

/// The text that a scrape gets.
///
/// # Errors
/// None in practice: writing to a string does not fail.
pub fn text(now: &Now<'_>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("breakwater");
    describe_relay(&mut registry, now);
    describe_node(&mut registry, now.tally);
    registry.register("build", "What is running", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn describe_relay(to: &mut Registry, now: &Now<'_>) {
    let (requests, cuts, bytes, pods, up) = (
        Family::<OfWith, Counter>::default(),
        Family::<Of, Counter>::default(),
        Family::<Of, Counter>::default(),
        Family::<OfPods, Gauge>::default(),
        Family::<Of, Gauge>::default(),
    );
    for (registry, traffic) in now.traffic {
        let Traffic { served, absent, unserved, cut, bytes: sent } = *traffic;
        for (outcome, count) in [("served", served), ("absent", absent), ("unserved", unserved)] {
            requests.get_or_create(&OfWith { registry: registry.clone(), outcome }).inc_by(count);
        }
        cuts.get_or_create(&Of { registry: registry.clone() }).inc_by(cut);
        bytes.get_or_create(&Of { registry: registry.clone() }).inc_by(sent);
    }
    for (registry, view) in now.views {
        up.get_or_create(&Of { registry: registry.clone() }).set((view.standing == Standing::In).into());
        for (state, count) in [("answering", view.answering), ("silent", view.pods - view.answering)] {
            pods.get_or_create(&OfPods { registry: registry.clone(), state }).set(number(count));
        }
    }
    to.register(
        "relay_requests",
        "Requests of the container runtime: served by the cache; absent: answered with 404; unserved: sent to the upstream",
        requests,
    );
    to.register("relay_cuts", "Answers that broke off for good, so that the runtime goes on at the upstream", cuts);
    to.register("relay_sent_bytes", "Bytes of content passed on to the container runtime", bytes);
    to.register("relay_cache_up", "Whether pulls go through the cache; if not, they go to the upstream", up);
    to.register("relay_cache_pods", "Pods of the cache whose address is known, by whether they answer this node", pods);
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfPods {
    registry: String,
    state: &'static str,
}

fn describe_node(to: &mut Registry, tally: &Tally) {
    let Tally { listening, proven, mirrors, files, written, given_back, mended, lacking } = tally;
    let gauge = |value: i64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        gauge
    };
    to.register(
        "relay_listening",
        "Whether the relay listens; if not, every file is given back",
        gauge(listening.is_some().into()),
    );
    to.register(
        "node_runtime_proven",
        "Whether the container runtime was seen to read every hosts.toml that is in place",
        gauge((*proven).into()),
    );
    let states = |counts: &BTreeMap<&'static str, usize>| {
        let family = Family::<In, Gauge>::default();
        for (state, count) in counts {
            family.get_or_create(&In { state }).set(number(*count));
        }
        family
    };
    to.register(
        "node_mirrors",
        "Mirrors that select this node, by the state that its MirrorNode tells",
        states(mirrors),
    );
    to.register(
        "node_files",
        "Registries by how their hosts.toml stands; failed: it cannot be written; stuck: it cannot be given back",
        states(files),
    );
    let actions = Family::<Did, Counter>::default();
    for (action, count) in [("written", written), ("given_back", given_back), ("mended", mended)] {
        actions.get_or_create(&Did { action }).inc_by(*count);
    }
    to.register(
        "node_file_actions",
        "Changes of hosts.toml files; mended: found otherwise than left and merged anew",
        actions,
    );
    to.register(
        "node_definition_fields_lacking",
        "Fields that the definition of MirrorNodes lacks because it is older than this agent, and that are lost",
        gauge(number(*lacking)),
    );
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape() -> String {
        let tally = Tally {
            listening: Some(([127, 0, 0, 1], 429).into()),
            mirrors: [("active", 1)].into(),
            files: [("placed", 1), ("failed", 2)].into(),
            written: 3,
            lacking: 2,
            ..Tally::default()
        };
        let view = View { standing: Standing::Out, pods: 2, answering: 1, trouble: None, uselessness: None };
        let traffic = Traffic { served: 4, absent: 5, unserved: 6, cut: 1, bytes: 7 };
        let (views, traffic) = ([("docker.io".to_owned(), view)].into(), [("docker.io".to_owned(), traffic)].into());
        text(&Now { tally: &tally, views: &views, traffic: &traffic }).unwrap()
    }

    #[test]
    fn what_is_told_is_what_is_true() {
        let text = scrape();
        for line in [
            r#"breakwater_relay_requests_total{registry="docker.io",outcome="unserved"} 6"#,
            r#"breakwater_relay_cuts_total{registry="docker.io"} 1"#,
            r#"breakwater_relay_sent_bytes_total{registry="docker.io"} 7"#,
            r#"breakwater_relay_cache_up{registry="docker.io"} 0"#,
            r#"breakwater_relay_cache_pods{registry="docker.io",state="silent"} 1"#,
            "breakwater_relay_listening 1",
            "breakwater_node_runtime_proven 0",
            r#"breakwater_node_mirrors{state="active"} 1"#,
            r#"breakwater_node_files{state="failed"} 2"#,
            r#"breakwater_node_file_actions_total{action="written"} 3"#,
            "breakwater_node_definition_fields_lacking 2",
        ] {
            assert!(text.lines().any(|told| told == line), "{line}\n{text}");
        }
    }

    /// The page is the text's own comments as a table.
    #[test]
    fn every_metric_is_documented() {
        let page = include_str!("../../docs/node-metrics.md");
        let text = scrape();
        let described: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' ')).collect();
        assert!(described.len() >= 9, "{text}");
        for (name, help) in described {
            let line = page.lines().find(|line| line.contains(&format!("`{name}")));
            assert!(line.is_some_and(|line| line.contains(help)), "docs/node-metrics.md: must list {name}: {help}");
        }
    }
}
