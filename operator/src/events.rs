//! Which changes of a status are worth an Event. Pure; only changes of state are, never a pass or a retry.

use crate::images::{ImageName, ImagesReport};
use crate::text::one_line;
use breakwater_crds::RegistryMirrorStatus;
use breakwater_crds::conditions::{
    CACHE_READY, NODES_READY, READY, STALLED, UPSTREAM_CREDENTIALS_ACCEPTED, UPSTREAM_REACHABLE, reason,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};
use std::collections::BTreeSet;

/// Longer notes are cut in lists of Events.
const MAX_NOTE: usize = 200;

/// What one condition's change from the first to the second is worth.
type Rule = fn(Option<&Condition>, &Condition) -> Option<Event>;

/// The Events that lead from one status to the next.
#[must_use]
pub fn between(old: &RegistryMirrorStatus, new: &RegistryMirrorStatus) -> Vec<Event> {
    let changed = |kind: &str| {
        let find = |status: &RegistryMirrorStatus| status.conditions.iter().find(|it| it.type_ == kind).cloned();
        let (old, new) = (find(old), find(new)?);
        let same = old.as_ref().is_some_and(|old| old.status == new.status && old.reason == new.reason);
        (!same).then_some((old, new))
    };
    let rules: [(&str, Rule); 6] = [
        (READY, refusal),
        (STALLED, obstacle),
        (CACHE_READY, cache),
        (NODES_READY, nodes),
        (UPSTREAM_REACHABLE, upstream),
        (UPSTREAM_CREDENTIALS_ACCEPTED, credentials),
    ];
    let event = |(kind, rule): (&str, Rule)| changed(kind).and_then(|(old, new)| rule(old.as_ref(), &new));
    rules.into_iter().filter_map(event).collect()
}

fn refusal(_: Option<&Condition>, new: &Condition) -> Option<Event> {
    matches!(new.reason.as_str(), reason::REGISTRY_CONFLICT | reason::INVALID_SPEC)
        .then(|| event(EventType::Warning, &new.reason, "Validate", &new.message))
}

/// What a cache that serves has nothing to say of.
fn obstacle(_: Option<&Condition>, new: &Condition) -> Option<Event> {
    let action = match new.reason.as_str() {
        reason::NO_AUTHORITY => "Trust",
        reason::INVALID_REFERENCE => "Validate",
        reason::VOLUME_NOT_EXPANDABLE => "Expand",
        reason::CHILD_REFUSED | reason::API_SERVER_FAILS => "Apply",
        _ => return None,
    };
    Some(event(EventType::Warning, &new.reason, action, &new.message))
}

fn cache(_: Option<&Condition>, new: &Condition) -> Option<Event> {
    match (new.status.as_str(), new.reason.as_str()) {
        ("True", _) => Some(event(EventType::Normal, CACHE_READY, "Serve", &new.message)),
        (_, reason::CACHE_STARTING) => None,
        // Told once, by Stalled.
        _ if obstacle(None, new).is_some() => None,
        (_, reason) => Some(event(EventType::Warning, reason, "Serve", &new.message)),
    }
}

fn nodes(_: Option<&Condition>, new: &Condition) -> Option<Event> {
    matches!(new.reason.as_str(), reason::NODES_BYPASSED | reason::NODES_FAILED)
        .then(|| event(EventType::Warning, &new.reason, "Serve", &new.message))
}

fn upstream(old: Option<&Condition>, new: &Condition) -> Option<Event> {
    match (old.map(|old| old.status.as_str()), new.status.as_str()) {
        (_, "False") => Some(event(EventType::Warning, reason::UPSTREAM_UNREACHABLE, "Observe", &new.message)),
        (Some("False"), "True") => Some(event(EventType::Normal, "UpstreamRecovered", "Observe", &new.message)),
        _ => None,
    }
}

fn credentials(_: Option<&Condition>, new: &Condition) -> Option<Event> {
    (new.status == "False").then(|| event(EventType::Warning, &new.reason, "Observe", &new.message))
}

