//! What it costs the operator to know the images of a large cluster: 50,000 Pods as a real API server sends them, in a process of its own.

#![allow(clippy::unwrap_used, reason = "a test")]

use breakwater_operator::images::collect;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use serde_json::json;
use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::watch;

const PODS: usize = 50_000;
const IMAGES: usize = 2_000;
/// Of the whole process, which has the made-up API server in it as well.
const MOST_MEMORY_KIB: u64 = 128 * 1024;

/// A Pod as big as those of real clusters, most of it of no interest; `#N`, `#WORKLOAD` and `#TEAM` stand for numbers.
fn template() -> String {
    let environment: Vec<_> = (0..10)
        .map(|n| json!({"name": format!("SETTING_{n}"), "value": "a value of some length, as they tend to have"}))
        .collect();
    let fields: serde_json::Map<_, _> =
        (0..40).map(|n| (format!("f:field-{n}"), json!({"f:a": {}, "f:b": {".": {}, "f:c": {}}}))).collect();
    json!({
        "metadata": {
            "name": "workload-#WORKLOAD-7d9f8b6c5d-#N",
            "namespace": "team-#TEAM",
            "uid": "00000000-0000-4000-8000-#N",
            "resourceVersion": "#N",
            "labels": {"app": "workload-#WORKLOAD", "pod-template-hash": "7d9f8b6c5d"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u"}],
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": fields}],
        },
        "spec": {
            "initContainers": [{"name": "init", "image": "registry.example.com/team/init:v1", "env": environment}],
            "containers": [
                {"name": "app", "image": "registry.example.com/team/app-#WORKLOAD:v1", "env": environment},
                {"name": "proxy", "image": "docker.io/envoyproxy/envoy:v1.31", "env": environment},
            ],
            "nodeName": "node-1",
        },
        "status": {"phase": "Running", "podIP": "10.0.0.1"},
    })
    .to_string()
}

fn pod(template: &str, number: usize) -> String {
    let numbers = [
        ("#N", format!("{number:012}")),
        ("#WORKLOAD", (number % IMAGES).to_string()),
        ("#TEAM", (number % 200).to_string()),
    ];
    numbers.iter().fold(template.to_owned(), |text, (name, value)| text.replace(name, value))
}

fn query(request: &Request<Body>) -> HashMap<String, String> {
    let pairs = request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

type Frames = BoxStream<'static, Result<Frame<Bytes>, Infallible>>;

/// Lists Pods page by page, and nothing of the other kinds; its watches never say anything.
fn answer(request: &Request<Body>) -> StreamBody<Frames> {
    let query = query(request);
    if query.contains_key("watch") {
        return StreamBody::new(stream::pending().boxed());
    }
    let number = |key: &str| query.get(key).and_then(|value| value.parse::<usize>().ok());
    let is_pods = request.uri().path() == "/api/v1/pods";
    let (from, limit) = (number("continue").unwrap_or(0), number("limit").unwrap());
    assert!(limit <= 500, "a list of all Pods at once would not fit");
    let to = if is_pods { PODS.min(from + limit) } else { 0 };
    let next = if to == 0 || to == PODS { String::new() } else { to.to_string() };
    // One after the other, as text: this process is measured.
    let begin = format!(r#"{{"metadata":{{"resourceVersion":"1","continue":"{next}"}},"items":["#);
    let template = template();
    let items = (from..to).map(move |n| format!("{}{}", if n == from { "" } else { "," }, pod(&template, n)));
    let text = std::iter::once(begin).chain(items).chain(["]}".to_owned()]);
    StreamBody::new(stream::iter(text.map(|text| Ok(Frame::data(Bytes::from(text))))).boxed())
}

fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn fifty_thousand_pods_fit_into_128_mib() {
    let service =
        tower::service_fn(|request: Request<Body>| async move { Ok::<_, Infallible>(Response::new(answer(&request))) });
    let (publish, mut in_use) = watch::channel(None);
    let task = tokio::spawn(collect(Client::new(service, "default"), publish));
    tokio::time::timeout(Duration::from_secs(300), in_use.changed()).await.unwrap().unwrap();
    assert_eq!(in_use.borrow().as_ref().unwrap().len(), IMAGES + 2);
    let peak = peak_memory_kib();
    println!("peak resident memory with {PODS} Pods of {} bytes: {} MiB", template().len(), peak / 1024);
    assert!(peak < MOST_MEMORY_KIB, "{peak} KiB");
    task.abort();
}
