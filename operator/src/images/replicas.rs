//! The replicas of all caches: which there are, when each is asked, and what it said last. No I/O; time is passed in.

use super::line::{AskFailed, PinReport};
use super::wanted::{Pin, Wanted};
use breakwater_crds::names::{LABEL_INSTANCE, LABEL_MIRROR, TLS_PORT};
use hyper::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

const ASK_EVERY: Duration = Duration::from_secs(15);
/// While something is being fetched, and nothing is in its way.
const ASK_WHILE_FILLING: Duration = Duration::from_secs(2);
/// After a new list, whose images may all be there already.
const ASK_AFTER_PUT: Duration = Duration::from_millis(500);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(30);
/// After so many silent tries what a replica said before is no longer believed.
const FAILURES_UNTIL_UNKNOWN: u32 = 3;

/// One replica of a cache.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) address: SocketAddr,
    pub(super) cache: String,
    pub(super) mirror: String,
    /// What it said last; none before it has answered.
    pub(super) reports: Option<Vec<PinReport>>,
    due: Instant,
    is_asked: bool,
    failures: u32,
    /// It does not know its own list.
    has_lost_its_list: bool,
    /// It was told a list and answered of another one.
    misheard: bool,
}

/// What to say to a replica.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Get,
    Put(Vec<Pin>),
}

/// All replicas, by the name of their Pod.
#[derive(Debug, Default)]
pub(super) struct Replicas(pub(super) HashMap<String, Replica>);

impl Replicas {
    /// Follows the Pods of all caches. One with another address is another replica, with a list of its own.
    pub(super) fn follow(&mut self, pods: &[Arc<Pod>], now: Instant) {
        let mut found = HashMap::new();
        for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()?.parse::<IpAddr>().ok());
            let label = |name| pod.labels().get(name).cloned();
            if let (Some(address), Some(cache), Some(mirror)) = (address, label(LABEL_INSTANCE), label(LABEL_MIRROR)) {
                found.insert(pod.name_any(), (SocketAddr::new(address, TLS_PORT), cache, mirror));
            }
        }
        self.0.retain(|pod, known| found.get(pod).is_some_and(|(address, ..)| *address == known.address));
        for (pod, (address, cache, mirror)) in found {
            self.0.entry(pod).or_insert_with(|| Replica {
                address,
                cache,
                mirror,
                reports: None,
                due: now,
                is_asked: false,
                failures: 0,
                has_lost_its_list: false,
                misheard: false,
            });
        }
    }

    /// What those replicas of a mirror say that answer.
    pub(super) fn reports_of(&self, mirror: &str) -> Vec<&[PinReport]> {
        let ours = self.0.values().filter(|replica| replica.mirror == mirror);
        ours.filter_map(|replica| replica.reports.as_deref()).collect()
    }
}

impl Replica {
    /// What to say to it now, if anything. A replica is listened to before it is told: what it holds for the operator's last life is kept.
    pub(super) fn next(&mut self, wanted: &Wanted, now: Instant) -> Option<Ask> {
        let is_other = |reports: &Vec<PinReport>| !are_of(reports, &wanted.pins);
        let must_put = self.has_lost_its_list || self.reports.as_ref().is_some_and(is_other);
        // A new list is no reason to press a replica that fails, nor one that makes something else of each list.
        let is_due = self.due <= now || (must_put && self.failures == 0 && !self.misheard);
        if self.is_asked || !is_due {
            return None;
        }
        self.is_asked = true;
        Some(if must_put { Ask::Put(wanted.pins.clone()) } else { Ask::Get })
    }