/// The Event for images that have been exposed for long, if some of them were not when it was last looked.
#[must_use]
pub fn exposed(before: &BTreeSet<ImageName>, images: &ImagesReport) -> Option<Event> {
    images.lasting.iter().find(|image| !before.contains(image))?;
    let first = images
        .exposed
        .iter()
        .find(|exposed| images.lasting.contains(&exposed.image) && !before.contains(&exposed.image))?;
    let others = match images.lasting.len() - 1 {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    let why = first.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
    let note = format!(
        "{}{others} would not survive the loss of the registry for 10m now ({}{why})",
        first.image, first.reason
    );
    Some(event(EventType::Warning, reason::IMAGES_EXPOSED, "Survey", &note))
}

fn event(type_: EventType, reason: &str, action: &str, note: &str) -> Event {
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(one_line(note, MAX_NOTE)),
        action: action.to_owned(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::Exposed;

    fn status(conditions: &[(&str, &str, &str)]) -> RegistryMirrorStatus {
        let conditions = conditions
            .iter()
            .map(|(kind, status, reason)| {
                serde_json::from_value(serde_json::json!({
                    "type": kind, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"
                }))
                .unwrap()
            })
            .collect();
        RegistryMirrorStatus { conditions, ..RegistryMirrorStatus::default() }
    }

    fn check(old: &[(&str, &str, &str)], new: &[(&str, &str, &str)], expected: &[&str]) {
        let reasons: Vec<_> = between(&status(old), &status(new)).into_iter().map(|event| event.reason).collect();
        assert_eq!(reasons, expected);
    }

    #[test]
    fn only_changes_of_state_make_events() {
        let up = ("UpstreamReachable", "True", "UpstreamAnswers");
        let down = ("UpstreamReachable", "False", "UpstreamUnreachable");
        let unknown = ("UpstreamReachable", "Unknown", "Unknown");
        check(&[up], &[down], &["UpstreamUnreachable"]);
        check(&[down], &[down], &[]);
        check(&[down], &[up], &["UpstreamRecovered"]);
        check(&[], &[up], &[]);
        check(&[unknown], &[up], &[]);
        check(&[], &[("CacheReady", "False", "CacheStarting")], &[]);
        check(&[("CacheReady", "False", "CacheStarting")], &[("CacheReady", "True", "CacheServes")], &["CacheReady"]);
        check(&[("CacheReady", "True", "CacheServes")], &[("CacheReady", "False", "PodFailing")], &["PodFailing"]);
        check(
            &[("NodesReady", "True", "NodesActive")],
            &[("NodesReady", "False", "NodesBypassed")],
            &["NodesBypassed"],
        );
        check(&[], &[("Ready", "False", "RegistryConflict")], &["RegistryConflict"]);
    }

    #[test]
    fn what_only_a_person_can_mend_is_told_once_whether_or_not_the_cache_serves() {
        let serves = ("CacheReady", "True", "CacheServes");
        for reason in [
            reason::NO_AUTHORITY,
            reason::INVALID_REFERENCE,
            reason::VOLUME_NOT_EXPANDABLE,
            reason::CHILD_REFUSED,
            reason::API_SERVER_FAILS,
        ] {
            let stalled = ("Stalled", "True", reason);
            check(&[serves], &[serves, stalled], &[reason]);
            check(&[], &[stalled, ("Ready", "False", reason), ("CacheReady", "False", reason)], &[reason]);
            check(&[serves, stalled], &[serves, stalled], &[]);
        }
    }

    #[test]
    fn images_that_stay_exposed_are_told_once_and_again_when_others_join_them() {
        let name = |text: &str| ImageName::parse(text).unwrap();
        let image = |text| Exposed {
            image: name(text),
            reason: reason::NOT_FOUND,
            message: Some("not there".to_owned()),
            since: None,
        };
        let report = |lasting: &[&str]| ImagesReport {
            in_use: 9,
            exposed: vec![image("a:1"), image("b:1"), image("c:1")],
            lasting: lasting.iter().map(|text| name(text)).collect(),
        };
        let note = |before: &[&str], lasting: &[&str]| {
            let before = before.iter().map(|text| name(text)).collect();
            exposed(&before, &report(lasting)).map(|event| event.note.unwrap())
        };
        assert_eq!(note(&[], &[]), None);
        assert_eq!(
            note(&[], &["b:1"]).unwrap(),
            "docker.io/library/b:1 would not survive the loss of the registry for 10m now (NotFound: not there)"
        );
        assert_eq!(note(&["b:1"], &["b:1"]), None);
        assert!(note(&["b:1"], &["b:1", "c:1"]).unwrap().starts_with("docker.io/library/c:1 and 1 more would"));
        assert_eq!(note(&["b:1", "c:1"], &["c:1"]), None);
    }
}
