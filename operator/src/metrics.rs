//! The operator's own metrics. Labels are closed sets and names of mirrors; never a message or a path.

use crate::images::ImageMetrics;
use breakwater_crds::RegistryMirror;
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::OnceLock;
use std::time::Instant;

/// What reconciling counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    duration: Histogram,
    errors: Family<StepLabel, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StepLabel {
    step: &'static str,
}

impl Metrics {
    /// Registers all metrics. `steps` start at zero, because a rate misses the first fault of a series that was not there.
    #[must_use]
    pub fn new(steps: &[&'static str], mirrors: MirrorConditions, images: ImageMetrics) -> Self {
        let mut registry = Registry::default();
        let duration = Histogram::new(exponential_buckets(0.001, 4.0, 8));
        let errors = Family::<StepLabel, Counter>::default();
        for &step in steps {
            let _ = errors.get_or_create(&StepLabel { step });
        }
        registry.register(
            "breakwater_reconcile_duration_seconds",
            "Time one pass over one mirror took",
            duration.clone(),
        );
        registry.register("breakwater_reconcile_errors", "Failed passes by the step that failed", errors.clone());
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("breakwater_build", "The build of this operator", build);
        registry.register_collector(Box::new(mirrors));
        registry.register_collector(Box::new(images));
        Self { registry, duration, errors }
    }

    /// Measures one pass until the guard is dropped, so early returns and errors count too.
    pub fn pass(&self) -> impl Drop + use<> {
        Pass { duration: self.duration.clone(), start: Instant::now() }
    }

    /// Counts a pass that failed in `step`.
    pub fn failed(&self, step: &'static str) {
        self.errors.get_or_create(&StepLabel { step }).inc();
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

/// `breakwater_mirror_condition`, computed at each scrape from the mirrors themselves: a deleted mirror leaves no series behind.
#[derive(Clone, Default)]
pub struct MirrorConditions(std::sync::Arc<OnceLock<Store<DeserializeGuard<RegistryMirror>>>>);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ConditionLabels {
    name: String,
    r#type: String,
    status: &'static str,
}

impl MirrorConditions {
    /// Says where the mirrors are, once they are watched; a standby has none.
    pub fn watch(&self, mirrors: Store<DeserializeGuard<RegistryMirror>>) {
        let _ = self.0.set(mirrors);
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
        for mirror in self.0.get().map(Store::state).unwrap_or_default() {
            let Ok(mirror) = &mirror.0 else { continue };
            for condition in mirror.status.iter().flat_map(|status| &status.conditions) {
                for status in ["True", "False", "Unknown"] {
                    let labels = ConditionLabels { name: mirror.name_any(), r#type: condition.type_.clone(), status };
                    let gauge = ConstGauge::new(i64::from(condition.status == status));
                    gauge.encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::runtime::{reflector, watcher};

    #[test]
    fn conditions_are_read_from_the_mirrors_and_errors_start_at_zero() {
        let (store, mut writer) = reflector::store();
        let conditions = MirrorConditions::default();
        let metrics = Metrics::new(&["apply"], conditions.clone(), ImageMetrics::default());
        assert!(metrics.encode().unwrap().contains("breakwater_reconcile_errors_total{step=\"apply\"} 0"));
        conditions.watch(store);
        let mirror: RegistryMirror = serde_saphyr::from_str(
            "{apiVersion: breakwater.dev/v1alpha1, kind: RegistryMirror, metadata: {name: hub}, spec: {registry: docker.io},
              status: {conditions: [{type: Ready, status: 'True', reason: Serving, message: '', lastTransitionTime: '2026-01-01T00:00:00Z'}]}}",
        )
        .unwrap();
        writer.apply_watcher_event(&watcher::Event::Apply(DeserializeGuard(Ok(mirror))));
        drop(metrics.pass());
        let text = metrics.encode().unwrap();
        assert!(text.contains("breakwater_mirror_condition{name=\"hub\",type=\"Ready\",status=\"True\"} 1"), "{text}");
        assert!(text.contains("breakwater_mirror_condition{name=\"hub\",type=\"Ready\",status=\"False\"} 0"), "{text}");
        assert!(text.contains("breakwater_reconcile_duration_seconds_count 1"), "{text}");
        assert!(text.contains("breakwater_build_info{version="), "{text}");
    }
}
