//! Step 5, client I/O: writes a status that is news, and the Events that go with it. What the status says is [`crate::status`]'s.

use crate::events;
use crate::images::ImagesReport;
use crate::memory::{Memory, Reported};
use crate::skew::Lacks;
use breakwater_crds::conditions::IMAGES_SURVIVABLE;
use breakwater_crds::names::MANAGER;
use breakwater_crds::{RegistryMirror, RegistryMirrorStatus};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams};
use kube::core::{DeserializeGuard, ObjectMeta};
use kube::runtime::events::Recorder;
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Statuses of one mirror are at least so far apart, unless the spec changed: each goes to the agents of all nodes.
const PACE: Duration = Duration::from_secs(5);
/// Where a condition turns, somebody may wait for it.
const TURN_PACE: Duration = Duration::from_secs(1);
/// So many of them are no more frequent than at [`PACE`]: conditions may turn all the time.
const BURST: usize = 3;
/// Figures that move with every pull do not need to be fresher.
const FIGURES_PACE: Duration = Duration::from_secs(30);

/// Why a status could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportFailed {
    /// The API server did not take it.
    #[error("cannot write the status")]
    Patch(#[source] kube::Error),
    /// No answer in time.
    #[error("cannot write the status: no answer within {}s", CALL_DEADLINE.as_secs())]
    Timeout,
}

/// Writes statuses.
#[derive(Clone)]
pub struct Reporter {
    // Guarded: the answer to a write is the mirror itself, which may be one that cannot be read.
    api: Api<DeserializeGuard<RegistryMirror>>,
    recorder: Recorder,
    lacks: Lacks,
}

impl Reporter {
    /// A reporter that shares one recorder, so that repeated Events are counted and not repeated.
    #[must_use]
    pub fn new(client: Client, recorder: Recorder, lacks: Lacks) -> Self {
        Self { api: Api::all(client), recorder, lacks }
    }

    /// Writes `new` if it differs from what is there. Returns how long to wait where it is too early for that.
    ///
    /// # Errors
    /// The API server did not take it; nothing is remembered then.
    pub async fn report(
        &self,
        metadata: &ObjectMeta,
        old: &RegistryMirrorStatus,
        new: RegistryMirrorStatus,
        memory: &Memory,
    ) -> Result<Option<Duration>, ReportFailed> {
        let name = metadata.name.as_deref().unwrap_or_default();
        if *old == new {
            return Ok(None);
        }
        let mut body = self.body(name, &new);
        if self.body(name, old) == body {
            return Ok(None);
        }
        let mut writes = memory.reported(name).map(|reported| reported.writes).unwrap_or_default();
        let since: Vec<_> = writes.iter().map(Instant::elapsed).collect();
        if let Some(wait) = too_early(old, &new, &since) {
            return Ok(Some(wait));
        }
        // A uid would be ignored here: only the version keeps a mirror that was made anew from being told what was found of the former.
        body["metadata"]["resourceVersion"] = json!(version(metadata, memory));
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&body);
        let written = match tokio::time::timeout(CALL_DEADLINE, self.api.patch_status(name, &params, &patch)).await {
            Err(_) => return Err(ReportFailed::Timeout),
            // Deleted meanwhile: nobody is left to tell.
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() => return Ok(None),
            // Changed meanwhile: the watch is about to show it.
            Ok(Err(kube::Error::Api(status))) if status.is_conflict() => return Ok(Some(TURN_PACE)),
            Ok(Err(error)) => return Err(ReportFailed::Patch(error)),
            Ok(Ok(written)) => written.meta().resource_version.clone(),
        };
        let events = events::between(old, &new);
        let from_version = metadata.resource_version.clone();
        writes.insert(0, Instant::now());
        writes.truncate(BURST);
        memory.set_reported(name, Reported { from_version, written, status: new, writes });
        self.publish(metadata, events).await;
        Ok(None)
    }

    /// A status as it is sent, without what the definition lacks.
    fn body(&self, name: &str, status: &RegistryMirrorStatus) -> Value {
        let mut body = json!({
            "apiVersion": RegistryMirror::api_version(&()),
            "kind": RegistryMirror::kind(&()),
            "metadata": {"name": name},
            "status": status,
        });
        self.lacks.borrow().take_from(&mut body);
        body
    }

    /// Tells of images that have become exposed for long, once.
    pub async fn tell_of_exposed(&self, metadata: &ObjectMeta, images: &ImagesReport, memory: &Memory) {
        let name = metadata.name.as_deref().unwrap_or_default();
        let before = memory.set_exposed(name, images.lasting.clone());
        self.publish(metadata, events::exposed(&before, images).into_iter().collect()).await;
    }

    /// Events are a courtesy: one that cannot be written is logged and not tried again.
    async fn publish(&self, metadata: &ObjectMeta, events: Vec<kube::runtime::events::Event>) {
        let reference = ObjectReference {
            api_version: Some(RegistryMirror::api_version(&()).into_owned()),
            kind: Some(RegistryMirror::kind(&()).into_owned()),
            name: metadata.name.clone(),
            uid: metadata.uid.clone(),
            ..ObjectReference::default()
        };
        for event in events {
            let note = event.note.as_deref().unwrap_or_default();
            let mirror = metadata.name.as_deref().unwrap_or_default();
            tracing::info!(%mirror, reason = %event.reason, "{note}");
            match tokio::time::timeout(CALL_DEADLINE, self.recorder.publish(&event, &reference)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%mirror, error = %crate::error_chain(&error), "cannot write an Event");
                }
                Err(_) => {
                    tracing::warn!(%mirror, "cannot write an Event: no answer within {}s", CALL_DEADLINE.as_secs());
                }
            }
        }
    }
}

