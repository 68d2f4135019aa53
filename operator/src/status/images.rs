//! What is said of the images in use: which would survive the loss of their registry. Pure.

use crate::images::ImagesReport;
use breakwater_crds::conditions::{IMAGES_SURVIVABLE, Status, Verdict, reason};
use breakwater_crds::{ExposedImage, ImagesStatus};

/// A status is no place for long lists.
const MOST_LISTED: usize = 20;

/// ImagesSurvivable.
pub(super) fn survivable(report: Option<&ImagesReport>) -> Verdict {
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

/// `status.images`.
pub(super) fn status(report: &ImagesReport) -> ImagesStatus {
    let count = |amount: usize| i32::try_from(amount).unwrap_or(i32::MAX);
    let exposed = report.exposed.iter().take(MOST_LISTED);
    let listed =
        exposed.map(|exposed| ExposedImage { image: exposed.image.to_string(), reason: exposed.reason.to_owned() });
    ImagesStatus { in_use: count(report.in_use), survivable: count(report.survivable()), exposed: listed.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::{Exposed, ImageName};

    fn exposed(image: &str, reason: &'static str, message: Option<&str>) -> Exposed {
        let message = message.map(str::to_owned);
        Exposed { image: ImageName::parse(image).unwrap(), reason, message }
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
    fn a_status_lists_twenty_at_most() {
        let many: Vec<_> = (0..30).map(|n| exposed(&format!("a:{n:02}"), reason::NOT_FOUND, None)).collect();
        let status = status(&ImagesReport { in_use: 40, exposed: many, ..ImagesReport::default() });
        assert_eq!((status.in_use, status.survivable, status.exposed.len()), (40, 10, 20));
        assert_eq!(status.exposed[0].image, "docker.io/library/a:00");
    }
}
