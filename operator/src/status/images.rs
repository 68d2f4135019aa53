//! What is said of the images in use: which would survive the loss of their registry. Pure.

use crate::images::ImagesReport;
use crate::observe::Images;
use breakwater_crds::conditions::{IMAGES_SURVIVABLE, Status, Verdict, reason};
use breakwater_crds::{ExposedImage, ImagesStatus, RegistryMirrorStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// A status is no place for long lists.
const MOST_LISTED: usize = 20;

/// What a status says of them.
pub(super) struct Said {
    /// ImagesSurvivable.
    pub(super) verdict: Verdict,
    /// `status.summary.survivable`.
    pub(super) figures: String,
    /// `status.images`.
    pub(super) status: Option<ImagesStatus>,
}

/// What is known, or what the operator's last life knew until this one is told.
pub(super) fn said(images: &Images, old: &RegistryMirrorStatus) -> Said {
    let report = images.report();
    let known = || Said {
        verdict: survivable(report),
        figures: report.map(|report| format!("{}/{}", report.survivable(), report.in_use)).unwrap_or_default(),
        status: report.map(status),
    };
    match images {
        Images::Awaited => said_before(old).unwrap_or_else(known),
        Images::Known(_) | Images::Unknown => known(),
    }
}

fn said_before(old: &RegistryMirrorStatus) -> Option<Said> {
    let condition = old.conditions.iter().find(|condition| condition.type_ == IMAGES_SURVIVABLE)?;
    let (status, reason) = match condition.status.as_str() {
        "True" => (Status::True, reason::ALL_SURVIVABLE),
        "False" => (Status::False, reason::IMAGES_EXPOSED),
        _ => return None,
    };
    Some(Said {
        verdict: Verdict { kind: IMAGES_SURVIVABLE, status, reason, message: condition.message.clone() },
        figures: old.summary.as_ref().map(|summary| summary.survivable.clone()).unwrap_or_default(),
        status: old.images.clone(),
    })
}

fn survivable(report: Option<&ImagesReport>) -> Verdict {
    let verdict = |status, reason, message| Verdict { kind: IMAGES_SURVIVABLE, status, reason, message };
    let Some(report) = report else {
        let message = "not known yet: no replica of the cache tells, no node has a platform, or the operator is still listing Pods";
        return verdict(Status::Unknown, reason::UNKNOWN, message.to_owned());
    };
    let in_use = report.in_use;
    let plural = if in_use == 1 { "" } else { "s" };
    let Some(first) = report.exposed.first() else {
        let message = match in_use {
            0 => "no image of this registry is in use".to_owned(),
            _ => format!("{in_use} image{plural} in use would survive the loss of the registry"),
        };
        return verdict(Status::True, reason::ALL_SURVIVABLE, message);
    };
    let why = first.message.as_deref().unwrap_or_else(|| in_words(first.reason));
    let see = if report.exposed.len() > 1 { "; see status.images.exposed" } else { "" };
    let message = format!(
        "{} of {in_use} image{plural} in use would not survive the loss of the registry, first {} ({}: {why}){see}",
        report.exposed.len(),
        first.image,
        first.reason,
    );
    verdict(Status::False, reason::IMAGES_EXPOSED, message)
}

fn in_words(reason: &str) -> &'static str {
    match reason {
        reason::INCOMPLETE => "the cache is still fetching it",
        reason::TAGS_EXPIRE => "freshness lets no tag outlive its registry",
        reason::NODE_BOOTSTRAP => {
            "a new node pulls it before it can pull through Breakwater; provide it by other means and set images.nodeBootstrap: Provided"
        }
        _ => "the cache does not say why",
    }
}

fn status(report: &ImagesReport) -> ImagesStatus {
    let count = |amount: usize| i32::try_from(amount).unwrap_or(i32::MAX);
    let exposed = report.exposed.iter().take(MOST_LISTED);
    let listed = exposed.map(|exposed| ExposedImage {
        image: exposed.image.to_string(),
        reason: exposed.reason.to_owned(),
        since: exposed.since.map(|since| Time(super::whole_seconds(since))),
    });
    ImagesStatus { in_use: count(report.in_use), survivable: count(report.survivable()), exposed: listed.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::{Exposed, ImageName};

    fn exposed(image: &str, reason: &'static str, message: Option<&str>) -> Exposed {
        let message = message.map(str::to_owned);
        Exposed { image: ImageName::parse(image).unwrap(), reason, message, since: None }
    }

    #[test]
    fn the_condition_counts_and_names_the_first() {
        let check = |in_use: usize, exposed: Vec<Exposed>, expected: &str| {
            let verdict = survivable(Some(&ImagesReport { in_use, exposed, ..ImagesReport::default() }));
            assert_eq!(format!("{} {}: {}", verdict.status.as_str(), verdict.reason, verdict.message), expected);
        };
        check(0, vec![], "True AllSurvivable: no image of this registry is in use");
        check(1, vec![], "True AllSurvivable: 1 image in use would survive the loss of the registry");
        check(212, vec![], "True AllSurvivable: 212 images in use would survive the loss of the registry");
        check(
            2,
            vec![exposed("a:1", reason::INCOMPLETE, None)],
            "False ImagesExposed: 1 of 2 images in use would not survive the loss of the registry, first docker.io/library/a:1 \
             (Incomplete: the cache is still fetching it)",
        );
        check(
            3,
            vec![
                exposed("a:1", reason::NOT_FOUND, Some("upstream does not have it")),
                exposed("b", reason::NO_SPACE, None),
            ],
            "False ImagesExposed: 2 of 3 images in use would not survive the loss of the registry, first docker.io/library/a:1 \
             (NotFound: upstream does not have it); see status.images.exposed",
        );
        assert_eq!(survivable(None).status, Status::Unknown);
    }

    #[test]
    fn what_was_said_stands_until_a_new_operator_is_told() {
        let now = "2026-11-21T10:00:00Z".parse().unwrap();
        let stamp = |said: Said| RegistryMirrorStatus {
            conditions: super::super::stamped(&[], vec![said.verdict], None, now),
            summary: Some(breakwater_crds::Summary { survivable: said.figures, ..Default::default() }),
            images: said.status,
            ..RegistryMirrorStatus::default()
        };
        let nothing = stamp(said(&Images::Awaited, &RegistryMirrorStatus::default()));
        assert_eq!(nothing.conditions[0].status, "Unknown");
        for exposed in [vec![], vec![exposed("a:1", reason::INCOMPLETE, None)]] {
            let report = ImagesReport { in_use: 2, exposed, ..ImagesReport::default() };
            let old = stamp(said(&Images::Known(report.into()), &nothing));
            assert!(old.images.is_some());
            assert_eq!(stamp(said(&Images::Awaited, &old)), old);
            assert_eq!(stamp(said(&Images::Unknown, &old)), nothing, "not for ever");
        }
    }

    #[test]
    fn a_status_lists_twenty_at_most() {
        let many: Vec<_> = (0..30).map(|n| exposed(&format!("a:{n:02}"), reason::NOT_FOUND, None)).collect();
        let status = status(&ImagesReport { in_use: 40, exposed: many, ..ImagesReport::default() });
        assert_eq!((status.in_use, status.survivable, status.exposed.len()), (40, 10, 20));
        assert_eq!(status.exposed[0].image, "docker.io/library/a:00");
    }
}
