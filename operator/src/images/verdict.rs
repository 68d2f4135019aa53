//! Which images would survive the loss of their registry, by what the replicas of a cache say. Pure.
//!
//! One replica that holds all of an image is enough: nodes go on to the next replica, and replicas ask each other.

use super::line::PinReport;
use super::reference::ImageName;
use super::wanted::Wanted;
use breakwater_crds::conditions::reason;
use breakwater_crds::{NodeBootstrap, RegistryMirrorSpec, StaleAction};
use jiff::Timestamp;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// How the images of a mirror fare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImagesReport {
    /// Images in use or asked for.
    pub in_use: usize,
    /// Those that would not survive, in the order of their names.
    pub exposed: Vec<Exposed>,
    /// Those that have been exposed for so long that somebody should look.
    pub lasting: BTreeSet<ImageName>,
}

/// An image that would not survive the loss of its registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// Which.
    pub image: ImageName,
    /// One of the reasons.
    pub reason: &'static str,
    /// What the cache says, if it says anything.
    pub message: Option<String>,
    /// Since when it would not; absent until [`super::keeper`] has looked.
    pub since: Option<Timestamp>,
}

impl ImagesReport {
    /// How many would survive.
    #[must_use]
    pub fn survivable(&self) -> usize {
        self.in_use.saturating_sub(self.exposed.len())
    }
}

/// Judges the images of one mirror by the answers of those replicas that answer. None while no replica does.
pub(super) fn judge(spec: &RegistryMirrorSpec, wanted: &Wanted, replicas: &[&[PinReport]]) -> Option<ImagesReport> {
    if replicas.is_empty() {
        return None;
    }
    let replicas: Vec<HashMap<&str, &PinReport>> =
        replicas.iter().map(|reports| reports.iter().map(|report| (report.image.as_str(), report)).collect()).collect();
    let platforms: HashMap<_, _> = wanted.pins.iter().map(|pin| (pin.image.as_str(), &pin.platforms)).collect();
    let exposed = wanted.counted.iter().filter_map(|(image, is_bootstrap)| {
        let found = match platforms.get(image.pin()) {
            Some(platforms) => {
                // A replica that was asked for other platforms does not speak of this pin.
                let reports = replicas.iter().filter_map(|replica| replica.get(image.pin()).copied());
                judge_image(reports.filter(|report| report.platforms == **platforms), spec)
            }
            None => Some((reason::NO_SPACE, Some("a cache pins 10000 images at most".to_owned()))),
        };
        let found = found.or_else(|| exposed_by_policy(image, *is_bootstrap, spec).map(|reason| (reason, None)));
        found.map(|(reason, message)| Exposed { image: image.clone(), reason, message, since: None })
    });
    Some(ImagesReport { in_use: wanted.counted.len(), exposed: exposed.collect(), lasting: BTreeSet::new() })
}

/// Why no replica holds the image: what the first one says that can tell.
fn judge_image<'a>(
    reports: impl Iterator<Item = &'a PinReport>,
    spec: &RegistryMirrorSpec,
) -> Option<(&'static str, Option<String>)> {
    let mut why = None;
    for report in reports {
        if report.is_held(!spec.images.platforms.is_empty()) {
            return None;
        }
        let said = report.error.as_deref().map(|error| (reason_of(error), report.message.clone()));
        why = why.or(said);
    }
    why.or(Some((reason::INCOMPLETE, None)))
}

/// What would keep nodes from pulling an image although the cache holds it.
fn exposed_by_policy(image: &ImageName, is_bootstrap: bool, spec: &RegistryMirrorSpec) -> Option<&'static str> {
    let freshness = &spec.freshness;
    let tags_expire = freshness.on_error.unreachable == StaleAction::Deny || freshness.max_stale == Duration::ZERO;
    if !image.is_by_digest() && tags_expire {
        return Some(reason::TAGS_EXPIRE);
    }
    (is_bootstrap && spec.images.node_bootstrap == NodeBootstrap::Exposed).then_some(reason::NODE_BOOTSTRAP)
}

