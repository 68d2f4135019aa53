//! A status is written once per change of state, and what the API server refuses is not remembered as written.

use crate::server::{client, failure};
use breakwater_crds::{Lacking, RegistryMirrorStatus, Summary, yaml};
use breakwater_operator::images::{Exposed, ImageName, ImagesReport};
use breakwater_operator::memory::Memory;
use breakwater_operator::report::{ReportFailed, Reporter, present};
use kube::core::ObjectMeta;
use kube::runtime::events::{Recorder, Reporter as EventReporter};
use serde_json::json;
use tokio::sync::watch;

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
    reporter_beside(client, Lacking::default())
}

/// Beside a definition that lacks this.
fn reporter_beside(client: kube::Client, lacking: Lacking) -> Reporter {
    let recorder = Recorder::new(client.clone(), EventReporter { controller: "c".into(), instance: Some("i".into()) });
    Reporter::new(client, recorder, watch::channel(lacking).1)
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

#[tokio::test]
async fn what_an_older_definition_loses_is_not_written_again_and_again() {
    let [ours, _] = yaml::definitions();
    let mut older = serde_json::to_value(&ours).unwrap();
    let fields = older.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/status/properties").unwrap();
    fields.as_object_mut().unwrap().remove("summary").unwrap();
    let lacking = Lacking::of(&ours, &serde_json::from_value(older).unwrap());
    let (client, calls) = client(Vec::new());
    let (reporter, memory) = (reporter_beside(client, lacking), Memory::default());
    let stored = RegistryMirrorStatus { summary: None, ..status("1/1") };
    assert_eq!(reporter.report(&metadata(), &stored, status("1/1"), &memory).await.unwrap(), None);
    assert!(calls.all().is_empty(), "{:?}", calls.all());
}

#[tokio::test]
async fn an_image_that_stays_exposed_is_one_event() {
    let image = ImageName::parse("a:1").unwrap();
    let exposed = vec![Exposed { image: image.clone(), reason: "NotFound", message: None, since: None }];
    let mut images = ImagesReport { in_use: 1, exposed, ..ImagesReport::default() };
    let written = json!({"metadata": {"name": "m.1", "namespace": "default"}, "eventTime": null});
    let (client, calls) = client(vec![(201, written)]);
    let (reporter, memory) = (reporter(client), Memory::default());
    reporter.tell_of_exposed(&metadata(), &images, &memory).await;
    assert!(calls.all().is_empty(), "exposed, but not for long");
    images.lasting.insert(image);
    for _ in 0..3 {
        reporter.tell_of_exposed(&metadata(), &images, &memory).await;
    }
    assert_eq!(calls.all(), ["POST /apis/events.k8s.io/v1/namespaces/default/events"]);
}