    /// Takes note of an answer, to the list that it was `told` or to a question; says whether it is the first one.
    pub(super) fn settle(
        &mut self,
        told: Option<&[Pin]>,
        answer: Result<Vec<PinReport>, AskFailed>,
        now: Instant,
    ) -> bool {
        self.is_asked = false;
        match answer {
            Ok(reports) => {
                let misheard = told.is_some_and(|pins| !are_of(&reports, pins));
                if misheard && !self.misheard {
                    tracing::warn!(cache = %self.cache, address = %self.address, "the cache holds other images than it was told");
                }
                self.misheard = misheard;
                let pause = match () {
                    () if misheard => ASK_EVERY,
                    () if told.is_some() => ASK_AFTER_PUT,
                    () if reports.iter().any(PinReport::is_filling) => ASK_WHILE_FILLING,
                    () => ASK_EVERY,
                };
                (self.failures, self.has_lost_its_list, self.due) = (0, false, now + pause);
                self.reports.replace(reports).is_none()
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                let pause = FIRST_RETRY * (1 << (self.failures - 1).min(5));
                self.due = now + pause.min(MAX_RETRY);
                // Also what it says while it looks at its disk after a start, which passes.
                let is_unavailable = matches!(error, AskFailed::Status(StatusCode::SERVICE_UNAVAILABLE, _));
                self.has_lost_its_list = is_unavailable && self.failures > 1;
                let cache = &self.cache;
                let error = crate::error_chain(&error);
                if self.failures == FAILURES_UNTIL_UNKNOWN {
                    tracing::warn!(%cache, address = %self.address, %error, "cannot learn which images the cache holds");
                    self.reports = None;
                } else {
                    tracing::debug!(%cache, address = %self.address, %error, "cache did not tell of its images");
                }
                false
            }
        }
    }
}

