//! A status is written once per change of state, and what the API server refuses is not remembered as written.

use crate::server::{client, failure};
use breakwater_crds::{RegistryMirrorStatus, Summary};
use breakwater_operator::memory::Memory;
use breakwater_operator::report::{ReportFailed, Reporter, present};
use kube::core::ObjectMeta;
use kube::runtime::events::{Recorder, Reporter as EventReporter};
use serde_json::json;

fn metadata() -> ObjectMeta {
    ObjectMeta {
        name: Some("m".into()),
        resource_version: Some("1".into()),
        generation: Some(1),
        ..ObjectMeta::default()
    }
}

fn status(nodes: &str) -> RegistryMirrorStatus {
    RegistryMirrorStatus {
        observed_generation: Some(1),
        summary: Some(Summary { nodes: nodes.into(), ..Summary::default() }),
        ..RegistryMirrorStatus::default()
    }
}

fn reporter(client: kube::Client) -> Reporter {
    let recorder = Recorder::new(client.clone(), EventReporter { controller: "c".into(), instance: Some("i".into()) });
    Reporter::new(client, recorder)
}

#[tokio::test]
async fn a_second_pass_before_the_watch_catches_up_writes_nothing() {
    let stored = json!({"apiVersion": "breakwater.dev/v1alpha1", "kind": "RegistryMirror", "metadata": {"name": "m"},
                        "spec": {"registry": "docker.io"}});
    let (client, calls) = client(vec![(200, stored)]);
    let (reporter, memory) = (reporter(client), Memory::default());
    for _ in 0..2 {
        let old = present(&metadata(), None, &memory);
        assert_eq!(reporter.report(&metadata(), &old, status("1/1"), &memory).await.unwrap(), None);
    }
    assert_eq!(calls.all(), ["PATCH /apis/breakwater.dev/v1alpha1/registrymirrors/m/status"]);
    let old = present(&metadata(), None, &memory);
    let wait = reporter.report(&metadata(), &old, status("0/1"), &memory).await.unwrap();
    assert!(wait.is_some(), "the next change keeps its distance");
    assert_eq!(calls.all().len(), 1);
}

#[tokio::test]
async fn a_write_that_failed_is_tried_again_and_a_deleted_mirror_is_not() {
    let (client, calls) = client(vec![(422, failure(422, "Invalid")), (404, failure(404, "NotFound"))]);
    let (reporter, memory) = (reporter(client), Memory::default());
    let old = present(&metadata(), None, &memory);
    let failed = reporter.report(&metadata(), &old, status("1/1"), &memory).await;
    assert!(matches!(failed, Err(ReportFailed::Patch(_))));
    assert_eq!(present(&metadata(), None, &memory), old);
    assert_eq!(reporter.report(&metadata(), &old, status("1/1"), &memory).await.unwrap(), None);
    assert_eq!(calls.all().len(), 2);
}

#[tokio::test]
async fn a_mirror_that_cannot_be_read_still_gets_its_status() {
    let unreadable = json!({"apiVersion": "breakwater.dev/v1alpha1", "kind": "RegistryMirror", "metadata": {"name": "m"},
                            "spec": {"registry": ["docker.io"]}});
    let (client, calls) = client(vec![(200, unreadable)]);
    let (reporter, memory) = (reporter(client), Memory::default());
    let old = RegistryMirrorStatus::default();
    assert_eq!(reporter.report(&metadata(), &old, status("1/1"), &memory).await.unwrap(), None);
    assert_eq!(present(&metadata(), None, &memory), status("1/1"));
    assert_eq!(calls.all().len(), 1);
}
