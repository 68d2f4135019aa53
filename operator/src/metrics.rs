//! The operator's own metrics. Labels are closed sets and names of mirrors; never a message or a path. `docs/operator-metrics.md` lists
//! all of it.

use crate::images::ImageMetrics;
use crate::startup::DEFINITIONS;
use breakwater_crds::{NodeCounts, RegistryMirror};
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::fmt;
use std::time::Instant;
use tokio::sync::watch;

/// What reconciling counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    duration: Histogram,
    runs: Family<ResultLabel, Counter>,
    errors: Family<ErrorLabels, Counter>,
    leader: Gauge,
    authority_ends: Gauge,
    lacking: Family<DefinitionLabel, Gauge>,
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are the label's values")]
pub enum Ended {
    /// The children are as they should be.
    done,
    /// Only a person can mend what is wrong with the mirror.
    refused,
    /// A step failed; it is tried again.
    failed,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: Ended,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DefinitionLabel {
    definition: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ErrorLabels {
    step: &'static str,
    category: &'static str,
}

impl Metrics {
    /// Registers all metrics. Each step with each category starts at zero, because a rate misses the first fault of a series that was
    /// not there.
    #[must_use]
    pub fn new(
        steps: &[&'static str],
        categories: &[&'static str],
        mirrors: MirrorConditions,
        images: ImageMetrics,
    ) -> Self {
        let mut registry = Registry::default();
        let duration = Histogram::new(exponential_buckets(0.001, 4.0, 8));
        let errors = Family::<ErrorLabels, Counter>::default();
        for &step in steps {
            for &category in categories {
                let _ = errors.get_or_create(&ErrorLabels { step, category });
            }
        }
        let runs = Family::<ResultLabel, Counter>::default();
        for result in [Ended::done, Ended::refused, Ended::failed] {
            let _ = runs.get_or_create(&ResultLabel { result });
        }
        let (leader, authority_ends) = (Gauge::default(), Gauge::default());
        registry.register(
            "breakwater_reconcile_duration_seconds",
            "Time one pass over one mirror took",
            duration.clone(),
        );
        registry.register(
            "breakwater_reconcile_runs",
            "Passes by how they ended; refused: only a person can mend what is wrong with the mirror",
            runs.clone(),
        );
        registry.register(
            "breakwater_reconcile_errors",
            "Failed passes by the step that failed and the kind of failure",
            errors.clone(),
        );
        registry.register("breakwater_leader", "Whether this operator leads; of several, one does", leader.clone());
        registry.register(
            "breakwater_certificate_authority_expiry_timestamp_seconds",
            "When the certificate authority of the caches ends, in seconds since 1970; 0 on a standby or without one",
            authority_ends.clone(),
        );
        let lacking = Family::<DefinitionLabel, Gauge>::default();
        for definition in DEFINITIONS {
            let _ = lacking.get_or_create(&DefinitionLabel { definition });
        }
        registry.register(
            "breakwater_definition_fields_lacking",
            "Fields that a CustomResourceDefinition lacks because it is older than this operator, and that are lost",
            lacking.clone(),
        );
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("breakwater_build", "The build of this operator", build);
        registry.register_collector(Box::new(mirrors));
        registry.register_collector(Box::new(images));
        Self { registry, duration, runs, errors, leader, authority_ends, lacking }
    }

    /// Measures one pass until the guard is dropped, so early returns and errors count too.
    pub fn pass(&self) -> impl Drop + use<> {
        Pass { duration: self.duration.clone(), start: Instant::now() }
    }

    /// Counts a pass.
    pub fn ended(&self, result: Ended) {
        self.runs.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts a pass that failed in `step`.
    pub fn failed(&self, step: &'static str, category: &'static str) {
        self.errors.get_or_create(&ErrorLabels { step, category }).inc();
    }

    /// From now on this operator leads.
    pub fn leads(&self) {
        self.leader.set(1);
    }

    /// From now on it stands by.
    pub fn stands_by(&self) {
        self.leader.set(0);
        self.authority_ends.set(0);
    }

    /// Says when the certificate authority ends.
    pub fn authority_ends(&self, end: jiff::Timestamp) {
        self.authority_ends.set(end.as_second());
    }

    /// Says how many fields a definition lacks.
    pub fn definition_lacks(&self, definition: &'static str, fields: usize) {
        self.lacking.get_or_create(&DefinitionLabel { definition }).set(i64::try_from(fields).unwrap_or(i64::MAX));
    }

    /// The text that a scrape gets.
    ///
    /// # Errors
    /// None in practice: writing to a string does not fail.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

struct Pass {
    duration: Histogram,
    start: Instant,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.duration.observe(self.start.elapsed().as_secs_f64());
    }
}

/// `breakwater_mirror_condition` and `breakwater_mirror_nodes`, computed at each scrape from the mirrors themselves: a deleted mirror leaves no series behind.
#[derive(Clone, Default)]
pub struct MirrorConditions(watch::Sender<Option<Store<DeserializeGuard<RegistryMirror>>>>);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ConditionLabels {
    name: String,
    r#type: String,
    status: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NodeLabels {
    name: String,
    state: &'static str,
}

impl MirrorConditions {
    fn all(&self) -> Vec<std::sync::Arc<DeserializeGuard<RegistryMirror>>> {
        self.0.borrow().as_ref().map(Store::state).unwrap_or_default()
    }

    /// Says where the mirrors are, once they are watched; a standby has none.
    pub fn watch(&self, mirrors: impl Into<Option<Store<DeserializeGuard<RegistryMirror>>>>) {
        self.0.send_replace(mirrors.into());
    }
}

impl fmt::Debug for MirrorConditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MirrorConditions")
    }
}

impl Collector for MirrorConditions {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "breakwater_mirror_condition",
            "Conditions of each RegistryMirror, 1 for the status it has",
            None,
            MetricType::Gauge,
        )?;
        for mirror in self.all() {
            let Ok(mirror) = &mirror.0 else { continue };
            for condition in mirror.status.iter().flat_map(|status| &status.conditions) {
                for status in ["True", "False", "Unknown"] {
                    let labels = ConditionLabels { name: mirror.name_any(), r#type: condition.type_.clone(), status };
                    let gauge = ConstGauge::new(i64::from(condition.status == status));
                    gauge.encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let mut family = encoder.encode_descriptor(
            "breakwater_mirror_nodes",
            "Nodes that each RegistryMirror selects, by how they use its cache",
            None,
            MetricType::Gauge,
        )?;
        for mirror in self.all() {
            let Ok(mirror) = &mirror.0 else { continue };
            // Without `..`: a new count cannot be forgotten here.
            let Some(NodeCounts { desired, active, bypassed, failed }) =
                mirror.status.as_ref().and_then(|status| status.nodes)
            else {
                continue;
            };
            for (state, count) in [("desired", desired), ("active", active), ("bypassed", bypassed), ("failed", failed)]
            {
                let labels = NodeLabels { name: mirror.name_any(), state };
                ConstGauge::new(i64::from(count)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::runtime::{reflector, watcher};

    fn mirror() -> RegistryMirror {
        serde_saphyr::from_str(
            "{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, metadata: {name: hub}, spec: {registry: docker.io},
              status: {nodes: {desired: 3, active: 2, bypassed: 1, failed: 0}, conditions: [{type: Ready, status: 'True', reason: Serving, message: '', lastTransitionTime: '2026-01-01T00:00:00Z'}]}}",
        )
        .unwrap()
    }

    #[test]
    fn conditions_are_read_from_the_mirrors_and_errors_start_at_zero() {
        let (store, mut writer) = reflector::store();
        let conditions = MirrorConditions::default();
        let metrics = Metrics::new(&["apply"], &["conflict"], conditions.clone(), ImageMetrics::default());
        let zero = "breakwater_reconcile_errors_total{step=\"apply\",category=\"conflict\"} 0";
        assert!(metrics.encode().unwrap().contains(zero));
        conditions.watch(store);
        writer.apply_watcher_event(&watcher::Event::Apply(DeserializeGuard(Ok(mirror()))));
        drop(metrics.pass());
        metrics.ended(Ended::refused);
        let text = metrics.encode().unwrap();
        assert!(text.contains("breakwater_mirror_condition{name=\"hub\",type=\"Ready\",status=\"True\"} 1"), "{text}");
        assert!(text.contains("breakwater_mirror_condition{name=\"hub\",type=\"Ready\",status=\"False\"} 0"), "{text}");
        assert!(text.contains("breakwater_reconcile_duration_seconds_count 1"), "{text}");
        assert!(text.contains("breakwater_build_info{version="), "{text}");
        assert!(text.contains("breakwater_reconcile_runs_total{result=\"refused\"} 1"), "{text}");
        assert!(text.contains("breakwater_mirror_nodes{name=\"hub\",state=\"active\"} 2"), "{text}");
    }

    #[test]
    fn the_page_lists_every_metric() {
        let (store, mut writer) = reflector::store();
        let conditions = MirrorConditions::default();
        conditions.watch(store);
        writer.apply_watcher_event(&watcher::Event::Apply(DeserializeGuard(Ok(mirror()))));
        let text = Metrics::new(&["apply"], &["conflict"], conditions, ImageMetrics::default()).encode().unwrap();
        let page = include_str!("../../docs/operator-metrics.md");
        let described: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' ')).collect();
        assert!(described.len() > 6, "{text}");
        for (name, help) in &described {
            let line = page.lines().find(|line| line.starts_with(&format!("| `{name}")));
            let help = help.trim_end_matches('.');
            assert!(line.is_some_and(|line| line.contains(help)), "docs/operator-metrics.md: must list {name}: {help}");
        }
        for line in page.lines().filter_map(|line| line.strip_prefix("| `")) {
            let name = line.split('`').next().unwrap();
            let known = |(known, _): &(&str, &str)| name.trim_end_matches("_total").trim_end_matches("_info") == *known;
            assert!(described.iter().any(known), "docs/operator-metrics.md: {name} is no metric any more");
        }
    }
}