/// Whether these are the answers for these pins.
fn are_of(reports: &[PinReport], pins: &[Pin]) -> bool {
    reports.len() == pins.len() && reports.iter().zip(pins).all(|(report, pin)| report.is_of(pin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::parse;

    fn pods(address: &str) -> Vec<Arc<Pod>> {
        vec![Arc::new(parse(&format!(
            "{{metadata: {{name: c-0, labels: {{app.kubernetes.io/instance: c, breakwater.dev/mirror: m}}}}, \
             status: {{podIP: {address}}}}}"
        )))]
    }

    fn wanted(images: &[&str]) -> Wanted {
        let pin = |image: &&str| Pin {
            image: (*image).to_owned(),
            asked: (*image).to_owned(),
            platforms: vec!["linux/amd64".to_owned()],
        };
        Wanted { pins: images.iter().map(pin).collect(), ..Wanted::default() }
    }

    fn reports(images: &[&str], state: &str) -> Vec<PinReport> {
        let report = |image: &&str| {
            let json = serde_json::json!({"image": image, "platforms": ["linux/amd64"], "state": state});
            serde_json::from_value(json).unwrap()
        };
        images.iter().map(report).collect()
    }

    #[test]
    fn a_replica_is_heard_then_told_and_then_asked_as_often_as_it_is_busy() {
        let (now, mut replicas) = (Instant::now(), Replicas::default());
        replicas.follow(&pods("10.0.0.1"), now);
        let replica = replicas.0.get_mut("c-0").unwrap();
        let list = wanted(&["a:1", "b:1"]);
        assert_eq!(replica.next(&list, now), Some(Ask::Get));
        assert_eq!(replica.next(&list, now), None, "one question at a time");
        assert!(replica.settle(None, Ok(reports(&["a:1"], "complete")), now), "its first words");
        assert_eq!(replica.next(&list, now), Some(Ask::Put(list.pins.clone())));
        assert!(!replica.settle(Some(&list.pins), Ok(reports(&["a:1", "b:1"], "partial")), now));
        assert_eq!(replica.next(&list, now), None);
        let soon = now + ASK_AFTER_PUT;
        assert_eq!(replica.next(&list, soon), Some(Ask::Get));
        replica.settle(None, Ok(reports(&["a:1", "b:1"], "partial")), soon);
        let filling = soon + ASK_WHILE_FILLING;
        assert_eq!(replica.next(&list, filling), Some(Ask::Get));
        replica.settle(None, Ok(reports(&["a:1", "b:1"], "complete")), filling);
        assert_eq!(replica.next(&list, filling + ASK_WHILE_FILLING), None);
        assert!(matches!(replica.next(&wanted(&["b:1"]), filling), Some(Ask::Put(_))), "a new list is told at once");
        replica.settle(Some(&wanted(&["b:1"]).pins), Ok(reports(&["b:1"], "complete")), filling);
        // Somebody else's list, or a restored disk.
        let later = filling + ASK_EVERY;
        assert_eq!(replica.next(&wanted(&["b:1"]), later), Some(Ask::Get));
        replica.settle(None, Ok(vec![]), later);
        assert!(matches!(replica.next(&wanted(&["b:1"]), later), Some(Ask::Put(_))));
    }

    #[test]
    fn a_replica_that_makes_something_else_of_its_list_is_told_no_more_often_than_it_is_asked() {
        let (now, mut replicas) = (Instant::now(), Replicas::default());
        replicas.follow(&pods("10.0.0.1"), now);
        let replica = replicas.0.get_mut("c-0").unwrap();
        let list = wanted(&["a:1", "b:1"]);
        replica.settle(None, Ok(vec![]), now);
        for round in 0..3 {
            let at = now + ASK_EVERY * round;
            assert_eq!(replica.next(&list, at), Some(Ask::Put(list.pins.clone())));
            replica.settle(Some(&list.pins), Ok(reports(&["a:1"], "complete")), at);
            assert_eq!(replica.next(&list, at + ASK_EVERY - Duration::from_millis(1)), None, "{round}");
        }
        let heard = now + ASK_EVERY * 3;
        assert!(matches!(replica.next(&list, heard), Some(Ask::Put(_))));
        replica.settle(Some(&list.pins), Ok(reports(&["a:1", "b:1"], "complete")), heard);
        assert!(
            matches!(replica.next(&wanted(&["b:1"]), heard), Some(Ask::Put(_))),
            "a new list is told at once again"
        );
    }

    #[test]
    fn a_silent_replica_is_believed_for_a_while_and_not_pressed() {
        let (now, mut replicas) = (Instant::now(), Replicas::default());
        replicas.follow(&pods("10.0.0.1"), now);
        let replica = replicas.0.get_mut("c-0").unwrap();
        replica.settle(None, Ok(reports(&["a:1"], "complete")), now);
        for failures in 1..=3 {
            assert!(replica.reports.is_some(), "{failures}");
            replica.settle(None, Err(AskFailed::Timeout), now);
        }
        assert!(replica.reports.is_none());
        assert_eq!(replica.next(&wanted(&["z:1"]), now + FIRST_RETRY), None);
        assert_eq!(replica.next(&wanted(&["z:1"]), now + MAX_RETRY), Some(Ask::Get));
        replicas.follow(&pods("10.0.0.2"), now);
        assert_eq!(replicas.0["c-0"].failures, 0, "another address is another replica");
        replicas.follow(&[], now);
        assert!(replicas.0.is_empty());
    }

    #[test]
    fn a_replica_that_lost_its_list_is_told_it_again() {
        let (now, mut replicas) = (Instant::now(), Replicas::default());
        replicas.follow(&pods("10.0.0.1"), now);
        let replica = replicas.0.get_mut("c-0").unwrap();
        let unavailable = || Err(AskFailed::Status(StatusCode::SERVICE_UNAVAILABLE, String::new()));
        replica.settle(None, unavailable(), now);
        assert_eq!(replica.next(&wanted(&["a:1"]), now + MAX_RETRY), Some(Ask::Get), "it may be looking at its disk");
        replica.settle(None, unavailable(), now);
        assert!(matches!(replica.next(&wanted(&["a:1"]), now + MAX_RETRY), Some(Ask::Put(_))));
    }
}