/// The status that the API server has: the one in the watch, unless the watch does not show our last write yet.
#[must_use]
pub fn present(metadata: &ObjectMeta, watched: Option<RegistryMirrorStatus>, memory: &Memory) -> RegistryMirrorStatus {
    unseen(metadata, memory).map(|ours| ours.status).or(watched).unwrap_or_default()
}

/// The version of the mirror that the API server has, as far as we know.
fn version(metadata: &ObjectMeta, memory: &Memory) -> Option<String> {
    unseen(metadata, memory).and_then(|ours| ours.written).or_else(|| metadata.resource_version.clone())
}

/// Our last write, while the watch does not show it yet.
fn unseen(metadata: &ObjectMeta, memory: &Memory) -> Option<Reported> {
    let reported = memory.reported(metadata.name.as_deref().unwrap_or_default());
    reported.filter(|ours| ours.from_version == metadata.resource_version)
}

/// How long to wait before `new` may be written; `since` the former writes, the latest first. A new generation is never kept waiting.
fn too_early(old: &RegistryMirrorStatus, new: &RegistryMirrorStatus, since: &[Duration]) -> Option<Duration> {
    if old.observed_generation != new.observed_generation {
        return None;
    }
    let pace = match () {
        () if without_figures(old) == without_figures(new) => FIGURES_PACE,
        () if turning_conditions(old) == turning_conditions(new) => PACE,
        () => TURN_PACE,
    };
    let burst = since.get(BURST - 1).map_or(Duration::ZERO, |since| (BURST as u32 * PACE).saturating_sub(*since));
    Some(pace.saturating_sub(*since.first()?).max(burst)).filter(|wait| !wait.is_zero())
}

/// ImagesSurvivable turns with every roll-out, and is not among them.
fn turning_conditions(status: &RegistryMirrorStatus) -> Vec<(&str, &str, &str)> {
    let conditions = status.conditions.iter().filter(|condition| condition.type_ != IMAGES_SURVIVABLE);
    conditions.map(|it| (it.type_.as_str(), it.status.as_str(), it.reason.as_str())).collect()
}

fn without_figures(status: &RegistryMirrorStatus) -> RegistryMirrorStatus {
    let mut status = status.clone();
    if let Some(cache) = &mut status.cache {
        cache.bytes = None;
    }
    if let Some(upstream) = &mut status.upstream {
        upstream.rate_limit_remaining = None;
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use breakwater_crds::CacheStatus;

    fn status(generation: i64, ready: i32, bytes: &str) -> RegistryMirrorStatus {
        let cache = CacheStatus { service: "c".to_owned(), ready_replicas: ready, bytes: Some(bytes.to_owned()) };
        RegistryMirrorStatus {
            observed_generation: Some(generation),
            cache: Some(cache),
            ..RegistryMirrorStatus::default()
        }
    }

    #[test]
    fn statuses_keep_their_pace() {
        let check = |new: RegistryMirrorStatus, since_ms: Option<u64>, expected: Option<u64>| {
            let since = since_ms.map(Duration::from_millis);
            let wait = too_early(&status(1, 0, "1Gi"), &new, since.as_slice());
            assert_eq!(wait, expected.map(Duration::from_millis));
        };
        check(status(1, 1, "1Gi"), None, None);
        check(status(1, 1, "1Gi"), Some(4400), Some(600));
        check(status(1, 1, "1Gi"), Some(5000), None);
        let turning = |kind: &str, millis: &[u64]| {
            let condition = serde_json::json!({"type": kind, "status": "True", "reason": "R", "message": "",
                                               "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let mut new = status(1, 0, "1Gi");
            new.conditions = vec![serde_json::from_value(condition).unwrap()];
            let since: Vec<_> = millis.iter().copied().map(Duration::from_millis).collect();
            too_early(&status(1, 0, "1Gi"), &new, &since).map(|wait| wait.as_millis())
        };
        assert_eq!((turning("Ready", &[400]), turning("Ready", &[1000])), (Some(600), None));
        assert_eq!(turning("ImagesSurvivable", &[400]), Some(4600));
        assert_eq!(turning("Ready", &[1000, 2000]), None, "a mirror that becomes ready turns a few times");
        assert_eq!(turning("Ready", &[1000, 2000, 3000]), Some(12_000), "one that never rests waits");
        assert_eq!(turning("Ready", &[1000, 2000, 15_000]), None);
        check(status(1, 0, "2Gi"), Some(1000), Some(29_000));
        check(status(2, 1, "1Gi"), Some(0), None);
    }

    #[test]
    fn our_last_write_counts_until_the_watch_shows_it() {
        let memory = Memory::default();
        let reported = Reported {
            from_version: Some("7".to_owned()),
            written: Some("8".to_owned()),
            status: status(2, 1, "1Gi"),
            writes: Vec::new(),
        };
        memory.set_reported("m", reported);
        let at = |version: &str| {
            let metadata =
                ObjectMeta { name: Some("m".into()), resource_version: Some(version.into()), ..ObjectMeta::default() };
            present(&metadata, Some(status(1, 0, "")), &memory).observed_generation
        };
        assert_eq!(at("7"), Some(2));
        assert_eq!(at("8"), Some(1));
    }
}