/// The mend of a cache's error.
fn reason_of(error: &str) -> &'static str {
    match error {
        "NoSpace" => reason::NO_SPACE,
        "NoSuchPlatform" => reason::NO_SUCH_PLATFORM,
        "not_found" => reason::NOT_FOUND,
        "unauthorized" => reason::NO_CREDENTIAL,
        // The cache's own trouble, which passes.
        "disk" | "stopping" | "not_yet" => reason::INCOMPLETE,
        _ => reason::UPSTREAM_UNREACHABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::parse;
    use crate::images::wanted::{Lingering, wanted};
    use std::collections::BTreeMap;

    fn spec(more: &str) -> RegistryMirrorSpec {
        parse(&format!("{{registry: docker.io, {more}}}"))
    }

    fn reports(json: &str) -> Vec<PinReport> {
        serde_json::from_str(json).unwrap()
    }

    fn report(state: &str, error: &str) -> Vec<PinReport> {
        reports(&format!(
            r#"[{{"image":"library/a:1","platforms":["linux/amd64"],"state":"{state}","error":{error},"bytes":7,"totalBytes":9}}]"#
        ))
    }

    fn judged(spec: &RegistryMirrorSpec, image: &str, replicas: &[&[PinReport]]) -> String {
        let in_use = BTreeMap::from([(ImageName::parse(image).unwrap(), image.contains("proxy"))]);
        let wanted = wanted(spec, &in_use, &Lingering::default(), &["linux/amd64".to_owned()].into()).unwrap();
        match judge(spec, &wanted, replicas) {
            None => "unknown".to_owned(),
            Some(report) => {
                assert_eq!(report.survivable() + report.exposed.len(), 1);
                report.exposed.first().map_or("survives", |exposed| exposed.reason).to_owned()
            }
        }
    }

    #[test]
    fn one_replica_that_holds_it_is_enough() {
        let check = |replicas: &[&[PinReport]], expected: &str| {
            assert_eq!(judged(&spec("images: {}"), "a:1", replicas), expected);
        };
        let (complete, partial) = (report("complete", "null"), report("partial", "null"));
        check(&[], "unknown");
        check(&[&complete], "survives");
        check(&[&partial, &complete], "survives");
        check(&[&report("complete", r#""not_found""#)], "survives");
        check(&[&partial], "Incomplete");
        check(&[&[]], "Incomplete");
        check(&[&report("missing", r#""not_found""#)], "NotFound");
        check(&[&report("missing", r#""unauthorized""#)], "NoCredential");
        check(&[&report("partial", r#""NoSpace""#)], "NoSpace");
        check(&[&report("partial", r#""connect_timeout""#)], "UpstreamUnreachable");
        check(&[&report("partial", r#""disk""#)], "Incomplete");
        check(&[&report("partial", "null"), &report("missing", r#""dns""#)], "UpstreamUnreachable");
    }

    #[test]
    fn an_image_that_is_made_for_some_nodes_only_survives_on_those() {
        let of = |bytes: u64| {
            reports(&format!(
                r#"[{{"image":"library/a:1","platforms":["linux/amd64"],"state":"partial","error":"NoSuchPlatform",
                     "bytes":{bytes},"totalBytes":9}}]"#
            ))
        };
        assert_eq!(judged(&spec("images: {}"), "a:1", &[&of(9)]), "survives");
        assert_eq!(judged(&spec("images: {}"), "a:1", &[&of(7)]), "NoSuchPlatform");
        let chosen = spec("images: {platforms: [linux/amd64]}");
        assert_eq!(judged(&chosen, "a:1", &[&of(9)]), "NoSuchPlatform", "asked for by name");
    }

    #[test]
    fn answers_about_another_list_say_nothing() {
        let other = reports(r#"[{"image":"library/a:1","platforms":["linux/arm64"],"state":"complete"}]"#);
        assert_eq!(judged(&spec("images: {}"), "a:1", &[&other]), "Incomplete");
    }

    #[test]
    fn an_image_that_no_node_could_pull_without_its_registry_is_exposed() {
        let complete = report("complete", "null");
        let deny = spec("freshness: {onError: {unreachable: Deny}}");
        assert_eq!(judged(&deny, "a:1", &[&complete]), "TagsExpire");
        assert_eq!(judged(&spec("freshness: {maxStale: 0s}"), "a:1", &[&complete]), "TagsExpire");
        let proxy = reports(r#"[{"image":"kube/proxy:1","platforms":["linux/amd64"],"state":"complete"}]"#);
        assert_eq!(judged(&spec("images: {}"), "kube/proxy:1", &[&proxy]), "NodeBootstrap");
        assert_eq!(judged(&spec("images: {nodeBootstrap: Provided}"), "kube/proxy:1", &[&proxy]), "survives");
    }
}
