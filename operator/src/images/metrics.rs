//! `breakwater_images_*`, computed at each scrape from what is known: a deleted mirror leaves no series behind.

use super::keeper::Surveys;
use breakwater_crds::conditions::reason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use std::collections::BTreeMap;
use std::fmt;
use tokio::sync::watch;

/// Figures about the images in use.
#[derive(Clone, Debug, Default)]
pub struct ImageMetrics(watch::Sender<Option<Surveys>>);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MirrorLabel {
    name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ExposedLabels {
    name: String,
    reason: &'static str,
}

impl ImageMetrics {
    /// Says where the figures are, once there are any; a standby has none.
    pub fn watch(&self, surveys: impl Into<Option<Surveys>>) {
        self.0.send_replace(surveys.into());
    }
}

fn gauge<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (L, usize)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

impl Collector for ImageMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let survey = self.0.borrow().as_ref().map(|surveys| surveys.borrow().clone()).unwrap_or_default();
        let label = |mirror: &String| MirrorLabel { name: mirror.clone() };
        let in_use = survey.in_use.iter().map(|(mirror, in_use)| (label(mirror), *in_use));
        gauge(&mut encoder, "breakwater_images_in_use", "Images in use of each mirror's registry", in_use)?;
        let survivable = survey.mirrors.iter().map(|(mirror, report)| (label(mirror), report.survivable()));
        let help =
            "Images in use that would survive the loss of their registry; absent while no replica of the cache tells";
        gauge(&mut encoder, "breakwater_images_survivable", help, survivable)?;
        let mut exposed = BTreeMap::new();
        for (mirror, report) in &survey.mirrors {
            for image in &report.exposed {
                *exposed.entry((mirror.clone(), image.reason)).or_default() += 1;
            }
        }
        exposed.extend(survey.not_mirrored.map(|count| ((String::new(), reason::NOT_MIRRORED), count)));
        let exposed = exposed.into_iter().map(|((name, reason), count)| (ExposedLabels { name, reason }, count));
        let help = "Images in use that would not, by the reason; those of no mirror are NotMirrored";
        gauge(&mut encoder, "breakwater_images_exposed", help, exposed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::{Exposed, ImageName, ImagesReport, Survey};
    use prometheus_client::registry::Registry;
    use std::sync::Arc;
    use tokio::sync::watch;

    #[test]
    fn figures_stand_by_mirror_and_reason() {
        let image = |name: &str| ImageName::parse(name).unwrap();
        let exposed = |name| Exposed { image: image(name), reason: reason::NOT_FOUND, message: None, since: None };
        let report = ImagesReport { in_use: 5, exposed: vec![exposed("a"), exposed("b")], ..ImagesReport::default() };
        let survey = Survey {
            mirrors: [("hub".to_owned(), Arc::new(report))].into(),
            in_use: [("hub".to_owned(), 5), ("silent".to_owned(), 7)].into(),
            not_mirrored: Some(3),
        };
        let (_publish, surveys) = watch::channel(Arc::new(survey));
        let metrics = ImageMetrics::default();
        metrics.watch(surveys);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(metrics));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "breakwater_images_in_use{name=\"hub\"} 5",
            "breakwater_images_survivable{name=\"hub\"} 3",
            "breakwater_images_exposed{name=\"hub\",reason=\"NotFound\"} 2",
            "breakwater_images_exposed{name=\"\",reason=\"NotMirrored\"} 3",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(text.contains("breakwater_images_in_use{name=\"silent\"} 7"), "{text}");
        assert!(!text.contains("breakwater_images_survivable{name=\"silent\"}"), "nobody knows: {text}");
    }
}
